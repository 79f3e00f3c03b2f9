// SPDX-License-Identifier: MIT
/* What a checkpoint's lock waits for and holds back, within one process. */
#include "cu.h"

#include <pthread.h>
#include <stdatomic.h>

static CUcontext ctx;
static CUfunction spin;
static _Atomic int calls, stop;

/* One round with mapped memory, which may be checkpointed between any two calls. */
static CUresult map_round(CUdeviceptr reserved, unsigned value)
{
	CUmemAllocationProp prop = {.type = CU_MEM_ALLOCATION_TYPE_PINNED,
				    .requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR,
				    .location = {.type = CU_MEM_LOCATION_TYPE_DEVICE}};
	CUmemAccessDesc access = {.location = prop.location, .flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE};
	CUmemGenericAllocationHandle handle;
	unsigned word = 0;
	CUresult result = cuMemCreate(&handle, 2 << 20, &prop, 0);

	result = result ? result : cuMemMap(reserved, 2 << 20, 0, handle, 0);
	result = result ? result : cuMemSetAccess(reserved, 2 << 20, &access, 1);
	result = result ? result : cuMemsetD32(reserved + 4096, value, 1);
	result = result ? result : cuMemcpyDtoH(&word, reserved + 4096, 4);
	result = result ? result : cuMemUnmap(reserved, 2 << 20);
	result = result ? result : cuMemRelease(handle);
	return result ? result : word == value ? CUDA_SUCCESS : CUDA_ERROR_UNKNOWN;
}

static void *caller(void *arg)
{
	CUdeviceptr ptr, reserved;

	if (cuCtxSetCurrent(ctx) || cuMemAddressReserve(&reserved, 2 << 20, 0, 0, 0))
		return NULL;
	for (unsigned round = 0; !stop; round++) {
		if (cuMemAlloc(&ptr, 4096) || cuMemFree(ptr) || map_round(reserved, round))
			return NULL;
		calls++;
	}
	return cuMemAddressFree(reserved, 2 << 20) ? NULL : arg;
}

int main(void)
{
	CUcheckpointLockArgs how = {.timeoutMs = 50};
	uint64_t ns = 1000000000;
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
	ok(now_ms() - before >= 49 && now_ms() - before < 900, "the lock gives up in time while a kernel runs");
	is(cuCheckpointProcessGetState(getpid(), &state), CUDA_SUCCESS);
	ok(state == CU_PROCESS_STATE_RUNNING, "and leaves the process running");
	must(cuStreamQuery(NULL) == CUDA_ERROR_NOT_READY ? CUDA_SUCCESS : CUDA_ERROR_UNKNOWN);
	how.timeoutMs = 5000;
	is(cuCheckpointProcessLock(getpid(), &how), CUDA_SUCCESS);
	ok(now_ms() - before >= 999, "with enough time it waits for the kernel");
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
