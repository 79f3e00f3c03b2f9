// SPDX-License-Identifier: MIT
/* The application's own virtual memory management: its handles stand for pieces, its mappings are known. */
#include "pieces.h"

/*
 * Memory that the application makes with cuMemCreate gets a handle type with which it can be exported, and a handle
 * of ours, because the driver's changes with every park. What can not be parked (another handle type, compressed,
 * imported, multicast, on the host) keeps the driver's handle, which is a pointer, and so never looks like ours.
 *
 * A mapping is always of a whole handle from its start on, as the driver wants it (part of one: 801, probes/memory.c), and
 * access and unmapping are of whole mappings. Ours may be several of the driver's, which must not show.
 */
#define HANDLE_MARK	 (0x4350ull << 48)
#define HANDLE_MARK_BITS (0xffffull << 48)

typedef CUmemGenericAllocationHandle handle_t;

/* Of functions that our <cuda.h> lacks; by their wrappers' types. */
#define REAL(name) ((__typeof__(&cudapool_wrap_##name))cudapool_driver_function(cudapool_fn_##name))

static bool is_ours(handle_t handle)
{
	return (handle & HANDLE_MARK_BITS) == HANDLE_MARK;
}

/* With the lock held. NULL: not ours, or released as often as it was got. */
static struct block *block_of(struct memory *m, handle_t handle)
{
	struct block *block = m ? (struct block *)cudapool_tree_at_most(m->handles, handle) : NULL;

	return block && block->node.key == handle && block->handles ? block : NULL;
}

/* With the lock held: true if nothing refers to it any more; it is out of the tables, to be freed without the lock. */
static bool unused(struct memory *m, struct block *block)
{
	if (block->handles || block->regions || block->users)
		return false;
	cudapool_tree_remove(&m->handles, &block->node);
	return true;
}

/* A block that must not go away while the driver works on it; put it back. NULL: not one of ours. */
static struct block *get(struct memory *m, handle_t handle)
{
	struct block *block;

	if (!m)
		return NULL;
	cudapool_lock(&m->lock);
	block = block_of(m, handle);
	if (block)
		block->users++;
	cudapool_unlock(&m->lock);
	return block;
}

static void put(struct memory *m, struct block *block)
{
	bool free;

	cudapool_lock(&m->lock);
	block->users--;
	free = unused(m, block);
	cudapool_unlock(&m->lock);
	if (free)
		cudapool_block_free(m, block);
}

static bool can_be_ours(struct memory *m, const handle_t *handle, size_t size, const CUmemAllocationProp *prop,
			unsigned long long flags)
{
	return m && handle && prop && !flags && size && size % MEMORY_GRANULE == 0 &&
	       size >= (uint64_t)cudapool_options.park_min_kb << 10 && prop->type == CU_MEM_ALLOCATION_TYPE_PINNED &&
	       prop->location.type == CU_MEM_LOCATION_TYPE_DEVICE &&
	       !(prop->requestedHandleTypes & ~CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR) &&
	       !prop->allocFlags.compressionType && !prop->allocFlags.usage &&
	       cudapool_device_usable(m, prop->location.id);
}

static CUresult on_cuMemCreate(handle_t *handle, size_t size, const CUmemAllocationProp *prop, unsigned long long flags)
{
	struct memory *m = cudapool_memory(true);
	struct block *block;
	CUresult r;

	if (can_be_ours(m, handle, size, prop, flags)) {
		/* What may be exported is one piece: there is one descriptor for it. */
		r = cudapool_block_make(m, &block, size, prop->requestedHandleTypes ? size : CUDAPOOL_PIECE_MAX,
					prop->location.id, prop->allocFlags.gpuDirectRDMACapable);
		if (r == CUDA_SUCCESS) {
			cudapool_lock(&m->lock);
			block->prop = *prop;
			block->handles = 1;
			block->node.key = HANDLE_MARK | ++m->next_handle;
			cudapool_tree_insert(&m->handles, &block->node);
			*handle = block->node.key;
			cudapool_unlock(&m->lock);
		}
		if (r == CUDA_SUCCESS || r == CUDA_ERROR_OUT_OF_MEMORY)
			return r;
	}
	r = DRIVER(cuMemCreate)(handle, size, prop, flags);
	if (r == CUDA_ERROR_OUT_OF_MEMORY && prop->location.type == CU_MEM_LOCATION_TYPE_DEVICE &&
	    cudapool_memory_want(prop->location.id, size))
		r = DRIVER(cuMemCreate)(handle, size, prop, flags);
	return r;
}
WRAPPER(cuMemCreate, (handle_t *handle, size_t size, const CUmemAllocationProp *prop, unsigned long long flags),
	(handle, size, prop, flags))

static CUresult release_drivers(handle_t handle)
{
	CUresult r = DRIVER(cuMemRelease)(handle);

	if (r == CUDA_SUCCESS)
		cudapool_import_released(handle);
	return r;
}

static CUresult on_cuMemRelease(handle_t handle)
{
	struct memory *m = cudapool_memory(false);
	struct block *block;
	bool free = false;

	if (!is_ours(handle))
		return release_drivers(handle);
	if (!m)
		return CUDA_ERROR_INVALID_VALUE;
	cudapool_lock(&m->lock);
	block = block_of(m, handle);
	if (block) {
		block->handles--;
		free = unused(m, block);
	}
	cudapool_unlock(&m->lock);
	if (free)
		cudapool_block_free(m, block);
	return block ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}
WRAPPER(cuMemRelease, (handle_t handle), (handle))

/*
 * Another process's memory was mapped, or not: `mapped`. Unlike what is only counted it must be known, or the process
 * would be taken for one that has it for ever.
 */
static CUresult note_import(struct memory *m, CUdeviceptr ptr, size_t size, struct import *import, CUresult mapped)
{
	CUmemAllocationProp prop = {.location.id = 0};
	struct region *region = NULL;

	if (mapped == CUDA_SUCCESS)
		DRIVER(cuMemGetAllocationPropertiesFromHandle)(&prop, import->node.key);
	cudapool_lock(&m->lock);
	if (mapped == CUDA_SUCCESS)
		region = cudapool_region_new(m, ptr, size, REGION_DRIVERS);
	if (region) {
		region->left = CUDAPOOL_LEFT_SHARED;
		region->device = prop.location.id;
		region->import = import;
		cudapool_region_enter(m, region);
	} else {
		cudapool_import_unmapped(m, import);
	}
	cudapool_unlock(&m->lock);
	if (region || mapped != CUDA_SUCCESS)
		return mapped;
	DRIVER(cuMemUnmap)(ptr, size);
	return CUDA_ERROR_OUT_OF_MEMORY;
}

/* A mapping of the driver's own handle: only counted. */
static CUresult map_drivers(CUdeviceptr ptr, size_t size, size_t offset, handle_t handle, unsigned long long flags)
{
	struct memory *m = cudapool_memory(true);
	struct import *import = NULL;
	CUmemAllocationProp prop;
	CUresult r;

	if (m) {
		cudapool_lock(&m->lock);
		import = cudapool_import_mapping(m, handle, size);
		cudapool_unlock(&m->lock);
	}
	r = DRIVER(cuMemMap)(ptr, size, offset, handle, flags);
	if (import)
		return note_import(m, ptr, size, import, r);
	if (r == CUDA_SUCCESS && m && DRIVER(cuMemGetAllocationPropertiesFromHandle)(&prop, handle) == CUDA_SUCCESS &&
	    prop.location.type == CU_MEM_LOCATION_TYPE_DEVICE)
		cudapool_left_add(m, ptr, size,
				  prop.requestedHandleTypes ? CUDAPOOL_LEFT_SHARED : CUDAPOOL_LEFT_REFUSED, NULL,
				  prop.location.id);
	return r;
}

static CUresult map_block(struct memory *m, CUdeviceptr ptr, size_t size, size_t offset, struct block *block)
{
	struct region *region;
	CUresult r;

	if (offset || size != block->bytes)
		return CUDA_ERROR_NOT_SUPPORTED;
	r = cudapool_block_map(block, ptr);
	if (r != CUDA_SUCCESS)
		return r;
	cudapool_lock(&m->lock);
	region = cudapool_region_new(m, ptr, size, REGION_VIEW);
	if (region) {
		region->block = block;
		region->device = block->device;
		cudapool_region_enter(m, region);
	}
	cudapool_unlock(&m->lock);
	if (region)
		return CUDA_SUCCESS;
	DRIVER(cuMemUnmap)(ptr, size);
	return CUDA_ERROR_OUT_OF_MEMORY;
}

static CUresult on_cuMemMap(CUdeviceptr ptr, size_t size, size_t offset, handle_t handle, unsigned long long flags)
{
	struct memory *m = cudapool_memory(false);
	struct block *block;
	CUresult r;

	if (!is_ours(handle))
		return map_drivers(ptr, size, offset, handle, flags);
	block = get(m, handle);
	if (!block)
		return CUDA_ERROR_INVALID_VALUE;
	r = flags ? CUDA_ERROR_INVALID_VALUE : map_block(m, ptr, size, offset, block);
	put(m, block);
	return r;
}
WRAPPER(cuMemMap, (CUdeviceptr ptr, size_t size, size_t offset, handle_t handle, unsigned long long flags),
	(ptr, size, offset, handle, flags))

/* The first mapping or allocation that reaches into [ptr, ptr + size). With the lock held. */
static struct region *first_in(struct memory *m, CUdeviceptr ptr, size_t size)
{
	struct region *region = cudapool_region_before(m, ptr);

	if (region && ptr - region_start(region) < region->span)
		return region;
	region = cudapool_region_after(m, ptr);
	return region && region_start(region) - ptr < size ? region : NULL;
}

static struct region *next_in(struct memory *m, const struct region *region, CUdeviceptr ptr, size_t size)
{
	struct region *next = cudapool_region_after(m, region_start(region));

	return next && region_start(next) - ptr < size ? next : NULL;
}

/* Are these addresses a matter of mappings, each of which lies within them as a whole? With the lock held. */
static bool whole(struct memory *m, CUdeviceptr ptr, size_t size)
{
	struct region *region;

	for (region = first_in(m, ptr, size); region; region = next_in(m, region, ptr, size)) {
		if (region->kind != REGION_VIEW && region->kind != REGION_DRIVERS)
			return false;
		if (region_start(region) < ptr || region_start(region) - ptr + region->span > size)
			return false;
	}
	return true;
}

static CUresult on_cuMemUnmap(CUdeviceptr ptr, size_t size)
{
	struct memory *m = cudapool_memory(false);
	struct region *list = NULL, *region;
	CUresult r;

	if (!m)
		return DRIVER(cuMemUnmap)(ptr, size);
	cudapool_lock(&m->lock);
	if (!whole(m, ptr, size)) {
		cudapool_unlock(&m->lock);
		return CUDA_ERROR_INVALID_VALUE;
	}
	/* Out of the tables first: as soon as it is unmapped another thread may map something there. */
	while ((region = first_in(m, ptr, size))) {
		cudapool_region_remove(m, region);
		if (region->block)
			region->block->users++;
		region->next = list;
		list = region;
	}
	cudapool_unlock(&m->lock);
	r = DRIVER(cuMemUnmap)(ptr, size);
	while ((region = list)) {
		struct block *block = region->block;

		list = region->next;
		cudapool_lock(&m->lock);
		if (r == CUDA_SUCCESS && region->import)
			cudapool_import_unmapped(m, region->import);
		if (r == CUDA_SUCCESS)
			cudapool_slab_put(&m->region_slab, region);
		else
			cudapool_region_enter(m, region);
		cudapool_unlock(&m->lock);
		if (block)
			put(m, block);
	}
	return r;
}
WRAPPER(cuMemUnmap, (CUdeviceptr ptr, size_t size), (ptr, size))

/* What the driver granted; access by something else than a device is beyond what can be brought back. */
static void granted(struct memory *m, struct region *region, const CUmemAccessDesc *access, size_t count)
{
	size_t i;

	for (i = 0; i < count; i++) {
		uint32_t bit;

		if (access[i].location.type != CU_MEM_LOCATION_TYPE_DEVICE || access[i].location.id >= MEMORY_DEVICES) {
			cudapool_block_share(m, region->block);
			continue;
		}
		bit = 1u << access[i].location.id;
		region->readable &= ~bit;
		region->writable &= ~bit;
		if (access[i].flags != CU_MEM_ACCESS_FLAGS_PROT_NONE)
			region->readable |= bit;
		if (access[i].flags == CU_MEM_ACCESS_FLAGS_PROT_READWRITE)
			region->writable |= bit;
	}
}

static CUresult on_cuMemSetAccess(CUdeviceptr ptr, size_t size, const CUmemAccessDesc *access, size_t count)
{
	struct memory *m = cudapool_memory(false);
	struct region *region;
	CUresult r;
	bool fits;

	if (!m)
		return DRIVER(cuMemSetAccess)(ptr, size, access, count);
	cudapool_lock(&m->lock);
	fits = whole(m, ptr, size);
	cudapool_unlock(&m->lock);
	r = fits ? DRIVER(cuMemSetAccess)(ptr, size, access, count) : CUDA_ERROR_INVALID_VALUE;
	if (r != CUDA_SUCCESS)
		return r;
	cudapool_lock(&m->lock);
	for (region = first_in(m, ptr, size); region; region = next_in(m, region, ptr, size))
		if (region->kind == REGION_VIEW)
			granted(m, region, access, count);
	cudapool_unlock(&m->lock);
	return r;
}
WRAPPER(cuMemSetAccess, (CUdeviceptr ptr, size_t size, const CUmemAccessDesc *access, size_t count),
	(ptr, size, access, count))

/* An allocation is no mapping: the driver says that nobody was given access by name (probes/memory.c). */
static CUresult on_cuMemGetAccess(unsigned long long *flags, const CUmemLocation *location, CUdeviceptr ptr)
{
	CUresult r = DRIVER(cuMemGetAccess)(flags, location, ptr);
	struct memory *m = cudapool_memory(false);
	struct region *region;

	if (r != CUDA_SUCCESS || !m)
		return r;
	cudapool_lock(&m->lock);
	region = cudapool_region_at(m, ptr);
	if (region && (region->kind == REGION_ALLOCATION || region->kind == REGION_ORDERED))
		*flags = CU_MEM_ACCESS_FLAGS_PROT_NONE;
	cudapool_unlock(&m->lock);
	return r;
}
WRAPPER(cuMemGetAccess, (unsigned long long *flags, const CUmemLocation *location, CUdeviceptr ptr),
	(flags, location, ptr))

static CUresult on_cuMemRetainAllocationHandle(handle_t *handle, void *address)
{
	struct memory *m = cudapool_memory(false);
	struct import *import = NULL;
	struct region *region;
	CUresult r = CUDA_ERROR_INVALID_VALUE;
	bool drivers = true;

	if (m && handle) {
		cudapool_lock(&m->lock);
		region = cudapool_region_at(m, (uintptr_t)address);
		drivers = !region || !region->block;
		import = region ? region->import : NULL;
		if (import)
			cudapool_import_reopened(import);
		if (!drivers && region->kind == REGION_VIEW) {
			region->block->handles++;
			*handle = region->block->node.key;
			r = CUDA_SUCCESS;
		}
		cudapool_unlock(&m->lock);
	}
	if (drivers)
		r = DRIVER(cuMemRetainAllocationHandle)(handle, address);
	if (import && r != CUDA_SUCCESS)
		cudapool_import_released(import->node.key);
	return r;
}
WRAPPER(cuMemRetainAllocationHandle, (handle_t *handle, void *address), (handle, address))

static CUresult on_cuMemGetAllocationPropertiesFromHandle(CUmemAllocationProp *prop, handle_t handle)
{
	struct memory *m = cudapool_memory(false);
	struct block *block;
	CUresult r;

	if (!is_ours(handle))
		return DRIVER(cuMemGetAllocationPropertiesFromHandle)(prop, handle);
	block = get(m, handle);
	if (!block)
		return CUDA_ERROR_INVALID_VALUE;
	r = DRIVER(cuMemGetAllocationPropertiesFromHandle)(prop, block->pieces->handle);
	if (r == CUDA_SUCCESS)
		prop->requestedHandleTypes = block->prop.requestedHandleTypes;
	put(m, block);
	return r;
}
WRAPPER(cuMemGetAllocationPropertiesFromHandle, (CUmemAllocationProp *prop, handle_t handle), (prop, handle))

/* What others have is left to the driver from here on: a copy that is parked would not be what they see. */
static CUresult on_cuMemExportToShareableHandle(void *shareable, handle_t handle, CUmemAllocationHandleType type,
						unsigned long long flags)
{
	struct memory *m = cudapool_memory(false);
	struct block *block;
	CUresult r = CUDA_ERROR_INVALID_VALUE;

	if (!is_ours(handle))
		return DRIVER(cuMemExportToShareableHandle)(shareable, handle, type, flags);
	block = get(m, handle);
	if (!block)
		return r;
	if (type & block->prop.requestedHandleTypes)
		r = DRIVER(cuMemExportToShareableHandle)(shareable, block->pieces->handle, type, flags);
	if (r == CUDA_SUCCESS) {
		cudapool_lock(&m->lock);
		cudapool_block_share(m, block);
		cudapool_unlock(&m->lock);
	}
	put(m, block);
	return r;
}
WRAPPER(cuMemExportToShareableHandle,
	(void *shareable, handle_t handle, CUmemAllocationHandleType type, unsigned long long flags),
	(shareable, handle, type, flags))

/* If the driver gave them to others (`given`), all that is mapped in these addresses is shared from here on. */
static CUresult share_range(CUresult given, CUdeviceptr ptr, size_t size)
{
	struct memory *m = cudapool_memory(false);
	struct region *region;

	if (given != CUDA_SUCCESS || !m)
		return given;
	cudapool_lock(&m->lock);
	for (region = first_in(m, ptr, size); region; region = next_in(m, region, ptr, size))
		if (region->block)
			cudapool_block_share(m, region->block);
	cudapool_unlock(&m->lock);
	return given;
}

/* A descriptor for other devices on the bus: they know physical addresses. */
static CUresult on_cuMemGetHandleForAddressRange(void *handle, CUdeviceptr ptr, size_t size, int type,
						 unsigned long long flags);
WRAPPER(cuMemGetHandleForAddressRange, (void *handle, CUdeviceptr ptr, size_t size, int type, unsigned long long flags),
	(handle, ptr, size, type, flags))

static CUresult on_cuMemGetHandleForAddressRange(void *handle, CUdeviceptr ptr, size_t size, int type,
						 unsigned long long flags)
{
	return share_range(REAL(cuMemGetHandleForAddressRange)(handle, ptr, size, type, flags), ptr, size);
}

/* Multicast objects are the driver's; memory that is bound to one stays with it. */
static CUresult bind_mem(const CUdevice *device, handle_t object, size_t at, handle_t memory, size_t offset,
			 size_t size, unsigned long long flags);
#define on_cuMulticastBindMem(...) bind_mem(NULL, __VA_ARGS__)
WRAPPER(cuMulticastBindMem,
	(handle_t object, size_t at, handle_t memory, size_t offset, size_t size, unsigned long long flags),
	(object, at, memory, offset, size, flags))
#define on_cuMulticastBindMem_v2(object, device, ...) bind_mem(&device, object, __VA_ARGS__)
WRAPPER(cuMulticastBindMem_v2,
	(handle_t object, CUdevice device, size_t at, handle_t memory, size_t offset, size_t size,
	 unsigned long long flags),
	(object, device, at, memory, offset, size, flags))

/* device: NULL for the first version, which has none. */
static CUresult bind_drivers(const CUdevice *device, handle_t object, size_t at, handle_t memory, size_t offset,
			     size_t size, unsigned long long flags)
{
	return device ? REAL(cuMulticastBindMem_v2)(object, *device, at, memory, offset, size, flags)
		      : REAL(cuMulticastBindMem)(object, at, memory, offset, size, flags);
}

static CUresult bind_mem(const CUdevice *device, handle_t object, size_t at, handle_t memory, size_t offset,
			 size_t size, unsigned long long flags)
{
	struct memory *m = cudapool_memory(false);
	CUresult r = CUDA_SUCCESS;
	struct block *block;
	struct piece *piece;

	if (!is_ours(memory))
		return bind_drivers(device, object, at, memory, offset, size, flags);
	block = get(m, memory);
	if (!block)
		return CUDA_ERROR_INVALID_VALUE;
	if (!size || offset > block->bytes || size > block->bytes - offset)
		r = CUDA_ERROR_INVALID_VALUE;
	for (piece = block->pieces; piece && r == CUDA_SUCCESS; piece = piece->next) {
		uint64_t from = offset > piece->offset ? offset - piece->offset : 0;
		uint64_t to = offset + size - piece->offset;

		if (from >= piece->bytes || offset + size <= piece->offset)
			continue;
		if (to > piece->bytes)
			to = piece->bytes;
		r = bind_drivers(device, object, at + piece->offset + from - offset, piece->handle, from, to - from,
				 flags);
	}
	cudapool_lock(&m->lock);
	if (r == CUDA_SUCCESS)
		cudapool_block_share(m, block);
	cudapool_unlock(&m->lock);
	put(m, block);
	return r;
}

static CUresult on_cuMulticastBindAddr(handle_t object, size_t at, CUdeviceptr ptr, size_t size,
				       unsigned long long flags);
WRAPPER(cuMulticastBindAddr, (handle_t object, size_t at, CUdeviceptr ptr, size_t size, unsigned long long flags),
	(object, at, ptr, size, flags))

static CUresult on_cuMulticastBindAddr(handle_t object, size_t at, CUdeviceptr ptr, size_t size,
				       unsigned long long flags)
{
	return share_range(REAL(cuMulticastBindAddr)(object, at, ptr, size, flags), ptr, size);
}

static CUresult on_cuMulticastBindAddr_v2(handle_t object, CUdevice device, size_t at, CUdeviceptr ptr, size_t size,
					  unsigned long long flags);
WRAPPER(cuMulticastBindAddr_v2,
	(handle_t object, CUdevice device, size_t at, CUdeviceptr ptr, size_t size, unsigned long long flags),
	(object, device, at, ptr, size, flags))

static CUresult on_cuMulticastBindAddr_v2(handle_t object, CUdevice device, size_t at, CUdeviceptr ptr, size_t size,
					  unsigned long long flags)
{
	return share_range(REAL(cuMulticastBindAddr_v2)(object, device, at, ptr, size, flags), ptr, size);
}
