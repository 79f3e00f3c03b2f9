// SPDX-License-Identifier: MIT
/* The gate: what holds the application's CUDA calls while its memory is parked. */
#ifndef CUDAPOOL_PRELOAD_GATE_H
#define CUDAPOOL_PRELOAD_GATE_H

#include <stdbool.h>
#include <stdint.h>

#include "shim.h"

/*
 * Every call that could touch GPU memory, submit work, or change what park has to know goes through here: HELD
 * functions by their stubs, WRAPPED ones by what follows. A call within a call (a wrapper that calls another, a host
 * callback that the driver runs in the calling thread) passes.
 *
 * While the gate is open this costs a few instructions and no shared cache line that anyone writes: a thread counts its
 * calls in a slot of its own, and only then looks whether the gate is closed: in this order as the compiler sees it,
 * but without a fence. Whoever closes it makes up for that: after its store it has every running thread execute a fence
 * (membarrier), and then looks at all slots. So either the thread sees the gate closed, or its call is seen.
 */
enum cudapool_gate_state {
	CUDAPOOL_GATE_OPEN = 0,
	CUDAPOOL_GATE_CAREFUL = 1, /* open; the kernel refuses membarrier, so each call executes a fence itself */
	CUDAPOOL_GATE_CLOSED = 2,
	CUDAPOOL_GATE_BREATH = 3, /* closed, but each call that was waiting when this began may pass */
	CUDAPOOL_GATE_WIDE = 4,	  /* closed, but any call may pass */
};

/* Initial-exec: no lazily allocated block of thread-local memory, so no malloc in the first call of a thread. */
extern __thread struct cudapool_slot *cudapool_slot __attribute__((tls_model("initial-exec"), visibility("hidden")));

void cudapool_gate_enter_slowly(void);

static inline void *cudapool_thread_pointer(void)
{
	void *pointer;

#if defined(__x86_64__)
	__asm__("mov %%fs:0, %0" : "=r"(pointer));
#else
	__asm__("mrs %0, tpidr_el0" : "=r"(pointer));
#endif
	return pointer;
}

/* Returns when the gate is open; keeps errno. stubs.S does the same. */
static inline void cudapool_gate_enter(void)
{
	struct cudapool_slot *slot = cudapool_slot;

	if (__builtin_expect(slot && slot->self == cudapool_thread_pointer(), 1)) {
		__atomic_store_n(&slot->depth, slot->depth + 1, __ATOMIC_RELAXED);
		__atomic_signal_fence(__ATOMIC_SEQ_CST);
		if (__builtin_expect(__atomic_load_n(&cudapool_state.closed, __ATOMIC_ACQUIRE) == CUDAPOOL_GATE_OPEN, 1))
			return;
		__atomic_store_n(&slot->depth, slot->depth - 1, __ATOMIC_RELEASE);
	}
	cudapool_gate_enter_slowly();
}

static inline void cudapool_gate_leave(void)
{
	struct cudapool_slot *slot = cudapool_slot;

	__atomic_store_n(&slot->depth, slot->depth - 1, __ATOMIC_RELEASE);
}

/* The rest of the block in which this stands is within the gate, whichever way it is left. */
static inline void cudapool_gate_leave_scope(const char *unused)
{
	cudapool_gate_leave();
}
#define CUDAPOOL_WITHIN_GATE()                                                                                         \
	const char within_gate __attribute__((cleanup(cudapool_gate_leave_scope), unused)) = (cudapool_gate_enter(), 0)

/* What follows: in the shim's thread only. */

/* Once, and again after a restore: makes the kernel ready for a fast closing. May take it some milliseconds. */
void cudapool_gate_prepare(void);

/*
 * Closes the gate and waits until no call is under way, at most limit_us. 0; -ETIMEDOUT, or -EOPNOTSUPP (it cannot be
 * closed in this process: too many threads, or no membarrier from now on): it is open again. Calls that block each other
 * (a thread waits for work, and that for a host function that calls CUDA, or for a lock) are given chances: when nothing
 * moves, those that wait at the gate pass for a moment.
 */
int cudapool_gate_close(uint64_t limit_us);

/*
 * The gate is closed: lets calls that wait pass for a moment, and waits until none is under way again, at most
 * limit_us. The same results, but it stays closed.
 */
int cudapool_gate_breathe(uint64_t limit_us);

void cudapool_gate_open(void);

/* Threads that wait at the gate now. */
unsigned cudapool_gate_waiting(void);

/*
 * After -ETIMEDOUT: the id of a thread that was within a call, as the process knows it. The call blocks; or the thread
 * left it by longjmp(), which looks the same. (One that was cancelled, or ended otherwise, is not waited for.)
 */
uint32_t cudapool_gate_occupant(void);

/* Microseconds of CLOCK_MONOTONIC, and a sleep that no library intercepts. */
uint64_t cudapool_now_us(void);
void cudapool_sleep_us(uint32_t us);

#endif
