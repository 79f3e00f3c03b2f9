// SPDX-License-Identifier: MIT
/* Holdings: the book of processes that the pool has locked, checkpointed or parked, and for whom. */
#include "holding.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>

#include "log.h"
#include "status.h"

static LIST_HEAD(, holding) holdings = LIST_HEAD_INITIALIZER(holdings);
static unsigned count;
static struct holding_hooks hooks;

void holding_init(const struct holding_hooks *given)
{
	hooks = *given;
}

/* ---- the journal ------------------------------------------------------------------------------ */

static void fill_record(const struct holding *holding, struct journal_record *record)
{
	*record = (struct journal_record){
		.pid = holding->process.pid,
		.start = holding->process.start,
		.held = holding->held,
		.pending = holding->pending,
		.before = holding->before,
	};
	if (holding->owner) {
		record->owner_pid = holding->owner->process.pid;
		record->owner_start = holding->owner->process.start;
	}
	if (holding->held & JOURNAL_HELD_PARKED) {
		memcpy(record->token, holding->token, sizeof(record->token));
		memcpy(record->dir, holding->dir, sizeof(record->dir));
	}
}

struct recovered {
	struct journal_record record;
	LIST_ENTRY(recovered) link;
};
LIST_HEAD(recovered_list, recovered);

/* What an earlier keeper held, and this one could not take over: it is left in the journal for the next one. */
static struct recovered_list left = LIST_HEAD_INITIALIZER(left);

static struct recovered *find_recovered(struct recovered_list *list, int pid, uint64_t start)
{
	struct recovered *entry;

	LIST_FOREACH(entry, list, link)
	if (entry->record.pid == pid && entry->record.start == start)
		return entry;
	return NULL;
}

static void free_recovered(struct recovered *entry)
{
	LIST_REMOVE(entry, link);
	free(entry);
}

struct cursor {
	struct recovered *left; /* first, so that a living record of the same process replaces it */
	struct holding *holding;
};

/* For journal_rewrite(): one living record after the other. */
static struct journal_record *next_record(void *cursor)
{
	static struct journal_record record;
	struct cursor *at = cursor;

	if (at->left) {
		record = at->left->record;
		at->left = LIST_NEXT(at->left, link);
	} else if (at->holding) {
		fill_record(at->holding, &record);
		at->holding = LIST_NEXT(at->holding, all);
	} else {
		return NULL;
	}
	return &record;
}

static void compact(void)
{
	struct cursor cursor = {.left = LIST_FIRST(&left), .holding = LIST_FIRST(&holdings)};
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

void holding_write(struct holding *holding)
{
	write_down(holding);
}

/* ---- beginning and end -------------------------------------------------------------------------- */

struct holding *holding_find(const struct process *process)
{
	struct holding *holding;

	LIST_FOREACH(holding, &holdings, all)
	if (process_same(&holding->process, process))
		return holding;
	return NULL;
}

static void leave_owner(struct holding *holding, bool failed)
{
	struct owner *owner = holding->owner;

	if (!owner)
		return;
	LIST_REMOVE(holding, of_owner);
	owner->held--;
	holding->owner = NULL;
	hooks.left(owner, failed);
	owner_put(owner);
}

/* What the store has for it. The process has ended, or has got what is its own, or can never get it. */
static void let_go_of_memory(struct holding *holding)
{
	if (holding->gifted)
		store_gave(&holding->gift, false);
	holding->gifted = false;
	if (holding->park)
		store_orphaned(holding->park);
	holding->park = NULL;
}

void holding_drop(struct holding *holding, bool failed)
{
	let_go_of_memory(holding);
	holding->held = 0;
	holding->pending = 0;
	write_down(holding); /* if that fails, the next keeper asks the driver about one process more */
	loop_unwatch(&holding->death);
	LIST_REMOVE(holding, all);
	count--;
	if (journal_is_long())
		compact();
	hooks.dropped(holding);
	leave_owner(holding, failed);
	process_close(&holding->process);
	free(holding);
}

void holding_forget(struct holding *holding, bool failed)
{
	if (!(holding->held & JOURNAL_HELD_PARKED) && !holding->gifted && !holding->operation) {
		holding_drop(holding, failed);
		return;
	}
	/* Its memory stays the store's until somebody unparks it, or the process ends. */
	holding->held &= JOURNAL_HELD_PARKED;
	hooks.dropped(holding);
	leave_owner(holding, failed);
	write_down(holding);
}

static void process_died(struct loop_watch *watch, uint32_t events)
{
	struct holding *holding = container_of(watch, struct holding, death);

	loop_unwatch(watch);
	if (holding->operation) {
		holding->gone = true; /* the end of the operation finds it so */
		hooks.died(holding->operation);
	} else {
		holding_drop(holding, false);
	}
}

/* NULL: errno says why. Takes a reference of the owner. */
static struct holding *make(struct owner *owner, const struct process *process)
{
	struct recovered *superseded;
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
	if (loop_watch(&holding->death, EPOLLIN)) {
		process_close(&holding->process);
		free(holding);
		return NULL;
	}
	superseded = find_recovered(&left, process->pid, process->start);
	if (superseded)
		free_recovered(superseded);
	LIST_INSERT_HEAD(&holdings, holding, all);
	count++;
	holding->owner = owner;
	if (owner) {
		owner_hold(owner);
		owner->held++;
		LIST_INSERT_HEAD(&owner->holdings, holding, of_owner);
	}
	return holding;
}

void holding_set_operation(struct holding *holding, struct operation *operation)
{
	holding->operation = operation;
	if (operation)
		return;
	if (holding->gone || (!holding->held && !holding->gifted))
		holding_drop(holding, false);
	else if (holding->undo)
		hooks.idle(holding);
}

/* ---- what actions do to it ---------------------------------------------------------------------- */

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
	bool made = false;
	int err;

	if (!holding) {
		if (!owner || !takes_now)
			return 0;
		holding = make(owner, process);
		if (!holding)
			return -errno;
		made = true;
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
	if (made)
		holding_drop(holding, false);
	return err;
}

/* True if the action may have happened although it failed, or may happen yet: whoever carried it out is lost. */
static bool is_unclear(int error)
{
	return error == -EIO || error == -ETIMEDOUT;
}

void holding_end(struct holding *holding, enum cudapool_op op, int error)
{
	if (holding->pending != op)
		return;
	/* Where it is unclear, it is held: giving back looks at the state first. */
	holding->unclear |= is_unclear(error);
	if ((!error || is_unclear(error)) && holding->owner)
		holding->held |= takes(op, holding->before);
	if (!error && op == CUDAPOOL_OP_RESTORE)
		holding->held &= ~(uint32_t)JOURNAL_HELD_CHECKPOINTED;
	if (!error && op == CUDAPOOL_OP_UNLOCK)
		holding->held &= JOURNAL_HELD_PARKED;
	holding->pending = 0;
	write_down(holding);
}

/* ---- what parking does -------------------------------------------------------------------------- */

static bool remember(struct holding *holding, const uint8_t token[CUDAPOOL_TOKEN_LEN], const char *dir)
{
	memcpy(holding->token, token, sizeof(holding->token));
	return snprintf(holding->dir, sizeof(holding->dir), "%s", dir) < (int)sizeof(holding->dir);
}

int holding_park(struct owner *owner, bool at_close, const struct process *process, struct park *park, const char *dir,
		 struct holding **result)
{
	struct holding *holding = holding_find(process);
	bool made = !holding;
	int err;

	if (!holding)
		holding = make(owner, process);
	if (!holding)
		return -errno;
	if (owner == holding->owner)
		holding->at_close = at_close;
	err = remember(holding, store_token(park), dir) ? 0 : -ENAMETOOLONG;
	holding->held |= JOURNAL_HELD_PARKED;
	if (!err)
		err = write_down(holding);
	if (!err) {
		holding->park = park;
		*result = holding;
		return 0;
	}
	holding->held &= ~(uint32_t)JOURNAL_HELD_PARKED;
	if (made)
		holding_drop(holding, false);
	return err;
}

void holding_not_parked(struct holding *holding)
{
	holding->park = NULL;
	holding->held &= ~(uint32_t)JOURNAL_HELD_PARKED;
	write_down(holding);
}

struct holding *holding_for_gift(struct owner *owner, const struct process *process,
				 const uint8_t token[CUDAPOOL_TOKEN_LEN], const char *dir)
{
	struct holding *holding = holding_find(process);

	if (!holding)
		holding = make(owner, process);
	if (holding)
		remember(holding, token, dir); /* where that is cut, a later keeper looks in vain and says so */
	return holding;
}

void holding_due(struct holding *holding)
{
	holding->held |= JOURNAL_HELD_PARKED;
	write_down(holding);
}

void holding_unparked(struct holding *holding, bool failed_dump)
{
	bool returned = holding->gifted && holding->gift.path == CUDAPOOL_PATH_RETURNED;

	if (holding->park && (failed_dump || !store_saved(holding->park))) {
		if (holding->gifted)
			store_gave(&holding->gift, false); /* the park has the pieces, and goes with them */
		store_dropped(holding->park);
	} else if (holding->gifted) {
		store_gave(&holding->gift, true);
		if (holding->park && !returned)
			store_orphaned(holding->park);
	}
	holding->gifted = false;
	holding->park = NULL;
	holding->held &= ~(uint32_t)JOURNAL_HELD_PARKED;
	write_down(holding);
}

/* ---- after a keeper that was killed --------------------------------------------------------------- */

static struct recovered_list recovered = LIST_HEAD_INITIALIZER(recovered);

/* The last record of a process is the one that holds. */
static void replay(const struct journal_record *record)
{
	struct recovered *entry = find_recovered(&recovered, record->pid, record->start);

	if (entry && !record->held && !record->pending) {
		free_recovered(entry);
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

/* 0, also where it has ended; or a negative errno: it lives, and a keeper that lacks nothing could take it over. */
static int take_over(const struct journal_record *record)
{
	struct owner *owner = NULL;
	struct process process;
	struct holding *holding;
	uint32_t held;
	int err;

	/* What was under way may have happened or not; giving back looks at the state first. */
	held = (record->held & (JOURNAL_HELD_LOCKED | JOURNAL_HELD_CHECKPOINTED | JOURNAL_HELD_PARKED)) |
	       takes((enum cudapool_op)record->pending, record->before);
	err = held ? process_reopen(&process, record->pid, record->start) : -ESRCH;
	if (err)
		return err == -ESRCH ? 0 : err;
	if (record->owner_pid)
		owner = owner_recovered(record->owner_pid, record->owner_start);
	holding = owner || !record->owner_pid ? make(owner, &process) : NULL;
	err = holding ? 0 : -errno;
	process_close(&process);
	if (owner)
		owner_put(owner); /* the holding has a reference of its own */
	if (err)
		return err;
	holding->held = held;
	holding->unclear = record->pending != 0;
	/* A restored process is due its memory only once it is unlocked. */
	holding->dump_undone =
		(held & JOURNAL_HELD_PARKED) && (held & (JOURNAL_HELD_LOCKED | JOURNAL_HELD_CHECKPOINTED));
	memcpy(holding->token, record->token, sizeof(holding->token));
	memcpy(holding->dir, record->dir, sizeof(holding->dir) - 1);
	if (held & JOURNAL_HELD_PARKED)
		holding->park = store_adopt(holding->token, &holding->process, holding->dir);
	cudapool_log(CUDAPOOL_LOG_INFO, "process %d is held since an earlier keeper, for %s", holding->process.pid,
		     !holding->owner	     ? "nobody"
		     : holding->owner->dead ? "an owner that is dead"
					     : "an owner that lives");
	return 0;
}

static void leave(struct recovered *entry, int error)
{
	LIST_INSERT_HEAD(&left, entry, link);
	if (entry->record.held & JOURNAL_HELD_PARKED)
		store_leave(entry->record.token);
	status_error("process %d is held since an earlier keeper, and cannot be taken over (%s): %srestart the pool",
		     entry->record.pid, strerror(-error),
		     error == -EMFILE ? "raise LimitNOFILE (ulimit -n) of cudapoold, and " : "");
}

int holding_recover(const char *path)
{
	struct recovered *entry;
	int err = journal_open(path, replay), failed;

	while ((entry = LIST_FIRST(&recovered))) {
		LIST_REMOVE(entry, link);
		failed = err ? 0 : take_over(&entry->record);
		if (failed)
			leave(entry, failed);
		else
			free(entry);
	}
	if (!err)
		compact();
	return err;
}

/* ---- report ----------------------------------------------------------------------------------- */

unsigned holding_count(void)
{
	return count;
}

unsigned holding_unsaved(void)
{
	struct holding *holding;
	unsigned n = 0;

	LIST_FOREACH(holding, &holdings, all)
	n += holding->park && !store_saved(holding->park);
	return n;
}

void holding_report(struct cudapool_json *json, int limit, const char *(*under_way)(const struct holding *holding),
		    int (*attempts)(const struct holding *holding))
{
	struct holding *holding;
	const char *what;
	char name[16];

	LIST_FOREACH(holding, &holdings, all)
	{
		if (limit-- <= 0)
			return;
		process_name(holding->process.pid, name);
		what = under_way(holding);
		cudapool_json_open(json, NULL, '{');
		cudapool_json_number(json, "pid", holding->process.pid);
		cudapool_json_string(json, "name", name);
		cudapool_json_number(json, "owner_pid", holding->owner ? holding->owner->process.pid : 0);
		cudapool_json_bool(json, "locked", holding->held & JOURNAL_HELD_LOCKED);
		cudapool_json_bool(json, "checkpointed", holding->held & JOURNAL_HELD_CHECKPOINTED);
		cudapool_json_bool(json, "parked", holding->held & JOURNAL_HELD_PARKED);
		if (what)
			cudapool_json_string(json, "under_way", what);
		else
			cudapool_json_null(json, "under_way");
		cudapool_json_bool(json, "giving_back", holding->undo);
		cudapool_json_number(json, "failed_attempts", attempts(holding));
		cudapool_json_close(json, '}');
	}
}
