// SPDX-License-Identifier: MIT
/* Virtual memory management: physical memory, mapped into reserved addresses, shared by descriptor. */
#include "backing.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/*
 * A handle is a place in a table and how often that place was taken before. The first one is 0, as it may be with the
 * real driver: nobody should take 0 for none.
 */
struct softcuda_physical **softcuda_physicals; /* guarded by the map's lock, as all here */
uint32_t softcuda_physical_places;
static uint32_t *generations, *free_places, free_count;

static struct softcuda_physical *physical_find(uint64_t id)
{
	uint32_t place = id;
	struct softcuda_physical *physical = place < softcuda_physical_places ? softcuda_physicals[place] : NULL;

	return physical && physical->id == id && physical->handles ? physical : NULL;
}

static int places_grow(void)
{
	uint32_t places = softcuda_physical_places ? 2 * softcuda_physical_places : 64;
	struct softcuda_physical **physicals = reallocarray(softcuda_physicals, places, sizeof(*physicals));
	uint32_t *fresh;

	if (!physicals)
		return -ENOMEM;
	softcuda_physicals = physicals;
	fresh = reallocarray(generations, places, sizeof(*fresh));
	if (!fresh)
		return -ENOMEM;
	generations = fresh;
	fresh = reallocarray(free_places, places, sizeof(*fresh));
	if (!fresh)
		return -ENOMEM;
	free_places = fresh;
	for (uint32_t place = places; place-- > softcuda_physical_places;) { /* the lowest is taken first */
		physicals[place] = NULL;
		generations[place] = 0;
		free_places[free_count++] = place;
	}
	softcuda_physical_places = places;
	return 0;
}

static CUresult physical_new(CUmemGenericAllocationHandle *handle, const struct softcuda_backing *backing,
			     const CUmemAllocationProp *prop, bool imported)
{
	struct softcuda_physical *physical = calloc(1, sizeof(*physical));
	CUresult result = CUDA_ERROR_OUT_OF_MEMORY;
	uint32_t place;

	if (!physical)
		return result;
	physical->backing = *backing;
	physical->size = backing->size;
	physical->device = prop->location.id;
	physical->prop = *prop;
	physical->imported = imported;
	physical->handles = 1;
	pthread_rwlock_wrlock(&softcuda_map_lock);
	if (free_count || !places_grow()) {
		place = free_places[--free_count];
		physical->id = (uint64_t)generations[place]++ << 32 | place;
		softcuda_physicals[place] = physical;
		*handle = physical->id;
		result = CUDA_SUCCESS;
	}
	pthread_rwlock_unlock(&softcuda_map_lock);
	if (result != CUDA_SUCCESS)
		free(physical);
	return result;
}

static void physical_put(struct softcuda_physical *physical)
{
	uint32_t place = physical->id;

	if (physical->handles || physical->maps)
		return;
	softcuda_physicals[place] = NULL;
	free_places[free_count++] = place;
	softcuda_backing_end(&physical->backing);
	free(physical);
}

void softcuda_physicals_forget(void)
{
	pthread_rwlock_rdlock(&softcuda_map_lock);
	for (uint32_t i = 0; i < softcuda_physical_places; i++) {
		if (softcuda_physicals[i] && softcuda_physicals[i]->backing.map)
			softcuda_backing_forget(&softcuda_physicals[i]->backing);
	}
	pthread_rwlock_unlock(&softcuda_map_lock);
}

static CUresult prop_check(const CUmemAllocationProp *prop)
{
	if (!prop || prop->type != CU_MEM_ALLOCATION_TYPE_PINNED || prop->location.type != CU_MEM_LOCATION_TYPE_DEVICE)
		return CUDA_ERROR_INVALID_VALUE;
	if (softcuda_device_check(prop->location.id))
		return CUDA_ERROR_INVALID_DEVICE;
	if (prop->requestedHandleTypes & ~CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR)
		return CUDA_ERROR_NOT_SUPPORTED;
	return CUDA_SUCCESS;
}

CUresult do_cuMemGetAllocationGranularity(size_t *granularity, const CUmemAllocationProp *prop,
					  CUmemAllocationGranularity_flags option)
{
	CUresult result = prop_check(prop);

	if (!granularity || (unsigned)option > CU_MEM_ALLOC_GRANULARITY_RECOMMENDED)
		return CUDA_ERROR_INVALID_VALUE;
	if (result == CUDA_SUCCESS)
		*granularity = SOFTCUDA_GRANULARITY;
	return result;
}

CUresult do_cuMemCreate(CUmemGenericAllocationHandle *handle, size_t size, const CUmemAllocationProp *prop,
			unsigned long long flags)
{
	uint64_t start = softcuda_now_ns();
	struct softcuda_backing backing;
	CUresult result = prop_check(prop);

	if (!handle || flags || !size || size % SOFTCUDA_GRANULARITY)
		return CUDA_ERROR_INVALID_VALUE;
	if (result != CUDA_SUCCESS)
		return result;
	result = softcuda_backing_make(&backing, size, prop->location.id);
	if (result != CUDA_SUCCESS)
		return result;
	result = physical_new(handle, &backing, prop, false);
	if (result != CUDA_SUCCESS)
		softcuda_backing_end(&backing);
	else
		softcuda_spend(start, softcuda_costs.create_us / 1000, 0, 0);
	return result;
}

CUresult do_cuMemRelease(CUmemGenericAllocationHandle handle)
{
	uint64_t start = softcuda_now_ns();
	struct softcuda_physical *physical;

	pthread_rwlock_wrlock(&softcuda_map_lock);
	physical = physical_find(handle);
	if (physical) {
		physical->handles--;
		physical_put(physical);
	}
	pthread_rwlock_unlock(&softcuda_map_lock);
	softcuda_spend(start, softcuda_costs.release_us / 1000, 0, 0);
	return physical ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult do_cuMemAddressReserve(CUdeviceptr *ptr, size_t size, size_t alignment, CUdeviceptr address,
				unsigned long long flags)
{
	struct softcuda_range *range;
	int error;

	if (!alignment)
		alignment = SOFTCUDA_GRANULARITY;
	if (!ptr || !size || size % SOFTCUDA_GRANULARITY || alignment & (alignment - 1) || flags)
		return CUDA_ERROR_INVALID_VALUE;
	if (alignment < SOFTCUDA_GRANULARITY)
		alignment = SOFTCUDA_GRANULARITY;
	range = calloc(1, sizeof(*range));
	if (!range)
		return CUDA_ERROR_OUT_OF_MEMORY;
	if (softcuda_range_map(range, size, alignment, address)) {
		free(range);
		return CUDA_ERROR_OUT_OF_MEMORY;
	}
	range->kind = SOFTCUDA_RESERVED;
	range->device = -1;
	pthread_rwlock_wrlock(&softcuda_map_lock);
	error = softcuda_range_insert(range);
	pthread_rwlock_unlock(&softcuda_map_lock);
	if (error) {
		softcuda_range_unmap(range);
		free(range);
		return CUDA_ERROR_OUT_OF_MEMORY;
	}
	*ptr = range->start;
	return CUDA_SUCCESS;
}

/* The reservation that [ptr, ptr + size) is part of; with the lock held. */
static struct softcuda_range *reservation(CUdeviceptr ptr, size_t size)
{
	struct softcuda_range *range = softcuda_range_find(ptr);

	return range && range->kind == SOFTCUDA_RESERVED && size && size <= range->start + range->size - ptr ? range
													     : NULL;
}

CUresult do_cuMemAddressFree(CUdeviceptr ptr, size_t size)
{
	struct softcuda_range *range;

	pthread_rwlock_wrlock(&softcuda_map_lock);
	range = reservation(ptr, size);
	if (range && (range->start != ptr || range->size != size || range->piece_count))
		range = NULL;
	if (range)
		softcuda_range_remove(range);
	pthread_rwlock_unlock(&softcuda_map_lock);
	if (!range)
		return CUDA_ERROR_INVALID_VALUE;
	softcuda_range_unmap(range);
	free(range->pieces);
	free(range);
	return CUDA_SUCCESS;
}

unsigned softcuda_piece_index(const struct softcuda_range *range, size_t offset)
{
	unsigned low = 0, high = range->piece_count;

	while (low < high) {
		unsigned middle = low + (high - low) / 2;

		if (range->pieces[middle].offset + range->pieces[middle].size <= offset)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

/* The piece that an address is in, if it is in one; with the lock held. */
static struct softcuda_piece *piece_at(CUdeviceptr ptr)
{
	struct softcuda_range *range = reservation(ptr, 1);
	unsigned index = range ? softcuda_piece_index(range, ptr - range->start) : 0;

	return range && index < range->piece_count && range->pieces[index].offset <= ptr - range->start
		       ? &range->pieces[index]
		       : NULL;
}

static int piece_protect(struct softcuda_range *range, struct softcuda_piece *piece)
{
	int prot = PROT_NONE;

	if (piece->readable)
		prot |= PROT_READ;
	if (piece->writable)
		prot |= PROT_WRITE;
	return mprotect(range->alias + piece->offset, piece->size, prot) ? -errno : 0;
}

/* A second mapping of the same memory, in the place of the piece's alias, and with its access. */
int softcuda_piece_map(struct softcuda_range *range, struct softcuda_piece *piece)
{
	if (mremap(piece->physical->backing.map, 0, piece->size, MREMAP_MAYMOVE | MREMAP_FIXED,
		   range->alias + piece->offset) == MAP_FAILED)
		return -errno;
	return piece->readable || piece->writable ? piece_protect(range, piece) : 0;
}

/* Gives the alias back to nobody. */
int softcuda_piece_unmap(struct softcuda_range *range, struct softcuda_piece *piece)
{
	if (mmap(range->alias + piece->offset, piece->size, PROT_NONE,
		 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) == MAP_FAILED)
		return -errno;
	madvise(range->alias + piece->offset, piece->size, MADV_DONTFORK);
	return 0;
}

static int piece_insert(struct softcuda_range *range, unsigned index, const struct softcuda_piece *piece)
{
	if (range->piece_count == range->piece_room) {
		unsigned room = range->piece_room ? 2 * range->piece_room : 1;
		struct softcuda_piece *pieces = reallocarray(range->pieces, room, sizeof(*pieces));

		if (!pieces)
			return -ENOMEM;
		range->pieces = pieces;
		range->piece_room = room;
	}
	memmove(range->pieces + index + 1, range->pieces + index,
		(range->piece_count++ - index) * sizeof(*range->pieces));
	range->pieces[index] = *piece;
	return 0;
}

CUresult do_cuMemMap(CUdeviceptr ptr, size_t size, size_t offset, CUmemGenericAllocationHandle handle,
		     unsigned long long flags)
{
	uint64_t start = softcuda_now_ns();
	struct softcuda_physical *physical;
	CUresult result = CUDA_ERROR_INVALID_VALUE;
	struct softcuda_range *range;
	struct softcuda_piece piece = {.size = size};
	unsigned index;

	if (!size || flags || size % SOFTCUDA_GRANULARITY || ptr % SOFTCUDA_GRANULARITY)
		return CUDA_ERROR_INVALID_VALUE;
	pthread_rwlock_wrlock(&softcuda_map_lock);
	range = reservation(ptr, size);
	physical = physical_find(handle);
	if (range && physical && (offset || size != physical->size)) {
		result = CUDA_ERROR_NOT_SUPPORTED; /* only as a whole, as the 580 driver has it */
	} else if (range && physical) {
		piece.offset = ptr - range->start;
		piece.physical = physical;
		index = softcuda_piece_index(range, piece.offset);
		if (index == range->piece_count || range->pieces[index].offset >= piece.offset + size) {
			result = CUDA_ERROR_MAP_FAILED;
			if (!softcuda_piece_map(range, &piece) && !piece_insert(range, index, &piece)) {
				physical->maps++;
				result = CUDA_SUCCESS;
			}
		}
	}
	pthread_rwlock_unlock(&softcuda_map_lock);
	softcuda_spend(start, softcuda_costs.map_us / 1000, 0, 0);
	return result;
}

/*
 * Does [offset, offset + size) consist of whole pieces without a gap? Then their number, and the first one's index;
 * else 0.
 */
static unsigned whole_pieces(const struct softcuda_range *range, size_t offset, size_t size, unsigned *first)
{
	size_t end = offset + size;
	unsigned index;

	*first = index = softcuda_piece_index(range, offset);
	while (index < range->piece_count && offset < end && range->pieces[index].offset == offset)
		offset += range->pieces[index++].size;
	return offset == end ? index - *first : 0;
}

/*
 * As the real one, it does not wait for work that uses the memory (that work then fails), takes a range with gaps, and
 * does not cut what was mapped in one piece.
 */
CUresult do_cuMemUnmap(CUdeviceptr ptr, size_t size)
{
	uint64_t start = softcuda_now_ns();
	CUresult result = CUDA_SUCCESS;
	struct softcuda_range *range;
	unsigned first, end, done = 0;
	size_t offset;

	pthread_rwlock_wrlock(&softcuda_map_lock);
	range = reservation(ptr, size);
	if (!range)
		goto invalid;
	offset = ptr - range->start;
	first = end = softcuda_piece_index(range, offset);
	while (end < range->piece_count && range->pieces[end].offset < offset + size)
		end++;
	if (first < end && (range->pieces[first].offset < offset ||
			    range->pieces[end - 1].offset + range->pieces[end - 1].size > offset + size))
		goto invalid;
	for (; first + done < end && result == CUDA_SUCCESS; done++) {
		struct softcuda_piece *piece = &range->pieces[first + done];

		if (softcuda_piece_unmap(range, piece)) {
			result = CUDA_ERROR_UNMAP_FAILED;
			break;
		}
		piece->physical->maps--;
		physical_put(piece->physical);
	}
	range->piece_count -= done;
	memmove(range->pieces + first, range->pieces + first + done,
		(range->piece_count - first) * sizeof(*range->pieces));
	pthread_rwlock_unlock(&softcuda_map_lock);
	softcuda_spend(start, done * softcuda_costs.unmap_us / 1000, 0, 0);
	return result;
invalid:
	pthread_rwlock_unlock(&softcuda_map_lock);
	return CUDA_ERROR_INVALID_VALUE;
}

static CUresult access_check(const CUmemAccessDesc *access, size_t count)
{
	if (!access || !count)
		return CUDA_ERROR_INVALID_VALUE;
	for (size_t i = 0; i < count; i++) {
		if (access[i].location.type == CU_MEM_LOCATION_TYPE_HOST)
			return CUDA_ERROR_NOT_SUPPORTED;
		if (access[i].location.type != CU_MEM_LOCATION_TYPE_DEVICE)
			return CUDA_ERROR_INVALID_VALUE;
		if (softcuda_device_check(access[i].location.id))
			return CUDA_ERROR_INVALID_DEVICE;
		if (access[i].flags != CU_MEM_ACCESS_FLAGS_PROT_NONE &&
		    access[i].flags != CU_MEM_ACCESS_FLAGS_PROT_READ &&
		    access[i].flags != CU_MEM_ACCESS_FLAGS_PROT_READWRITE)
			return CUDA_ERROR_INVALID_VALUE;
	}
	return CUDA_SUCCESS;
}

CUresult do_cuMemSetAccess(CUdeviceptr ptr, size_t size, const CUmemAccessDesc *access, size_t count)
{
	uint64_t start = softcuda_now_ns();
	CUresult result = access_check(access, count);
	struct softcuda_range *range;
	unsigned first, pieces = 0;

	if (result != CUDA_SUCCESS)
		return result;
	pthread_rwlock_wrlock(&softcuda_map_lock);
	range = reservation(ptr, size);
	if (range)
		pieces = whole_pieces(range, ptr - range->start, size, &first);
	if (!pieces)
		result = CUDA_ERROR_INVALID_VALUE;
	for (unsigned index = first; pieces && index < first + pieces; index++) {
		struct softcuda_piece *piece = &range->pieces[index];

		for (size_t i = 0; i < count; i++) {
			uint32_t bit = 1u << access[i].location.id;

			piece->readable &= ~bit;
			piece->writable &= ~bit;
			if (access[i].flags != CU_MEM_ACCESS_FLAGS_PROT_NONE)
				piece->readable |= bit;
			if (access[i].flags == CU_MEM_ACCESS_FLAGS_PROT_READWRITE)
				piece->writable |= bit;
		}
		if (piece_protect(range, piece))
			result = CUDA_ERROR_MAP_FAILED;
	}
	pthread_rwlock_unlock(&softcuda_map_lock);
	softcuda_spend(start, pieces * softcuda_costs.access_us / 1000, 0, 0);
	return result;
}

CUresult do_cuMemGetAccess(unsigned long long *flags, const CUmemLocation *location, CUdeviceptr ptr)
{
	CUresult result = CUDA_ERROR_INVALID_VALUE;
	struct softcuda_range *range;
	struct softcuda_piece *piece;

	if (!flags || !location || location->type != CU_MEM_LOCATION_TYPE_DEVICE)
		return CUDA_ERROR_INVALID_VALUE;
	if (softcuda_device_check(location->id))
		return CUDA_ERROR_INVALID_DEVICE;
	pthread_rwlock_rdlock(&softcuda_map_lock);
	range = softcuda_range_find(ptr);
	piece = piece_at(ptr);
	if (range && range->kind == SOFTCUDA_ALLOC) {
		*flags = CU_MEM_ACCESS_FLAGS_PROT_NONE; /* of cuMemAlloc: nobody was given it by name (probes/memory.c) */
		result = CUDA_SUCCESS;
	} else if (piece) {
		*flags = piece->writable & 1u << location->id   ? CU_MEM_ACCESS_FLAGS_PROT_READWRITE
			 : piece->readable & 1u << location->id ? CU_MEM_ACCESS_FLAGS_PROT_READ
								: CU_MEM_ACCESS_FLAGS_PROT_NONE;
		result = CUDA_SUCCESS;
	}
	pthread_rwlock_unlock(&softcuda_map_lock);
	return result;
}

CUresult do_cuMemExportToShareableHandle(void *shareable, CUmemGenericAllocationHandle handle,
					 CUmemAllocationHandleType type, unsigned long long flags)
{
	uint64_t start = softcuda_now_ns();
	CUresult result = CUDA_ERROR_INVALID_VALUE;
	struct softcuda_physical *physical;
	int fd;

	if (!shareable || flags || type != CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR)
		return CUDA_ERROR_INVALID_VALUE;
	pthread_rwlock_wrlock(&softcuda_map_lock);
	physical = physical_find(handle);
	/* What was imported cannot be exported again: measured (docs/results/). */
	if (physical && !physical->imported && physical->prop.requestedHandleTypes & type) {
		fd = softcuda_backing_export(&physical->backing);
		result = fd < 0 ? CUDA_ERROR_OPERATING_SYSTEM : CUDA_SUCCESS;
		if (fd >= 0)
			*(int *)shareable = fd;
	}
	pthread_rwlock_unlock(&softcuda_map_lock);
	softcuda_spend(start, softcuda_costs.export_us / 1000, 0, 0);
	return result;
}

CUresult do_cuMemImportFromShareableHandle(CUmemGenericAllocationHandle *handle, void *shareable,
					   CUmemAllocationHandleType type)
{
	CUmemAllocationProp prop = {.type = CU_MEM_ALLOCATION_TYPE_PINNED,
				    .requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR,
				    .location = {.type = CU_MEM_LOCATION_TYPE_DEVICE}};
	uint64_t start = softcuda_now_ns();
	struct softcuda_backing backing;
	CUresult result;

	if (!handle || type != CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR)
		return CUDA_ERROR_INVALID_VALUE;
	result = softcuda_backing_import(&backing, (int)(intptr_t)shareable, &prop.location.id);
	if (result != CUDA_SUCCESS)
		return result;
	result = physical_new(handle, &backing, &prop, true);
	if (result != CUDA_SUCCESS)
		softcuda_backing_end(&backing);
	else
		softcuda_spend(start, softcuda_costs.import_us / 1000, 0, 0);
	return result;
}

CUresult do_cuMemGetAllocationPropertiesFromHandle(CUmemAllocationProp *prop, CUmemGenericAllocationHandle handle)
{
	struct softcuda_physical *physical;

	if (!prop)
		return CUDA_ERROR_INVALID_VALUE;
	pthread_rwlock_rdlock(&softcuda_map_lock);
	physical = physical_find(handle);
	if (physical)
		*prop = physical->prop;
	pthread_rwlock_unlock(&softcuda_map_lock);
	return physical ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult do_cuMemRetainAllocationHandle(CUmemGenericAllocationHandle *handle, void *address)
{
	struct softcuda_piece *piece;

	if (!handle)
		return CUDA_ERROR_INVALID_VALUE;
	pthread_rwlock_wrlock(&softcuda_map_lock);
	piece = piece_at((uintptr_t)address);
	if (piece) {
		piece->physical->handles++;
		*handle = piece->physical->id;
	}
	pthread_rwlock_unlock(&softcuda_map_lock);
	return piece ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}
