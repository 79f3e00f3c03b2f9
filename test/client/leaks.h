// SPDX-License-Identifier: MIT
/* Has a test program left something open? */
#ifndef CUDAPOOL_TEST_CLIENT_LEAKS_H
#define CUDAPOOL_TEST_CLIENT_LEAKS_H

#include <dirent.h>
#include <stddef.h>

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

#endif
