// SPDX-License-Identifier: MIT
/* The client's side of wire/message.h, for CRIU's plugin, the drop-in cuda-checkpoint and cudapoold's own verbs. */
#ifndef CUDAPOOL_WIRE_CLIENT_H
#define CUDAPOOL_WIRE_CLIENT_H

#include <stddef.h>

#include "message.h"

/*
 * No thread, no allocation, no output, no dependence beyond libc: it runs inside CRIU, which forks.
 * Every call has a time limit and returns 0 or a negative errno; after an error other than
 * -EREMOTEIO the connection is of no use any more. `text` always holds a line for people, with the
 * fix where there is one.
 */
struct cudapool_client {
	int fd;			       /* -1: not connected; close-on-exec */
	uint32_t next_request;
	struct cudapool_welcome welcome; /* the pool's answer to HELLO */
	char text[CUDAPOOL_TEXT_LEN];
};

/*
 * Connects to the pool's socket (`path`, or NULL for CUDAPOOL_SOCKET from the environment, or the
 * default) and says hello; fills in the header and build of *hello. -ECONNREFUSED or -ENOENT: there is no pool.
 * -EPROTONOSUPPORT: a pool of another version. -EACCES: not root and not in its group.
 */
int cudapool_client_connect(struct cudapool_client *c, const char *path, struct cudapool_hello *hello);

/* Starts one action and returns without waiting; *request is the number that its result will carry. */
int cudapool_client_begin(struct cudapool_client *c, enum cudapool_op op, int pid, unsigned timeout_ms, uint32_t *request);

/* Waits for the next result, whichever it is. -ETIMEDOUT after limit_ms. */
int cudapool_client_next(struct cudapool_client *c, struct cudapool_result *result, int limit_ms);

/* One action from start to end. 0 and *result filled in; -EREMOTEIO if the action failed (result->error, result->text). */
int cudapool_client_action(struct cudapool_client *c, enum cudapool_op op, int pid, unsigned timeout_ms, int limit_ms,
			   struct cudapool_result *result);

int cudapool_client_release(struct cudapool_client *c, enum cudapool_release_how how, int limit_ms);

/* The pool's report, a NUL-ended JSON document, into `json` (CUDAPOOL_WIRE_MAX bytes suffice). */
int cudapool_client_status(struct cudapool_client *c, char *json, size_t size, int limit_ms);

int cudapool_client_stop(struct cudapool_client *c, int limit_ms);

/* Closes the connection; safe to call twice. The owner rule of message.h applies. */
void cudapool_client_close(struct cudapool_client *c);

#endif
