// SPDX-License-Identifier: MIT
/* What the scripted pool and the recording cuda-checkpoint know of processes: files instead of a driver. */
#ifndef TEST_PLUGIN_FAKESTATE_H
#define TEST_PLUGIN_FAKESTATE_H

#include <stdbool.h>

#include "message.h"

#define FAKE_APP_NAME "cuda-app" /* processes of this name 'use CUDA' */

/*
 * States are kept in the folder of this environment variable, one file per process, named by the pid that
 * the process itself sees: that one is the same after a restore.
 */
#define FAKE_STATE_DIR "FAKE_STATE_DIR"

/* Does the process use CUDA, by its name? `pid` may be a thread's. */
int fake_is_cuda(int pid);

/* enum cudapool_process_state; RUNNING if nothing was ever noted. */
int fake_state(int pid);

/* The thread after the first one; -1 if there is none. */
int fake_restore_tid(int pid);

/* The thread after that one, which stands for the shim's; -1 if there is none. */
int fake_shim_tid(int pid);

/* Is the process's control page there, and does it say that its memory is parked? */
bool fake_is_parked(int pid);

/* Writes the page's state: enum cudapool_park_state. -1: it has no page. */
int fake_set_park_state(int pid, unsigned state);

/* 0, or -1 if the state does not allow it, or if the restore (or the shim's) thread is stopped where it must run. */
int fake_act(enum cudapool_op op, int pid);

/* Appends a line with the time to `file` in the state folder. */
void fake_note(const char *file, const char *format, ...) __attribute__((format(printf, 2, 3)));

const char *fake_op_name(unsigned op);

#endif
