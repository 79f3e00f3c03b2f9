// SPDX-License-Identifier: GPL-2.0-only
/* The plugin's side of the pool: its options, its connection, and actions with CRIU's deadlines. */
#ifndef CUDAPOOL_PLUGIN_POOL_H
#define CUDAPOOL_PLUGIN_POOL_H

#include <stdbool.h>
#include <stdint.h>

#include "wire/client.h"

/* What the options ask of the plugin. All zero: behave as upstream's. */
struct cudapool_settings {
	bool pool;       /* CRIU_CUDA_CONTEXT_POOL */
	bool loud;       /* a GPU restore that failed fails CRIU's restore */
	bool drop_zero_pages; /* CUDAPOOL_DROP_ZERO_PAGES, if the pool is in use */
	int pool_window; /* processes of a tree that are restored at once through the pool */
	int tool_window; /* the same by executing cuda-checkpoint */
};

/*
 * Reads the options, once. A mistake in them is an error in CRIU's log and leaves everything off: neither
 * a dump nor a restore is lost to a typing error.
 */
const struct cudapool_settings *cudapool_settings(void);

/*
 * GPU memory is parked: in the checkpoint that is restored, or by now in the dump. Only a pool has it or can load it.
 * So from here on the pool is used whatever the options say, there is no way without it, a connection that is lost is
 * looked for again, and what the pool answers stands, whatever the reason.
 */
void cudapool_pool_need(void);
bool cudapool_pool_needed(void);

/*
 * Connects to the pool and starts one if there is none and CUDAPOOL_START allows it. `stage` is
 * CRIU's. A dump waits until the driver is warm, as its first action follows at once and under an alarm; a
 * restore does not, cudapool_pool_warm() does. Tells the pool CRIU's image directory: of a dump, for images of what it
 * will park (where that fails nothing is parked, and the log says why); of a restore, where the pool is needed, to
 * check the images and to begin loading them. 0 or a negative errno, and cudapool_pool_text() says why.
 */
int cudapool_pool_open(int stage);

/* Connects anew, also to a pool started for it. As cudapool_pool_open(), but a dump's directory is not told again. */
int cudapool_pool_reopen(void);

/* Waits until the pool is warm, where it was not when it was connected. 0 or a negative errno; the connection may be
 * new. */
int cudapool_pool_warm(void);

/* The pool's last word on itself; meaningful while it is usable. */
const struct cudapool_welcome *cudapool_pool_welcome(void);

/* False before cudapool_pool_open(), and after anything broke the connection. */
bool cudapool_pool_usable(void);

const char *cudapool_pool_text(void);

/* Why the last connection was lost. */
const char *cudapool_pool_loss(void);

/* CRIU's alarm is running: from the first call on, all actions together have `timeout_s` (0: no limit). */
void cudapool_pool_pausing(unsigned int timeout_s);
void cudapool_pool_paused(void);

/* What is left of that for a lock, in ms, at least 1; timeout_ms where there is no such deadline. */
unsigned int cudapool_pool_time_left(unsigned int timeout_ms);

/*
 * One action from start to end; timeout_ms is for a lock, 0: the pool's own limit. 0: it was carried
 * out or refused, result->error and result->text say which. Negative errno: the pool is lost (said in
 * the log, once), and it is unknown how far the action came.
 */
int cudapool_pool_action(enum cudapool_op op, int pid, unsigned int timeout_ms, struct cudapool_result *result);

/*
 * Several actions at once: the number that the result will carry, and the next result. With parked memory there is no
 * limit for an answer as long as the pool lives: saving and loading have the pool's own, on progress.
 */
int cudapool_pool_begin(enum cudapool_op op, int pid, uint32_t *request);
int cudapool_pool_next(struct cudapool_result *result);

/* The end of a dump: what becomes of the processes that are still locked, checkpointed or parked. */
int cudapool_pool_release(enum cudapool_release_how how);

/*
 * For the end of a dump that succeeded, CUDAPOOL_SYNC: CRIU has written its images by now, but for statistics, and syncs
 * none. Those of GPU memory were synced before CHECKPOINT ended, which can still fail a dump; fini can only say it.
 */
void cudapool_sync_images(void);

void cudapool_pool_close(void);

/* "lock" and so on, as in cuda-checkpoint's --action; 0 for anything else. */
enum cudapool_op cudapool_op_of(const char *action);

#endif
