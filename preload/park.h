// SPDX-License-Identifier: MIT
/* The page's commands PARK and UNPARK: gives the process's GPU memory to the pool, and takes it back. */
#ifndef CUDAPOOL_PRELOAD_PARK_H
#define CUDAPOOL_PRELOAD_PARK_H

#include <stdbool.h>

#include "control_page.h"

/*
 * In the shim's thread only; what is said, to whom and when is in wire/channel.h. While memory comes back every other
 * thread may be stopped, whatever it holds: no malloc, no stdio, no logging, no lock that a thread of the application
 * takes outside the gate, no libc but system calls.
 */

/* Ready to talk: the page's channel_fd can be taken. 0, or why not, as control_page.h says. */
int cudapool_park_prepare(struct cudapool_page *page, enum cudapool_page_command command);
/* Then, when that was acknowledged: talks, and leaves the process parked, or the gate open. */
void cudapool_park_talk(struct cudapool_page *page, enum cudapool_page_command command);

bool cudapool_parked(void); /* by our own knowledge, not the page's */
/* The process was restored: says on the page what it waits for, if it is parked. */
void cudapool_park_restored(struct cudapool_page *page);

#endif
