// SPDX-License-Identifier: MIT
/*
 * What an application sees of device memory, printed: the same with and without the shim. One subject a run, by name.
 * Not printed, because they differ and may: addresses, identities, and that shared memory (legacy IPC) is not offered.
 */
#include "memory_api.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <unistd.h>

static struct memory_api cu;
static CUcontext context;

#define SAY(call) printf("%-60s %d\n", #call, cu.call)
#define MiB	  (1ull << 20)

static void begin(void)
{
	SAY(cuInit(0));
	SAY(cuDevicePrimaryCtxRetain(&context, 0));
	SAY(cuCtxSetCurrent(context));
}

static void errors(void)
{
	CUdeviceptr ptr = 0, small;
	size_t pitch = 7;

	printf("before a context is current\n");
	SAY(cuInit(0));
	SAY(cuMemAlloc_v2(&ptr, 4 * MiB));
	SAY(cuMemFree_v2(0));
	begin();
	SAY(cuMemAlloc_v2(&ptr, 0));
	SAY(cuMemAlloc_v2(NULL, 4 * MiB));
	SAY(cuMemAlloc_v2(&ptr, 1ull << 40));
	SAY(cuMemAlloc_v2(&ptr, ~0ull));
	SAY(cuMemAlloc_v2(&ptr, ~0ull - 4096));
	printf("untouched: %d\n", ptr == 0);
	SAY(cuMemAlloc_v2(&ptr, 5 * MiB));
	SAY(cuMemAlloc_v2(&small, 5000));
	SAY(cuMemFree_v2(ptr + 4096));
	SAY(cuMemFree_v2(ptr + 4 * MiB));
	SAY(cuMemFree_v2(small + 256));
	SAY(cuMemFree_v2(0));
	SAY(cuMemFree_v2(0x1234000));
	SAY(cuMemFree_v2(ptr));
	SAY(cuMemFree_v2(ptr));
	SAY(cuMemFree_v2(small));
	SAY(cuMemFree_v2(small));
	SAY(cuMemAllocPitch_v2(&ptr, &pitch, 5000, 1000, 3));
	SAY(cuMemAllocPitch_v2(&ptr, &pitch, 0, 1000, 4));
	SAY(cuMemAllocPitch_v2(&ptr, &pitch, 5000, 0, 4));
	SAY(cuMemAllocPitch_v2(&ptr, NULL, 5000, 1000, 4));
	SAY(cuMemAllocPitch_v2(NULL, &pitch, 5000, 1000, 4));
	SAY(cuMemAllocPitch_v2(&ptr, &pitch, 1ull << 40, 1ull << 40, 4));
	printf("pitch %zu\n", pitch);
}

static void tell(CUdeviceptr base, CUdeviceptr ptr)
{
	static const CUpointer_attribute asked[] = {
		CU_POINTER_ATTRIBUTE_CONTEXT,	       CU_POINTER_ATTRIBUTE_MEMORY_TYPE,
		CU_POINTER_ATTRIBUTE_DEVICE_POINTER,   CU_POINTER_ATTRIBUTE_HOST_POINTER,
		CU_POINTER_ATTRIBUTE_SYNC_MEMOPS,      CU_POINTER_ATTRIBUTE_IS_MANAGED,
		CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL,   CU_POINTER_ATTRIBUTE_RANGE_START_ADDR,
		CU_POINTER_ATTRIBUTE_RANGE_SIZE,       CU_POINTER_ATTRIBUTE_MAPPED,
		CU_POINTER_ATTRIBUTE_ALLOWED_HANDLE_TYPES, CU_POINTER_ATTRIBUTE_ACCESS_FLAGS,
		CU_POINTER_ATTRIBUTE_MEMPOOL_HANDLE,   CU_POINTER_ATTRIBUTE_MAPPING_SIZE,
		CU_POINTER_ATTRIBUTE_MAPPING_BASE_ADDR};
	enum { COUNT = sizeof(asked) / sizeof(asked[0]) };
	CUpointer_attribute attributes[COUNT];
	uint64_t values[COUNT];
	void *places[COUNT];
	CUdeviceptr start = 1;
	size_t bytes = 1;
	CUresult r;
	int i, pass;

	for (pass = 0; pass < 2; pass++) {
		for (i = 0; i < COUNT; i++) {
			attributes[i] = asked[i];
			values[i] = 0x5555555555555555;
			places[i] = &values[i];
			if (!pass) {
				r = cu.cuPointerGetAttribute(&values[i], asked[i], ptr);
				printf(" %d:", r);
			}
			if (pass && i == COUNT - 1) {
				r = cu.cuPointerGetAttributes(COUNT, attributes, places, ptr);
				printf(" all:%d", r);
			}
		}
		printf("\n");
		for (i = 0; i < COUNT; i++) {
			if (values[i] >= base && values[i] < base + 256 * MiB)
				printf(" %d=base+%llx", asked[i], (unsigned long long)(values[i] - base));
			else if (values[i] == (uintptr_t)context)
				printf(" %d=context", asked[i]);
			else
				printf(" %d=%llx", asked[i], (unsigned long long)values[i]);
		}
		printf("\n");
	}
	r = cu.cuMemGetAddressRange_v2(&start, &bytes, ptr);
	printf(" range %d %llx %zx\n", r, start >= base ? start - base : start, bytes);
	printf(" no range %d\n", cu.cuMemGetAddressRange_v2(NULL, NULL, ptr));
}

static void attributes(void)
{
	CUmemLocation here = {CU_MEM_LOCATION_TYPE_DEVICE, 0};
	unsigned long long flags = 99;
	size_t pitch, width;
	CUdeviceptr ptr;
	unsigned on;

	begin();
	SAY(cuMemAlloc_v2(&ptr, 6 * MiB + 12345));
	tell(ptr, ptr);
	tell(ptr, ptr + 5 * MiB);
	printf("behind the end\n");
	tell(ptr, ptr + 6 * MiB + 12345);
	SAY(cuMemGetAccess(&flags, &here, ptr));
	printf("access %llu\n", flags);
	for (on = 0; on < 2; on++) {
		unsigned value = !on, now = 9;

		SAY(cuPointerSetAttribute(&value, CU_POINTER_ATTRIBUTE_SYNC_MEMOPS, ptr));
		SAY(cuPointerGetAttribute(&now, CU_POINTER_ATTRIBUTE_SYNC_MEMOPS, ptr));
		printf("is %u\n", now);
	}
	SAY(cuMemFree_v2(ptr));
	printf("freed\n");
	tell(ptr, ptr);
	for (width = 1; width < 3000000; width = 3 * width + 1) {
		SAY(cuMemAllocPitch_v2(&ptr, &pitch, width, 64, 4));
		printf("%zu %zu aligned to the pitch: %d\n", width, pitch, ptr % 512 == 0);
		tell(ptr, ptr);
		SAY(cuMemFree_v2(ptr));
	}
	for (width = 2 * MiB; width <= 128 * MiB; width *= 4) {
		SAY(cuMemAlloc_v2(&ptr, width));
		printf("%zu aligned: %d\n", width, ptr % (2 * MiB) == 0);
		SAY(cuMemFree_v2(ptr));
	}
}

/* Functions for mapped memory. */
static void vmm(void)
{
	CUmemAllocationProp prop = {.type = CU_MEM_ALLOCATION_TYPE_PINNED,
				    .location = {CU_MEM_LOCATION_TYPE_DEVICE, 0}},
			    other = prop, got;
	CUmemGenericAllocationHandle a, b, again = 0;
	CUmemAccessDesc access = {prop.location, CU_MEM_ACCESS_FLAGS_PROT_READWRITE};
	unsigned long long flags = 99;
	CUdeviceptr plain, own;
	int fd = -1;
	uint32_t word = 0x12345678;

	begin();
	printf("on an allocation\n");
	SAY(cuMemAlloc_v2(&plain, 8 * MiB));
	SAY(cuMemSetAccess(plain, 8 * MiB, &access, 1));
	SAY(cuMemUnmap(plain, 8 * MiB));
	SAY(cuMemAddressFree(plain, 8 * MiB));
	SAY(cuMemRetainAllocationHandle(&a, (void *)(uintptr_t)plain));
	printf("handles\n");
	SAY(cuMemAddressReserve(&own, 64 * MiB, 0, 0, 0));
	SAY(cuMemCreate(NULL, 8 * MiB, &prop, 0));
	SAY(cuMemCreate(&a, 8 * MiB, NULL, 0));
	SAY(cuMemCreate(&a, 8 * MiB, &prop, 1));
	SAY(cuMemCreate(&a, 0, &prop, 0));
	SAY(cuMemCreate(&a, 8 * MiB + 4096, &prop, 0));
	SAY(cuMemCreate(&a, 1ull << 40, &prop, 0));
	SAY(cuMemCreate(&a, 8 * MiB, &prop, 0));
	other.requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
	SAY(cuMemCreate(&b, 4 * MiB, &other, 0));
	printf("different: %d\n", a != b);
	SAY(cuMemGetAllocationPropertiesFromHandle(NULL, a));
	SAY(cuMemGetAllocationPropertiesFromHandle(&got, a));
	printf("type %d handles %d device %d rdma %d\n", got.type, got.requestedHandleTypes, got.location.id,
	       got.allocFlags.gpuDirectRDMACapable);
	SAY(cuMemGetAllocationPropertiesFromHandle(&got, b));
	printf("handles %d\n", got.requestedHandleTypes);
	SAY(cuMemExportToShareableHandle(&fd, a, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0));
	SAY(cuMemExportToShareableHandle(&fd, b, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0));
	close(fd);
	printf("mapping\n");
	SAY(cuMemMap(own, 2 * MiB, 0, a, 0));
	SAY(cuMemMap(own, 6 * MiB, 2 * MiB, a, 0));
	SAY(cuMemMap(own, 8 * MiB, 0, a, 1));
	SAY(cuMemMap(own, 8 * MiB, 0, a, 0));
	SAY(cuMemMap(own, 8 * MiB, 0, a, 0));
	SAY(cuMemMap(own + 8 * MiB, 4 * MiB, 0, b, 0));
	SAY(cuMemMap(own + 16 * MiB, 8 * MiB, 0, a, 0));
	SAY(cuMemGetAccess(&flags, &prop.location, own));
	printf("flags %llu\n", flags);
	printf("without access\n");
	tell(own, own + MiB);
	SAY(cuMemSetAccess(own, 4 * MiB, &access, 1));
	SAY(cuMemSetAccess(own + 4 * MiB, 8 * MiB, &access, 1));
	SAY(cuMemSetAccess(own, 13 * MiB, &access, 1));
	SAY(cuMemSetAccess(own, 12 * MiB, &access, 0));
	SAY(cuMemSetAccess(own, 12 * MiB, &access, 1));
	SAY(cuMemGetAccess(&flags, &prop.location, own));
	printf("flags %llu\n", flags);
	printf("with access\n");
	tell(own, own + MiB);
	tell(own, own + 9 * MiB);
	SAY(cuMemcpyHtoD_v2(own + 4, &word, 4));
	word = 0;
	SAY(cuMemSetAccess(own + 16 * MiB, 8 * MiB, &access, 1));
	SAY(cuMemcpyDtoH_v2(&word, own + 16 * MiB + 4, 4));
	printf("the other mapping has it: %x\n", word);
	SAY(cuMemcpyDtoD_v2(own + 6 * MiB, own + 16 * MiB, 4 * MiB));
	printf("handles of addresses\n");
	SAY(cuMemRetainAllocationHandle(&again, (void *)(uintptr_t)(own + 12345)));
	printf("the same: %d\n", again == a);
	SAY(cuMemRelease(again));
	SAY(cuMemRelease(a));
	SAY(cuMemRetainAllocationHandle(&again, (void *)(uintptr_t)(own + 20 * MiB)));
	SAY(cuMemRelease(again));
	SAY(cuMemFree_v2(own));
	printf("unmapping\n");
	SAY(cuMemUnmap(own, 4 * MiB));
	SAY(cuMemUnmap(own, 10 * MiB));
	SAY(cuMemUnmap(own + 2 * MiB, 6 * MiB));
	SAY(cuMemAddressFree(own, 64 * MiB));
	SAY(cuMemUnmap(own, 12 * MiB));
	SAY(cuMemUnmap(own, 12 * MiB));
	SAY(cuMemUnmap(own + 16 * MiB, 8 * MiB));
	SAY(cuMemRelease(b));
	SAY(cuMemAddressFree(own, 64 * MiB));
	SAY(cuMemFree_v2(plain));
}

static void take_a_while(void *unused)
{
	usleep(200000);
}

static void contexts(void)
{
	CUdeviceptr first, second, third;
	CUcontext made, made2;
	CUstream stream;
	size_t before, after, total;

	begin();
	SAY(cuMemAlloc_v2(&first, 8 * MiB));
	SAY(cuMemGetInfo_v2(&before, &total));
	SAY(cuCtxCreate_v2(&made, 0, 0));
	SAY(cuMemAlloc_v2(&second, 8 * MiB));
	SAY(cuMemAlloc_v2(&third, 100));
	SAY(cuCtxSetCurrent(context));
	printf("of another context\n");
	SAY(cuMemFree_v2(second));
	SAY(cuCtxSetCurrent(made));
	SAY(cuMemAlloc_v2(&second, 8 * MiB));
	SAY(cuCtxSetCurrent(context));
	SAY(cuCtxDestroy_v2(made));
	SAY(cuCtxDestroy_v2(made));
	printf("of a destroyed context\n");
	SAY(cuMemFree_v2(second));
	SAY(cuMemFree_v2(third));
	SAY(cuMemGetInfo_v2(&after, &total));
	printf("all of it is free again: %d\n", before == after);
	printf("in use by another context\n");
	SAY(cuMemAlloc_v2(&third, 8 * MiB));
	SAY(cuCtxCreate_v2(&made, 0, 0));
	SAY(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
	SAY(cuLaunchHostFunc(stream, take_a_while, NULL));
	SAY(cuMemsetD8Async(third, 1, 8 * MiB, stream));
	SAY(cuMemFree_v2(third));
	SAY(cuStreamSynchronize(stream));
	SAY(cuCtxDestroy_v2(made));
	SAY(cuCtxSetCurrent(context));
	printf("attached to and detached from\n");
	SAY(cuCtxCreate_v2(&made2, 0, 0));
	SAY(cuMemAlloc_v2(&second, 8 * MiB));
	SAY(cuCtxAttach(&made, 0));
	SAY(cuCtxDetach(made2));
	SAY(cuMemsetD8_v2(second, 1, 8 * MiB));
	SAY(cuCtxDetach(made2));
	SAY(cuCtxSetCurrent(context));
	SAY(cuMemGetInfo_v2(&after, &total));
	printf("all of it is free again: %d\n", before == after);
	SAY(cuCtxCreate_v2(&made2, 0, 0));
	SAY(cuMemAlloc_v2(&second, 8 * MiB));
	SAY(cuMemFree_v2(first));
	SAY(cuCtxDestroy_v2(made2));
	SAY(cuCtxSetCurrent(NULL));
	printf("without a current context\n");
	SAY(cuMemFree_v2(first));
	SAY(cuMemAlloc_v2(&first, 8 * MiB));
	SAY(cuCtxSetCurrent(context));
	SAY(cuMemAlloc_v2(&first, 8 * MiB));
	SAY(cuDevicePrimaryCtxReset_v2(0));
	printf("after a reset\n");
	SAY(cuMemFree_v2(first));
	SAY(cuDevicePrimaryCtxRelease_v2(0));
	SAY(cuDevicePrimaryCtxRetain(&context, 0));
	SAY(cuCtxSetCurrent(context));
	SAY(cuMemFree_v2(first));
	SAY(cuMemAlloc_v2(&first, 8 * MiB));
	SAY(cuMemFree_v2(first));
}

static void memory_runs_out(void)
{
	CUdeviceptr ptr[64];
	size_t before, after, total;
	int i, count = 0;

	begin();
	SAY(cuMemGetInfo_v2(&before, &total));
	while (count < 64 && cu.cuMemAlloc_v2(&ptr[count], before / 10) == CUDA_SUCCESS)
		count++;
	printf("%d tenths\n", count);
	SAY(cuMemAlloc_v2(&ptr[count], before / 10));
	for (i = 0; i < count; i++)
		SAY(cuMemFree_v2(ptr[i]));
	SAY(cuMemGetInfo_v2(&after, &total));
	printf("all of it is free again: %d\n", before == after);
}

/* What is forbidden in a capture, and what it does to it. */
static void capture(void)
{
	static const CUstreamCaptureMode modes[] = {CU_STREAM_CAPTURE_MODE_GLOBAL, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL,
						    CU_STREAM_CAPTURE_MODE_RELAXED};
	CUstreamCaptureMode mine = CU_STREAM_CAPTURE_MODE_RELAXED;
	CUdeviceptr kept, ptr;
	CUstream stream;
	CUgraph graph;
	size_t pitch;
	unsigned i;

	begin();
	SAY(cuMemAlloc_v2(&kept, 8 * MiB));
	SAY(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
	for (i = 0; i < 4; i++) {
		CUstreamCaptureMode mode = modes[i % 3];

		if (i == 3)
			SAY(cuThreadExchangeStreamCaptureMode(&mine)); /* as PyTorch's allocator does */
		printf("mode %d\n", mode);
		SAY(cuStreamBeginCapture_v2(stream, mode));
		SAY(cuMemsetD8Async(kept, 1, 100, stream));
		ptr = 0;
		SAY(cuMemAlloc_v2(&ptr, 8 * MiB));
		SAY(cuStreamEndCapture(stream, &graph));
		if (ptr)
			SAY(cuMemFree_v2(ptr));
		SAY(cuStreamBeginCapture_v2(stream, mode));
		SAY(cuMemsetD8Async(kept, 1, 100, stream));
		SAY(cuMemAllocPitch_v2(&ptr, &pitch, 10000, 1000, 4));
		SAY(cuStreamEndCapture(stream, &graph));
		SAY(cuMemAlloc_v2(&ptr, 8 * MiB));
		SAY(cuStreamBeginCapture_v2(stream, mode));
		SAY(cuMemsetD8Async(kept, 1, 100, stream));
		SAY(cuMemFree_v2(ptr));
		SAY(cuStreamEndCapture(stream, &graph));
	}
}

/* Stream-ordered allocation. Amounts in use are the application's doing; those that are reserved are the driver's. */
static void in_use(CUmemoryPool pool)
{
	uint64_t used = 0, high = 0, reserved = 0;

	SAY(cuMemPoolGetAttribute(pool, CU_MEMPOOL_ATTR_USED_MEM_CURRENT, &used));
	SAY(cuMemPoolGetAttribute(pool, CU_MEMPOOL_ATTR_USED_MEM_HIGH, &high));
	SAY(cuMemPoolGetAttribute(pool, CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT, &reserved));
	printf("used %llu high %llu enough reserved %d\n", (unsigned long long)used, (unsigned long long)high,
	       reserved >= used);
}

static void ordered(void)
{
	CUmemPoolProps props = {.allocType = CU_MEM_ALLOCATION_TYPE_PINNED,
				.location = {CU_MEM_LOCATION_TYPE_DEVICE, 0}};
	uint64_t value = UINT64_MAX, zero = 0;
	CUmemoryPool pool, mine;
	size_t bytes, total;
	CUdeviceptr a, b, c;
	CUstream one, two;
	uint32_t word = 0;
	CUgraph graph;
	void *of;
	int on;

	begin();
	SAY(cuStreamCreate(&one, CU_STREAM_NON_BLOCKING));
	SAY(cuStreamCreate(&two, CU_STREAM_NON_BLOCKING));
	SAY(cuDeviceGetDefaultMemPool(&pool, 0));
	SAY(cuMemPoolSetAttribute(pool, CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, &value));
	value = 5;
	SAY(cuMemPoolGetAttribute(pool, CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, &value));
	printf("threshold %llx\n", (unsigned long long)value);
	SAY(cuMemPoolGetAttribute(pool, CU_MEMPOOL_ATTR_REUSE_ALLOW_OPPORTUNISTIC, &on));
	printf("opportunistic %d\n", on);
	in_use(pool);
	SAY(cuMemAllocAsync(NULL, 4096, one));
	SAY(cuMemAllocAsync(&a, 1ull << 45, one));
	SAY(cuMemFreeAsync(0x1234000, one));
	SAY(cuMemAllocAsync(&a, 10 * MiB, one));
	SAY(cuMemAllocAsync(&b, 512000, one));
	SAY(cuMemAllocFromPoolAsync(&c, 40 * MiB, pool, two));
	SAY(cuMemsetD8Async(a, 0x11, 10 * MiB, one));
	SAY(cuStreamSynchronize(one));
	SAY(cuStreamSynchronize(two));
	SAY(cuMemcpyDtoH_v2(&word, a + 9 * MiB, 4));
	printf("word %x\n", word);
	in_use(pool);
	SAY(cuPointerGetAttribute(&of, CU_POINTER_ATTRIBUTE_MEMPOOL_HANDLE, a + 4096));
	printf("of the pool: %d\n", of == pool);
	SAY(cuMemFreeAsync(a + 4096, one));
	SAY(cuMemFreeAsync(a, one));
	SAY(cuStreamSynchronize(one));
	SAY(cuMemFreeAsync(a, one));
	SAY(cuMemFree_v2(b));
	SAY(cuMemFree_v2(b));
	in_use(pool);
	SAY(cuMemFreeAsync(c, one));
	SAY(cuCtxSynchronize());
	SAY(cuMemPoolSetAttribute(pool, CU_MEMPOOL_ATTR_USED_MEM_HIGH, &zero));
	SAY(cuMemPoolTrimTo(pool, 0));
	in_use(pool);
	SAY(cuMemPoolGetAttribute(pool, CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT, &value));
	printf("nothing is reserved: %d\n", value == 0);
	printf("a pool of the application\n");
	SAY(cuMemPoolCreate(&mine, &props));
	SAY(cuMemAllocFromPoolAsync(&a, 3 * MiB, mine, two));
	SAY(cuDeviceSetMemPool(0, mine));
	SAY(cuMemAllocAsync(&b, 5120, NULL));
	SAY(cuMemAllocAsync_ptsz(&c, 5120, NULL));
	in_use(mine);
	SAY(cuMemFreeAsync_ptsz(c, NULL));
	SAY(cuMemFreeAsync(b, NULL));
	SAY(cuDeviceSetMemPool(0, pool));
	SAY(cuMemPoolDestroy(mine));
	SAY(cuMemsetD8Async(a, 0x22, 3 * MiB, two));
	SAY(cuMemFreeAsync(a, two));
	printf("in a capture\n");
	SAY(cuStreamBeginCapture_v2(one, CU_STREAM_CAPTURE_MODE_GLOBAL));
	SAY(cuMemAllocAsync(&a, 4096, two));
	SAY(cuStreamEndCapture(one, &graph));
	SAY(cuMemAllocAsync(&a, 3 * MiB, two));
	SAY(cuMemAlloc_v2(&b, 5 * MiB));
	SAY(cuStreamBeginCapture_v2(one, CU_STREAM_CAPTURE_MODE_GLOBAL));
	SAY(cuMemFreeAsync(a, two));
	SAY(cuMemFreeAsync(b, two));
	SAY(cuStreamEndCapture(one, &graph));
	printf("what is free in a pool is no reason to end one\n");
	SAY(cuMemPoolCreate(&mine, &props));
	SAY(cuMemAllocFromPoolAsync(&a, 3 * MiB, mine, two));
	SAY(cuMemFreeAsync(a, two));
	SAY(cuStreamBeginCapture_v2(one, CU_STREAM_CAPTURE_MODE_GLOBAL));
	SAY(cuMemGetInfo_v2(&bytes, &total));
	SAY(cuStreamEndCapture(one, &graph));
	SAY(cuMemPoolDestroy(mine));
	printf("without a current context\n");
	SAY(cuMemAllocAsync(&a, 3 * MiB, two));
	SAY(cuCtxSetCurrent(NULL));
	SAY(cuMemFree_v2(a));
}

static _Atomic int wrong;

/* Small and large, in three streams, used by one while freed in it. */
static void *ordered_churn(void *number)
{
	uint64_t seed = (uintptr_t)number * 104729 + 1;
	CUdeviceptr ptr[12] = {0};
	uint64_t bytes[12];
	unsigned char mark[12], seen[2];
	CUstream stream[3];
	int i;

	wrong += cu.cuCtxSetCurrent(context) != CUDA_SUCCESS;
	for (i = 0; i < 3; i++)
		wrong += cu.cuStreamCreate(&stream[i], CU_STREAM_NON_BLOCKING) != CUDA_SUCCESS;
	for (i = 0; i < 300; i++) {
		unsigned at, with;

		seed = seed * 6364136223846793005ull + 1442695040888963407ull;
		at = (seed >> 40) % 12;
		with = at % 3;
		if (ptr[at]) {
			wrong += cu.cuStreamSynchronize(stream[with]) != CUDA_SUCCESS;
			wrong += cu.cuMemcpyDtoH_v2(&seen[0], ptr[at], 1) != CUDA_SUCCESS;
			wrong += cu.cuMemcpyDtoH_v2(&seen[1], ptr[at] + bytes[at] - 1, 1) != CUDA_SUCCESS;
			wrong += seen[0] != mark[at] || seen[1] != mark[at];
			wrong += cu.cuMemsetD8Async(ptr[at], 0, bytes[at], stream[with]) != CUDA_SUCCESS;
			wrong += cu.cuMemFreeAsync(ptr[at], stream[with]) != CUDA_SUCCESS;
			ptr[at] = 0;
		} else {
			mark[at] = seed >> 50 | 1;
			bytes[at] = 1 + (seed >> 30) % (seed >> 63 ? 3 * MiB : 70000);
			wrong += cu.cuMemAllocAsync(&ptr[at], bytes[at], stream[with]) != CUDA_SUCCESS;
			wrong += cu.cuMemsetD8Async(ptr[at], mark[at], bytes[at], stream[with]) != CUDA_SUCCESS;
		}
	}
	for (i = 0; i < 12; i++)
		if (ptr[i])
			wrong += cu.cuMemFreeAsync(ptr[i], stream[i % 3]) != CUDA_SUCCESS;
	for (i = 0; i < 3; i++)
		wrong += cu.cuStreamDestroy_v2(stream[i]) != CUDA_SUCCESS;
	return NULL;
}

static void ordered_threads(void)
{
	CUmemoryPool pool;
	pthread_t thread[4];
	uint64_t used = 1;
	uintptr_t i;

	begin();
	for (i = 0; i < 4; i++)
		pthread_create(&thread[i], NULL, ordered_churn, (void *)i);
	for (i = 0; i < 4; i++)
		pthread_join(thread[i], NULL);
	SAY(cuCtxSynchronize());
	SAY(cuDeviceGetDefaultMemPool(&pool, 0));
	SAY(cuMemPoolGetAttribute(pool, CU_MEMPOOL_ATTR_USED_MEM_CURRENT, &used));
	printf("wrong: %d, used: %llu\n", wrong, (unsigned long long)used);
}

static void *churn(void *number)
{
	uint64_t seed = (uintptr_t)number * 7919 + 1;
	CUdeviceptr ptr[16] = {0};
	uint32_t mark[16] = {0};
	int i;

	wrong += cu.cuCtxSetCurrent(context) != CUDA_SUCCESS;
	for (i = 0; i < 600; i++) {
		unsigned at;
		uint32_t word;

		seed = seed * 6364136223846793005ull + 1442695040888963407ull;
		at = seed >> 60;
		if (ptr[at]) {
			wrong += cu.cuMemcpyDtoH_v2(&word, ptr[at] + 1 * MiB, 4) != CUDA_SUCCESS || word != mark[at];
			wrong += cu.cuMemFree_v2(ptr[at]) != CUDA_SUCCESS;
			ptr[at] = 0;
		} else {
			mark[at] = seed >> 20;
			wrong += cu.cuMemAlloc_v2(&ptr[at], 1 * MiB + 4 + (seed >> 40) % (8 * MiB)) != CUDA_SUCCESS;
			wrong += cu.cuMemcpyHtoD_v2(ptr[at] + 1 * MiB, &mark[at], 4) != CUDA_SUCCESS;
		}
	}
	for (i = 0; i < 16; i++)
		wrong += cu.cuMemFree_v2(ptr[i]) != CUDA_SUCCESS;
	return NULL;
}

static void threads(void)
{
	size_t before, after, total;
	pthread_t thread[8];
	uintptr_t i;

	begin();
	SAY(cuMemGetInfo_v2(&before, &total));
	for (i = 0; i < 8; i++)
		pthread_create(&thread[i], NULL, churn, (void *)i);
	for (i = 0; i < 8; i++)
		pthread_join(thread[i], NULL);
	SAY(cuMemGetInfo_v2(&after, &total));
	printf("wrong: %d, all of it is free again: %d\n", wrong, before == after);
}

/* Copies with the current device's memory and another's, and what is said of that. */
static void copies(CUdeviceptr own, CUcontext own_context, CUdeviceptr other, CUcontext other_context)
{
	static uint64_t number;
	uint64_t from = ++number, to[3] = {0};

	SAY(cuMemcpyHtoD_v2(other, &from, sizeof(from)));
	SAY(cuMemcpyDtoD_v2(own, other, sizeof(from)));
	SAY(cuMemcpyDtoH_v2(&to[0], own, sizeof(from)));
	SAY(cuMemcpyDtoD_v2(other + 64, own, sizeof(from)));
	SAY(cuMemcpyDtoH_v2(&to[1], other + 64, sizeof(from)));
	SAY(cuMemcpy(other + 128, own, sizeof(from)));
	SAY(cuMemcpyPeer(own + 64, own_context, other + 128, other_context, sizeof(from)));
	SAY(cuMemcpyDtoH_v2(&to[2], own + 64, sizeof(from)));
	printf("arrived: %d %d %d\n", to[0] == from, to[1] == from, to[2] == from);
	tell(other, other + 4096);
}

static void devices(void)
{
	CUdeviceptr before, after, own, ordered;
	CUcontext two, one;

	begin();
	one = context;
	SAY(cuMemAlloc_v2(&before, 4 * MiB));
	SAY(cuMemAllocAsync(&ordered, 4 * MiB, NULL));
	SAY(cuStreamSynchronize(NULL));
	SAY(cuDevicePrimaryCtxRetain(&two, 1));
	SAY(cuMemAlloc_v2(&after, 40 * MiB));
	SAY(cuCtxSetCurrent(two));
	SAY(cuMemAlloc_v2(&own, 4 * MiB));
	copies(own, two, before, context);
	copies(own, two, after, context);
	SAY(cuMemcpyDtoD_v2(own, ordered, 8));
	SAY(cuCtxDisablePeerAccess(context));
	SAY(cuCtxEnablePeerAccess(context, 0));
	SAY(cuCtxEnablePeerAccess(context, 0));
	SAY(cuMemsetD8_v2(before, 1, 4096));
	copies(own, two, before, context);
	SAY(cuCtxDisablePeerAccess(context));
	copies(own, two, before, context);
	SAY(cuCtxSetCurrent(one));
	context = two; /* whose memory is told of */
	copies(before, one, own, two);
	SAY(cuMemFree_v2(own));
	SAY(cuMemFree_v2(ordered));
	SAY(cuMemFree_v2(before));
	SAY(cuMemFree_v2(after));
}

int main(int argc, char **argv)
{
	static const struct {
		const char *name;
		void (*run)(void);
	} runs[] = {{"errors", errors},	    {"attributes", attributes}, {"vmm", vmm},
		    {"contexts", contexts}, {"out", memory_runs_out},	{"capture", capture},
		    {"threads", threads},   {"ordered", ordered},	{"ordered_threads", ordered_threads},
		    {"devices", devices}};
	unsigned i;

	cu = memory_api();
	for (i = 0; argc > 1 && i < sizeof(runs) / sizeof(runs[0]); i++) {
		if (strcmp(runs[i].name, argv[1]))
			continue;
		runs[i].run();
		return 0;
	}
	fprintf(stderr, "no such run\n");
	return 2;
}
