// SPDX-License-Identifier: MIT
/* Connects to the pool that the options name, one started for the purpose if there is none. */
#ifndef CUDAPOOL_WIRE_REACH_H
#define CUDAPOOL_WIRE_REACH_H

#include "client.h"
#include "options.h"

/*
 * As cudapool_client_connect(), with the options' socket, CUDAPOOL_START and CUDAPOOL_DAEMON; fills in streams and
 * chunk_mb of *hello as well. Takes up to five seconds more where a pool has to be started; then `started`
 * (CUDAPOOL_TEXT_LEN bytes) says so, otherwise it is empty.
 *
 * Beyond the errors of cudapool_client_connect() and cudapool_spawn(): -ENODEV, the pool has no usable driver, or its
 * driver finds no GPU. On an error c->text says why, with the fix, and the connection is closed.
 */
int cudapool_reach(struct cudapool_client *c, const struct cudapool_options *options, struct cudapool_hello *hello,
		   char *started);

#endif
