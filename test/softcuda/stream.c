// SPDX-License-Identifier: MIT
/* Streams and events: what is asynchronous, in which order, and errors that stick. */
#include "cu.h"

#include <pthread.h>
#include <stdatomic.h>

static _Atomic int step;
static int seen[8];

static void note_step(void *which)
{
	seen[(intptr_t)which] = ++step;
}

static void slow_step(void *which)
{
	sleep_ms(60);
	note_step(which);
}

static void callback(CUstream stream, CUresult status, void *which)
{
	if (status == CUDA_SUCCESS)
		note_step(which);
}

static CUfunction spin;

static void spin_ms(CUstream stream, uint64_t ms)
{
	uint64_t ns = ms * 1000000;
	void *params[] = {&ns};

	launch(spin, stream, params);
}

static void *thread_default(void *arg)
{
	CUresult *results = arg;
	uint64_t ns = 40000000;
	void *params[] = {&ns};
	double start = now_ms();

	results[0] = cuCtxSetCurrent(results[2] ? NULL : *(CUcontext *)(results + 4));
	results[1] = cuLaunchKernel_ptsz(spin, 1, 1, 1, 1, 1, 1, 0, NULL, params, NULL);
	results[2] = cuStreamSynchronize_ptsz(NULL);
	results[3] = now_ms() - start >= 39 ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
	return NULL;
}

int main(void)
{
	CUevent start, end, event;
	CUstream a, b, free_stream;
	CUdeviceptr memory, out;
	CUmodule module;
	CUfunction fill, checksum, none;
	CUcontext ctx;
	uint64_t words = 1000, sum = 0;
	uint32_t seed = 5;
	char packed[24];
	size_t packed_size = 20;
	void *extra[] = {CU_LAUNCH_PARAM_BUFFER_POINTER, packed, CU_LAUNCH_PARAM_BUFFER_SIZE, &packed_size,
			 CU_LAUNCH_PARAM_END};
	CUlaunchConfig config = {
		.gridDimX = 1, .gridDimY = 1, .gridDimZ = 1, .blockDimX = 1, .blockDimY = 1, .blockDimZ = 1};
	struct {
		CUresult results[4];
		CUcontext ctx;
	} thread_args = {0};
	pthread_t thread;
	double before;
	unsigned value;
	float ms;

	device_dir_make();
	must(cuInit(0));
	must(cuCtxCreate(&ctx, NULL, 0, 0));
	is(cuModuleLoadData(&module, "not a module"), CUDA_ERROR_INVALID_IMAGE);
	is(cuModuleLoad(&module, "/does/not/exist"), CUDA_ERROR_FILE_NOT_FOUND);
	is(cuModuleLoadDataEx(&module, test_ptx, 0, NULL, NULL), CUDA_SUCCESS);
	is(cuModuleGetFunction(&none, module, "cudapool_nothing"), CUDA_ERROR_NOT_FOUND);
	is(cuModuleGetFunction(&fill, module, "cudapool_fill"), CUDA_SUCCESS);
	is(cuModuleGetFunction(&checksum, module, "cudapool_checksum"), CUDA_SUCCESS);
	is(cuModuleGetFunction(&spin, module, "cudapool_spin"), CUDA_SUCCESS);
	is(cuModuleGetFunctionCount(&value, module), CUDA_SUCCESS);
	ok(value == 4, "the module has four functions");

	must(cuMemAlloc(&memory, words * 4));
	must(cuMemAlloc(&out, 8));
	must(cuMemsetD8(out, 0, 8));
	must(cuStreamCreate(&a, CU_STREAM_DEFAULT));
	must(cuStreamCreateWithPriority(&b, CU_STREAM_DEFAULT, -2));
	must(cuStreamCreate(&free_stream, CU_STREAM_NON_BLOCKING));
	must(cuEventCreate(&start, 0));
	must(cuEventCreate(&end, 0));
	must(cuEventCreate(&event, CU_EVENT_DISABLE_TIMING));

	memcpy(packed, &memory, 8), memcpy(packed + 8, &words, 8), memcpy(packed + 16, &seed, 4);
	config.hStream = a;
	is(cuLaunchKernelEx(&config, fill, NULL, extra), CUDA_SUCCESS);
	launch(checksum, a, (void *[]){&memory, &words, &out});
	is(cuMemcpyDtoHAsync(&sum, out, 8, a), CUDA_SUCCESS);
	is(cuStreamSynchronize(a), CUDA_SUCCESS);
	ok(sum == filled_sum(words, seed), "fill and checksum agree with their definition");
	packed_size = 19;
	is(cuLaunchKernelEx(&config, fill, NULL, extra), CUDA_ERROR_INVALID_VALUE);
	is(cuLaunchKernel(fill, 0, 1, 1, 1, 1, 1, 0, NULL, NULL, extra), CUDA_ERROR_INVALID_VALUE);
	is(cuLaunchKernel((CUfunction)&seed, 1, 1, 1, 1, 1, 1, 0, NULL, NULL, extra), CUDA_ERROR_INVALID_HANDLE);

	before = now_ms();
	spin_ms(a, 500);
	ok(now_ms() - before < 400, "a launch returns before its kernel has ended");
	is(cuStreamQuery(a), CUDA_ERROR_NOT_READY);
	is(cuStreamQuery(free_stream), CUDA_SUCCESS);
	is(cuStreamSynchronize(a), CUDA_SUCCESS);
	ok(now_ms() - before >= 499, "synchronising waits for it");
	is(cuStreamQuery(a), CUDA_SUCCESS);

	must(cuEventRecord(start, a));
	spin_ms(a, 300);
	must(cuEventRecord(end, a));
	is(cuEventQuery(end), CUDA_ERROR_NOT_READY);
	is(cuEventElapsedTime(&ms, start, end), CUDA_ERROR_NOT_READY);
	is(cuEventSynchronize(end), CUDA_SUCCESS);
	is(cuEventElapsedTime(&ms, start, end), CUDA_SUCCESS);
	ok(ms >= 299 && ms < 30000, "events measure the kernel between them: %.1f ms", ms);
	is(cuEventElapsedTime(&ms, start, event), CUDA_ERROR_INVALID_HANDLE);

	/* b waits for a; the stream that does not block, for nobody. */
	is(cuLaunchHostFunc(a, slow_step, (void *)0), CUDA_SUCCESS);
	must(cuEventRecord(event, a));
	is(cuStreamWaitEvent(b, event, 0), CUDA_SUCCESS);
	is(cuLaunchHostFunc(b, note_step, (void *)1), CUDA_SUCCESS);
	is(cuLaunchHostFunc(free_stream, note_step, (void *)2), CUDA_SUCCESS);
	must(cuCtxSynchronize());
	ok(seen[2] < seen[0] && seen[0] < seen[1], "a stream waits for another's event, and only it");

	/* The legacy stream waits for the blocking ones and they for it. */
	must(cuLaunchHostFunc(a, slow_step, (void *)0));
	must(cuLaunchHostFunc(NULL, note_step, (void *)1));
	must(cuLaunchHostFunc(b, note_step, (void *)2));
	must(cuStreamAddCallback(b, callback, (void *)3, 0));
	must(cuCtxSynchronize());
	ok(seen[0] < seen[1] && seen[1] < seen[2] && seen[2] < seen[3],
	   "the legacy stream stands between the blocking ones");

	must(cuMemsetD32(out, 0, 2));
	is(cuStreamWaitValue32(a, out, 7, CU_STREAM_WAIT_VALUE_EQ), CUDA_SUCCESS);
	must(cuLaunchHostFunc(a, note_step, (void *)0));
	must(cuLaunchHostFunc(free_stream, slow_step, (void *)1));
	is(cuStreamWriteValue32(free_stream, out, 7, 0), CUDA_SUCCESS);
	must(cuCtxSynchronize());
	ok(seen[1] < seen[0], "a stream waits for a value that another writes");

	thread_args.ctx = ctx;
	before = now_ms();
	pthread_create(&thread, NULL, thread_default, thread_args.results);
	pthread_join(thread, NULL);
	ok(!thread_args.results[0] && !thread_args.results[1] && !thread_args.results[2] && !thread_args.results[3],
	   "a thread's own default stream");

	is(cuStreamCreate(&a, 4), CUDA_ERROR_INVALID_VALUE);
	is(cuStreamSynchronize((CUstream)&seed), CUDA_ERROR_INVALID_HANDLE);
	is(cuStreamDestroy(NULL), CUDA_ERROR_INVALID_HANDLE);
	is(cuStreamDestroy(b), CUDA_SUCCESS);
	is(cuStreamDestroy(b), CUDA_ERROR_INVALID_HANDLE);
	is(cuEventDestroy(event), CUDA_SUCCESS);
	is(cuEventQuery(event), CUDA_ERROR_INVALID_HANDLE);

	/* A kernel that leaves its memory spoils the context, and only that. */
	words = 1 << 20;
	launch(fill, a, (void *[]){&memory, &words, &seed});
	is(cuCtxSynchronize(), CUDA_ERROR_ILLEGAL_ADDRESS);
	is(cuMemAlloc(&memory, 8), CUDA_ERROR_ILLEGAL_ADDRESS);
	is(cuCtxDestroy(ctx), CUDA_SUCCESS);
	is(cuCtxCreate(&ctx, NULL, 0, 0), CUDA_SUCCESS);
	is(cuMemAlloc(&memory, 8), CUDA_SUCCESS);
	must(cuCtxDestroy(ctx));
	device_dir_remove();
	return tap_end();
}
