// SPDX-License-Identifier: MIT
/* Memory out of the process and back, by the hooks of a shim made for it: prints TAP. One behaviour a run, by name. */
#include "moving.h"

/* Allocations of all kinds, over several cycles, with changes between them. */
static void cycles(void)
{
	static const uint64_t sizes[] = {2 << 20,  (2 << 20) + 1,		   5000000,
					 64 << 20, CUDAPOOL_PIECE_MAX + (6 << 20), 1000};
	enum { N = sizeof(sizes) / sizeof(sizes[0]) };
	CUmemAllocationProp prop = {.type = CU_MEM_ALLOCATION_TYPE_PINNED,
				    .location = {CU_MEM_LOCATION_TYPE_DEVICE, 0}};
	CUmemGenericAllocationHandle twice, nowhere, released;
	CUdeviceptr ptr[N], own, more = 0;
	bool good = true, gone = true;
	CUdeviceptr base;
	size_t size;
	int i, round, count, bad;

	begin(0);
	for (i = 0; i < N; i++) {
		MUST(cuMemAlloc_v2(&ptr[i], sizes[i]));
		mark(ptr[i], sizes[i], i);
	}
	MUST(cuMemAddressReserve(&own, 64 << 20, 0, 0, 0));
	MUST(cuMemCreate(&twice, 8 << 20, &prop, 0));
	MUST(cuMemCreate(&nowhere, 4 << 20, &prop, 0));
	MUST(cuMemCreate(&released, 4 << 20, &prop, 0));
	MUST(cuMemMap(own, 8 << 20, 0, twice, 0));
	MUST(cuMemMap(own + (16 << 20), 8 << 20, 0, twice, 0));
	MUST(cuMemMap(own + (32 << 20), 4 << 20, 0, nowhere, 0));
	MUST(cuMemMap(own + (40 << 20), 4 << 20, 0, released, 0));
	use(own, 8 << 20, 0);
	use(own + (16 << 20), 8 << 20, 0);
	use(own + (32 << 20), 4 << 20, 0);
	use(own + (40 << 20), 4 << 20, 0);
	mark(own, 8 << 20, 100);
	mark(own + (32 << 20), 4 << 20, 101);
	mark(own + (40 << 20), 4 << 20, 102);
	MUST(cuMemUnmap(own + (32 << 20), 4 << 20));
	MUST(cuMemRelease(released));

	count = hook_park(fds, MOST);
	ok(count == 13 + 3, "each piece comes out, the last of an allocation on its own; a small one does not");
	for (i = 0; i < N - 1; i++)
		gone &= !reachable(ptr[i]);
	ok(gone && !reachable(own) && !reachable(own + (16 << 20)) && !reachable(own + (40 << 20)),
	   "nothing is mapped any more");
	ok(reachable(ptr[N - 1]), "what is too small to be parked stays");
	bad = fds[count - 1];
	fds[count - 1] = -1;
	ok(hook_unpark(fds, count) < 0 && !reachable(ptr[0]), "what cannot be put back in full is not put back at all");
	fds[count - 1] = bad;
	ok(hook_unpark(fds, count) == 0, "and can be tried again");
	for (round = 0; round < 4; round++) {
		for (i = 0; i < N; i++)
			good &= marked(ptr[i], sizes[i], i);
		good &= marked(own, 8 << 20, 100) && marked(own + (16 << 20), 8 << 20, 100) &&
			marked(own + (40 << 20), 4 << 20, 102);
		if (more)
			good &= marked(more, 12345678, 200);
		if (round == 1) {
			MUST(cuMemAlloc_v2(&more, 12345678));
			mark(more, 12345678, 200);
		}
		good &= cycle("one of the rounds");
	}
	ok(good, "five cycles: everything is where it was, with what it was");
	MUST(cuMemMap(own + (32 << 20), 4 << 20, 0, nowhere, 0));
	use(own + (32 << 20), 4 << 20, 0);
	ok(marked(own + (32 << 20), 4 << 20, 101), "a handle that was mapped nowhere kept its memory");
	MUST(cuMemGetAddressRange_v2(&base, &size, ptr[2] + 4999999));
	ok(base == ptr[2] && size == sizes[2], "an allocation knows its size");
	for (i = 0; i < N; i++)
		good &= cu.cuMemFree_v2(ptr[i]) == CUDA_SUCCESS;
	good &= !cu.cuMemFree_v2(more) && !cu.cuMemUnmap(own, 8 << 20) && !cu.cuMemUnmap(own + (16 << 20), 8 << 20) &&
		!cu.cuMemUnmap(own + (32 << 20), 4 << 20) && !cu.cuMemUnmap(own + (40 << 20), 4 << 20) &&
		!cu.cuMemRelease(twice) && !cu.cuMemRelease(nowhere) && !cu.cuMemAddressFree(own, 64 << 20);
	ok(good && hook_report()->parked_bytes == 0 && hook_park(fds, MOST) == 0,
	   "all of it can be freed, and nothing stays behind");
}

/* Free memory for little more than one piece is enough to renew everything. */
static void little(void)
{
	size_t before, after, total;
	CUdeviceptr big, fill;
	bool good;

	begin(0);
	MUST(cuMemGetInfo_v2(&before, &total));
	MUST(cuMemAlloc_v2(&big, 6 * CUDAPOOL_PIECE_MAX));
	mark(big, 6 * CUDAPOOL_PIECE_MAX, 1);
	ok(cycle("first"), "six pieces go out and come back");
	MUST(cuMemGetInfo_v2(&before, &total));
	MUST(cuMemAlloc_v2(&fill, before - CUDAPOOL_PIECE_MAX));
	mark(fill, 8 << 20, 2);
	MUST(cuMemGetInfo_v2(&before, &total));
	printf("# %zu MiB are free\n", before >> 20);
	good = cycle("second") && cycle("third");
	ok(good && marked(big, 6 * CUDAPOOL_PIECE_MAX, 1) && marked(fill, 8 << 20, 2),
	   "and do again, with room for one more only");
	MUST(cuMemFree_v2(fill));
	MUST(cuMemGetInfo_v2(&before, &total));
	MUST(cuMemAlloc_v2(&fill, before - (2 << 20)));
	ok(hook_park(fds, MOST) == -(int)CUDA_ERROR_OUT_OF_MEMORY, "without room for one they do not");
	ok(marked(big, 6 * CUDAPOOL_PIECE_MAX, 1), "and everything is where it was");
	MUST(cuMemFree_v2(fill));
	MUST(cuMemGetInfo_v2(&after, &total));
	ok(after >= before && cycle("fourth") && marked(big, 6 * CUDAPOOL_PIECE_MAX, 1), "until there is room");
}

static void many(void)
{
	enum { N = 10000 };
	static CUdeviceptr ptr[N];
	double start, parked, back;
	int i, count;

	begin(0);
	start = seconds(CLOCK_PROCESS_CPUTIME_ID);
	for (i = 0; i < N; i++)
		MUST(cuMemAlloc_v2(&ptr[i], 2 << 20));
	printf("# %d allocations: %.3f s\n", N, seconds(CLOCK_PROCESS_CPUTIME_ID) - start);
	mark(ptr[0], 2 << 20, 1);
	mark(ptr[N - 1], 2 << 20, 2);
	start = seconds(CLOCK_PROCESS_CPUTIME_ID);
	count = hook_park(fds, MOST);
	parked = seconds(CLOCK_PROCESS_CPUTIME_ID) - start;
	start = seconds(CLOCK_PROCESS_CPUTIME_ID);
	i = hook_unpark(fds, count);
	back = seconds(CLOCK_PROCESS_CPUTIME_ID) - start;
	ok(count == N && !i, "ten thousand pieces");
	printf("# out %.3f s, back %.3f s\n", parked, back);
	ok(parked < 1 && back < 1, "each way takes less than a second of the processor's time");
	ok(marked(ptr[0], 2 << 20, 1) && marked(ptr[N - 1], 2 << 20, 2), "and they are what they were");
	start = seconds(CLOCK_PROCESS_CPUTIME_ID);
	for (i = 0; i < N; i++)
		MUST(cuMemFree_v2(ptr[i * 7919ll % N]));
	printf("# freed in %.3f s\n", seconds(CLOCK_PROCESS_CPUTIME_ID) - start);
	ok(hook_report()->parked_bytes == 0, "nothing is left");
}

/* From the current device to another's memory and back, by each way that does not name that device. */
static bool copied(CUdeviceptr other, CUdeviceptr own)
{
	uint64_t from = other * 31 + own, to = 0, last = 0;

	return !cu.cuMemcpyHtoD_v2(other + 8, &from, 8) && !cu.cuMemcpyDtoD_v2(own + 8, other + 8, 8) &&
	       !cu.cuMemcpyDtoD_v2(other + 16, own + 8, 8) && !cu.cuMemcpy(own + 16, other + 16, 8) &&
	       !cu.cuMemcpyDtoH_v2(&to, own + 16, 8) && !cu.cuMemcpyDtoH_v2(&last, other + 16, 8) && to == from &&
	       last == from;
}

/* As the driver says where the current device can use the memory by itself. */
static bool usable(CUdeviceptr ptr)
{
	CUdeviceptr same = 0;

	return !cu.cuPointerGetAttribute(&same, CU_POINTER_ATTRIBUTE_DEVICE_POINTER, ptr) && same == ptr;
}

/* Copies reach what is allocated before and after the first context on another device, also after a park. */
static void devices(void)
{
	CUdeviceptr before, after, ordered, later, there, own;
	CUmemAllocationProp prop = {.type = CU_MEM_ALLOCATION_TYPE_PINNED,
				    .location = {CU_MEM_LOCATION_TYPE_DEVICE, 0}};
	CUmemGenericAllocationHandle handle;
	CUcontext one = begin(0), two;

	MUST(cuMemAlloc_v2(&before, 4 << 20));
	MUST(cuMemAllocAsync(&ordered, 4 << 20, NULL));
	MUST(cuStreamSynchronize(NULL));
	MUST(cuMemAddressReserve(&own, 4 << 20, 0, 0, 0));
	MUST(cuMemCreate(&handle, 4 << 20, &prop, 0));
	MUST(cuMemMap(own, 4 << 20, 0, handle, 0));
	use(own, 4 << 20, 0);
	MUST(cuDevicePrimaryCtxRetain(&two, 1));
	MUST(cuMemAlloc_v2(&after, 4 << 20));
	MUST(cuMemAllocAsync(&later, 64 << 20, NULL));
	MUST(cuStreamSynchronize(NULL));
	MUST(cuCtxSetCurrent(two));
	MUST(cuMemAlloc_v2(&there, 4 << 20));
	ok(copied(before, there) && copied(after, there), "copies with another device current reach allocations");
	ok(cu.cuMemcpyDtoD_v2(there, ordered, 8) == CUDA_ERROR_INVALID_VALUE &&
		   cu.cuMemcpyDtoD_v2(there, later, 8) == CUDA_ERROR_INVALID_VALUE,
	   "as the driver's, they do not reach a pool's that is not open");
	ok(cu.cuMemcpyDtoD_v2(there, own, 8) == CUDA_ERROR_INVALID_VALUE, "what is the application's to open is not open");
	ok(!usable(before) && !usable(after) && usable(there), "nobody is told that it can be used otherwise");
	ok(cycle("devices") && copied(before, there) && copied(after, there) &&
		   cu.cuMemcpyDtoD_v2(there, ordered, 8) == CUDA_ERROR_INVALID_VALUE &&
		   cu.cuMemcpyDtoD_v2(there, own, 8) == CUDA_ERROR_INVALID_VALUE,
	   "all that is so after a park");
	MUST(cuCtxSetCurrent(one));
	ok(copied(there, before) && !usable(there), "and the other way round");
}

/* Where a device cannot be given access, that is an error of copies, and of nothing else. */
static void apart(void)
{
	CUcontext one = begin(0), two;
	CUdeviceptr before, there, late;

	MUST(cuMemAlloc_v2(&before, 4 << 20));
	mark(before, 4 << 20, 1);
	MUST(cuDevicePrimaryCtxRetain(&two, 1));
	MUST(cuMemAlloc_v2(&late, 4 << 20));
	mark(late, 4 << 20, 2);
	MUST(cuCtxSetCurrent(two));
	MUST(cuMemAlloc_v2(&there, 4 << 20));
	ok(hook_report()->parked_bytes == 12 << 20, "all of it can be parked");
	ok(cu.cuMemcpyDtoD_v2(there, before, 8) == CUDA_ERROR_INVALID_VALUE &&
		   cu.cuMemcpyDtoD_v2(there, late, 8) == CUDA_ERROR_INVALID_VALUE,
	   "copies do not reach it");
	ok(!cu.cuMemcpyPeer(there, two, before, one, 8), "but those that name the devices");
	MUST(cuCtxSetCurrent(one));
	ok(copied(there, before), "the other way they do");
	mark(before, 4 << 20, 1);
	ok(cycle("apart") && marked(before, 4 << 20, 1) && marked(late, 4 << 20, 2), "it goes and comes back");
	MUST(cuCtxSetCurrent(two));
	MUST(cuCtxEnablePeerAccess(one, 0));
	ok(copied(before, there) && copied(late, there), "with peer access all is well");
}

/* Two devices; peer access is withdrawn and comes back, and with it access to the memory. */
static void peers(void)
{
	CUcontext one = begin(0), two;
	CUdeviceptr here, there, later;
	const struct cudapool_page *page;
	int count;

	MUST(cuDevicePrimaryCtxRetain(&two, 1));
	MUST(cuMemAlloc_v2(&here, 4 << 20));
	mark(here, 4 << 20, 1);
	MUST(cuCtxSetCurrent(two));
	MUST(cuMemAlloc_v2(&there, 8 << 20));
	mark(there, 8 << 20, 2);
	ok(usable(there) && !usable(here), "without peer access the other device's memory is not usable");
	MUST(cuCtxEnablePeerAccess(one, 0));
	MUST(cuCtxSetCurrent(one));
	MUST(cuMemAlloc_v2(&later, 4 << 20));
	MUST(cuCtxSetCurrent(two));
	ok(usable(here) && usable(later) && !cu.cuMemsetD8_v2(later, 1, 1),
	   "with it, it is, also what comes later");
	page = hook_report();
	ok(page->parked_bytes == 16 << 20 && memcmp(page->devices[0].uuid, page->devices[1].uuid, 16),
	   "the page tells of both devices");
	count = hook_park(fds, MOST);
	ok(count == 3 && !hook_peers(1), "peer access is withdrawn");
	ok(cu.cuCtxDisablePeerAccess(one) == CUDA_ERROR_PEER_ACCESS_NOT_ENABLED, "the driver has none left");
	ok(!hook_peers(0) && !hook_unpark(fds, count), "and is given back");
	ok(usable(here) && !cu.cuMemsetD8_v2(later, 1, 1) && marked(there, 8 << 20, 2),
	   "the memory is usable as before");
	MUST(cuCtxDisablePeerAccess(one));
	ok(!usable(here) && cycle("without peers") && !usable(here) && !usable(later) && usable(there),
	   "until the application takes it back");
	MUST(cuCtxSetCurrent(one));
	ok(marked(here, 4 << 20, 1), "nothing was lost");
}

/* What goes with its context, and what is left to the driver, is counted right. */
static void counted(void)
{
	CUmemAllocationProp prop = {.type = CU_MEM_ALLOCATION_TYPE_PINNED,
				    .requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR,
				    .location = {CU_MEM_LOCATION_TYPE_DEVICE, 0}};
	CUmemGenericAllocationHandle handle;
	const struct cudapool_page *page;
	CUdeviceptr a, b, c, own;
	CUcontext primary = begin(0), made;
	int fd = -1;

	MUST(cuMemAlloc_v2(&a, 3 << 20));
	MUST(cuMemAlloc_v2(&b, 1000));
	MUST(cuMemAllocManaged(&c, 5000, CU_MEM_ATTACH_GLOBAL));
	page = hook_report();
	ok(page->parked_bytes == 4 << 20 && page->left_bytes[CUDAPOOL_LEFT_SMALL] == 1000 &&
		   page->left_bytes[CUDAPOOL_LEFT_MANAGED] == 5000,
	   "what is parked, small, managed");
	MUST(cuMemFree_v2(b));
	MUST(cuMemFree_v2(c));
	page = hook_report();
	ok(page->left_bytes[CUDAPOOL_LEFT_SMALL] == 0 && page->left_bytes[CUDAPOOL_LEFT_MANAGED] == 0,
	   "and when freed");
	MUST(cuCtxCreate_v2(&made, 0, 0));
	MUST(cuMemAlloc_v2(&b, 8 << 20));
	MUST(cuMemAlloc_v2(&c, 500));
	MUST(cuCtxDestroy_v2(made));
	MUST(cuCtxSetCurrent(primary));
	page = hook_report();
	ok(page->parked_bytes == 4 << 20 && page->left_bytes[CUDAPOOL_LEFT_SMALL] == 0 && !reachable(b) &&
		   cu.cuMemFree_v2(b) == CUDA_ERROR_INVALID_VALUE,
	   "a destroyed context takes its memory with it");
	MUST(cuMemCreate(&handle, 8 << 20, &prop, 0));
	ok(hook_report()->parked_bytes == 12 << 20, "memory that may be exported is parked");
	MUST(cuMemExportToShareableHandle(&fd, handle, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0));
	page = hook_report();
	ok(page->parked_bytes == 4 << 20 && page->left_bytes[CUDAPOOL_LEFT_SHARED] == 8 << 20,
	   "until it is: then others have it, too");
	close(fd);
	MUST(cuMemAddressReserve(&own, 8 << 20, 0, 0, 0));
	MUST(cuMemMap(own, 8 << 20, 0, handle, 0));
	use(own, 8 << 20, 0);
	mark(own, 8 << 20, 7);
	ok(cycle("with shared memory") && marked(own, 8 << 20, 7), "it stays while the rest is parked");
	MUST(cuMemRelease(handle));
	MUST(cuMemUnmap(own, 8 << 20));
	ok(hook_report()->left_bytes[CUDAPOOL_LEFT_SHARED] == 0, "and is forgotten when it is freed");
	MUST(cuDevicePrimaryCtxRelease_v2(0));
	ok(hook_report()->parked_bytes == 0, "the last release of a primary context takes its memory");
	MUST(cuDevicePrimaryCtxRetain(&primary, 0));
	MUST(cuCtxSetCurrent(primary));
	MUST(cuMemAlloc_v2(&a, 3 << 20));
	MUST(cuDevicePrimaryCtxRetain(&primary, 0));
	MUST(cuDevicePrimaryCtxRelease_v2(0));
	ok(hook_report()->parked_bytes == 4 << 20 && reachable(a), "another one does not");
	MUST(cuDevicePrimaryCtxReset_v2(0));
	ok(hook_report()->parked_bytes == 0, "a reset does");
}

/* The driver does not do what we need (SOFTCUDA_FAULTS says what): the application has memory all the same. */
static void refused(void)
{
	CUmemAllocationProp prop = {.type = CU_MEM_ALLOCATION_TYPE_PINNED,
				    .location = {CU_MEM_LOCATION_TYPE_DEVICE, 0}};
	CUmemGenericAllocationHandle handle;
	const struct cudapool_page *page;
	size_t before, after, total;
	CUdeviceptr ptr, other;

	begin(0);
	MUST(cuMemGetInfo_v2(&before, &total));
	MUST(cuMemAlloc_v2(&ptr, 20 << 20));
	mark(ptr, 20 << 20, 1);
	page = hook_report();
	ok(page->parked_bytes == 0 && page->left_bytes[CUDAPOOL_LEFT_REFUSED] == 20 << 20,
	   "an allocation is the driver's own, and counted");
	MUST(cuMemAlloc_v2(&other, 20 << 20));
	ok(hook_report()->parked_bytes == 20 << 20, "the next one is ours");
	ok(cycle("with both") && marked(ptr, 20 << 20, 1), "one is parked, the other stays");
	MUST(cuMemFree_v2(ptr));
	MUST(cuMemFree_v2(other));
	ok(cu.cuMemCreate(&handle, 4 << 20, &prop, 0) == CUDA_SUCCESS && !cu.cuMemRelease(handle),
	   "so is what the application makes");
	MUST(cuMemGetInfo_v2(&after, &total));
	ok(before == after, "nothing is lost on the way");
}

/* Detaching fails in the middle (the second cuMemUnmap): the rest comes out, that one stays, and all goes back. */
static void stuck(void)
{
	CUdeviceptr ptr[4];
	int i, count = 4;
	bool good = true;

	begin(0);
	for (i = 0; i < count; i++) {
		MUST(cuMemAlloc_v2(&ptr[i], 4 << 20));
		mark(ptr[i], 4 << 20, i);
	}
	ok(hook_park(fds, MOST) == -(int)CUDA_ERROR_UNMAP_FAILED, "a piece cannot be unmapped");
	ok(!reachable(ptr[0]) && reachable(ptr[1]) && !reachable(ptr[2]) && !reachable(ptr[3]), "the others are out");
	ok(hook_unpark(fds, count) == 0, "what came out goes back");
	for (i = 0; i < count; i++)
		good &= marked(ptr[i], 4 << 20, i);
	ok(good && cycle("again"), "and all is well, also the next time");
	for (i = 0; i < count; i++)
		good &= marked(ptr[i], 4 << 20, i) && !cu.cuMemFree_v2(ptr[i]);
	ok(good, "and can be freed");
}

/* Pools for stream-ordered allocation are parked as a whole; what they can spare is not. */
static void ordered(void)
{
	uint64_t keep = UINT64_MAX, none = 0, reserved;
	CUdeviceptr a, b, c, plain;
	CUmemoryPool pool;
	CUstream stream;
	int count;

	begin(0);
	MUST(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
	MUST(cuDeviceGetDefaultMemPool(&pool, 0));
	MUST(cuMemPoolSetAttribute(pool, CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, &keep));
	MUST(cuMemAllocAsync(&a, 10 << 20, stream));
	MUST(cuMemAllocAsync(&b, 10 << 20, stream));
	MUST(cuMemAllocAsync(&c, 50 << 20, stream));
	MUST(cuStreamSynchronize(stream));
	mark(a, 10 << 20, 1);
	mark(b, 10 << 20, 2);
	mark(c, 50 << 20, 3);
	MUST(cuMemFreeAsync(b, stream));
	MUST(cuStreamSynchronize(stream));
	MUST(cuMemPoolGetAttribute(pool, CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT, &reserved));
	ok(hook_report()->parked_bytes == reserved && reserved == 96 << 20, "all that a pool has reserved is parked");
	ok(cycle("first") && cycle("second") && marked(a, 10 << 20, 1) && marked(c, 50 << 20, 3), "and comes back");
	MUST(cuMemAllocAsync(&plain, 20 << 20, stream));
	ok(plain == b, "what was freed before is allocated after");
	MUST(cuMemFreeAsync(plain, stream));
	MUST(cuMemFreeAsync(c, stream));
	MUST(cuStreamSynchronize(stream));
	MUST(cuMemPoolSetAttribute(pool, CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, &none));
	count = hook_park(fds, MOST);
	ok(count == 32 / 8 && !hook_unpark(fds, count) && marked(a, 10 << 20, 1),
	   "what is beyond the pool's threshold is released before");
	MUST(cuMemAlloc_v2(&plain, 6 << 20));
	ok(!cu.cuMemFreeAsync(plain, stream) && cu.cuMemFree_v2(plain) == CUDA_ERROR_INVALID_VALUE,
	   "what cuMemAlloc gave can be freed in a stream");
	MUST(cuMemFreeAsync(a, stream));
	MUST(cuStreamSynchronize(stream));
	ok(hook_park(fds, MOST) == 0, "when all is freed nothing is parked");
}

int main(int argc, char **argv)
{
	static const struct moving_run runs[] = {{"cycles", cycles}, {"little", little},	   {"many", many},
						 {"peers", peers},   {"devices", devices}, {"apart", apart},
						 {"counted", counted}, {"ordered", ordered}, {"refused", refused},
						 {"stuck", stuck}};

	return moving_main(runs, sizeof(runs) / sizeof(runs[0]), argc, argv);
}
