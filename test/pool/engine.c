// SPDX-License-Identifier: MIT
/* The engine with a driver: what is saved comes back, copies are copies, and nothing stays behind whatever goes wrong.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "checksum.h"
#include "gpu.h"
#include "tap.h"

#define MIB        (1ull << 20)
#define PIECES_MAX 70 /* more than one batch */

/* Pieces in this process, and what the engine made of them. */
struct set {
	unsigned pieces, made;
	struct image_piece piece[PIECES_MAX];
	struct mapping mapping[PIECES_MAX];
	uint8_t *content[PIECES_MAX];
	int fd[PIECES_MAX];
	int made_fd[PIECES_MAX];
	struct image_header header;
	int fail_take, fail_made; /* the errno with which that piece fails; 0: it does not */
	unsigned fail_at;
	uint64_t told;
	struct engine_job job;
};

static int take(struct engine_job *job, uint32_t piece)
{
	struct set *set = (struct set *)((char *)job - offsetof(struct set, job));

	if (set->fail_take && piece == set->fail_at)
		return set->fail_take;
	return fcntl(set->fd[piece], F_DUPFD_CLOEXEC, 0);
}

static int made(struct engine_job *job, uint32_t first, uint32_t count, const int *fds)
{
	struct set *set = (struct set *)((char *)job - offsetof(struct set, job));

	if (first != set->made || count > ENGINE_BATCH || count > set->pieces - first)
		abort();
	memcpy(set->made_fd + first, fds, count * sizeof(*fds));
	set->made += count;
	return set->fail_made;
}

static void progress(struct engine_job *job, uint64_t bytes)
{
	((struct set *)((char *)job - offsetof(struct set, job)))->told = bytes;
}

/* What a block is filled with: zeros, one byte that is not, or all sorts. */
static void fill(uint8_t *at, uint64_t bytes, unsigned share_of_zeros, uint64_t *seed)
{
	uint64_t offset, i, length;

	for (offset = 0; offset < bytes; offset += length) {
		length = bytes - offset < IMAGE_BLOCK ? bytes - offset : IMAGE_BLOCK;
		if (gpu_random(seed) % 100 < share_of_zeros)
			continue;
		if (gpu_random(seed) % 4 == 0)
			at[offset + gpu_random(seed) % length] = 1;
		else
			for (i = 0; i < length / 8; i++)
				((uint64_t *)(at + offset))[i] = gpu_random(seed);
	}
}

static void set_make(struct set *set, unsigned pieces, unsigned share_of_zeros, uint64_t seed)
{
	unsigned i;

	*set = (struct set){.pieces = pieces};
	set->header.devices = 2;
	set->header.pid = 4711;
	memcpy(set->header.token, "0123456789abcdef", IMAGE_TOKEN_LEN);
	gpu_uuid(1, set->header.uuid[0]); /* the image numbers them as it likes */
	gpu_uuid(0, set->header.uuid[1]);
	for (i = 0; i < pieces; i++) {
		set->piece[i].bytes = (1 + gpu_random(&seed) % 3) * 2 * MIB;
		set->piece[i].device = i % 3 == 1;
		set->piece[i].flags = i % 2;
		set->fd[i] = gpu_piece(!set->piece[i].device, set->piece[i].bytes, &set->mapping[i]);
		set->content[i] = calloc(1, set->piece[i].bytes);
		fill(set->content[i], set->piece[i].bytes, share_of_zeros, &seed);
		gpu_write(!set->piece[i].device, set->mapping[i].range.start, set->content[i], set->piece[i].bytes);
	}
}

static void set_end(struct set *set)
{
	unsigned i;

	for (i = 0; i < set->pieces; i++) {
		close(set->fd[i]);
		mapping_end(&set->mapping[i]);
		free(set->content[i]);
	}
}

static void job_make(struct set *set, int file, unsigned threads, unsigned chunk_mb)
{
	set->job = (struct engine_job){.threads = threads,
				       .chunk_mb = chunk_mb,
				       .file = file,
				       .header = set->header,
				       .piece = set->piece,
				       .pieces = set->pieces,
				       .take = take,
				       .made = made,
				       .progress = progress};
	set->made = 0;
}

/* Is what was made what it was made of? Closes it. */
static bool made_is_right(struct set *set)
{
	struct mapping mapping = {};
	char text[CUDAPOOL_TEXT_LEN];
	bool right = set->made == set->pieces;
	uint8_t *found;
	CUresult cu;
	unsigned i;

	for (i = 0; i < set->made; i++) {
		int device = !set->piece[i].device;

		found = malloc(set->piece[i].bytes);
		if (device_enter(device, text, &cu) ||
		    mapping_import(&mapping, device, set->piece[i].bytes, set->made_fd[i], text, &cu))
			abort();
		gpu_read(device, found, mapping.range.start, set->piece[i].bytes);
		if (memcmp(found, set->content[i], set->piece[i].bytes)) {
			note("piece %u is not what it was", i);
			right = false;
		}
		mapping_end(&mapping);
		free(found);
	}
	return right;
}

static void close_made(struct set *set)
{
	while (set->made)
		close(set->made_fd[--set->made]);
}

static int file_new(void)
{
	return memfd_create("image", MFD_CLOEXEC);
}

static uint64_t zero_blocks(const struct set *set)
{
	static const uint8_t zeros[IMAGE_BLOCK];
	uint64_t count = 0, at;
	unsigned i;

	for (i = 0; i < set->pieces; i++)
		for (at = 0; at < set->piece[i].bytes; at += IMAGE_BLOCK)
			count += !memcmp(set->content[i] + at, zeros, IMAGE_BLOCK);
	return count;
}

static void round_trip(struct set *set, unsigned threads, unsigned chunk_mb)
{
	char text[CUDAPOOL_TEXT_LEN] = "";
	struct image image = {};
	int file = file_new(), err;

	job_make(set, file, threads, chunk_mb);
	err = engine_save(&set->job);
	ok(!err, "%u threads, chunks of %u MiB: saved %llu MiB%s%s", threads, chunk_mb,
	   (unsigned long long)(set->job.bytes / MIB), err ? ": " : "", set->job.text);
	err = image_read(&image, file, text);
	ok(!err, "its header and tables are right%s%s", err ? ": " : "", text);
	ok(!err && image.header.stored == image.header.bytes - zero_blocks(set) * IMAGE_BLOCK &&
		   image.header.tables_at == IMAGE_HEADER_SIZE + image.header.stored && image.header.pid == 4711 &&
		   set->job.stored == image.header.stored,
	   "only blocks that are not zero are in the file: %llu MiB", (unsigned long long)(image.header.stored / MIB));
	image_free(&image);

	job_make(set, file, threads, chunk_mb);
	err = engine_load(&set->job);
	ok(!err, "loaded%s%s", err ? ": " : "", set->job.text);
	ok(made_is_right(set), "as it was");
	close_made(set);
	close(file);
}

/* A file with so much room in memory, or -1: one may not mount here. */
static int small_file(const char *size)
{
	int root = memory_fs("size", size), file = openat(root, "image", O_RDWR | O_CREAT | O_CLOEXEC, 0600);

	close(root);
	return file;
}

static bool saved_and_loaded(struct set *set, int file)
{
	bool right;

	job_make(set, file, 4, 1);
	right = !engine_save(&set->job);
	job_make(set, file, 4, 1);
	right = right && !engine_load(&set->job) && made_is_right(set);
	close_made(set);
	return right;
}

/* Into a file that was an image: what was in it is not to be seen, whatever is written over how much of it. */
static void written_over(int file, const char *where)
{
	static const unsigned zeros[] = {0, 50, 100, 0, 90, 10};
	static const unsigned pieces[] = {5, 3, 5, 7, 1, 7};
	struct set set;
	struct stat st;
	unsigned i;

	for (i = 0; i < sizeof(zeros) / sizeof(zeros[0]); i++) {
		set_make(&set, pieces[i], zeros[i], 1000 + i);
		ok(saved_and_loaded(&set, file) && !fstat(file, &st) &&
			   (uint64_t)st.st_size < IMAGE_HEADER_SIZE + set.job.bytes + MIB,
		   "%s: %u pieces with %u %% zeros over what was there", where, pieces[i], zeros[i]);
		set_end(&set);
	}
	close(file);
}

static void without_space(struct set *set, const char *size)
{
	int file = small_file(size);

	if (file < 0) {
		note("no file system can be made here");
		return;
	}
	job_make(set, file, 4, 1);
	ok(engine_save(&set->job) == -ENOSPC && strstr(set->job.text, "make room"), "memory of %s that is full: %s",
	   size, set->job.text);
	close(file);
}

static void *parallel_main(void *argument)
{
	struct set *set = argument;
	int file = file_new(), i, err = 0;

	for (i = 0; i < 2 && !err; i++) {
		if (ftruncate(file, 0))
			abort();
		job_make(set, file, 4, 1);
		err = engine_save(&set->job);
		job_make(set, file, 4, 2);
		if (!err)
			err = engine_load(&set->job);
		if (!err && !made_is_right(set))
			err = -EIO;
		close_made(set);
	}
	close(file);
	return (void *)(intptr_t)err;
}

static void in_parallel(void)
{
	static struct set set[4];
	pthread_t thread[4];
	void *result;
	bool well = true;
	unsigned i;

	for (i = 0; i < 4; i++)
		set_make(&set[i], 5, 30, 77 + i);
	for (i = 0; i < 4; i++)
		pthread_create(&thread[i], NULL, parallel_main, &set[i]);
	for (i = 0; i < 4; i++) {
		pthread_join(thread[i], &result);
		well &= !result;
		set_end(&set[i]);
	}
	ok(well, "four jobs at once, twice each, do not meet");
}

/* Where did it say that it went wrong? */
static void failed(struct set *set, int err, int expected, const char *says, const char *what)
{
	ok(err == expected && strstr(set->job.text, says), "%s: %s", what, set->job.text);
	if (err != expected)
		note("error %d instead of %d", err, expected);
	close_made(set);
}

static void damaged(struct set *set)
{
	int file = file_new();
	uint64_t at, number = 0;
	struct image image;
	char text[CUDAPOOL_TEXT_LEN];
	uint8_t byte;

	job_make(set, file, 4, 1);
	if (engine_save(&set->job) || image_read(&image, file, text))
		abort();
	/* The last stored block of all. */
	for (at = 0; at < image.header.blocks; at++)
		if (image.block[at].at)
			number = at;
	at = image.block[number].at + 4711;
	if (pread(file, &byte, 1, at) != 1)
		abort();
	byte ^= 4;
	if (pwrite(file, &byte, 1, at) != 1)
		abort();
	job_make(set, file, 4, 1);
	failed(set, engine_load(&set->job), -EBADMSG, "the checksum of block", "a bit is wrong in a block");
	byte ^= 4;
	if (pwrite(file, &byte, 1, at) != 1)
		abort();

	job_make(set, file, 4, 1);
	set->piece[0].bytes += 2 * MIB;
	failed(set, engine_load(&set->job), -EBADMSG, "not the image that was asked for", "another image");
	set->piece[0].bytes -= 2 * MIB;

	image.header.uuid[1][3] ^= 1;
	if (image_write(&image, file, image.header.tables_at, text))
		abort();
	job_make(set, file, 4, 1);
	failed(set, engine_load(&set->job), -EXDEV, "this machine has no GPU", "an image of another machine");
	image_free(&image);
	close(file);
}

static void refused(struct set *set)
{
	int file = file_new(), full = open("/dev/full", O_RDWR | O_CLOEXEC);
	struct mapping most;
	uint64_t free;
	int fd;

	job_make(set, file, 4, 1);
	set->fail_take = -EPIPE;
	set->fail_at = 3;
	failed(set, engine_save(&set->job), -EPIPE, "piece 3 did not come", "a piece that does not come");
	set->fail_take = 0;

	job_make(set, full, 4, 1);
	failed(set, engine_save(&set->job), -ENOSPC, "make room", "a file system that is full");

	job_make(set, file, 4, 1);
	set->job.cancelled = true;
	failed(set, engine_save(&set->job), -ECANCELED, "cancelled", "a job that nobody wants any more");

	if (ftruncate(file, 0))
		abort();
	job_make(set, file, 4, 1);
	if (engine_save(&set->job))
		abort();
	job_make(set, file, 4, 1);
	set->fail_made = -EPIPE;
	failed(set, engine_load(&set->job), -EPIPE, "cannot be handed out", "nobody who takes what is made");
	set->fail_made = 0;

	free = gpu_free_bytes(0) / (2 * MIB) * 2 * MIB;
	fd = gpu_piece(0, free - 2 * MIB, &most);
	job_make(set, file, 4, 1);
	failed(set, engine_load(&set->job), -ENOMEM, "not enough memory", "a GPU that is full, loading");
	job_make(set, -1, 4, 1);
	failed(set, engine_copy(&set->job), -ENOMEM, "not enough memory", "a GPU that is full, copying");
	close(fd);
	mapping_end(&most);

	fd = set->fd[2];
	set->fd[2] = file;
	job_make(set, file, 4, 1);
	failed(set, engine_copy(&set->job), -EREMOTEIO, "cuMemImportFromShareableHandle", "a piece that is none");
	set->fd[2] = fd;
	close(full);
	close(file);
}

/* ---- the driver's calls: counted, and one of them fails -------------------------------------------- */

static struct driver real;
static unsigned calls, tries, fail_try; /* all; those that may fail, and which of them does (0: none) */

#define COUNTED(name, parameters, ...)                                                                                 \
	static CUresult counted_##name parameters                                                                      \
	{                                                                                                              \
		calls++;                                                                                               \
		return ++tries == fail_try ? CUDA_ERROR_UNKNOWN : real.name(__VA_ARGS__);                              \
	}
#define COUNTED_END(name, parameters, ...)                                                                             \
	static CUresult counted_##name parameters                                                                      \
	{                                                                                                              \
		calls++;                                                                                               \
		return real.name(__VA_ARGS__);                                                                         \
	}

COUNTED(cuCtxSetCurrent, (CUcontext context), context)
COUNTED(cuMemImportFromShareableHandle,
	(CUmemGenericAllocationHandle * handle, void *from, CUmemAllocationHandleType type), handle, from, type)
COUNTED(cuMemCreate,
	(CUmemGenericAllocationHandle * handle, size_t size, const CUmemAllocationProp *prop, unsigned long long flags),
	handle, size, prop, flags)
COUNTED(cuMemExportToShareableHandle,
	(void *to, CUmemGenericAllocationHandle handle, CUmemAllocationHandleType type, unsigned long long flags), to,
	handle, type, flags)
COUNTED(cuMemAddressReserve,
	(CUdeviceptr * at, size_t size, size_t alignment, CUdeviceptr address, unsigned long long flags), at, size,
	alignment, address, flags)
COUNTED(cuMemMap,
	(CUdeviceptr at, size_t size, size_t offset, CUmemGenericAllocationHandle handle, unsigned long long flags), at,
	size, offset, handle, flags)
COUNTED(cuMemSetAccess, (CUdeviceptr at, size_t size, const CUmemAccessDesc *access, size_t count), at, size, access,
	count)
COUNTED(cuMemcpyDtoDAsync, (CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream), to, from, bytes, stream)
COUNTED(cuEventRecord, (CUevent event, CUstream stream), event, stream)
COUNTED(cuEventSynchronize, (CUevent event), event)
COUNTED_END(cuStreamSynchronize, (CUstream stream), stream)
COUNTED_END(cuMemUnmap, (CUdeviceptr at, size_t size), at, size)
COUNTED_END(cuMemAddressFree, (CUdeviceptr at, size_t size), at, size)
COUNTED_END(cuMemRelease, (CUmemGenericAllocationHandle handle), handle)

/* Copies, while its calls are counted; `fail`: the number of the one that does, 0: none. */
static int counted_copy(struct set *set, unsigned fail)
{
	int err;

	real = gpu;
	gpu.cuCtxSetCurrent = counted_cuCtxSetCurrent;
	gpu.cuMemImportFromShareableHandle = counted_cuMemImportFromShareableHandle;
	gpu.cuMemCreate = counted_cuMemCreate;
	gpu.cuMemExportToShareableHandle = counted_cuMemExportToShareableHandle;
	gpu.cuMemAddressReserve = counted_cuMemAddressReserve;
	gpu.cuMemMap = counted_cuMemMap;
	gpu.cuMemSetAccess = counted_cuMemSetAccess;
	gpu.cuMemcpyDtoDAsync = counted_cuMemcpyDtoDAsync;
	gpu.cuEventRecord = counted_cuEventRecord;
	gpu.cuEventSynchronize = counted_cuEventSynchronize;
	gpu.cuStreamSynchronize = counted_cuStreamSynchronize;
	gpu.cuMemUnmap = counted_cuMemUnmap;
	gpu.cuMemAddressFree = counted_cuMemAddressFree;
	gpu.cuMemRelease = counted_cuMemRelease;
	calls = tries = 0;
	fail_try = fail;
	job_make(set, -1, 1, 1);
	err = engine_copy(&set->job);
	gpu = real;
	return err;
}

static void copied_with_few_calls(void)
{
	static struct set set;
	unsigned batches = (PIECES_MAX + ENGINE_BATCH - 1) / ENGINE_BATCH, devices = 2, most;

	set_make(&set, PIECES_MAX, 90, 99);
	ok(!counted_copy(&set, 0) && made_is_right(&set), "copied on the GPU%s", set.job.text);
	/*
	 * A piece: import, create, export, two to map, two to release. A batch on a device: its context, addresses,
	 * access, copy, and their end. A device: its context, and waiting.
	 */
	most = 7 * PIECES_MAX + 6 * batches * devices + 3 * devices;
	ok(calls <= most, "with %u calls of the driver for %u pieces: at most %u", calls, PIECES_MAX, most);
	close_made(&set);
	set_end(&set);
}

/* Whichever call fails: the copy says so, and leaves nothing. */
static void copy_that_fails(unsigned pieces, unsigned from, unsigned step)
{
	static struct set set;
	unsigned fail, silent = 0, left = 0, all;
	int descriptors;
	uint64_t free;

	set_make(&set, pieces, 90, 98);
	descriptors = open_descriptors();
	free = gpu_free_bytes(0) + gpu_free_bytes(1);
	if (counted_copy(&set, 0))
		abort();
	all = tries;
	close_made(&set);
	for (fail = from; fail <= all; fail += step) {
		silent += counted_copy(&set, fail) != -EREMOTEIO || !set.job.text[0] || !set.job.cu_result;
		close_made(&set);
		left += open_descriptors() != descriptors || gpu_free_bytes(0) + gpu_free_bytes(1) != free;
	}
	ok(fail > from && !silent && !left,
	   "%u pieces, a call fails, %u to %u in steps of %u: %u times unnoticed, %u times something is left", pieces,
	   from, all, step, silent, left);
	ok(!counted_copy(&set, 0) && made_is_right(&set), "and the next copy is right%s", set.job.text);
	close_made(&set);
	set_end(&set);
}

/* A chunk of 1024 MiB for each of 64 threads is more than may be pinned. */
static void bounded(struct set *set)
{
	int file = file_new();

	job_make(set, file, 64, 1024);
	ok(!engine_save(&set->job), "too much to pin is not pinned: %s", set->job.text);
	close(file);
}

#define FILLED (64 * MIB)

struct filling {
	struct engine_file file;
	_Atomic uint64_t end;
	_Atomic unsigned failed;
};

/* Blocks of all lengths, filled with where they are, from several threads. */
static void *filling_main(void *argument)
{
	struct filling *filling = argument;
	uint64_t seed = (uint64_t)pthread_self(), at, i, *block = malloc(IMAGE_BLOCK);
	uint32_t length, crc;

	for (;;) {
		length = (uint32_t)(1 + gpu_random(&seed) % (IMAGE_BLOCK / IMAGE_ALIGN)) * IMAGE_ALIGN;
		at = atomic_fetch_add(&filling->end, length);
		if (at + length > FILLED)
			break;
		for (i = 0; i < length / 8; i++)
			block[i] = at + i * 8;
		filling->failed += file_room(&filling->file, at, length) ||
				   file_put(&filling->file, (uint8_t *)block, length, at, &crc);
	}
	free(block);
	return NULL;
}

/* Does this machine make huge pages of a file in memory at all? */
static bool has_huge_pages(void)
{
	int file = file_new();
	struct engine_map map = {};
	bool has = !ftruncate(file, 4 * MIB) && map_begin(&map, file, 4 * MIB, PROT_READ | PROT_WRITE) &&
		   ((*map.at = 1)) && !madvise(map.at, HUGE_PAGE, MADV_COLLAPSE);

	map_end(&map);
	close(file);
	return has;
}

/* KiB of huge pages that this process has mapped of files in memory. */
static unsigned long huge_mapped(void)
{
	char line[256];
	FILE *file = fopen("/proc/self/smaps_rollup", "re");
	unsigned long found = 0;

	while (file && fgets(line, sizeof(line), file))
		sscanf(line, "ShmemPmdMapped: %lu", &found);
	fclose(file);
	return found;
}

/* `present`: so much of the file was there before, as of an earlier image. */
static void filled(uint64_t present)
{
	struct filling filling = {.end = IMAGE_HEADER_SIZE};
	uint64_t at, wrong = 0, least = (FILLED - present - 8 * MIB) / 1024;
	int file = file_new();
	pthread_t thread[8];
	unsigned long huge;
	unsigned i;

	if (present && fallocate(file, 0, 0, (off_t)present))
		abort();
	file_begin(&filling.file, file, FILLED);
	for (i = 0; i < 8; i++)
		pthread_create(&thread[i], NULL, filling_main, &filling);
	for (i = 0; i < 8; i++)
		pthread_join(thread[i], NULL);
	for (at = IMAGE_HEADER_SIZE; at < FILLED - IMAGE_BLOCK; at += 8)
		wrong += *(uint64_t *)(filling.file.map.at + at) != at;
	huge = huge_mapped();
	ok(filling.file.map.at && !filling.failed && !wrong, "%llu MiB filled by 8 threads, %llu there before: %llu wrong",
	   (unsigned long long)(FILLED / MIB), (unsigned long long)(present / MIB), (unsigned long long)wrong);
	if (has_huge_pages())
		ok(huge >= least, "new pages are huge: %lu MiB of them", huge / 1024);
	else
		note("this machine has no huge pages for files in memory");
	file_end(&filling.file);
	close(file);
}

/* A file that somebody cuts off while it is being read. */
static void cut_off(void)
{
	uint8_t *block = malloc(IMAGE_BLOCK);
	struct engine_view view;
	uint32_t crc = 0;
	int file = file_new();

	memset(block, 0xff, IMAGE_BLOCK);
	if (image_pwrite(file, block, IMAGE_BLOCK, 0))
		abort();
	view_begin(&view, file, IMAGE_BLOCK);
	ok(view.map.at && !view_get(&view, block, IMAGE_BLOCK, 0, &crc) && crc == checksum_crc32c(0, block, IMAGE_BLOCK),
	   "a block of a file in memory, and its checksum");
	if (ftruncate(file, IMAGE_BLOCK / 2))
		abort();
	ok(view_get(&view, block, IMAGE_BLOCK, 0, &crc) == -EBADMSG, "a block that is there no more");
	ok(!view_get(&view, block, IMAGE_BLOCK / 2, 0, &crc), "the half that is");
	view_end(&view);
	close(file);
	free(block);
}

int main(void)
{
	static struct set set;
	static const unsigned ways[][2] = {{1, 1}, {2, 4}, {16, 4}, {3, 64}, {8, 256}};
	uint64_t free[2];
	int descriptors;
	unsigned i;

	gpu_open();
	set_make(&set, 1, 0, 1); /* what is made once and kept: contexts, buffers, streams */
	round_trip(&set, 16, 4);
	set_end(&set);

	descriptors = open_descriptors();
	free[0] = gpu_free_bytes(0);
	free[1] = gpu_free_bytes(1);
	for (i = 0; i < sizeof(ways) / sizeof(ways[0]); i++) {
		set_make(&set, 7, i * 25, 4242 + i);
		round_trip(&set, ways[i][0], ways[i][1]);
		set_end(&set);
	}
	copied_with_few_calls();
	copy_that_fails(4, 1, 1);
	copy_that_fails(PIECES_MAX, 350, 100); /* in the second batch */
	set_make(&set, 0, 0, 1);
	round_trip(&set, 16, 4);
	in_parallel();
	written_over(open("/var/tmp", O_RDWR | O_TMPFILE | O_CLOEXEC, 0600), "a disk");
	written_over(file_new(), "memory");

	set_make(&set, 9, 10, 5);
	damaged(&set);
	refused(&set);
	without_space(&set, "3m");
	without_space(&set, "9m"); /* one huge page is had, and the next is not */
	bounded(&set);
	set_end(&set);
	ok(open_descriptors() == descriptors, "no descriptor is left: %d, %d before", open_descriptors(), descriptors);
	ok(gpu_free_bytes(0) == free[0] && gpu_free_bytes(1) == free[1], "no GPU memory is left");
	filled(0);
	filled(27 * MIB);
	cut_off();
	return tap_end();
}
