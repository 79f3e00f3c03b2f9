// SPDX-License-Identifier: MIT
/*
 * A CUDA application: writes and reads back GPU memory for ever, and counts how often that went well. app [MIB
 * [COUNT]]
 */
#include <cuda.h>
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define WORDS 256

static void *driver;

static void *function(const char *name)
{
	void *f = dlsym(driver, name);

	if (!f) {
		fprintf(stderr, "app: no %s\n", name);
		exit(1);
	}
	return f;
}

static void must(CUresult result, const char *what)
{
	if (result == CUDA_SUCCESS)
		return;
	fprintf(stderr, "app: %s: %d\n", what, result);
	exit(1);
}

#define MOST 64

static CUdeviceptr block[MOST];

int main(int argc, char **argv)
{
	size_t size = argc > 1 ? (size_t)atoi(argv[1]) << 20 : sizeof(unsigned[WORDS]);
	int blocks = argc > 2 ? atoi(argv[2]) : 1;
	unsigned pattern, words[WORDS];
	CUresult (*init)(unsigned int), (*get)(CUdevice *, int), (*retain)(CUcontext *, CUdevice),
		(*current)(CUcontext);
	CUresult (*alloc)(CUdeviceptr *, size_t), (*set)(CUdeviceptr, unsigned int, size_t),
		(*copy)(void *, CUdeviceptr, size_t);
	CUdeviceptr memory;
	CUcontext context;
	CUdevice device;
	char line[32];
	int i, n;

	driver = dlopen("libcuda.so.1", RTLD_NOW);
	if (!driver) {
		fprintf(stderr, "app: %s\n", dlerror());
		return 1;
	}
	init = function("cuInit");
	get = function("cuDeviceGet");
	retain = function("cuDevicePrimaryCtxRetain");
	current = function("cuCtxSetCurrent");
	alloc = function("cuMemAlloc_v2");
	set = function("cuMemsetD32_v2");
	copy = function("cuMemcpyDtoH_v2");
	must(init(0), "cuInit");
	must(get(&device, 0), "cuDeviceGet");
	must(retain(&context, device), "cuDevicePrimaryCtxRetain");
	must(current(context), "cuCtxSetCurrent");
	for (i = 0; i < blocks && i < MOST; i++)
		must(alloc(&block[i], size), "cuMemAlloc");

	for (pattern = 1;; pattern++) {
		memory = block[pattern % (unsigned)blocks] + size - sizeof(words);
		must(set(memory, pattern, WORDS), "cuMemsetD32");
		usleep(2000); /* so that the memory's content has to survive what happens to the process meanwhile */
		memset(words, 0, sizeof(words));
		must(copy(words, memory, sizeof(words)), "cuMemcpyDtoH");
		for (i = 0; i < WORDS; i++)
			if (words[i] != pattern) {
				fprintf(stderr, "app: word %d is %u, not %u\n", i, words[i], pattern);
				return 1;
			}
		n = snprintf(line, sizeof(line), "tick %u\n", pattern);
		if (write(STDOUT_FILENO, line, (size_t)n) != n)
			return 1;
	}
}
