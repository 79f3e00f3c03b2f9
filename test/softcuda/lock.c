// SPDX-License-Identifier: MIT
/* What a checkpoint's lock waits for and holds back, within one process. */
#include "cu.h"

#include <pthread.h>
#include <stdatomic.h>

static CUcontext ctx;
static CUfunction spin;
static _Atomic int calls, stop;

static void *caller(void *arg)
{
	CUdeviceptr ptr;

	if (cuCtxSetCurrent(ctx))
		return NULL;
	while (!stop) {
		if (!cuMemAlloc(&ptr, 4096) && !cuMemFree(ptr))
			calls++;
	}
	return arg;
}

int main(void)
{
	CUcheckpointLockArgs how = {.timeoutMs = 50};
	uint64_t ns = 300000000;
	void *params[] = {&ns};
	CUprocessState state;
	pthread_t threads[4];
	void *went_well;
	CUmodule module;
	double before;
	int seen;

	if (geteuid()) {
		printf("1..0 # SKIP opening map_files needs root\n");
		return 0;
	}
	device_dir_make();
	must(cuInit(0));
	must(cuCtxCreate(&ctx, NULL, 0, 0));
	must(cuModuleLoadData(&module, test_ptx));
	must(cuModuleGetFunction(&spin, module, "cudapool_spin"));

	launch(spin, NULL, params);
	before = now_ms();
	is(cuCheckpointProcessLock(getpid(), &how), CUDA_ERROR_NOT_READY);
	ok(now_ms() - before >= 49 && now_ms() - before < 250, "the lock gives up in time while a kernel runs");
	is(cuCheckpointProcessGetState(getpid(), &state), CUDA_SUCCESS);
	ok(state == CU_PROCESS_STATE_RUNNING, "and leaves the process running");
	must(cuStreamQuery(NULL) == CUDA_ERROR_NOT_READY ? CUDA_SUCCESS : CUDA_ERROR_UNKNOWN);
	how.timeoutMs = 5000;
	is(cuCheckpointProcessLock(getpid(), &how), CUDA_SUCCESS);
	ok(now_ms() - before >= 250, "with enough time it waits for the kernel");
	is(cuCheckpointProcessUnlock(getpid(), NULL), CUDA_SUCCESS);
	how.reserved0 = 1;
	is(cuCheckpointProcessLock(getpid(), &how), CUDA_ERROR_INVALID_VALUE);
	how.reserved0 = 0;

	for (size_t i = 0; i < 4; i++)
		pthread_create(&threads[i], NULL, caller, &ctx);
	for (int round = 0; round < 20; round++) {
		must(cuCheckpointProcessLock(getpid(), &how));
		must(cuCheckpointProcessCheckpoint(getpid(), NULL));
		seen = calls;
		sleep_ms(2);
		if (calls - seen > 4) /* each thread may be on its way from the driver to its count */
			ok(false, "%d calls got through", calls - seen);
		must(cuCheckpointProcessRestore(getpid(), NULL));
		must(cuCheckpointProcessUnlock(getpid(), NULL));
		sleep_ms(2);
	}
	ok(calls > 0, "20 checkpoints under 4 threads that allocate all the time: %d allocations", calls);
	stop = 1;
	for (size_t i = 0; i < 4; i++) {
		pthread_join(threads[i], &went_well);
		ok(went_well == &ctx, "thread %zu saw no error", i);
	}
	must(cuCtxDestroy(ctx));
	device_dir_remove();
	return tap_end();
}
