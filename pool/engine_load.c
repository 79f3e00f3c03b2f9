// SPDX-License-Identifier: MIT
/* An image into new GPU memory. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "engine_internal.h"

static int read_block(struct run *run, uint8_t *to, uint32_t length, const struct image_block *block, uint32_t piece,
		      char *text)
{
	unsigned long long number = (unsigned long long)(block - run->image.block) - run->image.first[piece];
	uint32_t crc;
	int err = view_get(&run->view, to, length, block->at, &crc);

	if (err) {
		snprintf(text, CUDAPOOL_TEXT_LEN, "block %llu of piece %u cannot be read from the image: %s", number,
			 piece, err == -EBADMSG ? "the file is cut off" : strerror(-err));
	} else if (crc != block->crc) {
		snprintf(
			text, CUDAPOOL_TEXT_LEN,
			"the checksum of block %llu of piece %u is wrong: the image is damaged, use another copy of it",
			number, piece);
		err = -EBADMSG;
	}
	return err;
}

static int to_gpu(const struct chunk *chunk, uint64_t from, uint64_t to, const uint8_t *buffer, CUstream stream,
		  char *text, CUresult *cu)
{
	if (from == to)
		return 0;
	if (buffer)
		*cu = engine_driver->cuMemcpyHtoDAsync(chunk->at + from, buffer + from, to - from, stream);
	else
		*cu = engine_driver->cuMemsetD8Async(chunk->at + from, 0, to - from, stream);
	return *cu == CUDA_SUCCESS ? 0 : driver_failed(*cu, buffer ? "cuMemcpyHtoDAsync" : "cuMemsetD8Async", text);
}

/* Runs of blocks that are in the file, and runs of zeros, each with one call. */
static int load_start(struct run *run, struct lane *lane, unsigned slot, const struct chunk *chunk, char *text,
		      CUresult *cu)
{
	const struct image_block *block =
		&run->image.block[run->image.first[chunk->piece] + chunk->offset / IMAGE_BLOCK];
	uint8_t *buffer = lane->buffer[slot];
	CUstream stream = lane->stream[chunk->device];
	uint64_t offset, begun = 0;
	bool stored = block->at;
	uint32_t length;
	int err = 0;

	for (offset = 0; !err && offset < chunk->bytes; offset += length, block++) {
		length = image_block_length(chunk->bytes, offset / IMAGE_BLOCK);
		if (stored != !!block->at) {
			err = to_gpu(chunk, begun, offset, stored ? buffer : NULL, stream, text, cu);
			begun = offset;
			stored = block->at;
		}
		if (!err && stored)
			err = read_block(run, buffer + offset, length, block, chunk->piece, text);
	}
	return err ? err : to_gpu(chunk, begun, offset, stored ? buffer : NULL, stream, text, cu);
}

static int load_map(struct run *run, uint32_t piece, int device, char *text, CUresult *cu)
{
	const struct image_piece *about = &run->image.piece[piece];
	int err = mapping_create(&run->mapping[piece], device, about->bytes, about->flags & 1, text, cu);

	return err ? err : run_export(run, piece, text, cu);
}

int engine_load(struct engine_job *job)
{
	static const struct run_work work = {load_start, NULL};
	static const uint8_t none[IMAGE_TOKEN_LEN];
	struct run run = {};
	int err = image_read(&run.image, job->file, job->text);

	if (err)
		return err;
	if ((memcmp(job->header.token, none, sizeof(none)) &&
	     memcmp(job->header.token, run.image.header.token, sizeof(none))) ||
	    job->pieces != run.image.header.pieces ||
	    memcmp(job->piece, run.image.piece, job->pieces * sizeof(*job->piece))) {
		snprintf(job->text, sizeof(job->text),
			 "it is not the image that was asked for: another has taken its place");
		image_free(&run.image);
		return -EBADMSG;
	}
	view_begin(&run.view, job->file, run.image.header.file_size);
	err = run_pieces(&run, job, &work, load_map);
	view_end(&run.view);
	run_end(&run);
	return err;
}
