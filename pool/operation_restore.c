// SPDX-License-Identifier: MIT
/* Operations of a restore: RESTORE, which claims memory, UNLOCK, and UNPARK, which gives it. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

#include "operation_internal.h"

/* How its memory comes back, as clients and statistics are told. */
static enum cudapool_path path_of(const struct holding *holding)
{
	return holding->dump_undone ? CUDAPOOL_PATH_RETURNED : holding->gift.path;
}

/* ---- giving memory back ------------------------------------------------------------------------- */

/* It says that its memory is there already: then an earlier attempt came through that was thought lost. */
static bool is_open(const struct process *process)
{
	struct cudapool_shim shim;
	struct cudapool_page page;
	bool open = false;

	if (!cudapool_shim_open(&shim, process->pid)) {
		open = process_same(&shim.process, process) && !cudapool_shim_read(&shim, &page) &&
		       page.park_state == CUDAPOOL_PARK_OPEN;
		cudapool_shim_close(&shim);
	}
	return open;
}

static void unparked(struct parking *parking)
{
	struct operation *operation = container_of(parking, struct operation, parking);
	struct holding *holding = operation->holding;
	int err = parking->error;

	operation->elapsed_us = (unsigned)(loop_now_us() - parking->started_us);
	if (err == -EALREADY && is_open(operation->process))
		err = 0;
	if (err) {
		operation_say(operation, "%s", parking->text);
	} else {
		operation->path = path_of(holding);
		holding->story.end = parking->end;
		holding->story.ended = parking->ended;
		if (operation->op == CUDAPOOL_OP_UNPARK)
			operation_note(operation, CUDAPOOL_STAGE_RESTORE, 0);
		holding_unparked(holding, operation->failed_dump);
	}
	operation->after(operation, err);
}

/* The memory is there in full. */
static void given(struct operation *operation, int error)
{
	struct holding *holding = operation->holding;

	if (!error) {
		operation->parked_bytes = holding->gift.begin.bytes;
		operation->parking = (struct parking){
			.process = operation->process,
			.gift = &holding->gift,
			.token = holding->token,
			.limit_ms = operation_limit_ms(operation),
			.done = unparked,
		};
		error = parking_open(&operation->parking);
		if (error)
			operation_say(operation, "%s", operation->parking.text);
	}
	if (error)
		operation->after(operation, error);
	else
		parking_start(&operation->parking);
}

/* The gift of what was parked from this process, which lives, is its own memory. */
void operation_prepare_return(struct holding *holding)
{
	if (holding->gifted || !holding->park)
		return;
	store_return(&holding->gift, holding->park);
	holding->gifted = true;
}

/* Maps the memory of a gifted holding back into the process. */
void operation_unpark(struct operation *operation, void (*after)(struct operation *operation, int error))
{
	operation->after = after;
	store_give(&operation->holding->gift, operation_waits(operation, given));
}

/* ---- finding memory ----------------------------------------------------------------------------- */

/* What the process's page names as parked. False: nothing is parked, and the operation's text says why. */
static bool parked_token(struct operation *operation, uint8_t token[CUDAPOOL_TOKEN_LEN])
{
	struct cudapool_shim shim;
	struct cudapool_page page;
	bool parked = false;

	if (cudapool_shim_open(&shim, operation->process->pid)) {
		operation_say(operation, "%s", shim.text);
		return false;
	}
	if (!process_same(&shim.process, operation->process) || cudapool_shim_read(&shim, &page)) {
		operation_say(operation, "%s", shim.text);
	} else if (page.park_state != CUDAPOOL_PARK_PARKED) {
		operation_say(operation, "nothing of it was parked");
	} else {
		memcpy(token, page.token, CUDAPOOL_TOKEN_LEN);
		parked = true;
	}
	cudapool_shim_close(&shim);
	return parked;
}

static void claimed(struct operation *operation, int error)
{
	struct holding *holding = operation->holding;

	holding->gifted = !error;
	if (!error) {
		operation->path = path_of(holding);
		operation->parked_bytes = holding->gift.begin.bytes;
	}
	operation->after(operation, error);
}

static void claim_park(struct operation *operation, struct park *park, const uint8_t token[CUDAPOOL_TOKEN_LEN])
{
	struct holding *holding = operation->holding;
	int err;

	if (!holding || !(holding->held & JOURNAL_HELD_PARKED))
		holding = holding_for_gift(operation->owner, operation->process, token,
					   operation->dir ? store_dir_path(operation->dir) : "");
	if (!holding) {
		err = -errno;
		operation_explain(operation, err);
		operation->after(operation, err);
		return;
	}
	operation_find_holding(operation);
	store_claim(&holding->gift, park, operation->hot, operation_waits(operation, claimed));
}

/* The token of what is parked: as its holding says, or else the process itself. */
static bool token_of(struct operation *operation, uint8_t token[CUDAPOOL_TOKEN_LEN])
{
	const struct holding *holding = operation->holding;

	if (!holding || !(holding->held & JOURNAL_HELD_PARKED))
		return parked_token(operation, token);
	memcpy(token, holding->token, CUDAPOOL_TOKEN_LEN);
	return true;
}

static void missing(struct operation *operation, const uint8_t token[CUDAPOOL_TOKEN_LEN])
{
	store_missing(operation->dir ? operation->dir : operation->own_dir, token, operation->text);
	operation->after(operation, -ENOENT);
}

/* An image that no client has named: it was looked for where this pool, or an earlier one, wrote it. */
static void looked(struct operation *operation, int error)
{
	uint8_t token[CUDAPOOL_TOKEN_LEN];
	struct park *park;

	operation_find_holding(operation);
	if (error || !token_of(operation, token)) {
		operation->after(operation, error ? error : -ENODATA);
		return;
	}
	park = store_find(operation->own_dir, token);
	if (park)
		claim_park(operation, park, token);
	else
		missing(operation, token);
}

/*
 * Unless an earlier keeper has written down where its memory is, what is not in the directory that its CRIU named is
 * not for it.
 */
static bool is_confined(const struct operation *operation)
{
	const struct holding *holding = operation->holding;

	return operation->dir && !(holding && (holding->held & JOURNAL_HELD_PARKED));
}

/*
 * Sees to it that the holding on this process has a gift: of what was parked from it, or of the park that it was
 * restored from. after(): 0; -ENODATA: nothing of it is parked; or why there is no memory for it.
 */
static void claim(struct operation *operation, void (*after)(struct operation *operation, int error))
{
	struct holding *holding = operation->holding;
	uint8_t token[CUDAPOOL_TOKEN_LEN];
	struct park *park;

	operation->after = after;
	if (holding && (holding->gifted || holding->park)) {
		operation_prepare_return(holding);
		claimed(operation, 0);
		return;
	}
	if (!token_of(operation, token)) {
		after(operation, -ENODATA);
		return;
	}
	park = operation->dir ? store_find(operation->dir, token) : NULL;
	if (!park && !is_confined(operation))
		park = store_find(NULL, token);
	if (park) {
		claim_park(operation, park, token);
		return;
	}
	if (is_confined(operation)) {
		missing(operation, token);
		return;
	}
	operation->own_dir = store_look(holding && (holding->held & JOURNAL_HELD_PARKED) ? holding->dir : "", token,
					operation_waits(operation, looked));
	if (!operation->own_dir)
		missing(operation, token);
}

/* ---- RESTORE ------------------------------------------------------------------------------------ */

/* The end of a part of a restore. Of one that is not at its end, the statistics are continued. */
static void end(struct operation *operation, bool at_its_end, int error)
{
	if (!operation->undo && (error || at_its_end))
		operation_note(operation, CUDAPOOL_STAGE_RESTORE, error);
	operation_finish(operation, error);
}

static void restored(struct operation *operation, int error)
{
	struct holding *holding = operation->holding;
	bool parked = holding && holding->gifted;

	if (!error && parked) {
		holding->story.restore_us = operation->elapsed_us;
		store_claim_used(&holding->gift);
	}
	end(operation, !parked, error);
}

static void room_made(struct operation *operation, int error)
{
	if (error)
		end(operation, true, error);
	else
		operation_act(operation, CUDAPOOL_OP_RESTORE, 0, restored);
}

static void restore_claimed(struct operation *operation, int error)
{
	if (error && error != -ENODATA)
		end(operation, true, error);
	else if (error || operation->holding->gift.path == CUDAPOOL_PATH_RETURNED)
		store_make_room(operation->process, operation_waits(operation, room_made));
	else
		room_made(operation, 0); /* the claim has counted what the driver needs */
}

void operation_restore(struct operation *operation)
{
	claim(operation, restore_claimed);
}

/* ---- UNLOCK ------------------------------------------------------------------------------------- */

/* The thread that has to run for UNPARK; -errno and why. */
static int shim_thread(struct operation *operation)
{
	struct cudapool_shim shim;
	struct cudapool_page page;
	int tid = cudapool_shim_open(&shim, operation->process->pid);

	if (!tid)
		tid = cudapool_shim_read(&shim, &page);
	if (tid) {
		operation_say(operation, "the memory of process %d is parked, and its shim cannot be reached: %.150s",
			      operation->process->pid, shim.text);
	} else {
		tid = cudapool_shim_thread(&shim, &page);
		if (tid < 0)
			operation_say(operation, "the memory of process %d is parked, and its shim's thread is missing",
				      operation->process->pid);
	}
	cudapool_shim_close(&shim);
	return tid;
}

/*
 * 1: its memory is in the pool, and the application cannot run without; the holding says so. 0: nothing is parked. Or a
 * negative errno and text.
 */
static int needs_memory(struct operation *operation)
{
	struct holding *holding = operation->holding;
	uint8_t token[CUDAPOOL_TOKEN_LEN];
	int err;

	if (!holding || (!holding->gifted && !(holding->held & JOURNAL_HELD_PARKED))) {
		/* Perhaps it was not this pool that restored it. */
		if (!parked_token(operation, token))
			return 0;
		if (!holding_for_gift(operation->owner, operation->process, token,
				      operation->dir ? store_dir_path(operation->dir) : "")) {
			err = -errno;
			operation_explain(operation, err);
			return err;
		}
		operation_find_holding(operation);
	}
	holding_due(operation->holding);
	return 1;
}

static void unlocked(struct operation *operation, int error)
{
	int needs = error ? 0 : needs_memory(operation), tid;
	struct holding *holding = operation->holding;

	if (needs <= 0) {
		operation_finish(operation, error ? error : needs);
		return;
	}
	holding->story.unlock_us = operation->elapsed_us;
	operation->give_back = operation->dropin;
	operation->parked_bytes = holding->gifted ? holding->gift.begin.bytes : holding->story.parked_bytes;
	tid = operation->undo ? 0 : shim_thread(operation);
	operation->value = tid < 0 ? 0 : tid;
	end(operation, false, tid < 0 ? tid : 0);
}

void operation_unlock(struct operation *operation)
{
	operation_act(operation, CUDAPOOL_OP_UNLOCK, 0, unlocked);
}

/* ---- SHIM --------------------------------------------------------------------------------------- */

static void shim_told(struct operation *operation, int error)
{
	char said[sizeof(operation->text)];
	uint8_t token[CUDAPOOL_TOKEN_LEN];
	int tid = 0;

	memcpy(said, operation->text, sizeof(said));
	if (!error && parked_token(operation, token)) {
		operation->path = CUDAPOOL_PATH_PARKED;
		tid = shim_thread(operation);
	}
	if (tid >= 0)
		memcpy(operation->text, said, sizeof(said));
	operation->value = tid < 0 ? 0 : tid;
	operation_finish(operation, tid < 0 ? tid : error);
}

void operation_shim(struct operation *operation)
{
	operation_act(operation, CUDAPOOL_OP_SHIM, 0, shim_told);
}

/* ---- UNPARK ------------------------------------------------------------------------------------- */

static void unpark_ended(struct operation *operation, int error)
{
	operation->value = error ? 0 : (int)operation->path;
	end(operation, false, error);
}

static void unpark_claimed(struct operation *operation, int error)
{
	if (error == -ENODATA)
		operation_fail(operation, -EALREADY, "process %d has its memory: nothing of it is parked",
			       operation->process->pid);
	else if (error)
		end(operation, true, error);
	else
		operation_unpark(operation, unpark_ended);
}

void operation_unpark_asked(struct operation *operation)
{
	claim(operation, unpark_claimed);
}
