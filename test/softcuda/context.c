// SPDX-License-Identifier: MIT
/* Created and primary contexts, the stack of each thread, flags, destroyed contexts. */
#include "cu.h"

#include <pthread.h>

static CUcontext shared;

static void *other_thread(void *arg)
{
	CUresult *results = arg;
	CUdevice device;
	CUcontext ctx = (CUcontext)1;

	cuCtxGetCurrent(&ctx);
	results[0] = ctx ? CUDA_ERROR_UNKNOWN : CUDA_SUCCESS;
	results[1] = cuCtxGetDevice(&device);
	results[2] = cuCtxSetCurrent(shared);
	results[3] = cuCtxGetDevice(&device);
	return NULL;
}

int main(void)
{
	CUcontext a, b, c, primary, again, top;
	unsigned flags, version;
	unsigned long long id_a, id_b;
	CUresult results[4];
	CUdevice device;
	pthread_t thread;
	size_t limit;
	int active;

	device_dir_make();
	setenv("SOFTCUDA_DEVICES", "2", 1);
	must(cuInit(0));

	is(cuCtxGetDevice(&device), CUDA_ERROR_INVALID_CONTEXT);
	is(cuCtxPopCurrent(&top), CUDA_ERROR_INVALID_CONTEXT);
	is(cuCtxSynchronize(), CUDA_ERROR_INVALID_CONTEXT);
	is(cuCtxCreate(&a, NULL, 0, 7), CUDA_ERROR_INVALID_DEVICE);
	is(cuCtxCreate(&a, NULL, 0x1000, 0), CUDA_ERROR_INVALID_VALUE);
	is(cuCtxCreate(NULL, NULL, 0, 0), CUDA_ERROR_INVALID_VALUE);

	is(cuCtxCreate(&a, NULL, CU_CTX_SCHED_YIELD, 0), CUDA_SUCCESS);
	is(cuCtxGetCurrent(&top), CUDA_SUCCESS);
	ok(top == a, "a new context is current");
	is(cuCtxGetFlags(&flags), CUDA_SUCCESS);
	ok(flags == CU_CTX_SCHED_YIELD, "it has the flags it was given");
	is(cuCtxSetFlags(CU_CTX_SCHED_SPIN), CUDA_SUCCESS);
	ok(!cuCtxGetFlags(&flags) && flags == CU_CTX_SCHED_SPIN, "flags can be set");
	is(cuCtxGetApiVersion(a, &version), CUDA_SUCCESS);
	ok(version == 3020, "its API version is 3020");
	is(cuCtxCreate_v2(&b, 0, 1), CUDA_SUCCESS);
	is(cuCtxGetDevice(&device), CUDA_SUCCESS);
	ok(device == 1, "the second one's device is the other");
	must(cuCtxGetId(a, &id_a));
	must(cuCtxGetId(NULL, &id_b));
	ok(id_a != id_b, "each has its id");
	is(cuCtxCreate_v3(&c, NULL, 0, 0, 0), CUDA_SUCCESS);
	is(cuCtxPopCurrent(&top), CUDA_SUCCESS);
	ok(top == c, "the stack gives them back in turn: third");
	must(cuCtxPopCurrent(&top));
	ok(top == b, "second");
	is(cuCtxPushCurrent(b), CUDA_SUCCESS);
	is(cuCtxPushCurrent(b), CUDA_SUCCESS);
	is(cuCtxDestroy(b), CUDA_SUCCESS);
	must(cuCtxGetCurrent(&top));
	ok(top == b, "destroying pops it once; deeper in the stack it stays");
	is(cuCtxGetDevice(&device), CUDA_ERROR_CONTEXT_IS_DESTROYED);
	is(cuCtxPushCurrent(b), CUDA_ERROR_INVALID_CONTEXT);
	is(cuCtxDestroy(b), CUDA_ERROR_INVALID_CONTEXT);
	is(cuCtxPopCurrent(&top), CUDA_SUCCESS);
	is(cuCtxGetDevice(&device), CUDA_SUCCESS);
	is(cuCtxSetCurrent(c), CUDA_SUCCESS);
	is(cuCtxSetCurrent(NULL), CUDA_SUCCESS);
	is(cuCtxGetDevice(&device), CUDA_ERROR_INVALID_CONTEXT);
	is(cuCtxSetCurrent((CUcontext)&top), CUDA_ERROR_INVALID_CONTEXT);
	is(cuCtxDestroy(NULL), CUDA_ERROR_INVALID_VALUE);

	is(cuDevicePrimaryCtxGetState(0, &flags, &active), CUDA_SUCCESS);
	ok(!active && !flags, "no primary context yet");
	is(cuDevicePrimaryCtxRelease(0), CUDA_ERROR_INVALID_CONTEXT);
	is(cuDevicePrimaryCtxSetFlags(0, CU_CTX_SCHED_BLOCKING_SYNC), CUDA_SUCCESS);
	is(cuDevicePrimaryCtxRetain(&primary, 0), CUDA_SUCCESS);
	is(cuDevicePrimaryCtxRetain(&again, 0), CUDA_SUCCESS);
	ok(primary == again, "retained twice, it is the same");
	must(cuCtxGetCurrent(&top));
	ok(top == NULL, "and is not made current");
	must(cuCtxSetCurrent(primary));
	is(cuCtxGetFlags(&flags), CUDA_SUCCESS);
	ok(flags == CU_CTX_SCHED_BLOCKING_SYNC, "it has the flags set before");
	is(cuCtxDestroy(primary), CUDA_ERROR_INVALID_CONTEXT);
	is(cuCtxSetLimit(CU_LIMIT_STACK_SIZE, 4096), CUDA_SUCCESS);
	is(cuDevicePrimaryCtxRelease(0), CUDA_SUCCESS);
	is(cuCtxGetLimit(&limit, CU_LIMIT_STACK_SIZE), CUDA_SUCCESS);
	ok(limit == 4096, "it lives as long as someone retains it");
	is(cuDevicePrimaryCtxRelease(0), CUDA_SUCCESS);
	is(cuCtxGetLimit(&limit, CU_LIMIT_STACK_SIZE), CUDA_ERROR_CONTEXT_IS_DESTROYED);
	must(cuDevicePrimaryCtxGetState(0, &flags, &active));
	ok(!active && flags == CU_CTX_SCHED_BLOCKING_SYNC, "then it is gone, its flags are not");
	must(cuDevicePrimaryCtxRetain(&again, 0));
	is(cuCtxGetLimit(&limit, CU_LIMIT_STACK_SIZE), CUDA_SUCCESS);
	ok(again == primary && limit == 1024, "retained anew: the same handle, a fresh context");
	is(cuDevicePrimaryCtxReset(0), CUDA_SUCCESS);
	must(cuDevicePrimaryCtxGetState(0, &flags, &active));
	ok(!active, "a reset ends it, whoever retains it");
	is(cuDevicePrimaryCtxRelease(0), CUDA_SUCCESS);

	shared = a;
	must(cuCtxSetCurrent(a));
	pthread_create(&thread, NULL, other_thread, results);
	pthread_join(thread, NULL);
	ok(results[0] == CUDA_SUCCESS && results[1] == CUDA_ERROR_INVALID_CONTEXT,
	   "another thread has a stack of its own");
	ok(results[2] == CUDA_SUCCESS && results[3] == CUDA_SUCCESS, "and can make the same context current");

	must(cuCtxCreate_v2(&b, 0, 1));
	is(cuCtxEnablePeerAccess(a, 0), CUDA_SUCCESS);
	is(cuCtxEnablePeerAccess(a, 0), CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED);
	is(cuCtxDisablePeerAccess(a), CUDA_SUCCESS);
	is(cuCtxDisablePeerAccess(a), CUDA_ERROR_PEER_ACCESS_NOT_ENABLED);
	must(cuCtxDestroy(b));
	must(cuCtxDestroy(c));
	must(cuCtxDestroy(a));

	device_dir_remove();
	return tap_end();
}
