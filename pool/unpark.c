// SPDX-License-Identifier: MIT
/* Giving memory to a shim: batches of pieces, each let go of while the shim copies the next one. */
#include <errno.h>
#include <string.h>

#include "packet.h"
#include "park_internal.h"

/* How many pieces, of `count`, are together no more than one of `parts` of what copying has room for (channel.h). */
static uint32_t fitting(const struct cudapool_channel_piece *piece, uint32_t count, unsigned parts)
{
	uint64_t room = CUDAPOOL_CHANNEL_BATCH_BYTES / parts;
	uint32_t i;

	for (i = 0; i < count && i < CUDAPOOL_CHANNEL_BATCH / parts && piece[i].bytes <= room; i++)
		room -= piece[i].bytes;
	return i;
}

/* How many pieces go into the next batch: half of what there is room for, so that another one can be on its way. */
static uint32_t next_batch(const struct parking *parking)
{
	uint32_t count = fitting(parking->gift->piece + parking->next, parking->pieces - parking->next, 2);

	return count ? count : 1;
}

void parking_send_batch(struct parking *parking)
{
	const struct store_gift *gift = parking->gift;
	struct cudapool_channel_pieces message = {.first = parking->next, .count = next_batch(parking)};
	size_t size = offsetof(struct cudapool_channel_pieces, piece) + message.count * sizeof(message.piece[0]);
	int err;

	parking->sent = message.first + message.count;
	memcpy(message.piece, gift->piece + message.first, message.count * sizeof(message.piece[0]));
	parking->step = PARKING_PIECES;
	err = packet_send(parking->channel.fd, CUDAPOOL_CHANNEL_PIECES, &message, size, gift->fds + message.first,
			  message.count);
	if (err == -EAGAIN) {
		parking->step = PARKING_SEND;
		loop_timer_set(&parking->look, 1);
	}
	/* Another error: it has closed, perhaps after saying why. That is read next. */
}

/*
 * The store lets go of what the shim has copied, and the driver needs about as long to free that as to copy it. So the
 * shim has the next batch meanwhile, if there is room for both; what follows waits until the first of them is free.
 */
static void let_go(struct parking *parking)
{
	uint32_t first = parking->let_go, both = parking->next + next_batch(parking) - first;

	parking->let_go = parking->next;
	parking->freeing = true;
	if (fitting(parking->gift->piece + first, both, 1) == both)
		parking_send_batch(parking);
	store_passed(parking->gift, parking->let_go, &parking->passed);
}

static void freed(struct store_waiter *waiter, int error, const char *text)
{
	struct parking *parking = container_of(waiter, struct parking, passed);

	parking->freeing = false;
	if (parking->step != PARKING_PASS)
		return; /* the shim has not copied the next batch yet */
	if (parking->let_go == parking->next)
		parking_send_batch(parking);
	else
		let_go(parking);
}

void parking_give(struct parking *parking)
{
	struct cudapool_channel_begin begin = parking->gift->begin;

	parking->pieces = parking->gift->pieces;
	parking->passed = (struct store_waiter){.done = freed};
	parking->step = PARKING_PIECES;
	memcpy(begin.token, parking->token, sizeof(begin.token));
	packet_send(parking->channel.fd, CUDAPOOL_CHANNEL_BEGIN, &begin, sizeof(begin), NULL, 0);
	if (parking->pieces)
		parking_send_batch(parking);
	else
		parking->step = PARKING_END;
}

void parking_ack_came(struct parking *parking, const struct cudapool_channel_ack *ack)
{
	uint32_t i;

	if (ack->next != parking->sent) {
		parking_fail_protocol(parking, "acknowledges what was not sent");
		return;
	}
	for (i = parking->next; i < ack->next; i++)
		parking->bytes += parking->gift->piece[i].bytes;
	parking->next = ack->next;
	if (parking->next == parking->pieces) {
		parking->step = PARKING_END;
		return;
	}
	parking->step = PARKING_PASS;
	if (!parking->freeing)
		let_go(parking);
}
