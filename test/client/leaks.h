// SPDX-License-Identifier: MIT
/* Has a test program left something open? */
#ifndef CUDAPOOL_TEST_CLIENT_LEAKS_H
#define CUDAPOOL_TEST_CLIENT_LEAKS_H

#include <dirent.h>
#include <stdbool.h>
#include <stddef.h>
#include <unistd.h>

/* To be compared with what it was before. */
static inline int open_descriptors(void)
{
	DIR *dir = opendir("/proc/self/fd");
	int count = 0;

	while (dir && readdir(dir))
		count++;
	if (dir)
		closedir(dir);
	return count;
}

/* So many, at some moment within a second: a thread of the shim or the driver opens one now and then, and closes it. */
static inline bool descriptors_become(int count)
{
	for (int i = 0; i < 200; i++) {
		if (open_descriptors() == count)
			return true;
		usleep(5000);
	}
	return false;
}

#endif
