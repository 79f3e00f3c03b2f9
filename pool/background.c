// SPDX-License-Identifier: MIT
/* Calls into the kernel that may take long (sync, read ahead, close much), done beside the loop. */
#include "background.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "loop.h"

static STAILQ_HEAD(, background) queued = STAILQ_HEAD_INITIALIZER(queued);   /* the loop's */
static STAILQ_HEAD(, background) finished = STAILQ_HEAD_INITIALIZER(finished); /* guarded by `lock` */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct loop_watch finish = {.fd = -1};
static struct loop_timer start;
static unsigned running;

static void finish_task(struct background *task)
{
	pthread_mutex_lock(&lock);
	STAILQ_INSERT_TAIL(&finished, task, link);
	pthread_mutex_unlock(&lock);
	eventfd_write(finish.fd, 1); /* cannot overflow: there are few tasks */
}

static void *run(void *argument)
{
	struct background *task = argument;

	task->work(task);
	finish_task(task);
	return NULL;
}

static bool start_thread(struct background *task)
{
	sigset_t all, before;
	pthread_attr_t attr;
	pthread_t thread;
	int err;

	pthread_attr_init(&attr);
	pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	err = pthread_create(&thread, &attr, run, task);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	pthread_attr_destroy(&attr);
	return !err;
}

static void start_task(struct background *task)
{
	if (start_thread(task))
		return;
	task->work(task);
	finish_task(task);
}

static void start_next(struct loop_timer *timer)
{
	struct background *task;

	while (running < BACKGROUND_MAX && (task = STAILQ_FIRST(&queued))) {
		STAILQ_REMOVE_HEAD(&queued, link);
		running++;
		start_task(task);
	}
}

static void task_finished(struct loop_watch *watch, uint32_t events)
{
	struct background *task;
	eventfd_t count;

	eventfd_read(watch->fd, &count);
	for (;;) {
		pthread_mutex_lock(&lock);
		task = STAILQ_FIRST(&finished);
		if (task)
			STAILQ_REMOVE_HEAD(&finished, link);
		pthread_mutex_unlock(&lock);
		if (!task)
			break;
		running -= !task->apart;
		task->done(task);
	}
	start_next(&start);
}

int background_init(void)
{
	start.fire = start_next;
	finish = (struct loop_watch){.fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK), .ready = task_finished};
	return finish.fd < 0 ? -errno : loop_watch(&finish, EPOLLIN);
}

void background_start(struct background *task)
{
	if (task->apart) {
		start_task(task);
		return;
	}
	STAILQ_INSERT_TAIL(&queued, task, link);
	loop_timer_set(&start, 0);
}
