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

pthread_rwlock_t softcuda_map_lock = PTHREAD_RWLOCK_INITIALIZER;
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

static void *resolve_piece(struct softcuda_range *range, CUdeviceptr ptr, size_t bytes, bool write, int device)
{
	size_t offset = ptr - range->start, end = offset + bytes;
	struct softcuda_piece *piece;

	for (piece = range->pieces; piece && offset < end; piece = piece->next) {
		if (piece->offset + piece->size <= offset)
			continue;
		if (piece->offset > offset || !((write ? piece->writable : piece->readable) & 1u << device))
			return NULL;
		offset = piece->offset + piece->size;
	}
	return offset >= end ? range->alias + (ptr - range->start) : NULL;
}

static void *resolve_range(struct softcuda_range *range, CUdeviceptr ptr, size_t bytes, bool write, int device)
{
	if (bytes > range->start + range->size - ptr)
		return NULL;
	if (range->kind == SOFTCUDA_RESERVED)
		return resolve_piece(range, ptr, bytes, write, device);
	return range->alias + (ptr - range->start);
}

void *softcuda_resolve(CUdeviceptr ptr, size_t bytes, bool write, int device, bool host_too, enum softcuda_where *where)
{
	struct softcuda_range *range;
	void *host = NULL;

	pthread_rwlock_rdlock(&softcuda_map_lock);
	range = softcuda_range_find(ptr);
	if (range) {
		host = resolve_range(range, ptr, bytes, write, device);
		if (where)
			*where = range->kind == SOFTCUDA_PINNED || range->kind == SOFTCUDA_REGISTERED
					 ? SOFTCUDA_ON_PINNED
					 : SOFTCUDA_ON_DEVICE;
	} else if (host_too && ptr) {
		host = (void *)(uintptr_t)ptr;
		if (where)
			*where = SOFTCUDA_ON_PAGEABLE;
	}
	pthread_rwlock_unlock(&softcuda_map_lock);
	return host;
}

static CUresult range_add(struct softcuda_range *range)
{
	int error;

	pthread_rwlock_wrlock(&softcuda_map_lock);
	error = softcuda_range_insert(range);
	pthread_rwlock_unlock(&softcuda_map_lock);
	return error ? CUDA_ERROR_OUT_OF_MEMORY : CUDA_SUCCESS;
}

CUresult softcuda_alloc(CUdeviceptr *ptr, size_t bytes, struct CUctx_st *owner, int device)
{
	uint64_t start = softcuda_now_ns();
	struct softcuda_range *range;
	size_t size;
	CUresult result;

	if (!ptr || !bytes)
		return CUDA_ERROR_INVALID_VALUE;
	if (bytes > softcuda_config.memory_bytes)
		return CUDA_ERROR_OUT_OF_MEMORY;
	size = round_up(bytes, SOFTCUDA_PAGE_SIZE);
	result = softcuda_memory_take(softcuda_devices[device].host_index, size);
	if (result != CUDA_SUCCESS)
		return result;
	range = calloc(1, sizeof(*range));
	if (!range ||
	    softcuda_range_map(range, size, size < SOFTCUDA_GRANULARITY ? SOFTCUDA_PAGE_SIZE : SOFTCUDA_GRANULARITY, 0))
		goto nomem;
	if (mprotect(range->alias, size, PROT_READ | PROT_WRITE))
		goto nomem;
	range->kind = SOFTCUDA_ALLOC;
	range->ctx = owner;
	range->device = device;
	range->size = bytes;
	range->counted = size;
	if (range_add(range))
		goto nomem;
	*ptr = range->start;
	softcuda_spend(start, softcuda_costs.alloc_us / 1000, 0, 0);
	return CUDA_SUCCESS;
nomem:
	softcuda_memory_give(softcuda_devices[device].host_index, size);
	if (range)
		softcuda_range_unmap(range);
	free(range);
	return CUDA_ERROR_OUT_OF_MEMORY;
}

static void range_free(struct softcuda_range *range)
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
	range_free(range);
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
		range_free(range);
	}
	pthread_rwlock_unlock(&softcuda_map_lock);
}

CUresult do_cuMemGetInfo_v2(size_t *free, size_t *total)
{
	uint64_t used;

	if (!free || !total)
		return CUDA_ERROR_INVALID_VALUE;
	softcuda_memory_info(softcuda_devices[softcuda_current()->device].host_index, &used);
	*total = softcuda_config.memory_bytes;
	*free = used < *total ? *total - used : 0;
	return CUDA_SUCCESS;
}

CUresult do_cuMemAlloc_v2(CUdeviceptr *ptr, size_t bytes)
{
	return softcuda_alloc(ptr, bytes, softcuda_current(), softcuda_current()->device);
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

/* Freeing waits for the work that may use it, as the driver does. */
CUresult do_cuMemFree_v2(CUdeviceptr ptr)
{
	if (!ptr)
		return CUDA_SUCCESS;
	softcuda_context_wait(softcuda_current());
	return softcuda_free_range(ptr, SOFTCUDA_ALLOC);
}

CUresult do_cuMemGetAddressRange_v2(CUdeviceptr *base, size_t *size, CUdeviceptr ptr)
{
	struct softcuda_range *range;
	struct softcuda_piece *piece;
	CUresult result = CUDA_ERROR_NOT_FOUND;

	pthread_rwlock_rdlock(&softcuda_map_lock);
	range = softcuda_range_find(ptr);
	if (range && range->kind == SOFTCUDA_RESERVED) {
		for (piece = range->pieces; piece; piece = piece->next) {
			if (ptr - range->start < piece->offset || ptr - range->start >= piece->offset + piece->size)
				continue;
			if (base)
				*base = range->start + piece->offset;
			if (size)
				*size = piece->size;
			result = CUDA_SUCCESS;
		}
	} else if (range) {
		if (base)
			*base = range->start;
		if (size)
			*size = range->size;
		result = CUDA_SUCCESS;
	}
	pthread_rwlock_unlock(&softcuda_map_lock);
	return result;
}

/* Memory at one address for host and device: its own alias. */
static CUresult host_visible(void **ptr, size_t bytes, enum softcuda_kind kind, unsigned flags)
{
	struct softcuda_range *range;

	if (!ptr || !bytes || bytes > SIZE_MAX / 4)
		return CUDA_ERROR_INVALID_VALUE;
	range = calloc(1, sizeof(*range));
	if (!range)
		return CUDA_ERROR_OUT_OF_MEMORY;
	range->span = round_up(bytes, SOFTCUDA_PAGE_SIZE);
	range->base =
		mmap(NULL, range->span, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (range->base == MAP_FAILED) {
		free(range);
		return CUDA_ERROR_OUT_OF_MEMORY;
	}
	range->start = (uintptr_t)range->base;
	range->alias = range->base;
	range->size = bytes;
	range->kind = kind;
	range->flags = flags;
	range->ctx = softcuda_current();
	range->device = softcuda_current()->device;
	if (range_add(range)) {
		softcuda_range_unmap(range);
		free(range);
		return CUDA_ERROR_OUT_OF_MEMORY;
	}
	*ptr = range->base;
	return CUDA_SUCCESS;
}

CUresult do_cuMemAllocManaged(CUdeviceptr *ptr, size_t bytes, unsigned int flags)
{
	void *host;
	CUresult result;

	if (!ptr || (flags != CU_MEM_ATTACH_GLOBAL && flags != CU_MEM_ATTACH_HOST))
		return CUDA_ERROR_INVALID_VALUE;
	result = host_visible(&host, bytes, SOFTCUDA_MANAGED, flags);
	if (result == CUDA_SUCCESS)
		*ptr = (uintptr_t)host;
	return result;
}

CUresult do_cuMemHostAlloc(void **ptr, size_t bytes, unsigned int flags)
{
	if (flags & ~(unsigned)(CU_MEMHOSTALLOC_PORTABLE | CU_MEMHOSTALLOC_DEVICEMAP | CU_MEMHOSTALLOC_WRITECOMBINED))
		return CUDA_ERROR_INVALID_VALUE;
	return host_visible(ptr, bytes, SOFTCUDA_PINNED, flags);
}

CUresult do_cuMemAllocHost_v2(void **ptr, size_t bytes)
{
	return host_visible(ptr, bytes, SOFTCUDA_PINNED, 0);
}

CUresult do_cuMemFreeHost(void *ptr)
{
	softcuda_context_wait(softcuda_current());
	return softcuda_free_range((uintptr_t)ptr, SOFTCUDA_PINNED);
}

CUresult do_cuMemHostRegister_v2(void *ptr, size_t bytes, unsigned int flags)
{
	struct softcuda_range *range;

	if (!ptr || !bytes || bytes > UINTPTR_MAX - (uintptr_t)ptr ||
	    (flags &
	     ~(unsigned)(CU_MEMHOSTREGISTER_PORTABLE | CU_MEMHOSTREGISTER_DEVICEMAP | CU_MEMHOSTREGISTER_READ_ONLY)))
		return CUDA_ERROR_INVALID_VALUE;
	range = calloc(1, sizeof(*range));
	if (!range)
		return CUDA_ERROR_OUT_OF_MEMORY;
	range->start = (uintptr_t)ptr;
	range->size = bytes;
	range->alias = ptr;
	range->kind = SOFTCUDA_REGISTERED;
	range->flags = flags;
	range->ctx = softcuda_current();
	range->device = softcuda_current()->device;
	if (range_add(range)) {
		free(range);
		return CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED;
	}
	return CUDA_SUCCESS;
}

CUresult do_cuMemHostUnregister(void *ptr)
{
	softcuda_context_wait(softcuda_current());
	return softcuda_free_range((uintptr_t)ptr, SOFTCUDA_REGISTERED) ? CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED
									: CUDA_SUCCESS;
}

static CUresult host_range(void *ptr, CUdeviceptr *device_ptr, unsigned *flags)
{
	struct softcuda_range *range;
	CUresult result = CUDA_ERROR_INVALID_VALUE;

	pthread_rwlock_rdlock(&softcuda_map_lock);
	range = softcuda_range_find((uintptr_t)ptr);
	if (range && (range->kind == SOFTCUDA_PINNED || range->kind == SOFTCUDA_REGISTERED)) {
		if (device_ptr)
			*device_ptr = (uintptr_t)ptr;
		if (flags)
			*flags = range->flags | CU_MEMHOSTALLOC_DEVICEMAP; /* always, with unified addressing */
		result = CUDA_SUCCESS;
	}
	pthread_rwlock_unlock(&softcuda_map_lock);
	return result;
}

CUresult do_cuMemHostGetDevicePointer_v2(CUdeviceptr *device_ptr, void *ptr, unsigned int flags)
{
	return device_ptr && !flags ? host_range(ptr, device_ptr, NULL) : CUDA_ERROR_INVALID_VALUE;
}

CUresult do_cuMemHostGetFlags(unsigned int *flags, void *ptr)
{
	return flags ? host_range(ptr, NULL, flags) : CUDA_ERROR_INVALID_VALUE;
}

/* Sharing by the old kind of handle is not offered, as the real driver does not for mapped memory. */
CUresult do_cuIpcGetMemHandle(CUipcMemHandle *handle, CUdeviceptr ptr)
{
	if (!handle || !softcuda_resolve(ptr, 1, false, softcuda_current()->device, false, NULL))
		return CUDA_ERROR_INVALID_VALUE;
	return CUDA_ERROR_NOT_SUPPORTED;
}

/* One pool a device, whose handle is never looked into. */
CUresult do_cuDeviceGetDefaultMemPool(CUmemoryPool *pool, CUdevice device)
{
	if (!pool)
		return CUDA_ERROR_INVALID_VALUE;
	if (softcuda_device_check(device))
		return CUDA_ERROR_INVALID_DEVICE;
	*pool = (CUmemoryPool)&softcuda_devices[device];
	return CUDA_SUCCESS;
}

CUresult do_cuDeviceGetMemPool(CUmemoryPool *pool, CUdevice device)
{
	return do_cuDeviceGetDefaultMemPool(pool, device);
}

/* The memory is there at once, which no ordered use can tell from being there in the stream's time. */
CUresult do_cuMemAllocFromPoolAsync(CUdeviceptr *ptr, size_t bytes, CUmemoryPool pool, CUstream handle)
{
	struct softcuda_device *device = (struct softcuda_device *)pool;
	CUresult result;

	if (!softcuda_stream(handle, &result))
		return result;
	if (device < softcuda_devices || device >= softcuda_devices + softcuda_config.devices)
		return CUDA_ERROR_INVALID_VALUE;
	return softcuda_alloc(ptr, bytes, NULL, device - softcuda_devices);
}

CUresult do_cuMemAllocAsync(CUdeviceptr *ptr, size_t bytes, CUstream handle)
{
	return do_cuMemAllocFromPoolAsync(ptr, bytes, (CUmemoryPool)&softcuda_devices[softcuda_current()->device],
					  handle);
}

CUresult do_cuMemFreeAsync(CUdeviceptr ptr, CUstream handle)
{
	struct softcuda_op op = {.kind = OP_FREE, .free = ptr};
	CUdeviceptr base = 0;
	CUresult result;
	struct CUstream_st *stream = softcuda_stream(handle, &result);

	if (!stream)
		return result;
	if (do_cuMemGetAddressRange_v2(&base, NULL, ptr) || base != ptr)
		return CUDA_ERROR_INVALID_VALUE;
	return softcuda_submit(stream, &op);
}

static CUresult pointer_attribute(struct softcuda_range *range, CUpointer_attribute attribute, CUdeviceptr ptr,
				  void *value)
{
	bool host = range->kind == SOFTCUDA_PINNED || range->kind == SOFTCUDA_REGISTERED;
	bool both = host || range->kind == SOFTCUDA_MANAGED;

	switch (attribute) {
	case CU_POINTER_ATTRIBUTE_CONTEXT:
		*(CUcontext *)value = range->ctx;
		return range->ctx ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
	case CU_POINTER_ATTRIBUTE_MEMORY_TYPE:
		*(unsigned *)value = host ? CU_MEMORYTYPE_HOST : CU_MEMORYTYPE_DEVICE;
		return CUDA_SUCCESS;
	case CU_POINTER_ATTRIBUTE_DEVICE_POINTER:
		*(CUdeviceptr *)value = ptr;
		return CUDA_SUCCESS;
	case CU_POINTER_ATTRIBUTE_HOST_POINTER:
		*(void **)value = both ? (void *)(uintptr_t)ptr : NULL;
		return both ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
	case CU_POINTER_ATTRIBUTE_SYNC_MEMOPS:
		*(unsigned *)value = 0;
		return CUDA_SUCCESS;
	case CU_POINTER_ATTRIBUTE_BUFFER_ID:
		*(unsigned long long *)value = range->id;
		return CUDA_SUCCESS;
	case CU_POINTER_ATTRIBUTE_IS_MANAGED:
		*(unsigned *)value = range->kind == SOFTCUDA_MANAGED;
		return CUDA_SUCCESS;
	case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL:
		*(int *)value = range->device;
		return CUDA_SUCCESS;
	case CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE:
		*(unsigned *)value = 0;
		return CUDA_SUCCESS;
	case CU_POINTER_ATTRIBUTE_RANGE_START_ADDR:
		*(CUdeviceptr *)value = range->start;
		return CUDA_SUCCESS;
	case CU_POINTER_ATTRIBUTE_RANGE_SIZE:
		*(size_t *)value = range->size;
		return CUDA_SUCCESS;
	case CU_POINTER_ATTRIBUTE_MAPPED:
		*(unsigned *)value = softcuda_resolve(ptr, 1, false, range->device, false, NULL) != NULL;
		return CUDA_SUCCESS;
	default:
		return CUDA_ERROR_INVALID_VALUE;
	}
}

CUresult do_cuPointerGetAttribute(void *value, CUpointer_attribute attribute, CUdeviceptr ptr)
{
	struct softcuda_range *range;

	if (!value)
		return CUDA_ERROR_INVALID_VALUE;
	pthread_rwlock_rdlock(&softcuda_map_lock);
	range = softcuda_range_find(ptr);
	pthread_rwlock_unlock(&softcuda_map_lock);
	return range ? pointer_attribute(range, attribute, ptr, value) : CUDA_ERROR_INVALID_VALUE;
}

/* For an address that the driver does not know, each value becomes 0, and that is no error. */
CUresult do_cuPointerGetAttributes(unsigned int count, CUpointer_attribute *attributes, void **values, CUdeviceptr ptr)
{
	if (!count || !attributes || !values)
		return CUDA_ERROR_INVALID_VALUE;
	for (unsigned i = 0; i < count; i++) {
		bool wide = attributes[i] == CU_POINTER_ATTRIBUTE_CONTEXT ||
			    attributes[i] == CU_POINTER_ATTRIBUTE_DEVICE_POINTER ||
			    attributes[i] == CU_POINTER_ATTRIBUTE_HOST_POINTER ||
			    attributes[i] == CU_POINTER_ATTRIBUTE_BUFFER_ID ||
			    attributes[i] == CU_POINTER_ATTRIBUTE_RANGE_START_ADDR ||
			    attributes[i] == CU_POINTER_ATTRIBUTE_RANGE_SIZE;

		if (do_cuPointerGetAttribute(values[i], attributes[i], ptr) != CUDA_SUCCESS)
			memset(values[i], attributes[i] == CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL ? 0xfe : 0,
			       wide ? 8 : 4);
	}
	return CUDA_SUCCESS;
}
