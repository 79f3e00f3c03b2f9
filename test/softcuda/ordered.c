// SPDX-License-Identifier: MIT
/* Stream-ordered allocation: order, reuse, what pools hold on to, and who may use it. */
#include "cu.h"

static CUfunction spin;
static CUcontext ctx;

static void busy(CUstream stream)
{
	uint64_t ns = 40000000;

	launch(spin, stream, (void *[]){&ns});
}

static uint64_t attribute(CUmemoryPool pool, CUmemPool_attribute which)
{
	cuuint64_t value = 0;

	must(cuMemPoolGetAttribute(pool, which, &value));
	return value;
}

static size_t taken(void)
{
	size_t free, total;

	must(cuMemGetInfo(&free, &total));
	return total - free;
}

static void reuse(CUmemoryPool pool, CUstream a, CUstream b)
{
	CUdeviceptr first, second, third;
	unsigned word;

	is(cuMemAllocAsync(&first, 4 << 20, a), CUDA_SUCCESS);
	ok(attribute(pool, CU_MEMPOOL_ATTR_USED_MEM_CURRENT) == 4 << 20 &&
		   attribute(pool, CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT) == 4 << 20 && taken() == 4 << 20,
	   "an allocation is used, reserved and taken");
	must(cuMemsetD32Async(first, 3, 1 << 20, a));
	must(cuMemcpyDtoHAsync(&word, first, 4, a));
	ok(word == 3, "in its stream's order it is there");
	busy(a);
	is(cuMemFreeAsync(first, a), CUDA_SUCCESS);
	is(cuMemFreeAsync(first, a), CUDA_ERROR_INVALID_VALUE);
	ok(attribute(pool, CU_MEMPOOL_ATTR_USED_MEM_CURRENT) == 0, "freed, it is not used");
	must(cuMemAllocAsync(&second, 4 << 20, b));
	ok(second != first, "another stream does not get it before that free was carried out");
	must(cuMemAllocAsync(&third, 4 << 20, a));
	ok(third == first, "the same stream does");
	must(cuMemsetD32Async(third, 4, 1 << 20, a));
	is(cuStreamSynchronize(a), CUDA_SUCCESS);
	must(cuMemFreeAsync(third, a));
	must(cuMemFreeAsync(second, b));
	ok(attribute(pool, CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT) == 8 << 20, "what is free stays reserved");
	must(cuCtxSynchronize());
	ok(attribute(pool, CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT) == 0 && taken() == 0,
	   "until something is synchronised");
	ok(attribute(pool, CU_MEMPOOL_ATTR_RESERVED_MEM_HIGH) == 8 << 20 &&
		   attribute(pool, CU_MEMPOOL_ATTR_USED_MEM_HIGH) == 8 << 20,
	   "the high marks stay");
}

static void threshold(CUmemoryPool pool, CUstream a)
{
	cuuint64_t all = UINT64_MAX, none = 0;
	CUdeviceptr ptr;

	is(cuMemPoolSetAttribute(pool, CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, &all), CUDA_SUCCESS);
	must(cuMemAllocAsync(&ptr, 1000, a));
	must(cuMemFreeAsync(ptr, a));
	must(cuStreamSynchronize(a));
	ok(attribute(pool, CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT) && taken(), "below its threshold a pool keeps memory");
	is(cuMemPoolTrimTo(pool, 0), CUDA_SUCCESS);
	ok(taken() == 0, "until it is trimmed");
	must(cuMemPoolSetAttribute(pool, CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, &none));
	is(cuMemPoolSetAttribute(pool, CU_MEMPOOL_ATTR_USED_MEM_HIGH, &none), CUDA_SUCCESS);
	is(cuMemPoolSetAttribute(pool, CU_MEMPOOL_ATTR_USED_MEM_HIGH, &all), CUDA_ERROR_INVALID_VALUE);
	is(cuMemPoolSetAttribute(pool, CU_MEMPOOL_ATTR_USED_MEM_CURRENT, &none), CUDA_ERROR_INVALID_VALUE);
}

static void own_pool(CUstream a)
{
	CUmemPoolProps props = {.allocType = CU_MEM_ALLOCATION_TYPE_PINNED,
				.location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = 0},
				.maxSize = 8 << 20};
	CUmemoryPool pool, found, standard;
	CUdeviceptr ptr, other;

	is(cuMemPoolCreate(&pool, &props), CUDA_SUCCESS);
	is(cuMemAllocFromPoolAsync(&ptr, 6 << 20, pool, a), CUDA_SUCCESS);
	is(cuMemAllocFromPoolAsync(&other, 6 << 20, pool, a), CUDA_ERROR_OUT_OF_MEMORY);
	must(cuPointerGetAttribute(&found, CU_POINTER_ATTRIBUTE_MEMPOOL_HANDLE, ptr));
	ok(found == pool, "an address knows its pool");
	must(cuDeviceGetDefaultMemPool(&standard, 0));
	is(cuDeviceSetMemPool(0, pool), CUDA_SUCCESS);
	must(cuDeviceGetMemPool(&found, 0));
	ok(found == pool && pool != standard, "it can be the device's");
	is(cuMemPoolDestroy(pool), CUDA_SUCCESS);
	is(cuMemPoolDestroy(pool), CUDA_ERROR_INVALID_VALUE);
	is(cuMemPoolDestroy(standard), CUDA_ERROR_INVALID_VALUE);
	must(cuDeviceGetMemPool(&found, 0));
	ok(found == standard, "destroyed, it is no longer");
	must(cuStreamSynchronize(a));
	is(cuMemsetD8(ptr, 1, 16), CUDA_SUCCESS);
	is(cuMemFree(ptr), CUDA_SUCCESS);
	ok(taken() == 0, "its memory lived until it was freed");
}

static void limits(CUmemoryPool pool, CUstream a)
{
	cuuint64_t all = UINT64_MAX;
	CUdeviceptr ptr;

	must(cuMemPoolSetAttribute(pool, CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, &all));
	is(cuMemAllocAsync(&ptr, 65 << 20, a), CUDA_ERROR_OUT_OF_MEMORY);
	must(cuMemAllocAsync(&ptr, 40 << 20, a));
	must(cuMemFreeAsync(ptr, a));
	must(cuCtxSynchronize());
	is(cuMemAlloc(&ptr, 40 << 20), CUDA_ERROR_OUT_OF_MEMORY);
	is(cuMemAllocAsync(&ptr, 60 << 20, a), CUDA_SUCCESS); /* the pool lets go of the 40 */
	must(cuMemFreeAsync(ptr, a));
	must(cuMemPoolTrimTo(pool, 0));
	must(cuCtxSynchronize());
	is(cuMemFreeAsync(0, a), CUDA_SUCCESS);
	must(cuMemAlloc(&ptr, 4096));
	is(cuMemFreeAsync(ptr, a), CUDA_SUCCESS); /* such memory as well: measured */
	is(cuMemFreeAsync(ptr, a), CUDA_ERROR_INVALID_VALUE);
	must(cuStreamSynchronize(a));
	is(cuMemFree(ptr), CUDA_ERROR_INVALID_VALUE);
	must(cuMemAddressReserve(&ptr, 2 << 20, 0, 0, 0));
	is(cuMemFreeAsync(ptr, a), CUDA_ERROR_INVALID_VALUE);
}

static void too_late(CUstream a)
{
	CUdeviceptr ptr;

	must(cuMemAllocAsync(&ptr, 4096, a));
	must(cuMemFreeAsync(ptr, a));
	must(cuMemsetD8Async(ptr, 1, 16, a));
	is(cuStreamSynchronize(a), CUDA_ERROR_ILLEGAL_ADDRESS);
}

int main(void)
{
	CUmemoryPool pool;
	CUmodule module;
	CUstream a, b;

	device_dir_make();
	setenv("SOFTCUDA_MEMORY_MB", "64", 1);
	must(cuInit(0));
	must(cuCtxCreate(&ctx, NULL, 0, 0));
	must(cuModuleLoadData(&module, test_ptx));
	must(cuModuleGetFunction(&spin, module, "cudapool_spin"));
	must(cuStreamCreate(&a, CU_STREAM_NON_BLOCKING));
	must(cuStreamCreate(&b, CU_STREAM_NON_BLOCKING));
	must(cuDeviceGetDefaultMemPool(&pool, 0));
	reuse(pool, a, b);
	threshold(pool, a);
	own_pool(a);
	limits(pool, a);
	too_late(a);
	must(cuCtxDestroy(ctx));
	device_dir_remove();
	return tap_end();
}
