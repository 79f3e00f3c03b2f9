// SPDX-License-Identifier: MIT
/* Descriptors that go along with a message on a unix socket (SCM_RIGHTS). Receiving them is each room's own. */
#ifndef CUDAPOOL_WIRE_ATTACH_H
#define CUDAPOOL_WIRE_ATTACH_H

#include <string.h>
#include <sys/socket.h>

#define CUDAPOOL_ATTACHED_MOST 253 /* in one message: the kernel's SCM_MAX_FD */

/* Where a message has them while it is being sent or received. */
union cudapool_attached {
	struct cmsghdr header;
	char space[CMSG_SPACE(sizeof(int) * CUDAPOOL_ATTACHED_MOST)];
};

/* Has these go along with a message that is about to be sent; they stay the caller's. 0: none. */
static inline void cudapool_attach(struct msghdr *message, union cudapool_attached *attached, const int *fds,
				   unsigned count)
{
	if (!count)
		return;
	memset(attached, 0, CMSG_SPACE(sizeof(int) * count));
	attached->header.cmsg_level = SOL_SOCKET;
	attached->header.cmsg_type = SCM_RIGHTS;
	attached->header.cmsg_len = CMSG_LEN(sizeof(int) * count);
	memcpy(CMSG_DATA(&attached->header), fds, sizeof(int) * count);
	message->msg_control = attached;
	message->msg_controllen = CMSG_SPACE(sizeof(int) * count);
}

#endif
