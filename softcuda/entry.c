// SPDX-License-Identifier: MIT
/* The exported functions, generated from one table, and the gate that all of them pass. */
#include "graph.h"

#include <errno.h>

const char *const softcuda_api_names[SOFTCUDA_API_COUNT] = {
#define CUDA_API(needs, symbol, base, since, params, args)                  #symbol,
#define CUDA_API_PTSZ(needs, symbol, base, since, since_ptsz, params, args) #symbol,
#define CUDA_API_PTDS(needs, symbol, base, since, since_ptds, params, args) #symbol,
#include "cuda_api.def"
#undef CUDA_API
#undef CUDA_API_PTSZ
#undef CUDA_API_PTDS
};

_Thread_local bool softcuda_per_thread;
_Thread_local struct CUctx_st *softcuda_host_function;

enum needs { NEEDS_NOTHING, NEEDS_DRIVER, NEEDS_CONTEXT };

static _Atomic uint32_t gate_closed;
static _Atomic uint32_t gate_inside;

void softcuda_gate_close(void)
{
	atomic_store(&gate_closed, 1);
}

void softcuda_gate_open(void)
{
	atomic_store(&gate_closed, 0);
	softcuda_futex_wake(&gate_closed, false);
}

int softcuda_gate_drain(uint64_t deadline_ns)
{
	uint32_t inside;

	while ((inside = atomic_load(&gate_inside))) {
		uint64_t now = softcuda_now_ns();

		if (deadline_ns && now >= deadline_ns)
			return -ETIMEDOUT;
		softcuda_futex_wait(&gate_inside, inside, deadline_ns ? deadline_ns - now : 0, false);
	}
	return 0;
}

void softcuda_gate_reset_in_child(void)
{
	atomic_store(&gate_closed, 0);
	atomic_store(&gate_inside, 0);
}

static void gate_leave(void)
{
	if (atomic_fetch_sub(&gate_inside, 1) == 1 && atomic_load(&gate_closed))
		softcuda_futex_wake(&gate_inside, false);
}

static void gate_enter(void)
{
	for (;;) {
		atomic_fetch_add(&gate_inside, 1);
		if (!atomic_load(&gate_closed))
			return;
		gate_leave();
		softcuda_futex_wait(&gate_closed, 1, 0, false);
	}
}

/* The checkpoint functions act on other processes and must work while this one is locked. */
static bool gated(enum softcuda_api api, enum needs needs)
{
	return needs != NEEDS_NOTHING &&
	       (api < API_cuCheckpointProcessGetRestoreThreadId || api > API_cuCheckpointProcessUnlock);
}

/*
 * Refused while a stream is captured, by its mode and the thread's; those on a stream or an event look for
 * themselves.
 */
static bool unsafe(enum softcuda_api api)
{
	static const bool list[SOFTCUDA_API_COUNT] = {
		[API_cuMemAlloc_v2] = true,        [API_cuMemAllocPitch_v2] = true, [API_cuMemFree_v2] = true,
		[API_cuMemAllocManaged] = true,    [API_cuMemAllocHost_v2] = true,  [API_cuMemHostAlloc] = true,
		[API_cuMemFreeHost] = true,        [API_cuMemHostRegister_v2] = true,
		[API_cuMemHostUnregister] = true,
	};

	return list[api];
}

/* What a host function may call (H200, as far as it was asked): the context is its stream's. */
static bool for_host_functions(enum softcuda_api api)
{
	static const bool list[SOFTCUDA_API_COUNT] = {
		[API_cuEventQuery] = true,        [API_cuEventRecord] = true,    [API_cuStreamQuery] = true,
		[API_cuStreamSynchronize] = true, [API_cuMemsetD8Async] = true,  [API_cuMemsetD32Async] = true,
		[API_cuStreamIsCapturing] = true,
	};

	return list[api];
}

static inline CUresult enter(enum softcuda_api api, enum needs needs)
{
	CUresult result = CUDA_SUCCESS;
	int phase = atomic_load(&softcuda_phase);

	if (phase == SOFTCUDA_ENDED)
		return CUDA_ERROR_DEINITIALIZED;
	if (needs != NEEDS_NOTHING && phase != SOFTCUDA_READY)
		return CUDA_ERROR_NOT_INITIALIZED;
	if (softcuda_host_function && needs != NEEDS_NOTHING && !for_host_functions(api))
		return CUDA_ERROR_NOT_PERMITTED;
	if (gated(api, needs))
		gate_enter();
	if (needs == NEEDS_CONTEXT)
		result = softcuda_current_check();
	if (result == CUDA_SUCCESS && unsafe(api) && atomic_load(&softcuda_captures))
		result = softcuda_capture_unsafe();
	if (result == CUDA_SUCCESS && atomic_load_explicit(&softcuda_faults_armed, memory_order_relaxed))
		result = softcuda_fault(api);
	if (result != CUDA_SUCCESS && gated(api, needs))
		gate_leave();
	return result;
}

static inline void leave(enum softcuda_api api, enum needs needs)
{
	if (gated(api, needs))
		gate_leave();
}

#define EXPORT __attribute__((visibility("default")))

#define BODY(needs, symbol, args)                                                                                      \
	{                                                                                                              \
		CUresult result = enter(API_##symbol, NEEDS_##needs);                                                  \
		if (result == CUDA_SUCCESS) {                                                                          \
			result = do_##symbol args;                                                                     \
			leave(API_##symbol, NEEDS_##needs);                                                            \
		}                                                                                                      \
		return result;                                                                                         \
	}
#define BODY_PER_THREAD(needs, symbol, args)                                                                           \
	{                                                                                                              \
		CUresult result = enter(API_##symbol, NEEDS_##needs);                                                  \
		if (result == CUDA_SUCCESS) {                                                                          \
			softcuda_per_thread = true;                                                                    \
			result = do_##symbol args;                                                                     \
			softcuda_per_thread = false;                                                                   \
			leave(API_##symbol, NEEDS_##needs);                                                            \
		}                                                                                                      \
		return result;                                                                                         \
	}

#define CUDA_API(needs, symbol, base, since, params, args) EXPORT CUresult symbol params BODY(needs, symbol, args)
#define CUDA_API_PTSZ(needs, symbol, base, since, since_ptsz, params, args)                                            \
	CUDA_API(needs, symbol, base, since, params, args)                                                             \
	EXPORT CUresult symbol##_ptsz params BODY_PER_THREAD(needs, symbol, args)
#define CUDA_API_PTDS(needs, symbol, base, since, since_ptds, params, args)                                            \
	CUDA_API(needs, symbol, base, since, params, args)                                                             \
	EXPORT CUresult symbol##_ptds params BODY_PER_THREAD(needs, symbol, args)
#include "cuda_api.def"
