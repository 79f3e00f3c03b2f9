// SPDX-License-Identifier: MIT
/* Messages with descriptors, sent and received as a whole. */
#include "rights.h"

#include <errno.h>
#include <unistd.h>

int rights_send(int socket, const void *message, size_t size, const int *fds, unsigned count, int flags)
{
	struct iovec iov = {(void *)message, size};
	struct msghdr header = {.msg_iov = &iov, .msg_iovlen = 1};
	union cudapool_attached control;

	cudapool_attach(&header, &control, fds, count);
	return sendmsg(socket, &header, flags | MSG_NOSIGNAL) < 0 ? -errno : 0;
}

ssize_t rights_receive(int socket, void *message, size_t size, struct rights *came, int flags)
{
	union cudapool_attached control;
	struct iovec iov = {message, size};
	/* Not CMSG_SPACE(), in whose padding the kernel finds room for one more. */
	struct msghdr header = {.msg_iov = &iov,
				.msg_iovlen = 1,
				.msg_control = &control,
				.msg_controllen = CMSG_LEN(came->most * sizeof(*came->fds))};
	ssize_t n = recvmsg(socket, &header, flags | MSG_TRUNC | MSG_CMSG_CLOEXEC);
	int err = errno;
	struct cmsghdr *cmsg;

	came->count = 0;
	came->lost = false;
	if (n < 0)
		return -err;
	came->lost = header.msg_flags & MSG_CTRUNC;
	cmsg = CMSG_FIRSTHDR(&header); /* the kernel joins all of them in one */
	if (cmsg && cmsg->cmsg_level == SOL_SOCKET && cmsg->cmsg_type == SCM_RIGHTS) {
		came->count = (unsigned)((cmsg->cmsg_len - CMSG_LEN(0)) / sizeof(*came->fds));
		memcpy(came->fds, CMSG_DATA(cmsg), came->count * sizeof(*came->fds));
	}
	return n;
}

void rights_close(const int *fds, unsigned count)
{
	while (count)
		close(fds[--count]);
}
