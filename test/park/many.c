// SPDX-License-Identifier: MIT
/* many COUNT: an application with so many allocations. Says `ready`, and stays. */
#include "gpu.h"

int main(int argc, char **argv)
{
	unsigned count = argc == 2 ? atoi(argv[1]) : 0;
	CUdeviceptr at;

	gpu_begin();
	while (count--)
		MUST(cuMemAlloc_v2(&at, 2ul << 20));
	puts("ready");
	fflush(stdout);
	pause();
	return 0;
}
