// SPDX-License-Identifier: MIT
/* Descriptors that go along with a message on a unix socket (SCM_RIGHTS). */
#ifndef CUDAPOOL_POOL_RIGHTS_H
#define CUDAPOOL_POOL_RIGHTS_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/socket.h>
#include <sys/types.h>

#define RIGHTS_MOST 253 /* descriptors in one message: the kernel's SCM_MAX_FD */

/* Where a message has its descriptors while it is being sent or received. */
union rights_control {
	struct cmsghdr align;
	char bytes[CMSG_SPACE(RIGHTS_MOST * sizeof(int))];
};

/* What came with a message. */
struct rights {
	int *fds;	/* room for `most`, which is at most RIGHTS_MOST */
	unsigned most;
	unsigned count; /* that came: close-on-exec, and the receiver's to close, whatever the message is worth */
	bool lost;	/* there were more than `most`, or than this process may have; those are closed */
};

/* Has `count` descriptors go along with a message that is about to be sent; they stay the caller's. 0: none. */
void rights_attach(struct msghdr *header, union rights_control *control, const int *fds, unsigned count);

/* Sends one message to a socket that keeps messages apart, so that it goes as a whole. 0 or sendmsg()'s -errno. */
int rights_send(int socket, const void *message, size_t size, const int *fds, unsigned count, int flags);

/*
 * Receives one message: its size, which is more than `size` where it is longer and was cut off; 0 at the end; or
 * recvmsg()'s -errno, and then nothing came along.
 */
ssize_t rights_receive(int socket, void *message, size_t size, struct rights *came, int flags);

void rights_close(const int *fds, unsigned count);

#endif
