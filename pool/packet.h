// SPDX-License-Identifier: MIT
/*
 * Packets on the keeper's end of a channel to a shim (wire/channel.h), and the descriptors that come and go with
 * them.
 */
#ifndef CUDAPOOL_POOL_PACKET_H
#define CUDAPOOL_POOL_PACKET_H

#include <stdbool.h>
#include <stddef.h>

#include "channel.h"
#include "process.h"

union packet {
	struct cudapool_channel_header h;
	struct cudapool_channel_begin begin;
	struct cudapool_channel_pieces pieces;
	struct cudapool_channel_ack ack;
	struct cudapool_channel_end end;
};

/*
 * Takes descriptor `number` of the process as the pool's end of a channel; the caller owns it. Only an end of a
 * seqpacket pair that this very process has made will do. -ESRCH: the process ended; -EPROTO: it is something else;
 * -EBADF and so on.
 */
int packet_take_end(const struct process *process, int number);

/*
 * Sends one message; fills in its header. `count` descriptors go along, which stay the caller's. 0; -EAGAIN: later;
 * another negative errno: the shim has closed its end.
 */
int packet_send(int fd, enum cudapool_channel_type type, void *message, size_t size, const int *fds, unsigned count);

/*
 * Receives one message: its size, and *count descriptors (at most CUDAPOOL_CHANNEL_BATCH), which the caller owns. 0:
 * the shim has closed; -EAGAIN: nothing is there; -EMSGSIZE: too long, or with descriptors that could not be received
 * (those that were are closed); -EPROTO: its header is wrong.
 */
int packet_receive(int fd, union packet *packet, int fds[CUDAPOOL_CHANNEL_BATCH], unsigned *count);

/* Beside the loop: what a shim has sent may take any time to be closed. */
void packet_close_all(const int *fds, unsigned count);

#endif
