// SPDX-License-Identifier: MIT
/*
 * model SEED OPERATIONS THREADS: random operations of many threads on GPU memory, against a model in host memory, while
 * another process parks and unparks it, often failing or lying. Prints TAP.
 */
#include "gpu.h"

#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#include "../client/leaks.h"
#include "fake_pool.h"

#define SLOTS	 64
#define AREA	 64 /* words that are looked at, at the start of each slot's memory and at its end */
#define PENDING	 12  /* slots with work under way, at most, for each thread */
#define MIB	 (1ul << 20)
#define PARK_MS	 10000 /* on a machine that is busy */
#define LATE_MS	 30
#define ATTEMPTS 5
#define PAUSE_MS 500 /* between two parks, at most */

#define MODEL_API(F)                                                                                                   \
	F(cuMemcpyHtoDAsync_v2)                                                                                        \
	F(cuMemcpyDtoDAsync_v2)                                                                                        \
	F(cuMemcpyDtoD_v2)                                                                                             \
	F(cuMemAllocAsync)                                                                                             \
	F(cuMemFreeAsync)                                                                                              \
	F(cuMemAddressReserve)                                                                                         \
	F(cuMemAddressFree)                                                                                            \
	F(cuMemCreate)                                                                                                 \
	F(cuMemRelease)                                                                                                \
	F(cuMemMap)                                                                                                    \
	F(cuMemUnmap)                                                                                                  \
	F(cuMemSetAccess)                                                                                              \
	F(cuMemGetAddressRange_v2)                                                                                     \
	F(cuGraphLaunch)

static struct {
#define F(name) __typeof__(&name) name;
	MODEL_API(F)
#undef F
} cu;

enum kind { ALLOC, MAPPED, ORDERED, KINDS };

struct slot {
	pthread_mutex_t lock; /* who holds it owns the rest, and what is under way on the memory */
	CUdeviceptr at;	      /* 0: none */
	size_t bytes;
	enum kind kind;
	CUmemGenericAllocationHandle handle; /* MAPPED */
	uint32_t expect[2][AREA];
};
static struct slot slots[SLOTS];

struct worker {
	pthread_t thread;
	unsigned number;
	uint64_t random, done, failed;
	CUstream stream;
	CUevent event;
	struct slot *pending[PENDING];
	unsigned pendings;
	uint32_t from[PENDING][AREA]; /* what is being copied to them */
};

static uint64_t seed, operations;
static volatile sig_atomic_t wrong;

static uint64_t next_random(uint64_t *state)
{
	uint64_t z = *state += 0x9e3779b97f4a7c15ull;

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
	return z ^ (z >> 31);
}

static unsigned below(struct worker *w, unsigned limit)
{
	return next_random(&w->random) % limit;
}

static void __attribute__((format(printf, 2, 3))) complain(struct worker *w, const char *format, ...)
{
	va_list args;

	wrong = 1;
	printf("# seed %llu, thread %u, operation %llu: ", (unsigned long long)seed, w->number,
	       (unsigned long long)w->done);
	va_start(args, format);
	vprintf(format, args);
	va_end(args);
	puts("");
	fflush(stdout);
}

#define GOOD(w, call)                                                                                                  \
	do {                                                                                                           \
		CUresult r_ = call;                                                                                    \
		if (r_ != CUDA_SUCCESS)                                                                                \
			complain(w, "%s: CUDA error %d", #call, r_);                                                   \
	} while (0)

static CUdeviceptr area_of(const struct slot *s, unsigned area)
{
	return area ? s->at + s->bytes - AREA * 4 : s->at;
}

static void filled(uint32_t *word, unsigned words, uint32_t with)
{
	for (unsigned i = 0; i < words; i++)
		word[i] = i * 2654435761u ^ with;
}

static CUresult launch_fill(CUdeviceptr at, uint64_t words, uint32_t with, CUstream stream)
{
	void *params[] = {&at, &words, &with};

	return gpu.cuLaunchKernel(gpu.fill, 1, 1, 1, 1, 1, 1, 0, stream, params, NULL);
}

/* ---- slots ---- */

static struct slot *try_slot(struct worker *w, bool with_memory)
{
	struct slot *s = &slots[below(w, SLOTS)];

	if (pthread_mutex_trylock(&s->lock))
		return NULL;
	if (!with_memory || s->at)
		return s;
	pthread_mutex_unlock(&s->lock);
	return NULL;
}

static void land(struct worker *w)
{
	if (w->pendings)
		GOOD(w, gpu.cuStreamSynchronize(w->stream));
	while (w->pendings)
		pthread_mutex_unlock(&w->pending[--w->pendings]->lock);
}

/* The slot has work under way in the thread's stream: it stays locked until that has ended. */
static void fly(struct worker *w, struct slot *s)
{
	w->pending[w->pendings++] = s;
	if (w->pendings == PENDING)
		land(w);
}

static void check(struct worker *w, struct slot *s, unsigned area)
{
	uint32_t found[AREA] = {};

	GOOD(w, gpu.cuMemcpyDtoH_v2(found, area_of(s, area), sizeof(found)));
	for (unsigned i = 0; i < AREA; i++) {
		if (found[i] == s->expect[area][i])
			continue;
		complain(w, "slot %td, kind %d, %zu bytes, area %u, word %u: %08x instead of %08x", s - slots, s->kind,
			 s->bytes, area, i, found[i], s->expect[area][i]);
		return;
	}
}

static CUresult map_memory(struct worker *w, struct slot *s)
{
	CUmemAllocationProp prop = {.type = CU_MEM_ALLOCATION_TYPE_PINNED,
				    .location = {CU_MEM_LOCATION_TYPE_DEVICE, 0}};
	CUmemAccessDesc access = {prop.location, CU_MEM_ACCESS_FLAGS_PROT_READWRITE};
	CUresult r;

	s->bytes = (s->bytes + 2 * MIB - 1) / (2 * MIB) * (2 * MIB);
	r = cu.cuMemAddressReserve(&s->at, s->bytes, 0, 0, 0);
	if (r)
		return r;
	r = cu.cuMemCreate(&s->handle, s->bytes, &prop, 0);
	if (!r) {
		r = cu.cuMemMap(s->at, s->bytes, 0, s->handle, 0);
		if (!r)
			r = cu.cuMemSetAccess(s->at, s->bytes, &access, 1);
		if (!r)
			return r;
		cu.cuMemUnmap(s->at, s->bytes);
		GOOD(w, cu.cuMemRelease(s->handle));
	}
	GOOD(w, cu.cuMemAddressFree(s->at, s->bytes));
	return r;
}

static void allocate(struct worker *w, struct slot *s)
{
	static const size_t sizes[] = {512, 4096, 64 << 10, 2 << 20, 2 << 20, (2 << 20) + 4};
	CUresult r;

	s->kind = below(w, KINDS);
	s->bytes = sizes[below(w, sizeof(sizes) / sizeof(*sizes))];
	switch (s->kind) {
	case ALLOC:
		r = gpu.cuMemAlloc_v2(&s->at, s->bytes);
		break;
	case MAPPED:
		r = map_memory(w, s);
		break;
	default:
		r = cu.cuMemAllocAsync(&s->at, s->bytes, w->stream);
		break;
	}
	if (r) { /* the driver was told to refuse some */
		if (r != CUDA_ERROR_OUT_OF_MEMORY)
			complain(w, "allocating, kind %d: CUDA error %d", s->kind, r);
		w->failed++;
		s->at = 0;
		return;
	}
	for (unsigned area = 0; area < 2; area++) {
		uint32_t with = next_random(&w->random);

		GOOD(w, launch_fill(area_of(s, area), AREA, with, w->stream));
		filled(s->expect[area], AREA, with);
	}
}

static void release(struct worker *w, struct slot *s)
{
	switch (s->kind) {
	case ALLOC:
		GOOD(w, gpu.cuMemFree_v2(s->at));
		break;
	case MAPPED:
		GOOD(w, cu.cuMemUnmap(s->at, s->bytes));
		GOOD(w, cu.cuMemRelease(s->handle));
		GOOD(w, cu.cuMemAddressFree(s->at, s->bytes));
		break;
	default:
		GOOD(w, cu.cuMemFreeAsync(s->at, w->stream));
		break;
	}
	s->at = 0;
}

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
	uint32_t *words = w->from[w->pendings];

	filled(words, count, next_random(&w->random));
	memcpy(s->expect[area] + from, words, count * 4);
	if (below(w, 16))
		GOOD(w, cu.cuMemcpyHtoDAsync_v2(area_of(s, area) + from * 4, words, count * 4, w->stream));
	else
		GOOD(w, gpu.cuMemcpyHtoD_v2(area_of(s, area) + from * 4, words, count * 4));
}

static void do_check(struct worker *w, struct slot *s)
{
	check(w, s, below(w, 2));
}

static void do_memset(struct worker *w, struct slot *s)
{
	unsigned area = below(w, 2), from = below(w, AREA), count = 1 + below(w, AREA - from);
	uint32_t with = next_random(&w->random);

	for (unsigned i = 0; i < count; i++)
		s->expect[area][from + i] = with;
	if (below(w, 16))
		GOOD(w, gpu.cuMemsetD32Async(area_of(s, area) + from * 4, with, count, w->stream));
	else
		GOOD(w, gpu.cuMemsetD32_v2(area_of(s, area) + from * 4, with, count));
}

static void do_launch(struct worker *w, struct slot *s)
{
	unsigned area = below(w, 2), from = below(w, AREA), count = 1 + below(w, AREA - from);
	uint32_t with = next_random(&w->random);

	filled(s->expect[area] + from, count, with);
	GOOD(w, launch_fill(area_of(s, area) + from * 4, count, with, w->stream));
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
	memcpy(s->expect[to], other->expect[from], sizeof(s->expect[to]));
	if (below(w, 2)) {
		GOOD(w, cu.cuMemcpyDtoD_v2(area_of(s, to), area_of(other, from), AREA * 4));
		GOOD(w, gpu.cuStreamSynchronize(NULL)); /* such a copy may return before it has ended */
	} else {
		GOOD(w, cu.cuMemcpyDtoDAsync_v2(area_of(s, to), area_of(other, from), AREA * 4, w->stream));
		GOOD(w, gpu.cuStreamSynchronize(w->stream));
	}
	pthread_mutex_unlock(&other->lock);
}

/* Captured, and launched once or more. */
static void do_graph(struct worker *w, struct slot *s)
{
	uint32_t with = next_random(&w->random);
	CUgraph graph = NULL;
	CUgraphExec exec;

	land(w); /* s is not among them */
	GOOD(w, gpu.cuStreamBeginCapture_v2(w->stream, below(w, 2) ? CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
								   : CU_STREAM_CAPTURE_MODE_RELAXED));
	GOOD(w, gpu.cuMemsetD32Async(s->at, ~with, AREA, w->stream));
	GOOD(w, launch_fill(s->at, AREA, with, w->stream));
	GOOD(w, launch_fill(area_of(s, 1), AREA, ~with, w->stream));
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
	size_t bytes = 0, free_bytes, total;
	CUdeviceptr base = 0;

	GOOD(w, cu.cuMemGetAddressRange_v2(&base, &bytes, s->at + s->bytes / 2));
	if (base != s->at || bytes < s->bytes || bytes >= s->bytes + 2 * MIB)
		complain(w, "%zu bytes at %llx are said to be %zu at %llx", s->bytes, s->at, bytes, base);
	GOOD(w, gpu.cuMemGetInfo_v2(&free_bytes, &total));
	if (!free_bytes || free_bytes > total)
		complain(w, "%zu of %zu bytes are free", free_bytes, total);
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
	unsigned weight; /* of 100 */
	bool with_memory;
	void (*run)(struct worker *w, struct slot *s);
} table[] = {{2, false, do_toggle}, {26, true, do_copy_in}, {8, true, do_check}, {28, true, do_memset}, {28, true, do_launch},
	     {3, true, do_copy},    {1, true, do_graph},    {3, true, do_ask},	 {1, true, do_wrong}};

static void *work(void *argument)
{
	struct worker *w = argument;

	GOOD(w, gpu.cuCtxSetCurrent(gpu.ctx));
	GOOD(w, gpu.cuStreamCreate(&w->stream, CU_STREAM_NON_BLOCKING));
	GOOD(w, gpu.cuEventCreate(&w->event, CU_EVENT_DISABLE_TIMING));
	while (w->done < operations && !wrong) {
		unsigned pick = below(w, 100), i = 0;
		struct slot *s;

		while (pick >= table[i].weight)
			pick -= table[i++].weight;
		s = try_slot(w, table[i].with_memory);
		if (!s) {
			land(w);
			continue;
		}
		table[i].run(w, s);
		fly(w, s);
		w->done++;
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
	size_t free_before, free_after, total;
	uint64_t refusals = 0;
	int fds;
	char c = 0;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	gpu_begin();
#define F(name)                                                                                                        \
	cu.name = (__typeof__(cu.name))dlsym(RTLD_DEFAULT, #name);                                                     \
	if (!cu.name)                                                                                                  \
		cu.name = (__typeof__(cu.name))dlsym(dlopen("libcuda.so.1", RTLD_NOW), #name);
	MODEL_API(F)
#undef F
	for (unsigned i = 0; i < SLOTS; i++)
		pthread_mutex_init(&slots[i].lock, NULL);
	MUST(cuMemGetInfo_v2(&free_before, &total));
	fds = open_descriptors();
	if (write(ready, &c, 1) != 1)
		return 2;
	for (unsigned i = 0; i < threads; i++) {
		w[i].number = i;
		w[i].random = seed * 1000 + i;
		pthread_create(&w[i].thread, NULL, work, &w[i]);
	}
	for (unsigned i = 0; i < threads; i++) {
		pthread_join(w[i].thread, NULL);
		refusals += w[i].failed;
	}
	if (write(ready, &c, 1) != 1 || read(go, &c, 1) != 1)
		return 2;
	printf("# %llu operations, %llu allocations refused\n", (unsigned long long)(operations * threads),
	       (unsigned long long)refusals);
	for (unsigned i = 0; i < SLOTS; i++) {
		if (!slots[i].at)
			continue;
		check(&last, &slots[i], 0);
		check(&last, &slots[i], 1);
		release(&last, &slots[i]);
	}
	MUST(cuCtxSynchronize());
	ok(!wrong, "all memory was what it should be, at any time");
	ok(open_descriptors() == fds, "no descriptor is left");
	MUST(cuMemGetInfo_v2(&free_after, &total));
	printf("# %zu bytes free, %zu before\n", free_after, free_before);
	free(w);
	return tap_failed;
}

/* ---- the pool ---- */

static struct fake_pool pool;
static struct {
	unsigned parks, refused, unparks, failed, most;
} count;

/* The next command is carried out when the last one is over. */
static uint32_t state_of_shim(void)
{
	if (fake_pool_command(&pool, CUDAPOOL_PAGE_PING, PARK_MS)) {
		printf("# a pool of kind %d, state %u, command %u\n", pool.at, pool.page->park_state, pool.page->command);
		ok(false, "the shim answers");
		return UINT32_MAX;
	}
	return __atomic_load_n(&pool.page->park_state, __ATOMIC_ACQUIRE);
}

static bool wait_ms(int fd, int ms)
{
	struct pollfd p = {.fd = fd, .events = POLLIN};

	return poll(&p, 1, ms) > 0;
}

/* A pool that dies early, or says nothing, is waited for so long. */
static uint32_t limit_ms(void)
{
	return pool.at == FAKE_POOL_HONEST ? PARK_MS : LATE_MS;
}

static bool unpark_all(uint64_t *random)
{
	for (int i = 0; i < ATTEMPTS; i++) {
		int err;

		pool.at = i == 0 && next_random(random) % 4 == 0 ? next_random(random) % FAKE_POOL_POINTS : FAKE_POOL_HONEST;
		err = fake_pool_unpark(&pool, limit_ms());
		if (err)
			count.failed++;
		if (err && pool.at == FAKE_POOL_HONEST)
			printf("# unpark: %d, %s (%d)\n", err, pool.end.text, pool.end.cu_result);
		if (state_of_shim() == CUDAPOOL_PARK_OPEN) {
			count.unparks++;
			fake_pool_forget(&pool);
			return true;
		}
	}
	return false;
}

/* Parks and unparks until the application says that it is done. */
static void parking(uint64_t random, int ready)
{
	while (!wait_ms(ready, next_random(&random) % PAUSE_MS)) {
		int err;

		pool.at = next_random(&random) % 4 == 0 ? next_random(&random) % FAKE_POOL_POINTS : FAKE_POOL_HONEST;
		if (pool.at >= FAKE_POOL_LIES_TOKEN && pool.at < FAKE_POOL_LATE)
			pool.at = FAKE_POOL_HONEST; /* of an unpark only */
		err = fake_pool_park(&pool, limit_ms());
		if (err && pool.at == FAKE_POOL_HONEST && err != -EIO) {
			printf("# park: %d, %s (%d)\n", err, pool.end.text, pool.end.cu_result);
			ok(false, "an honest pool parks, unless the driver refuses");
			return;
		}
		if (state_of_shim() != CUDAPOOL_PARK_PARKED) {
			count.refused++;
			continue;
		}
		count.parks++;
		count.most = pool.pieces > count.most ? pool.pieces : count.most;
		if (next_random(&random) % 2)
			sleep_ms(next_random(&random) % 4);
		if (!unpark_all(&random)) {
			ok(false, "an honest pool unparks");
			return;
		}
	}
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
