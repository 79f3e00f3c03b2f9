// SPDX-License-Identifier: MIT
/* Sessions: requests of clients, and by which rule what they took is given back. */
#include "session.h"

#include <errno.h>
#include <stdlib.h>

#include "holding.h"
#include "log.h"
#include "undo.h"

/* ---- release ---------------------------------------------------------------------------------- */

/* What is released for which reason: see the rule. */
enum reason { CLOSED, GRACE_OVER, UNDO };

/*
 * Gives back all that it holds, or only what is bound to the connection. Holdings may be freed; the owner is
 * referenced.
 */
static void release_all(struct owner *owner, enum reason reason)
{
	struct holding *holding, *next;

	for (holding = LIST_FIRST(&owner->holdings); holding; holding = next) {
		next = LIST_NEXT(holding, of_owner);
		if (reason != CLOSED || holding->at_close)
			undo_release(holding, reason == UNDO, reason == UNDO || holding->at_close);
	}
}

static void owner_died(struct owner *owner)
{
	owner_hold(owner);
	release_all(owner, CLOSED);
	owner_put(owner);
}

static void grace_over(struct owner *owner)
{
	if (LIST_EMPTY(&owner->holdings))
		return;
	cudapool_log(CUDAPOOL_LOG_INFO, "%s %d is dead, and what it held lives: giving back", owner->name,
		     owner->process.pid);
	owner_hold(owner);
	release_all(owner, GRACE_OVER);
	owner_put(owner);
}

void session_init(void)
{
	struct owner_config config = {.died = owner_died, .grace_over = grace_over};

	owner_init(&config);
}

struct owner *session_attach(const struct process *process, bool plugin)
{
	struct owner *owner = owner_get(process);

	if (owner)
		owner->plugins += plugin;
	return owner;
}

void session_detach(struct owner *owner, bool plugin)
{
	if (plugin && --owner->plugins == 0)
		release_all(owner, CLOSED);
	owner_put(owner);
}

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
		holding_forget(holding, false);
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
	owner_hold(owner);
	release_all(owner, UNDO);
	owner_put(owner);
}

void session_undo_cancel(struct session_undo *undo)
{
	if (undo->waiting)
		LIST_REMOVE(undo, link);
	undo->waiting = false;
}

void session_holding_left(struct owner *owner, bool failed)
{
	struct session_undo *undo;

	LIST_FOREACH(undo, &owner->undos, link)
	if (failed)
		undo->error = -EIO;
	while (LIST_EMPTY(&owner->holdings) && (undo = LIST_FIRST(&owner->undos))) {
		session_undo_cancel(undo);
		undo->done(undo, undo->error);
	}
}

/* ---- requests --------------------------------------------------------------------------------- */

static void free_request(struct session_request *request)
{
	if (request->operation.owner)
		owner_put(request->operation.owner);
	if (request->operation.dir)
		store_dir_release(request->operation.dir);
	process_close(&request->process);
	free(request);
}

static void request_ended(struct operation *operation)
{
	struct session_request *request = container_of(operation, struct session_request, operation);

	if (request->answer)
		request->answer(request, operation);
	free_request(request);
}

int session_start(struct session_request **result, const struct session_client *client, enum cudapool_op op, int pid,
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
	request->operation = (struct operation){
		.op = op,
		.process = &request->process,
		.timeout_ms = timeout_ms,
		.only_in = ACTION_STATE_UNKNOWN,
		.owner = client->owner,
		.at_close = client->plugin,
		.dropin = client->dropin,
		.asks_saved = client->plugin,
		.failed_dump = op == CUDAPOOL_OP_UNPARK && client->dumps && !client->goes_on,
		.dir = client->dir,
		.hot = client->hot,
		.done = request_ended,
	};
	if (client->owner)
		owner_hold(client->owner);
	if (client->dir)
		store_dir_hold(client->dir);
	operation_start(&request->operation);
	*result = request;
	return 0;
}

void session_abandon(struct session_request *request)
{
	request->answer = NULL;
	if (operation_withdraw(&request->operation))
		free_request(request);
}
