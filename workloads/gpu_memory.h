// SPDX-License-Identifier: MIT
/* The GPU memory of gpu_app: made in one of several ways, filled, checked, and kept under work. */
#ifndef CUDAPOOL_WORKLOADS_GPU_MEMORY_H
#define CUDAPOOL_WORKLOADS_GPU_MEMORY_H

#include <cuda.h>
#include <stdbool.h>
#include <stdint.h>

#define GPU_DEVICES 16

enum gpu_kind {
	GPU_ALLOC,   /* cuMemAlloc */
	GPU_MAP,     /* the application's own cuMemCreate and cuMemMap */
	GPU_ORDERED, /* cuMemAllocAsync */
	GPU_MANAGED, /* cuMemAllocManaged */
};

struct gpu_shape {
	uint64_t words;	 /* of all pieces together; a multiple of `pieces` */
	uint64_t filled; /* words that are not zero, the first ones of each piece; a multiple of `pieces` */
	unsigned pieces; /* allocations; piece i is on device i % devices */
	unsigned devices;
	enum gpu_kind kind;
	bool create; /* contexts of cuCtxCreate instead of the primary ones */
	bool copies; /* fill and read by copies, of GPU_ALLOC with another device current where there is one */
	bool busy;   /* there is work in flight all the time */
};

struct gpu_piece {
	CUdeviceptr at;
	CUmemGenericAllocationHandle handle; /* GPU_MAP */
};

#define GPU_FLIGHTS 4 /* pieces of work that are under way at once, where there is any */

struct gpu_flight {
	CUstream stream;
	CUevent done;
	CUdeviceptr sums;
	bool pending;
};

struct gpu_device {
	CUdevice id;
	CUcontext ctx;
	CUfunction fill, checksum;
	CUdeviceptr sums; /* a checksum for each piece */
	struct gpu_flight flight[GPU_FLIGHTS];
};

/* One process's GPU state. */
struct gpu {
	struct gpu_shape shape;
	struct gpu_device device[GPU_DEVICES];
	struct gpu_piece *piece;
	uint64_t *expected; /* the checksum that each piece must have */
	uint64_t *sums;	    /* the checksum that each was found to have */
	uint64_t *all_sums; /* as copied from one device; those of other devices' pieces mean nothing */
	uint64_t mapped;   /* GPU_MAP: bytes of a piece, rounded up to the granularity */
	uint32_t seed;
	bool copies;	    /* no kernels: fill and read by copies */
	uint64_t steps;	    /* pieces of work that ended */
	uint64_t wrong;	    /* of those, with another result than they must have */
	const char *failed; /* the function that failed, and its result; NULL if none did */
	CUresult result;
};

/* The driver is found at run time, by dlsym, as the CUDA runtime does it; NULL, or why it was not found. */
const char *gpu_find_driver(void);
const char *gpu_error_name(CUresult result);

/* Each does nothing once something has failed (`failed`). */
void gpu_contexts(struct gpu *g); /* the first CUDA calls of the process */
void gpu_make(struct gpu *g);	  /* memory and kernels; fills it with g->seed */
void gpu_fill(struct gpu *g);	  /* anew, with g->seed */
uint64_t gpu_checksum(struct gpu *g);
/* Frees one allocation and makes it anew, with the same content. */
void gpu_replace(struct gpu *g, unsigned piece);
/* Looks at the work in flight without waiting, counts what has ended, and submits more. */
void gpu_work(struct gpu *g);

#endif
