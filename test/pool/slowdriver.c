// SPDX-License-Identifier: MIT
/*
 * A libcuda.so.1 that does what the H200's was measured to do where softcuda does otherwise: a restore takes its
 * time and ends well whatever becomes of its caller, and whoever asks for the state waits for that. It looks at no
 * process, and knows one state for all of them. What every driver has is in olddriver.c.
 */
#pragma GCC visibility push(default)
#include <cuda.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

/* In the file SLOWDRIVER_STATE, so that it outlives a worker. Calls come one after another. */
static volatile struct {
	long long end_ms; /* of the restore; 0: none is under way */
	CUprocessState state;
} * shared;

static long long now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000ll + ts.tv_nsec / 1000000;
}

static __attribute__((constructor)) void map(void)
{
	const char *path = getenv("SLOWDRIVER_STATE");
	int fd = path ? open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600) : -1;

	if (fd < 0 || ftruncate(fd, 4096))
		abort();
	shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	close(fd);
	if (shared == MAP_FAILED)
		abort();
}

static void settle(void)
{
	while (shared->end_ms && now_ms() < shared->end_ms)
		usleep(1000);
	if (shared->end_ms)
		shared->state = CU_PROCESS_STATE_LOCKED;
	shared->end_ms = 0;
}

static CUresult step(CUprocessState from, CUprocessState to)
{
	settle();
	if (shared->state != from)
		return CUDA_ERROR_ILLEGAL_STATE;
	shared->state = to;
	return CUDA_SUCCESS;
}

CUresult cuCheckpointProcessGetState(int pid, CUprocessState *state)
{
	settle();
	*state = shared->state;
	return CUDA_SUCCESS;
}

CUresult cuCheckpointProcessGetRestoreThreadId(int pid, int *tid)
{
	*tid = pid;
	return CUDA_SUCCESS;
}

CUresult cuCheckpointProcessLock(int pid, CUcheckpointLockArgs *args)
{
	return step(CU_PROCESS_STATE_RUNNING, CU_PROCESS_STATE_LOCKED);
}

CUresult cuCheckpointProcessCheckpoint(int pid, CUcheckpointCheckpointArgs *args)
{
	return step(CU_PROCESS_STATE_LOCKED, CU_PROCESS_STATE_CHECKPOINTED);
}

CUresult cuCheckpointProcessRestore(int pid, CUcheckpointRestoreArgs *args)
{
	settle();
	if (shared->state != CU_PROCESS_STATE_CHECKPOINTED)
		return CUDA_ERROR_ILLEGAL_STATE;
	shared->end_ms = now_ms() + atoi(getenv("SLOWDRIVER_RESTORE_MS"));
	settle();
	return CUDA_SUCCESS;
}

CUresult cuCheckpointProcessUnlock(int pid, CUcheckpointUnlockArgs *args)
{
	return step(CU_PROCESS_STATE_LOCKED, CU_PROCESS_STATE_RUNNING);
}
