// SPDX-License-Identifier: MIT
/* Holdings: processes that the pool has locked or checkpointed for somebody, and how they are given back. */
#include "holding.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>

#include "log.h"
#include "session.h"
#include "status.h"

#define STOPPED_MS   100 /* between two looks at a process with stopped threads */
#define AGAIN_MS     250 /* before the second attempt to give back; doubles */
#define ATTEMPTS_MAX 8   /* half a minute in all */
#define LATE_LOOKS   4   /* four seconds in all */

static LIST_HEAD(, holding) holdings = LIST_HEAD_INITIALIZER(holdings);
static unsigned count;

static void give_back(struct holding *holding);

static void fill_record(const struct holding *holding, struct journal_record *record)
{
	*record = (struct journal_record){
		.owner_pid = holding->owner->process.pid,
		.owner_start = holding->owner->process.start,
		.pid = holding->process.pid,
		.start = holding->process.start,
		.held = holding->held,
		.pending = holding->pending,
		.before = holding->before,
	};
}

/* For journal_rewrite(): one living record after the other. */
static struct journal_record *next_record(void *cursor)
{
	static struct journal_record record;
	struct holding **at = cursor, *holding = *at;

	if (!holding)
		return NULL;
	*at = LIST_NEXT(holding, all);
	fill_record(holding, &record);
	return &record;
}

static void compact(void)
{
	struct holding *cursor = LIST_FIRST(&holdings);
	int err = journal_rewrite(next_record, &cursor);

	if (err)
		status_error("the journal could not be rewritten: %s", strerror(-err));
}

static int write_down(const struct holding *holding)
{
	struct journal_record record;
	int err;

	fill_record(holding, &record);
	err = journal_put(&record);
	if (err)
		status_error("the journal could not be written: %s", strerror(-err));
	return err;
}

struct holding *holding_find(const struct process *process)
{
	struct holding *holding;

	LIST_FOREACH(holding, &holdings, all)
	if (process_same(&holding->process, process))
		return holding;
	return NULL;
}

static void drop(struct holding *holding, bool failed)
{
	struct owner *owner = holding->owner;

	holding->held = 0;
	holding->pending = 0;
	write_down(holding); /* if that fails, the next keeper asks the driver about one process more */
	loop_unwatch(&holding->death);
	loop_timer_cancel(&holding->again);
	LIST_REMOVE(holding, all);
	LIST_REMOVE(holding, of_owner);
	process_close(&holding->process);
	free(holding);
	count--;
	if (journal_is_long())
		compact();
	session_holding_gone(owner, failed);
}

static void process_died(struct loop_watch *watch, uint32_t events)
{
	struct holding *holding = container_of(watch, struct holding, death);

	loop_unwatch(watch);
	if (holding->pending || holding->undoing)
		holding->gone = true; /* the end of the action finds it so */
	else
		drop(holding, false);
}

static void try_again(struct loop_timer *timer)
{
	give_back(container_of(timer, struct holding, again));
}

/* NULL: errno says why. Takes a reference of the owner. */
static struct holding *make(struct owner *owner, const struct process *process)
{
	struct holding *holding;

	if (count >= HOLDINGS_MAX) {
		errno = ENOSPC;
		return NULL;
	}
	holding = calloc(1, sizeof(*holding));
	if (!holding)
		return NULL;
	if (process_dup(&holding->process, process)) {
		free(holding);
		return NULL;
	}
	holding->death = (struct loop_watch){.fd = holding->process.fd, .ready = process_died};
	holding->again.fire = try_again;
	if (loop_watch(&holding->death, EPOLLIN)) {
		process_close(&holding->process);
		free(holding);
		return NULL;
	}
	holding->owner = owner;
	owner->references++;
	LIST_INSERT_HEAD(&holdings, holding, all);
	LIST_INSERT_HEAD(&owner->holdings, holding, of_owner);
	count++;
	return holding;
}

/* What `op` gets hold of, if it begins in state `before` and succeeds. */
static uint32_t takes(enum cudapool_op op, int before)
{
	if (op == CUDAPOOL_OP_LOCK && before == CUDAPOOL_PROCESS_RUNNING)
		return JOURNAL_HELD_LOCKED;
	if (op == CUDAPOOL_OP_CHECKPOINT && before == CUDAPOOL_PROCESS_LOCKED)
		return JOURNAL_HELD_CHECKPOINTED;
	return 0;
}

int holding_begin(struct owner *owner, bool at_close, const struct process *process, enum cudapool_op op, int before)
{
	struct holding *holding = holding_find(process);
	uint32_t takes_now = takes(op, before);
	int err;

	if (!holding) {
		if (!owner || !takes_now)
			return 0;
		holding = make(owner, process);
		if (!holding)
			return -errno;
	}
	if (takes_now && owner == holding->owner)
		holding->at_close = at_close;
	holding->pending = op;
	holding->before = before;
	err = write_down(holding);
	if (!err || op == CUDAPOOL_OP_RESTORE || op == CUDAPOOL_OP_UNLOCK)
		return 0;
	/* What cannot be written down must not be taken: a keeper that is killed could not give it back. */
	holding->pending = 0;
	if (!holding->held)
		drop(holding, false);
	return err;
}

/* True if the action may have happened although it failed, or may happen yet: whoever carried it out is lost. */
static bool is_unclear(int error)
{
	return error == -EIO || error == -ETIMEDOUT;
}

void holding_end(const struct process *process, enum cudapool_op op, int error)
{
	struct holding *holding = holding_find(process);

	if (!holding || holding->pending != op)
		return;
	/* Where it is unclear, it is held: giving back looks at the state first. */
	holding->unclear |= is_unclear(error);
	if (!error || is_unclear(error))
		holding->held |= takes(op, holding->before);
	if (!error && op == CUDAPOOL_OP_RESTORE)
		holding->held &= ~(uint32_t)JOURNAL_HELD_CHECKPOINTED;
	if (!error && op == CUDAPOOL_OP_UNLOCK)
		holding->held = 0;
	holding->pending = 0;
	if (holding->undoing)
		return; /* it waits in the queue behind this action, and sees to the rest */
	if (!holding->held || holding->gone) {
		drop(holding, false);
		return;
	}
	write_down(holding);
	if (holding->releasing)
		give_back(holding);
}

static int undo_begins(struct action *action)
{
	struct holding *holding = container_of(action, struct holding, undo);

	if (!holding->held)
		return -ECANCELED; /* forgotten, or given back by the owner itself, while this waited */
	holding->pending = action->op;
	holding->before = action->before;
	write_down(holding);
	return 0;
}

static void give_up(struct holding *holding, const struct action *action)
{
	status_error(
		"process %d could not be given back (%s: %.150s): try cuda-checkpoint --action %s --pid %d, or end it",
		holding->process.pid, action_name(action->op), action->text, action_name(action->op),
		holding->process.pid);
	status_count_undo(false);
	drop(holding, true);
}

enum undo_step { UNDO_DONE, UNDO_NEXT, UNDO_AGAIN, UNDO_HOPELESS };

/*
 * What follows from one step of giving back. -EALREADY: the process was found in another state than the one it was left
 * in. Somebody else was there, or the driver completed late what its caller did not live to see. Whatever
 * became of it since, what was locked for the owner is to run again.
 */
static enum undo_step after_undo(struct holding *holding, const struct action *action)
{
	if (!action->error) {
		holding->held &= action->op == CUDAPOOL_OP_RESTORE ? JOURNAL_HELD_LOCKED : 0u;
		return holding->held ? UNDO_NEXT : UNDO_DONE;
	}
	if (action->before == CUDAPOOL_PROCESS_FAILED)
		return UNDO_HOPELESS;
	if (action->error != -EALREADY)
		return UNDO_AGAIN;
	switch (action->before) {
	case CUDAPOOL_PROCESS_RUNNING:
		/* Unless a lock may still come for which nobody waits: that is looked for a few times. */
		return holding->unclear && holding->attempts < LATE_LOOKS ? UNDO_AGAIN : UNDO_DONE;
	case CUDAPOOL_PROCESS_LOCKED:
		holding->held &= JOURNAL_HELD_LOCKED;
		return holding->held ? UNDO_NEXT : UNDO_DONE;
	case CUDAPOOL_PROCESS_CHECKPOINTED:
		holding->held |= JOURNAL_HELD_CHECKPOINTED;
		return UNDO_AGAIN;
	default:
		return UNDO_AGAIN;
	}
}

static void undo_ended(struct action *action)
{
	struct holding *holding = container_of(action, struct holding, undo);
	enum undo_step step;

	holding->undoing = false;
	holding->pending = 0;
	if (holding->gone || action->error == -ESRCH || action->error == -ECANCELED) {
		drop(holding, false);
		return;
	}
	step = after_undo(holding, action);
	if (step == UNDO_AGAIN && ++holding->attempts >= ATTEMPTS_MAX)
		step = UNDO_HOPELESS;
	switch (step) {
	case UNDO_DONE:
		cudapool_log(CUDAPOOL_LOG_INFO, "process %d was given back for %s %d", holding->process.pid,
			     holding->owner->name, holding->owner->process.pid);
		status_count_undo(true);
		drop(holding, false);
		break;
	case UNDO_NEXT:
		write_down(holding);
		give_back(holding);
		break;
	case UNDO_AGAIN:
		write_down(holding);
		loop_timer_set(&holding->again, AGAIN_MS << (holding->attempts - 1));
		break;
	case UNDO_HOPELESS:
		give_up(holding, action);
		break;
	}
}

/* One step of giving back; each end of an action and each timer leads here again. */
static void give_back(struct holding *holding)
{
	bool restore = holding->held & JOURNAL_HELD_CHECKPOINTED;

	if (holding->pending || holding->undoing || holding->again.on)
		return;
	if (!holding->at_once && process_stopped(&holding->process)) {
		loop_timer_set(&holding->again, STOPPED_MS);
		return;
	}
	holding->undo = (struct action){
		.op = restore ? CUDAPOOL_OP_RESTORE : CUDAPOOL_OP_UNLOCK,
		.only_in = restore ? CUDAPOOL_PROCESS_CHECKPOINTED : CUDAPOOL_PROCESS_LOCKED,
		.process = &holding->process,
		.begin = undo_begins,
		.done = undo_ended,
	};
	holding->undoing = true;
	action_start(&holding->undo);
}

void holding_release(struct holding *holding, bool at_once)
{
	holding->releasing = true;
	holding->at_once |= at_once;
	if (at_once)
		loop_timer_cancel(&holding->again);
	give_back(holding);
}

void holding_forget(struct holding *holding)
{
	/* An action of our own must not lose the process under it: giving back ends first, and finds nothing more to
	 * do. */
	if (holding->undoing)
		holding->held = 0;
	else
		drop(holding, false);
}

/* ---- after a keeper that was killed --------------------------------------------------------------- */

struct recovered {
	struct journal_record record;
	LIST_ENTRY(recovered) link;
};

static LIST_HEAD(, recovered) recovered = LIST_HEAD_INITIALIZER(recovered);

/* The last record of a process is the one that holds. */
static void replay(const struct journal_record *record)
{
	struct recovered *entry;

	LIST_FOREACH(entry, &recovered, link)
	if (entry->record.pid == record->pid && entry->record.start == record->start)
		break;
	if (entry && !record->held && !record->pending) {
		LIST_REMOVE(entry, link);
		free(entry);
		return;
	}
	if (!entry && (record->held || record->pending)) {
		entry = calloc(1, sizeof(*entry));
		if (!entry)
			return;
		LIST_INSERT_HEAD(&recovered, entry, link);
	}
	if (entry)
		entry->record = *record;
}

static void take_over(const struct journal_record *record)
{
	struct process process;
	struct holding *holding;
	struct owner *owner;
	uint32_t held;

	/* What was under way may have happened or not; giving back looks at the state first. */
	held = (record->held & (JOURNAL_HELD_LOCKED | JOURNAL_HELD_CHECKPOINTED)) |
	       takes((enum cudapool_op)record->pending, record->before);
	if (!held || process_reopen(&process, record->pid, record->start))
		return;
	owner = session_recovered_owner(record->owner_pid, record->owner_start);
	holding = owner ? make(owner, &process) : NULL;
	process_close(&process);
	if (!holding) {
		status_error("process %d is held, and could not be taken over", record->pid);
		if (owner)
			session_holding_gone(owner, false);
		return;
	}
	holding->held = held;
	holding->unclear = record->pending != 0;
	session_holding_gone(owner, false); /* the reference of session_recovered_owner(); the holding has its own */
	cudapool_log(CUDAPOOL_LOG_INFO, "process %d is held since an earlier keeper, for %s %d, %s",
		     holding->process.pid, owner->name, owner->process.pid,
		     owner->dead ? "which is dead" : "which lives");
}

int holding_recover(const char *path)
{
	struct recovered *entry;
	int err = journal_open(path, replay);

	while ((entry = LIST_FIRST(&recovered))) {
		LIST_REMOVE(entry, link);
		if (!err)
			take_over(&entry->record);
		free(entry);
	}
	if (!err)
		compact();
	return err;
}

unsigned holding_count(void)
{
	return count;
}

void holding_report(struct cudapool_json *json, int limit)
{
	struct holding *holding;
	char name[16];

	LIST_FOREACH(holding, &holdings, all)
	{
		if (limit-- <= 0)
			return;
		process_name(holding->process.pid, name);
		cudapool_json_open(json, NULL, '{');
		cudapool_json_number(json, "pid", holding->process.pid);
		cudapool_json_string(json, "name", name);
		cudapool_json_number(json, "owner_pid", holding->owner->process.pid);
		cudapool_json_bool(json, "locked", holding->held & JOURNAL_HELD_LOCKED);
		cudapool_json_bool(json, "checkpointed", holding->held & JOURNAL_HELD_CHECKPOINTED);
		if (holding->pending)
			cudapool_json_string(json, "under_way", action_name(holding->pending));
		else
			cudapool_json_null(json, "under_way");
		cudapool_json_bool(json, "giving_back", holding->releasing);
		cudapool_json_number(json, "failed_attempts", holding->attempts);
		cudapool_json_close(json, '}');
	}
}
