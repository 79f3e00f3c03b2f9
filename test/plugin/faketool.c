// SPDX-License-Identifier: MIT
/* Stands in for cuda-checkpoint: the same flags and output, notes that it was executed, fails on request. */
#include "fakestate.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static const char *value_of(int argc, char **argv, const char *flag)
{
	int i;

	for (i = 1; i + 1 < argc; i++)
		if (strcmp(argv[i], flag) == 0)
			return argv[i + 1];
	return NULL;
}

static int has(int argc, char **argv, const char *flag)
{
	int i;

	for (i = 1; i < argc; i++)
		if (strcmp(argv[i], flag) == 0)
			return 1;
	return 0;
}

int main(int argc, char **argv)
{
	static const char *const states[] = {"running", "locked", "checkpointed", "failed"};
	const char *pid_text = value_of(argc, argv, "--pid"), *action = value_of(argc, argv, "--action");
	const char *broken = getenv("FAKE_TOOL_FAIL"), *slow = getenv("FAKE_TOOL_RESTORE_MS");
	int pid = pid_text ? atoi(pid_text) : 0;
	unsigned op;

	fake_note("executed", "%s %d", action ? action : argc > 1 ? argv[1] : "", pid);
	if (has(argc, argv, "-h")) {
		puts("--action, --get-state, --get-restore-tid, --pid, --timeout");
		return 0;
	}
	if (!fake_is_cuda(pid)) {
		puts("OS call failed or operation not supported on this OS");
		return 1;
	}
	if (has(argc, argv, "--get-state")) {
		puts(states[fake_state(pid)]);
		return 0;
	}
	if (has(argc, argv, "--get-restore-tid")) {
		printf("%d\n", fake_restore_tid(pid));
		return 0;
	}
	for (op = CUDAPOOL_OP_LOCK; action && op <= CUDAPOOL_OP_UNLOCK; op++) {
		if (strcmp(action, fake_op_name(op)) != 0)
			continue;
		if (slow && op == CUDAPOOL_OP_RESTORE)
			nanosleep(&(struct timespec){atoi(slow) / 1000, atoi(slow) % 1000 * 1000000l}, NULL);
		if ((broken && strcmp(broken, action) == 0) || fake_act(op, pid)) {
			puts("Could not do that: \"invalid argument\"");
			return 1;
		}
		return 0;
	}
	puts("Usage: cuda-checkpoint");
	return 1;
}
