// SPDX-License-Identifier: GPL-2.0-only
/* Gives back the pages of a checkpointed process that hold only zeros, before CRIU writes them to its images. */
#include "criu-log.h"
#include <compel/infect.h>

#include "cudapool/zero_pages.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#undef LOG_PREFIX
#define LOG_PREFIX "cuda_plugin: "

#define PAGE            4096UL
#define WINDOW          256 /* pages that are looked at together */
#define RUN_MIN         16  /* shorter runs of zero pages cost more to give back than to write */
#define SAMPLE          sizeof(uint64_t)
#define LIMIT_MS        3000
#define PAGEMAP_PRESENT (1ULL << 63)

struct scan {
	int pid;
	int pagemap;
	struct parasite_ctl *ctl;
	int64_t deadline;
	unsigned long start, end; /* the run of zero pages that has been found so far; empty: start == end */
	unsigned long pages, runs;
	bool failed; /* to make the process call madvise() */
};

static int64_t now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000LL + ts.tv_nsec / 1000000;
}

/* CRIU 4.2 gave this function a second argument, which the thread of a driver has no need of: it is in no rseq section.
 */
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

	if (length >= RUN_MIN * PAGE && !scan->failed) {
		scan->failed =
			compel_syscall(scan->ctl, SYS_madvise, &ret, scan->start, length, MADV_DONTNEED, 0, 0, 0);
		if (!scan->failed && ret == 0) { /* locked memory, for one, is refused */
			scan->pages += length / PAGE;
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
	scan->end = address + PAGE;
}

static bool is_zero(const char *page)
{
	return *(const uint64_t *)page == 0 && memcmp(page, page + SAMPLE, PAGE - SAMPLE) == 0;
}

/* Reads a word of each candidate: most pages that hold something are known by that. */
static int sample(struct scan *scan, unsigned long address, bool *candidate, int count)
{
	static uint64_t words[WINDOW];
	struct iovec remote[WINDOW], local = {words, 0};
	int i, n = 0;

	for (i = 0; i < count; i++)
		if (candidate[i])
			remote[n++] = (struct iovec){(void *)(address + i * PAGE), SAMPLE};
	local.iov_len = n * SAMPLE;
	if (n == 0 || process_vm_readv(scan->pid, &local, 1, remote, n, 0) != (ssize_t)local.iov_len)
		return -1;
	for (i = n = 0; i < count; i++)
		if (candidate[i])
			candidate[i] = words[n++] == 0;
	return 0;
}

/* `count` pages from `address` on, of which pagemap says what is there. */
static void look(struct scan *scan, unsigned long address, const uint64_t *pagemap, int count)
{
	static char pages[WINDOW * PAGE] __attribute__((aligned(PAGE)));
	bool candidate[WINDOW];
	int i, first;

	for (i = 0; i < count; i++)
		candidate[i] = pagemap[i] & PAGEMAP_PRESENT;
	if (sample(scan, address, candidate, count))
		return;

	for (first = 0; first < count; first = i + 1) {
		struct iovec local = {pages, 0}, remote = {(void *)(address + first * PAGE), 0};
		int page;

		for (i = first; i < count && candidate[i]; i++)
			;
		if (i == first)
			continue;
		local.iov_len = remote.iov_len = (i - first) * PAGE;
		if (process_vm_readv(scan->pid, &local, 1, &remote, 1, 0) != (ssize_t)local.iov_len)
			continue;
		for (page = first; page < i; page++)
			if (is_zero(pages + (page - first) * PAGE))
				add_zero_page(scan, address + page * PAGE);
	}
}

static bool over(const struct scan *scan)
{
	return scan->failed || now_ms() > scan->deadline;
}

static void look_through(struct scan *scan, unsigned long start, unsigned long end)
{
	static uint64_t pagemap[64 * WINDOW];
	unsigned long address = start;

	while (address < end && !over(scan)) {
		size_t count = (end - address) / PAGE, i;
		ssize_t got;

		if (count > 64 * WINDOW)
			count = 64 * WINDOW;
		got = pread(scan->pagemap, pagemap, count * sizeof(*pagemap), address / PAGE * sizeof(*pagemap));
		if (got <= 0)
			break;
		count = got / sizeof(*pagemap);
		for (i = 0; i < count && !over(scan); i += WINDOW)
			look(scan, address + i * PAGE, pagemap + i, count - i < WINDOW ? count - i : WINDOW);
		address += count * PAGE;
	}
	give_back_run(scan);
}

/* Private anonymous memory that can be read; what is only reserved cannot, and the driver reserves terabytes. */
static bool is_ours(const char *line, unsigned long *start, unsigned long *end)
{
	unsigned long inode;
	char permissions[5];
	int name = 0;

	if (sscanf(line, "%lx-%lx %4s %*x %*x:%*x %lu %n", start, end, permissions, &inode, &name) != 4 || !name)
		return false;
	return permissions[0] == 'r' && permissions[3] == 'p' && inode == 0 &&
	       (line[name] == '\0' || strncmp(line + name, "[heap]", 6) == 0 || strncmp(line + name, "[anon:", 6) == 0);
}

/* Where compel may put the few bytes of a system call: it writes there and puts back what was there. */
static unsigned long executable_area(FILE *maps)
{
	unsigned long start, end, found = 0;
	char line[512], permissions[5];

	while (!found && fgets(line, sizeof(line), maps))
		if (sscanf(line, "%lx-%lx %4s", &start, &end, permissions) == 3 && permissions[2] == 'x')
			found = start;
	rewind(maps);
	return found;
}

void cudapool_drop_zero_pages(int pid, int tid)
{
	struct scan scan = {.pid = pid, .pagemap = -1, .deadline = now_ms() + LIMIT_MS};
	int64_t start_ms = now_ms();
	unsigned long start, end;
	char path[64], line[512];
	FILE *maps;

	snprintf(path, sizeof(path), "/proc/%d/maps", pid);
	maps = fopen(path, "re");
	snprintf(path, sizeof(path), "/proc/%d/pagemap", pid);
	scan.pagemap = open(path, O_RDONLY | O_CLOEXEC);
	if (!maps || scan.pagemap < 0)
		goto out;
	scan.ctl = prepare(tid);
	if (!scan.ctl)
		goto out;
	compel_infect_ctx(scan.ctl)->syscall_ip = executable_area(maps);
	if (!compel_infect_ctx(scan.ctl)->syscall_ip)
		goto out;

	/* What is given back changes no boundary in the list that is being read. */
	while (fgets(line, sizeof(line), maps) && !over(&scan)) {
		size_t length = strcspn(line, "\n");

		line[length] = '\0';
		if (is_ours(line, &start, &end))
			look_through(&scan, start, end);
	}
out:
	if (scan.failed || !scan.ctl)
		pr_warn("Zero pages of pid %d stay in the image: the process could not be looked through\n", pid);
	else
		pr_info("%lu MiB of zero pages of pid %d left out, %lu runs, in %lld ms\n", scan.pages * PAGE >> 20,
			pid, scan.runs, (long long)(now_ms() - start_ms));
	if (scan.ctl && compel_cure_local(scan.ctl))
		pr_debug("compel has something left of pid %d\n", pid);
	if (scan.pagemap >= 0)
		close(scan.pagemap);
	if (maps)
		fclose(maps);
}
