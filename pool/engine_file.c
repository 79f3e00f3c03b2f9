// SPDX-License-Identifier: MIT
/* Writes an image's blocks from many threads at once. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "checksum.h"
#include "engine_internal.h"

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#endif

/*
 * The kernel lets in one write(2) to a file at a time, whatever their places. Where the disk is slower than that, so be
 * it. But a file in memory is as fast as processors fill its pages: there, all threads copy into a mapping. Two things
 * are done beforehand, each of which fails where a page cannot be had (no space), instead of a later SIGBUS:
 *
 *   file_room()  allocates pages. The file has them already up to `present`, where it was an earlier image's
 *   populating   maps them, by reading: that takes those that are there sixteen at a time, and writable all the same,
 *		  as nobody writes them back
 */
void file_begin(struct engine_file *file, int fd, uint64_t size)
{
	struct statfs fs;
	struct stat st;
	void *map;

	*file = (struct engine_file){.fd = fd};
	if (fstatfs(fd, &fs) || fs.f_type != TMPFS_MAGIC || fstat(fd, &st))
		return;
	if ((uint64_t)st.st_size < size && ftruncate(fd, (off_t)size))
		return;
	map = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (map == MAP_FAILED)
		return;
	file->map = map;
	file->size = size;
	if (st.st_blocks * 512 >= st.st_size) /* no holes */
		file->present = (uint64_t)st.st_size / IMAGE_ALIGN * IMAGE_ALIGN;
}

int file_room(struct engine_file *file, uint64_t at, uint64_t bytes)
{
	uint64_t end = at + bytes;
	int err;

	if (at < file->present)
		at = file->present;
	if (!file->map || at >= end)
		return 0;
	do {
		err = fallocate(file->fd, 0, (off_t)at, (off_t)(end - at)) ? -errno : 0;
	} while (err == -EINTR);
	return err;
}

int file_put(struct engine_file *file, const uint8_t *from, uint32_t length, uint64_t at, uint32_t *crc)
{
	static const uint8_t zero[IMAGE_ALIGN];
	uint64_t whole = image_aligned(length);
	int err;

	if (file->map && !madvise(file->map + at, whole, MADV_POPULATE_READ)) {
		*crc = checksum_copy(0, file->map + at, from, length, true);
		memset(file->map + at + length, 0, whole - length);
		/* Unmaps these pages: here, where others do so as well, and not all of them at the end. */
		madvise(file->map + at, whole, MADV_DONTNEED);
		return 0;
	}
	*crc = checksum_crc32c(0, from, length);
	err = image_pwrite(file->fd, from, length, at); /* a disk, or an older kernel */
	return err ? err : image_pwrite(file->fd, zero, whole - length, at + length);
}

void file_end(struct engine_file *file)
{
	if (file->map)
		munmap(file->map, file->size);
}
