// SPDX-License-Identifier: MIT
/* A CUDA application to be checkpointed and restored: it holds GPU memory and answers questions about it (protocol.h).
 */
#include <cuda.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "kernels.ptx.h"
#include "protocol.h"

/*
 * The driver is found at run time, so that this builds where there is none; by dlsym, as the CUDA
 * runtime does it. One line per function: the name as it is exported, and its arguments.
 */
#define DRIVER_TABLE(F)                                                                                                \
	F(cuInit, (unsigned))                                                                                          \
	F(cuGetErrorName, (CUresult, const char **))                                                                   \
	F(cuDeviceGet, (CUdevice *, int))                                                                              \
	F(cuDevicePrimaryCtxRetain, (CUcontext *, CUdevice))                                                           \
	F(cuCtxCreate_v2, (CUcontext *, unsigned, CUdevice))                                                           \
	F(cuCtxSetCurrent, (CUcontext))                                                                                \
	F(cuCtxSynchronize, (void))                                                                                    \
	F(cuMemAlloc_v2, (CUdeviceptr *, size_t))                                                                      \
	F(cuMemcpyHtoD_v2, (CUdeviceptr, const void *, size_t))                                                        \
	F(cuMemcpyDtoH_v2, (void *, CUdeviceptr, size_t))                                                              \
	F(cuModuleLoadData, (CUmodule *, const void *))                                                                \
	F(cuModuleGetFunction, (CUfunction *, CUmodule, const char *))                                                 \
	F(cuLaunchKernel, (CUfunction, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, CUstream, \
			   void **, void **))

#define DECLARE(name, args) static CUresult(*p_##name) args;
DRIVER_TABLE(DECLARE)

enum { LAUNCH_BLOCKS = 1024, LAUNCH_THREADS = 256, COPY_WORDS = 16384 };

struct options {
	const char *dir;
	uint64_t words;
	unsigned processes;
	bool when_ask;
	bool create;
	bool copies;
	uint32_t seed;
};

/* One process's GPU state. */
struct gpu {
	CUcontext ctx;
	CUdeviceptr memory; /* the words, followed by eight bytes for the checksum */
	CUfunction fill, checksum;
	uint32_t seed;
	bool copies;        /* no kernels: fill and read by copies */
	const char *failed; /* the function that failed, and its result; NULL if none did */
	CUresult result;
};

struct asked {
	struct stat seen; /* of the file that was read last */
	char nonce[WORKLOAD_NONCE_MAX + 1];
	bool refill;
	uint32_t seed;
};

static void __attribute__((format(printf, 1, 2), noreturn)) fail(const char *format, ...)
{
	va_list args;

	fputs("gpu_app: ", stderr);
	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	fputc('\n', stderr);
	_exit(1);
}

static void find_driver(void)
{
	void *lib = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);

	if (!lib)
		fail("no driver: %s", dlerror());
#define FIND(name, args)                                                                                               \
	if (!(p_##name = dlsym(lib, #name)))                                                                           \
		fail("the driver has no " #name);
	DRIVER_TABLE(FIND)
}

static uint64_t wall_us(void)
{
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	return (uint64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

/* Calls the driver unless something failed before; remembers what failed. */
#define CU(g, call, ...)                                                                                               \
	do {                                                                                                           \
		if (!(g)->failed && ((g)->result = p_##call(__VA_ARGS__)))                                             \
			(g)->failed = #call;                                                                           \
	} while (0)

static void fill_by_copies(struct gpu *g, uint64_t words)
{
	static uint32_t part[COPY_WORDS];

	for (uint64_t at = 0; at < words && !g->failed; at += COPY_WORDS) {
		size_t n = words - at < COPY_WORDS ? words - at : COPY_WORDS;

		for (size_t i = 0; i < n; i++)
			part[i] = ((uint32_t)(at + i) * WORKLOAD_FILL_FACTOR) ^ g->seed;
		CU(g, cuMemcpyHtoD_v2, g->memory + at * 4, part, n * 4);
	}
}

static uint64_t checksum_by_copies(struct gpu *g, uint64_t words)
{
	static uint32_t part[COPY_WORDS];
	uint64_t sum = 0;

	for (uint64_t at = 0; at < words && !g->failed; at += COPY_WORDS) {
		size_t n = words - at < COPY_WORDS ? words - at : COPY_WORDS;

		CU(g, cuMemcpyDtoH_v2, part, g->memory + at * 4, n * 4);
		for (uint64_t i = at; i < at + n; i++)
			sum += (uint64_t)(part[i - at] ^ (uint32_t)i) * (2 * i + 1);
	}
	return sum;
}

static void launch(struct gpu *g, CUfunction f, void **args)
{
	CU(g, cuLaunchKernel, f, LAUNCH_BLOCKS, 1, 1, LAUNCH_THREADS, 1, 1, 0, NULL, args, NULL);
	CU(g, cuCtxSynchronize);
}

static void fill(struct gpu *g, uint64_t words)
{
	void *args[] = {&g->memory, &words, &g->seed};

	if (!words)
		return;
	if (g->copies)
		fill_by_copies(g, words);
	else
		launch(g, g->fill, args);
}

static uint64_t checksum(struct gpu *g, uint64_t words)
{
	CUdeviceptr out = g->memory + words * 4;
	void *args[] = {&g->memory, &words, &out};
	uint64_t sum = 0;

	if (!words) {
		CU(g, cuCtxSynchronize);
		return 0;
	}
	if (g->copies)
		return checksum_by_copies(g, words);
	CU(g, cuMemcpyHtoD_v2, out, &sum, sizeof(sum));
	launch(g, g->checksum, args);
	CU(g, cuMemcpyDtoH_v2, &sum, out, sizeof(sum));
	return sum;
}

/* The first CUDA calls of the process: what a cold application waits for. */
static void make_context(struct gpu *g, bool create)
{
	CUdevice device = 0;

	CU(g, cuInit, 0);
	CU(g, cuDeviceGet, &device, 0);
	if (create) {
		CU(g, cuCtxCreate_v2, &g->ctx, 0, device);
	} else {
		CU(g, cuDevicePrimaryCtxRetain, &g->ctx, device);
		CU(g, cuCtxSetCurrent, g->ctx);
	}
}

static void make_memory(struct gpu *g, const struct options *o)
{
	CUmodule module;

	if (!o->words || g->failed)
		return;
	g->copies = o->copies || p_cuModuleLoadData(&module, workload_ptx);
	if (!g->copies) {
		CU(g, cuModuleGetFunction, &g->fill, module, "cudapool_fill");
		CU(g, cuModuleGetFunction, &g->checksum, module, "cudapool_checksum");
	}
	CU(g, cuMemAlloc_v2, &g->memory, o->words * 4 + 8);
	fill(g, o->words);
}

/* True if there is a question that was not answered yet. */
static bool new_question(const char *path, struct asked *asked)
{
	char line[WORKLOAD_NONCE_MAX + 16] = "", nonce[WORKLOAD_NONCE_MAX + 1];
	struct stat st;
	int fd, n;

	if (stat(path, &st) || (st.st_ino == asked->seen.st_ino && st.st_mtim.tv_sec == asked->seen.st_mtim.tv_sec &&
				st.st_mtim.tv_nsec == asked->seen.st_mtim.tv_nsec))
		return false;
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return false;
	n = read(fd, line, sizeof(line) - 1);
	close(fd);
	if (n <= 0)
		return false;
	asked->seen = st;
	n = sscanf(line, "%64[0-9A-Za-z] %u", nonce, &asked->seed);
	if (n < 1 || !strcmp(nonce, asked->nonce))
		return false;
	asked->refill = n == 2;
	strcpy(asked->nonce, nonce);
	return true;
}

static void write_answer(const char *dir, unsigned index, const char *text, int length)
{
	char name[PATH_MAX], tmp[PATH_MAX + 4];
	int fd;

	snprintf(name, sizeof(name), index ? "%s/answer.%u" : "%s/answer", dir, index);
	snprintf(tmp, sizeof(tmp), "%s.tmp", name);
	fd = open(tmp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
	if (fd < 0 || write(fd, text, length) != length || close(fd) || rename(tmp, name))
		fail("cannot write %s: %s", name, strerror(errno));
}

static int append(char *text, int at, const char *format, ...) __attribute__((format(printf, 3, 4)));
static int append(char *text, int at, const char *format, ...)
{
	va_list args;
	int n;

	va_start(args, format);
	n = vsnprintf(text + at, WORKLOAD_ANSWER_MAX - at, format, args);
	va_end(args);
	if (n < 0 || n >= WORKLOAD_ANSWER_MAX - at)
		fail("an answer is longer than %d bytes", WORKLOAD_ANSWER_MAX);
	return at + n;
}

static void answer(const struct options *o, struct gpu *g, struct asked *asked, unsigned index, uint64_t counter)
{
	uint64_t start = wall_us(), first_call_us = 0, sum;
	bool first = !g->ctx && !g->failed;
	char text[WORKLOAD_ANSWER_MAX];
	const char *error = NULL;
	int n;

	if (first) {
		make_context(g, o->create);
		first_call_us = wall_us() - start;
		make_memory(g, o);
	}
	CU(g, cuCtxSetCurrent, g->ctx);
	if (asked->refill) {
		g->seed = asked->seed + index;
		fill(g, o->words);
	}
	sum = checksum(g, o->words);

	n = append(text, 0, "{\"nonce\":\"%s\",\"index\":%u,\"pid\":%d,\"counter\":%llu", asked->nonce, index, getpid(),
		   (unsigned long long)counter);
	if (first)
		n = append(text, n, ",\"first_call_us\":%llu", (unsigned long long)first_call_us);
	if (g->failed) {
		p_cuGetErrorName(g->result, &error);
		n = append(text, n, ",\"error\":\"%s: %s (%d)\"", g->failed, error ? error : "?", g->result);
	} else {
		n = append(text, n,
			   ",\"words\":%llu,\"seed\":%u,\"checksum\":\"%016llx\",\"context\":\"%p\",\"copies\":%s",
			   (unsigned long long)o->words, g->seed, (unsigned long long)sum, (void *)g->ctx,
			   g->copies ? "true" : "false");
	}
	n = append(text, n, ",\"answer_us\":%llu}\n", (unsigned long long)(wall_us() - start));
	write_answer(o->dir, index, text, n);
}

static void terminated(int signal)
{
	_exit(0);
}

/* Children say by a byte that they can be asked; the root waits for all of them and says READY. */
static void all_ready(const struct options *o, unsigned index, const int ready[2])
{
	char byte = 0;

	if (index) {
		if (write(ready[1], &byte, 1) != 1)
			fail("cannot say that it is ready: %s", strerror(errno));
		close(ready[1]);
		return;
	}
	close(ready[1]);
	for (unsigned i = 1; i < o->processes; i++)
		if (read(ready[0], &byte, 1) != 1)
			fail("a child did not become ready");
	close(ready[0]);
	puts("READY");
	fflush(stdout);
}

/* One process of the tree, from before its first CUDA call on. */
static void __attribute__((noreturn)) serve(const struct options *o, unsigned index, const int ready[2])
{
	const struct timespec nap = {.tv_nsec = WORKLOAD_POLL_NS};
	struct gpu g = {.seed = o->seed + index};
	struct asked asked = {0};
	char ask[PATH_MAX];
	uint64_t counter = 0;

	find_driver();
	if (!o->when_ask) {
		make_context(&g, o->create);
		make_memory(&g, o);
		if (g.failed)
			fail("%s: error %d", g.failed, g.result);
	}
	all_ready(o, index, ready);

	snprintf(ask, sizeof(ask), "%s/ask", o->dir);
	for (;;) {
		if (new_question(ask, &asked))
			answer(o, &g, &asked, index, ++counter);
		nanosleep(&nap, NULL);
	}
}

static const char usage[] = "usage: gpu_app --dir DIR [options]\n"
			    "  --dir DIR           where it is asked and answers (workloads/protocol.h)\n"
			    "  --memory MIB        GPU memory of each process; 0 (default): an empty context\n"
			    "  --processes N       processes that use the GPU: the first and N - 1 children, forked "
			    "before CUDA (default 1)\n"
			    "  --when start|ask    use CUDA at the start (default), or not before the first question\n"
			    "  --api primary|create  the device's primary context (default), or one of cuCtxCreate\n"
			    "  --by kernel|copy    fill and read the memory by kernels (default), or by copies\n"
			    "  --seed N            what the memory is filled with (default 1)\n";

static uint64_t number(const char *name, const char *text, uint64_t min, uint64_t max)
{
	unsigned long long value;
	char *end;

	errno = 0;
	value = strtoull(text, &end, 10);
	if (errno || *end || end == text || *text == '-' || value < min || value > max)
		fail("--%s: '%s' is not a number from %llu to %llu", name, text, (unsigned long long)min,
		     (unsigned long long)max);
	return value;
}

static bool choice(const char *name, const char *text, const char *no, const char *yes)
{
	if (strcmp(text, no) && strcmp(text, yes))
		fail("--%s: '%s' is neither %s nor %s", name, text, no, yes);
	return !strcmp(text, yes);
}

static void parse(int argc, char **argv, struct options *o)
{
	static const struct option longs[] = {
		{"dir", required_argument, NULL, 'd'},
		{"memory", required_argument, NULL, 'm'},
		{"processes", required_argument, NULL, 'p'},
		{"when", required_argument, NULL, 'w'},
		{"api", required_argument, NULL, 'a'},
		{"by", required_argument, NULL, 'b'},
		{"seed", required_argument, NULL, 's'},
		{"help", no_argument, NULL, 'h'},
		{0},
	};
	int c;

	while ((c = getopt_long(argc, argv, "", longs, NULL)) != -1) {
		switch (c) {
		case 'd':
			o->dir = optarg;
			break;
		case 'm':
			o->words = number("memory", optarg, 0, 1 << 20) << 18;
			break;
		case 'p':
			o->processes = number("processes", optarg, 1, 64);
			break;
		case 'w':
			o->when_ask = choice("when", optarg, "start", "ask");
			break;
		case 'a':
			o->create = choice("api", optarg, "primary", "create");
			break;
		case 'b':
			o->copies = choice("by", optarg, "kernel", "copy");
			break;
		case 's':
			o->seed = number("seed", optarg, 0, UINT32_MAX);
			break;
		case 'h':
			fputs(usage, stdout);
			exit(0);
		default:
			fputs(usage, stderr);
			exit(2);
		}
	}
	if (!o->dir || optind != argc || strlen(o->dir) > PATH_MAX - 32) {
		fputs(usage, stderr);
		exit(2);
	}
}

int main(int argc, char **argv)
{
	struct options o = {.processes = 1, .seed = 1};
	struct sigaction term = {.sa_handler = terminated};
	pid_t root = getpid();
	int ready[2];

	parse(argc, argv, &o);
	sigaction(SIGTERM, &term, NULL); /* the root of a container gets no default action */
	if (pipe2(ready, O_CLOEXEC))
		fail("no pipe: %s", strerror(errno));

	/* A process that used CUDA cannot fork others that use it: the children come first. */
	for (unsigned i = 1; i < o.processes; i++) {
		pid_t pid = fork();

		if (pid < 0)
			fail("cannot fork: %s", strerror(errno));
		if (!pid) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			if (getppid() != root)
				_exit(1);
			close(ready[0]);
			serve(&o, i, ready);
		}
	}
	signal(SIGCHLD, SIG_IGN);
	serve(&o, 0, ready);
}
