// SPDX-License-Identifier: MIT
/* Peer access: what a context may use of another device's allocations, withdrawn while the driver checkpoints. */
#include "pieces.h"

/*
 * The driver gives a context with peer access every allocation of the peer context, also future ones; mapped memory
 * is given to each device by name. So peer access is written down here, and turned into access to our regions. The
 * lock is held meanwhile: this is rare, and a region that is half given would stay so.
 *
 * Copies reach what cuMemAlloc gives from contexts of all devices, mapped memory only from those with access
 * (probes/reach.c). So our allocations are open to every device on which there was a context, if that device can. The
 * driver restores what it checkpointed with such access. Stream-ordered memory is closed to other devices' copies, too.
 */
static int device_of(CUcontext context)
{
	CUcontext popped;
	CUdevice device;
	bool known;

	if (DRIVER(cuCtxPushCurrent_v2)(context) != CUDA_SUCCESS)
		return -1;
	known = DRIVER(cuCtxGetDevice)(&device) == CUDA_SUCCESS;
	DRIVER(cuCtxPopCurrent_v2)(&popped);
	return known ? device : -1;
}

void cudapool_access_note(struct memory *m, struct region *region)
{
	uint32_t asked = 1u << region->device;
	struct peer *peer;

	if (region->kind == REGION_ALLOCATION) {
		for (peer = m->peers; peer; peer = peer->next)
			if (peer->to == region->context)
				asked |= 1u << peer->from_device;
		region->unasked = m->near[region->device] & ~asked;
	}
	region->readable = region->writable = asked | region->unasked;
}

CUresult cudapool_access_give(struct region *region, CUdeviceptr address, uint64_t bytes, uint32_t none)
{
	CUresult r = cudapool_access_set(address, bytes, region->readable, region->writable, none);
	uint32_t unasked = region->unasked;

	if (r == CUDA_SUCCESS || !unasked)
		return r;
	region->readable &= ~unasked;
	region->writable &= ~unasked;
	region->unasked = 0;
	return cudapool_access_set(address, bytes, region->readable, region->writable, none | unasked);
}

/* What is allocated in `context` (NULL: in any) is given to, or taken from, devices, as it is written down now. */
static CUresult apply(struct memory *m, CUcontext context)
{
	struct region *region = cudapool_region_after(m, 0);
	CUresult first = CUDA_SUCCESS, r;

	for (; region; region = cudapool_region_after(m, region_start(region))) {
		uint32_t had = region->readable;

		if (region->kind != REGION_ALLOCATION || (context && region->context != context))
			continue;
		cudapool_access_note(m, region);
		if (region->readable == had)
			continue;
		r = cudapool_access_give(region, region_start(region), region->span, had & ~region->readable);
		if (first == CUDA_SUCCESS)
			first = r;
	}
	return first;
}

static void can_reach(struct memory *m, int from, int to)
{
	int can;

	if (DRIVER(cuDeviceCanAccessPeer)(&can, from, to) == CUDA_SUCCESS && can)
		m->near[to] |= 1u << from;
}

void cudapool_peers_device(CUdevice device)
{
	struct memory *m = cudapool_memory(true);
	uint32_t others;
	int other;

	if (!m || device < 0 || device >= MEMORY_DEVICES ||
	    __atomic_load_n(&m->devices, __ATOMIC_RELAXED) & 1u << device)
		return;
	cudapool_lock(&m->lock);
	others = m->devices & ~(1u << device);
	for (other = 0; other < MEMORY_DEVICES; other++) {
		if (!(others & 1u << other))
			continue;
		can_reach(m, device, other);
		can_reach(m, other, device);
	}
	if (others)
		apply(m, NULL); /* what cannot be given is an error of the copies, as told there */
	__atomic_fetch_or(&m->devices, 1u << device, __ATOMIC_RELAXED);
	cudapool_unlock(&m->lock);
}

static void forget(struct memory *m, struct peer **link)
{
	struct peer *peer = *link;

	*link = peer->next;
	cudapool_slab_put(&m->peer_slab, peer);
}

static CUresult on_cuCtxEnablePeerAccess(CUcontext to, unsigned int flags)
{
	CUresult r = DRIVER(cuCtxEnablePeerAccess)(to, flags);
	struct memory *m = cudapool_memory(true);
	struct peer *peer;
	CUcontext from;
	int device, to_device;

	if (r != CUDA_SUCCESS || !m || !cudapool_memory_current(&from, &device))
		return r;
	to_device = device_of(to);
	if (device >= MEMORY_DEVICES || to_device < 0 || to_device >= MEMORY_DEVICES)
		return r;
	cudapool_lock(&m->lock);
	peer = cudapool_slab_get(&m->peer_slab);
	if (peer) {
		*peer = (struct peer){m->peers, from, to, device, ++m->next_id, false};
		m->peers = peer;
		r = apply(m, to);
		if (r != CUDA_SUCCESS) {
			forget(m, &m->peers);
			apply(m, to);
		}
	} else {
		r = CUDA_ERROR_OUT_OF_MEMORY;
	}
	cudapool_unlock(&m->lock);
	if (r != CUDA_SUCCESS)
		DRIVER(cuCtxDisablePeerAccess)(to);
	return r;
}
WRAPPER(cuCtxEnablePeerAccess, (CUcontext to, unsigned int flags), (to, flags))

static CUresult on_cuCtxDisablePeerAccess(CUcontext to)
{
	CUresult r = DRIVER(cuCtxDisablePeerAccess)(to);
	struct memory *m = cudapool_memory(false);
	struct peer **link;
	CUcontext from;
	int device;

	if (r != CUDA_SUCCESS || !m || !cudapool_memory_current(&from, &device))
		return r;
	cudapool_lock(&m->lock);
	for (link = &m->peers; *link; link = &(*link)->next) {
		if ((*link)->from != from || (*link)->to != to)
			continue;
		forget(m, link);
		r = apply(m, to);
		break;
	}
	cudapool_unlock(&m->lock);
	return r;
}
WRAPPER(cuCtxDisablePeerAccess, (CUcontext to), (to))

void cudapool_peers_gone(struct memory *m, const struct cudapool_ending *ending)
{
	struct peer **link = &m->peers;

	while (*link) {
		CUcontext from = (*link)->from, to = (*link)->to;

		if ((from != ending->context && to != ending->context) || (*link)->id > ending->last) {
			link = &(*link)->next;
			continue;
		}
		forget(m, link);
		if (to != ending->context)
			apply(m, to);
	}
}

/* In the shim's thread, the gate closed. */

static CUresult change(struct peer *peer, bool withdraw)
{
	CUcontext popped;
	CUresult r;

	if (peer->withdrawn == withdraw)
		return CUDA_SUCCESS;
	r = DRIVER(cuCtxPushCurrent_v2)(peer->from);
	if (r != CUDA_SUCCESS)
		return r;
	r = withdraw ? DRIVER(cuCtxDisablePeerAccess)(peer->to) : DRIVER(cuCtxEnablePeerAccess)(peer->to, 0);
	DRIVER(cuCtxPopCurrent_v2)(&popped);
	if (r == CUDA_SUCCESS)
		peer->withdrawn = withdraw;
	return r;
}

CUresult cudapool_peers_withdraw(void)
{
	struct memory *m = cudapool_memory(false);
	CUresult r = CUDA_SUCCESS;
	struct peer *peer;

	for (peer = m ? m->peers : NULL; peer && r == CUDA_SUCCESS; peer = peer->next)
		r = change(peer, true);
	if (r != CUDA_SUCCESS)
		cudapool_peers_restore();
	return r;
}

CUresult cudapool_peers_restore(void)
{
	struct memory *m = cudapool_memory(false);
	CUresult first = CUDA_SUCCESS, r;
	struct peer *peer;

	for (peer = m ? m->peers : NULL; peer; peer = peer->next) {
		r = change(peer, false);
		if (first == CUDA_SUCCESS)
			first = r;
	}
	return first;
}
