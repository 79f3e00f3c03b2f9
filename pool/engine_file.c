// SPDX-License-Identifier: MIT
/* Writes an image's blocks from many threads at once. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "checksum.h"
#include "engine_internal.h"

/*
 * The kernel lets in one write(2) to a file at a time, whatever their places. Where the disk is slower than that, so be
 * it. But a file in memory is as fast as processors fill its pages: there, all threads copy into a mapping. Two things
 * are done beforehand, each of which fails where a page cannot be had (no space), instead of a later SIGBUS:
 *
 *   file_room()  allocates pages. The file has them already up to `present`, where it was an earlier image's
 *   populating   maps them, by reading: that takes those that are there many at a time, and writable all the same, as
 *		  nobody writes them back
 *
 * New pages come at 4 GB/s, whether 4 threads ask for them or 16, and for one file or for eight; huge ones at 28
 * (probes/tmpfs_huge.c). MADV_COLLAPSE makes them, whatever the mount's option for huge pages is, of a range that has a
 * page already. A span is what is made at once; the first, which has the header, and what is behind the last whole one
 * have small pages.
 */
#define SPAN (2 * HUGE_PAGE)

enum span { NOT_MADE, SMALL_PAGES, HUGE_PAGES };

void file_begin(struct engine_file *file, int fd, uint64_t size)
{
	struct stat st;

	*file = (struct engine_file){.fd = fd};
	if (fstat(fd, &st) || ((uint64_t)st.st_size < size && ftruncate(fd, (off_t)size)))
		return;
	if (!map_begin(&file->map, fd, size, PROT_READ | PROT_WRITE))
		return;
	if (st.st_blocks * 512 >= st.st_size) /* no holes */
		file->present = (uint64_t)st.st_size / IMAGE_ALIGN * IMAGE_ALIGN;
	file->spans = size / SPAN;
	file->span = calloc(file->spans + 1, sizeof(*file->span));
	if (!file->span)
		file->spans = 0;
	file->huge = true;
	pthread_mutex_init(&file->lock, NULL);
	pthread_cond_init(&file->changed, NULL);
}

static int allocate(const struct engine_file *file, uint64_t at, uint64_t bytes)
{
	int err;

	do {
		err = fallocate(file->fd, 0, (off_t)at, (off_t)bytes) ? -errno : 0;
	} while (err == -EINTR);
	return err;
}

/*
 * Where one is refused, for want of memory or of support, the next would be, too: only another try costs more.
 * The page that has to be there is made by a fault, not by fallocate(2), which leaves clearing it to the first fault:
 * where the mount gives huge pages by itself, MADV_COLLAPSE maps such a page as it is, and a fault at its other end
 * clears what was written since.
 */
static bool make_huge(struct engine_file *file, uint64_t at)
{
	uint8_t *from = file->map.at + at;

	if (!atomic_load(&file->huge))
		return false;
	if (!madvise(from, IMAGE_ALIGN, MADV_POPULATE_READ) &&
	    !madvise(from + HUGE_PAGE, IMAGE_ALIGN, MADV_POPULATE_READ) && !madvise(from, SPAN, MADV_COLLAPSE))
		return true;
	if (errno != EAGAIN)
		atomic_store(&file->huge, false);
	return false;
}

/*
 * Every span that begins within these bytes is made here, as these bytes are no other thread's; the one that they begin
 * in is made by another. Says whether all of the bytes have huge pages now.
 */
static bool make_spans(struct engine_file *file, uint64_t at, uint64_t end)
{
	uint64_t first = at / SPAN, i;
	bool all = true;

	for (i = (at + SPAN - 1) / SPAN; i < file->spans && i * SPAN < end; i++) {
		enum span made;

		if (i * SPAN < file->present)
			continue;
		made = make_huge(file, i * SPAN) ? HUGE_PAGES : SMALL_PAGES;
		pthread_mutex_lock(&file->lock);
		file->span[i] = made;
		pthread_cond_broadcast(&file->changed);
		pthread_mutex_unlock(&file->lock);
	}
	pthread_mutex_lock(&file->lock);
	while (first && first < file->spans && first * SPAN >= file->present && !file->span[first])
		pthread_cond_wait(&file->changed, &file->lock);
	for (i = first; i * SPAN < end; i++)
		all = all && i < file->spans && file->span[i] == HUGE_PAGES;
	pthread_mutex_unlock(&file->lock);
	return all;
}

int file_room(struct engine_file *file, uint64_t at, uint64_t bytes)
{
	uint64_t end = at + bytes;

	if (!file->map.at || end <= file->present || !bytes || make_spans(file, at, end))
		return 0;
	if (at < file->present)
		at = file->present;
	return allocate(file, at, end - at);
}

int file_put(struct engine_file *file, const uint8_t *from, uint32_t length, uint64_t at, uint32_t *crc)
{
	static const uint8_t zero[IMAGE_ALIGN];
	uint64_t whole = image_aligned(length);
	int err;

	if (file->map.at && !madvise(file->map.at + at, whole, MADV_POPULATE_READ)) {
		*crc = checksum_copy(0, file->map.at + at, from, length, true);
		memset(file->map.at + at + length, 0, whole - length);
		map_done(&file->map, at, whole);
		return 0;
	}
	*crc = checksum_crc32c(0, from, length);
	err = image_pwrite(file->fd, from, length, at); /* a disk, or an older kernel */
	return err ? err : image_pwrite(file->fd, zero, whole - length, at + length);
}

void file_end(struct engine_file *file)
{
	if (!file->map.at)
		return;
	map_end(&file->map);
	free(file->span);
	pthread_cond_destroy(&file->changed);
	pthread_mutex_destroy(&file->lock);
}
