// SPDX-License-Identifier: MIT
/* The control page, and the thread that sleeps on it. */
#include <errno.h>
#include <elf.h>
#include <fcntl.h>
#include <link.h>
#include <linux/memfd.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "gate.h"
#define CUDAPOOL_ABI_NO_VERSIONS
#include "memory.h"
#include "park.h"
#include "shim.h"

#define SLEEP_MS 86400000 /* a limit, not a rhythm: what wakes the thread is the futex, or a restore */

#ifndef F_ADD_SEALS
#define F_ADD_SEALS   1033
#define F_SEAL_SHRINK 2
#define F_SEAL_GROW   4
#endif

/* As much of our build id as fits, from the note that the linker made. */
static int visit_build_id(struct dl_phdr_info *info, size_t size, void *hex)
{
	const ElfW(Phdr) *ph = info->dlpi_phdr, *end = ph + info->dlpi_phnum;
	uintptr_t self = (uintptr_t)&cudapool_state - info->dlpi_addr;
	bool ours = false;

	for (; ph < end; ph++)
		ours |= ph->p_type == PT_LOAD && self - ph->p_vaddr < ph->p_memsz;
	for (ph = info->dlpi_phdr; ours && ph < end; ph++) {
		const char *at = (const char *)(info->dlpi_addr + ph->p_vaddr);
		const ElfW(Nhdr) *note = (const void *)at;
		const unsigned char *id = (const void *)(at + sizeof(*note) + 4);
		char *out = hex;
		size_t i;

		/* The note's name is "GNU", with its NUL four bytes. */
		if (ph->p_type != PT_NOTE || note->n_type != NT_GNU_BUILD_ID || note->n_namesz != 4)
			continue;
		for (i = 0; i < note->n_descsz && 2 * i + 2 < sizeof(((struct cudapool_page *)0)->build); i++) {
			*out++ = "0123456789abcdef"[id[i] >> 4];
			*out++ = "0123456789abcdef"[id[i] & 15];
		}
		*out = '\0';
	}
	return ours;
}

static struct cudapool_page *map_memfd(void)
{
	void *page = MAP_FAILED;
	int fd = syscall(SYS_memfd_create, CUDAPOOL_PAGE_NAME, MFD_CLOEXEC | MFD_ALLOW_SEALING);

	if (fd < 0)
		return NULL;
	if (!ftruncate(fd, CUDAPOOL_PAGE_SIZE) && fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) >= 0)
		page = mmap(NULL, CUDAPOOL_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	close(fd);
	if (page == MAP_FAILED)
		return NULL;
	if (madvise(page, CUDAPOOL_PAGE_SIZE, MADV_DONTFORK)) {
		munmap(page, CUDAPOOL_PAGE_SIZE);
		return NULL;
	}
	return page;
}

/*
 * When this process began, in clock ticks; 0 if /proc does not say. As long as the file is open it has the lowest free
 * number, which the application may be about to take (close(0), then open): so only whoever made us start, and the
 * thread when something woke it.
 */
static unsigned long long start_time(void)
{
	char stat[1024], *at;
	int fd = open("/proc/self/stat", O_RDONLY | O_CLOEXEC), field;
	ssize_t n;

	if (fd < 0)
		return 0;
	n = read(fd, stat, sizeof(stat) - 1);
	close(fd);
	if (n <= 0)
		return 0;
	stat[n] = '\0';
	at = strrchr(stat, ')'); /* the end of field 2, a name with anything in it */
	for (field = 2; at && field < 22; field++)
		at = strchr(at + 1, ' ');
	return at ? strtoull(at, NULL, 10) : 0;
}

void cudapool_page_make(void)
{
	struct cudapool_page *page = map_memfd();

	if (!page) {
		shim_log(CUDAPOOL_LOG_ERR, "no control page (%s): the pool cannot command this process",
			 strerror(errno));
		page = &cudapool_state.own_page;
	}
	page->version = CUDAPOOL_PAGE_VERSION;
	page->size = sizeof(*page);
	dl_iterate_phdr(visit_build_id, page->build);
	page->pid = getpid();
	page->channel_fd = -1;
	cudapool_state.start_time = start_time();
	__atomic_store_n(&page->magic, CUDAPOOL_PAGE_MAGIC, __ATOMIC_RELEASE);
	__atomic_store_n(&cudapool_state.page, page, __ATOMIC_SEQ_CST);
	if (__atomic_load_n(&cudapool_state.app_inited, __ATOMIC_SEQ_CST)) /* another thread was faster */
		__atomic_store_n(&page->app_inited, 1, __ATOMIC_RELAXED);
}

/*
 * A restore interrupts the wait, but so may other things. What only a restore changes is the time at
 * which the process began: the memory is the old one's, the process is new.
 */
static void notice_restore(void)
{
	unsigned long long now = start_time();

	if (!now || now == cudapool_state.start_time)
		return;
	cudapool_state.start_time = now;
	__atomic_fetch_add(&cudapool_state.page->restores, 1, __ATOMIC_RELAXED);
	if (cudapool_parked()) {
		cudapool_park_restored(cudapool_state.page);
		return;
	}
	shim_log(CUDAPOOL_LOG_INFO, "this process was restored");
	if (strcmp(cudapool_options.warm, "never"))
		cudapool_warm("restore");
	cudapool_gate_prepare();
}

/* What the page says of memory is up to date as of each command. */
static void report(struct cudapool_page *page)
{
	if (cudapool_parked())
		return;
	cudapool_gate_enter();
	cudapool_memory_report(page);
	cudapool_gate_leave();
}

static void obey(struct cudapool_page *page, uint32_t number)
{
	enum cudapool_page_command command = __atomic_load_n(&page->command, __ATOMIC_RELAXED);
	int result = -ENOSYS;
	bool talk = false;

	switch (command) {
	case CUDAPOOL_PAGE_PING:
		report(page);
		result = 0;
		break;
	case CUDAPOOL_PAGE_WARM:
		result = cudapool_parked() ? -EBUSY : cudapool_warm("command");
		break;
	case CUDAPOOL_PAGE_PARK:
	case CUDAPOOL_PAGE_UNPARK:
		result = cudapool_park_prepare(page, command);
		talk = result == 0;
		break;
	}
	page->result = result;
	__atomic_store_n(&page->ack_seq, number, __ATOMIC_RELEASE);
	cudapool_futex_wake(&page->ack_seq, 1);
	if (!talk)
		return;
	cudapool_park_talk(page, command);
	if (!cudapool_parked())
		cudapool_gate_prepare(); /* after a restore this had to wait */
}

void *cudapool_thread(void *unused)
{
	struct cudapool_page *page = cudapool_state.page;
	uint32_t done = 0, number;

	prctl(PR_SET_NAME, "cudapool");
	page->tid = syscall(SYS_gettid);
	if (cudapool_state.warm_at_start)
		cudapool_warm("start");
	cudapool_gate_prepare(); /* takes the kernel some milliseconds */
	for (;; notice_restore()) {
		if (!cudapool_parked()) /* else others may be stopped, with locks in their hands */
			cudapool_drop();
		number = __atomic_load_n(&page->command_seq, __ATOMIC_ACQUIRE);
		if (number != done) {
			obey(page, number);
			done = number;
			continue;
		}
		cudapool_futex_wait(&page->command_seq, number, SLEEP_MS);
	}
	return NULL;
}
