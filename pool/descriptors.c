// SPDX-License-Identifier: MIT
/* Descriptors of GPU memory: what may be one, and closing them where that takes nobody's time. */
#include "descriptors.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "background.h"
#include "loop.h"

/* A kind of device of the driver's: /proc/devices has its number, and a name that begins with the vendor's. */
static bool is_drivers(unsigned major)
{
	static unsigned known; /* the last one that was: a park has thousands of pieces, all of one kind; 0: none */
	bool found = known && major == known;
	FILE *devices = found ? NULL : fopen("/proc/devices", "re");
	char line[128];
	unsigned number;
	int name;

	while (devices && !found && fgets(line, sizeof(line), devices) && line[0] != 'B') /* "Block devices:" */
		found = sscanf(line, "%u %n", &number, &name) == 1 && number == major &&
			!strncmp(line + name, "nvidia", 6);
	if (devices)
		fclose(devices);
	if (found)
		known = major;
	return found;
}

/*
 * The driver's are of its own devices, or anonymous; a software driver's are files, which are taken where the kernel
 * itself keeps them: in memory (only such files can be sealed) or on a block device. AT_STATX_DONT_SYNC: a FUSE file
 * system is not asked.
 */
bool descriptor_is_memory(int fd)
{
	struct statx st;

	if (statx(fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_TYPE, &st))
		return false;
	switch (st.stx_mode & S_IFMT) {
	case 0:
		return true;
	case S_IFCHR:
		return is_drivers(st.stx_rdev_major);
	case S_IFREG:
		return st.stx_dev_major || fcntl(fd, F_GET_SEALS) >= 0;
	default:
		return false;
	}
}

struct closing {
	struct background task;
	void (*closed)(void *own, unsigned count);
	void *own;
	unsigned count;
	int fds[];
};

static void close_work(struct background *task)
{
	struct closing *closing = container_of(task, struct closing, task);
	unsigned i;

	for (i = 0; i < closing->count; i++)
		close(closing->fds[i]);
}

static void close_done(struct background *task)
{
	struct closing *closing = container_of(task, struct closing, task);

	if (closing->closed)
		closing->closed(closing->own, closing->count);
	free(closing);
}

void descriptors_close(const int *fds, unsigned count, void (*closed)(void *own, unsigned count), void *own)
{
	struct closing *closing = count ? malloc(sizeof(*closing) + count * sizeof(*fds)) : NULL;
	unsigned i;

	if (closing) {
		*closing = (struct closing){.task = {.apart = true, .work = close_work, .done = close_done},
					    .closed = closed,
					    .own = own,
					    .count = count};
		memcpy(closing->fds, fds, count * sizeof(*fds));
		background_start(&closing->task);
		return;
	}
	for (i = 0; i < count; i++)
		close(fds[i]);
	if (closed)
		closed(own, count);
}
