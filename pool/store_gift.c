// SPDX-License-Identifier: MIT
/* Gifts: parked memory on its way to a process, by moving, copying or loading. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "log.h"
#include "store_internal.h"

/* One gift from claim to end. */
struct claim {
	struct store_gift *gift;
	struct park *park;
	struct memory *memory; /* what will be given; NULL: nothing yet */
	struct room driver;    /* for what the driver restores itself */
	enum cudapool_hot hot;
	bool returning;
	bool offered;	       /* somebody may have it by now */
	struct store_waiter step;
	struct waiters asker;
	uint64_t started_us;
};

static void answer(struct claim *claim, int error, const char *text)
{
	waiters_done(&claim->asker, error, text);
}

static void when(struct waiters *waiters, struct claim *claim, void (*then)(struct store_waiter *, int, const char *))
{
	claim->step.done = then;
	waiters_add(waiters, &claim->step);
}

static struct claim *new_claim(struct store_gift *gift, struct park *park)
{
	struct claim *claim = calloc(1, sizeof(*claim));

	*gift = (struct store_gift){.park = park, .own = claim};
	if (!claim)
		return NULL;
	claim->gift = gift;
	claim->park = park;
	claim->started_us = loop_now_us();
	park->gifts++;
	park->used_ms = loop_now_ms();
	gift->begin = (struct cudapool_channel_begin){
		.pieces = park->header.pieces,
		.devices = park->header.devices,
		.bytes = park->header.bytes,
	};
	memcpy(gift->begin.token, park->header.token, sizeof(gift->begin.token));
	memcpy(gift->begin.uuid, park->header.uuid, sizeof(gift->begin.uuid));
	return claim;
}

/* ---- ending ------------------------------------------------------------------------------------ */

/* What becomes of memory that nobody took. */
static void keep_or_free(struct claim *claim)
{
	struct memory *memory = claim->memory;
	struct park *park = claim->park;
	bool keep = memory && memory->ready && !memory->passed && !park->hot && park->life != PARK_DROPPED;

	if (claim->returning)
		memory->exposed |= claim->offered; /* still its own process's, and of nobody else any more */
	else if (claim->offered || claim->hot == CUDAPOOL_HOT_OFF || claim->gift->path == CUDAPOOL_PATH_HOT_COPY)
		keep = false;
	if (keep)
		park->hot = memory;
	else
		memory_free(memory);
}

static void end_claim(struct claim *claim, bool taken)
{
	struct store_gift *gift = claim->gift;
	struct park *park = claim->park;

	gift->own = NULL;
	gift->pieces = 0;
	gift->piece = NULL;
	gift->fds = NULL;
	store_cancel(&claim->step);
	room_release(&claim->driver);
	park->used_ms = loop_now_ms();
	park->gifts--;
	if (taken) {
		park->restores += !claim->returning;
		memory_free(claim->memory);
		if (claim->returning)
			park_returned(park);
	} else if (claim->memory) {
		keep_or_free(claim);
	}
	free(claim);
	rooms_enforce();
	park_settle(park);
}

/* There is no memory for it: the gift is over, as if store_gave() had been called. */
static void refuse(struct claim *claim, int error, const char *text)
{
	struct waiters asker = claim->asker;
	char copy[CUDAPOOL_TEXT_LEN];

	snprintf(copy, sizeof(copy), "%s", text);
	end_claim(claim, false);
	waiters_done(&asker, error, copy);
}

/* ---- claiming --------------------------------------------------------------------------------- */

static void make_room_for_driver(struct claim *claim);

static void take_hot(struct claim *claim)
{
	claim->memory = claim->park->hot;
	claim->park->hot = NULL;
	claim->gift->path = CUDAPOOL_PATH_HOT_MOVE;
}

static bool has_idle_master(const struct claim *claim)
{
	return claim->park->hot && !claim->park->hot->users;
}

static void driver_has_room(struct room *room, int error, const char *text)
{
	struct claim *claim = container_of(room, struct claim, driver);

	claim->gift->claim_us = loop_now_us() - claim->started_us;
	if (!error) {
		answer(claim, 0, "");
	} else if (error == -ENOMEM && has_idle_master(claim)) { /* it fits once, not twice */
		if (claim->gift->path == CUDAPOOL_PATH_HOT_COPY) {
			memory_free(claim->memory);
			take_hot(claim);
		} else {
			park_evict(claim->park);
		}
		make_room_for_driver(claim);
	} else {
		refuse(claim, error, text);
	}
}

/* The memory is there or being filled: now what the driver will want. */
static void make_room_for_driver(struct claim *claim)
{
	const struct image_header *header = &claim->park->header;
	struct need *need = &claim->driver.need;
	unsigned i;

	need->devices = header->devices;
	memcpy(need->uuid, header->uuid, sizeof(need->uuid));
	for (i = 0; i < header->devices; i++)
		need->bytes[i] = header->left[i] + STORE_MARGIN;
	claim->driver.for_park = claim->park;
	claim->driver.done = driver_has_room;
	room_ask(&claim->driver);
}


static void take_load(struct claim *claim)
{
	struct park *park = claim->park;

	if (park->early && park->early->error) {
		memory_free(park->early); /* it may go better now */
		park->early = NULL;
	}
	claim->memory = park->early ? park->early : memory_load(park);
	park->early = NULL;
	claim->gift->path = claim->returning ? CUDAPOOL_PATH_RETURNED : CUDAPOOL_PATH_LOADED;
}

static void await_load(struct claim *claim);

static void load_allocated(struct store_waiter *step, int error, const char *text)
{
	struct claim *claim = container_of(step, struct claim, step);

	if (!error) {
		make_room_for_driver(claim);
	} else if (error == -ENOMEM && has_idle_master(claim)) {
		park_evict(claim->park);
		memory_free(claim->memory);
		take_load(claim);
		await_load(claim);
	} else {
		refuse(claim, error, text);
	}
}

static void await_load(struct claim *claim)
{
	struct memory *memory = claim->memory;

	if (!memory)
		refuse(claim, -ENOMEM, "out of memory");
	else if (memory->error)
		load_allocated(&claim->step, memory->error, memory->text);
	else if (memory->ready || (memory->job.got == claim->park->header.pieces && memory->job.state == JOB_RUNNING))
		make_room_for_driver(claim);
	else
		when(&memory->allocated, claim, load_allocated);
}

static void claim_copied(struct store_waiter *step, int error, const char *text)
{
	struct claim *claim = container_of(step, struct claim, step);

	if (!error) {
		make_room_for_driver(claim);
		return;
	}
	memory_free(claim->memory);
	claim->memory = NULL;
	if (claim->park->hot && !claim->park->hot->users) {
		take_hot(claim);
		make_room_for_driver(claim);
		return;
	}
	take_load(claim);
	await_load(claim);
}

static bool wants_copy(const struct claim *claim)
{
	return claim->hot == CUDAPOOL_HOT_COPY || (claim->hot == CUDAPOOL_HOT_AUTO && claim->park->restores > 0);
}

void store_claim(struct store_gift *gift, struct park *park, enum cudapool_hot hot, struct store_waiter *waiter)
{
	struct claim *claim = new_claim(gift, park);

	if (!claim) {
		waiter->done(waiter, -ENOMEM, "out of memory");
		return;
	}
	claim->hot = pool_hot(hot);
	waiters_add(&claim->asker, waiter);
	if (park->hot && park->hot->exposed && !park->hot->users) {
		memory_free(park->hot); /* its own process may have written to it */
		park->hot = NULL;
	}
	if (park->life != PARK_SAVED) {
		/* -ENODATA would read as 'nothing is parked'. */
		refuse(claim, -EBUSY, park->text[0] ? park->text : "the image of its GPU memory is not complete");
		return;
	}
	if (!park->hot || !park->hot->ready || claim->hot == CUDAPOOL_HOT_OFF || park->hot->exposed) {
		take_load(claim);
		await_load(claim);
		return;
	}
	/* What copies are being made of cannot be given away. */
	if (wants_copy(claim) || park->hot->users) {
		claim->memory = memory_copy(park->hot);
		gift->path = CUDAPOOL_PATH_HOT_COPY;
		if (claim->memory)
			when(&claim->memory->filled, claim, claim_copied);
		else
			refuse(claim, -ENOMEM, "out of memory");
		return;
	}
	take_hot(claim);
	make_room_for_driver(claim);
}

void store_claim_used(struct store_gift *gift)
{
	struct claim *claim = gift->own;

	if (claim)
		room_release(&claim->driver);
}

/* Room for a process of which nothing is known. */
struct making {
	struct room room;
	struct waiters asker;
};

static void room_made(struct room *room, int error, const char *text)
{
	struct making *making = container_of(room, struct making, room);

	room_release(room);
	waiters_done(&making->asker, 0, "");
	free(making);
}

/* Each device on which something could be evicted. */
static void need_everywhere(struct need *need, uint64_t bytes)
{
	struct park *park;
	unsigned i, d;

	LIST_FOREACH(park, &parks, link)
		for (i = 0; park_evictable(park) && i < park->header.devices; i++) {
			for (d = 0; d < need->devices && !MATCHES(need->uuid[d], park->header.uuid[i]); d++)
				;
			if (d < need->devices || d == DEVICES)
				continue;
			memcpy(need->uuid[d], park->header.uuid[i], sizeof(need->uuid[d]));
			need->bytes[d] = bytes;
			need->devices++;
		}
}

void store_make_room(const struct process *process, struct store_waiter *waiter)
{
	struct making *making = calloc(1, sizeof(*making));
	long kb = process_rss_kb(process->pid);

	if (making && kb >= 0)
		need_everywhere(&making->room.need, (uint64_t)kb * 1024 + STORE_MARGIN);
	if (!making || !making->room.need.devices) {
		free(making);
		waiter->done(waiter, 0, "");
		return;
	}
	waiters_add(&making->asker, waiter);
	making->room.soon = true;
	making->room.done = room_made;
	room_ask(&making->room);
}

/* ---- giving ------------------------------------------------------------------------------------ */

static void offer(struct claim *claim)
{
	struct store_gift *gift = claim->gift;
	const struct park *park = claim->park;
	const struct memory *memory = claim->memory;

	static_assert(sizeof(*gift->piece) == sizeof(*park->piece), "a piece of an image is one of the channel");
	gift->pieces = park->header.pieces;
	gift->piece = (const struct cudapool_channel_piece *)park->piece;
	gift->fds = memory->fds;
	gift->load_us = memory->from == MEMORY_PARKED ? 0 : memory->took_us;
	claim->offered = true;
	answer(claim, 0, "");
}

static void memory_filled(struct store_waiter *step, int error, const char *text);

static void master_copied(struct store_waiter *step, int error, const char *text)
{
	struct claim *claim = container_of(step, struct claim, step);
	struct park *park = claim->park;

	if (!error) {
		offer(claim);
		return;
	}
	/* There was no room for two: the master goes itself, or the image is loaded once more. */
	memory_free(claim->memory);
	claim->memory = NULL;
	if (park->hot && !park->hot->users) {
		claim->memory = park->hot;
		park->hot = NULL;
		offer(claim);
		return;
	}
	take_load(claim);
	if (claim->memory)
		when(&claim->memory->filled, claim, memory_filled);
	else
		answer(claim, -ENOMEM, "out of memory");
}

static void memory_filled(struct store_waiter *step, int error, const char *text)
{
	struct claim *claim = container_of(step, struct claim, step);
	struct park *park = claim->park;
	struct memory *copy;

	if (error) {
		answer(claim, error, text);
		return;
	}
	/* It is restored again and again: keep what was loaded, and give a copy. */
	copy = claim->gift->path == CUDAPOOL_PATH_LOADED && wants_copy(claim) && !park->hot ? memory_copy(claim->memory)
											     : NULL;
	if (!copy) {
		offer(claim);
		return;
	}
	park->hot = claim->memory;
	park->hot_mode = claim->hot;
	claim->memory = copy;
	when(&copy->filled, claim, master_copied);
}

void store_give(struct store_gift *gift, struct store_waiter *waiter)
{
	struct claim *claim = gift->own;

	if (!claim) {
		waiter->done(waiter, -ENOMEM, "out of memory");
		return;
	}
	waiters_add(&claim->asker, waiter);
	room_release(&claim->driver);
	/* Loading may go better now; and what was passed on in part is not complete any more. */
	if (claim->memory && (claim->memory->error || claim->memory->passed)) {
		memory_free(claim->memory);
		claim->memory = NULL;
	}
	if (!claim->memory && claim->park->life == PARK_SAVED)
		take_load(claim);
	if (!claim->memory)
		answer(claim, -ENODATA, "its memory is gone");
	else if (claim->memory->ready)
		memory_filled(&claim->step, 0, "");
	else
		when(&claim->memory->filled, claim, memory_filled);
}

void store_passed(struct store_gift *gift, unsigned upto, struct store_waiter *waiter)
{
	struct claim *claim = gift->own;

	/* The pieces that were parked may be all there is of what goes back to its own process. */
	if (claim && !(claim->returning && claim->memory->from == MEMORY_PARKED) && !claim->memory->users &&
	    claim->park->life == PARK_SAVED && park_open_image(claim->park) >= 0)
		memory_pass(claim->memory, upto, waiter);
	else
		waiter->done(waiter, 0, "");
}

void store_gave(struct store_gift *gift, bool taken)
{
	if (gift->own)
		end_claim(gift->own, taken);
}

void store_return(struct store_gift *gift, struct park *park)
{
	struct claim *claim = new_claim(gift, park);

	gift->path = CUDAPOOL_PATH_RETURNED;
	if (!claim)
		return;
	claim->returning = true;
	park_stop_saving(park);
	if (park->hot && park->hot->ready && !park->hot->users) {
		claim->memory = park->hot;
		park->hot = NULL;
	}
}
