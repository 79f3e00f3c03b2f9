// SPDX-License-Identifier: MIT
/* GPU memory into new GPU memory. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "engine_internal.h"

static int copy_map(struct run *run, uint32_t piece, int device, char *text, CUresult *cu)
{
	const struct image_piece *about = &run->image.piece[piece];
	int fd = run->job->take(run->job, piece), err;

	if (fd < 0) {
		snprintf(text, CUDAPOOL_TEXT_LEN, "piece %u did not come: %s", piece, strerror(-fd));
		return fd;
	}
	err = mapping_import(&run->source[piece], device, about->bytes, fd, text, cu);
	close(fd);
	if (!err)
		err = mapping_create(&run->mapping[piece], device, about->bytes, about->flags & 1, text, cu);
	return err ? err : run_export(run, piece, text, cu);
}

static int copy_start(struct run *run, struct lane *lane, unsigned slot, const struct chunk *chunk, char *text,
		      CUresult *cu)
{
	*cu = engine_driver->cuMemcpyDtoDAsync(chunk->at, run->source[chunk->piece].at + chunk->offset, chunk->bytes,
					       lane->stream[chunk->device]);
	return *cu == CUDA_SUCCESS ? 0 : driver_failed(*cu, "cuMemcpyDtoDAsync", text);
}

int engine_copy(struct engine_job *job)
{
	static const struct run_work work = {false, copy_start, NULL};
	struct run run = {};
	int err = image_plan(&run.image, &job->header, job->piece, job->pieces, job->text);

	if (err)
		return err;
	err = run_pieces(&run, job, &work, copy_map);
	run_end(&run);
	return err;
}
