// SPDX-License-Identifier: MIT
/* A worker without a driver, for tests of the store: GPU memory is memfds, and what goes wrong is asked for. */
#ifndef CUDAPOOL_TEST_POOL_FAKE_WORKER_H
#define CUDAPOOL_TEST_POOL_FAKE_WORKER_H

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "image.h"
#include "loop.h"
#include "store.h"
#include "worker_link.h"

#define FAKE_DEVICES 2
#define MIB	     (1ull << 20)

static const uint8_t fake_uuid[FAKE_DEVICES][16] = {"device number 0", "device number 1"};

/* What the test sets. */
static struct {
	uint64_t total[FAKE_DEVICES];
	uint64_t foreign[FAKE_DEVICES]; /* used by programs that the pool does not know */
	int job_error;	     /* of the next job */
	unsigned die_in;     /* the worker dies in so many of the next jobs */
	unsigned die_made;   /* dies in so many of the next loads, when it has made the pieces */
	unsigned hang_in;    /* does not come back from so many */
	unsigned delay_ms;   /* before each answer */
	unsigned full_every; /* the link refuses each so-manieth message */
	/* What the test looks at. */
	unsigned jobs, loads, copies, saves, replaced, cancelled, memory_asked;
	unsigned threads_most; /* of what copies with threads */
	uint64_t used_before;  /* GPU memory, when the last load began */
} fake = {.total = {1024 * MIB, 1024 * MIB}};

struct fake_job {
	struct loop_timer due;
	uint32_t id;
	struct worker_job head;
	struct image_piece *piece;
	int *fds;
	unsigned got;
	int file;
	bool dead;
	struct fake_job *next;
};
static struct fake_job *fake_jobs;
static unsigned fake_messages;
static struct loop_timer fake_room, fake_death, fake_birth;
static bool fake_down;

/* GPU memory in use: every memfd of the device that somebody in this process has open, once. */
static uint64_t fake_used(unsigned device)
{
	struct dirent *entry;
	char path[300], target[64], name[32];
	ino_t seen[4096];
	unsigned count = 0, i;
	uint64_t bytes = 0;
	struct stat st;
	ssize_t n;
	DIR *dir = opendir("/proc/self/fd");

	snprintf(name, sizeof(name), "/memfd:gpu%u (deleted)", device);
	while (dir && (entry = readdir(dir))) {
		snprintf(path, sizeof(path), "/proc/self/fd/%s", entry->d_name);
		n = readlink(path, target, sizeof(target) - 1);
		target[n > 0 ? n : 0] = '\0';
		if (strcmp(target, name) || stat(path, &st))
			continue;
		for (i = 0; i < count && seen[i] != st.st_ino; i++)
			;
		if (i < count || count == sizeof(seen) / sizeof(seen[0]))
			continue;
		seen[count++] = st.st_ino;
		bytes += st.st_size;
	}
	closedir(dir);
	return bytes;
}

static int fake_memory(unsigned device, uint64_t bytes)
{
	char name[16];
	int fd;

	snprintf(name, sizeof(name), "gpu%u", device);
	fd = memfd_create(name, MFD_CLOEXEC);
	return fd < 0 || ftruncate(fd, (off_t)bytes) ? -1 : fd;
}

static unsigned fake_device(const uint8_t uuid[16])
{
	unsigned i;

	for (i = 0; i < FAKE_DEVICES && memcmp(fake_uuid[i], uuid, 16); i++)
		;
	return i;
}

static void fake_say(const struct worker_message *message, const int *fds, unsigned count)
{
	store_worker_message(message, fds, count);
}

static void fake_free(struct fake_job *job)
{
	struct fake_job **at = &fake_jobs;

	while (*at != job)
		at = &(*at)->next;
	*at = job->next;
	loop_timer_cancel(&job->due);
	while (job->got)
		close(job->fds[--job->got]);
	if (job->file >= 0)
		close(job->file);
	free(job->fds);
	free(job->piece);
	free(job);
}

static bool fake_block(int from, uint64_t at, char *block, uint64_t length)
{
	static const char zero[IMAGE_BLOCK];

	return pread(from, block, length, (off_t)at) == (ssize_t)length && memcmp(block, zero, length);
}

static int fake_save(struct fake_job *job, struct worker_message *result)
{
	static char block[IMAGE_BLOCK];
	uint64_t end = IMAGE_HEADER_SIZE, i, n, length;
	struct image image;
	unsigned p;
	int err = image_plan(&image, &job->head.header, job->piece, job->head.pieces, result->text);

	for (p = 0; !err && p < job->head.pieces; p++)
		for (i = 0, n = image_blocks(job->piece[p].bytes); !err && i < n; i++) {
			length = image_block_length(job->piece[p].bytes, i);
			if (!fake_block(job->fds[p], i * IMAGE_BLOCK, block, length))
				continue;
			image.block[image.first[p] + i].at = end;
			err = image_pwrite(job->file, block, length, end);
			end += image_aligned(length);
			result->stored += length;
		}
	if (!err)
		err = image_write(&image, job->file, end, result->text);
	image_free(&image);
	return err;
}

static int fake_make(struct fake_job *job, const struct image *image)
{
	static char block[IMAGE_BLOCK];
	struct worker_message message = {.kind = WORKER_PIECES, .id = job->id, .op = job->head.kind};
	unsigned p, device;
	uint64_t i, n, at;
	int batch[WORKER_BATCH], err = 0;

	for (p = 0; !err && p < job->head.pieces; p++) {
		device = fake_device(image ? image->header.uuid[job->piece[p].device]
					   : job->head.header.uuid[job->piece[p].device]);
		if (device == FAKE_DEVICES)
			return -EXDEV;
		batch[message.count] = fake_memory(device, job->piece[p].bytes);
		for (i = 0, n = image_blocks(job->piece[p].bytes); !err && i < n; i++) {
			at = image ? image->block[image->first[p] + i].at : i * IMAGE_BLOCK;
			if (image && !at)
				continue;
			err = image_pread(image ? job->file : job->fds[p], block,
					  image_block_length(job->piece[p].bytes, i), at);
			if (!err)
				err = image_pwrite(batch[message.count], block,
						   image_block_length(job->piece[p].bytes, i), i * IMAGE_BLOCK);
		}
		if (++message.count < WORKER_BATCH && p + 1 < job->head.pieces)
			continue;
		fake_say(&message, batch, message.count);
		message.first += message.count;
		message.count = 0;
	}
	return err;
}

static void fake_die(struct loop_timer *timer)
{
	while (fake_jobs)
		fake_free(fake_jobs);
	store_worker_lost("died");
	store_worker_changed();
}

static void fake_act(struct loop_timer *timer)
{
	struct fake_job *job = container_of(timer, struct fake_job, due);
	struct worker_message result = {.kind = WORKER_RESULT, .id = job->id, .op = job->head.kind, .elapsed_us = 1000};
	struct image image;
	unsigned p;

	if (job->head.kind != WORKER_LOAD && job->got < job->head.pieces) {
		loop_timer_set(timer, 1);
		return;
	}
	if (fake.hang_in) {
		fake.hang_in--;
		return;
	}
	if (fake.die_in) {
		fake.die_in--;
		loop_timer_set(&fake_death, 0);
		return;
	}
	fake.jobs++;
	fake.saves += job->head.kind == WORKER_SAVE;
	fake.loads += job->head.kind == WORKER_LOAD;
	fake.copies += job->head.kind == WORKER_COPY;
	if (job->head.kind != WORKER_COPY && job->head.threads > fake.threads_most)
		fake.threads_most = job->head.threads;
	if (fake.job_error) {
		result.error = fake.job_error;
		snprintf(result.text, sizeof(result.text), "%s", strerror(-fake.job_error));
		fake.job_error = 0;
	} else if (job->head.kind == WORKER_SAVE) {
		result.error = fake_save(job, &result);
	} else if (job->head.kind == WORKER_COPY) {
		result.error = fake_make(job, NULL);
	} else {
		result.error = image_read(&image, job->file, result.text);
		if (!result.error) {
			result.error = fake_make(job, &image);
			image_free(&image);
		}
		if (fake.die_made) {
			fake.die_made--;
			loop_timer_set(&fake_death, 0);
			return;
		}
	}
	for (p = 0; p < job->head.pieces; p++)
		result.bytes += job->piece[p].bytes;
	fake_free(job);
	fake_say(&result, NULL, 0);
}

static void fake_has_room(struct loop_timer *timer)
{
	store_worker_room();
}

/* ---- what the store calls -------------------------------------------------------------------------- */

static struct fake_job *fake_find(uint32_t id)
{
	struct fake_job *job = fake_jobs;

	while (job && job->id != id)
		job = job->next;
	return job;
}

static void fake_begin(const struct worker_message *message, const int *fds, unsigned count)
{
	struct fake_job *job = calloc(1, sizeof(*job));

	job->id = message->id;
	job->file = count > 1 ? dup(fds[1]) : -1;
	if (pread(fds[0], &job->head, sizeof(job->head), 0) != sizeof(job->head))
		abort();
	job->piece = calloc(job->head.pieces + 1, sizeof(*job->piece));
	job->fds = calloc(job->head.pieces + 1, sizeof(*job->fds));
	if (pread(fds[0], job->piece, job->head.pieces * sizeof(*job->piece), sizeof(job->head)) !=
	    (ssize_t)(job->head.pieces * sizeof(*job->piece)))
		abort();
	if (job->head.kind == WORKER_LOAD)
		fake.used_before = fake_used(0) + fake_used(1);
	job->due.fire = fake_act;
	job->next = fake_jobs;
	fake_jobs = job;
	loop_timer_set(&job->due, fake.delay_ms);
}

struct fake_answer {
	struct loop_timer due;
	struct worker_message message;
};

static void fake_tell(struct loop_timer *timer)
{
	struct fake_answer *answer = container_of(timer, struct fake_answer, due);
	unsigned device = fake_device(answer->message.uuid);

	if (device == FAKE_DEVICES) {
		answer->message.error = -EXDEV;
		snprintf(answer->message.text, sizeof(answer->message.text), "this machine has no such GPU");
	} else {
		answer->message.stored = fake.total[device];
		answer->message.bytes = fake.total[device] - fake.foreign[device] - fake_used(device);
	}
	fake_say(&answer->message, NULL, 0);
	free(answer);
}

int link_send_job(const struct worker_message *message, const int *fds, unsigned count)
{
	struct fake_answer *answer;
	struct fake_job *job;
	unsigned i;

	if (fake_down)
		return -ENOTCONN;
	if (fake.full_every && ++fake_messages % fake.full_every == 0) {
		fake_room.fire = fake_has_room;
		loop_timer_set(&fake_room, 1);
		return -EAGAIN;
	}
	switch (message->kind) {
	case WORKER_JOB:
		fake_begin(message, fds, count);
		break;
	case WORKER_PIECES:
		job = fake_find(message->id);
		for (i = 0; job && i < count; i++)
			job->fds[job->got++] = dup(fds[i]);
		break;
	case WORKER_MEMORY:
		fake.memory_asked++;
		answer = calloc(1, sizeof(*answer));
		answer->message = *message;
		answer->due.fire = fake_tell;
		loop_timer_set(&answer->due, 0);
		break;
	default:
		abort();
	}
	return 0;
}

bool link_send(const struct worker_message *message)
{
	struct worker_message result = {.kind = WORKER_RESULT, .id = message->id, .error = -ECANCELED};
	struct fake_job *job = fake_find(message->id);

	if (message->kind != WORKER_CANCEL)
		return false;
	fake.cancelled++;
	if (job) {
		result.op = job->head.kind;
		fake_free(job);
	}
	fake_say(&result, NULL, 0);
	return true;
}

static void fake_born(struct loop_timer *timer)
{
	fake_down = false;
	store_worker_changed();
}

void link_replace(const char *what)
{
	fake.replaced++;
	while (fake_jobs)
		fake_free(fake_jobs);
	fake_down = true;
	fake_birth.fire = fake_born;
	loop_timer_set(&fake_birth, 5);
	store_worker_lost(what);
}

void link_info(struct link_info *info)
{
	*info = (struct link_info){.state = CUDAPOOL_WORKER_WARM, .ready = !fake_down, .driver_version = 13000,
		.text = ""};
	fake_death.fire = fake_die;
}

#endif
