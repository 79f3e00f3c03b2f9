// SPDX-License-Identifier: MIT
/*
 * How long a driver call takes, in bursts and by command: several of these live side by side, with the shim and without, and
 * take turns. Says READY, then reads a line for each burst, "CALL THREADS MILLISECONDS", and answers it with a line of JSON.
 * With " past" or " again" at its end, the burst goes past the shim that this process has, on the same streams (two_ways.h).
 */
#include <cuda.h>
#include <dlfcn.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "asked.h"
#include "kernels.ptx.h"
#include "two_ways.h"

#define DRIVER_TABLE(F)                                                                                                \
	F(cuInit, (unsigned))                                                                                          \
	F(cuDevicePrimaryCtxRetain, (CUcontext *, CUdevice))                                                           \
	F(cuCtxGetCurrent, (CUcontext *))                                                                              \
	F(cuCtxSetCurrent, (CUcontext))                                                                                \
	F(cuStreamCreate, (CUstream *, unsigned))                                                                      \
	F(cuStreamSynchronize, (CUstream))                                                                             \
	F(cuEventCreate, (CUevent *, unsigned))                                                                        \
	F(cuEventRecord, (CUevent, CUstream))                                                                          \
	F(cuMemAlloc_v2, (CUdeviceptr *, size_t))                                                                      \
	F(cuMemFreeHost, (void *))                                                                                     \
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

extern typeof(two_ways) two_ways __attribute__((weak));

enum { THREADS_MAX = 64, PASSES_MAX = 20000, MS_MAX = 60000 };

/*
 * What is called, and how often in one pass. LAUNCH and RECORD submit work. FREE_HOST is held by the shim's gate as those are, and
 * the driver has nothing to do for it: what the gate adds shows best there. GET_CURRENT is intercepted, and not held.
 */
enum call { LAUNCH, RECORD, FREE_HOST, GET_CURRENT, CALLS };
static const struct {
	const char *name;
	int each;
} calls[CALLS] = {{"launch", 200}, {"record", 1000}, {"free_host", 2000}, {"get_current", 2000}};

static CUcontext ctx;
static CUfunction kernel;
static CUdeviceptr memory;
static enum call what;
static double limit_ns;
static pthread_barrier_t barrier;
static cpu_set_t allowed;

static struct thread {
	sem_t go, done;
	CUstream stream;
	CUevent event;
	double ns[PASSES_MAX]; /* a call, in each pass that counts */
	int passes;
} threads[THREADS_MAX];

static double now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1e9 + ts.tv_nsec;
}

/* Each thread has a processor of its own as far as there are enough, from the last one on: the first has the interrupts. */
static void pin(int number)
{
	int left = number % CPU_COUNT(&allowed), cpu = CPU_SETSIZE;
	cpu_set_t one;

	do {
		while (!CPU_ISSET(--cpu, &allowed))
			;
	} while (left--);
	CPU_ZERO(&one);
	CPU_SET(cpu, &one);
	if (sched_setaffinity(0, sizeof(one), &one))
		fail("cannot be pinned to processor %d", cpu);
}

/* The rate of launches is what an application sees: until they are done. Of other work only the submission is timed. */
static double pass(struct thread *thread)
{
	uint64_t words = 1;
	uint32_t seed = 0;
	void *args[] = {&memory, &words, &seed};
	int each = calls[what].each;
	double begin = now_ns();
	CUcontext current;

	switch (what) {
	case LAUNCH:
		for (int i = 0; i < each; i++)
			CU(cuLaunchKernel, kernel, 1, 1, 1, 32, 1, 1, 0, thread->stream, args, NULL);
		CU(cuStreamSynchronize, thread->stream);
		break;
	case RECORD:
		for (int i = 0; i < each; i++)
			CU(cuEventRecord, thread->event, thread->stream);
		break;
	case FREE_HOST:
		for (int i = 0; i < each; i++)
			CU(cuMemFreeHost, NULL);
		break;
	default:
		for (int i = 0; i < each; i++)
			CU(cuCtxGetCurrent, &current);
	}
	return (now_ns() - begin) / each;
}

/* The first part of a burst does not count: another process had the processors and the GPU before. */
static void burst(struct thread *thread)
{
	double begin = now_ns(), ns;

	thread->passes = 0;
	do {
		bool counts = now_ns() - begin > limit_ns / 5;

		ns = pass(thread);
		if (counts)
			thread->ns[thread->passes++] = ns;
		CU(cuStreamSynchronize, thread->stream); /* the queue never gets full */
	} while (!thread->passes || (thread->passes < PASSES_MAX && now_ns() - begin < limit_ns));
}

static void *work(void *arg)
{
	struct thread *thread = arg;

	pin(thread - threads);
	CU(cuCtxSetCurrent, ctx);
	CU(cuStreamCreate, &thread->stream, CU_STREAM_NON_BLOCKING);
	CU(cuEventCreate, &thread->event, CU_EVENT_DISABLE_TIMING);
	for (;;) {
		while (sem_wait(&thread->go))
			;
		pthread_barrier_wait(&barrier);
		burst(thread);
		sem_post(&thread->done);
	}
	return NULL;
}

static int compare(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

/* Nanoseconds a call: the mean of the threads' medians. */
static double measure(int n)
{
	static int started;
	double sum = 0;
	pthread_t id;

	for (; started < n; started++) {
		sem_init(&threads[started].go, 0, 0);
		sem_init(&threads[started].done, 0, 0);
		if (pthread_create(&id, NULL, work, &threads[started]))
			fail("no thread");
	}
	pthread_barrier_init(&barrier, NULL, n);
	for (int i = 0; i < n; i++)
		sem_post(&threads[i].go);
	for (int i = 0; i < n; i++)
		while (sem_wait(&threads[i].done))
			;
	pthread_barrier_destroy(&barrier);
	for (int i = 0; i < n; i++) {
		qsort(threads[i].ns, threads[i].passes, sizeof(double), compare);
		sum += threads[i].ns[threads[i].passes / 2];
	}
	return sum / n;
}

static void find_driver(void)
{
	void *lib = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);

	if (!lib)
		fail("no driver: %s", dlerror());
#define FIND(name, args)                                                                                               \
	if (!(p_##name = dlsym(lib, #name)))                                                                           \
		fail("the driver has no " #name);
	DRIVER_TABLE(FIND)
}

static void start(void)
{
	CUmodule module;

	find_driver();
	if (sched_getaffinity(0, sizeof(allowed), &allowed))
		fail("its processors cannot be told");
	CU(cuInit, 0);
	CU(cuDevicePrimaryCtxRetain, &ctx, 0);
	CU(cuCtxSetCurrent, ctx);
	CU(cuMemAlloc_v2, &memory, 4096);
	CU(cuModuleLoadData, &module, workload_ptx);
	CU(cuModuleGetFunction, &kernel, module, "cudapool_fill");
}

/* Sets what a burst calls, and by which way. */
static void choose(const char *name, const char *way)
{
	bool past = !strcmp(way, "past") || !strcmp(way, "again");
	int both = two_ways ? two_ways(past) : 0;

	for (what = 0; what < CALLS && strcmp(name, calls[what].name); what++)
		;
	if (what == CALLS || (*way && !past))
		fail("no such call: %s %s", name, way);
	if (past && !both)
		fail("%s: no shim is between this process and its driver", name);
}

int main(int argc, char **argv)
{
	char line[64], name[24], way[8];
	int n, ms;

	if (argc != 1)
		fail("usage: call_rate <<<'launch|record|free_host|get_current THREADS MILLISECONDS [past|again]'");
	start();
	printf("READY\n");
	fflush(stdout);
	while (fgets(line, sizeof(line), stdin)) {
		*way = 0;
		if (sscanf(line, "%23s %d %d %7s", name, &n, &ms, way) < 3 || n < 1 || n > THREADS_MAX || ms < 1 ||
		    ms > MS_MAX)
			fail("not a burst: %s", line);
		choose(name, way);
		limit_ns = ms * 1e6;
		printf("{\"call\": \"%s\", \"threads\": %d, \"value\": %.3f}\n", name, n, measure(n));
		fflush(stdout);
	}
	return 0;
}
