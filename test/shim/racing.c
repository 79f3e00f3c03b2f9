// SPDX-License-Identifier: MIT
/* Calls that are on their way when the shim warms: racing WHAT, with racing_driver.c. Prints TAP. */
#include <dlfcn.h>
#include <pthread.h>
#include <signal.h>
#include <sys/wait.h>

#include "../client/tap.h"
#include "fake_pool.h"
#include "racing_driver.h"

#define LIMIT_MS 10000
#define HELD_MS	 200 /* what must not happen meanwhile would have happened long before */
#define ROUNDS	 2000

static struct racing_driver *driver;
static struct fake_pool pool;
static CUresult (*init)(unsigned int flags);
static CUresult (*retain)(CUcontext *ctx, CUdevice device);
static CUresult (*release)(CUdevice device);
static CUresult (*reset)(CUdevice device);
static CUresult (*set_flags)(CUdevice device, unsigned int flags);
static CUresult (*get_state)(CUdevice device, unsigned int *flags, int *active);
static CUresult (*get_current)(CUcontext *ctx);
static CUresult (*synchronize)(void);
static CUresult (*get_count)(int *count);

/* Each kind of function (functions.def), and calls that have to do with the primary context. */
static CUresult gated(void)
{
	CUcontext ctx;

	return get_current(&ctx);
}

static CUresult held(void)
{
	return synchronize();
}

static CUresult wrapped(void)
{
	unsigned int flags;
	int active;

	return get_state(0, &flags, &active);
}

static CUcontext retained;

static CUresult do_retain(void)
{
	return retain(&retained, 0);
}

static CUresult do_release(void)
{
	return release(0);
}

static CUresult do_reset(void)
{
	return reset(0);
}

static CUresult do_set_flags(void)
{
	return set_flags(0, 0);
}

static const struct call {
	const char *what, *name;
	CUresult (*call)(void);
	CUresult answer; /* with a driver that is not initialised; below, with an inactive context */
} early[] = {
	{"a gated one", "cuCtxGetCurrent", gated, CUDA_ERROR_NOT_INITIALIZED},
	{"a held one", "cuCtxSynchronize", held, CUDA_ERROR_NOT_INITIALIZED},
	{"a wrapped one", "cuDevicePrimaryCtxGetState", wrapped, CUDA_ERROR_NOT_INITIALIZED},
}, contexts[] = {
	{"a release", "cuDevicePrimaryCtxRelease_v2", do_release, CUDA_ERROR_INVALID_CONTEXT},
	{"a reset", "cuDevicePrimaryCtxReset_v2", do_reset, CUDA_SUCCESS},
	{"setting flags", "cuDevicePrimaryCtxSetFlags", do_set_flags, CUDA_SUCCESS},
};

static void *make(void *call)
{
	return (void *)(uintptr_t)((const struct call *)call)->call();
}

static void *warm(void *unused)
{
	return (void *)(intptr_t)fake_pool_command(&pool, CUDAPOOL_PAGE_WARM, LIMIT_MS);
}

static bool reached(atomic_int *what, int value, long limit_ms)
{
	long end = fake_pool_now_ms() + limit_ms;

	while (*what != value && fake_pool_now_ms() < end)
		usleep(100);
	return *what == value;
}

/*
 * The call is in the driver, which has yet to look whether it is initialised, when the warming begins; it goes on when
 * the warming was seen to have come further (`seen` is 1), or had time to. True: it was answered as without the shim.
 */
static bool answered(const struct call *call, atomic_int *seen)
{
	pthread_t caller, warmer;
	void *answer, *result;
	bool there;

	driver->hold[0] = call->name;
	pthread_create(&caller, NULL, make, (void *)call);
	there = reached(&driver->held[0], 1, LIMIT_MS);
	pthread_create(&warmer, NULL, warm, NULL);
	reached(seen, 1, HELD_MS);
	driver->hold[0] = NULL;
	pthread_join(caller, &answer);
	pthread_join(warmer, &result);
	printf("# %d, warmed with %d\n", (int)(uintptr_t)answer, (int)(intptr_t)result);
	return there && (uintptr_t)answer == call->answer && !result && driver->inits && pool.page->warm_result == 0;
}

static void before_init(const struct call *call)
{
	ok(answered(call, &driver->inits), "%s", call->what);
	ok(call->call() == CUDA_ERROR_NOT_INITIALIZED, "the next one is answered like it");
	ok(init(0) == CUDA_SUCCESS && call->call() != CUDA_ERROR_NOT_INITIALIZED, "until the application's own cuInit");
}

static void before_context(const struct call *call)
{
	ok(init(0) == CUDA_SUCCESS && answered(call, &driver->retains), "%s", call->what);
	ok(retain(&retained, 0) == CUDA_SUCCESS && retained == driver->alive(), "the context is one that lives");
	ok(pool.page->handed_back == 1, "namely the warm one");
	ok(release(0) == CUDA_SUCCESS && !driver->alive(), "with one reference");
}

/* The application makes its own context, and goes on with it, while the warming that began meanwhile is in cuInit. */
static void own(void)
{
	static const struct call call = {"a retain", "cuDevicePrimaryCtxRetain", do_retain, CUDA_SUCCESS};
	pthread_t caller, warmer;
	void *answer, *result;
	unsigned int flags;
	int active = 0;

	ok(init(0) == CUDA_SUCCESS, "initialised");
	driver->hold[0] = call.name;
	driver->hold[1] = "cuInit";
	pthread_create(&caller, NULL, make, (void *)&call);
	ok(reached(&driver->held[0], 1, LIMIT_MS), "a context is being made");
	pthread_create(&warmer, NULL, warm, NULL);
	ok(reached(&driver->held[1], 1, LIMIT_MS), "the warming begins");
	driver->hold[0] = NULL;
	pthread_join(caller, &answer);
	ok(!answer && get_state(0, &flags, &active) == CUDA_SUCCESS && active, "the application has its context");
	ok(release(0) == CUDA_SUCCESS && !driver->alive(), "with one reference");
	ok(release(0) == CUDA_ERROR_INVALID_CONTEXT, "and no more");
	ok(get_state(0, &flags, &active) == CUDA_SUCCESS && !active, "then it is gone");
	driver->hold[1] = NULL;
	pthread_join(warmer, &result);
	ok(!result && pool.page->warmth == CUDAPOOL_WARMTH_DRIVER && !pool.page->handed_back, "the warming makes none");
	ok(retain(&retained, 0) == CUDA_SUCCESS && retained == driver->alive(), "the next is the application's, too");
	ok(release(0) == CUDA_SUCCESS && !driver->alive(), "with one reference");
}

/* A warming that has initialised the driver, and no more, is tried again. */
static void again(void)
{
	driver->failing = 1;
	ok(fake_pool_command(&pool, CUDAPOOL_PAGE_WARM, LIMIT_MS) == CUDA_ERROR_OUT_OF_MEMORY, "a warming fails");
	ok(gated() == CUDA_ERROR_NOT_INITIALIZED && held() == CUDA_ERROR_NOT_INITIALIZED, "calls are refused");
	ok(fake_pool_command(&pool, CUDAPOOL_PAGE_WARM, LIMIT_MS) == 0, "the next succeeds");
	ok(gated() == CUDA_ERROR_NOT_INITIALIZED && held() == CUDA_ERROR_NOT_INITIALIZED, "calls still are");
	ok(!pool.page->app_inited && init(0) == CUDA_SUCCESS && pool.page->app_inited, "until cuInit");
}

static atomic_int handled;

static void handle(int signal)
{
	handled += held() == CUDA_ERROR_NOT_INITIALIZED;
}

/* A call that stays in the driver keeps no other one waiting, nor the application's cuInit; only the warming. */
static void apart(void)
{
	pthread_t caller, warmer;
	void *answer, *result;

	alarm(LIMIT_MS / 2000);
	driver->hold[0] = early[0].name;
	pthread_create(&caller, NULL, make, (void *)&early[0]);
	ok(reached(&driver->held[0], 1, LIMIT_MS), "a call is in the driver");
	ok(held() == CUDA_ERROR_NOT_INITIALIZED, "another one is answered");
	signal(SIGUSR1, handle);
	pthread_kill(caller, SIGUSR1);
	ok(reached(&handled, 1, LIMIT_MS), "also in a signal handler within it");
	pthread_create(&warmer, NULL, warm, NULL);
	ok(!reached(&driver->inits, 1, HELD_MS), "the warming waits");
	ok(held() == CUDA_ERROR_NOT_INITIALIZED && wrapped() == CUDA_ERROR_NOT_INITIALIZED, "others do not");
	ok(init(0) == CUDA_SUCCESS && held() == CUDA_ERROR_INVALID_CONTEXT, "nor does cuInit");
	driver->hold[0] = NULL;
	pthread_join(caller, &answer);
	pthread_join(warmer, &result);
	ok(!answer && !result && pool.page->warmth == CUDAPOOL_WARMTH_CONTEXT, "all is well in the end");
}

static void forks(void)
{
	static const char *const kinds[] = {"a gated call", "a held one", "a wrapped one", "cuInit"};
	pthread_t warmer;
	unsigned i;

	driver->hold[0] = "cuInit";
	pthread_create(&warmer, NULL, warm, NULL);
	ok(reached(&driver->held[0], 1, LIMIT_MS), "the warming is in the driver, with a lock of its in its hands");
	fflush(stdout);
	for (i = 0; i <= 3; i++) {
		pid_t pid = fork();
		int status = 0;

		if (!pid) {
			alarm(5);
			_exit(i < 3 ? early[i].call() : init(0));
		}
		ok(waitpid(pid, &status, 0) == pid && WIFEXITED(status) &&
			   WEXITSTATUS(status) == CUDA_ERROR_NOT_INITIALIZED,
		   "%s", kinds[i]);
	}
	driver->hold[0] = NULL;
	pthread_join(warmer, NULL);
	ok(init(0) == CUDA_SUCCESS && gated() == CUDA_SUCCESS, "the parent is well");
}

static atomic_int stop;

static void *try(void *unused)
{
	uintptr_t refused = 0;

	while (!stop)
		refused += init(1) != CUDA_ERROR_INVALID_VALUE;
	return (void *)refused;
}

/* The application's cuInit while warmings begin and end. */
static void inits(void)
{
	pthread_t id[2];
	unsigned i;

	driver->failing = ROUNDS;
	for (i = 0; i < 2; i++)
		pthread_create(&id[i], NULL, try, NULL);
	for (i = 0; i < ROUNDS; i++)
		fake_pool_command(&pool, CUDAPOOL_PAGE_WARM, LIMIT_MS);
	stop = 1;
	for (i = 0; i < 2; i++) {
		void *refused = NULL;

		pthread_join(id[i], &refused);
		printf("# %lu\n", (unsigned long)(uintptr_t)refused);
		ok(!refused, "is never taken for a forked child's");
	}
}

/* A driver that someone initialised past us. */
static void past(void)
{
	int count = 0;

	ok(gated() == CUDA_ERROR_NOT_INITIALIZED && !pool.page->app_inited, "not yet");
	ok(driver->init(0) == CUDA_SUCCESS, "someone initialises the driver");
	ok(get_count(&count) == CUDA_SUCCESS && count == 1 && pool.page->app_inited, "calls pass, and the page says so");
	ok(held() == CUDA_ERROR_INVALID_CONTEXT, "each kind");
	ok(fake_pool_command(&pool, CUDAPOOL_PAGE_WARM, LIMIT_MS) == 0 && gated() == CUDA_SUCCESS, "warm, too");
}

int main(int argc, char **argv)
{
	static const struct {
		const char *name;
		void (*run)(void);
	} table[] = {{"own", own}, {"again", again}, {"apart", apart}, {"forks", forks}, {"inits", inits}, {"past", past}};
	const char *what = argc > 1 ? argv[1] : "";
	void *lib = dlopen("libcuda.so.1", RTLD_NOW);
	unsigned i;

#define FIND(variable, name) variable = (__typeof__(variable))dlsym(lib, name)
	driver = lib ? dlsym(lib, "racing_driver") : NULL;
	if (!driver) {
		printf("Bail out! not the racing driver: %s\n", dlerror());
		return 2;
	}
	FIND(init, "cuInit");
	FIND(retain, "cuDevicePrimaryCtxRetain");
	FIND(release, "cuDevicePrimaryCtxRelease_v2");
	FIND(reset, "cuDevicePrimaryCtxReset_v2");
	FIND(set_flags, "cuDevicePrimaryCtxSetFlags");
	FIND(get_state, "cuDevicePrimaryCtxGetState");
	FIND(get_current, "cuCtxGetCurrent");
	FIND(synchronize, "cuCtxSynchronize");
	FIND(get_count, "cuDeviceGetCount");
	if (fake_pool_find(&pool, getpid())) {
		printf("Bail out! no control page\n");
		return 2;
	}
	for (i = 0; i < sizeof(early) / sizeof(early[0]); i++)
		if (!strcmp(early[i].name, what))
			before_init(&early[i]);
	for (i = 0; i < sizeof(contexts) / sizeof(contexts[0]); i++)
		if (!strcmp(contexts[i].name, what))
			before_context(&contexts[i]);
	for (i = 0; i < sizeof(table) / sizeof(table[0]); i++)
		if (!strcmp(table[i].name, what))
			table[i].run();
	return tap_end();
}
