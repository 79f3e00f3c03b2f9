// SPDX-License-Identifier: MIT
/* What the test programs share: checked calls, a module, and places of their own. */
#ifndef CUDAPOOL_TEST_SOFTCUDA_CU_H
#define CUDAPOOL_TEST_SOFTCUDA_CU_H

#include <cuda.h>

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "../client/tap.h"

/* A call that has this result. */
#define is(call, wanted)                                                                                               \
	do {                                                                                                           \
		CUresult is_result = (call);                                                                           \
		if (!ok(is_result == (wanted), "%s: %s", #call, #wanted))                                              \
			note("it was %d, line %d", is_result, __LINE__);                                               \
	} while (0)

/* A call that must succeed for the test to go on, and is no test point. */
#define must(call)                                                                                                     \
	do {                                                                                                           \
		CUresult must_result = (call);                                                                         \
		if (must_result) {                                                                                     \
			ok(false, "%s succeeds: it was %d, line %d", #call, must_result, __LINE__);                    \
			exit(1);                                                                                       \
		}                                                                                                      \
	} while (0)

static const char test_ptx[] __attribute__((unused)) = ".version 8.0\n.target sm_90\n.address_size 64\n"
						       ".visible .entry cudapool_fill(.param .u64 p){ ret; }\n"
						       ".visible .entry cudapool_checksum(){ ret; }\n"
						       ".visible .entry\tcudapool_saxpy(){ ret; }\n"
						       ".visible .entry cudapool_spin(){ ret; }\n";

static inline double now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1e3 + now.tv_nsec / 1e6;
}

static inline void sleep_ms(unsigned ms)
{
	struct timespec left = {ms / 1000, ms % 1000 * 1000000l};

	while (nanosleep(&left, &left))
		;
}

/* What cudapool_checksum adds for memory that cudapool_fill has filled. */
static inline uint64_t filled_sum(uint64_t words, uint32_t seed)
{
	uint64_t sum = 0;

	for (uint64_t i = 0; i < words; i++)
		sum += (uint64_t)((((uint32_t)i * 2654435761u) ^ seed) ^ (uint32_t)i) * (2 * i + 1);
	return sum;
}

static inline void launch(CUfunction function, CUstream stream, void **params)
{
	must(cuLaunchKernel(function, 4, 1, 1, 64, 1, 1, 0, stream, params, NULL));
}

/* Runs `body` in a forked child and returns its exit status, or -1. */
static inline int in_child(int (*body)(void *), void *arg)
{
	int status;
	pid_t pid;

	fflush(stdout);
	pid = fork();
	if (!pid)
		_exit(body(arg));
	if (pid < 0 || waitpid(pid, &status, 0) != pid || !WIFEXITED(status))
		return -1;
	return WEXITSTATUS(status);
}

/* A device directory of this program's own, removed at its end. */
static char device_dir[64];

static inline int device_dir_remove_one(const char *path, const struct stat *info, int type, struct FTW *where)
{
	return remove(path);
}

static inline void device_dir_remove(void)
{
	nftw(device_dir, device_dir_remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

static inline void device_dir_make(void)
{
	strcpy(device_dir, "/dev/shm/cudapool-test-XXXXXX");
	if (!mkdtemp(device_dir)) {
		perror(device_dir);
		exit(1);
	}
	setenv("SOFTCUDA_DIR", device_dir, 1);
}

static inline void device_file(const char *name, const char *text)
{
	char path[128];
	FILE *file;

	snprintf(path, sizeof(path), "%s/%s", device_dir, name);
	file = fopen(path, "we");
	if (!file || fputs(text, file) < 0 || fclose(file)) {
		perror(path);
		exit(1);
	}
}

#endif
