// SPDX-License-Identifier: MIT
/* Log lines of the pool and the shim: one write(2) each, no allocation, no stdio stream. */
#include "log.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <unistd.h>

static int log_fd = -1;
static enum cudapool_log_level log_level = CUDAPOOL_LOG_NONE;

void cudapool_log_to(int fd, enum cudapool_log_level level)
{
	log_fd = fd;
	log_level = level;
}

void cudapool_log(enum cudapool_log_level level, const char *format, ...)
{
	char line[512];
	int saved_errno = errno, used, more;
	va_list args;

	if (log_fd < 0 || level > log_level)
		return;

	used = snprintf(line, sizeof(line) - 1, "cudapool[%d]: ", getpid());
	va_start(args, format);
	more = vsnprintf(line + used, sizeof(line) - 1 - used, format, args);
	va_end(args);
	if (more > 0)
		used += more;
	if (used > (int)sizeof(line) - 2)
		used = sizeof(line) - 2;
	line[used++] = '\n';
	if (write(log_fd, line, used) < 0) {
		/* Nowhere left to say so. */
	}
	errno = saved_errno;
}
