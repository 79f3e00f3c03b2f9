// SPDX-License-Identifier: MIT
/*
 * How much GPU memory an empty primary context takes, as cuMemGetInfo of another process sees it; whether the last
 * close of an exported descriptor frees its memory at once, and how long closing a thousand of 2 MiB takes.
 */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <sys/wait.h>
#define CUDAPOOL_ABI_NO_VERSIONS
#include <cuda.h>

static void *lib;
#define F(ret, name, ...) ret (*name)(__VA_ARGS__) = dlsym(lib, #name)

static double ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1e3 + ts.tv_nsec / 1e6;
}

static void context(void)
{
	void *ctx;
	int dev;
	lib = dlopen("libcuda.so.1", RTLD_NOW);
	F(int, cuInit, unsigned);
	F(int, cuDeviceGet, int *, int);
	F(int, cuDevicePrimaryCtxRetain, void **, int);
	F(int, cuCtxSetCurrent, void *);

	if (cuInit(0) || cuDeviceGet(&dev, 0) || cuDevicePrimaryCtxRetain(&ctx, dev) || cuCtxSetCurrent(ctx)) {
		printf("no context\n");
		_exit(1);
	}
}

int main(void)
{
	int to[2], from[2], i, fds[1000];
	size_t before, after, total;
	char c = 0;
	double t;

	if (pipe(to) || pipe(from))
		return 1;
	if (!fork()) {
		if (read(to[0], &c, 1) != 1)
			_exit(1);
		context();
		fflush(stdout);
		if (write(from[1], &c, 1) != 1 || read(to[0], &c, 1) != 1)
			_exit(1);
		_exit(0);
	}
	context();
	F(int, cuMemGetInfo_v2, size_t *, size_t *);
	F(int, cuMemCreate, unsigned long long *, size_t, const CUmemAllocationProp *, unsigned long long);
	F(int, cuMemExportToShareableHandle, void *, unsigned long long, int, unsigned long long);
	F(int, cuMemRelease, unsigned long long);

	cuMemGetInfo_v2(&before, &total);
	if (write(to[1], &c, 1) != 1 || read(from[0], &c, 1) != 1)
		return 1;
	cuMemGetInfo_v2(&after, &total);
	printf("an empty context of another process: %.1f MiB\n", (before - after) / 1048576.0);
	if (write(to[1], &c, 1) != 1)
		return 1;
	wait(NULL);
	CUmemAllocationProp prop = {.type = 1, .requestedHandleTypes = 1, .location = {.type = 1, .id = 0}};
	cuMemGetInfo_v2(&before, &total);
	for (i = 0; i < 1000; i++) {
		unsigned long long handle;

		if (cuMemCreate(&handle, 2 << 20, &prop, 0) || cuMemExportToShareableHandle(&fds[i], handle, 1, 0) ||
		    cuMemRelease(handle))
			return 2;
	}
	cuMemGetInfo_v2(&after, &total);
	printf("1000 exported, released pieces hold %.1f MiB\n", (before - after) / 1048576.0);
	t = ms();
	for (i = 0; i < 1000; i++)
		close(fds[i]);
	t = ms() - t;
	cuMemGetInfo_v2(&after, &total);
	printf("closing them took %.2f ms; right after it %.1f MiB are still in use\n", t,
	       (before - after) / 1048576.0);
	return 0;
}
