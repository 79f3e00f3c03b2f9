// SPDX-License-Identifier: MIT
/* Waits until all submitted work is done, within a limit, and without touching a stream that is being captured. */
#include <errno.h>

#define CUDAPOOL_ABI_NO_VERSIONS
#include "drain.h"
#include "gate.h"
#include "streams.h"

/*
 * With the gate closed and no call under way nobody submits work, so it is enough to ask until all is done:
 *
 * - a stream of its own, by cuStreamQuery;
 * - what has no handle here (the legacy stream, the default streams of other threads), by an event in the legacy
 *   stream, which waits for every blocking stream of the context;
 * - a stream that is being captured may not be asked; an event from before it was (streams.c) stands for its work.
 *
 * While a blocking stream is being captured, using the legacy stream would break the capture. Then an event in a
 * blocking stream of ours stands for the legacy one's work, and blocking streams are asked one by one. Threads' default
 * streams cannot be asked then: if the process may use them, we wait until that capture has ended.
 *
 * Work may be waiting for a thread that waits at the gate: a host function that calls CUDA, or one that wants a lock of
 * such a thread. So when nothing moves the gate breathes, less and less often, because every such call may be new work.
 */
#define PATIENCE_US  10000 /* without progress, before the gate breathes for the first time */
#define PATIENCE_MAX 500000
#define SPIN_US	     200 /* how long work is waited for without sleeping */

struct drain {
	uint64_t deadline_us;
	CUresult result; /* the first error of the driver */
	bool wait;	 /* for a capture to end */
	unsigned done;	 /* things asked that were done: what progress is measured by */
	unsigned pending;
};

static bool capturing(CUstream stream)
{
	CUstreamCaptureStatus status;

	return DRIVER(cuStreamIsCapturing)(stream, &status) == CUDA_SUCCESS &&
	       status != CU_STREAM_CAPTURE_STATUS_NONE;
}

static void count(struct drain *d, CUresult r)
{
	if (r == CUDA_SUCCESS)
		d->done++;
	else if (r == CUDA_ERROR_NOT_READY)
		d->pending++;
	else if (d->result == CUDA_SUCCESS)
		d->result = r;
}

static bool blocking_capture(const struct context_note *c)
{
	const struct stream_note *s;

	if (!cudapool_captures())
		return false;
	if (cudapool_streams()->default_captures)
		return true;
	for (s = c->streams; s; s = s->next)
		if (s->blocking && capturing(note_stream(s)))
			return true;
	return false;
}

/* Records the context's event. The context is current. */
static CUresult mark(struct drain *d, struct context_note *c)
{
	CUstream stream = CU_STREAM_LEGACY;
	CUresult r = CUDA_SUCCESS;

	c->marked = false;
	if (!c->mark)
		r = DRIVER(cuEventCreate)(&c->mark, CU_EVENT_DISABLE_TIMING);
	if (r == CUDA_SUCCESS && blocking_capture(c)) {
		d->wait |= cudapool_state.per_thread;
		if (!c->beside)
			r = DRIVER(cuStreamCreate)(&c->beside, CU_STREAM_DEFAULT);
		stream = c->beside;
	}
	if (r == CUDA_SUCCESS)
		r = DRIVER(cuEventRecord)(c->mark, stream);
	c->marked = r == CUDA_SUCCESS;
	return r;
}

static void ask_context(struct drain *d, const struct context_note *c)
{
	const struct leftover *l;
	const struct stream_note *s;

	if (c->marked)
		count(d, DRIVER(cuEventQuery)(c->mark));
	for (l = c->leftovers; l; l = l->next)
		count(d, DRIVER(cuEventQuery)(l->event));
	for (s = c->streams; s; s = s->next) {
		if (!cudapool_captures() || !capturing(note_stream(s)))
			count(d, DRIVER(cuStreamQuery)(note_stream(s)));
		else if (s->before)
			count(d, DRIVER(cuEventQuery)(s->before));
	}
}

/* Asks each context, as the current one. One that is gone without our knowledge is passed over. */
static void each_context(struct drain *d, bool begin)
{
	struct streams *s = cudapool_streams();
	struct node *node = NULL;

	d->done = d->pending = 0;
	d->wait = begin ? false : d->wait;
	while (s && (node = cudapool_tree_more(s->contexts, node ? node->key : 0))) {
		struct context_note *c = (struct context_note *)node;
		CUresult r = DRIVER(cuCtxSetCurrent)(note_context(c));

		if (r == CUDA_ERROR_INVALID_CONTEXT || r == CUDA_ERROR_CONTEXT_IS_DESTROYED)
			continue;
		if (r == CUDA_SUCCESS && begin)
			r = mark(d, c);
		if (r == CUDA_SUCCESS)
			ask_context(d, c);
		else
			count(d, r);
	}
}

static uint64_t left_of(const struct drain *d)
{
	uint64_t now = cudapool_now_us();

	return now < d->deadline_us ? d->deadline_us - now : 0;
}

/* Until nothing is pending. *patience_us: how long nothing moves before the gate breathes, and then all begins anew. */
static int wait_for_all(struct drain *d, uint32_t *patience_us)
{
	uint64_t begun = cudapool_now_us(), moved = begun, now;
	unsigned before = 0;

	for (each_context(d, true); d->pending && d->result == CUDA_SUCCESS; each_context(d, false)) {
		now = cudapool_now_us();
		if (now >= d->deadline_us)
			return d->wait ? -EBUSY : -ETIMEDOUT;
		if (d->done != before) {
			before = d->done;
			moved = now;
		} else if (now - moved > *patience_us && cudapool_gate_waiting()) {
			*patience_us = *patience_us * 2 < PATIENCE_MAX ? *patience_us * 2 : PATIENCE_MAX;
			return -EAGAIN;
		}
		if (now - begun > SPIN_US)
			cudapool_sleep_us(now - begun < 50 * SPIN_US ? 50 : 500);
	}
	if (d->result != CUDA_SUCCESS)
		return -EIO;
	return !d->wait ? 0 : left_of(d) ? -EAGAIN : -EBUSY;
}

int cudapool_drain_all(uint64_t limit_us, CUresult *result)
{
	struct drain d = {.deadline_us = cudapool_now_us() + limit_us};
	uint32_t patience_us = PATIENCE_US;
	struct aside aside;
	int err;

	*result = CUDA_SUCCESS;
	if (!cudapool_streams())
		return 0;
	if (!cudapool_aside(&aside, NULL)) {
		*result = CUDA_ERROR_UNKNOWN;
		return -EIO;
	}
	while ((err = wait_for_all(&d, &patience_us)) == -EAGAIN) {
		err = cudapool_gate_breathe(left_of(&d));
		if (err)
			break;
	}
	cudapool_aside_end(&aside);
	*result = d.result;
	return err;
}

/* Adds an event for a stream's work up to now to a list of the caller's. With the lock held. */
static CUresult add_event(struct leftover **list, CUstream stream)
{
	struct leftover *l = cudapool_slab_get(&cudapool_streams()->leftover_slab);
	CUresult r = l ? DRIVER(cuEventCreate)(&l->event, CU_EVENT_DISABLE_TIMING) : CUDA_ERROR_OUT_OF_MEMORY;

	if (r == CUDA_SUCCESS) {
		l->next = *list;
		*list = l;
		return DRIVER(cuEventRecord)(l->event, stream);
	}
	if (l)
		cudapool_slab_put(&cudapool_streams()->leftover_slab, l);
	return r;
}

/* An event for the stream's work, if there is any. With the lock held: nobody begins to capture it meanwhile. */
static CUresult add_pending(struct leftover **list, CUstream stream)
{
	CUresult r = DRIVER(cuStreamQuery)(stream);

	return r == CUDA_ERROR_NOT_READY ? add_event(list, stream) : r;
}

/* Work of streams that were destroyed: whoever finds an event of it done destroys that, so it is asked with the lock held. */
static bool leftovers_pending(CUcontext context)
{
	const struct context_note *c;
	const struct leftover *l;
	bool pending = false;

	cudapool_streams_lock();
	c = cudapool_context_noted(context);
	for (l = c ? c->leftovers : NULL; l && !pending; l = l->next)
		pending = DRIVER(cuEventQuery)(l->event) == CUDA_ERROR_NOT_READY;
	cudapool_streams_unlock();
	return pending;
}

/*
 * By events, stream by stream: cuCtxSynchronize would break a capture that another thread begins meanwhile. Others may
 * submit more: what counts is the work up to now.
 */
static CUresult drain_streams(CUcontext context)
{
	struct leftover *list = NULL, *l;
	struct context_note *c;
	struct stream_note *s;
	CUresult r, first = CUDA_SUCCESS;

	cudapool_streams_lock();
	c = cudapool_context_noted(context);
	if (!c) {
		/* Nobody saw its streams, so none of them is in a capture that we could break. */
		cudapool_streams_unlock();
		return DRIVER(cuCtxSynchronize)();
	}
	if (!blocking_capture(c))
		first = add_event(&list, CU_STREAM_LEGACY);
	for (s = c->streams; s && first == CUDA_SUCCESS; s = s->next)
		if (!cudapool_captures() || !capturing(note_stream(s)))
			first = add_pending(&list, note_stream(s));
	cudapool_streams_unlock();
	while ((l = list)) {
		list = l->next;
		r = first == CUDA_SUCCESS ? DRIVER(cuEventSynchronize)(l->event) : first;
		first = first == CUDA_SUCCESS ? r : first;
		DRIVER(cuEventDestroy_v2)(l->event);
		cudapool_streams_lock();
		cudapool_slab_put(&cudapool_streams()->leftover_slab, l);
		cudapool_streams_unlock();
	}
	while (first == CUDA_SUCCESS && leftovers_pending(context))
		cudapool_sleep_us(50);
	return first;
}

static CUresult drain_one(CUcontext context)
{
	struct aside aside;
	CUresult r;

	if (!context || !cudapool_aside(&aside, context))
		return CUDA_SUCCESS;
	r = drain_streams(context);
	cudapool_aside_end(&aside);
	return r == CUDA_ERROR_INVALID_CONTEXT || r == CUDA_ERROR_CONTEXT_IS_DESTROYED ? CUDA_SUCCESS : r;
}

CUresult cudapool_drain_context(CUcontext context)
{
	CUcontext current = NULL, green = NULL;
	CUresult r;

	DRIVER(cuCtxGetCurrent)(&current);
	r = drain_one(current);
	if (r == CUDA_SUCCESS && context != current)
		r = drain_one(context);
	while (r == CUDA_SUCCESS && (green = cudapool_context_green(context, green)))
		r = drain_one(green);
	return r;
}
