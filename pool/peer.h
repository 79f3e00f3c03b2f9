// SPDX-License-Identifier: MIT
/* Connections: who may connect, how much they may send and leave unread. What they say is request.h's. */
#ifndef CUDAPOOL_POOL_PEER_H
#define CUDAPOOL_POOL_PEER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/queue.h>
#include <sys/socket.h>
#include <sys/types.h>

#include "loop.h"
#include "message.h"
#include "session.h"

/*
 * Limits. One peer cannot take what others need: it is answered ERROR, or dropped.
 *   connections   PEERS_MAX in all, PEERS_MAX_OF_USER of one user other than root
 *   requests      REQUESTS_MAX in all, REQUESTS_MAX_OF_PEER of one connection
 *   time          HELLO_MS from accept to HELLO, STALL_MS for a peer that does not read
 *   memory        QUEUE_MAX bytes of answers wait for one peer
 */
#define PEERS_MAX            128
#define PEERS_MAX_OF_USER    32
#define REQUESTS_MAX         512
#define REQUESTS_MAX_OF_PEER 64
#define HELLO_MS             5000
#define STALL_MS             10000
#define QUEUE_MAX            (128 * 1024)

struct peer {
	struct loop_watch watch;
	struct loop_timer hello;   /* until HELLO, then until WELCOME */
	struct loop_timer stalled; /* while answers wait */
	struct loop_timer reap;    /* frees it, once nobody up the call chain uses it */
	struct ucred who;
	bool closed;
	bool greeted;       /* HELLO came */
	bool welcome_waits; /* until the worker is warm, or the timer fires */
	uint32_t hello_request;
	bool shares_pids; /* it means the same processes as we do by their numbers */
	struct session_client client; /* for whom it acts; owner NULL: it owns nothing */
	unsigned streams, chunk_mb;   /* as its HELLO said */
	struct finding {	      /* IMAGES or EVICT that is answered later; store.h's */
		struct store_waiter waiter;
		struct store_dir *dir; /* of IMAGES */
		struct cudapool_images images;
		struct cudapool_found found;
		bool under_way;
	} finding;
	struct session_undo undo; /* a RELEASE UNDO under way */
	uint32_t undo_request;
	LIST_HEAD(, session_request) requests;
	unsigned request_count;
	STAILQ_HEAD(, waiting) queue;
	size_t queue_bytes;
	LIST_ENTRY(peer) link;
};

/* group: whose members are admitted beside root; (gid_t)-1: nobody. */
void peers_init(gid_t group);

/* Takes over a connection that was just accepted (non-blocking, close-on-exec). */
void peer_accept(int fd);

void peer_fill_header(struct cudapool_header *header, enum cudapool_msg_type type, size_t size, uint32_t request);

/*
 * Sends, or queues, one message. In this and the next two the peer may be closed; it stays valid until the
 * loop turns.
 */
void peer_send(struct peer *peer, const void *message, size_t size);

/* Answers ERROR: the request is refused, the connection goes on. */
void peer_refuse(struct peer *peer, uint32_t request, int error, const char *format, ...)
	__attribute__((format(printf, 4, 5)));

/* Answers ERROR and closes: it breaks the protocol, and nothing that it says can be trusted any more. */
void peer_expel(struct peer *peer, uint32_t request, int error, const char *text);

void peers_each(void (*call)(struct peer *peer));
unsigned peer_count(void);

#endif
