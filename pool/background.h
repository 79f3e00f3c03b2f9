// SPDX-License-Identifier: MIT
/* Calls into the kernel that may take long (sync, read ahead, close much), done beside the loop. */
#ifndef CUDAPOOL_POOL_BACKGROUND_H
#define CUDAPOOL_POOL_BACKGROUND_H

#include <stdbool.h>
#include <sys/queue.h>

/*
 * The keeper has one thread, and what it knows belongs to that one. A background task has a thread of its own for as
 * long as it
 * takes, and touches nothing but what is embedded beside it: work() is a few system calls. At most BACKGROUND_MAX at
 * once, in the
 * order in which they were started.
 */
#define BACKGROUND_MAX 4

struct background {				   /* zeroed, and embedded in what is to be done */
	bool apart;				   /* starts at once, and does not count: it may never end */
	void (*work)(struct background *task);	   /* in the task's thread */
	void (*done)(struct background *task);	   /* in the loop's; the task may be freed in it */

	/* background.c's own */
	STAILQ_ENTRY(background) link;
};

/* 0 or a negative errno. */
int background_init(void);

/* done() is called from the loop, never from within. Where no thread can be had, work() is called from the loop as
 * well. */
void background_start(struct background *task);

#endif
