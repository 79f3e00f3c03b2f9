// SPDX-License-Identifier: MIT
/* What the shim adds to a driver call that needs no action: runs itself without and with it, and prints JSON. */
#include "api.h"

#include <pthread.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define ROUNDS      9 /* the least of them counts: the rest is other processes */
#define MAX_THREADS 64

static struct api api;
static CUresult (*volatile called)(CUcontext *ctx);
static CUresult (*volatile called_state)(CUdevice device, unsigned int *flags, int *active);
static long calls;
static pthread_barrier_t barrier;

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
	else
		for (i = 0; i < calls; i++)
			called_state(0, &flags, &active);
	*ns = (busy_ns() - begin) / calls;
	return NULL;
}

/* In the measured process: one number, ns per call. */
static int measure(const char *function, int threads)
{
	pthread_t id[MAX_THREADS];
	double ns[MAX_THREADS], best = 1e18, sum;
	int round, i;

	api = api_by(ROUTE_DLSYM);
	if (api.cuInit(0))
		return 1;
	if (!strcmp(function, "cuCtxGetCurrent"))
		called = api.cuCtxGetCurrent;
	else
		called_state = api.cuDevicePrimaryCtxGetState;
	calls = 200000 / threads;
	for (round = 0; round < ROUNDS; round++) {
		pthread_barrier_init(&barrier, NULL, threads);
		for (i = 0; i < threads; i++)
			pthread_create(&id[i], NULL, worker, &ns[i]);
		for (i = 0, sum = 0; i < threads; i++) {
			pthread_join(id[i], NULL);
			sum += ns[i];
		}
		pthread_barrier_destroy(&barrier);
		best = sum / threads < best ? sum / threads : best;
	}
	printf("%.2f\n", best);
	return 0;
}

static double run(const char *self, const char *shim, const char *function, int threads)
{
	char command[4096];
	double ns = -1;
	FILE *out;

	snprintf(command, sizeof(command), "LD_PRELOAD='%s' '%s' '%s' %d", shim, self, function, threads);
	out = popen(command, "r");
	if (!out || fscanf(out, "%lf", &ns) != 1)
		ns = -1;
	if (out)
		pclose(out);
	return ns;
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

/* Milliseconds to run a process that does nothing, the mean of `n`. */
static double start_up(const char *program, const char *shim, int n)
{
	double begin;
	int i;

	setenv("LD_PRELOAD", shim, 1);
	begin = now_ns();
	for (i = 0; i < n; i++)
		run_once(program);
	begin = (now_ns() - begin) / 1e6 / n;
	unsetenv("LD_PRELOAD");
	return begin;
}

/* call_cost SHIM PROGRAM-THAT-DOES-NOTHING */
int main(int argc, char **argv)
{
	static const char *const functions[] = {"cuCtxGetCurrent", "cuDevicePrimaryCtxGetState"};
	static const int threads[] = {1, 16};
	double without = 1e18, with = 1e18, ms;
	int f, t, i;

	if (argc == 3 && atoi(argv[2]) > 0 && atoi(argv[2]) <= MAX_THREADS)
		return measure(argv[1], atoi(argv[2]));
	if (argc != 3) {
		fprintf(stderr, "usage: %s SHIM PROGRAM\n", argv[0]);
		return 2;
	}
	printf("{\"calls\": [");
	for (f = 0; f < 2; f++)
		for (t = 0; t < 2; t++)
			printf("%s{\"function\": \"%s\", \"threads\": %d, \"without_ns\": %.2f, \"with_ns\": %.2f}",
			       f || t ? ", " : "", functions[f], threads[t], run(argv[0], "", functions[f], threads[t]),
			       run(argv[0], argv[1], functions[f], threads[t]));
	for (i = 0; i < 5; i++) { /* in turn, so that a busy machine hurts both */
		ms = start_up(argv[2], "", 100);
		without = ms < without ? ms : without;
		ms = start_up(argv[2], argv[1], 100);
		with = ms < with ? ms : with;
	}
	printf("], \"start_up\": {\"without_ms\": %.3f, \"with_ms\": %.3f}}\n", without, with);
	return 0;
}
