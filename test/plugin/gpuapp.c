// SPDX-License-Identifier: MIT
/* `gpuapp PROCESSES DIR`: a tree of CUDA processes that show, when asked by SIGUSR1, whether their GPU memory is
 * intact. */
#include <cuda.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define BYTES (1 << 20)
#define ZEROS (16 << 20) /* a second piece, of zeros but for one byte in its middle */

static volatile sig_atomic_t asked = 1;

static void on_ask(int signal)
{
	asked = 1;
}

static bool zeros_are_intact(CUdeviceptr zeros)
{
	unsigned char *found = malloc(ZEROS);
	bool intact = found && cuMemcpyDtoH_v2(found, zeros, ZEROS) == CUDA_SUCCESS && found[ZEROS / 2] == 1;
	int i;

	for (i = 0; intact && i < ZEROS; i++)
		intact = i == ZEROS / 2 || found[i] == 0;
	free(found);
	return intact;
}

static void answer(const char *dir, CUdeviceptr memory, CUdeviceptr zeros, unsigned char *wanted, unsigned char *found)
{
	char path[4096];
	int fd;

	memset(found, 0, BYTES);
	if (cuMemcpyDtoH_v2(found, memory, BYTES) != CUDA_SUCCESS || memcmp(wanted, found, BYTES) != 0 ||
	    !zeros_are_intact(zeros))
		return;
	snprintf(path, sizeof(path), "%s/alive.%d", dir, getpid());
	fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
	if (fd >= 0)
		close(fd);
}

int main(int argc, char **argv)
{
	unsigned char *wanted = malloc(BYTES), *found = malloc(BYTES);
	CUdeviceptr memory, zeros;
	CUcontext context;
	CUdevice device;
	int i;

	if (argc != 3 || !wanted || !found)
		return 2;
	close_range(3, ~0u, 0); /* what a test runner left open cannot be dumped */
	setsid();
	for (i = 0; i < 3; i++) {
		close(i);
		if (open("/dev/null", O_RDWR) != i)
			return 1;
	}
	if (chdir("/"))
		return 1;
	for (i = 1; i < atoi(argv[1]); i++)
		if (fork() == 0)
			break;

	srandom(getpid());
	for (i = 0; i < BYTES; i++)
		wanted[i] = random();
	if (cuInit(0) || cuDeviceGet(&device, 0) || cuCtxCreate_v2(&context, 0, device) ||
	    cuMemAlloc_v2(&memory, BYTES) || cuMemcpyHtoD_v2(memory, wanted, BYTES) || cuMemAlloc_v2(&zeros, ZEROS) ||
	    cuMemsetD8_v2(zeros, 0, ZEROS) || cuMemsetD8_v2(zeros + ZEROS / 2, 1, 1))
		return 1;
	signal(SIGUSR1, on_ask);
	for (;;) {
		if (asked) {
			asked = 0;
			answer(argv[2], memory, zeros, wanted, found);
		}
		usleep(1000);
	}
}
