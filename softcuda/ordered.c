// SPDX-License-Identifier: MIT
/* Stream-ordered allocation: pools, and blocks that are there from when a stream allocates them until it frees them. */
#include "graph.h"

#include <stdlib.h>
#include <string.h>

/*
 * A block is memory of its own in the address map. cuMemAllocAsync takes one at once and says when it may be used by
 * a piece of work in the stream, as cuMemFreeAsync does for its end: work that comes too early or too late fails, as
 * it may with the real driver. A freed block is taken again by the stream that freed it, in whose order that is safe,
 * or by any once the free was carried out. What is free beyond the pool's threshold is released when something is
 * synchronised.
 *
 * USED counts the bytes asked for in blocks that were allocated and not freed, RESERVED all that blocks take.
 */
struct softcuda_block {
	struct softcuda_block *next;
	struct CUmemPoolHandle_st *pool;
	struct softcuda_range *range;
	struct CUctx_st *free_ctx; /* where, and in which stream of it, it was freed */
	uint64_t free_stream;
	size_t size;            /* asked for */
	bool allocated;         /* the application has it */
	unsigned frees;         /* that streams have not come to yet */
	_Atomic unsigned alive; /* it may be used: streams' allocations less streams' frees */
};

struct CUmemPoolHandle_st {
	struct CUmemPoolHandle_st *next;
	struct softcuda_block *blocks;
	int device;
	bool destroyed; /* goes with its last block */
	int reuse[3];   /* as set: follow event dependencies, opportunistic, internal dependencies */
	uint64_t threshold, limit;
	uint64_t reserved, reserved_high, used, used_high;
	uint32_t readable, writable; /* devices, as bits */
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* outside of the map's */
static struct CUmemPoolHandle_st *pools;
static struct CUmemPoolHandle_st *default_pools[SOFTCUDA_MAX_DEVICES], *current_pools[SOFTCUDA_MAX_DEVICES];
static _Atomic uint64_t idle; /* bytes in blocks that nobody has: is there anything to settle? */

static struct CUmemPoolHandle_st *pool_new(int device)
{
	struct CUmemPoolHandle_st *pool = calloc(1, sizeof(*pool));

	if (!pool)
		return NULL;
	pool->device = device;
	pool->readable = pool->writable = 1u << device;
	for (unsigned i = 0; i < 3; i++)
		pool->reuse[i] = 1;
	pool->next = pools;
	pools = pool;
	return pool;
}

/* With the lock held. */
static struct CUmemPoolHandle_st *default_pool(int device)
{
	if (!default_pools[device])
		default_pools[device] = pool_new(device);
	return default_pools[device];
}

static struct CUmemPoolHandle_st *pool_find(CUmemoryPool handle)
{
	struct CUmemPoolHandle_st *pool = pools;

	while (pool && pool != handle)
		pool = pool->next;
	return pool && !pool->destroyed ? pool : NULL;
}

static bool block_idle(const struct softcuda_block *block)
{
	return !block->allocated && !block->frees;
}

/* Lets go of a block that nobody has; with the lock held. */
static void block_release(struct softcuda_block **link)
{
	struct softcuda_block *block = *link;

	*link = block->next;
	block->pool->reserved -= block->range->counted;
	atomic_fetch_sub(&idle, block->range->counted);
	pthread_rwlock_wrlock(&softcuda_map_lock);
	softcuda_range_remove(block->range);
	pthread_rwlock_unlock(&softcuda_map_lock);
	softcuda_range_free(block->range);
	free(block);
}

/* Releases what is free until no more than `keep` bytes are reserved. */
static void pool_trim(struct CUmemPoolHandle_st *pool, uint64_t keep)
{
	struct softcuda_block **link = &pool->blocks;

	while (*link && pool->reserved > keep) {
		if (block_idle(*link))
			block_release(link);
		else
			link = &(*link)->next;
	}
}

/* Destroyed pools go with their last block. */
static void pools_sweep(void)
{
	struct CUmemPoolHandle_st **link = &pools, *pool;

	while ((pool = *link)) {
		pool_trim(pool, pool->destroyed ? 0 : pool->threshold);
		if (pool->destroyed && !pool->blocks) {
			*link = pool->next;
			free(pool);
		} else {
			link = &pool->next;
		}
	}
}

void softcuda_pools_settle(void)
{
	if (!atomic_load(&idle))
		return;
	pthread_mutex_lock(&lock);
	pools_sweep();
	pthread_mutex_unlock(&lock);
}

/*
 * The smallest free block that is large enough and not much too large, and safe to use in this stream; with the lock
 * held.
 */
static struct softcuda_block *block_reuse(struct CUmemPoolHandle_st *pool, size_t bytes, struct CUstream_st *stream)
{
	struct softcuda_block *block, *best = NULL;

	for (block = pool->blocks; block; block = block->next) {
		bool own = block->free_ctx == stream->ctx && block->free_stream == stream->id;

		if (block->allocated || block->range->counted < bytes || block->range->counted / 2 > bytes)
			continue;
		if (block->frees && !own)
			continue;
		if (!own && !pool->reuse[CU_MEMPOOL_ATTR_REUSE_ALLOW_OPPORTUNISTIC - 1])
			continue;
		if (!best || block->range->counted < best->range->counted)
			best = block;
	}
	if (best && block_idle(best))
		atomic_fetch_sub(&idle, best->range->counted);
	return best;
}

static CUresult block_new(struct softcuda_block **out, struct CUmemPoolHandle_st *pool, size_t bytes)
{
	size_t counted = round_up(bytes, bytes < SOFTCUDA_GRANULARITY ? SOFTCUDA_PAGE_SIZE : SOFTCUDA_GRANULARITY);
	struct softcuda_block *block;
	CUresult result;

	if (pool->limit && (counted > pool->limit || pool->reserved > pool->limit - counted))
		return CUDA_ERROR_OUT_OF_MEMORY;
	block = calloc(1, sizeof(*block));
	if (!block)
		return CUDA_ERROR_OUT_OF_MEMORY;
	block->pool = pool;
	result = softcuda_range_new(&block->range, bytes, counted, SOFTCUDA_ORDERED, NULL, pool->device, block);
	if (result == CUDA_ERROR_OUT_OF_MEMORY) { /* not while this pool itself has some to spare */
		pool_trim(pool, 0);
		result = softcuda_range_new(&block->range, bytes, counted, SOFTCUDA_ORDERED, NULL, pool->device, block);
	}
	if (result != CUDA_SUCCESS) {
		free(block);
		return result;
	}
	block->next = pool->blocks;
	pool->blocks = block;
	pool->reserved += counted;
	if (pool->reserved > pool->reserved_high)
		pool->reserved_high = pool->reserved;
	*out = block;
	return CUDA_SUCCESS;
}

/* With the lock held. */
static void block_taken(struct softcuda_block *block, size_t bytes)
{
	struct CUmemPoolHandle_st *pool = block->pool;

	block->allocated = true;
	block->size = bytes;
	pthread_rwlock_wrlock(&softcuda_map_lock);
	block->range->size = bytes;
	pthread_rwlock_unlock(&softcuda_map_lock);
	pool->used += block->size;
	if (pool->used > pool->used_high)
		pool->used_high = pool->used;
}

static void block_given(struct softcuda_block *block)
{
	block->allocated = false;
	block->pool->used -= block->size;
	if (block_idle(block))
		atomic_fetch_add(&idle, block->range->counted);
}

void softcuda_ordered_alloc(struct softcuda_block *block)
{
	atomic_fetch_add(&block->alive, 1);
}

void softcuda_ordered_free(struct softcuda_block *block)
{
	pthread_mutex_lock(&lock);
	atomic_fetch_sub(&block->alive, 1);
	block->frees--;
	if (block_idle(block))
		atomic_fetch_add(&idle, block->range->counted);
	pthread_mutex_unlock(&lock);
}

CUresult softcuda_ordered_free_now(struct softcuda_block *block)
{
	CUresult result = CUDA_ERROR_INVALID_VALUE;

	pthread_mutex_lock(&lock);
	if (block->allocated) {
		atomic_fetch_sub(&block->alive, 1);
		block->free_ctx = NULL;
		block_given(block);
		pools_sweep();
		result = CUDA_SUCCESS;
	}
	pthread_mutex_unlock(&lock);
	return result;
}

bool softcuda_ordered_reachable(const struct softcuda_block *block, bool write, struct CUctx_st *ctx, bool copying)
{
	uint32_t may = write ? block->pool->writable : block->pool->readable;

	return atomic_load(&block->alive) && (copying || may & 1u << ctx->device);
}

CUmemoryPool softcuda_ordered_pool(const struct softcuda_block *block)
{
	return block->pool;
}

static CUresult alloc_async(CUdeviceptr *ptr, size_t bytes, CUmemoryPool handle, int device, CUstream stream_handle)
{
	struct softcuda_op op = {.kind = OP_ALLOC};
	struct CUmemPoolHandle_st *pool;
	uint64_t start = softcuda_now_ns();
	CUresult result;
	struct CUstream_st *stream = softcuda_stream(stream_handle, &result);

	if (!stream)
		return result;
	if (!ptr)
		return CUDA_ERROR_INVALID_VALUE;
	if (stream->capture != CU_STREAM_CAPTURE_STATUS_NONE)
		return CUDA_ERROR_NOT_SUPPORTED; /* memory of graphs */
	result = softcuda_capture_unsafe();
	if (result != CUDA_SUCCESS)
		return result;
	if (!bytes) {
		*ptr = 0;
		return CUDA_SUCCESS;
	}
	if (bytes > softcuda_config.memory_bytes)
		return CUDA_ERROR_OUT_OF_MEMORY;
	pthread_mutex_lock(&lock);
	if (device >= 0)
		pool = current_pools[device] ? current_pools[device] : default_pool(device);
	else
		pool = pool_find(handle);
	result = pool ? CUDA_SUCCESS : device >= 0 ? CUDA_ERROR_OUT_OF_MEMORY : CUDA_ERROR_INVALID_VALUE;
	if (pool) {
		op.block = block_reuse(pool, bytes, stream);
		if (!op.block)
			result = block_new(&op.block, pool, bytes);
		if (result == CUDA_SUCCESS)
			block_taken(op.block, bytes);
	}
	pthread_mutex_unlock(&lock);
	if (result != CUDA_SUCCESS)
		return result;
	result = softcuda_submit(stream, &op);
	if (result != CUDA_SUCCESS) {
		pthread_mutex_lock(&lock);
		block_given(op.block);
		pthread_mutex_unlock(&lock);
		return result;
	}
	*ptr = op.block->range->start;
	softcuda_spend(start, softcuda_costs.ordered_us / 1000, 0, 0);
	return CUDA_SUCCESS;
}

CUresult do_cuMemAllocFromPoolAsync(CUdeviceptr *ptr, size_t bytes, CUmemoryPool pool, CUstream stream)
{
	return alloc_async(ptr, bytes, pool, -1, stream);
}

CUresult do_cuMemAllocAsync(CUdeviceptr *ptr, size_t bytes, CUstream stream)
{
	return alloc_async(ptr, bytes, NULL, softcuda_current()->device, stream);
}

CUresult do_cuMemFreeAsync(CUdeviceptr ptr, CUstream handle)
{
	struct softcuda_op op = {.kind = OP_FREE};
	struct softcuda_range *range;
	bool plain = false;
	CUresult result;
	struct CUstream_st *stream = softcuda_stream(handle, &result);

	if (!stream)
		return result;
	if (!ptr)
		return CUDA_SUCCESS;
	if (stream->capture != CU_STREAM_CAPTURE_STATUS_NONE)
		return CUDA_ERROR_NOT_SUPPORTED;
	pthread_mutex_lock(&lock);
	pthread_rwlock_wrlock(&softcuda_map_lock);
	range = softcuda_range_find(ptr);
	if (range && range->kind == SOFTCUDA_ORDERED && range->start == ptr && range->block->allocated)
		op.block = range->block;
	plain = range && range->kind == SOFTCUDA_ALLOC && range->start == ptr && !range->freed;
	if (plain)
		range->freed = true;
	pthread_rwlock_unlock(&softcuda_map_lock);
	if (op.block) {
		op.block->frees++;
		op.block->free_ctx = stream->ctx;
		op.block->free_stream = stream->id;
		block_given(op.block);
	}
	pthread_mutex_unlock(&lock);
	if (plain) { /* memory of cuMemAlloc may be freed so, too (probes/memory2.c) */
		op.kind = OP_FREE_PLAIN;
		op.plain = ptr;
	}
	return op.block || plain ? softcuda_submit(stream, &op) : CUDA_ERROR_INVALID_VALUE;
}

CUresult do_cuDeviceGetDefaultMemPool(CUmemoryPool *pool, CUdevice device)
{
	if (!pool)
		return CUDA_ERROR_INVALID_VALUE;
	if (softcuda_device_check(device))
		return CUDA_ERROR_INVALID_DEVICE;
	pthread_mutex_lock(&lock);
	*pool = default_pool(device);
	pthread_mutex_unlock(&lock);
	return *pool ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

CUresult do_cuDeviceGetMemPool(CUmemoryPool *pool, CUdevice device)
{
	CUresult result = do_cuDeviceGetDefaultMemPool(pool, device);

	if (result == CUDA_SUCCESS && current_pools[device])
		*pool = current_pools[device];
	return result;
}

CUresult do_cuDeviceSetMemPool(CUdevice device, CUmemoryPool handle)
{
	struct CUmemPoolHandle_st *pool;

	if (softcuda_device_check(device))
		return CUDA_ERROR_INVALID_DEVICE;
	pthread_mutex_lock(&lock);
	pool = pool_find(handle);
	if (pool && pool->device == device)
		current_pools[device] = pool;
	pthread_mutex_unlock(&lock);
	return pool && pool->device == device ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult do_cuMemPoolCreate(CUmemoryPool *out, const CUmemPoolProps *props)
{
	struct CUmemPoolHandle_st *pool;

	if (!out || !props || props->allocType != CU_MEM_ALLOCATION_TYPE_PINNED ||
	    props->location.type != CU_MEM_LOCATION_TYPE_DEVICE)
		return CUDA_ERROR_INVALID_VALUE;
	if (softcuda_device_check(props->location.id))
		return CUDA_ERROR_INVALID_DEVICE;
	if (props->handleTypes != CU_MEM_HANDLE_TYPE_NONE) /* pools that can be shared are not here */
		return CUDA_ERROR_NOT_SUPPORTED;
	pthread_mutex_lock(&lock);
	pool = pool_new(props->location.id);
	if (pool)
		pool->limit = props->maxSize;
	pthread_mutex_unlock(&lock);
	*out = pool;
	return pool ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

CUresult do_cuMemPoolDestroy(CUmemoryPool handle)
{
	struct CUmemPoolHandle_st *pool;
	CUresult result = CUDA_ERROR_INVALID_VALUE;

	pthread_mutex_lock(&lock);
	pool = pool_find(handle);
	if (pool && pool != default_pools[pool->device]) {
		if (current_pools[pool->device] == pool)
			current_pools[pool->device] = NULL;
		pool->destroyed = true;
		pools_sweep();
		result = CUDA_SUCCESS;
	}
	pthread_mutex_unlock(&lock);
	return result;
}

CUresult do_cuMemPoolTrimTo(CUmemoryPool handle, size_t keep)
{
	struct CUmemPoolHandle_st *pool;

	pthread_mutex_lock(&lock);
	pool = pool_find(handle);
	if (pool)
		pool_trim(pool, keep);
	pthread_mutex_unlock(&lock);
	return pool ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult do_cuMemPoolSetAttribute(CUmemoryPool handle, CUmemPool_attribute attribute, void *value)
{
	CUresult result = CUDA_ERROR_INVALID_VALUE;
	struct CUmemPoolHandle_st *pool;

	pthread_mutex_lock(&lock);
	pool = value ? pool_find(handle) : NULL;
	if (pool) {
		result = CUDA_SUCCESS;
		if (attribute >= CU_MEMPOOL_ATTR_REUSE_FOLLOW_EVENT_DEPENDENCIES &&
		    attribute <= CU_MEMPOOL_ATTR_REUSE_ALLOW_INTERNAL_DEPENDENCIES)
			pool->reuse[attribute - 1] = *(int *)value != 0;
		else if (attribute == CU_MEMPOOL_ATTR_RELEASE_THRESHOLD)
			pool->threshold = *(cuuint64_t *)value;
		else if (attribute == CU_MEMPOOL_ATTR_RESERVED_MEM_HIGH && !*(cuuint64_t *)value)
			pool->reserved_high = pool->reserved;
		else if (attribute == CU_MEMPOOL_ATTR_USED_MEM_HIGH && !*(cuuint64_t *)value)
			pool->used_high = pool->used;
		else
			result = CUDA_ERROR_INVALID_VALUE;
	}
	pthread_mutex_unlock(&lock);
	return result;
}

CUresult do_cuMemPoolGetAttribute(CUmemoryPool handle, CUmemPool_attribute attribute, void *value)
{
	struct CUmemPoolHandle_st *pool;
	bool known = true;

	pthread_mutex_lock(&lock);
	pool = value ? pool_find(handle) : NULL;
	if (pool) {
		uint64_t wide[] = {pool->threshold,     pool->reserved, pool->reserved_high,
				   pool->used, pool->used_high};

		known = attribute >= CU_MEMPOOL_ATTR_REUSE_FOLLOW_EVENT_DEPENDENCIES &&
			attribute <= CU_MEMPOOL_ATTR_USED_MEM_HIGH;
		if (known && attribute < CU_MEMPOOL_ATTR_RELEASE_THRESHOLD)
			*(int *)value = pool->reuse[attribute - 1];
		else if (known)
			*(cuuint64_t *)value = wide[attribute - CU_MEMPOOL_ATTR_RELEASE_THRESHOLD];
	}
	pthread_mutex_unlock(&lock);
	return pool && known ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult do_cuMemPoolSetAccess(CUmemoryPool handle, const CUmemAccessDesc *access, size_t count)
{
	CUresult result = access && count ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
	struct CUmemPoolHandle_st *pool;

	pthread_mutex_lock(&lock);
	pool = pool_find(handle);
	if (!pool)
		result = CUDA_ERROR_INVALID_VALUE;
	for (size_t i = 0; result == CUDA_SUCCESS && i < count; i++) {
		uint32_t bit = 1u << (access[i].location.id & (SOFTCUDA_MAX_DEVICES - 1));

		if (access[i].location.type != CU_MEM_LOCATION_TYPE_DEVICE ||
		    softcuda_device_check(access[i].location.id))
			result = CUDA_ERROR_INVALID_DEVICE;
		else if (access[i].location.id == pool->device &&
			 access[i].flags != CU_MEM_ACCESS_FLAGS_PROT_READWRITE)
			result = CUDA_ERROR_INVALID_VALUE; /* a device's own access cannot be taken away */
		else {
			pool->readable = access[i].flags ? pool->readable | bit : pool->readable & ~bit;
			pool->writable = access[i].flags == CU_MEM_ACCESS_FLAGS_PROT_READWRITE ? pool->writable | bit
											       : pool->writable & ~bit;
		}
	}
	pthread_mutex_unlock(&lock);
	return result;
}

CUresult do_cuMemPoolGetAccess(CUmemAccess_flags *flags, CUmemoryPool handle, CUmemLocation *location)
{
	struct CUmemPoolHandle_st *pool;

	if (!flags || !location || location->type != CU_MEM_LOCATION_TYPE_DEVICE || softcuda_device_check(location->id))
		return CUDA_ERROR_INVALID_VALUE;
	pthread_mutex_lock(&lock);
	pool = pool_find(handle);
	if (pool)
		*flags = pool->writable & 1u << location->id   ? CU_MEM_ACCESS_FLAGS_PROT_READWRITE
			 : pool->readable & 1u << location->id ? CU_MEM_ACCESS_FLAGS_PROT_READ
							       : CU_MEM_ACCESS_FLAGS_PROT_NONE;
	pthread_mutex_unlock(&lock);
	return pool ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}
