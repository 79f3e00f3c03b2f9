// SPDX-License-Identifier: MIT
/* cuCheckpointProcess*: finding the restore thread of another process, and giving it orders. */
#include "page.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define TAKE_LIMIT_NS     (5 * 1000000000ull)  /* for the restore thread to take an order: it is stopped, if not */
#define PROGRESS_LIMIT_NS (15 * 1000000000ull) /* without any progress in one */
#define BUSY_LIMIT_MS     15000                /* for someone else's order to end */
#define LOOK_NS           100000000ull

struct target {
	int pid;
	int fd; /* holds the flock */
	struct softcuda_page *page;
};

/* Where the page of a process is mapped: "START-END", as map_files has it. */
static CUresult page_find(int pid, char *range, size_t size)
{
	CUresult result = CUDA_ERROR_NOT_INITIALIZED; /* a process without CUDA */
	char path[64], *line = NULL, *end;
	size_t room = 0;
	FILE *maps;

	snprintf(path, sizeof(path), "/proc/%d/maps", pid);
	maps = fopen(path, "re");
	if (!maps)
		return errno == ENOENT || errno == ESRCH ? CUDA_ERROR_INVALID_VALUE : CUDA_ERROR_NOT_PERMITTED;
	while (getline(&line, &room, maps) > 0) {
		if (!strstr(line, " /memfd:" SOFTCUDA_PAGE_NAME " (deleted)"))
			continue;
		end = strchr(line, ' ');
		if (!end || (size_t)(end - line) >= size)
			continue;
		memcpy(range, line, end - line);
		range[end - line] = 0;
		result = CUDA_SUCCESS;
		break;
	}
	if (result != CUDA_SUCCESS && ferror(maps))
		result = CUDA_ERROR_NOT_PERMITTED;
	free(line);
	fclose(maps);
	return result;
}

static void target_close(struct target *target)
{
	if (target->page)
		munmap(target->page, SOFTCUDA_PAGE_SIZE);
	if (target->fd >= 0)
		close(target->fd);
}

static CUresult target_open(struct target *target, int pid)
{
	char path[128], range[64];
	struct stat file;
	CUresult result;

	memset(target, 0, sizeof(*target));
	target->fd = -1;
	target->pid = pid;
	if (pid <= 0)
		return CUDA_ERROR_INVALID_VALUE;
	result = page_find(pid, range, sizeof(range));
	if (result != CUDA_SUCCESS)
		return result;
	snprintf(path, sizeof(path), "/proc/%d/map_files/%s", pid, range);
	target->fd = open(path, O_RDWR | O_CLOEXEC);
	if (target->fd < 0)
		return errno == ENOENT ? CUDA_ERROR_NOT_INITIALIZED : CUDA_ERROR_NOT_PERMITTED;
	if (fstat(target->fd, &file) || !S_ISREG(file.st_mode) || file.st_nlink ||
	    file.st_size != (off_t)SOFTCUDA_PAGE_SIZE)
		goto foreign;
	target->page = mmap(NULL, SOFTCUDA_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, target->fd, 0);
	if (target->page == MAP_FAILED) {
		target->page = NULL;
		goto foreign;
	}
	if (*(volatile uint32_t *)&target->page->magic !=
	    SOFTCUDA_PAGE_MAGIC) /* cuInit has not got there yet, or it is another thing */
		goto foreign;
	if (target->page->version != SOFTCUDA_PAGE_VERSION || target->page->size != sizeof(struct softcuda_page)) {
		target_close(target);
		return CUDA_ERROR_SYSTEM_DRIVER_MISMATCH;
	}
	return CUDA_SUCCESS;
foreign:
	target_close(target);
	return CUDA_ERROR_NOT_INITIALIZED;
}

/* One line of a /proc file that starts with `key`; false if there is none. */
static bool proc_line(const char *path, const char *key, char *line, size_t size)
{
	FILE *file = fopen(path, "re");
	bool found = false;

	while (file && !found && fgets(line, size, file))
		found = !strncmp(line, key, strlen(key));
	if (file)
		fclose(file);
	return found;
}

static bool is_dead(int pid)
{
	char path[64], line[128], *state;

	snprintf(path, sizeof(path), "/proc/%d/status", pid);
	if (!proc_line(path, "State:", line, sizeof(line)))
		return true;
	state = line + strlen("State:");
	state += strspn(state, " \t");
	return *state == 'Z' || *state == 'X';
}

CUresult do_cuCheckpointProcessGetRestoreThreadId(int pid, int *tid)
{
	char path[300], line[256], *last;
	struct target target;
	struct dirent *entry;
	CUresult result;
	DIR *tasks;
	int wanted;

	if (!tid)
		return CUDA_ERROR_INVALID_VALUE;
	result = target_open(&target, pid);
	if (result != CUDA_SUCCESS)
		return result;
	wanted = target.page->restore_tid;
	target_close(&target);

	/* The process knows the thread by its own namespace's number, the caller needs its own. */
	snprintf(path, sizeof(path), "/proc/%d/task", pid);
	tasks = opendir(path);
	if (!tasks)
		return CUDA_ERROR_INVALID_VALUE;
	result = CUDA_ERROR_NOT_INITIALIZED;
	while (result != CUDA_SUCCESS && (entry = readdir(tasks))) {
		if (!isdigit((unsigned char)*entry->d_name))
			continue;
		snprintf(path, sizeof(path), "/proc/%d/task/%s/status", pid, entry->d_name);
		if (!proc_line(path, "NSpid:", line, sizeof(line)))
			continue;
		line[strcspn(line, "\n")] = 0;
		last = strrchr(line, '\t');
		if (last && atoi(last + 1) == wanted) {
			*tid = atoi(entry->d_name);
			result = CUDA_SUCCESS;
		}
	}
	closedir(tasks);
	return result;
}

CUresult do_cuCheckpointProcessGetState(int pid, CUprocessState *state)
{
	struct target target;
	CUresult result;

	if (!state)
		return CUDA_ERROR_INVALID_VALUE;
	result = target_open(&target, pid);
	if (result != CUDA_SUCCESS)
		return result;
	*state = atomic_load(&target.page->state);
	if ((unsigned)*state > CU_PROCESS_STATE_FAILED)
		result = CUDA_ERROR_UNKNOWN;
	target_close(&target);
	return result;
}

/* Waits until no order is under way, whoever gave it. */
static CUresult page_own(struct target *target)
{
	uint32_t phase;

	for (unsigned waited = 0; flock(target->fd, LOCK_EX | LOCK_NB) && waited < BUSY_LIMIT_MS; waited++)
		softcuda_sleep_ns(1000000);
	if (flock(target->fd, LOCK_EX | LOCK_NB))
		return CUDA_ERROR_TIMEOUT;
	/* Left behind by someone who died: not taken, withdraw it; taken, let it end. */
	for (unsigned waited = 0; waited < BUSY_LIMIT_MS; waited++) {
		phase = atomic_load(&target->page->phase);
		if (phase != ORDER_TAKEN && atomic_compare_exchange_strong(&target->page->phase, &phase, ORDER_IDLE))
			return CUDA_SUCCESS;
		softcuda_sleep_ns(1000000);
	}
	return CUDA_ERROR_TIMEOUT;
}

static CUresult order_wait(struct target *target, uint64_t limit_ns)
{
	uint64_t seen = atomic_load(&target->page->progress), since = softcuda_now_ns(), now;
	uint32_t phase;

	while ((phase = atomic_load(&target->page->phase)) != ORDER_DONE) {
		softcuda_futex_wait(&target->page->phase, phase, LOOK_NS, true);
		now = softcuda_now_ns();
		if (seen != atomic_load(&target->page->progress)) {
			seen = atomic_load(&target->page->progress);
			since = now;
		}
		if (is_dead(target->pid))
			return CUDA_ERROR_INVALID_VALUE;
		if (now - since < (phase == ORDER_ASKED ? TAKE_LIMIT_NS : limit_ns))
			continue;
		if (phase == ORDER_TAKEN || atomic_compare_exchange_strong(&target->page->phase, &phase, ORDER_IDLE))
			return CUDA_ERROR_TIMEOUT;
	}
	return CUDA_SUCCESS;
}

static CUresult order(int pid, enum softcuda_order what, unsigned timeout_ms, const CUcheckpointGpuPair *pairs,
		      unsigned count)
{
	uint64_t start = softcuda_now_ns(), limit = PROGRESS_LIMIT_NS;
	struct target target;
	CUresult result;

	result = target_open(&target, pid);
	if (result != CUDA_SUCCESS)
		return result;
	result = page_own(&target);
	if (result == CUDA_SUCCESS) {
		target.page->order = what;
		target.page->timeout_ms = timeout_ms;
		target.page->warm = softcuda_hold_is_warm();
		target.page->pair_count = count;
		if (count)
			memcpy(target.page->pairs, pairs, count * sizeof(*pairs));
		atomic_store(&target.page->phase, ORDER_ASKED);
		softcuda_futex_wake(&target.page->phase, true);
		if (what == ORDER_LOCK)
			limit += (timeout_ms ? timeout_ms : SOFTCUDA_LOCK_LIMIT_MS) * 1000000ull;
		result = order_wait(&target, limit);
		if (result == CUDA_SUCCESS) {
			result = target.page->result;
			atomic_store(&target.page->phase, ORDER_IDLE);
		}
	}
	target_close(&target);
	softcuda_spend(start, softcuda_costs.query_us / 1000, 0, 0);
	return result;
}

static bool zero(const void *bytes, size_t size)
{
	const char *byte = bytes;

	while (size && !*byte) {
		byte++;
		size--;
	}
	return !size;
}

CUresult do_cuCheckpointProcessLock(int pid, CUcheckpointLockArgs *how)
{
	if (how && (how->reserved0 || !zero(how->reserved1, sizeof(how->reserved1))))
		return CUDA_ERROR_INVALID_VALUE;
	return order(pid, ORDER_LOCK, how ? how->timeoutMs : 0, NULL, 0);
}

CUresult do_cuCheckpointProcessCheckpoint(int pid, CUcheckpointCheckpointArgs *how)
{
	if (how && !zero(how, sizeof(*how)))
		return CUDA_ERROR_INVALID_VALUE;
	return order(pid, ORDER_CHECKPOINT, 0, NULL, 0);
}

CUresult do_cuCheckpointProcessRestore(int pid, CUcheckpointRestoreArgs *how)
{
	if (how && (!zero(how->reserved, sizeof(how->reserved)) || how->reserved1 ||
		    how->gpuPairsCount > SOFTCUDA_MAX_DEVICES || (how->gpuPairsCount && !how->gpuPairs)))
		return CUDA_ERROR_INVALID_VALUE;
	return order(pid, ORDER_RESTORE, 0, how ? how->gpuPairs : NULL, how ? how->gpuPairsCount : 0);
}

CUresult do_cuCheckpointProcessUnlock(int pid, CUcheckpointUnlockArgs *how)
{
	if (how && !zero(how, sizeof(*how)))
		return CUDA_ERROR_INVALID_VALUE;
	return order(pid, ORDER_UNLOCK, 0, NULL, 0);
}
