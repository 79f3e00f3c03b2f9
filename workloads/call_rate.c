// SPDX-License-Identifier: MIT
/* How long a driver call takes that submits work: small kernels, or events; prints one line of JSON. */
#include <cuda.h>
#include <dlfcn.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "asked.h"
#include "kernels.ptx.h"

#define DRIVER_TABLE(F)                                                                                                \
	F(cuInit, (unsigned))                                                                                          \
	F(cuDevicePrimaryCtxRetain, (CUcontext *, CUdevice))                                                           \
	F(cuCtxSetCurrent, (CUcontext))                                                                                \
	F(cuStreamCreate, (CUstream *, unsigned))                                                                      \
	F(cuStreamSynchronize, (CUstream))                                                                             \
	F(cuEventCreate, (CUevent *, unsigned))                                                                        \
	F(cuEventRecord, (CUevent, CUstream))                                                                          \
	F(cuMemAlloc_v2, (CUdeviceptr *, size_t))                                                                      \
	F(cuModuleLoadData, (CUmodule *, const void *))                                                                \
	F(cuModuleGetFunction, (CUfunction *, CUmodule, const char *))                                                 \
	F(cuLaunchKernel, (CUfunction, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, CUstream, \
			   void **, void **))

#define DECLARE(name, args) static CUresult(*p_##name) args;
DRIVER_TABLE(DECLARE)

#define CU(call, ...)                                                                                                  \
	do {                                                                                                           \
		CUresult result = p_##call(__VA_ARGS__);                                                               \
		if (result)                                                                                            \
			fail(#call ": %d", result);                                                                    \
	} while (0)

enum { CALLS = 2000, THREADS_MAX = 64, PASSES_MAX = 20000 }; /* calls of one thread in one pass */

static CUcontext ctx;
static CUfunction kernel;
static CUdeviceptr memory;
static bool records;
static double limit_ns;
static pthread_barrier_t barrier;

struct thread {
	pthread_t id;
	double ns[PASSES_MAX]; /* a call, in each pass */
	int passes;
};

static double now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1e9 + ts.tv_nsec;
}

/* Submitting is timed, what was submitted is waited for outside of it: the queue never gets full. */
static void *work(void *arg)
{
	uint64_t words = 1;
	uint32_t seed = 0;
	void *args[] = {&memory, &words, &seed};
	struct thread *thread = arg;
	CUstream stream;
	CUevent event;
	double end, begin;

	CU(cuCtxSetCurrent, ctx);
	CU(cuStreamCreate, &stream, CU_STREAM_NON_BLOCKING);
	CU(cuEventCreate, &event, CU_EVENT_DISABLE_TIMING);
	pthread_barrier_wait(&barrier);
	end = now_ns() + limit_ns;
	for (thread->passes = 0; thread->passes < PASSES_MAX && (!thread->passes || now_ns() < end); thread->passes++) {
		begin = now_ns();
		if (records)
			for (int i = 0; i < CALLS; i++)
				CU(cuEventRecord, event, stream);
		else
			for (int i = 0; i < CALLS / 4; i++)
				CU(cuLaunchKernel, kernel, 1, 1, 1, 32, 1, 1, 0, stream, args, NULL);
		if (!records)
			CU(cuStreamSynchronize, stream); /* the rate is what an application sees */
		thread->ns[thread->passes] = (now_ns() - begin) / (records ? CALLS : CALLS / 4);
		CU(cuStreamSynchronize, stream);
	}
	return NULL;
}

static int compare(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

int main(int argc, char **argv)
{
	static struct thread threads[THREADS_MAX];
	void *lib = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
	double sum = 0;
	CUmodule module;
	int n;

	if (argc != 4 || (strcmp(argv[1], "launch") && strcmp(argv[1], "record")) || atoi(argv[2]) < 1 ||
	    atoi(argv[2]) > THREADS_MAX || atoi(argv[3]) < 1 || atoi(argv[3]) > 60000)
		fail("usage: call_rate launch|record THREADS MILLISECONDS");
	records = !strcmp(argv[1], "record");
	n = atoi(argv[2]);
	limit_ns = atoi(argv[3]) * 1e6;
	if (!lib)
		fail("no driver: %s", dlerror());
#define FIND(name, args)                                                                                               \
	if (!(p_##name = dlsym(lib, #name)))                                                                           \
		fail("the driver has no " #name);
	DRIVER_TABLE(FIND)
	CU(cuInit, 0);
	CU(cuDevicePrimaryCtxRetain, &ctx, 0);
	CU(cuCtxSetCurrent, ctx);
	CU(cuMemAlloc_v2, &memory, 4096);
	CU(cuModuleLoadData, &module, workload_ptx);
	CU(cuModuleGetFunction, &kernel, module, "cudapool_fill");
	pthread_barrier_init(&barrier, NULL, n);
	for (int i = 0; i < n; i++)
		if (pthread_create(&threads[i].id, NULL, work, &threads[i]))
			fail("no thread");
	for (int i = 0; i < n; i++) {
		pthread_join(threads[i].id, NULL);
		qsort(threads[i].ns, threads[i].passes, sizeof(double), compare);
		sum += threads[i].ns[threads[i].passes / 2];
	}
	printf("{\"call\": \"%s\", \"threads\": %d, \"ns\": %.2f}\n", argv[1], n, sum / n);
	return 0;
}
