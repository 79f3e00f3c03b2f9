// SPDX-License-Identifier: MIT
/* An application as CRIU can dump it: in a session of its own, with nothing of its starter open. */
#ifndef CUDAPOOL_TEST_PLUGIN_DETACH_H
#define CUDAPOOL_TEST_PLUGIN_DETACH_H

#include <fcntl.h>
#include <stdbool.h>
#include <unistd.h>

static inline bool detach(void)
{
	int i;

	close_range(3, ~0u, 0);
	if (setsid() < 0 && getpid() != getsid(0))
		return false;
	for (i = 0; i < 3; i++) {
		close(i);
		if (open("/dev/null", O_RDWR) != i)
			return false;
	}
	return !chdir("/");
}

#endif
