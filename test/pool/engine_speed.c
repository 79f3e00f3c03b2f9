// SPDX-License-Identifier: MIT
/*
 * How fast the engine moves data to and from a file in memory, checksums included, beside a parallel memcpy of as much
 * with as many threads and chunks of the same size, in turns, by the wall clock. memcpy goes from memory to memory, all
 * of it mapped beforehand; the engine gets a file whose pages are there from an earlier round, and has to map it each
 * time. The file is in a tmpfs with huge pages, as docs/operations.md advises. One with small pages, where mapping
 * takes longer than copying, is measured beside it, against a memcpy that maps such a file as well.
 * Usage: engine_speed [THREADS [MIB [ROUNDS [LEAST]]]]: passes if saving and loading reach LEAST percent.
 */
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "gpu.h"
#include "tap.h"
#include "worker.h"

#define PIECE      (64ull << 20)
#define PIECES_MAX 256
#define ROUNDS_MAX 99

static unsigned threads = 2, pieces = 6, rounds = 5, least = 70;
static struct image_piece piece[PIECES_MAX];
static int fd[PIECES_MAX];

static double now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

static double gb_per_s(double since)
{
	return (double)pieces * PIECE / 1e9 / (now() - since);
}

/* ---- the memcpy ---------------------------------------------------------------------------------- */

static uint8_t *from, *to; /* as long as all pieces */


static void *copy_main(void *argument)
{
	const uint64_t chunk = (uint64_t)WORKER_CHUNK_MB << 20;
	_Atomic uint64_t *cursor = argument;
	uint64_t at;

	while ((at = atomic_fetch_add(cursor, chunk)) < pieces * PIECE)
		memcpy(to + at, from + at, chunk);
	return NULL;
}

static double plain_copy(void)
{
	pthread_t thread[ENGINE_THREADS_MOST];
	_Atomic uint64_t cursor = 0;
	double begun = now();
	unsigned i;

	for (i = 0; i < threads; i++)
		pthread_create(&thread[i], NULL, copy_main, &cursor);
	for (i = 0; i < threads; i++)
		pthread_join(thread[i], NULL);
	return gb_per_s(begun);
}

/* Memory as the software driver's and the file's is. */
static uint8_t *memory(void)
{
	int file = memfd_create("memory", MFD_CLOEXEC);
	uint8_t *at;

	if (file < 0 || ftruncate(file, (off_t)(pieces * PIECE)))
		exit(1);
	at = mmap(NULL, pieces * PIECE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, file, 0);
	close(file);
	if (at == MAP_FAILED)
		exit(1);
	memset(at, 1, pieces * PIECE);
	return at;
}

/* ---- GPU memory ------------------------------------------------------------------------------------ */

/*
 * A GPU's memory is there. The software driver's is a file, which is faulted in page by page after each mapping, and
 * that takes longer than copying. So memory here is made and mapped once, by the software driver, and what the engine
 * calls finds it: sources by their descriptor, in the order in which they are taken, and new memory from a list.
 */
struct memory {
	struct mapping mapping;
	bool used;
};
static struct memory source[PIECES_MAX], target[PIECES_MAX];
static unsigned next_source;
static struct memory *latest; /* the engine makes an allocation and its address one after the other, in one thread */

static CUresult find_source(CUmemGenericAllocationHandle *handle, void *shareable, CUmemAllocationHandleType type)
{
	latest = &source[next_source++ % pieces];
	*handle = latest->mapping.memory;
	return CUDA_SUCCESS;
}

static CUresult find_target(CUmemGenericAllocationHandle *handle, size_t size, const CUmemAllocationProp *prop,
			    unsigned long long flags)
{
	unsigned i;

	for (i = 0; i < pieces && target[i].used; i++)
		;
	if (i == pieces || size != PIECE)
		return CUDA_ERROR_OUT_OF_MEMORY;
	latest = &target[i];
	latest->used = true;
	*handle = latest->mapping.memory;
	return CUDA_SUCCESS;
}

static CUresult find_address(CUdeviceptr *at, size_t size, size_t alignment, CUdeviceptr address,
			     unsigned long long flags)
{
	*at = latest->mapping.range.start;
	return CUDA_SUCCESS;
}

static CUresult is_mapped(CUdeviceptr at, size_t size, size_t offset, CUmemGenericAllocationHandle handle,
			  unsigned long long flags)
{
	return CUDA_SUCCESS;
}

static CUresult has_access(CUdeviceptr at, size_t size, const CUmemAccessDesc *access, size_t count)
{
	return CUDA_SUCCESS;
}

static CUresult stays_mapped(CUdeviceptr at, size_t size)
{
	return CUDA_SUCCESS;
}

/*
 * The software driver copies with threads of its own, one for each stream: with them the engine would have twice as
 * many as memcpy has. Here the thread that asks for a copy makes it, so what it asks for is done at once.
 */
static __typeof__(cuMemcpyHtoD_v2) *copy_to_gpu;
static __typeof__(cuMemcpyDtoH_v2) *copy_from_gpu;

static CUresult to_gpu_at_once(CUdeviceptr at, const void *memory, size_t bytes, CUstream stream)
{
	return copy_to_gpu(at, memory, bytes);
}

static CUresult from_gpu_at_once(void *memory, CUdeviceptr at, size_t bytes, CUstream stream)
{
	return copy_from_gpu(memory, at, bytes);
}

static CUresult is_recorded(CUevent event, CUstream stream)
{
	return CUDA_SUCCESS;
}

static CUresult has_happened(CUevent event)
{
	return CUDA_SUCCESS;
}

static CUresult give_back(CUmemGenericAllocationHandle handle)
{
	unsigned i;

	for (i = 0; i < pieces; i++)
		if (target[i].mapping.memory == handle)
			target[i].used = false;
	return CUDA_SUCCESS;
}

static void make_memory(void)
{
	unsigned i;

	for (i = 0; i < pieces; i++) {
		piece[i].bytes = PIECE;
		fd[i] = gpu_piece(0, PIECE, &source[i].mapping);
		gpu_write(0, source[i].mapping.range.start, from + i * PIECE, PIECE);
		close(gpu_piece(0, PIECE, &target[i].mapping));
		gpu_write(0, target[i].mapping.range.start, to + i * PIECE, PIECE);
	}
	/* Per-thread streams: those of different threads do not wait for each other. */
	copy_to_gpu = gpu_function("cuMemcpyHtoD_v2_ptds");
	copy_from_gpu = gpu_function("cuMemcpyDtoH_v2_ptds");
	if (!copy_to_gpu || !copy_from_gpu)
		exit(1);
	gpu.cuMemcpyHtoDAsync = to_gpu_at_once;
	gpu.cuMemcpyDtoHAsync = from_gpu_at_once;
	gpu.cuEventRecord = is_recorded;
	gpu.cuEventSynchronize = has_happened;
	gpu.cuMemImportFromShareableHandle = find_source;
	gpu.cuMemCreate = find_target;
	gpu.cuMemAddressReserve = find_address;
	gpu.cuMemMap = is_mapped;
	gpu.cuMemSetAccess = has_access;
	gpu.cuMemUnmap = stays_mapped;
	gpu.cuMemAddressFree = stays_mapped;
	gpu.cuMemRelease = give_back;
}

/* Is what was loaded what was saved? */
static bool arrived(void)
{
	unsigned i;

	for (i = 0; i < pieces; i++) {
		if (copy_from_gpu(to, target[i].mapping.range.start, PIECE))
			return false;
		if (memcmp(to, from + i * PIECE, PIECE))
			return false;
	}
	return true;
}

/* ---- the engine ---------------------------------------------------------------------------------- */

static int take(struct engine_job *job, uint32_t number)
{
	return fcntl(fd[number], F_DUPFD_CLOEXEC, 0);
}

static int made(struct engine_job *job, uint32_t first, uint32_t count, const int *fds)
{
	while (count)
		close(fds[--count]);
	return 0;
}

static double engine(int (*run)(struct engine_job *job), int file)
{
	struct engine_job job = {.threads = threads,
				 .chunk_mb = WORKER_CHUNK_MB,
				 .file = file,
				 .header = {.devices = 1},
				 .piece = piece,
				 .pieces = pieces,
				 .take = take,
				 .made = made};
	double begun;

	gpu_uuid(0, job.header.uuid[0]);
	begun = now();
	if (run(&job)) {
		fprintf(stderr, "%s\n", job.text);
		exit(1);
	}
	return gb_per_s(begun);
}

static int ascending(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return x < y ? -1 : x > y;
}

static double median(double *samples)
{
	qsort(samples, rounds, sizeof(*samples), ascending);
	return samples[rounds / 2];
}

/* A new file in a tmpfs of its own that gives huge pages by itself, or else in the kernel's. */
static int new_file(bool huge)
{
	int root, file;

	if (!huge)
		return memfd_create("image", MFD_CLOEXEC);
	root = memory_fs("huge", "within_size");
	file = openat(root, ".", O_RDWR | O_TMPFILE | O_CLOEXEC, 0600);
	close(root);
	return file;
}

static bool enough(const char *what, double reached, double beside)
{
	return ok(reached >= beside * least / 100, "%u threads %s at %.2f of a parallel memcpy (%.1f of %.1f GB/s)",
		  threads, what, reached / beside, reached, beside);
}

/* The first round is not counted: it allocates the file's pages. */
static void compare(bool huge)
{
	static double copied[ROUNDS_MAX], saved[ROUNDS_MAX], loaded[ROUNDS_MAX];
	const char *where = huge ? "a tmpfs with huge pages" : "a tmpfs as it is";
	int file = new_file(huge);
	unsigned i;

	if (file < 0) {
		ok(huge, "%s # SKIP it cannot be mounted here: that needs root", where);
		return;
	}
	engine(engine_save, file);
	engine(engine_load, file);
	for (i = 0; i < rounds; i++) {
		copied[i] = plain_copy();
		saved[i] = engine(engine_save, file);
		loaded[i] = engine(engine_load, file);
		note("memcpy %.1f, save %.1f, load %.1f GB/s", copied[i], saved[i], loaded[i]);
	}
	ok(arrived(), "%s: what was saved was loaded", where);
	enough("save", median(saved), median(copied));
	enough("load", median(loaded), median(copied));
	close(file);
}

int main(int argc, char **argv)
{
	uint64_t seed = 42;
	unsigned i;

	threads = argc > 1 ? (unsigned)atoi(argv[1]) : threads;
	pieces = argc > 2 ? (unsigned)((uint64_t)atoi(argv[2]) * (1 << 20) / PIECE) : pieces;
	rounds = argc > 3 ? (unsigned)atoi(argv[3]) : rounds;
	least = argc > 4 ? (unsigned)atoi(argv[4]) : least;
	if (!threads || threads > ENGINE_THREADS_MOST || !pieces || pieces > PIECES_MAX || !rounds ||
	    rounds > ROUNDS_MAX)
		return 2;
	gpu_open();
	from = memory();
	to = memory();
	for (i = 0; i < pieces * PIECE / 8; i++)
		((uint64_t *)from)[i] = gpu_random(&seed);
	make_memory();
	compare(true);
	compare(false);
	return tap_end();
}
