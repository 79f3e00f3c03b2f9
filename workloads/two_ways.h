// SPDX-License-Identifier: MIT
/* What two_ways.so does for the process that it is preloaded into. */
#ifndef CUDAPOOL_WORKLOADS_TWO_WAYS_H
#define CUDAPOOL_WORKLOADS_TWO_WAYS_H

#include <stdbool.h>

/*
 * Sends the driver calls of all threads past the shim from now on, or through it, as at the start. Returns how many
 * functions go either way: 0 if no shim is between the process and its driver.
 */
int two_ways(bool past);

#endif
