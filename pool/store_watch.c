// SPDX-License-Identifier: MIT
/* Running applications with the shim: what could be evicted for them, and when they want it. */
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "log.h"
#include "shim_page.h"
#include "store_internal.h"

/*
 * Only while something is hot. A process that gets the shim's thread has one thread more than before: the scan looks at
 * how many each process has (one stat of /proc/PID/task), and reads the maps only of those where that has changed, and
 * of the others more and more rarely. Measured: 130 processes take 0.6 % of one core of a busy machine.
 */
#define SCAN_MS	    250
#define SLICE_US    2000 /* in one turn of the loop: reading maps takes 0.1 ms of a small process, 10 of a large one */
#define LOOK_AGAIN  16	 /* scans, at first; then twice as many each time, up to: */
#define LOOK_RARELY 256
#define IMAGES_SCANS 8	 /* between two looks whether images are still there */
#define PAGES_MAX   127	 /* that a thread can wait on at once, and one word of our own */
#define SEEN_SLOTS  65536 /* by pid */
#define WAIT_MS	    200	 /* so long waits a shim that raises `want_seq` and wakes nobody */

struct page {
	struct cudapool_shim shim;
	uint32_t seen; /* want_seq; guarded by `lock` */
	uint32_t told; /* devices, as bits, on which it was told of memory. Of others another pool may have its say */
	bool wanting;  /* room for it is being made */
	uint32_t seq;  /* of what is wanted */
	struct room room;
	LIST_ENTRY(page) link;
};

/* What was last seen of a process. A pid that comes again is noticed with its threads, or after a while. */
struct seen {
	uint16_t threads;
	uint16_t scans, wait; /* since it was looked at; until it is again */
};

static LIST_HEAD(, page) pages = LIST_HEAD_INITIALIZER(pages); /* changed by the loop, with `lock` */
static unsigned page_count;
static struct seen *seen;
static unsigned scan_count;
static DIR *scanned; /* where the scan that is under way is; NULL: none is */
static struct loop_timer scan_due, publish_due;
static struct loop_watch wanted = {.fd = -1};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static uint32_t changed; /* futex: the pages are other ones */
static bool watching;	 /* there is a thread; guarded by `lock` */

/* ---- the thread that waits --------------------------------------------------------------------------- */

static void add_word(struct futex_waitv *word, uint32_t *at, uint32_t value)
{
	*word = (struct futex_waitv){.uaddr = (uintptr_t)at, .val = value, .flags = FUTEX_32};
}

/* Waits until a page wants something, or the pages change. True: one does. It must not touch pages but with `lock`. */
static bool wait_for_want(void)
{
	struct futex_waitv words[PAGES_MAX + 1];
	struct timespec until;
	struct page *page;
	unsigned n = 0;
	bool wants = false;
	uint32_t now;

	pthread_mutex_lock(&lock);
	add_word(&words[n++], &changed, changed);
	LIST_FOREACH(page, &pages, link) {
		now = __atomic_load_n(&page->shim.page->want_seq, __ATOMIC_ACQUIRE);
		wants |= now != page->seen;
		page->seen = now;
		if (n <= PAGES_MAX)
			add_word(&words[n++], &page->shim.page->want_seq, now);
	}
	pthread_mutex_unlock(&lock);
	if (wants)
		return true;
	clock_gettime(CLOCK_MONOTONIC, &until);
	until.tv_nsec += WAIT_MS * 1000000;
	until.tv_sec += until.tv_nsec / 1000000000;
	until.tv_nsec %= 1000000000;
	if (syscall(SYS_futex_waitv, words, n, 0, &until, CLOCK_MONOTONIC) < 0 && errno == ENOSYS)
		nanosleep(&(struct timespec){.tv_nsec = 2000000}, NULL); /* before Linux 5.16 */
	return false;
}

static void *wait_thread(void *unused)
{
	bool go_on = true;

	while (go_on) {
		if (wait_for_want())
			eventfd_write(wanted.fd, 1);
		pthread_mutex_lock(&lock);
		go_on = watching = !LIST_EMPTY(&pages);
		pthread_mutex_unlock(&lock);
	}
	return NULL;
}

/* With `lock`: the pages have changed. */
static void wake_thread(void)
{
	sigset_t all, before;
	pthread_attr_t attr;
	pthread_t thread;

	changed++;
	if (watching) {
		syscall(SYS_futex, &changed, FUTEX_WAKE, 1, NULL, NULL, 0);
		return;
	}
	if (LIST_EMPTY(&pages))
		return;
	pthread_attr_init(&attr);
	pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	watching = !pthread_create(&thread, &attr, wait_thread, NULL);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	pthread_attr_destroy(&attr);
}

/* ---- what they are told ------------------------------------------------------------------------------- */

/* The page is the application's: an ordinal is bounded, a device's name only compared, and nothing else is believed. */
static void publish(struct page *page)
{
	static const uint8_t none[16];
	struct cudapool_page_device *device;
	uint8_t uuid[16];
	uint64_t bytes;
	unsigned i;
	/* A parked one is about to be dumped: it must not wake up in a world where this is long untrue. */
	bool open = __atomic_load_n(&page->shim.page->park_state, __ATOMIC_RELAXED) == CUDAPOOL_PARK_OPEN;

	for (i = 0; i < CUDAPOOL_PAGE_DEVICES; i++) {
		device = &page->shim.page->devices[i];
		memcpy(uuid, device->uuid, sizeof(uuid));
		bytes = open && !MATCHES(uuid, none) ? rooms_evictable(uuid) : 0;
		if (!bytes && !(page->told >> i & 1))
			continue;
		page->told |= 1u << i;
		__atomic_store_n(&device->evictable, bytes, __ATOMIC_RELAXED);
	}
}

static void publish_all(struct loop_timer *timer)
{
	struct page *page;

	LIST_FOREACH(page, &pages, link)
		publish(page);
}

static void granted(struct room *room, int error, const char *text)
{
	struct page *page = container_of(room, struct page, room);
	struct cudapool_page *shared = page->shim.page;

	room_release(room);
	page->wanting = false;
	publish(page);
	__atomic_store_n(&shared->granted_seq, page->seq, __ATOMIC_RELEASE);
	syscall(SYS_futex, &shared->granted_seq, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
	cudapool_log(CUDAPOOL_LOG_INFO, "memory was made free for process %d%s%s", page->shim.process.pid,
		     error ? ", not as much as it wants: " : "", text);
}

static void look_at_page(struct page *page)
{
	struct cudapool_page *shared = page->shim.page;
	uint32_t seq = __atomic_load_n(&shared->want_seq, __ATOMIC_ACQUIRE);
	uint32_t device = __atomic_load_n(&shared->want_device, __ATOMIC_RELAXED);
	uint64_t bytes = __atomic_load_n(&shared->want_bytes, __ATOMIC_RELAXED);

	if (page->wanting || seq == page->seq)
		return;
	page->seq = seq;
	if (device >= CUDAPOOL_PAGE_DEVICES || !(page->told >> device & 1))
		return; /* nobody asks us who heard nothing from us */
	page->wanting = true;
	page->room.need = (struct need){.devices = 1, .bytes[0] = bytes < IMAGE_BYTES_MOST ? bytes : IMAGE_BYTES_MOST};
	page->room.soon = true;
	page->room.done = granted;
	memcpy(page->room.need.uuid[0], shared->devices[device].uuid, 16);
	room_ask(&page->room);
}

static void want_came(struct loop_watch *watch, uint32_t events)
{
	struct page *page;
	eventfd_t count;

	eventfd_read(watch->fd, &count);
	LIST_FOREACH(page, &pages, link)
		look_at_page(page);
}

/* ---- finding them ---------------------------------------------------------------------------------------- */

static void drop_page(struct page *page)
{
	unsigned i;

	room_release(&page->room);
	for (i = 0; i < CUDAPOOL_PAGE_DEVICES; i++)
		if (page->told >> i & 1)
			__atomic_store_n(&page->shim.page->devices[i].evictable, 0, __ATOMIC_RELAXED);
	pthread_mutex_lock(&lock);
	LIST_REMOVE(page, link);
	wake_thread();
	pthread_mutex_unlock(&lock);
	cudapool_shim_close(&page->shim);
	page_count--;
	free(page);
}

static struct page *page_of(int pid)
{
	struct page *page;

	LIST_FOREACH(page, &pages, link)
		if (page->shim.process.pid == pid)
			return page;
	return NULL;
}

static void try_page(int pid)
{
	struct page *page;

	if (page_count == PAGES_MAX || page_of(pid))
		return;
	page = calloc(1, sizeof(*page));
	if (!page)
		return;
	if (cudapool_shim_open(&page->shim, pid)) {
		free(page);
		return;
	}
	page->seen = page->seq = __atomic_load_n(&page->shim.page->granted_seq, __ATOMIC_RELAXED);
	page_count++;
	publish(page);
	pthread_mutex_lock(&lock);
	LIST_INSERT_HEAD(&pages, page, link);
	wake_thread();
	pthread_mutex_unlock(&lock);
}

static void look_at_process(int pid)
{
	struct seen *at = &seen[pid % SEEN_SLOTS];
	char path[32];
	struct stat st;

	snprintf(path, sizeof(path), "/proc/%d/task", pid);
	if (stat(path, &st))
		return;
	if (at->threads != (uint16_t)st.st_nlink)
		*at = (struct seen){.threads = (uint16_t)st.st_nlink, .wait = LOOK_AGAIN};
	else if (++at->scans < at->wait)
		return;
	else if (at->wait < LOOK_RARELY)
		at->wait *= 2;
	at->scans = 0;
	try_page(pid);
}

static bool anything_hot(void)
{
	struct park *park;

	LIST_FOREACH(park, &parks, link)
		if (park->life == PARK_SAVED && park->hot)
			return true;
	return false;
}

static void look_for_images(void)
{
	struct park *park;

	LIST_FOREACH(park, &parks, link)
		if (park->life == PARK_SAVED && park->hot && !park_image_exists(park))
			park_lost_image(park);
}

/* The beginning of a scan. False: nothing is hot, so nobody need be known. */
static bool begin_scan(void)
{
	struct page *page, *next;

	for (page = LIST_FIRST(&pages); page; page = next) {
		next = LIST_NEXT(page, link);
		if (!process_alive(&page->shim.process))
			drop_page(page);
	}
	if (scan_count++ % IMAGES_SCANS == 0)
		look_for_images();
	if (!anything_hot()) {
		while ((page = LIST_FIRST(&pages)))
			drop_page(page);
		free(seen);
		seen = NULL;
		return false;
	}
	if (!seen)
		seen = calloc(SEEN_SLOTS, sizeof(*seen));
	scanned = seen ? opendir("/proc") : NULL;
	return true;
}

/* Some of the processes; the rest when others had their turn. */
static void scan(struct loop_timer *timer)
{
	uint64_t end_us = loop_now_us() + SLICE_US;
	struct dirent *entry;

	if (!scanned && !begin_scan())
		return;
	while (scanned && (entry = readdir(scanned))) {
		if (!isdigit((unsigned char)entry->d_name[0]))
			continue;
		look_at_process(atoi(entry->d_name));
		if (loop_now_us() >= end_us) {
			loop_timer_set(timer, 0);
			return;
		}
	}
	loop_timer_set(timer, SCAN_MS);
	if (!scanned)
		return;
	closedir(scanned);
	scanned = NULL;
	publish_all(NULL); /* one that was parked runs again */
}

void watch_changed(void)
{
	if (!scan_due.on && anything_hot())
		loop_timer_set(&scan_due, 0);
	if (page_count && !publish_due.on)
		loop_timer_set(&publish_due, 0);
}

int watch_init(void)
{
	scan_due.fire = scan;
	publish_due.fire = publish_all;
	wanted = (struct loop_watch){.fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK), .ready = want_came};
	return wanted.fd < 0 ? -errno : loop_watch(&wanted, EPOLLIN);
}
