// SPDX-License-Identifier: MIT
/* What an application can tell of its memory is the same after a park, and freeing waits as ever: invisible WHAT. */
#include "gpu.h"

#include "fake_pool.h"

#define MIB	 (1ul << 20)
#define LIMIT_MS 10000
#define SPIN_MS	 300

static struct fake_pool pool;
static bool shim; /* else there is none, and nothing is parked: what the driver does by itself */

static void begin(void)
{
	gpu_begin();
	shim = !fake_pool_find(&pool, getpid());
}

static bool cycle(void)
{
	int err = shim ? fake_pool_park(&pool, LIMIT_MS) : 0;

	if (!err)
		err = shim ? fake_pool_unpark(&pool, LIMIT_MS) : 0;
	if (err)
		printf("# %d: %s\n", err, pool.end.text);
	return !err;
}

/* All that can be asked about an address. Answers that are refused count as well. */
static const CUpointer_attribute asked[] = {
	CU_POINTER_ATTRIBUTE_CONTEXT,	       CU_POINTER_ATTRIBUTE_MEMORY_TYPE,
	CU_POINTER_ATTRIBUTE_DEVICE_POINTER,   CU_POINTER_ATTRIBUTE_HOST_POINTER,
	CU_POINTER_ATTRIBUTE_SYNC_MEMOPS,      CU_POINTER_ATTRIBUTE_BUFFER_ID,
	CU_POINTER_ATTRIBUTE_IS_MANAGED,       CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL,
	CU_POINTER_ATTRIBUTE_RANGE_START_ADDR, CU_POINTER_ATTRIBUTE_RANGE_SIZE,
	CU_POINTER_ATTRIBUTE_MAPPED,	       CU_POINTER_ATTRIBUTE_ALLOWED_HANDLE_TYPES,
	CU_POINTER_ATTRIBUTE_ACCESS_FLAGS,     CU_POINTER_ATTRIBUTE_MEMPOOL_HANDLE,
	CU_POINTER_ATTRIBUTE_MEMORY_BLOCK_ID,
};
#define ASKED (sizeof(asked) / sizeof(asked[0]))
struct told {
	CUresult result[ASKED], range;
	uint64_t value[ASKED];
	CUdeviceptr base;
	size_t bytes;
};

static struct told tell(CUdeviceptr ptr)
{
	struct told told;
	unsigned i;

	memset(&told, 0, sizeof(told));
	for (i = 0; i < ASKED; i++)
		told.result[i] = gpu.cuPointerGetAttribute(&told.value[i], asked[i], ptr);
	told.range = gpu.cuMemGetAddressRange_v2(&told.base, &told.bytes, ptr);
	return told;
}

static void attributes(void)
{
	enum { PLAIN, PITCHED, ORDERED, SECOND_DEVICE, OTHER_CONTEXT, KINDS };
	static const char *const names[] = {"an allocation", "a pitched one", "a stream-ordered one",
					    "one on another device", "one of another context"};
	struct told before[KINDS], after;
	CUcontext second, other;
	CUdeviceptr ptr[KINDS];
	unsigned on = 1, i;
	size_t pitch;

	begin();
	MUST(cuMemAlloc_v2(&ptr[PLAIN], 5 * MIB + 12345));
	MUST(cuPointerSetAttribute(&on, CU_POINTER_ATTRIBUTE_SYNC_MEMOPS, ptr[PLAIN]));
	MUST(cuMemAllocPitch_v2(&ptr[PITCHED], &pitch, 5000, 1000, 4));
	MUST(cuMemAllocAsync(&ptr[ORDERED], 6 * MIB, NULL));
	MUST(cuCtxSynchronize());
	MUST(cuDevicePrimaryCtxRetain(&second, 1));
	MUST(cuCtxSetCurrent(second));
	MUST(cuMemAlloc_v2(&ptr[SECOND_DEVICE], 4 * MIB));
	MUST(cuCtxCreate_v2(&other, 0, 0));
	MUST(cuMemAlloc_v2(&ptr[OTHER_CONTEXT], 4 * MIB));
	MUST(cuCtxSetCurrent(gpu.ctx));
	ok(pitch >= 5000 && pitch % 512 == 0, "the pitch is the driver's");
	must(gpu_fill(ptr[PITCHED], 999 * pitch + 5000, 8, NULL, false), "fill");
	for (i = 0; i < KINDS; i++)
		before[i] = tell(ptr[i] + 4096);
	ok(before[SECOND_DEVICE].value[7] == 1 && before[PLAIN].value[7] == 0 &&
		   before[OTHER_CONTEXT].value[0] == (uintptr_t)other, "each is where it was asked for");
	ok(cycle() && cycle(), "parks and unparks, twice");
	for (i = 0; i < KINDS; i++) {
		after = tell(ptr[i] + 4096);
		ok(!memcmp(&before[i], &after, sizeof(after)), "nothing that can be asked about %s has changed", names[i]);
	}
	ok(gpu_holds(ptr[PITCHED], (999 * pitch + 5000) & ~3ul, 8), "each line is where it was");
}

/* Work that is under way on memory which is freed: freeing waits for it, whatever stream it is in. */
static void freeing(void)
{
	static const unsigned flags[] = {CU_STREAM_DEFAULT, CU_STREAM_NON_BLOCKING};
	CUdeviceptr ptr, small;
	CUstream stream;
	long begun;
	unsigned i;

	begin();
	for (i = 0; i < 2; i++) {
		MUST(cuStreamCreate(&stream, flags[i]));
		MUST(cuMemAlloc_v2(&ptr, 4 * MIB));
		MUST(cuMemAlloc_v2(&small, 4096));
		ok(cycle(), i ? "with a non-blocking stream" : "with a blocking stream");
		begun = now_ms();
		must(gpu_spin(SPIN_MS, stream, false), "spin");
		must(gpu_fill(ptr, 4 * MIB, 1, stream, false), "fill");
		must(gpu_fill(small, 4096, 1, stream, false), "fill");
		MUST(cuMemFree_v2(ptr));
		ok(now_ms() - begun >= SPIN_MS, "freeing waits for the work");
		ok(gpu.cuStreamQuery(stream) == CUDA_SUCCESS, "all of which is done then");
		MUST(cuMemFree_v2(small));
		ok(gpu.cuCtxSynchronize() == CUDA_SUCCESS, "and has found its memory");
		MUST(cuStreamDestroy_v2(stream));
	}
}

/* Threads that are blocked in each kind of wait when the gate closes, for work that takes its time. */
static CUstream busy;
static CUevent event;
static CUdeviceptr source, unneeded;
static volatile int waiting;

static CUresult wait_in(unsigned how)
{
	uint32_t word;

	switch (how) {
	case 0:
		return gpu.cuStreamSynchronize(busy);
	case 1:
		return gpu.cuEventSynchronize(event);
	case 2:
		return gpu.cuCtxSynchronize();
	case 3:
		return gpu.cuMemcpyDtoH_v2(&word, source, 4); /* waits for the blocking stream */
	default:
		return gpu.cuMemFree_v2(unneeded);
	}
}

static void *blocked(void *how)
{
	gpu.cuCtxSetCurrent(gpu.ctx);
	__atomic_fetch_add(&waiting, 1, __ATOMIC_SEQ_CST);
	return (void *)(uintptr_t)wait_in((uintptr_t)how);
}

static void waits(void)
{
	enum { WAITS = 5 };
	pthread_t thread[WAITS];
	CUdeviceptr kept;
	bool good = true;
	void *result;
	uintptr_t i;
	long begun;

	begin();
	MUST(cuMemAlloc_v2(&kept, 2 * MIB));
	MUST(cuMemAlloc_v2(&source, 2 * MIB));
	MUST(cuMemAlloc_v2(&unneeded, 2 * MIB));
	MUST(cuStreamCreate(&busy, CU_STREAM_DEFAULT));
	MUST(cuEventCreate(&event, CU_EVENT_DISABLE_TIMING));
	begun = now_ms();
	must(gpu_spin(2 * SPIN_MS, busy, false), "spin");
	must(gpu_fill(kept, MIB, 2, busy, false), "fill");
	MUST(cuEventRecord(event, busy));
	for (i = 0; i < WAITS; i++)
		if (pthread_create(&thread[i], NULL, blocked, (void *)i))
			exit(2);
	while (waiting < WAITS)
		sleep_ms(1);
	sleep_ms(20);
	ok(cycle(), "parks while threads are blocked in waits of all kinds");
	if (shim)
		ok(now_ms() - begun >= 2 * SPIN_MS, "when what they wait for is done");
	for (i = 0; i < WAITS; i++) {
		pthread_join(thread[i], &result);
		good &= result == (void *)(uintptr_t)CUDA_SUCCESS;
	}
	ok(good, "and each wait ends well");
	ok(gpu_holds(kept, MIB, 2) && cycle() && gpu_holds(kept, MIB, 2), "the work was done, once and for all");
}

int main(int argc, char **argv)
{
	static const struct tap_test tests[] = {{"attributes", attributes}, {"freeing", freeing}, {"waits", waits}, {}};

	tap_run(tests, argc, argv);
	fake_pool_close(&pool);
	return tap_end();
}
