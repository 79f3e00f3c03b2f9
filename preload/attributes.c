// SPDX-License-Identifier: MIT
/* What the application is told about memory: how much is free, what an address belongs to. */
#include <string.h>

#include "clock.h"
#include "pieces.h"

#define WANT_LIMIT_MS 5000 /* for the pool to evict: it takes milliseconds, or it is not there */
#define NOTICE_MS     700  /* from a first context until a pool has seen it: it looks every 250 ms, and then tells */
#define NOTICE_STEP_US 5000

#define UNKNOWN	      1	   /* an address that belongs to nobody */

/* How much memory there is. */

uint64_t cudapool_memory_evictable(int device)
{
	struct cudapool_page *page = cudapool_state.page;

	return page && device >= 0 && device < CUDAPOOL_PAGE_DEVICES
		       ? __atomic_load_n(&page->devices[device].evictable, __ATOMIC_RELAXED)
		       : 0;
}

/* What the pool would give up; of a process that is so new that no pool can have seen it, that is waited for. */
static bool anything_evictable(int device)
{
	int64_t end = cudapool_state.context_ms + NOTICE_MS;

	while (!cudapool_memory_evictable(device)) {
		if (!cudapool_state.context_ms || cudapool_now_ms() >= end)
			return false;
		cudapool_sleep_us(NOTICE_STEP_US);
	}
	return true;
}

/* One thread asks at a time: there is one place for it on the page. */
bool cudapool_memory_want(int device, uint64_t bytes)
{
	struct memory *m = cudapool_memory(true);
	struct cudapool_page *page = cudapool_state.page;
	uint32_t number, granted;
	uint64_t released;
	int64_t end;
	bool got;

	if (!m)
		return false;
	/* First what our own pools hold and nobody uses, as the driver does. */
	released = cudapool_pools_trim(m, device, true);
	if (released >= bytes || !anything_evictable(device))
		return released;
	end = cudapool_now_ms() + WANT_LIMIT_MS;
	cudapool_lock(&m->want_lock);
	page->want_device = device;
	page->want_bytes = bytes - released;
	number = __atomic_add_fetch(&page->want_seq, 1, __ATOMIC_RELEASE);
	cudapool_futex_wake(&page->want_seq, 1);
	while (!(got = (granted = __atomic_load_n(&page->granted_seq, __ATOMIC_ACQUIRE)) == number)) {
		int64_t left = end - cudapool_now_ms();

		if (left <= 0)
			break;
		cudapool_futex_wait(&page->granted_seq, granted, left);
	}
	cudapool_unlock(&m->want_lock);
	return got || released;
}

/* What the pool would give up is free, as far as the application is concerned. */
static CUresult on_cuMemGetInfo_v2(size_t *free, size_t *total)
{
	struct memory *m = cudapool_memory(false);
	CUcontext context;
	uint64_t more;
	int device;
	CUresult r;

	if (m)
		cudapool_pools_trim(m, -1, false);
	r = DRIVER(cuMemGetInfo_v2)(free, total);
	if (r == CUDA_SUCCESS && cudapool_memory_current(&context, &device)) {
		more = cudapool_memory_evictable(device);
		*free = more < *total - *free ? *free + more : *total;
	}
	return r;
}
WRAPPER(cuMemGetInfo_v2, (size_t *free, size_t *total), (free, total))

/* What an address belongs to. */

enum whose {
	DRIVERS, /* the driver's answer is right */
	OURS,	 /* some of it must be corrected */
	UNASKED, /* the same, and the current device has access that nobody asked for */
	NOBODYS, /* mapped, but no memory of the application's: behind the end of an allocation, or free in a pool */
};

static enum whose look_up(CUdeviceptr ptr, struct region *copy, struct block *block)
{
	struct memory *m = cudapool_memory(false);
	enum whose whose = DRIVERS;
	struct region *region;
	CUcontext context;
	uint32_t unasked = 0;
	int device;

	if (!m)
		return DRIVERS;
	cudapool_lock(&m->lock);
	region = cudapool_region_before(m, ptr);
	if (region && region->block && ptr - region_start(region) < region->span) {
		*copy = *region;
		*block = *region->block;
		whose = ptr - region_start(region) < region->bytes ? OURS : NOBODYS;
		unasked = region->unasked;
	} else {
		/* What is free in a pool is mapped all the same. */
		region = (struct region *)cudapool_tree_at_most(m->chunks, ptr);
		if (region && ptr - region_start(region) < region->span)
			whose = NOBODYS;
	}
	cudapool_unlock(&m->lock);
	if (whose == OURS && unasked && cudapool_memory_current(&context, &device) && unasked >> device & 1)
		whose = UNASKED;
	return whose;
}

static void put_wide(void *value, uint64_t number)
{
	memcpy(value, &number, sizeof(number));
}

/*
 * True: this is the answer. What is not here the driver knows, or says as for its own allocations; for
 * IS_LEGACY_CUDA_IPC_CAPABLE that is 0, because cuIpcGetMemHandle fails.
 */
static bool answer(const struct region *region, const struct block *block, CUpointer_attribute attribute, void *value)
{
	bool view = region->kind == REGION_VIEW;

	switch (attribute) {
	case CU_POINTER_ATTRIBUTE_BUFFER_ID:
		put_wide(value, region->id);
		return true;
	case CU_POINTER_ATTRIBUTE_MEMORY_BLOCK_ID:
		put_wide(value, block->id);
		return true;
	case CU_POINTER_ATTRIBUTE_MAPPING_BASE_ADDR:
		put_wide(value, region->kind == REGION_ORDERED ? region_start(block->regions) : region_start(region));
		return true;
	case CU_POINTER_ATTRIBUTE_MAPPING_SIZE:
		put_wide(value, region->kind == REGION_ORDERED ? block->bytes : region->span);
		return true;
	case CU_POINTER_ATTRIBUTE_ALLOWED_HANDLE_TYPES:
		put_wide(value, view ? block->prop.requestedHandleTypes : 0);
		return true;
	case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL:
		*(int *)value = region->device;
		return true;
	case CU_POINTER_ATTRIBUTE_CONTEXT:
		if (!view)
			put_wide(value, (uintptr_t)region->context);
		return !view;
	case CU_POINTER_ATTRIBUTE_RANGE_START_ADDR:
		if (!view)
			put_wide(value, region_start(region));
		return !view;
	case CU_POINTER_ATTRIBUTE_RANGE_SIZE:
		if (!view)
			put_wide(value, region->bytes);
		return !view;
	case CU_POINTER_ATTRIBUTE_MEMPOOL_HANDLE:
		if (!view)
			put_wide(value, (uintptr_t)region->pool);
		return !view;
	case CU_POINTER_ATTRIBUTE_SYNC_MEMOPS:
		if (region->sync_memops)
			*(unsigned *)value = region->sync_memops == SYNC_MEMOPS_ON;
		return region->sync_memops;
	default:
		return false;
	}
}

static CUresult on_cuPointerGetAttribute(void *value, CUpointer_attribute attribute, CUdeviceptr ptr)
{
	struct region region;
	struct block block;
	enum whose whose = value ? look_up(ptr, &region, &block) : DRIVERS;

	if (whose == NOBODYS)
		return CUDA_ERROR_INVALID_VALUE;
	if (whose == UNASKED && attribute == CU_POINTER_ATTRIBUTE_DEVICE_POINTER) {
		put_wide(value, 0);
		return CUDA_ERROR_INVALID_VALUE;
	}
	if (whose != DRIVERS && answer(&region, &block, attribute, value))
		return CUDA_SUCCESS;
	return DRIVER(cuPointerGetAttribute)(value, attribute, ptr);
}
WRAPPER(cuPointerGetAttribute, (void *value, CUpointer_attribute attribute, CUdeviceptr ptr), (value, attribute, ptr))

static CUresult on_cuPointerGetAttributes(unsigned int count, CUpointer_attribute *attributes, void **values,
					  CUdeviceptr ptr)
{
	struct region region;
	struct block block;
	enum whose whose = look_up(ptr, &region, &block);
	unsigned int i;
	CUresult r;

	/* For an address that nobody knows, the driver's own answer, asked with another such address. */
	r = DRIVER(cuPointerGetAttributes)(count, attributes, values, whose == NOBODYS ? UNKNOWN : ptr);
	if (r != CUDA_SUCCESS || whose == DRIVERS)
		return r;
	for (i = 0; i < count; i++) {
		if (!values[i])
			continue;
		if (whose != NOBODYS)
			answer(&region, &block, attributes[i], values[i]);
		else if (attributes[i] == CU_POINTER_ATTRIBUTE_HOST_POINTER)
			put_wide(values[i], ptr);
		if (whose == UNASKED && attributes[i] == CU_POINTER_ATTRIBUTE_DEVICE_POINTER)
			put_wide(values[i], 0);
	}
	return r;
}
WRAPPER(cuPointerGetAttributes,
	(unsigned int count, CUpointer_attribute *attributes, void **values, CUdeviceptr ptr),
	(count, attributes, values, ptr))

/* The driver does not set it for mapped memory (801), where it is always on; for an allocation it remembers it. */
static CUresult on_cuPointerSetAttribute(const void *value, CUpointer_attribute attribute, CUdeviceptr ptr)
{
	struct memory *m = cudapool_memory(false);
	struct region *region;
	bool ours = false;

	if (m && value && attribute == CU_POINTER_ATTRIBUTE_SYNC_MEMOPS) {
		cudapool_lock(&m->lock);
		region = cudapool_region_at(m, ptr);
		ours = region && (region->kind == REGION_ALLOCATION || region->kind == REGION_ORDERED);
		if (ours)
			region->sync_memops = *(const unsigned *)value ? SYNC_MEMOPS_ON : SYNC_MEMOPS_OFF;
		cudapool_unlock(&m->lock);
	}
	return ours ? CUDA_SUCCESS : DRIVER(cuPointerSetAttribute)(value, attribute, ptr);
}
WRAPPER(cuPointerSetAttribute, (const void *value, CUpointer_attribute attribute, CUdeviceptr ptr),
	(value, attribute, ptr))

static CUresult on_cuMemGetAddressRange_v2(CUdeviceptr *base, size_t *size, CUdeviceptr ptr)
{
	struct region region;
	struct block block;
	enum whose whose = look_up(ptr, &region, &block);
	CUresult r = DRIVER(cuMemGetAddressRange_v2)(base, size, whose == NOBODYS || whose == UNASKED ? UNKNOWN : ptr);

	if (r == CUDA_SUCCESS && whose == OURS) {
		if (base)
			*base = region_start(&region);
		if (size)
			*size = region.bytes;
	}
	return r;
}
WRAPPER(cuMemGetAddressRange_v2, (CUdeviceptr *base, size_t *size, CUdeviceptr ptr), (base, size, ptr))
