// SPDX-License-Identifier: MIT
/* The pool's access to the control page (wire/control_page.h) of a process with the shim. */
#include "shim_page.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <time.h>
#include <unistd.h>

#include "json.h"

#define MAPPED_NAME   "/memfd:" CUDAPOOL_PAGE_NAME " (deleted)"
#define MAPS_MAX      (256u << 20) /* bytes of /proc/PID/maps that are looked through */
#define PAGES_MAX     8            /* mappings of that name that are tried */
#define SLICE_US      20000        /* after which a waiting command looks whether the process lives */
#define OWNER_WAIT_US 1000         /* between two attempts to become the one that commands */
#define BYTES_MAX     (1ull << 56) /* of memory that a page may speak of: sums of it do not overflow */
#define THREADS_MAX   65536        /* of one process that are looked through for the shim's */

static int __attribute__((format(printf, 3, 4))) fail(struct cudapool_shim *shim, int error, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vsnprintf(shim->text, sizeof(shim->text), format, args);
	va_end(args);
	return error;
}

static uint64_t now_us(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000000ull + ts.tv_nsec / 1000;
}

/* Maps what is mapped there in the process, if it is a memfd that cannot shrink below one page: else its owner could
 * truncate it under us, and the next look at it would be SIGBUS. */
static int map_page(struct cudapool_shim *shim, unsigned long start, unsigned long end)
{
	char path[80];
	struct stat st;
	int fd, seals, ret;
	void *page;

	snprintf(path, sizeof(path), "/proc/%d/map_files/%lx-%lx", shim->process.pid, start, end);
	fd = open(path, O_RDWR | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	if (fd < 0) {
		ret = -errno;
		if (ret == -ENOENT)
			return fail(shim, ret, "the control page vanished from process %d", shim->process.pid);
		return fail(shim, ret, "cannot open the control page of process %d: %s%s", shim->process.pid,
			    strerror(-ret), ret == -EPERM ? " (it takes CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE)" : "");
	}
	seals = fcntl(fd, F_GET_SEALS);
	if (fstat(fd, &st) || !S_ISREG(st.st_mode) || st.st_size != CUDAPOOL_PAGE_SIZE || seals < 0 ||
	    !(seals & F_SEAL_SHRINK)) {
		ret = fail(shim, -EBADMSG,
			   "process %d maps something called %s that is no control page (size %lld, seals %#x)",
			   shim->process.pid, CUDAPOOL_PAGE_NAME, (long long)st.st_size, seals);
	} else {
		page = mmap(NULL, CUDAPOOL_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
		ret = page == MAP_FAILED ? -errno : 0;
		if (ret)
			fail(shim, ret, "cannot map the control page of process %d: %s", shim->process.pid,
			     strerror(-ret));
		else
			shim->page = page;
	}
	close(fd);
	return ret;
}

/*
 * Where the kernel has its memfds. Any file can bear such a name, and opening one of a FUSE file system may take for
 * ever. It stays the same for as long as the kernel runs.
 */
static int memfd_device(dev_t *device)
{
	static _Atomic dev_t known; /* 0: not yet; several threads look at processes */
	struct stat st = {.st_dev = known};
	int fd, err = 0;

	if (!st.st_dev) {
		fd = memfd_create(CUDAPOOL_PAGE_NAME, MFD_CLOEXEC);
		if (fd < 0)
			return -errno;
		err = fstat(fd, &st) ? -errno : 0;
		close(fd);
		known = st.st_dev;
	}
	*device = st.st_dev;
	return err;
}

/* True for the line of a shared mapping of one page of a memfd with the page's exact name. */
static bool is_page_line(char *line, dev_t device, unsigned long *start, unsigned long *end)
{
	unsigned major, minor;
	unsigned long offset;
	char permissions[5];
	int name = 0;

	return sscanf(line, "%lx-%lx %4s %lx %x:%x %*u %n", start, end, permissions, &offset, &major, &minor, &name) ==
		       6 &&
	       name > 0 && !strcmp(line + name, MAPPED_NAME) && !strcmp(permissions, "rw-s") && offset == 0 &&
	       *end - *start == CUDAPOOL_PAGE_SIZE && makedev(major, minor) == device;
}

/* Looks through an open /proc/PID/maps; lines longer than the block cannot be ours and are dropped. */
static int find_page(struct cudapool_shim *shim, int maps)
{
	int ret = fail(shim, -ENOENT, "process %d has no shim, or its shim has not met the driver yet",
		       shim->process.pid);
	char block[PATH_MAX + 256], *line, *newline;
	unsigned long start, end;
	size_t used = 0, seen = 0;
	int tried = 0, err;
	dev_t device = 0;
	ssize_t n;

	err = memfd_device(&device);
	if (err)
		return fail(shim, err, "cannot make a memfd: %s", strerror(-err));
	while (seen < MAPS_MAX && (n = read(maps, block + used, sizeof(block) - 1 - used)) > 0) {
		seen += n;
		used += n;
		block[used] = '\0';
		for (line = block; (newline = strchr(line, '\n')); line = newline + 1) {
			*newline = '\0';
			if (!is_page_line(line, device, &start, &end))
				continue;
			ret = map_page(shim, start, end);
			if (!ret || ++tried == PAGES_MAX)
				return ret;
		}
		used -= line - block;
		memmove(block, line, used);
		if (used == sizeof(block) - 1)
			used = 0;
	}
	return ret;
}

int cudapool_shim_open(struct cudapool_shim *shim, int pid)
{
	struct cudapool_page copy;
	char path[32];
	int maps, ret;

	*shim = (struct cudapool_shim){.process = PROCESS_NONE};
	ret = process_open(&shim->process, pid);
	if (ret)
		return fail(shim, ret, "process %d: %s", pid, strerror(-ret));

	snprintf(path, sizeof(path), "/proc/%d/maps", shim->process.pid);
	maps = open(path, O_RDONLY | O_CLOEXEC);
	if (maps < 0) {
		ret = fail(shim, -errno, "cannot look into process %d: %s", pid, strerror(errno));
	} else {
		ret = find_page(shim, maps);
		close(maps);
	}
	/* Alive now, so all the paths above were this process's and not a later one's of the same number. */
	if (!ret && !process_alive(&shim->process))
		ret = fail(shim, -ESRCH, "process %d has ended", pid);
	if (!ret)
		ret = cudapool_shim_read(shim, &copy);
	if (ret)
		cudapool_shim_close(shim);
	return ret;
}

void cudapool_shim_close(struct cudapool_shim *shim)
{
	if (shim->page)
		munmap(shim->page, CUDAPOOL_PAGE_SIZE);
	shim->page = NULL;
	process_close(&shim->process);
}

/* Text of the shim's, for people: made safe for logs and terminals. */
static void copy_text(char *copy, const volatile char *text, size_t size)
{
	size_t i;

	for (i = 0; i < size - 1 && (copy[i] = text[i]); i++)
		if (copy[i] < ' ' || copy[i] > '~')
			copy[i] = '?';
	copy[i] = '\0';
}

int cudapool_shim_read(struct cudapool_shim *shim, struct cudapool_page *copy)
{
	const volatile struct cudapool_page *page = shim->page; /* volatile: each field is read exactly once */
	bool impossible = false;
	size_t i, j;

	copy->magic = __atomic_load_n(&page->magic, __ATOMIC_ACQUIRE);
	copy->version = page->version;
	copy->size = page->size;
	if (copy->magic != CUDAPOOL_PAGE_MAGIC)
		return fail(shim, -EBADMSG, "the control page of process %d is not filled in", shim->process.pid);
	if (copy->version != CUDAPOOL_PAGE_VERSION || copy->size != sizeof(*page))
		return fail(shim, -EPROTONOSUPPORT,
			    "the shim in process %d has control page version %u (%u bytes), this pool knows %u (%zu): "
			    "start the application with the shim of this pool",
			    shim->process.pid, copy->version, copy->size, CUDAPOOL_PAGE_VERSION, sizeof(*page));

	for (i = 0; i < sizeof(copy->build); i++)
		copy->build[i] = page->build[i];
	copy->build[sizeof(copy->build) - 1] = '\0';
	for (i = 0; copy->build[i]; i++)
		if (copy->build[i] <= ' ' || copy->build[i] > '~')
			return fail(shim, -EBADMSG, "the control page of process %d names an impossible build",
				    shim->process.pid);
	copy->pid = page->pid;
	copy->owner = page->owner;
	copy->command = page->command;
	copy->command_seq = page->command_seq;
	copy->ack_seq = page->ack_seq;
	copy->result = page->result;
	copy->warmth = page->warmth;
	copy->warm_result = page->warm_result;
	copy->restores = page->restores;
	copy->app_inited = page->app_inited;
	copy->warm_us = page->warm_us;
	copy->handed_back = page->handed_back;
	copy->created = page->created;
	copy->resolved = page->resolved;
	copy->tid = page->tid;
	copy->park_state = page->park_state;
	copy->channel_fd = page->channel_fd;
	copy->limit_ms = page->limit_ms;
	for (i = 0; i < sizeof(copy->token); i++)
		copy->token[i] = page->token[i];
	copy->parked_bytes = page->parked_bytes;
	for (i = 0; i < CUDAPOOL_LEFT_KINDS; i++) {
		copy->left_bytes[i] = page->left_bytes[i];
		impossible |= copy->left_bytes[i] > BYTES_MAX;
	}
	copy->imported_bytes = page->imported_bytes;
	copy->held_calls = page->held_calls;
	copy->unknown = page->unknown;
	copy_text(copy->unknown_name, page->unknown_name, sizeof(copy->unknown_name));
	copy_text(copy->reason, page->reason, sizeof(copy->reason));
	copy->want_seq = page->want_seq;
	copy->granted_seq = page->granted_seq;
	copy->want_device = page->want_device;
	copy->foreign_mb = page->foreign_mb;
	copy->want_bytes = page->want_bytes;
	for (i = 0; i < CUDAPOOL_PAGE_DEVICES; i++) {
		for (j = 0; j < sizeof(copy->devices[i].uuid); j++)
			copy->devices[i].uuid[j] = page->devices[i].uuid[j];
		copy->devices[i].evictable = page->devices[i].evictable;
	}
	if (impossible || copy->tid < 0 || copy->park_state > CUDAPOOL_PARK_UNPARKING ||
	    copy->parked_bytes > BYTES_MAX || copy->imported_bytes > BYTES_MAX || copy->held_calls > INT64_MAX ||
	    copy->pid <= 0 || copy->warmth > CUDAPOOL_WARMTH_FAILED || copy->app_inited > 1 ||
	    copy->warm_us > INT64_MAX || copy->handed_back > INT64_MAX || copy->created > INT64_MAX ||
	    copy->resolved > INT64_MAX)
		return fail(shim, -EBADMSG, "the control page of process %d says impossible things", shim->process.pid);
	return 0;
}

/* The base name of the program that process or thread `pid` runs; false if there is none such. */
static bool program_of(unsigned pid, char name[NAME_MAX + 1])
{
	char path[32], target[PATH_MAX], *base, *deleted;
	ssize_t n;

	snprintf(path, sizeof(path), "/proc/%u/exe", pid);
	n = readlink(path, target, sizeof(target) - 1);
	if (n <= 0)
		return false;
	target[n] = '\0';
	base = strrchr(target, '/');
	base = base ? base + 1 : target;
	deleted = strstr(base, " (deleted)"); /* after an update */
	if (deleted)
		*deleted = '\0';
	snprintf(name, NAME_MAX + 1, "%.*s", NAME_MAX, base);
	return true;
}

/*
 * A page may carry the owner of a pool that was killed, or come out of a CRIU image with it: a
 * number that by now stands for nobody, or for something else.
 */
static bool owner_lives(uint32_t owner)
{
	char its[NAME_MAX + 1], ours[NAME_MAX + 1];

	return owner <= INT_MAX && program_of(owner, its) && program_of(getpid(), ours) && !strcmp(its, ours);
}

/*
 * The owner is the thread, so that two threads of one pool do not command at once either. 0, or the owner that lives.
 */
static uint32_t try_to_take(struct cudapool_shim *shim)
{
	uint32_t self = gettid(), owner = 0;

	if (__atomic_compare_exchange_n(&shim->page->owner, &owner, self, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
		return 0;
	if ((owner == self || !owner_lives(owner)) &&
	    __atomic_compare_exchange_n(&shim->page->owner, &owner, self, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
		return 0;
	return owner ? owner : UINT32_MAX; /* 0: it was given up just now */
}

static void wake(uint32_t *word)
{
	syscall(SYS_futex, word, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}

/* Waits until *word is no longer `value`, at most `us`; may return earlier. */
static void wait_for_change(uint32_t *word, uint32_t value, uint64_t us)
{
	struct timespec ts = {us / 1000000, us % 1000000 * 1000};

	syscall(SYS_futex, word, FUTEX_WAIT, value, &ts, NULL, 0);
}

static int wait_for_ack(struct cudapool_shim *shim, uint32_t seq, uint64_t deadline)
{
	uint64_t now, slice;
	uint32_t ack;

	for (;;) {
		ack = __atomic_load_n(&shim->page->ack_seq, __ATOMIC_ACQUIRE);
		if (ack == seq)
			return 0;
		if (!process_alive(&shim->process))
			return fail(shim, -ESRCH, "process %d has ended", shim->process.pid);
		now = now_us();
		if (now >= deadline)
			return fail(shim, -ETIMEDOUT, "the shim of process %d does not answer%s", shim->process.pid,
				    process_stopped(&shim->process) ? ": threads of it are stopped" : "");
		slice = deadline - now;
		wait_for_change(&shim->page->ack_seq, ack, slice < SLICE_US ? slice : SLICE_US);
	}
}

int cudapool_shim_post(struct cudapool_shim *shim, enum cudapool_page_command command, const uint8_t token[16],
		       uint32_t limit_ms, uint32_t *seq)
{
	volatile struct cudapool_page *page = shim->page;
	uint32_t owner = try_to_take(shim);
	size_t i;

	if (owner)
		return fail(shim, -EAGAIN, "the shim of process %d is commanded by process %u", shim->process.pid,
			    owner);
	page->command = command;
	page->limit_ms = limit_ms;
	for (i = 0; token && i < sizeof(page->token); i++)
		page->token[i] = token[i];
	*seq = __atomic_add_fetch(&shim->page->command_seq, 1, __ATOMIC_RELEASE);
	wake(&shim->page->command_seq);
	return 0;
}

int cudapool_shim_acknowledged(struct cudapool_shim *shim, uint32_t seq, int32_t *result, int32_t *channel_fd)
{
	const volatile struct cudapool_page *page = shim->page;

	if (__atomic_load_n(&shim->page->ack_seq, __ATOMIC_ACQUIRE) == seq) {
		*result = page->result;
		*channel_fd = page->channel_fd;
		return 0;
	}
	if (!process_alive(&shim->process))
		return fail(shim, -ESRCH, "process %d has ended", shim->process.pid);
	return -EAGAIN;
}

void cudapool_shim_taken(struct cudapool_shim *shim, int32_t channel_fd)
{
	__atomic_compare_exchange_n(&shim->page->channel_fd, &channel_fd, -1, false, __ATOMIC_RELEASE, __ATOMIC_RELAXED);
}

void cudapool_shim_leave(struct cudapool_shim *shim, bool unanswered)
{
	uint32_t self = gettid();

	if (unanswered) {
		__atomic_store_n(&shim->page->command, CUDAPOOL_PAGE_PING, __ATOMIC_RELAXED);
		__atomic_add_fetch(&shim->page->command_seq, 1, __ATOMIC_RELEASE);
	}
	__atomic_compare_exchange_n(&shim->page->owner, &self, 0, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE);
}

int cudapool_shim_command(struct cudapool_shim *shim, enum cudapool_page_command command, int limit_ms, int32_t *result,
			  uint64_t *elapsed_us)
{
	uint64_t started = now_us(), deadline = started + (limit_ms > 0 ? limit_ms : 0) * 1000ull;
	int32_t its_result, channel_fd;
	uint32_t seq;
	int ret;

	while ((ret = cudapool_shim_post(shim, command, NULL, 0, &seq)) == -EAGAIN) {
		if (now_us() >= deadline)
			return -EBUSY;
		usleep(OWNER_WAIT_US);
	}
	started = now_us();
	ret = wait_for_ack(shim, seq, deadline);
	if (!ret && elapsed_us)
		*elapsed_us = now_us() - started;
	if (!ret && !cudapool_shim_acknowledged(shim, seq, &its_result, &channel_fd) && result)
		*result = its_result;
	cudapool_shim_leave(shim, ret == -ETIMEDOUT);
	return ret;
}

uint64_t cudapool_shim_left(const struct cudapool_page *page)
{
	uint64_t left = 0;
	size_t i;

	for (i = 0; i < CUDAPOOL_LEFT_KINDS; i++)
		left += page->left_bytes[i];
	return left;
}

int cudapool_shim_thread(const struct cudapool_shim *shim, const struct cudapool_page *page)
{
	char path[32];
	struct dirent *entry;
	int tid, seen = 0, found = -ESRCH;
	DIR *tasks;

	snprintf(path, sizeof(path), "/proc/%d/task", shim->process.pid);
	tasks = opendir(path);
	if (!tasks)
		return -ESRCH;
	while (found < 0 && seen++ < THREADS_MAX && (entry = readdir(tasks))) {
		tid = atoi(entry->d_name);
		if (tid > 0 && process_thread_is(&shim->process, tid, page->tid, CUDAPOOL_SHIM_THREAD))
			found = tid;
	}
	closedir(tasks);
	return process_alive(&shim->process) ? found : -ESRCH;
}

/* Everything that a report needs; *ping_us is -1 if the ping was not answered, and then shim->text says why. */
static int look(struct cudapool_shim *shim, int pid, int limit_ms, struct cudapool_page *copy, int64_t *ping_us)
{
	uint64_t elapsed;
	int ret = cudapool_shim_open(shim, pid);

	if (ret)
		return ret;
	*ping_us = cudapool_shim_command(shim, CUDAPOOL_PAGE_PING, limit_ms, NULL, &elapsed) ? -1 : (int64_t)elapsed;
	ret = cudapool_shim_read(shim, copy);
	cudapool_shim_close(shim);
	return ret;
}

static const char *warmth_name(uint32_t warmth)
{
	static const char *const names[] = {"none", "driver", "context", "taken", "failed"};

	return names[warmth]; /* bounded by cudapool_shim_read() */
}

static void report_park(struct cudapool_json *j, const struct cudapool_page *page)
{
	static const char *const states[] = {"open", "closing", "parked", "unparking"};
	static const char *const kinds[CUDAPOOL_LEFT_KINDS] = {"small", "ordered", "managed",
							       "array", "shared",  "refused"};
	size_t i;

	cudapool_json_string(j, "park_state", states[page->park_state]); /* bounded by cudapool_shim_read() */
	cudapool_json_number(j, "parked_bytes", page->parked_bytes);
	cudapool_json_number(j, "imported_bytes", page->imported_bytes);
	cudapool_json_number(j, "foreign_mb", page->foreign_mb);
	cudapool_json_open(j, "left_bytes", '{');
	for (i = 0; i < CUDAPOOL_LEFT_KINDS; i++)
		cudapool_json_number(j, kinds[i], page->left_bytes[i]);
	cudapool_json_close(j, '}');
	cudapool_json_number(j, "held_calls", page->held_calls);
	cudapool_json_number(j, "unknown", page->unknown);
	cudapool_json_string(j, "unknown_name", page->unknown_name);
	cudapool_json_string(j, "reason", page->reason);
}

int cudapool_shim_report(int pid, int limit_ms, char *json, size_t size)
{
	struct cudapool_json j = {.out = json, .size = size};
	struct cudapool_shim shim;
	struct cudapool_page page;
	int64_t ping_us;
	int ret = look(&shim, pid, limit_ms, &page, &ping_us);

	cudapool_json_open(&j, NULL, '{');
	cudapool_json_number(&j, "pid", pid);
	cudapool_json_bool(&j, "shim", !ret);
	if (!ret) {
		cudapool_json_string(&j, "build", page.build);
		cudapool_json_number(&j, "own_pid", page.pid);
		cudapool_json_string(&j, "warmth", warmth_name(page.warmth));
		cudapool_json_number(&j, "warm_result", page.warm_result);
		cudapool_json_number(&j, "warm_us", page.warm_us);
		cudapool_json_number(&j, "restores", page.restores);
		cudapool_json_bool(&j, "app_inited", page.app_inited);
		cudapool_json_number(&j, "handed_back", page.handed_back);
		cudapool_json_number(&j, "created", page.created);
		cudapool_json_number(&j, "resolved", page.resolved);
		report_park(&j, &page);
		if (ping_us >= 0)
			cudapool_json_number(&j, "ping_us", ping_us);
		else
			cudapool_json_null(&j, "ping_us");
	}
	cudapool_json_string(&j, "text", ret || ping_us < 0 ? shim.text : "");
	cudapool_json_close(&j, '}');
	return cudapool_json_end(&j) < 0 ? -ENOBUFS : ret;
}
