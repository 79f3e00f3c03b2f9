// SPDX-License-Identifier: MIT
/* The worker: the process with the warm driver; the keeper starts it and is the only one that talks to it. */
#ifndef CUDAPOOL_POOL_WORKER_H
#define CUDAPOOL_POOL_WORKER_H

#include <assert.h>
#include <stdint.h>

#include "message.h"

/*
 * Keeper and worker are one binary, so this needs no version: one struct each way over a SOCK_SEQPACKET pair.
 * The worker ends when the other end is closed, and the kernel kills it with the keeper.
 */
enum worker_message_kind {
	WORKER_PING = 1,   /* keeper: are you there? */
	WORKER_PONG = 2,   /* worker: its main thread is, whatever the others do */
	WORKER_ACTION = 3, /* keeper: carry this out (op, pid, timeout_ms) */
	WORKER_RESULT = 4, /* worker: how it ended (error, cu_result, value, elapsed_us, text) */
	WORKER_STAGE = 5,  /* worker: how far the driver is (stage and what follows it, text) */
};

enum worker_stage {
	WORKER_LOADING = 0,
	WORKER_READY = 1,  /* cuInit is done: actions are welcome */
	WORKER_WARM = 2,   /* the contexts exist as well, or `text` says why not */
	WORKER_FAILED = 3, /* no usable driver, `text` says why; the worker ends */
};

#define WORKER_CONTEXTS_MAX 64

struct worker_message {
	uint32_t kind; /* enum worker_message_kind */
	uint32_t id;   /* of the action */
	uint32_t op;   /* enum cudapool_op */
	int32_t pid;
	uint32_t timeout_ms;
	int32_t error; /* 0 or a negative errno */
	int32_t cu_result;
	int32_t value;
	uint32_t elapsed_us;
	uint32_t stage; /* enum worker_stage */
	uint32_t driver_version;
	uint32_t devices;
	uint32_t contexts; /* warm ones */
	int32_t warm_device;
	uint64_t warm_context;
	uint64_t warm_us; /* what reaching this stage took, from the start of the worker */
	char text[CUDAPOOL_TEXT_LEN];
};
static_assert(sizeof(struct worker_message) == 72 + CUDAPOOL_TEXT_LEN, "no padding, so nothing uninitialised is sent");

struct worker_config {
	int fd; /* the worker's end of the pair */
	const char *libcuda;
	int contexts;
	int threads;
};

/* Runs the worker until the keeper closes its end; returns the exit status of the process. */
int worker_main(const struct worker_config *config);

#endif
