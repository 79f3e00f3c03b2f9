// SPDX-License-Identifier: MIT
/* What the shim knows of device memory: pieces, blocks and regions, how they come about, and how much there is. */
#include <stdio.h>
#include <string.h>

#include "heap.h"
#include "pieces.h"

#define PIECES_ROOM 4096 /* that the list of pieces begins with */

struct memory *cudapool_memory(bool make)
{
	struct memory *m = __atomic_load_n(&cudapool_state.memory, __ATOMIC_ACQUIRE), *other = NULL;

	if (m || !make || !cudapool_state.page || !cudapool_options.park)
		return m;
	m = cudapool_pages_get(sizeof(*m));
	if (!m)
		return NULL;
	m->region_slab.size = sizeof(struct region);
	m->block_slab.size = sizeof(struct block);
	m->piece_slab.size = sizeof(struct piece);
	m->array_slab.size = sizeof(struct array);
	m->import_slab.size = sizeof(struct import);
	m->next_id = ID_BASE;
	m->peer_slab.size = sizeof(struct peer);
	m->pool_slab.size = sizeof(struct pool);
	m->chunk_slab.size = sizeof(struct chunk);
	m->gap_slab.size = sizeof(struct gap);
	m->stamp_slab.size = sizeof(struct stamp);
	/* Two threads at once: the second one's pages, a few, stay unused. */
	return __atomic_compare_exchange_n(&cudapool_state.memory, &other, m, false, __ATOMIC_ACQ_REL,
					   __ATOMIC_ACQUIRE)
		       ? m
		       : other;
}

/* Can memory of this device be exported, and what else do the driver's own allocations on it have? Asked once. */
bool cudapool_device_usable(struct memory *m, int device)
{
	static const CUdevice_attribute needed[] = {CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED,
						    CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED};
	int value, rdma = 0;
	bool usable = true;
	size_t i;

	if (device < 0 || device >= MEMORY_DEVICES)
		return false;
	if (__atomic_load_n(&m->asked[device], __ATOMIC_ACQUIRE))
		return m->usable[device];
	for (i = 0; i < sizeof(needed) / sizeof(needed[0]); i++)
		usable &= DRIVER(cuDeviceGetAttribute)(&value, needed[i], device) == CUDA_SUCCESS && value;
	usable &= DRIVER(cuMemAddressReserve) && DRIVER(cuMemCreate) && DRIVER(cuMemMap) && DRIVER(cuMemSetAccess) &&
		  DRIVER(cuMemUnmap) && DRIVER(cuMemRelease) && DRIVER(cuMemAddressFree) &&
		  DRIVER(cuMemExportToShareableHandle) && DRIVER(cuMemImportFromShareableHandle);
	if (DRIVER(cuDeviceGetAttribute)(&rdma, CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_WITH_CUDA_VMM_SUPPORTED, device))
		rdma = 0;
	if (!DRIVER(cuDeviceTotalMem_v2) || DRIVER(cuDeviceTotalMem_v2)(&m->total[device], device) != CUDA_SUCCESS)
		m->total[device] = SIZE_MAX;
	m->rdma[device] = rdma;
	m->usable[device] = usable;
	__atomic_store_n(&m->asked[device], true, __ATOMIC_RELEASE);
	return usable;
}

/* The list of pieces, which park has to itself. With the lock held. False: no memory. */
static bool room_for(struct memory *m, uint32_t pieces)
{
	uint32_t room = m->piece_room ? m->piece_room : PIECES_ROOM;
	struct piece **list;

	if (m->piece_count + pieces <= m->piece_room)
		return true;
	while (room < m->piece_count + pieces)
		room *= 2;
	list = cudapool_pages_get(room * sizeof(*list));
	if (!list)
		return false;
	if (m->piece_count)
		memcpy(list, m->pieces, m->piece_count * sizeof(*list));
	cudapool_pages_put(m->pieces, m->piece_room * sizeof(*list));
	m->pieces = list;
	m->piece_room = room;
	return true;
}

static void list_add(struct memory *m, struct piece *piece)
{
	piece->index = m->piece_count;
	m->pieces[m->piece_count++] = piece;
	m->parked_bytes += piece->bytes;
}

static void list_remove(struct memory *m, struct piece *piece)
{
	struct piece *last = m->pieces[--m->piece_count];

	m->pieces[piece->index] = last;
	last->index = piece->index;
	m->parked_bytes -= piece->bytes;
}

void cudapool_piece_imported(struct memory *m, struct piece *piece, bool imported)
{
	if (piece->imported == imported)
		return;
	piece->imported = imported;
	m->imported_bytes += imported ? piece->bytes : -piece->bytes;
	__atomic_store_n(&cudapool_state.page->imported_bytes, m->imported_bytes, __ATOMIC_RELAXED);
}

/*
 * A block with its pieces, none of which has memory yet. They are in the list all the same: their places in it are
 * taken from now on, and nobody looks at it while a call is under way.
 */
static struct block *block_new(struct memory *m, uint64_t bytes, uint64_t most, int device)
{
	uint64_t offset, count = (bytes + most - 1) / most;
	struct piece **link, *piece;
	struct block *block;

	if (count > CUDAPOOL_CHANNEL_MOST)
		return NULL;
	cudapool_lock(&m->lock);
	block = cudapool_slab_get(&m->block_slab);
	if (!block || !room_for(m, count))
		goto fail;
	block->bytes = bytes;
	block->device = device;
	for (offset = 0, link = &block->pieces; offset < bytes; offset += most, link = &(*link)->next) {
		*link = cudapool_slab_get(&m->piece_slab);
		if (!*link)
			goto fail;
		(*link)->block = block;
		(*link)->offset = offset;
		(*link)->bytes = bytes - offset < most ? bytes - offset : most;
	}
	for (piece = block->pieces; piece; piece = piece->next)
		list_add(m, piece);
	block->parked = true;
	cudapool_unlock(&m->lock);
	return block;
fail:
	while (block && block->pieces) {
		piece = block->pieces;
		block->pieces = piece->next;
		cudapool_slab_put(&m->piece_slab, piece);
	}
	if (block)
		cudapool_slab_put(&m->block_slab, block);
	cudapool_unlock(&m->lock);
	return NULL;
}

void cudapool_block_free(struct memory *m, struct block *block)
{
	struct piece *piece, *next;

	cudapool_lock(&m->lock);
	for (piece = block->pieces; piece; piece = piece->next) {
		if (block->parked)
			list_remove(m, piece);
		cudapool_piece_imported(m, piece, false);
	}
	if (block->shared)
		*left_of(m, CUDAPOOL_LEFT_SHARED, block->device) -= block->bytes;
	cudapool_unlock(&m->lock);
	/* What is the pool's now is not ours to release. */
	for (piece = block->pieces; piece; piece = piece->next)
		if (piece->present)
			DRIVER(cuMemRelease)(piece->handle);
	cudapool_lock(&m->lock);
	for (piece = block->pieces; piece; piece = next) {
		next = piece->next;
		cudapool_slab_put(&m->piece_slab, piece);
	}
	cudapool_slab_put(&m->block_slab, block);
	cudapool_unlock(&m->lock);
}

CUresult cudapool_piece_make(struct piece *piece, bool rdma)
{
	CUmemAllocationProp prop = {.type = CU_MEM_ALLOCATION_TYPE_PINNED,
				    .requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR,
				    .location = {CU_MEM_LOCATION_TYPE_DEVICE, piece->block->device},
				    .allocFlags = {.gpuDirectRDMACapable = rdma}};
	CUresult r = DRIVER(cuMemCreate)(&piece->handle, piece->bytes, &prop, 0);

	if (r == CUDA_SUCCESS)
		piece->present = true;
	return r;
}

static CUresult pieces_make(struct block *block)
{
	CUresult r = CUDA_SUCCESS;
	struct piece *piece;

	for (piece = block->pieces; piece && r == CUDA_SUCCESS; piece = piece->next)
		if (!piece->present)
			r = cudapool_piece_make(piece, block->rdma);
	return r;
}

CUresult cudapool_block_make(struct memory *m, struct block **out, uint64_t bytes, uint64_t most, int device, bool rdma)
{
	struct block *block;
	struct piece *piece;
	uint64_t missing = 0;
	CUresult r;

	/* Nobody is to lose memory, for a moment or for good, for what can never be. */
	if (bytes > m->total[device])
		return CUDA_ERROR_OUT_OF_MEMORY;
	block = block_new(m, bytes, most, device);
	if (!block)
		return CUDA_ERROR_NOT_SUPPORTED; /* no memory for our tables: the driver has its own */
	block->rdma = rdma;
	r = pieces_make(block);
	if (r == CUDA_ERROR_OUT_OF_MEMORY) {
		for (piece = block->pieces; piece; piece = piece->next)
			missing += piece->present ? 0 : piece->bytes;
		if (cudapool_memory_want(device, missing))
			r = pieces_make(block);
	}
	if (r != CUDA_SUCCESS) {
		cudapool_block_free(m, block);
		return r;
	}
	cudapool_lock(&m->lock);
	block->id = ++m->next_id;
	cudapool_unlock(&m->lock);
	*out = block;
	return CUDA_SUCCESS;
}

void cudapool_block_share(struct memory *m, struct block *block)
{
	struct piece *piece;

	if (!block->parked)
		return;
	for (piece = block->pieces; piece; piece = piece->next)
		list_remove(m, piece);
	block->parked = false;
	block->shared = true;
	*left_of(m, CUDAPOOL_LEFT_SHARED, block->device) += block->bytes;
}

CUresult cudapool_block_map(const struct block *block, CUdeviceptr address)
{
	CUresult r = CUDA_SUCCESS;
	struct piece *piece;

	for (piece = block->pieces; piece; piece = piece->next) {
		r = DRIVER(cuMemMap)(address + piece->offset, piece->bytes, 0, piece->handle, 0);
		if (r != CUDA_SUCCESS)
			break;
	}
	if (r != CUDA_SUCCESS && piece->offset)
		DRIVER(cuMemUnmap)(address, piece->offset);
	return r;
}

CUresult cudapool_access_set(CUdeviceptr address, uint64_t bytes, uint32_t readable, uint32_t writable, uint32_t none)
{
	CUmemAccessDesc access[MEMORY_DEVICES];
	size_t count = 0;
	int device;

	for (device = 0; device < MEMORY_DEVICES; device++) {
		uint32_t bit = 1u << device;

		if (!((readable | writable | none) & bit))
			continue;
		access[count].location.type = CU_MEM_LOCATION_TYPE_DEVICE;
		access[count].location.id = device;
		access[count++].flags = writable & bit	 ? CU_MEM_ACCESS_FLAGS_PROT_READWRITE
					: readable & bit ? CU_MEM_ACCESS_FLAGS_PROT_READ
							 : CU_MEM_ACCESS_FLAGS_PROT_NONE;
	}
	return count ? DRIVER(cuMemSetAccess)(address, bytes, access, count) : CUDA_SUCCESS;
}

/* Regions. */

struct region *cudapool_region_new(struct memory *m, CUdeviceptr start, uint64_t bytes, enum region_kind kind)
{
	struct region *region = cudapool_slab_get(&m->region_slab);

	if (!region)
		return NULL;
	region->node.key = start;
	region->bytes = region->span = bytes;
	region->kind = kind;
	region->id = ++m->next_id;
	return region;
}

static struct node **tree_of(struct memory *m, const struct region *region)
{
	return region->kind == REGION_CHUNK ? &m->chunks : &m->regions;
}

void cudapool_region_enter(struct memory *m, struct region *region)
{
	cudapool_tree_insert(tree_of(m, region), &region->node);
	if (region->kind == REGION_DRIVERS) {
		*left_of(m, region->left, region->device) += region->bytes;
	} else if (region->kind != REGION_ORDERED) {
		region->next = region->block->regions;
		region->block->regions = region;
	}
}

void cudapool_region_remove(struct memory *m, struct region *region)
{
	struct region **link;

	cudapool_tree_remove(tree_of(m, region), &region->node);
	if (region->kind == REGION_DRIVERS)
		*left_of(m, region->left, region->device) -= region->bytes;
	if (region->kind == REGION_DRIVERS || region->kind == REGION_ORDERED)
		return;
	for (link = &region->block->regions; *link != region; link = &(*link)->next)
		;
	*link = region->next;
}

struct region *cudapool_region_before(struct memory *m, CUdeviceptr address)
{
	return (struct region *)cudapool_tree_at_most(m->regions, address);
}

struct region *cudapool_region_at(struct memory *m, CUdeviceptr address)
{
	struct region *region = cudapool_region_before(m, address);

	return region && address - region_start(region) < region->bytes ? region : NULL;
}

struct region *cudapool_region_after(struct memory *m, CUdeviceptr address)
{
	return (struct region *)cudapool_tree_more(m->regions, address);
}

void cudapool_left_add(struct memory *m, CUdeviceptr start, uint64_t bytes, enum cudapool_left left, CUcontext context,
		       int device)
{
	struct region *region;

	cudapool_lock(&m->lock);
	region = cudapool_region_new(m, start, bytes, REGION_DRIVERS);
	if (region) {
		region->left = left;
		region->context = context;
		region->device = device;
		cudapool_region_enter(m, region);
	}
	cudapool_unlock(&m->lock);
}

/* What the page says. */

/* What a device has reserved for allocations that are nodes of graphs: only the driver knows. */
static uint64_t graph_bytes(int device)
{
	enum { RESERVED_MEM_CURRENT = 2 }; /* CUgraphMem_attribute */
	CUresult (*ask)(CUdevice, int, void *) =
		cudapool_driver_function(cudapool_fn_cuDeviceGetGraphMemAttribute);
	cuuint64_t bytes = 0;
	unsigned int flags;
	int active;

	/* Where the process has no context it has no graph, either, and the question might make one. */
	if (!ask || DRIVER(cuDevicePrimaryCtxGetState)(device, &flags, &active) != CUDA_SUCCESS || !active ||
	    ask(device, RESERVED_MEM_CURRENT, &bytes) != CUDA_SUCCESS)
		return 0;
	return bytes;
}

void cudapool_memory_report(struct cudapool_page *page)
{
	struct memory *m = cudapool_memory(false);
	CUuuid uuid;
	uint64_t left, graphs = 0;
	int i, device, count = 0;

	if (DRIVER(cuDeviceGetCount) && DRIVER(cuDeviceGetUuid_v2) &&
	    DRIVER(cuDeviceGetCount)(&count) == CUDA_SUCCESS) {
		for (i = 0; i < count && i < CUDAPOOL_PAGE_DEVICES; i++)
			if (DRIVER(cuDeviceGetUuid_v2)(&uuid, i) == CUDA_SUCCESS)
				memcpy(page->devices[i].uuid, &uuid, sizeof(page->devices[i].uuid));
	}
	if (!m)
		return;
	for (i = 0; i < count && i < MEMORY_DEVICES; i++)
		graphs += graph_bytes(i);
	cudapool_lock(&m->lock);
	page->parked_bytes = m->parked_bytes;
	for (i = 0; i < CUDAPOOL_LEFT_KINDS; i++) {
		left = i == CUDAPOOL_LEFT_ORDERED ? graphs : 0;
		for (device = 0; device < MEMORY_DEVICES; device++)
			left += m->left[i][device];
		page->left_bytes[i] = left;
	}
	cudapool_unlock(&m->lock);
}

uint64_t cudapool_memory_left(int device)
{
	struct memory *m = cudapool_memory(false);
	uint64_t left = 0;
	int i;

	for (i = 0; m && i < CUDAPOOL_LEFT_KINDS; i++)
		left += m->left[i][device];
	return m ? left + graph_bytes(device) : 0;
}

bool cudapool_memory_unparkable(char *reason, size_t size)
{
	struct memory *m = cudapool_memory(false);
	uint32_t foreign_mb = m ? __atomic_load_n(&cudapool_state.page->foreign_mb, __ATOMIC_RELAXED) : 0;

	if (foreign_mb)
		snprintf(reason, size,
			 "it has %u MiB of another process's memory imported, with which the driver cannot restore it",
			 foreign_mb);
	else if (m && m->piece_count > CUDAPOOL_CHANNEL_MOST)
		snprintf(reason, size, "its GPU memory is in more than %d pieces: raise CUDAPOOL_PARK_MIN_KB",
			 CUDAPOOL_CHANNEL_MOST);
	else
		return false;
	return true;
}
