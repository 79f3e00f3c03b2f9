// SPDX-License-Identifier: MIT
/* The restore thread: locks, checkpoints, restores and unlocks this process when another one asks. */
#include "page.h"
#include "backing.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

/*
 * When CRIU dumps or restores, every other thread is stopped, wherever it was: from `checkpoint` to the end of
 * `restore` this thread uses no heap, no stdio and no lock that one of them can hold. The gate is closed
 * and drained, so nobody is in the driver and what it knows holds still.
 *
 * A checkpoint moves the memory behind each device address into ordinary anonymous memory, which CRIU dumps,
 * closes every descriptor and leaves the slot in the device directory. The addresses stay reserved.
 */
struct softcuda_page *softcuda_page;

static void progress(void)
{
	atomic_fetch_add(&softcuda_page->progress, 1);
}

/* As softcuda_spend, showing that it lives. */
static void spend(uint64_t start_ns, double ms, uint64_t bytes, double gbps)
{
	double total = ms + (gbps > 0 ? bytes / gbps / 1e6 : 0);

	for (double part = 0; softcuda_costs.on && part < total; part += 500) {
		softcuda_spend(start_ns, part, 0, 0);
		progress();
	}
	softcuda_spend(start_ns, total, 0, 0);
}

static CUresult lock(void)
{
	unsigned limit = softcuda_page->timeout_ms ? softcuda_page->timeout_ms : SOFTCUDA_LOCK_LIMIT_MS;
	uint64_t deadline = softcuda_now_ns() + limit * 1000000ull;

	softcuda_gate_close();
	if (softcuda_gate_drain(deadline) || softcuda_streams_drain(deadline)) {
		softcuda_gate_open();
		return CUDA_ERROR_NOT_READY;
	}
	atomic_store(&softcuda_page->state, CU_PROCESS_STATE_LOCKED);
	return CUDA_SUCCESS;
}

static CUresult unlock(void)
{
	atomic_store(&softcuda_page->state, CU_PROCESS_STATE_RUNNING);
	softcuda_gate_open();
	return CUDA_SUCCESS;
}

/* ALLOC, ORDERED: the pages themselves go to another address and back; nothing is copied. */
static int range_stage(struct softcuda_range *range)
{
	void *staged = mremap(range->alias, range->counted, range->counted, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, NULL);

	if (staged == MAP_FAILED)
		return -errno;
	mprotect(range->alias, range->counted, PROT_NONE);
	range->staged = staged;
	return 0;
}

static int range_unstage(struct softcuda_range *range)
{
	if (!range->staged)
		return 0;
	if (mremap(range->staged, range->counted, range->counted, MREMAP_MAYMOVE | MREMAP_FIXED, range->alias) ==
	    MAP_FAILED)
		return -errno;
	range->staged = NULL;
	return 0;
}

/* What was never written stays a hole. */
static int content_read(int fd, char *to, size_t bytes)
{
	off_t from, end;
	ssize_t size;

	for (from = 0; (from = lseek(fd, from, SEEK_DATA)) >= 0 && from < (off_t)bytes; from = end) {
		end = lseek(fd, from, SEEK_HOLE);
		if (end < 0 || end > (off_t)bytes)
			end = bytes;
		for (; from < end; from += size) {
			size = pread(fd, to + from, end - from < 64 << 20 ? end - from : 64 << 20, from);
			if (size <= 0)
				return -EIO;
			progress();
		}
	}
	return 0;
}

/* Its mappings are gone. */
static int physical_stage(struct softcuda_physical *physical)
{
	int fd, error;
	char *staged;

	if (physical->staged)
		return 0;
	staged = mmap(NULL, physical->size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (staged == MAP_FAILED)
		return -errno;
	fd = softcuda_backing_fd(&physical->backing);
	error = fd < 0 ? fd : content_read(fd, staged, physical->size);
	if (fd >= 0)
		close(fd);
	if (error) {
		munmap(staged, physical->size);
		return error;
	}
	softcuda_backing_end(&physical->backing);
	physical->staged = staged;
	return 0;
}

static bool all_zero(const char *page)
{
	return !page[0] && !memcmp(page, page + 1, SOFTCUDA_PAGE_SIZE - 1);
}

static int content_write(int fd, const char *from, size_t bytes)
{
	size_t at = 0, end;

	while (at < bytes) {
		if (all_zero(from + at)) {
			at += SOFTCUDA_PAGE_SIZE;
			continue;
		}
		for (end = at; end < bytes && end - at < 64ul << 20 && !all_zero(from + end);)
			end += SOFTCUDA_PAGE_SIZE;
		while (at < end) {
			ssize_t size = pwrite(fd, from + at, end - at, at);

			if (size <= 0)
				return -ENOMEM;
			at += size;
		}
		progress();
	}
	return 0;
}

static int physical_unstage(struct softcuda_physical *physical)
{
	int fd, error;

	if (!physical->staged)
		return 0;
	if (softcuda_backing_make(&physical->backing, physical->size, physical->device))
		return -ENOMEM;
	fd = softcuda_backing_fd(&physical->backing);
	error = fd < 0 ? fd : content_write(fd, physical->staged, physical->size);
	if (fd >= 0)
		close(fd);
	if (error) {
		softcuda_backing_end(&physical->backing);
		return error;
	}
	munmap(physical->staged, physical->size);
	physical->staged = NULL;
	return 0;
}

static bool plain(const struct softcuda_range *range)
{
	return range->kind == SOFTCUDA_ALLOC || range->kind == SOFTCUDA_ORDERED;
}

/* Bytes of a device that the process has: those that are one process's alone, and mapped ones. */
static uint64_t counted_on(unsigned device, bool mapped_too)
{
	uint64_t sum = 0;

	for (size_t i = 0; i < softcuda_range_count; i++) {
		if (plain(softcuda_ranges[i]) && softcuda_ranges[i]->device == (int)device)
			sum += softcuda_ranges[i]->counted;
	}
	for (uint32_t i = 0; mapped_too && i < softcuda_physical_places; i++) {
		if (softcuda_physicals[i] && softcuda_physicals[i]->device == (int)device)
			sum += softcuda_physicals[i]->size;
	}
	return sum;
}

static uint64_t counted(void)
{
	uint64_t sum = 0;

	for (unsigned device = 0; device < softcuda_config.devices; device++)
		sum += counted_on(device, true);
	return sum;
}

/* Everything into host memory, or everything back: each goes on where the other stopped half way. */
static int stage_all(void)
{
	int error = 0;

	for (size_t i = 0; i < softcuda_range_count && !error; i++) {
		struct softcuda_range *range = softcuda_ranges[i];

		if (plain(range))
			error = range_stage(range);
		for (unsigned piece = 0; piece < range->piece_count && !error; piece++)
			error = softcuda_piece_unmap(range, &range->pieces[piece]);
	}
	for (uint32_t i = 0; i < softcuda_physical_places && !error; i++) {
		if (softcuda_physicals[i])
			error = physical_stage(softcuda_physicals[i]);
	}
	return error;
}

static int unstage_all(void)
{
	int error = 0;

	for (uint32_t i = 0; i < softcuda_physical_places && !error; i++) {
		if (softcuda_physicals[i])
			error = physical_unstage(softcuda_physicals[i]);
	}
	for (size_t i = 0; i < softcuda_range_count && !error; i++) {
		struct softcuda_range *range = softcuda_ranges[i];

		if (plain(range))
			error = range_unstage(range);
		for (unsigned piece = 0; piece < range->piece_count && !error; piece++)
			error = softcuda_piece_map(range, &range->pieces[piece]);
	}
	return error;
}

/* What is another process's memory is checkpointed, and then cannot be restored (probes/imported.c). */
static bool imported_any(void)
{
	for (uint32_t i = 0; i < softcuda_physical_places; i++) {
		if (softcuda_physicals[i] && softcuda_physicals[i]->imported)
			return true;
	}
	return false;
}

static CUresult checkpoint(void)
{
	uint64_t start = softcuda_now_ns();

	if (stage_all()) {
		if (unstage_all())
			atomic_store(&softcuda_page->state, CU_PROCESS_STATE_FAILED);
		return CUDA_ERROR_OUT_OF_MEMORY;
	}
	softcuda_hold_close();
	spend(start, softcuda_costs.checkpoint_ms, counted(), softcuda_costs.checkpoint_gbps);
	atomic_store(&softcuda_page->state, CU_PROCESS_STATE_CHECKPOINTED);
	return CUDA_SUCCESS;
}

/* Which of this host's devices each one is from now on: the same UUID, or the one that the pairs give it. */
static CUresult devices_place(void)
{
	CUcheckpointGpuPair pairs[SOFTCUDA_MAX_DEVICES];
	struct softcuda_device placed[SOFTCUDA_MAX_DEVICES];
	unsigned count = softcuda_page->pair_count, taken = 0;
	CUuuid wanted, here;

	if (count > SOFTCUDA_MAX_DEVICES)
		return CUDA_ERROR_INVALID_VALUE;
	memcpy(pairs, softcuda_page->pairs, sizeof(pairs));
	memcpy(placed, softcuda_devices, sizeof(placed));
	for (unsigned i = 0; i < softcuda_config.devices; i++) {
		unsigned pair, host;

		wanted = placed[i].uuid;
		for (pair = 0; pair < count && memcmp(&pairs[pair].oldUuid, &wanted, sizeof(wanted)); pair++)
			;
		if (count && pair == count)
			return CUDA_ERROR_INVALID_VALUE; /* if there are pairs, they name every device */
		if (count)
			wanted = pairs[pair].newUuid;
		for (host = 0; host < softcuda_config.devices; host++) {
			softcuda_uuid(host, &here);
			if (!memcmp(&here, &wanted, sizeof(here)))
				break;
		}
		if (host == softcuda_config.devices || taken & 1u << host)
			return CUDA_ERROR_INVALID_VALUE;
		taken |= 1u << host;
		placed[i].uuid = wanted;
		placed[i].host_index = host;
	}
	memcpy(softcuda_devices, placed, sizeof(placed));
	return CUDA_SUCCESS;
}

static CUresult memory_take_all(void)
{
	CUresult result = CUDA_SUCCESS;

	for (unsigned i = 0; i < softcuda_config.devices && result == CUDA_SUCCESS; i++) {
		uint64_t bytes = counted_on(i, false);

		if (bytes)
			result = softcuda_memory_take(softcuda_devices[i].host_index, bytes);
	}
	return result;
}

static CUresult restore(void)
{
	uint64_t start = softcuda_now_ns();
	CUresult result;
	unsigned used = 0;
	bool cold;

	if (atomic_load(&softcuda_peer_links)) /* one was seen lost, another restored (probes/README.md) */
		return CUDA_ERROR_INVALID_VALUE;
	if (imported_any())
		return CUDA_ERROR_NOT_SUPPORTED;
	result = devices_place();
	if (result != CUDA_SUCCESS)
		return result;
	if (softcuda_hold_open(&cold))
		return CUDA_ERROR_OPERATING_SYSTEM;
	softcuda_hold_device();
	result = memory_take_all();
	if (result == CUDA_SUCCESS && unstage_all())
		result = CUDA_ERROR_OUT_OF_MEMORY;
	if (result != CUDA_SUCCESS) {
		softcuda_hold_close();
		return result;
	}
	for (unsigned i = 0; i < softcuda_config.devices; i++)
		used += atomic_load(&softcuda_devices[i].contexts) != 0;
	spend(start,
	      (softcuda_page->warm ? softcuda_costs.restore_warm_ms : softcuda_costs.restore_cold_ms) +
		      (used > 1 ? (used - 1) * softcuda_costs.restore_more_device_ms : 0),
	      counted(), softcuda_costs.restore_gbps);
	atomic_store(&softcuda_page->state, CU_PROCESS_STATE_LOCKED);
	return CUDA_SUCCESS;
}

static CUresult carry_out(void)
{
	static const struct {
		const char *name;
		CUprocessState from;
		CUresult (*run)(void);
	} orders[] = {
		[ORDER_LOCK] = {"lock", CU_PROCESS_STATE_RUNNING, lock},
		[ORDER_CHECKPOINT] = {"checkpoint", CU_PROCESS_STATE_LOCKED, checkpoint},
		[ORDER_RESTORE] = {"restore", CU_PROCESS_STATE_CHECKPOINTED, restore},
		[ORDER_UNLOCK] = {"unlock", CU_PROCESS_STATE_LOCKED, unlock},
	};
	uint32_t order = softcuda_page->order;
	CUresult result;

	if (order < ORDER_LOCK || order > ORDER_UNLOCK)
		return CUDA_ERROR_INVALID_VALUE;
	if (atomic_load(&softcuda_page->state) != orders[order].from)
		return CUDA_ERROR_ILLEGAL_STATE;
	softcuda_faults_refresh();
	result = softcuda_fault_named(orders[order].name);
	if (result == CUDA_SUCCESS)
		result = orders[order].run();
	/* As with the real driver, a restore that has failed cannot be tried again in this process. */
	if (result != CUDA_SUCCESS && order == ORDER_RESTORE)
		atomic_store(&softcuda_page->state, CU_PROCESS_STATE_FAILED);
	return result;
}

static void *restore_main(void *arg)
{
	struct softcuda_page *page = arg;
	uint32_t phase;

	page->restore_tid = syscall(SYS_gettid);
	atomic_thread_fence(memory_order_seq_cst);
	page->magic = SOFTCUDA_PAGE_MAGIC;
	softcuda_futex_wake((_Atomic uint32_t *)&page->magic, false);
	for (;;) {
		phase = atomic_load(&page->phase);
		if (phase != ORDER_ASKED) {
			softcuda_futex_wait(&page->phase, phase, 0, true);
			continue;
		}
		if (!atomic_compare_exchange_strong(&page->phase, &phase, ORDER_TAKEN))
			continue;
		page->result = carry_out();
		atomic_store(&page->phase, ORDER_DONE);
		softcuda_futex_wake(&page->phase, true);
	}
	return NULL;
}

int softcuda_checkpoint_start(void)
{
	struct softcuda_page *page = MAP_FAILED;
	pthread_t thread;
	int fd, error;

	fd = memfd_create(SOFTCUDA_PAGE_NAME, MFD_CLOEXEC);
	if (fd < 0)
		return -errno;
	if (!ftruncate(fd, SOFTCUDA_PAGE_SIZE))
		page = mmap(NULL, SOFTCUDA_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	error = -errno;
	close(fd);
	if (page == MAP_FAILED)
		return error;
	madvise(page, SOFTCUDA_PAGE_SIZE, MADV_DONTFORK);
	page->version = SOFTCUDA_PAGE_VERSION;
	page->size = sizeof(*page);
	softcuda_page = page;
	error = softcuda_thread(&thread, "softcuda-restor", restore_main, page);
	if (error) {
		softcuda_page = NULL;
		munmap(page, SOFTCUDA_PAGE_SIZE);
		return error;
	}
	pthread_detach(thread);
	/* cuInit returns when the process can be checkpointed. */
	while (*(volatile uint32_t *)&page->magic != SOFTCUDA_PAGE_MAGIC)
		softcuda_futex_wait((_Atomic uint32_t *)&page->magic, 0, 10000000, false);
	return 0;
}

void softcuda_checkpoint_in_child(void)
{
	softcuda_page = NULL; /* it was not inherited */
}
