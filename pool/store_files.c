// SPDX-License-Identifier: MIT
/* Files of images: made anew, taken over from an earlier dump, and removed without keeping the loop waiting. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "log.h"
#include "store_internal.h"

/* ---- removing ------------------------------------------------------------------------------------- */

/* The last descriptor of a file without a name gives back its memory or blocks: half a second for 7 GiB of tmpfs. */
struct closing {
	struct background task;
	STAILQ_ENTRY(closing) link;
	int fd;
};
static STAILQ_HEAD(, closing) closings = STAILQ_HEAD_INITIALIZER(closings); /* the first one is under way */

static void close_work(struct background *task)
{
	close(container_of(task, struct closing, task)->fd);
}

/* One after another: what else is done beside the loop has somebody who waits for it. */
static void close_done(struct background *task)
{
	struct closing *closing = container_of(task, struct closing, task);

	STAILQ_REMOVE_HEAD(&closings, link);
	free(closing);
	closing = STAILQ_FIRST(&closings);
	if (closing)
		background_start(&closing->task);
}

void files_close(int fd)
{
	struct closing *closing;
	struct stat st;

	if (fd < 0)
		return;
	closing = fstat(fd, &st) || st.st_nlink ? NULL : calloc(1, sizeof(*closing));
	if (!closing) {
		close(fd);
		return;
	}
	closing->fd = fd;
	closing->task = (struct background){.work = close_work, .done = close_done};
	STAILQ_INSERT_TAIL(&closings, closing, link);
	if (STAILQ_FIRST(&closings) == closing)
		background_start(&closing->task);
}

int files_remove(int dir, const char *name)
{
	int fd = openat(dir, name, O_PATH | O_NOFOLLOW | O_CLOEXEC), err = 0;

	if (unlinkat(dir, name, 0) && errno != ENOENT)
		err = -errno;
	files_close(fd);
	return err;
}

/* ---- taking over ---------------------------------------------------------------------------------- */

/*
 * Nobody but us has it open, nor a mapping of it: a worker that still reads or writes it, somebody who copies it. Only
 * then is a lease to write to be had. It is given back at once; should somebody open the file until then, we are told
 * so by a signal that is ignored, instead of one that kills.
 */
static bool is_ours_alone(int fd)
{
	return !fcntl(fd, F_SETSIG, SIGURG) && !fcntl(fd, F_SETLEASE, F_WRLCK) && !fcntl(fd, F_SETLEASE, F_UNLCK);
}

static bool is_worth_keeping(int fd, struct stat *st)
{
	return !fstat(fd, st) && S_ISREG(st->st_mode) && st->st_nlink == 1 && st->st_uid == geteuid() &&
		(st->st_mode & 07777) == 0600 && st->st_blocks * 512 >= IMAGE_BLOCK;
}

/* No image any more, by its content and then by its name. */
static int make_spare(struct store_dir *dir, const char *name, struct spare *spare)
{
	static const char nothing[IMAGE_HEADER_SIZE];
	bool part = !strcmp(name + strlen(name) - strlen(IMAGE_PART), IMAGE_PART);
	int err = image_pwrite(spare->fd, nothing, sizeof(nothing), 0);

	if (err)
		return err;
	snprintf(spare->name, sizeof(spare->name), "%.50s%s", name, part ? "" : IMAGE_PART);
	return part || !renameat2(dir->fd, name, dir->fd, spare->name, RENAME_NOREPLACE) ? 0 : -errno;
}

static bool is_spare(const struct store_dir *dir, const char *name)
{
	unsigned i;

	for (i = 0; i < dir->spares; i++)
		if (!strcmp(dir->spare[i].name, name))
			return true;
	return false;
}

int files_keep(struct store_dir *dir, const char *name)
{
	struct spare spare;
	struct stat st;

	if (is_spare(dir, name)) /* renamed while the directory was being read */
		return 0;
	spare.fd = openat(dir->fd, name, O_RDWR | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
	if (spare.fd >= 0 && dir->spares < SPARES_MOST && is_worth_keeping(spare.fd, &st) &&
	    park_release_image(st.st_dev, st.st_ino) && is_ours_alone(spare.fd) && !make_spare(dir, name, &spare)) {
		spare.bytes = st.st_blocks * 512;
		dir->spare[dir->spares++] = spare;
		return 0;
	}
	/* Should its header be gone already: its name goes in any case, or the dump fails. */
	if (spare.fd >= 0) {
		int err = unlinkat(dir->fd, name, 0) && errno != ENOENT ? -errno : 0;

		files_close(spare.fd);
		return err;
	}
	return files_remove(dir->fd, name);
}

int files_sweep(struct store_dir *dir, const char *name)
{
	bool part = !strcmp(name + strlen(name) - strlen(IMAGE_PART), IMAGE_PART);
	int fd = part ? openat(dir->fd, name, O_RDWR | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC) : -1;

	if (fd >= 0 && is_ours_alone(fd))
		unlinkat(dir->fd, name, 0);
	files_close(fd);
	return 0;
}

/* The smallest one that suffices, else the largest. */
static unsigned best_spare(const struct store_dir *dir, uint64_t bytes)
{
	unsigned best = 0, i;

	for (i = 1; i < dir->spares; i++) {
		uint64_t has = dir->spare[best].bytes, offers = dir->spare[i].bytes;

		if (has < bytes ? offers > has : offers >= bytes && offers < has)
			best = i;
	}
	return best;
}

int files_make(struct store_dir *dir, const char *name, uint64_t bytes, uint64_t *recycled)
{
	struct spare spare;
	unsigned i;
	int fd;

	while (dir->spares) {
		i = best_spare(dir, bytes);
		spare = dir->spare[i];
		dir->spare[i] = dir->spare[--dir->spares];
		if (!renameat2(dir->fd, spare.name, dir->fd, name, RENAME_NOREPLACE)) {
			*recycled = spare.bytes;
			return spare.fd;
		}
		unlinkat(dir->fd, spare.name, 0);
		files_close(spare.fd);
	}
	*recycled = 0;
	fd = openat(dir->fd, name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
	return fd < 0 ? -errno : fd;
}

void files_drop(struct store_dir *dir)
{
	while (dir->spares) {
		struct spare *spare = &dir->spare[--dir->spares];

		unlinkat(dir->fd, spare->name, 0);
		files_close(spare->fd);
	}
}
