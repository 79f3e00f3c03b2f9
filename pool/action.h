// SPDX-License-Identifier: MIT
/* Checkpoint actions: queued for the worker, limited in time, and seen through when a worker is lost. */
#ifndef CUDAPOOL_POOL_ACTION_H
#define CUDAPOOL_POOL_ACTION_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/queue.h>

#include "loop.h"
#include "message.h"
#include "process.h"
#include "worker.h"

#define ACTION_STATE_UNKNOWN (-1) /* the driver would not tell */

/* One action from start to end. Embedded in what asked for it, which zeroes it and fills in the first part. */
struct action {
	enum cudapool_op op;
	const struct process *process; /* the caller's; stays open until done() */
	unsigned timeout_ms;           /* LOCK only; 0: as long as the pool's own limit */
	int only_in; /* carry it out only in this cudapool_process_state, else -EALREADY; ACTION_STATE_UNKNOWN: always
		      */
	/*
	 * For ops that change the process: called when `before` is known and the driver has not been asked to change
	 * anything yet. A negative errno ends the action with that (and `text`). NULL: not wanted.
	 */
	int (*begin)(struct action *action);
	/* Called once, never from within action_start(). `action` may be freed in it. */
	void (*done)(struct action *action);

	/* The outcome: `before` valid in begin(), all of it in done(). */
	int before; /* the process's state when the action began, or ACTION_STATE_UNKNOWN */
	int error;  /* 0 or a negative errno; -EREMOTEIO: the driver refused, cu_result says how */
	int cu_result;
	int value;
	unsigned elapsed_us; /* in the driver's call */
	unsigned generation; /* of the worker that did it */
	char text[CUDAPOOL_TEXT_LEN];

	/* action.c's own. */
	enum action_step { ACTION_BEFORE, ACTION_ACT, ACTION_FOLLOW, ACTION_ENDED } step;
	bool running; /* with the worker; else queued */
	bool hung;    /* it was this action that the worker did not come back from */
	bool retried;
	unsigned losses; /* workers that it has outlived */
	uint32_t id;
	struct loop_timer limit;
	TAILQ_ENTRY(action) link;
};

/* threads: actions that the worker takes at once. */
void actions_init(int threads, int action_limit_s);

/* Actions on one process are carried out one at a time, in the order in which they were started. */
void action_start(struct action *action);

/*
 * Takes it back if no worker has had it yet: true, and done() is not called. False: it goes on, and done() is
 * called. There are never more of those than the worker takes at once.
 */
bool action_withdraw(struct action *action);

/* How many wait, and how many are with the worker. */
void actions_count(unsigned *queued, unsigned *running);

/* To be called from the worker link: see struct link_config. */
void actions_result(const struct worker_message *message);
void actions_worker_lost(const char *what);
void actions_worker_changed(void);

/* "lock", "restore-tid" and so on. */
const char *action_name(enum cudapool_op op);

/* "running", "locked", "checkpointed", "failed"; "unknown". */
const char *action_state_name(int state);

#endif
