// SPDX-License-Identifier: GPL-2.0-only
/* Gives back the pages of a checkpointed process that hold only zeros, before CRIU writes them to its images. */
#include "criu-log.h"
#include <compel/infect.h>

#include "cudapool/zero_pages.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "pagemap_scan.h" /* last: it defines what the system's headers do not */

#include "wire/clock.h"

#undef LOG_PREFIX
#define LOG_PREFIX "cuda_plugin: "

#define RUN_MIN         (64UL << 10) /* bytes; shorter runs of zeros cost more to give back than to write */
#define BLOCKS          1024         /* of RUN_MIN bytes, looked at together; process_vm_readv() takes no more */
#define PAGE_MIN        4096UL
#define LIMIT_MS        3000
#define PAGEMAP_PRESENT (1ULL << 63)
#define RSEQ_SECTION    8      /* where struct rseq has the pointer to the section that a thread is in */
#define EXECUTABLE_MIN  4096UL /* as CRIU has it for its own injection */

struct scan {
	int pid;
	int pagemap;
	unsigned long page; /* its size */
	struct parasite_ctl *ctl;
	int64_t deadline;
	unsigned long start, end; /* the run of zero pages that has been found so far; empty: start == end */
	unsigned long bytes, runs;
	bool failed; /* to make the process call madvise() */
};

static bool read_memory(int pid, unsigned long address, void *to, size_t size)
{
	struct iovec local = {to, size}, remote = {(void *)address, size};

	return process_vm_readv(pid, &local, 1, &remote, 1, 0) == (ssize_t)size;
}

/* CRIU 4.2 gave this function a second argument, for threads in an rseq section; in_rseq_section() keeps those out. */
static struct parasite_ctl *prepare(int tid)
{
	struct parasite_ctl *(*one)(int);
	struct parasite_ctl *(*two)(int, bool);
	void *function = compel_prepare_noctx;

	one = function;
	two = function;
	return _Generic(compel_prepare_noctx, __typeof__(one) : one(tid), __typeof__(two) : two(tid, false));
}

static void give_back_run(struct scan *scan)
{
	unsigned long length = scan->end - scan->start;
	long ret = 0;

	if (length >= RUN_MIN && !scan->failed) {
		scan->failed =
			compel_syscall(scan->ctl, SYS_madvise, &ret, scan->start, length, MADV_DONTNEED, 0, 0, 0);
		if (!scan->failed && ret == 0) { /* locked memory, for one, is refused */
			scan->bytes += length;
			scan->runs++;
		}
	}
	scan->start = scan->end;
}

static void add_zero_page(struct scan *scan, unsigned long address)
{
	if (scan->end != address) {
		give_back_run(scan);
		scan->start = address;
	}
	scan->end = address + scan->page;
}

static bool is_zero(const char *page, unsigned long size)
{
	const uint64_t *first = (const uint64_t *)page;

	return *first == 0 && memcmp(page, first + 1, size - sizeof(*first)) == 0;
}

/*
 * Which blocks begin with a zero word: `zero[i]`. A run that is long enough holds the beginning of a block, so
 * memory without any costs little more than this.
 */
static void probe(struct scan *scan, unsigned long address, const uint64_t *pagemap, size_t blocks, bool *zero)
{
	static uint64_t words[BLOCKS];
	static struct iovec remote[BLOCKS];
	struct iovec local = {words, 0};
	size_t pages = RUN_MIN / scan->page, i, n = 0;
	bool known;

	for (i = 0; i < blocks; i++) {
		zero[i] = pagemap[i * pages] & PAGEMAP_PRESENT;
		if (zero[i])
			remote[n++] = (struct iovec){(void *)(address + i * RUN_MIN), sizeof(*words)};
	}
	if (n == 0)
		return;
	local.iov_len = n * sizeof(*words);
	known = process_vm_readv(scan->pid, &local, 1, remote, n, 0) == (ssize_t)local.iov_len;
	for (i = n = 0; i < blocks; i++)
		if (zero[i])
			zero[i] = known && words[n++] == 0;
}

/* A block's pages, of which `pagemap` says what is there: neither what is swapped out nor a hole is read. */
static void look(struct scan *scan, unsigned long address, const uint64_t *pagemap, size_t count)
{
	static char block[RUN_MIN] __attribute__((aligned(PAGE_MIN)));
	size_t i, first, n;

	for (first = 0; first < count; first += n + 1) {
		for (n = 0; first + n < count && pagemap[first + n] & PAGEMAP_PRESENT; n++)
			;
		if (n == 0 || !read_memory(scan->pid, address + first * scan->page, block, n * scan->page))
			continue;
		for (i = 0; i < n; i++)
			if (is_zero(block + i * scan->page, scan->page))
				add_zero_page(scan, address + (first + i) * scan->page);
	}
}

static bool over(const struct scan *scan)
{
	return scan->failed || cudapool_now_ms() > scan->deadline;
}

/* How much from `start` on is not there, in whole blocks: an area of terabytes may hold little. */
static unsigned long hole(struct scan *scan, unsigned long start, unsigned long end)
{
	struct page_region first = {.start = end};
	struct pm_scan_arg arg = {
		.size = sizeof(arg),
		.start = start,
		.end = end,
		.vec = (uintptr_t)&first,
		.vec_len = 1,
		.max_pages = 1,
		.category_mask = PAGE_IS_PRESENT,
		.return_mask = PAGE_IS_PRESENT,
	};

	/* Linux before 6.7 cannot say: nothing is left out then. */
	if (ioctl(scan->pagemap, PAGEMAP_SCAN, &arg) < 0)
		return 0;
	return first.start == end ? end - start : (first.start - start) & ~(RUN_MIN - 1);
}

static void look_through(struct scan *scan, unsigned long start, unsigned long end)
{
	static uint64_t pagemap[BLOCKS * RUN_MIN / PAGE_MIN];
	static bool zero[BLOCKS + 1];
	size_t pages = RUN_MIN / scan->page, count, blocks, i;
	unsigned long address;
	ssize_t got;

	for (address = start; !over(scan); address += count * scan->page) {
		address += hole(scan, address, end);
		if (address >= end)
			break;
		count = (end - address) / scan->page;
		if (count > BLOCKS * pages)
			count = BLOCKS * pages;
		got = pread(scan->pagemap, pagemap, count * sizeof(*pagemap), address / scan->page * sizeof(*pagemap));
		if (got < (ssize_t)sizeof(*pagemap))
			break;
		count = got / sizeof(*pagemap);
		blocks = (count + pages - 1) / pages;
		probe(scan, address, pagemap, blocks, zero);
		zero[blocks] = blocks == BLOCKS; /* unknown yet: so the last one is looked at */
		/* A run begins in a block that begins with zeros, or is followed by one that does. */
		for (i = 0; i < blocks && !over(scan); i++)
			if (zero[i] || zero[i + 1])
				look(scan, address + i * RUN_MIN, pagemap + i * pages,
				     count - i * pages < pages ? count - i * pages : pages);
	}
	give_back_run(scan);
}

/*
 * Private anonymous memory that can be read; what is only reserved cannot, and the driver reserves terabytes. Not
 * what can be executed: the process calls madvise() from such a place.
 */
static bool is_ours(const char *line, unsigned long *start, unsigned long *end)
{
	unsigned long inode;
	char permissions[5];
	int name = 0;

	if (sscanf(line, "%lx-%lx %4s %*x %*x:%*x %lu %n", start, end, permissions, &inode, &name) != 4 || !name)
		return false;
	return permissions[0] == 'r' && permissions[2] == '-' && permissions[3] == 'p' && inode == 0 &&
	       (line[name] == '\0' || strncmp(line + name, "[heap]", 6) == 0 || strncmp(line + name, "[anon:", 6) == 0);
}

/* Where compel may put the few bytes of a system call, and put back what was there: not into a file. */
static bool is_executable(const char *line, unsigned long *start)
{
	unsigned long end;
	char permissions[5];

	return sscanf(line, "%lx-%lx %4s", start, &end, permissions) == 3 && permissions[2] == 'x' &&
	       permissions[3] == 'p' && end - *start >= EXECUTABLE_MIN;
}

/* The next line without its end, of any length; false: there is none */
static bool next_line(FILE *file, char **line, size_t *size)
{
	if (getline(line, size, file) <= 0)
		return false;
	(*line)[strcspn(*line, "\n")] = '\0';
	return true;
}

/* The thread would leave the section without noticing. */
static bool in_rseq_section(int pid, int tid)
{
	struct __ptrace_rseq_configuration rseq;
	uint64_t section = 0;

	if (ptrace(PTRACE_GET_RSEQ_CONFIGURATION, tid, sizeof(rseq), &rseq) != sizeof(rseq) || !rseq.rseq_abi_pointer)
		return false;
	return !read_memory(pid, rseq.rseq_abi_pointer + RSEQ_SECTION, &section, sizeof(section)) || section;
}

static bool has_pinned_pages(int pid)
{
	unsigned long kib = 0;
	size_t size = 0;
	char *line = NULL;
	char path[64];
	FILE *status;

	snprintf(path, sizeof(path), "/proc/%d/status", pid);
	status = fopen(path, "re");
	while (status && next_line(status, &line, &size) && sscanf(line, "VmPin: %lu", &kib) != 1)
		;
	free(line);
	if (status)
		fclose(status);
	return !status || kib;
}

static bool has_file_of_others(int pid)
{
	static const char *const names[] = {"anon_inode:[userfaultfd]", "anon_inode:[io_uring]", "/dev/infiniband/",
					    "/dev/vfio/", "/dev/iommu"};
	bool found = false;
	struct dirent *entry;
	char path[64], target[64];
	ssize_t length;
	DIR *dir;
	size_t i;

	snprintf(path, sizeof(path), "/proc/%d/fd", pid);
	dir = opendir(path);
	while (dir && !found && (entry = readdir(dir))) {
		length = readlinkat(dirfd(dir), entry->d_name, target, sizeof(target) - 1);
		target[length > 0 ? length : 0] = '\0';
		for (i = 0; i < sizeof(names) / sizeof(*names); i++)
			found |= strncmp(target, names[i], strlen(names[i])) == 0;
	}
	if (dir)
		closedir(dir);
	return !dir || found;
}

/*
 * Why a process is left alone. A device or the kernel may write to its memory although it is stopped (and
 * would go on to write to the pages that it has lost), or has to be asked for what is given back.
 */
static const char *keeps_all(int pid, int tid)
{
	if (has_pinned_pages(pid))
		return "it has pinned pages";
	if (has_file_of_others(pid))
		return "its memory is in use by userfaultfd, io_uring or a device";
	if (in_rseq_section(pid, tid))
		return "its restore thread is in an rseq section";
	return NULL;
}

int cudapool_drop_zero_pages(int pid, int tid)
{
	struct scan scan = {.pid = pid, .pagemap = -1, .page = sysconf(_SC_PAGESIZE)};
	int64_t start_ms = cudapool_now_ms();
	unsigned long start, end, executable = 0;
	const char *why = keeps_all(pid, tid);
	size_t size = 0;
	char *line = NULL;
	char path[64];
	FILE *maps;

	scan.deadline = start_ms + LIMIT_MS;
	snprintf(path, sizeof(path), "/proc/%d/maps", pid);
	maps = fopen(path, "re");
	snprintf(path, sizeof(path), "/proc/%d/pagemap", pid);
	scan.pagemap = open(path, O_RDONLY | O_CLOEXEC);
	if (!maps || scan.pagemap < 0)
		why = "it cannot be looked through";
	while (!why && next_line(maps, &line, &size)) {
		if (strstr(line, " /[aio]"))
			why = "it reads and writes asynchronously";
		if (!executable && is_executable(line, &start))
			executable = start;
	}
	if (!why && !executable)
		why = "it has no private executable memory";
	if (!why)
		scan.ctl = prepare(tid);
	if (!why && (!scan.ctl || !compel_mode_native(scan.ctl)))
		why = "its restore thread cannot call madvise()";
	if (why) {
		pr_info("Zero pages of pid %d stay in the image: %s\n", pid, why);
		goto out;
	}
	compel_infect_ctx(scan.ctl)->syscall_ip = executable;

	/* What is given back changes no boundary in the list that is being read. */
	rewind(maps);
	while (!over(&scan) && next_line(maps, &line, &size))
		if (is_ours(line, &start, &end))
			look_through(&scan, start, end);

	pr_info("%lu MiB of zero pages of pid %d left out, %lu runs, in %lld ms\n", scan.bytes >> 20, pid, scan.runs,
		(long long)(cudapool_now_ms() - start_ms));
	if (scan.failed)
		pr_err("The restore thread %d of pid %d did not come back from madvise()\n", tid, pid);
out:
	if (scan.ctl && compel_cure_local(scan.ctl))
		pr_debug("compel has something left of pid %d\n", pid);
	if (scan.pagemap >= 0)
		close(scan.pagemap);
	if (maps)
		fclose(maps);
	free(line);
	return scan.failed ? -1 : 0;
}
