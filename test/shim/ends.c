// SPDX-License-Identifier: MIT
/* Threads that end within a call into the driver, or leave it by a jump: ends HOW (SOFTCUDA_FAULTS blocks the call). */
#include "gpu.h"

#include <setjmp.h>
#include <signal.h>

#include "fake_pool.h"

#define MIB	 (1ul << 20)
#define LIMIT_MS 500 /* of a park that is to fail */

static struct fake_pool pool;
static CUdeviceptr ptr;
static volatile pid_t tid; /* of the thread, as soon as it is about to call */
static volatile bool over;
static sigjmp_buf outside;

static void end(int signal)
{
	syscall(SYS_exit, 0);
}

static void jump(int signal)
{
	siglongjmp(outside, 1);
}

static void *synchronize(void *unused)
{
	gpu.cuCtxSetCurrent(gpu.ctx);
	tid = syscall(SYS_gettid);
	gpu.cuStreamSynchronize(NULL);
	return unused;
}

static void *synchronize_cancellable_anywhere(void *unused)
{
	pthread_setcanceltype(PTHREAD_CANCEL_ASYNCHRONOUS, NULL);
	return synchronize(unused);
}

static void *allocate(void *unused)
{
	CUdeviceptr other;

	gpu.cuCtxSetCurrent(gpu.ctx);
	tid = syscall(SYS_gettid);
	gpu.cuMemAlloc_v2(&other, 4 * MIB);
	return unused;
}

static void *jump_out(void *unused)
{
	if (!sigsetjmp(outside, 1))
		synchronize(NULL);
	while (!over)
		sleep_ms(1);
	return unused;
}

/* Until the thread sleeps, wherever that is. */
static pthread_t start(void *(*main)(void *))
{
	char path[64], stat[256] = "", *at;
	pthread_t thread;
	FILE *file;
	long until;

	tid = 0;
	if (pthread_create(&thread, NULL, main, NULL))
		exit(2);
	for (until = now_ms() + 10000; now_ms() < until; sleep_ms(1)) {
		snprintf(path, sizeof(path), "/proc/self/task/%d/stat", tid);
		file = tid ? fopen(path, "r") : NULL;
		at = file && fgets(stat, sizeof(stat), file) ? strrchr(stat, ')') : NULL;
		if (file)
			fclose(file);
		if (at && at[2] == 'S')
			return thread;
	}
	printf("Bail out! the thread does not block\n");
	exit(2);
}

static void parks(const char *what)
{
	long begun = now_ms();
	int err = fake_pool_park(&pool, 10000);

	if (err)
		printf("# %d: %s\n", err, pool.end.text);
	ok(!err && now_ms() - begun < 5000, "%s", what);
	ok(!fake_pool_unpark(&pool, 10000) && gpu_holds(ptr, MIB, 3), "and has its memory again");
}

static void cancelled_at_the_gate(void)
{
	pthread_t thread;

	ok(!fake_pool_park(&pool, 10000), "parks");
	thread = start(synchronize_cancellable_anywhere);
	pthread_cancel(thread);
	pthread_join(thread, NULL);
	ok(!fake_pool_unpark(&pool, 10000) && !pool.end.held, "who was cancelled at the gate waits there no more");
	parks("then it parks");
}

static void left_by_a_jump(void)
{
	pthread_t thread;
	char number[32];

	signal(SIGUSR1, jump);
	thread = start(jump_out);
	pthread_kill(thread, SIGUSR1);
	snprintf(number, sizeof(number), "thread %d ", tid);
	ok(fake_pool_park(&pool, LIMIT_MS) == -ETIMEDOUT && strstr(pool.end.text, number),
	   "a call that was left by a jump fails the park, which names the thread");
	ok(gpu_holds(ptr, MIB, 3), "the application goes on");
	over = true;
	pthread_join(thread, NULL);
	parks("when that thread has ended it parks");
}

static void ended(void *(*main)(void *), bool by_itself)
{
	pthread_t thread;

	signal(SIGUSR1, end);
	thread = start(main);
	if (by_itself)
		pthread_kill(thread, SIGUSR1);
	else
		pthread_cancel(thread);
	pthread_join(thread, NULL);
	parks("parks without the thread that ended within a call");
}

int main(int argc, char **argv)
{
	const char *how = argc == 2 ? argv[1] : "";

	gpu_begin();
	MUST(cuMemAlloc_v2(&ptr, 2 * MIB));
	must(gpu_fill(ptr, MIB, 3, NULL, false), "fill");
	if (fake_pool_find(&pool, getpid()))
		exit(2);
	if (!strcmp(how, "cancelled"))
		ended(synchronize, false);
	else if (!strcmp(how, "cancelled-anywhere"))
		ended(synchronize_cancellable_anywhere, false);
	else if (!strcmp(how, "cancelled-allocating"))
		ended(allocate, false);
	else if (!strcmp(how, "ended"))
		ended(synchronize, true);
	else if (!strcmp(how, "cancelled-at-the-gate"))
		cancelled_at_the_gate();
	else if (!strcmp(how, "jump"))
		left_by_a_jump();
	fake_pool_close(&pool);
	return tap_end();
}
