// SPDX-License-Identifier: MIT
/* The store: restores in each tier, claims, budgets, and applications that want memory. */
#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/vfs.h>
#include <sys/wait.h>

#include "store_support.h"

static void test_paths(void)
{
	uint8_t token[16];

	ok(dump("paths", 5, 4, CUDAPOOL_HOT_AUTO, token), "five pieces are parked and saved");
	ok(files_in("paths", ".img") == 1 && files_in("paths", ".part") == 0, "there is one image, with its name");
	ok(uses(20), "the memory stays hot");
	ok(restore("paths", token, CUDAPOOL_HOT_AUTO, 5, 4, true) == CUDAPOOL_PATH_HOT_MOVE,
	   "the first restore takes it");
	ok(uses(0), "and nothing of it is kept");
	ok(restore("paths", token, CUDAPOOL_HOT_AUTO, 5, 4, true) == CUDAPOOL_PATH_LOADED,
	   "the second loads the image");
	ok(uses(20), "and keeps what it loaded, having given a copy");
	ok(restore("paths", token, CUDAPOOL_HOT_AUTO, 5, 4, true) == CUDAPOOL_PATH_HOT_COPY, "the third gets a copy");
	ok(uses(20), "the master stays");
	ok(restore("paths", token, CUDAPOOL_HOT_MOVE, 5, 4, true) == CUDAPOOL_PATH_HOT_MOVE, "'move' takes the master");
	ok(restore("paths", token, CUDAPOOL_HOT_OFF, 5, 4, true) == CUDAPOOL_PATH_LOADED, "'off' loads");
	ok(uses(0), "and keeps nothing");
	ok(restore("paths", token, CUDAPOOL_HOT_COPY, 5, 4, true) == CUDAPOOL_PATH_LOADED && uses(20),
	   "'copy' keeps what it had to load");
	evict_all();
	ok(uses(0), "evicting lets go of it");
}

static void test_given_away(void)
{
	uint8_t token[16];

	dump("given", 3, 4, CUDAPOOL_HOT_AUTO, token);
	ok(restore("given", token, CUDAPOOL_HOT_AUTO, 3, 4, false) == CUDAPOOL_PATH_HOT_MOVE,
	   "memory was given, and the restore failed");
	ok(uses(0), "it is never hot again");
	ok(restore("given", token, CUDAPOOL_HOT_MOVE, 3, 4, true) == CUDAPOOL_PATH_LOADED,
	   "the next one loads the image");
	dump("given", 3, 4, CUDAPOOL_HOT_OFF, token);
	ok(uses(0), "a dump with 'off' keeps nothing hot");
	evict_all();
}

/* What the shim has copied is closed while the rest is on its way. */
static void test_passed(void)
{
	struct cudapool_found found;
	struct store_dir *dir;
	struct store_gift gift;
	struct waited passed;
	struct park *parked;
	uint8_t token[16];

	dump("passed", 5, 4, CUDAPOOL_HOT_AUTO, token);
	dir = open_dir("passed", CUDAPOOL_IMAGES_RESTORE, CUDAPOOL_HOT_AUTO, &found);
	store_claim(&gift, store_find(dir, token), CUDAPOOL_HOT_AUTO, fresh(&waited));
	wait_done();
	store_give(&gift, fresh(&waited));
	ok(wait_done() == 0 && gift.path == CUDAPOOL_PATH_HOT_MOVE && uses(20), "memory is given");
	store_passed(&gift, 2, fresh(&waited));
	ok(wait_done() == 0 && used() == 12 * MIB, "what was passed on is closed by then");
	store_passed(&gift, 2, fresh(&passed));
	ok(passed.done && used() == 12 * MIB, "once");
	store_give(&gift, fresh(&waited));
	ok(wait_done() == 0 && gift.path == CUDAPOOL_PATH_LOADED && gift_is_right(&gift, 5, 4),
	   "for another attempt it is loaded from the image");
	store_passed(&gift, 5, fresh(&passed));
	store_gave(&gift, true);
	ok(uses(0), "in the end nothing of it is kept");
	store_dir_release(dir);

	dir = open_dir("passed", CUDAPOOL_IMAGES_DUMP, CUDAPOOL_HOT_AUTO, &found);
	parked = park(dir, 3, 4);
	store_wait_saved(parked, fresh(&waited));
	wait_done();
	store_return(&gift, parked);
	store_give(&gift, fresh(&waited));
	wait_done();
	store_passed(&gift, 3, fresh(&passed));
	ok(passed.done && gift.path == CUDAPOOL_PATH_RETURNED && uses(12),
	   "of what goes back to its own process, all stays until that has it");
	store_gave(&gift, true);
	store_dir_release(dir);
	ok(uses(0), "and nothing then");
}

static void test_unused_claim(void)
{
	struct cudapool_found found;
	struct store_dir *dir;
	struct store_gift gift;
	uint8_t token[16];

	dump("unused", 3, 4, CUDAPOOL_HOT_AUTO, token);
	dir = open_dir("unused", CUDAPOOL_IMAGES_RESTORE, CUDAPOOL_HOT_AUTO, &found);
	ok(found.count == 1 && found.bytes == 12 * MIB && found.hot_bytes == 12 * MIB, "a hot image is found");
	store_claim(&gift, store_find(dir, token), CUDAPOOL_HOT_AUTO, fresh(&waited));
	ok(wait_done() == 0 && gift.path == CUDAPOOL_PATH_HOT_MOVE, "it is claimed");
	store_gave(&gift, false);
	store_dir_release(dir);
	settle(20);
	ok(uses(12), "what was claimed and never offered stays hot");
	ok(restore("unused", token, CUDAPOOL_HOT_AUTO, 3, 4, true) == CUDAPOOL_PATH_HOT_MOVE, "and is given");
}

/* What is free of each device, hot memory included: so much more than what the driver is left. */
static void leave(unsigned device, unsigned mib)
{
	fake.foreign[device] = fake.total[device] - STORE_MARGIN - mib * MIB;
}

static void leave_both(unsigned mib)
{
	leave(0, mib);
	leave(1, mib);
}

static void test_room(void)
{
	struct cudapool_found found;
	struct store_dir *dir;
	struct store_gift gift;
	uint8_t a[16], b[16], c[16];

	leave_both(94);
	ok(dump("room-a", 2, 60, CUDAPOOL_HOT_AUTO, a) && dump("room-b", 2, 60, CUDAPOOL_HOT_AUTO, b) && uses(240),
	   "two parks are hot");
	ok(restore("room-b", b, CUDAPOOL_HOT_AUTO, 2, 60, true) == CUDAPOOL_PATH_HOT_MOVE && uses(0),
	   "room for the driver is made by evicting the other one");
	ok(restore("room-a", a, CUDAPOOL_HOT_MOVE, 2, 60, true) == CUDAPOOL_PATH_LOADED,
	   "which is loaded when it is needed");
	dump("room-a", 2, 60, CUDAPOOL_HOT_AUTO, a);
	leave(0, 44);
	dir = open_dir("room-a", CUDAPOOL_IMAGES_RESTORE, CUDAPOOL_HOT_AUTO, &found);
	store_claim(&gift, store_find(dir, a), CUDAPOOL_HOT_AUTO, fresh(&waited));
	ok(wait_done() == -ENOMEM && strstr(waited.text, "643 MiB are needed, 624 of 1024 MiB are free"), "%s",
	   waited.text);
	store_gave(&gift, false);
	store_dir_release(dir);
	settle(20);
	ok(uses(120), "what could not be restored is hot still");
	leave_both(104); /* 44 beside the master */
	ok(restore("room-a", a, CUDAPOOL_HOT_COPY, 2, 60, true) == CUDAPOOL_PATH_HOT_MOVE && uses(0),
	   "where a copy would leave the driver no room, the master goes itself");
	dump("room-a", 2, 60, CUDAPOOL_HOT_AUTO, a);
	leave_both(74);
	ok(restore("room-a", a, CUDAPOOL_HOT_OFF, 2, 60, true) == CUDAPOOL_PATH_LOADED && uses(0),
	   "where what is hot leaves no room for loading, it is let go of");
	dump("room-a", 2, 60, CUDAPOOL_HOT_AUTO, a);
	fake.foreign[0] = fake.foreign[1] = 0;
	rooms_init(20);
	ok(dump("room-b", 2, 100, CUDAPOOL_HOT_AUTO, b) && uses(320), "within the budget of 20 %% both stay");
	ok(dump("room-c", 2, 50, CUDAPOOL_HOT_AUTO, c) && uses(300), "beyond it the least recently used goes");
	rooms_init(80);
	evict_all();
	fake.loads = 0;
	fake.threads_most = 0;
	streams = 5;
	chunk_mb = 2;
	dir = open_dir("room-b", CUDAPOOL_IMAGES_RESTORE, CUDAPOOL_HOT_AUTO, &found);
	streams = chunk_mb = 0;
	store_claim(&gift, store_find(dir, b), CUDAPOOL_HOT_AUTO, fresh(&waited));
	ok(wait_done() == 0 && fake.loads == 1,
	   "an image is loaded from the moment on at which its directory is opened");
	ok(fake.threads_most == 5, "with the threads that the client asked for");
	store_gave(&gift, false);
	store_dir_release(dir);
	evict_all();
}

static void test_tiers(void)
{
	struct cudapool_evict one = {.tier = CUDAPOOL_TIER_COLD};
	struct cudapool_found found = {0};
	struct store_dir *dir;
	char text[16384];
	struct cudapool_json json = {.out = text, .size = sizeof(text)};
	uint8_t token[16];

	dump("tiers", 2, 4, CUDAPOOL_HOT_OFF, token);
	dir = open_dir("tiers", CUDAPOOL_IMAGES_PREFETCH, CUDAPOOL_HOT_AUTO, &found);
	ok(wait_done() == 0 && uses(8), "prefetched to hot");
	store_dir_release(dir);
	settle(20);
	ok(uses(8), "and it stays so");
	cudapool_json_open(&json, NULL, '{');
	store_report(&json, 32);
	cudapool_json_close(&json, '}');
	ok(cudapool_json_end(&json) > 0 && strstr(text, "\"tier\":\"hot\"") && strstr(text, "\"bytes\":8388608"),
	   "as the report says");
	ok(restore("tiers", token, CUDAPOOL_HOT_AUTO, 2, 4, true) == CUDAPOOL_PATH_HOT_MOVE, "the restore takes it");
	tier = CUDAPOOL_TIER_STAGED;
	dir = open_dir("tiers", CUDAPOOL_IMAGES_PREFETCH, CUDAPOOL_HOT_AUTO, &found);
	tier = CUDAPOOL_TIER_HOT;
	ok(wait_done() == 0 && uses(0) && tier_of_park(park_by_token(token)) == CUDAPOOL_TIER_STAGED,
	   "prefetched into the page cache");
	store_dir_release(dir);
	settle(20);
	memcpy(one.token, token, sizeof(token));
	store_evict(&one, &found, fresh(&waited));
	wait_done();
	ok(found.count == 1 && found.bytes == 8 * MIB && found.hot_bytes == 0, "evicting the file from the page cache");
	one.token[0] ^= 1;
	store_evict(&one, &found, fresh(&waited));
	ok(wait_done() == -ENOENT, "%s", waited.text);
	json = (struct cudapool_json){.out = text, .size = sizeof(text)};
	cudapool_json_open(&json, NULL, '{');
	store_report(&json, 32);
	cudapool_json_close(&json, '}');
	ok(cudapool_json_end(&json) > 0 && !strstr(text, "\"tier\":\"hot\"") && strstr(text, "/tiers/cudapool-"),
	   "the report still knows where it is");
}

/* Pages of a file in the page cache. */
static unsigned cached(const char *path)
{
	static unsigned char resident[1 << 16];
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	unsigned pages, i, count = 0;
	struct stat st;
	void *map;

	if (fd < 0 || fstat(fd, &st))
		abort();
	pages = (unsigned)((st.st_size + 4095) / 4096);
	map = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_SHARED, fd, 0);
	if (map == MAP_FAILED || pages > sizeof(resident) || mincore(map, (size_t)st.st_size, resident))
		abort();
	for (i = 0; i < pages; i++)
		count += resident[i] & 1;
	munmap(map, (size_t)st.st_size);
	close(fd);
	return count;
}

/* A directory of the room that is in fact elsewhere. */
static void make_elsewhere(const char *name, char *there)
{
	if (!mkdtemp(there) || symlink(there, path_of(name, NULL)))
		abort();
}

/* EVICT of it, and how long that took. */
static int make_cold(const uint8_t token[16], struct cudapool_found *found, uint64_t *ms)
{
	struct cudapool_evict one = {.tier = CUDAPOOL_TIER_COLD};
	uint64_t begun = loop_now_ms();
	int err;

	memcpy(one.token, token, sizeof(one.token));
	store_evict(&one, found, fresh(&waited));
	err = wait_done();
	*ms = loop_now_ms() - begun;
	return err;
}

static void test_cold_disk(const uint8_t token[16])
{
	char path[512];
	struct cudapool_found found = {0};
	struct store_dir *dir;
	uint64_t ms;
	void *map;
	int fd;

	snprintf(path, sizeof(path), "%s", path_of("disk", image_of(token)));
	ok(cached(path) > 0, "what was just written is in the page cache");
	ok(make_cold(token, &found, &ms) == 0 && !cached(path) && found.count == 1 && found.hot_bytes == 16 * MIB,
	   "when EVICT is answered, nothing of it is, and the GPU's memory is free");
	ok(tier_of_park(park_by_token(token)) == CUDAPOOL_TIER_COLD && !cached(path), "nor has looking brought it back");
	dir = open_dir("disk", CUDAPOOL_IMAGES_RESTORE, CUDAPOOL_HOT_AUTO, &found);
	ok(make_cold(token, &found, &ms) == -EBUSY && strstr(waited.text, "being restored"), "%s", waited.text);
	store_dir_release(dir);
	evict_all();
	fd = open(path, O_RDONLY | O_CLOEXEC);
	map = mmap(NULL, 4096, PROT_READ, MAP_SHARED | MAP_POPULATE, fd, 0);
	ok(make_cold(token, &found, &ms) == -EBUSY && strstr(waited.text, "4 KiB") && strstr(waited.text, "somebody"),
	   "%s", waited.text);
	ok(ms < 5000, "which is known within a limit: %llu ms", (unsigned long long)ms);
	munmap(map, 4096);
	close(fd);
	ok(make_cold(token, &found, &ms) == 0 && !cached(path), "and then nobody does");
}

static void test_cold(void)
{
	char shm[] = "/dev/shm/cudapool-store-XXXXXX", disk[] = "/var/tmp/cudapool-store-XXXXXX", command[128];
	struct cudapool_found found = {0};
	struct statfs fs;
	uint8_t token[16];
	uint64_t ms;

	make_elsewhere("disk", disk);
	make_elsewhere("shm", shm);
	if (!statfs(disk, &fs) && fs.f_type != TMPFS_MAGIC && dump("disk", 2, 8, CUDAPOOL_HOT_AUTO, token))
		test_cold_disk(token);
	else
		ok(true, "an image out of the page cache # SKIP /var/tmp is on a file system in memory");
	if (!statfs(shm, &fs) && fs.f_type == TMPFS_MAGIC && dump("shm", 2, 8, CUDAPOOL_HOT_AUTO, token))
		ok(make_cold(token, &found, &ms) == -EOPNOTSUPP && found.hot_bytes == 16 * MIB && uses(0), "%s",
		   waited.text);
	else
		ok(true, "an image that is in memory anyway # SKIP /dev/shm is no file system in memory");
	snprintf(command, sizeof(command), "rm -rf %s %s", disk, shm);
	if (system(command))
		abort();
	settle(20);
}

/* What a prefetch waits for is claimed meanwhile, and that restore fails. */
static void test_prefetch_and_claim(void)
{
	struct cudapool_found found;
	struct store_dir *ahead, *dir;
	struct store_gift gift;
	struct waited claimed;
	uint8_t token[16];

	dump("ahead", 2, 4, CUDAPOOL_HOT_OFF, token);
	fake.delay_ms = 50;
	ahead = open_dir("ahead", CUDAPOOL_IMAGES_PREFETCH, CUDAPOOL_HOT_AUTO, &found);
	settle(20);
	dir = open_dir("ahead", CUDAPOOL_IMAGES_RESTORE, CUDAPOOL_HOT_AUTO, &found);
	store_claim(&gift, store_find(dir, token), CUDAPOOL_HOT_AUTO, fresh(&claimed));
	store_gave(&gift, false);
	store_dir_release(dir);
	ok(wait_done() == 0 && uses(8), "a prefetch loads what a restore has taken and let go of");
	store_dir_release(ahead);
	fake.delay_ms = 0;
	evict_all();
}

#define COUNT 3
static struct waited claims[COUNT];

static bool all_claimed(void)
{
	unsigned n = 0;

	while (n < COUNT && claims[n].done)
		n++;
	return n == COUNT;
}

static void test_at_once(void)
{
	struct cudapool_found found;
	struct store_dir *dir = open_dir("at-once", CUDAPOOL_IMAGES_DUMP, CUDAPOOL_HOT_AUTO, &found);
	struct park *parked[COUNT];
	struct store_gift gift[COUNT], twin;
	uint8_t token[COUNT][16];
	unsigned i, right = 0;

	for (i = 0; i < COUNT; i++) {
		parked[i] = park(dir, 4, 20);
		memcpy(token[i], store_token(parked[i]), 16);
	}
	for (i = 0; i < COUNT; i++) {
		store_wait_saved(parked[i], fresh(&waited));
		wait_done();
		store_orphaned(parked[i]);
	}
	store_dir_release(dir);
	settle(20);
	evict_all();
	fake.total[0] = fake.total[1] = COUNT * STORE_MARGIN + 256 * MIB;
	fake.threads_most = 0;
	fake.delay_ms = 30; /* loading begins with the directory */
	dir = open_dir("at-once", CUDAPOOL_IMAGES_RESTORE, CUDAPOOL_HOT_AUTO, &found);
	for (i = 0; i < COUNT; i++)
		store_claim(&gift[i], store_find(dir, token[i]), CUDAPOOL_HOT_AUTO, fresh(&claims[i]));
	until(all_claimed, 5000);
	ok(!claims[0].error && !claims[1].error && !claims[2].error, "the processes of a tree are claimed at once");
	fake.delay_ms = 0;
	ok(fake.threads_most == 3, "the loads share the threads (%u of 8)", fake.threads_most);
	store_claim(&twin, store_find(dir, token[0]), CUDAPOOL_HOT_AUTO, fresh(&waited));
	ok(wait_done() == -ENOMEM && !twin.own, "a fourth does not fit, and is told so");
	for (i = 0; i < COUNT; i++) {
		store_give(&gift[i], fresh(&waited));
		right += wait_done() == 0 && gift_is_right(&gift[i], 4, 20);
	}
	ok(right == COUNT, "each gets its own");
	for (i = 0; i < COUNT; i++)
		store_gave(&gift[i], true);
	store_dir_release(dir);
	ok(uses(80), "and what was loaded for the fourth is a cache for the next");
	evict_all();
	fake.total[0] = fake.total[1] = 1024 * MIB;
}

static void test_copied_and_loaded(void)
{
	struct cudapool_found found;
	struct store_dir *hot, *cold;
	struct store_gift copied, loaded;
	uint8_t token[2][16];

	ok(dump("cold", 2, 20, CUDAPOOL_HOT_OFF, token[0]) && dump("hot", 2, 20, CUDAPOOL_HOT_COPY, token[1]),
	   "of two processes, one is hot");
	fake.copies = fake.threads_most = 0;
	fake.delay_ms = 200;
	hot = open_dir("hot", CUDAPOOL_IMAGES_RESTORE, CUDAPOOL_HOT_COPY, &found);
	store_claim(&copied, store_find(hot, token[1]), CUDAPOOL_HOT_COPY, fresh(&claims[0]));
	cold = open_dir("cold", CUDAPOOL_IMAGES_RESTORE, CUDAPOOL_HOT_AUTO, &found);
	store_claim(&loaded, store_find(cold, token[0]), CUDAPOOL_HOT_AUTO, fresh(&claims[1]));
	claims[2].done = true;
	ok(until(all_claimed, 5000) && fake.copies && fake.threads_most == 8, "the one that is loaded has all threads");
	fake.delay_ms = 0;
	store_gave(&copied, true);
	store_gave(&loaded, true);
	store_dir_release(hot);
	store_dir_release(cold);
	evict_all();
}

/* The pool's own directory has images of many dumps, and nobody who removes it. */
static void test_own(void)
{
	static const char *const left = "own/images", *const name = "cudapool-00112233445566778899aabbccddeeff.img";
	char text[CUDAPOOL_TEXT_LEN] = "", part[310], image[300];
	struct store_dir *dir = store_own(text);
	int fd, other;

	ok(dir, "it is made: %s", text);
	store_dir_release(dir);
	snprintf(image, sizeof(image), "%s", path_of(left, name));
	snprintf(part, sizeof(part), "%s.part", image);
	close(open(image, O_WRONLY | O_CREAT, 0600));
	fd = open(part, O_WRONLY | O_CREAT, 0600);
	store_dir_release(store_own(text));
	ok(!access(part, F_OK), "what another pool writes stays");
	close(fd);
	store_dir_release(store_own(text));
	other = access(part, F_OK);
	ok(other && !access(image, F_OK), "what a killed pool has left half-written goes, and no image");
	unlink(image);
}

static void test_make_room(void)
{
	uint8_t token[16];

	dump("stock", 2, 4, CUDAPOOL_HOT_AUTO, token);
	store_make_room(&self, fresh(&waited));
	ok(wait_done() == 0 && uses(8), "a process that was not parked fits: nothing is evicted");
	fake.foreign[1] = 800 * MIB;
	store_make_room(&self, fresh(&waited));
	ok(wait_done() == 0 && uses(0), "it may not fit: what is hot makes room");
	fake.foreign[1] = 0;
}

/* ---- an application that wants memory -------------------------------------------------------------------- */

static struct cudapool_page *page_of_child;
static pid_t child;

static bool page_tells(void)
{
	return __atomic_load_n(&page_of_child->devices[1].evictable, __ATOMIC_RELAXED) == 4 * MIB;
}

static bool page_granted(void)
{
	return __atomic_load_n(&page_of_child->granted_seq, __ATOMIC_ACQUIRE) == 1;
}

static bool page_tells_nothing(void)
{
	return __atomic_load_n(&page_of_child->devices[1].evictable, __ATOMIC_RELAXED) == 0;
}

static void make_page(void)
{
	int fd = memfd_create(CUDAPOOL_PAGE_NAME, MFD_ALLOW_SEALING);

	if (ftruncate(fd, CUDAPOOL_PAGE_SIZE) || fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW))
		abort();
	page_of_child = mmap(NULL, CUDAPOOL_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	page_of_child->version = CUDAPOOL_PAGE_VERSION;
	page_of_child->size = sizeof(*page_of_child);
	page_of_child->channel_fd = -1;
	snprintf(page_of_child->build, sizeof(page_of_child->build), "test");
	memcpy(page_of_child->devices[1].uuid, fake_uuid[1], 16);
	child = fork();
	if (child)
		munmap(NULL, 0);
	else
		for (;;)
			pause();
	page_of_child->pid = child;
	__atomic_store_n(&page_of_child->magic, CUDAPOOL_PAGE_MAGIC, __ATOMIC_RELEASE);
	close(fd);
}

static void test_want(void)
{
	uint8_t token[16];

	make_page();
	dump("want", 2, 4, CUDAPOOL_HOT_AUTO, token);
	ok(until(page_tells, 6000), "an application is told what could be evicted for it");
	page_of_child->want_device = 1;
	page_of_child->want_bytes = fake.total[1];
	__atomic_store_n(&page_of_child->want_seq, 1, __ATOMIC_RELEASE); /* and wakes nobody */
	ok(until(page_granted, 1000) && uses(0), "when it wants memory, what is hot goes");
	ok(until(page_tells_nothing, 1000), "and it is told that there is no more");
	kill(child, SIGKILL);
	waitpid(child, NULL, 0);
}

int main(void)
{
	if (!begin_tests())
		return 1;
	test_paths();
	test_given_away();
	test_passed();
	test_unused_claim();
	test_room();
	test_tiers();
	test_cold();
	test_prefetch_and_claim();
	test_at_once();
	test_copied_and_loaded();
	test_own();
	test_make_room();
	test_want();
	return end_tests();
}
