// SPDX-License-Identifier: MIT
/* Threads and their processes, also when a number is given to another process at the worst moment. */
#include <errno.h>
#include <linux/sched.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "process.h"
#include "tap.h"

/* In process.o, pidfd_open() is __wrap_pidfd_open(): the linker sees to it. */
int __real_pidfd_open(pid_t pid, unsigned int flags);
int __wrap_pidfd_open(pid_t pid, unsigned int flags);

static bool replace; /* the process, just before it is opened */

/* A child with this number; 0: any. */
static pid_t child_numbered(pid_t pid)
{
	struct clone_args args = {
		.exit_signal = SIGCHLD,
		.set_tid = (uint64_t)(uintptr_t)&pid,
		.set_tid_size = pid != 0,
	};

	return (pid_t)syscall(SYS_clone3, &args, sizeof(args));
}

static void end(pid_t pid)
{
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
}

int __wrap_pidfd_open(pid_t pid, unsigned int flags)
{
	pid_t other;

	if (replace) {
		end(pid);
		other = child_numbered(pid);
		if (other == 0) {
			pause();
			_exit(0);
		}
		if (other < 0) {
			note("clone3: %s", strerror(errno));
			exit(1);
		}
	}
	return __real_pidfd_open(pid, flags);
}

static void *tell_and_wait(void *fd)
{
	pid_t tid = gettid();

	if (write(*(int *)fd, &tid, sizeof(tid)) != sizeof(tid))
		_exit(1);
	pause();
	return NULL;
}

/* A process with a second thread. */
static pid_t start(pid_t *tid)
{
	pthread_t thread;
	int fds[2];
	pid_t pid;

	if (pipe(fds))
		exit(1);
	pid = fork();
	if (pid == 0) {
		pthread_create(&thread, NULL, tell_and_wait, &fds[1]);
		pause();
		_exit(0);
	}
	close(fds[1]);
	if (read(fds[0], tid, sizeof(*tid)) != sizeof(*tid))
		exit(1);
	close(fds[0]);
	return pid;
}

int main(void)
{
	struct process process;
	pid_t pid, tid;
	int err;

	pid = start(&tid);
	err = process_open(&process, tid);
	ok(!err && process.pid == pid && process_alive(&process), "a thread's id stands for its process");
	process_close(&process);
	err = process_open(&process, pid);
	ok(!err && process.pid == pid && process_shares_pids(&process), "and so does the process's own");
	process_close(&process);

	replace = true;
	err = process_open(&process, tid);
	ok(err == -ESRCH && process.fd < 0, "not another process that got the number of the thread's (%s)",
	   err ? strerror(-err) : "it was opened");
	replace = false;
	process_close(&process);
	end(pid);
	ok(process_open(&process, tid) == -ESRCH, "a thread that has ended is none");
	return tap_end();
}
