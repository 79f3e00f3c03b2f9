// SPDX-License-Identifier: MIT
/* A file in memory, mapped for many threads that are done with one part of it after the other. */
#include <linux/magic.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/vfs.h>

#include "engine_internal.h"

/*
 * What has been read or written is unmapped on the way, by those who did it: at the end one thread would take half a
 * second for 32 GiB of small pages. But in whole windows, once all of a window is done: to unmap a part of a huge page,
 * the kernel unmaps all of it from all processors while it holds a lock for the whole GiB. 16 threads loaded 32 GiB at
 * 36 GB/s at best that way (docs/results/h200-2026-11-22/sizes-32gib.json), and now load at 48 (load-staged.json).
 */
#define WINDOW (32ull << 20)

bool map_begin(struct engine_map *map, int fd, uint64_t size, int protection)
{
	struct statfs fs;
	uint8_t *room, *at;
	size_t before;

	*map = (struct engine_map){};
	if (fstatfs(fd, &fs) || fs.f_type != TMPFS_MAGIC)
		return false;
	size = image_aligned(size);
	room = mmap(NULL, size + HUGE_PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (room == MAP_FAILED)
		return false;
	before = -(uintptr_t)room % HUGE_PAGE;
	at = mmap(room + before, size, protection, MAP_SHARED | MAP_FIXED, fd, 0);
	if (at == MAP_FAILED) {
		munmap(room, size + HUGE_PAGE);
		return false;
	}
	if (before)
		munmap(room, before);
	munmap(at + size, HUGE_PAGE - before);
	map->at = at;
	map->size = size;
	map->done = calloc(size / WINDOW + 1, sizeof(*map->done));
	return true;
}

void map_done(const struct engine_map *map, uint64_t at, uint64_t bytes)
{
	uint64_t end = at + bytes, window, upto;

	for (; map->done && at < end; at = upto) {
		window = at / WINDOW;
		upto = (window + 1) * WINDOW < end ? (window + 1) * WINDOW : end;
		if (atomic_fetch_add(&map->done[window], (uint32_t)(upto - at)) + (upto - at) == WINDOW)
			madvise(map->at + window * WINDOW, WINDOW, MADV_DONTNEED);
	}
}

void map_end(struct engine_map *map)
{
	if (map->at)
		munmap(map->at, map->size);
	free(map->done);
}
