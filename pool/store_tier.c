// SPDX-License-Identifier: MIT
/* Tiers: where parked memory is, and moving it for clients. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>

#include "clock.h"
#include "store_internal.h"

#define SAMPLES	    64
#define STAGED_FROM 56 /* samples in the page cache */
#define STAGE_STEP  (256ull << 20) /* read in one background task, so that others have their turn */
#define STAGE_READ  (1u << 20)
#define DROP_MS	      1000 /* that pages which somebody reads may take to be dropped, */
#define DROP_AGAIN_MS 20   /* tried again so often */

/* ---- where it is ------------------------------------------------------------------------------ */

enum cudapool_tier tier_of_file(int fd, uint64_t size)
{
	uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE), pages = (size + page - 1) / page, i;
	unsigned char resident, count = 0;
	char *map;

	map = size ? mmap(NULL, size, PROT_READ, MAP_SHARED, fd, 0) : MAP_FAILED;
	if (map == MAP_FAILED)
		return CUDAPOOL_TIER_COLD;
	/* The pages themselves are not touched: a file that shrinks meanwhile is no SIGBUS. */
	for (i = 0; i < SAMPLES; i++)
		count += !mincore(map + pages * i / SAMPLES * page, page, &resident) && (resident & 1);
	munmap(map, size);
	return count >= STAGED_FROM ? CUDAPOOL_TIER_STAGED : CUDAPOOL_TIER_COLD;
}

enum cudapool_tier tier_of_park(struct park *park)
{
	enum cudapool_tier tier = CUDAPOOL_TIER_COLD;
	int fd;

	if (park->hot && park->hot->ready)
		return CUDAPOOL_TIER_HOT;
	fd = park_open_image(park);
	if (fd >= 0)
		tier = tier_of_file(fd, park->image_bytes);
	park_settle(park); /* which closes it again */
	return tier;
}

/* ---- into the page cache -------------------------------------------------------------------------- */

struct staging {
	struct background task;
	int fd, error;
	uint64_t at;
	bool over;
	struct waiters waiters;
};

/* Reading tells when it is there; advice does not, and is cut to what the device likes. */
static void stage_work(struct background *task)
{
	struct staging *staging = container_of(task, struct staging, task);
	uint64_t end = staging->at + STAGE_STEP;
	char *buffer = malloc(STAGE_READ);
	ssize_t n = buffer ? 1 : -1;

	if (!buffer)
		errno = ENOMEM;
	while (n > 0 && staging->at < end) {
		n = pread(staging->fd, buffer, STAGE_READ, (off_t)staging->at);
		if (n > 0)
			staging->at += n;
	}
	staging->error = n < 0 ? -errno : 0;
	staging->over = n <= 0;
	free(buffer);
}

static void stage_done(struct background *task)
{
	struct staging *staging = container_of(task, struct staging, task);

	if (!staging->over && staging->waiters.first) {
		background_start(task);
		return;
	}
	close(staging->fd);
	waiters_done(&staging->waiters, staging->error, staging->error ? strerror(-staging->error) : "");
	free(staging);
}

void tier_stage(struct park *park, struct store_waiter *waiter)
{
	struct staging *staging = calloc(1, sizeof(*staging));
	int fd = park_open_image(park);

	if (staging && fd >= 0)
		staging->fd = fcntl(fd, F_DUPFD_CLOEXEC, 3);
	if (!staging || fd < 0 || staging->fd < 0) {
		free(staging);
		waiter->done(waiter, fd < 0 ? fd : -ENOMEM, "the image cannot be opened");
		return;
	}
	staging->task = (struct background){.work = stage_work, .done = stage_done};
	waiters_add(&staging->waiters, waiter);
	background_start(&staging->task);
}

/* ---- out of it ------------------------------------------------------------------------------------- */

/* One EVICT, until all files that it is about are out of the page cache. */
struct eviction {
	unsigned under_way;
	int error; /* the first one */
	char text[CUDAPOOL_TEXT_LEN];
	struct waiters asker;
};

struct dropping {
	struct background task;
	struct eviction *eviction;
	int fd, error;
	uint64_t left; /* bytes that stay in the page cache */
	char path[160]; /* for people */
};

static bool is_in_memory(int fd)
{
	struct statfs fs;

	return !fstatfs(fd, &fs) && (fs.f_type == TMPFS_MAGIC || fs.f_type == RAMFS_MAGIC);
}

/* Bytes of the file that are in the page cache. */
static uint64_t bytes_cached(int fd)
{
	static const uint64_t step = 1ull << 30;
	uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE), at, pages, i, count = 0;
	unsigned char *resident = malloc(step / page);
	struct stat st;
	void *map;

	for (at = 0; resident && !fstat(fd, &st) && at < (uint64_t)st.st_size; at += step) {
		pages = ((uint64_t)st.st_size - at < step ? (uint64_t)st.st_size - at + page - 1 : step) / page;
		map = mmap(NULL, pages * page, PROT_READ, MAP_SHARED, fd, (off_t)at);
		if (map == MAP_FAILED)
			break;
		for (i = 0; !mincore(map, pages * page, resident) && i < pages; i++)
			count += resident[i] & 1;
		munmap(map, pages * page);
	}
	free(resident);
	return count * page;
}

/* What is not written yet cannot be dropped; and neither can, for a moment, what somebody is just reading. */
static void drop_work(struct background *task)
{
	struct dropping *dropping = container_of(task, struct dropping, task);
	int64_t end = cudapool_now_ms() + DROP_MS;

	if (is_in_memory(dropping->fd)) {
		dropping->error = -EOPNOTSUPP;
		return;
	}
	if (fdatasync(dropping->fd)) {
		dropping->error = -errno;
		return;
	}
	for (;;) {
		posix_fadvise(dropping->fd, 0, 0, POSIX_FADV_DONTNEED);
		dropping->left = bytes_cached(dropping->fd);
		if (!dropping->left || cudapool_now_ms() > end)
			break;
		nanosleep(&(struct timespec){.tv_nsec = DROP_AGAIN_MS * 1000000}, NULL);
	}
	dropping->error = dropping->left ? -EBUSY : 0;
}

static void note_failure(struct eviction *eviction, const struct dropping *dropping)
{
	const char *path = dropping->path;

	if (eviction->error || !dropping->error)
		return;
	eviction->error = dropping->error;
	if (dropping->error == -EOPNOTSUPP)
		snprintf(eviction->text, sizeof(eviction->text),
			 "%s is on a file system in memory: it has no other place", path);
	else if (dropping->error == -EBUSY)
		snprintf(eviction->text, sizeof(eviction->text),
			 "%llu KiB of %s stay in the page cache: somebody uses the file, see fuser",
			 (unsigned long long)dropping->left >> 10, path);
	else
		snprintf(eviction->text, sizeof(eviction->text), "%s cannot be written to its disk: %s", path,
			 strerror(-dropping->error));
}

static void end_eviction(struct eviction *eviction)
{
	if (--eviction->under_way)
		return;
	waiters_done(&eviction->asker, eviction->error, eviction->text);
	free(eviction);
}

static void drop_done(struct background *task)
{
	struct dropping *dropping = container_of(task, struct dropping, task);

	close(dropping->fd);
	note_failure(dropping->eviction, dropping);
	end_eviction(dropping->eviction);
	free(dropping);
}

static void drop_cache(struct park *park, struct eviction *eviction)
{
	struct dropping *dropping = calloc(1, sizeof(*dropping));
	int fd = park_open_image(park);

	if (dropping)
		dropping->fd = fd < 0 ? fd : fcntl(fd, F_DUPFD_CLOEXEC, 3);
	if (!dropping || dropping->fd < 0) {
		eviction->error = dropping && fd < 0 ? fd : -ENOMEM;
		snprintf(eviction->text, sizeof(eviction->text), "an image of process %d (%s) cannot be opened: %s",
			 park->header.pid, park->header.name, strerror(-eviction->error));
		free(dropping);
		return;
	}
	dropping->eviction = eviction;
	snprintf(dropping->path, sizeof(dropping->path), "%s", park->path ? park->path : "an image");
	dropping->task = (struct background){.work = drop_work, .done = drop_done};
	eviction->under_way++;
	background_start(&dropping->task);
}

/* Memory that is being given or loaded; and for COLD, an image that is about to be read. */
static bool is_busy(const struct park *park, enum cudapool_tier tier)
{
	return (park->hot && !park_evictable(park)) ||
		(tier == CUDAPOOL_TIER_COLD && (park->early || park->gifts || park->opened));
}

static void evict_one(struct park *park, enum cudapool_tier tier, struct cudapool_found *found,
		      struct eviction *eviction)
{
	if (park->hot || tier == CUDAPOOL_TIER_COLD) {
		found->count++;
		found->bytes += park->header.bytes;
	}
	if (park->hot) {
		found->hot_bytes += park->header.bytes;
		park_evict(park);
	}
	if (tier == CUDAPOOL_TIER_COLD)
		drop_cache(park, eviction);
	park_settle(park);
}

void store_evict(const struct cudapool_evict *request, struct cudapool_found *found, struct store_waiter *waiter)
{
	static const uint8_t all[CUDAPOOL_TOKEN_LEN];
	bool any = MATCHES(request->token, all), known = any;
	struct eviction *eviction = calloc(1, sizeof(*eviction));
	struct park *park;

	*found = (struct cudapool_found){.h = found->h};
	if (!eviction) {
		waiter->done(waiter, -ENOMEM, "out of memory");
		return;
	}
	waiters_add(&eviction->asker, waiter);
	eviction->under_way = 1; /* this */
	LIST_FOREACH(park, &parks, link) {
		if (park->life != PARK_SAVED || (!any && !MATCHES(park->header.token, request->token)))
			continue;
		known = true;
		if (!is_busy(park, request->tier)) {
			evict_one(park, request->tier, found, eviction);
		} else if (!any) {
			eviction->error = -EBUSY;
			snprintf(eviction->text, sizeof(eviction->text), "it is being restored or copied from");
		}
	}
	if (!known) {
		eviction->error = -ENOENT;
		snprintf(eviction->text, sizeof(eviction->text),
			 "the pool knows no parked memory of this token (it does once it has been asked to prefetch it)");
	}
	end_eviction(eviction);
}

/* ---- the report ------------------------------------------------------------------------------------ */

static const char *state_of(struct park *park)
{
	switch (park->life) {
	case PARK_BEGUN:
		return "parking";
	case PARK_TAKEN:
		return "saving";
	case PARK_FAILED:
		return "unsaved";
	default:
		return park->gifts ? "restoring" : "saved";
	}
}

static void report_park(struct cudapool_json *json, struct park *park)
{
	char hex[2 * IMAGE_TOKEN_LEN + 1];
	int64_t age_s = time(NULL) - (int64_t)(park->header.created_us / 1000000);

	cudapool_json_open(json, NULL, '{');
	cudapool_json_string(json, "container", park->container);
	cudapool_json_string(json, "process", park->header.name);
	cudapool_json_number(json, "pid", park->header.pid);
	image_hex(hex, park->header.token);
	cudapool_json_string(json, "token", hex);
	image_hex(hex, park->header.dump);
	cudapool_json_string(json, "dump", hex);
	cudapool_json_string(json, "state", state_of(park));
	cudapool_json_string(json, "tier", tier_name(tier_of_park(park)));
	cudapool_json_number(json, "bytes", (long long)park->header.bytes);
	cudapool_json_number(json, "image_bytes", (long long)park->image_bytes);
	cudapool_json_number(json, "age_s", age_s > 0 && park->header.created_us ? age_s : 0);
	cudapool_json_number(json, "restores", park->restores);
	cudapool_json_string(json, "path", park->path ? park->path : "");
	cudapool_json_close(json, '}');
}

void store_report(struct cudapool_json *json, int limit)
{
	struct park *park;
	int left = limit, count = 0;

	cudapool_json_open(json, "parks", '[');
	LIST_FOREACH(park, &parks, link) {
		if (park->life == PARK_SAVED && !park_image_exists(park))
			park_lost_image(park);
		if (park->life == PARK_DROPPED || ++count > left)
			continue;
		report_park(json, park);
	}
	cudapool_json_close(json, ']');
	cudapool_json_number(json, "park_count", count);
	records_report(json, limit);
}
