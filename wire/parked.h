// SPDX-License-Identifier: MIT
/* Asks a process's control page, without a pool, whether its GPU memory is parked. */
#ifndef CUDAPOOL_WIRE_PARKED_H
#define CUDAPOOL_WIRE_PARKED_H

#include <stdbool.h>

/*
 * True if the page of `pid` (or of a thread's process) says that its GPU memory is not mapped. False where there is no
 * page, or none that this version knows: then nothing was parked. The process can lie, and harms only itself by that.
 */
bool cudapool_parked_says(int pid);

#endif
