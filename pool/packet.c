// SPDX-License-Identifier: MIT
/*
 * Packets on the keeper's end of a channel to a shim (wire/channel.h), and the descriptors that come and go with
 * them.
 */
#include "packet.h"

#include <errno.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "descriptors.h"

union control {
	struct cmsghdr align;
	char bytes[CMSG_SPACE(CUDAPOOL_CHANNEL_BATCH * sizeof(int))];
};

/* A socket pair that this very process made, and no other kind of descriptor that it happens to have, or was given. */
static bool is_end(const struct process *process, int fd)
{
	int type = 0, domain = 0, listens = 1;
	struct ucred creator = {.pid = 0};
	socklen_t size = sizeof(int), creator_size = sizeof(creator);

	return !getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &size) && domain == AF_UNIX &&
	       !getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size) && type == SOCK_SEQPACKET &&
	       !getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &size) && !listens &&
	       !getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &creator, &creator_size) && creator.pid == process->pid;
}

int packet_take_end(const struct process *process, int number)
{
	int fd = number < 0 ? -1 : pidfd_getfd(process->fd, number, 0);

	if (fd < 0)
		return number < 0 ? -EBADF : -errno;
	if (is_end(process, fd))
		return fd;
	packet_close_all(&fd, 1);
	return -EPROTO;
}

int packet_send(int fd, enum cudapool_channel_type type, void *message, size_t size, const int *fds, unsigned count)
{
	struct iovec iov = {.iov_base = message, .iov_len = size};
	struct msghdr header = {.msg_iov = &iov, .msg_iovlen = 1};
	struct cudapool_channel_header *h = message;
	struct cmsghdr *cmsg;
	union control control;

	*h = (struct cudapool_channel_header){
		.magic = CUDAPOOL_CHANNEL_MAGIC, .type = type, .length = (uint16_t)size};
	if (count) {
		memset(&control, 0, sizeof(control));
		header.msg_control = &control;
		header.msg_controllen = CMSG_SPACE(count * sizeof(int));
		cmsg = CMSG_FIRSTHDR(&header);
		cmsg->cmsg_level = SOL_SOCKET;
		cmsg->cmsg_type = SCM_RIGHTS;
		cmsg->cmsg_len = CMSG_LEN(count * sizeof(int));
		memcpy(CMSG_DATA(cmsg), fds, count * sizeof(int));
	}
	if (sendmsg(fd, &header, MSG_DONTWAIT | MSG_NOSIGNAL) == (ssize_t)size)
		return 0;
	/* ETOOMANYREFS: too many descriptors are under way from us, here or to the worker. */
	return errno == EAGAIN || errno == ENOBUFS || errno == EINTR || errno == ETOOMANYREFS ? -EAGAIN : -errno;
}

/* The descriptors that came. The kernel joins them into one message, and there is no room for more than a batch. */
static unsigned descriptors_of(struct msghdr *header, int fds[CUDAPOOL_CHANNEL_BATCH])
{
	struct cmsghdr *cmsg;
	unsigned count = 0;

	for (cmsg = CMSG_FIRSTHDR(header); cmsg; cmsg = CMSG_NXTHDR(header, cmsg))
		if (cmsg->cmsg_level == SOL_SOCKET && cmsg->cmsg_type == SCM_RIGHTS) {
			count = (unsigned)((cmsg->cmsg_len - CMSG_LEN(0)) / sizeof(int));
			memcpy(fds, CMSG_DATA(cmsg), count * sizeof(int));
		}
	return count;
}

int packet_receive(int fd, union packet *packet, int fds[CUDAPOOL_CHANNEL_BATCH], unsigned *count)
{
	union control control;
	struct iovec iov = {.iov_base = packet, .iov_len = sizeof(*packet)};
	struct msghdr header = {
		.msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control)};
	ssize_t n = recvmsg(fd, &header, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	int err = 0;

	*count = 0;
	/*
	 * ECONNRESET: it closed with something unread. That is said once, and before its last words, which come next.
	 */
	if (n < 0 && (errno == EAGAIN || errno == EINTR || errno == ECONNRESET))
		return -EAGAIN;
	if (n <= 0)
		return 0;
	*count = descriptors_of(&header, fds);
	if (header.msg_flags & (MSG_TRUNC | MSG_CTRUNC))
		err = -EMSGSIZE;
	else if ((size_t)n < sizeof(packet->h) || packet->h.magic != CUDAPOOL_CHANNEL_MAGIC || packet->h.length != n)
		err = -EPROTO;
	if (!err)
		return (int)n;
	packet_close_all(fds, *count);
	*count = 0;
	return err;
}

void packet_close_all(const int *fds, unsigned count)
{
	descriptors_close(fds, count, NULL, NULL);
}
