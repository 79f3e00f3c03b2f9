// SPDX-License-Identifier: MIT
/* Directories of images: cleaned for a dump, opened for a restore. */
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "log.h"
#include "store_internal.h"

#define ENTRIES_MAX 1000000 /* of a directory, that are looked at */
#define IMAGES_MAX  4096    /* in one directory */

static char own_path[sizeof(((struct cudapool_options *)0)->image_dir)];
static enum cudapool_hot own_hot;
static int own_sync;

void image_name(const uint8_t token[16], bool part, char name[64])
{
	char hex[2 * IMAGE_TOKEN_LEN + 1];

	image_hex(hex, token);
	snprintf(name, 64, IMAGE_NAME "%s", hex, part ? IMAGE_PART : "");
}

enum cudapool_hot pool_hot(enum cudapool_hot hot)
{
	return own_hot == CUDAPOOL_HOT_OFF ? own_hot : hot;
}

/* cudapool-, 32 hexadecimal digits, .img, and where `part` .part may follow. */
static bool is_image_name(const char *name, bool part)
{
	const char *digits = name + strlen(IMAGE_PREFIX), *end = digits + 2 * IMAGE_TOKEN_LEN;
	const char *c;

	if (strncmp(name, IMAGE_PREFIX, strlen(IMAGE_PREFIX)))
		return false;
	for (c = digits; c < end; c++)
		if (!isdigit((unsigned char)*c) && !(*c >= 'a' && *c <= 'f'))
			return false;
	return !strcmp(end, IMAGE_SUFFIX) || (part && !strcmp(end, IMAGE_SUFFIX IMAGE_PART));
}

int dir_each(struct store_dir *dir, bool part, int (*each)(struct store_dir *dir, const char *name, void *context),
	     void *context)
{
	int fd = openat(dir->fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC), err = 0;
	DIR *stream = fd < 0 ? NULL : fdopendir(fd);
	unsigned seen = 0, images = 0;
	struct dirent *entry;

	if (!stream) {
		err = -errno;
		if (fd >= 0)
			close(fd);
		return err;
	}
	for (errno = 0; !err && (entry = readdir(stream)); errno = 0) {
		if (++seen > ENTRIES_MAX)
			err = -E2BIG;
		else if (is_image_name(entry->d_name, part))
			err = ++images > IMAGES_MAX ? -E2BIG : each(dir, entry->d_name, context);
	}
	if (!err && errno)
		err = -errno; /* of readdir(): it has not seen all */
	closedir(stream);
	return err;
}

/* ---- dump --------------------------------------------------------------------------------------- */

static int clear_one(struct store_dir *dir, const char *name, void *context)
{
	return files_keep(dir, name);
}

/* The pool's own directory has images of many dumps. */
static int sweep_one(struct store_dir *dir, const char *name, void *context)
{
	return files_sweep(dir, name);
}

/* Parks whose images have just been removed. */
static void lose_images(void)
{
	struct park *park;

	LIST_FOREACH(park, &parks, link)
		if (park->life == PARK_SAVED && !park_image_exists(park))
			park_lost_image(park);
}

static int begin_dump(struct store_dir *dir, struct cudapool_found *found)
{
	int err = dir->own ? 0 : dir_each(dir, true, clear_one, NULL);

	if (dir->own)
		dir_each(dir, true, sweep_one, NULL); /* what it does not get to is only clutter */
	if (!err && !dir->own) {
		records_remove(dir->fd);
		lose_images();
	}
	if (!err && getrandom(dir->dump, sizeof(dir->dump), 0) != sizeof(dir->dump))
		err = -EIO;
	if (err)
		snprintf(found->text, sizeof(found->text),
			 "images of an earlier dump cannot be removed from %.120s: %s", dir->path, strerror(-err));
	memcpy(found->dump, dir->dump, sizeof(found->dump));
	return err;
}

/* ---- restore --------------------------------------------------------------------------------------- */

/* Those of an older dump are not touched: whether somebody needs one shows when its token is asked for. */
static bool of_dump(const struct store_dir *dir, const struct park *park)
{
	return MATCHES(park->header.dump, dir->dump);
}

static void count_found(struct store_dir *dir)
{
	struct cudapool_found *found = dir->found;
	unsigned i;

	for (i = 0; i < dir->count; i++)
		if (of_dump(dir, dir->park[i])) {
			found->count++;
			found->bytes += dir->park[i]->header.bytes;
			if (dir->park[i]->hot && dir->park[i]->hot->ready)
				found->hot_bytes += dir->park[i]->header.bytes;
		}
	memcpy(found->dump, dir->dump, sizeof(found->dump));
}

/* Jobs begin when the loop turns, so what tuning comes after this still counts. */
static void begin_loading(struct store_dir *dir)
{
	struct park *park;
	unsigned i;

	for (i = 0; i < dir->count; i++) {
		park = dir->park[i];
		park->used_ms = loop_now_ms();
		if (of_dump(dir, park) && !park->early &&
		    (!park->hot || dir->hot == CUDAPOOL_HOT_OFF || park->hot->exposed))
			park->early = memory_load(park);
	}
}

/* ---- prefetch ---------------------------------------------------------------------------------------- */

static void prefetch_next(struct store_dir *dir);

static void prefetched(struct store_waiter *step, int error, const char *text)
{
	struct store_dir *dir = container_of(step, struct store_dir, step);
	struct park *park = dir->park[dir->reached];

	if (dir->tier == CUDAPOOL_TIER_HOT && park->early && (park->early->ready || park->early->error)) {
		if (park->early->ready && !park->hot) {
			park->hot = park->early;
			park->hot_mode = CUDAPOOL_HOT_AUTO; /* whatever its dump wanted */
		} else {
			memory_free(park->early);
		}
		park->early = NULL;
	}
	if (error && error != -ECANCELED) {
		waiters_done(&dir->asker, error, text);
		return;
	}
	dir->reached += !error; /* else a restore had taken it, and has let go of it */
	prefetch_next(dir);
}

static void prefetch_next(struct store_dir *dir)
{
	struct park *park;

	for (; dir->reached < dir->count; dir->reached++) {
		park = dir->park[dir->reached];
		if (!of_dump(dir, park) || (park->hot && park->hot->ready && !park->hot->exposed))
			continue;
		dir->step.done = prefetched;
		if (dir->tier == CUDAPOOL_TIER_STAGED) {
			tier_stage(park, &dir->step);
			return;
		}
		if (!park->early)
			park->early = memory_load(park);
		if (park->early && !park->early->ready && !park->early->error)
			waiters_add(&park->early->filled, &dir->step);
		else
			prefetched(&dir->step, park->early ? park->early->error : -ENOMEM,
				   park->early ? park->early->text : "out of memory");
		return;
	}
	store_dir_unpin(dir);
	waiters_done(&dir->asker, 0, "");
}

/* ---- all -------------------------------------------------------------------------------------------- */

void dir_read(struct store_dir *dir, int error, const char *text)
{
	if (!dir->asker.first)
		return;
	if (error) {
		cudapool_log(CUDAPOOL_LOG_ERR, "%s", text);
		waiters_done(&dir->asker, error, text);
		return;
	}
	if (dir->found)
		count_found(dir);
	if (dir->found && dir->purpose == CUDAPOOL_IMAGES_PREFETCH) {
		prefetch_next(dir);
		return;
	}
	if (dir->purpose == CUDAPOOL_IMAGES_RESTORE)
		begin_loading(dir);
	waiters_done(&dir->asker, 0, "");
}

static void read_path(struct store_dir *dir)
{
	char link[32];
	ssize_t n;

	snprintf(link, sizeof(link), "/proc/self/fd/%d", dir->fd);
	n = readlink(link, dir->path, sizeof(dir->path) - 1);
	dir->path[n > 0 ? n : 0] = '\0';
	if (dir->path[0] != '/')
		dir->path[0] = '\0';
}

static struct store_dir *new_dir(int fd)
{
	struct store_dir *dir = calloc(1, sizeof(*dir));
	struct stat st;

	if (!dir || fstat(fd, &st) || !S_ISDIR(st.st_mode)) {
		close(fd);
		free(dir);
		return NULL;
	}
	dir->fd = fd;
	dir->references = 1;
	dir->hot = own_hot;
	dir->sync = own_sync;
	read_path(dir);
	return dir;
}

struct store_dir *store_open(int fd, const struct cudapool_images *request, struct cudapool_found *found,
			     struct store_waiter *waiter)
{
	struct store_dir *dir = new_dir(fd);
	int err;

	*found = (struct cudapool_found){.h = found->h};
	if (!dir) {
		found->error = -ENOTDIR;
		snprintf(found->text, sizeof(found->text), "the descriptor that came is no directory");
		return NULL;
	}
	dir->purpose = request->purpose;
	dir->tier = request->tier;
	dir->hot = pool_hot(request->hot);
	dir->sync = request->sync || own_sync;
	if (dir->purpose == CUDAPOOL_IMAGES_PREFETCH && dir->tier == CUDAPOOL_TIER_HOT && own_hot == CUDAPOOL_HOT_OFF) {
		found->error = -EPERM;
		snprintf(found->text, sizeof(found->text), "the pool keeps nothing on the GPU (CUDAPOOL_HOT=off)");
		store_dir_release(dir);
		return NULL;
	}
	if (dir->purpose == CUDAPOOL_IMAGES_DUMP) {
		err = begin_dump(dir, found);
	} else {
		dir->found = found;
		waiters_add(&dir->asker, waiter);
		err = read_begin(dir, "");
		if (err)
			store_cancel(waiter);
	}
	if (!err)
		return dir;
	if (!found->text[0])
		snprintf(found->text, sizeof(found->text), "%.150s cannot be read: %s", dir->path, strerror(-err));
	found->error = err;
	cudapool_log(CUDAPOOL_LOG_ERR, "%s", found->text);
	store_dir_release(dir);
	return NULL;
}

struct store_dir *dir_again(const char *path)
{
	int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	struct store_dir *dir = fd < 0 ? NULL : new_dir(fd);

	if (!dir)
		return NULL;
	dir->purpose = CUDAPOOL_IMAGES_DUMP;
	dir->own = !strcmp(path, own_path);
	return dir;
}

/* Each directory above it as well, for root only. */
static int make_own(void)
{
	char path[sizeof(own_path)], *slash;

	snprintf(path, sizeof(path), "%s", own_path);
	for (slash = strchr(path + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
		*slash = '\0';
		if (mkdir(path, 0755) && errno != EEXIST)
			return -errno;
		*slash = '/';
	}
	return mkdir(path, 0700) && errno != EEXIST ? -errno : 0;
}

static struct store_dir *open_own(void)
{
	int fd = open(own_path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	struct store_dir *dir = fd < 0 ? NULL : new_dir(fd);

	if (dir)
		dir->own = true;
	return dir;
}

struct store_dir *store_own(char *text)
{
	int err = make_own();
	struct store_dir *dir = err ? NULL : open_own();
	struct cudapool_found found = {0};

	if (!dir) {
		snprintf(text, CUDAPOOL_TEXT_LEN, "the pool's directory for images, %.100s (CUDAPOOL_IMAGE_DIR): %s",
			 own_path,
			 strerror(err ? -err : errno));
		return NULL;
	}
	if (begin_dump(dir, &found)) {
		snprintf(text, CUDAPOOL_TEXT_LEN, "%s", found.text);
		store_dir_release(dir);
		return NULL;
	}
	return dir;
}

void store_dir_tune(struct store_dir *dir, unsigned streams, unsigned chunk_mb)
{
	unsigned i;

	dir->streams = streams;
	dir->chunk_mb = chunk_mb;
	for (i = 0; i < dir->count; i++) {
		dir->park[i]->streams = streams;
		dir->park[i]->chunk_mb = chunk_mb;
	}
}

void store_dir_parked(struct store_dir *dir)
{
	files_drop(dir);
}

const char *store_dir_path(const struct store_dir *dir)
{
	return dir->path;
}

void store_dir_hold(struct store_dir *dir)
{
	dir->references++;
}

void store_dir_unpin(struct store_dir *dir)
{
	struct park *park;
	unsigned i;

	for (i = 0; i < dir->count; i++) {
		park = dir->park[i];
		park->opened--;
		if (!park->opened && park->early) {
			/* Loaded for nothing: that restore failed, or went another way. The next try finds it here. */
			if (park->early->ready && !park->hot && dir->hot != CUDAPOOL_HOT_OFF)
				park->hot = park->early;
			else
				memory_free(park->early);
			park->early = NULL;
		}
		park_settle(park);
	}
	dir->count = 0;
	rooms_enforce();
}

void store_dir_release(struct store_dir *dir)
{
	if (--dir->references)
		return;
	store_cancel(&dir->step);
	store_dir_unpin(dir);
	records_free(&dir->records);
	files_drop(dir);
	close(dir->fd);
	free(dir->park);
	free(dir);
}

/* ---- finding ------------------------------------------------------------------------------------------- */

struct park *store_find(struct store_dir *dir, const uint8_t token[CUDAPOOL_TOKEN_LEN])
{
	unsigned i;

	if (!dir)
		return park_by_token(token);
	for (i = 0; i < dir->count; i++)
		if (MATCHES(dir->park[i]->header.token, token))
			return dir->park[i];
	return NULL;
}

struct store_dir *store_look(const char *path, const uint8_t token[CUDAPOOL_TOKEN_LEN], struct store_waiter *waiter)
{
	int fd = open(path[0] ? path : own_path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	struct store_dir *dir = fd < 0 ? NULL : new_dir(fd);
	char name[64];

	if (!dir)
		return NULL;
	dir->purpose = CUDAPOOL_IMAGES_PREFETCH;
	dir->own = !path[0] || !strcmp(path, own_path);
	image_name(token, false, name);
	waiters_add(&dir->asker, waiter);
	if (!read_begin(dir, name))
		return dir;
	store_cancel(waiter);
	store_dir_release(dir);
	return NULL;
}

void store_missing(const struct store_dir *dir, const uint8_t token[CUDAPOOL_TOKEN_LEN], char *text)
{
	char hex[2 * IMAGE_TOKEN_LEN + 1], when[32] = "";
	time_t seconds = dir ? (time_t)(dir->created_us / 1000000) : 0;
	struct tm tm;

	image_hex(hex, token);
	if (dir && dir->count && gmtime_r(&seconds, &tm))
		strftime(when, sizeof(when), "%F %T UTC", &tm);
	if (when[0])
		snprintf(text, CUDAPOOL_TEXT_LEN,
			 "the image of this process's GPU memory (token %s) is not in %.90s; found %u of the dump from "
			 "%s", hex, dir->path, dir->count, when);
	else
		snprintf(text, CUDAPOOL_TEXT_LEN, "the image of this process's GPU memory (token %s) is not in %.120s",
			 hex, dir ? dir->path : own_path);
}

void dirs_init(const struct cudapool_options *options)
{
	char text[CUDAPOOL_TEXT_LEN];
	int hot = cudapool_options_hot(options, text);

	snprintf(own_path, sizeof(own_path), "%s", options->image_dir);
	own_sync = options->sync;
	own_hot = hot < 0 ? CUDAPOOL_HOT_AUTO : (enum cudapool_hot)hot;
	if (hot < 0)
		cudapool_log(CUDAPOOL_LOG_ERR, "%s; 'auto' counts", text);
}
