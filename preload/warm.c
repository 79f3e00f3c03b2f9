// SPDX-License-Identifier: MIT
/* Warms a context in the background, and hands it to the application as if the driver had just made it. */
#include <dlfcn.h>
#include <errno.h>
#include <time.h>

#define CUDAPOOL_ABI_NO_VERSIONS
#include <cuda.h>

#include "gate.h"
#include "memory.h"
#include "shim.h"
#include "streams.h"

/*
 * The application must not be able to tell that a context waits:
 *
 * - until its own cuInit, every function answers CUDA_ERROR_NOT_INITIALIZED (init.c);
 * - a waiting primary context is inactive and has no reference but ours. Ours becomes the application's at its
 *   first cuDevicePrimaryCtxRetain, and from then on the driver's own count is the truth;
 * - a waiting created context is given to a cuCtxCreate that asks for the same, by being pushed;
 * - what would not be the same with a context that exists already makes us give it up first;
 * - whichever context the application gets first ends the waiting: a warm one that was not wanted is
 *   destroyed, so that its memory does not stay taken.
 *
 * IDLE and ENDED need no action: then a wrapper costs two loads and branches.
 */
enum warm_stage {
	STAGE_IDLE = 0,
	STAGE_RUNNING = 1, /* the thread is warming: whom this concerns waits for it, it would have to do the same */
	STAGE_WAITING = 2,
	STAGE_ENDED = 3, /* for good */
};

#define WAIT_STEP_MS  1000
#define WAIT_STEPS    120 /* how long a call waits for a warming that hangs, before it goes the driver's own way */
#define EXIT_STEPS    10  /* and how long the end of the process */
#define ALONE_STEP_US 200
#define ALONE_STEPS   50000 /* how long the warming waits for calls */
#define SCHED_FLAGS   7u    /* CU_CTX_SCHED_*: the driver changes them in a live context */

#define state cudapool_state
/* Of a function with a wrapper of the same type. */
#define REAL(name) ((__typeof__(&cudapool_wrap_##name))cudapool_real[cudapool_fn_##name])
/* Making, changing and destroying contexts: not while memory is parked, and seen by a warming that begins. */
#define ENTER()                                                                                                        \
	CUDAPOOL_WITHIN_GATE();                                                                                        \
	const char counted __attribute__((cleanup(leave_contexts), unused)) = (enter_contexts(), 0)

typedef struct CUgreenCtx_st *CUgreenCtx;
typedef struct CUdevResourceDesc_st *CUdevResourceDesc;

CUresult cudapool_wrap_cuDevicePrimaryCtxRetain(CUcontext *ctx, CUdevice device);
CUresult cudapool_wrap_cuDevicePrimaryCtxRelease(CUdevice device);
CUresult cudapool_wrap_cuDevicePrimaryCtxRelease_v2(CUdevice device);
CUresult cudapool_wrap_cuDevicePrimaryCtxReset(CUdevice device);
CUresult cudapool_wrap_cuDevicePrimaryCtxReset_v2(CUdevice device);
CUresult cudapool_wrap_cuDevicePrimaryCtxSetFlags(CUdevice device, unsigned int flags);
CUresult cudapool_wrap_cuDevicePrimaryCtxSetFlags_v2(CUdevice device, unsigned int flags);
CUresult cudapool_wrap_cuDevicePrimaryCtxGetState(CUdevice device, unsigned int *flags, int *active);
CUresult cudapool_wrap_cuCtxCreate(CUcontext *ctx, unsigned int flags, CUdevice device);
CUresult cudapool_wrap_cuCtxCreate_v2(CUcontext *ctx, unsigned int flags, CUdevice device);
CUresult cudapool_wrap_cuCtxCreate_v3(CUcontext *ctx, CUexecAffinityParam *affinity, int count, unsigned int flags,
				      CUdevice device);
CUresult cudapool_wrap_cuCtxCreate_v4(CUcontext *ctx, CUctxCreateParams *params, unsigned int flags, CUdevice device);
CUresult cudapool_wrap_cuGreenCtxCreate(CUgreenCtx *ctx, CUdevResourceDesc desc, CUdevice device, unsigned int flags);

static void lock(void)
{
	cudapool_lock(&state.lock);
}

static void unlock(void)
{
	cudapool_unlock(&state.lock);
}

static uint32_t stage(void)
{
	return __atomic_load_n(&state.stage, __ATOMIC_ACQUIRE);
}

/*
 * A call may look at the stage, find nothing that concerns it, and go on to the driver just when the warming begins: so
 * calls are first counted, and the warming, when it can be seen, waits for those under way before it makes the
 * context.
 */
static void enter_contexts(void)
{
	__atomic_fetch_add(&state.context_calls, 1, __ATOMIC_SEQ_CST);
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
}

static void leave_contexts(const char *unused)
{
	__atomic_fetch_sub(&state.context_calls, 1, __ATOMIC_SEQ_CST);
}

static uint64_t primary_bit(CUdevice device)
{
	return device >= 0 && device < 64 ? 1ull << device : 0;
}

/* Not a primary context that the application has already. */
static __attribute__((noinline)) bool is_ours(bool created_kind, CUdevice device)
{
	return device == state.device && created_kind == state.created_kind &&
	       (created_kind || !(__atomic_load_n(&state.primaries, __ATOMIC_RELAXED) & primary_bit(device)));
}

/* Is a context of this kind, on this device, being warmed or waiting? */
static inline bool concerns(bool created_kind, CUdevice device)
{
	uint32_t now = stage();

	return __builtin_expect(now == STAGE_RUNNING || now == STAGE_WAITING, 0) && is_ours(created_kind, device);
}

/* With the lock held, in a call that is counted; both not while waiting. True if a context waits. */
static bool wait_until_warm(void)
{
	int i;

	for (i = 0; i < WAIT_STEPS && stage() == STAGE_RUNNING; i++) {
		unlock();
		leave_contexts(NULL);
		cudapool_futex_wait(&state.stage, STAGE_RUNNING, WAIT_STEP_MS);
		enter_contexts();
		lock();
	}
	return stage() == STAGE_WAITING;
}

/* From IDLE, which is left without the lock, too. False: it was not IDLE. */
static bool leave_idle(enum warm_stage next)
{
	uint32_t idle = STAGE_IDLE;

	return __atomic_compare_exchange_n(&state.stage, &idle, next, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE);
}

/* With the lock held, not in STAGE_IDLE. */
static void set_stage(enum warm_stage next, enum cudapool_warmth warmth)
{
	state.drop = 0;
	__atomic_store_n(&state.page->warmth, warmth, __ATOMIC_RELAXED);
	__atomic_store_n(&state.stage, next, __ATOMIC_RELEASE);
	cudapool_futex_wake(&state.stage, INT32_MAX);
}

/* With the lock held, in STAGE_WAITING. */
static void give_up(const char *why)
{
	CUresult r = state.created_kind ? DRIVER(cuCtxDestroy_v2)(state.context)
					: DRIVER(cuDevicePrimaryCtxRelease_v2)(state.device);

	shim_log(CUDAPOOL_LOG_INFO, "the warm context on device %d was given up: %s (%d)", state.device, why, r);
	set_stage(STAGE_ENDED, CUDAPOOL_WARMTH_DRIVER);
}

static void handed_back(void)
{
	state.contexts++;
	__atomic_fetch_add(&state.page->handed_back, 1, __ATOMIC_RELAXED);
	shim_log(CUDAPOOL_LOG_INFO, "the warm context on device %d was handed back", state.device);
	set_stage(STAGE_ENDED, CUDAPOOL_WARMTH_TAKEN);
}

void cudapool_drop(void)
{
	lock();
	if (state.drop && stage() == STAGE_WAITING)
		give_up("the application made its own");
	unlock();
}

/* The application got a context from the driver itself. */
static void made_its_own(void)
{
	__atomic_fetch_add(&state.contexts, 1, __ATOMIC_RELAXED);
	if (state.page)
		__atomic_fetch_add(&state.page->created, 1, __ATOMIC_RELAXED);
	if (leave_idle(STAGE_ENDED) || stage() == STAGE_ENDED)
		return;
	lock(); /* the warming looks at it at its end */
	state.drop = 1;
	unlock();
	if (!cudapool_futex_wake(&state.page->command_seq, 1) && stage() == STAGE_WAITING)
		cudapool_drop(); /* the thread is not asleep, and may have looked already */
}

/* The thread's side. */

static int make_context(void)
{
	CUdevice device;
	CUcontext ctx;
	CUresult r = DRIVER(cuDeviceGet)(&device, cudapool_options.warm_device);

	if (r != CUDA_SUCCESS)
		return r;
	if (!state.created_kind) {
		unsigned int flags;
		int active;

		/* Someone got past us to the driver: nothing to hand back. */
		r = DRIVER(cuDevicePrimaryCtxGetState)(device, &flags, &active);
		if (r != CUDA_SUCCESS || active)
			return r != CUDA_SUCCESS ? (int)r : CUDA_ERROR_PRIMARY_CONTEXT_ACTIVE;
		r = DRIVER(cuDevicePrimaryCtxRetain)(&ctx, device);
	} else {
		r = DRIVER(cuCtxCreate_v2)(&ctx, 0, device);
		if (r == CUDA_SUCCESS)
			r = DRIVER(cuCtxPopCurrent_v2)(&ctx);
	}
	if (r == CUDA_SUCCESS)
		state.context = ctx;
	return r;
}

bool cudapool_none_under_way(const uint32_t *calls)
{
	int i;

	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	for (i = 0; i < ALONE_STEPS && !state.drop && !state.exiting; i++) {
		if (!__atomic_load_n(calls, __ATOMIC_SEQ_CST))
			return !state.drop;
		cudapool_sleep_us(ALONE_STEP_US);
	}
	return false;
}

static int warm_driver(void)
{
	int (*on_exit)(void (*)(void *), void *, void *) = cudapool_libc_function("__cxa_atexit");
	void *(*open)(const char *, int) = cudapool_libc_function("dlopen");
	extern void *__dso_handle;
	CUresult r;

	if (!cudapool_driver_find() && (!open || !open("libcuda.so.1", RTLD_NOW) || !cudapool_driver_find()))
		return CUDA_ERROR_SHARED_OBJECT_INIT_FAILED;
	if (!DRIVER(cuInit) || !DRIVER(cuDeviceGetCount) || !DRIVER(cuDeviceGet) || !DRIVER(cuCtxDestroy_v2) ||
	    !DRIVER(cuDevicePrimaryCtxGetState) || !DRIVER(cuDevicePrimaryCtxRetain) || !DRIVER(cuCtxCreate_v2) ||
	    !DRIVER(cuDevicePrimaryCtxRelease_v2) || !DRIVER(cuCtxPopCurrent_v2) || !DRIVER(cuCtxPushCurrent_v2))
		return CUDA_ERROR_SHARED_OBJECT_SYMBOL_NOT_FOUND;
	/* Handlers run last in, first out. Only what cuInit itself may register comes before this one. */
	if (on_exit && !state.at_exit) {
		state.at_exit = 1;
		on_exit((void (*)(void *))cudapool_quiesce, NULL, &__dso_handle);
	}
	if (state.exiting)
		return CUDA_ERROR_DEINITIALIZED;
	r = cudapool_init_driver();
	if (r != CUDA_SUCCESS)
		return r;
	__atomic_store_n(&state.page->warmth, CUDAPOOL_WARMTH_DRIVER, __ATOMIC_RELAXED);
	if (cudapool_none_under_way(&state.context_calls))
		return make_context();
	return state.drop ? CUDA_SUCCESS : state.exiting ? CUDA_ERROR_DEINITIALIZED : CUDA_ERROR_NOT_READY;
}

int cudapool_warm(const char *why)
{
	struct timespec begin, end;
	int r;

	lock();
	if (stage() != STAGE_IDLE || state.contexts || state.exiting || cudapool_forked_while_warming()) {
		unlock();
		return CUDA_SUCCESS;
	}
	state.device = cudapool_options.warm_device;
	state.created_kind = cudapool_options.warm_created;
	if (!leave_idle(STAGE_RUNNING)) {
		unlock(); /* the application made its own this very moment */
		return CUDA_SUCCESS;
	}
	cudapool_note_warming(true);
	unlock();

	clock_gettime(CLOCK_MONOTONIC, &begin);
	r = warm_driver();
	clock_gettime(CLOCK_MONOTONIC, &end);

	lock();
	cudapool_note_warming(false);
	state.page->warm_us = (end.tv_sec - begin.tv_sec) * 1000000ll + (end.tv_nsec - begin.tv_nsec) / 1000;
	state.page->warm_result = r;
	if (r == CUDA_SUCCESS && !state.context) {
		set_stage(STAGE_ENDED, CUDAPOOL_WARMTH_DRIVER); /* the application was faster */
	} else if (r == CUDA_SUCCESS) {
		bool unwanted = state.drop;

		set_stage(STAGE_WAITING, CUDAPOOL_WARMTH_CONTEXT);
		if (unwanted)
			give_up("the application made its own");
	} else {
		set_stage(STAGE_IDLE, CUDAPOOL_WARMTH_FAILED);
	}
	unlock();
	if (r == CUDA_SUCCESS && !state.context)
		shim_log(CUDAPOOL_LOG_INFO, "the application had a context before one was warmed (%s)", why);
	else if (r == CUDA_SUCCESS)
		shim_log(CUDAPOOL_LOG_INFO, "warmed device %d in %llu us (%s)", state.device,
			 (unsigned long long)state.page->warm_us, why);
	else
		shim_log(CUDAPOOL_LOG_ERR,
			 "warming device %d failed with CUDA error %d (%s): the application goes the driver's own way",
			 state.device, r, why);
	return r;
}

void cudapool_quiesce(void)
{
	int saved_errno = errno, i;

	__atomic_store_n(&state.exiting, 1, __ATOMIC_SEQ_CST); /* before the stage is looked at */
	for (i = 0; i < EXIT_STEPS && stage() == STAGE_RUNNING; i++)
		cudapool_futex_wait(&state.stage, STAGE_RUNNING, WAIT_STEP_MS);
	errno = saved_errno;
}

/* The application's side. */

CUresult cudapool_wrap_cuDevicePrimaryCtxRetain(CUcontext *ctx, CUdevice device)
{
	CUresult r;

	ENTER();
	if (concerns(false, device)) {
		lock();
		if (wait_until_warm() && ctx) {
			*ctx = state.context;
			cudapool_note_context(*ctx, device);
			__atomic_fetch_or(&state.primaries, primary_bit(device), __ATOMIC_RELAXED);
			handed_back();
			unlock();
			return CUDA_SUCCESS;
		}
		unlock();
	}
	r = REAL(cuDevicePrimaryCtxRetain)(ctx, device);
	if (r == CUDA_SUCCESS)
		cudapool_note_context(*ctx, device);
	if (r == CUDA_SUCCESS && !(state.primaries & primary_bit(device))) {
		__atomic_fetch_or(&state.primaries, primary_bit(device), __ATOMIC_RELAXED);
		made_its_own();
	}
	return r;
}

/*
 * The application gave a reference back: if that was the last one, all that it has there is gone, and its next context will
 * be a new one.
 */
static CUresult release(CUresult (*real)(CUdevice), CUdevice device)
{
	struct cudapool_ending ending;
	unsigned int flags;
	int active;
	CUresult r;

	cudapool_primary_ending(&ending, device);
	r = real(device);
	if (r == CUDA_SUCCESS && DRIVER(cuDevicePrimaryCtxGetState) &&
	    DRIVER(cuDevicePrimaryCtxGetState)(device, &flags, &active) == CUDA_SUCCESS && !active) {
		__atomic_fetch_and(&state.primaries, ~primary_bit(device), __ATOMIC_RELAXED);
		cudapool_context_ended(&ending);
	}
	return r;
}

/* A context that the application did not retain: the two versions differ in what they say then. */
CUresult cudapool_wrap_cuDevicePrimaryCtxRelease(CUdevice device)
{
	ENTER();
	return concerns(false, device) ? CUDA_SUCCESS : release(REAL(cuDevicePrimaryCtxRelease), device);
}

CUresult cudapool_wrap_cuDevicePrimaryCtxRelease_v2(CUdevice device)
{
	ENTER();
	return concerns(false, device) ? CUDA_ERROR_INVALID_CONTEXT
				       : release(REAL(cuDevicePrimaryCtxRelease_v2), device);
}

/* Ours may come or go during the call: it is hidden if it was there before or after. */
static __attribute__((noinline)) CUresult state_without_ours(CUdevice device, unsigned int *flags, int *active)
{
	bool ours = concerns(false, device);
	CUresult r = REAL(cuDevicePrimaryCtxGetState)(device, flags, active);

	if (r == CUDA_SUCCESS && (ours || concerns(false, device)))
		*active = 0;
	return r;
}

CUresult cudapool_wrap_cuDevicePrimaryCtxGetState(CUdevice device, unsigned int *flags, int *active)
{
	/* The other one is not inlined: for an application that has its context this is a jump to the driver. */
	return stage() == STAGE_ENDED ? REAL(cuDevicePrimaryCtxGetState)(device, flags, active)
				      : state_without_ours(device, flags, active);
}

static unsigned int waiting_flags(void)
{
	unsigned int flags = 0;
	int active;

	DRIVER(cuDevicePrimaryCtxGetState)(state.device, &flags, &active);
	return flags;
}

/* Resetting an inactive primary context sets its flags to 0 and does nothing else. True: then there is nothing to do.
 */
static bool reset_of_waiting(CUdevice device)
{
	bool nothing = false;

	if (!concerns(false, device))
		return false;
	lock();
	if (wait_until_warm()) {
		nothing = waiting_flags() == 0;
		if (!nothing)
			give_up("the application reset the device");
	}
	unlock();
	return nothing;
}

CUresult cudapool_wrap_cuDevicePrimaryCtxReset(CUdevice device)
{
	ENTER();
	return reset_of_waiting(device) ? CUDA_SUCCESS : release(REAL(cuDevicePrimaryCtxReset), device);
}

CUresult cudapool_wrap_cuDevicePrimaryCtxReset_v2(CUdevice device)
{
	ENTER();
	return reset_of_waiting(device) ? CUDA_SUCCESS
					: release(REAL(cuDevicePrimaryCtxReset_v2), device);
}

/*
 * The old version refuses to touch an active context, the new one changes it; other flags than how to wait
 * take effect when a context is created, so then it must be. True: the flags are these already.
 */
static bool flags_of_waiting(CUdevice device, unsigned int flags, unsigned int changeable)
{
	bool same = false;

	if (!concerns(false, device))
		return false;
	lock();
	if (wait_until_warm()) {
		unsigned int now = waiting_flags();

		same = flags == now;
		if ((flags ^ now) & ~changeable)
			give_up("the application set other flags");
	}
	unlock();
	return same;
}

CUresult cudapool_wrap_cuDevicePrimaryCtxSetFlags(CUdevice device, unsigned int flags)
{
	ENTER();
	return flags_of_waiting(device, flags, 0) ? CUDA_SUCCESS : REAL(cuDevicePrimaryCtxSetFlags)(device, flags);
}

CUresult cudapool_wrap_cuDevicePrimaryCtxSetFlags_v2(CUdevice device, unsigned int flags)
{
	ENTER();
	return flags_of_waiting(device, flags, SCHED_FLAGS) ? CUDA_SUCCESS
							    : REAL(cuDevicePrimaryCtxSetFlags_v2)(device, flags);
}

/* A green context keeps the primary one active by itself: it takes the place of our reference. */
CUresult cudapool_wrap_cuGreenCtxCreate(CUgreenCtx *ctx, CUdevResourceDesc desc, CUdevice device, unsigned int flags)
{
	CUresult r;

	ENTER();
	r = REAL(cuGreenCtxCreate)(ctx, desc, device, flags);
	if (r != CUDA_SUCCESS)
		return r;
	if (concerns(false, device)) {
		lock();
		if (wait_until_warm()) {
			DRIVER(cuDevicePrimaryCtxRelease_v2)(device);
			handed_back();
			unlock();
			return r;
		}
		unlock();
	}
	made_its_own();
	return r;
}

/*
 * cuCtxCreate. Versions 2 to 4 without parameters make the same context (cuCtxGetApiVersion says 3020 for each);
 * the first version's is another (3010). The warm one was made with flags 0.
 */
static bool take_created(CUcontext *ctx, unsigned int flags, CUdevice device)
{
	bool taken = false;

	if (!concerns(true, device) || !ctx || flags)
		return false;
	lock();
	if (wait_until_warm() && DRIVER(cuCtxPushCurrent_v2)(state.context) == CUDA_SUCCESS) {
		*ctx = state.context;
		cudapool_note_context(*ctx, device);
		handed_back();
		taken = true;
	}
	unlock();
	return taken;
}

static CUresult created(CUresult r, const CUcontext *ctx, CUdevice device)
{
	if (r == CUDA_SUCCESS) {
		cudapool_note_context(*ctx, device);
		made_its_own();
	}
	return r;
}

/* The driver (580) does not make a context of the first version's kind while one of the newer kind exists. */
CUresult cudapool_wrap_cuCtxCreate(CUcontext *ctx, unsigned int flags, CUdevice device)
{
	ENTER();
	if (stage() == STAGE_RUNNING || stage() == STAGE_WAITING) {
		lock();
		if (wait_until_warm())
			give_up("the application uses the first version of cuCtxCreate");
		unlock();
	}
	return created(REAL(cuCtxCreate)(ctx, flags, device), ctx, device);
}

CUresult cudapool_wrap_cuCtxCreate_v2(CUcontext *ctx, unsigned int flags, CUdevice device)
{
	ENTER();
	return take_created(ctx, flags, device) ? CUDA_SUCCESS
						: created(REAL(cuCtxCreate_v2)(ctx, flags, device), ctx, device);
}

CUresult cudapool_wrap_cuCtxCreate_v3(CUcontext *ctx, CUexecAffinityParam *affinity, int count, unsigned int flags,
				      CUdevice device)
{
	ENTER();
	if (!affinity && !count && take_created(ctx, flags, device))
		return CUDA_SUCCESS;
	return created(REAL(cuCtxCreate_v3)(ctx, affinity, count, flags, device), ctx, device);
}

CUresult cudapool_wrap_cuCtxCreate_v4(CUcontext *ctx, CUctxCreateParams *params, unsigned int flags, CUdevice device)
{
	ENTER();
	if (!params && take_created(ctx, flags, device))
		return CUDA_SUCCESS;
	return created(REAL(cuCtxCreate_v4)(ctx, params, flags, device), ctx, device);
}
