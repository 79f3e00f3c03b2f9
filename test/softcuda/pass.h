// SPDX-License-Identifier: MIT
/* A descriptor from one process to another. */
#ifndef CUDAPOOL_TEST_SOFTCUDA_PASS_H
#define CUDAPOOL_TEST_SOFTCUDA_PASS_H

#include <stdbool.h>

#include "attach.h"

static inline bool pass(int socket, int fd)
{
	char byte = 0;
	struct iovec data = {&byte, 1};
	struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1};
	union cudapool_attached control;

	cudapool_attach(&message, &control, &fd, 1);
	return sendmsg(socket, &message, 0) == 1;
}

/* Of what was passed; -1: none came. */
static inline int passed(int socket)
{
	char byte;
	struct iovec data = {&byte, 1};
	union cudapool_attached control;
	struct msghdr message = {
		.msg_iov = &data, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control)};
	int fd = -1;

	if (recvmsg(socket, &message, MSG_CMSG_CLOEXEC) == 1 && CMSG_FIRSTHDR(&message))
		memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof(fd));
	return fd;
}

#endif
