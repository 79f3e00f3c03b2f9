// SPDX-License-Identifier: MIT
/* The address map: device allocations, managed, pinned and registered host memory. */
#include "internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/*
 * A device range is two mappings of the same size side by side: the device addresses, which nobody can
 * read or write, as with a real GPU, and the alias through which the driver does it. Neither is inherited by
 * a forked child.
 */

/* Held for reading while work is carried out; those who change the map are not to wait for ever behind it. */
pthread_rwlock_t softcuda_map_lock = PTHREAD_RWLOCK_WRITER_NONRECURSIVE_INITIALIZER_NP;
struct softcuda_range **softcuda_ranges;
size_t softcuda_range_count;

static size_t range_room;
static _Atomic uint64_t next_id = 1;

/* The index of the first range that ends behind ptr. */
static size_t range_index(CUdeviceptr ptr)
{
	size_t low = 0, high = softcuda_range_count;

	while (low < high) {
		size_t middle = (low + high) / 2;

		if (softcuda_ranges[middle]->start + softcuda_ranges[middle]->size <= ptr)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

struct softcuda_range *softcuda_range_find(CUdeviceptr ptr)
{
	size_t index = range_index(ptr);

	return index < softcuda_range_count && softcuda_ranges[index]->start <= ptr ? softcuda_ranges[index] : NULL;
}

int softcuda_range_insert(struct softcuda_range *range)
{
	size_t index = range_index(range->start);

	if (index < softcuda_range_count && softcuda_ranges[index]->start < range->start + range->size)
		return -EEXIST;
	if (softcuda_range_count == range_room) {
		size_t room = range_room ? 2 * range_room : 64;
		struct softcuda_range **ranges = realloc(softcuda_ranges, room * sizeof(*ranges));

		if (!ranges)
			return -ENOMEM;
		softcuda_ranges = ranges;
		range_room = room;
	}
	memmove(softcuda_ranges + index + 1, softcuda_ranges + index,
		(softcuda_range_count - index) * sizeof(*softcuda_ranges));
	softcuda_ranges[index] = range;
	softcuda_range_count++;
	range->id = next_id++;
	return 0;
}

void softcuda_range_remove(struct softcuda_range *range)
{
	size_t index = range_index(range->start);

	memmove(softcuda_ranges + index, softcuda_ranges + index + 1,
		(--softcuda_range_count - index) * sizeof(*softcuda_ranges));
}

int softcuda_range_map(struct softcuda_range *range, size_t size, size_t alignment, CUdeviceptr hint)
{
	size_t span = 2 * size + alignment;
	char *base, *start;

	if (size > SIZE_MAX / 4 || alignment > SIZE_MAX / 4)
		return -ENOMEM;
	base = mmap((void *)(uintptr_t)hint, span, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (base == MAP_FAILED)
		return -errno;
	start = (char *)round_up((uintptr_t)base, alignment);
	if (start > base)
		munmap(base, start - base);
	if (base + span > start + 2 * size)
		munmap(start + 2 * size, base + span - (start + 2 * size));
	madvise(start, 2 * size, MADV_DONTFORK);
	range->base = start;
	range->span = 2 * size;
	range->start = (uintptr_t)start;
	range->size = size;
	range->alias = start + size;
	return 0;
}

void softcuda_range_unmap(struct softcuda_range *range)
{
	if (range->base)
		munmap(range->base, range->span);
}

static bool piece_reachable(const struct softcuda_piece *piece, bool write, struct CUctx_st *ctx, bool copying)
{
	uint32_t may = write ? piece->writable : piece->readable;

	return may & 1u << ctx->device || (copying && may & 1u << piece->physical->device);
}

static bool pieces_reachable(const struct softcuda_range *range, CUdeviceptr ptr, size_t bytes, bool write,
			     struct CUctx_st *ctx, bool copying)
{
	size_t offset = ptr - range->start, end = offset + bytes;
	unsigned index = softcuda_piece_index(range, offset);

	for (; index < range->piece_count && offset < end; index++) {
		const struct softcuda_piece *piece = &range->pieces[index];

		if (piece->offset > offset || !piece_reachable(piece, write, ctx, copying))
			return false;
		offset = piece->offset + piece->size;
	}
	return offset >= end;
}

static bool range_reachable(const struct softcuda_range *range, CUdeviceptr ptr, size_t bytes, bool write,
			    struct CUctx_st *ctx, bool copying)
{
	switch (range->kind) {
	case SOFTCUDA_RESERVED:
		return pieces_reachable(range, ptr, bytes, write, ctx, copying);
	case SOFTCUDA_ORDERED:
		return softcuda_ordered_reachable(range->block, write, ctx, copying);
	case SOFTCUDA_ALLOC:
		return copying || range->device == ctx->device || ctx->peers & 1u << range->device;
	default:
		return true;
	}
}

static bool inside(const struct softcuda_range *range, CUdeviceptr ptr, size_t bytes)
{
	return bytes <= range->start + range->size - ptr;
}

void *softcuda_reach(CUdeviceptr ptr, size_t bytes, bool write, struct CUctx_st *ctx, bool copying, bool host_too)
{
	struct softcuda_range *range = softcuda_range_find(ptr);

	if (!range)
		return host_too ? (void *)(uintptr_t)ptr : NULL;
	if (!inside(range, ptr, bytes) || !range_reachable(range, ptr, bytes, write, ctx, copying))
		return NULL;
	return range->alias + (ptr - range->start);
}

/* Another device's memory that the current one may not use so (probes/reach.c). */
static bool closed(const struct softcuda_range *range, CUdeviceptr ptr, size_t bytes, enum softcuda_use use)
{
	size_t offset = ptr - range->start, end = offset + bytes;
	struct CUctx_st *ctx = softcuda_current();
	unsigned index;

	if (use == SOFTCUDA_BY_PEER)
		return false;
	if (range->kind == SOFTCUDA_ORDERED || (range->kind == SOFTCUDA_ALLOC && use == SOFTCUDA_BY_FILL))
		return range->device != ctx->device && !range_reachable(range, ptr, bytes, true, ctx, false);
	for (index = softcuda_piece_index(range, offset);
	     index < range->piece_count && range->pieces[index].offset < end; index++) {
		const struct softcuda_piece *piece = &range->pieces[index];

		if (piece->physical->device != ctx->device && !(piece->readable & 1u << ctx->device))
			return true;
	}
	return false;
}

bool softcuda_known(CUdeviceptr ptr, size_t bytes, bool host_too, enum softcuda_use use, enum softcuda_where *where)
{
	enum softcuda_where found = SOFTCUDA_ON_PAGEABLE;
	struct softcuda_range *range;
	bool known;

	pthread_rwlock_rdlock(&softcuda_map_lock);
	range = softcuda_range_find(ptr);
	known = range ? inside(range, ptr, bytes) && !closed(range, ptr, bytes, use) : host_too && ptr;
	if (range)
		found = range->kind == SOFTCUDA_PINNED || range->kind == SOFTCUDA_REGISTERED ? SOFTCUDA_ON_PINNED
											     : SOFTCUDA_ON_DEVICE;
	pthread_rwlock_unlock(&softcuda_map_lock);
	if (where)
		*where = found;
	return known;
}

CUresult softcuda_range_new(struct softcuda_range **out, size_t bytes, size_t counted, enum softcuda_kind kind,
			    struct CUctx_st *owner, int device, struct softcuda_block *block)
{
	int host = softcuda_devices[device].host_index;
	struct softcuda_range *range;
	CUresult result;
	int error;

	if (counted > softcuda_config.memory_bytes)
		return CUDA_ERROR_OUT_OF_MEMORY;
	result = softcuda_memory_take(host, counted);
	if (result != CUDA_SUCCESS)
		return result;
	range = calloc(1, sizeof(*range));
	if (!range || softcuda_range_map(range, counted,
					 counted < SOFTCUDA_GRANULARITY ? SOFTCUDA_PAGE_SIZE : SOFTCUDA_GRANULARITY, 0))
		goto nomem;
	if (mprotect(range->alias, counted, PROT_READ | PROT_WRITE))
		goto nomem;
	range->kind = kind;
	range->ctx = owner;
	range->device = device;
	range->size = bytes;
	range->counted = counted;
	range->block = block;
	pthread_rwlock_wrlock(&softcuda_map_lock);
	error = softcuda_range_insert(range);
	pthread_rwlock_unlock(&softcuda_map_lock);
	if (error)
		goto nomem;
	*out = range;
	return CUDA_SUCCESS;
nomem:
	softcuda_memory_give(host, counted);
	if (range)
		softcuda_range_unmap(range);
	free(range);
	return CUDA_ERROR_OUT_OF_MEMORY;
}

void softcuda_range_free(struct softcuda_range *range)
{
	if (range->counted)
		softcuda_memory_give(softcuda_devices[range->device].host_index, range->counted);
	softcuda_range_unmap(range);
	free(range);
}

CUresult softcuda_free_range(CUdeviceptr ptr, enum softcuda_kind kind)
{
	struct softcuda_range *range;

	pthread_rwlock_wrlock(&softcuda_map_lock);
	range = softcuda_range_find(ptr);
	if (range && (range->start != ptr ||
		      (range->kind != kind && !(kind == SOFTCUDA_ALLOC && range->kind == SOFTCUDA_MANAGED))))
		range = NULL;
	if (range)
		softcuda_range_remove(range);
	pthread_rwlock_unlock(&softcuda_map_lock);
	if (!range)
		return CUDA_ERROR_INVALID_VALUE;
	softcuda_range_free(range);
	return CUDA_SUCCESS;
}

void softcuda_memory_free_all(struct CUctx_st *ctx)
{
	size_t i = 0;

	pthread_rwlock_wrlock(&softcuda_map_lock);
	while (i < softcuda_range_count) {
		struct softcuda_range *range = softcuda_ranges[i];

		if (range->ctx != ctx) {
			i++;
			continue;
		}
		softcuda_range_remove(range);
		softcuda_range_free(range);
	}
	pthread_rwlock_unlock(&softcuda_map_lock);
}

CUresult do_cuMemGetInfo_v2(size_t *free, size_t *total)
{
	uint64_t used;
	CUresult result;

	if (!free || !total)
		return CUDA_ERROR_INVALID_VALUE;
	result = softcuda_memory_info(softcuda_devices[softcuda_current()->device].host_index, &used);
	if (result != CUDA_SUCCESS)
		return result;
	*total = softcuda_config.memory_bytes;
	*free = used < *total ? *total - used : 0;
	return CUDA_SUCCESS;
}

CUresult do_cuMemAlloc_v2(CUdeviceptr *ptr, size_t bytes)
{
	struct CUctx_st *ctx = softcuda_current();
	uint64_t start = softcuda_now_ns();
	struct softcuda_range *range;
	CUresult result;
	size_t counted;

	if (!ptr || !bytes)
		return CUDA_ERROR_INVALID_VALUE;
	if (bytes > softcuda_config.memory_bytes)
		return CUDA_ERROR_OUT_OF_MEMORY;
	counted = round_up(bytes, bytes < SOFTCUDA_GRANULARITY ? SOFTCUDA_PAGE_SIZE : SOFTCUDA_GRANULARITY);
	result = softcuda_range_new(&range, bytes, counted, SOFTCUDA_ALLOC, ctx, ctx->device, NULL);
	if (result != CUDA_SUCCESS)
		return result;
	*ptr = range->start;
	softcuda_spend(start, softcuda_costs.alloc_us / 1000, 0, 0);
	return CUDA_SUCCESS;
}

CUresult do_cuMemAllocPitch_v2(CUdeviceptr *ptr, size_t *pitch, size_t width, size_t height, unsigned int element)
{
	size_t row = round_up(width, 512);

	if (!pitch || !width || !height || (element != 4 && element != 8 && element != 16) || row < width ||
	    height > SIZE_MAX / row)
		return CUDA_ERROR_INVALID_VALUE;
	*pitch = row;
	return do_cuMemAlloc_v2(ptr, row * height);
}

/*
 * Freeing waits for the work that may use it, as the driver does. It needs no current context, but one that has failed
 * is told so.
 */
CUresult do_cuMemFree_v2(CUdeviceptr ptr)
{
	struct softcuda_block *block = NULL;
	struct softcuda_range *range;
	struct CUctx_st *owner = NULL, *current = softcuda_current();
	CUresult result = CUDA_SUCCESS;

	if (current && !atomic_load(&current->alive))
		current = NULL;
	if (current)
		result = atomic_load(&current->error);
	if (!ptr || result != CUDA_SUCCESS)
		return result;
	pthread_rwlock_rdlock(&softcuda_map_lock);
	range = softcuda_range_find(ptr);
	if (range && range->kind == SOFTCUDA_ORDERED && range->start == ptr)
		block = range->block;
	if (range)
		owner = range->ctx;
	pthread_rwlock_unlock(&softcuda_map_lock);
	if (owner)
		softcuda_context_wait(owner);
	if (current && current != owner)
		softcuda_context_wait(current);
	return block ? softcuda_ordered_free_now(block) : softcuda_free_range(ptr, SOFTCUDA_ALLOC);
}
