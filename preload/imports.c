// SPDX-License-Identifier: MIT
/* Memory of other processes that the application imported: only watched, because no checkpoint can have it. */
#include "pieces.h"

/*
 * The driver checkpoints a process that has such memory, and then cannot restore it: the process is lost (measured on
 * an H200). Nor can it be parked, being another's. So as long as any is open, by a handle or a mapping, the page says
 * so, and the pool refuses the checkpoint. A process's import of what it exported itself is taken to be the same.
 */
typedef CUmemGenericAllocationHandle handle_t;

/* With the lock held, from here on, where nothing else is said. */
static void say(struct memory *m)
{
	uint64_t mb = (m->foreign_bytes + (1 << 20) - 1) >> 20;

	if (m->imports && !mb)
		mb = 1;
	__atomic_store_n(&cudapool_state.page->foreign_mb, mb < UINT32_MAX ? mb : UINT32_MAX, __ATOMIC_RELAXED);
}

static struct import *import_of(struct memory *m, handle_t handle)
{
	struct import *import = (struct import *)cudapool_tree_at_most(m->imports, handle);

	return import && import->node.key == handle ? import : NULL;
}

static void end_if_closed(struct memory *m, struct import *import)
{
	if (!import->handles && !import->maps) {
		cudapool_tree_remove(&m->imports, &import->node);
		m->foreign_bytes -= import->bytes;
		cudapool_slab_put(&m->import_slab, import);
	}
	say(m);
}

struct import *cudapool_import_mapping(struct memory *m, handle_t handle, uint64_t bytes)
{
	struct import *import = import_of(m, handle);

	if (!import)
		return NULL;
	import->maps++;
	if (!import->bytes) { /* a mapping is of a whole handle */
		import->bytes = bytes;
		m->foreign_bytes += bytes;
	}
	say(m);
	return import;
}

void cudapool_import_unmapped(struct memory *m, struct import *import)
{
	import->maps--;
	end_if_closed(m, import);
}

void cudapool_import_reopened(struct import *import)
{
	import->handles++;
}

void cudapool_import_released(handle_t handle)
{
	struct memory *m = cudapool_memory(false);
	struct import *import;

	if (!m)
		return;
	cudapool_lock(&m->lock);
	import = import_of(m, handle);
	if (import && import->handles) {
		import->handles--;
		end_if_closed(m, import);
	}
	cudapool_unlock(&m->lock);
}

static CUresult on_cuMemImportFromShareableHandle(handle_t *handle, void *shareable, CUmemAllocationHandleType type)
{
	struct memory *m = cudapool_memory(true);
	struct import *import, *fresh;
	CUresult r;

	if (!m)
		return DRIVER(cuMemImportFromShareableHandle)(handle, shareable, type);
	cudapool_lock(&m->lock);
	fresh = cudapool_slab_get(&m->import_slab);
	cudapool_unlock(&m->lock);
	if (!fresh)
		return CUDA_ERROR_OUT_OF_MEMORY;
	r = DRIVER(cuMemImportFromShareableHandle)(handle, shareable, type);
	cudapool_lock(&m->lock);
	import = r == CUDA_SUCCESS ? import_of(m, *handle) : NULL;
	if (r == CUDA_SUCCESS && !import) {
		import = fresh;
		fresh = NULL;
		import->node.key = *handle;
		cudapool_tree_insert(&m->imports, &import->node);
	}
	if (import)
		import->handles++;
	if (fresh)
		cudapool_slab_put(&m->import_slab, fresh);
	say(m);
	cudapool_unlock(&m->lock);
	return r;
}
WRAPPER(cuMemImportFromShareableHandle, (handle_t *handle, void *shareable, CUmemAllocationHandleType type),
	(handle, shareable, type))

/*
 * Legacy IPC. What another process let us open is the driver's affair, and only counted. (What we have ourselves cannot
 * be shared so, if it can be parked: the driver refuses cuIpcGetMemHandle for mapped memory.)
 */
static CUresult opened(CUresult r, const CUdeviceptr *ptr)
{
	struct memory *m = cudapool_memory(true);
	CUcontext context;
	size_t bytes;
	int device;
	bool known;

	if (r != CUDA_SUCCESS || !m || !cudapool_memory_current(&context, &device) ||
	    DRIVER(cuMemGetAddressRange_v2)(NULL, &bytes, *ptr) != CUDA_SUCCESS)
		return r;
	cudapool_lock(&m->lock);
	known = cudapool_region_at(m, *ptr); /* opened once more, it is where it was */
	cudapool_unlock(&m->lock);
	if (!known)
		cudapool_left_add(m, *ptr, bytes, CUDAPOOL_LEFT_SHARED, context, device);
	return r;
}

static CUresult on_cuIpcOpenMemHandle(CUdeviceptr *ptr, CUipcMemHandle handle, unsigned int flags)
{
	return opened(DRIVER(cuIpcOpenMemHandle)(ptr, handle, flags), ptr);
}
WRAPPER(cuIpcOpenMemHandle, (CUdeviceptr *ptr, CUipcMemHandle handle, unsigned int flags), (ptr, handle, flags))

static CUresult on_cuIpcOpenMemHandle_v2(CUdeviceptr *ptr, CUipcMemHandle handle, unsigned int flags)
{
	return opened(DRIVER(cuIpcOpenMemHandle_v2)(ptr, handle, flags), ptr);
}
WRAPPER(cuIpcOpenMemHandle_v2, (CUdeviceptr *ptr, CUipcMemHandle handle, unsigned int flags), (ptr, handle, flags))

/* Out of the tables first: as soon as it is closed its addresses may be something else's. */
static CUresult on_cuIpcCloseMemHandle(CUdeviceptr ptr)
{
	struct memory *m = cudapool_memory(false);
	struct region *region = NULL;
	size_t bytes;
	bool gone;
	CUresult r;

	if (m) {
		cudapool_lock(&m->lock);
		region = cudapool_region_at(m, ptr);
		if (region && region_start(region) == ptr && region->kind == REGION_DRIVERS && !region->import)
			cudapool_region_remove(m, region);
		else
			region = NULL;
		cudapool_unlock(&m->lock);
	}
	r = DRIVER(cuIpcCloseMemHandle)(ptr);
	if (region) {
		gone = r == CUDA_SUCCESS && DRIVER(cuMemGetAddressRange_v2)(NULL, &bytes, ptr) != CUDA_SUCCESS;
		cudapool_lock(&m->lock);
		if (gone)
			cudapool_slab_put(&m->region_slab, region);
		else
			cudapool_region_enter(m, region);
		cudapool_unlock(&m->lock);
	}
	return r;
}
WRAPPER(cuIpcCloseMemHandle, (CUdeviceptr ptr), (ptr))
