// SPDX-License-Identifier: MIT
/* What applications do while the gate closes and memory is parked: gate WHAT. */
#include "gpu.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>

#include "fake_pool.h"

#define MIB (1ul << 20)
#define LIMIT_MS 10000

static struct fake_pool pool;
static volatile int step; /* of a test with two threads */

static void wait_for_step(int number)
{
	long end = now_ms() + 20000;

	while (step < number) {
		if (now_ms() > end) {
			printf("Bail out! step %d was not reached\n", number);
			_exit(2);
		}
		sleep_ms(1);
	}
}

static void begin(void)
{
	gpu_begin();
	if (fake_pool_find(&pool, getpid())) {
		printf("Bail out! no control page\n");
		exit(2);
	}
}

static pthread_t start(void *(*main)(void *), void *arg)
{
	pthread_t thread;

	if (pthread_create(&thread, NULL, main, arg))
		exit(2);
	return thread;
}

/* Parks and unparks, and says what went wrong. */
static bool cycle(void)
{
	int err = fake_pool_park(&pool, LIMIT_MS);

	if (!err)
		err = fake_pool_unpark(&pool, LIMIT_MS);
	if (err)
		printf("# %d: %s\n", err, pool.end.text);
	return !err;
}

/* Sixteen threads that allocate, launch, copy, check and free, and a pool that parks and unparks all the time. */
static volatile bool enough;
struct load {
	int number;
	long rounds;
	int errors, wrong;
};

static void *load_thread(void *arg)
{
	struct load *load = arg;
	uint32_t seed = load->number * 1000, word;
	CUstream stream;
	CUdeviceptr ptr;

	gpu.cuCtxSetCurrent(gpu.ctx);
	gpu.cuStreamCreate(&stream, load->number % 2 ? CU_STREAM_NON_BLOCKING : CU_STREAM_DEFAULT);
	for (; !enough; load->rounds++, seed++) {
		load->errors += gpu.cuMemAlloc_v2(&ptr, 2 * MIB) != CUDA_SUCCESS;
		load->errors += gpu_fill(ptr, 4096, seed, stream, false) != CUDA_SUCCESS;
		load->errors += gpu.cuStreamSynchronize(stream) != CUDA_SUCCESS;
		load->errors += gpu.cuMemcpyDtoH_v2(&word, ptr + 4, 4) != CUDA_SUCCESS;
		load->wrong += word != (2654435761u ^ seed);
		load->errors += gpu.cuMemFree_v2(ptr) != CUDA_SUCCESS;
	}
	gpu.cuStreamDestroy_v2(stream);
	return NULL;
}

static void load(void)
{
	struct load loads[16] = {};
	pthread_t threads[16];
	long rounds = 0, end;
	int i, errors = 0, wrong = 0, cycles = 0, failures = 0;

	begin();
	for (i = 0; i < 16; i++) {
		loads[i].number = i;
		threads[i] = start(load_thread, &loads[i]);
	}
	for (end = now_ms() + 3000; now_ms() < end || cycles < 5; cycles++)
		failures += !cycle();
	enough = true;
	for (i = 0; i < 16; i++) {
		pthread_join(threads[i], NULL);
		errors += loads[i].errors;
		wrong += loads[i].wrong;
		rounds += loads[i].rounds;
	}
	printf("# %d cycles, %ld rounds, %llu calls held\n", cycles, rounds,
	       (unsigned long long)pool.page->held_calls);
	ok(!failures, "every park and unpark succeeds");
	ok(!errors, "no call of sixteen threads fails");
	ok(!wrong, "no result is wrong");
	ok(rounds > 16 && pool.page->held_calls > 0, "and calls were made, and held");
}

/* A capture that is under way while memory is parked; with work in the stream from before. */
struct capture {
	CUstream stream;
	CUstreamCaptureMode mode;
	CUdeviceptr ptr, before;
	bool per_thread, good;
};

static void *capture_thread(void *arg)
{
	struct capture *c = arg;
	CUgraphExec exec;
	CUgraph graph;

	gpu.cuCtxSetCurrent(gpu.ctx);
	c->good = gpu_spin(100, c->stream, c->per_thread) == CUDA_SUCCESS &&
		  gpu_fill(c->before, MIB, 5, c->stream, c->per_thread) == CUDA_SUCCESS;
	c->good &= (c->per_thread ? gpu.cuStreamBeginCapture_v2_ptsz : gpu.cuStreamBeginCapture_v2)(
			   c->stream, c->mode) == CUDA_SUCCESS;
	c->good &= gpu_fill(c->ptr, MIB, 6, c->stream, c->per_thread) == CUDA_SUCCESS;
	step = 1;
	if (!c->per_thread)
		wait_for_step(2);
	else
		sleep_ms(200); /* nobody can ask for the work of such a stream: the capture must end first */
	c->good &= gpu_fill(c->ptr + MIB, MIB, 7, c->stream, c->per_thread) == CUDA_SUCCESS;
	c->good &= (c->per_thread ? gpu.cuStreamEndCapture_ptsz : gpu.cuStreamEndCapture)(c->stream, &graph) ==
		   CUDA_SUCCESS;
	if (!c->good)
		return NULL;
	wait_for_step(2);
	c->good &= gpu.cuGraphInstantiateWithFlags(&exec, graph, 0) == CUDA_SUCCESS &&
		   gpu.cuGraphLaunch(exec, NULL) == CUDA_SUCCESS && gpu.cuCtxSynchronize() == CUDA_SUCCESS;
	c->good &= gpu_holds(c->ptr, MIB, 6) && gpu_holds(c->ptr + MIB, MIB, 7);
	gpu.cuGraphExecDestroy(exec);
	gpu.cuGraphDestroy(graph);
	return NULL;
}

static void captures(void)
{
	static const struct {
		const char *name;
		unsigned flags;
		bool per_thread;
	} kinds[] = {{"a non-blocking stream", CU_STREAM_NON_BLOCKING, false},
		     {"a blocking stream", CU_STREAM_DEFAULT, false},
		     {"a thread's default stream", 0, true}};
	static const char *const modes[] = {"global", "thread-local", "relaxed"};
	struct capture c;
	pthread_t thread;
	unsigned kind, mode;

	begin();
	for (kind = 0; kind < (gpu_plain ? 2 : 3); kind++)
		for (mode = 0; mode < 3; mode++) {
			memset(&c, 0, sizeof(c));
			c.mode = mode;
			c.per_thread = kinds[kind].per_thread;
			MUST(cuMemAlloc_v2(&c.ptr, 2 * MIB));
			MUST(cuMemAlloc_v2(&c.before, 2 * MIB));
			if (!c.per_thread)
				MUST(cuStreamCreate(&c.stream, kinds[kind].flags));
			step = 0;
			thread = start(capture_thread, &c);
			wait_for_step(1);
			/* While a blocking stream is captured, nobody can ask for the work of threads' default streams. */
			if (kind == 1 && !gpu_plain)
				step = 2;
			ok(cycle(), "parks during a %s capture of %s", modes[mode], kinds[kind].name);
			step = 2;
			pthread_join(thread, NULL);
			ok(c.good, "which then ends well, and its graph runs");
			ok(gpu_holds(c.before, MIB, 5), "work from before it was waited for");
			if (!c.per_thread)
				MUST(cuStreamDestroy_v2(c.stream));
			MUST(cuMemFree_v2(c.ptr));
			MUST(cuMemFree_v2(c.before));
		}
}

static void plain_captures(void)
{
	gpu_plain = true;
	captures();
}

static void graphs(void)
{
	CUgraphExec exec;
	CUgraph graph;
	CUstream stream;
	CUdeviceptr ptr;
	int i;

	begin();
	MUST(cuMemAlloc_v2(&ptr, 2 * MIB));
	MUST(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
	MUST(cuStreamBeginCapture_v2(stream, CU_STREAM_CAPTURE_MODE_GLOBAL));
	must(gpu_spin(50, stream, false), "spin");
	must(gpu_fill(ptr, 2 * MIB, 9, stream, false), "fill");
	MUST(cuStreamEndCapture(stream, &graph));
	MUST(cuGraphInstantiateWithFlags(&exec, graph, 0));
	for (i = 0; i < 3; i++) {
		MUST(cuMemsetD32_v2(ptr, 0, 2 * MIB / 4));
		MUST(cuGraphLaunch(exec, stream));
		ok(cycle(), "parks while a graph runs");
		ok(gpu_holds(ptr, 2 * MIB, 9), "which has run");
	}
}

/* Threads' default streams, and others: what was submitted is done when memory goes. */
static volatile int launched;
static void *per_thread_thread(void *arg)
{
	gpu.cuCtxSetCurrent(gpu.ctx);
	gpu_spin(200, NULL, true);
	gpu_fill(*(CUdeviceptr *)arg, MIB, 11, NULL, true);
	__atomic_fetch_add(&launched, 1, __ATOMIC_SEQ_CST);
	wait_for_step(1); /* its stream ends with it */
	return NULL;
}

static void streams(void)
{
	CUdeviceptr ptr[7];
	CUstream stream[2];
	pthread_t thread[4];
	CUcontext other;
	bool good = true;
	int i;

	begin();
	for (i = 0; i < 7; i++)
		MUST(cuMemAlloc_v2(&ptr[i], 2 * MIB));
	for (i = 0; i < 4; i++)
		thread[i] = start(per_thread_thread, &ptr[i]);
	while (launched < 4)
		sleep_ms(1);
	for (i = 0; i < 2; i++) {
		MUST(cuStreamCreate(&stream[i], CU_STREAM_NON_BLOCKING));
		must(gpu_spin(200, stream[i], false), "spin");
		must(gpu_fill(ptr[4 + i], MIB, 11, stream[i], false), "fill");
	}
	/* Work of a stream that is destroyed goes on. */
	MUST(cuStreamDestroy_v2(stream[1]));
	MUST(cuCtxCreate_v2(&other, 0, 0));
	MUST(cuCtxSetCurrent(other));
	MUST(cuMemFree_v2(ptr[6]));
	MUST(cuMemAlloc_v2(&ptr[6], 2 * MIB));
	MUST(cuCtxSetCurrent(gpu.ctx));
	ok(cycle(), "parks while streams of all kinds have work");
	step = 1;
	for (i = 0; i < 4; i++)
		pthread_join(thread[i], NULL);
	for (i = 0; i < 6; i++)
		good = good && gpu_holds(ptr[i], MIB, 11);
	ok(good, "all of which was done");
	MUST(cuCtxDestroy_v2(other));
	ok(cycle(), "parks without a context that was destroyed");
}

/* Host functions that call CUDA, as far as the driver lets them, while a thread waits for them. */
static CUstream waited, other_stream;
static CUdeviceptr touched;
static int host_errors;
static void host_function(void *data)
{
	size_t free_bytes, total;
	CUdeviceptr ptr = 0;
	int i;

	sleep_ms(30); /* the gate closes meanwhile */
	for (i = 0; i < 20; i++)
		host_errors += gpu.cuMemsetD32Async(touched, i, 1, other_stream) != CUDA_SUCCESS;
	host_errors += gpu.cuMemGetInfo_v2(&free_bytes, &total) != CUDA_ERROR_NOT_PERMITTED;
	host_errors += gpu.cuMemAlloc_v2(&ptr, 2 * MIB) != CUDA_ERROR_NOT_PERMITTED;
	host_errors += gpu.cuMemFree_v2(touched) != CUDA_ERROR_NOT_PERMITTED;
	if (data) {
		pthread_mutex_lock(data);
		pthread_mutex_unlock(data);
	}
}

static void *waiting_thread(void *arg)
{
	CUresult r;

	gpu.cuCtxSetCurrent(gpu.ctx);
	step = 1;
	r = *(int *)arg == 0 ? gpu.cuStreamSynchronize(waited) : gpu.cuCtxSynchronize();
	*(int *)arg = r == CUDA_SUCCESS ? 100 : -1;
	return NULL;
}

static void callbacks(void)
{
	pthread_t thread;
	int how, seen, i;

	begin();
	MUST(cuMemAlloc_v2(&touched, 2 * MIB));
	MUST(cuStreamCreate(&waited, CU_STREAM_NON_BLOCKING));
	MUST(cuStreamCreate(&other_stream, CU_STREAM_NON_BLOCKING));
	for (how = 0; how < 3; how++) {
		for (i = 0; i < 3; i++)
			MUST(cuLaunchHostFunc(waited, host_function, NULL));
		seen = how;
		step = 0;
		if (how < 2) {
			thread = start(waiting_thread, &seen);
			wait_for_step(1);
		}
		ok(cycle(), "parks while host functions call CUDA, and %s",
		   how == 0   ? "a thread waits for the stream"
		   : how == 1 ? "a thread waits for the context"
			      : "nobody waits");
		if (how < 2) {
			pthread_join(thread, NULL);
			ok(seen == 100, "whose wait ends well");
		}
	}
	MUST(cuStreamSynchronize(waited));
	ok(!host_errors, "no call of a host function is answered otherwise than by the driver");
}

/* A thread calls CUDA with a lock in its hands that a host function needs. */
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static void *holding_thread(void *errors)
{
	size_t free_bytes, total;
	int i;

	gpu.cuCtxSetCurrent(gpu.ctx);
	pthread_mutex_lock(&mutex);
	step = 1;
	sleep_ms(60);
	for (i = 0; i < 500; i++)
		*(int *)errors += gpu.cuMemGetInfo_v2(&free_bytes, &total) != CUDA_SUCCESS;
	pthread_mutex_unlock(&mutex);
	return NULL;
}

static void locks(void)
{
	pthread_t holder, waiter;
	int errors = 0, seen = 0;

	begin();
	MUST(cuMemAlloc_v2(&touched, 2 * MIB));
	MUST(cuStreamCreate(&waited, CU_STREAM_NON_BLOCKING));
	MUST(cuStreamCreate(&other_stream, CU_STREAM_NON_BLOCKING));
	holder = start(holding_thread, &errors);
	wait_for_step(1);
	MUST(cuLaunchHostFunc(waited, host_function, &mutex));
	step = 0;
	waiter = start(waiting_thread, &seen);
	wait_for_step(1);
	ok(cycle(), "parks while a host function wants a lock of a thread that waits at the gate");
	pthread_join(holder, NULL);
	pthread_join(waiter, NULL);
	ok(!errors && seen == 100, "and all of them go on");
}

/* Waits that do not end: the park fails within its limit, and the application has noticed nothing. */
static void *event_thread(void *event)
{
	gpu.cuCtxSetCurrent(gpu.ctx);
	step = 1;
	return gpu.cuEventSynchronize(event) == CUDA_SUCCESS ? event : NULL;
}

static void deadlines(void)
{
	volatile uint32_t *flag;
	CUdeviceptr ptr;
	CUevent event;
	CUgraph graph;
	pthread_t thread;
	void *seen;
	long begun;
	int round, err;

	begin();
	MUST(cuMemAlloc_v2(&ptr, 2 * MIB));
	must(gpu_fill(ptr, MIB, 3, NULL, false), "fill");
	MUST(cuStreamCreate(&waited, CU_STREAM_NON_BLOCKING));
	MUST(cuEventCreate(&event, CU_EVENT_DISABLE_TIMING));
	MUST(cuMemHostAlloc((void **)&flag, 4096, CU_MEMHOSTALLOC_DEVICEMAP));
	for (round = 0; round < 2; round++) {
		*flag = 0;
		MUST(cuStreamWaitValue32_v2(waited, (CUdeviceptr)flag, 1, CU_STREAM_WAIT_VALUE_EQ));
		MUST(cuEventRecord(event, waited));
		step = 0;
		if (round)
			thread = start(event_thread, event);
		else
			step = 1;
		wait_for_step(1);
		sleep_ms(20);
		begun = now_ms();
		err = fake_pool_park(&pool, 400);
		ok(err == -ETIMEDOUT, round ? "a thread that waits for ever" : "work that never ends");
		ok(now_ms() - begun >= 399 && now_ms() - begun < 3000, "fails the park, within its limit");
		ok(pool.page->park_state == CUDAPOOL_PARK_OPEN && gpu_holds(ptr, MIB, 3), "and the application goes on");
		*flag = 1;
		if (round) {
			pthread_join(thread, &seen);
			ok(seen, "whose wait ends well");
		}
		ok(cycle(), "then it parks");
	}
	MUST(cuStreamCreate(&waited, CU_STREAM_DEFAULT));
	MUST(cuStreamBeginCapture_v2(waited, CU_STREAM_CAPTURE_MODE_RELAXED));
	begun = now_ms();
	err = fake_pool_park(&pool, 400);
	ok(err == -ETIMEDOUT && strstr(pool.end.text, "captured"),
	   "a capture that does not end, where threads may have default streams, fails the park, which says so");
	ok(now_ms() - begun >= 399 && now_ms() - begun < 3000, "within its limit");
	MUST(cuStreamEndCapture(waited, &graph));
	ok(cycle(), "when it has ended it parks");
}

/* Work that failed is the application's affair: it is not parked, and hears of it by its own next call. */
static void errors(void)
{
	CUdeviceptr ptr;
	CUcontext other;
	int i;

	begin();
	MUST(cuMemAlloc_v2(&ptr, 2 * MIB));
	must(gpu_fill(ptr, MIB, 4, NULL, false), "fill");
	MUST(cuCtxCreate_v2(&other, 0, 0));
	MUST(cuCtxSetCurrent(other));
	gpu_kernels();
	must(gpu_fill(0x1000, MIB, 4, NULL, false), "launch what must fail");
	for (i = 0; i < 100 && gpu.cuCtxSynchronize() == CUDA_SUCCESS; i++)
		sleep_ms(20); /* until it has failed, however busy the machine is */
	ok(fake_pool_park(&pool, LIMIT_MS) == -EOPNOTSUPP, "a context in error cannot be parked");
	ok(pool.end.cu_result == CUDA_ERROR_ILLEGAL_ADDRESS && pool.end.text[0], "and it is said why");
	ok(gpu.cuCtxSynchronize() == CUDA_ERROR_ILLEGAL_ADDRESS, "the application sees its error");
	MUST(cuCtxDestroy_v2(other));
	MUST(cuCtxSetCurrent(gpu.ctx));
	ok(gpu_holds(ptr, MIB, 4) && cycle() && gpu_holds(ptr, MIB, 4), "without that context it parks");
}

/* fork, exec, threads that end, signals, cancellation. */
static volatile int handled;
static void handler(int signal)
{
	handled++;
}

static void *interrupted_thread(void *result)
{
	uint32_t word;

	gpu.cuCtxSetCurrent(gpu.ctx);
	step = 1;
	*(CUresult *)result = gpu.cuMemcpyDtoH_v2(&word, touched, 4);
	return NULL;
}

static void *short_thread(void *unused)
{
	uint32_t word;

	gpu.cuCtxSetCurrent(gpu.ctx);
	return gpu.cuMemcpyDtoH_v2(&word, touched, 4) ? NULL : unused;
}

static void processes(void)
{
	struct sigaction action = {.sa_handler = handler};
	CUresult r = CUDA_ERROR_UNKNOWN;
	pthread_t thread;
	int status, i, good = 0;
	void *seen;
	pid_t child;

	begin();
	MUST(cuMemAlloc_v2(&touched, 2 * MIB));
	must(gpu_fill(touched, MIB, 1, NULL, false), "fill");
	ok(fake_pool_park(&pool, LIMIT_MS) == 0, "parks");

	child = fork();
	if (!child) {
		uint32_t word;
		CUresult no = gpu.cuMemcpyDtoH_v2(&word, touched, 4); /* as without us: an error, at once */

		_exit(no == CUDA_SUCCESS ? 1 : 0);
	}
	waitpid(child, &status, 0);
	ok(WIFEXITED(status) && !WEXITSTATUS(status), "a child of a parked process waits at no gate");
	child = vfork();
	if (!child) {
		execl("/bin/true", "true", (char *)NULL);
		_exit(1);
	}
	waitpid(child, &status, 0);
	ok(WIFEXITED(status) && !WEXITSTATUS(status), "programs can be started");

	sigaction(SIGUSR1, &action, NULL);
	step = 0;
	thread = start(interrupted_thread, &r);
	wait_for_step(1);
	for (i = 0; i < 4000 && handled <= 10; i++) {
		pthread_kill(thread, SIGUSR1);
		sleep_ms(5);
	}
	ok(handled > 10 && r == CUDA_ERROR_UNKNOWN, "signals are handled at the gate, which holds all the same");
	ok(fake_pool_unpark(&pool, LIMIT_MS) == 0, "unparks");
	pthread_join(thread, NULL);
	ok(r == CUDA_SUCCESS, "the call succeeds");

	for (i = 0; i < 300; i++) {
		pthread_join(start(short_thread, &good), &seen);
		good += seen != NULL;
	}
	ok(good == 300 && cycle(), "threads that came and went are not waited for");
	ok(gpu_holds(touched, MIB, 1), "memory is as it was");
}

int main(int argc, char **argv)
{
	static const struct tap_test tests[] = {
		{"load", load},
		{"captures", captures},
		{"plain_captures", plain_captures},
		{"graphs", graphs},
		{"streams", streams},
		{"callbacks", callbacks},
		{"locks", locks},
		{"deadlines", deadlines},
		{"processes", processes},
		{"errors", errors},
		{},
	};

	tap_run(tests, argc, argv);
	fake_pool_close(&pool);
	return tap_end();
}
