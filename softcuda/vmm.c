// SPDX-License-Identifier: MIT
/* Virtual memory management: physical memory in memfds, mapped into reserved addresses, shared by descriptor. */
#include "internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

struct softcuda_physical *softcuda_physicals; /* guarded by the map's lock */
static uint64_t next_handle = 1;

/* The last page of the memfd describes it, for whoever imports it; the content comes before. */
struct label {
	char magic[16];
	uint64_t size;
	CUuuid device;
};
static const char label_magic[16] = "softcuda memory";

/* F_SEAL_SEAL is not set on anything else that could be handed to us by mistake. */
#define SEALS (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)

static struct softcuda_physical *physical_find(uint64_t id)
{
	struct softcuda_physical *physical = softcuda_physicals;

	while (physical && physical->id != id)
		physical = physical->next;
	return physical && physical->handles ? physical : NULL;
}

static void physical_put(struct softcuda_physical *physical)
{
	struct softcuda_physical **link;

	if (physical->handles || physical->maps)
		return;
	for (link = &softcuda_physicals; *link != physical; link = &(*link)->next)
		;
	*link = physical->next;
	if (physical->counted)
		softcuda_memory_give(softcuda_devices[physical->device].host_index, physical->size);
	if (physical->fd >= 0)
		close(physical->fd);
	free(physical);
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

/* A memfd of `size` bytes and its label. The descriptor, or -errno. */
int softcuda_physical_fd(size_t size, int device)
{
	struct label label = {.size = size, .device = softcuda_devices[device].uuid};
	int fd = memfd_create("softcuda-memory", MFD_CLOEXEC | MFD_ALLOW_SEALING), error;

	if (fd < 0)
		return -errno;
	memcpy(label.magic, label_magic, sizeof(label.magic));
	if (ftruncate(fd, size + SOFTCUDA_PAGE_SIZE) || pwrite(fd, &label, sizeof(label), size) != sizeof(label) ||
	    fcntl(fd, F_ADD_SEALS, SEALS)) {
		error = -errno;
		close(fd);
		return error;
	}
	return fd;
}

static CUresult physical_new(struct softcuda_physical **out, int fd, size_t size, const CUmemAllocationProp *prop)
{
	struct softcuda_physical *physical = calloc(1, sizeof(*physical));

	if (!physical)
		return CUDA_ERROR_OUT_OF_MEMORY;
	physical->fd = fd;
	physical->size = size;
	physical->device = prop->location.id;
	physical->prop = *prop;
	physical->handles = 1;
	pthread_rwlock_wrlock(&softcuda_map_lock);
	physical->id = next_handle++;
	physical->next = softcuda_physicals;
	softcuda_physicals = physical;
	pthread_rwlock_unlock(&softcuda_map_lock);
	*out = physical;
	return CUDA_SUCCESS;
}

CUresult do_cuMemCreate(CUmemGenericAllocationHandle *handle, size_t size, const CUmemAllocationProp *prop,
			unsigned long long flags)
{
	uint64_t start = softcuda_now_ns();
	struct softcuda_physical *physical;
	CUresult result = prop_check(prop);
	int fd, host;

	if (!handle || flags || !size || size % SOFTCUDA_GRANULARITY)
		return CUDA_ERROR_INVALID_VALUE;
	if (result != CUDA_SUCCESS)
		return result;
	host = softcuda_devices[prop->location.id].host_index;
	result = softcuda_memory_take(host, size);
	if (result != CUDA_SUCCESS)
		return result;
	fd = softcuda_physical_fd(size, prop->location.id);
	result = fd < 0 ? CUDA_ERROR_OUT_OF_MEMORY : physical_new(&physical, fd, size, prop);
	if (result != CUDA_SUCCESS) {
		softcuda_memory_give(host, size);
		if (fd >= 0)
			close(fd);
		return result;
	}
	physical->counted = true;
	*handle = physical->id;
	softcuda_spend(start, softcuda_costs.alloc_us / 1000, 0, 0);
	return CUDA_SUCCESS;
}

CUresult do_cuMemRelease(CUmemGenericAllocationHandle handle)
{
	struct softcuda_physical *physical;

	pthread_rwlock_wrlock(&softcuda_map_lock);
	physical = physical_find(handle);
	if (physical) {
		physical->handles--;
		physical_put(physical);
	}
	pthread_rwlock_unlock(&softcuda_map_lock);
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
	if (range && (range->start != ptr || range->size != size || range->pieces))
		range = NULL;
	if (range)
		softcuda_range_remove(range);
	pthread_rwlock_unlock(&softcuda_map_lock);
	if (!range)
		return CUDA_ERROR_INVALID_VALUE;
	softcuda_range_unmap(range);
	free(range);
	return CUDA_SUCCESS;
}

/* Makes the piece's alias what its access says; the restore thread comes here, too. 0 or -errno. */
int softcuda_piece_map(struct softcuda_range *range, struct softcuda_piece *piece)
{
	int prot = PROT_NONE;

	if (piece->readable)
		prot |= PROT_READ;
	if (piece->writable)
		prot |= PROT_WRITE;
	if (mmap(range->alias + piece->offset, piece->size, prot, MAP_SHARED | MAP_FIXED, piece->physical->fd,
		 piece->physical_offset) == MAP_FAILED)
		return -errno;
	madvise(range->alias + piece->offset, piece->size, MADV_DONTFORK);
	return 0;
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

CUresult do_cuMemMap(CUdeviceptr ptr, size_t size, size_t offset, CUmemGenericAllocationHandle handle,
		     unsigned long long flags)
{
	struct softcuda_piece *piece, **link;
	struct softcuda_physical *physical;
	CUresult result = CUDA_ERROR_INVALID_VALUE;
	struct softcuda_range *range;

	if (!size || flags || offset || size % SOFTCUDA_GRANULARITY || ptr % SOFTCUDA_GRANULARITY)
		return CUDA_ERROR_INVALID_VALUE;
	piece = calloc(1, sizeof(*piece));
	if (!piece)
		return CUDA_ERROR_OUT_OF_MEMORY;
	pthread_rwlock_wrlock(&softcuda_map_lock);
	range = reservation(ptr, size);
	physical = physical_find(handle);
	if (range && physical && size <= physical->size) {
		piece->offset = ptr - range->start;
		piece->size = size;
		piece->physical_offset = offset;
		piece->physical = physical;
		for (link = &range->pieces; *link && (*link)->offset + (*link)->size <= piece->offset;
		     link = &(*link)->next)
			;
		if (!*link || (*link)->offset >= piece->offset + size)
			result = softcuda_piece_map(range, piece) ? CUDA_ERROR_MAP_FAILED : CUDA_SUCCESS;
	}
	if (result == CUDA_SUCCESS) {
		piece->next = *link;
		*link = piece;
		physical->maps++;
	}
	pthread_rwlock_unlock(&softcuda_map_lock);
	if (result != CUDA_SUCCESS)
		free(piece);
	return result;
}

/* Does [offset, offset + size) consist of whole pieces without a gap? */
static bool whole_pieces(struct softcuda_range *range, size_t offset, size_t size)
{
	struct softcuda_piece *piece;
	size_t end = offset + size;

	for (piece = range->pieces; piece && offset < end; piece = piece->next) {
		if (piece->offset < offset)
			continue;
		if (piece->offset != offset)
			return false;
		offset += piece->size;
	}
	return offset == end;
}

CUresult do_cuMemUnmap(CUdeviceptr ptr, size_t size)
{
	CUresult result = CUDA_ERROR_INVALID_VALUE;
	struct softcuda_piece *piece, **link;
	struct softcuda_range *range;
	size_t offset;

	softcuda_streams_drain(0);
	pthread_rwlock_wrlock(&softcuda_map_lock);
	range = reservation(ptr, size);
	if (range && whole_pieces(range, ptr - range->start, size)) {
		result = CUDA_SUCCESS;
		offset = ptr - range->start;
		link = &range->pieces;
		while ((piece = *link)) {
			if (piece->offset < offset || piece->offset >= offset + size) {
				link = &piece->next;
				continue;
			}
			if (softcuda_piece_unmap(range, piece)) {
				result = CUDA_ERROR_UNMAP_FAILED;
				break;
			}
			*link = piece->next;
			piece->physical->maps--;
			physical_put(piece->physical);
			free(piece);
		}
	}
	pthread_rwlock_unlock(&softcuda_map_lock);
	return result;
}

CUresult do_cuMemSetAccess(CUdeviceptr ptr, size_t size, const CUmemAccessDesc *access, size_t count)
{
	CUresult result = CUDA_ERROR_INVALID_VALUE;
	struct softcuda_piece *piece;
	struct softcuda_range *range;
	size_t offset;

	if (!access || !count)
		return CUDA_ERROR_INVALID_VALUE;
	for (size_t i = 0; i < count; i++) {
		if (access[i].location.type != CU_MEM_LOCATION_TYPE_DEVICE)
			return CUDA_ERROR_INVALID_VALUE;
		if (softcuda_device_check(access[i].location.id))
			return CUDA_ERROR_INVALID_DEVICE;
		if (access[i].flags != CU_MEM_ACCESS_FLAGS_PROT_NONE &&
		    access[i].flags != CU_MEM_ACCESS_FLAGS_PROT_READ &&
		    access[i].flags != CU_MEM_ACCESS_FLAGS_PROT_READWRITE)
			return CUDA_ERROR_INVALID_VALUE;
	}
	pthread_rwlock_wrlock(&softcuda_map_lock);
	range = reservation(ptr, size);
	offset = range ? ptr - range->start : 0;
	if (range && whole_pieces(range, offset, size)) {
		result = CUDA_SUCCESS;
		for (piece = range->pieces; piece && result == CUDA_SUCCESS; piece = piece->next) {
			if (piece->offset < offset || piece->offset >= offset + size)
				continue;
			for (size_t i = 0; i < count; i++) {
				uint32_t bit = 1u << access[i].location.id;

				piece->readable &= ~bit;
				piece->writable &= ~bit;
				if (access[i].flags != CU_MEM_ACCESS_FLAGS_PROT_NONE)
					piece->readable |= bit;
				if (access[i].flags == CU_MEM_ACCESS_FLAGS_PROT_READWRITE)
					piece->writable |= bit;
			}
			if (softcuda_piece_map(range, piece))
				result = CUDA_ERROR_MAP_FAILED;
		}
	}
	pthread_rwlock_unlock(&softcuda_map_lock);
	return result;
}

CUresult do_cuMemGetAccess(unsigned long long *flags, const CUmemLocation *location, CUdeviceptr ptr)
{
	CUresult result = CUDA_ERROR_INVALID_VALUE;
	struct softcuda_piece *piece;
	struct softcuda_range *range;

	if (!flags || !location || location->type != CU_MEM_LOCATION_TYPE_DEVICE)
		return CUDA_ERROR_INVALID_VALUE;
	if (softcuda_device_check(location->id))
		return CUDA_ERROR_INVALID_DEVICE;
	pthread_rwlock_rdlock(&softcuda_map_lock);
	range = reservation(ptr, 1);
	for (piece = range ? range->pieces : NULL; piece; piece = piece->next) {
		if (ptr - range->start < piece->offset || ptr - range->start >= piece->offset + piece->size)
			continue;
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
	CUresult result = CUDA_ERROR_INVALID_VALUE;
	struct softcuda_physical *physical;
	int fd;

	if (!shareable || flags || type != CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR)
		return CUDA_ERROR_INVALID_VALUE;
	pthread_rwlock_rdlock(&softcuda_map_lock);
	physical = physical_find(handle);
	/* What was imported cannot be exported again: measured. */
	if (physical && !physical->imported && physical->prop.requestedHandleTypes & type) {
		fd = fcntl(physical->fd, F_DUPFD_CLOEXEC, 0);
		result = fd < 0 ? CUDA_ERROR_OPERATING_SYSTEM : CUDA_SUCCESS;
		if (fd >= 0)
			*(int *)shareable = fd;
	}
	pthread_rwlock_unlock(&softcuda_map_lock);
	return result;
}

/* The device whose memory it is, by UUID; -1 if the descriptor is not ours or the device is not here. */
static int label_read(int fd, size_t *size)
{
	struct label label;
	struct stat file;

	if (fstat(fd, &file) || !S_ISREG(file.st_mode) || fcntl(fd, F_GET_SEALS) != SEALS ||
	    file.st_size <= (off_t)SOFTCUDA_PAGE_SIZE ||
	    pread(fd, &label, sizeof(label), file.st_size - SOFTCUDA_PAGE_SIZE) != sizeof(label) ||
	    memcmp(label.magic, label_magic, sizeof(label.magic)) || label.size != file.st_size - SOFTCUDA_PAGE_SIZE)
		return -1;
	*size = label.size;
	for (unsigned i = 0; i < softcuda_config.devices; i++) {
		if (!memcmp(&label.device, &softcuda_devices[i].uuid, sizeof(label.device)))
			return i;
	}
	return -1;
}

CUresult do_cuMemImportFromShareableHandle(CUmemGenericAllocationHandle *handle, void *shareable,
					   CUmemAllocationHandleType type)
{
	CUmemAllocationProp prop = {.type = CU_MEM_ALLOCATION_TYPE_PINNED,
				    .requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR,
				    .location = {.type = CU_MEM_LOCATION_TYPE_DEVICE}};
	struct softcuda_physical *physical;
	CUresult result;
	size_t size;
	int fd;

	if (!handle || type != CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR)
		return CUDA_ERROR_INVALID_VALUE;
	prop.location.id = label_read((int)(intptr_t)shareable, &size);
	if (prop.location.id < 0)
		return CUDA_ERROR_INVALID_VALUE;
	fd = fcntl((int)(intptr_t)shareable, F_DUPFD_CLOEXEC, 0);
	if (fd < 0)
		return CUDA_ERROR_OPERATING_SYSTEM;
	result = physical_new(&physical, fd, size, &prop);
	if (result != CUDA_SUCCESS) {
		close(fd);
		return result;
	}
	physical->imported = true;
	*handle = physical->id;
	return CUDA_SUCCESS;
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
	CUdeviceptr ptr = (uintptr_t)address;
	CUresult result = CUDA_ERROR_INVALID_VALUE;
	struct softcuda_piece *piece;
	struct softcuda_range *range;

	if (!handle)
		return CUDA_ERROR_INVALID_VALUE;
	pthread_rwlock_wrlock(&softcuda_map_lock);
	range = reservation(ptr, 1);
	for (piece = range ? range->pieces : NULL; piece; piece = piece->next) {
		if (ptr - range->start < piece->offset || ptr - range->start >= piece->offset + piece->size)
			continue;
		piece->physical->handles++;
		*handle = piece->physical->id;
		result = CUDA_SUCCESS;
	}
	pthread_rwlock_unlock(&softcuda_map_lock);
	return result;
}
