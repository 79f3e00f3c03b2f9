// SPDX-License-Identifier: MIT
/* Stream capture, and graphs made by it, instantiated and launched. */
#include "graph.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/*
 * A captured graph is run in the order in which it was captured, which keeps every dependency.
 * A second stream joins a capture by waiting for an event that was recorded in it, as with the real driver.
 */
static uint64_t next_capture_id = 1;
static _Thread_local CUstreamCaptureMode thread_mode;

struct CUgraph_st *softcuda_graph_new(void)
{
	struct CUgraph_st *graph = calloc(1, sizeof(*graph));

	if (graph)
		graph->tail = &graph->nodes;
	return graph;
}

int softcuda_graph_add(struct CUgraph_st *graph, const struct softcuda_op *op)
{
	struct CUgraphNode_st *node = calloc(1, sizeof(*node));

	if (!node)
		return -ENOMEM;
	node->op = *op;
	*graph->tail = node;
	graph->tail = &node->next;
	graph->count++;
	return 0;
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
		stream->capture_id = next_capture_id++;
		stream->capture_origin = stream;
		stream->graph = graph;
	}
	pthread_mutex_unlock(&softcuda_sched_lock);
	if (result != CUDA_SUCCESS)
		do_cuGraphDestroy(graph);
	return result;
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
	} else {
		result = stream->capture == CU_STREAM_CAPTURE_STATUS_ACTIVE ? CUDA_SUCCESS
									    : CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
		graph = stream->graph;
		for (other = stream->ctx->streams; other; other = other->next) {
			if (other->capture_origin != stream)
				continue;
			other->capture = CU_STREAM_CAPTURE_STATUS_NONE;
			other->capture_origin = NULL;
			other->graph = NULL;
		}
	}
	pthread_mutex_unlock(&softcuda_sched_lock);
	if (result == CUDA_SUCCESS)
		*out = graph;
	else if (graph)
		do_cuGraphDestroy(graph);
	return result;
}

CUresult do_cuStreamGetCaptureInfo_v2(CUstream handle, CUstreamCaptureStatus *status, cuuint64_t *id, CUgraph *graph,
				      const CUgraphNode **dependencies, size_t *count)
{
	CUresult result;
	struct CUstream_st *stream = softcuda_stream(handle, &result);

	if (!stream)
		return result;
	if (!status)
		return CUDA_ERROR_INVALID_VALUE;
	pthread_mutex_lock(&softcuda_sched_lock);
	*status = stream->capture;
	if (id)
		*id = stream->capture_id;
	if (graph)
		*graph = stream->graph;
	if (dependencies)
		*dependencies = NULL;
	if (count)
		*count = 0;
	pthread_mutex_unlock(&softcuda_sched_lock);
	return CUDA_SUCCESS;
}

CUresult do_cuStreamIsCapturing(CUstream stream, CUstreamCaptureStatus *status)
{
	return do_cuStreamGetCaptureInfo_v2(stream, status, NULL, NULL, NULL, NULL);
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

CUresult do_cuGraphGetNodes(CUgraph graph, CUgraphNode *nodes, size_t *count)
{
	struct CUgraphNode_st *node;
	size_t room, i = 0;

	if (!graph || !count)
		return CUDA_ERROR_INVALID_VALUE;
	room = *count;
	*count = graph->count;
	for (node = graph->nodes; nodes && i < room; node = node ? node->next : NULL)
		nodes[i++] = node;
	return CUDA_SUCCESS;
}

CUresult do_cuGraphDestroy(CUgraph graph)
{
	struct CUgraphNode_st *node;

	if (!graph)
		return CUDA_ERROR_INVALID_VALUE;
	while ((node = graph->nodes)) {
		graph->nodes = node->next;
		free(node);
	}
	free(graph);
	return CUDA_SUCCESS;
}

CUresult do_cuGraphInstantiateWithFlags(CUgraphExec *out, CUgraph graph, unsigned long long flags)
{
	struct CUgraphExec_st *exec;
	struct CUgraphNode_st *node;

	if (!out || !graph)
		return CUDA_ERROR_INVALID_VALUE;
	exec = calloc(1, sizeof(*exec));
	if (exec)
		exec->ops = calloc(graph->count ? graph->count : 1, sizeof(*exec->ops));
	if (!exec || !exec->ops) {
		free(exec);
		return CUDA_ERROR_OUT_OF_MEMORY;
	}
	for (node = graph->nodes; node; node = node->next)
		exec->ops[exec->count++] = node->op;
	*out = exec;
	return CUDA_SUCCESS;
}

CUresult do_cuGraphExecDestroy(CUgraphExec exec)
{
	if (!exec)
		return CUDA_ERROR_INVALID_VALUE;
	free(exec->ops);
	free(exec);
	return CUDA_SUCCESS;
}

CUresult do_cuGraphLaunch(CUgraphExec exec, CUstream handle)
{
	CUresult result;
	struct CUstream_st *stream = softcuda_stream(handle, &result);

	if (!stream)
		return result;
	if (!exec)
		return CUDA_ERROR_INVALID_VALUE;
	result = CUDA_SUCCESS;
	for (size_t i = 0; i < exec->count && result == CUDA_SUCCESS; i++)
		result = softcuda_submit(stream, &exec->ops[i]);
	return result;
}
