// SPDX-License-Identifier: MIT
/* What the files of operations share: their common parts, and where each kind begins. */
#ifndef CUDAPOOL_POOL_OPERATION_INTERNAL_H
#define CUDAPOOL_POOL_OPERATION_INTERNAL_H

#include "operation.h"

/*
 * operation.c          turns, the driver's actions, beginning and end
 * operation_dump.c     LOCK, CHECKPOINT and SAVED
 * operation_restore.c  RESTORE, UNLOCK and UNPARK
 *
 * Each step ends by beginning the next, or with operation_finish(), after which the operation is gone.
 */

void operation_say(struct operation *operation, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* The end; done() is called. */
void operation_finish(struct operation *operation, int error);
void operation_fail(struct operation *operation, int error, const char *format, ...)
	__attribute__((format(printf, 3, 4)));

/* The holding on the process, if there is one by now, is busy with this operation. */
void operation_find_holding(struct operation *operation);

/* 0, or a negative errno (and text) if nothing may be taken for whoever asked. */
int operation_may_take(struct operation *operation);

/* Says why the book could not be written. */
void operation_explain(struct operation *operation, int error);

/* One of the driver's actions; `then` is told how it ended. */
void operation_act(struct operation *operation, enum cudapool_op op, unsigned timeout_ms,
		   void (*then)(struct operation *operation, int error));

/* The waiter to hand to the store, in the last call of a step; `then` is told what it said. */
struct store_waiter *operation_waits(struct operation *operation, void (*then)(struct operation *operation, int error));

/* The operation's limit, or the pool's own if that is shorter. */
unsigned operation_limit_ms(const struct operation *operation);

/* Parking is on in this pool. */
bool operation_parks(void);

/*
 * Tells the store's statistics how a checkpoint or restore has ended. Before the gift or the park are let go of.
 */
void operation_note(struct operation *operation, enum cudapool_stage stage, int error);

/*
 * Maps the memory of a holding that has a gift back into the process. When after() hears 0, the holding has neither
 * gift nor park any more.
 */
void operation_prepare_return(struct holding *holding); /* gives it one, of its own memory */
void operation_unpark(struct operation *operation, void (*after)(struct operation *operation, int error));

/* Where the operations of these kinds begin. */
void operation_lock(struct operation *operation);
void operation_checkpoint(struct operation *operation);
void operation_saved(struct operation *operation);
void operation_restore(struct operation *operation);
void operation_unlock(struct operation *operation);
void operation_unpark_asked(struct operation *operation);
void operation_shim(struct operation *operation);

#endif
