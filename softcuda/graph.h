// SPDX-License-Identifier: MIT
/* Graphs: the work that a capture collected, in its order. */
#ifndef SOFTCUDA_GRAPH_H
#define SOFTCUDA_GRAPH_H

#include "internal.h"

struct CUgraphNode_st {
	struct CUgraphNode_st *next;
	struct softcuda_op op;
};

struct CUgraph_st {
	struct CUgraphNode_st *nodes, **tail;
	size_t count;
};

struct CUgraphExec_st {
	struct softcuda_op *ops; /* a copy: the graph may be destroyed */
	size_t count;
};

#endif
