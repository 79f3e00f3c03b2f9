// SPDX-License-Identifier: MIT
/* What the driver says about an address; as a 580 driver says it, asked attribute by attribute. */
#include "internal.h"

#include <string.h>

/* One allocation, or one piece of a reservation, as it is asked for. */
struct view {
	const struct softcuda_range *range;
	const struct softcuda_piece *piece; /* of a reservation */
	CUdeviceptr base;                   /* of what is mapped in one piece */
	size_t size;
	int device;
	unsigned access; /* of the current context's device */
	bool usable;     /* by kernels in the current context */
};

/* With the map's lock held. */
static bool look(struct view *view, CUdeviceptr ptr)
{
	struct CUctx_st *ctx = softcuda_current();
	uint32_t bit = ctx ? 1u << ctx->device : 1;
	unsigned index;

	memset(view, 0, sizeof(*view));
	view->range = softcuda_range_find(ptr);
	if (!view->range)
		return false;
	view->base = view->range->start;
	view->size = view->range->counted ? view->range->counted : view->range->size;
	view->device = view->range->device;
	view->access = CU_MEM_ACCESS_FLAGS_PROT_READWRITE; /* an allocation of another device is said to have it, too */
	view->usable = view->range->kind != SOFTCUDA_ALLOC || !ctx || view->device == ctx->device ||
		       ctx->peers & 1u << view->device;
	if (view->range->kind != SOFTCUDA_RESERVED)
		return true;
	index = softcuda_piece_index(view->range, ptr - view->range->start);
	if (index == view->range->piece_count || view->range->pieces[index].offset > ptr - view->range->start)
		return false;
	view->piece = &view->range->pieces[index];
	view->base += view->piece->offset;
	view->size = view->piece->size;
	view->device = view->piece->physical->device;
	view->access = view->piece->writable & bit   ? CU_MEM_ACCESS_FLAGS_PROT_READWRITE
		       : view->piece->readable & bit ? CU_MEM_ACCESS_FLAGS_PROT_READ
						     : CU_MEM_ACCESS_FLAGS_PROT_NONE;
	view->usable = view->access;
	return true;
}

CUresult do_cuMemGetAddressRange_v2(CUdeviceptr *base, size_t *size, CUdeviceptr ptr)
{
	struct view view;
	bool found;

	if (!base && !size)
		return CUDA_SUCCESS;
	pthread_rwlock_rdlock(&softcuda_map_lock);
	found = look(&view, ptr) && view.usable;
	if (found && base)
		*base = view.base;
	if (found && size)
		*size = view.piece ? view.size : view.range->size;
	pthread_rwlock_unlock(&softcuda_map_lock);
	return found ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND;
}

static CUresult attribute_of(const struct view *view, CUpointer_attribute attribute, CUdeviceptr ptr, void *value)
{
	enum softcuda_kind kind = view->range->kind;
	bool host = kind == SOFTCUDA_PINNED || kind == SOFTCUDA_REGISTERED, both = host || kind == SOFTCUDA_MANAGED;
	CUmemAllocationProp none = {}, *prop = view->piece ? &view->piece->physical->prop : &none;

	switch (attribute) {
	case CU_POINTER_ATTRIBUTE_CONTEXT:
		*(CUcontext *)value = view->range->ctx;
		return CUDA_SUCCESS;
	case CU_POINTER_ATTRIBUTE_MEMORY_TYPE:
		*(unsigned *)value = host ? CU_MEMORYTYPE_HOST : CU_MEMORYTYPE_DEVICE;
		return CUDA_SUCCESS;
	case CU_POINTER_ATTRIBUTE_DEVICE_POINTER:
		*(CUdeviceptr *)value = view->usable ? ptr : 0;
		return view->usable ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
	case CU_POINTER_ATTRIBUTE_HOST_POINTER:
		*(void **)value = both ? (void *)(uintptr_t)ptr : NULL;
		return both ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
	case CU_POINTER_ATTRIBUTE_SYNC_MEMOPS:
		*(unsigned *)value = view->range->sync_memops;
		return CUDA_SUCCESS;
	case CU_POINTER_ATTRIBUTE_BUFFER_ID:
		*(unsigned long long *)value = view->range->id;
		return CUDA_SUCCESS;
	case CU_POINTER_ATTRIBUTE_MEMORY_BLOCK_ID:
		*(unsigned long long *)value = view->piece ? view->piece->physical->id : view->range->id;
		return CUDA_SUCCESS;
	case CU_POINTER_ATTRIBUTE_IS_MANAGED:
		*(unsigned *)value = kind == SOFTCUDA_MANAGED;
		return CUDA_SUCCESS;
	case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL:
		*(int *)value = view->device;
		return CUDA_SUCCESS;
	case CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE:
		*(unsigned *)value = kind == SOFTCUDA_ALLOC;
		return CUDA_SUCCESS;
	case CU_POINTER_ATTRIBUTE_RANGE_START_ADDR:
		*(CUdeviceptr *)value = view->range->start;
		return CUDA_SUCCESS;
	case CU_POINTER_ATTRIBUTE_RANGE_SIZE:
		*(size_t *)value = view->range->size;
		return CUDA_SUCCESS;
	case CU_POINTER_ATTRIBUTE_MAPPED:
		*(unsigned *)value = 1;
		return CUDA_SUCCESS;
	case CU_POINTER_ATTRIBUTE_ALLOWED_HANDLE_TYPES:
		*(unsigned long long *)value = prop->requestedHandleTypes;
		return CUDA_SUCCESS;
	case CU_POINTER_ATTRIBUTE_IS_GPU_DIRECT_RDMA_CAPABLE:
		*(unsigned *)value = kind == SOFTCUDA_ALLOC || prop->allocFlags.gpuDirectRDMACapable;
		return CUDA_SUCCESS;
	case CU_POINTER_ATTRIBUTE_ACCESS_FLAGS:
		*(unsigned *)value = view->access;
		return CUDA_SUCCESS;
	case CU_POINTER_ATTRIBUTE_MEMPOOL_HANDLE:
		*(CUmemoryPool *)value = kind == SOFTCUDA_ORDERED ? softcuda_ordered_pool(view->range->block) : NULL;
		return CUDA_SUCCESS;
	case CU_POINTER_ATTRIBUTE_MAPPING_SIZE:
		*(size_t *)value = view->size;
		return CUDA_SUCCESS;
	case CU_POINTER_ATTRIBUTE_MAPPING_BASE_ADDR:
		*(CUdeviceptr *)value = view->base;
		return CUDA_SUCCESS;
	case CU_POINTER_ATTRIBUTE_IS_HW_DECOMPRESS_CAPABLE:
		*(unsigned *)value = 0;
		return CUDA_SUCCESS;
	default:
		return CUDA_ERROR_INVALID_VALUE;
	}
}

CUresult do_cuPointerGetAttribute(void *value, CUpointer_attribute attribute, CUdeviceptr ptr)
{
	CUresult result = CUDA_ERROR_INVALID_VALUE;
	struct view view;

	if (!value)
		return result;
	pthread_rwlock_rdlock(&softcuda_map_lock);
	if (look(&view, ptr))
		result = attribute_of(&view, attribute, ptr, value);
	pthread_rwlock_unlock(&softcuda_map_lock);
	return result;
}

/* What it says of an address that it does not know, which is no error. */
static void attribute_unknown(CUpointer_attribute attribute, CUdeviceptr ptr, void *value)
{
	switch (attribute) {
	case CU_POINTER_ATTRIBUTE_RANGE_START_ADDR:
	case CU_POINTER_ATTRIBUTE_RANGE_SIZE:
		break; /* left as they are */
	case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL:
		*(int *)value = -2;
		break;
	case CU_POINTER_ATTRIBUTE_HOST_POINTER:
		*(CUdeviceptr *)value = ptr;
		break;
	case CU_POINTER_ATTRIBUTE_CONTEXT:
	case CU_POINTER_ATTRIBUTE_DEVICE_POINTER:
	case CU_POINTER_ATTRIBUTE_BUFFER_ID:
	case CU_POINTER_ATTRIBUTE_ALLOWED_HANDLE_TYPES:
	case CU_POINTER_ATTRIBUTE_MEMPOOL_HANDLE:
	case CU_POINTER_ATTRIBUTE_MAPPING_SIZE:
	case CU_POINTER_ATTRIBUTE_MAPPING_BASE_ADDR:
	case CU_POINTER_ATTRIBUTE_MEMORY_BLOCK_ID:
		*(uint64_t *)value = 0;
		break;
	default:
		*(unsigned *)value = 0;
	}
}

CUresult do_cuPointerGetAttributes(unsigned int count, CUpointer_attribute *attributes, void **values, CUdeviceptr ptr)
{
	struct view view;
	bool known;

	if (!count || !attributes || !values)
		return CUDA_ERROR_INVALID_VALUE;
	for (unsigned i = 0; i < count; i++) {
		if (!values[i] || attributes[i] < CU_POINTER_ATTRIBUTE_CONTEXT ||
		    attributes[i] > CU_POINTER_ATTRIBUTE_IS_HW_DECOMPRESS_CAPABLE)
			return CUDA_ERROR_INVALID_VALUE;
	}
	pthread_rwlock_rdlock(&softcuda_map_lock);
	known = look(&view, ptr);
	for (unsigned i = 0; i < count; i++) {
		if (known)
			attribute_of(&view, attributes[i], ptr, values[i]); /* what fails alone is 0 here */
		else
			attribute_unknown(attributes[i], ptr, values[i]);
	}
	pthread_rwlock_unlock(&softcuda_map_lock);
	return CUDA_SUCCESS;
}

CUresult do_cuPointerSetAttribute(const void *value, CUpointer_attribute attribute, CUdeviceptr ptr)
{
	CUresult result = CUDA_ERROR_INVALID_VALUE;
	struct softcuda_range *range;

	if (!value || attribute != CU_POINTER_ATTRIBUTE_SYNC_MEMOPS)
		return result;
	pthread_rwlock_wrlock(&softcuda_map_lock);
	range = softcuda_range_find(ptr);
	if (range && range->kind == SOFTCUDA_RESERVED) {
		result = CUDA_ERROR_NOT_SUPPORTED;
	} else if (range) {
		range->sync_memops = *(const unsigned *)value != 0;
		result = CUDA_SUCCESS;
	}
	pthread_rwlock_unlock(&softcuda_map_lock);
	return result;
}
