// SPDX-License-Identifier: GPL-2.0-only
/* Restores the GPU state of all processes of the tree, and ends a restore that failed. */
#ifndef CUDAPOOL_PLUGIN_TREE_H
#define CUDAPOOL_PLUGIN_TREE_H

#include <stdbool.h>

#include "parked.h"

/* What upstream's part of the plugin does for us. 0 or -1, and the reason is in CRIU's log. */
struct cudapool_tree_ops {
	int (*restore_tid)(int pid); /* the driver's restore thread; -1: the process has no CUDA */
	void (*prewarm)(int pid);    /* the driver is needed now */
	const struct cudapool_threads *threads;
	/*
	 * Restores and unlocks by executing cuda-checkpoint; `ask` for the state first, where it is
	 * unknown what was done already. Called in a child of CRIU, so that several can be under way.
	 */
	int (*restore)(int pid, bool ask);
};

/*
 * For CRIU's RESUME_DEVICES_LATE hook: the first call restores and unlocks every process of the tree and maps its
 * parked GPU memory back, through the pool if it is usable, and every call returns how that went. If it went
 * wrong, the whole tree is killed and reaped: CRIU ignores the hook's result, but fails with -1
 * when it then finds nobody to detach from, and the images can be restored again.
 *
 * ptrace is used from the caller's thread only. All restore threads run until every process is done; the shim's threads
 * while their memory is mapped back.
 */
int cudapool_restore_tree(const struct cudapool_tree_ops *ops);

#endif
