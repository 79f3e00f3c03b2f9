// SPDX-License-Identifier: MIT
/* GPU memory by descriptors: parked, loaded or copied, and closed again. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "descriptors.h"
#include "log.h"
#include "store_internal.h"

static unsigned descriptors, closing_descriptors;

/* Who waits for some to be closed. */
struct passing {
	struct waiters asker;
};

static void closed(void *own, unsigned count)
{
	struct passing *passing = own;

	descriptors -= count;
	closing_descriptors -= count;
	rooms_kick();
	if (passing)
		waiters_done(&passing->asker, 0, "");
	free(passing);
}

static void close_later(const int *fds, unsigned count, struct passing *passing)
{
	closing_descriptors += count;
	descriptors_close(fds, count, closed, passing);
}

unsigned memory_closing(void)
{
	return closing_descriptors;
}

unsigned memory_descriptors(void)
{
	return descriptors;
}

void need_pieces(struct need *need, const struct park *park)
{
	need->devices = park->header.devices;
	memcpy(need->uuid, park->header.uuid, sizeof(need->uuid));
	memcpy(need->bytes, park->bytes, sizeof(need->bytes));
}

struct memory *memory_new(struct park *park)
{
	struct memory *memory = calloc(1, sizeof(*memory));

	if (memory)
		memory->fds = calloc(park->header.pieces ? park->header.pieces : 1, sizeof(*memory->fds));
	if (!memory || !memory->fds) {
		free(memory);
		return NULL;
	}
	memory->park = park;
	descriptors += park->header.pieces;
	return memory;
}

/* ---- filling ----------------------------------------------------------------------------------- */

static void source_done(struct memory *memory)
{
	struct memory *source = memory->source;

	memory->source = NULL;
	if (source && --source->users == 0 && source->orphan)
		memory_free(source);
}

/* error: it never will be. Waiters may free it. */
static void fill_ended(struct memory *memory, int error, const char *text)
{
	room_release(&memory->room);
	job_cancel(&memory->job); /* where it never began */
	memory->error = error;
	memory->ready = !error;
	memory->took_us = loop_now_us() - memory->started_us;
	snprintf(memory->text, sizeof(memory->text), "%s", text);
	if (!error)
		memory->got = memory->job.got;
	source_done(memory);
	rooms_kick();
	/* At once: whoever is called may free it. */
	waiters_join(&memory->filled, &memory->allocated);
	waiters_done(&memory->filled, error, memory->text);
}

static void job_done(struct job *job)
{
	struct memory *memory = container_of(job, struct memory, job);
	struct park *park = memory->park;
	char text[CUDAPOOL_TEXT_LEN] = "";

	if (job->error)
		snprintf(text, sizeof(text), "the parked memory of process %d (%s) cannot be %s: %.150s",
			 park->header.pid,
			 park->header.name, memory->from == MEMORY_LOADED ? "loaded" : "copied", job->text);
	if (job->error)
		cudapool_log(CUDAPOOL_LOG_ERR, "%s", text);
	else
		cudapool_log(CUDAPOOL_LOG_INFO, "%s %llu MiB for process %d (%s) in %u ms",
			     memory->from == MEMORY_LOADED ? "loaded" : "copied",
			     (unsigned long long)job->bytes >> 20, park->header.pid, park->header.name,
			     job->elapsed_us / 1000);
	fill_ended(memory, job->error, text);
}

static void job_allocated(struct job *job)
{
	struct memory *memory = container_of(job, struct memory, job);

	room_release(&memory->room);
	waiters_done(&memory->allocated, 0, "");
}

static void room_done(struct room *room, int error, const char *text)
{
	struct memory *memory = container_of(room, struct memory, room);
	struct park *park = memory->park;

	if (!error && memory->from == MEMORY_LOADED) {
		memory->job.image = park_open_image(park);
		if (memory->job.image >= 0)
			park->tier = tier_of_file(memory->job.image, park->image_bytes);
		if (memory->job.image < 0) {
			error = memory->job.image;
			text = "its image is gone";
		}
	}
	if (error) {
		fill_ended(memory, error, text);
		return;
	}
	memory->job.streams = park->streams;
	memory->job.chunk_mb = park->chunk_mb;
	job_start(&memory->job);
}

static void fill(struct memory *memory)
{
	struct park *park = memory->park;

	memory->job.kind = memory->from == MEMORY_LOADED ? WORKER_LOAD : WORKER_COPY;
	memory->job.pieces = park->header.pieces;
	memory->job.piece = park->piece;
	memory->job.header = &park->header;
	memory->job.source = memory->source ? memory->source->fds : NULL;
	memory->job.made = memory->fds;
	memory->job.allocated = job_allocated;
	memory->job.done = job_done;
	job_expect(&memory->job);
	need_pieces(&memory->room.need, park);
	memory->started_us = loop_now_us();
	memory->room.for_park = park;
	memory->room.done = room_done;
	room_ask(&memory->room);
}

struct memory *memory_load(struct park *park)
{
	struct memory *memory = memory_new(park);

	if (!memory)
		return NULL;
	memory->from = MEMORY_LOADED;
	fill(memory);
	return memory;
}

struct memory *memory_copy(struct memory *source)
{
	struct memory *memory = memory_new(source->park);

	if (!memory)
		return NULL;
	memory->from = MEMORY_COPIED;
	memory->job.image = -1;
	memory->source = source;
	source->users++;
	memory->room.gently = true;
	fill(memory);
	return memory;
}

void memory_pass(struct memory *memory, unsigned upto, struct store_waiter *waiter)
{
	struct passing *passing = calloc(1, sizeof(*passing));
	unsigned first = memory->passed;

	if (!passing || upto <= first) {
		free(passing);
		waiter->done(waiter, 0, "");
		return;
	}
	waiters_add(&passing->asker, waiter);
	memory->passed = upto;
	close_later(memory->fds + first, upto - first, passing);
}

void memory_free(struct memory *memory)
{
	if (!memory)
		return;
	if (memory->users) {
		memory->orphan = true;
		return;
	}
	room_release(&memory->room);
	job_cancel(&memory->job);
	source_done(memory);
	waiters_done(&memory->filled, -ECANCELED, "");
	descriptors -= memory->park->header.pieces - memory->got;
	close_later(memory->fds + memory->passed, memory->got - memory->passed, NULL);
	free(memory->fds);
	free(memory);
}
