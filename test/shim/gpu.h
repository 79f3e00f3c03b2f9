// SPDX-License-Identifier: MIT
/* A GPU application in a few lines: the driver, a context, kernels, memory that knows what it must hold, and TAP. */
#ifndef CUDAPOOL_TEST_SHIM_GPU_H
#define CUDAPOOL_TEST_SHIM_GPU_H

#include <dlfcn.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define CUDAPOOL_ABI_NO_VERSIONS
#include <cuda.h>

#include "../client/tap.h"

#define GPU_API(F)                                                                                                     \
	F(cuInit)                                                                                                      \
	F(cuDeviceGetCount)                                                                                            \
	F(cuDevicePrimaryCtxRetain)                                                                                    \
	F(cuDevicePrimaryCtxRelease_v2)                                                                                \
	F(cuDevicePrimaryCtxReset_v2)                                                                                  \
	F(cuCtxCreate_v2)                                                                                              \
	F(cuCtxDestroy_v2)                                                                                             \
	F(cuCtxSetCurrent)                                                                                             \
	F(cuCtxGetCurrent)                                                                                             \
	F(cuCtxSynchronize)                                                                                            \
	F(cuModuleLoadData)                                                                                            \
	F(cuModuleGetFunction)                                                                                         \
	F(cuMemAlloc_v2)                                                                                               \
	F(cuMemFree_v2)                                                                                                \
	F(cuMemAllocPitch_v2)                                                                                          \
	F(cuMemAllocAsync)                                                                                             \
	F(cuMemGetAddressRange_v2)                                                                                     \
	F(cuPointerGetAttribute)                                                                                       \
	F(cuPointerSetAttribute)                                                                                       \
	F(cuMemCreate)                                                                                                 \
	F(cuMemExportToShareableHandle)                                                                                \
	F(cuMemHostAlloc)                                                                                              \
	F(cuMemFreeHost)                                                                                               \
	F(cuMemGetInfo_v2)                                                                                             \
	F(cuMemcpyHtoD_v2)                                                                                             \
	F(cuMemcpyDtoH_v2)                                                                                             \
	F(cuMemcpyDtoHAsync_v2)                                                                                        \
	F(cuMemsetD32_v2)                                                                                              \
	F(cuMemsetD32Async)                                                                                            \
	F(cuLaunchKernel)                                                                                              \
	F(cuLaunchKernel_ptsz)                                                                                         \
	F(cuLaunchHostFunc)                                                                                            \
	F(cuStreamCreate)                                                                                              \
	F(cuStreamDestroy_v2)                                                                                          \
	F(cuStreamQuery)                                                                                               \
	F(cuStreamSynchronize)                                                                                         \
	F(cuStreamSynchronize_ptsz)                                                                                    \
	F(cuStreamWaitEvent)                                                                                           \
	F(cuStreamWaitValue32_v2)                                                                                      \
	F(cuStreamBeginCapture_v2)                                                                                     \
	F(cuStreamBeginCapture_v2_ptsz)                                                                                \
	F(cuStreamEndCapture)                                                                                          \
	F(cuStreamEndCapture_ptsz)                                                                                     \
	F(cuStreamIsCapturing)                                                                                         \
	F(cuEventCreate)                                                                                               \
	F(cuEventRecord)                                                                                               \
	F(cuEventQuery)                                                                                                \
	F(cuEventSynchronize)                                                                                          \
	F(cuEventDestroy_v2)                                                                                           \
	F(cuGraphInstantiateWithFlags)                                                                                 \
	F(cuGraphLaunch)                                                                                               \
	F(cuGraphExecDestroy)                                                                                          \
	F(cuGraphDestroy)

struct gpu {
#define F(name) __typeof__(&name) name;
	GPU_API(F)
#undef F
	CUcontext ctx;
	CUfunction fill, saxpy, spin;
};
static struct gpu gpu;
static bool gpu_plain; /* set before gpu_begin(): look up no function for threads' default streams */

/* The tests of a program, by name; the table ends with none. */
struct tap_test {
	const char *name;
	void (*run)(void);
};

/* Runs the one that the arguments name. */
static inline void tap_run(const struct tap_test *test, int argc, char **argv)
{
	for (; test->name; test++)
		if (argc == 2 && !strcmp(test->name, argv[1]))
			test->run();
}

static inline void must(CUresult r, const char *what)
{
	if (r == CUDA_SUCCESS)
		return;
	printf("Bail out! %s: CUDA error %d\n", what, r);
	fflush(stdout);
	_exit(2);
}
#define MUST(call) must(gpu.call, #call)

static inline long now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000l + now.tv_nsec / 1000000;
}

static inline void sleep_ms(long ms)
{
	struct timespec time = {ms / 1000, ms % 1000 * 1000000};

	nanosleep(&time, NULL);
}

static inline void gpu_load(void)
{
	void *lib = dlopen("libcuda.so.1", RTLD_NOW);

	if (!lib) {
		printf("Bail out! %s\n", dlerror());
		exit(2);
	}
#define F(name)                                                                                                        \
	if (!gpu_plain || !strstr(#name, "_ptsz"))                                                                     \
		gpu.name = (__typeof__(gpu.name))dlsym(lib, #name);
	GPU_API(F)
#undef F
}

/* The kernels, in the current context. */
static inline void gpu_kernels(void)
{
	static const char ptx[] = ".version 7.0\n.target sm_70\n.address_size 64\n"
				  ".visible .entry cudapool_fill(.param .u64 a, .param .u64 b, .param .u32 c)\n{\nret;\n}\n"
				  ".visible .entry cudapool_saxpy(.param .u64 a, .param .u64 b, .param .f32 c, .param .u64 d)\n"
				  "{\nret;\n}\n"
				  ".visible .entry cudapool_spin(.param .u64 a)\n{\nret;\n}\n";
	CUmodule module;

	MUST(cuModuleLoadData(&module, ptx));
	MUST(cuModuleGetFunction(&gpu.fill, module, "cudapool_fill"));
	MUST(cuModuleGetFunction(&gpu.saxpy, module, "cudapool_saxpy"));
	MUST(cuModuleGetFunction(&gpu.spin, module, "cudapool_spin"));
}

static inline void gpu_begin(void)
{
	gpu_load();
	MUST(cuInit(0));
	MUST(cuDevicePrimaryCtxRetain(&gpu.ctx, 0));
	MUST(cuCtxSetCurrent(gpu.ctx));
	gpu_kernels();
}

/* Memory whose every word follows from a seed. */
static inline CUresult gpu_fill(CUdeviceptr ptr, size_t bytes, uint32_t seed, CUstream stream, bool per_thread)
{
	uint64_t words = bytes / 4;
	void *params[] = {&ptr, &words, &seed};

	return (per_thread ? gpu.cuLaunchKernel_ptsz : gpu.cuLaunchKernel)(gpu.fill, 1, 1, 1, 1, 1, 1, 0, stream, params,
									   NULL);
}

static inline CUresult gpu_spin(uint64_t ms, CUstream stream, bool per_thread)
{
	uint64_t ns = ms * 1000000;
	void *params[] = {&ns};

	return (per_thread ? gpu.cuLaunchKernel_ptsz : gpu.cuLaunchKernel)(gpu.spin, 1, 1, 1, 1, 1, 1, 0, stream, params,
									   NULL);
}

static inline bool gpu_holds(CUdeviceptr ptr, size_t bytes, uint32_t seed)
{
	uint32_t *copy = malloc(bytes);
	size_t i;
	bool same = gpu.cuMemcpyDtoH_v2(copy, ptr, bytes) == CUDA_SUCCESS;

	for (i = 0; same && i < bytes / 4; i++)
		same = copy[i] == ((uint32_t)i * 2654435761u ^ seed);
	free(copy);
	return same;
}

#endif
