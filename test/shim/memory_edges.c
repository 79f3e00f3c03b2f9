// SPDX-License-Identifier: MIT
/* Memory that is moved, at the edges: short, many at once, of newer drivers. Prints TAP. One behaviour a run, by name. */
#include "moving.h"

#include <linux/futex.h>
#include <pthread.h>
#include <sys/syscall.h>

/* An allocation of many pieces takes long (the first cuMemCreate), and another thread fills the list meanwhile. */
static CUcontext slow_context;
static CUdeviceptr slow;
enum { SLOW_PIECES = 200, LIST = 4096 };

static void *allocate_slowly(void *unused)
{
	MUST(cuCtxSetCurrent(slow_context));
	MUST(cuMemAlloc_v2(&slow, SLOW_PIECES * CUDAPOOL_PIECE_MAX));
	return NULL;
}

static void crowd(void)
{
	static CUdeviceptr ptr[LIST - 100];
	enum { N = sizeof(ptr) / sizeof(ptr[0]) };
	pthread_t thread;
	bool good;
	int i;

	slow_context = begin(0);
	pthread_create(&thread, NULL, allocate_slowly, NULL);
	usleep(200000);
	for (i = 0; i < N; i++)
		MUST(cuMemAlloc_v2(&ptr[i], 2 << 20));
	ok(!slow, "more is allocated while an allocation is made");
	pthread_join(thread, NULL);
	mark(slow, SLOW_PIECES * CUDAPOOL_PIECE_MAX, 1);
	mark(ptr[N - 1], 2 << 20, 2);
	ok(hook_report()->parked_bytes == SLOW_PIECES * CUDAPOOL_PIECE_MAX + N * (2ull << 20), "all of it can be parked");
	ok(cycle("all") && marked(slow, SLOW_PIECES * CUDAPOOL_PIECE_MAX, 1) && marked(ptr[N - 1], 2 << 20, 2),
	   "and comes back");
	good = !cu.cuMemFree_v2(slow);
	for (i = 0; i < N; i++)
		good &= !cu.cuMemFree_v2(ptr[i]);
	ok(good && hook_report()->parked_bytes == 0, "and can be freed");
}

/* What the software driver lacks, with another one that has it (newer.c). */
static void beyond(void)
{
	struct {
		size_t width, height;
		uint32_t format, channels;
	} descriptor = {100, 50, 0x20, 4};
	CUmemAllocationProp prop = {.type = CU_MEM_ALLOCATION_TYPE_PINNED,
				    .location = {CU_MEM_LOCATION_TYPE_DEVICE, 0}};
	void *lib = dlopen("libcuda.so.1", RTLD_NOW), *array;
	CUresult (*array_create)(void **, const void *) = dlsym(lib, "cuArrayCreate_v2");
	CUresult (*array_destroy)(void *) = dlsym(lib, "cuArrayDestroy");
	CUresult (*bind)(CUmemGenericAllocationHandle, size_t, CUmemGenericAllocationHandle, size_t, size_t,
			 unsigned long long) = dlsym(lib, "cuMulticastBindMem");
	CUresult (*bind_v2)(CUmemGenericAllocationHandle, CUdevice, size_t, CUmemGenericAllocationHandle, size_t,
			    size_t, unsigned long long) = dlsym(lib, "cuMulticastBindMem_v2");
	CUresult (*bind_addr_v2)(CUmemGenericAllocationHandle, CUdevice, size_t, CUdeviceptr, size_t,
				 unsigned long long) = dlsym(lib, "cuMulticastBindAddr_v2");
	CUmemGenericAllocationHandle handle;
	CUdeviceptr ptr;

	begin(0);
	must(array_create(&array, &descriptor), "cuArrayCreate");
	ok(hook_report()->left_bytes[CUDAPOOL_LEFT_ARRAY] == 100 * 50 * 4 * 4, "an array is counted");
	ok(array_destroy(&lib) != CUDA_SUCCESS && hook_report()->left_bytes[CUDAPOOL_LEFT_ARRAY] == 80000,
	   "until it is really destroyed");
	must(array_destroy(array), "cuArrayDestroy");
	ok(hook_report()->left_bytes[CUDAPOOL_LEFT_ARRAY] == 0, "then it is not");
	ok(hook_report()->left_bytes[CUDAPOOL_LEFT_ORDERED] == 4 << 20, "so is what graphs have reserved");
	MUST(cuMemCreate(&handle, 2 * CUDAPOOL_PIECE_MAX, &prop, 0));
	ok(bind(0, 0, handle, 0, 3 * CUDAPOOL_PIECE_MAX, 0) != CUDA_SUCCESS &&
		   hook_report()->parked_bytes == 2 * CUDAPOOL_PIECE_MAX,
	   "more than a handle has cannot be bound to a multicast object");
	ok(bind(0, 0, handle, 0, 2 * CUDAPOOL_PIECE_MAX, 0) == CUDA_SUCCESS && hook_report()->parked_bytes == 0 &&
		   hook_report()->left_bytes[CUDAPOOL_LEFT_SHARED] == 2 * CUDAPOOL_PIECE_MAX,
	   "what is bound to one is shared");
	MUST(cuMemRelease(handle));
	ok(hook_report()->left_bytes[CUDAPOOL_LEFT_SHARED] == 0, "and forgotten when it is freed");
	MUST(cuMemCreate(&handle, CUDAPOOL_PIECE_MAX, &prop, 0));
	MUST(cuMemAlloc_v2(&ptr, 4 << 20));
	ok(bind_v2(0, 1, 0, handle, 0, CUDAPOOL_PIECE_MAX, 0) == CUDA_ERROR_INVALID_DEVICE &&
		   bind_addr_v2(0, 1, 0, ptr, 4 << 20, 0) == CUDA_ERROR_INVALID_DEVICE &&
		   hook_report()->left_bytes[CUDAPOOL_LEFT_SHARED] == 0,
	   "so it is with the functions that name a device: nothing is bound");
	ok(bind_v2(0, 0, 0, handle, 0, CUDAPOOL_PIECE_MAX, 0) == CUDA_SUCCESS &&
		   hook_report()->left_bytes[CUDAPOOL_LEFT_SHARED] == CUDAPOOL_PIECE_MAX,
	   "a handle is");
	ok(bind_addr_v2(0, 0, 0, ptr, 4 << 20, 0) == CUDA_SUCCESS && hook_report()->parked_bytes == 0, "an address is");
}

static void take_a_while(void *unused)
{
	usleep(200000);
}

/* A green context's streams use the primary one's memory, and what is allocated with it outlives it (newer.c). */
static void green(void)
{
	void *lib = dlopen("libcuda.so.1", RTLD_NOW), *made;
	CUresult (*create)(void **, void *, CUdevice, unsigned) = dlsym(lib, "cuGreenCtxCreate");
	CUresult (*from)(CUcontext *, void *) = dlsym(lib, "cuCtxFromGreenCtx");
	CUresult (*destroy)(void *) = dlsym(lib, "cuGreenCtxDestroy");
	CUcontext primary = begin(0), context;
	CUdeviceptr before, meanwhile, ordered;
	CUstream stream;

	MUST(cuMemAlloc_v2(&before, 4 << 20));
	must(create(&made, NULL, 0, 0), "cuGreenCtxCreate");
	must(from(&context, made), "cuCtxFromGreenCtx");
	MUST(cuCtxSetCurrent(context));
	MUST(cuMemAlloc_v2(&meanwhile, 4 << 20));
	MUST(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
	MUST(cuMemAllocAsync(&ordered, 20 << 20, stream));
	MUST(cuMemFreeAsync(ordered, stream));
	MUST(cuLaunchHostFunc(stream, take_a_while, NULL));
	MUST(cuMemsetD8Async(before, 1, 4 << 20, stream));
	MUST(cuCtxSetCurrent(primary));
	MUST(cuMemFree_v2(before));
	MUST(cuCtxSetCurrent(context));
	ok(!cu.cuStreamSynchronize(stream), "what its stream works on is not freed before");
	MUST(cuCtxSetCurrent(primary));
	must(destroy(made), "cuGreenCtxDestroy");
	MUST(cuMemAllocAsync(&before, 20 << 20, NULL));
	ok(before == ordered && !cu.cuMemFreeAsync(before, NULL), "what was freed in its stream is free without it");
	MUST(cuStreamSynchronize(NULL));
	mark(meanwhile, 4 << 20, 1);
	ok(cycle("without it") && marked(meanwhile, 4 << 20, 1) && hook_report()->parked_bytes == 4 << 20,
	   "what was allocated with it outlives it");
	ok(!cu.cuMemFree_v2(meanwhile) && hook_report()->parked_bytes == 0, "and can be freed");
	must(create(&made, NULL, 0, 0), "cuGreenCtxCreate");
	must(from(&context, made), "cuCtxFromGreenCtx");
	MUST(cuCtxSetCurrent(context));
	MUST(cuMemAlloc_v2(&meanwhile, 4 << 20));
	MUST(cuCtxSetCurrent(NULL));
	must(destroy(made), "cuGreenCtxDestroy");
	MUST(cuDevicePrimaryCtxRelease_v2(0));
	ok(hook_report()->parked_bytes == 0, "but not the primary one");
}

/* A pool that gives up memory for this process. */
static struct {
	CUcontext context;
	struct cudapool_page *page;
	CUdeviceptr hog;
	uint64_t bytes;
	uint32_t device, seen;
	bool answers;
} giving;

static void *give_up(void *unused)
{
	while (__atomic_load_n(&giving.page->want_seq, __ATOMIC_ACQUIRE) == giving.seen)
		usleep(1000);
	giving.device = giving.page->want_device;
	giving.bytes = giving.page->want_bytes;
	if (!giving.answers)
		return NULL;
	MUST(cuCtxSetCurrent(giving.context));
	MUST(cuMemFree_v2(giving.hog));
	giving.page->devices[0].evictable = 0;
	__atomic_store_n(&giving.page->granted_seq, giving.page->want_seq, __ATOMIC_RELEASE);
	syscall(SYS_futex, &giving.page->granted_seq, FUTEX_WAKE, 1, NULL, NULL, 0);
	return NULL;
}

static void wanted(void)
{
	size_t before, after, total;
	CUdeviceptr ptr, spare;
	uint64_t keep = UINT64_MAX;
	CUmemoryPool ordered_pool;
	CUstream stream;
	pthread_t pool;
	double start;

	giving.context = begin(0);
	giving.page = (struct cudapool_page *)hook_report();
	MUST(cuMemGetInfo_v2(&before, &total));
	MUST(cuMemAlloc_v2(&giving.hog, before - (16 << 20)));
	ok(cu.cuMemAlloc_v2(&ptr, 40 << 20) == CUDA_ERROR_OUT_OF_MEMORY, "nobody would give up anything: no memory");
	giving.page->devices[0].evictable = 100 << 20;
	MUST(cuMemGetInfo_v2(&after, &total));
	ok(after == (16 << 20) + (100 << 20), "what the pool would give up counts as free");
	giving.page->devices[0].evictable = 1ull << 50;
	MUST(cuMemGetInfo_v2(&after, &total));
	ok(after == total, "but there is never more than there is");
	pthread_create(&pool, NULL, give_up, NULL);
	start = seconds(CLOCK_MONOTONIC);
	ok(cu.cuMemAlloc_v2(&ptr, 40 << 20) == CUDA_ERROR_OUT_OF_MEMORY && seconds(CLOCK_MONOTONIC) - start < 8,
	   "a pool that does not answer is not waited for for ever");
	pthread_join(pool, NULL);
	ok(giving.device == 0 && giving.bytes >= 24 << 20 && giving.bytes <= 40 << 20, "it was told what is missing");
	giving.answers = true;
	giving.seen = giving.page->want_seq;
	pthread_create(&pool, NULL, give_up, NULL);
	ok(cu.cuMemAlloc_v2(&ptr, 40 << 20) == CUDA_SUCCESS, "one that does gives up memory, and then there is enough");
	pthread_join(pool, NULL);
	giving.seen = giving.page->want_seq;
	giving.page->devices[0].evictable = 40 << 20;
	ok(cu.cuMemAlloc_v2(&spare, total + 1) == CUDA_ERROR_OUT_OF_MEMORY && giving.page->want_seq == giving.seen,
	   "for more than the device has it does not ask");
	MUST(cuMemFree_v2(ptr));
	MUST(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
	MUST(cuDeviceGetDefaultMemPool(&ordered_pool, 0));
	MUST(cuMemPoolSetAttribute(ordered_pool, CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, &keep));
	MUST(cuMemAllocAsync(&spare, 1 << 20, stream));
	MUST(cuMemFreeAsync(spare, stream));
	MUST(cuStreamSynchronize(stream));
	MUST(cuMemAlloc_v2(&giving.hog, 80 << 20));
	giving.page->devices[0].evictable = 80 << 20;
	giving.seen = giving.page->want_seq;
	pthread_create(&pool, NULL, give_up, NULL);
	ok(cu.cuMemAlloc_v2(&ptr, 80 << 20) == CUDA_SUCCESS, "what its own pools can spare is not all that it tries");
	pthread_join(pool, NULL);
	ok(giving.bytes <= 48 << 20, "but it asks for that much less");
}

int main(int argc, char **argv)
{
	static const struct moving_run runs[] = {
		{"crowd", crowd}, {"beyond", beyond}, {"green", green}, {"wanted", wanted}};

	return moving_main(runs, sizeof(runs) / sizeof(runs[0]), argc, argv);
}
