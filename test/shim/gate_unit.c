// SPDX-License-Identifier: MIT
/* The gate by itself (preload/gate.c): who is inside when it has closed, and who may pass. */
#include <pthread.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>

#include "../../preload/gate.c"
#include "../client/tap.h"
#include "forbid.h"

#include <linux/futex.h>

struct cudapool_state cudapool_state;

long cudapool_futex_wait(uint32_t *word, uint32_t value, long limit_ms)
{
	struct timespec limit = {limit_ms / 1000, limit_ms % 1000 * 1000000};

	return syscall(SYS_futex, word, FUTEX_WAIT, value, &limit, NULL, 0);
}

long cudapool_futex_wake(uint32_t *word, int count)
{
	return syscall(SYS_futex, word, FUTEX_WAKE, count, NULL, NULL, 0);
}

#define THREADS 16
static volatile bool enough;
static struct {
	volatile uint32_t in; /* no atomic: it is what the gate protects */
	long calls;
	char pad[48];
} worker[THREADS];

static void *work(void *arg)
{
	long i = (long)arg;

	for (; !enough; worker[i].calls++) {
		cudapool_gate_enter();
		worker[i].in = 1;
		__atomic_signal_fence(__ATOMIC_SEQ_CST);
		worker[i].in = 0;
		cudapool_gate_leave();
		if (worker[i].calls % 1000 == 0)
			cudapool_sleep_us(100); /* sixteen threads that never sleep would have the machine to themselves */
	}
	return NULL;
}

static bool nobody_inside(void)
{
	bool nobody = true;
	long before = 0, after = 0;
	int i, round;

	for (i = 0; i < THREADS; i++)
		before += worker[i].calls;
	for (round = 0; round < 20; round++) {
		for (i = 0; i < THREADS; i++)
			nobody = nobody && !worker[i].in;
		cudapool_sleep_us(10);
	}
	for (i = 0; i < THREADS; i++)
		after += worker[i].calls;
	return nobody && after - before <= THREADS; /* a call may have been counted only now */
}

static void storm(const char *how)
{
	pthread_t thread[THREADS];
	int i, round, errors = 0, intruders = 0;
	uint64_t begun, slowest = 0;
	long calls = 0;

	enough = false;
	memset(worker, 0, sizeof(worker));
	for (i = 0; i < THREADS; i++)
		pthread_create(&thread[i], NULL, work, (void *)(long)i);
	for (round = 0; round < 100; round++) {
		begun = cudapool_now_us();
		errors += cudapool_gate_close(5000000) != 0;
		if (cudapool_now_us() - begun > slowest)
			slowest = cudapool_now_us() - begun;
		intruders += !nobody_inside();
		cudapool_gate_open();
		cudapool_sleep_us(300);
	}
	enough = true;
	for (i = 0; i < THREADS; i++) {
		pthread_join(thread[i], NULL);
		calls += worker[i].calls;
	}
	printf("# %ld calls, slowest close %llu us\n", calls, (unsigned long long)slowest);
	ok(!errors, "%s: it closes under sixteen threads", how);
	ok(!intruders && calls > 10000, "and nobody is inside then");
}

/* A thread inside, until told to leave. */
static volatile int inside_step;
static void *stay(void *unused)
{
	cudapool_gate_enter();
	inside_step = 1;
	while (inside_step == 1)
		cudapool_sleep_us(100);
	cudapool_gate_enter(); /* nested: passes although it is closed */
	inside_step = 3;
	cudapool_gate_leave();
	cudapool_gate_leave();
	return unused;
}

/* Calls one after another; the tenth lets the one inside go. */
static void *call_ten_times(void *unused)
{
	int i;

	for (i = 0; i < 10; i++) {
		cudapool_gate_enter();
		cudapool_gate_leave();
	}
	inside_step = 2;
	return unused;
}

static void *die_inside(void *unused)
{
	cudapool_gate_enter();
	inside_step = 1;
	syscall(SYS_exit, 0);
	return unused;
}

static void *pass_once(void *unused)
{
	cudapool_gate_enter();
	cudapool_gate_leave();
	return unused;
}

static void until_inside(void)
{
	while (inside_step != 1)
		cudapool_sleep_us(100);
}

static void cases(void)
{
	pthread_t one, two, many[64];
	uint64_t begun;
	int i, round;

	inside_step = 0;
	pthread_create(&one, NULL, stay, NULL);
	until_inside();
	begun = cudapool_now_us();
	ok(cudapool_gate_close(50000) == -ETIMEDOUT, "a call that does not end: it is not closed");
	ok(cudapool_now_us() - begun < 2000000 && cudapool_state.closed == CUDAPOOL_GATE_OPEN, "and open again in time");

	/* The one inside waits for the other one, which is at the gate: both get on. */
	cudapool_state.closed = CUDAPOOL_GATE_CLOSED;
	pthread_create(&two, NULL, call_ten_times, NULL);
	while (cudapool_gate_waiting() != 1)
		cudapool_sleep_us(100);
	ok(cudapool_gate_close(20000000) == 0, "calls that wait for calls at the gate: it breathes, and closes");
	pthread_join(one, NULL);
	pthread_join(two, NULL);
	ok(inside_step >= 2, "and they went on");
	cudapool_gate_open();

	inside_step = 0;
	pthread_create(&one, NULL, die_inside, NULL);
	until_inside();
	ok(cudapool_gate_close(2000000) == 0, "a thread that ended within a call is not waited for");
	pthread_create(&one, NULL, pass_once, NULL);
	while (cudapool_gate_waiting() != 1)
		cudapool_sleep_us(100);
	ok(cudapool_gate_breathe(2000000) == 0 && cudapool_state.closed == CUDAPOOL_GATE_CLOSED, "it breathes");
	/* A thread that the machine does not let run meanwhile passes the next time. */
	for (i = 0; i < 1000 && cudapool_gate_waiting(); i++)
		cudapool_gate_breathe(2000000);
	ok(cudapool_gate_waiting() == 0, "and lets pass who waits");
	cudapool_gate_open();
	pthread_join(one, NULL);

	for (round = 0; round < 100; round++) {
		for (i = 0; i < 64; i++)
			pthread_create(&many[i], NULL, pass_once, NULL);
		for (i = 0; i < 64; i++)
			pthread_join(many[i], NULL);
	}
	ok(cudapool_state.slots_used < 2000, "slots of threads that are gone are used again");
	ok(cudapool_gate_close(2000000) == 0, "and not waited for");
	cudapool_gate_open();

	/* Every slot is a living thread's. */
	for (i = 0; i < CUDAPOOL_SLOTS; i++) {
		cudapool_state.slots[i].tid = getpid();
		cudapool_state.slots[i].self = NULL;
	}
	cudapool_state.slots_used = 0;
	pthread_create(&one, NULL, pass_once, NULL);
	pthread_join(one, NULL);
	ok(cudapool_gate_close(100000) == -EOPNOTSUPP, "with more threads than slots it cannot be closed");
	ok(cudapool_state.closed == CUDAPOOL_GATE_OPEN, "and stays open");
}

int main(int argc, char **argv)
{
	if (argc == 2 && !strcmp(argv[1], "refused")) {
		cudapool_gate_prepare();
		ok(cudapool_state.closed == CUDAPOOL_GATE_OPEN && forbid(SYS_membarrier, EPERM), "membarrier is refused from now on");
		ok(cudapool_gate_close(100000) == -EOPNOTSUPP, "then it is not closed");
		ok(cudapool_state.closed == CUDAPOOL_GATE_CAREFUL, "but calls are careful from now on");
		storm("careful");
	} else if (argc == 2 && !strcmp(argv[1], "careful")) {
		ok(forbid(SYS_membarrier, EPERM), "membarrier is refused");
		cudapool_gate_prepare();
		ok(cudapool_state.closed == CUDAPOOL_GATE_CAREFUL, "so calls are careful");
		storm("careful");
	} else {
		cudapool_gate_prepare();
		storm("open");
		cases();
	}
	return tap_end();
}
