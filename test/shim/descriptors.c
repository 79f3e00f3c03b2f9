// SPDX-License-Identifier: MIT
/* While the shim's thread begins, the application takes the lowest free descriptor, as programs do that become daemons. */
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <unistd.h>

#include "clock.h"
#include "../client/tap.h"

int main(void)
{
	int64_t end = cudapool_now_ms() + 20;
	unsigned times = 0, wrong = 0;
	int fd;

	while (cudapool_now_ms() < end) {
		close(0);
		fd = open("/dev/null", O_RDWR);
		wrong += fd != 0;
		if (fd > 0) {
			dup2(fd, 0);
			close(fd);
		}
		times++;
	}
	ok(times && !wrong, "of %u descriptors %u were not the lowest", times, wrong);
	return tap_end();
}
