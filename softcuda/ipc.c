// SPDX-License-Identifier: MIT
/* The old kind of sharing between processes, which the software driver declares and refuses. */
#include "internal.h"

/* Mapped and stream-ordered memory cannot be shared so with the real driver either (probes/memory.c). */
CUresult do_cuIpcGetMemHandle(CUipcMemHandle *handle, CUdeviceptr ptr)
{
	struct softcuda_range *range;
	bool capable;

	pthread_rwlock_rdlock(&softcuda_map_lock);
	range = softcuda_range_find(ptr);
	capable = handle && range && range->kind == SOFTCUDA_ALLOC;
	pthread_rwlock_unlock(&softcuda_map_lock);
	return capable ? CUDA_ERROR_NOT_SUPPORTED : CUDA_ERROR_INVALID_VALUE;
}

CUresult do_cuIpcOpenMemHandle_v2(CUdeviceptr *ptr, CUipcMemHandle handle, unsigned int flags)
{
	return ptr && flags == CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS ? CUDA_ERROR_NOT_SUPPORTED : CUDA_ERROR_INVALID_VALUE;
}

CUresult do_cuIpcOpenMemHandle(CUdeviceptr *ptr, CUipcMemHandle handle, unsigned int flags)
{
	return do_cuIpcOpenMemHandle_v2(ptr, handle, flags);
}

CUresult do_cuIpcCloseMemHandle(CUdeviceptr ptr)
{
	return CUDA_ERROR_INVALID_VALUE; /* none was opened */
}

CUresult do_cuIpcGetEventHandle(CUipcEventHandle *handle, CUevent event)
{
	return handle && event ? CUDA_ERROR_NOT_SUPPORTED : CUDA_ERROR_INVALID_VALUE;
}

CUresult do_cuIpcOpenEventHandle(CUevent *event, CUipcEventHandle handle)
{
	return event ? CUDA_ERROR_NOT_SUPPORTED : CUDA_ERROR_INVALID_VALUE;
}
