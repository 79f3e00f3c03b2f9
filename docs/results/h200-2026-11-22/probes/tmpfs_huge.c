// SPDX-License-Identifier: MIT
/*
 * How fast a new file in a memory file system is filled: by small pages, by small pages of eight files at once, and by
 * huge ones (MADV_COLLAPSE, which takes a range that has a page already), with 4 and 16 threads, twice. No CUDA.
 * Arguments: a folder there, and MiB of the file (4096); some seconds.
 */
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define MIB   (1ul << 20)
#define HUGE  (2 * MIB)
#define STEP  (4 * MIB)
#define FILES 8

enum way { SMALL, SEVERAL, COLLAPSED, WAYS };
static const char *const names[WAYS] = {"small pages", "small pages of 8 files", "huge pages"};

static enum way way;
static uint8_t *map[FILES];
static size_t total, part;
static _Atomic size_t cursor;
static _Atomic unsigned refused;

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void *fill(void *nothing)
{
	uint8_t *from = malloc(STEP), *to;
	size_t at;

	memset(from, 7, STEP);
	while ((at = atomic_fetch_add(&cursor, STEP)) < total) {
		to = map[at / part] + at % part;
		if (way == COLLAPSED) {
			to[0] = to[HUGE] = 1;
			refused += madvise(to, STEP, 25 /* MADV_COLLAPSE */) != 0;
		} else {
			refused += madvise(to, STEP, 23 /* MADV_POPULATE_WRITE */) != 0;
		}
		memcpy(to, from, STEP);
	}
	free(from);
	return nothing;
}

/* A new file of `part` bytes, without a name, mapped where huge pages fit. */
static uint8_t *new_file(const char *folder)
{
	int fd = open(folder, O_RDWR | O_TMPFILE | O_CLOEXEC, 0600);
	uintptr_t room = (uintptr_t)mmap(NULL, part + HUGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	void *at;

	if (fd < 0 || ftruncate(fd, (off_t)part)) {
		perror(folder);
		exit(1);
	}
	at = mmap((void *)((room + HUGE - 1) / HUGE * HUGE), part, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd,
		  0);
	close(fd);
	return at;
}

static void measure(const char *folder, unsigned threads)
{
	unsigned files = way == SEVERAL ? FILES : 1, i;
	pthread_t thread[16];
	double begun;

	part = total / files;
	for (i = 0; i < files; i++)
		map[i] = new_file(folder);
	cursor = refused = 0;
	begun = now();
	for (i = 0; i < threads; i++)
		pthread_create(&thread[i], NULL, fill, NULL);
	for (i = 0; i < threads; i++)
		pthread_join(thread[i], NULL);
	printf("%-22s %2u threads %6.2f GB/s, %u times refused\n", names[way], threads,
	       (double)total / 1e9 / (now() - begun), refused);
	fflush(stdout);
	for (i = 0; i < files; i++)
		munmap(map[i], part);
}

int main(int argc, char **argv)
{
	unsigned round;

	if (argc < 2)
		return 2;
	total = (argc > 2 ? strtoul(argv[2], NULL, 10) : 4096) / (FILES * STEP / MIB) * FILES * STEP;
	for (round = 0; round < 2; round++) {
		for (way = 0; way < WAYS; way++) {
			measure(argv[1], 4);
			measure(argv[1], 16);
		}
	}
	return 0;
}
