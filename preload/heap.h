// SPDX-License-Identifier: MIT
/* Memory of pools for stream-ordered allocation: chunks made of our pieces, cut up and put together again. */
#ifndef CUDAPOOL_PRELOAD_HEAP_H
#define CUDAPOOL_PRELOAD_HEAP_H

#include "pieces.h"

/*
 * A chunk is one region of at least HEAP_CHUNK bytes. What is free in it is in gaps. A gap that was freed in a stream
 * may be used by that stream at once, whose order makes it safe, and by others when the stream has come past the
 * free, which the stamp's event tells; if nothing else is left, another stream waits for it.
 */
#define HEAP_CHUNK (32ull << 20) /* what the driver's pools grow by (H200) */
#define HEAP_UNIT  512		 /* what it aligns to */

struct stamp { /* a point in a stream */
	struct stamp *next; /* of those that nobody uses */
	CUevent event;
	CUcontext context; /* of the event */
	uint64_t stream;   /* the stream's identity: handles are used again */
	uint64_t order;	   /* rises */
	uint32_t gaps;
};

struct gap {
	struct gap *next; /* of the chunk, by address */
	CUdeviceptr address;
	uint64_t bytes;
	struct stamp *stamp; /* NULL: nobody uses it any more */
};

struct chunk {
	struct chunk *next; /* of the pool */
	struct pool *pool;
	struct region *region;
	struct gap *gaps;
	uint64_t used;
};

struct pool {
	struct node node; /* by the driver's handle */
	struct chunk *chunks;
	int device;
	bool destroyed; /* goes with its last allocation */
	bool may_wait;	/* CU_MEMPOOL_ATTR_REUSE_ALLOW_INTERNAL_DEPENDENCIES */
	bool may_look;	/* CU_MEMPOOL_ATTR_REUSE_ALLOW_OPPORTUNISTIC */
	uint64_t threshold, most; /* most: 0 no limit */
	uint64_t used, used_high, reserved, reserved_high;
	uint32_t readable, writable; /* devices, as bits */
};

/* All of these with heap_lock held, and without the lock of the tables. */

/* A stream, as the heap has to know it. */
struct place {
	CUstream stream;
	CUcontext context;
	uint64_t id;
};

CUresult cudapool_heap_take(struct memory *m, struct pool *pool, uint64_t bytes, const struct place *place,
			    CUdeviceptr *ptr, struct chunk **chunk);
/* place: where it was freed; NULL: all work that may use it is done. */
void cudapool_heap_give(struct memory *m, struct chunk *chunk, CUdeviceptr ptr, uint64_t bytes,
			const struct place *place);
/* Releases chunks that nobody uses until no more than `keep` bytes are reserved. Returns the bytes that it released. */
uint64_t cudapool_heap_trim(struct memory *m, struct pool *pool, uint64_t keep);
uint64_t cudapool_heap_trim_all(struct memory *m, int device, bool all); /* see cudapool_pools_trim() */
/* A context may end, and its events with it: waits for what was freed in it. */
void cudapool_heap_context_ending(struct memory *m, CUcontext context);

static inline uint64_t heap_round(uint64_t bytes)
{
	return (bytes + HEAP_UNIT - 1) / HEAP_UNIT * HEAP_UNIT;
}

#endif
