// SPDX-License-Identifier: MIT
/* One behaviour a run, by name: prints TAP. Run with the shim, some with CUDAPOOL_WARM=start:behave. */
#include "api.h"

#include <errno.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "../client/tap.h"
#include "control_page.h"
#include "forbid.h"

/* Our own control page, as it is mapped. */
static struct cudapool_page *page(void)
{
	FILE *maps = fopen("/proc/self/maps", "r");
	char line[512];
	unsigned long at = 0;

	while (maps && !at && fgets(line, sizeof(line), maps))
		if (!strstr(line, "/memfd:" CUDAPOOL_PAGE_NAME) || sscanf(line, "%lx", &at) != 1)
			at = 0;
	if (maps)
		fclose(maps);
	return (struct cudapool_page *)at;
}

static bool reached(uint32_t warmth)
{
	int i;

	for (i = 0; i < 5000; i++) {
		struct cudapool_page *p = page();

		if (p && __atomic_load_n(&p->warmth, __ATOMIC_ACQUIRE) == warmth)
			return true;
		usleep(1000);
	}
	return false;
}

static bool child_exits_0(pid_t pid)
{
	int status;

	return waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

static struct api api(void)
{
	return api_by(ROUTE_DLSYM);
}

/* The pool's commands, as the pool gives them (test/client has the pool's own code for it). */
static bool command(uint32_t command)
{
	struct cudapool_page *p = page();
	uint32_t number;
	int i;

	p->command = command;
	number = __atomic_add_fetch(&p->command_seq, 1, __ATOMIC_RELEASE);
	for (i = 0; i < 5000; i++) {
		syscall(SYS_futex, &p->command_seq, FUTEX_WAKE, 1, NULL, NULL, 0);
		if (__atomic_load_n(&p->ack_seq, __ATOMIC_ACQUIRE) == number)
			return p->result == 0;
		usleep(1000);
	}
	return false;
}

/* Without warming. */

static void plain_fork(void)
{
	struct api a = api();
	pid_t pid;
	int n;

	/* A fork while a thread starts may leave AddressSanitizer's own allocator locked in the child for good. */
	if (getenv("ASAN_OPTIONS"))
		ok(command(CUDAPOOL_PAGE_PING), "the shim's thread has started");
	fflush(stdout);
	pid = fork();
	if (!pid)
		_exit(page() ? 1 : a.cuInit(0) || a.cuDeviceGetCount(&n) || !page() || page()->pid != getpid());
	ok(child_exits_0(pid), "a child that was forked before CUDA uses it, and makes a page of its own");
	ok(a.cuInit(0) == CUDA_SUCCESS, "so does the parent");
	pid = fork();
	if (!pid)
		_exit(a.cuInit(0) == CUDA_SUCCESS || page());
	ok(child_exits_0(pid), "a child that was forked after CUDA cannot use it, and has no page");
}

static void closed(void)
{
	struct api a = api(), b;
	void *lib = dlopen("libcuda.so.1", RTLD_NOW);

	dlclose(lib);
	dlclose(lib);
	b = api();
	ok(a.cuInit == b.cuInit && b.cuInit(0) == CUDA_SUCCESS, "libcuda closed, opened again and used");
}

static void scope(void)
{
	void *lib;

	ok(!dlsym(RTLD_DEFAULT, "cuInit") && !dlsym(RTLD_NEXT, "cuInit"), "without libcuda there is no cuInit");
	ok(dlerror() && !page(), "dlerror() says so, and there is no page");
	lib = api_open(RTLD_LOCAL);
	ok(!dlsym(RTLD_DEFAULT, "cuInit"), "nor is there for those who do not see the libcuda that was opened");
	ok(!dlsym(lib, "cuNoSuchFunction") && dlerror() && !dlsym(lib, "cuda"), "unknown names");
	ok(!page(), "none of this made a page");
	ok(dlsym(lib, "cuInit") && page(), "finding a function does");
}

static volatile sig_atomic_t caught;

static void catch (int sig)
{
	caught = sig;
}

static void signals(void)
{
	sigset_t before, after;
	siginfo_t info;
	int sig;
	bool all = true;
	struct api a;

	sigemptyset(&before);
	for (sig = SIGRTMIN; sig <= SIGRTMAX; sig++)
		sigaddset(&before, sig);
	pthread_sigmask(SIG_BLOCK, &before, NULL);
	a = api();
	a.cuInit(0);
	pthread_sigmask(SIG_BLOCK, NULL, &after);
	for (sig = SIGRTMIN; sig <= SIGRTMAX; sig++)
		all = all && sigismember(&after, sig) == 1;
	ok(all && sigismember(&after, SIGUSR1) == 0, "the mask is as it was");
	for (sig = SIGRTMIN; sig <= SIGRTMAX && all; sig++) {
		struct timespec limit = {2, 0};

		kill(getpid(), sig);
		all = sigtimedwait(&before, &info, &limit) == sig;
	}
	ok(all, "each realtime signal to the process comes to the thread that waits for it");
	signal(SIGUSR1, catch);
	kill(getpid(), SIGUSR1);
	ok(caught == SIGUSR1, "so do the others");
	ok(setgid(getgid()) == 0, "setgid, which needs every thread, returns");
}

static void errors(void)
{
	struct api a;
	CUcontext ctx;

	errno = 4711;
	a = api();
	ok(errno == 4711, "lookups leave errno alone");
	a.cuInit(0);
	a.cuDevicePrimaryCtxRetain(&ctx, 0);
	errno = 4711; /* the driver itself changed it */
	a.cuDevicePrimaryCtxRetain(&ctx, 0);
	a.cuDevicePrimaryCtxRelease_v2(0);
	ok(errno == 4711, "calls leave errno alone");
	ok(!dlerror(), "dlerror() is empty");
}

static void commands(void)
{
	struct api a = api();
	CUcontext ctx;

	ok(page()->magic == CUDAPOOL_PAGE_MAGIC && page()->pid == getpid() && strlen(page()->build) > 20, "the page");
	ok(command(CUDAPOOL_PAGE_PING), "PING is answered");
	ok(page()->warmth == CUDAPOOL_WARMTH_NONE, "nothing is warm");
	ok(!command(77), "an unknown command is refused");
	ok(command(CUDAPOOL_PAGE_WARM) && page()->warmth == CUDAPOOL_WARMTH_CONTEXT, "WARM warms");
	ok(a.cuInit(0) == CUDA_SUCCESS && a.cuDevicePrimaryCtxRetain(&ctx, 0) == CUDA_SUCCESS &&
		   page()->handed_back == 1 && page()->warmth == CUDAPOOL_WARMTH_TAKEN,
	   "and the context is handed back");
	ok(command(CUDAPOOL_PAGE_WARM) && page()->warmth == CUDAPOOL_WARMTH_TAKEN, "WARM does nothing then");
}

/* With a warm context. */

static void handed(void)
{
	struct api a = api();
	CUcontext ctx, current;
	int active;
	unsigned int flags;

	ok(reached(CUDAPOOL_WARMTH_CONTEXT), "warm");
	ok(a.cuDevicePrimaryCtxRetain(&ctx, 0) == CUDA_ERROR_NOT_INITIALIZED, "not before cuInit");
	a.cuInit(0);
	ok(a.cuDevicePrimaryCtxGetState(0, &flags, &active) == CUDA_SUCCESS && !active, "inactive");
	ok(a.cuDevicePrimaryCtxRetain(&ctx, 0) == CUDA_SUCCESS && page()->handed_back == 1 && page()->created == 0,
	   "handed back");
	ok(a.cuCtxGetCurrent(&current) == CUDA_SUCCESS && !current, "not current");
	ok(a.cuDevicePrimaryCtxRelease_v2(0) == CUDA_SUCCESS &&
		   a.cuDevicePrimaryCtxRelease_v2(0) == CUDA_ERROR_INVALID_CONTEXT,
	   "with one reference");
	ok(a.cuDevicePrimaryCtxRetain(&ctx, 0) == CUDA_SUCCESS && page()->created == 1, "the next is the driver's own");
}

static void created(void)
{
	struct api a = api();
	CUcontext ctx, current;

	ok(reached(CUDAPOOL_WARMTH_CONTEXT), "warm");
	a.cuInit(0);
	ok(a.cuCtxCreate_v4(&ctx, NULL, 0, 0) == CUDA_SUCCESS && page()->handed_back == 1, "handed back");
	ok(a.cuCtxGetCurrent(&current) == CUDA_SUCCESS && current == ctx, "current");
	ok(a.cuCtxDestroy_v2(ctx) == CUDA_SUCCESS && a.cuCtxCreate_v2(&ctx, 0, 0) == CUDA_SUCCESS &&
		   page()->created == 1,
	   "destroyed, and the next is the driver's own");
}

/* argv[2] says what the application does first that the warm context does not fit. */
static void unwanted(const char *how)
{
	struct api a = api();
	unsigned int flags = 99, version = 0;
	CUcontext ctx;
	int active = 99, i;

	ok(reached(CUDAPOOL_WARMTH_CONTEXT), "warm");
	a.cuInit(0);
	if (!strcmp(how, "flags")) {
		ok(a.cuDevicePrimaryCtxSetFlags(0, CU_CTX_SCHED_BLOCKING_SYNC) == CUDA_SUCCESS, "old SetFlags");
	} else if (!strcmp(how, "own")) {
		ok(a.cuCtxCreate(&ctx, 0, 0) == CUDA_SUCCESS && a.cuCtxGetApiVersion(ctx, &version) == CUDA_SUCCESS &&
			   version == 3010,
		   "the old cuCtxCreate");
	} else {
		ok(a.cuDevicePrimaryCtxRetain(&ctx, 1) == CUDA_SUCCESS, "another device");
	}
	ok(a.cuDevicePrimaryCtxGetState(0, &flags, &active) == CUDA_SUCCESS && !active &&
		   flags == (strcmp(how, "flags") ? 0u : CU_CTX_SCHED_BLOCKING_SYNC),
	   "state");
	for (i = 0; i < 10000 && page()->warmth != CUDAPOOL_WARMTH_DRIVER; i++)
		usleep(1000);
	ok(page()->warmth == CUDAPOOL_WARMTH_DRIVER && page()->handed_back == 0, "the warm one is gone");
}

static volatile bool watching = true;

static void *watch(void *arg)
{
	struct api a = api();
	unsigned int flags;
	int active;

	while (watching)
		if (a.cuDevicePrimaryCtxGetState(0, &flags, &active) != CUDA_SUCCESS || active)
			return NULL;
	return arg;
}

/* Threads that ask for the state of the primary context, which the application never retains, while the warm one goes.
 */
static void watched(void)
{
	struct api a = api();
	pthread_t id[2];
	bool hidden = true;
	CUcontext ctx;
	int i;

	ok(reached(CUDAPOOL_WARMTH_CONTEXT) && a.cuInit(0) == CUDA_SUCCESS, "warm");
	for (i = 0; i < 2; i++)
		pthread_create(&id[i], NULL, watch, &hidden);
	usleep(3000);
	ok(a.cuCtxCreate_v2(&ctx, 0, 0) == CUDA_SUCCESS, "the application makes its own");
	for (i = 0; i < 10000 && page()->warmth != CUDAPOOL_WARMTH_DRIVER; i++)
		usleep(1000);
	watching = false;
	for (i = 0; i < 2; i++) {
		void *seen = NULL;

		pthread_join(id[i], &seen);
		hidden = hidden && seen;
	}
	ok(hidden, "the warm one was never seen");
}

static void *retain(void *arg)
{
	struct api a = api();
	CUcontext ctx = NULL;

	return a.cuInit(0) || a.cuDevicePrimaryCtxRetain(&ctx, 0) ? NULL : ctx;
}

/* While the warming is under way, or when it is done. */
static void threads(void)
{
	pthread_t id[8];
	void *ctx[8];
	bool same = true;
	int i;

	/* The first of them must not come before it has begun: then there is nothing to hand back. */
	for (i = 0; i < 5000 && !(page() && page()->warmth); i++)
		usleep(1000);
	for (i = 0; i < 8; i++)
		pthread_create(&id[i], NULL, retain, NULL);
	for (i = 0; i < 8; i++) {
		pthread_join(id[i], &ctx[i]);
		same = same && ctx[i] && ctx[i] == ctx[0];
	}
	ok(same, "eight threads at once get one context");
	ok(page()->handed_back == 1 && page()->created <= 1, "of which one was handed back");
}

/*
 * The children of a process that is being warmed: no hang. Those that were forked before may use CUDA, the others
 * cannot, as documented.
 */
static void forks(void)
{
	struct api a = api();
	int i, usable = 0, last_usable = -1;
	bool all = true;

	fflush(stdout);
	for (i = 0; i < 50; i++) {
		pid_t pid = fork();
		int status = 0;

		if (!pid) {
			alarm(20);
			_exit(a.cuInit(0) == CUDA_SUCCESS);
		}
		all = all && waitpid(pid, &status, 0) == pid && WIFEXITED(status);
		if (WEXITSTATUS(status))
			usable++, last_usable = i;
		usleep(1000);
	}
	ok(all && usable == last_usable + 1 && usable < 50,
	   "children of a process that is being warmed are told so by cuInit, and do not hang");
	ok(a.cuInit(0) == CUDA_SUCCESS, "the parent is well");
}

static void failing(void)
{
	struct api a = api();

	ok(reached(CUDAPOOL_WARMTH_FAILED), "warming failed");
	ok(a.cuInit(0) != CUDA_SUCCESS, "and the application sees its own error");
}

/* The driver without a control page: where memfd_create is forbidden, as in some sandboxes. */
static void nomemfd(void)
{
	struct api a;
	int version;

	if (!forbid(SYS_memfd_create, ENOSYS)) {
		ok(false, "seccomp");
		return;
	}
	a = api();
	ok(!page(), "no page");
	/* The software driver cannot do without memfd itself, so no more than this. */
	ok(a.cuDriverGetVersion(&version) == CUDA_SUCCESS &&
		   a.cuDeviceGetCount(&version) == CUDA_ERROR_NOT_INITIALIZED &&
		   a.cuInit(1) == CUDA_ERROR_INVALID_VALUE,
	   "calls pass through");
}

/* Run with libnext1.so and libnext2.so preloaded after the shim. */
static void next(void)
{
	int (*which)(void) = (int (*)(void))dlsym(RTLD_DEFAULT, "which");

	ok(which && which() == 21, "RTLD_NEXT is relative to its caller");
}

/* Run with libnext1.so preloaded after the shim: a library that wraps cuInit is not passed over. */
static void between(void)
{
	int *seen = dlsym(RTLD_DEFAULT, "calls_seen"), n;

#ifdef DIRECT
	ok(cuInit(0) == CUDA_SUCCESS && seen && *seen == 1, "it is called once");
	ok(cuDeviceGetCount(&n) == CUDA_SUCCESS && n > 0 && page() && page()->app_inited, "and then we are");
#else
	ok(seen == &n, "is for the directly linked program");
#endif
}

/* behave restored GO ANSWER: waits for the file GO, uses CUDA, and writes what happened to ANSWER. */
static int restored(const char *go, const char *answer)
{
	struct api a = api();
	struct timespec begin, end;
	CUresult init, retained;
	CUcontext ctx;
	FILE *out;
	int i;

	for (i = 0; i < 6000 && access(go, F_OK); i++)
		usleep(10000);
	clock_gettime(CLOCK_MONOTONIC, &begin);
	init = a.cuInit(0);
	retained = a.cuDevicePrimaryCtxRetain(&ctx, 0);
	clock_gettime(CLOCK_MONOTONIC, &end);
	out = fopen(answer, "w");
	if (!out)
		return 1;
	fprintf(out,
		"{\"init\": %d, \"retain\": %d, \"us\": %ld, \"restores\": %u, \"handed_back\": %d, \"ping\": %s}\n",
		init, retained, (end.tv_sec - begin.tv_sec) * 1000000 + (end.tv_nsec - begin.tv_nsec) / 1000,
		page()->restores, (int)page()->handed_back, command(CUDAPOOL_PAGE_PING) ? "true" : "false");
	fclose(out);
	return 0;
}

int main(int argc, char **argv)
{
	const char *what = argc > 1 ? argv[1] : "";
	static const struct {
		const char *name;
		void (*run)(void);
	} table[] = {
		{"fork", plain_fork}, {"closed", closed},     {"scope", scope},     {"signals", signals},
		{"errors", errors},   {"commands", commands}, {"handed", handed},   {"created", created},
		{"threads", threads}, {"forks", forks},       {"failing", failing}, {"nomemfd", nomemfd},
		{"next", next},       {"between", between},   {"watched", watched},
	};
	unsigned i;

	for (i = 0; i < sizeof(table) / sizeof(table[0]); i++)
		if (!strcmp(table[i].name, what))
			table[i].run();
	if (!strcmp(what, "unwanted"))
		unwanted(argv[2]);
	if (!strcmp(what, "restored"))
		return restored(argv[2], argv[3]);
	if (!strcmp(what, "exit"))
		exit(0); /* in the middle of it; that nothing hangs or crashes is the test */
	return tap_end();
}
