// SPDX-License-Identifier: MIT
/* Images of an earlier dump: written over by the next one where nobody else has them, removed beside the loop else. */
#include <dirent.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/socket.h>

#include "notify.h"
#include "rights.h"
#include "store_support.h"

#define COUNT 3
#define SLOW_MS 1500

/* Giving back a file without a name takes long: see Makefile. */
int __real_close(int fd);
int __wrap_close(int fd);
static pthread_t loop_thread;
static atomic_uint slow_here, slow_beside;
static dev_t device; /* of the files; fake GPU memory is files without a name as well */
static bool slow;

int __wrap_close(int fd)
{
	struct stat st;

	if (slow && !fstat(fd, &st) && S_ISREG(st.st_mode) && st.st_dev == device && !st.st_nlink && st.st_blocks) {
		atomic_fetch_add(pthread_equal(pthread_self(), loop_thread) ? &slow_here : &slow_beside, 1);
		usleep(SLOW_MS * 1000);
	}
	return __real_close(fd);
}

static uint64_t number_of(const char *dir, const uint8_t token[16])
{
	struct stat st;

	return stat(path_of(dir, image_of(token)), &st) ? 0 : st.st_ino;
}

static uint64_t recycled(const uint8_t token[16])
{
	return park_by_token(token)->recycled_bytes;
}

static int open_image_of(const char *dir, const uint8_t token[16])
{
	return open(path_of(dir, image_of(token)), O_RDONLY | O_CLOEXEC);
}

static bool is_image(int fd)
{
	char text[CUDAPOOL_TEXT_LEN];
	struct image image;
	bool is = !image_read(&image, fd, text);

	if (is)
		image_free(&image);
	return is;
}

/* Dumps anew into `dir`, and loads that from the image. True if the file is the one that was there. */
static bool again(const char *dir, uint8_t token[16], unsigned count, unsigned mib, const char *what)
{
	uint64_t before = number_of(dir, token);
	uint8_t old[16];
	bool dumped;

	memcpy(old, token, sizeof(old));
	dumped = dump(dir, count, mib, CUDAPOOL_HOT_AUTO, token);
	ok(dumped && !park_by_token(old) && uses(count * mib), "%s: dumped, and the memory of the earlier dump is let go of",
	   what);
	ok(files_in(dir, ".img") == 1 && files_in(dir, ".part") == 0, "there is one image, and nothing else");
	evict_all();
	ok(restore(dir, token, CUDAPOOL_HOT_AUTO, count, mib, false) == CUDAPOOL_PATH_LOADED, "and it is right");
	evict_all();
	return number_of(dir, token) == before;
}

static void test_over(void)
{
	uint8_t token[16];

	dump("over", 3, 4, CUDAPOOL_HOT_AUTO, token);
	ok(recycled(token) == 0, "the first dump has a new file");
	ok(again("over", token, 3, 4, "as much") && recycled(token) >= 9 * MIB, "into the earlier one's file");
	ok(again("over", token, 1, 4, "less"), "the same file");
	ok(again("over", token, 6, 5, "more"), "the same file");
	blank = true;
	again("over", token, 3, 4, "only zeros");
	blank = false;
	ok(again("over", token, 3, 4, "after zeros") == false && recycled(token) == 0, "an image of nothing is not kept");
}

static void test_several(void)
{
	struct cudapool_found found;
	struct store_dir *dir = open_dir("several", CUDAPOOL_IMAGES_DUMP, CUDAPOOL_HOT_OFF, &found);
	uint64_t before[COUNT], after[COUNT];
	struct park *parked[COUNT];
	uint8_t token[COUNT][16];
	unsigned i, round, k, same = 0;

	for (round = 0; round < 2; round++) {
		for (i = 0; i < COUNT; i++) {
			parked[i] = park(dir, 2, 2 + i);
			memcpy(token[i], store_token(parked[i]), 16);
		}
		store_dir_parked(dir);
		for (i = 0; i < COUNT; i++) {
			store_wait_saved(parked[i], fresh(&waited));
			ok(wait_done() == 0, "process %u is saved", i);
			store_orphaned(parked[i]);
			(round ? after : before)[i] = number_of("several", token[i]);
		}
		store_dir_release(dir);
		settle(20);
		dir = open_dir("several", CUDAPOOL_IMAGES_DUMP, CUDAPOOL_HOT_OFF, &found);
	}
	for (i = 0; i < COUNT; i++)
		for (k = 0; k < COUNT; k++)
			same += before[i] == after[k];
	ok(same == COUNT, "each took one");

	parked[0] = park(dir, 2, 3);
	memcpy(token[0], store_token(parked[0]), 16);
	ok(files_in("several", ".part") == 3, "with one process, two are left,");
	store_dir_parked(dir);
	ok(files_in("several", ".part") == 1, "until no more can come");
	store_wait_saved(parked[0], fresh(&waited));
	wait_done();
	store_orphaned(parked[0]);
	before[0] = number_of("several", token[0]);
	ok(before[0] == after[0] || before[0] == after[1] || before[0] == after[2], "it took one");
	store_dir_release(dir);
	ok(files_in("several", ".img") == 1 && files_in("several", ".part") == 0, "and nothing else is there");
	ok(restore("several", token[0], CUDAPOOL_HOT_AUTO, 2, 3, false) == CUDAPOOL_PATH_LOADED, "which is right");
	evict_all();
}

static void test_not_ours(void)
{
	struct cudapool_found found;
	struct store_dir *dir;
	struct store_gift gift;
	uint8_t token[16];
	char other[512];
	int fd;

	dump("open", 2, 4, CUDAPOOL_HOT_OFF, token);
	fd = open_image_of("open", token);
	ok(!again("open", token, 2, 4, "while somebody reads it"), "into another file");
	ok(is_image(fd), "the reader still has the whole image");
	close(fd);

	fd = open_image_of("open", token);
	snprintf(other, sizeof(other), "%s", path_of("open", "copy"));
	if (link(path_of("open", image_of(token)), other))
		abort();
	close(fd);
	ok(!again("open", token, 2, 4, "with another name"), "into another file");
	fd = open(other, O_RDONLY | O_CLOEXEC);
	ok(is_image(fd), "what has the other name is whole");
	close(fd);

	chmod(path_of("open", image_of(token)), 0644);
	ok(!again("open", token, 2, 4, "that others may read"), "into another file");

	dir = open_dir("open", CUDAPOOL_IMAGES_RESTORE, CUDAPOOL_HOT_AUTO, &found);
	store_claim(&gift, store_find(dir, token), CUDAPOOL_HOT_AUTO, fresh(&waited));
	wait_done();
	fd = open_image_of("open", token);
	store_dir_release(open_dir("open", CUDAPOOL_IMAGES_DUMP, CUDAPOOL_HOT_AUTO, &found));
	store_give(&gift, fresh(&waited));
	ok(wait_done() == 0 && gift_is_right(&gift, 2, 4) && is_image(fd), "that a restore is reading: it gets its own");
	close(fd);
	store_gave(&gift, true);
	store_dir_release(dir);
	settle(20);
	ok(files_in("open", ".img") == 0 && files_in("open", ".part") == 0, "and the file has no name any more");
}

static void test_crash(void)
{
	struct cudapool_found found;
	struct store_dir *dir, *other;
	struct dirent *entry;
	struct park *parked;
	uint8_t token[16];
	unsigned parts = 0;
	DIR *stream;
	int fd;

	dump("crash", 3, 4, CUDAPOOL_HOT_OFF, token);
	fd = open_image_of("crash", token);
	ok(is_image(fd), "there is an image");
	close(fd);
	dir = open_dir("crash", CUDAPOOL_IMAGES_DUMP, CUDAPOOL_HOT_AUTO, &found);
	ok(files_in("crash", ".img") == 0, "a dump begins: no name of an image is left");
	fake.hang_in = 1;
	parked = park(dir, 3, 4);
	settle(20);
	stream = opendir(path_of("crash", NULL));
	while ((entry = readdir(stream))) {
		fd = strstr(entry->d_name, ".part") ? open(path_of("crash", entry->d_name), O_RDONLY | O_CLOEXEC) : -1;
		parts += fd >= 0 && !is_image(fd);
		if (fd >= 0)
			close(fd);
	}
	closedir(stream);
	ok(parts == 1 && files_in("crash", ".part") == 1, "were the pool to end now, what it leaves would be no image");
	other = open_dir("crash", CUDAPOOL_IMAGES_RESTORE, CUDAPOOL_HOT_AUTO, &found);
	ok(other && found.count == 0 && !found.error, "and a restore finds none");
	store_dir_release(other);
	store_dropped(parked);
	store_dir_release(dir);
	settle(50);
	ok(files_in("crash", ".part") == 0, "a dump that was undone leaves nothing");
	evict_all();
}

static bool has_been_slow(void)
{
	return slow_beside >= 2;
}

/* Nobody waits for the keeper: the least that goes through its loop does so at once. */
static void test_loop_goes_on(void)
{
	struct cudapool_found found;
	struct store_dir *dir;
	uint8_t token[16];
	uint64_t begun;
	int fd;

	dump("slow", 3, 4, CUDAPOOL_HOT_AUTO, token);
	fd = open_image_of("slow", token); /* so that it is removed */
	slow = true;
	begun = loop_now_ms();
	dir = open_dir("slow", CUDAPOOL_IMAGES_DUMP, CUDAPOOL_HOT_AUTO, &found);
	store_dir_release(dir);
	ok(dir && files_in("slow", ".img") == 0, "an image is removed");
	__real_close(fd);
	dump("slow", 3, 4, CUDAPOOL_HOT_OFF, token);
	store_dir_release(open_dir("slow", CUDAPOOL_IMAGES_DUMP, CUDAPOOL_HOT_AUTO, &found));
	ok(files_in("slow", ".part") == 0, "a file that is not needed goes with its directory");
	settle(20);
	ok(slow_here == 0 && loop_now_ms() - begun < SLOW_MS, "and meanwhile the loop turned: %llu ms",
	   (unsigned long long)(loop_now_ms() - begun));
	ok(until(has_been_slow, 10000) && slow_here == 0, "its memory is given back beside it: %u", slow_beside);
	slow = false;
}

/* What an earlier keeper left with systemd is passed as descriptor 3 (deposit.h); what is sent to `left` is in it. */
static const uint8_t left_token[16] = "left by another";
static int left = -1;

static bool leave_box(void)
{
	char text[64], hex[2 * IMAGE_TOKEN_LEN + 1];
	int ends[2];

	closefrom(NOTIFY_FIRST);
	if (socketpair(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0, ends) || ends[0] != NOTIFY_FIRST)
		return false;
	left = ends[1];
	image_hex(hex, left_token);
	snprintf(text, sizeof(text), "%d", getpid());
	setenv("LISTEN_PID", text, 1);
	setenv("LISTEN_FDS", "1", 1);
	snprintf(text, sizeof(text), DEPOSIT_PREFIX "%s", hex);
	setenv("LISTEN_FDNAMES", text, 1);
	return notify_init() == NOTIFY_FIRST + 1;
}

/* A keeper that was killed while it saved: one piece, and what its worker had written of the image. */
static bool leave_park(const char *dir)
{
	struct image_header header = {.devices = 1, .pid = (uint32_t)self.pid};
	struct image_piece piece = {.bytes = 4 * MIB};
	int table = memfd_create("table", MFD_CLOEXEC), memory = fake_memory(0, piece.bytes), part;
	char text[CUDAPOOL_TEXT_LEN], name[64];
	struct image image = {};
	bool well;

	memcpy(header.uuid[0], fake_uuid[0], 16);
	memcpy(header.token, left_token, 16);
	fill(memory, piece.bytes, 0);
	well = !image_plan(&image, &header, &piece, 1, text) && !image_write(&image, table, IMAGE_HEADER_SIZE, text);
	image_free(&image);
	well = well && !rights_send(left, "", 1, &table, 1, 0) && !rights_send(left, "", 1, &memory, 1, 0);
	close(table);
	close(memory);
	image_name(left_token, true, name);
	mkdir(path_of(dir, NULL), 0700);
	part = open(path_of(dir, name), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	fill(part, 4 * MIB, 77);
	close(part);
	return well;
}

static bool was_slow_once(void)
{
	return slow_beside == 1;
}

static void test_adopted(void)
{
	struct park *adopted;

	ok(leave_park("adopted"), "a keeper was killed while it saved");
	slow_beside = 0;
	slow = true;
	adopted = store_adopt(left_token, &self, path_of("adopted", NULL));
	ok(adopted, "its memory is taken over");
	ok(until(was_slow_once, 2000) && slow_here == 0, "its half of an image is removed beside the loop");
	slow = false;
	store_wait_saved(adopted, fresh(&waited));
	ok(wait_done() == 0, "the image is written anew");
	store_orphaned(adopted);
	settle(20);
	evict_all();
	ok(restore("adopted", left_token, CUDAPOOL_HOT_AUTO, 1, 4, false) == CUDAPOOL_PATH_LOADED, "and is right");
	evict_all();
}

int main(void)
{
	struct stat st;

	loop_thread = pthread_self();
	if (!leave_box() || !begin_tests() || stat(room, &st))
		return 1;
	device = st.st_dev;
	test_over();
	test_several();
	test_not_ours();
	test_crash();
	test_loop_goes_on();
	test_adopted();
	return end_tests();
}
