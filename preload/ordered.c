// SPDX-License-Identifier: MIT
/* Stream-ordered allocation: pools that nobody else can share get their memory from us, so that it can be parked. */
#include "heap.h"
#include "pieces.h"

/*
 * The driver's pool objects stay, for their handles, their attributes and their access lists; what is allocated from
 * them is ours. A pool whose memory can be exported, one on the host, and what is allocated in a capture (then it is
 * the graph's) are left to the driver.
 */

/* The pool by this name that we stand for, or NULL. With the heap's lock. */
static struct pool *pool_at(struct memory *m, CUmemoryPool handle)
{
	struct pool *pool = (struct pool *)cudapool_tree_at_most(m->pools, (uintptr_t)handle);

	return pool && pool->node.key == (uintptr_t)handle && !pool->destroyed ? pool : NULL;
}

static struct pool *pool_add(struct memory *m, CUmemoryPool handle, int device, uint64_t most)
{
	struct pool *pool;

	cudapool_lock(&m->lock);
	pool = cudapool_slab_get(&m->pool_slab);
	cudapool_unlock(&m->lock);
	if (!pool)
		return NULL;
	pool->node.key = (uintptr_t)handle;
	pool->device = device;
	pool->most = most;
	pool->may_look = pool->may_wait = true;
	pool->readable = pool->writable = 1u << device;
	cudapool_tree_insert(&m->pools, &pool->node);
	return pool;
}

static void pool_remove(struct memory *m, struct pool *pool)
{
	cudapool_tree_remove(&m->pools, &pool->node);
	cudapool_lock(&m->lock);
	cudapool_slab_put(&m->pool_slab, pool);
	cudapool_unlock(&m->lock);
}

/* The same, or the default pool of a device, which we learn of when it is first used. */
static struct pool *pool_of(struct memory *m, CUmemoryPool handle)
{
	struct pool *pool = pool_at(m, handle);
	CUmemoryPool standard;
	int count = 0, i;

	if (pool || !handle || DRIVER(cuDeviceGetCount)(&count) != CUDA_SUCCESS)
		return pool;
	for (i = 0; i < count && i < MEMORY_DEVICES; i++)
		if (DRIVER(cuDeviceGetDefaultMemPool)(&standard, i) == CUDA_SUCCESS && standard == handle)
			return cudapool_device_usable(m, i) ? pool_add(m, handle, i, 0) : NULL;
	return NULL;
}

/* Where a call takes place: the stream that it means, its context, and who it is. */
static CUresult place_of(struct place *place, CUstream stream)
{
	unsigned long long id;
	CUresult r;

	if (!DRIVER(cuStreamGetId))
		return CUDA_ERROR_NOT_SUPPORTED; /* a driver older than CUDA 12.0 */
	r = DRIVER(cuStreamGetId)(stream, &id);
	place->stream = stream;
	place->id = id;
	return r == CUDA_SUCCESS ? DRIVER(cuStreamGetCtx)(stream, &place->context) : r;
}

/* Is it a capture's affair, and so the driver's, what is allocated or freed in this stream now? */
static bool captured(CUstream stream)
{
	CUstreamCaptureStatus status;

	return DRIVER(cuStreamIsCapturing)(stream, &status) != CUDA_SUCCESS || status != CU_STREAM_CAPTURE_STATUS_NONE;
}

static CUresult take(struct memory *m, struct pool *pool, uint64_t bytes, const struct place *place, CUdeviceptr *ptr)
{
	struct region *region;
	struct chunk *chunk;
	CUresult r = cudapool_heap_take(m, pool, bytes, place, ptr, &chunk);

	if (r != CUDA_SUCCESS)
		return r;
	cudapool_lock(&m->lock);
	region = cudapool_region_new(m, *ptr, bytes, REGION_ORDERED);
	if (region) {
		region->span = heap_round(bytes);
		region->block = chunk->region->block;
		region->chunk = chunk;
		region->pool = (CUmemoryPool)pool->node.key;
		region->device = pool->device;
		cudapool_region_enter(m, region);
	}
	cudapool_unlock(&m->lock);
	if (!region) {
		cudapool_heap_give(m, chunk, *ptr, bytes, place);
		return CUDA_ERROR_NOT_SUPPORTED;
	}
	pool->used += bytes;
	if (pool->used > pool->used_high)
		pool->used_high = pool->used;
	return CUDA_SUCCESS;
}

/* NOT_SUPPORTED: let the driver do it. */
static CUresult allocate(CUdeviceptr *ptr, uint64_t bytes, CUmemoryPool handle, CUstream stream)
{
	struct memory *m = cudapool_memory(true);
	CUdeviceptr address;
	struct place place;
	struct pool *pool;
	CUresult r;

	if (!m || !ptr || !bytes || bytes > UINT64_MAX / 2 || captured(stream))
		return CUDA_ERROR_NOT_SUPPORTED;
	r = DRIVER(cuMemFree_v2)(0); /* see allocate.c */
	if (r != CUDA_SUCCESS)
		return r;
	r = place_of(&place, stream);
	if (r != CUDA_SUCCESS)
		return CUDA_ERROR_NOT_SUPPORTED;
	cudapool_lock(&m->heap_lock);
	pool = pool_of(m, handle);
	r = pool ? take(m, pool, bytes, &place, &address) : CUDA_ERROR_NOT_SUPPORTED;
	cudapool_unlock(&m->heap_lock);
	if (r == CUDA_SUCCESS)
		*ptr = address;
	return r;
}

/* The current pool of the stream's device. */
static CUmemoryPool current_pool(CUstream stream)
{
	CUmemoryPool pool = NULL;
	CUcontext context, current, popped;
	CUdevice device;

	if (DRIVER(cuStreamGetCtx)(stream, &context) != CUDA_SUCCESS || !context ||
	    DRIVER(cuCtxGetCurrent)(&current) != CUDA_SUCCESS)
		return NULL;
	if (context != current && DRIVER(cuCtxPushCurrent_v2)(context) != CUDA_SUCCESS)
		return NULL;
	if (DRIVER(cuCtxGetDevice)(&device) == CUDA_SUCCESS)
		DRIVER(cuDeviceGetMemPool)(&pool, device);
	if (context != current)
		DRIVER(cuCtxPopCurrent_v2)(&popped);
	return pool;
}

/* Of the driver's own: what is not a graph's is counted. */
static CUresult counted(CUresult r, const CUdeviceptr *ptr, uint64_t bytes, CUstream stream)
{
	struct memory *m = cudapool_memory(true);
	int device = 0;

	if (r == CUDA_SUCCESS && m && bytes && !captured(stream)) {
		DRIVER(cuPointerGetAttribute)(&device, CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL, *ptr);
		cudapool_left_add(m, *ptr, bytes, CUDAPOOL_LEFT_ORDERED, NULL, device);
	}
	return r;
}

/* One of ours that nobody can name any more ends with the last of its memory. */
static void end_if_over(struct memory *m, struct pool *pool)
{
	if (!pool->destroyed)
		return;
	cudapool_heap_trim(m, pool, 0);
	if (!pool->chunks)
		pool_remove(m, pool);
}

/* Something that may be freed so, outside of a capture. Aside. */
static CUresult free_known(struct memory *m, CUdeviceptr ptr, enum region_kind kind, CUstream stream,
			   CUresult (*drivers)(CUdeviceptr, CUstream))
{
	struct region *region;
	struct place place;
	CUresult r;

	r = DRIVER(cuMemFree_v2)(0); /* an error of earlier work */
	if (r != CUDA_SUCCESS)
		return r;
	if (kind == REGION_ORDERED && place_of(&place, stream) != CUDA_SUCCESS)
		return drivers(ptr, stream); /* says what is wrong with the stream */
	if (kind == REGION_ALLOCATION) {
		/* The driver takes back what cuMemAlloc gave, too, in the stream's time. We, when that has come. */
		r = DRIVER(cuStreamSynchronize)(stream);
		return r == CUDA_SUCCESS ? cudapool_memory_free(ptr) : r;
	}
	cudapool_lock(&m->heap_lock);
	cudapool_lock(&m->lock);
	region = cudapool_region_at(m, ptr);
	if (region && (region_start(region) != ptr || region->kind != kind))
		region = NULL;
	if (region)
		cudapool_region_remove(m, region);
	cudapool_unlock(&m->lock);
	if (!region) {
		r = CUDA_ERROR_INVALID_VALUE;
	} else if (kind == REGION_DRIVERS) {
		r = drivers(ptr, stream);
	} else {
		struct pool *pool = region->chunk->pool;

		cudapool_heap_give(m, region->chunk, ptr, region->bytes, &place);
		pool->used -= region->bytes;
		end_if_over(m, pool);
	}
	if (region) {
		cudapool_lock(&m->lock);
		if (r == CUDA_SUCCESS)
			cudapool_slab_put(&m->region_slab, region);
		else
			cudapool_region_enter(m, region);
		cudapool_unlock(&m->lock);
	}
	cudapool_unlock(&m->heap_lock);
	return r;
}

static CUresult free_async(CUdeviceptr ptr, CUstream stream, CUresult (*drivers)(CUdeviceptr, CUstream))
{
	struct memory *m = cudapool_memory(false);
	enum region_kind kind = REGION_VIEW;
	struct region *region;
	struct aside aside;
	CUresult r;

	if (!m || !ptr)
		return drivers(ptr, stream);
	cudapool_lock(&m->lock);
	region = cudapool_region_at(m, ptr);
	if (region && region_start(region) == ptr)
		kind = region->kind;
	cudapool_unlock(&m->lock);
	/* This is allowed while another stream is being captured; what we do for it is not. */
	if (kind == REGION_VIEW || captured(stream) || !cudapool_aside(&aside, NULL))
		return drivers(ptr, stream); /* nothing of ours, or none that can be freed so */
	r = free_known(m, ptr, kind, stream, drivers);
	cudapool_aside_end(&aside);
	return r;
}

void cudapool_ordered_free(struct memory *m, struct region *region)
{
	struct pool *pool = region->chunk->pool;

	cudapool_lock(&m->heap_lock);
	cudapool_heap_give(m, region->chunk, region_start(region), region->bytes, NULL);
	pool->used -= region->bytes;
	end_if_over(m, pool);
	cudapool_unlock(&m->heap_lock);
	cudapool_lock(&m->lock);
	cudapool_slab_put(&m->region_slab, region);
	cudapool_unlock(&m->lock);
}

/* In the _ptsz functions the stream 0 is the thread's own. */
static CUstream own(CUstream stream)
{
	return stream ? stream : CU_STREAM_PER_THREAD;
}

#define ORDERED(ptsz_name, stream_of)                                                                              \
	static CUresult on_cuMemAllocAsync##ptsz_name(CUdeviceptr *ptr, size_t bytes, CUstream stream)                 \
	{                                                                                                              \
		CUresult r = allocate(ptr, bytes, current_pool(stream_of), stream_of);                                 \
                                                                                                                       \
		return r == CUDA_ERROR_NOT_SUPPORTED                                                                   \
			       ? counted(DRIVER(cuMemAllocAsync##ptsz_name)(ptr, bytes, stream), ptr, bytes,           \
					 stream_of)                                                                    \
			       : r;                                                                                    \
	}                                                                                                              \
	WRAPPER(cuMemAllocAsync##ptsz_name, (CUdeviceptr * ptr, size_t bytes, CUstream stream), (ptr, bytes, stream)) \
	static CUresult on_cuMemAllocFromPoolAsync##ptsz_name(CUdeviceptr *ptr, size_t bytes, CUmemoryPool pool,       \
							      CUstream stream)                                         \
	{                                                                                                              \
		CUresult r = allocate(ptr, bytes, pool, stream_of);                                                    \
                                                                                                                       \
		return r == CUDA_ERROR_NOT_SUPPORTED                                                                   \
			       ? counted(DRIVER(cuMemAllocFromPoolAsync##ptsz_name)(ptr, bytes, pool, stream), ptr,    \
					 bytes, stream_of)                                                             \
			       : r;                                                                                    \
	}                                                                                                              \
	WRAPPER(cuMemAllocFromPoolAsync##ptsz_name,                                                                    \
		(CUdeviceptr * ptr, size_t bytes, CUmemoryPool pool, CUstream stream), (ptr, bytes, pool, stream))     \
	static CUresult on_cuMemFreeAsync##ptsz_name(CUdeviceptr ptr, CUstream stream)                                 \
	{                                                                                                              \
		return free_async(ptr, stream_of, DRIVER(cuMemFreeAsync##ptsz_name));                                  \
	}                                                                                                              \
	WRAPPER(cuMemFreeAsync##ptsz_name, (CUdeviceptr ptr, CUstream stream), (ptr, stream))

ORDERED(, stream)
ORDERED(_ptsz, own(stream))

/* Pools. */

static CUresult on_cuMemPoolCreate(CUmemoryPool *out, const CUmemPoolProps *props)
{
	CUresult r = DRIVER(cuMemPoolCreate)(out, props);
	struct memory *m = cudapool_memory(true);

	if (r != CUDA_SUCCESS || !m || props->allocType != CU_MEM_ALLOCATION_TYPE_PINNED || props->handleTypes ||
	    props->location.type != CU_MEM_LOCATION_TYPE_DEVICE || props->usage ||
	    !cudapool_device_usable(m, props->location.id))
		return r;
	cudapool_lock(&m->heap_lock);
	pool_add(m, *out, props->location.id, props->maxSize);
	cudapool_unlock(&m->heap_lock);
	return r;
}
WRAPPER(cuMemPoolCreate, (CUmemoryPool *pool, const CUmemPoolProps *props), (pool, props))

/* Its handle may be another pool's soon, so it gets a key that is nobody's. */
static CUresult on_cuMemPoolDestroy(CUmemoryPool handle)
{
	struct memory *m = cudapool_memory(false);
	struct pool *pool;
	CUresult r;

	if (!m)
		return DRIVER(cuMemPoolDestroy)(handle);
	cudapool_lock(&m->heap_lock);
	r = DRIVER(cuMemPoolDestroy)(handle);
	pool = r == CUDA_SUCCESS ? pool_at(m, handle) : NULL;
	if (pool) {
		cudapool_tree_remove(&m->pools, &pool->node);
		cudapool_lock(&m->lock);
		pool->node.key = ++m->next_id;
		cudapool_unlock(&m->lock);
		cudapool_tree_insert(&m->pools, &pool->node);
		pool->destroyed = true;
		end_if_over(m, pool);
	}
	cudapool_unlock(&m->heap_lock);
	return r;
}
WRAPPER(cuMemPoolDestroy, (CUmemoryPool pool), (pool))

static CUresult on_cuMemPoolTrimTo(CUmemoryPool handle, size_t keep)
{
	CUresult r = DRIVER(cuMemPoolTrimTo)(handle, keep);
	struct memory *m = cudapool_memory(false);
	struct pool *pool;

	if (r != CUDA_SUCCESS || !m)
		return r;
	cudapool_lock(&m->heap_lock);
	pool = pool_at(m, handle);
	if (pool)
		cudapool_heap_trim(m, pool, keep);
	cudapool_unlock(&m->heap_lock);
	return r;
}
WRAPPER(cuMemPoolTrimTo, (CUmemoryPool pool, size_t keep), (pool, keep))

/* The driver's pool is empty but for what we left to it: the truth is the sum. */
static CUresult on_cuMemPoolGetAttribute(CUmemoryPool handle, CUmemPool_attribute attribute, void *value)
{
	CUresult r = DRIVER(cuMemPoolGetAttribute)(handle, attribute, value);
	struct memory *m = cudapool_memory(false);
	cuuint64_t *bytes = value;
	struct pool *pool;

	if (r != CUDA_SUCCESS || !m)
		return r;
	cudapool_lock(&m->heap_lock);
	pool = pool_at(m, handle);
	if (pool && attribute == CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT)
		*bytes += pool->reserved;
	else if (pool && attribute == CU_MEMPOOL_ATTR_RESERVED_MEM_HIGH)
		*bytes += pool->reserved_high;
	else if (pool && attribute == CU_MEMPOOL_ATTR_USED_MEM_CURRENT)
		*bytes += pool->used;
	else if (pool && attribute == CU_MEMPOOL_ATTR_USED_MEM_HIGH)
		*bytes += pool->used_high;
	cudapool_unlock(&m->heap_lock);
	return r;
}
WRAPPER(cuMemPoolGetAttribute, (CUmemoryPool pool, CUmemPool_attribute attribute, void *value),
	(pool, attribute, value))

static CUresult on_cuMemPoolSetAttribute(CUmemoryPool handle, CUmemPool_attribute attribute, void *value)
{
	CUresult r = DRIVER(cuMemPoolSetAttribute)(handle, attribute, value);
	struct memory *m = cudapool_memory(true);
	struct pool *pool;

	if (r != CUDA_SUCCESS || !m)
		return r;
	cudapool_lock(&m->heap_lock);
	pool = pool_of(m, handle);
	if (pool && attribute == CU_MEMPOOL_ATTR_REUSE_ALLOW_OPPORTUNISTIC)
		pool->may_look = *(int *)value;
	else if (pool && attribute == CU_MEMPOOL_ATTR_REUSE_ALLOW_INTERNAL_DEPENDENCIES)
		pool->may_wait = *(int *)value;
	else if (pool && attribute == CU_MEMPOOL_ATTR_RELEASE_THRESHOLD)
		pool->threshold = *(cuuint64_t *)value;
	else if (pool && attribute == CU_MEMPOOL_ATTR_RESERVED_MEM_HIGH)
		pool->reserved_high = pool->reserved; /* the driver takes nothing but 0, which means this */
	else if (pool && attribute == CU_MEMPOOL_ATTR_USED_MEM_HIGH)
		pool->used_high = pool->used;
	cudapool_unlock(&m->heap_lock);
	return r;
}
WRAPPER(cuMemPoolSetAttribute, (CUmemoryPool pool, CUmemPool_attribute attribute, void *value),
	(pool, attribute, value))

static CUresult on_cuMemPoolSetAccess(CUmemoryPool handle, const CUmemAccessDesc *access, size_t count)
{
	CUresult r = DRIVER(cuMemPoolSetAccess)(handle, access, count);
	struct memory *m = cudapool_memory(true);
	struct chunk *chunk;
	struct pool *pool;
	size_t i;

	if (r != CUDA_SUCCESS || !m)
		return r;
	cudapool_lock(&m->heap_lock);
	pool = pool_of(m, handle);
	for (i = 0; pool && i < count; i++) {
		uint32_t bit = access[i].location.type == CU_MEM_LOCATION_TYPE_DEVICE &&
					       access[i].location.id < MEMORY_DEVICES
				       ? 1u << access[i].location.id
				       : 0;

		pool->readable &= ~bit;
		pool->writable &= ~bit;
		if (access[i].flags != CU_MEM_ACCESS_FLAGS_PROT_NONE)
			pool->readable |= bit;
		if (access[i].flags == CU_MEM_ACCESS_FLAGS_PROT_READWRITE)
			pool->writable |= bit;
	}
	for (chunk = pool ? pool->chunks : NULL; chunk && r == CUDA_SUCCESS; chunk = chunk->next) {
		struct region *region = chunk->region;

		r = cudapool_access_set(region_start(region), region->span, pool->readable, pool->writable,
					region->readable & ~pool->readable);
		region->readable = pool->readable;
		region->writable = pool->writable;
	}
	cudapool_unlock(&m->heap_lock);
	return r;
}
WRAPPER(cuMemPoolSetAccess, (CUmemoryPool pool, const CUmemAccessDesc *access, size_t count), (pool, access, count))

uint64_t cudapool_pools_trim(struct memory *m, int device, bool all)
{
	struct pool *pool, *next;
	uint32_t unlocked = 0;
	uint64_t released = 0;
	struct aside aside;

	/* Whoever has the lock is making or releasing memory, perhaps this thread itself. */
	if (!m->pools ||
	    !__atomic_compare_exchange_n(&m->heap_lock, &unlocked, 1, false, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED))
		return 0;
	/* Where it is asked for in the midst of a capture, events are asked about that must not end it. */
	if (cudapool_aside(&aside, NULL)) {
		released = cudapool_heap_trim_all(m, device, all);
		for (pool = (struct pool *)cudapool_tree_more(m->pools, 0); pool; pool = next) {
			next = (struct pool *)cudapool_tree_more(m->pools, pool->node.key);
			end_if_over(m, pool);
		}
		cudapool_aside_end(&aside);
	}
	cudapool_unlock(&m->heap_lock);
	return released;
}

void cudapool_pools_context_ending(struct memory *m, CUcontext context)
{
	struct aside aside;

	cudapool_lock(&m->heap_lock);
	if (cudapool_aside(&aside, NULL)) {
		cudapool_heap_context_ending(m, context);
		cudapool_aside_end(&aside);
	}
	cudapool_unlock(&m->heap_lock);
}
