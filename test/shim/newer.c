// SPDX-License-Identifier: MIT
/* Linked with the software driver's objects: what other drivers have and it has not. */
#define CUDAPOOL_ABI_NO_VERSIONS
#include <cuda.h>

#define EXPORT __attribute__((visibility("default")))

EXPORT CUresult cuGreenCtxCreate(void **ctx, void *resources, CUdevice device, unsigned int flags);
EXPORT CUresult cuGetProcAddress_v2_ptsz(const char *symbol, void **function, int version, cuuint64_t flags,
					 CUdriverProcAddressQueryResult *status);

/* All that the shim has to do with: a green context keeps the primary one active. */
CUresult cuGreenCtxCreate(void **ctx, void *resources, CUdevice device, unsigned int flags)
{
	return cuDevicePrimaryCtxRetain((CUcontext *)ctx, device);
}

/* As cuda.h describes it. */
CUresult cuGetProcAddress_v2_ptsz(const char *symbol, void **function, int version, cuuint64_t flags,
				  CUdriverProcAddressQueryResult *status)
{
	if (!(flags & (CU_GET_PROC_ADDRESS_LEGACY_STREAM | CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM)))
		flags |= CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM;
	return cuGetProcAddress_v2(symbol, function, version, flags, status);
}
