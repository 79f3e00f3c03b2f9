// SPDX-License-Identifier: MIT
/* Writes an image's blocks from many threads at once. */
#include <string.h>
#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "engine_internal.h"

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#endif

/*
 * The kernel lets in one write(2) to a file at a time, whatever their places. Where the disk is slower than that, so be
 * it. But a file in memory is as fast as processors fill its pages: there, one thread writes, and those that find it
 * busy copy into a mapping. Its pages are made present by reading, which maps those that are there already sixteen at a
 * time, and writable all the same, as nobody writes them back; where a page cannot be had (no space), that fails,
 * instead of a later SIGBUS.
 */
void file_begin(struct engine_file *file, int fd, uint64_t size)
{
	struct statfs fs;
	void *map;

	*file = (struct engine_file){.fd = fd, .size = size, .writing = PTHREAD_MUTEX_INITIALIZER};
	if (fstatfs(fd, &fs) || fs.f_type != TMPFS_MAGIC || ftruncate(fd, (off_t)size))
		return;
	map = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (map != MAP_FAILED)
		file->map = map;
}

int file_put(struct engine_file *file, const uint8_t *from, uint32_t length, uint64_t at)
{
	uint64_t whole = image_aligned(length);
	int err;

	if (file->map && pthread_mutex_trylock(&file->writing)) {
		if (!madvise(file->map + at, whole, MADV_POPULATE_READ)) {
			memcpy(file->map + at, from, length);
			/* Unmaps these pages: here, where others do so as well, and not all of them at the end. */
			madvise(file->map + at, whole, MADV_DONTNEED);
			return 0;
		}
		pthread_mutex_lock(&file->writing); /* an older kernel, or no space, which write(2) will say */
	}
	err = image_pwrite(file->fd, from, length, at);
	if (file->map)
		pthread_mutex_unlock(&file->writing);
	return err;
}

void file_end(struct engine_file *file)
{
	if (file->map)
		munmap(file->map, file->size);
}
