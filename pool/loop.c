// SPDX-License-Identifier: MIT
/* The keeper's event loop: descriptors, timers, and nothing that can block. */
#include "loop.h"

#include <errno.h>
#include <limits.h>
#include <sys/epoll.h>
#include <time.h>

static int epoll_fd = -1;
static bool quit;
static LIST_HEAD(, loop_timer) timers = LIST_HEAD_INITIALIZER(timers);

uint64_t loop_now_us(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000 + ts.tv_nsec / 1000;
}

uint64_t loop_now_ms(void)
{
	return loop_now_us() / 1000;
}

int loop_init(void)
{
	epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	return epoll_fd < 0 ? -errno : 0;
}

int loop_watch(struct loop_watch *watch, uint32_t events)
{
	struct epoll_event event = {.events = events, .data.ptr = watch};

	if (epoll_ctl(epoll_fd, watch->on ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, watch->fd, &event))
		return -errno;
	watch->on = true;
	return 0;
}

void loop_unwatch(struct loop_watch *watch)
{
	if (watch->on)
		epoll_ctl(epoll_fd, EPOLL_CTL_DEL, watch->fd, NULL);
	watch->on = false;
}

void loop_timer_set(struct loop_timer *timer, uint64_t ms)
{
	loop_timer_cancel(timer);
	timer->due_ms = loop_now_ms() + ms;
	timer->on = true;
	LIST_INSERT_HEAD(&timers, timer, link);
}

void loop_timer_cancel(struct loop_timer *timer)
{
	if (timer->on)
		LIST_REMOVE(timer, link);
	timer->on = false;
}

/* The one that is due first. There are a few hundred at the most, so a list serves. */
static struct loop_timer *first_timer(void)
{
	struct loop_timer *timer, *first = NULL;

	LIST_FOREACH(timer, &timers, link)
	if (!first || timer->due_ms < first->due_ms)
		first = timer;
	return first;
}

static int time_to_wait(void)
{
	struct loop_timer *timer = first_timer();
	uint64_t now = loop_now_ms();

	if (!timer)
		return -1;
	if (timer->due_ms <= now)
		return 0;
	return timer->due_ms - now > INT_MAX ? INT_MAX : (int)(timer->due_ms - now);
}

int loop_run(void)
{
	struct loop_timer *timer;
	struct epoll_event event;
	struct loop_watch *watch;
	int n;

	while (!quit) {
		/*
		 * One event at a time: what it triggers may free any other watch, and an event taken from the kernel
		 * earlier would then point nowhere. The kernel serves ready descriptors in turn, so nobody starves.
		 */
		n = epoll_wait(epoll_fd, &event, 1, time_to_wait());
		if (n < 0 && errno != EINTR)
			return -errno;
		if (n > 0) {
			watch = event.data.ptr;
			watch->ready(watch, event.events);
		}
		timer = first_timer();
		if (timer && timer->due_ms <= loop_now_ms()) {
			loop_timer_cancel(timer);
			timer->fire(timer);
		}
	}
	quit = false;
	return 0;
}

void loop_quit(void)
{
	quit = true;
}
