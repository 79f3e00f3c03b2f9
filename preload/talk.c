// SPDX-License-Identifier: MIT
/* The shim's side of the channel (wire/channel.h): messages with descriptors, by system calls alone. */
#include <errno.h>
#include <poll.h>
#include <stdbool.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "attach.h"
#include "gate.h"
#include "talk.h"

#define TAKE_US 50000 /* a pool takes its end of the channel within a few milliseconds */
#define LOOK_US 5000  /* how often it is looked whether it has */

static long result(long r)
{
	return r < 0 ? -errno : r;
}

int cudapool_talk_open(struct talk *talk, int32_t *offered)
{
	int fds[2];
	long err = result(syscall(SYS_socketpair, AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds));

	if (err < 0)
		return err;
	talk->fd = fds[0];
	talk->theirs = fds[1];
	talk->offered = offered;
	__atomic_store_n(offered, talk->theirs, __ATOMIC_RELEASE);
	return 0;
}

void cudapool_close_all(const int *fds, unsigned count)
{
	unsigned i;

	for (i = 0; i < count; i++)
		syscall(SYS_close, fds[i]);
}

static void close_theirs(struct talk *talk)
{
	if (talk->theirs >= 0)
		syscall(SYS_close, talk->theirs);
	talk->theirs = -1;
}

/* The pool has its end. Ours is closed then: with it open, the socket would never say that the pool is gone. */
static bool taken(struct talk *talk)
{
	if (talk->theirs >= 0 && __atomic_load_n(talk->offered, __ATOMIC_ACQUIRE) != talk->theirs)
		close_theirs(talk);
	return talk->theirs < 0;
}

/* Until the socket is ready for it, or at its end. */
static int wait_for(struct talk *talk, short events)
{
	struct pollfd poll = {.fd = talk->fd, .events = events};
	struct timespec limit;
	uint64_t now, left, step;
	long r;

	do {
		now = cudapool_now_us();
		left = now < talk->deadline_us ? talk->deadline_us - now : 0;
		step = left < LOOK_US || taken(talk) ? left : LOOK_US;
		limit = (struct timespec){step / 1000000, step % 1000000 * 1000};
		r = result(syscall(SYS_ppoll, &poll, 1, &limit, NULL, 0));
	} while (r == -EINTR || (r == 0 && step < left));
	return r < 0 ? (int)r : r == 0 ? -ETIMEDOUT : 0;
}

int cudapool_talk_send(struct talk *talk, enum cudapool_channel_type type, void *message, size_t length, const int *fds,
		       unsigned count)
{
	struct cudapool_channel_header *h = message;
	struct iovec part = {message, length};
	struct msghdr msg = {.msg_iov = &part, .msg_iovlen = 1};
	union cudapool_attached control;
	long r;

	*h = (struct cudapool_channel_header){CUDAPOOL_CHANNEL_MAGIC, type, length};
	cudapool_attach(&msg, &control, fds, count);
	for (;;) {
		r = result(syscall(SYS_sendmsg, talk->fd, &msg, MSG_NOSIGNAL | MSG_DONTWAIT));
		if (r >= 0)
			return 0;
		if (r != -EAGAIN && r != -EINTR)
			return r == -ECONNRESET ? -EPIPE : (int)r;
		r = wait_for(talk, POLLOUT);
		if (r < 0)
			return r;
	}
}

/* The descriptors of a message, or none. 0; -EMFILE: some found no place here; -EPROTO: there are too many. */
static int take_fds(struct msghdr *msg, int *fds, unsigned *count)
{
	struct cmsghdr *c;
	unsigned taken = 0, n, i;
	bool too_many = false;
	int fd;

	for (c = CMSG_FIRSTHDR(msg); c; c = CMSG_NXTHDR(msg, c)) {
		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		n = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
		for (i = 0; i < n; i++) {
			memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof(fd));
			if (fds && taken < CUDAPOOL_CHANNEL_BATCH) {
				fds[taken++] = fd;
			} else {
				cudapool_close_all(&fd, 1);
				too_many = true;
			}
		}
	}
	if (too_many || msg->msg_flags & (MSG_CTRUNC | MSG_TRUNC)) {
		cudapool_close_all(fds, taken);
		return fds && !too_many && msg->msg_flags & MSG_CTRUNC ? -EMFILE : -EPROTO;
	}
	if (count)
		*count = taken;
	return 0;
}

int cudapool_talk_receive(struct talk *talk, enum cudapool_channel_type type, void *message, size_t least, size_t size,
			  size_t *length, int *fds, unsigned *count)
{
	const struct cudapool_channel_header *h = message;
	struct iovec part = {message, size};
	union cudapool_attached control;
	struct msghdr msg = {
		.msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control)};
	int err;
	long r;

	if (count)
		*count = 0;
	do {
		r = wait_for(talk, POLLIN);
		if (r < 0)
			return r;
		r = result(syscall(SYS_recvmsg, talk->fd, &msg, MSG_CMSG_CLOEXEC | MSG_DONTWAIT));
	} while (r == -EAGAIN || r == -EINTR);
	if (r <= 0)
		return r == 0 || r == -ECONNRESET ? -EPIPE : (int)r;
	close_theirs(talk);
	err = take_fds(&msg, fds, count);
	if (err)
		return err;
	if ((size_t)r >= least && h->magic == CUDAPOOL_CHANNEL_MAGIC && h->length == r && h->type == type) {
		*length = r;
		return 0;
	}
	if (fds)
		cudapool_close_all(fds, *count);
	return (size_t)r >= sizeof(*h) && h->type == CUDAPOOL_CHANNEL_END ? -EPIPE : -EPROTO;
}

/* What has come and was not read would make the kernel throw away what we said last. */
void cudapool_talk_close(struct talk *talk)
{
	struct cudapool_channel_pieces unread;
	int fds[CUDAPOOL_CHANNEL_BATCH], err;
	unsigned count, left;
	uint64_t end = cudapool_now_us() + TAKE_US;
	size_t length;

	/* What ended before the pool took its end: it is told of the end only if there is something left to take. */
	while (!taken(talk) && cudapool_now_us() < end)
		cudapool_sleep_us(LOOK_US);
	talk->deadline_us = 0;
	for (left = 16, err = 0; left && err != -EPIPE && err != -ETIMEDOUT; left--) {
		err = cudapool_talk_receive(talk, CUDAPOOL_CHANNEL_PIECES, &unread, sizeof(unread.h), sizeof(unread),
					    &length, fds, &count);
		if (!err)
			cudapool_close_all(fds, count);
	}
	close_theirs(talk);
	syscall(SYS_close, talk->fd);
	__atomic_store_n(talk->offered, -1, __ATOMIC_RELEASE); /* not before: a pool may only now come to take it */
}
