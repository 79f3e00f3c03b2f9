// SPDX-License-Identifier: MIT
/* Images of a directory for a restore: read and checked beside the loop, as tables may be long and disks slow. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "store_internal.h"

/* One image, header and tables checked. */
struct seen {
	char name[64];
	int fd;
	struct image_header header;
	struct image_piece *piece;
};

struct reading {
	struct background task;
	struct store_dir *dir; /* held; beside the loop only its `fd` and `path`, which never change */
	char only[64];	       /* the image that is wanted; "": all */
	struct seen *seen;
	unsigned count;
	int error;
	char text[CUDAPOOL_TEXT_LEN];
};

/* ---- beside the loop ------------------------------------------------------------------------------- */

static int refuse(struct reading *reading, const char *name, int err, const char *why)
{
	/* -ENODATA would read as 'nothing there'. */
	snprintf(reading->text, sizeof(reading->text), "%s in %.60s: %.140s", name, reading->dir->path, why);
	return err == -ENODATA ? -EBADMSG : err;
}

static int check_image(struct reading *reading, const char *name, int fd, struct image *image)
{
	char text[CUDAPOOL_TEXT_LEN] = "", expected[64];
	struct stat st;
	int err;

	if (fstat(fd, &st) || !S_ISREG(st.st_mode))
		return refuse(reading, name, -EBADMSG, "is no file");
	err = image_read(image, fd, text);
	if (err)
		return refuse(reading, name, err, text);
	image_name(image->header.token, false, expected);
	if (!strcmp(expected, name))
		return 0;
	image_free(image);
	return refuse(reading, name, -EBADMSG, "it is the image of another token: was it renamed?");
}

static int read_one(struct store_dir *dir, const char *name, void *context)
{
	struct reading *reading = context;
	struct image image = {};
	struct seen *more;
	int fd, err;

	if (reading->only[0] && strcmp(reading->only, name))
		return 0;
	fd = openat(dir->fd, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY);
	if (fd < 0)
		return refuse(reading, name, -errno, strerror(errno));
	err = check_image(reading, name, fd, &image);
	more = err ? NULL : realloc(reading->seen, (reading->count + 1) * sizeof(*more));
	if (!more) {
		image_free(&image);
		close(fd);
		return err ? err : refuse(reading, name, -ENOMEM, "out of memory");
	}
	reading->seen = more;
	more = &reading->seen[reading->count++];
	*more = (struct seen){.fd = fd, .header = image.header, .piece = image.piece};
	snprintf(more->name, sizeof(more->name), "%s", name);
	image.piece = NULL;
	image_free(&image);
	return 0;
}

static void read_work(struct background *task)
{
	struct reading *reading = container_of(task, struct reading, task);

	reading->error = dir_each(reading->dir, false, read_one, reading);
	if (reading->error && !reading->text[0])
		snprintf(reading->text, sizeof(reading->text), "%.150s cannot be read: %s", reading->dir->path,
			 strerror(-reading->error));
}

/* ---- in the loop ----------------------------------------------------------------------------------- */

static int take(struct store_dir *dir, struct seen *seen, char *text)
{
	struct park **more = realloc(dir->park, (dir->count + 1) * sizeof(*more)), *park;
	char path[sizeof(dir->path) + 65];
	int err;

	if (!more) {
		snprintf(text, CUDAPOOL_TEXT_LEN, "out of memory");
		return -ENOMEM;
	}
	dir->park = more;
	snprintf(path, sizeof(path), "%s/%s", dir->path, seen->name);
	err = park_of_image(&park, &seen->header, seen->piece, seen->fd, path, text);
	seen->piece = NULL; /* taken, in any case */
	seen->fd = -1;
	if (err)
		return err;
	park->opened++;
	park->streams = dir->streams;
	park->chunk_mb = dir->chunk_mb;
	dir->park[dir->count++] = park;
	if (seen->header.created_us >= dir->created_us) { /* the newest dump is the one that counts */
		dir->created_us = seen->header.created_us;
		memcpy(dir->dump, seen->header.dump, sizeof(dir->dump));
	}
	return 0;
}

static void read_done(struct background *task)
{
	struct reading *reading = container_of(task, struct reading, task);
	bool wanted = reading->dir->asker.first; /* nobody waits for it any more: it is only closed */
	unsigned i;

	for (i = 0; i < reading->count; i++) {
		if (wanted && !reading->error)
			reading->error = take(reading->dir, &reading->seen[i], reading->text);
		free(reading->seen[i].piece);
		if (reading->seen[i].fd >= 0)
			close(reading->seen[i].fd);
	}
	dir_read(reading->dir, reading->error, reading->text);
	store_dir_release(reading->dir);
	free(reading->seen);
	free(reading);
}

int read_begin(struct store_dir *dir, const char *only)
{
	struct reading *reading = calloc(1, sizeof(*reading));

	if (!reading)
		return -ENOMEM;
	reading->dir = dir;
	snprintf(reading->only, sizeof(reading->only), "%s", only);
	/* Apart: a restore waits for it, and must not stand behind what is being synced, closed or read ahead. */
	reading->task = (struct background){.apart = true, .work = read_work, .done = read_done};
	store_dir_hold(dir);
	background_start(&reading->task);
	return 0;
}
