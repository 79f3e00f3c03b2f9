// SPDX-License-Identifier: MIT
/* The CUDA driver as the worker uses it, found at run time. */
#ifndef CUDAPOOL_POOL_DRIVER_H
#define CUDAPOOL_POOL_DRIVER_H

#include <cuda.h>
#include <stddef.h>

/* Every driver function that the pool calls, once: X(name as exported, what the pool needs it for). */
#define DRIVER_FUNCTIONS(X)                                                                                            \
	X(cuInit, DRIVER_BASIC)                                                                                        \
	X(cuDriverGetVersion, DRIVER_BASIC)                                                                            \
	X(cuDeviceGetCount, DRIVER_BASIC)                                                                              \
	X(cuDeviceGet, DRIVER_BASIC)                                                                                   \
	X(cuDeviceGetUuid_v2, DRIVER_BASIC)                                                                            \
	X(cuDevicePrimaryCtxRetain, DRIVER_BASIC)                                                                      \
	X(cuCtxSetCurrent, DRIVER_BASIC)                                                                               \
	X(cuStreamCreate, DRIVER_BASIC)                                                                                \
	X(cuStreamSynchronize, DRIVER_BASIC)                                                                           \
	X(cuEventCreate, DRIVER_BASIC)                                                                                 \
	X(cuEventRecord, DRIVER_BASIC)                                                                                 \
	X(cuEventSynchronize, DRIVER_BASIC)                                                                            \
	X(cuMemGetInfo_v2, DRIVER_BASIC)                                                                               \
	X(cuMemHostAlloc, DRIVER_BASIC)                                                                                \
	X(cuMemFreeHost, DRIVER_BASIC)                                                                                 \
	X(cuMemcpyHtoDAsync_v2, DRIVER_BASIC)                                                                          \
	X(cuMemcpyDtoHAsync_v2, DRIVER_BASIC)                                                                          \
	X(cuMemcpyDtoDAsync_v2, DRIVER_BASIC)                                                                          \
	X(cuMemsetD8Async, DRIVER_BASIC)                                                                               \
	X(cuMemCreate, DRIVER_BASIC)                                                                                   \
	X(cuMemRelease, DRIVER_BASIC)                                                                                  \
	X(cuMemAddressReserve, DRIVER_BASIC)                                                                           \
	X(cuMemAddressFree, DRIVER_BASIC)                                                                              \
	X(cuMemMap, DRIVER_BASIC)                                                                                      \
	X(cuMemUnmap, DRIVER_BASIC)                                                                                    \
	X(cuMemSetAccess, DRIVER_BASIC)                                                                                \
	X(cuMemExportToShareableHandle, DRIVER_BASIC)                                                                  \
	X(cuMemImportFromShareableHandle, DRIVER_BASIC)                                                                \
	X(cuGetErrorName, DRIVER_BASIC)                                                                                \
	X(cuCheckpointProcessGetState, DRIVER_CHECKPOINT)                                                              \
	X(cuCheckpointProcessGetRestoreThreadId, DRIVER_CHECKPOINT)                                                    \
	X(cuCheckpointProcessLock, DRIVER_CHECKPOINT)                                                                  \
	X(cuCheckpointProcessCheckpoint, DRIVER_CHECKPOINT)                                                            \
	X(cuCheckpointProcessRestore, DRIVER_CHECKPOINT)                                                               \
	X(cuCheckpointProcessUnlock, DRIVER_CHECKPOINT)

enum driver_purpose {
	DRIVER_BASIC,      /* every driver has it */
	DRIVER_CHECKPOINT, /* drivers from r570 (CUDA 12.8) on have it */
};

struct driver {
#define DRIVER_FIELD(name, purpose) __typeof__(name) *name;
	DRIVER_FUNCTIONS(DRIVER_FIELD)
#undef DRIVER_FIELD
};

/*
 * Loads `library` (a name for the loader, or a path) and finds the functions; they stay valid for
 * the life of the process. 0; -ENOENT: no such library; -ENOSYS: it lacks a function. `text` names the fix.
 */
int driver_load(struct driver *driver, const char *library, char *text, size_t size);

/* A result's name for people, "CUDA_ERROR_…" or "unknown error". */
const char *driver_error_name(const struct driver *driver, CUresult result);

#endif
