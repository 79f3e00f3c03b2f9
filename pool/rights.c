// SPDX-License-Identifier: MIT
/* Descriptors that go along with a message on a unix socket (SCM_RIGHTS). */
#include "rights.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

void rights_attach(struct msghdr *header, union rights_control *control, const int *fds, unsigned count)
{
	struct cmsghdr *cmsg;

	if (!count)
		return;
	memset(control, 0, sizeof(*control));
	header->msg_control = control;
	header->msg_controllen = CMSG_SPACE(count * sizeof(*fds));
	cmsg = CMSG_FIRSTHDR(header);
	cmsg->cmsg_level = SOL_SOCKET;
	cmsg->cmsg_type = SCM_RIGHTS;
	cmsg->cmsg_len = CMSG_LEN(count * sizeof(*fds));
	memcpy(CMSG_DATA(cmsg), fds, count * sizeof(*fds));
}

int rights_send(int socket, const void *message, size_t size, const int *fds, unsigned count, int flags)
{
	struct iovec iov = {(void *)message, size};
	struct msghdr header = {.msg_iov = &iov, .msg_iovlen = 1};
	union rights_control control;

	rights_attach(&header, &control, fds, count);
	return sendmsg(socket, &header, flags | MSG_NOSIGNAL) < 0 ? -errno : 0;
}

ssize_t rights_receive(int socket, void *message, size_t size, struct rights *came, int flags)
{
	union rights_control control;
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
