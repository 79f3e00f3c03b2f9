// SPDX-License-Identifier: MIT
/* Graphs: made by capture (capture.c), instantiated and launched. */
#include "graph.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* A graph is run in the order in which it was captured, which keeps every dependency. */
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

CUresult do_cuGraphUpload(CUgraphExec exec, CUstream handle)
{
	CUresult result;
	struct CUstream_st *stream = softcuda_stream(handle, &result);

	return !stream ? result : exec ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
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
