// SPDX-License-Identifier: MIT
/*
 * Operations: what a client's ACTION is made of. Parks, the store and the driver's actions, put together as message.h
 * says.
 */
#ifndef CUDAPOOL_POOL_OPERATION_H
#define CUDAPOOL_POOL_OPERATION_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/queue.h>

#include "action.h"
#include "holding.h"
#include "park.h"
#include "process.h"
#include "store.h"

/*
 *   LOCK        page and channel: park -> the driver's lock. What fails after the park is followed by an unpark.
 *   CHECKPOINT  the driver's checkpoint, beside the end of saving; for a plugin, without that
 *   SAVED       the end of saving
 *   RESTORE     claim -> the driver's restore
 *   UNLOCK      the driver's unlock; then the memory is due
 *   UNPARK      give -> page and channel: unpark
 *
 * and the rest are the driver's alone. Embedded in what asked for it, which zeroes it and fills in the first part.
 */
struct operation {
	enum cudapool_op op;
	const struct process *process; /* the caller's; stays open until done() */
	unsigned timeout_ms;	       /* LOCK, UNPARK; 0: as long as the pool's own limit */
	int only_in;		       /* as in struct action */
	struct owner *owner;	       /* for whom; the caller's reference; NULL: nobody */
	bool at_close;		       /* as in struct holding */
	bool dropin;		       /* nobody will ask for UNPARK: UNLOCK begins it */
	bool asks_saved;	       /* SAVED will be asked for: CHECKPOINT does not wait for the image */
	bool undo;		       /* of a holding that is given back: does nothing to one that was forgotten */
	bool failed_dump;	       /* and what was parked will never be restored */
	struct store_dir *dir;	       /* the caller's reference; NULL: the pool's own */
	enum cudapool_hot hot;
	/* Called once, never from within operation_start(). `operation` may be freed in it. */
	void (*done)(struct operation *operation);

	/* The outcome: all of it valid in done(). */
	int before; /* the process's state when the driver's action began, or ACTION_STATE_UNKNOWN */
	int error;  /* 0 or a negative errno; -EREMOTEIO: the driver refused, cu_result says how */
	int cu_result;
	int value;
	unsigned elapsed_us; /* in the driver's call; UNPARK: with the shim */
	unsigned generation; /* of the worker that did it */
	enum cudapool_path path;
	uint64_t parked_bytes, left_bytes;
	char text[CUDAPOOL_TEXT_LEN];

	/* operation.c's own. */
	bool abandoned;		 /* nobody waits for it any more: it takes nothing that it has not taken yet */
	bool begun;		 /* it was its turn */
	bool acting;		 /* `action` is under way */
	bool saving;		 /* CHECKPOINT, SAVED: the image is not complete yet */
	int save_error;
	bool give_back;		 /* what it holds is to be given back when it ends */
	struct holding *holding; /* on its process; NULL: none */
	struct action action;
	struct parking parking;
	struct store_waiter waiter;
	struct store_dir *own_dir; /* of a park that has no directory of a client's */
	void (*then)(struct operation *operation, int error);  /* what follows the step that is under way */
	void (*after)(struct operation *operation, int error); /* what follows a part of several steps */
	struct loop_timer turn, limit;
	uint64_t end_ms; /* LOCK: all of it has to be done by then */
	TAILQ_ENTRY(operation) link;
};

struct operation_config {
	bool park; /* CUDAPOOL_PARK */
	int action_limit_s;
	/* Its memory is to be given back in the background from now on. failed_dump as above. */
	void (*give_back)(struct holding *holding, bool failed_dump);
};
void operations_init(const struct operation_config *config);

/* Operations that change a process are carried out one at a time for each, in the order in which they were started. */
void operation_start(struct operation *operation);

/*
 * Takes it back if nothing was begun that cannot simply be left: true, and done() is not called. False: it goes on,
 * takes nothing new, and done() is called.
 */
bool operation_withdraw(struct operation *operation);

/* For holding_hooks. */
void operation_process_died(struct operation *operation);

/* How many are under way or wait. */
unsigned operations_count(void);

#endif
