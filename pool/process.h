// SPDX-License-Identifier: MIT
/* Processes by identity rather than by number: a pidfd, and the start time that outlives the keeper. */
#ifndef CUDAPOOL_POOL_PROCESS_H
#define CUDAPOOL_POOL_PROCESS_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

struct process {
	int pid;        /* in the keeper's pid namespace; 0: none */
	int fd;         /* pidfd, owned; -1: none */
	uint64_t start; /* clock ticks after boot, field 22 of /proc/PID/stat: with the pid, unique within one boot */
};

#define PROCESS_NONE ((struct process){.fd = -1})

/* Opens process `pid`, or the one that thread `pid` belongs to. -ESRCH if there is none, or it is a zombie. */
int process_open(struct process *process, int pid);

/* Opens process `pid` only if it is still the one that started at `start`; -ESRCH otherwise. */
int process_reopen(struct process *process, int pid, uint64_t start);

/* A second reference with a descriptor of its own. */
int process_dup(struct process *copy, const struct process *process);

void process_close(struct process *process);

/* False once its last thread has ended, whether or not its parent has noticed. */
bool process_alive(const struct process *process);

bool process_same(const struct process *a, const struct process *b);

/* True if it lives in our own pid namespace, so that a number names the same process for it and for us. */
bool process_shares_pids(const struct process *process);

/* Its parent's pid; 0 if it is gone. */
int process_parent(const struct process *process);

/* True if a thread of it is stopped, by a signal or by a tracer: it cannot take part in a driver action now. */
bool process_stopped(const struct process *process);

/*
 * True if `tid` is the thread of it that has the number `own_tid` in the innermost pid namespace that the process is
 * in, and is called `name`.
 */
bool process_thread_is(const struct process *process, int tid, int own_tid, const char *name);

/* True if it runs CRIU: its name, or the file it executes, is 'criu' (or begins with 'criu-' or 'criu.'). */
bool process_is_criu(const struct process *process);

/* Its name, made safe for logs: no control characters. "?" if it is gone. */
void process_name(int pid, char name[16]);

/* Resident memory in KiB and open descriptors of a process; -1 where it cannot be told. */
long process_rss_kb(int pid);
int process_descriptors(int pid);

#endif
