// SPDX-License-Identifier: MIT
/* Waits until all submitted work is done, within a limit, and without touching a stream that is being captured. */
#ifndef CUDAPOOL_PRELOAD_DRAIN_H
#define CUDAPOOL_PRELOAD_DRAIN_H

#include <cuda.h>
#include <stdint.h>

/*
 * All contexts of the process; the gate is closed. 0; -ETIMEDOUT; -EBUSY: so long a blocking stream was being captured in
 * a process that may use threads' default streams; -EIO: *result says what the driver said. Shim's thread.
 */
int cudapool_drain_all(uint64_t limit_us, CUresult *result);

/*
 * All work of the current context and of another one (NULL: none), with a primary one that of its green ones, as
 * cuMemFree waits for it before it frees; in a thread of the application, within the gate. A context that is gone has no
 * work. No capture is broken by it. Keeps the current context. Returns an error of earlier work.
 */
CUresult cudapool_drain_context(CUcontext context);

#endif
