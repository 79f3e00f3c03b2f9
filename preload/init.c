// SPDX-License-Identifier: MIT
/* The application's cuInit and ours, and what its calls are answered before its own. */
#include <errno.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

#define CUDAPOOL_ABI_NO_VERSIONS
#include <cuda.h>

#include "shim.h"

/*
 * Until the application's own cuInit it must not be able to tell whether we have initialised the driver. A look at a
 * flag before each call would not do: our cuInit may end between that look and the driver's. So until then every call
 * comes here (stubs.S), and is counted before it looks whether our cuInit is announced, which waits for those that are
 * counted: either the driver answers, and is not initialised by us before it has, or we do. None waits for us, or for
 * another. From its cuInit on the application's calls cost one look at app_inited, which is never taken back.
 */
#define AGAIN (-1) /* the application has initialised the driver: the stub begins again */

#define state cudapool_state
_Static_assert(!offsetof(struct cudapool_state, app_inited) && offsetof(struct cudapool_state, closed) == 1,
	       "stubs.S reads both at once");

/* With as many integer arguments as fit into registers, and twelve on the stack: no function has more. */
#define FOUR(from, i)	(from)[i], (from)[(i) + 1], (from)[(i) + 2], (from)[(i) + 3]
#define FOUR_LONGS	long, long, long, long
#define ON_STACK(from)	FOUR(from, 0), FOUR(from, 4), FOUR(from, 8)
#define STACK_WORDS	12
#define PAGE		4096 /* the smallest */
#if defined(__x86_64__)
#define REGISTERS(from) FOUR(from, 0), (from)[4], (from)[5]
typedef CUresult (*arguments_function)(FOUR_LONGS, long, long, FOUR_LONGS, FOUR_LONGS, FOUR_LONGS);
#else
#define REGISTERS(from) FOUR(from, 0), FOUR(from, 4)
typedef CUresult (*arguments_function)(FOUR_LONGS, FOUR_LONGS, FOUR_LONGS, FOUR_LONGS, FOUR_LONGS);
#endif

CUresult cudapool_wrap_cuInit(unsigned int flags);
int64_t cudapool_early(uint32_t fn, const long *registers, const long *stack); /* called by stubs.S only */

/*
 * Not in the state, so that fork does not clear it: a child that was forked while our thread was inside the driver
 * inherits its locks, held by nobody. But it does not inherit state.warms, which is set before and stays.
 */
static uint8_t warming_here_or_in_a_parent;

void cudapool_note_warming(bool now)
{
	state.warms = 1;
	__atomic_store_n(&warming_here_or_in_a_parent, now, __ATOMIC_RELEASE);
}

bool cudapool_forked_while_warming(void)
{
	return __atomic_load_n(&warming_here_or_in_a_parent, __ATOMIC_ACQUIRE) && !state.warms;
}

/* What the driver reads once, in cuInit. */
static uint64_t environment_hash(void)
{
	static const char names[][24] = {"CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"};
	uint64_t hash = 14695981039346656037ull;
	size_t i;

	for (i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
		const char *value = getenv(names[i]);

		for (; value && *value; value++)
			hash = (hash ^ (unsigned char)*value) * 1099511628211ull;
		hash = (hash ^ (value ? 0x100 : 0x101)) * 1099511628211ull;
	}
	return hash;
}

/* Without the lock, as all here: a signal handler may call what it interrupted. */
static void application_inited(void)
{
	struct cudapool_page *page;

	__atomic_store_n(&state.app_inited, 1, __ATOMIC_SEQ_CST);
	page = __atomic_load_n(&state.page, __ATOMIC_SEQ_CST);
	if (page)
		__atomic_store_n(&page->app_inited, 1, __ATOMIC_RELAXED);
}

/* A driver that is initialised, and not by us, without a cuInit that we saw: someone got past us. */
static bool someone_inited(void)
{
	__typeof__(&cuDeviceGetCount) get_count = DRIVER(cuDeviceGetCount);
	int count;

	if (!get_count || get_count(&count) != CUDA_SUCCESS)
		return false;
	application_inited();
	return true;
}

int cudapool_init_driver(void)
{
	CUresult r = CUDA_ERROR_NOT_READY;

	if (state.initialised) /* by us, before */
		return DRIVER(cuInit)(0);
	someone_inited();
	__atomic_store_n(&state.environment, environment_hash(), __ATOMIC_RELAXED);
	__atomic_store_n(&state.initialised, 1, __ATOMIC_SEQ_CST);
	if (cudapool_none_under_way(&state.early_calls))
		r = DRIVER(cuInit)(0);
	if (r != CUDA_SUCCESS)
		__atomic_store_n(&state.initialised, 0, __ATOMIC_SEQ_CST);
	return r;
}

CUresult cudapool_wrap_cuInit(unsigned int flags)
{
	CUresult r;

	if (cudapool_forked_while_warming())
		return CUDA_ERROR_NOT_INITIALIZED; /* what the driver says in any child of an initialised process */
	r = ((__typeof__(&cudapool_wrap_cuInit))cudapool_real[cudapool_fn_cuInit])(flags);
	if (r != CUDA_SUCCESS)
		return r;

	cudapool_start(); /* in a child that knows the address from its parent */
	if (__atomic_load_n(&state.app_inited, __ATOMIC_ACQUIRE))
		return r;
	if (__atomic_load_n(&state.initialised, __ATOMIC_ACQUIRE) &&
	    __atomic_load_n(&state.environment, __ATOMIC_RELAXED) != environment_hash())
		shim_log(CUDAPOOL_LOG_ERR,
			 "CUDA_VISIBLE_DEVICES or CUDA_DEVICE_ORDER was changed after the driver had been warmed, and "
			 "has no effect: set it before the program starts, or take the program out of CUDAPOOL_WARM");
	application_inited();
	return r;
}

/* The kernel reads the signals before it refuses what is to be done with them. */
static bool readable(uintptr_t address)
{
	int saved_errno = errno;
	bool fault = syscall(SYS_rt_sigprocmask, -1, address, NULL, sizeof(uint64_t)) && errno == EFAULT;

	errno = saved_errno;
	return !fault;
}

/*
 * What lies on the stack above a call's own arguments is its caller's, or behind the stack's end (a coroutine's, which has
 * just begun): then its arguments end before that page.
 */
__attribute__((no_sanitize("address"))) static void copy_stack(long *to, const volatile long *stack)
{
	const uintptr_t next_page = ((uintptr_t)stack | (PAGE - 1)) + 1;
	const volatile long *end = stack + STACK_WORDS;

	if (next_page < (uintptr_t)end && !readable(next_page))
		end = (const volatile long *)next_page;
	while (stack < end)
		*to++ = *stack++;
}

/*
 * The answer, or AGAIN. The arguments go to the driver as they came, but for a floating-point one (cuParamSetf's), at
 * which it does not look then.
 */
int64_t cudapool_early(uint32_t fn, const long *registers, const long *stack)
{
	arguments_function real = (arguments_function)cudapool_real[fn];
	long words[STACK_WORDS] = {0};
	int64_t answer;

	if (cudapool_forked_while_warming())
		return CUDA_ERROR_NOT_INITIALIZED;
	copy_stack(words, stack);
	__atomic_fetch_add(&state.early_calls, 1, __ATOMIC_SEQ_CST);
	if (__atomic_load_n(&state.app_inited, __ATOMIC_ACQUIRE))
		answer = AGAIN;
	else if (__atomic_load_n(&state.initialised, __ATOMIC_SEQ_CST))
		answer = CUDA_ERROR_NOT_INITIALIZED;
	else if (someone_inited())
		answer = AGAIN;
	else
		answer = (uint32_t)real(REGISTERS(registers), ON_STACK(words));
	__atomic_fetch_sub(&state.early_calls, 1, __ATOMIC_SEQ_CST);
	return answer;
}
