// SPDX-License-Identifier: MIT
/* Reads an image's blocks from many threads at once. */
#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>

#include "checksum.h"
#include "engine_internal.h"

/*
 * read(2) from a file in memory goes page by page and copies at half of memory's speed. There, threads copy from a
 * mapping and work the checksum out on the way. A page that the file has lost meanwhile is a SIGBUS: it ends that copy,
 * not the process.
 */
static _Thread_local sigjmp_buf *copying;

static void lost_page(int number)
{
	if (copying)
		siglongjmp(*copying, 1);
	signal(number, SIG_DFL); /* somebody else's: it happens again, and ends the process as it would have */
}

static void catch_lost_pages(void)
{
	/* Not blocked within the handler, which does not return: nothing would have to be put back. */
	struct sigaction action = {.sa_handler = lost_page, .sa_flags = SA_NODEFER};

	sigaction(SIGBUS, &action, NULL);
}

void view_begin(struct engine_view *view, int fd, uint64_t size)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;

	*view = (struct engine_view){.fd = fd};
	if (map_begin(&view->map, fd, size, PROT_READ))
		pthread_once(&once, catch_lost_pages);
}

int view_get(const struct engine_view *view, uint8_t *to, uint32_t length, uint64_t at, uint32_t *crc)
{
	sigjmp_buf escape;
	int err;

	if (!view->map.at) {
		err = image_pread(view->fd, to, length, at);
		if (!err)
			*crc = checksum_crc32c(0, to, length);
		return err;
	}
	if (sigsetjmp(escape, 0)) {
		copying = NULL;
		return -EBADMSG;
	}
	copying = &escape;
	*crc = checksum_copy(0, to, view->map.at + at, length, false);
	copying = NULL;
	map_done(&view->map, at, image_aligned(length));
	return 0;
}

void view_end(struct engine_view *view)
{
	map_end(&view->map);
}
