// SPDX-License-Identifier: MIT
/* GPU memory into new GPU memory. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine_internal.h"

/*
 * What takes time is mapping: of the 30 ms for 4 GiB in 128 pieces, with 20 calls of the driver for each, copying was 2
 * (docs/results/h200-2026-11-22/earlier/engine-save.jsonl). So one thread makes as few calls as can be: the pieces of a
 * batch that are on one device are mapped into one range, the new ones behind the old ones, opened together and copied
 * together. Nothing is waited for until all copies are under way.
 */
struct copying {
	struct engine_job *job;
	struct image image;
	int device[IMAGE_DEVICES]; /* of this machine, by the image's index */
	struct lane *lane;
	struct range *range;
	unsigned ranges;
	uint32_t at; /* the batch: its first piece, and how many */
	uint32_t count;
	int from[ENGINE_BATCH]; /* their descriptors; -1: none, or not any more */
	int to[ENGINE_BATCH];
};

static uint32_t batch_end(const struct copying *copying)
{
	return copying->at + copying->count;
}

static int take_batch(struct copying *copying, char *text)
{
	int fd;

	copying->count = 0;
	while (copying->count < ENGINE_BATCH && batch_end(copying) < copying->image.header.pieces) {
		fd = copying->job->take(copying->job, batch_end(copying));
		if (fd < 0) {
			snprintf(text, CUDAPOOL_TEXT_LEN, "piece %u did not come: %s", batch_end(copying),
				 strerror(-fd));
			return fd;
		}
		copying->from[copying->count] = fd;
		copying->to[copying->count++] = -1;
	}
	return 0;
}

static int map_old(struct copying *copying, struct range *range, uint32_t i, char *text, CUresult *cu)
{
	CUmemGenericAllocationHandle memory;
	int err = memory_import(&memory, copying->from[i], text, cu);

	if (err)
		return err;
	close(copying->from[i]);
	copying->from[i] = -1;
	err = range_map(range, memory, copying->image.piece[copying->at + i].bytes, text, cu);
	memory_release(memory);
	return err;
}

static int map_new(struct copying *copying, struct range *range, uint32_t i, char *text, CUresult *cu)
{
	const struct image_piece *piece = &copying->image.piece[copying->at + i];
	CUmemGenericAllocationHandle memory;
	int err = memory_create(&memory, copying->device[piece->device], piece->bytes, piece->flags & 1, text, cu);

	if (err)
		return err;
	copying->to[i] = memory_export(memory, text, cu);
	if (copying->to[i] < 0)
		err = copying->to[i];
	else
		err = range_map(range, memory, piece->bytes, text, cu);
	memory_release(memory);
	return err;
}

typedef int map_piece(struct copying *copying, struct range *range, uint32_t i, char *text, CUresult *cu);

static int map_all(struct copying *copying, struct range *range, uint32_t index, map_piece *map, char *text,
		   CUresult *cu)
{
	uint32_t i;
	int err = 0;

	for (i = 0; !err && i < copying->count; i++) {
		if (copying->image.piece[copying->at + i].device == index)
			err = map(copying, range, i, text, cu);
	}
	return err;
}

/* The pieces of the batch on one device, which are `bytes` in all. */
static int copy_on(struct copying *copying, uint32_t index, uint64_t bytes, char *text, CUresult *cu)
{
	struct range *range = &copying->range[copying->ranges];
	int device = copying->device[index];
	int err = device_enter(device, text, cu);

	if (!err)
		err = lane_enter(copying->lane, device, text, cu);
	if (!err)
		err = range_reserve(range, 2 * bytes, text, cu);
	if (err)
		return err;
	copying->ranges++;
	err = map_all(copying, range, index, map_old, text, cu);
	if (!err)
		err = map_all(copying, range, index, map_new, text, cu);
	if (!err)
		err = range_open(range, device, text, cu);
	if (err)
		return err;
	*cu = engine_driver->cuMemcpyDtoDAsync(range->start + bytes, range->start, bytes,
					       copying->lane->stream[device]);
	return *cu == CUDA_SUCCESS ? 0 : driver_failed(*cu, "cuMemcpyDtoDAsync", text);
}

static int copy_batch(struct copying *copying, char *text, CUresult *cu)
{
	uint64_t bytes[IMAGE_DEVICES] = {};
	uint32_t i, index;
	int err = 0;

	for (i = copying->at; i < batch_end(copying); i++)
		bytes[copying->image.piece[i].device] += copying->image.piece[i].bytes;
	for (index = 0; !err && index < copying->image.header.devices; index++)
		if (bytes[index])
			err = copy_on(copying, index, bytes[index], text, cu);
	return err;
}

/* They are the callee's, also where that fails. */
static int hand_out(struct copying *copying, char *text)
{
	uint32_t count = copying->count;
	int err;

	copying->count = 0;
	err = copying->job->made(copying->job, copying->at, count, copying->to);
	copying->at += count;
	if (err)
		snprintf(text, CUDAPOOL_TEXT_LEN, "pieces cannot be handed out: %s", strerror(-err));
	return err;
}

/* Whatever became of it: nothing may be under way in memory that is unmapped. */
static CUresult wait_for_copies(struct copying *copying)
{
	CUresult failed = CUDA_SUCCESS, ended;
	char text[CUDAPOOL_TEXT_LEN];
	uint32_t i;

	for (i = 0; i < copying->image.header.devices; i++) {
		int device = copying->device[i];
		CUstream stream = copying->lane->stream[device];
		CUevent event = copying->lane->event[device][0]; /* waiting for it is not spinning */

		if (!stream)
			continue;
		if (!device_enter(device, text, &ended))
			ended = engine_driver->cuEventRecord(event, stream);
		if (ended == CUDA_SUCCESS)
			ended = engine_driver->cuEventSynchronize(event);
		if (ended != CUDA_SUCCESS) {
			failed = ended;
			device_enter(device, text, &ended); /* it may be this that failed */
			engine_driver->cuStreamSynchronize(stream);
		}
	}
	return failed;
}

static int copy_all(struct copying *copying, char *text, CUresult *cu)
{
	uint32_t pieces = copying->image.header.pieces;
	int err = devices_find(&copying->image.header, copying->device, text);

	if (err)
		return err;
	copying->range = calloc((pieces / ENGINE_BATCH + 1) * copying->image.header.devices + 1,
				sizeof(*copying->range));
	if (!copying->range) {
		snprintf(text, CUDAPOOL_TEXT_LEN, "no memory for a job of %u pieces", pieces);
		return -ENOMEM;
	}
	err = lane_get(&copying->lane, 0, true, text, cu);
	while (!err && copying->at < pieces) {
		err = take_batch(copying, text);
		if (!err && atomic_load(&copying->job->cancelled)) {
			snprintf(text, CUDAPOOL_TEXT_LEN, "it was cancelled");
			err = -ECANCELED;
		}
		if (!err)
			err = copy_batch(copying, text, cu);
		if (!err)
			err = hand_out(copying, text);
	}
	return err;
}

static void end(struct copying *copying)
{
	uint32_t i;

	for (i = 0; i < copying->count; i++) {
		if (copying->from[i] >= 0)
			close(copying->from[i]);
		if (copying->to[i] >= 0)
			close(copying->to[i]);
	}
	while (copying->ranges)
		range_end(&copying->range[--copying->ranges]);
	free(copying->range);
	image_free(&copying->image);
}

int engine_copy(struct engine_job *job)
{
	struct copying copying = {.job = job};
	int err = image_plan(&copying.image, &job->header, job->piece, job->pieces, job->text);
	CUresult waited = CUDA_SUCCESS;

	if (err)
		return err;
	job->bytes = copying.image.header.bytes;
	err = copy_all(&copying, job->text, &job->cu_result);
	if (copying.lane) {
		waited = wait_for_copies(&copying);
		lane_put(copying.lane);
	}
	if (!err && waited != CUDA_SUCCESS) {
		job->cu_result = waited;
		err = driver_failed(waited, "copying", job->text);
	}
	end(&copying);
	return err;
}
