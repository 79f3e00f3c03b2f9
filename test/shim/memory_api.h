// SPDX-License-Identifier: MIT
/* The driver's functions for memory, looked up as applications do. */
#ifndef CUDAPOOL_TEST_SHIM_MEMORY_API_H
#define CUDAPOOL_TEST_SHIM_MEMORY_API_H

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CUDAPOOL_ABI_NO_VERSIONS
#include <cuda.h>

#define MEMORY_API(F)                                                                                                  \
	F(cuInit)                                                                                                      \
	F(cuDeviceGetCount)                                                                                            \
	F(cuDevicePrimaryCtxRetain)                                                                                    \
	F(cuDevicePrimaryCtxRelease_v2)                                                                                \
	F(cuDevicePrimaryCtxReset_v2)                                                                                  \
	F(cuCtxCreate_v2)                                                                                              \
	F(cuCtxDestroy_v2)                                                                                             \
	F(cuCtxAttach)                                                                                                 \
	F(cuCtxDetach)                                                                                                 \
	F(cuCtxSetCurrent)                                                                                             \
	F(cuCtxSynchronize)                                                                                            \
	F(cuCtxEnablePeerAccess)                                                                                       \
	F(cuCtxDisablePeerAccess)                                                                                      \
	F(cuStreamCreate)                                                                                              \
	F(cuStreamDestroy_v2)                                                                                          \
	F(cuStreamSynchronize)                                                                                         \
	F(cuStreamBeginCapture_v2)                                                                                     \
	F(cuStreamEndCapture)                                                                                          \
	F(cuThreadExchangeStreamCaptureMode)                                                                           \
	F(cuGraphDestroy)                                                                                              \
	F(cuMemGetInfo_v2)                                                                                             \
	F(cuMemAlloc_v2)                                                                                               \
	F(cuMemAllocPitch_v2)                                                                                          \
	F(cuMemAllocManaged)                                                                                           \
	F(cuMemFree_v2)                                                                                                \
	F(cuMemGetAddressRange_v2)                                                                                     \
	F(cuPointerGetAttribute)                                                                                       \
	F(cuPointerGetAttributes)                                                                                      \
	F(cuPointerSetAttribute)                                                                                       \
	F(cuMemAddressReserve)                                                                                         \
	F(cuMemAddressFree)                                                                                            \
	F(cuMemCreate)                                                                                                 \
	F(cuMemRelease)                                                                                                \
	F(cuMemMap)                                                                                                    \
	F(cuMemUnmap)                                                                                                  \
	F(cuMemSetAccess)                                                                                              \
	F(cuMemGetAccess)                                                                                              \
	F(cuMemRetainAllocationHandle)                                                                                 \
	F(cuMemGetAllocationPropertiesFromHandle)                                                                      \
	F(cuMemExportToShareableHandle)                                                                                \
	F(cuMemImportFromShareableHandle)                                                                              \
	F(cuMemcpy)                                                                                                    \
	F(cuMemcpyPeer)                                                                                                \
	F(cuMemcpyHtoD_v2)                                                                                             \
	F(cuMemcpyDtoH_v2)                                                                                             \
	F(cuMemcpyDtoD_v2)                                                                                             \
	F(cuMemsetD8_v2)                                                                                               \
	F(cuMemsetD8Async)                                                                                             \
	F(cuIpcGetMemHandle)                                                                                           \
	F(cuIpcOpenMemHandle)                                                                                          \
	F(cuIpcOpenMemHandle_v2)                                                                                       \
	F(cuIpcCloseMemHandle)                                                                                         \
	F(cuMemAllocAsync)                                                                                             \
	F(cuMemAllocAsync_ptsz)                                                                                        \
	F(cuMemAllocFromPoolAsync)                                                                                     \
	F(cuMemFreeAsync)                                                                                              \
	F(cuMemFreeAsync_ptsz)                                                                                         \
	F(cuDeviceGetDefaultMemPool)                                                                                   \
	F(cuDeviceSetMemPool)                                                                                          \
	F(cuMemPoolCreate)                                                                                             \
	F(cuMemPoolDestroy)                                                                                            \
	F(cuMemPoolTrimTo)                                                                                             \
	F(cuMemPoolGetAttribute)                                                                                       \
	F(cuMemPoolSetAttribute)                                                                                       \
	F(cuMemcpyDtoDAsync_v2)                                                                                        \
	F(cuLaunchHostFunc)

struct memory_api {
#define F(name) __typeof__(&name) name;
	MEMORY_API(F)
#undef F
};

static inline struct memory_api memory_api(void)
{
	void *lib = dlopen("libcuda.so.1", RTLD_NOW);
	struct memory_api api;

	if (!lib) {
		fprintf(stderr, "%s\n", dlerror());
		exit(2);
	}
#define F(name)                                                                                                        \
	api.name = (__typeof__(api.name))dlsym(lib, #name);                                                            \
	if (!api.name)                                                                                                 \
		printf(#name " not found\n");
	MEMORY_API(F)
#undef F
	return api;
}

#endif
