// SPDX-License-Identifier: MIT
/* Operations: turns, the driver's actions, beginning and end. */
#include "operation_internal.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "log.h"
#include "status.h"
#include "text.h"

static TAILQ_HEAD(operation_list, operation) operations = TAILQ_HEAD_INITIALIZER(operations);
static struct operation_config config;

static bool changes(enum cudapool_op op)
{
	return (op >= CUDAPOOL_OP_LOCK && op <= CUDAPOOL_OP_UNLOCK) || op == CUDAPOOL_OP_UNPARK ||
		op == CUDAPOOL_OP_SAVED;
}

void operation_say(struct operation *operation, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	text_replace(operation->text, format, args);
	va_end(args);
}

/* ---- beginning and end -------------------------------------------------------------------------- */

/* The first in the list that changes this process. */
static struct operation *first_on(const struct process *process)
{
	struct operation *operation;

	TAILQ_FOREACH(operation, &operations, link)
	if (changes(operation->op) && process_same(operation->process, process))
		return operation;
	return NULL;
}

static void take_out(struct operation *operation)
{
	struct operation *next;

	loop_timer_cancel(&operation->turn);
	loop_timer_cancel(&operation->limit);
	TAILQ_REMOVE(&operations, operation, link);
	if (operation->own_dir)
		store_dir_release(operation->own_dir);
	operation->own_dir = NULL;
	next = changes(operation->op) ? first_on(operation->process) : NULL;
	if (next && !next->begun)
		loop_timer_set(&next->turn, 0);
}

void operation_finish(struct operation *operation, int error)
{
	struct holding *holding = operation->holding;
	bool undo = operation->undo, give_back = operation->give_back, failed_dump = operation->op == CUDAPOOL_OP_LOCK;

	operation->error = error;
	take_out(operation);
	if (operation->op == CUDAPOOL_OP_UNPARK || operation->op == CUDAPOOL_OP_SAVED) /* no action of the driver's */
		status_count_action(operation->op, error, operation->elapsed_us);
	if (operation->op == CUDAPOOL_OP_UNPARK)
		cudapool_log(CUDAPOOL_LOG_ACTION, "unpark %d: %s%s%s, %llu bytes, %u us", operation->process->pid,
			     error ? strerror(-error) : "ok", operation->text[0] ? ": " : "", operation->text,
			     (unsigned long long)operation->parked_bytes, operation->elapsed_us);
	if (undo) { /* done() sees to the holding */
		if (holding)
			holding->operation = NULL;
		operation->done(operation);
		return;
	}
	operation->done(operation);
	if (holding && give_back && !holding->gone)
		config.give_back(holding, failed_dump);
	if (holding)
		holding_set_operation(holding, NULL);
}

void operation_fail(struct operation *operation, int error, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	text_replace(operation->text, format, args);
	va_end(args);
	operation_finish(operation, error);
}

void operation_find_holding(struct operation *operation)
{
	operation->holding = holding_find(operation->process);
	if (operation->holding)
		operation->holding->operation = operation;
}

/* ---- its parts -------------------------------------------------------------------------------- */

int operation_may_take(struct operation *operation)
{
	if (!operation->abandoned && !(operation->owner && operation->owner->dead))
		return 0;
	operation_say(operation, "whoever asked for it is gone");
	return -ECANCELED;
}

void operation_explain(struct operation *operation, int error)
{
	if (error == -ENOSPC)
		operation_say(operation,
			      "the pool cannot keep book of one process more: at most %d are held at once, and the "
			      "socket's file system must have room",
			      HOLDINGS_MAX);
	else if (error == -ENAMETOOLONG)
		operation_say(operation, "the image directory's path is longer than the %d bytes that the journal has",
			      JOURNAL_DIR_MAX - 1);
	else
		operation_say(operation, "the pool cannot write its journal: %s", strerror(-error));
}

/* For giving back: there is nothing to give any more, or somebody has said that it shall stay as it is. */
static bool is_forgotten(const struct holding *holding)
{
	return !holding || !holding->held || !holding->undo;
}

static int action_begins(struct action *action)
{
	struct operation *operation = container_of(action, struct operation, action);
	int err = 0;

	if (action->op != operation->op)
		return 0;
	if (operation->undo && is_forgotten(operation->holding))
		return -ECANCELED;
	if (action->op == CUDAPOOL_OP_LOCK || action->op == CUDAPOOL_OP_CHECKPOINT)
		err = operation_may_take(operation);
	if (!err) {
		err = holding_begin(operation->owner, operation->at_close, action->process, action->op, action->before);
		if (err)
			operation_explain(operation, err);
		operation_find_holding(operation);
	}
	if (err)
		memcpy(action->text, operation->text, sizeof(action->text));
	return err;
}

static void action_ended(struct action *action)
{
	struct operation *operation = container_of(action, struct operation, action);

	operation->acting = false;
	operation->before = action->before;
	if (action->op == operation->op) {
		operation->cu_result = action->cu_result;
		operation->value = action->value;
		operation->elapsed_us = action->elapsed_us;
		operation->generation = action->generation;
		if (action->error || action->text[0]) /* else it keeps why nothing was parked */
			memcpy(operation->text, action->text, sizeof(operation->text));
		if (operation->holding)
			holding_end(operation->holding, action->op, action->error);
	}
	operation->then(operation, action->error);
}

void operation_act(struct operation *operation, enum cudapool_op op, unsigned timeout_ms,
		void (*then)(struct operation *operation, int error))
{
	operation->then = then;
	operation->acting = true;
	operation->action = (struct action){
		.op = op,
		.process = operation->process,
		.timeout_ms = timeout_ms,
		.only_in = op == operation->op ? operation->only_in : ACTION_STATE_UNKNOWN,
		.begin = action_begins,
		.done = action_ended,
	};
	action_start(&operation->action);
}

static void store_did(struct store_waiter *waiter, int error, const char *text)
{
	struct operation *operation = container_of(waiter, struct operation, waiter);

	if (error)
		operation_say(operation, "%s", text && text[0] ? text : strerror(-error));
	operation->then(operation, error);
}

struct store_waiter *operation_waits(struct operation *operation, void (*then)(struct operation *operation, int error))
{
	operation->then = then;
	operation->waiter = (struct store_waiter){.done = store_did};
	return &operation->waiter;
}

unsigned operation_limit_ms(const struct operation *operation)
{
	unsigned most = (unsigned)config.action_limit_s * 1000;

	return operation->timeout_ms && operation->timeout_ms < most ? operation->timeout_ms : most;
}

bool operation_parks(void)
{
	return config.park;
}

void operation_note(struct operation *operation, enum cudapool_stage stage, int error)
{
	const struct holding *holding = operation->holding;
	struct store_note note = {
		.stage = stage,
		.path = operation->path,
		.error = error,
		.process = operation->process,
		.why = operation->text,
	};

	if (holding) {
		note.end = holding->story.ended ? &holding->story.end : NULL;
		memcpy(note.left, holding->story.left, sizeof(note.left));
		note.lock_us = holding->story.lock_us;
		note.checkpoint_us = holding->story.checkpoint_us;
		note.restore_us = holding->story.restore_us;
		note.unlock_us = holding->story.unlock_us;
		if (!error && !operation->text[0])
			note.why = holding->story.why;
	}
	if (operation->op == CUDAPOOL_OP_LOCK)
		note.lock_us = operation->elapsed_us;
	if (operation->op == CUDAPOOL_OP_CHECKPOINT)
		note.checkpoint_us = operation->elapsed_us;
	if (operation->op == CUDAPOOL_OP_RESTORE)
		note.restore_us = operation->elapsed_us;
	if (operation->op == CUDAPOOL_OP_UNLOCK)
		note.unlock_us = operation->elapsed_us;
	if (operation->op == CUDAPOOL_OP_UNPARK)
		note.give_us = operation->elapsed_us;
	store_note(operation->dir ? operation->dir : operation->own_dir, holding ? holding->park : NULL,
		   holding && holding->gifted ? &holding->gift : NULL, &note);
}

/* ---- taking turns ------------------------------------------------------------------------------- */

static void begin(struct loop_timer *timer)
{
	struct operation *operation = container_of(timer, struct operation, turn);

	loop_timer_cancel(&operation->limit);
	operation->begun = true;
	if (changes(operation->op))
		operation_find_holding(operation);
	if (operation->undo && is_forgotten(operation->holding)) {
		operation_finish(operation, -ECANCELED);
		return;
	}
	switch (operation->op) {
	case CUDAPOOL_OP_LOCK:
		operation_lock(operation);
		break;
	case CUDAPOOL_OP_CHECKPOINT:
		operation_checkpoint(operation);
		break;
	case CUDAPOOL_OP_SAVED:
		operation_saved(operation);
		break;
	case CUDAPOOL_OP_RESTORE:
		operation_restore(operation);
		break;
	case CUDAPOOL_OP_UNLOCK:
		operation_unlock(operation);
		break;
	case CUDAPOOL_OP_UNPARK:
		operation_unpark_asked(operation);
		break;
	case CUDAPOOL_OP_SHIM:
		operation_shim(operation);
		break;
	default:
		operation_act(operation, operation->op, operation->timeout_ms, operation_finish);
		break;
	}
}

static void turn_never_came(struct loop_timer *timer)
{
	struct operation *operation = container_of(timer, struct operation, limit);

	operation_fail(operation, -ETIMEDOUT, "an earlier operation on process %d is still under way",
		       operation->process->pid);
}

void operations_init(const struct operation_config *given)
{
	config = *given;
}

void operation_start(struct operation *operation)
{
	bool first = !changes(operation->op) || !first_on(operation->process);

	operation->turn = (struct loop_timer){.fire = begin};
	operation->limit = (struct loop_timer){.fire = turn_never_came};
	operation->end_ms = loop_now_ms() + operation_limit_ms(operation);
	operation->before = ACTION_STATE_UNKNOWN;
	TAILQ_INSERT_TAIL(&operations, operation, link);
	if (first)
		loop_timer_set(&operation->turn, 0);
	else if (!operation->undo)
		loop_timer_set(&operation->limit, operation_limit_ms(operation));
}

static bool stop_step(struct operation *operation)
{
	struct parking *parking = &operation->parking;

	if (operation->op == CUDAPOOL_OP_LOCK && operation->path == CUDAPOOL_PATH_PARKED)
		return false; /* the lock is refused in its turn, and the park undone */
	if (operation->acting) {
		if (!action_withdraw(&operation->action))
			return false;
		if (operation->saving)
			store_cancel(&operation->waiter);
		if (operation->action.op == CUDAPOOL_OP_STATE && operation->op == CUDAPOOL_OP_LOCK)
			parking_close(parking);
		return true;
	}
	if (operation->op == CUDAPOOL_OP_SAVED) {
		store_cancel(&operation->waiter);
		return true;
	}
	return operation->op == CUDAPOOL_OP_LOCK && parking->park && parking_cancel(parking);
}

bool operation_withdraw(struct operation *operation)
{
	struct holding *holding = operation->holding;

	if (operation->begun && !stop_step(operation)) {
		operation->abandoned = true;
		return false;
	}
	take_out(operation);
	if (holding)
		holding_set_operation(holding, NULL);
	return true;
}

void operation_process_died(struct operation *operation)
{
	if (!operation->saving)
		return; /* what is under way notices by itself */
	store_cancel(&operation->waiter);
	operation->saving = false;
	operation->save_error = -ESRCH;
	operation_say(operation, "process %d ended before the image of its GPU memory was complete",
		      operation->process->pid);
	/* Which its CHECKPOINT has left to it. */
	if (operation->op == CUDAPOOL_OP_SAVED && operation->holding->story.unsaved)
		operation_note(operation, CUDAPOOL_STAGE_DUMP, -ESRCH);
	if (!operation->acting)
		operation_finish(operation, -ESRCH);
}

unsigned operations_count(void)
{
	struct operation *operation;
	unsigned n = 0;

	TAILQ_FOREACH(operation, &operations, link)
	n++;
	return n;
}
