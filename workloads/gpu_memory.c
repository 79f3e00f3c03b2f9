// SPDX-License-Identifier: MIT
/* The GPU memory of gpu_app: see gpu_memory.h. */
#include "gpu_memory.h"

#include <dlfcn.h>
#include <stdlib.h>

#include "kernels.ptx.h"
#include "protocol.h"

/*
 * One line per function: the name as it is exported, and its arguments. Those of the second table only some kinds of
 * memory need; an older driver may lack them.
 */
#define DRIVER_TABLE(F)                                                                                                \
	F(cuInit, (unsigned))                                                                                          \
	F(cuGetErrorName, (CUresult, const char **))                                                                   \
	F(cuDeviceGet, (CUdevice *, int))                                                                              \
	F(cuDevicePrimaryCtxRetain, (CUcontext *, CUdevice))                                                           \
	F(cuCtxCreate_v2, (CUcontext *, unsigned, CUdevice))                                                           \
	F(cuCtxSetCurrent, (CUcontext))                                                                                \
	F(cuCtxSynchronize, (void))                                                                                    \
	F(cuMemAlloc_v2, (CUdeviceptr *, size_t))                                                                      \
	F(cuMemFree_v2, (CUdeviceptr))                                                                                 \
	F(cuMemcpyHtoD_v2, (CUdeviceptr, const void *, size_t))                                                        \
	F(cuMemcpyDtoH_v2, (void *, CUdeviceptr, size_t))                                                              \
	F(cuMemsetD8_v2, (CUdeviceptr, unsigned char, size_t))                                                         \
	F(cuMemsetD8Async, (CUdeviceptr, unsigned char, size_t, CUstream))                                             \
	F(cuStreamCreate, (CUstream *, unsigned))                                                                      \
	F(cuEventCreate, (CUevent *, unsigned))                                                                        \
	F(cuEventRecord, (CUevent, CUstream))                                                                          \
	F(cuEventQuery, (CUevent))                                                                                     \
	F(cuModuleLoadData, (CUmodule *, const void *))                                                                \
	F(cuModuleGetFunction, (CUfunction *, CUmodule, const char *))                                                 \
	F(cuLaunchKernel, (CUfunction, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, CUstream, \
			   void **, void **))

#define FURTHER_TABLE(F)                                                                                               \
	F(cuMemAllocAsync, (CUdeviceptr *, size_t, CUstream))                                                          \
	F(cuMemFreeAsync, (CUdeviceptr, CUstream))                                                                     \
	F(cuMemAllocManaged, (CUdeviceptr *, size_t, unsigned))                                                        \
	F(cuMemGetAllocationGranularity,                                                                               \
	  (size_t *, const CUmemAllocationProp *, CUmemAllocationGranularity_flags))                                   \
	F(cuMemAddressReserve, (CUdeviceptr *, size_t, size_t, CUdeviceptr, unsigned long long))                       \
	F(cuMemCreate, (CUmemGenericAllocationHandle *, size_t, const CUmemAllocationProp *, unsigned long long))      \
	F(cuMemMap, (CUdeviceptr, size_t, size_t, CUmemGenericAllocationHandle, unsigned long long))                   \
	F(cuMemSetAccess, (CUdeviceptr, size_t, const CUmemAccessDesc *, size_t))                                      \
	F(cuMemUnmap, (CUdeviceptr, size_t))                                                                           \
	F(cuMemRelease, (CUmemGenericAllocationHandle))

#define DECLARE(name, args) static CUresult(*p_##name) args;
DRIVER_TABLE(DECLARE)
FURTHER_TABLE(DECLARE)

enum { LAUNCH_BLOCKS = 1024, LAUNCH_THREADS = 256, COPY_WORDS = 16384 };

/* A flight checks all memory so often: little of it would be checked before anybody looks. */
enum { REPEATS = 16, REPEATS_UP_TO_PIECES = 64 };

/* Calls the driver unless something failed before; remembers what failed. */
#define CU(g, call, ...)                                                                                               \
	do {                                                                                                           \
		if (!(g)->failed && !p_##call) {                                                                       \
			(g)->failed = #call;                                                                           \
			(g)->result = CUDA_ERROR_NOT_FOUND;                                                            \
		} else if (!(g)->failed && ((g)->result = p_##call(__VA_ARGS__))) {                                    \
			(g)->failed = #call;                                                                           \
		}                                                                                                      \
	} while (0)

const char *gpu_find_driver(void)
{
	void *lib = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);

	if (!lib)
		return dlerror();
#define FIND(name, args)                                                                                               \
	if (!(p_##name = dlsym(lib, #name)))                                                                           \
		return "it has no " #name;
#define FIND_IF_ANY(name, args) p_##name = dlsym(lib, #name);
	DRIVER_TABLE(FIND)
	FURTHER_TABLE(FIND_IF_ANY)
	return NULL;
}

const char *gpu_error_name(CUresult result)
{
	const char *name = NULL;

	if (p_cuGetErrorName)
		p_cuGetErrorName(result, &name);
	return name ? name : "?";
}

static struct gpu_device *device_of(struct gpu *g, unsigned piece)
{
	return &g->device[piece % g->shape.devices];
}

/*
 * Where a piece is copied from and to: with several devices, where it is not, as a copy reaches cuMemAlloc's memory from
 * everywhere.
 */
static struct gpu_device *copier_of(struct gpu *g, unsigned piece)
{
	return device_of(g, g->shape.kind == GPU_ALLOC ? piece + 1 : piece);
}

static uint64_t piece_words(const struct gpu *g)
{
	return g->shape.words / g->shape.pieces;
}

static uint64_t piece_filled(const struct gpu *g)
{
	return g->shape.filled / g->shape.pieces;
}

static uint32_t piece_seed(const struct gpu *g, unsigned piece)
{
	return g->seed + piece * WORKLOAD_PIECE_FACTOR;
}

static void use(struct gpu *g, const struct gpu_device *device)
{
	CU(g, cuCtxSetCurrent, device->ctx);
}

static void wait_for_all(struct gpu *g)
{
	for (unsigned d = 0; d < g->shape.devices; d++) {
		use(g, &g->device[d]);
		CU(g, cuCtxSynchronize);
	}
	use(g, &g->device[0]);
}

void gpu_contexts(struct gpu *g)
{
	CU(g, cuInit, 0);
	for (unsigned d = 0; d < g->shape.devices; d++) {
		struct gpu_device *device = &g->device[d];

		CU(g, cuDeviceGet, &device->id, d);
		if (g->shape.create)
			CU(g, cuCtxCreate_v2, &device->ctx, 0, device->id);
		else
			CU(g, cuDevicePrimaryCtxRetain, &device->ctx, device->id);
		use(g, device);
	}
	use(g, &g->device[0]);
}

static void map_piece(struct gpu *g, unsigned p)
{
	struct gpu_piece *piece = &g->piece[p];
	CUmemAllocationProp prop = {
		.type = CU_MEM_ALLOCATION_TYPE_PINNED,
		.location = {CU_MEM_LOCATION_TYPE_DEVICE, device_of(g, p)->id},
	};
	CUmemAccessDesc access = {.location = prop.location, .flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE};
	size_t granularity = 1;

	if (!piece->at) { /* else the address range is there from before */
		CU(g, cuMemGetAllocationGranularity, &granularity, &prop, CU_MEM_ALLOC_GRANULARITY_RECOMMENDED);
		g->mapped = (piece_words(g) * 4 + granularity - 1) / granularity * granularity;
		CU(g, cuMemAddressReserve, &piece->at, g->mapped, 0, 0, 0);
	}
	CU(g, cuMemCreate, &piece->handle, g->mapped, &prop, 0);
	CU(g, cuMemMap, piece->at, g->mapped, 0, piece->handle, 0);
	CU(g, cuMemSetAccess, piece->at, g->mapped, &access, 1);
}

static void make_piece(struct gpu *g, unsigned p)
{
	size_t bytes = piece_words(g) * 4;

	use(g, device_of(g, p));
	switch (g->shape.kind) {
	case GPU_ALLOC:
		CU(g, cuMemAlloc_v2, &g->piece[p].at, bytes);
		break;
	case GPU_MAP:
		map_piece(g, p);
		break;
	case GPU_ORDERED:
		CU(g, cuMemAllocAsync, &g->piece[p].at, bytes, NULL);
		break;
	case GPU_MANAGED:
		CU(g, cuMemAllocManaged, &g->piece[p].at, bytes, CU_MEM_ATTACH_GLOBAL);
		break;
	}
}

static void free_piece(struct gpu *g, unsigned p)
{
	use(g, device_of(g, p));
	switch (g->shape.kind) {
	case GPU_ALLOC:
	case GPU_MANAGED:
		CU(g, cuMemFree_v2, g->piece[p].at);
		break;
	case GPU_MAP:
		CU(g, cuMemUnmap, g->piece[p].at, g->mapped);
		CU(g, cuMemRelease, g->piece[p].handle);
		break;
	case GPU_ORDERED:
		CU(g, cuMemFreeAsync, g->piece[p].at, NULL);
		break;
	}
}

static void fill_by_copies(struct gpu *g, unsigned p)
{
	static uint32_t part[COPY_WORDS];
	uint64_t words = piece_filled(g);
	uint32_t seed = piece_seed(g, p);

	use(g, copier_of(g, p));
	for (uint64_t at = 0; at < words && !g->failed; at += COPY_WORDS) {
		size_t n = words - at < COPY_WORDS ? words - at : COPY_WORDS;

		for (size_t i = 0; i < n; i++)
			part[i] = ((uint32_t)(at + i) * WORKLOAD_FILL_FACTOR) ^ seed;
		CU(g, cuMemcpyHtoD_v2, g->piece[p].at + at * 4, part, n * 4);
	}
}

static uint64_t checksum_by_copies(struct gpu *g, unsigned p)
{
	static uint32_t part[COPY_WORDS];
	uint64_t words = piece_words(g), sum = 0;

	use(g, copier_of(g, p));
	for (uint64_t at = 0; at < words && !g->failed; at += COPY_WORDS) {
		size_t n = words - at < COPY_WORDS ? words - at : COPY_WORDS;

		CU(g, cuMemcpyDtoH_v2, part, g->piece[p].at + at * 4, n * 4);
		for (uint64_t i = at; i < at + n; i++)
			sum += (uint64_t)(part[i - at] ^ (uint32_t)i) * (2 * i + 1);
	}
	return sum;
}

static void launch(struct gpu *g, CUfunction f, CUstream stream, void **args)
{
	CU(g, cuLaunchKernel, f, LAUNCH_BLOCKS, 1, 1, LAUNCH_THREADS, 1, 1, 0, stream, args, NULL);
}

static void fill_piece(struct gpu *g, unsigned p)
{
	uint64_t words = piece_filled(g);
	uint32_t seed = piece_seed(g, p);
	void *args[] = {&g->piece[p].at, &words, &seed};

	use(g, device_of(g, p));
	if (words < piece_words(g))
		CU(g, cuMemsetD8_v2, g->piece[p].at + words * 4, 0, (piece_words(g) - words) * 4);
	if (g->copies)
		fill_by_copies(g, p);
	else if (words)
		launch(g, device_of(g, p)->fill, NULL, args);
}

/* Adds each piece's checksum to its place in `sums`, on the device. */
static void check_device(struct gpu *g, unsigned d, CUstream stream, CUdeviceptr sums)
{
	uint64_t words = piece_words(g);

	for (unsigned p = d; p < g->shape.pieces; p += g->shape.devices) {
		CUdeviceptr sum = sums + p * sizeof(uint64_t);
		void *args[] = {&g->piece[p].at, &words, &sum};

		launch(g, g->device[d].checksum, stream, args);
	}
}

/* What the kernels of one device found. */
static void read_sums(struct gpu *g, unsigned d, CUdeviceptr from, uint64_t *to)
{
	CU(g, cuMemcpyDtoH_v2, g->all_sums, from, g->shape.pieces * sizeof(uint64_t));
	for (unsigned p = d; p < g->shape.pieces; p += g->shape.devices)
		to[p] = g->all_sums[p];
}

static void find_sums(struct gpu *g)
{
	size_t size = g->shape.pieces * sizeof(uint64_t);

	if (g->copies) {
		for (unsigned p = 0; p < g->shape.pieces; p++)
			g->sums[p] = checksum_by_copies(g, p);
		return;
	}
	for (unsigned d = 0; d < g->shape.devices; d++) {
		use(g, &g->device[d]);
		CU(g, cuMemsetD8_v2, g->device[d].sums, 0, size);
		check_device(g, d, NULL, g->device[d].sums);
	}
	for (unsigned d = 0; d < g->shape.devices; d++) {
		use(g, &g->device[d]);
		read_sums(g, d, g->device[d].sums, g->sums); /* waits for the kernels, too */
	}
}

uint64_t gpu_checksum(struct gpu *g)
{
	uint64_t sum = 0;

	if (!g->shape.words) {
		wait_for_all(g);
		return 0;
	}
	find_sums(g);
	for (unsigned p = 0; p < g->shape.pieces; p++)
		sum += g->sums[p] * (2 * (uint64_t)p + 1);
	use(g, &g->device[0]);
	return sum;
}

/* Nothing is in flight any more, and nothing of it counts: the memory is about to change. */
static void land(struct gpu *g)
{
	wait_for_all(g);
	for (unsigned d = 0; d < g->shape.devices; d++)
		for (unsigned f = 0; f < GPU_FLIGHTS; f++)
			g->device[d].flight[f].pending = false;
}

void gpu_fill(struct gpu *g)
{
	if (!g->shape.words)
		return;
	land(g);
	for (unsigned p = 0; p < g->shape.pieces; p++)
		fill_piece(g, p);
	wait_for_all(g);
	find_sums(g);
	for (unsigned p = 0; p < g->shape.pieces; p++)
		g->expected[p] = g->sums[p];
}

void gpu_replace(struct gpu *g, unsigned piece)
{
	if (!g->shape.words)
		return;
	land(g);
	free_piece(g, piece);
	make_piece(g, piece);
	fill_piece(g, piece);
	wait_for_all(g);
}

static void make_flights(struct gpu *g, struct gpu_device *device)
{
	for (unsigned f = 0; f < GPU_FLIGHTS; f++) {
		CU(g, cuStreamCreate, &device->flight[f].stream, CU_STREAM_NON_BLOCKING);
		CU(g, cuEventCreate, &device->flight[f].done, CU_EVENT_DISABLE_TIMING);
		CU(g, cuMemAlloc_v2, &device->flight[f].sums, g->shape.pieces * sizeof(uint64_t));
	}
}

void gpu_make(struct gpu *g)
{
	CUmodule module;

	if (!g->shape.words || g->failed)
		return;
	g->piece = calloc(g->shape.pieces, sizeof(*g->piece));
	g->sums = calloc(g->shape.pieces, sizeof(*g->sums));
	g->all_sums = calloc(g->shape.pieces, sizeof(*g->all_sums));
	g->expected = calloc(g->shape.pieces, sizeof(*g->expected));
	if (!g->piece || !g->sums || !g->all_sums || !g->expected) {
		g->failed = "calloc";
		g->result = CUDA_ERROR_OUT_OF_MEMORY;
		return;
	}
	g->copies = g->shape.copies;
	for (unsigned d = 0; d < g->shape.devices && !g->failed; d++) {
		struct gpu_device *device = &g->device[d];

		use(g, device);
		if (!g->copies && p_cuModuleLoadData(&module, workload_ptx))
			g->copies = true;
		if (g->copies)
			continue;
		CU(g, cuModuleGetFunction, &device->fill, module, "cudapool_fill");
		CU(g, cuModuleGetFunction, &device->checksum, module, "cudapool_checksum");
		CU(g, cuMemAlloc_v2, &device->sums, g->shape.pieces * sizeof(uint64_t));
		if (g->shape.busy)
			make_flights(g, device);
	}
	for (unsigned p = 0; p < g->shape.pieces && !g->failed; p++)
		make_piece(g, p);
	gpu_fill(g);
}

static unsigned repeats(const struct gpu *g)
{
	return g->shape.pieces <= REPEATS_UP_TO_PIECES ? REPEATS : 1;
}

static void depart(struct gpu *g, unsigned d, struct gpu_flight *flight)
{
	CU(g, cuMemsetD8Async, flight->sums, 0, g->shape.pieces * sizeof(uint64_t), flight->stream);
	for (unsigned i = 0; i < repeats(g); i++)
		check_device(g, d, flight->stream, flight->sums);
	CU(g, cuEventRecord, flight->done, flight->stream);
	flight->pending = !g->failed;
}

static void arrive(struct gpu *g, unsigned d, struct gpu_flight *flight)
{
	bool right = true;

	read_sums(g, d, flight->sums, g->sums);
	for (unsigned p = d; p < g->shape.pieces; p += g->shape.devices)
		right &= g->sums[p] == g->expected[p] * repeats(g);
	flight->pending = false;
	if (g->failed)
		return;
	g->steps++;
	g->wrong += !right;
}

void gpu_work(struct gpu *g)
{
	if (!g->shape.busy || !g->piece || g->copies)
		return;
	for (unsigned d = 0; d < g->shape.devices && !g->failed; d++) {
		use(g, &g->device[d]);
		for (unsigned f = 0; f < GPU_FLIGHTS && !g->failed; f++) {
			struct gpu_flight *flight = &g->device[d].flight[f];
			CUresult state = flight->pending ? p_cuEventQuery(flight->done) : CUDA_SUCCESS;

			if (state == CUDA_ERROR_NOT_READY)
				continue;
			if (state) {
				g->failed = "cuEventQuery";
				g->result = state;
				break;
			}
			if (flight->pending)
				arrive(g, d, flight);
			depart(g, d, flight);
		}
	}
	use(g, &g->device[0]);
}
