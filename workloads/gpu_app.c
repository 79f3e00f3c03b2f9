// SPDX-License-Identifier: MIT
/* A CUDA application to be checkpointed and restored: it holds GPU memory and answers questions about it (protocol.h).
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <limits.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

#include "asked.h"
#include "gpu_memory.h"

struct options {
	const char *dir;
	struct gpu_shape shape;
	unsigned processes;
	bool when_ask;
	bool replace; /* free and allocate before each answer but the first */
	uint32_t seed;
};

static void answer(const struct options *o, struct gpu *g, struct asked *asked, unsigned index, uint64_t counter)
{
	uint64_t start = wall_us(), first_call_us = 0, sum;
	bool first = !g->device[0].ctx && !g->failed;
	struct answer text = {0};

	if (first) {
		gpu_contexts(g);
		first_call_us = wall_us() - start;
		gpu_make(g);
	}
	if (o->replace && counter > 1)
		gpu_replace(g, counter % g->shape.pieces);
	if (asked->refill) {
		g->seed = asked->seed + index;
		gpu_fill(g);
	}
	sum = gpu_checksum(g);

	append(&text, "{\"nonce\":\"%s\",\"index\":%u,\"pid\":%d,\"counter\":%llu", asked->nonce, index, getpid(),
		   (unsigned long long)counter);
	if (first)
		append(&text, ",\"first_call_us\":%llu", (unsigned long long)first_call_us);
	if (g->failed) {
		append(&text, ",\"error\":\"%s: %s (%d)\"", g->failed, gpu_error_name(g->result), g->result);
	} else {
		append(&text,
			   ",\"words\":%llu,\"seed\":%u,\"checksum\":\"%016llx\",\"context\":\"%p\",\"copies\":%s",
			   (unsigned long long)g->shape.words, g->seed, (unsigned long long)sum,
			   (void *)g->device[0].ctx, g->copies ? "true" : "false");
	}
	if (g->shape.busy)
		append(&text, ",\"steps\":%llu,\"wrong\":%llu", (unsigned long long)g->steps,
			   (unsigned long long)g->wrong);
	append(&text, ",\"answer_us\":%llu}\n", (unsigned long long)(wall_us() - start));
	write_answer(o->dir, index, &text);
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
	/* With work in flight it looks more often, or there would be none most of the time. */
	const struct timespec nap = {.tv_nsec = o->shape.busy ? WORKLOAD_POLL_NS / 10 : WORKLOAD_POLL_NS};
	struct gpu g = {.shape = o->shape, .seed = o->seed + index};
	struct asked asked = {0};
	const char *why = gpu_find_driver();
	char ask[PATH_MAX];
	uint64_t counter = 0;

	if (why)
		fail("no driver: %s", why);
	if (!o->when_ask) {
		gpu_contexts(&g);
		gpu_make(&g);
		if (g.failed)
			fail("%s: %s (%d)", g.failed, gpu_error_name(g.result), g.result);
	}
	all_ready(o, index, ready);

	snprintf(ask, sizeof(ask), "%s/ask", o->dir);
	for (;;) {
		if (new_question(ask, &asked))
			answer(o, &g, &asked, index, ++counter);
		gpu_work(&g);
		nanosleep(&nap, NULL);
	}
}

static const char usage[] = "usage: gpu_app --dir DIR [options]\n"
			    "  --dir DIR           where it is asked and answers (workloads/protocol.h)\n"
			    "  --memory MIB        GPU memory of each process; 0 (default): an empty context\n"
			    "  --filled MIB        of that, not zero (default: all)\n"
			    "  --pieces N          allocations that make up the memory (default 1)\n"
			    "  --kind KIND         how it is allocated: alloc (default), map (its own cuMemCreate), ordered "
			    "(cuMemAllocAsync), managed\n"
			    "  --devices N         devices that the pieces are spread over (default 1)\n"
			    "  --busy              work on the memory is in flight all the time\n"
			    "  --replace           frees and allocates a piece before each answer but the first\n"
			    "  --processes N       processes that use the GPU: the first and N - 1 children, forked "
			    "before CUDA (default 1)\n"
			    "  --when start|ask    use CUDA at the start (default), or not before the first question\n"
			    "  --api primary|create  the device's primary context (default), or one of cuCtxCreate\n"
			    "  --by kernel|copy    fill and read the memory by kernels (default), or by copies; those of\n"
			    "                      --kind alloc with the next device's context current\n"
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

/* Which of these words it is. */
static unsigned choice(const char *name, const char *text, const char *const *words)
{
	for (unsigned i = 0; words[i]; i++)
		if (!strcmp(text, words[i]))
			return i;
	fail("--%s: '%s' is not known; --help lists what is", name, text);
}

static void parse(int argc, char **argv, struct options *o)
{
	static const char *const whens[] = {"start", "ask", NULL}, *const apis[] = {"primary", "create", NULL},
				 *const bys[] = {"kernel", "copy", NULL},
				 *const kinds[] = {"alloc", "map", "ordered", "managed", NULL}; /* enum gpu_kind */
	static const struct option longs[] = {
		{"dir", required_argument, NULL, 'd'},	   {"memory", required_argument, NULL, 'm'},
		{"filled", required_argument, NULL, 'f'},  {"pieces", required_argument, NULL, 'n'},
		{"kind", required_argument, NULL, 'k'},	   {"devices", required_argument, NULL, 'g'},
		{"busy", no_argument, NULL, 'u'},	   {"replace", no_argument, NULL, 'r'},
		{"processes", required_argument, NULL, 'p'}, {"when", required_argument, NULL, 'w'},
		{"api", required_argument, NULL, 'a'},	   {"by", required_argument, NULL, 'b'},
		{"seed", required_argument, NULL, 's'},	   {"help", no_argument, NULL, 'h'},
		{0},
	};
	struct gpu_shape *shape = &o->shape;
	uint64_t filled_mib = UINT64_MAX;
	int c;

	while ((c = getopt_long(argc, argv, "", longs, NULL)) != -1) {
		switch (c) {
		case 'd':
			o->dir = optarg;
			break;
		case 'm':
			shape->words = number("memory", optarg, 0, 1 << 20) << 18;
			break;
		case 'f':
			filled_mib = number("filled", optarg, 0, 1 << 20);
			break;
		case 'n':
			shape->pieces = number("pieces", optarg, 1, 1 << 18);
			break;
		case 'k':
			shape->kind = choice("kind", optarg, kinds);
			break;
		case 'g':
			shape->devices = number("devices", optarg, 1, GPU_DEVICES);
			break;
		case 'u':
			shape->busy = true;
			break;
		case 'r':
			o->replace = true;
			break;
		case 'p':
			o->processes = number("processes", optarg, 1, 64);
			break;
		case 'w':
			o->when_ask = choice("when", optarg, whens);
			break;
		case 'a':
			shape->create = choice("api", optarg, apis);
			break;
		case 'b':
			shape->copies = choice("by", optarg, bys);
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
	shape->filled = filled_mib == UINT64_MAX ? shape->words : filled_mib << 18;
	if (shape->filled > shape->words)
		fail("--filled: more than --memory");
	if (shape->words % shape->pieces || shape->filled % shape->pieces)
		fail("--pieces: --memory and --filled cannot be cut into %u equal pieces", shape->pieces);
}

int main(int argc, char **argv)
{
	struct options o = {.shape = {.pieces = 1, .devices = 1}, .processes = 1, .seed = 1};
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
