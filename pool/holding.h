// SPDX-License-Identifier: MIT
/* Holdings: the book of processes that the pool has locked, checkpointed or parked, and for whom. */
#ifndef CUDAPOOL_POOL_HOLDING_H
#define CUDAPOOL_POOL_HOLDING_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/queue.h>

#include "journal.h"
#include "json.h"
#include "loop.h"
#include "message.h"
#include "owner.h"
#include "process.h"
#include "store.h"

#define HOLDINGS_MAX 512

struct operation;
struct undo;

/*
 * One process, and everything of it that is in the pool's hands. Its memory, where that is parked, is spoken of twice:
 *
 *   park   of a process that was parked and lives on: what the store took from it
 *   gift   of a process that is to get memory: the same back (path RETURNED), or that of the park it was restored from
 *
 * A holding without an owner is nobody's: a person parked it, or its owner said KEEP. It is not given back by itself,
 * but the pool must go on knowing whose memory that is.
 */
struct holding {
	struct process process;
	struct owner *owner;      /* referenced; NULL: nobody's */
	uint32_t held;            /* enum journal_held, or'ed: what is to be given back */
	enum cudapool_op pending; /* the changing action that is under way; 0: none */
	int before;               /* the process's state before that */
	bool at_close;		  /* given back when the connection closes; else at the owner's death, after a grace */
	bool unclear;		  /* whoever carried out an action was lost: the driver may complete it late */
	bool gone;		  /* the process died while an operation was under way */

	struct park *park;
	struct store_gift gift;
	struct { /* for the statistics, from one operation to the next */
		uint64_t lock_us, checkpoint_us, restore_us, unlock_us;
		uint64_t parked_bytes, left_bytes;
		uint64_t left[CUDAPOOL_LEFT_KINDS];
		struct cudapool_channel_end end; /* where `ended`: of the last park or unpark */
		bool ended;
		bool unsaved; /* checkpointed: the record of this dump is SAVED's to write, once */
		char why[CUDAPOOL_TEXT_LEN]; /* nothing was parked */
	} story;
	bool gifted;		   /* `gift` is begun, and store_gave() is due */
	bool dump_undone;	   /* an earlier keeper parked it: what it gets, also from the image, is its own again */
	uint8_t token[CUDAPOOL_TOKEN_LEN]; /* of the memory that is held (JOURNAL_HELD_PARKED) or gifted */
	char dir[JOURNAL_DIR_MAX];	   /* where its image is, or will be */

	struct operation *operation; /* operation.c's: what is under way on it; NULL: nothing */
	struct undo *undo;	     /* undo.c's: it is being given back; else NULL */
	struct loop_watch death;
	LIST_ENTRY(holding) all;
	LIST_ENTRY(holding) of_owner;
};

/* What others do when something happens here. */
struct holding_hooks {
	void (*died)(struct operation *operation);	   /* its process died, while this was under way */
	void (*idle)(struct holding *holding);		   /* nothing is under way any more; it is to be given back */
	void (*dropped)(struct holding *holding);	   /* it ends; undo.c frees what is its own */
	void (*left)(struct owner *owner, bool failed);	   /* it lost a holding, which could (not) be given back */
};
void holding_init(const struct holding_hooks *hooks);

/* The holding on this process, or NULL. */
struct holding *holding_find(const struct process *process);

/*
 * An operation on it is under way, or NULL: none is any more. Then, where the process died, the holding may be freed.
 */
void holding_set_operation(struct holding *holding, struct operation *operation);

/*
 * A changing action on `process` is about to begin in state `before`: writes that down, and makes the holding where
 * this is what begins one. owner may be NULL: then nothing new is held, but what others hold is kept up to date.
 * at_close: see above. 0; -ENOSPC: too many; or what the journal said. Giving back never fails here.
 */
int holding_begin(struct owner *owner, bool at_close, const struct process *process, enum cudapool_op op, int before);

/* That action ended; error as in struct action. The holding stays while an operation is under way on it. */
void holding_end(struct holding *holding, enum cudapool_op op, int error);

/*
 * All memory of `process` is about to be taken: writes that down, before the shim is told GO. Errors as
 * holding_begin().
 */
int holding_park(struct owner *owner, bool at_close, const struct process *process, struct park *park, const char *dir,
		 struct holding **holding);

/* It was not taken after all, and the park is gone. */
void holding_not_parked(struct holding *holding);

/* `process` was restored and is to get memory: a holding that has nothing yet, for the gift. NULL: errno says why. */
struct holding *holding_for_gift(struct owner *owner, const struct process *process,
				 const uint8_t token[CUDAPOOL_TOKEN_LEN], const char *dir);

/* From now on its memory is due: a later keeper gives it back, too. */
void holding_due(struct holding *holding);

/* It has its memory (again), or there is none to give. failed_dump: nobody will restore what was parked. */
void holding_unparked(struct holding *holding, bool failed_dump);

/* Nothing of it is to be given back any more; frees it. failed: it could not be. */
void holding_drop(struct holding *holding, bool failed);

/* It is nobody's business any more: the process stays as it is. Frees the holding, unless its memory is still here. */
void holding_forget(struct holding *holding, bool failed);

/* Writes down what is held of it now. */
void holding_write(struct holding *holding);

/*
 * Reads the journal at `path` and takes over what earlier keepers held: each living process that is in it becomes a
 * holding of its owner, dead or alive. One that cannot be opened is reported, and left to the next keeper. 0 or a
 * negative errno.
 */
int holding_recover(const char *path);

unsigned holding_count(void);

/* Of those, the living processes whose memory is nowhere but here: their images are not complete. */
unsigned holding_unsaved(void);

/* Writes the members of one array, at most `limit` of them. */
void holding_report(struct cudapool_json *json, int limit, const char *(*under_way)(const struct holding *holding),
		    int (*attempts)(const struct holding *holding));

#endif
