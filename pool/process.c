// SPDX-License-Identifier: MIT
/* Processes by identity rather than by number: a pidfd, and the start time that outlives the keeper. */
#include "process.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/pidfd.h>
#include <unistd.h>

#define THREADS_LOOKED_AT 4096 /* of one process, when looking for stopped ones */

/* What is used of /proc/PID/stat. */
struct stat_line {
	char name[16];
	char state;
	int parent;
	uint64_t start;
};

static int read_file(const char *path, char *text, size_t size)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n;

	if (fd < 0)
		return -errno;
	n = read(fd, text, size - 1);
	close(fd);
	if (n < 0)
		return -errno;
	text[n] = '\0';
	return 0;
}

static int read_stat(const char *path, struct stat_line *line)
{
	char text[1024], *open, *close;
	int err = read_file(path, text, sizeof(text));

	if (err)
		return err == -ENOENT ? -ESRCH : err;
	/* The name is whatever the process likes, parentheses included: its end is the last one. */
	open = strchr(text, '(');
	close = strrchr(text, ')');
	if (!open || !close || close <= open)
		return -EPROTO;
	snprintf(line->name, sizeof(line->name), "%.*s", (int)(close - open - 1), open + 1);
	if (sscanf(close + 1, " %c %d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d %*d %*d %lu",
		   &line->state, &line->parent, &line->start) != 3)
		return -EPROTO;
	return 0;
}

static int stat_of(int pid, struct stat_line *line)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/stat", pid);
	return read_stat(path, line);
}

/* What follows `key` at the start of a line of a status file. 0 or a negative errno. */
static int line_of(const char *path, const char *key, char *value, size_t size)
{
	char text[8192], *at;
	int err = read_file(path, text, sizeof(text));

	if (err)
		return err == -ENOENT ? -ESRCH : err;
	at = strstr(text, key);
	if (!at)
		return -ENODATA;
	at += strlen(key);
	snprintf(value, size, "%.*s", (int)strcspn(at, "\n"), at);
	return 0;
}

/* The same, of /proc/PID/status. */
static int status_line(int pid, const char *key, char *value, size_t size)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/status", pid);
	return line_of(path, key, value, size);
}

static long status_value(int pid, const char *key)
{
	char value[32];
	int err = status_line(pid, key, value, sizeof(value));

	return err ? err : strtol(value, NULL, 10);
}

int process_open(struct process *process, int pid)
{
	struct stat_line line;
	char thread[64];
	long leader;
	int err;

	*process = PROCESS_NONE;
	if (pid <= 0)
		return -ESRCH;
	leader = status_value(pid, "\nTgid:");
	if (leader < 0)
		return (int)leader;
	process->fd = pidfd_open((pid_t)leader, 0);
	if (process->fd < 0)
		return -errno;
	process->pid = (int)leader;
	snprintf(thread, sizeof(thread), "/proc/%d/task/%d", process->pid, pid);
	err = access(thread, F_OK) ? -ESRCH : stat_of(process->pid, &line);
	/*
	 * Alive after its number was looked up, and the thread still among its own: so the descriptor, the number, the
	 * thread and the start time are of one process, even where another one had got the number in between.
	 */
	if (!err && !process_alive(process))
		err = -ESRCH;
	if (err) {
		process_close(process);
		return err;
	}
	process->start = line.start;
	return 0;
}

int process_reopen(struct process *process, int pid, uint64_t start)
{
	int err = process_open(process, pid);

	if (!err && (process->pid != pid || process->start != start)) {
		process_close(process);
		err = -ESRCH;
	}
	return err;
}

int process_dup(struct process *copy, const struct process *process)
{
	*copy = *process;
	copy->fd = fcntl(process->fd, F_DUPFD_CLOEXEC, 3);
	return copy->fd < 0 ? -errno : 0;
}

void process_close(struct process *process)
{
	if (process->fd >= 0)
		close(process->fd);
	*process = PROCESS_NONE;
}

bool process_alive(const struct process *process)
{
	struct pollfd poll_fd = {.fd = process->fd, .events = POLLIN};

	return process->fd >= 0 && poll(&poll_fd, 1, 0) == 0;
}

bool process_same(const struct process *a, const struct process *b)
{
	return a->pid == b->pid && a->start == b->start;
}

bool process_shares_pids(const struct process *process)
{
	char numbers[64], *end;

	/* One number for each namespace from ours down to its own; unlike ns/pid, it takes no privilege to read. */
	if (status_line(process->pid, "\nNSpid:", numbers, sizeof(numbers)))
		return false;
	return strtol(numbers, &end, 10) == process->pid && !*end && process_alive(process);
}

int process_parent(const struct process *process)
{
	struct stat_line line;

	return !stat_of(process->pid, &line) && line.start == process->start ? line.parent : 0;
}

bool process_stopped(const struct process *process)
{
	char path[64 + NAME_MAX];
	struct stat_line line;
	struct dirent *entry;
	bool stopped = false;
	int seen = 0;
	DIR *tasks;

	snprintf(path, sizeof(path), "/proc/%d/task", process->pid);
	tasks = opendir(path);
	if (!tasks)
		return false;
	while (!stopped && seen < THREADS_LOOKED_AT && (entry = readdir(tasks))) {
		if (!isdigit((unsigned char)entry->d_name[0]))
			continue;
		seen++;
		snprintf(path, sizeof(path), "/proc/%d/task/%s/stat", process->pid, entry->d_name);
		stopped = !read_stat(path, &line) && (line.state == 'T' || line.state == 't');
	}
	closedir(tasks);
	return stopped;
}

bool process_thread_is(const struct process *process, int tid, int own_tid, const char *name)
{
	char path[64], numbers[128], *last;
	struct stat_line line;

	snprintf(path, sizeof(path), "/proc/%d/task/%d/status", process->pid, tid);
	if (line_of(path, "\nNSpid:", numbers, sizeof(numbers)))
		return false;
	last = strrchr(numbers, '\t'); /* one number for each namespace, from ours down to its own */
	snprintf(path, sizeof(path), "/proc/%d/task/%d/stat", process->pid, tid);
	return last && atoi(last + 1) == own_tid && !read_stat(path, &line) && !strcmp(line.name, name);
}

static bool named_criu(const char *name)
{
	return !strncmp(name, "criu", 4) && (!name[4] || name[4] == '-' || name[4] == '.' || name[4] == ' ');
}

bool process_is_criu(const struct process *process)
{
	char path[64], target[PATH_MAX], *base;
	struct stat_line line;
	ssize_t n;

	if (stat_of(process->pid, &line) || line.start != process->start)
		return false;
	if (named_criu(line.name))
		return true;
	snprintf(path, sizeof(path), "/proc/%d/exe", process->pid);
	n = readlink(path, target, sizeof(target) - 1);
	if (n < 0)
		return false;
	target[n] = '\0'; /* a replaced file reads "… (deleted)" */
	base = strrchr(target, '/');
	return named_criu(base ? base + 1 : target);
}

void process_name(int pid, char name[16])
{
	struct stat_line line;
	char *c;

	snprintf(name, 16, "%s", stat_of(pid, &line) ? "?" : line.name);
	for (c = name; *c; c++)
		if (!isprint((unsigned char)*c))
			*c = '?';
}

long process_rss_kb(int pid)
{
	long kb = status_value(pid, "\nVmRSS:");

	return kb < 0 ? -1 : kb;
}

int process_descriptors(int pid)
{
	struct dirent *entry;
	char path[64];
	int n = 0;
	DIR *dir;

	snprintf(path, sizeof(path), "/proc/%d/fd", pid);
	dir = opendir(path);
	if (!dir)
		return -1;
	while ((entry = readdir(dir)))
		n += entry->d_name[0] != '.';
	closedir(dir);
	return pid == getpid() ? n - 1 : n; /* not the one that lists them */
}
