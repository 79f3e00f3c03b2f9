// SPDX-License-Identifier: MIT
/* Owners: those for whom the pool acts, and what becomes of their holdings when they die. */
#ifndef CUDAPOOL_POOL_SESSION_H
#define CUDAPOOL_POOL_SESSION_H

#include <stdbool.h>
#include <sys/queue.h>

#include "action.h"
#include "holding.h"
#include "loop.h"
#include "process.h"

/*
 * The rule (message.h says it to clients). A process that was locked or checkpointed for an owner is given back:
 *
 *   connection closes without RELEASE   PLUGIN: now. DROPIN: that is how it always goes; nothing happens.
 *   RELEASE UNDO                        now, and DONE when that is finished
 *   RELEASE KEEP                        never: forgotten
 *   RELEASE WATCH                       like a DROPIN's from then on
 *   owner dies                          PLUGIN, not released: now. Otherwise a second later, if it still lives:
 *                                       CRIU kills what it dumped just before it ends itself.
 *
 * Giving back means: restore what was checkpointed, then unlock what was locked, no more than that; a process that was
 * locked when the owner came stays locked. It waits for the end of what is under way on the process. It also waits
 * while threads of the process are stopped (except with UNDO): they could not take part, and `criu dump
 * --leave-stopped` wants it so; it happens when they run again.
 */
struct owner {
	struct process process; /* .fd is -1 for one that was dead when its holdings were recovered */
	char name[16];
	bool dead;
	unsigned references;        /* connections, requests and holdings */
	unsigned plugins;           /* connections in the role PLUGIN */
	unsigned streams, chunk_mb; /* as its last HELLO said: for loading images of GPU memory */
	LIST_HEAD(, holding) holdings;
	LIST_HEAD(, session_undo) undos;
	struct loop_watch death;
	struct loop_timer grace;
	LIST_ENTRY(owner) link;
};

/* A connection of `process` in this role begins or ends. NULL: out of memory or descriptors. */
struct owner *session_attach(const struct process *process, bool plugin);
void session_detach(struct owner *owner, bool plugin);

/* One action asked for by a client. */
struct session_request {
	void (*answer)(struct session_request *request, const struct action *action); /* NULL: nobody waits any more */
	void *context;                                                                /* the asker's */
	uint32_t number; /* the asker's: what it called this request */
	int pid;         /* as asked: perhaps a thread's */

	/* session.c's own */
	struct owner *owner; /* NULL: nothing that it does is owned */
	bool plugin;
	struct process process;
	struct action action;
	LIST_ENTRY(session_request) link; /* free for the asker */
};

/*
 * Starts the action; *request is freed after answer() was called. owner may be NULL. A negative errno if
 * there is no such process (-ESRCH) or no memory.
 */
int session_start(struct session_request **request, struct owner *owner, bool plugin, enum cudapool_op op, int pid,
		  unsigned timeout_ms);

/*
 * Whoever asked is gone: what no worker has had yet is dropped, so that nobody can leave more in the queue than
 * connections may have open. The rest goes on unheard, but for what would take something and has not begun to.
 */
void session_abandon(struct session_request *request);

struct session_undo {                                       /* zeroed, and embedded in the connection that waits */
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

/* For holding.c. The owner of what the journal says, referenced; dead if that process is gone. */
struct owner *session_recovered_owner(int pid, uint64_t start);
/* For holding.c: `owner` lost a holding, which could (or could not) be given back; drops its reference. */
void session_holding_gone(struct owner *owner, bool failed);

/* Writes the members of one array, at most `limit` of them. */
void session_report(struct cudapool_json *json, int limit);
unsigned session_count(void);

#endif
