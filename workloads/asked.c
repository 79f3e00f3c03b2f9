// SPDX-License-Identifier: MIT
/* The workload's side of protocol.h: see asked.h. */
#include "asked.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

void fail(const char *format, ...)
{
	va_list args;

	fprintf(stderr, "%s: ", program_invocation_short_name);
	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	fputc('\n', stderr);
	_exit(1);
}

uint64_t wall_us(void)
{
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	return (uint64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

bool new_question(const char *path, struct asked *asked)
{
	char line[WORKLOAD_NONCE_MAX + 16] = "", nonce[WORKLOAD_NONCE_MAX + 1];
	struct stat st;
	int fd, n;

	if (stat(path, &st) || (st.st_ino == asked->seen.st_ino && st.st_mtim.tv_sec == asked->seen.st_mtim.tv_sec &&
				st.st_mtim.tv_nsec == asked->seen.st_mtim.tv_nsec))
		return false;
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return false;
	n = read(fd, line, sizeof(line) - 1);
	close(fd);
	if (n <= 0)
		return false;
	asked->seen = st;
	n = sscanf(line, "%64[0-9A-Za-z] %u", nonce, &asked->seed);
	if (n < 1 || !strcmp(nonce, asked->nonce))
		return false;
	asked->refill = n == 2;
	strcpy(asked->nonce, nonce);
	return true;
}

void append(struct answer *answer, const char *format, ...)
{
	va_list args;
	int n;

	va_start(args, format);
	n = vsnprintf(answer->text + answer->length, WORKLOAD_ANSWER_MAX - answer->length, format, args);
	va_end(args);
	if (n < 0 || n >= WORKLOAD_ANSWER_MAX - answer->length)
		fail("an answer is longer than %d bytes", WORKLOAD_ANSWER_MAX);
	answer->length += n;
}

void write_answer(const char *dir, unsigned index, const struct answer *answer)
{
	char name[PATH_MAX], tmp[PATH_MAX + 4];
	int fd;

	snprintf(name, sizeof(name), index ? "%s/answer.%u" : "%s/answer", dir, index);
	snprintf(tmp, sizeof(tmp), "%s.tmp", name);
	fd = open(tmp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
	if (fd < 0 || write(fd, answer->text, answer->length) != answer->length || close(fd) || rename(tmp, name))
		fail("cannot write %s: %s", name, strerror(errno));
}
