// SPDX-License-Identifier: MIT
/* Log lines of the pool and the shim: one write(2) each, no allocation, no stdio stream. */
#include "log.h"

#include <errno.h>
#include <stdio.h>
#include <unistd.h>

static int log_fd = -1;
static enum cudapool_log_level log_level = CUDAPOOL_LOG_NONE;

void cudapool_log_to(int fd, enum cudapool_log_level level)
{
	log_fd = fd;
	log_level = level;
}

void cudapool_log_line(int fd, const char *prefix, const char *format, va_list args)
{
	char line[512];
	int saved_errno = errno, used, more;

	used = snprintf(line, sizeof(line) - 1, "%s", prefix);
	if (used > (int)sizeof(line) - 2)
		used = sizeof(line) - 2;
	more = vsnprintf(line + used, sizeof(line) - 1 - used, format, args);
	if (more > 0)
		used += more;
	if (used > (int)sizeof(line) - 2)
		used = sizeof(line) - 2;
	line[used++] = '\n';
	if (write(fd, line, used) < 0) {
		/* Nowhere left to say so. */
	}
	errno = saved_errno;
}

void cudapool_log(enum cudapool_log_level level, const char *format, ...)
{
	char prefix[32];
	va_list args;

	if (log_fd < 0 || level > log_level)
		return;

	snprintf(prefix, sizeof(prefix), "cudapool[%d]: ", getpid());
	va_start(args, format);
	cudapool_log_line(log_fd, prefix, format, args);
	va_end(args);
}
