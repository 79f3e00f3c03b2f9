// SPDX-License-Identifier: MIT
/* Events. */
#include "graph.h"

#include <stdlib.h>

/*
 * Every record raises the event's generation: whoever waits, waits for the one that was the last
 * when it began to. The work that refers to an event keeps it alive.
 */
static struct CUevent_st *events; /* live handles, guarded by the scheduler's lock */

void softcuda_event_get(struct CUevent_st *event)
{
	event->refs++;
}

void softcuda_event_put(struct CUevent_st *event)
{
	if (!--event->refs)
		free(event);
}

static struct CUevent_st *event_find(CUevent handle)
{
	struct CUevent_st *event = events;

	while (event && event != handle)
		event = event->next;
	return event;
}

CUresult do_cuEventCreate(CUevent *out, unsigned int flags)
{
	struct CUevent_st *event;

	if (!out || flags & ~(unsigned)(CU_EVENT_BLOCKING_SYNC | CU_EVENT_DISABLE_TIMING | CU_EVENT_INTERPROCESS) ||
	    ((flags & CU_EVENT_INTERPROCESS) && !(flags & CU_EVENT_DISABLE_TIMING)))
		return CUDA_ERROR_INVALID_VALUE;
	event = calloc(1, sizeof(*event));
	if (!event)
		return CUDA_ERROR_OUT_OF_MEMORY;
	event->flags = flags;
	event->ctx = softcuda_current();
	event->refs = 1;
	pthread_mutex_lock(&softcuda_sched_lock);
	event->next = events;
	events = event;
	pthread_mutex_unlock(&softcuda_sched_lock);
	*out = event;
	return CUDA_SUCCESS;
}

CUresult do_cuEventDestroy_v2(CUevent handle)
{
	struct CUevent_st **link;
	CUresult result = CUDA_ERROR_INVALID_HANDLE;

	pthread_mutex_lock(&softcuda_sched_lock);
	for (link = &events; *link && *link != handle; link = &(*link)->next)
		;
	if (*link) {
		*link = handle->next;
		softcuda_event_put(handle);
		result = CUDA_SUCCESS;
	}
	pthread_mutex_unlock(&softcuda_sched_lock);
	return result;
}

CUresult do_cuEventDestroy(CUevent event)
{
	return do_cuEventDestroy_v2(event);
}

CUresult do_cuEventRecordWithFlags(CUevent handle, CUstream stream_handle, unsigned int flags)
{
	struct softcuda_op op = {.kind = OP_RECORD, .event.event = handle};
	CUresult result;
	struct CUstream_st *stream = softcuda_stream(stream_handle, &result);
	bool captured = false;

	if (!stream)
		return result;
	if (flags & ~(unsigned)CU_EVENT_RECORD_EXTERNAL)
		return CUDA_ERROR_INVALID_VALUE;
	pthread_mutex_lock(&softcuda_sched_lock);
	result = event_find(handle) ? softcuda_capture_legacy(stream, true) : CUDA_ERROR_INVALID_HANDLE;
	if (result == CUDA_SUCCESS) {
		captured = stream->capture != CU_STREAM_CAPTURE_STATUS_NONE;
		handle->capture_id = 0;
		if (captured) /* the order of the graph says what the event would have said */
			result = softcuda_capture_record(stream, handle);
		else
			op.event.generation = ++handle->submitted;
	}
	pthread_mutex_unlock(&softcuda_sched_lock);
	return result != CUDA_SUCCESS || captured ? result : softcuda_submit(stream, &op);
}

CUresult do_cuEventRecord(CUevent event, CUstream stream)
{
	return do_cuEventRecordWithFlags(event, stream, CU_EVENT_RECORD_DEFAULT);
}

CUresult do_cuStreamWaitEvent(CUstream stream_handle, CUevent handle, unsigned int flags)
{
	struct softcuda_op op = {.kind = OP_WAIT_EVENT, .event.event = handle};
	CUresult result;
	struct CUstream_st *stream = softcuda_stream(stream_handle, &result);
	bool wait = false;

	if (!stream)
		return result;
	if (flags & ~(unsigned)CU_EVENT_WAIT_EXTERNAL)
		return CUDA_ERROR_INVALID_VALUE;
	pthread_mutex_lock(&softcuda_sched_lock);
	result = event_find(handle) ? softcuda_capture_legacy(stream, true) : CUDA_ERROR_INVALID_HANDLE;
	if (result == CUDA_SUCCESS && handle->capture_id) {
		result = softcuda_capture_wait(stream, handle);
	} else if (result == CUDA_SUCCESS && stream->capture != CU_STREAM_CAPTURE_STATUS_NONE) {
		softcuda_capture_spoil(stream);
		result = CUDA_ERROR_STREAM_CAPTURE_ISOLATION;
	} else if (result == CUDA_SUCCESS) {
		op.event.generation = handle->submitted;
		wait = handle->done < handle->submitted;
	}
	pthread_mutex_unlock(&softcuda_sched_lock);
	return wait ? softcuda_submit(stream, &op) : result;
}

/* With the lock held: may the event be asked or waited for? */
static CUresult event_check(CUevent handle)
{
	CUresult result = event_find(handle) ? softcuda_capture_event(handle) : CUDA_ERROR_INVALID_HANDLE;

	return result == CUDA_SUCCESS ? softcuda_capture_unsafe_locked() : result;
}

CUresult do_cuEventQuery(CUevent handle)
{
	CUresult result;

	pthread_mutex_lock(&softcuda_sched_lock);
	result = event_check(handle);
	if (result == CUDA_SUCCESS)
		result = handle->done < handle->submitted ? CUDA_ERROR_NOT_READY : atomic_load(&handle->ctx->error);
	pthread_mutex_unlock(&softcuda_sched_lock);
	return result;
}

CUresult do_cuEventSynchronize(CUevent handle)
{
	CUresult result;
	uint64_t generation;

	pthread_mutex_lock(&softcuda_sched_lock);
	result = event_check(handle);
	if (result == CUDA_SUCCESS) {
		generation = handle->submitted;
		softcuda_event_get(handle);
		while (handle->done < generation)
			softcuda_sched_wait();
		softcuda_event_put(handle);
	}
	pthread_mutex_unlock(&softcuda_sched_lock);
	if (result == CUDA_SUCCESS)
		softcuda_pools_settle();
	return result;
}

CUresult do_cuEventElapsedTime_v2(float *ms, CUevent start, CUevent end)
{
	CUresult result = CUDA_SUCCESS;

	if (!ms)
		return CUDA_ERROR_INVALID_VALUE;
	pthread_mutex_lock(&softcuda_sched_lock);
	if (!event_find(start) || !event_find(end) || (start->flags | end->flags) & CU_EVENT_DISABLE_TIMING ||
	    !start->submitted || !end->submitted)
		result = CUDA_ERROR_INVALID_HANDLE;
	else if (start->done < start->submitted || end->done < end->submitted)
		result = CUDA_ERROR_NOT_READY;
	else
		*ms = ((double)end->time_ns - (double)start->time_ns) / 1e6;
	pthread_mutex_unlock(&softcuda_sched_lock);
	return result;
}

CUresult do_cuEventElapsedTime(float *ms, CUevent start, CUevent end)
{
	return do_cuEventElapsedTime_v2(ms, start, end);
}
