// SPDX-License-Identifier: MIT
/* GPU memory into an image. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "checksum.h"
#include "engine_internal.h"

static int save_start(struct run *run, struct lane *lane, unsigned slot, const struct chunk *chunk, char *text,
		      CUresult *cu)
{
	*cu = engine_driver->cuMemcpyDtoHAsync(lane->buffer[slot], chunk->at, chunk->bytes,
					       lane->stream[chunk->device]);
	return *cu == CUDA_SUCCESS ? 0 : driver_failed(*cu, "cuMemcpyDtoHAsync", text);
}

/* Places for the chunk's blocks that are not zero, one behind the other in the file: *at is where they begin. */
static int place_blocks(struct run *run, const uint8_t *from, const struct chunk *chunk, struct image_block *block,
			uint64_t *at)
{
	uint64_t bytes = 0, offset;
	uint32_t length;

	for (offset = 0; offset < chunk->bytes; offset += length) {
		length = image_block_length(chunk->bytes, offset / IMAGE_BLOCK);
		if (checksum_zero(from + offset, length))
			continue;
		block[offset / IMAGE_BLOCK].at = 1; /* somewhere */
		bytes += image_aligned(length);
	}
	*at = atomic_fetch_add(&run->end, bytes);
	return file_room(&run->file, *at, bytes);
}

static int cannot_write(int error, char *text)
{
	snprintf(text, CUDAPOOL_TEXT_LEN, "the image cannot be written: %s%s", strerror(-error),
		 error == -ENOSPC ? ": make room in the file system of the checkpoint" : "");
	return error;
}

static int save_finish(struct run *run, struct lane *lane, unsigned slot, const struct chunk *chunk, char *text,
		       CUresult *cu)
{
	struct image_block *block = &run->image.block[run->image.first[chunk->piece] + chunk->offset / IMAGE_BLOCK];
	const uint8_t *from = lane->buffer[slot];
	uint64_t at, offset;
	uint32_t length;
	int err = place_blocks(run, from, chunk, block, &at);

	if (err)
		return cannot_write(err, text);
	for (offset = 0; offset < chunk->bytes; offset += length, block++) {
		length = image_block_length(chunk->bytes, offset / IMAGE_BLOCK);
		if (!block->at)
			continue;
		block->at = at;
		err = file_put(&run->file, from + offset, length, at, &block->crc);
		if (err)
			return cannot_write(err, text);
		at += image_aligned(length);
	}
	return 0;
}

static int save_map(struct run *run, uint32_t piece, int device, char *text, CUresult *cu)
{
	int fd = run->job->take(run->job, piece), err;

	if (fd < 0) {
		snprintf(text, CUDAPOOL_TEXT_LEN, "piece %u did not come: %s", piece, strerror(-fd));
		return fd;
	}
	err = mapping_import(&run->mapping[piece], device, run->image.piece[piece].bytes, fd, text, cu);
	close(fd);
	return err;
}

int engine_save(struct engine_job *job)
{
	static const struct run_work work = {save_start, save_finish};
	struct run run = {};
	int err = image_plan(&run.image, &job->header, job->piece, job->pieces, job->text);

	if (err)
		return err;
	run.end = IMAGE_HEADER_SIZE;
	file_begin(&run.file, job->file, run.end + run.image.header.blocks * IMAGE_BLOCK);
	err = run_pieces(&run, job, &work, save_map);
	file_end(&run.file);
	if (!err)
		err = image_write(&run.image, job->file, run.end, job->text);
	run_end(&run);
	return err;
}
