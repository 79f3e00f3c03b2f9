// SPDX-License-Identifier: MIT
/*
 * Work that touches what it may not: fails where it is carried out, and spoils its context for good. Two devices and
 * their peers.
 */
#include "cu.h"

#define GRAIN (2ul << 20)

static CUdeviceptr reserved;
static CUmemGenericAllocationHandle handle;
static CUfunction fill, spin;
static CUcontext ctx;

static CUmemAllocationProp prop_on(int device)
{
	return (CUmemAllocationProp){.type = CU_MEM_ALLOCATION_TYPE_PINNED,
				     .requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR,
				     .location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = device}};
}

static void give_access(CUdeviceptr ptr, int device, CUmemAccess_flags flags)
{
	CUmemAccessDesc access = {.location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = device}, .flags = flags};

	must(cuMemSetAccess(ptr, GRAIN, &access, 1));
}

/* A fresh context, current, with its kernels. */
static void fresh(int device)
{
	CUmodule module;

	if (ctx)
		must(cuCtxDestroy(ctx));
	must(cuCtxCreate(&ctx, NULL, 0, device));
	must(cuModuleLoadData(&module, test_ptx));
	must(cuModuleGetFunction(&fill, module, "cudapool_fill"));
	must(cuModuleGetFunction(&spin, module, "cudapool_spin"));
}

static CUresult fill_at(CUdeviceptr ptr)
{
	uint64_t words = 4;
	uint32_t seed = 1;

	launch(fill, NULL, (void *[]){&ptr, &words, &seed});
	return cuCtxSynchronize();
}

static void unmapped(void)
{
	CUmemAllocationProp prop = prop_on(0);
	unsigned word;

	must(cuMemAddressReserve(&reserved, 2 * GRAIN, 0, 0, 0));
	must(cuMemCreate(&handle, GRAIN, &prop, 0));
	is(cuMemcpyDtoH(&word, reserved, 4), CUDA_ERROR_ILLEGAL_ADDRESS);
	is(cuMemsetD8(reserved, 0, 1), CUDA_ERROR_ILLEGAL_ADDRESS);
	is(cuCtxSynchronize(), CUDA_ERROR_ILLEGAL_ADDRESS);
	fresh(0);
	is(fill_at(reserved), CUDA_ERROR_ILLEGAL_ADDRESS);
	is(cuMemAlloc(&reserved + 1, 4), CUDA_ERROR_ILLEGAL_ADDRESS);
	fresh(0);
	must(cuMemMap(reserved, GRAIN, 0, handle, 0));
	is(cuMemsetD8(reserved, 0, 1), CUDA_ERROR_ILLEGAL_ADDRESS);
	fresh(0);
	give_access(reserved, 0, CU_MEM_ACCESS_FLAGS_PROT_READ);
	is(cuMemcpyDtoH(&word, reserved, 4), CUDA_SUCCESS);
	is(cuMemsetD8(reserved, 0, 1), CUDA_ERROR_ILLEGAL_ADDRESS);
	fresh(0);
	give_access(reserved, 0, CU_MEM_ACCESS_FLAGS_PROT_READWRITE);
	is(fill_at(reserved), CUDA_SUCCESS);
	is(cuMemsetD8(reserved, 0, GRAIN + 1), CUDA_ERROR_ILLEGAL_ADDRESS);
	fresh(0);
}

/* What a hole in a gate looks like: work that was submitted before, and is carried out after the memory has gone. */
static void unmapped_under_work(void)
{
	uint64_t ns = 50000000;
	CUstream stream;

	must(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
	launch(spin, stream, (void *[]){&ns});
	is(cuMemsetD8Async(reserved, 1, 16, stream), CUDA_SUCCESS);
	is(cuMemUnmap(reserved, GRAIN), CUDA_SUCCESS);
	is(cuStreamQuery(stream), CUDA_ERROR_NOT_READY);
	is(cuStreamSynchronize(stream), CUDA_ERROR_ILLEGAL_ADDRESS);
	is(cuCtxSynchronize(), CUDA_ERROR_ILLEGAL_ADDRESS);
	fresh(0);
	is(cuMemUnmap(reserved, GRAIN), CUDA_SUCCESS); /* nothing is mapped there: no error, as measured */
}

static void peers(void)
{
	CUmemAllocationProp prop = prop_on(1);
	CUmemGenericAllocationHandle other;
	CUcontext first, second;
	size_t free, before, total;
	CUdeviceptr legacy, mapped, own, base;
	CUuuid uuids[2];
	unsigned word;
	int can;

	must(cuDeviceGetUuid(&uuids[0], 0));
	must(cuDeviceGetUuid(&uuids[1], 1));
	ok(memcmp(&uuids[0], &uuids[1], sizeof(*uuids)), "two devices have two UUIDs");
	is(cuDeviceCanAccessPeer(&can, 0, 1), CUDA_SUCCESS);
	ok(can, "which can be peers");
	first = ctx;
	must(cuMemGetInfo(&before, &total));
	must(cuCtxCreate(&second, NULL, 0, 1));
	must(cuMemAlloc(&legacy, GRAIN));
	must(cuMemsetD32(legacy, 5, GRAIN / 4));
	must(cuCtxSetCurrent(first));
	must(cuMemGetInfo(&free, &total));
	ok(free == before, "memory of one device is not taken from the other");
	is(cuMemcpyDtoH(&word, legacy, 4), CUDA_SUCCESS); /* copies go through the other device */
	is(cuMemcpyHtoD(legacy, &word, 4), CUDA_SUCCESS);
	is(cuMemsetD8(legacy, 1, 4), CUDA_ERROR_INVALID_VALUE);
	is(cuMemGetAddressRange(&base, &free, legacy), CUDA_ERROR_NOT_FOUND);
	is(cuPointerGetAttribute(&base, CU_POINTER_ATTRIBUTE_DEVICE_POINTER, legacy), CUDA_ERROR_INVALID_VALUE);
	is(cuMemcpyPeer(legacy, second, legacy + 4096, second, 16), CUDA_SUCCESS);
	is(cuCtxEnablePeerAccess(second, 0), CUDA_SUCCESS);
	is(fill_at(legacy), CUDA_SUCCESS);
	is(cuMemsetD8(legacy, 1, 4), CUDA_SUCCESS);
	is(cuMemGetAddressRange(&base, &free, legacy), CUDA_SUCCESS);
	is(cuCtxDisablePeerAccess(second), CUDA_SUCCESS);
	is(fill_at(legacy), CUDA_ERROR_ILLEGAL_ADDRESS);
	must(cuCtxSetCurrent(second));
	is(cuCtxSynchronize(), CUDA_SUCCESS); /* the other context is well */
	must(cuCtxSetCurrent(first));
	fresh(0);

	must(cuMemCreate(&other, GRAIN, &prop, 0));
	must(cuMemAddressReserve(&mapped, GRAIN, 0, 0, 0));
	must(cuMemMap(mapped, GRAIN, 0, other, 0));
	give_access(mapped, 1, CU_MEM_ACCESS_FLAGS_PROT_READWRITE);
	must(cuMemAlloc(&own, GRAIN));
	is(cuMemcpyHtoD(mapped, &word, 4), CUDA_ERROR_INVALID_VALUE); /* but not to mapped memory (probes/reach.c) */
	is(cuMemcpyDtoH(&word, mapped, 4), CUDA_ERROR_INVALID_VALUE);
	is(cuMemcpyDtoHAsync(&word, mapped, 4, CU_STREAM_PER_THREAD), CUDA_ERROR_INVALID_VALUE);
	is(cuMemcpyDtoD(own, mapped, 4), CUDA_ERROR_INVALID_VALUE);
	is(cuMemcpyDtoD(mapped, own, 4), CUDA_ERROR_INVALID_VALUE);
	is(cuMemcpy(mapped, own, 4), CUDA_ERROR_INVALID_VALUE);
	is(cuMemsetD8(mapped, 1, 4), CUDA_ERROR_INVALID_VALUE);
	is(cuMemcpyPeer(mapped, second, own, ctx, 4), CUDA_SUCCESS);
	is(cuMemcpyPeer(own, ctx, mapped, second, 4), CUDA_SUCCESS);
	must(cuMemFree(own));
	give_access(mapped, 0, CU_MEM_ACCESS_FLAGS_PROT_READWRITE);
	is(cuMemcpyDtoH(&word, mapped, 4), CUDA_SUCCESS);
	is(cuMemsetD8(mapped, 1, 4), CUDA_SUCCESS);
	is(fill_at(mapped), CUDA_SUCCESS);
	give_access(mapped, 0, CU_MEM_ACCESS_FLAGS_PROT_NONE);
	is(fill_at(mapped), CUDA_ERROR_ILLEGAL_ADDRESS);
	fresh(0);
	must(cuMemUnmap(mapped, GRAIN));
	must(cuMemRelease(other));
	must(cuMemAddressFree(mapped, GRAIN));
	must(cuCtxDestroy(second));
}

static uint64_t attribute(CUpointer_attribute which, CUdeviceptr ptr)
{
	uint64_t value = 0;

	must(cuPointerGetAttribute(&value, which, ptr));
	return value;
}

static void attributes(void)
{
	CUpointer_attribute all[] = {CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL, CU_POINTER_ATTRIBUTE_MEMORY_TYPE};
	CUdeviceptr legacy, base;
	int ordinal = 7, type = 7;
	uint64_t value;
	size_t size;

	must(cuMemAlloc(&legacy, 3 << 20));
	ok(attribute(CU_POINTER_ATTRIBUTE_RANGE_SIZE, legacy) == 3 << 20 &&
		   attribute(CU_POINTER_ATTRIBUTE_MAPPING_SIZE, legacy) == 4 << 20 &&
		   attribute(CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE, legacy) == 1 &&
		   attribute(CU_POINTER_ATTRIBUTE_CONTEXT, legacy) == (uintptr_t)ctx,
	   "attributes of an allocation");
	must(cuMemFree(legacy));
	must(cuMemMap(reserved + GRAIN, GRAIN, 0, handle, 0));
	is(cuMemGetAddressRange(&base, &size, reserved + GRAIN), CUDA_ERROR_NOT_FOUND);
	is(cuPointerGetAttribute(&value, CU_POINTER_ATTRIBUTE_DEVICE_POINTER, reserved + GRAIN),
	   CUDA_ERROR_INVALID_VALUE);
	give_access(reserved + GRAIN, 0, CU_MEM_ACCESS_FLAGS_PROT_READWRITE);
	is(cuMemGetAddressRange(&base, &size, reserved + GRAIN + 5), CUDA_SUCCESS);
	ok(base == reserved + GRAIN && size == GRAIN, "a mapping's range is what was mapped");
	ok(attribute(CU_POINTER_ATTRIBUTE_RANGE_START_ADDR, base) == reserved &&
		   attribute(CU_POINTER_ATTRIBUTE_RANGE_SIZE, base) == 2 * GRAIN &&
		   attribute(CU_POINTER_ATTRIBUTE_MAPPING_BASE_ADDR, base) == base &&
		   attribute(CU_POINTER_ATTRIBUTE_ALLOWED_HANDLE_TYPES, base) == 1 &&
		   attribute(CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE, base) == 0 &&
		   attribute(CU_POINTER_ATTRIBUTE_ACCESS_FLAGS, base) == CU_MEM_ACCESS_FLAGS_PROT_READWRITE &&
		   attribute(CU_POINTER_ATTRIBUTE_CONTEXT, base) == 0,
	   "attributes of a mapping");
	is(cuPointerGetAttribute(&value, CU_POINTER_ATTRIBUTE_MEMORY_TYPE, reserved), CUDA_ERROR_INVALID_VALUE);
	is(cuPointerGetAttributes(2, all, (void *[]){&ordinal, &type}, reserved), CUDA_SUCCESS);
	ok(ordinal == -2 && type == 0, "attributes of nothing");
	is(cuIpcGetMemHandle(&(CUipcMemHandle){}, base), CUDA_ERROR_INVALID_VALUE);
	is(cuMemMap(reserved, GRAIN, GRAIN, handle, 0), CUDA_ERROR_NOT_SUPPORTED);
	is(cuMemFree(base), CUDA_ERROR_INVALID_VALUE);
	must(cuMemAlloc(&legacy, 4096));
	must(cuCtxSetCurrent(NULL));
	is(cuMemFree(legacy), CUDA_SUCCESS); /* without a context, as measured */
	is(cuMemFree(legacy), CUDA_ERROR_INVALID_VALUE);
	must(cuCtxSetCurrent(ctx));
	must(cuMemUnmap(reserved, 2 * GRAIN));
}

int main(void)
{
	device_dir_make();
	setenv("SOFTCUDA_MEMORY_MB", "64", 1);
	setenv("SOFTCUDA_DEVICES", "2", 1);
	must(cuInit(0));
	fresh(0);
	unmapped();
	unmapped_under_work();
	peers();
	attributes();
	must(cuMemRelease(handle));
	must(cuMemAddressFree(reserved, 2 * GRAIN));
	must(cuCtxDestroy(ctx));
	device_dir_remove();
	return tap_end();
}
