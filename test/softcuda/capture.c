// SPDX-License-Identifier: MIT
/* What may be called while a stream is captured, by the capture's mode, the thread's mode, and which thread it is. */
#include "cu.h"

#include <pthread.h>

/* Results as a 580 driver gave them. */
enum rule {
	SAFE,    /* always well */
	UNSAFE,  /* by the modes */
	ALWAYS,  /* CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED whatever the modes */
	LEGACY,  /* CUDA_ERROR_STREAM_CAPTURE_IMPLICIT if the captured stream is blocking */
	LEGACY_UNSAFE, /* so, and otherwise by the modes */
	EVENT,   /* CUDA_ERROR_CAPTURED_EVENT */
};

static CUcontext ctx;
static CUstream captured, other;
static CUevent event, captured_event;
static CUdeviceptr memory, spare, reserved;
static CUmemGenericAllocationHandle handle;
static const CUmemAllocationProp prop = {.type = CU_MEM_ALLOCATION_TYPE_PINNED,
					 .location = {.type = CU_MEM_LOCATION_TYPE_DEVICE}};
static const CUmemAccessDesc access_all = {.location = {.type = CU_MEM_LOCATION_TYPE_DEVICE},
					   .flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE};

static CUresult call_alloc(void)
{
	CUdeviceptr ptr;
	CUresult result = cuMemAlloc(&ptr, 4096);
	CUstreamCaptureMode mode = CU_STREAM_CAPTURE_MODE_RELAXED;

	if (!result) {
		must(cuThreadExchangeStreamCaptureMode(&mode));
		must(cuMemFree(ptr));
		must(cuThreadExchangeStreamCaptureMode(&mode));
	}
	return result;
}

static CUresult call_free(void)
{
	CUdeviceptr ptr = spare;
	CUresult result = cuMemFree(ptr);

	if (!result)
		spare = 0;
	return result;
}

static CUresult call_alloc_async(void)
{
	CUdeviceptr ptr;
	CUresult result = cuMemAllocAsync(&ptr, 4096, other);

	return result ? result : cuMemFreeAsync(ptr, other);
}

static CUresult call_map(void)
{
	CUmemGenericAllocationHandle own;
	CUdeviceptr ptr;
	CUresult result = cuMemCreate(&own, 2 << 20, &prop, 0);

	result = result ? result : cuMemAddressReserve(&ptr, 2 << 20, 0, 0, 0);
	result = result ? result : cuMemMap(ptr, 2 << 20, 0, own, 0);
	result = result ? result : cuMemSetAccess(ptr, 2 << 20, &access_all, 1);
	result = result ? result : cuMemUnmap(ptr, 2 << 20);
	result = result ? result : cuMemAddressFree(ptr, 2 << 20);
	return result ? result : cuMemRelease(own);
}

static CUresult call_is_capturing(void)
{
	CUstreamCaptureStatus status = 9;
	CUresult result = cuStreamIsCapturing(captured, &status);

	return result ? result : status == CU_STREAM_CAPTURE_STATUS_ACTIVE ? CUDA_SUCCESS : CUDA_ERROR_UNKNOWN;
}

static CUresult call_info(void)
{
	size_t free, total;

	return cuMemGetInfo(&free, &total);
}

static CUresult call_context_sync(void)
{
	return cuCtxSynchronize();
}

#define CALL(name, expression)                                                                                         \
	static CUresult name(void)                                                                                     \
	{                                                                                                              \
		return expression;                                                                                     \
	}
CALL(call_stream_sync, cuStreamSynchronize(other))
CALL(call_stream_query, cuStreamQuery(other))
CALL(call_event_query, cuEventQuery(event))
CALL(call_event_sync, cuEventSynchronize(event))
CALL(call_captured_query, cuStreamQuery(captured))
CALL(call_captured_sync, cuStreamSynchronize(captured))
CALL(call_captured_event, cuEventQuery(captured_event))
CALL(call_legacy_query, cuStreamQuery(NULL))
CALL(call_legacy_sync, cuStreamSynchronize(NULL))
CALL(call_legacy_record, cuEventRecord(event, NULL))
CALL(call_set, cuMemsetD8(memory, 0, 16))
CALL(call_copy, cuMemcpyDtoD(memory, memory + 4096, 16))
CALL(call_copy_async, cuMemcpyDtoDAsync(memory, memory + 4096, 16, other))
CALL(call_record, cuEventRecord(event, other))

static const struct {
	const char *name;
	CUresult (*call)(void);
	enum rule rule;
} calls[] = {
	{"cuMemAlloc", call_alloc, UNSAFE},
	{"cuMemFree", call_free, UNSAFE},
	{"cuMemAllocAsync", call_alloc_async, UNSAFE},
	{"cuStreamSynchronize", call_stream_sync, UNSAFE},
	{"cuStreamQuery", call_stream_query, UNSAFE},
	{"cuEventQuery", call_event_query, UNSAFE},
	{"cuEventSynchronize", call_event_sync, UNSAFE},
	{"cuCtxSynchronize", call_context_sync, ALWAYS},
	{"cuStreamQuery of the captured", call_captured_query, ALWAYS},
	{"cuStreamSynchronize of the captured", call_captured_sync, ALWAYS},
	{"cuEventQuery of a captured event", call_captured_event, EVENT},
	{"cuStreamQuery of the legacy stream", call_legacy_query, LEGACY_UNSAFE},
	{"cuStreamSynchronize of the legacy stream", call_legacy_sync, LEGACY_UNSAFE},
	{"cuEventRecord in the legacy stream", call_legacy_record, LEGACY},
	{"cuMemsetD8", call_set, LEGACY},
	{"cuMemcpyDtoD", call_copy, LEGACY},
	{"cuMemcpyDtoDAsync in another stream", call_copy_async, SAFE},
	{"cuEventRecord in another stream", call_record, SAFE},
	{"virtual memory management", call_map, SAFE},
	{"cuMemGetInfo", call_info, SAFE},
	{"cuStreamIsCapturing", call_is_capturing, SAFE},
};

struct attempt {
	CUresult (*call)(void);
	CUstreamCaptureMode mode;
	CUresult result;
};

static void *attempt_main(void *arg)
{
	struct attempt *attempt = arg;
	CUstreamCaptureMode mode = attempt->mode;

	if (cuCtxSetCurrent(ctx) || cuThreadExchangeStreamCaptureMode(&mode))
		return NULL;
	attempt->result = attempt->call();
	cuThreadExchangeStreamCaptureMode(&mode);
	return NULL;
}

static CUresult wanted(enum rule rule, bool blocking, CUstreamCaptureMode capture, CUstreamCaptureMode thread,
		       bool same)
{
	bool relaxed = thread == CU_STREAM_CAPTURE_MODE_RELAXED || capture == CU_STREAM_CAPTURE_MODE_RELAXED;
	bool global = thread == CU_STREAM_CAPTURE_MODE_GLOBAL && capture == CU_STREAM_CAPTURE_MODE_GLOBAL;
	bool forbidden = !relaxed && (same || global);

	if ((rule == LEGACY || rule == LEGACY_UNSAFE) && blocking)
		return CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
	if (rule == EVENT)
		return CUDA_ERROR_CAPTURED_EVENT;
	if (rule == ALWAYS || (forbidden && (rule == UNSAFE || rule == LEGACY_UNSAFE)))
		return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
	return CUDA_SUCCESS;
}

/* One call, in all 36 situations; the captured stream must be well afterwards exactly if the call was. */
static void situations(const char *name, CUresult (*call)(void), enum rule rule)
{
	unsigned wrong = 0;

	for (unsigned i = 0; i < 36; i++) {
		bool blocking = i & 1, same = i >> 1 & 1;
		CUstreamCaptureMode mode = i / 4 % 3;
		struct attempt attempt = {call, i / 12, CUDA_ERROR_UNKNOWN};
		CUresult expected = wanted(rule, blocking, mode, attempt.mode, same), end;
		pthread_t thread;
		CUgraph graph;

		if (!spare)
			must(cuMemAlloc(&spare, 4096));
		must(cuStreamCreate(&captured, blocking ? CU_STREAM_DEFAULT : CU_STREAM_NON_BLOCKING));
		must(cuStreamBeginCapture(captured, mode));
		must(cuEventRecord(captured_event, captured));
		if (same) {
			attempt_main(&attempt);
		} else {
			pthread_create(&thread, NULL, attempt_main, &attempt);
			pthread_join(thread, NULL);
		}
		end = cuStreamEndCapture(captured, &graph);
		if (attempt.result != expected ||
		    end != (expected ? CUDA_ERROR_STREAM_CAPTURE_INVALIDATED : CUDA_SUCCESS)) {
			note("%s, stream %d, capture %d, thread %d, same %d: %d then %d, not %d", name, blocking, mode,
			     attempt.mode, same, attempt.result, end, expected);
			wrong++;
		}
		if (!end)
			must(cuGraphDestroy(graph));
		must(cuStreamDestroy(captured));
		must(cuCtxSynchronize());
	}
	ok(!wrong, "%s in 36 situations", name);
}

static void *end_elsewhere(void *result)
{
	CUgraph graph;

	if (!cuCtxSetCurrent(ctx))
		*(CUresult *)result = cuStreamEndCapture(captured, &graph);
	return NULL;
}

static void forks(void)
{
	CUresult result = CUDA_ERROR_UNKNOWN;
	CUstreamCaptureStatus status;
	CUstream second, blocking;
	CUevent forked, joined;
	cuuint64_t ids[2] = {};
	pthread_t thread;
	CUgraph graph;

	must(cuStreamCreate(&captured, CU_STREAM_NON_BLOCKING));
	must(cuStreamCreate(&second, CU_STREAM_NON_BLOCKING));
	must(cuStreamCreate(&blocking, CU_STREAM_DEFAULT));
	must(cuEventCreate(&forked, CU_EVENT_DISABLE_TIMING));
	must(cuEventCreate(&joined, CU_EVENT_DISABLE_TIMING));

	must(cuStreamBeginCapture(captured, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL));
	must(cuEventRecord(forked, captured));
	must(cuStreamWaitEvent(second, forked, 0));
	must(cuStreamGetCaptureInfo(captured, &status, &ids[0], NULL, NULL, NULL, NULL));
	must(cuStreamGetCaptureInfo(second, &status, &ids[1], NULL, NULL, NULL, NULL));
	ok(ids[0] && ids[0] == ids[1], "two streams of one capture have its id");
	must(cuMemsetD8Async(memory, 1, 16, second));
	is(cuStreamEndCapture(captured, &graph), CUDA_ERROR_STREAM_CAPTURE_UNJOINED);
	is(cuStreamIsCapturing(second, &status), CUDA_SUCCESS);
	ok(status == CU_STREAM_CAPTURE_STATUS_NONE, "its end is the end for both");

	must(cuStreamBeginCapture(captured, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL));
	must(cuEventRecord(forked, captured));
	must(cuStreamWaitEvent(second, forked, 0));
	must(cuMemsetD8Async(memory, 1, 16, second));
	must(cuEventRecord(joined, second));
	must(cuStreamWaitEvent(captured, joined, 0));
	pthread_create(&thread, NULL, end_elsewhere, &result);
	pthread_join(thread, NULL);
	ok(result == CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD, "another thread cannot end it");
	is(cuStreamEndCapture(captured, &graph), CUDA_SUCCESS);
	must(cuGraphDestroy(graph));

	must(cuStreamBeginCapture(captured, CU_STREAM_CAPTURE_MODE_RELAXED));
	is(cuStreamWaitEvent(captured, event, 0), CUDA_ERROR_STREAM_CAPTURE_ISOLATION);
	is(cuMemsetD8Async(memory, 1, 16, captured), CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
	is(cuStreamEndCapture(captured, &graph), CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);

	must(cuStreamBeginCapture(captured, CU_STREAM_CAPTURE_MODE_RELAXED));
	must(cuStreamBeginCapture(second, CU_STREAM_CAPTURE_MODE_RELAXED));
	must(cuEventRecord(forked, captured));
	is(cuStreamWaitEvent(second, forked, 0), CUDA_ERROR_STREAM_CAPTURE_MERGE);
	is(cuStreamEndCapture(second, &graph), CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
	is(cuStreamEndCapture(captured, &graph), CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);

	must(cuStreamBeginCapture(blocking, CU_STREAM_CAPTURE_MODE_RELAXED));
	is(cuStreamIsCapturing(NULL, &status), CUDA_ERROR_STREAM_CAPTURE_IMPLICIT);
	is(cuStreamEndCapture(blocking, &graph), CUDA_SUCCESS);
	must(cuGraphDestroy(graph));

	must(cuStreamBeginCapture(captured, CU_STREAM_CAPTURE_MODE_GLOBAL));
	is(cuStreamDestroy(captured), CUDA_SUCCESS);
	is(cuCtxSynchronize(), CUDA_SUCCESS);
}

int main(void)
{
	device_dir_make();
	must(cuInit(0));
	must(cuCtxCreate(&ctx, NULL, 0, 0));
	must(cuMemAlloc(&memory, 8192));
	must(cuMemAddressReserve(&reserved, 2 << 20, 0, 0, 0));
	must(cuMemCreate(&handle, 2 << 20, &prop, 0));
	must(cuStreamCreate(&other, CU_STREAM_NON_BLOCKING));
	must(cuEventCreate(&event, CU_EVENT_DISABLE_TIMING));
	must(cuEventCreate(&captured_event, CU_EVENT_DISABLE_TIMING));
	for (size_t i = 0; i < sizeof(calls) / sizeof(*calls); i++)
		situations(calls[i].name, calls[i].call, calls[i].rule);
	forks();
	must(cuCtxDestroy(ctx));
	device_dir_remove();
	return tap_end();
}
