// SPDX-License-Identifier: MIT
/*
 * A CUDA application: writes and reads back GPU memory for ever, and counts how often that went well. app [MIB
 * [COUNT]]
 */
#include <string.h>
#include <unistd.h>

#include "driver_calls.h"

#define WORDS 256
#define MOST  64

static CUdeviceptr block[MOST];

int main(int argc, char **argv)
{
	size_t size = argc > 1 ? (size_t)atoi(argv[1]) << 20 : sizeof(unsigned[WORDS]);
	int blocks = argc > 2 ? atoi(argv[2]) : 1;
	unsigned pattern, words[WORDS];
	CUdeviceptr memory;
	CUcontext context;
	CUdevice device;
	char line[32];
	int i, n;

	CALL(cuInit, 0);
	CALL(cuDeviceGet, &device, 0);
	CALL(cuDevicePrimaryCtxRetain, &context, device);
	CALL(cuCtxSetCurrent, context);
	for (i = 0; i < blocks && i < MOST; i++)
		CALL(cuMemAlloc_v2, &block[i], size);

	for (pattern = 1;; pattern++) {
		memory = block[pattern % (unsigned)blocks] + size - sizeof(words);
		CALL(cuMemsetD32_v2, memory, pattern, WORDS);
		usleep(2000); /* so that the memory's content has to survive what happens to the process meanwhile */
		memset(words, 0, sizeof(words));
		CALL(cuMemcpyDtoH_v2, words, memory, sizeof(words));
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
