// SPDX-License-Identifier: MIT
/* cuMemAlloc and cuMemFree, and the contexts that allocations end with. */
#include "pieces.h"

#include "drain.h"

#define MOST	    (1ull << 46) /* bytes in one allocation: the driver refuses more, and nothing overflows */
#define ALIGNED	    (32ull << 20) /* what the driver aligns an allocation to that is as large (H200) */
#define WIDEST	    (1ull << 31) /* row, and most rows, for cuMemAllocPitch: what is more is the driver's to refuse */
#define WIDEST_UNIT 4096	 /* that a row may be rounded up to */

static uint64_t round_up(uint64_t bytes)
{
	return (bytes + MEMORY_GRANULE - 1) & ~(MEMORY_GRANULE - 1);
}

bool cudapool_memory_current(CUcontext *context, int *device)
{
	CUdevice current;

	if (!DRIVER(cuCtxGetCurrent) || DRIVER(cuCtxGetCurrent)(context) != CUDA_SUCCESS || !*context ||
	    DRIVER(cuCtxGetDevice)(&current) != CUDA_SUCCESS)
		return false;
	*context = cudapool_context_owner(*context);
	*device = current;
	return true;
}

/* Is an allocation of this size ours to make? */
static bool ours(struct memory *m, uint64_t bytes, int device)
{
	return bytes >= (uint64_t)cudapool_options.park_min_kb << 10 && bytes <= MOST &&
	       cudapool_device_usable(m, device);
}

/* What an allocation counts as that is the driver's. */
static enum cudapool_left left_kind(uint64_t bytes)
{
	return bytes < (uint64_t)cudapool_options.park_min_kb << 10 ? CUDAPOOL_LEFT_SMALL : CUDAPOOL_LEFT_REFUSED;
}

static void region_forget(struct memory *m, struct region *region)
{
	cudapool_lock(&m->lock);
	cudapool_region_remove(m, region);
	cudapool_slab_put(&m->region_slab, region);
	cudapool_unlock(&m->lock);
}

CUresult cudapool_region_make(struct memory *m, struct region **out, uint64_t bytes, enum region_kind kind,
			      CUcontext context, int device)
{
	uint64_t span = round_up(bytes);
	struct region *region = NULL;
	struct block *block;
	CUdeviceptr start;
	CUresult r;

	r = cudapool_block_make(m, &block, span, CUDAPOOL_PIECE_MAX, device, m->rdma[device]);
	if (r != CUDA_SUCCESS)
		return r;
	r = DRIVER(cuMemAddressReserve)(&start, span, span < ALIGNED ? 0 : ALIGNED, 0, 0);
	if (r != CUDA_SUCCESS)
		goto free;
	r = cudapool_block_map(block, start);
	if (r != CUDA_SUCCESS)
		goto unreserve;
	/* In the tables before it has access: peer access that is given meanwhile finds it there, or was seen here. */
	cudapool_lock(&m->lock);
	region = cudapool_region_new(m, start, bytes, kind);
	if (region) {
		region->block = block;
		region->span = span;
		region->context = context;
		region->device = device;
		cudapool_access_note(m, region);
		if (context)
			m->context[device] = context;
		cudapool_region_enter(m, region);
	}
	cudapool_unlock(&m->lock);
	r = region ? cudapool_access_give(region, start, span, 0) : CUDA_ERROR_NOT_SUPPORTED;
	if (r == CUDA_SUCCESS) {
		*out = region;
		return r;
	}
	if (region)
		region_forget(m, region);
	DRIVER(cuMemUnmap)(start, span);
unreserve:
	DRIVER(cuMemAddressFree)(start, span);
free:
	cudapool_block_free(m, block);
	return r;
}

CUresult cudapool_region_unmake(struct memory *m, struct region *region)
{
	CUdeviceptr start = region_start(region);
	struct block *block = region->block;
	uint64_t span = region->span;
	CUresult r;

	r = DRIVER(cuMemUnmap)(start, span);
	if (r != CUDA_SUCCESS) {
		cudapool_lock(&m->lock);
		cudapool_region_enter(m, region);
		cudapool_unlock(&m->lock);
		return r;
	}
	cudapool_block_free(m, block);
	DRIVER(cuMemAddressFree)(start, span);
	cudapool_lock(&m->lock);
	cudapool_slab_put(&m->region_slab, region);
	cudapool_unlock(&m->lock);
	return CUDA_SUCCESS;
}

CUresult cudapool_chunk_unmake(struct memory *m, struct region *region)
{
	cudapool_lock(&m->lock);
	cudapool_region_remove(m, region);
	cudapool_unlock(&m->lock);
	return cudapool_region_unmake(m, region);
}

/* The driver's own allocation, once more if the pool gave up memory for it. */
#define DRIVERS_OWN(r, device, bytes, call)                                                                            \
	do {                                                                                                           \
		r = call;                                                                                              \
		if (r == CUDA_ERROR_OUT_OF_MEMORY && cudapool_memory_want(device, bytes))                              \
			r = call;                                                                                      \
	} while (0)

/*
 * The driver refuses to allocate and to free while a stream is captured that this could disturb, and spoils the
 * capture; it does not refuse what we do instead. Freeing nothing has the same effect, and no other (H200: 70 ns).
 */
static CUresult forbidden(void)
{
	return DRIVER(cuMemFree_v2)(0);
}

/* Ours, or the driver's own where it is too small, or cannot be made our way. */
static CUresult allocate(CUdeviceptr *ptr, uint64_t bytes)
{
	struct memory *m = cudapool_memory(true);
	struct region *region;
	CUcontext context;
	int device;
	CUresult r;

	if (!m || !ptr || !bytes || !cudapool_memory_current(&context, &device))
		return DRIVER(cuMemAlloc_v2)(ptr, bytes);
	if (ours(m, bytes, device)) {
		r = forbidden();
		if (r != CUDA_SUCCESS)
			return r;
		r = cudapool_region_make(m, &region, bytes, REGION_ALLOCATION, context, device);
		if (r == CUDA_SUCCESS)
			*ptr = region_start(region);
		if (r == CUDA_SUCCESS || r == CUDA_ERROR_OUT_OF_MEMORY)
			return r;
	}
	DRIVERS_OWN(r, device, bytes, DRIVER(cuMemAlloc_v2)(ptr, bytes));
	if (r == CUDA_SUCCESS)
		cudapool_left_add(m, *ptr, bytes, left_kind(bytes), context, device);
	return r;
}

static CUresult on_cuMemAlloc_v2(CUdeviceptr *ptr, size_t bytes)
{
	return allocate(ptr, bytes);
}
WRAPPER(cuMemAlloc_v2, (CUdeviceptr *ptr, size_t bytes), (ptr, bytes))

/*
 * The driver rounds a row up to a multiple of what it makes of a row of one byte (asked on an H200 for widths from 1 to
 * 3 million, and every element size). 0: it does not say.
 */
static uint64_t pitch_unit(struct memory *m, int device)
{
	CUdeviceptr ptr;
	size_t pitch = m->pitch_unit[device];

	if (!pitch && DRIVER(cuMemAllocPitch_v2)(&ptr, &pitch, 1, 1, 4) == CUDA_SUCCESS) {
		m->pitch_unit[device] = pitch;
		DRIVER(cuMemFree_v2)(ptr);
	}
	return pitch;
}

static CUresult on_cuMemAllocPitch_v2(CUdeviceptr *ptr, size_t *pitch, size_t width, size_t height,
				      unsigned int element)
{
	struct memory *m = cudapool_memory(true);
	uint64_t unit, row, bytes;
	CUcontext context;
	int device;
	CUresult r;

	if (!m || !ptr || !pitch || !width || !height || (element != 4 && element != 8 && element != 16) ||
	    !cudapool_memory_current(&context, &device))
		return DRIVER(cuMemAllocPitch_v2)(ptr, pitch, width, height, element);
	if (width < WIDEST && height < WIDEST && ours(m, (width + WIDEST_UNIT) * height, device)) {
		struct region *region;

		r = forbidden();
		if (r != CUDA_SUCCESS)
			return r;
		unit = pitch_unit(m, device);
		row = unit ? (width + unit - 1) / unit * unit : 0;
		r = row && ours(m, row * height, device)
			    ? cudapool_region_make(m, &region, row * height, REGION_ALLOCATION, context, device)
			    : CUDA_ERROR_NOT_SUPPORTED;
		if (r == CUDA_SUCCESS) {
			*ptr = region_start(region);
			*pitch = row;
		}
		if (r == CUDA_SUCCESS || r == CUDA_ERROR_OUT_OF_MEMORY)
			return r;
	}
	DRIVERS_OWN(r, device, width * height, DRIVER(cuMemAllocPitch_v2)(ptr, pitch, width, height, element));
	if (r == CUDA_SUCCESS) {
		bytes = *pitch * height;
		cudapool_left_add(m, *ptr, bytes, left_kind(bytes), context, device);
	}
	return r;
}
WRAPPER(cuMemAllocPitch_v2, (CUdeviceptr *ptr, size_t *pitch, size_t width, size_t height, unsigned int element),
	(ptr, pitch, width, height, element))

static CUresult on_cuMemAllocManaged(CUdeviceptr *ptr, size_t bytes, unsigned int flags)
{
	CUresult r = DRIVER(cuMemAllocManaged)(ptr, bytes, flags);
	struct memory *m = cudapool_memory(true);
	CUcontext context;
	int device;

	if (r == CUDA_SUCCESS && m && cudapool_memory_current(&context, &device))
		cudapool_left_add(m, *ptr, bytes, CUDAPOOL_LEFT_MANAGED, context, device);
	return r;
}
WRAPPER(cuMemAllocManaged, (CUdeviceptr *ptr, size_t bytes, unsigned int flags), (ptr, bytes, flags))

/* Freeing. */

/* What cuMemFree may free at `ptr`: out of the tables, so that nobody else frees it, too. NULL: nothing we know. */
static struct region *take(struct memory *m, CUdeviceptr ptr, uint64_t id)
{
	struct region *region;

	cudapool_lock(&m->lock);
	region = cudapool_region_at(m, ptr);
	if (region && (region_start(region) != ptr || region->id != id))
		region = NULL;
	if (region)
		cudapool_region_remove(m, region);
	cudapool_unlock(&m->lock);
	return region;
}

static void put_back(struct memory *m, struct region *region)
{
	cudapool_lock(&m->lock);
	cudapool_region_enter(m, region);
	cudapool_unlock(&m->lock);
}

static CUresult free_drivers(struct memory *m, CUdeviceptr ptr, uint64_t id)
{
	struct region *region = take(m, ptr, id);
	CUresult r = DRIVER(cuMemFree_v2)(ptr);

	if (region && r != CUDA_SUCCESS) {
		put_back(m, region);
	} else if (region) {
		cudapool_lock(&m->lock);
		cudapool_slab_put(&m->region_slab, region);
		cudapool_unlock(&m->lock);
	}
	return r;
}

CUresult cudapool_memory_free(CUdeviceptr ptr)
{
	struct memory *m = cudapool_memory(false);
	enum region_kind kind = REGION_VIEW;
	struct region *region;
	CUcontext context = NULL;
	uint64_t id = 0;
	CUresult r;

	if (!m || !ptr)
		return DRIVER(cuMemFree_v2)(ptr);
	cudapool_lock(&m->lock);
	region = cudapool_region_at(m, ptr);
	if (region && region_start(region) == ptr) {
		kind = region->kind;
		id = region->id;
		context = region->context;
	}
	cudapool_unlock(&m->lock);
	if (kind == REGION_DRIVERS)
		return free_drivers(m, ptr, id);
	if (kind == REGION_VIEW)
		return DRIVER(cuMemFree_v2)(ptr); /* not from an allocation: the driver says what is wrong */
	r = forbidden();
	if (r == CUDA_SUCCESS)
		r = cudapool_drain_context(context);
	if (r != CUDA_SUCCESS)
		return r;
	region = take(m, ptr, id);
	if (!region)
		return CUDA_ERROR_INVALID_VALUE;
	if (kind != REGION_ORDERED)
		return cudapool_region_unmake(m, region);
	cudapool_ordered_free(m, region);
	return CUDA_SUCCESS;
}

static CUresult on_cuMemFree_v2(CUdeviceptr ptr)
{
	return cudapool_memory_free(ptr);
}
WRAPPER(cuMemFree_v2, (CUdeviceptr ptr), (ptr))

/* The ends of contexts. */

void cudapool_context_ending(struct cudapool_ending *ending, CUcontext context)
{
	struct memory *m = cudapool_memory(false);

	ending->context = context;
	ending->noted = cudapool_context_times_noted(context);
	if (!m || !context)
		return;
	cudapool_lock(&m->lock);
	ending->last = m->next_id;
	cudapool_unlock(&m->lock);
	cudapool_pools_context_ending(m, context);
}

/* A primary context has one handle for ever, which is to be had by retaining it. */
void cudapool_primary_ending(struct cudapool_ending *ending, CUdevice device)
{
	CUcontext context;
	unsigned int flags;
	int active;

	ending->context = NULL;
	ending->noted = 0;
	if (DRIVER(cuDevicePrimaryCtxGetState)(device, &flags, &active) != CUDA_SUCCESS || !active ||
	    DRIVER(cuDevicePrimaryCtxRetain)(&context, device) != CUDA_SUCCESS)
		return;
	DRIVER(cuDevicePrimaryCtxRelease_v2)(device);
	cudapool_context_ending(ending, context);
}

void cudapool_context_ended(const struct cudapool_ending *ending)
{
	struct memory *m = cudapool_memory(false);
	struct region *region;
	CUdeviceptr at = 0;
	int i;

	cudapool_context_gone(ending->context, ending->noted);
	if (!m || !ending->context)
		return;
	cudapool_lock(&m->lock);
	while ((region = cudapool_region_after(m, at))) {
		at = region_start(region);
		if (region->context != ending->context || region->id > ending->last)
			continue;
		cudapool_region_remove(m, region);
		if (region->kind != REGION_DRIVERS) {
			cudapool_unlock(&m->lock);
			cudapool_region_unmake(m, region);
			cudapool_lock(&m->lock);
		} else {
			cudapool_slab_put(&m->region_slab, region);
		}
	}
	for (i = 0; i < MEMORY_DEVICES; i++)
		if (m->context[i] == ending->context)
			m->context[i] = NULL;
	cudapool_arrays_gone(m, ending);
	cudapool_peers_gone(m, ending);
	cudapool_unlock(&m->lock);
}

#define DESTROYER(name)                                                                                                \
	static CUresult on_##name(CUcontext context)                                                                   \
	{                                                                                                              \
		struct cudapool_ending ending;                                                                         \
		CUresult r;                                                                                            \
                                                                                                                       \
		cudapool_context_ending(&ending, context);                                                             \
		r = DRIVER(name)(context);                                                                             \
		if (r == CUDA_SUCCESS)                                                                                 \
			cudapool_context_ended(&ending);                                                               \
		return r;                                                                                              \
	}                                                                                                              \
	WRAPPER(name, (CUcontext context), (context))
DESTROYER(cuCtxDestroy)
DESTROYER(cuCtxDestroy_v2)

/* Ends with the last of its attachments, which only the driver counts. */
static CUresult on_cuCtxDetach(CUcontext context)
{
	struct cudapool_ending ending;
	unsigned int version;
	CUresult r;

	cudapool_context_ending(&ending, context);
	r = DRIVER(cuCtxDetach)(context);
	if (r == CUDA_SUCCESS && DRIVER(cuCtxGetApiVersion)(context, &version) != CUDA_SUCCESS)
		cudapool_context_ended(&ending);
	return r;
}
WRAPPER(cuCtxDetach, (CUcontext context), (context))
