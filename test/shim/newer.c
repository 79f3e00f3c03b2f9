// SPDX-License-Identifier: MIT
/* Linked with the software driver's objects, but for ipc.o: what other drivers have and it has not. */
#define CUDAPOOL_ABI_NO_VERSIONS
#include <cuda.h>

#define EXPORT __attribute__((visibility("default")))

EXPORT CUresult cuGreenCtxCreate(void **ctx, void *resources, CUdevice device, unsigned int flags);
EXPORT CUresult cuCtxFromGreenCtx(CUcontext *context, void *green);
EXPORT CUresult cuGreenCtxDestroy(void *green);
EXPORT CUresult cuGetProcAddress_v2_ptsz(const char *symbol, void **function, int version, cuuint64_t flags,
					 CUdriverProcAddressQueryResult *status);

EXPORT CUresult cuArrayCreate_v2(void **array, const void *descriptor);
EXPORT CUresult cuArrayDestroy(void *array);
EXPORT CUresult cuMulticastBindMem(CUmemGenericAllocationHandle object, size_t at, CUmemGenericAllocationHandle memory,
				   size_t offset, size_t size, unsigned long long flags);

EXPORT CUresult cuMulticastBindMem_v2(CUmemGenericAllocationHandle object, CUdevice device, size_t at,
				      CUmemGenericAllocationHandle memory, size_t offset, size_t size,
				      unsigned long long flags);
EXPORT CUresult cuMulticastBindAddr_v2(CUmemGenericAllocationHandle object, CUdevice device, size_t at, CUdeviceptr ptr,
				       size_t size, unsigned long long flags);

EXPORT CUresult cuDeviceGetGraphMemAttribute(CUdevice device, int attribute, void *value);

/* In the place of those in ipc.o, called by its entries. */
CUresult do_cuMemAlloc_v2(CUdeviceptr *ptr, size_t bytes);
CUresult do_cuMemFree_v2(CUdeviceptr ptr);
CUresult do_cuIpcGetMemHandle(CUipcMemHandle *handle, CUdeviceptr ptr);
CUresult do_cuIpcOpenMemHandle(CUdeviceptr *ptr, CUipcMemHandle handle, unsigned int flags);
CUresult do_cuIpcOpenMemHandle_v2(CUdeviceptr *ptr, CUipcMemHandle handle, unsigned int flags);
CUresult do_cuIpcCloseMemHandle(CUdeviceptr ptr);
CUresult do_cuIpcGetEventHandle(CUipcEventHandle *handle, CUevent event);
CUresult do_cuIpcOpenEventHandle(CUevent *event, CUipcEventHandle handle);

static char array_there;
static CUdeviceptr opened;
static unsigned opens;

CUresult do_cuIpcGetMemHandle(CUipcMemHandle *handle, CUdeviceptr ptr)
{
	return CUDA_ERROR_NOT_SUPPORTED;
}

/* As many MiB as the handle's first byte says; opened again, it is the same memory. */
CUresult do_cuIpcOpenMemHandle_v2(CUdeviceptr *ptr, CUipcMemHandle handle, unsigned int flags)
{
	CUresult r = opens ? CUDA_SUCCESS : do_cuMemAlloc_v2(&opened, (size_t)handle.reserved[0] << 20);

	opens += r == CUDA_SUCCESS;
	*ptr = opened;
	return r;
}

CUresult do_cuIpcOpenMemHandle(CUdeviceptr *ptr, CUipcMemHandle handle, unsigned int flags)
{
	return do_cuIpcOpenMemHandle_v2(ptr, handle, flags);
}

CUresult do_cuIpcCloseMemHandle(CUdeviceptr ptr)
{
	if (!opens || ptr != opened)
		return CUDA_ERROR_INVALID_VALUE;
	return --opens ? CUDA_SUCCESS : do_cuMemFree_v2(ptr);
}

CUresult do_cuIpcGetEventHandle(CUipcEventHandle *handle, CUevent event)
{
	return CUDA_ERROR_NOT_SUPPORTED;
}

CUresult do_cuIpcOpenEventHandle(CUevent *event, CUipcEventHandle handle)
{
	return CUDA_ERROR_NOT_SUPPORTED;
}

CUresult cuArrayCreate_v2(void **array, const void *descriptor)
{
	*array = &array_there;
	return CUDA_SUCCESS;
}

CUresult cuArrayDestroy(void *array)
{
	return array == &array_there ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

/* Some bytes that are used, more that were, and twice as many reserved, on the first device. */
CUresult cuDeviceGetGraphMemAttribute(CUdevice device, int attribute, void *value)
{
	static const cuuint64_t bytes[] = {1 << 20, 2 << 20, 4 << 20, 8 << 20};

	*(cuuint64_t *)value = device ? 0 : bytes[attribute];
	return CUDA_SUCCESS;
}

/* To be given a handle that the driver knows. */
CUresult cuMulticastBindMem(CUmemGenericAllocationHandle object, size_t at, CUmemGenericAllocationHandle memory,
			    size_t offset, size_t size, unsigned long long flags)
{
	CUmemAllocationProp prop;

	return cuMemGetAllocationPropertiesFromHandle(&prop, memory);
}

CUresult cuMulticastBindMem_v2(CUmemGenericAllocationHandle object, CUdevice device, size_t at,
			       CUmemGenericAllocationHandle memory, size_t offset, size_t size,
			       unsigned long long flags)
{
	return device ? CUDA_ERROR_INVALID_DEVICE : cuMulticastBindMem(object, at, memory, offset, size, flags);
}

CUresult cuMulticastBindAddr_v2(CUmemGenericAllocationHandle object, CUdevice device, size_t at, CUdeviceptr ptr,
				size_t size, unsigned long long flags)
{
	return device ? CUDA_ERROR_INVALID_DEVICE : CUDA_SUCCESS;
}

/* All that the shim has to do with: a green context keeps the primary one active, and has streams of its own. */
CUresult cuGreenCtxCreate(void **ctx, void *resources, CUdevice device, unsigned int flags)
{
	return cuDevicePrimaryCtxRetain((CUcontext *)ctx, device);
}

static CUcontext green_streams;

CUresult cuCtxFromGreenCtx(CUcontext *context, void *green)
{
	CUcontext popped;
	CUresult r = green_streams ? CUDA_SUCCESS : cuCtxCreate_v2(&green_streams, 0, 0);

	*context = green_streams;
	return r == CUDA_SUCCESS ? cuCtxPopCurrent_v2(&popped) : r;
}

CUresult cuGreenCtxDestroy(void *green)
{
	CUresult r = cuCtxDestroy_v2(green_streams);

	green_streams = NULL;
	return r == CUDA_SUCCESS ? cuDevicePrimaryCtxRelease_v2(0) : r;
}

/* As cuda.h describes it. */
CUresult cuGetProcAddress_v2_ptsz(const char *symbol, void **function, int version, cuuint64_t flags,
				  CUdriverProcAddressQueryResult *status)
{
	if (!(flags & (CU_GET_PROC_ADDRESS_LEGACY_STREAM | CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM)))
		flags |= CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM;
	return cuGetProcAddress_v2(symbol, function, version, flags, status);
}
