// SPDX-License-Identifier: MIT
/* Runs a save or a load: maps its pieces in order, while lanes copy chunk by chunk from one cursor. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "clock.h"
#include "engine_internal.h"

bool run_stopped(struct run *run)
{
	bool stopped;

	pthread_mutex_lock(&run->lock);
	if (!run->error && atomic_load(&run->job->cancelled)) {
		run->error = -ECANCELED;
		snprintf(run->job->text, sizeof(run->job->text), "it was cancelled");
	}
	stopped = run->error;
	pthread_mutex_unlock(&run->lock);
	return stopped;
}

void run_fail(struct run *run, int error, CUresult cu, const char *text)
{
	pthread_mutex_lock(&run->lock);
	if (!run->error) {
		run->error = error;
		run->job->cu_result = cu;
		snprintf(run->job->text, sizeof(run->job->text), "%s", text);
	}
	pthread_cond_broadcast(&run->changed);
	pthread_mutex_unlock(&run->lock);
}

/* ---- lanes ------------------------------------------------------------------------------------- */

enum got { CHUNK, LATER, END };

/* The next chunk; LATER only without `wait`: the piece that comes next is not mapped yet. */
static enum got next_chunk(struct run *run, struct chunk *chunk, bool wait)
{
	const struct image_piece *piece;
	enum got got = END;

	if (run_stopped(run))
		return END;
	pthread_mutex_lock(&run->lock);
	while (wait && !run->error && run->at_piece == run->mapped && run->mapped < run->image.header.pieces)
		pthread_cond_wait(&run->changed, &run->lock);
	if (run->error || run->at_piece == run->image.header.pieces) {
		got = END;
	} else if (run->at_piece == run->mapped) {
		got = LATER;
	} else {
		got = CHUNK;
		piece = &run->image.piece[run->at_piece];
		chunk->piece = run->at_piece;
		chunk->device = run->device[piece->device];
		chunk->offset = run->at_offset;
		chunk->bytes = piece->bytes - run->at_offset;
		if (chunk->bytes > run->chunk)
			chunk->bytes = run->chunk;
		chunk->at = run->mapping[run->at_piece].range.start + run->at_offset;
		run->at_offset += chunk->bytes;
		if (run->at_offset == piece->bytes) {
			run->at_piece++;
			run->at_offset = 0;
		}
	}
	pthread_mutex_unlock(&run->lock);
	return got;
}

static int start(struct run *run, struct lane *lane, unsigned slot, const struct chunk *chunk, char *text, CUresult *cu)
{
	int err = device_enter(chunk->device, text, cu);

	if (!err)
		err = lane_enter(lane, chunk->device, text, cu);
	if (!err)
		err = run->work->start(run, lane, slot, chunk, text, cu);
	if (err)
		return err;
	*cu = engine_driver->cuEventRecord(lane->event[chunk->device][slot], lane->stream[chunk->device]);
	return *cu == CUDA_SUCCESS ? 0 : driver_failed(*cu, "cuEventRecord", text);
}

static int finish(struct run *run, struct lane *lane, unsigned slot, const struct chunk *chunk, char *text,
		  CUresult *cu)
{
	int err;

	*cu = engine_driver->cuEventSynchronize(lane->event[chunk->device][slot]);
	if (*cu != CUDA_SUCCESS)
		return driver_failed(*cu, "copying", text);
	err = run->work->finish ? run->work->finish(run, lane, slot, chunk, text, cu) : 0;
	if (!err)
		atomic_fetch_add(&run->done, chunk->bytes);
	return err;
}

/*
 * Buffers take turns. While one is being copied to or from, the other is worked on: a chunk is started before the
 * one before it is finished.
 */
static int copy_chunks(struct run *run, struct lane *lane, char *text, CUresult *cu)
{
	struct chunk chunk[LANE_BUFFERS];
	unsigned started = 0, finished = 0, slot;
	int err = 0;

	while (!err) {
		slot = started % LANE_BUFFERS;
		if (started - finished < LANE_BUFFERS) {
			enum got got = next_chunk(run, &chunk[slot], started == finished);

			if (got == CHUNK) {
				err = start(run, lane, slot, &chunk[slot], text, cu);
				started++;
				continue;
			}
			if (started == finished)
				break;
		}
		slot = finished++ % LANE_BUFFERS;
		err = finish(run, lane, slot, &chunk[slot], text, cu);
	}
	return err;
}

/* Whatever became of it: nothing may be under way in a lane that is given back, or in memory that is unmapped. */
static void drain(struct run *run, struct lane *lane)
{
	uint32_t i;

	for (i = 0; i < run->image.header.devices; i++) {
		if (lane->stream[run->device[i]])
			engine_driver->cuStreamSynchronize(lane->stream[run->device[i]]);
	}
}

static void *lane_main(void *argument)
{
	struct lane_thread *self = argument;
	struct run *run = self->run;
	char text[CUDAPOOL_TEXT_LEN] = "";
	CUresult cu = CUDA_SUCCESS;
	struct lane *lane = NULL;
	int err = device_enter(run->device[0], text, &cu);

	if (!err)
		err = lane_get(&lane, run->chunk, self->first, text, &cu);
	if (!err) {
		err = copy_chunks(run, lane, text, &cu);
		drain(run, lane);
		lane_put(lane);
	} else if (!self->first) {
		err = 0; /* the others do it without this one */
	}
	if (err)
		run_fail(run, err, cu, text);
	pthread_mutex_lock(&run->lock);
	run->lanes--;
	pthread_cond_broadcast(&run->changed);
	pthread_mutex_unlock(&run->lock);
	return NULL;
}

/* How many threads there is something to do for. */
static unsigned lanes_wanted(const struct run *run)
{
	uint64_t chunks = 0;
	uint32_t i;

	for (i = 0; i < run->image.header.pieces && chunks < run->job->threads; i++)
		chunks += (run->image.piece[i].bytes + run->chunk - 1) / run->chunk;
	return chunks < run->job->threads ? (unsigned)chunks : run->job->threads;
}

static int start_lanes(struct run *run)
{
	unsigned wanted = lanes_wanted(run);
	struct lane_thread *lane;
	int err = 0;

	while (!err && run->started < wanted) {
		lane = &run->thread[run->started];
		*lane = (struct lane_thread){.run = run, .first = !run->started};
		pthread_mutex_lock(&run->lock);
		run->lanes++;
		pthread_mutex_unlock(&run->lock);
		err = -pthread_create(&lane->id, NULL, lane_main, lane);
		if (!err) {
			run->started++;
			continue;
		}
		pthread_mutex_lock(&run->lock);
		run->lanes--;
		pthread_mutex_unlock(&run->lock);
	}
	return run->started ? 0 : err; /* one is enough */
}

/* ---- the job's own thread ------------------------------------------------------------------------ */

void run_tell(struct run *run)
{
	uint64_t done = atomic_load(&run->done);
	int64_t now = cudapool_now_ms();

	if (!run->job->progress || now - run->told_ms < ENGINE_PROGRESS_MS || done == run->told)
		return;
	run->told_ms = now;
	run->told = done;
	run->job->progress(run->job, done);
}

static int send_batch(struct run *run, char *text)
{
	unsigned count = run->unsent;
	int err;

	if (!count)
		return 0;
	run->unsent = 0;
	err = run->job->made(run->job, run->mapped - count, count, run->fds);
	if (err)
		snprintf(text, CUDAPOOL_TEXT_LEN, "pieces cannot be handed out: %s", strerror(-err));
	return err;
}

int run_export(struct run *run, uint32_t piece, char *text, CUresult *cu)
{
	int fd = memory_export(run->mapping[piece].memory, text, cu);

	if (fd >= 0)
		run->fds[run->unsent++] = fd;
	return fd < 0 ? fd : 0;
}

static int map_pieces(struct run *run, run_map *map, char *text, CUresult *cu)
{
	const struct image *image = &run->image;
	int err = 0, device;
	uint32_t i;

	for (i = 0; !err && i < image->header.pieces && !run_stopped(run); i++) {
		device = run->device[image->piece[i].device];
		err = device_enter(device, text, cu);
		if (!err)
			err = map(run, i, device, text, cu);
		if (err)
			break;
		pthread_mutex_lock(&run->lock);
		run->mapped++;
		pthread_cond_broadcast(&run->changed);
		pthread_mutex_unlock(&run->lock);
		if (run->unsent == ENGINE_BATCH)
			err = send_batch(run, text);
		run_tell(run);
	}
	return err ? err : send_batch(run, text);
}

/* While they copy: until all have ended. */
static void wait_for_lanes(struct run *run)
{
	struct timespec until;

	pthread_mutex_lock(&run->lock);
	while (run->lanes) {
		clock_gettime(CLOCK_MONOTONIC, &until);
		until.tv_nsec += ENGINE_PROGRESS_MS * 1000000L;
		until.tv_sec += until.tv_nsec / 1000000000;
		until.tv_nsec %= 1000000000;
		pthread_cond_timedwait(&run->changed, &run->lock, &until);
		pthread_mutex_unlock(&run->lock);
		run_tell(run);
		pthread_mutex_lock(&run->lock);
	}
	pthread_mutex_unlock(&run->lock);
	while (run->started)
		pthread_join(run->thread[--run->started].id, NULL);
}

static int begin(struct run *run, struct engine_job *job, const struct run_work *work, char *text)
{
	const struct image_header *header = &run->image.header;
	pthread_condattr_t attr;

	run->job = job;
	run->work = work;
	run->told_ms = cudapool_now_ms();
	pthread_mutex_init(&run->lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&run->changed, &attr);
	pthread_condattr_destroy(&attr);
	run->chunk = (size_t)job->chunk_mb << 20;
	if (run->chunk > ENGINE_PINNED_MOST / LANE_BUFFERS / job->threads)
		run->chunk = ENGINE_PINNED_MOST / LANE_BUFFERS / job->threads / IMAGE_BLOCK * IMAGE_BLOCK;
	run->mapping = calloc(header->pieces + 1, sizeof(*run->mapping));
	if (!run->mapping) {
		snprintf(text, CUDAPOOL_TEXT_LEN, "no memory for a job of %u pieces", header->pieces);
		return -ENOMEM;
	}
	return devices_find(header, run->device, text);
}

int run_pieces(struct run *run, struct engine_job *job, const struct run_work *work, run_map *map)
{
	char text[CUDAPOOL_TEXT_LEN] = "";
	CUresult cu = CUDA_SUCCESS;
	int err = begin(run, job, work, text);

	if (!err)
		err = start_lanes(run);
	if (!err)
		err = map_pieces(run, map, text, &cu);
	if (err)
		run_fail(run, err, cu, text);
	wait_for_lanes(run);
	run_stopped(run); /* for the case that it was cancelled, and nobody saw it yet */
	return run->error;
}

void run_end(struct run *run)
{
	uint32_t i;

	for (i = 0; run->mapping && i < run->image.header.pieces; i++)
		mapping_end(&run->mapping[i]);
	while (run->unsent)
		close(run->fds[--run->unsent]);
	run->job->bytes = run->image.header.bytes;
	run->job->stored = run->image.header.stored;
	free(run->mapping);
	image_free(&run->image);
	pthread_cond_destroy(&run->changed);
	pthread_mutex_destroy(&run->lock);
}

void engine_warm(unsigned threads, unsigned chunk_mb)
{
	struct lane *lane[ENGINE_THREADS_MOST];
	char text[CUDAPOOL_TEXT_LEN];
	unsigned i, got = 0;
	CUresult cu;

	if (device_enter(0, text, &cu))
		return;
	for (i = 0; i < threads && !lane_get(&lane[got], (size_t)chunk_mb << 20, false, text, &cu); i++)
		got += !lane_enter(lane[got], 0, text, &cu);
	while (got)
		lane_put(lane[--got]);
}
