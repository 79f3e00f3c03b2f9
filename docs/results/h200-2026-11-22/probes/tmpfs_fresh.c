// SPDX-License-Identifier: MIT
/*
 * What limits the writing of a new file in a memory file system: allocating by fallocate, by writing and by faulting
 * in, with 1 to 16 threads, with and without copying, in one file and in one each. No CUDA. An argument: MiB of the
 * file (4096), about a minute.
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

static size_t total = 4ul << 30, chunk = 1 << 20;
static int threads, fd[16], files;
static char *map[16], *bufs[16];
static _Atomic size_t cursor, allocated;

static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}
enum way {
	PWRITE,
	FALLOCATE,
	POPULATE_R,
	POPULATE_W,
	POPULATE_R_COPY,
	POPULATE_W_COPY,
	STORE,
	LANE,
	AHEAD_COPY,
	AHEAD_LANE,
	WAYS
};
static const char *names[] = {"pwrite",
			      "fallocate",
			      "populate read",
			      "populate write",
			      "populate read, copy, zap",
			      "populate write, copy, zap",
			      "copy",
			      "pwrite or (populate read, copy, zap)",
			      "one fallocates ahead, others populate read, copy, zap",
			      "the same, one of them pwrites"};
static enum way way;
static pthread_mutex_t lane = PTHREAD_MUTEX_INITIALIZER;

static void put(char *m, const char *buf, size_t off)
{
	madvise(m + off, chunk, 22);
	memcpy(m + off, buf, chunk);
	madvise(m + off, chunk, MADV_DONTNEED);
}

static void *ahead(void *arg)
{
	for (size_t off = 0; off < total; off += 16 << 20) {
		if (fallocate(fd[0], 0, off, 16 << 20))
			abort();
		allocated = off + (16 << 20);
	}
	return arg;
}

static void *run(void *arg)
{
	int i = (int)(intptr_t)arg;
	for (;;) {
		size_t off = atomic_fetch_add(&cursor, chunk);
		int f = files > 1 ? i : 0;
		char *m = map[f];
		if (off >= total)
			break;
		switch (way) {
		case PWRITE:
			if (pwrite(fd[f], bufs[i], chunk, off) != (ssize_t)chunk)
				abort();
			break;
		case FALLOCATE:
			if (fallocate(fd[f], 0, off, chunk))
				abort();
			break;
		case POPULATE_R:
			madvise(m + off, chunk, 22);
			break;
		case POPULATE_W:
			madvise(m + off, chunk, 23);
			break;
		case POPULATE_R_COPY:
			put(m, bufs[i], off);
			break;
		case POPULATE_W_COPY:
			madvise(m + off, chunk, 23);
			memcpy(m + off, bufs[i], chunk);
			madvise(m + off, chunk, MADV_DONTNEED);
			break;
		case STORE:
			memcpy(m + off, bufs[i], chunk);
			break;
		case LANE:
		case AHEAD_LANE:
		case AHEAD_COPY:
			if (way != LANE)
				while (allocated < off + chunk)
					usleep(20);
			if (way != AHEAD_COPY && !pthread_mutex_trylock(&lane)) {
				if (pwrite(fd[f], bufs[i], chunk, off) != (ssize_t)chunk)
					abort();
				pthread_mutex_unlock(&lane);
			} else
				put(m, bufs[i], off);
			break;
		default:
			break;
		}
	}
	return 0;
}

static double go(void)
{
	pthread_t t[17];
	double a = now();
	cursor = allocated = 0;
	for (int i = 0; i < threads; i++)
		pthread_create(&t[i], 0, run, (void *)(intptr_t)i);
	if (way == AHEAD_COPY || way == AHEAD_LANE) {
		pthread_create(&t[16], 0, ahead, 0);
		pthread_join(t[16], 0);
	}
	for (int i = 0; i < threads; i++)
		pthread_join(t[i], 0);
	return total / 1e9 / (now() - a);
}

static void fresh(int n)
{
	for (int i = 0; i < n; i++) {
		char path[64];
		snprintf(path, sizeof(path), "/dev/shm/cudapool-probe-%d", i);
		unlink(path);
		fd[i] = open(path, O_RDWR | O_CREAT, 0600);
		unlink(path);
		if (fd[i] < 0 || ftruncate(fd[i], total))
			abort();
		map[i] = mmap(0, total, PROT_READ | PROT_WRITE, MAP_SHARED, fd[i], 0);
	}
	files = n;
}

static void done(void)
{
	for (int i = 0; i < files; i++) {
		munmap(map[i], total);
		close(fd[i]);
	}
}

int main(int c, char **v)
{
	static const int counts[] = {16, 8, 4, 2, 1};
	if (c > 1)
		total = strtoull(v[1], 0, 10) << 20;
	for (int i = 0; i < 16; i++) {
		bufs[i] = malloc(chunk);
		memset(bufs[i], i + 1, chunk);
	}
	fresh(1);
	threads = 16;
	way = STORE;
	go();
	done(); /* the host has given us the memory after this */
	for (unsigned k = 0; k < sizeof(counts) / sizeof(counts[0]); k++) {
		threads = counts[k];
		printf("-- %d threads, one file\n", threads);
		for (way = 0; way < WAYS; way++) {
			double a, b;
			fresh(1);
			a = go();
			b = 0;
			if (way == FALLOCATE) {
				way = POPULATE_R_COPY;
				b = go();
				way = FALLOCATE;
			}
			done();
			printf("%-55s %6.2f GB/s", names[way], a);
			if (b)
				printf(", and filling it then (populate read, copy, zap) %6.2f GB/s", b);
			printf("\n");
			fflush(stdout);
		}
	}
	threads = 16;
	printf("-- 16 threads, a file each\n");
	for (way = 0; way < LANE; way++) {
		fresh(16);
		printf("%-55s %6.2f GB/s\n", names[way], go());
		fflush(stdout);
		done();
	}
	threads = 4;
	printf("-- 4 threads, a file each\n");
	for (way = 0; way < LANE; way++) {
		fresh(16);
		printf("%-55s %6.2f GB/s\n", names[way], go());
		fflush(stdout);
		done();
	}
	return 0;
}
