// SPDX-License-Identifier: MIT
/* Saving: the image of a park, from the first byte to its name. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "log.h"
#include "store_internal.h"
#include "worker_link.h"

static uint64_t wall_us(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_REALTIME, &ts);
	return (uint64_t)ts.tv_sec * 1000000 + ts.tv_nsec / 1000;
}

static void remove_part(struct park *park)
{
	char name[64];

	if (park->part < 0)
		return;
	image_name(park->header.token, true, name);
	unlinkat(park->dir->fd, name, 0);
	files_close(park->part);
	park->part = -1;
}

void save_remove_image(struct park *park)
{
	char name[64];

	image_name(park->header.token, false, name);
	if (park->dir)
		files_remove(park->dir->fd, name);
}

/* Another file each time: a worker that hangs may still write to the old one. */
static int make_part(struct park *park)
{
	char name[64];

	remove_part(park);
	image_name(park->header.token, true, name);
	park->part = files_make(park->dir, name, park->header.bytes, &park->recycled_bytes);
	if (park->part < 0)
		return park->part;
	park->save.image = park->part;
	return 0;
}

static void save_ended(struct park *park, int error, const char *text)
{
	park->save_us = loop_now_us() - park->save_started_us;
	if (error) {
		snprintf(park->text, sizeof(park->text),
			 "the image of process %d (%s) cannot be written to %.80s: %.100s",
			 park->header.pid, park->header.name, park->dir->path, text);
		cudapool_log(CUDAPOOL_LOG_ERR, "%s", park->text);
	} else {
		cudapool_log(CUDAPOOL_LOG_INFO, "saved process %d (%s): %llu MiB, of which %llu are in %s, in %llu ms",
			     park->header.pid, park->header.name, (unsigned long long)park->header.bytes >> 20,
			     (unsigned long long)park->header.stored >> 20, park->path ? park->path : "?",
			     (unsigned long long)park->save_us / 1000);
	}
	remove_part(park);
	park->life = error ? PARK_FAILED : PARK_SAVED;
	park->save_error = error;
	if (!error)
		deposit_end(&park->deposit); /* first of all: from now on its memory may become somebody else's */
	waiters_done(&park->saved, error, park->text);
	rooms_enforce();
}

/* Gives the image its name, and says how its header was written: by that it is known from now on. */
static int rename_part(const struct park *park, struct image_header *header)
{
	char part[64], name[64];
	int err;

	image_name(park->header.token, true, part);
	image_name(park->header.token, false, name);
	err = image_pread(park->part, header, sizeof(*header), 0);
	if (!err && (!MATCHES(header->token, park->header.token) || !MATCHES(header->dump, park->header.dump) ||
		     header->pieces != park->header.pieces || header->bytes != park->header.bytes))
		err = -EBADMSG; /* somebody else has written to it */
	if (err)
		return err;
	if (park->sync && fsync(park->part))
		return -errno;
	if (renameat(park->dir->fd, part, park->dir->fd, name))
		return -errno;
	/* Not only the file: of its own images CRIU syncs none. This covers those that are there by now; the client
	 * does the rest. */
	return park->sync && syncfs(park->dir->fd) ? -errno : 0;
}

static void naming_work(struct background *task)
{
	struct park *park = container_of(task, struct park, naming);

	park->naming_error = rename_part(park, &park->written);
}

static void naming_done(struct background *task)
{
	struct park *park = container_of(task, struct park, naming);
	char name[64], path[sizeof(park->dir->path) + 65];
	int fd, error = park->naming_error;

	park->naming_on = false;
	if (park->life != PARK_TAKEN) { /* undone meanwhile */
		remove_part(park);
		save_remove_image(park);
		park_settle(park);
		return;
	}
	image_name(park->header.token, false, name);
	fd = error ? -1 : openat(park->dir->fd, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
	if (!error && fd < 0)
		error = -errno;
	if (error) {
		save_remove_image(park);
		save_ended(park, error, strerror(-error));
		return;
	}
	close(park->part);
	park->part = -1;
	park->header = park->written;
	snprintf(path, sizeof(path), "%s/%s", park->dir->path, name);
	park_set_image(park, fd, path);
	save_ended(park, 0, "");
}

static void save_done(struct job *job)
{
	struct park *park = container_of(job, struct park, save);

	if (job->error) {
		save_ended(park, job->error, job->text);
		return;
	}
	park->naming_on = true;
	park->naming = (struct background){.work = naming_work, .done = naming_done};
	if (park->sync) {
		background_start(&park->naming);
	} else {
		naming_work(&park->naming);
		naming_done(&park->naming);
	}
}

static int save_again(struct job *job)
{
	struct park *park = container_of(job, struct park, save);
	int err = make_part(park);

	if (err)
		snprintf(job->text, sizeof(job->text), "%s", strerror(-err));
	return err;
}

void save_describe(struct park *park, const uint64_t left[CUDAPOOL_CHANNEL_DEVICES])
{
	struct link_info info;

	link_info(&info);
	memcpy(park->header.left, left, sizeof(park->header.left));
	park->header.driver_version = info.driver_version;
	park->header.created_us = wall_us();
}

int save_begin(struct park *park)
{
	int err = make_part(park);

	if (err)
		return err;
	park->save_started_us = loop_now_us();
	park->save = (struct job){
		.kind = WORKER_SAVE,
		.pieces = park->header.pieces,
		.piece = park->piece,
		.source = park->hot->fds,
		.image = park->part,
		.header = &park->header,
		.streams = park->dir->streams,
		.chunk_mb = park->dir->chunk_mb,
		.again = save_again,
		.done = save_done,
	};
	job_start(&park->save);
	return 0;
}

int store_taken(struct park *park, const uint64_t left[CUDAPOOL_CHANNEL_DEVICES])
{
	int err;

	if (!park->hot || park->hot->got != park->header.pieces)
		return -EINVAL;
	save_describe(park, left);
	err = save_begin(park);
	if (err)
		return err;
	park->hot->ready = true;
	park->life = PARK_TAKEN;
	return 0;
}

void save_stop(struct park *park)
{
	job_cancel(&park->save);
	if (park->naming_on)
		return; /* naming_done() removes it */
	remove_part(park);
}

void park_stop_saving(struct park *park)
{
	if (park->life != PARK_TAKEN)
		return;
	save_stop(park);
	park->life = PARK_FAILED;
	park->save_error = -ECANCELED;
	snprintf(park->text, sizeof(park->text), "the dump was undone");
	waiters_done(&park->saved, -ECANCELED, park->text);
}
