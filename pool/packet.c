// SPDX-License-Identifier: MIT
/*
 * Packets on the keeper's end of a channel to a shim (wire/channel.h), and the descriptors that come and go with
 * them.
 */
#include "packet.h"

#include <errno.h>
#include <sys/pidfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "descriptors.h"
#include "rights.h"

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
	struct cudapool_channel_header *h = message;
	int err;

	*h = (struct cudapool_channel_header){
		.magic = CUDAPOOL_CHANNEL_MAGIC, .type = type, .length = (uint16_t)size};
	err = rights_send(fd, message, size, fds, count, MSG_DONTWAIT);
	/* ETOOMANYREFS: too many descriptors are under way from us, here or to the worker. */
	return err == -ENOBUFS || err == -EINTR || err == -ETOOMANYREFS ? -EAGAIN : err;
}

int packet_receive(int fd, union packet *packet, int fds[CUDAPOOL_CHANNEL_BATCH], unsigned *count)
{
	struct rights came = {.fds = fds, .most = CUDAPOOL_CHANNEL_BATCH};
	ssize_t n = rights_receive(fd, packet, sizeof(*packet), &came, MSG_DONTWAIT);

	*count = 0;
	/*
	 * ECONNRESET: it closed with something unread. That is said once, and before its last words, which come next.
	 */
	if (n == -EAGAIN || n == -EINTR || n == -ECONNRESET)
		return -EAGAIN;
	if (n <= 0)
		n = 0; /* closed; a message of no bytes counts as that */
	else if (n > (ssize_t)sizeof(*packet) || came.lost)
		n = -EMSGSIZE;
	else if ((size_t)n < sizeof(packet->h) || packet->h.magic != CUDAPOOL_CHANNEL_MAGIC || packet->h.length != n)
		n = -EPROTO;
	if (n > 0)
		*count = came.count;
	else
		packet_close_all(fds, came.count);
	return (int)n;
}

void packet_close_all(const int *fds, unsigned count)
{
	descriptors_close(fds, count, NULL, NULL);
}
