// SPDX-License-Identifier: MIT
/*
 * What of a file is in the page cache; out of it, for certain; and how fast its disk gives it: prints one line of JSON. Pages that
 * someone has mapped or is writing stay, hence the looking.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "asked.h"

enum { CHUNK = 4 << 20, THREADS_MAX = 64, TRIES = 50, TRY_US = 20000 };

static int fd;
static uint64_t size;
static _Atomic uint64_t next;

static uint64_t resident(void)
{
	static unsigned char pages[CHUNK / 4096];
	uint64_t page = sysconf(_SC_PAGESIZE), found = 0;

	for (uint64_t at = 0; at < size; at += CHUNK) {
		size_t bytes = size - at < CHUNK ? size - at : CHUNK;
		void *map = mmap(NULL, bytes, PROT_READ, MAP_SHARED, fd, at);

		if (map == MAP_FAILED || mincore(map, bytes, pages))
			fail("cannot be looked at: %s", strerror(errno));
		for (size_t i = 0; i * page < bytes; i++)
			found += pages[i] & 1 ? page : 0;
		munmap(map, bytes);
	}
	return found;
}

/* The kernel drops what is clean and unused, some of it only when another processor has put it down. */
static void drop(void)
{
	if (fdatasync(fd))
		fail("cannot be synced: %s", strerror(errno));
	for (int i = 0; i < TRIES; i++) {
		posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
		if (!resident())
			return;
		usleep(TRY_US);
	}
}

static void *read_chunks(void *arg)
{
	char *buffer = malloc(CHUNK);
	uint64_t at;

	if (!buffer)
		fail("no memory");
	while ((at = atomic_fetch_add(&next, CHUNK)) < size)
		for (ssize_t done = 0, got; done < CHUNK && at + done < size; done += got) {
			got = pread(fd, buffer + done, CHUNK - done, at + done);
			if (got <= 0)
				fail("cannot be read: %s", got ? strerror(errno) : "it became shorter");
		}
	free(buffer);
	return arg;
}

static double read_all(int n)
{
	pthread_t threads[THREADS_MAX];
	struct timespec begin, end;

	clock_gettime(CLOCK_MONOTONIC, &begin);
	for (int i = 0; i < n; i++)
		if (pthread_create(&threads[i], NULL, read_chunks, NULL))
			fail("no thread");
	for (int i = 0; i < n; i++)
		pthread_join(threads[i], NULL);
	clock_gettime(CLOCK_MONOTONIC, &end);
	return (end.tv_sec - begin.tv_sec) * 1e3 + (end.tv_nsec - begin.tv_nsec) / 1e6;
}

int main(int argc, char **argv)
{
	int threads = argc == 4 ? atoi(argv[3]) : 0;
	struct stat st;

	if (argc == 3 ? strcmp(argv[1], "look") && strcmp(argv[1], "drop")
		      : argc != 4 || strcmp(argv[1], "read") || threads < 1 || threads > THREADS_MAX)
		fail("usage: page_cache look|drop FILE, or read FILE THREADS");
	fd = open(argv[2], O_RDONLY | O_CLOEXEC);
	if (fd < 0 || fstat(fd, &st) || !S_ISREG(st.st_mode))
		fail("%s: %s", argv[2], fd < 0 ? strerror(errno) : "not a file");
	size = st.st_size;
	if (!strcmp(argv[1], "drop"))
		drop();
	if (threads)
		printf("{\"bytes\": %llu, \"ms\": %.3f}\n", (unsigned long long)size, read_all(threads));
	else
		printf("{\"bytes\": %llu, \"resident\": %llu}\n", (unsigned long long)size,
		       (unsigned long long)resident());
	return 0;
}
