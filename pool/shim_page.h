// SPDX-License-Identifier: MIT
/* The pool's access to the control page (wire/control_page.h) of a process with the shim. */
#ifndef CUDAPOOL_POOL_SHIM_PAGE_H
#define CUDAPOOL_POOL_SHIM_PAGE_H

#include <stddef.h>
#include <stdint.h>

#include "control_page.h"
#include "message.h" /* CUDAPOOL_TEXT_LEN */
#include "process.h"

#define CUDAPOOL_SHIM_REPORT 1024 /* bytes that suffice for cudapool_shim_report() */

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

/* Safe to call twice. */
void cudapool_shim_close(struct cudapool_shim *shim);

/*
 * What the shim of `pid` says of itself, with a ping that may take limit_ms, as one JSON object:
 *   {"pid", "shim": true, "build", "own_pid", "warmth": "none"|"driver"|"context"|"taken"|"failed", "warm_result",
 *    "warm_us", "restores", "app_inited", "handed_back", "created", "resolved", "ping_us": NUMBER|null, "text"}
 * or {"pid", "shim": false, "text"}. NUL ended, also when it fails: 0, or the error of
 * cudapool_shim_open() or cudapool_shim_read(). An unanswered ping is no error.
 */
int cudapool_shim_report(int pid, int limit_ms, char *json, size_t size);

#endif
