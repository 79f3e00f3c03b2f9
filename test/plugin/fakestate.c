// SPDX-License-Identifier: MIT
/* What the scripted pool and the recording cuda-checkpoint know of processes: files instead of a driver. */
#include "fakestate.h"

#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "control_page.h"

static const char *state_dir(void)
{
	const char *dir = getenv(FAKE_STATE_DIR);

	return dir ? dir : "/nonexistent";
}

/* The value of one line of /proc/PID/status, its last word. */
static int status_number(int pid, const char *name, int fallback)
{
	char path[64], line[512];
	size_t length = strlen(name);
	int value = fallback;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/status", pid);
	f = fopen(path, "re");
	if (!f)
		return fallback;
	while (fgets(line, sizeof(line), f))
		if (strncmp(line, name, length) == 0)
			value = atoi(strrchr(line, '\t') + 1);
	fclose(f);
	return value;
}

static char thread_state(int tid)
{
	char path[64], text[512], *end;
	int fd, n;

	snprintf(path, sizeof(path), "/proc/%d/stat", tid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return '?';
	n = read(fd, text, sizeof(text) - 1);
	close(fd);
	text[n > 0 ? n : 0] = '\0';
	end = strrchr(text, ')');
	return end ? end[2] : '?';
}

int fake_is_cuda(int pid)
{
	char path[64], comm[32] = "";
	int fd, n;

	snprintf(path, sizeof(path), "/proc/%d/comm", pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return 0;
	n = read(fd, comm, sizeof(comm) - 1);
	close(fd);
	return n > 0 && strcmp(comm, FAKE_APP_NAME "\n") == 0;
}

static void state_path(int pid, char path[PATH_MAX])
{
	int process = status_number(pid, "Tgid:", pid);

	snprintf(path, PATH_MAX, "%s/state.%d", state_dir(), status_number(process, "NSpid:", process));
}

int fake_state(int pid)
{
	char path[PATH_MAX], digit = '0';
	int fd;

	state_path(pid, path);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return CUDAPOOL_PROCESS_RUNNING;
	if (read(fd, &digit, 1) != 1)
		digit = '0';
	close(fd);
	return digit - '0';
}

/* The smallest thread id above `floor`, beside the first thread's. */
static int thread_above(int pid, int floor)
{
	char path[64];
	struct dirent *entry;
	int best = INT_MAX, tid;
	DIR *dir;

	snprintf(path, sizeof(path), "/proc/%d/task", pid);
	dir = opendir(path);
	if (!dir)
		return -1;
	while ((entry = readdir(dir)) != NULL) {
		tid = atoi(entry->d_name);
		if (tid > floor && tid != pid && tid < best)
			best = tid;
	}
	closedir(dir);
	return best == INT_MAX ? -1 : best;
}

int fake_restore_tid(int pid)
{
	return thread_above(pid, 0);
}

int fake_shim_tid(int pid)
{
	int restore_tid = fake_restore_tid(pid);

	return restore_tid < 0 ? -1 : thread_above(pid, restore_tid);
}

/* Opens the memory of a process at its control page; -1: it has none. */
static int open_page(int pid, unsigned long *address)
{
	char path[64], line[512];
	bool found = false;
	FILE *maps;

	snprintf(path, sizeof(path), "/proc/%d/maps", pid);
	maps = fopen(path, "re");
	while (maps && !found && fgets(line, sizeof(line), maps))
		found = strstr(line, "/memfd:" CUDAPOOL_PAGE_NAME) && sscanf(line, "%lx-", address) == 1;
	if (maps)
		fclose(maps);
	snprintf(path, sizeof(path), "/proc/%d/mem", pid);
	return found ? open(path, O_RDWR | O_CLOEXEC) : -1;
}

bool fake_is_parked(int pid)
{
	struct cudapool_page page = {};
	unsigned long address;
	int fd = open_page(pid, &address);
	ssize_t n;

	if (fd < 0)
		return false;
	n = pread(fd, &page, sizeof(page), address);
	close(fd);
	return n == sizeof(page) && page.park_state == CUDAPOOL_PARK_PARKED;
}

int fake_set_park_state(int pid, unsigned state)
{
	unsigned long address;
	int fd = open_page(pid, &address);
	uint32_t value = state;
	ssize_t n;

	if (fd < 0)
		return -1;
	n = pwrite(fd, &value, sizeof(value), address + offsetof(struct cudapool_page, park_state));
	close(fd);
	return n == sizeof(value) ? 0 : -1;
}

static int unpark(int pid)
{
	if (!fake_is_parked(pid) || fake_state(pid) != CUDAPOOL_PROCESS_RUNNING)
		return -1;
	if (thread_state(fake_shim_tid(pid)) == 't') {
		fake_note("log", "the shim's thread of %d is stopped", pid);
		return -1;
	}
	return fake_set_park_state(pid, CUDAPOOL_PARK_OPEN);
}

int fake_act(enum cudapool_op op, int pid)
{
	char path[PATH_MAX], digit;
	int before, after, fd;

	switch (op) {
	case CUDAPOOL_OP_UNPARK:
		return unpark(pid);
	case CUDAPOOL_OP_LOCK:
		before = CUDAPOOL_PROCESS_RUNNING, after = CUDAPOOL_PROCESS_LOCKED;
		break;
	case CUDAPOOL_OP_CHECKPOINT:
		before = CUDAPOOL_PROCESS_LOCKED, after = CUDAPOOL_PROCESS_CHECKPOINTED;
		break;
	case CUDAPOOL_OP_RESTORE:
		before = CUDAPOOL_PROCESS_CHECKPOINTED, after = CUDAPOOL_PROCESS_LOCKED;
		break;
	case CUDAPOOL_OP_UNLOCK:
		before = CUDAPOOL_PROCESS_LOCKED, after = CUDAPOOL_PROCESS_RUNNING;
		break;
	default:
		return -1;
	}
	if (!fake_is_cuda(pid) || fake_state(pid) != before)
		return -1;
	if ((op == CUDAPOOL_OP_CHECKPOINT || op == CUDAPOOL_OP_RESTORE) && thread_state(fake_restore_tid(pid)) == 't') {
		fake_note("log", "the restore thread of %d is stopped", pid);
		return -1;
	}
	state_path(pid, path);
	fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
	if (fd < 0)
		return -1;
	digit = '0' + after;
	if (write(fd, &digit, 1) != 1)
		after = -1;
	close(fd);
	return after < 0 ? -1 : 0;
}

void fake_note(const char *file, const char *format, ...)
{
	char path[PATH_MAX], line[512];
	struct timespec ts;
	va_list args;
	int n, fd;

	clock_gettime(CLOCK_REALTIME, &ts);
	n = snprintf(line, sizeof(line), "%lld ", ts.tv_sec * 1000ll + ts.tv_nsec / 1000000);
	va_start(args, format);
	n += vsnprintf(line + n, sizeof(line) - n - 1, format, args);
	va_end(args);
	if (n > (int)sizeof(line) - 2)
		n = sizeof(line) - 2;
	line[n++] = '\n';

	snprintf(path, sizeof(path), "%s/%s", state_dir(), file);
	fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
	if (fd < 0 || write(fd, line, n) != n)
		abort();
	close(fd);
}

const char *fake_op_name(unsigned op)
{
	static const char *const names[] = {"?",       "state",	"tid",	"lock",	 "checkpoint",
					    "restore", "unlock", "shim", "unpark", "saved"};

	return op <= CUDAPOOL_OP_LAST ? names[op] : names[0];
}
