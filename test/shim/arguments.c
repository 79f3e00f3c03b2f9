// SPDX-License-Identifier: MIT
/*
 * What the stubs of held functions pass on, to plain_driver.c, before cuInit and after: arguments on the stack, errno,
 * the way back.
 */
#include <dlfcn.h>
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include "../client/tap.h"
#include "fake_pool.h"

#define CUDAPOOL_ABI_NO_VERSIONS
#include <cuda.h>

static void *lib;
static int *depth;
static void **frames;
typedef CUresult (*any)(long, long, long, long, long, long, long, long, long, long, long);
typedef CUresult (*ipc)(CUevent *, CUipcEventHandle);

/* Twice: after cuInit the first call of a thread takes the slow way. */
static __attribute__((noinline)) void call(const char *name)
{
	any function = (any)dlsym(lib, name);
	bool seen = false;
	int i;

	errno = 77;
	ok(function && function(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11) == CUDA_SUCCESS && errno == 77, "%s", name);
	*depth = 0;
	ok(function && function(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11) == CUDA_SUCCESS, "again");
	for (i = 0; i < *depth; i++)
		seen = seen || frames[i] == __builtin_return_address(0);
	ok(seen, "an unwinder comes through to our caller");
}

static void calls(void)
{
	CUipcEventHandle handle;
	ipc open_handle;
	int i;

	call("cuMemsetD2D8_v2");
	call("cuOccupancyMaxPotentialBlockSizeWithFlags");
	call("cuLibraryLoadData");
	call("cuMemcpyBatchAsync");
	call("cuLaunchCooperativeKernel");
	call("cuLaunchKernel");
	open_handle = (ipc)dlsym(lib, "cuIpcOpenEventHandle");
	for (i = 0; i < CU_IPC_HANDLE_SIZE; i++)
		handle.reserved[i] = i;
	ok(open_handle((CUevent *)1, handle) == CUDA_SUCCESS, "cuIpcOpenEventHandle, a structure by value");
}

/* On a stack of its own, which ends right above the call. */
static void *function;
static CUresult answer;

static void few(void)
{
	answer = ((CUresult(*)(long, long, long, long, long))function)(1, 2, 3, 4, 5);
}

static void many(void)
{
	answer = ((any)function)(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11);
}

static bool at_the_end(void (*calls)(void), const char *name)
{
	size_t bytes = 16 * sysconf(_SC_PAGESIZE);
	char *stack = mmap(NULL, 2 * bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ucontext_t here, there;

	if (stack == MAP_FAILED || mprotect(stack + bytes, bytes, PROT_NONE) || getcontext(&there))
		return false;
	there.uc_stack.ss_sp = stack;
	there.uc_stack.ss_size = bytes;
	there.uc_link = &here;
	makecontext(&there, calls, 0);
	function = dlsym(lib, name);
	answer = CUDA_ERROR_UNKNOWN;
	errno = 77;
	swapcontext(&here, &there);
	return !munmap(stack, 2 * bytes) && answer == CUDA_SUCCESS && errno == 77;
}

static void ends(void)
{
	ok(at_the_end(few, "cuMemsetD2D8_v2"), "few arguments at the end of a stack");
	ok(at_the_end(many, "cuLaunchKernel"), "many");
}

int main(void)
{
	struct fake_pool pool = {};
	CUresult (*init)(unsigned int flags);

	lib = dlopen("libcuda.so.1", RTLD_NOW);
	depth = lib ? dlsym(lib, "plain_depth") : NULL;
	frames = lib ? dlsym(lib, "plain_frames") : NULL;
	if (!depth || !frames) {
		printf("Bail out! not the plain driver: %s\n", dlerror());
		return 2;
	}
	calls();
	ends();
	init = (__typeof__(init))dlsym(lib, "cuInit");
	ok(init(0) == CUDA_SUCCESS, "cuInit");
	calls();
	ends();

	if (!fake_pool_find(&pool, getpid())) {
		dlsym(lib, "cuGetErrorString");
		dlsym(lib, "cuNoSuchFunction");
		dlsym(lib, "plain_depth");
		ok(pool.page->unknown == 0, "no function is unknown yet");
		dlsym(lib, "cuPlainUnknown");
		dlsym(lib, "cuPlainUnknown");
		ok(pool.page->unknown == 1, "one that the driver has and the gate does not know is counted, once");
		ok(!strcmp(pool.page->unknown_name, "cuPlainUnknown"), "and named");
	}
	return tap_end();
}
