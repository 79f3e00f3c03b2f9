// SPDX-License-Identifier: MIT
/* The client's side of wire/message.h, for CRIU's plugin, the drop-in cuda-checkpoint and cudapoold's own verbs. */
#ifndef CUDAPOOL_WIRE_CLIENT_H
#define CUDAPOOL_WIRE_CLIENT_H

#include <stddef.h>

#include "message.h"

/*
 * No thread, no allocation, no output, no dependence beyond libc: it runs inside CRIU, which forks.
 * Every call has a time limit and returns 0 or a negative errno. After an error other than -EREMOTEIO
 * (the action failed, the images are of no use), -ETIMEDOUT (nothing came yet), -EBUSY (refused) and -ENOBUFS the
 * connection is of no use any more. `text` always holds a line for people, with the fix where there is one.
 */
struct cudapool_client {
	int fd; /* -1: not connected; close-on-exec */
	uint32_t next_request;
	struct cudapool_welcome welcome; /* the pool's answer to HELLO */
	char text[CUDAPOOL_TEXT_LEN];
};

/*
 * Connects to the pool's socket (`path`, or NULL for CUDAPOOL_SOCKET from the environment, or the
 * default) and says hello; fills in the header and build of *hello. Takes at most hello->wait_ms and ten seconds.
 * -ECONNREFUSED or -ENOENT: there is no pool. -EPROTONOSUPPORT: a pool of another version.
 * -EACCES: not root and not in its group. -EPERM: the socket is served by neither root nor the caller,
 * or the caller is in another pid namespace than the pool.
 */
int cudapool_client_connect(struct cudapool_client *c, const char *path, struct cudapool_hello *hello);

/*
 * Starts one action and does not wait for its end; *request is the number that its result will carry. (It waits up
 * to five seconds for a pool that does not take messages.)
 */
int cudapool_client_begin(struct cudapool_client *c, enum cudapool_op op, int pid, unsigned timeout_ms,
			  uint32_t *request);

/*
 * Waits for the next result, whichever it is: the caller looks at result->h.request and result->error. A
 * request that the pool refused altogether is a result with op and pid 0. -ETIMEDOUT after limit_ms: call again.
 */
int cudapool_client_next(struct cudapool_client *c, struct cudapool_result *result, int limit_ms);

/*
 * One action from start to end; results of others that are still under way are dropped. 0 and *result filled in;
 * -EREMOTEIO if the action failed (result->error, result->cu_result, result->text, and `text`).
 */
int cudapool_client_action(struct cudapool_client *c, enum cudapool_op op, int pid, unsigned timeout_ms, int limit_ms,
			   struct cudapool_result *result);

/* RELEASE, answered. With CUDAPOOL_RELEASE_UNDO the pool answers when everything has been given back. */
int cudapool_client_release(struct cudapool_client *c, enum cudapool_release_how how, int limit_ms);

/*
 * IMAGES: tells the pool a directory of images, by a descriptor that stays the caller's; fills in the header of
 * *images. 0 and *found; -EREMOTEIO: nothing may be restored from there, or saved (found->error, and `text`). PREFETCH is
 * answered when its tier is reached: its limit_ms has to allow for that.
 */
int cudapool_client_images(struct cudapool_client *c, struct cudapool_images *images, int directory, int limit_ms,
			   struct cudapool_found *found);

/*
 * EVICT: of the park with this token (CUDAPOOL_TOKEN_LEN bytes), NULL: of all; as cudapool_client_images(). For COLD its
 * limit_ms has to allow for writing to the disk.
 */
int cudapool_client_evict(struct cudapool_client *c, const uint8_t *token, enum cudapool_tier tier, int limit_ms,
			  struct cudapool_found *found);

/* The pool's report, a NUL-ended JSON document, into `json` (CUDAPOOL_WIRE_MAX bytes suffice). */
int cudapool_client_status(struct cudapool_client *c, char *json, size_t size, int limit_ms);

/* Ends the pool. -EBUSY: it holds something for others. */
int cudapool_client_stop(struct cudapool_client *c, int limit_ms);

/* Closes the connection; safe to call twice. The owner rule of message.h applies. */
void cudapool_client_close(struct cudapool_client *c);

#endif
