// SPDX-License-Identifier: MIT
/* The pool's access to the control page (wire/control_page.h) of a process with the shim. */
#ifndef CUDAPOOL_POOL_SHIM_PAGE_H
#define CUDAPOOL_POOL_SHIM_PAGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "control_page.h"
#include "message.h" /* CUDAPOOL_TEXT_LEN */
#include "process.h"

#define CUDAPOOL_SHIM_REPORT 2048 /* bytes that suffice for cudapool_shim_report() */
#define CUDAPOOL_SHIM_THREAD "cudapool" /* what the shim's thread is called, in /proc/PID/task/TID/comm */

/* May be used by one thread at a time; different ones by different threads, also of the same process. */
struct cudapool_shim {
	struct cudapool_page *page; /* written by a process that may lie: see cudapool_shim_read(); NULL: closed */
	struct process process;
	char text[CUDAPOOL_TEXT_LEN]; /* why something failed, in words */
};

/*
 * Finds and maps the page of process `pid` (a thread's id stands for its process). -ENOENT: it has no
 * shim, or its shim has not met the driver yet; -ESRCH: no such process; -EBADMSG: not a page that an
 * honest shim makes; -EPROTONOSUPPORT: a shim of another version; -EACCES or -EPERM: the caller may not look.
 */
int cudapool_shim_open(struct cudapool_shim *shim, int pid);

/* A copy of the page in which every field has been read once, checked and bounded; or -EBADMSG, -EPROTONOSUPPORT. */
int cudapool_shim_read(struct cudapool_shim *shim, struct cudapool_page *copy);

/*
 * Has the shim's thread carry out one command, within limit_ms. *result is the shim's own (any value); *elapsed_us is
 * the time to its acknowledgement. -EBUSY: another pool commands it; -ETIMEDOUT: its thread does
 * not answer (stopped, for instance); -ESRCH: the process ended. Either pointer may be NULL.
 */
int cudapool_shim_command(struct cudapool_shim *shim, enum cudapool_page_command command, int limit_ms, int32_t *result,
			  uint64_t *elapsed_us);

/*
 * The same for a caller that may not wait. token and limit_ms are the command's arguments (token may be NULL). 0:
 * posted, and *seq is its number; -EAGAIN: another pool commands it at the moment. Posting makes the caller the
 * page's owner, until cudapool_shim_leave().
 */
int cudapool_shim_post(struct cudapool_shim *shim, enum cudapool_page_command command, const uint8_t token[16],
		       uint32_t limit_ms, uint32_t *seq);

/*
 * 0: command number `seq` is acknowledged, with that result (any value), and with the descriptor that the shim's
 * channel_fd names at that moment (any value). -EAGAIN: not yet; -ESRCH: the process ended.
 */
int cudapool_shim_acknowledged(struct cudapool_shim *shim, uint32_t seq, int32_t *result, int32_t *channel_fd);

/* The shim's end `channel_fd` was taken: lets it close its own copy, so that it notices when the pool dies. */
void cudapool_shim_taken(struct cudapool_shim *shim, int32_t channel_fd);

/* Ends being the page's owner. unanswered: a command that was not acknowledged is replaced by one that does nothing. */
void cudapool_shim_leave(struct cudapool_shim *shim, bool unanswered);

/*
 * The shim's thread, in the caller's pid namespace: the thread of that process that has page->tid as its number in its
 * own namespace, and the right name. -ESRCH: there is none.
 */
int cudapool_shim_thread(const struct cudapool_shim *shim, const struct cudapool_page *page);

/* Device memory that the driver carries, of all kinds; a copy by cudapool_shim_read() cannot overflow it. */
uint64_t cudapool_shim_left(const struct cudapool_page *page);

/* Safe to call twice. */
void cudapool_shim_close(struct cudapool_shim *shim);

/*
 * What the shim of `pid` says of itself, with a ping that may take limit_ms, as one JSON object:
 *   {"pid", "shim": true, "build", "own_pid", "warmth": "none"|"driver"|"context"|"taken"|"failed", "warm_result",
 *    "warm_us", "restores", "app_inited", "handed_back", "created", "resolved",
 *    "park_state": "open"|"closing"|"parked"|"unparking", "parked_bytes" (of the last
 *    park, or that the next would take), "imported_bytes" (of those the pool's still),
 *    "foreign_mb" (of other processes, imported by the application), "left_bytes": {"small", "ordered", "managed", "array", "shared",
 *    "refused"}, "held_calls", "unknown" (driver functions that the gate does not know), "unknown_name" (the first),
 *    "reason" (why it cannot be parked),
 *    "ping_us": NUMBER|null, "text"}
 * or {"pid", "shim": false, "text"}. NUL ended, also when it fails: 0, or the error of
 * cudapool_shim_open() or cudapool_shim_read(). An unanswered ping is no error.
 */
int cudapool_shim_report(int pid, int limit_ms, char *json, size_t size);

#endif
