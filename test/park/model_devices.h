// SPDX-License-Identifier: MIT
/* The model's devices: copies between them, access that comes and goes, and contexts that live for a moment. */
#ifndef CUDAPOOL_TEST_PARK_MODEL_DEVICES_H
#define CUDAPOOL_TEST_PARK_MODEL_DEVICES_H

#include "model_memory.h"

static pthread_mutex_t kernels_lock = PTHREAD_MUTEX_INITIALIZER; /* of the functions in `gpu` */

static void functions_begin(void)
{
	gpu_begin();
#define F(name)                                                                                                        \
	cu.name = (__typeof__(cu.name))dlsym(RTLD_DEFAULT, #name);                                                     \
	if (!cu.name)                                                                                                  \
		cu.name = (__typeof__(cu.name))dlsym(dlopen("libcuda.so.1", RTLD_NOW), #name);
	MODEL_API(F)
#undef F
}

/* The next one may be used from now on. */
static void device_begin(void)
{
	struct device *next = &device[devices];

	MUST(cuDevicePrimaryCtxRetain(&next->context, devices));
	MUST(cuCtxSetCurrent(next->context));
	pthread_mutex_lock(&kernels_lock);
	gpu_kernels();
	next->fill = gpu.fill;
	pthread_mutex_unlock(&kernels_lock);
	must(cu.cuDeviceGetDefaultMemPool(&next->pool, devices), "cuDeviceGetDefaultMemPool");
	devices++;
}

/* An area, from slot to slot, and waited for: was it copied? */
static bool copy_between(struct worker *w, struct slot *s, CUdeviceptr to, struct slot *other, CUdeviceptr from)
{
	CUcontext there = device[s->device].context, here = device[other->device].context;
	enum answer both = answer(w, s, COPY) == ALLOWED ? answer(w, other, COPY) : REFUSED;
	bool copied;

	switch (below(w, 6)) {
	case 0:
		copied = DONE(w, both, s, cu.cuMemcpyDtoD_v2(to, from, AREA * 4));
		break;
	case 1:
		copied = DONE(w, both, s, cu.cuMemcpyDtoDAsync_v2(to, from, AREA * 4, w->stream));
		break;
	case 2:
		copied = DONE(w, both, s, cu.cuMemcpy(to, from, AREA * 4));
		break;
	case 3:
		copied = DONE(w, both, s, cu.cuMemcpyAsync(to, from, AREA * 4, w->stream));
		break;
	case 4: /* between contexts that are named: it does not matter which device the worker's is */
		copied = DONE(w, ALLOWED, s, cu.cuMemcpyPeer(to, there, from, here, AREA * 4));
		break;
	default:
		copied = DONE(w, ALLOWED, s, cu.cuMemcpyPeerAsync(to, there, from, here, AREA * 4, w->stream));
		break;
	}
	GOOD(w, gpu.cuStreamSynchronize(NULL)); /* it may have returned before it ended */
	GOOD(w, gpu.cuStreamSynchronize(w->stream));
	return copied;
}

/* Peer access of the worker's device to the other one. */
static void change_peer(struct worker *w)
{
	CUcontext other = device[!w->device].context;
	bool *peer = &device[w->device].peer, on = below(w, 2);
	CUresult r = on ? cu.cuCtxEnablePeerAccess(other, 0) : cu.cuCtxDisablePeerAccess(other);
	CUresult expected = on != *peer ? CUDA_SUCCESS
			    : on	? CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED
					: CUDA_ERROR_PEER_ACCESS_NOT_ENABLED;

	if (r != expected)
		complain(w, "peer access of device %d from %d to %d: CUDA error %d", w->device, *peer, on, r);
	*peer = on;
}

/* Gives or takes: the other device's access to the slot or its pool, or for an ALLOC peer access. */
static void do_access(struct worker *w, struct slot *s)
{
	bool on = below(w, 2);
	CUmemAccessDesc access = {{CU_MEM_LOCATION_TYPE_DEVICE, !s->device},
				  on ? CU_MEM_ACCESS_FLAGS_PROT_READWRITE : CU_MEM_ACCESS_FLAGS_PROT_NONE};

	if (devices < 2)
		return;
	switch (s->kind) {
	case ALLOC:
		change_peer(w);
		break;
	case MAPPED:
		GOOD(w, set_open(s, !s->device, on));
		s->open = on;
		break;
	default:
		GOOD(w, cu.cuMemPoolSetAccess(device[s->device].pool, &access, 1));
		device[s->device].open = on;
		break;
	}
}

/* A context of the current thread's, made for the purpose, ends with a kernel on memory that is closed to it. */
static void lose(struct worker *w, struct slot *s)
{
	CUfunction fill;
	CUresult r;

	pthread_mutex_lock(&kernels_lock);
	gpu_kernels();
	fill = gpu.fill;
	pthread_mutex_unlock(&kernels_lock);
	GOOD(w, launch_fill(fill, s->at, AREA, 0, NULL));
	r = gpu.cuCtxSynchronize();
	if (r != CUDA_ERROR_ILLEGAL_ADDRESS)
		complain(w, "a kernel on closed memory, kind %d, of device %d: CUDA error %d", s->kind, s->device, r);
}

/* A context on any device, with memory of its own that the worker's copies to the slot. */
static void do_context(struct worker *w, struct slot *s)
{
	int on = below(w, devices);
	bool peer = on != s->device && below(w, 2);
	unsigned area = below(w, 2);
	uint32_t words[AREA];
	CUcontext made, popped;
	CUdeviceptr own;
	CUresult r;

	filled(words, AREA, next_random(&w->random));
	GOOD(w, gpu.cuCtxCreate_v2(&made, 0, on));
	if (peer)
		GOOD(w, cu.cuCtxEnablePeerAccess(device[s->device].context, 0));
	r = gpu.cuMemAlloc_v2(&own, some_bytes(w));
	if (r == CUDA_SUCCESS) {
		GOOD(w, gpu.cuMemcpyHtoD_v2(own, words, sizeof(words)));
		GOOD(w, cu.cuCtxPopCurrent_v2(&popped));
		if (DONE(w, answer(w, s, COPY), s, cu.cuMemcpyDtoD_v2(area_of(s, area), own, sizeof(words))))
			memcpy(s->expect[area], words, sizeof(words));
		GOOD(w, gpu.cuStreamSynchronize(NULL)); /* it may have returned before it ended */
		GOOD(w, cu.cuCtxPushCurrent_v2(made));
	} else if (r != CUDA_ERROR_OUT_OF_MEMORY) {
		complain(w, "allocating in a new context: CUDA error %d", r);
	}
	if (answer_to(on, peer, s, KERNEL) == REFUSED)
		lose(w, s);
	GOOD(w, gpu.cuCtxDestroy_v2(made)); /* and its memory, and its peer access */
}

#endif
