// SPDX-License-Identifier: MIT
/* Operations of a dump: LOCK, which parks first, CHECKPOINT, and SAVED, which waits for the image. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "operation_internal.h"
#include "status.h"

/* ---- LOCK --------------------------------------------------------------------------------------- */

/* LOCK ends; the statistics of a dump that goes on are continued by CHECKPOINT and SAVED. */
static void lock_ended(struct operation *operation, int error)
{
	struct holding *holding = operation->holding;

	if (error) {
		operation_note(operation, CUDAPOOL_STAGE_DUMP, error);
	} else if (holding) {
		holding->story.lock_us = operation->elapsed_us;
		memcpy(holding->story.why, operation->text, sizeof(holding->story.why));
	}
	operation_finish(operation, error);
}

static void lock_undone(struct operation *operation, int error)
{
	if (error && !operation->holding->gone) {
		status_error("process %d was parked for a lock that failed, and could not be unparked at once: %.180s",
			     operation->process->pid, operation->text);
		operation->give_back = true;
	}
	memcpy(operation->text, operation->action.text, sizeof(operation->text));
	/* What failed: the driver's lock, or the park itself (message.h). */
	operation->path = operation->action.op == CUDAPOOL_OP_LOCK ? CUDAPOOL_PATH_STOCK : CUDAPOOL_PATH_PARKED;
	lock_ended(operation, operation->error);
}

/* The park succeeded, or nearly, and the lock will not: the application gets its memory back before LOCK has failed. */
static void undo_park(struct operation *operation, int error)
{
	/* action.text keeps why, while unparking has its own words. */
	memcpy(operation->action.text, operation->text, sizeof(operation->action.text));
	operation->error = error;
	operation_prepare_return(operation->holding);
	operation->failed_dump = true;
	operation_unpark(operation, lock_undone);
}

static void locked(struct operation *operation, int error)
{
	struct holding *holding = operation->holding;

	if (!error || !holding || !holding->park) {
		lock_ended(operation, error);
	} else if (holding->unclear || holding->gone) {
		/* It may be locked, or become so: giving it back looks at that first. */
		operation->give_back = true;
		lock_ended(operation, error);
	} else {
		undo_park(operation, error);
	}
}

/* What is left of the limit; at least 1. */
static unsigned time_left_ms(const struct operation *operation)
{
	uint64_t now = loop_now_ms();

	return now < operation->end_ms ? (unsigned)(operation->end_ms - now) : 1;
}

/* What the shim of a process says of it; all zero where there is none that says anything. */
static struct cudapool_page shim_says(const struct process *process)
{
	struct cudapool_page page = {.magic = 0};
	struct cudapool_shim shim;

	if (cudapool_shim_open(&shim, process->pid))
		return page;
	if (!process_same(&shim.process, process) || cudapool_shim_read(&shim, &page))
		memset(&page, 0, sizeof(page));
	cudapool_shim_close(&shim);
	return page;
}

/* As the driver does it, without parking; but not what it would checkpoint and could never restore. */
static void lock_stock(struct operation *operation)
{
	struct cudapool_page page = shim_says(operation->process);
	char why[sizeof(operation->text)];

	if (!page.foreign_mb && !page.imported_bytes) {
		operation->path = CUDAPOOL_PATH_STOCK;
		operation_act(operation, CUDAPOOL_OP_LOCK, operation->timeout_ms, locked);
		return;
	}
	operation->path = CUDAPOOL_PATH_PARKED; /* that it was not: so no client tries the driver's way itself */
	memcpy(why, operation->text, sizeof(why));
	if (page.foreign_mb)
		operation_say(operation,
			      "process %d has %u MiB of another process's memory imported: the driver could checkpoint it, "
			      "and never restore it. It must close that first (cuMemUnmap and cuMemRelease)",
			      operation->process->pid, page.foreign_mb);
	else
		operation_say(operation,
			      "%llu MiB of process %d are the pool's memory: the driver could checkpoint it, and never "
			      "restore it. Park it (CUDAPOOL_PARK=1), with GPU memory free for a copy. Not parked: %s",
			      (unsigned long long)(page.imported_bytes + (1 << 20) - 1) >> 20, operation->process->pid,
			      why);
	lock_ended(operation, -ENOTSUP);
}

static int before_go(struct parking *parking)
{
	struct operation *operation = container_of(parking, struct operation, parking);
	struct store_dir *dir = operation->dir ? operation->dir : operation->own_dir;
	int err = operation_may_take(operation);

	if (!err) {
		err = holding_park(operation->owner, operation->at_close, operation->process, parking->park,
				   store_dir_path(dir), &operation->holding);
		if (err)
			operation_explain(operation, err);
		else
			operation->holding->operation = operation;
	}
	if (err)
		memcpy(parking->text, operation->text, sizeof(parking->text));
	return err;
}

static void parked(struct parking *parking)
{
	struct operation *operation = container_of(parking, struct operation, parking);
	struct holding *holding;
	int err = parking->error;

	operation_say(operation, "%s", parking->text);
	operation->left_bytes = parking->left_bytes;
	operation->path = CUDAPOOL_PATH_PARKED; /* of a failure, too: see message.h */
	if (err && parking->taken && operation->holding->gone) {
		lock_ended(operation, -ESRCH);
	} else if (err && parking->taken) {
		undo_park(operation, err);
	} else if (err) {
		if (operation->holding) /* it was written down, and not taken after all */
			holding_not_parked(operation->holding);
		if (parking->refused)
			lock_stock(operation);
		else
			lock_ended(operation, err);
	} else {
		holding = operation->holding;
		operation->parked_bytes = holding->story.parked_bytes = parking->bytes;
		holding->story.left_bytes = parking->left_bytes;
		memcpy(holding->story.left, parking->left, sizeof(holding->story.left));
		holding->story.end = parking->end;
		holding->story.ended = parking->ended;
		operation_act(operation, CUDAPOOL_OP_LOCK, time_left_ms(operation), locked);
	}
}

static void lock_state_known(struct operation *operation, int error)
{
	struct parking *parking = &operation->parking;
	int err;

	if (error || operation->action.value != CUDAPOOL_PROCESS_RUNNING) {
		parking_close(parking);
		lock_stock(operation); /* the driver will say what is wrong */
		return;
	}
	err = operation_may_take(operation);
	if (err) {
		parking_close(parking);
		lock_ended(operation, err);
		return;
	}
	if (!operation->dir)
		operation->own_dir = store_own(operation->text);
	if (!operation->dir && !operation->own_dir) {
		parking_close(parking);
		lock_stock(operation);
		return;
	}
	parking->park = store_begin(operation->dir ? operation->dir : operation->own_dir, operation->process);
	if (!parking->park) {
		parking_close(parking);
		operation_say(operation, "the pool is out of memory");
		lock_ended(operation, -ENOMEM);
		return;
	}
	parking->token = store_token(parking->park);
	parking->limit_ms = time_left_ms(operation);
	parking->before_go = before_go;
	parking->done = parked;
	parking_start(parking);
}

/* What is parked already is locked already, as the driver will say; or it is due, and no other dump would have it. */
static void parked_state_known(struct operation *operation, int error)
{
	if (error || operation->action.value != CUDAPOOL_PROCESS_RUNNING) {
		lock_stock(operation);
		return;
	}
	operation->path = CUDAPOOL_PATH_PARKED;
	operation_say(operation, "process %d: its memory is parked already, and has yet to be given back",
		      operation->process->pid);
	lock_ended(operation, -EBUSY);
}

void operation_lock(struct operation *operation)
{
	struct parking *parking = &operation->parking;

	*parking = (struct parking){.process = operation->process, .shim.process = PROCESS_NONE};
	if (operation->holding && (operation->holding->held & JOURNAL_HELD_PARKED)) {
		operation_act(operation, CUDAPOOL_OP_STATE, 0, parked_state_known);
	} else if (!operation_parks()) {
		operation_say(operation, "parking is off in the pool (CUDAPOOL_PARK=0)");
		lock_stock(operation);
	} else if (operation->at_close && !operation->dir) {
		operation_say(operation, "CRIU's plugin has named no directory that images can be written to");
		lock_stock(operation);
	} else if (parking_open(parking)) {
		operation_say(operation, "%s", parking->text);
		lock_stock(operation);
	} else {
		operation_act(operation, CUDAPOOL_OP_STATE, 0, lock_state_known);
	}
}

/* ---- CHECKPOINT and SAVED ----------------------------------------------------------------------- */

/* With the last one that is asked for, the statistics of this dump are complete. */
static void checkpoint_ended(struct operation *operation, int error)
{
	struct holding *holding = operation->holding;
	bool saved = operation->op == CUDAPOOL_OP_SAVED;

	if (!error && !saved && operation->asks_saved && holding && holding->park) {
		holding->story.checkpoint_us = operation->elapsed_us;
		holding->story.unsaved = true;
	} else if (!saved || holding->story.unsaved) {
		operation_note(operation, CUDAPOOL_STAGE_DUMP, error);
		if (saved)
			holding->story.unsaved = false;
	}
	operation_finish(operation, error);
}

static void saving_ended(struct store_waiter *waiter, int error, const char *text)
{
	struct operation *operation = container_of(waiter, struct operation, waiter);

	operation->saving = false;
	operation->save_error = error;
	if (error)
		operation_say(operation, "%s", text && text[0] ? text : strerror(-error));
	if (!operation->acting)
		checkpoint_ended(operation, error);
}

static void checkpointed(struct operation *operation, int error)
{
	if (error && operation->saving)
		store_cancel(&operation->waiter);
	if (error || !operation->saving)
		checkpoint_ended(operation, error ? error : operation->save_error);
}

static void wait_for_image(struct operation *operation)
{
	operation->saving = true;
	operation->waiter = (struct store_waiter){.done = saving_ended};
	store_wait_saved(operation->holding->park, &operation->waiter);
}

/* False: nothing of the process is parked. */
static bool is_parked(struct operation *operation)
{
	const struct holding *holding = operation->holding;

	if (!holding || !holding->park)
		return false;
	operation->path = CUDAPOOL_PATH_PARKED;
	operation->parked_bytes = holding->story.parked_bytes;
	operation->left_bytes = holding->story.left_bytes;
	return true;
}

void operation_checkpoint(struct operation *operation)
{
	if (operation->dir)
		store_dir_parked(operation->dir); /* CRIU locks all before it checkpoints the first */
	operation_act(operation, CUDAPOOL_OP_CHECKPOINT, 0, checkpointed);
	if (is_parked(operation) && !operation->asks_saved)
		wait_for_image(operation);
}

void operation_saved(struct operation *operation)
{
	if (is_parked(operation))
		wait_for_image(operation);
	else
		operation_finish(operation, 0);
}
