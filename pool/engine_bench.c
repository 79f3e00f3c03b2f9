// SPDX-License-Identifier: MIT
/* Measures the engine on this machine: saving, loading and copying GPU memory, as JSON. */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "build.h"
#include "engine_internal.h"
#include "json.h"
#include "worker.h"

#define ROUNDS_MOST 100
#define PIECES_MOST 65536
#define MIB         (1ull << 20)

static const char help[] = "engine-bench: how fast GPU memory is saved to a file, loaded from it, and copied\n"
			   "\n"
			   "Usage: engine-bench FILE [OPTION...]     FILE is written and removed again\n"
			   "\n"
			   "  --mib N         GPU memory to move (1024)\n"
			   "  --piece-mib N   in pieces of so much (32)\n"
			   "  --zero N        percent of the blocks that are zero (0)\n"
			   "  --threads N     copying threads (16)\n"
			   "  --chunk-mb N    MiB that one copy moves (4)\n"
			   "  --rounds N      how often (5)\n"
			   "  --reuse         save to the same pages again, instead of to a new file\n"
			   "\n"
			   "CUDAPOOL_LIBCUDA names the driver library. Times are of whole jobs: importing, allocating "
			   "and mapping are included.\n";

static struct {
	unsigned mib, piece_mib, zero, threads, chunk_mb, rounds, reuse;
} options = {1024, 32, 0, WORKER_STREAMS, WORKER_CHUNK_MB, 5, 0};

static struct driver driver;
static struct image_piece *piece;
static int *source, *target;
static unsigned pieces;

static int take(struct engine_job *job, uint32_t number)
{
	return fcntl(source[number], F_DUPFD_CLOEXEC, 0);
}

static int made(struct engine_job *job, uint32_t first, uint32_t count, const int *fds)
{
	memcpy(target + first, fds, count * sizeof(*fds));
	return 0;
}

static double now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

static int fail(const char *what, const char *why)
{
	fprintf(stderr, "engine-bench: %s: %s\n", what, why);
	return 1;
}

/* Pieces on device 0, filled with numbers, or not. */
static int make_pieces(char *text)
{
	uint64_t bytes = options.piece_mib * MIB, at, seed = 88172645463325252u, *block = malloc(IMAGE_BLOCK);
	struct mapping mapping = {};
	CUresult cu;
	unsigned i, k;
	int err = block ? device_enter(0, text, &cu) : -ENOMEM;

	for (i = 0; !err && i < pieces; i++) {
		piece[i].bytes = bytes;
		err = mapping_create(&mapping, 0, bytes, false, text, &cu);
		if (err)
			break;
		driver.cuMemsetD8Async(mapping.range.start, 0, bytes, NULL);
		for (at = 0; at < bytes; at += IMAGE_BLOCK) {
			for (k = 0; k < IMAGE_BLOCK / 8; k++) {
				seed ^= seed << 13;
				seed ^= seed >> 7;
				block[k] = seed ^= seed << 17;
			}
			if (seed % 100 >= options.zero)
				driver.cuMemcpyHtoDAsync(mapping.range.start + at, block, IMAGE_BLOCK, NULL);
			driver.cuStreamSynchronize(NULL);
		}
		source[i] = memory_export(mapping.memory, text, &cu);
		if (source[i] < 0)
			err = source[i];
		mapping_end(&mapping);
	}
	free(block);
	return err;
}

/* One job; what it took, in milliseconds, or a negative number. */
static double measure(int (*run)(struct engine_job *job), int file, uint64_t *stored)
{
	struct engine_job job = {.threads = options.threads,
				 .chunk_mb = options.chunk_mb,
				 .file = file,
				 .header = {.devices = 1},
				 .piece = piece,
				 .pieces = pieces,
				 .take = take,
				 .made = made};
	double begun;
	CUuuid uuid;
	unsigned i;
	int err;

	driver.cuDeviceGetUuid(&uuid, 0);
	memcpy(job.header.uuid[0], uuid.bytes, sizeof(uuid.bytes));
	for (i = 0; i < pieces; i++)
		target[i] = -1;
	begun = now();
	err = run(&job);
	begun = (now() - begun) * 1e3;
	for (i = 0; i < pieces; i++)
		if (target[i] >= 0)
			close(target[i]);
	if (err) {
		fail("a job failed", job.text);
		return -1;
	}
	if (job.stored)
		*stored = job.stored;
	return begun;
}

/* Samples as they came, in microseconds, and the best of them as a rate. */
static void tell(struct cudapool_json *json, const char *name, const double *ms)
{
	double best = ms[0];
	unsigned i;

	cudapool_json_open(json, name, '{');
	cudapool_json_open(json, "us", '[');
	for (i = 0; i < options.rounds; i++) {
		best = ms[i] < best ? ms[i] : best;
		cudapool_json_number(json, NULL, (long long)(ms[i] * 1e3));
	}
	cudapool_json_close(json, ']');
	cudapool_json_number(json, "best_mb_per_s", (long long)(options.mib * 1.048576 / best * 1e3));
	cudapool_json_close(json, '}');
}

static int bench(const char *path, int file)
{
	static double save[ROUNDS_MOST], load[ROUNDS_MOST], copy[ROUNDS_MOST];
	static char out[16384];
	struct cudapool_json json = {.out = out, .size = sizeof(out)};
	uint64_t stored = 0;
	unsigned i;

	for (i = 0; i < options.rounds; i++) {
		if (!options.reuse && ftruncate(file, 0))
			return fail(path, strerror(errno));
		save[i] = measure(engine_save, file, &stored);
		load[i] = save[i] < 0 ? -1 : measure(engine_load, file, &stored);
		copy[i] = load[i] < 0 ? -1 : measure(engine_copy, -1, &stored);
		if (copy[i] < 0)
			return 1;
	}
	cudapool_json_open(&json, NULL, '{');
	cudapool_json_string(&json, "schema", "cudapool.engine/1");
	cudapool_json_string(&json, "build", build_name());
	cudapool_json_string(&json, "file", path);
	cudapool_json_number(&json, "mib", options.mib);
	cudapool_json_number(&json, "pieces", pieces);
	cudapool_json_number(&json, "zero_percent", options.zero);
	cudapool_json_number(&json, "threads", options.threads);
	cudapool_json_number(&json, "chunk_mb", options.chunk_mb);
	cudapool_json_bool(&json, "reuse", options.reuse);
	cudapool_json_number(&json, "stored_mib", (long long)(stored / MIB));
	tell(&json, "save", save);
	tell(&json, "load", load);
	tell(&json, "copy", copy);
	cudapool_json_close(&json, '}');
	if (cudapool_json_end(&json) < 0)
		return 1;
	puts(out);
	return 0;
}

static bool number(const char *from, unsigned least, unsigned most, unsigned *to)
{
	char *end;
	unsigned long value = strtoul(from, &end, 10);

	*to = (unsigned)value;
	return *from && !*end && value >= least && value <= most;
}

int main(int argc, char **argv)
{
	static const struct option flags[] = {
		{"mib", required_argument, NULL, 'm'},
		{"piece-mib", required_argument, NULL, 'p'},
		{"zero", required_argument, NULL, 'z'},
		{"threads", required_argument, NULL, 't'},
		{"chunk-mb", required_argument, NULL, 'c'},
		{"rounds", required_argument, NULL, 'r'},
		{"reuse", no_argument, NULL, 'u'},
		{"help", no_argument, NULL, 'h'},
		{0},
	};
	const char *library = getenv("CUDAPOOL_LIBCUDA");
	char text[CUDAPOOL_TEXT_LEN] = "";
	int flag, file, status;
	bool good = true;

	while ((flag = getopt_long(argc, argv, "", flags, NULL)) != -1) {
		if (flag == 'h') {
			fputs(help, stdout);
			return 0;
		}
		good &= flag == 'u'   ? (options.reuse = 1)
			: flag == 'm' ? number(optarg, 1, 1 << 20, &options.mib)
			: flag == 'p' ? number(optarg, 2, 1 << 16, &options.piece_mib) && options.piece_mib % 2 == 0
			: flag == 'z' ? number(optarg, 0, 100, &options.zero)
			: flag == 't' ? number(optarg, 1, ENGINE_THREADS_MOST, &options.threads)
			: flag == 'c' ? number(optarg, 1, ENGINE_CHUNK_MOST, &options.chunk_mb)
			: flag == 'r' ? number(optarg, 1, ROUNDS_MOST, &options.rounds)
				      : false;
	}
	pieces = options.mib / options.piece_mib;
	if (!good || optind + 1 != argc || !pieces || pieces > PIECES_MOST) {
		fprintf(stderr, "engine-bench: the command line is wrong; see --help\n");
		return 2;
	}
	options.mib = pieces * options.piece_mib;
	piece = calloc(pieces, sizeof(*piece));
	source = calloc(pieces, sizeof(*source));
	target = calloc(pieces, sizeof(*target));
	if (!piece || !source || !target)
		return fail("memory", strerror(ENOMEM));
	if (driver_load(&driver, library ? library : "libcuda.so.1", text, sizeof(text)))
		return fail("no driver", text);
	if (driver.cuInit(0) != CUDA_SUCCESS || engine_init(&driver, text))
		return fail("the driver cannot be used", text[0] ? text : "cuInit failed");
	if (make_pieces(text))
		return fail("making GPU memory", text);
	file = open(argv[optind], O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (file < 0)
		return fail(argv[optind], strerror(errno));
	engine_warm(options.threads, options.chunk_mb);
	status = bench(argv[optind], file);
	unlink(argv[optind]);
	close(file);
	return status;
}
