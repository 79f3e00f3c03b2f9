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

/*
 * capture.c, with the scheduler's lock held where nothing else is said. Calls that may not be made answer why not,
 * and have then spoilt what they spoil.
 */
extern _Atomic unsigned softcuda_captures; /* that go on */
void softcuda_capture_spoil(struct CUstream_st *stream);
void softcuda_capture_end(struct CUstream_st *origin);
/* May the legacy stream be used now? Yes for all others. */
CUresult softcuda_capture_legacy(struct CUstream_st *stream, bool spoil);
/* May this stream be asked or waited for? */
CUresult softcuda_capture_waiting(struct CUstream_st *stream);
/* May the calling thread make an unsafe call? The second without the lock. */
CUresult softcuda_capture_unsafe_locked(void);
CUresult softcuda_capture_unsafe(void);
/* May the whole context be waited for? Without the lock. */
CUresult softcuda_capture_context(struct CUctx_st *ctx);
/* May this event be asked or waited for? */
CUresult softcuda_capture_event(struct CUevent_st *event);
/* In a captured stream: work, an event's record. A wait for an event that was recorded in one, in any stream. */
CUresult softcuda_capture_op(struct CUstream_st *stream, const struct softcuda_op *op);
CUresult softcuda_capture_record(struct CUstream_st *stream, struct CUevent_st *event);
CUresult softcuda_capture_wait(struct CUstream_st *stream, struct CUevent_st *event);

#endif
