// SPDX-License-Identifier: MIT
/* Owners: those for whom the pool acts, and what becomes of their holdings when they die. */
#include "session.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>

#include "log.h"
#include "status.h"

#define GRACE_MS 1000 /* for dumped processes to die, after their owner */

static LIST_HEAD(, owner) owners = LIST_HEAD_INITIALIZER(owners);

/* ---- owners ----------------------------------------------------------------------------------- */

/* Gives back all that it holds, or only what is bound to the connection. Holdings may be freed. */
static void release_all(struct owner *owner, bool at_close_only, bool at_once)
{
	struct holding *holding, *next;

	for (holding = LIST_FIRST(&owner->holdings); holding; holding = next) {
		next = LIST_NEXT(holding, of_owner);
		if (!at_close_only || holding->at_close)
			holding_release(holding, at_once);
	}
}

static void grace_over(struct loop_timer *timer)
{
	struct owner *owner = container_of(timer, struct owner, grace);

	if (LIST_EMPTY(&owner->holdings))
		return;
	cudapool_log(CUDAPOOL_LOG_INFO, "%s %d is dead, and what it held lives: giving back", owner->name,
		     owner->process.pid);
	release_all(owner, false, false);
}

static void owner_died(struct loop_watch *watch, uint32_t events)
{
	struct owner *owner = container_of(watch, struct owner, death);

	loop_unwatch(watch);
	owner->dead = true;
	loop_timer_set(&owner->grace, GRACE_MS);
	release_all(owner, true, false);
}

static struct owner *make_owner(const struct process *process)
{
	struct owner *owner = calloc(1, sizeof(*owner));

	if (!owner)
		return NULL;
	owner->process = (struct process){.pid = process->pid, .start = process->start, .fd = -1};
	owner->grace.fire = grace_over;
	LIST_INIT(&owner->holdings);
	LIST_INIT(&owner->undos);
	process_name(process->pid, owner->name);
	LIST_INSERT_HEAD(&owners, owner, link);
	return owner;
}

static void put_owner(struct owner *owner)
{
	if (--owner->references)
		return;
	loop_unwatch(&owner->death);
	loop_timer_cancel(&owner->grace);
	LIST_REMOVE(owner, link);
	process_close(&owner->process);
	free(owner);
}

static struct owner *find_owner(const struct process *process)
{
	struct owner *owner;

	LIST_FOREACH(owner, &owners, link)
	if (process_same(&owner->process, process))
		return owner;
	return NULL;
}

/* The living process's owner, known or new, referenced. */
static struct owner *get_owner(const struct process *process)
{
	struct owner *owner = find_owner(process);

	if (owner) {
		owner->references++;
		return owner;
	}
	owner = make_owner(process);
	if (!owner)
		return NULL;
	owner->references = 1;
	if (process_dup(&owner->process, process))
		goto fail;
	owner->death = (struct loop_watch){.fd = owner->process.fd, .ready = owner_died};
	if (loop_watch(&owner->death, EPOLLIN))
		goto fail;
	return owner;
fail:
	put_owner(owner);
	return NULL;
}

struct owner *session_attach(const struct process *process, bool plugin)
{
	struct owner *owner = get_owner(process);

	if (owner)
		owner->plugins += plugin;
	return owner;
}

void session_detach(struct owner *owner, bool plugin)
{
	if (plugin && --owner->plugins == 0 && !LIST_EMPTY(&owner->holdings))
		release_all(owner, true, false); /* the owner is still referenced by whoever calls */
	put_owner(owner);
}

struct owner *session_recovered_owner(int pid, uint64_t start)
{
	struct process process;
	struct owner *owner;

	if (!process_reopen(&process, pid, start)) {
		owner = get_owner(&process);
		process_close(&process);
		return owner;
	}
	process = (struct process){.pid = pid, .start = start, .fd = -1};
	owner = find_owner(&process);
	if (!owner)
		owner = make_owner(&process);
	if (!owner)
		return NULL;
	owner->references++;
	if (!owner->dead) {
		owner->dead = true;
		snprintf(owner->name, sizeof(owner->name), "(ended)"); /* the number may be another's by now */
		loop_timer_set(&owner->grace, GRACE_MS);
	}
	return owner;
}

/* ---- release ---------------------------------------------------------------------------------- */

void session_watch(struct owner *owner)
{
	struct holding *holding;

	LIST_FOREACH(holding, &owner->holdings, of_owner)
	holding->at_close = false;
}

void session_keep(struct owner *owner)
{
	struct holding *holding, *next;

	for (holding = LIST_FIRST(&owner->holdings); holding; holding = next) {
		next = LIST_NEXT(holding, of_owner);
		holding_forget(holding);
	}
}

void session_undo(struct owner *owner, struct session_undo *undo)
{
	undo->error = 0;
	if (LIST_EMPTY(&owner->holdings)) {
		undo->done(undo, 0);
		return;
	}
	undo->waiting = true;
	LIST_INSERT_HEAD(&owner->undos, undo, link);
	release_all(owner, false, true);
}

void session_undo_cancel(struct session_undo *undo)
{
	if (undo->waiting)
		LIST_REMOVE(undo, link);
	undo->waiting = false;
}

void session_holding_gone(struct owner *owner, bool failed)
{
	struct session_undo *undo;

	LIST_FOREACH(undo, &owner->undos, link)
	if (failed)
		undo->error = -EIO;
	while (LIST_EMPTY(&owner->holdings) && (undo = LIST_FIRST(&owner->undos))) {
		session_undo_cancel(undo);
		undo->done(undo, undo->error);
	}
	put_owner(owner);
}

/* ---- requests --------------------------------------------------------------------------------- */

static bool takes_something(enum cudapool_op op)
{
	return op == CUDAPOOL_OP_LOCK || op == CUDAPOOL_OP_CHECKPOINT;
}

static int request_begins(struct action *action)
{
	struct session_request *request = container_of(action, struct session_request, action);
	int err;

	if (takes_something(action->op) && (!request->answer || (request->owner && request->owner->dead))) {
		snprintf(action->text, sizeof(action->text), "whoever asked for it is gone");
		return -ECANCELED;
	}
	err = holding_begin(request->owner, request->plugin, action->process, action->op, action->before);
	if (err == -ENOSPC)
		snprintf(action->text, sizeof(action->text),
			 "the pool cannot keep book of one process more: at most %d are held at once, and the socket's "
			 "file system must have room",
			 HOLDINGS_MAX);
	else if (err)
		snprintf(action->text, sizeof(action->text), "the pool cannot write its journal: %s", strerror(-err));
	return err;
}

static void free_request(struct session_request *request)
{
	if (request->owner)
		put_owner(request->owner);
	process_close(&request->process);
	free(request);
}

static void request_ended(struct action *action)
{
	struct session_request *request = container_of(action, struct session_request, action);

	if (request->answer)
		request->answer(request, action);
	holding_end(action->process, action->op, action->error);
	free_request(request);
}

int session_start(struct session_request **result, struct owner *owner, bool plugin, enum cudapool_op op, int pid,
		  unsigned timeout_ms)
{
	struct session_request *request = calloc(1, sizeof(*request));
	int err;

	if (!request)
		return -ENOMEM;
	err = process_open(&request->process, pid);
	if (err) {
		free(request);
		return err;
	}
	request->pid = pid;
	request->owner = owner;
	request->plugin = plugin;
	if (owner)
		owner->references++;
	request->action = (struct action){
		.op = op,
		.process = &request->process,
		.timeout_ms = timeout_ms,
		.only_in = ACTION_STATE_UNKNOWN,
		.begin = request_begins,
		.done = request_ended,
	};
	action_start(&request->action);
	*result = request;
	return 0;
}

void session_abandon(struct session_request *request)
{
	request->answer = NULL;
	if (action_withdraw(&request->action))
		free_request(request);
}

/* ---- report ----------------------------------------------------------------------------------- */

unsigned session_count(void)
{
	struct owner *owner;
	unsigned n = 0;

	LIST_FOREACH(owner, &owners, link)
	n++;
	return n;
}

void session_report(struct cudapool_json *json, int limit)
{
	struct holding *holding;
	struct owner *owner;
	int held;

	LIST_FOREACH(owner, &owners, link)
	{
		if (limit-- <= 0)
			return;
		held = 0;
		LIST_FOREACH(holding, &owner->holdings, of_owner)
		held++;
		cudapool_json_open(json, NULL, '{');
		cudapool_json_number(json, "pid", owner->process.pid);
		cudapool_json_string(json, "name", owner->name);
		cudapool_json_bool(json, "alive", !owner->dead);
		cudapool_json_number(json, "plugin_connections", owner->plugins);
		cudapool_json_number(json, "held", held);
		cudapool_json_number(json, "streams", owner->streams);
		cudapool_json_number(json, "chunk_mb", owner->chunk_mb);
		cudapool_json_close(json, '}');
	}
}
