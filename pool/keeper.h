// SPDX-License-Identifier: MIT
/* The keeper: the process that clients talk to. It never calls CUDA, has one thread, and is small enough to be trusted.
 */
#ifndef CUDAPOOL_POOL_KEEPER_H
#define CUDAPOOL_POOL_KEEPER_H

#include <stddef.h>

#include "options.h"

/*
 * Serves until SIGTERM, SIGINT, STOP or idleness. `ready` is called once, when the socket accepts. 0, or a
 * negative errno with the reason and the fix in `text`.
 */
int keeper_run(const struct cudapool_options *options, void (*ready)(void), char *text, size_t size);

#endif
