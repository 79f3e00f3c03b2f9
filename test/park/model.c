// SPDX-License-Identifier: MIT
/*
 * model SEED OPERATIONS THREADS: random operations of many threads on the memory of one device or two, against a model
 * in host memory, while another process parks and unparks it, often failing or lying. Prints TAP.
 */
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#include "../client/leaks.h"
#include "model_memory.h"
#include "model_devices.h"
#include "model_pool.h"

#define SECOND_MS 100 /* until the second device is used: there is memory on the first one by then */

/* ---- operations: each has its slot locked, and may leave work under way ---- */

static void do_toggle(struct worker *w, struct slot *s)
{
	if (s->at)
		release(w, s);
	else
		allocate(w, s);
}

static void do_copy_in(struct worker *w, struct slot *s)
{
	unsigned area = below(w, 2), from = below(w, AREA), count = 1 + below(w, AREA - from);
	enum answer expected = answer(w, s, COPY);
	CUdeviceptr to = area_of(s, area) + from * 4;
	uint32_t *words = w->from[w->pendings];

	filled(words, count, next_random(&w->random));
	if (below(w, 16) ? DONE(w, expected, s, cu.cuMemcpyHtoDAsync_v2(to, words, count * 4, w->stream))
			 : DONE(w, expected, s, gpu.cuMemcpyHtoD_v2(to, words, count * 4)))
		memcpy(s->expect[area] + from, words, count * 4);
}

static void do_check(struct worker *w, struct slot *s)
{
	check(w, s, below(w, 2));
}

static void do_memset(struct worker *w, struct slot *s)
{
	unsigned area = below(w, 2), from = below(w, AREA), count = 1 + below(w, AREA - from);
	enum answer expected = answer(w, s, FILL);
	CUdeviceptr to = area_of(s, area) + from * 4;
	uint32_t with = next_random(&w->random);

	if (!(below(w, 16) ? DONE(w, expected, s, gpu.cuMemsetD32Async(to, with, count, w->stream))
			   : DONE(w, expected, s, gpu.cuMemsetD32_v2(to, with, count))))
		return;
	for (unsigned i = 0; i < count; i++)
		s->expect[area][from + i] = with;
}

static void do_launch(struct worker *w, struct slot *s)
{
	unsigned area = below(w, 2), from = below(w, AREA), count = 1 + below(w, AREA - from);
	uint32_t with = next_random(&w->random);

	if (answer(w, s, KERNEL) != ALLOWED)
		return; /* it would be the end of the context: do_context() */
	filled(s->expect[area] + from, count, with);
	GOOD(w, launch_fill(device[w->device].fill, area_of(s, area) + from * 4, count, with, w->stream));
	if (below(w, 4))
		return;
	GOOD(w, gpu.cuEventRecord(w->event, w->stream));
	if (below(w, 2))
		GOOD(w, gpu.cuEventSynchronize(w->event));
}

/* From another slot, if one is to be had. */
static void do_copy(struct worker *w, struct slot *s)
{
	struct slot *other = try_slot(w, true);
	unsigned to = below(w, 2), from = below(w, 2);

	if (!other)
		return;
	if (copy_between(w, s, area_of(s, to), other, area_of(other, from)))
		memcpy(s->expect[to], other->expect[from], sizeof(s->expect[to]));
	pthread_mutex_unlock(&other->lock);
}

/* Captured, and launched once or more. */
static void do_graph(struct worker *w, struct slot *s)
{
	CUfunction fill = device[w->device].fill;
	uint32_t with = next_random(&w->random);
	CUgraph graph = NULL;
	CUgraphExec exec;

	if (answer(w, s, KERNEL) != ALLOWED)
		return;
	land(w); /* s is not among them */
	GOOD(w, gpu.cuStreamBeginCapture_v2(w->stream, below(w, 2) ? CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
								   : CU_STREAM_CAPTURE_MODE_RELAXED));
	GOOD(w, gpu.cuMemsetD32Async(s->at, ~with, AREA, w->stream));
	GOOD(w, launch_fill(fill, s->at, AREA, with, w->stream));
	GOOD(w, launch_fill(fill, area_of(s, 1), AREA, ~with, w->stream));
	GOOD(w, gpu.cuStreamEndCapture(w->stream, &graph));
	if (!graph)
		return;
	GOOD(w, gpu.cuGraphInstantiateWithFlags(&exec, graph, 0));
	for (unsigned times = 1 + below(w, 3); times; times--)
		GOOD(w, gpu.cuGraphLaunch(exec, w->stream));
	filled(s->expect[0], AREA, with);
	filled(s->expect[1], AREA, ~with);
	GOOD(w, gpu.cuStreamSynchronize(w->stream));
	GOOD(w, gpu.cuGraphExecDestroy(exec));
	GOOD(w, gpu.cuGraphDestroy(graph));
}

static void do_ask(struct worker *w, struct slot *s)
{
	CUmemLocation other = {CU_MEM_LOCATION_TYPE_DEVICE, !s->device};
	size_t bytes = 0, free_bytes, total;
	unsigned long long flags = ~0ull;
	CUdeviceptr base = 0;
	enum answer usable = answer(w, s, KERNEL);
	CUresult r;

	/* It is told to those who may use the memory (probes/memory2-two.out); of pools' memory it is not known. */
	if (usable == REFUSED && s->kind == ORDERED)
		usable = EITHER;
	r = gpu.cuMemGetAddressRange_v2(&base, &bytes, s->at + s->bytes / 2);
	if (r == CUDA_SUCCESS ? usable == REFUSED : r != CUDA_ERROR_NOT_FOUND || usable == ALLOWED)
		complain(w, "whose an address is, of kind %d, device %d: CUDA error %d", s->kind, s->device, r);
	if (r == CUDA_SUCCESS && (base != s->at || bytes < s->bytes || bytes >= s->bytes + 2 * MIB))
		complain(w, "%zu bytes at %llx are said to be %zu at %llx", s->bytes, s->at, bytes, base);
	GOOD(w, gpu.cuMemGetInfo_v2(&free_bytes, &total));
	if (!free_bytes || free_bytes > total)
		complain(w, "%zu of %zu bytes are free", free_bytes, total);
	if (s->kind != MAPPED || devices < 2)
		return;
	GOOD(w, cu.cuMemGetAccess(&flags, &other, s->at));
	if (flags != (s->open ? CU_MEM_ACCESS_FLAGS_PROT_READWRITE : CU_MEM_ACCESS_FLAGS_PROT_NONE))
		complain(w, "the other device's access is said to be %llu, open %d", flags, s->open);
}

/* What no driver does. */
static void do_wrong(struct worker *w, struct slot *s)
{
	CUdeviceptr none = 0;
	CUresult r;

	r = gpu.cuMemAlloc_v2(&none, 1ull << 44);
	if (r != CUDA_ERROR_OUT_OF_MEMORY)
		complain(w, "an allocation of 16 TiB: %d", r);
	r = gpu.cuMemFree_v2(s->at + 1);
	if (r != CUDA_ERROR_INVALID_VALUE)
		complain(w, "freeing what was never allocated: %d", r);
}

static const struct {
	unsigned weight; /* of 1000 */
	enum { ANYHOW, SHARED, ALONE } access; /* how it holds access_lock */
	bool with_memory;
	void (*run)(struct worker *w, struct slot *s);
} table[] = {{20, ANYHOW, false, do_toggle},
	     {250, SHARED, true, do_copy_in},
	     {80, SHARED, true, do_check},
	     {265, SHARED, true, do_memset},
	     {265, SHARED, true, do_launch},
	     {30, SHARED, true, do_copy},
	     {10, SHARED, true, do_graph},
	     {29, SHARED, true, do_ask},
	     {10, ANYHOW, true, do_wrong},
	     {40, ALONE, true, do_access},
	     {1, SHARED, true, do_context}};

static bool locked(int access)
{
	return access == ANYHOW || (access == SHARED ? !pthread_rwlock_rdlock(&access_lock)
						     : !pthread_rwlock_trywrlock(&access_lock));
}

static void unlocked(struct worker *w, int access)
{
	if (w->depends)
		GOOD(w, gpu.cuStreamSynchronize(w->stream));
	w->depends = false;
	if (access != ANYHOW)
		pthread_rwlock_unlock(&access_lock);
}

static void *work(void *argument)
{
	struct worker *w = argument;

	GOOD(w, gpu.cuCtxSetCurrent(device[w->device].context));
	GOOD(w, gpu.cuStreamCreate(&w->stream, CU_STREAM_NON_BLOCKING));
	GOOD(w, gpu.cuEventCreate(&w->event, CU_EVENT_DISABLE_TIMING));
	while (w->done < operations && !wrong) {
		unsigned pick = below(w, 1000), i = 0;
		struct slot *s;

		while (pick >= table[i].weight)
			pick -= table[i++].weight;
		s = try_slot(w, table[i].with_memory);
		if (!s) {
			land(w);
			continue;
		}
		if (locked(table[i].access)) {
			table[i].run(w, s);
			unlocked(w, table[i].access);
			w->done++;
		}
		fly(w, s);
	}
	land(w);
	GOOD(w, gpu.cuEventDestroy_v2(w->event));
	GOOD(w, gpu.cuStreamDestroy_v2(w->stream));
	return NULL;
}

/* The application. */
static int application(unsigned threads, int ready, int go)
{
	struct worker last = {.number = threads, .random = seed}, *w = calloc(threads, sizeof(*w));
	uint64_t failed = 0, refused = 0;
	int fds, devices_there;
	char c = 0;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	functions_begin();
	MUST(cuDeviceGetCount(&devices_there));
	device_begin();
	for (unsigned i = 0; i < SLOTS; i++)
		pthread_mutex_init(&slots[i].lock, NULL);
	fds = open_descriptors();
	if (write(ready, &c, 1) != 1)
		return 2;
	for (unsigned i = 0; i < threads; i++) {
		if (i == threads / 2 && devices_there > 1) {
			sleep_ms(SECOND_MS);
			device_begin();
		}
		w[i].number = i;
		w[i].device = devices - 1;
		w[i].random = seed * 1000 + i;
		pthread_create(&w[i].thread, NULL, work, &w[i]);
	}
	for (unsigned i = 0; i < threads; i++) {
		pthread_join(w[i].thread, NULL);
		failed += w[i].failed;
		refused += w[i].refused;
	}
	if (write(ready, &c, 1) != 1 || read(go, &c, 1) != 1)
		return 2;
	printf("# %llu operations on %d devices, %llu allocations refused, %llu uses\n",
	       (unsigned long long)(operations * threads), devices, (unsigned long long)failed,
	       (unsigned long long)refused);
	for (unsigned i = 0; i < SLOTS; i++) {
		if (!slots[i].at)
			continue;
		last.device = slots[i].device;
		MUST(cuCtxSetCurrent(device[last.device].context));
		check(&last, &slots[i], 0);
		check(&last, &slots[i], 1);
		release(&last, &slots[i]);
	}
	for (int i = 0; i < devices; i++) {
		MUST(cuCtxSetCurrent(device[i].context));
		MUST(cuCtxSynchronize());
	}
	ok(!wrong, "all memory was what it should be, at any time");
	ok(descriptors_become(fds), "no descriptor is left");
	free(w);
	return tap_failed;
}

int main(int argc, char **argv)
{
	int ready[2], go[2], status;
	unsigned threads;
	pid_t child;
	char c = 0;

	if (argc != 4) {
		fputs("usage: model SEED OPERATIONS THREADS\n", stderr);
		return 2;
	}
	seed = strtoull(argv[1], NULL, 0);
	threads = atoi(argv[3]);
	operations = strtoull(argv[2], NULL, 0) / threads;
	printf("# seed %llu\n", (unsigned long long)seed);
	fflush(stdout);
	if (pipe(ready) || pipe(go))
		return 2;
	child = fork();
	if (!child) {
		close(ready[0]);
		close(go[1]);
		_exit(application(threads, ready[1], go[0]));
	}
	close(ready[1]);
	close(go[0]);
	if (read(ready[0], &c, 1) != 1 || fake_pool_find(&pool, child)) {
		puts("Bail out! no application");
		return 2;
	}
	parking(~seed, ready[0]);
	if (tap_failed)
		kill(child, SIGKILL);
	else if (write(go[1], &c, 1) != 1)
		kill(child, SIGKILL);
	waitpid(child, &status, 0);
	tap_count += 2; /* the application's */
	printf("# %u parks, %u refused, %u unparks, %u failed; %u pieces at most\n", count.parks, count.refused,
	       count.unparks, count.failed, count.most);
	ok(count.parks && count.unparks == count.parks, "it was parked and unparked");
	ok(WIFEXITED(status) && WEXITSTATUS(status) == 0, "the application ended well");
	fake_pool_close(&pool);
	return tap_end();
}
