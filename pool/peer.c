// SPDX-License-Identifier: MIT
/* Connections: who may connect, what they may say, and how much of it. */
#include "peer.h"

#include <errno.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/queue.h>
#include <sys/socket.h>
#include <unistd.h>

#include "build.h"
#include "log.h"
#include "loop.h"
#include "message.h"
#include "request.h"
#include "rights.h"
#include "session.h"
#include "status.h"

struct waiting { /* one answer that the socket could not take yet */
	STAILQ_ENTRY(waiting) link;
	size_t size;
	char bytes[];
};

static LIST_HEAD(, peer) peers = LIST_HEAD_INITIALIZER(peers);
static unsigned peers_open;
static gid_t admitted_group = (gid_t)-1;

/* ---- sending ---------------------------------------------------------------------------------- */

void peer_fill_header(struct cudapool_header *header, enum cudapool_msg_type type, size_t size, uint32_t request)
{
	*header = (struct cudapool_header){.magic = CUDAPOOL_WIRE_MAGIC,
					   .version = CUDAPOOL_WIRE_VERSION,
					   .type = type,
					   .length = (uint32_t)size,
					   .request = request};
}

static void close_peer(struct peer *peer)
{
	if (peer->closed)
		return;
	peer->closed = true;
	loop_unwatch(&peer->watch);
	close(peer->watch.fd);
	loop_timer_cancel(&peer->hello);
	loop_timer_cancel(&peer->stalled);
	request_peer_gone(peer);
	peers_open--;
	LIST_REMOVE(peer, link);
	loop_timer_set(&peer->reap, 0);
}

static void free_peer(struct loop_timer *timer)
{
	struct peer *peer = container_of(timer, struct peer, reap);
	struct waiting *waiting;

	while ((waiting = STAILQ_FIRST(&peer->queue))) {
		STAILQ_REMOVE_HEAD(&peer->queue, link);
		free(waiting);
	}
	free(peer);
}

static void drop_peer(struct peer *peer, const char *why)
{
	if (peer->closed)
		return;
	cudapool_log(CUDAPOOL_LOG_INFO, "connection of process %d (user %u) dropped: %s", peer->who.pid, peer->who.uid,
		     why);
	status_count_connection(STATUS_DROPPED);
	close_peer(peer);
}

void peer_send(struct peer *peer, const void *message, size_t size)
{
	struct waiting *waiting;

	if (peer->closed)
		return;
	if (STAILQ_EMPTY(&peer->queue)) {
		if (send(peer->watch.fd, message, size, MSG_DONTWAIT | MSG_NOSIGNAL) == (ssize_t)size)
			return;
		if (errno != EAGAIN && errno != ENOBUFS && errno != EINTR) {
			close_peer(peer);
			return;
		}
	}
	waiting = peer->queue_bytes + size <= QUEUE_MAX ? malloc(sizeof(*waiting) + size) : NULL;
	if (!waiting) {
		drop_peer(peer, "it does not read its answers");
		return;
	}
	waiting->size = size;
	memcpy(waiting->bytes, message, size);
	if (STAILQ_EMPTY(&peer->queue)) {
		loop_timer_set(&peer->stalled, STALL_MS);
		loop_watch(&peer->watch, EPOLLIN | EPOLLOUT);
	}
	STAILQ_INSERT_TAIL(&peer->queue, waiting, link);
	peer->queue_bytes += size;
}

static void flush(struct peer *peer)
{
	struct waiting *waiting;

	while ((waiting = STAILQ_FIRST(&peer->queue))) {
		if (send(peer->watch.fd, waiting->bytes, waiting->size, MSG_DONTWAIT | MSG_NOSIGNAL) < 0) {
			if (errno != EAGAIN && errno != ENOBUFS && errno != EINTR)
				close_peer(peer);
			return;
		}
		STAILQ_REMOVE_HEAD(&peer->queue, link);
		peer->queue_bytes -= waiting->size;
		free(waiting);
		loop_timer_set(&peer->stalled, STALL_MS); /* slow is not stalled */
	}
	loop_timer_cancel(&peer->stalled);
	loop_watch(&peer->watch, EPOLLIN);
}

static void stall_limit(struct loop_timer *timer)
{
	drop_peer(container_of(timer, struct peer, stalled), "it does not read its answers");
}

static void fill_error(struct cudapool_error *message, uint32_t request, int error, const char *text)
{
	memset(message, 0, sizeof(*message));
	peer_fill_header(&message->h, CUDAPOOL_MSG_ERROR, sizeof(*message), request);
	message->error = error;
	snprintf(message->build, sizeof(message->build), "%s", build_name());
	snprintf(message->text, sizeof(message->text), "%s", text);
}

void peer_refuse(struct peer *peer, uint32_t request, int error, const char *format, ...)
{
	struct cudapool_error message;
	char text[CUDAPOOL_TEXT_LEN];
	va_list args;

	va_start(args, format);
	vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	fill_error(&message, request, error, text);
	peer_send(peer, &message, sizeof(message));
}

/*
 * The last word to a peer. What it sent and we do not read would turn into ECONNRESET on its side, in front
 * of our message: so nothing more is let in, and what is there is read away, before the socket is closed.
 */
static void last_word(int fd, uint32_t request, int error, const char *text)
{
	struct cudapool_error message;
	char unread[64];

	fill_error(&message, request, error, text);
	if (send(fd, &message, sizeof(message), MSG_DONTWAIT | MSG_NOSIGNAL) < 0)
		return; /* it is gone, or does not read: it has no use for words */
	shutdown(fd, SHUT_RD);
	while (recv(fd, unread, sizeof(unread), MSG_DONTWAIT) > 0)
		;
}

void peer_expel(struct peer *peer, uint32_t request, int error, const char *text)
{
	last_word(peer->watch.fd, request, error, text);
	drop_peer(peer, text);
}

/* ---- receiving -------------------------------------------------------------------------------- */

/* The only length that a message of this type may have; 0: no client sends it. */
static size_t length_of(unsigned type)
{
	switch (type) {
	case CUDAPOOL_MSG_HELLO:
		return sizeof(struct cudapool_hello);
	case CUDAPOOL_MSG_ACTION:
		return sizeof(struct cudapool_action);
	case CUDAPOOL_MSG_RELEASE:
		return sizeof(struct cudapool_release);
	case CUDAPOOL_MSG_IMAGES:
		return sizeof(struct cudapool_images);
	case CUDAPOOL_MSG_EVICT:
		return sizeof(struct cudapool_evict);
	case CUDAPOOL_MSG_STATUS:
	case CUDAPOOL_MSG_STOP:
		return sizeof(struct cudapool_header);
	default:
		return 0;
	}
}

/* NULL, or what is wrong with a message of n bytes and what came along. */
static const char *objection(const struct peer *peer, const union request_message *message, size_t n,
			     const struct rights *came)
{
	if (came->lost)
		return "a message carries more descriptors than one, or the pool has no room for it";
	if (n > sizeof(*message) || n < sizeof(message->h) || message->h.magic != CUDAPOOL_WIRE_MAGIC ||
	    message->h.length != n)
		return "this is no message of cudapool";
	if (n != length_of(message->h.type))
		return "a message has the wrong type or length";
	if (!peer->greeted && message->h.type != CUDAPOOL_MSG_HELLO)
		return "a connection starts with HELLO";
	if (came->count && message->h.type != CUDAPOOL_MSG_IMAGES)
		return "a message carries a descriptor";
	if (!came->count && message->h.type == CUDAPOOL_MSG_IMAGES)
		return "IMAGES comes without its directory";
	return NULL;
}

static void receive(struct peer *peer)
{
	static union request_message message;
	int fd = -1;
	struct rights came = {.fds = &fd, .most = 1};
	ssize_t n = rights_receive(peer->watch.fd, &message, sizeof(message), &came, MSG_DONTWAIT);
	char versions[CUDAPOOL_TEXT_LEN];
	const char *text;

	if (n == -EAGAIN || n == -EINTR)
		return;
	if (n <= 0) {
		close_peer(peer);
		goto out; /* a message of no bytes may have brought something, too */
	}
	if (n >= (ssize_t)sizeof(message.h) && message.h.magic == CUDAPOOL_WIRE_MAGIC &&
	    message.h.version != CUDAPOOL_WIRE_VERSION) {
		snprintf(versions, sizeof(versions),
			 "the pool speaks version %d and you %u: install both from one build, and restart the pool",
			 CUDAPOOL_WIRE_VERSION, message.h.version);
		peer_expel(peer, message.h.request, -EPROTONOSUPPORT, versions);
		goto out;
	}
	text = objection(peer, &message, (size_t)n, &came);
	if (text) {
		peer_expel(peer, n >= (ssize_t)sizeof(message.h) ? message.h.request : 0, -EPROTO, text);
		goto out;
	}
	request_handle(peer, &message, fd);
	return;
out:
	rights_close(&fd, came.count);
}

static void peer_ready(struct loop_watch *watch, uint32_t events)
{
	struct peer *peer = container_of(watch, struct peer, watch);

	if (events & EPOLLOUT)
		flush(peer);
	if (!peer->closed && (events & ~(uint32_t)EPOLLOUT))
		receive(peer);
}

/* ---- accepting -------------------------------------------------------------------------------- */

static bool admitted(int fd, const struct ucred *who)
{
	static gid_t groups[65536]; /* NGROUPS_MAX */
	socklen_t size = sizeof(groups), i;

	if (who->uid == 0 || who->uid == geteuid())
		return true;
	if (admitted_group == (gid_t)-1)
		return false;
	if (who->gid == admitted_group)
		return true;
	if (getsockopt(fd, SOL_SOCKET, SO_PEERGROUPS, groups, &size))
		return false;
	for (i = 0; i < size / sizeof(groups[0]); i++)
		if (groups[i] == admitted_group)
			return true;
	return false;
}

static unsigned peers_of_user(uid_t uid)
{
	const struct peer *peer;
	unsigned n = 0;

	LIST_FOREACH(peer, &peers, link)
	n += peer->who.uid == uid;
	return n;
}

static void turn_away(int fd, int error, const char *text)
{
	status_count_connection(STATUS_REFUSED);
	last_word(fd, 0, error, text);
	close(fd);
}

void peer_accept(int fd)
{
	struct ucred who = {.uid = (uid_t)-1};
	socklen_t size = sizeof(who);
	struct peer *peer;

	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &who, &size) || !admitted(fd, &who)) {
		turn_away(fd, -EACCES, "only root and members of the pool's group (CUDAPOOL_GROUP) may use it");
		return;
	}
	if (peers_open >= PEERS_MAX || (who.uid && peers_of_user(who.uid) >= PEERS_MAX_OF_USER)) {
		turn_away(fd, -EBUSY, "too many connections");
		return;
	}
	peer = calloc(1, sizeof(*peer));
	if (!peer) {
		turn_away(fd, -ENOMEM, "the pool is out of memory");
		return;
	}
	peer->watch = (struct loop_watch){.fd = fd, .ready = peer_ready};
	peer->hello.fire = request_hello_limit;
	peer->stalled.fire = stall_limit;
	peer->reap.fire = free_peer;
	request_peer_came(peer);
	peer->who = who;
	STAILQ_INIT(&peer->queue);
	LIST_INSERT_HEAD(&peers, peer, link);
	peers_open++;
	status_count_connection(STATUS_ACCEPTED);
	loop_timer_set(&peer->hello, HELLO_MS);
	if (loop_watch(&peer->watch, EPOLLIN))
		drop_peer(peer, "it cannot be watched");
}

void peers_init(gid_t group)
{
	admitted_group = group;
}

void peers_each(void (*call)(struct peer *peer))
{
	struct peer *peer, *next;

	for (peer = LIST_FIRST(&peers); peer; peer = next) {
		next = LIST_NEXT(peer, link); /* a peer that is closed in here is freed later */
		call(peer);
	}
}

unsigned peer_count(void)
{
	return peers_open;
}
