// SPDX-License-Identifier: MIT
/* A libcuda.so.1 with one primary context, whose calls can be held as they begin, before the driver looks at anything. */
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

#pragma GCC visibility push(default)
#include "racing_driver.h"

static CUcontext alive(void);
CUresult cuInit(unsigned int flags);
struct racing_driver racing_driver = {.alive = alive, .init = cuInit};

#define control racing_driver
/* As a driver's: the first cuInit keeps it all the time, so a child that is forked meanwhile must not come near. */
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static atomic_bool inited;
static unsigned references;
static uintptr_t generation;

static CUcontext alive(void)
{
	return references ? (CUcontext)generation : NULL;
}

static void hold(const char *name)
{
	int i;

	for (i = 0; i < 2; i++) {
		const char *held = control.hold[i];

		if (!held || strcmp(held, name))
			continue;
		control.held[i]++;
		while (control.hold[i])
			usleep(100);
		control.held[i]--;
	}
}

static CUresult enter(const char *name)
{
	hold(name);
	pthread_mutex_lock(&mutex);
	if (inited)
		return CUDA_SUCCESS;
	pthread_mutex_unlock(&mutex);
	return CUDA_ERROR_NOT_INITIALIZED;
}

static CUresult leave(CUresult r)
{
	pthread_mutex_unlock(&mutex);
	return r;
}

#define ENTER()                                                                                                        \
	do {                                                                                                           \
		CUresult entered = enter(__func__);                                                                    \
		if (entered != CUDA_SUCCESS)                                                                           \
			return entered;                                                                                \
	} while (0)

CUresult cuInit(unsigned int flags)
{
	if (flags)
		return CUDA_ERROR_INVALID_VALUE;
	control.inits++;
	if (inited) {
		hold(__func__);
		return CUDA_SUCCESS;
	}
	pthread_mutex_lock(&mutex);
	hold(__func__);
	inited = true;
	return leave(CUDA_SUCCESS);
}

CUresult cuDeviceGetCount(int *count)
{
	ENTER();
	*count = 1;
	return leave(CUDA_SUCCESS);
}

CUresult cuDeviceGet(CUdevice *device, int ordinal)
{
	ENTER();
	*device = ordinal;
	return leave(CUDA_SUCCESS);
}

CUresult cuCtxGetCurrent(CUcontext *ctx)
{
	ENTER();
	*ctx = NULL;
	return leave(CUDA_SUCCESS);
}

CUresult cuCtxSynchronize(void)
{
	ENTER();
	return leave(CUDA_ERROR_INVALID_CONTEXT);
}

CUresult cuDevicePrimaryCtxGetState(CUdevice device, unsigned int *flags, int *active)
{
	ENTER();
	*flags = 0;
	*active = references > 0;
	return leave(CUDA_SUCCESS);
}

CUresult cuDevicePrimaryCtxRetain(CUcontext *ctx, CUdevice device)
{
	ENTER();
	control.retains++;
	if (control.failing && control.failing--)
		return leave(CUDA_ERROR_OUT_OF_MEMORY);
	if (!references++)
		generation += 64;
	*ctx = (CUcontext)generation;
	return leave(CUDA_SUCCESS);
}

CUresult cuDevicePrimaryCtxRelease_v2(CUdevice device)
{
	ENTER();
	if (!references)
		return leave(CUDA_ERROR_INVALID_CONTEXT);
	references--;
	return leave(CUDA_SUCCESS);
}

CUresult cuDevicePrimaryCtxReset_v2(CUdevice device)
{
	ENTER();
	references = 0;
	return leave(CUDA_SUCCESS);
}

CUresult cuDevicePrimaryCtxSetFlags(CUdevice device, unsigned int flags)
{
	ENTER();
	return leave(references ? CUDA_ERROR_PRIMARY_CONTEXT_ACTIVE : CUDA_SUCCESS);
}

/* The shim asks for them, and never gets so far. */
CUresult cuCtxCreate_v2(CUcontext *ctx, unsigned int flags, CUdevice device)
{
	return CUDA_ERROR_NOT_SUPPORTED;
}

CUresult cuCtxDestroy_v2(CUcontext ctx)
{
	return CUDA_ERROR_NOT_SUPPORTED;
}

CUresult cuCtxPushCurrent_v2(CUcontext ctx)
{
	return CUDA_ERROR_NOT_SUPPORTED;
}

CUresult cuCtxPopCurrent_v2(CUcontext *ctx)
{
	return CUDA_ERROR_NOT_SUPPORTED;
}
