// SPDX-License-Identifier: MIT
/* Stream capture: what is captured, what spoils a capture, and what a call may do while there is one. */
#include "graph.h"

#include <string.h>

/*
 * As a 580 driver was seen to do it, call by call:
 * - Work in a captured stream becomes part of its graph. Another stream joins by waiting for an event that was
 *   recorded there.
 * - Asking about, or waiting for, a captured stream, a captured event, or a context with a captured stream is an
 *   error and spoils the capture, as does any use of the legacy stream while a blocking stream of its context is
 *   captured.
 * - Calls that could wait for the device ("unsafe" ones: allocating, freeing, waiting, asking) are refused, and spoil
 *   captures, by the mode of the capture and of the calling thread. cuStreamIsCapturing is always safe, and so is
 *   virtual memory management.
 */
_Atomic unsigned softcuda_captures;

static uint64_t next_capture_id = 1;
static _Thread_local CUstreamCaptureMode thread_mode;

void softcuda_capture_spoil(struct CUstream_st *stream)
{
	struct CUstream_st *origin = stream->capture_origin, *other;

	for (other = softcuda_all_streams; origin && other; other = other->all_next) {
		if (other->capture_origin == origin)
			other->capture = CU_STREAM_CAPTURE_STATUS_INVALIDATED;
	}
}

CUresult softcuda_capture_legacy(struct CUstream_st *stream, bool spoil)
{
	CUresult result = CUDA_SUCCESS;
	struct CUstream_st *other;

	if (!stream->legacy || !atomic_load(&softcuda_captures))
		return result;
	for (other = stream->ctx->streams; other; other = other->next) {
		if (other->capture == CU_STREAM_CAPTURE_STATUS_NONE || other->flags & CU_STREAM_NON_BLOCKING)
			continue;
		if (spoil)
			softcuda_capture_spoil(other);
		result = CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
	}
	return result;
}

/* Is the calling thread kept from unsafe calls by this capture? */
static bool forbids(const struct CUstream_st *origin)
{
	if (thread_mode == CU_STREAM_CAPTURE_MODE_RELAXED || origin->capture_mode == CU_STREAM_CAPTURE_MODE_RELAXED)
		return false;
	return pthread_equal(origin->capture_thread, pthread_self()) ||
	       (thread_mode == CU_STREAM_CAPTURE_MODE_GLOBAL &&
		origin->capture_mode == CU_STREAM_CAPTURE_MODE_GLOBAL);
}

CUresult softcuda_capture_unsafe_locked(void)
{
	CUresult result = CUDA_SUCCESS;
	struct CUstream_st *stream;

	for (stream = softcuda_all_streams; stream; stream = stream->all_next) {
		if (stream->capture == CU_STREAM_CAPTURE_STATUS_NONE || stream->capture_origin != stream ||
		    !forbids(stream))
			continue;
		softcuda_capture_spoil(stream);
		result = CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
	}
	return result;
}

CUresult softcuda_capture_unsafe(void)
{
	CUresult result;

	if (!atomic_load(&softcuda_captures))
		return CUDA_SUCCESS;
	pthread_mutex_lock(&softcuda_sched_lock);
	result = softcuda_capture_unsafe_locked();
	pthread_mutex_unlock(&softcuda_sched_lock);
	return result;
}

CUresult softcuda_capture_context(struct CUctx_st *ctx)
{
	CUresult result = CUDA_SUCCESS;
	struct CUstream_st *stream;

	if (!atomic_load(&softcuda_captures))
		return result;
	pthread_mutex_lock(&softcuda_sched_lock);
	for (stream = ctx->streams; stream; stream = stream->next) {
		if (stream->capture == CU_STREAM_CAPTURE_STATUS_NONE)
			continue;
		softcuda_capture_spoil(stream);
		result = CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
	}
	pthread_mutex_unlock(&softcuda_sched_lock);
	return result;
}

CUresult softcuda_capture_waiting(struct CUstream_st *stream)
{
	CUresult result;

	if (!atomic_load(&softcuda_captures))
		return CUDA_SUCCESS;
	result = softcuda_capture_legacy(stream, true);
	if (result != CUDA_SUCCESS)
		return result;
	if (stream->capture == CU_STREAM_CAPTURE_STATUS_NONE)
		return softcuda_capture_unsafe_locked();
	softcuda_capture_spoil(stream);
	return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
}

CUresult softcuda_capture_op(struct CUstream_st *stream, const struct softcuda_op *op)
{
	if (stream->capture == CU_STREAM_CAPTURE_STATUS_INVALIDATED)
		return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
	stream->captured++;
	stream->joined_to = NULL;
	return softcuda_graph_add(stream->graph, op) ? CUDA_ERROR_OUT_OF_MEMORY : CUDA_SUCCESS;
}

CUresult softcuda_capture_record(struct CUstream_st *stream, struct CUevent_st *event)
{
	if (stream->capture == CU_STREAM_CAPTURE_STATUS_INVALIDATED)
		return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
	event->capture_id = stream->capture_id;
	event->capture_stream = stream;
	event->capture_at = stream->captured;
	return CUDA_SUCCESS;
}

/* The origin of the capture that an event was recorded in, while it goes on. */
static struct CUstream_st *origin_of(const struct CUevent_st *event)
{
	struct CUstream_st *stream = softcuda_all_streams;

	while (stream && (stream->capture == CU_STREAM_CAPTURE_STATUS_NONE || stream->capture_origin != stream ||
			  stream->capture_id != event->capture_id))
		stream = stream->all_next;
	return event->capture_id ? stream : NULL;
}

CUresult softcuda_capture_event(struct CUevent_st *event)
{
	struct CUstream_st *origin = origin_of(event);

	if (origin)
		softcuda_capture_spoil(origin);
	return event->capture_id ? CUDA_ERROR_CAPTURED_EVENT : CUDA_SUCCESS;
}

CUresult softcuda_capture_wait(struct CUstream_st *stream, struct CUevent_st *event)
{
	struct CUstream_st *origin = origin_of(event), *other;

	if (!origin) { /* of a capture that is over */
		if (stream->capture != CU_STREAM_CAPTURE_STATUS_NONE)
			softcuda_capture_spoil(stream);
		return CUDA_ERROR_CAPTURED_EVENT;
	}
	if (stream->capture == CU_STREAM_CAPTURE_STATUS_NONE) { /* the stream joins the capture */
		stream->capture = origin->capture;
		stream->capture_id = origin->capture_id;
		stream->capture_origin = origin;
		stream->graph = origin->graph;
		stream->captured = 0;
		stream->joined_to = NULL;
	} else if (stream->capture_origin != origin) {
		softcuda_capture_spoil(stream);
		softcuda_capture_spoil(origin);
		return CUDA_ERROR_STREAM_CAPTURE_MERGE;
	}
	/* From here on this stream comes after all that the event's stream had captured. */
	for (other = softcuda_all_streams; other; other = other->all_next) {
		if (other == event->capture_stream && other->capture_origin == origin && other != stream &&
		    other->captured == event->capture_at)
			other->joined_to = stream;
	}
	stream->joined_to = NULL;
	return CUDA_SUCCESS;
}

static bool joined(const struct CUstream_st *stream, const struct CUstream_st *origin)
{
	while (stream && stream != origin)
		stream = stream->joined_to;
	return stream;
}

CUresult do_cuStreamBeginCapture_v2(CUstream handle, CUstreamCaptureMode mode)
{
	CUresult result;
	struct CUstream_st *stream = softcuda_stream(handle, &result);
	struct CUgraph_st *graph;

	if (!stream)
		return result;
	if ((unsigned)mode > CU_STREAM_CAPTURE_MODE_RELAXED)
		return CUDA_ERROR_INVALID_VALUE;
	if (stream->legacy)
		return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
	graph = softcuda_graph_new();
	if (!graph)
		return CUDA_ERROR_OUT_OF_MEMORY;
	pthread_mutex_lock(&softcuda_sched_lock);
	if (stream->capture != CU_STREAM_CAPTURE_STATUS_NONE) {
		result = CUDA_ERROR_ILLEGAL_STATE;
	} else {
		result = CUDA_SUCCESS;
		stream->capture = CU_STREAM_CAPTURE_STATUS_ACTIVE;
		stream->capture_mode = mode;
		stream->capture_thread = pthread_self();
		stream->capture_id = next_capture_id++;
		stream->capture_origin = stream;
		stream->graph = graph;
		atomic_fetch_add(&softcuda_captures, 1);
	}
	pthread_mutex_unlock(&softcuda_sched_lock);
	if (result != CUDA_SUCCESS)
		do_cuGraphDestroy(graph);
	return result;
}

void softcuda_capture_end(struct CUstream_st *origin)
{
	struct CUstream_st *other;

	for (other = softcuda_all_streams; other; other = other->all_next) {
		if (other->capture_origin != origin)
			continue;
		other->capture = CU_STREAM_CAPTURE_STATUS_NONE;
		other->capture_origin = NULL;
		other->joined_to = NULL;
		other->graph = NULL;
	}
	atomic_fetch_sub(&softcuda_captures, 1);
}

CUresult do_cuStreamEndCapture(CUstream handle, CUgraph *out)
{
	struct CUgraph_st *graph = NULL;
	struct CUstream_st *other;
	CUresult result;
	struct CUstream_st *stream = softcuda_stream(handle, &result);

	if (!stream)
		return result;
	if (!out)
		return CUDA_ERROR_INVALID_VALUE;
	*out = NULL;
	pthread_mutex_lock(&softcuda_sched_lock);
	if (stream->capture == CU_STREAM_CAPTURE_STATUS_NONE) {
		result = CUDA_ERROR_ILLEGAL_STATE;
	} else if (stream->capture_origin != stream) {
		result = CUDA_ERROR_STREAM_CAPTURE_UNMATCHED;
	} else if (stream->capture_mode != CU_STREAM_CAPTURE_MODE_RELAXED &&
		   !pthread_equal(stream->capture_thread, pthread_self())) {
		result = CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD;
	} else {
		result = stream->capture == CU_STREAM_CAPTURE_STATUS_ACTIVE ? CUDA_SUCCESS
									    : CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
		for (other = softcuda_all_streams; other && result == CUDA_SUCCESS; other = other->all_next) {
			if (other->capture_origin == stream && !joined(other, stream))
				result = CUDA_ERROR_STREAM_CAPTURE_UNJOINED;
		}
		graph = stream->graph;
		softcuda_capture_end(stream);
	}
	pthread_mutex_unlock(&softcuda_sched_lock);
	if (result == CUDA_SUCCESS)
		*out = graph;
	else if (graph)
		do_cuGraphDestroy(graph);
	return result;
}

CUresult do_cuStreamGetCaptureInfo_v3(CUstream handle, CUstreamCaptureStatus *status, cuuint64_t *id, CUgraph *graph,
				      const CUgraphNode **dependencies, const CUgraphEdgeData **edges, size_t *count)
{
	CUresult result;
	struct CUstream_st *stream = softcuda_stream(handle, &result);

	if (!stream)
		return result;
	if (!status)
		return CUDA_ERROR_INVALID_VALUE;
	pthread_mutex_lock(&softcuda_sched_lock);
	result = softcuda_capture_legacy(stream, false);
	if (result == CUDA_SUCCESS) {
		*status = stream->capture;
		if (id && stream->capture != CU_STREAM_CAPTURE_STATUS_NONE)
			*id = stream->capture_id;
		if (graph)
			*graph = stream->graph;
		if (dependencies)
			*dependencies = NULL;
		if (edges)
			*edges = NULL;
		if (count)
			*count = 0;
	}
	pthread_mutex_unlock(&softcuda_sched_lock);
	return result;
}

CUresult do_cuStreamGetCaptureInfo_v2(CUstream stream, CUstreamCaptureStatus *status, cuuint64_t *id, CUgraph *graph,
				      const CUgraphNode **dependencies, size_t *count)
{
	return do_cuStreamGetCaptureInfo_v3(stream, status, id, graph, dependencies, NULL, count);
}

CUresult do_cuStreamGetCaptureInfo(CUstream stream, CUstreamCaptureStatus *status, cuuint64_t *id)
{
	return do_cuStreamGetCaptureInfo_v3(stream, status, id, NULL, NULL, NULL, NULL);
}

CUresult do_cuStreamIsCapturing(CUstream stream, CUstreamCaptureStatus *status)
{
	return do_cuStreamGetCaptureInfo_v3(stream, status, NULL, NULL, NULL, NULL, NULL);
}

CUresult do_cuThreadExchangeStreamCaptureMode(CUstreamCaptureMode *mode)
{
	CUstreamCaptureMode before = thread_mode;

	if (!mode || (unsigned)*mode > CU_STREAM_CAPTURE_MODE_RELAXED)
		return CUDA_ERROR_INVALID_VALUE;
	thread_mode = *mode;
	*mode = before;
	return CUDA_SUCCESS;
}
