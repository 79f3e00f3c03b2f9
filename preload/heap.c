// SPDX-License-Identifier: MIT
/* Memory of pools for stream-ordered allocation: chunks made of our pieces, cut up and put together again. */
#include "heap.h"

/* Slabs belong to the tables. */
static void *get(struct memory *m, struct slab *slab)
{
	void *object;

	cudapool_lock(&m->lock);
	object = cudapool_slab_get(slab);
	cudapool_unlock(&m->lock);
	return object;
}

static void put(struct memory *m, struct slab *slab, void *object)
{
	cudapool_lock(&m->lock);
	cudapool_slab_put(slab, object);
	cudapool_unlock(&m->lock);
}

/* Stamps. */

static void stamp_put(struct memory *m, struct stamp *stamp)
{
	if (!stamp || --stamp->gaps)
		return;
	stamp->next = m->stamps;
	m->stamps = stamp;
}

/* An event of this context, which is current. NULL: none to be had. */
static struct stamp *stamp_get(struct memory *m, CUcontext context)
{
	struct stamp **link = &m->stamps, *stamp;

	while (*link && (*link)->context != context)
		link = &(*link)->next;
	stamp = *link;
	if (stamp) {
		*link = stamp->next;
		return stamp;
	}
	stamp = get(m, &m->stamp_slab);
	if (stamp && DRIVER(cuEventCreate)(&stamp->event, CU_EVENT_DISABLE_TIMING) != CUDA_SUCCESS) {
		put(m, &m->stamp_slab, stamp);
		return NULL;
	}
	if (stamp)
		stamp->context = context;
	return stamp;
}

/* What the stream has been given up to now. NULL: it was waited for instead. */
static struct stamp *stamp_of(struct memory *m, const struct place *place)
{
	CUcontext popped;
	struct stamp *stamp;

	if (!place)
		return NULL;
	if (DRIVER(cuCtxPushCurrent_v2)(place->context) != CUDA_SUCCESS)
		return NULL; /* a context that is gone does no work */
	stamp = stamp_get(m, place->context);
	if (stamp && DRIVER(cuEventRecord)(stamp->event, place->stream) != CUDA_SUCCESS) {
		stamp->gaps = 1;
		stamp_put(m, stamp);
		stamp = NULL;
	}
	if (stamp) {
		stamp->stream = place->id;
		stamp->order = ++m->stamp_order;
		stamp->gaps = 1;
	} else {
		DRIVER(cuStreamSynchronize)(place->stream);
	}
	DRIVER(cuCtxPopCurrent_v2)(&popped);
	return stamp;
}

/* Gaps. */

static bool can_join(const struct gap *low, const struct gap *high)
{
	return low->address + low->bytes == high->address &&
	       (!low->stamp || !high->stamp || low->stamp->stream == high->stamp->stream);
}

/* The gap and the next one become one, if they can. Of two points in a stream the later one counts. */
static bool join(struct memory *m, struct gap *gap)
{
	struct gap *next = gap->next;

	if (!next || !can_join(gap, next))
		return false;
	if (!gap->stamp || (next->stamp && next->stamp->order > gap->stamp->order)) {
		stamp_put(m, gap->stamp);
		gap->stamp = next->stamp;
	} else {
		stamp_put(m, next->stamp);
	}
	gap->bytes += next->bytes;
	gap->next = next->next;
	put(m, &m->gap_slab, next);
	return true;
}

/* Which streams have come past what they freed, by now? */
static void settle(struct memory *m, struct chunk *chunk)
{
	struct gap *gap;

	for (gap = chunk->gaps; gap; gap = gap->next) {
		if (!gap->stamp || DRIVER(cuEventQuery)(gap->stamp->event) == CUDA_ERROR_NOT_READY)
			continue;
		stamp_put(m, gap->stamp);
		gap->stamp = NULL;
	}
	for (gap = chunk->gaps; gap; gap = gap->next)
		while (join(m, gap))
			;
}

enum which { SAFE, ANY }; /* without waiting for another stream; or any that is large enough */

/* The smallest gap that will do. */
static struct gap *best(struct pool *pool, uint64_t bytes, uint64_t stream, enum which which, struct chunk **chunk)
{
	struct gap *found = NULL, *gap;
	struct chunk *c;

	for (c = pool->chunks; c; c = c->next) {
		for (gap = c->gaps; gap; gap = gap->next) {
			if (gap->bytes < bytes || (found && gap->bytes >= found->bytes) ||
			    (which == SAFE && gap->stamp && gap->stamp->stream != stream))
				continue;
			found = gap;
			*chunk = c;
		}
	}
	return found;
}

static CUresult grow(struct memory *m, struct pool *pool, uint64_t bytes)
{
	struct chunk *chunk = get(m, &m->chunk_slab);
	struct gap *gap = get(m, &m->gap_slab);
	CUresult r = CUDA_ERROR_NOT_SUPPORTED;

	if (!chunk || !gap)
		goto fail;
	r = CUDA_ERROR_OUT_OF_MEMORY;
	if (pool->most && pool->reserved + bytes > pool->most)
		goto fail;
	r = cudapool_region_make(m, &chunk->region, bytes, REGION_CHUNK, NULL, pool->device);
	if (r != CUDA_SUCCESS)
		goto fail;
	if (pool->readable != chunk->region->readable || pool->writable != chunk->region->writable) {
		r = cudapool_access_set(region_start(chunk->region), chunk->region->span, pool->readable,
					pool->writable, 0);
		chunk->region->readable = pool->readable;
		chunk->region->writable = pool->writable;
	}
	if (r != CUDA_SUCCESS) {
		cudapool_chunk_unmake(m, chunk->region);
		goto fail;
	}
	gap->address = region_start(chunk->region);
	gap->bytes = bytes;
	chunk->gaps = gap;
	chunk->pool = pool;
	chunk->next = pool->chunks;
	pool->chunks = chunk;
	pool->reserved += bytes;
	if (pool->reserved > pool->reserved_high)
		pool->reserved_high = pool->reserved;
	return CUDA_SUCCESS;
fail:
	if (chunk)
		put(m, &m->chunk_slab, chunk);
	if (gap)
		put(m, &m->gap_slab, gap);
	return r;
}

static uint64_t round_to(uint64_t bytes, uint64_t unit)
{
	return (bytes + unit - 1) / unit * unit;
}

CUresult cudapool_heap_take(struct memory *m, struct pool *pool, uint64_t bytes, const struct place *place,
			    CUdeviceptr *ptr, struct chunk **out)
{
	struct chunk *chunk, *c;
	struct gap *gap, **link;
	CUresult r = CUDA_SUCCESS;

	bytes = heap_round(bytes);
	gap = best(pool, bytes, place->id, SAFE, &chunk);
	if (!gap && pool->may_look) {
		for (c = pool->chunks; c; c = c->next)
			settle(m, c);
		gap = best(pool, bytes, place->id, SAFE, &chunk);
	}
	if (!gap) {
		r = grow(m, pool, round_to(bytes, HEAP_CHUNK));
		if (r == CUDA_ERROR_OUT_OF_MEMORY && cudapool_heap_trim_all(m, pool->device, true))
			r = grow(m, pool, round_to(bytes, HEAP_CHUNK));
		if (r == CUDA_ERROR_OUT_OF_MEMORY && bytes % HEAP_CHUNK)
			r = grow(m, pool, round_to(bytes, MEMORY_GRANULE));
		gap = best(pool, bytes, place->id, SAFE, &chunk);
	}
	if (!gap && pool->may_wait) {
		gap = best(pool, bytes, place->id, ANY, &chunk);
		if (gap)
			r = DRIVER(cuStreamWaitEvent)(place->stream, gap->stamp->event, 0);
	}
	if (!gap || r != CUDA_SUCCESS)
		return r;
	*ptr = gap->address;
	*out = chunk;
	gap->address += bytes;
	gap->bytes -= bytes;
	if (!gap->bytes) {
		for (link = &chunk->gaps; *link != gap; link = &(*link)->next)
			;
		*link = gap->next;
		stamp_put(m, gap->stamp);
		put(m, &m->gap_slab, gap);
	}
	chunk->used += bytes;
	return CUDA_SUCCESS;
}

void cudapool_heap_give(struct memory *m, struct chunk *chunk, CUdeviceptr ptr, uint64_t bytes,
			const struct place *place)
{
	struct gap **link = &chunk->gaps, *before = NULL, *gap = get(m, &m->gap_slab);

	bytes = heap_round(bytes);
	chunk->used -= bytes;
	if (!gap)
		return; /* no memory for our tables: it is free with its chunk, which then never is */
	for (; *link && (*link)->address < ptr; link = &(*link)->next)
		before = *link;
	gap->address = ptr;
	gap->bytes = bytes;
	gap->stamp = stamp_of(m, place);
	gap->next = *link;
	*link = gap;
	join(m, gap);
	if (before)
		join(m, before);
}

uint64_t cudapool_heap_trim(struct memory *m, struct pool *pool, uint64_t keep)
{
	struct chunk **link = &pool->chunks, *chunk;
	uint64_t released = 0;

	while ((chunk = *link) && pool->reserved > keep) {
		uint64_t bytes = chunk->region->span;

		if (!chunk->used)
			settle(m, chunk);
		if (chunk->used || !chunk->gaps || chunk->gaps->stamp || chunk->gaps->bytes != bytes ||
		    cudapool_chunk_unmake(m, chunk->region) != CUDA_SUCCESS) {
			link = &chunk->next;
			continue;
		}
		*link = chunk->next;
		pool->reserved -= bytes;
		put(m, &m->gap_slab, chunk->gaps);
		put(m, &m->chunk_slab, chunk);
		released += bytes;
	}
	return released;
}

uint64_t cudapool_heap_trim_all(struct memory *m, int device, bool all)
{
	struct pool *pool = (struct pool *)cudapool_tree_more(m->pools, 0);
	uint64_t released = 0;

	for (; pool; pool = (struct pool *)cudapool_tree_more(m->pools, pool->node.key))
		if (device < 0 || pool->device == device)
			released += cudapool_heap_trim(m, pool, all ? 0 : pool->threshold);
	return released;
}

void cudapool_heap_context_ending(struct memory *m, CUcontext context)
{
	struct pool *pool = (struct pool *)cudapool_tree_more(m->pools, 0);
	struct stamp **link = &m->stamps, *stamp;
	struct chunk *chunk;
	struct gap *gap;

	for (; pool; pool = (struct pool *)cudapool_tree_more(m->pools, pool->node.key)) {
		for (chunk = pool->chunks; chunk; chunk = chunk->next) {
			for (gap = chunk->gaps; gap; gap = gap->next) {
				if (!gap->stamp || gap->stamp->context != context)
					continue;
				DRIVER(cuEventSynchronize)(gap->stamp->event);
				stamp_put(m, gap->stamp);
				gap->stamp = NULL;
			}
		}
	}
	while ((stamp = *link)) {
		if (stamp->context != context) {
			link = &stamp->next;
			continue;
		}
		*link = stamp->next;
		DRIVER(cuEventDestroy_v2)(stamp->event);
		put(m, &m->stamp_slab, stamp);
	}
}
