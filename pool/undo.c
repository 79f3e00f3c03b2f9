// SPDX-License-Identifier: MIT
/* Giving back: restores what was checkpointed, unlocks what was locked, unparks what was parked, until it is done. */
#include "undo.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "log.h"
#include "operation.h"
#include "status.h"

#define STOPPED_MS	100   /* between two looks at a process with stopped threads */
#define AGAIN_MS	250   /* before the second attempt to give back; doubles */
#define ATTEMPTS_MAX	8     /* half a minute in all */
#define LATE_LOOKS	4     /* four seconds in all */
#define UNPARK_LIMIT_MS 15000 /* of one attempt */

struct undo {
	struct holding *holding; /* NULL: that is gone or forgotten, and the operation still under way */
	struct process process;	 /* a reference of its own: the operation may outlive the holding */
	struct operation operation;
	struct loop_timer again;
	bool running; /* `operation` is under way */
	bool at_once, failed_dump;
	int attempts;
};

static void give_back(struct undo *undo);

static void try_again(struct loop_timer *timer)
{
	give_back(container_of(timer, struct undo, again));
}

static void free_undo(struct undo *undo)
{
	process_close(&undo->process);
	free(undo);
}

/* Ends giving back; the holding goes on without. */
static void end(struct undo *undo)
{
	loop_timer_cancel(&undo->again);
	undo->holding->undo = NULL;
	undo->holding = NULL;
	if (!undo->running)
		free_undo(undo);
}

static void give_up(struct undo *undo)
{
	struct holding *holding = undo->holding;
	const struct operation *operation = &undo->operation;

	status_error("process %d could not be given back (%s: %.150s): try cuda-checkpoint --action %s --pid %d, or "
		     "end it",
		     holding->process.pid, action_name(operation->op), operation->text,
		     operation->op == CUDAPOOL_OP_RESTORE ? "restore" : "unlock", holding->process.pid);
	status_count_undo(false);
	holding_forget(holding, true);
}

enum undo_step { UNDO_DONE, UNDO_NEXT, UNDO_AGAIN, UNDO_WAIT, UNDO_HOPELESS };

static enum undo_step rest_of(const struct holding *holding)
{
	return holding->held ? UNDO_NEXT : UNDO_DONE;
}

/*
 * What follows from one step of giving back. -EALREADY: the process was found in another state than the one it was left
 * in. Somebody else was there, or the driver completed late what its caller did not live to see. Whatever
 * became of it since, what was locked for the owner is to run again.
 */
static enum undo_step after(struct undo *undo)
{
	const struct operation *operation = &undo->operation;
	struct holding *holding = undo->holding;

	if (!operation->error)
		return rest_of(holding);
	/* Its memory is lost: an earlier keeper had it, and there is no image, or not a good one. */
	if ((holding->held & JOURNAL_HELD_PARKED) && (operation->error == -ENOENT || operation->error == -EBADMSG))
		return UNDO_HOPELESS;
	if (operation->op == CUDAPOOL_OP_UNPARK) {
		/* Nobody can tell it to a process that does not run; that is not its fault. */
		return operation->error == -ETIMEDOUT && process_stopped(&holding->process) ? UNDO_WAIT : UNDO_AGAIN;
	}
	if (operation->before == CUDAPOOL_PROCESS_FAILED)
		return UNDO_HOPELESS;
	if (operation->error != -EALREADY)
		return UNDO_AGAIN;
	switch (operation->before) {
	case CUDAPOOL_PROCESS_RUNNING:
		/* Unless a lock may still come for which nobody waits: that is looked for a few times. */
		if (holding->unclear && undo->attempts < LATE_LOOKS)
			return UNDO_AGAIN;
		holding->held &= JOURNAL_HELD_PARKED;
		return rest_of(holding);
	case CUDAPOOL_PROCESS_LOCKED:
		holding->held &= JOURNAL_HELD_LOCKED | JOURNAL_HELD_PARKED;
		return rest_of(holding);
	case CUDAPOOL_PROCESS_CHECKPOINTED:
		holding->held |= JOURNAL_HELD_CHECKPOINTED;
		return UNDO_AGAIN;
	default:
		return UNDO_AGAIN;
	}
}

static void step_ended(struct operation *operation)
{
	struct undo *undo = container_of(operation, struct undo, operation);
	struct holding *holding = undo->holding;
	enum undo_step step;

	undo->running = false;
	if (!holding) { /* forgotten meanwhile */
		holding = operation->holding;
		free_undo(undo);
		if (holding)
			holding_set_operation(holding, NULL);
		return;
	}
	if (holding->gone || operation->error == -ESRCH || operation->error == -ECANCELED) {
		holding_drop(holding, false);
		return;
	}
	step = after(undo);
	if (step == UNDO_AGAIN && ++undo->attempts >= ATTEMPTS_MAX)
		step = UNDO_HOPELESS;
	switch (step) {
	case UNDO_DONE:
		cudapool_log(CUDAPOOL_LOG_INFO, "process %d was given back%s%s", holding->process.pid,
			     holding->owner ? " for " : "", holding->owner ? holding->owner->name : "");
		status_count_undo(true);
		holding_drop(holding, false);
		break;
	case UNDO_NEXT:
		holding_write(holding);
		give_back(undo);
		break;
	case UNDO_WAIT:
		loop_timer_set(&undo->again, STOPPED_MS);
		break;
	case UNDO_AGAIN:
		holding_write(holding);
		loop_timer_set(&undo->again, AGAIN_MS << (undo->attempts - 1));
		break;
	case UNDO_HOPELESS:
		give_up(undo);
		break;
	}
}

/* One step of giving back; each end of an operation and each timer leads here again. */
static void give_back(struct undo *undo)
{
	struct holding *holding = undo->holding;
	enum cudapool_op op = holding->held & JOURNAL_HELD_CHECKPOINTED ? CUDAPOOL_OP_RESTORE
			      : holding->held & JOURNAL_HELD_LOCKED	? CUDAPOOL_OP_UNLOCK
									: CUDAPOOL_OP_UNPARK;

	if (holding->operation || undo->running || undo->again.on)
		return;
	/*
	 * The shim needs to run as well, but it can be told already: then it maps its memory back as soon as it does.
	 */
	if (!undo->at_once && op != CUDAPOOL_OP_UNPARK && process_stopped(&holding->process)) {
		loop_timer_set(&undo->again, STOPPED_MS);
		return;
	}
	undo->operation = (struct operation){
		.op = op,
		.only_in = op == CUDAPOOL_OP_RESTORE  ? CUDAPOOL_PROCESS_CHECKPOINTED
			   : op == CUDAPOOL_OP_UNLOCK ? CUDAPOOL_PROCESS_LOCKED
						      : ACTION_STATE_UNKNOWN,
		.timeout_ms = op == CUDAPOOL_OP_UNPARK ? UNPARK_LIMIT_MS : 0,
		.process = &undo->process,
		.undo = true,
		.failed_dump = undo->failed_dump,
		.done = step_ended,
	};
	undo->running = true;
	operation_start(&undo->operation);
}

void undo_release(struct holding *holding, bool at_once, bool failed_dump)
{
	struct undo *undo = holding->undo;

	if (!undo) {
		undo = calloc(1, sizeof(*undo));
		if (!undo || process_dup(&undo->process, &holding->process)) {
			free(undo);
			status_error("process %d cannot be given back now: out of memory or descriptors",
				     holding->process.pid);
			return;
		}
		undo->holding = holding;
		undo->again.fire = try_again;
		holding->undo = undo;
	}
	undo->at_once |= at_once;
	undo->failed_dump |= failed_dump;
	if (at_once)
		loop_timer_cancel(&undo->again);
	give_back(undo);
}

int undo_attempts(const struct holding *holding)
{
	return holding->undo ? holding->undo->attempts : 0;
}

void undo_continue(struct holding *holding)
{
	give_back(holding->undo);
}

void undo_dropped(struct holding *holding)
{
	if (holding->undo)
		end(holding->undo);
}
