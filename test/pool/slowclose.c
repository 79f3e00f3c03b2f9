// SPDX-License-Identifier: MIT
/* For LD_PRELOAD: giving back a file that has lost its name takes SLOWCLOSE_MS, as with a large one in memory. */
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PUBLIC __attribute__((visibility("default")))

/* Fake GPU memory is files without a name as well, but in memory; and the keeper has small ones. */
static int is_removed_file(int fd)
{
	struct stat st, dir;

	return !fstat(fd, &st) && S_ISREG(st.st_mode) && !st.st_nlink && st.st_size >= 1 << 20 &&
		!stat(getenv("SLOWCLOSE_DIR"), &dir) && st.st_dev == dir.st_dev;
}

PUBLIC int close(int fd)
{
	if (getenv("SLOWCLOSE_DIR") && is_removed_file(fd))
		usleep(atoi(getenv("SLOWCLOSE_MS")) * 1000);
	return (int)syscall(SYS_close, fd);
}
