// SPDX-License-Identifier: MIT
/* The model: slots of memory on one device or two, what must be in them, and which device may use them. */
#ifndef CUDAPOOL_TEST_PARK_MODEL_MEMORY_H
#define CUDAPOOL_TEST_PARK_MODEL_MEMORY_H

#include <stdarg.h>

#include "gpu.h"

#define DEVICES 2
#define SLOTS	64
#define AREA	64 /* words that are looked at, at the start of each slot's memory and at its end */
#define PENDING 12 /* slots with work under way, at most, for each thread */
#define MIB	(1ul << 20)
#define PARKED	(64ul << 10) /* CUDAPOOL_PARK_MIN_KB: what is smaller is the driver's own */

#define MODEL_API(F)                                                                                                   \
	F(cuCtxPushCurrent_v2)                                                                                         \
	F(cuCtxPopCurrent_v2)                                                                                          \
	F(cuCtxEnablePeerAccess)                                                                                       \
	F(cuCtxDisablePeerAccess)                                                                                      \
	F(cuMemcpy)                                                                                                    \
	F(cuMemcpyAsync)                                                                                               \
	F(cuMemcpyPeer)                                                                                                \
	F(cuMemcpyPeerAsync)                                                                                           \
	F(cuMemcpyHtoDAsync_v2)                                                                                        \
	F(cuMemcpyDtoDAsync_v2)                                                                                        \
	F(cuMemcpyDtoD_v2)                                                                                             \
	F(cuMemFreeAsync)                                                                                              \
	F(cuDeviceGetDefaultMemPool)                                                                                   \
	F(cuMemPoolSetAccess)                                                                                          \
	F(cuMemAddressReserve)                                                                                         \
	F(cuMemAddressFree)                                                                                            \
	F(cuMemRelease)                                                                                                \
	F(cuMemMap)                                                                                                    \
	F(cuMemUnmap)                                                                                                  \
	F(cuMemSetAccess)                                                                                              \
	F(cuMemGetAccess)

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
	int device;
	CUmemGenericAllocationHandle handle; /* MAPPED */
	bool open;			     /* MAPPED: to the other device */
	uint32_t expect[2][AREA];
};
static struct slot slots[SLOTS];

static struct device {
	CUcontext context; /* the primary one */
	CUfunction fill;
	CUmemoryPool pool;
	bool open; /* the pool's memory is, to the other device */
	bool peer; /* its context has peer access to the other device's */
} device[DEVICES];
static _Atomic int devices; /* so many are in use */
/* Held for reading while the outcome of work depends on a device's `open` or `peer`, for writing to change them. */
static pthread_rwlock_t access_lock = PTHREAD_RWLOCK_INITIALIZER;

/* Of a device, whose primary context is its current one. */
struct worker {
	pthread_t thread;
	unsigned number;
	int device;
	uint64_t random, done, failed, refused;
	CUstream stream;
	CUevent event;
	bool depends; /* on `open` or `peer`: work under way that must end before they may change */
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

static CUresult launch_fill(CUfunction fill, CUdeviceptr at, uint64_t words, uint32_t with, CUstream stream)
{
	void *params[] = {&at, &words, &with};

	return gpu.cuLaunchKernel(fill, 1, 1, 1, 1, 1, 1, 0, stream, params, NULL);
}

/* ---- which device may use what ---- */

enum use { COPY, FILL, KERNEL };
enum answer { REFUSED, ALLOWED, EITHER };

/* To a context of this device, with or without peer access to the other's (probes/reach.out, docs/operations.md). */
static enum answer answer_to(int by, bool peer, const struct slot *s, enum use use)
{
	if (s->device == by)
		return ALLOWED;
	switch (s->kind) {
	case MAPPED:
		return s->open ? ALLOWED : REFUSED;
	case ORDERED:
		return device[s->device].open ? ALLOWED : REFUSED;
	default:
		if (use == COPY || peer)
			return ALLOWED;
		return s->bytes < PARKED ? REFUSED : EITHER; /* the shim's own are more open than the driver's */
	}
}

static enum answer answer(struct worker *w, const struct slot *s, enum use use)
{
	w->depends |= s->device != w->device && (s->kind == ORDERED || (s->kind == ALLOC && use != COPY));
	return answer_to(w->device, device[w->device].peer, s, use);
}

/* Was it done? It must have been answered so. */
static bool done(struct worker *w, enum answer expected, CUresult r, const struct slot *s, const char *call)
{
	if (r == CUDA_SUCCESS ? expected == REFUSED : r != CUDA_ERROR_INVALID_VALUE || expected == ALLOWED)
		complain(w, "%s: CUDA error %d by device %d, of device %d, kind %d, %zu bytes, open %d %d, peer %d",
			 call, r, w->device, s->device, s->kind, s->bytes, s->open, device[s->device].open,
			 device[w->device].peer);
	w->refused += r != CUDA_SUCCESS;
	return r == CUDA_SUCCESS;
}
#define DONE(w, answer, s, call) done(w, answer, call, s, #call)

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
	CUdeviceptr from = area_of(s, area);
	enum answer expected = answer(w, s, COPY);

	if (below(w, 2)) {
		if (!DONE(w, expected, s, gpu.cuMemcpyDtoH_v2(found, from, sizeof(found))))
			return;
	} else {
		if (!DONE(w, expected, s, gpu.cuMemcpyDtoHAsync_v2(found, from, sizeof(found), w->stream)))
			return;
		GOOD(w, gpu.cuStreamSynchronize(w->stream));
	}
	for (unsigned i = 0; i < AREA; i++) {
		if (found[i] == s->expect[area][i])
			continue;
		complain(w, "slot %td, kind %d, device %d, %zu bytes, area %u, word %u: %08x instead of %08x",
			 s - slots, s->kind, s->device, s->bytes, area, i, found[i], s->expect[area][i]);
		return;
	}
}

static CUresult set_open(struct slot *s, int to, bool open)
{
	CUmemAccessDesc access = {{CU_MEM_LOCATION_TYPE_DEVICE, to},
				  open ? CU_MEM_ACCESS_FLAGS_PROT_READWRITE : CU_MEM_ACCESS_FLAGS_PROT_NONE};

	return cu.cuMemSetAccess(s->at, s->bytes, &access, 1);
}

static CUresult map_memory(struct worker *w, struct slot *s)
{
	CUmemAllocationProp prop = {.type = CU_MEM_ALLOCATION_TYPE_PINNED,
				    .location = {CU_MEM_LOCATION_TYPE_DEVICE, s->device}};
	CUresult r;

	s->open = false;
	s->bytes = (s->bytes + 2 * MIB - 1) / (2 * MIB) * (2 * MIB);
	r = cu.cuMemAddressReserve(&s->at, s->bytes, 0, 0, 0);
	if (r)
		return r;
	r = gpu.cuMemCreate(&s->handle, s->bytes, &prop, 0);
	if (!r) {
		r = cu.cuMemMap(s->at, s->bytes, 0, s->handle, 0);
		if (!r)
			r = set_open(s, s->device, true);
		if (!r)
			return r;
		cu.cuMemUnmap(s->at, s->bytes);
		GOOD(w, cu.cuMemRelease(s->handle));
	}
	GOOD(w, cu.cuMemAddressFree(s->at, s->bytes));
	return r;
}

static size_t some_bytes(struct worker *w)
{
	static const size_t sizes[] = {512, 4096, PARKED, 2 * MIB, 2 * MIB, 2 * MIB + 4};

	return sizes[below(w, sizeof(sizes) / sizeof(*sizes))];
}

static void allocate(struct worker *w, struct slot *s)
{
	CUresult r;

	s->device = w->device;
	s->kind = below(w, KINDS);
	s->bytes = some_bytes(w);
	switch (s->kind) {
	case ALLOC:
		r = gpu.cuMemAlloc_v2(&s->at, s->bytes);
		break;
	case MAPPED:
		r = map_memory(w, s);
		break;
	default:
		r = gpu.cuMemAllocAsync(&s->at, s->bytes, w->stream);
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

		GOOD(w, launch_fill(device[w->device].fill, area_of(s, area), AREA, with, w->stream));
		filled(s->expect[area], AREA, with);
	}
}

/* With work under way that ends before the memory does: freeing waits for it, or is a stream's turn. */
static void release(struct worker *w, struct slot *s)
{
	if (s->kind == ALLOC || (s->kind == ORDERED && s->device == w->device))
		GOOD(w, cu.cuMemcpyDtoDAsync_v2(area_of(s, 1), area_of(s, 0), AREA * 4, w->stream));
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
		if (s->device == w->device)
			GOOD(w, cu.cuMemFreeAsync(s->at, w->stream));
		else
			GOOD(w, gpu.cuMemFree_v2(s->at));
		break;
	}
	s->at = 0;
}

#endif
