// SPDX-License-Identifier: MIT
/* Pieces on their way out of the process and back: exported and detached, imported, renewed and mapped. */
#include <string.h>

#include "clock.h"
#include "pieces.h"

/*
 * All of this runs in the shim's thread while the gate is closed and no call is under way: nobody else is in the
 * tables, and no lock of them is held. Nothing here needs the application's heap.
 */

#define BATCH	    CUDAPOOL_CHANNEL_BATCH /* pieces that are copied at once */
#define BATCH_BYTES CUDAPOOL_CHANNEL_BATCH_BYTES /* and their bytes, but for the last of them */
#define COPY_LIMIT_MS 10000	  /* for one batch: a GPU that has nothing else to do needs milliseconds */

/* Another thread's capture must not forbid us anything. */
static void relax(void)
{
	CUstreamCaptureMode mode = CU_STREAM_CAPTURE_MODE_RELAXED;

	if (DRIVER(cuThreadExchangeStreamCaptureMode))
		DRIVER(cuThreadExchangeStreamCaptureMode)(&mode);
}

static CUresult unmap_at(const struct region *region, const struct piece *piece)
{
	return DRIVER(cuMemUnmap)(region_start(region) + piece->offset, piece->bytes);
}

static CUresult map_at(struct region *region, const struct piece *piece)
{
	CUdeviceptr address = region_start(region) + piece->offset;
	CUresult r = DRIVER(cuMemMap)(address, piece->bytes, 0, piece->handle, 0);

	if (r != CUDA_SUCCESS)
		return r;
	r = cudapool_access_give(region, address, piece->bytes, 0);
	if (r != CUDA_SUCCESS)
		DRIVER(cuMemUnmap)(address, piece->bytes);
	return r;
}

/* Wherever it is to be, or nowhere. */
static CUresult map_everywhere(const struct piece *piece)
{
	struct region *region, *undo;
	CUresult r;

	for (region = piece->block->regions; region; region = region->next) {
		r = map_at(region, piece);
		if (r == CUDA_SUCCESS)
			continue;
		for (undo = piece->block->regions; undo != region; undo = undo->next)
			unmap_at(undo, piece);
		return r;
	}
	return CUDA_SUCCESS;
}

/* Everywhere, or it is as before. */
static CUresult unmap_everywhere(const struct piece *piece)
{
	struct region *region, *undo;
	CUresult r;

	for (region = piece->block->regions; region; region = region->next) {
		r = unmap_at(region, piece);
		if (r == CUDA_SUCCESS)
			continue;
		for (undo = piece->block->regions; undo != region; undo = undo->next)
			map_at(undo, piece);
		return r;
	}
	return CUDA_SUCCESS;
}

void cudapool_memory_settle(void)
{
	struct memory *m = cudapool_memory(false);

	relax();
	if (m)
		cudapool_pools_trim(m, -1, false);
}

unsigned cudapool_memory_count(void)
{
	struct memory *m = cudapool_memory(false);

	return m ? m->piece_count : 0;
}

void cudapool_memory_piece(unsigned index, struct cudapool_piece_info *info)
{
	const struct piece *piece = cudapool_memory(false)->pieces[index];

	info->bytes = piece->bytes;
	info->device = piece->block->device;
	info->flags = piece->block->rdma ? CUDAPOOL_CHANNEL_RDMA : 0;
	info->imported = piece->imported;
}

CUresult cudapool_memory_export(unsigned index, int *fd)
{
	relax();
	return DRIVER(cuMemExportToShareableHandle)(fd, cudapool_memory(false)->pieces[index]->handle,
						    CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0);
}

CUresult cudapool_memory_detach(void)
{
	struct memory *m = cudapool_memory(false);
	CUresult first = CUDA_SUCCESS, r;
	uint32_t i;

	relax();
	for (i = 0; m && i < m->piece_count; i++) {
		struct piece *piece = m->pieces[i];

		if (!piece->present)
			continue;
		r = piece->apart ? CUDA_SUCCESS : unmap_everywhere(piece);
		if (r == CUDA_SUCCESS) {
			r = DRIVER(cuMemRelease)(piece->handle);
			piece->present = piece->apart = false;
			cudapool_piece_imported(m, piece, false);
		}
		if (first == CUDA_SUCCESS)
			first = r;
	}
	return first;
}

CUresult cudapool_memory_import(unsigned index, int fd)
{
	struct memory *m = cudapool_memory(false);
	struct piece *piece = m->pieces[index];
	CUresult r;

	if (piece->present)
		return CUDA_SUCCESS;
	relax();
	r = DRIVER(cuMemImportFromShareableHandle)(&piece->handle, (void *)(intptr_t)fd,
						   CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR);
	if (r != CUDA_SUCCESS)
		return r;
	piece->present = piece->apart = true;
	cudapool_piece_imported(m, piece, true);
	return CUDA_SUCCESS;
}

CUresult cudapool_memory_map(unsigned first, unsigned count)
{
	struct memory *m = cudapool_memory(false);
	CUresult r = CUDA_SUCCESS;
	unsigned i;

	relax();
	for (i = first; i < first + count && r == CUDA_SUCCESS; i++) {
		if (!m->pieces[i]->apart)
			continue;
		r = map_everywhere(m->pieces[i]);
		m->pieces[i]->apart = r != CUDA_SUCCESS;
	}
	return r;
}

/*
 * Renewing. The new memory takes the old one's place, and is written to there; only the old one needs other addresses
 * to be read at. So each piece is mapped twice and not three times, which is most of what it takes. Where the device
 * may not write to a piece's place, or it has none, the new one has other addresses for that, too.
 */

struct batch {
	int device;
	unsigned count;
	uint64_t bytes;
	struct piece *old[BATCH];
	struct piece fresh[BATCH]; /* what it is to become; only its memory counts */
	unsigned placed;	   /* of so many the new memory is where the old one was */
	uint64_t aside;		   /* bytes that have addresses of their own for the copying */
};

/* New memory for those from *at to `end` on this device that need it, as many as go into a batch. */
static CUresult gather(struct memory *m, uint32_t *at, uint32_t end, struct batch *batch)
{
	CUresult r = CUDA_SUCCESS;

	for (; *at < end && batch->count < BATCH && batch->bytes < BATCH_BYTES; ++*at) {
		struct piece *piece = m->pieces[*at], *fresh = &batch->fresh[batch->count];

		if (!piece->imported || piece->block->device != batch->device)
			continue;
		if (batch->count && piece->bytes > BATCH_BYTES - batch->bytes)
			break;
		*fresh = (struct piece){.block = piece->block, .bytes = piece->bytes, .offset = piece->offset};
		r = cudapool_piece_make(fresh, piece->block->rdma);
		/* Those that we have are enough to go on: then the memory of as many others becomes free. */
		if (r == CUDA_ERROR_OUT_OF_MEMORY && batch->count)
			return CUDA_SUCCESS;
		if (r == CUDA_ERROR_OUT_OF_MEMORY && cudapool_memory_want(piece->block->device, piece->bytes))
			r = cudapool_piece_make(fresh, piece->block->rdma);
		if (r != CUDA_SUCCESS)
			break;
		batch->old[batch->count++] = piece;
		batch->bytes += piece->bytes;
	}
	return r;
}

/* Puts the new memory where the old one is, or is to be. On an error the rest is as it was. */
static CUresult place(struct batch *batch)
{
	CUresult r = CUDA_SUCCESS;

	for (; batch->placed < batch->count; batch->placed++) {
		struct piece *old = batch->old[batch->placed];

		r = old->apart ? CUDA_SUCCESS : unmap_everywhere(old);
		if (r != CUDA_SUCCESS)
			return r;
		r = map_everywhere(&batch->fresh[batch->placed]);
		if (r == CUDA_SUCCESS)
			continue;
		if (!old->apart)
			map_everywhere(old);
		return r;
	}
	return r;
}

/* The opposite. What cannot be mapped any more is apart: whoever maps hears of it. */
static void place_back(struct batch *batch)
{
	while (batch->placed) {
		struct piece *old = batch->old[--batch->placed];

		unmap_everywhere(&batch->fresh[batch->placed]);
		if (!old->apart)
			old->apart = map_everywhere(old) != CUDA_SUCCESS;
	}
}

/* Where it can be written to among its places; 0: nowhere. */
static CUdeviceptr place_of(const struct piece *piece)
{
	const struct region *region;

	for (region = piece->block->regions; region; region = region->next)
		if (region->writable >> piece->block->device & 1)
			return region_start(region) + piece->offset;
	return 0;
}

static CUresult map_aside(struct batch *batch, CUdeviceptr scratch, const struct piece *piece)
{
	CUresult r = DRIVER(cuMemMap)(scratch + batch->aside, piece->bytes, 0, piece->handle, 0);

	if (r == CUDA_SUCCESS)
		batch->aside += piece->bytes;
	return r;
}

/* The old memory at `scratch`, and behind it the new one that cannot be written to where it is. */
static CUresult map_all_aside(struct batch *batch, CUdeviceptr scratch)
{
	uint32_t device = 1u << batch->device;
	CUresult r = CUDA_SUCCESS;
	unsigned i;

	for (i = 0; i < batch->count && r == CUDA_SUCCESS; i++)
		r = map_aside(batch, scratch, batch->old[i]);
	for (i = 0; i < batch->count && r == CUDA_SUCCESS; i++)
		if (!place_of(&batch->fresh[i]))
			r = map_aside(batch, scratch, &batch->fresh[i]);
	return r == CUDA_SUCCESS ? cudapool_access_set(scratch, batch->aside, device, device, 0) : r;
}

static CUresult copied(CUstream stream)
{
	int64_t end = cudapool_now_ms() + COPY_LIMIT_MS;
	CUresult r;

	while ((r = DRIVER(cuStreamQuery)(stream)) == CUDA_ERROR_NOT_READY && cudapool_now_ms() < end)
		;
	return r;
}

/* All of a batch at once, and waited for once. */
static CUresult copy_on(const struct batch *batch, CUdeviceptr scratch, CUstream stream)
{
	CUdeviceptr from = scratch, aside = scratch + batch->bytes, to;
	CUresult r = CUDA_SUCCESS, waited;
	unsigned i;

	for (i = 0; i < batch->count && r == CUDA_SUCCESS; i++) {
		uint64_t bytes = batch->old[i]->bytes;

		to = place_of(&batch->fresh[i]);
		if (!to) {
			to = aside;
			aside += bytes;
		}
		r = DRIVER(cuMemcpyDtoDAsync_v2)(to, from, bytes, stream);
		from += bytes;
	}
	waited = copied(stream);
	return r == CUDA_SUCCESS ? waited : r;
}

static CUresult copy(struct batch *batch)
{
	CUdeviceptr scratch;
	CUstream stream;
	CUresult r;

	r = DRIVER(cuMemAddressReserve)(&scratch, 2 * batch->bytes, 0, 0, 0);
	if (r != CUDA_SUCCESS)
		return r;
	r = map_all_aside(batch, scratch);
	if (r == CUDA_SUCCESS)
		r = DRIVER(cuStreamCreate)(&stream, CU_STREAM_NON_BLOCKING);
	if (r == CUDA_SUCCESS) {
		r = copy_on(batch, scratch, stream);
		DRIVER(cuStreamDestroy_v2)(stream);
	}
	if (batch->aside)
		DRIVER(cuMemUnmap)(scratch, batch->aside);
	DRIVER(cuMemAddressFree)(scratch, 2 * batch->bytes);
	return r;
}

static CUresult copy_in_context(struct memory *m, struct batch *batch)
{
	CUcontext context = m->context[batch->device], popped;
	bool retained = !context;
	CUresult r = CUDA_SUCCESS;

	if (retained)
		r = DRIVER(cuDevicePrimaryCtxRetain)(&context, batch->device);
	if (r != CUDA_SUCCESS)
		return r;
	r = DRIVER(cuCtxPushCurrent_v2)(context);
	if (r == CUDA_SUCCESS) {
		r = copy(batch);
		DRIVER(cuCtxPopCurrent_v2)(&popped);
	}
	if (retained)
		DRIVER(cuDevicePrimaryCtxRelease_v2)(batch->device);
	return r;
}

static CUresult renew_batch(struct memory *m, struct batch *batch)
{
	CUresult r = place(batch);
	unsigned i;

	if (r == CUDA_SUCCESS)
		r = copy_in_context(m, batch);
	if (r != CUDA_SUCCESS)
		place_back(batch);
	for (i = 0; i < batch->count; i++) {
		struct piece *piece = batch->old[i];

		DRIVER(cuMemRelease)(r == CUDA_SUCCESS ? piece->handle : batch->fresh[i].handle);
		if (r != CUDA_SUCCESS)
			continue;
		piece->handle = batch->fresh[i].handle;
		piece->apart = false;
		cudapool_piece_imported(m, piece, false);
	}
	return r;
}

static CUresult renew_on(struct memory *m, int device, uint32_t at, uint32_t end)
{
	CUresult r = CUDA_SUCCESS, made;
	struct batch batch;

	while (at < end && r == CUDA_SUCCESS) {
		batch.device = device;
		batch.count = batch.placed = 0;
		batch.bytes = batch.aside = 0;
		made = gather(m, &at, end, &batch);
		if (batch.count)
			r = renew_batch(m, &batch);
		if (r == CUDA_SUCCESS)
			r = made;
	}
	return r;
}

CUresult cudapool_memory_renew(unsigned first, unsigned count)
{
	struct memory *m = cudapool_memory(false);
	CUresult worst = CUDA_SUCCESS, r;
	int device;

	if (!m || !m->imported_bytes)
		return CUDA_SUCCESS;
	relax();
	for (device = 0; device < MEMORY_DEVICES; device++) {
		r = renew_on(m, device, first, first + count);
		if (worst == CUDA_SUCCESS || worst == CUDA_ERROR_OUT_OF_MEMORY)
			worst = r == CUDA_SUCCESS ? worst : r;
	}
	return worst;
}
