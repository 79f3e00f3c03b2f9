// SPDX-License-Identifier: MIT
/* The gate: what holds the application's CUDA calls while its memory is parked. */
#include <errno.h>
#include <linux/membarrier.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "gate.h"

/*
 * Slots are never given back by their threads: that would take a destructor, which allocates, and runs at a time when
 * the driver's own destructors may still call. A slot whose thread is gone is taken again by a thread with the same
 * thread pointer or id, and by anyone when all are taken. A slot belongs to the thread whose thread pointer is in it: a
 * child of fork starts with all slots cleared, and what its thread remembers of its parent's does not match.
 *
 * Sequentially consistent accesses here are the ones that the proof in gate.h rests on.
 */
#define STALL_US     1000 /* without a change, until calls that wait may pass for a moment */
#define BREATH_US    300  /* how long that lasts for those that were waiting */
#define WIDE_US	     1000 /* and for all */
#define WIDE_EACH    4	  /* of so many moments one is for all */
#define SPIN_US	     1000 /* how long a change is looked for without sleeping long */
#define WAIT_STEP_MS 1000
#define SWEPT	     UINT32_MAX /* in the place of a thread's id: the slot is being made free */

#define state cudapool_state

__thread struct cudapool_slot *cudapool_slot;
struct cudapool_slot *cudapool_held_enter(void); /* called by stubs.S only */

/* For threads that found no slot: counted in by all of them at once, and never looked at. */
static struct cudapool_slot no_slot;

uint64_t cudapool_now_us(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000ull + now.tv_nsec / 1000;
}

void cudapool_sleep_us(uint32_t us)
{
	struct timespec time = {us / 1000000, us % 1000000 * 1000};
	int saved_errno = errno;

	syscall(SYS_nanosleep, &time, NULL);
	errno = saved_errno;
}

/* The application's side. */

static bool thread_gone(uint32_t tid)
{
	return syscall(SYS_tgkill, syscall(SYS_getpid), tid, 0) && errno == ESRCH;
}

static bool take(struct cudapool_slot *slot, uint32_t from, uint32_t tid)
{
	return __atomic_compare_exchange_n(&slot->tid, &from, tid, false, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED);
}

static struct cudapool_slot *find_slot(void *self, uint32_t tid)
{
	uint32_t used = __atomic_load_n(&state.slots_used, __ATOMIC_ACQUIRE), i;
	struct cudapool_slot *slot;

	/* Whoever had our thread pointer or our id is gone. */
	for (i = 0; i < used; i++) {
		uint32_t other;

		slot = &state.slots[i];
		other = __atomic_load_n(&slot->tid, __ATOMIC_RELAXED);
		if (other == tid || (slot->self == self && other != SWEPT && take(slot, other, tid)))
			return slot;
	}
	for (slot = state.slots; slot < state.slots + CUDAPOOL_SLOTS; slot++)
		if (!__atomic_load_n(&slot->tid, __ATOMIC_RELAXED) && take(slot, 0, tid))
			return slot;
	for (slot = state.slots; slot < state.slots + CUDAPOOL_SLOTS; slot++) {
		uint32_t other = __atomic_load_n(&slot->tid, __ATOMIC_RELAXED);

		if (thread_gone(other) && take(slot, other, tid))
			return slot;
	}
	return NULL;
}

static struct cudapool_slot *claim_slot(void)
{
	void *self = cudapool_thread_pointer();
	struct cudapool_slot *slot = find_slot(self, syscall(SYS_gettid));
	uint32_t used, index;

	if (!slot) {
		__atomic_store_n(&state.unparkable, 1, __ATOMIC_SEQ_CST);
		return cudapool_slot = &no_slot;
	}
	slot->depth = 0;
	slot->waiting = 0;
	__atomic_store_n(&slot->self, self, __ATOMIC_RELEASE);
	index = slot - state.slots;
	used = __atomic_load_n(&state.slots_used, __ATOMIC_RELAXED);
	while (used <= index && !__atomic_compare_exchange_n(&state.slots_used, &used, index + 1, false,
							     __ATOMIC_SEQ_CST, __ATOMIC_RELAXED))
		;
	return cudapool_slot = slot;
}

static bool may_pass(const struct cudapool_slot *slot, uint32_t arrived)
{
	uint8_t now = __atomic_load_n(&state.closed, __ATOMIC_SEQ_CST);

	if (now == CUDAPOOL_GATE_OPEN || now == CUDAPOOL_GATE_CAREFUL)
		return true;
	/* A call that nobody would see must not pass for a moment. */
	if (slot == &no_slot)
		return false;
	return now == CUDAPOOL_GATE_WIDE ||
	       (now == CUDAPOOL_GATE_BREATH && __atomic_load_n(&state.gate_turn, __ATOMIC_SEQ_CST) != arrived);
}

void cudapool_gate_enter_slowly(void)
{
	struct cudapool_slot *slot = cudapool_slot;
	uint32_t turn = __atomic_load_n(&state.gate_turn, __ATOMIC_SEQ_CST), arrived = turn;
	int saved_errno = errno;

	if (!slot || slot->self != cudapool_thread_pointer())
		slot = claim_slot();
	if (slot->depth && slot != &no_slot) {
		slot->depth++; /* within a call, which is being waited for */
		return;
	}
	for (;;) {
		__atomic_store_n(&slot->depth, 1, __ATOMIC_SEQ_CST);
		if (may_pass(slot, arrived))
			break;
		__atomic_store_n(&slot->depth, 0, __ATOMIC_RELEASE);
		if (!slot->waiting && state.page)
			__atomic_fetch_add(&state.page->held_calls, 1, __ATOMIC_RELAXED);
		__atomic_store_n(&slot->waiting, 1, __ATOMIC_RELAXED);
		cudapool_futex_wait(&state.gate_turn, turn, WAIT_STEP_MS);
		turn = __atomic_load_n(&state.gate_turn, __ATOMIC_SEQ_CST);
	}
	__atomic_store_n(&slot->waiting, 0, __ATOMIC_RELAXED);
	errno = saved_errno;
}

/* NULL: the application has not initialised the driver. */
struct cudapool_slot *cudapool_held_enter(void)
{
	if (!__atomic_load_n(&state.app_inited, __ATOMIC_ACQUIRE))
		return NULL;
	cudapool_gate_enter_slowly();
	return cudapool_slot;
}

/* The shim's thread's side. */

static uint32_t occupant; /* the last one that was seen within a call */

/* Has every thread of the process that is running now execute a fence. */
static bool fence_all(void)
{
	return !syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED, 0, 0);
}

void cudapool_gate_prepare(void)
{
	uint8_t open = CUDAPOOL_GATE_OPEN;

	syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED, 0, 0);
	if (fence_all())
		return;
	state.gate_careful = true;
	__atomic_compare_exchange_n(&state.closed, &open, CUDAPOOL_GATE_CAREFUL, false, __ATOMIC_SEQ_CST,
				    __ATOMIC_RELAXED);
}

/* A thread that was cancelled, or ended itself, within a call or at the gate left its slot as it was. */
static bool sweep(struct cudapool_slot *slot)
{
	uint32_t tid = __atomic_load_n(&slot->tid, __ATOMIC_RELAXED);

	if (!tid || !thread_gone(tid) || !take(slot, tid, SWEPT))
		return false;
	__atomic_store_n(&slot->depth, 0, __ATOMIC_RELAXED);
	__atomic_store_n(&slot->waiting, 0, __ATOMIC_RELAXED);
	__atomic_store_n(&slot->tid, 0, __ATOMIC_RELEASE);
	return true;
}

unsigned cudapool_gate_waiting(void)
{
	uint32_t used = __atomic_load_n(&state.slots_used, __ATOMIC_ACQUIRE), i;
	unsigned waiting = 0;

	for (i = 0; i < used; i++)
		waiting += __atomic_load_n(&state.slots[i].waiting, __ATOMIC_RELAXED) && !sweep(&state.slots[i]);
	return waiting;
}

uint32_t cudapool_gate_occupant(void)
{
	return occupant;
}

/* Calls that are under way. look: whether their threads still are. */
static unsigned inside(bool look)
{
	uint32_t used = __atomic_load_n(&state.slots_used, __ATOMIC_SEQ_CST), i;
	unsigned calls = 0;

	for (i = 0; i < used; i++) {
		struct cudapool_slot *slot = &state.slots[i];

		if (!__atomic_load_n(&slot->depth, __ATOMIC_SEQ_CST) || (look && sweep(slot)))
			continue;
		occupant = __atomic_load_n(&slot->tid, __ATOMIC_RELAXED);
		calls++;
	}
	return calls;
}

static void let_pass(enum cudapool_gate_state how, uint32_t us)
{
	__atomic_store_n(&state.closed, how, __ATOMIC_SEQ_CST);
	__atomic_fetch_add(&state.gate_turn, 1, __ATOMIC_SEQ_CST);
	cudapool_futex_wake(&state.gate_turn, INT32_MAX);
	if (us)
		cudapool_sleep_us(us);
}

/* Closed, and then until no call is under way. */
static int settle(uint64_t deadline_us)
{
	uint64_t begun = cudapool_now_us(), moved = begun, now;
	unsigned calls, before = 0, moments = 0;

	for (;;) {
		now = cudapool_now_us();
		calls = inside(now - begun > SPIN_US);
		if (__atomic_load_n(&state.unparkable, __ATOMIC_SEQ_CST))
			return -EOPNOTSUPP;
		if (!calls)
			return 0;
		if (now >= deadline_us)
			return -ETIMEDOUT;
		if (calls != before) {
			before = calls;
			moved = now;
		} else if (now - moved > STALL_US && cudapool_gate_waiting()) {
			if (++moments % WIDE_EACH)
				let_pass(CUDAPOOL_GATE_BREATH, BREATH_US);
			else
				let_pass(CUDAPOOL_GATE_WIDE, WIDE_US);
			__atomic_store_n(&state.closed, CUDAPOOL_GATE_CLOSED, __ATOMIC_SEQ_CST);
			moved = cudapool_now_us();
			continue;
		}
		cudapool_sleep_us(now - begun < SPIN_US ? 10 : 200);
	}
}

int cudapool_gate_close(uint64_t limit_us)
{
	uint64_t deadline_us = cudapool_now_us() + limit_us;
	uint8_t before = state.closed;
	int err;

	__atomic_store_n(&state.closed, CUDAPOOL_GATE_CLOSED, __ATOMIC_SEQ_CST);
	if (before == CUDAPOOL_GATE_OPEN && !fence_all()) {
		cudapool_gate_prepare(); /* the process was restored, and this not yet done */
		err = state.gate_careful ? -EOPNOTSUPP : settle(deadline_us);
	} else {
		err = settle(deadline_us);
	}
	if (err)
		cudapool_gate_open();
	return err;
}

int cudapool_gate_breathe(uint64_t limit_us)
{
	uint64_t deadline_us = cudapool_now_us() + limit_us;

	let_pass(CUDAPOOL_GATE_WIDE, WIDE_US);
	__atomic_store_n(&state.closed, CUDAPOOL_GATE_CLOSED, __ATOMIC_SEQ_CST);
	return settle(deadline_us);
}

void cudapool_gate_open(void)
{
	let_pass(state.gate_careful ? CUDAPOOL_GATE_CAREFUL : CUDAPOOL_GATE_OPEN, 0);
}
