// SPDX-License-Identifier: MIT
/*
 * `gpuapp PROCESSES DIR [HOLDS]`: a tree of CUDA processes that show, when asked by SIGUSR1, whether their GPU memory
 * and a changing pattern of zero and other pages are intact. HOLDS: `aio` or `userfaultfd`, what each has open besides.
 */
#include <cuda.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "detach.h"

#define BYTES (2 << 20)	 /* can be parked */
#define SMALL (64 << 10) /* cannot */
#define ZEROS (16 << 20) /* of zeros but for one byte in the middle */

#define PAGE       4096
#define HOST_PAGES 2048 /* of the pattern */
#define LOCKED     (1 << 20)

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

/* Fills the pages by `seed`, or looks whether they are so: runs of zero pages and of pages with one other byte. */
static bool host_pages(unsigned char *page, unsigned int seed, bool fill)
{
	static const unsigned char zeros[PAGE];
	int run = 0, zero = 0, i;
	bool intact = true;

	for (i = 0; i < HOST_PAGES; i++, run--, page += PAGE) {
		int at = rand_r(&seed) % PAGE;

		if (!run) {
			run = 1 + rand_r(&seed) % 40;
			zero = rand_r(&seed) % 2;
		}
		if (fill) {
			memset(page, 0, PAGE);
			page[at] = !zero;
		}
		intact = intact && page[at] == !zero && memcmp(page, zeros, at) == 0 &&
			 memcmp(page + at + 1, zeros, PAGE - at - 1) == 0;
	}
	return intact;
}

static bool host_is_intact(void)
{
	static unsigned char *pages, *locked;
	static unsigned int seed;
	bool intact;

	if (!pages) {
		pages = mmap(NULL, HOST_PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		locked = mmap(NULL, LOCKED, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_LOCKED, -1, 0);
		if (pages == MAP_FAILED || locked == MAP_FAILED)
			exit(1);
		seed = getpid();
		host_pages(pages, seed, true);
	}
	intact = host_pages(pages, seed, false) && locked[LOCKED / 2] == 0;
	return host_pages(pages, ++seed, true) && intact;
}

static bool hold(const char *what)
{
	static aio_context_t aio;

	if (strcmp(what, "aio") == 0)
		return syscall(SYS_io_setup, 1, &aio) == 0;
	return syscall(SYS_userfaultfd, 0) >= 0;
}

static bool holds(CUdeviceptr memory, const unsigned char *wanted, size_t size, unsigned char *found)
{
	memset(found, 0, size);
	return cuMemcpyDtoH_v2(found, memory, size) == CUDA_SUCCESS && memcmp(wanted, found, size) == 0;
}

static void answer(const char *dir, CUdeviceptr memory, CUdeviceptr small, CUdeviceptr zeros, unsigned char *wanted,
		   unsigned char *found)
{
	char path[4096];
	int fd;

	if (!holds(memory, wanted, BYTES, found) || !holds(small, wanted, SMALL, found) ||
	    !zeros_are_intact(zeros) || !host_is_intact())
		return;
	snprintf(path, sizeof(path), "%s/alive.%d", dir, getpid());
	fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
	if (fd >= 0)
		close(fd);
}

int main(int argc, char **argv)
{
	unsigned char *wanted = malloc(BYTES), *found = malloc(BYTES);
	CUdeviceptr memory, small, zeros;
	CUcontext context;
	CUdevice device;
	int i;

	if (argc < 3 || !wanted || !found)
		return 2;
	if (!detach())
		return 1;
	for (i = 1; i < atoi(argv[1]); i++)
		if (fork() == 0)
			break;

	if (argc > 3 && !hold(argv[3]))
		return 1;
	srandom(getpid());
	for (i = 0; i < BYTES; i++)
		wanted[i] = random();
	if (cuInit(0) || cuDeviceGet(&device, 0) || cuCtxCreate_v2(&context, 0, device) ||
	    cuMemAlloc_v2(&memory, BYTES) || cuMemcpyHtoD_v2(memory, wanted, BYTES) || cuMemAlloc_v2(&small, SMALL) ||
	    cuMemcpyHtoD_v2(small, wanted, SMALL) || cuMemAlloc_v2(&zeros, ZEROS) ||
	    cuMemsetD8_v2(zeros, 0, ZEROS) || cuMemsetD8_v2(zeros + ZEROS / 2, 1, 1))
		return 1;
	signal(SIGUSR1, on_ask);
	for (;;) {
		if (asked) {
			asked = 0;
			answer(argv[2], memory, small, zeros, wanted, found);
		}
		usleep(1000);
	}
}
