// SPDX-License-Identifier: MIT
/* The store when things go wrong: workers, directories, undone dumps; and what it writes down. */
#include "store_support.h"

static void test_worker(void)
{
	struct cudapool_found found;
	struct store_dir *dir;
	struct park *parked;
	uint8_t token[16];

	fake.die_in = 1;
	ok(dump("worker", 200, 1, CUDAPOOL_HOT_AUTO, token), "a worker that dies while saving costs nothing");
	ok(files_in("worker", ".part") == 0, "and leaves nothing");
	evict_all();
	fake.full_every = 3;
	ok(dump("worker", 200, 1, CUDAPOOL_HOT_AUTO, token), "a link that is full is waited for");
	evict_all();
	ok(restore("worker", token, CUDAPOOL_HOT_AUTO, 200, 1, true) == CUDAPOOL_PATH_LOADED, "in both directions");
	fake.full_every = 0;
	fake.die_made = 1;
	ok(restore("worker", token, CUDAPOOL_HOT_OFF, 200, 1, true) == CUDAPOOL_PATH_LOADED && !fake.die_made &&
		   !fake.used_before,
	   "what a worker that dies had loaded is closed before the next one loads it");
	fake.hang_in = 1;
	ok(dump("worker", 4, 1, CUDAPOOL_HOT_AUTO, token) && fake.replaced == 1,
	   "a worker that makes no progress is replaced, and the job done by the next");
	fake.die_in = 2;
	dir = open_dir("worker", CUDAPOOL_IMAGES_DUMP, CUDAPOOL_HOT_AUTO, &found);
	parked = park(dir, 3, 1);
	store_wait_saved(parked, fresh(&waited));
	ok(wait_done() == -EIO && strstr(waited.text, "died"), "%s", waited.text);
	ok(files_in("worker", ".part") == 0 && files_in("worker", ".img") == 0 && !store_saved(parked),
	   "after the second death there is no image");
	store_dropped(parked);
	fake.job_error = -ENOSPC;
	parked = park(dir, 3, 1);
	store_wait_saved(parked, fresh(&waited));
	ok(wait_done() == -ENOSPC && strstr(waited.text, "No space left"), "%s", waited.text);
	store_wait_saved(parked, fresh(&waited));
	ok(waited.error == -ENOSPC && strstr(waited.text, "No space left"), "also for who asks later");
	ok(files_in("worker", ".part") == 0, "the half-written image is removed");
	store_dropped(parked);
	store_dir_release(dir);
	ok(until(nothing_used, 2000), "nothing is kept of either");
}

/* What its own process was offered when its image was complete. */
static struct park *saved_and_offered(struct store_dir *dir, struct store_gift *gift, uint8_t token[16])
{
	struct park *parked = park(dir, 3, 4);

	memcpy(token, store_token(parked), 16);
	store_wait_saved(parked, fresh(&waited));
	wait_done();
	store_return(gift, parked);
	store_give(gift, fresh(&waited));
	wait_done();
	return parked;
}

static void test_returned(void)
{
	struct cudapool_found found;
	struct store_dir *dir = open_dir("returned", CUDAPOOL_IMAGES_DUMP, CUDAPOOL_HOT_AUTO, &found);
	struct park *parked = park(dir, 3, 4);
	struct store_gift gift;
	uint8_t token[16];

	store_claim(&gift, parked, CUDAPOOL_HOT_AUTO, fresh(&waited));
	ok(waited.error == -EBUSY && strstr(waited.text, "not complete") && !gift.own,
	   "nobody else gets memory that is not saved yet");
	store_wait_saved(parked, fresh(&waited));
	store_return(&gift, parked);
	ok(waited.done && waited.error == -ECANCELED, "memory that goes back is not saved any more");
	store_give(&gift, fresh(&waited));
	ok(wait_done() == 0 && gift.path == CUDAPOOL_PATH_RETURNED && gift_is_right(&gift, 3, 4),
	   "its process gets it");
	store_gave(&gift, false);
	settle(20);
	ok(uses(12), "where that failed, it is kept");
	store_return(&gift, parked);
	store_give(&gift, fresh(&waited));
	ok(wait_done() == 0 && gift_is_right(&gift, 3, 4), "and given once more");
	store_gave(&gift, true);
	ok(until(nothing_used, 2000) && files_in("returned", ".img") + files_in("returned", ".part") == 0,
	   "then nothing of it is left, no image either");

	saved_and_offered(dir, &gift, token);
	store_gave(&gift, true);
	ok(until(nothing_used, 2000) && files_in("returned", ".img") == 1,
	   "with --leave-running the image stays, the memory not");
	store_dir_release(dir);
	ok(restore("returned", token, CUDAPOOL_HOT_MOVE, 3, 4, true) == CUDAPOOL_PATH_LOADED, "and it can be restored");

	dir = open_dir("returned", CUDAPOOL_IMAGES_DUMP, CUDAPOOL_HOT_AUTO, &found);
	parked = saved_and_offered(dir, &gift, token);
	store_gave(&gift, false);
	store_orphaned(parked);
	ok(until(nothing_used, 2000), "what its own process was offered before it died is for nobody else");
	ok(restore("returned", token, CUDAPOOL_HOT_AUTO, 3, 4, true) == CUDAPOOL_PATH_LOADED,
	   "who gets what the image has");
	store_dir_release(dir);

	dir = open_dir("returned", CUDAPOOL_IMAGES_DUMP, CUDAPOOL_HOT_AUTO, &found);
	parked = park(dir, 3, 4);
	store_wait_saved(parked, fresh(&waited));
	wait_done();
	store_dropped(parked);
	ok(files_in("returned", ".img") == 0 && until(nothing_used, 2000), "a dump that fails later leaves no image");
	store_dir_release(dir);
}

static void test_directory(void)
{
	static const char old[] = "cudapool-00112233445566778899aabbccddeeff.img";
	struct cudapool_found found;
	struct store_dir *dir;
	char text[CUDAPOOL_TEXT_LEN], other[300];
	uint8_t a[16], b[16];
	struct image image;
	int fd;

	mkdir(path_of("dir", NULL), 0700);
	write_file("dir", old, "x");
	write_file("dir", "cudapool-00112233445566778899aabbccddeef0.img.part", "x");
	write_file("dir", "cudapool-00112233445566778899aabbccddeeff.image", "x");
	write_file("dir", "pages-1.img", "x");
	write_file("dir", "victim", "x");
	if (symlink("victim", path_of("dir", "cudapool-00112233445566778899aabbccddee00.img")))
		abort();
	ok(dump("dir", 2, 4, CUDAPOOL_HOT_AUTO, a), "a dump into a directory that was used before");
	ok(access(path_of("dir", old), F_OK) && files_in("dir", ".part") == 0 && files_in("dir", ".img") == 2,
	   "removes images of earlier dumps");
	ok(!access(path_of("dir", "cudapool-00112233445566778899aabbccddeeff.image"), F_OK) &&
		   !access(path_of("dir", "pages-1.img"), F_OK) && !access(path_of("dir", "victim"), F_OK),
	   "and nothing else");
	ok(uses(8) && dump("dir", 2, 8, CUDAPOOL_HOT_AUTO, b) && uses(16),
	   "another dump into it: what was hot of the first one is gone with its image");
	ok(restore("dir", a, CUDAPOOL_HOT_AUTO, 2, 4, true) == -ENOENT, "its token is not found");
	dir = open_dir("dir", CUDAPOOL_IMAGES_RESTORE, CUDAPOOL_HOT_AUTO, &found);
	store_missing(dir, a, text);
	ok(strstr(text, "found 1 of the dump from 20") && strstr(text, "UTC"), "%s", text);
	store_dir_release(dir);

	write_file("dir", old, "not an image, and long enough to be read as one, or not: who knows");
	ok(restore("dir", b, CUDAPOOL_HOT_AUTO, 2, 8, true) == -EBADMSG,
	   "a directory with a file that is no image is refused");
	unlink(path_of("dir", old));
	snprintf(other, sizeof(other), "%s", path_of("dir", image_of(b)));
	if (rename(other, path_of("dir", old)))
		abort();
	ok(restore("dir", b, CUDAPOOL_HOT_AUTO, 2, 8, true) == -EBADMSG, "so is an image under another name");
	if (rename(path_of("dir", old), other))
		abort();
	evict_all();
	fd = open(other, O_RDWR);
	if (fd < 0 || image_read(&image, fd, text) || truncate(other, (off_t)image.header.file_size - 1))
		abort();
	ok(restore("dir", b, CUDAPOOL_HOT_AUTO, 2, 8, true) < 0, "a truncated one is refused");
	if (truncate(other, (off_t)image.header.file_size) || image_pwrite(fd, "\2\0\0\0", 4,
									   offsetof(struct image_header, version)))
		abort();
	ok(restore("dir", b, CUDAPOOL_HOT_AUTO, 2, 8, true) < 0, "and one of another version");
	image_free(&image);
	close(fd);
	unlink(other);
	if (mkdir(other, 0700))
		abort();
	ok(restore("dir", b, CUDAPOOL_HOT_AUTO, 2, 8, true) == -EBADMSG, "and a directory of that name");
	rmdir(other);
	ok(restore("dir", b, CUDAPOOL_HOT_AUTO, 2, 8, true) == -ENOENT, "an empty directory has nothing");
	evict_all();
}

static void copy_file(const char *from, const char *to)
{
	char command[1100];

	snprintf(command, sizeof(command), "cp %s %s", from, to);
	if (system(command))
		abort();
}

/* Right in itself, with another content: a checksum of its tables. */
static void alter_image(const char *path)
{
	char text[CUDAPOOL_TEXT_LEN];
	int fd = open(path, O_RDWR | O_CLOEXEC);
	struct image image;

	if (fd < 0 || image_read(&image, fd, text))
		abort();
	image.block[0].crc ^= 1;
	if (image_write(&image, fd, image.header.tables_at, text))
		abort();
	image_free(&image);
	close(fd);
}

/* An image that has a park's token, and is not its image. */
static void test_other_image(void)
{
	struct cudapool_found found;
	char original[300], copy[300];
	struct store_dir *dir;
	struct park *parked;
	uint8_t token[16];

	dump("this", 2, 4, CUDAPOOL_HOT_AUTO, token);
	mkdir(path_of("other", NULL), 0700);
	snprintf(original, sizeof(original), "%s", path_of("this", image_of(token)));
	snprintf(copy, sizeof(copy), "%s", path_of("other", image_of(token)));
	copy_file(original, copy);
	alter_image(original);
	ok(!open_dir("this", CUDAPOOL_IMAGES_RESTORE, CUDAPOOL_HOT_AUTO, &found) && found.error == -EBADMSG &&
		   strstr(found.text, "not of the memory") && strstr(found.text, "cudapool evict"),
	   "%s", found.text);
	ok(uses(8), "the memory stays as it is");
	dir = open_dir("other", CUDAPOOL_IMAGES_RESTORE, CUDAPOOL_HOT_AUTO, &found);
	ok(dir && found.hot_bytes == 8 * MIB, "and is for a copy of its own image, from wherever that is");
	store_dir_release(dir);
	ok(!open_dir("this", CUDAPOOL_IMAGES_RESTORE, CUDAPOOL_HOT_AUTO, &found), "the other one is refused again");
	ok(restore("other", token, CUDAPOOL_HOT_AUTO, 2, 4, true) == CUDAPOOL_PATH_HOT_MOVE, "the right one has it");
	ok(restore("this", token, CUDAPOOL_HOT_OFF, 2, 4, true) == CUDAPOOL_PATH_LOADED,
	   "without hot memory, each image is what it says");
	ok(restore("other", token, CUDAPOOL_HOT_OFF, 2, 4, true) == CUDAPOOL_PATH_LOADED, "one after the other");
	dir = open_dir("other", CUDAPOOL_IMAGES_RESTORE, CUDAPOOL_HOT_OFF, &found);
	ok(!open_dir("this", CUDAPOOL_IMAGES_RESTORE, CUDAPOOL_HOT_OFF, &found) && strstr(found.text, "/other"),
	   "but not while a restore has the other: %s", found.text);
	store_dir_release(dir);
	evict_all();

	dir = open_dir("this", CUDAPOOL_IMAGES_DUMP, CUDAPOOL_HOT_AUTO, &found);
	parked = park(dir, 2, 4);
	unlink(copy);
	snprintf(copy, sizeof(copy), "%s", path_of("other", image_of(store_token(parked))));
	store_wait_saved(parked, fresh(&waited));
	wait_done();
	copy_file(path_of("this", image_of(store_token(parked))), copy);
	parked->life = PARK_TAKEN;
	ok(!open_dir("other", CUDAPOOL_IMAGES_RESTORE, CUDAPOOL_HOT_AUTO, &found) && strstr(found.text, "nowhere yet"),
	   "nor the image of a dump that has not ended: %s", found.text);
	parked->life = PARK_SAVED;
	store_orphaned(parked);
	store_dir_release(dir);
	evict_all();
}

static void test_image_removed(void)
{
	uint8_t token[16];

	dump("removed", 2, 4, CUDAPOOL_HOT_AUTO, token);
	ok(uses(8), "a park is hot");
	unlink(path_of("removed", image_of(token)));
	ok(until(nothing_used, 5000), "its image is removed: within seconds its memory is free");
}

/* As podman unpacks an archive for each container that is restored from it, and removes that without --keep. */
static void unpacked(const char *name, const char *from, const uint8_t token[16])
{
	char copied[512], command[1100];

	snprintf(copied, sizeof(copied), "%s", path_of(from, image_of(token)));
	mkdir(path_of(name, NULL), 0700);
	snprintf(command, sizeof(command), "cp %s %s", copied, path_of(name, NULL));
	if (system(command))
		abort();
}

static const uint8_t *looked_for;
static const char *expected_at;

static bool is_there(void)
{
	struct park *park = park_by_token(looked_for);

	return park && park->path && !strcmp(park->path, expected_at);
}

static void test_copies(void)
{
	uint8_t token[16];
	char first[512];

	dump("first", 2, 4, CUDAPOOL_HOT_AUTO, token);
	snprintf(first, sizeof(first), "%s", path_of("first", image_of(token)));
	looked_for = token;
	for (unsigned i = 0; i < 2; i++) {
		unpacked("copy", "first", token);
		ok(restore("copy", token, CUDAPOOL_HOT_COPY, 2, 4, true) == CUDAPOOL_PATH_HOT_COPY,
		   "a copy of the image is restored from");
		expected_at = path_of("copy", image_of(token));
		ok(is_there(), "and is the one to load from, as the newest");
		unlink(expected_at);
		expected_at = first;
		ok(until(is_there, 5000) && uses(8), "it is gone: the first one is that again, and all stays hot");
	}
	unpacked("copy", "first", token);
	restore("copy", token, CUDAPOOL_HOT_COPY, 2, 4, true);
	unlink(first);
	settle(600);
	ok(uses(8), "the first one is gone: the newest is there");
	unlink(path_of("copy", image_of(token)));
	ok(until(nothing_used, 5000), "both are gone: its memory is free");
}

static void test_records(void)
{
	struct store_note record = {.stage = CUDAPOOL_STAGE_DUMP, .path = CUDAPOOL_PATH_PARKED, .process = &self,
				    .left = {[CUDAPOOL_LEFT_ORDERED] = 7}, .lock_us = 11};
	struct cudapool_channel_end end = {.phase_us = {1, 2, 3, 4, 5}, .held = 6};
	struct cudapool_found found;
	struct store_dir *dir = open_dir("records", CUDAPOOL_IMAGES_DUMP, CUDAPOOL_HOT_AUTO, &found);
	struct park *parked = park(dir, 2, 4);
	char text[8192] = "";
	FILE *file;

	store_wait_saved(parked, fresh(&waited));
	wait_done();
	record.end = &end;
	store_note(dir, parked, NULL, &record);
	record = (struct store_note){.stage = CUDAPOOL_STAGE_DUMP, .process = &self, .why = "no \"shim\""};
	store_note(dir, NULL, NULL, &record);
	file = fopen(path_of("records", RECORDS_DUMP), "r");
	ok(file && fread(text, 1, sizeof(text) - 1, file) > 0, "a dump leaves its statistics beside the image");
	if (file)
		fclose(file);
	ok(strstr(text, "\"path\":\"parked\"") && strstr(text, "\"ordered\":7") && strstr(text, "\"drain\":2") &&
		   strstr(text, "\"lock\":11") && strstr(text, "\"parked_bytes\":8388608") &&
		   strstr(text, "\"held_threads\":6"),
	   "which say what was parked and what each phase took");
	ok(strstr(text, "\"path\":\"stock\"") && strstr(text, "no \\\"shim\\\""), "and why another process was not");
	store_orphaned(parked);
	store_dir_release(dir);
	evict_all();
}

static unsigned saves_before;

static bool is_part_written(void)
{
	return fake.saves > saves_before;
}

/* While an image is being renamed, whoever reads the directory may see neither name. */
static bool nothing_in_sync(void)
{
	struct park *park;

	LIST_FOREACH(park, &parks, link)
		if (park->naming_on)
			return false;
	return files_in("sync", ".img") + files_in("sync", ".part") == 0;
}

static void test_sync(void)
{
	struct cudapool_found found;
	struct store_dir *dir;
	struct park *parked;
	uint8_t token[16];

	synced = true;
	ok(dump("sync", 2, 4, CUDAPOOL_HOT_AUTO, token) && files_in("sync", ".img") == 1,
	   "an image is synced before it counts");
	dir = open_dir("sync", CUDAPOOL_IMAGES_DUMP, CUDAPOOL_HOT_AUTO, &found);
	synced = false;
	saves_before = fake.saves;
	parked = park(dir, 2, 4);
	store_wait_saved(parked, fresh(&waited));
	until(is_part_written, 5000);
	store_dropped(parked);
	store_dir_release(dir);
	ok(uses(0) && until(nothing_in_sync, 5000), "one that is undone meanwhile leaves nothing");
}

/* The store forgets what it has only an image of. */
static void forget(const uint8_t token[16])
{
	struct park *park = park_by_token(token);

	free(park->path);
	park->path = NULL;
	park_settle(park);
	settle(20);
}

static void test_own(void)
{
	char text[CUDAPOOL_TEXT_LEN] = "";
	struct store_dir *one = store_own(text), *two = store_own(text);
	struct park *a = park(one, 2, 4), *b = park(two, 2, 4);
	uint8_t token[16];
	struct store_gift gift;

	memcpy(token, store_token(a), sizeof(token));
	store_wait_saved(a, fresh(&waited));
	wait_done();
	store_wait_saved(b, fresh(&waited));
	ok(wait_done() == 0 && files_in("own/images", ".img") == 2,
	   "the pool's own directory has images of several dumps");
	store_orphaned(a);
	store_orphaned(b);
	store_dir_release(one);
	store_dir_release(two);
	evict_all();
	forget(token);
	ok(store_find(NULL, token) == NULL, "a pool that knows nothing of it");
	one = store_look("", token, fresh(&waited));
	ok(one && wait_done() == 0, "looks for it there");
	a = store_find(one, token);
	ok(a != NULL, "and finds it");
	store_claim(&gift, a, CUDAPOOL_HOT_AUTO, fresh(&waited));
	wait_done();
	store_give(&gift, fresh(&waited));
	ok(wait_done() == 0 && gift.path == CUDAPOOL_PATH_LOADED && gift_is_right(&gift, 2, 4), "and gives it");
	store_gave(&gift, true);
	store_dir_release(one);
	token[3] ^= 1;
	one = store_look("", token, fresh(&waited));
	ok(one && wait_done() == 0 && !store_find(one, token), "another token is not there");
	store_dir_release(one);
	ok(!store_look(path_of("nowhere", NULL), token, fresh(&waited)), "nor is there a directory that is none");
}

int main(void)
{
	if (!begin_tests())
		return 1;
	test_worker();
	test_returned();
	test_directory();
	test_other_image();
	test_image_removed();
	test_copies();
	test_records();
	test_sync();
	test_own();
	return end_tests();
}
