// SPDX-License-Identifier: MIT
/* Messages with descriptors (wire/attach.h), sent and received as a whole. */
#ifndef CUDAPOOL_POOL_RIGHTS_H
#define CUDAPOOL_POOL_RIGHTS_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#include "attach.h"

/* What came with a message. */
struct rights {
	int *fds;	/* room for `most`, which is at most CUDAPOOL_ATTACHED_MOST */
	unsigned most;
	unsigned count; /* that came: close-on-exec, and the receiver's to close, whatever the message is worth */
	bool lost;	/* there were more than `most`, or than this process may have; those are closed */
};

/* Sends one message to a socket that keeps messages apart, so that it goes as a whole. 0 or sendmsg()'s -errno. */
int rights_send(int socket, const void *message, size_t size, const int *fds, unsigned count, int flags);

/*
 * Receives one message: its size, which is more than `size` where it is longer and was cut off; 0 at the end; or
 * recvmsg()'s -errno, and then nothing came along.
 */
ssize_t rights_receive(int socket, void *message, size_t size, struct rights *came, int flags);

void rights_close(const int *fds, unsigned count);

#endif
