// SPDX-License-Identifier: MIT
/* A libcuda.so.1 that is not fit: without the checkpoint functions, or (with CRASH) one whose cuInit crashes. */
#pragma GCC visibility push(default)
#include <cuda.h>
#include <stdlib.h>

CUresult cuInit(unsigned int flags)
{
#ifdef CRASH
	abort();
#endif
	return CUDA_SUCCESS;
}

CUresult cuDriverGetVersion(int *version)
{
	*version = 12040;
	return CUDA_SUCCESS;
}

CUresult cuDeviceGetCount(int *count)
{
	*count = 1;
	return CUDA_SUCCESS;
}

CUresult cuDeviceGet(CUdevice *device, int ordinal)
{
	*device = ordinal;
	return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device)
{
	return CUDA_ERROR_OUT_OF_MEMORY;
}

CUresult cuGetErrorName(CUresult result, const char **name)
{
	*name = "CUDA_ERROR";
	return CUDA_SUCCESS;
}
