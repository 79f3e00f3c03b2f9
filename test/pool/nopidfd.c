// SPDX-License-Identifier: MIT
/* For LD_PRELOAD: the process that the file NOPIDFD names cannot be opened, as where no descriptor is left. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PUBLIC __attribute__((visibility("default")))

PUBLIC int pidfd_open(pid_t pid, unsigned flags);
PUBLIC int pidfd_open(pid_t pid, unsigned flags)
{
	const char *path = getenv("NOPIDFD");
	FILE *file = path ? fopen(path, "re") : NULL;
	int named = 0;

	if (file && fscanf(file, "%d", &named) != 1)
		named = 0;
	if (file)
		fclose(file);
	if (named != pid)
		return (int)syscall(SYS_pidfd_open, pid, flags);
	errno = EMFILE;
	return -1;
}
