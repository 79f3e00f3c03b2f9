// SPDX-License-Identifier: MIT
/* Owners: the CRIU processes for which the pool acts, and that it sees die. */
#ifndef CUDAPOOL_POOL_OWNER_H
#define CUDAPOOL_POOL_OWNER_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/queue.h>

#include "json.h"
#include "loop.h"
#include "process.h"

struct holding;
struct session_undo;

struct owner {
	struct process process; /* .fd is -1 for one that was dead when its holdings were recovered */
	char name[16];
	bool dead;
	unsigned references;        /* connections, requests and holdings */
	unsigned plugins;           /* connections in the role PLUGIN */
	unsigned streams, chunk_mb; /* as its last HELLO said */
	LIST_HEAD(, holding) holdings;	  /* holding.c's, */
	unsigned held;			  /* and how many they are */
	LIST_HEAD(, session_undo) undos;  /* session.c's, as are the next two */
	struct loop_timer grace;
	struct loop_watch death;
	LIST_ENTRY(owner) link;
};

/* died: called when an owner has ended. grace_over: the time after that which owner_recovered() sets is over, too. */
struct owner_config {
	void (*died)(struct owner *owner);
	void (*grace_over)(struct owner *owner);
};
void owner_init(const struct owner_config *config);

/* The living process's owner, known or new, with a reference for the caller. NULL: out of memory or descriptors. */
struct owner *owner_get(const struct process *process);
/*
 * The owner of what the journal says, the same way; dead if that process is gone, and then in its grace. NULL: errno
 * says why.
 */
struct owner *owner_recovered(int pid, uint64_t start);
void owner_hold(struct owner *owner);
void owner_put(struct owner *owner);

/* From now on until grace_over(). */
#define OWNER_GRACE_MS 1000 /* for dumped processes to die, after their owner */

unsigned owner_count(void);
/* Calls `call` for at most `limit` owners. */
void owner_report(struct cudapool_json *json, int limit);

#endif
