// SPDX-License-Identifier: MIT
/* Sessions: requests of clients, and by which rule what they took is given back. */
#ifndef CUDAPOOL_POOL_SESSION_H
#define CUDAPOOL_POOL_SESSION_H

#include <stdbool.h>
#include <sys/queue.h>

#include "operation.h"
#include "owner.h"
#include "process.h"
#include "store.h"

/*
 * The rule (message.h says it to clients). A process that was locked, checkpointed or parked for an owner is given
 * back:
 *
 *   connection closes without RELEASE   PLUGIN: now. DROPIN: that is how it always goes; nothing happens.
 *   RELEASE UNDO                        now, and DONE when that is finished
 *   RELEASE KEEP                        never: forgotten
 *   RELEASE WATCH                       like a DROPIN's from then on
 *   owner dies                          PLUGIN, not released: now. Otherwise a second later, if it still lives:
 *                                       CRIU kills what it dumped just before it ends itself.
 *
 * Giving back means: restore what was checkpointed, unlock what was locked, then unpark what was parked, no more than
 * that; a process that was locked when the owner came stays locked. Where it is done 'now', the dump has failed, and
 * the images of what was parked go as well.
 */

/* For keeper.c: what follows when owners end. */
void session_init(void);

/* A connection of `process` in this role begins or ends. NULL: out of memory or descriptors. */
struct owner *session_attach(const struct process *process, bool plugin);
void session_detach(struct owner *owner, bool plugin);

/* Who asks, and for what images: of a connection. */
struct session_client {
	struct owner *owner; /* NULL: nothing that it does is owned */
	bool plugin, dropin;
	bool dumps;   /* its stage, as HELLO said: what it gives back comes from a dump that failed, */
	bool goes_on; /* unless RELEASE GO_ON said that it did not */
	struct store_dir *dir; /* NULL: the pool's own */
	enum cudapool_hot hot;
};

/* One action asked for by a client. */
struct session_request {
	/* NULL: nobody waits any more */
	void (*answer)(struct session_request *request, const struct operation *operation);
	void *context;	 /* the asker's */
	uint32_t number; /* the asker's: what it called this request */
	int pid;	 /* as asked: perhaps a thread's */

	/* session.c's own */
	struct process process;
	struct operation operation;
	LIST_ENTRY(session_request) link; /* free for the asker */
};

/*
 * Starts the operation; *request is freed after answer() was called. A negative errno if there is no such process
 * (-ESRCH) or no memory.
 */
int session_start(struct session_request **request, const struct session_client *client, enum cudapool_op op, int pid,
		  unsigned timeout_ms);

/*
 * Whoever asked is gone: what has not begun is dropped, so that nobody can leave more in the queue than connections may
 * have open. The rest goes on unheard, but for what would take something and has not begun to.
 */
void session_abandon(struct session_request *request);

struct session_undo {					    /* zeroed, and embedded in the connection that waits */
	void (*done)(struct session_undo *undo, int error); /* -EIO: not everything could be given back */
	int error;
	bool waiting;
	LIST_ENTRY(session_undo) link;
};

void session_watch(struct owner *owner);
void session_keep(struct owner *owner);
/* undo->done() is called when everything is given back, perhaps before this returns. */
void session_undo(struct owner *owner, struct session_undo *undo);
void session_undo_cancel(struct session_undo *undo);

/* For holding_hooks: `owner` lost a holding, which could (or could not) be given back. */
void session_holding_left(struct owner *owner, bool failed);

#endif
