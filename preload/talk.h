// SPDX-License-Identifier: MIT
/* The shim's side of the channel (wire/channel.h): messages with descriptors, by system calls alone. */
#ifndef CUDAPOOL_PRELOAD_TALK_H
#define CUDAPOOL_PRELOAD_TALK_H

#include <stddef.h>
#include <stdint.h>

#include "channel.h"

struct talk {
	int fd;		      /* ours */
	int theirs;	      /* the pool's end, until the pool has taken it, or is heard from; then -1 */
	int32_t *offered;     /* where the pool finds the number of its end, and writes another one when it has taken it */
	uint64_t deadline_us; /* of all that follows */
};

/* Offers the pool its end there, on the page. 0 or a negative errno. */
int cudapool_talk_open(struct talk *talk, int32_t *offered);
/* Takes the offer back, too. */
void cudapool_talk_close(struct talk *talk);

/*
 * Sends one message, whose header this fills in, with copies of `count` descriptors, which stay the caller's. 0;
 * -ETIMEDOUT; -EPIPE: the pool is gone; another negative errno.
 */
int cudapool_talk_send(struct talk *talk, enum cudapool_channel_type type, void *message, size_t length, const int *fds,
		       unsigned count);

/*
 * Receives one message of the given type and at most `size` bytes, *length long, at least `least`. fds has room
 * for CUDAPOOL_CHANNEL_BATCH, *count says how many came, and they are the caller's; NULL: none may come. 0; -ETIMEDOUT;
 * -EPIPE: the pool is gone, or gave up; -EMFILE: this process has no room for so many descriptors; -EPROTO: something
 * else came.
 */
int cudapool_talk_receive(struct talk *talk, enum cudapool_channel_type type, void *message, size_t least, size_t size,
			  size_t *length, int *fds, unsigned *count);

void cudapool_close_all(const int *fds, unsigned count);

#endif
