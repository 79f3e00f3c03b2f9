// SPDX-License-Identifier: MIT
/* The keeper's event loop: descriptors, timers, and nothing that can block. */
#ifndef CUDAPOOL_POOL_LOOP_H
#define CUDAPOOL_POOL_LOOP_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/queue.h>

/* Embedded in what it belongs to. Zeroed is a valid idle state of both. */
struct loop_watch {
	int fd; /* stays its owner's */
	bool on;
	void (*ready)(struct loop_watch *watch, uint32_t events);
};

struct loop_timer {
	uint64_t due_ms;
	bool on;
	void (*fire)(struct loop_timer *timer);
	LIST_ENTRY(loop_timer) link;
};

/* The structure of which `member` is the watch or timer at `pointer`. */
#define container_of(pointer, type, member) ((type *)((char *)(pointer) - __builtin_offsetof(type, member)))

int loop_init(void);

/* Calls watch->ready on these events from now on (EPOLLIN, EPOLLOUT; EPOLLHUP and EPOLLERR are always included). */
int loop_watch(struct loop_watch *watch, uint32_t events);

/* No further call of watch->ready, not even for an event that is there already. */
void loop_unwatch(struct loop_watch *watch);

/* Fires once in `ms`; a timer that is set again counts from then on. */
void loop_timer_set(struct loop_timer *timer, uint64_t ms);
void loop_timer_cancel(struct loop_timer *timer);

/* Runs until loop_quit(); 0 or a negative errno. */
int loop_run(void);
void loop_quit(void);

/* CLOCK_MONOTONIC in milliseconds and microseconds. */
uint64_t loop_now_ms(void);
uint64_t loop_now_us(void);

#endif
