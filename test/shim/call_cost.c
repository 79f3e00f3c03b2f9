// SPDX-License-Identifier: MIT
/* What the shim adds to a driver call that needs no action: runs itself without and with it, and prints JSON. */
#include "api.h"

#include <pthread.h>
#include <stdbool.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/*
 * Where the driver's call takes a contended lock, a nanosecond before the call, whoever spends it, may change its time
 * by more than a nanosecond. So each number has two others beside it that say what it means: the same without the shim
 * once more, and without the shim but through a function of ours that does about what the shim's wrapper does. The four
 * are taken in turn, there and back, each time in a process of its own.
 */
static const char *const variants[] = {"without", "control", "with", "again"};

static const struct {
	const char *function;
	int threads;
} cases[] = {
	{"cuCtxGetCurrent", 1},
	{"cuCtxGetCurrent", 16},
	{"cuDevicePrimaryCtxGetState", 1},
	{"cuDevicePrimaryCtxGetState", 16},
	{"cuGraphDestroy", 1}, /* a held one, with a handle that the driver refuses at once */
	{"cuGraphDestroy", 16},
};

#define COUNT(array) ((int)(sizeof(array) / sizeof((array)[0])))
#define VARIANTS     COUNT(variants)
#define CASES        COUNT(cases)
#define ROUNDS       7
#define CALLS        200000 /* of all threads, in one pass */
#define CASE_NS      40e6   /* one process repeats its passes for so long */
#define MAX_PASSES   1000
#define MAX_THREADS  16

static struct api api;
static CUresult (*volatile called)(CUcontext *ctx);
static CUresult (*volatile called_held)(CUgraph graph);
static CUresult (*volatile called_state)(CUdevice device, unsigned int *flags, int *active);
static long calls;
static pthread_barrier_t barrier;

/* The control: what the shim looks at, as the compiler cannot know it. */
static volatile uint8_t gate;
static __thread volatile uint32_t stage;

static __attribute__((noinline)) CUresult control_current(CUcontext *ctx)
{
	return gate ? CUDA_ERROR_NOT_INITIALIZED : api.cuCtxGetCurrent(ctx);
}

static __attribute__((noinline)) CUresult control_state(CUdevice device, unsigned int *flags, int *active)
{
	CUresult r;

	if (gate || stage)
		return CUDA_ERROR_NOT_INITIALIZED;
	r = api.cuDevicePrimaryCtxGetState(device, flags, active);
	if (r == CUDA_SUCCESS && stage)
		*active = 0;
	return r;
}

static CUresult (*real_held)(CUgraph graph);

static __attribute__((noinline)) CUresult control_held(CUgraph graph)
{
	CUresult r;

	stage++;
	r = gate ? CUDA_ERROR_NOT_INITIALIZED : real_held(graph);
	stage--;
	return r;
}

static double now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1e9 + ts.tv_nsec;
}

/* Time of the calling thread on the processor: with more threads than processors, waiting is not the call's cost. */
static double busy_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts);
	return ts.tv_sec * 1e9 + ts.tv_nsec;
}

static int compare(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

/* -1 if one of them is missing. */
static double median(double *values, int n)
{
	qsort(values, n, sizeof(values[0]), compare);
	return values[0] < 0 ? -1 : (values[(n - 1) / 2] + values[n / 2]) / 2;
}

static void *worker(void *arg)
{
	double *ns = arg, begin;
	unsigned int flags;
	CUcontext ctx;
	int active;
	long i;

	pthread_barrier_wait(&barrier);
	begin = busy_ns();
	if (called)
		for (i = 0; i < calls; i++)
			called(&ctx);
	else if (called_held)
		for (i = 0; i < calls; i++)
			called_held(NULL);
	else
		for (i = 0; i < calls; i++)
			called_state(0, &flags, &active);
	*ns = (busy_ns() - begin) / calls;
	return NULL;
}

/* Nanoseconds a call. */
static double pass(int threads)
{
	pthread_t id[MAX_THREADS];
	double ns[MAX_THREADS], sum = 0;
	int i;

	calls = CALLS / threads;
	pthread_barrier_init(&barrier, NULL, threads);
	for (i = 0; i < threads; i++)
		pthread_create(&id[i], NULL, worker, &ns[i]);
	for (i = 0; i < threads; i++) {
		pthread_join(id[i], NULL);
		sum += ns[i];
	}
	pthread_barrier_destroy(&barrier);
	return sum / threads;
}

/* In the measured process: a number for each case. */
static int measure(bool control)
{
	double ns[MAX_PASSES], end;
	int c, n;

	api = api_by(ROUTE_DLSYM);
	if (api.cuInit(0))
		return 1;
	real_held = (CUresult(*)(CUgraph))dlsym(api_open(RTLD_LOCAL), "cuGraphDestroy");
	for (c = 0; c < CASES; c++) {
		bool held = !strcmp(cases[c].function, "cuGraphDestroy");
		bool current = !strcmp(cases[c].function, "cuCtxGetCurrent");

		called = !current ? NULL : control ? control_current : api.cuCtxGetCurrent;
		called_held = !held ? NULL : control ? control_held : real_held;
		called_state = control ? control_state : api.cuDevicePrimaryCtxGetState;
		end = now_ns() + CASE_NS;
		for (n = 0; n < MAX_PASSES && (!n || now_ns() < end); n++)
			ns[n] = pass(cases[c].threads);
		printf("%.2f\n", median(ns, n));
	}
	return 0;
}

/* Runs this program for one variant; -1 for what it did not say. */
static void run(const char *self, const char *shim, const char *variant, double ns[CASES])
{
	bool with = !strcmp(variant, "with");
	char command[4096];
	FILE *out;
	int c;

	snprintf(command, sizeof(command), "LD_PRELOAD='%s' '%s' %s", with ? shim : "", self, variant);
	out = popen(command, "r");
	for (c = 0; c < CASES; c++)
		if (!out || fscanf(out, "%lf", &ns[c]) != 1)
			ns[c] = -1;
	if (out)
		pclose(out);
}

static void measure_calls(const char *self, const char *shim)
{
	double all[ROUNDS][VARIANTS][CASES], ns[ROUNDS];
	int round, i, v, c;

	/* A driver that this process keeps initialised makes the others' cuInit a fast one. */
	api = api_by(ROUTE_DLSYM);
	api.cuInit(0);
	for (round = 0; round < ROUNDS; round++)
		for (i = 0; i < VARIANTS; i++) {
			v = round % 2 ? VARIANTS - 1 - i : i;
			run(self, shim, variants[v], all[round][v]);
		}
	for (c = 0; c < CASES; c++) {
		printf("%s{\"function\": \"%s\", \"threads\": %d", c ? ", " : "", cases[c].function, cases[c].threads);
		for (v = 0; v < VARIANTS; v++) {
			for (round = 0; round < ROUNDS; round++)
				ns[round] = all[round][v][c];
			printf(", \"%s_ns\": %.2f", variants[v], median(ns, ROUNDS));
		}
		printf("}");
	}
}

static void run_once(const char *program)
{
	pid_t pid = fork();

	if (!pid) {
		execl(program, program, (char *)NULL);
		_exit(127);
	}
	waitpid(pid, NULL, 0);
}

static double children_ms(void)
{
	struct rusage used;

	getrusage(RUSAGE_CHILDREN, &used);
	return (used.ru_utime.tv_sec + used.ru_stime.tv_sec) * 1e3 +
	       (used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e3;
}

/* Milliseconds of processor time to run a process that does nothing, the mean of `n`. */
static double start_up(const char *program, const char *shim, int n)
{
	double begin = children_ms();
	int i;

	setenv("LD_PRELOAD", shim, 1);
	for (i = 0; i < n; i++)
		run_once(program);
	unsetenv("LD_PRELOAD");
	return (children_ms() - begin) / n;
}

/* call_cost SHIM PROGRAM-THAT-DOES-NOTHING */
int main(int argc, char **argv)
{
	double without = 1e18, with = 1e18, ms;
	int i;

	if (argc == 2)
		return measure(!strcmp(argv[1], "control"));
	if (argc != 3) {
		fprintf(stderr, "usage: %s SHIM PROGRAM\n", argv[0]);
		return 2;
	}
	for (i = 0; i < 5; i++) { /* in turn, so that a busy machine hurts both */
		ms = start_up(argv[2], "", 100);
		without = ms < without ? ms : without;
		ms = start_up(argv[2], argv[1], 100);
		with = ms < with ? ms : with;
	}
	printf("{\"start_up\": {\"without_ms\": %.3f, \"with_ms\": %.3f}, \"calls\": [", without, with);
	measure_calls(argv[0], argv[1]);
	printf("]}\n");
	return 0;
}
