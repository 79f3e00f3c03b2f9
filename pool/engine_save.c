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

/* Places for the chunk's blocks that are not zero, one behind the other in the file. Returns where it begins. */
static uint64_t place_blocks(struct run *run, const uint8_t *from, const struct chunk *chunk, struct image_block *block)
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
	return bytes ? atomic_fetch_add(&run->end, bytes) : 0;
}

static int save_finish(struct run *run, struct lane *lane, unsigned slot, const struct chunk *chunk, char *text,
		       CUresult *cu)
{
	struct image_block *block = &run->image.block[run->image.first[chunk->piece] + chunk->offset / IMAGE_BLOCK];
	const uint8_t *from = lane->buffer[slot];
	uint64_t at = place_blocks(run, from, chunk, block), offset;
	uint32_t length;
	int err;

	/* Block by block, so that it is written while the checksum still has it in the cache. */
	for (offset = 0; offset < chunk->bytes; offset += length, block++) {
		length = image_block_length(chunk->bytes, offset / IMAGE_BLOCK);
		if (!block->at)
			continue;
		block->at = at;
		block->crc = checksum_crc32c(0, from + offset, length);
		err = file_put(&run->file, from + offset, length, at);
		if (err) {
			snprintf(text, CUDAPOOL_TEXT_LEN, "the image cannot be written: %s%s", strerror(-err),
				 err == -ENOSPC ? ": make room in the file system of the checkpoint" : "");
			return err;
		}
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
	static const struct run_work work = {true, save_start, save_finish};
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
