// SPDX-License-Identifier: MIT
/* What clients ask for: HELLO, ACTION, IMAGES, RELEASE, EVICT, STATUS, STOP. */
#ifndef CUDAPOOL_POOL_REQUEST_H
#define CUDAPOOL_POOL_REQUEST_H

#include "loop.h"
#include "message.h"
#include "peer.h"

union request_message {
	struct cudapool_header h;
	struct cudapool_hello hello;
	struct cudapool_action action;
	struct cudapool_release release;
	struct cudapool_images images;
	struct cudapool_evict evict;
	char bytes[CUDAPOOL_WIRE_MAX];
};

/* hot: of clients that do not say. stop: called when a client said STOP and may. */
void request_init(enum cudapool_hot hot, void (*stop)(void));

/* One message of a peer, whose header and length are right. fd: the one that came with IMAGES, taken over; else -1. */
void request_handle(struct peer *peer, const union request_message *message, int fd);

/* A connection begins; it ends, and what it asked for goes on without it or is given back, by session.h's rule. */
void request_peer_came(struct peer *peer);
void request_peer_gone(struct peer *peer);

/* The timer `hello` of a peer: HELLO did not come, or WELCOME must wait no longer. */
void request_hello_limit(struct loop_timer *timer);

/* To be called when the worker's state changed: welcomes those who wait for it. */
void request_worker_changed(void);

/* No new actions from now on: the pool is ending. */
void request_refuse_actions(void);

#endif
