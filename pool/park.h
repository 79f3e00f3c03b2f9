// SPDX-License-Identifier: MIT
/* One park or unpark with a shim, over the control page and a channel (wire/channel.h), without ever waiting. */
#ifndef CUDAPOOL_POOL_PARK_H
#define CUDAPOOL_POOL_PARK_H

#include <stdbool.h>
#include <stdint.h>

#include "channel.h"
#include "loop.h"
#include "process.h"
#include "shim_page.h"
#include "store.h"

/* Embedded in what asked for it, which zeroes it and fills in the first part. */
struct parking {
	const struct process *process; /* the caller's; stays open until done() */
	struct park *park;	       /* to park: of store_begin(), taken over */
	struct store_gift *gift; /* to unpark: one that store_give() made ready; its token is the park's */
	const uint8_t *token;
	unsigned limit_ms; /* for all of it; the shim is told a little less, so that it says what took so long */
	/*
	 * To park: everything is there and has been checked, GO comes next. A negative errno ends it (`text` may say
	 * why): it was not written down, so it must not be taken.
	 */
	int (*before_go)(struct parking *parking);
	/* Called once, never from within a function of this header. `parking` may be freed or started anew in it. */
	void (*done)(struct parking *parking);

	/*
	 * The outcome, valid in done(). To park: 0, parked. Otherwise the shim has gone back, and the park is
	 * abandoned; unless `taken`: GO was sent, so the memory is the store's and has to be given back. To unpark:
	 * 0, or nothing has changed.
	 */
	int error;
	bool refused; /* nothing was begun: it cannot be parked as it is, and `text` says why */
	bool taken;
	uint64_t bytes;			 /* parked or unparked */
	uint64_t left[CUDAPOOL_LEFT_KINDS]; /* bytes left to the driver; valid from parking_open() on */
	uint64_t left_bytes;		 /* of all kinds */
	struct cudapool_channel_end end; /* what the shim said last: the phases' times */
	bool ended;			 /* it did */
	char text[CUDAPOOL_TEXT_LEN];

	/* park.c's and unpark.c's own. */
	enum parking_step {
		PARKING_IDLE,
		PARKING_POST,	/* until the page is ours to write to */
		PARKING_ACK,	/* until the shim has acknowledged the command */
		PARKING_BEGIN,	/* a message of this kind is expected */
		PARKING_PIECES,
		PARKING_DEPOSIT, /* until all pieces are with systemd, too */
		PARKING_END,
		PARKING_SEND,	/* a message could not be sent yet */
		PARKING_PASS,	/* until there is room for copies of the next batch */
		PARKING_REPORT, /* done() is called next */
	} step;
	struct cudapool_shim shim;
	struct loop_timer look, limit;
	struct loop_watch channel;
	struct store_waiter deposit;
	uint64_t started_us;
	uint32_t seq;
	uint32_t pieces, next; /* of all; that the other side has (or we have) */
	uint32_t sent; /* to unpark: that it has when it acknowledges the last batch */
	uint32_t let_go; /* to unpark: that the store has been told of */
	bool freeing;	 /* and has not freed all of yet */
	struct store_waiter passed;
	uint32_t devices;
	uint64_t device_left[CUDAPOOL_CHANNEL_DEVICES]; /* as BEGIN said */
	uint64_t announced; /* bytes that BEGIN spoke of */
};

/*
 * Looks for the shim. 0: parking_start() makes sense; or `refused` with a negative errno and `text`: no shim, another
 * version of it. Where it returned 0, one of the next two follows.
 */
int parking_open(struct parking *parking);
void parking_close(struct parking *parking);
void parking_start(struct parking *parking);

/*
 * Ends one that is under way and calls nobody: to park before GO, the shim goes back by itself and the park is
 * abandoned. One that has sent GO goes on and calls done(): false.
 */
bool parking_cancel(struct parking *parking);

#endif
