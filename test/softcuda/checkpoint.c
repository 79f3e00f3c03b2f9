// SPDX-License-Identifier: MIT
/* The checkpoint functions on another process: states, data, memory, errors, other devices. */
#include "target.h"

#include <sys/ptrace.h>

static size_t free_mb(void)
{
	size_t free, total;

	must(cuMemGetInfo(&free, &total));
	return free >> 20;
}

/* How many descriptors the driver has in it. */
static int driver_fds(pid_t pid)
{
	char path[64], target[128];
	int found = 0;

	for (int fd = 0; fd < 64; fd++) {
		ssize_t size;

		snprintf(path, sizeof(path), "/proc/%d/fd/%d", pid, fd);
		size = readlink(path, target, sizeof(target) - 1);
		if (size <= 0)
			continue;
		target[size] = 0;
		found += strstr(target, "softcuda") || strstr(target, "anon_inode") || strstr(target, "/state") ||
			 strstr(target, "socket");
	}
	return found;
}

static CUprocessState state_of(pid_t pid)
{
	CUprocessState state = 99;

	must(cuCheckpointProcessGetState(pid, &state));
	return state;
}

static CUresult lock_ms(pid_t pid, unsigned ms)
{
	CUcheckpointLockArgs how = {.timeoutMs = ms};

	return cuCheckpointProcessLock(pid, &how);
}

/* Runs cuda-checkpoint and returns its exit status; `out` is what it printed. */
static int tool(char *out, size_t size, const char *arguments)
{
	char command[512];
	FILE *pipe;
	size_t got;
	int status;

	snprintf(command, sizeof(command), DRIVER_BIN "/cuda-checkpoint %s 2>&1", arguments);
	pipe = popen(command, "re");
	if (!pipe)
		return -1;
	got = fread(out, 1, size - 1, pipe);
	out[got] = 0;
	status = pclose(pipe);
	return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void whole_cycle(struct app *app)
{
	pid_t pid = app->pid;
	char path[64];
	int tid = 0;

	is(cuCheckpointProcessGetRestoreThreadId(pid, &tid), CUDA_SUCCESS);
	snprintf(path, sizeof(path), "/proc/%d/task/%d", pid, tid);
	ok(tid != pid && access(path, F_OK) == 0, "the restore thread is one of its threads");
	ok(state_of(pid) == CU_PROCESS_STATE_RUNNING && state_of(tid) == CU_PROCESS_STATE_RUNNING,
	   "running; a thread's id stands for the process");
	is(cuCheckpointProcessCheckpoint(pid, NULL), CUDA_ERROR_ILLEGAL_STATE);
	is(cuCheckpointProcessRestore(pid, NULL), CUDA_ERROR_ILLEGAL_STATE);
	is(cuCheckpointProcessUnlock(pid, NULL), CUDA_ERROR_ILLEGAL_STATE);

	is(lock_ms(pid, 1000), CUDA_SUCCESS);
	ok(state_of(pid) == CU_PROCESS_STATE_LOCKED, "locked");
	ok(app_stands(app), "a locked process stands at its next call");
	is(lock_ms(pid, 1000), CUDA_ERROR_ILLEGAL_STATE);
	is(cuCheckpointProcessUnlock(pid, NULL), CUDA_SUCCESS);
	ok(app_answers(app, 2000), "and goes on after the unlock");

	must(lock_ms(pid, 0));
	ok(free_mb() < 60 && driver_fds(pid) >= 2, "it has the device: memory and %d descriptors", driver_fds(pid));
	is(cuCheckpointProcessCheckpoint(pid, NULL), CUDA_SUCCESS);
	ok(state_of(pid) == CU_PROCESS_STATE_CHECKPOINTED, "checkpointed");
	ok(free_mb() == 64 && driver_fds(pid) == 0, "it has neither memory nor descriptors of the device");
	is(cuCheckpointProcessUnlock(pid, NULL), CUDA_ERROR_ILLEGAL_STATE);
	is(cuCheckpointProcessRestore(pid, NULL), CUDA_SUCCESS);
	ok(state_of(pid) == CU_PROCESS_STATE_LOCKED && free_mb() < 60 && driver_fds(pid) >= 2,
	   "restored, it has them again and is locked");
	is(cuCheckpointProcessUnlock(pid, NULL), CUDA_SUCCESS);
	ok(app_answers(app, 2000), "and its memory holds what it held");
}

static void stopped_thread(struct app *app)
{
	double before = now_ms();
	int tid;

	must(lock_ms(app->pid, 1000));
	must(cuCheckpointProcessGetRestoreThreadId(app->pid, &tid));
	if (ptrace(PTRACE_SEIZE, tid, NULL, NULL) || ptrace(PTRACE_INTERRUPT, tid, NULL, NULL) ||
	    waitpid(tid, NULL, __WALL) != tid) {
		ok(false, "ptrace: %s", strerror(errno));
		return;
	}
	is(cuCheckpointProcessCheckpoint(app->pid, NULL), CUDA_ERROR_TIMEOUT);
	ok(now_ms() - before < 8000, "with its restore thread stopped nothing is done, and that is said in time");
	ptrace(PTRACE_DETACH, tid, NULL, NULL);
	sleep_ms(50);
	ok(state_of(app->pid) == CU_PROCESS_STATE_LOCKED, "the order was withdrawn");
	is(cuCheckpointProcessUnlock(app->pid, NULL), CUDA_SUCCESS);
	ok(app_answers(app, 2000), "it goes on");
}

static void with_tool(struct app *app)
{
	char out[1024], arguments[128];
	int status;

	ok(tool(out, sizeof(out), "-h") == 0 && strstr(out, "--action"),
	   "cuda-checkpoint -h names --action, as CRIU's plugin asks");
	ok(tool(out, sizeof(out), "--action lock") == 1, "without --pid it fails");
	ok(tool(out, sizeof(out), "--action dance --pid 1") == 1, "an unknown action fails");
	snprintf(arguments, sizeof(arguments), "--get-state --pid %d", app->pid);
	status = tool(out, sizeof(out), arguments);
	ok(status == 0 && !strcmp(out, "running\n"), "--get-state");
	snprintf(arguments, sizeof(arguments), "--get-restore-tid --pid %d", app->pid);
	status = tool(out, sizeof(out), arguments);
	ok(status == 0 && atoi(out) > 0, "--get-restore-tid");
	snprintf(arguments, sizeof(arguments), "--toggle --pid %d", app->pid);
	ok(tool(out, sizeof(out), arguments) == 0 && state_of(app->pid) == CU_PROCESS_STATE_CHECKPOINTED,
	   "--toggle suspends");
	ok(tool(out, sizeof(out), arguments) == 0 && app_answers(app, 2000), "--toggle resumes");
	snprintf(arguments, sizeof(arguments), "--action lock --timeout 500 --pid %d", app->pid);
	ok(tool(out, sizeof(out), arguments) == 0 && state_of(app->pid) == CU_PROCESS_STATE_LOCKED, "--action lock");
	must(cuCheckpointProcessUnlock(app->pid, NULL));
	snprintf(arguments, sizeof(arguments), "--get-restore-tid --pid %d", getppid());
	status = tool(out, sizeof(out), arguments);
	ok(status == 1 && strstr(out, "NOT_INITIALIZED"), "a process without CUDA is an error: %s", strtok(out, "\n"));
}

static void other_machine(struct app *app)
{
	CUuuid old_uuid, new_uuid;
	CUcheckpointGpuPair pair;
	CUcheckpointRestoreArgs how = {.gpuPairs = &pair, .gpuPairsCount = 1};

	must(cuDeviceGetUuid(&old_uuid, 0));
	must(lock_ms(app->pid, 1000));
	must(cuCheckpointProcessCheckpoint(app->pid, NULL));
	device_file("machine", "another one");
	pair.oldUuid = old_uuid;
	/* The new machine's UUID, from a process that sees it. */
	{
		int ends[2];

		if (pipe(ends))
			exit(1);
		fflush(stdout);
		if (!fork()) {
			char command[256];

			snprintf(command, sizeof(command), "/proc/self/exe");
			dup2(ends[1], 1);
			execl(command, "checkpoint", "uuid", (char *)NULL);
			_exit(1);
		}
		ok(read(ends[0], &new_uuid, sizeof(new_uuid)) == sizeof(new_uuid) &&
			   memcmp(&new_uuid, &old_uuid, sizeof(new_uuid)),
		   "another machine has other devices");
		wait(NULL);
	}
	pair.newUuid = new_uuid;
	is(cuCheckpointProcessRestore(app->pid, &how), CUDA_SUCCESS);
	must(cuCheckpointProcessUnlock(app->pid, NULL));
	ok(app_answers(app, 2000), "with the pair of UUIDs it is restored there");
	must(lock_ms(app->pid, 1000));
	must(cuCheckpointProcessCheckpoint(app->pid, NULL));
	device_file("machine", "a third one");
	is(cuCheckpointProcessRestore(app->pid, NULL), CUDA_ERROR_INVALID_VALUE);
	ok(state_of(app->pid) == CU_PROCESS_STATE_FAILED, "without, it is lost");
	is(cuCheckpointProcessRestore(app->pid, NULL), CUDA_ERROR_ILLEGAL_STATE);
	device_file("machine", "");
}

int main(int argc, char **argv)
{
	CUprocessState state;
	CUdeviceptr big;
	struct app app;
	CUcontext ctx;
	CUuuid uuid;
	int tid;

	if (argc > 1 && !strcmp(argv[1], "uuid")) {
		must(cuInit(0));
		must(cuDeviceGetUuid(&uuid, 0));
		return write(1, &uuid, sizeof(uuid)) != sizeof(uuid);
	}
	if (geteuid()) {
		printf("1..0 # SKIP reading another process's map_files needs root\n");
		return 0;
	}
	device_dir_make();
	setenv("SOFTCUDA_MEMORY_MB", "64", 1);
	is(cuCheckpointProcessGetState(getpid(), &state), CUDA_ERROR_NOT_INITIALIZED);
	must(cuInit(0));
	must(cuCtxCreate(&ctx, NULL, 0, 0));
	is(cuCheckpointProcessGetState(getppid(), &state), CUDA_ERROR_NOT_INITIALIZED);
	is(cuCheckpointProcessGetState(0x7ffffff0, &state), CUDA_ERROR_INVALID_VALUE);
	is(cuCheckpointProcessGetState(-1, &state), CUDA_ERROR_INVALID_VALUE);
	is(cuCheckpointProcessGetRestoreThreadId(getpid(), &tid), CUDA_SUCCESS);

	if (!ok(app_start(&app, argv[0], device_dir, "8", NULL), "a process with 8 MiB of each kind of memory"))
		return tap_end();
	whole_cycle(&app);
	whole_cycle(&app);
	with_tool(&app);
	stopped_thread(&app);

	device_file("faults", "lock=999@1,restore=hang:100");
	is(lock_ms(app.pid, 1000), CUDA_ERROR_UNKNOWN);
	ok(state_of(app.pid) == CU_PROCESS_STATE_RUNNING && app_answers(&app, 2000), "a failed lock leaves it running");
	must(lock_ms(app.pid, 1000));
	must(cuCheckpointProcessCheckpoint(app.pid, NULL));
	{
		double before = now_ms();

		is(cuCheckpointProcessRestore(app.pid, NULL), CUDA_SUCCESS);
		ok(now_ms() - before >= 100, "a restore can be made slow");
	}
	must(cuCheckpointProcessUnlock(app.pid, NULL));
	device_file("faults", "");
	other_machine(&app);
	app_end(&app);

	if (!ok(app_start(&app, argv[0], device_dir, "8", NULL), "another"))
		return tap_end();
	must(lock_ms(app.pid, 1000));
	must(cuCheckpointProcessCheckpoint(app.pid, NULL));
	must(cuMemAlloc(&big, 60 << 20));
	is(cuCheckpointProcessRestore(app.pid, NULL), CUDA_ERROR_OUT_OF_MEMORY);
	must(cuMemFree(big));
	ok(state_of(app.pid) == CU_PROCESS_STATE_FAILED, "a restore that lacks memory is final");
	is(cuCheckpointProcessRestore(app.pid, NULL), CUDA_ERROR_ILLEGAL_STATE);
	app_end(&app);
	is(cuCheckpointProcessGetState(app.pid, &state), CUDA_ERROR_INVALID_VALUE);

	must(cuCtxDestroy(ctx));
	device_dir_remove();
	return tap_end();
}
