// SPDX-License-Identifier: MIT
/* Memory out of the process and back, by the hooks of a shim made for it (memory_hook.c), and TAP. */
#ifndef CUDAPOOL_TEST_SHIM_MOVING_H
#define CUDAPOOL_TEST_SHIM_MOVING_H

#include "memory_api.h"

#include <stdbool.h>
#include <stdint.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "../client/tap.h"
#include "control_page.h"
#include "memory.h"

#define MOST 20000

static struct memory_api cu;
static int (*hook_park)(int *fds, unsigned most);
static int (*hook_unpark)(const int *fds, unsigned count);
static int (*hook_peers)(int withdraw);
static const struct cudapool_page *(*hook_report)(void);
static int fds[MOST];

static inline void must(CUresult r, const char *what)
{
	if (r == CUDA_SUCCESS)
		return;
	printf("Bail out! %s: %d\n", what, r);
	exit(1);
}
#define MUST(call) must(cu.call, #call)

static inline double seconds(clockid_t clock)
{
	struct timespec t;

	clock_gettime(clock, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

/* Words at the start, the end, and at each MiB. */
#define STEP (1ull << 20)
static inline void mark(CUdeviceptr ptr, uint64_t bytes, uint64_t seed)
{
	uint64_t at, word;

	for (at = 0; at + 2 * sizeof(word) <= bytes; at += STEP) {
		word = seed * 1000003 + at;
		MUST(cuMemcpyHtoD_v2(ptr + at, &word, sizeof(word)));
	}
	word = ~seed;
	MUST(cuMemcpyHtoD_v2(ptr + bytes - sizeof(word), &word, sizeof(word)));
}

static inline bool marked(CUdeviceptr ptr, uint64_t bytes, uint64_t seed)
{
	uint64_t at, word;

	for (at = 0; at + 2 * sizeof(word) <= bytes; at += STEP)
		if (cu.cuMemcpyDtoH_v2(&word, ptr + at, sizeof(word)) || word != seed * 1000003 + at)
			return false;
	return !cu.cuMemcpyDtoH_v2(&word, ptr + bytes - sizeof(word), sizeof(word)) && word == ~seed;
}

/* For the current device; asked, because an access that fails is the end of the context. */
static inline bool reachable(CUdeviceptr ptr)
{
	unsigned access = 0;

	return cu.cuPointerGetAttribute(&access, CU_POINTER_ATTRIBUTE_ACCESS_FLAGS, ptr) == CUDA_SUCCESS &&
	       access == CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
}

static inline CUcontext begin(int device)
{
	CUcontext context;

	MUST(cuInit(0));
	MUST(cuDevicePrimaryCtxRetain(&context, device));
	MUST(cuCtxSetCurrent(context));
	return context;
}

static inline void use(CUdeviceptr ptr, uint64_t bytes, int device)
{
	CUmemAccessDesc access = {{CU_MEM_LOCATION_TYPE_DEVICE, device}, CU_MEM_ACCESS_FLAGS_PROT_READWRITE};

	MUST(cuMemSetAccess(ptr, bytes, &access, 1));
}

static inline bool cycle(const char *name)
{
	int count = hook_park(fds, MOST);

	if (count >= 0)
		count = hook_unpark(fds, count);
	if (count)
		printf("# %s: %d\n", name, count);
	return count == 0;
}

struct moving_run {
	const char *name;
	void (*run)(void);
};

/* The one that argv names: the exit status. */
static inline int moving_main(const struct moving_run *runs, unsigned count, int argc, char **argv)
{
	struct rlimit files;
	unsigned i;

	getrlimit(RLIMIT_NOFILE, &files);
	files.rlim_cur = files.rlim_max;
	setrlimit(RLIMIT_NOFILE, &files);
	cu = memory_api();
	hook_park = (__typeof__(hook_park))dlsym(RTLD_DEFAULT, "hook_park");
	hook_unpark = (__typeof__(hook_unpark))dlsym(RTLD_DEFAULT, "hook_unpark");
	hook_peers = (__typeof__(hook_peers))dlsym(RTLD_DEFAULT, "hook_peers");
	hook_report = (__typeof__(hook_report))dlsym(RTLD_DEFAULT, "hook_report");
	for (i = 0; argc > 1 && hook_park && i < count; i++) {
		if (strcmp(runs[i].name, argv[1]))
			continue;
		runs[i].run();
		return tap_end();
	}
	fprintf(stderr, "no such run, or without the shim that has the hooks\n");
	return 2;
}

#endif
