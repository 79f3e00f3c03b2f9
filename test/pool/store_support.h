// SPDX-License-Identifier: MIT
/* For tests of the store: a room of their own, the loop until something is so, a whole dump, a whole restore. */
#ifndef CUDAPOOL_TEST_POOL_STORE_SUPPORT_H
#define CUDAPOOL_TEST_POOL_STORE_SUPPORT_H

#include <sys/wait.h>

#include "../client/tap.h"
#include "fake_worker.h"
#include "log.h"
#include "options.h"
#include "records.h"
#include "store_internal.h"

static char room[] = "/tmp/cudapool-store-XXXXXX";
static struct cudapool_options options = {
	.streams = 8, .chunk_mb = 4, .progress_s = 1, .hot_percent = 80, .hot = "auto"};
static struct process self;

/* ---- the loop, until something is so ----------------------------------------------------------------- */

static bool (*condition)(void);
static uint64_t give_up_ms;
static struct loop_timer poll_timer;

static inline void poll_condition(struct loop_timer *timer)
{
	if (condition() || loop_now_ms() > give_up_ms)
		loop_quit();
	else
		loop_timer_set(timer, 1);
}

static inline bool until(bool (*what)(void), unsigned ms)
{
	condition = what;
	give_up_ms = loop_now_ms() + ms;
	poll_timer.fire = poll_condition;
	loop_timer_set(&poll_timer, 0);
	loop_run();
	return what();
}

static struct waited {
	struct store_waiter waiter;
	bool done;
	int error;
	char text[CUDAPOOL_TEXT_LEN];
} waited;

static inline void waited_for(struct store_waiter *waiter, int error, const char *text)
{
	struct waited *w = container_of(waiter, struct waited, waiter);

	w->done = true;
	w->error = error;
	snprintf(w->text, sizeof(w->text), "%s", text ? text : "");
}

static inline struct store_waiter *fresh(struct waited *w)
{
	*w = (struct waited){.waiter.done = waited_for};
	return &w->waiter;
}

static inline bool is_done(void)
{
	return waited.done;
}

static inline int wait_done(void)
{
	return until(is_done, 10000) ? waited.error : -ETIME;
}

static inline uint64_t used(void)
{
	return fake_used(0) + fake_used(1);
}

static inline bool nothing_used(void)
{
	return used() == 0;
}

static uint64_t expected_mib;

static inline bool as_expected(void)
{
	return used() == expected_mib * MIB;
}

/* Closing is done beside the loop. */
static inline bool uses(uint64_t mib)
{
	expected_mib = mib;
	return until(as_expected, 2000);
}

static inline bool never(void)
{
	return false;
}

static inline void settle(unsigned ms)
{
	until(never, ms);
}

/* ---- directories and parks ---------------------------------------------------------------------------- */

static inline const char *path_of(const char *dir, const char *name)
{
	static char path[512];

	snprintf(path, sizeof(path), "%s/%s%s%s", room, dir, name ? "/" : "", name ? name : "");
	return path;
}

static enum cudapool_tier tier = CUDAPOOL_TIER_HOT;
static bool synced;
static unsigned streams, chunk_mb; /* as a client's HELLO says */

static struct waited opened;

static inline bool is_opened(void)
{
	return opened.done;
}

/* RESTORE: all is read; NULL: it is refused, and *found says why. PREFETCH: wait_done() is the caller's. */
static inline struct store_dir *open_dir(const char *name, enum cudapool_images_for purpose, enum cudapool_hot hot,
				  struct cudapool_found *found)
{
	struct cudapool_images request = {.purpose = purpose, .hot = hot, .tier = tier, .sync = synced};
	struct store_dir *dir;

	mkdir(path_of(name, NULL), 0700);
	*found = (struct cudapool_found){0};
	dir = store_open(open(path_of(name, NULL), O_RDONLY | O_DIRECTORY | O_CLOEXEC), &request, found,
			 fresh(purpose == CUDAPOOL_IMAGES_PREFETCH ? &waited : &opened));
	if (dir)
		store_dir_tune(dir, streams, chunk_mb);
	if (!dir || purpose != CUDAPOOL_IMAGES_RESTORE)
		return dir;
	if (!until(is_opened, 10000))
		abort();
	if (!opened.error)
		return dir;
	found->error = opened.error;
	snprintf(found->text, sizeof(found->text), "%s", opened.text);
	store_dir_release(dir);
	return NULL;
}

static bool blank; /* or only zeros */

/* Content that names its place, and zeros in between. */
static inline void fill(int fd, uint64_t bytes, unsigned seed)
{
	uint64_t at, value;

	for (at = 0; at < bytes; at += 4096) {
		value = blank || (at / MIB) % 3 == 2 ? 0 : at * 2654435761u + seed;
		if (pwrite(fd, &value, sizeof(value), (off_t)at) != sizeof(value))
			abort();
	}
}

static inline bool holds(int fd, uint64_t bytes, unsigned seed)
{
	uint64_t at, value = 1;

	for (at = 0; at < bytes; at += 4096)
		if (pread(fd, &value, sizeof(value), (off_t)at) != sizeof(value) ||
		    value != (blank || (at / MIB) % 3 == 2 ? 0 : at * 2654435761u + seed))
			return false;
	return true;
}

/* A park of `count` pieces of `mib` each, on both devices in turn, up to GO. */
static inline struct park *park(struct store_dir *dir, unsigned count, unsigned mib)
{
	struct cudapool_channel_begin begin = {.pieces = count, .devices = FAKE_DEVICES, .bytes = count * mib * MIB};
	uint64_t left[CUDAPOOL_CHANNEL_DEVICES] = {3 * MIB};
	struct cudapool_channel_piece piece;
	struct park *park = store_begin(dir, &self);
	unsigned i;
	int fd;

	memcpy(begin.uuid, fake_uuid, sizeof(fake_uuid));
	if (!park || store_describe(park, &begin))
		return NULL;
	for (i = 0; i < count; i++) {
		piece = (struct cudapool_channel_piece){.bytes = mib * MIB, .device = i % FAKE_DEVICES};
		fd = fake_memory(i % FAKE_DEVICES, piece.bytes);
		fill(fd, piece.bytes, i);
		if (store_add(park, &piece, &fd, 1))
			return NULL;
	}
	return store_taken(park, left) ? NULL : park;
}

/* The same, saved, and its process dead. */
static inline bool dump(const char *name, unsigned count, unsigned mib, enum cudapool_hot hot, uint8_t token[16])
{
	struct cudapool_found found;
	struct store_dir *dir = open_dir(name, CUDAPOOL_IMAGES_DUMP, hot, &found);
	struct park *parked = dir ? park(dir, count, mib) : NULL;

	if (!parked)
		return false;
	memcpy(token, store_token(parked), 16);
	store_wait_saved(parked, fresh(&waited));
	if (wait_done()) {
		note("%s", waited.text);
		return false;
	}
	store_orphaned(parked);
	store_dir_release(dir);
	settle(20);
	return true;
}

static inline bool gift_is_right(const struct store_gift *gift, unsigned count, unsigned mib)
{
	bool right = gift->pieces == count && gift->begin.pieces == count && gift->begin.bytes == count * mib * MIB;
	unsigned i;

	for (i = 0; right && i < count; i++)
		right = gift->piece[i].bytes == mib * MIB && gift->piece[i].device == i % FAKE_DEVICES &&
			holds(gift->fds[i], mib * MIB, i);
	return right;
}

/* A whole restore. The path, or a negative errno. */
static inline int restore(const char *name, const uint8_t token[16], enum cudapool_hot hot, unsigned count, unsigned mib,
		   bool taken)
{
	struct cudapool_found found;
	struct store_dir *dir = open_dir(name, CUDAPOOL_IMAGES_RESTORE, hot, &found);
	struct store_gift gift;
	struct park *parked;
	int err, path;

	if (!dir) {
		note("%s", found.text);
		return found.error;
	}
	parked = store_find(dir, token);
	if (!parked) {
		store_dir_release(dir);
		return -ENOENT;
	}
	store_claim(&gift, parked, hot, fresh(&waited));
	err = wait_done();
	if (!err) {
		store_claim_used(&gift);
		store_give(&gift, fresh(&waited));
		err = wait_done();
	}
	path = gift.path;
	if (!err && !gift_is_right(&gift, count, mib))
		err = -EILSEQ;
	store_gave(&gift, taken && !err);
	store_dir_release(dir);
	settle(20);
	return err ? err : path;
}

static inline void evict_all(void)
{
	struct cudapool_evict all = {.tier = CUDAPOOL_TIER_STAGED};
	struct cudapool_found found = {0};

	store_evict(&all, &found, fresh(&waited));
	until(nothing_used, 2000);
}

static inline unsigned files_in(const char *name, const char *ending)
{
	DIR *dir = opendir(path_of(name, NULL));
	struct dirent *entry;
	unsigned count = 0;
	size_t length;

	while (dir && (entry = readdir(dir))) {
		length = strlen(entry->d_name);
		count += length > strlen(ending) && !strcmp(entry->d_name + length - strlen(ending), ending);
	}
	closedir(dir);
	return count;
}

static inline void write_file(const char *dir, const char *name, const char *text)
{
	FILE *file = fopen(path_of(dir, name), "w");

	fputs(text, file);
	fclose(file);
}

static inline const char *image_of(const uint8_t token[16])
{
	static char name[64];

	image_name(token, false, name);
	return name;
}

static inline bool begin_tests(void)
{
	if (!mkdtemp(room) || process_open(&self, getpid()) || loop_init())
		return false;
	snprintf(options.image_dir, sizeof(options.image_dir), "%s/own/images", room);
	if (getenv("VERBOSE"))
		cudapool_log_to(STDERR_FILENO, CUDAPOOL_LOG_DEBUG);
	return !store_init(&options);
}

static inline int end_tests(void)
{
	char command[64];

	snprintf(command, sizeof(command), "rm -rf %s", room);
	return system(command) ? 1 : tap_end();
}

#endif
