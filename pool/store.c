// SPDX-License-Identifier: MIT
/* Parks: from the first piece to the image, and what is kept of them. */
#include "store.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "build.h"
#include "log.h"
#include "records.h"
#include "store_internal.h"
#include "worker_link.h"

#define KNOWN_MAX 64 /* parks of which there is only an image; the least recently used is forgotten */

struct park_list parks = LIST_HEAD_INITIALIZER(parks);
static struct loop_timer reap;

/* ---- waiters ------------------------------------------------------------------------------------- */

void waiters_add(struct waiters *waiters, struct store_waiter *waiter)
{
	struct store_waiter **last = &waiters->first;

	while (*last)
		last = &(*last)->next;
	*last = waiter;
	waiter->next = NULL;
	waiter->store = waiters;
	waiter->waiting = true;
}

void waiters_join(struct waiters *to, struct waiters *from)
{
	struct store_waiter *waiter;

	while ((waiter = from->first)) {
		from->first = waiter->next;
		waiters_add(to, waiter);
	}
}

void waiters_done(struct waiters *waiters, int error, const char *text)
{
	struct waiters all = *waiters;
	struct store_waiter *waiter;
	char copy[CUDAPOOL_TEXT_LEN];

	snprintf(copy, sizeof(copy), "%s", text); /* whoever is called may free what it is in */
	waiters->first = NULL;
	for (waiter = all.first; waiter; waiter = waiter->next)
		waiter->store = &all;
	while ((waiter = all.first)) {
		all.first = waiter->next;
		waiter->waiting = false;
		waiter->done(waiter, error, copy);
	}
}

void store_cancel(struct store_waiter *waiter)
{
	struct waiters *waiters = waiter->store;
	struct store_waiter **at;

	if (!waiter->waiting)
		return;
	waiter->waiting = false;
	for (at = &waiters->first; *at; at = &(*at)->next)
		if (*at == waiter) {
			*at = waiter->next;
			return;
		}
}

/* ---- what becomes of parks ------------------------------------------------------------------------ */

struct park *park_by_token(const uint8_t token[16])
{
	struct park *park;

	LIST_FOREACH(park, &parks, link)
		if (park->life != PARK_DROPPED && MATCHES(park->header.token, token))
			return park;
	return NULL;
}

static void close_image(struct park *park)
{
	files_close(park->image);
	park->image = -1;
}

static void leave_dir(struct park *park)
{
	if (park->dir)
		store_dir_release(park->dir);
	park->dir = NULL;
}

static void free_park(struct park *park)
{
	LIST_REMOVE(park, link);
	deposit_end(&park->deposit);
	job_cancel(&park->save);
	memory_free(park->hot);
	memory_free(park->early);
	files_close(park->part);
	close_image(park);
	leave_dir(park);
	free(park->piece);
	free(park->path);
	free(park->first.path);
	free(park);
}

static bool park_in_use(const struct park *park)
{
	return park->held || park->gifts || park->opened || park->naming_on || (park->hot && park->hot->users);
}

static void reap_parks(struct loop_timer *timer)
{
	struct park *park, *next, *oldest = NULL;
	unsigned known = 0;

	for (park = LIST_FIRST(&parks); park; park = next) {
		next = LIST_NEXT(park, link);
		if (park_in_use(park))
			continue;
		leave_dir(park);
		if (park->life != PARK_SAVED || (!park->hot && !park->early && !park->path)) {
			free_park(park);
		} else if (!park->hot && !park->early) {
			close_image(park); /* so that the file system can be unmounted, and the file deleted */
			known++;
			if (!oldest || park->used_ms < oldest->used_ms)
				oldest = park;
		}
	}
	if (known > KNOWN_MAX) {
		free_park(oldest);
		loop_timer_set(&reap, 0);
	}
}

void park_settle(struct park *park)
{
	loop_timer_set(&reap, 0);
	rooms_kick();
	watch_changed();
}

bool park_evictable(const struct park *park)
{
	return park->life == PARK_SAVED && park->hot && park->hot->ready && !park->hot->users && !park->gifts &&
		!park->opened;
}

void park_evict(struct park *park)
{
	memory_free(park->hot);
	park->hot = NULL;
	park_settle(park);
}

static bool is_at(const char *path, uint64_t dev, uint64_t ino)
{
	struct stat st;

	return path && !stat(path, &st) && st.st_ino == ino && st.st_dev == dev;
}

static bool newest_exists(const struct park *park)
{
	struct stat st;

	if (park->image >= 0)
		return fstat(park->image, &st) || st.st_nlink > 0;
	return is_at(park->path, park->dev, park->ino);
}

bool park_image_exists(struct park *park)
{
	if (newest_exists(park))
		return true;
	if (!is_at(park->first.path, park->first.dev, park->first.ino))
		return false;
	if (park_in_use(park) || park->early)
		return true; /* what is being read is read to its end */
	close_image(park);
	free(park->path);
	park->path = park->first.path;
	park->dev = park->first.dev;
	park->ino = park->first.ino;
	park->first.path = NULL;
	return true;
}

int park_open_image(struct park *park)
{
	struct stat st;

	if (park->image >= 0)
		return park->image;
	if (!park->path)
		return -ENOENT;
	park->image = open(park->path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
	if (park->image < 0)
		return -errno;
	if (fstat(park->image, &st) || st.st_ino != park->ino || st.st_dev != park->dev) {
		close_image(park);
		return -ESTALE;
	}
	return park->image;
}

void park_lost_image(struct park *park)
{
	if (park_in_use(park))
		return;
	park->life = PARK_DROPPED;
	if (park->hot)
		cudapool_log(CUDAPOOL_LOG_INFO, "the image of process %d (%s) was removed: letting go of its memory",
			     park->header.pid, park->header.name);
	memory_free(park->hot);
	memory_free(park->early);
	park->hot = park->early = NULL;
	park_settle(park);
}

static bool park_has_image(const struct park *park, uint64_t dev, uint64_t ino)
{
	return (park->image >= 0 || park->path) && park->dev == dev && park->ino == ino;
}

bool park_release_image(uint64_t dev, uint64_t ino)
{
	struct park *park;

	LIST_FOREACH(park, &parks, link)
		if (park_has_image(park, dev, ino) && park_in_use(park))
			return false;
	LIST_FOREACH(park, &parks, link)
		if (park_has_image(park, dev, ino)) {
			park_lost_image(park);
			close_image(park);
		}
	return true;
}

struct park *park_new(void)
{
	struct park *park = calloc(1, sizeof(*park));

	if (!park)
		return NULL;
	park->image = park->part = -1;
	park->used_ms = loop_now_ms();
	LIST_INSERT_HEAD(&parks, park, link);
	return park;
}

void park_set_image(struct park *park, int fd, const char *path)
{
	struct stat st;

	if (park->path && strcmp(park->path, path) && newest_exists(park) &&
	    !is_at(park->first.path, park->first.dev, park->first.ino)) {
		free(park->first.path);
		park->first.path = park->path;
		park->first.dev = park->dev;
		park->first.ino = park->ino;
	} else {
		free(park->path);
	}
	close_image(park);
	park->image = fd;
	if (!fstat(fd, &st)) {
		park->dev = st.st_dev;
		park->ino = st.st_ino;
		park->image_bytes = st.st_size;
	}
	park->path = path[0] == '/' ? strdup(path) : NULL;
}

/* For people: of a long one, its beginning. */
static void directory_of(const char *path, char directory[50])
{
	const char *name = strrchr(path, '/');

	snprintf(directory, 50, "%.*s", (int)(name ? name - path : 0), path);
}

/*
 * The park of this token is not of this image: a token is random, so one of the two was altered. Where nobody has
 * anything of the park, the image is what there is; but memory that may be another's goes to nobody.
 */
static bool park_gives_way(struct park *park, const char *path, char *text)
{
	char there[50], here[50];

	if (park->life == PARK_SAVED && !park->hot && !park->early && !park_in_use(park)) {
		park->life = PARK_DROPPED;
		park_settle(park);
		return true;
	}
	directory_of(path, there);
	directory_of(park->life == PARK_SAVED && park->path ? park->path : "", here);
	snprintf(text, CUDAPOOL_TEXT_LEN,
		 "the image in %s is not of the memory that the pool has of its token (process %d, %.15s, saved to "
		 "%s): use that image, or 'cudapool evict' the memory", there, park->header.pid, park->header.name,
		 here[0] ? here : "nowhere yet");
	return false;
}

static struct park *park_from(const struct image_header *header, struct image_piece *piece)
{
	struct park *park = park_new();
	unsigned i;

	if (!park)
		return NULL;
	park->life = PARK_SAVED;
	park->header = *header;
	park->piece = piece;
	for (i = 0; i < header->pieces; i++)
		park->bytes[piece[i].device] += piece[i].bytes;
	return park;
}

int park_of_image(struct park **found, const struct image_header *header, struct image_piece *piece, int fd,
		  const char *path, char *text)
{
	struct park *park = park_by_token(header->token);
	int err = 0;

	/* All of it: its checksum is of the tables as well, and theirs of what is in the blocks. */
	if (park && (park->life != PARK_SAVED || memcmp(&park->header, header, sizeof(*header)))) {
		err = park_gives_way(park, path, text) ? 0 : -EBADMSG;
		park = NULL;
	}
	if (park) {
		free(piece); /* it is known; the file may be another copy of it, and is the newest to be seen */
	} else {
		park = err ? NULL : park_from(header, piece);
		if (!park) {
			free(piece);
			close(fd);
			if (!err)
				snprintf(text, CUDAPOOL_TEXT_LEN, "out of memory");
			return err ? err : -ENOMEM;
		}
	}
	if (park->early || park->gifts)
		close(fd); /* it is being loaded from where it was found before */
	else
		park_set_image(park, fd, path);
	park_settle(park);
	*found = park;
	return 0;
}

/* ---- the dump side --------------------------------------------------------------------------------- */

struct park *store_begin(struct store_dir *dir, const struct process *process)
{
	struct park *park = park_new();

	if (!park)
		return NULL;
	if (getrandom(park->header.token, sizeof(park->header.token), 0) != sizeof(park->header.token)) {
		free_park(park);
		return NULL;
	}
	store_dir_hold(dir);
	park->dir = dir;
	park->held = true;
	park->hot_mode = dir->hot;
	park->sync = dir->sync;
	memcpy(park->header.dump, dir->dump, sizeof(park->header.dump));
	park->header.pid = process->pid;
	process_name(process->pid, park->header.name);
	snprintf(park->header.build, sizeof(park->header.build), "%s", build_name());
	container_of_process(process->pid, park->container);
	return park;
}

const uint8_t *store_token(const struct park *park)
{
	return park->header.token;
}

int store_describe(struct park *park, const struct cudapool_channel_begin *begin)
{
	if (begin->devices > DEVICES || begin->pieces > IMAGE_PIECES_MOST || begin->bytes > IMAGE_BYTES_MOST ||
	    (begin->pieces && !begin->devices) || park->hot)
		return -EINVAL;
	if (rooms_descriptors(begin->pieces))
		return -EMFILE;
	park->header.devices = begin->devices;
	park->header.pieces = begin->pieces;
	memcpy(park->header.uuid, begin->uuid, begin->devices * sizeof(begin->uuid[0]));
	park->piece = calloc(begin->pieces ? begin->pieces : 1, sizeof(*park->piece));
	park->hot = park->piece ? memory_new(park) : NULL;
	return park->hot ? 0 : -ENOMEM;
}

int store_add(struct park *park, const struct cudapool_channel_piece *pieces, const int *fds, unsigned count)
{
	struct memory *memory = park->hot;
	unsigned i;

	if (!memory || count > park->header.pieces - memory->got)
		goto refuse;
	for (i = 0; i < count; i++)
		if (!pieces[i].bytes || pieces[i].device >= park->header.devices ||
		    pieces[i].bytes > IMAGE_BYTES_MOST - park->header.bytes)
			goto refuse;
	for (i = 0; i < count; i++) {
		park->piece[memory->got] = (struct image_piece){pieces[i].bytes, pieces[i].device, pieces[i].flags};
		memory->fds[memory->got++] = fds[i];
		park->bytes[pieces[i].device] += pieces[i].bytes;
		park->header.bytes += pieces[i].bytes;
	}
	return 0;
refuse:
	while (count)
		close(fds[--count]);
	return -EINVAL;
}

void store_abandon(struct park *park)
{
	park->held = false;
	park->life = PARK_DROPPED;
	deposit_end(&park->deposit);
	memory_free(park->hot);
	park->hot = NULL;
	park_settle(park);
}

void store_wait_saved(struct park *park, struct store_waiter *waiter)
{
	if (park->life == PARK_TAKEN)
		waiters_add(&park->saved, waiter);
	else
		waiter->done(waiter, park->life == PARK_SAVED ? 0 : park->save_error ? park->save_error : -EIO,
			     park->text);
}

bool store_saved(const struct park *park)
{
	return park->life == PARK_SAVED;
}

void store_dropped(struct park *park)
{
	bool saved = park->life == PARK_SAVED;

	park->life = PARK_DROPPED;
	deposit_end(&park->deposit);
	save_stop(park);
	if (saved)
		save_remove_image(park);
	park->held = false;
	if (!park->gifts) {
		memory_free(park->hot);
		park->hot = NULL;
	}
	memory_free(park->early);
	park->early = NULL;
	waiters_done(&park->saved, -ECANCELED, "the dump was undone");
	park_settle(park);
}

void store_orphaned(struct park *park)
{
	if (park->life != PARK_SAVED) {
		store_dropped(park);
		return;
	}
	park->held = false;
	if (park->hot && park->hot->exposed) { /* it was its own process's, and is nobody's now */
		memory_free(park->hot);
		park->hot = NULL;
	}
	rooms_enforce();
	park_settle(park);
}

void park_returned(struct park *park)
{
	if (park->life == PARK_SAVED)
		park->held = false;
	else
		store_dropped(park);
}

/* ---- the rest of the world -------------------------------------------------------------------------- */

int store_init(const struct cudapool_options *options)
{
	int err = background_init();

	if (err)
		return err;
	reap.fire = reap_parks;
	jobs_init(options->streams, options->chunk_mb, options->progress_s, rooms_kick);
	rooms_init(options->hot_percent);
	dirs_init(options);
	return watch_init();
}

void store_worker_message(const struct worker_message *message, const int *fds, unsigned count)
{
	jobs_message(message, fds, count);
	if (message->kind == WORKER_RESULT)
		rooms_kick();
}

void store_worker_lost(const char *what)
{
	jobs_worker_lost(what);
	rooms_kick();
}

void store_worker_changed(void)
{
	jobs_worker_changed();
}

void store_worker_room(void)
{
	jobs_room();
}
