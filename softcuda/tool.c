// SPDX-License-Identifier: MIT
/* cuda-checkpoint: the stand-in for NVIDIA's tool of that name, with the same options and output. */
#include <cuda.h>

#include <errno.h>
#include <getopt.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "softcuda.h"

static const char usage[] =
	"cuda-checkpoint " CUDAPOOL_VERSION " (softcuda, the software driver)\n"
	"\n"
	"  --get-state --pid PID          print the CUDA state: running, locked, checkpointed, failed\n"
	"  --get-restore-tid --pid PID    print the id of the CUDA restore thread\n"
	"  --action ACTION --pid PID [--timeout MS]\n"
	"                                 lock, checkpoint, restore or unlock; the limit is for lock\n"
	"  --toggle --pid PID             suspend a running process, or resume a suspended one\n"
	"  --help, -h                     this text\n";

static const char *const state_names[] = {"running", "locked", "checkpointed", "failed"};

static int misused(void)
{
	fputs("cuda-checkpoint: one of --get-state, --get-restore-tid, --action ACTION, --toggle, and --pid PID; see "
	      "--help\n",
	      stderr);
	return 1;
}

static int number(const char *text, const char *option, long min, int *value)
{
	char *end;
	long parsed;

	errno = 0;
	parsed = strtol(text, &end, 10);
	if (errno || end == text || *end || parsed < min || parsed > INT_MAX) {
		fprintf(stderr, "cuda-checkpoint: %s %s: not a number from %ld to %d\n", option, text, min, INT_MAX);
		return -1;
	}
	*value = parsed;
	return 0;
}

static int report(const char *what, int pid, CUresult result)
{
	const char *name = "?", *text = "";

	if (result == CUDA_SUCCESS)
		return 0;
	cuGetErrorName(result, &name);
	cuGetErrorString(result, &text);
	fprintf(stderr, "cuda-checkpoint: %s of process %d failed: %s (%d): %s\n", what, pid, name, result, text);
	return 1;
}

static int act(const char *action, int pid, int timeout_ms)
{
	CUcheckpointLockArgs lock = {.timeoutMs = timeout_ms};
	CUresult result;

	if (!strcmp(action, "lock"))
		result = cuCheckpointProcessLock(pid, &lock);
	else if (!strcmp(action, "checkpoint"))
		result = cuCheckpointProcessCheckpoint(pid, NULL);
	else if (!strcmp(action, "restore"))
		result = cuCheckpointProcessRestore(pid, NULL);
	else
		result = cuCheckpointProcessUnlock(pid, NULL);
	return report(action, pid, result);
}

static int toggle(int pid, int timeout_ms)
{
	CUprocessState state;
	int failed = report("get-state", pid, cuCheckpointProcessGetState(pid, &state));

	if (failed)
		return failed;
	if (state == CU_PROCESS_STATE_RUNNING)
		return act("lock", pid, timeout_ms) || act("checkpoint", pid, 0);
	if (state == CU_PROCESS_STATE_CHECKPOINTED)
		return act("restore", pid, 0) || act("unlock", pid, 0);
	fprintf(stderr, "cuda-checkpoint: process %d is %s: use --action\n", pid, state_names[state]);
	return 1;
}

int main(int argc, char **argv)
{
	enum { NONE, GET_STATE, GET_TID, ACTION, TOGGLE } mode = NONE;
	static const struct option options[] = {
		{"get-state", no_argument, NULL, 's'},    {"get-restore-tid", no_argument, NULL, 't'},
		{"action", required_argument, NULL, 'a'}, {"toggle", no_argument, NULL, 'o'},
		{"pid", required_argument, NULL, 'p'},    {"timeout", required_argument, NULL, 'm'},
		{"help", no_argument, NULL, 'h'},         {},
	};
	int option, pid = 0, timeout_ms = 0, tid, modes = 0, failed;
	const char *action = NULL;
	CUprocessState state;

	while ((option = getopt_long(argc, argv, "hp:", options, NULL)) != -1) {
		switch (option) {
		case 's':
			mode = GET_STATE;
			modes++;
			break;
		case 't':
			mode = GET_TID;
			modes++;
			break;
		case 'a':
			mode = ACTION;
			modes++;
			action = optarg;
			break;
		case 'o':
			mode = TOGGLE;
			modes++;
			break;
		case 'p':
			if (number(optarg, "--pid", 1, &pid))
				return 1;
			break;
		case 'm':
			if (number(optarg, "--timeout", 0, &timeout_ms))
				return 1;
			break;
		case 'h':
			fputs(usage, stdout);
			return 0;
		default:
			return misused();
		}
	}
	if (modes != 1 || !pid || optind != argc ||
	    (action && strcmp(action, "lock") && strcmp(action, "checkpoint") && strcmp(action, "restore") &&
	     strcmp(action, "unlock"))) {
		return misused();
	}

	if (report("cuInit, for an action", pid, cuInit(0)))
		return 1;
	softcuda_spend_process();
	switch (mode) {
	case GET_STATE:
		failed = report("get-state", pid, cuCheckpointProcessGetState(pid, &state));
		if (!failed)
			puts(state_names[state]);
		return failed;
	case GET_TID:
		failed = report("get-restore-tid", pid, cuCheckpointProcessGetRestoreThreadId(pid, &tid));
		if (!failed)
			printf("%d\n", tid);
		return failed;
	case ACTION:
		return act(action, pid, timeout_ms);
	default:
		return toggle(pid, timeout_ms);
	}
}
