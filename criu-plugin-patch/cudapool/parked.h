// SPDX-License-Identifier: GPL-2.0-only
/* Parked GPU memory: what the inventory and the processes say of it, and how it is mapped back. */
#ifndef CUDAPOOL_PLUGIN_PARKED_H
#define CUDAPOOL_PLUGIN_PARKED_H

#include <stdbool.h>
#include <compel/asm/infect-types.h>

#include "wire/message.h"
#include "wire/parked.h"

/* How upstream's part of the plugin lets a stopped thread run, and stops it again. 0 or -1, said in CRIU's log. */
struct cudapool_threads {
	int (*resume)(int tid, k_rtsigset_t *saved);
	int (*interrupt)(int tid, k_rtsigset_t *saved);
};

/*
 * For init of a restore: takes our name off the inventory's list. If it was there the pool is needed, and `plugin`, the
 * name of the plugin itself, is on the list as well afterwards: it must not turn itself off.
 */
int cudapool_parked_init(const char *plugin);

/*
 * For a dump, after a LOCK that succeeded: says in the log whether the process was parked, or why not. The first that
 * was puts our name into the inventory: a CRIU without our plugin then refuses the restore, which would leave the
 * application waiting for its memory. 0 or -1.
 */
int cudapool_parked_lock(int pid, const struct cudapool_result *result, long long ms);

/* "hot-move" and so on. */
const char *cudapool_path_name(unsigned int path);

/* The shim's thread of a process. */
struct cudapool_shim_thread {
	int tid;
	bool resumed; /* by us: it was stopped */
	k_rtsigset_t saved;
};

/*
 * Lets the shim's thread run if we have stopped it: UNPARK is its work, and everything else of the process may stay as
 * it is. `tid` is the pool's word, and only taken if it is a thread of `pid`. 0 or -1.
 */
int cudapool_shim_resume(const struct cudapool_threads *threads, int pid, int tid, struct cudapool_shim_thread *thread);
int cudapool_shim_interrupt(const struct cudapool_threads *threads, struct cudapool_shim_thread *thread);

/* For the end of a dump, after an UNLOCK: maps back what is parked of `pid`. tid: as UNLOCK said. 0 or -1. */
int cudapool_unpark(const struct cudapool_threads *threads, int pid, int tid);

#endif
