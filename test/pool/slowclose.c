// SPDX-License-Identifier: MIT
/*
 * For LD_PRELOAD: giving back a file of SLOWCLOSE_DIR's file system that has lost its name takes SLOWCLOSE_MS, as with
 * a large one in memory; with SLOWCLOSE_NAMED also one that has not, as a software driver's memory is.
 */
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PUBLIC __attribute__((visibility("default")))

/* Fake GPU memory is files without a name as well, but in memory; and the keeper has small ones. */
static int is_slow(int fd)
{
	struct stat st, dir;

	return !fstat(fd, &st) && S_ISREG(st.st_mode) && (!st.st_nlink || getenv("SLOWCLOSE_NAMED")) &&
		st.st_size >= 1 << 20 && !stat(getenv("SLOWCLOSE_DIR"), &dir) && st.st_dev == dir.st_dev;
}

PUBLIC int close(int fd)
{
	if (getenv("SLOWCLOSE_DIR") && is_slow(fd))
		usleep(atoi(getenv("SLOWCLOSE_MS")) * 1000);
	return (int)syscall(SYS_close, fd);
}
