// SPDX-License-Identifier: MIT
/* Holdings: processes that the pool has locked or checkpointed for somebody, and how they are given back. */
#ifndef CUDAPOOL_POOL_HOLDING_H
#define CUDAPOOL_POOL_HOLDING_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/queue.h>

#include "action.h"
#include "journal.h"
#include "json.h"
#include "loop.h"
#include "process.h"

#define HOLDINGS_MAX 512

struct owner;

struct holding {
	struct process process;
	struct owner *owner;      /* referenced for as long as the holding exists */
	uint32_t held;            /* enum journal_held, or'ed: what is to be given back */
	enum cudapool_op pending; /* the changing action that is under way; 0: none */
	int before;               /* the process's state before that */
	bool at_close;  /* given back when the owner's connection closes; else only at the owner's death, after a grace
			 */
	bool releasing; /* is being given back */
	bool at_once;   /* without waiting for stopped threads to run: the owner asked for it and knows */
	bool gone;      /* the process died while an action was under way */
	bool unclear;   /* whoever carried out an action was lost: the driver may complete it late */
	unsigned attempts; /* to give it back, that failed */

	/* holding.c's own */
	struct loop_watch death;
	struct loop_timer again;
	struct action undo;
	bool undoing;
	LIST_ENTRY(holding) all;
	LIST_ENTRY(holding) of_owner;
};

/* The holding on this process, or NULL. */
struct holding *holding_find(const struct process *process);

/*
 * A changing action on `process` is about to begin in state `before`: writes that down, and makes the holding where
 * this is what begins one. owner may be NULL: then nothing new is held, but what others hold is kept up to date.
 * at_close: see above. 0; -ENOSPC: too many; or what the journal said. Giving back never fails here.
 */
int holding_begin(struct owner *owner, bool at_close, const struct process *process, enum cudapool_op op, int before);

/* That action ended; error as in struct action. May free the holding. */
void holding_end(const struct process *process, enum cudapool_op op, int error);

/* Gives it back from now on. at_once: also while threads of the process are stopped. May free the holding. */
void holding_release(struct holding *holding, bool at_once);

/* It is nobody's business any more: the process stays as it is. Frees the holding. */
void holding_forget(struct holding *holding);

/*
 * Reads the journal at `path` and takes over what earlier keepers held: each living process that is
 * in it becomes a holding of its owner, dead or alive (session_recovered_owner()). 0 or a negative errno.
 */
int holding_recover(const char *path);

unsigned holding_count(void);

/* Writes the members of one array, at most `limit` of them. */
void holding_report(struct cudapool_json *json, int limit);

#endif
