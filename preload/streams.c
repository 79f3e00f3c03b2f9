// SPDX-License-Identifier: MIT
/* The contexts and streams of the process, and what is known of captures: what drain.c goes by. */
#include <errno.h>
#include <stddef.h>
#include <string.h>

#include "clock.h"
#include "pieces.h"
#include "streams.h"

#define state cudapool_state
/* The driver's function, in the on_NAME that takes its place. */
#define REAL(name) ((__typeof__(&on_##name))cudapool_real[cudapool_fn_##name])

struct streams *cudapool_streams(void)
{
	return __atomic_load_n(&state.streams, __ATOMIC_ACQUIRE);
}

void cudapool_streams_lock(void)
{
	cudapool_lock(&state.streams_lock);
}

void cudapool_streams_unlock(void)
{
	cudapool_unlock(&state.streams_lock);
}

uint32_t cudapool_captures(void)
{
	struct streams *s = cudapool_streams();

	return s ? __atomic_load_n(&s->captures, __ATOMIC_ACQUIRE) : 0;
}

/* With the lock held: all that follows up to the wrappers, unless it says otherwise. */

static struct node *find(struct node *root, const void *handle)
{
	struct node *node = cudapool_tree_at_most(root, (uintptr_t)handle);

	return node && node->key == (uintptr_t)handle ? node : NULL;
}

struct context_note *cudapool_context_noted(CUcontext context)
{
	struct streams *s = cudapool_streams();

	return s ? (struct context_note *)find(s->contexts, context) : NULL;
}

static struct stream_note *stream_noted(CUstream stream)
{
	struct streams *s = cudapool_streams();

	return s ? (struct stream_note *)find(s->streams, stream) : NULL;
}

static struct context_note *context_note(CUcontext context)
{
	struct context_note *note = cudapool_context_noted(context);
	struct streams *s = cudapool_streams();

	if (note || !context)
		return note;
	if (!s) {
		s = cudapool_pages_get(sizeof(*s));
		if (!s)
			return NULL;
		s->context_slab.size = sizeof(struct context_note);
		s->stream_slab.size = sizeof(struct stream_note);
		s->leftover_slab.size = sizeof(struct leftover);
		__atomic_store_n(&state.streams, s, __ATOMIC_RELEASE);
	}
	note = cudapool_slab_get(&s->context_slab);
	if (!note)
		return NULL;
	note->node.key = (uintptr_t)context;
	cudapool_tree_insert(&s->contexts, &note->node);
	return note;
}

static void captures_add(int32_t change)
{
	__atomic_fetch_add(&cudapool_streams()->captures, change, __ATOMIC_ACQ_REL);
}

static void insert_stream(struct stream_note *note)
{
	note->next = note->context->streams;
	note->context->streams = note;
	cudapool_tree_insert(&cudapool_streams()->streams, &note->node);
	if (note->origin)
		captures_add(1);
}

static void remove_stream(struct stream_note *note)
{
	struct stream_note **link;

	for (link = &note->context->streams; *link != note; link = &(*link)->next)
		;
	*link = note->next;
	if (note->origin)
		captures_add(-1);
	cudapool_tree_remove(&cudapool_streams()->streams, &note->node);
}

static void forget_stream(struct stream_note *note)
{
	remove_stream(note);
	cudapool_slab_put(&cudapool_streams()->stream_slab, note);
}

/* Its events and our stream go with the context itself. */
static void forget_context(struct context_note *note)
{
	struct leftover *leftover;

	while (note->streams)
		forget_stream(note->streams);
	while ((leftover = note->leftovers)) {
		note->leftovers = leftover->next;
		cudapool_slab_put(&cudapool_streams()->leftover_slab, leftover);
	}
	cudapool_tree_remove(&cudapool_streams()->contexts, &note->node);
	cudapool_slab_put(&cudapool_streams()->context_slab, note);
}

/* The rest: without the lock. */

void cudapool_note_context(CUcontext context, CUdevice device)
{
	struct context_note *note;
	bool first;

	cudapool_streams_lock();
	first = !cudapool_streams();
	note = context_note(context);
	if (note)
		note->noted++;
	else /* no memory for it: parking must not believe that it knows every context */
		__atomic_store_n(&state.unparkable, 1, __ATOMIC_SEQ_CST);
	cudapool_streams_unlock();
	/* From here on the pool can tell it what it would give up on its devices, before any command. */
	if (first && state.page) {
		cudapool_memory_report(state.page);
		state.context_ms = cudapool_now_ms();
	}
	cudapool_peers_device(device);
}

CUcontext cudapool_context_owner(CUcontext context)
{
	struct context_note *note;

	cudapool_streams_lock();
	note = cudapool_context_noted(context);
	if (note && note->primary)
		context = note->primary;
	cudapool_streams_unlock();
	return context;
}

CUcontext cudapool_context_green(CUcontext primary, CUcontext after)
{
	struct streams *s = cudapool_streams();
	struct node *node;
	CUcontext found;

	if (!s || !primary)
		return NULL;
	cudapool_streams_lock();
	node = cudapool_tree_more(s->contexts, (uintptr_t)after);
	while (node && ((struct context_note *)node)->primary != primary)
		node = cudapool_tree_more(s->contexts, node->key);
	found = node ? note_context((struct context_note *)node) : NULL;
	cudapool_streams_unlock();
	return found;
}

uint32_t cudapool_context_times_noted(CUcontext context)
{
	struct context_note *note;
	uint32_t times;

	cudapool_streams_lock();
	note = cudapool_context_noted(context);
	times = note ? note->noted : 0;
	cudapool_streams_unlock();
	return times;
}

void cudapool_context_gone(CUcontext context, uint32_t times_noted)
{
	struct context_note *note;

	cudapool_streams_lock();
	note = cudapool_context_noted(context);
	if (note && note->noted == times_noted)
		forget_context(note);
	cudapool_streams_unlock();
}

bool cudapool_aside(struct aside *aside, CUcontext context)
{
	aside->mode = CU_STREAM_CAPTURE_MODE_RELAXED;
	if (DRIVER(cuThreadExchangeStreamCaptureMode))
		DRIVER(cuThreadExchangeStreamCaptureMode)(&aside->mode);
	if (DRIVER(cuCtxGetCurrent)(&aside->current) == CUDA_SUCCESS &&
	    (!context || context == aside->current || DRIVER(cuCtxSetCurrent)(context) == CUDA_SUCCESS))
		return true;
	cudapool_aside_end(aside);
	return false;
}

void cudapool_aside_end(const struct aside *aside)
{
	CUstreamCaptureMode mode = aside->mode;
	CUcontext now = NULL;

	if (DRIVER(cuCtxGetCurrent)(&now) == CUDA_SUCCESS && now != aside->current)
		DRIVER(cuCtxSetCurrent)(aside->current);
	if (DRIVER(cuThreadExchangeStreamCaptureMode))
		DRIVER(cuThreadExchangeStreamCaptureMode)(&mode);
}

static void stream_made(CUstream stream, bool blocking, void *green)
{
	struct stream_note *note;
	struct context_note *context;
	CUcontext current = NULL;

	DRIVER(cuCtxGetCurrent)(&current);
	cudapool_streams_lock();
	note = stream_noted(stream);
	if (note) /* destroyed where we did not see it */
		forget_stream(note);
	context = context_note(current);
	note = context ? cudapool_slab_get(&cudapool_streams()->stream_slab) : NULL;
	if (note) {
		note->node.key = (uintptr_t)stream;
		note->context = context;
		note->blocking = blocking;
		note->green = green;
		insert_stream(note);
	} else {
		__atomic_store_n(&state.unparkable, 1, __ATOMIC_SEQ_CST);
	}
	cudapool_streams_unlock();
}

static bool is_capturing(CUstream stream)
{
	CUstreamCaptureStatus status;

	return DRIVER(cuStreamIsCapturing) && DRIVER(cuStreamIsCapturing)(stream, &status) == CUDA_SUCCESS &&
	       status != CU_STREAM_CAPTURE_STATUS_NONE;
}

/*
 * The event that a stream's work up to now is known by, or NULL: there is no unfinished work. event: one to use again,
 * or NULL. Aside, in the stream's context; the stream is not being captured.
 */
static CUevent mark_work(CUstream stream, CUevent event)
{
	if (DRIVER(cuStreamQuery)(stream) == CUDA_ERROR_NOT_READY &&
	    (event || DRIVER(cuEventCreate)(&event, CU_EVENT_DISABLE_TIMING) == CUDA_SUCCESS) &&
	    DRIVER(cuEventRecord)(event, stream) == CUDA_SUCCESS)
		return event;
	if (event)
		DRIVER(cuEventDestroy_v2)(event);
	return NULL;
}

/* The wrappers. */

static CUresult on_cuStreamCreate(CUstream *stream, unsigned int flags)
{
	CUresult r = REAL(cuStreamCreate)(stream, flags);

	if (r == CUDA_SUCCESS)
		stream_made(*stream, !(flags & CU_STREAM_NON_BLOCKING), NULL);
	return r;
}
WRAPPER(cuStreamCreate, (CUstream *stream, unsigned int flags), (stream, flags))

static CUresult on_cuStreamCreateWithPriority(CUstream *stream, unsigned int flags, int priority)
{
	CUresult r = REAL(cuStreamCreateWithPriority)(stream, flags, priority);

	if (r == CUDA_SUCCESS)
		stream_made(*stream, !(flags & CU_STREAM_NON_BLOCKING), NULL);
	return r;
}
WRAPPER(cuStreamCreateWithPriority, (CUstream *stream, unsigned int flags, int priority), (stream, flags, priority))

static CUresult on_cuGreenCtxStreamCreate(CUstream *stream, CUgreenCtx green, unsigned int flags, int priority)
{
	CUresult r = REAL(cuGreenCtxStreamCreate)(stream, green, flags, priority);

	if (r == CUDA_SUCCESS)
		stream_made(*stream, !(flags & CU_STREAM_NON_BLOCKING), green);
	return r;
}
WRAPPER(cuGreenCtxStreamCreate, (CUstream *stream, CUgreenCtx green, unsigned int flags, int priority),
	(stream, green, flags, priority))

/* With the lock held: drops those whose work is done, and adds one. */
static void keep_event(struct context_note *context, CUevent event)
{
	struct leftover **link = &context->leftovers, *leftover;
	struct slab *slab = &cudapool_streams()->leftover_slab;

	while ((leftover = *link)) {
		if (DRIVER(cuEventQuery)(leftover->event) == CUDA_ERROR_NOT_READY) {
			link = &leftover->next;
			continue;
		}
		DRIVER(cuEventDestroy_v2)(leftover->event);
		*link = leftover->next;
		cudapool_slab_put(slab, leftover);
	}
	if (!event)
		return;
	leftover = cudapool_slab_get(slab);
	if (!leftover) {
		__atomic_store_n(&state.unparkable, 1, __ATOMIC_SEQ_CST);
		return;
	}
	leftover->event = event;
	leftover->next = context->leftovers;
	context->leftovers = leftover;
}

/*
 * The driver carries out what the stream still has to do after it is destroyed: an event stands for that, from before
 * on, so that who frees memory meanwhile waits for it. The note is out of the way before the handle may be another
 * stream's, and back if it turns out that it does not.
 */
static CUresult destroy_stream(CUresult (*real)(CUstream), CUstream stream)
{
	struct stream_note *note;
	CUcontext context;
	struct aside aside;
	CUresult r;

	cudapool_streams_lock();
	note = stream_noted(stream);
	if (!note) {
		cudapool_streams_unlock();
		return real(stream);
	}
	context = note_context(note->context);
	remove_stream(note);
	if (cudapool_aside(&aside, context)) {
		keep_event(note->context, is_capturing(stream) ? note->before : mark_work(stream, note->before));
		cudapool_aside_end(&aside);
	}
	cudapool_streams_unlock();
	r = real(stream);
	cudapool_streams_lock();
	note->before = NULL;
	note->context = r == CUDA_SUCCESS ? NULL : cudapool_context_noted(context);
	if (note->context)
		insert_stream(note);
	else
		cudapool_slab_put(&cudapool_streams()->stream_slab, note);
	cudapool_streams_unlock();
	return r;
}

static CUresult on_cuStreamDestroy(CUstream stream)
{
	return destroy_stream(REAL(cuStreamDestroy), stream);
}
WRAPPER(cuStreamDestroy, (CUstream stream), (stream))

static CUresult on_cuStreamDestroy_v2(CUstream stream)
{
	return destroy_stream(REAL(cuStreamDestroy_v2), stream);
}
WRAPPER(cuStreamDestroy_v2, (CUstream stream), (stream))

/* Of the device of a context, and which that is; NULL and -1: it does not say. */
static CUcontext primary_of(CUcontext context, CUdevice *device)
{
	CUcontext primary = NULL;
	struct aside aside;

	*device = -1;
	if (!cudapool_aside(&aside, context))
		return NULL;
	if (DRIVER(cuCtxGetDevice)(device) == CUDA_SUCCESS &&
	    DRIVER(cuDevicePrimaryCtxRetain)(&primary, *device) == CUDA_SUCCESS)
		DRIVER(cuDevicePrimaryCtxRelease_v2)(*device);
	cudapool_aside_end(&aside);
	return primary;
}

/* A green context's CUcontext counts as a context of its own: it has streams, but no memory. */
static CUresult on_cuCtxFromGreenCtx(CUcontext *context, CUgreenCtx green)
{
	CUresult r = REAL(cuCtxFromGreenCtx)(context, green);
	struct context_note *note;
	CUcontext primary;
	CUdevice device;

	if (r != CUDA_SUCCESS)
		return r;
	primary = primary_of(*context, &device);
	cudapool_note_context(*context, device);
	cudapool_streams_lock();
	note = cudapool_context_noted(*context);
	if (note) {
		note->green = green;
		note->primary = primary;
	}
	cudapool_streams_unlock();
	return r;
}
WRAPPER(cuCtxFromGreenCtx, (CUcontext *context, CUgreenCtx green), (context, green))

/* A note of what belongs to this green context, in which that one's handle is at `offset`. */
static void *note_of_green(struct node *notes, size_t offset, CUgreenCtx green)
{
	struct node *node = NULL;
	CUgreenCtx of;

	while ((node = cudapool_tree_more(notes, node ? node->key : 0))) {
		memcpy(&of, (char *)node + offset, sizeof(of));
		if (of == green)
			break;
	}
	return node;
}

static CUresult on_cuGreenCtxDestroy(CUgreenCtx green)
{
	struct memory *m = cudapool_memory(false);
	struct streams *known = cudapool_streams();
	CUcontext ending = NULL;
	void *note;

	cudapool_streams_lock();
	note = known ? note_of_green(known->contexts, offsetof(struct context_note, green), green) : NULL;
	if (note)
		ending = note_context(note);
	cudapool_streams_unlock();
	if (m && ending)
		cudapool_pools_context_ending(m, ending);
	cudapool_streams_lock();
	while (known && (note = note_of_green(known->contexts, offsetof(struct context_note, green), green)))
		forget_context(note);
	while (known && (note = note_of_green(known->streams, offsetof(struct stream_note, green), green)))
		forget_stream(note);
	cudapool_streams_unlock();
	return REAL(cuGreenCtxDestroy)(green);
}
WRAPPER(cuGreenCtxDestroy, (CUgreenCtx green), (green))

/* Captures. A stream's own work from before it took part in one goes on while it does: an event stands for it. */

static void before_capture(CUstream stream)
{
	struct stream_note *note;
	CUcontext context = NULL;
	CUevent event = NULL;
	struct aside aside;

	cudapool_streams_lock();
	note = stream_noted(stream);
	if (note && !is_capturing(stream)) {
		context = note_context(note->context);
		event = note->before;
		note->before = NULL;
	}
	cudapool_streams_unlock();
	if (!context || !cudapool_aside(&aside, context))
		return;
	event = mark_work(stream, event);
	cudapool_aside_end(&aside);
	cudapool_streams_lock();
	note = stream_noted(stream);
	if (note)
		note->before = event;
	cudapool_streams_unlock();
}

/* began: or ended. A stream without a note is a thread's default one. With the lock held. */
static void note_capture(CUstream stream, bool began)
{
	struct streams *s = cudapool_streams();
	struct stream_note *note = stream_noted(stream);

	if (!s)
		return;
	if (note && note->origin != began) {
		note->origin = began;
		captures_add(began ? 1 : -1);
	} else if (!note && (began || s->default_captures)) {
		s->default_captures += began ? 1 : -1;
		captures_add(began ? 1 : -1);
	}
}

/*
 * Takes the lock that capture_began() gives back: whoever holds it, and sees that a stream is not being captured, may use
 * the stream without becoming a part of a capture, or breaking it.
 */
static void before_begin(CUstream stream)
{
	before_capture(stream);
	cudapool_streams_lock();
}

static CUresult capture_began(CUresult r, CUstream stream)
{
	if (r == CUDA_SUCCESS)
		note_capture(stream, true);
	cudapool_streams_unlock();
	return r;
}

static CUresult capture_ended(CUresult r, CUstream stream)
{
	if (is_capturing(stream))
		return r;
	cudapool_streams_lock();
	note_capture(stream, false);
	cudapool_streams_unlock();
	return r;
}

/* suffix: of the driver's function; zero: what the handle 0 stands for there. */
#define CAPTURE(suffix, zero)                                                                                          \
	static CUresult on_cuStreamBeginCapture##suffix(CUstream stream)                                               \
	{                                                                                                              \
		before_begin(stream);                                                                                  \
		return capture_began(REAL(cuStreamBeginCapture##suffix)(stream), stream ? stream : zero);              \
	}                                                                                                              \
	WRAPPER(cuStreamBeginCapture##suffix, (CUstream stream), (stream))                                             \
	static CUresult on_cuStreamBeginCapture_v2##suffix(CUstream stream, CUstreamCaptureMode mode)                  \
	{                                                                                                              \
		before_begin(stream);                                                                                  \
		return capture_began(REAL(cuStreamBeginCapture_v2##suffix)(stream, mode), stream ? stream : zero);     \
	}                                                                                                              \
	WRAPPER(cuStreamBeginCapture_v2##suffix, (CUstream stream, CUstreamCaptureMode mode), (stream, mode))          \
	static CUresult on_cuStreamBeginCaptureToGraph##suffix(CUstream stream, CUgraph graph,                         \
							       const CUgraphNode *nodes, const void *edges,            \
							       size_t count, CUstreamCaptureMode mode)                 \
	{                                                                                                              \
		before_begin(stream);                                                                                  \
		return capture_began(                                                                                  \
			REAL(cuStreamBeginCaptureToGraph##suffix)(stream, graph, nodes, edges, count, mode),           \
			stream ? stream : zero);                                                                       \
	}                                                                                                              \
	WRAPPER(cuStreamBeginCaptureToGraph##suffix,                                                                   \
		(CUstream stream, CUgraph graph, const CUgraphNode *nodes, const void *edges, size_t count,            \
		 CUstreamCaptureMode mode),                                                                            \
		(stream, graph, nodes, edges, count, mode))                                                            \
	static CUresult on_cuStreamEndCapture##suffix(CUstream stream, CUgraph *graph)                                 \
	{                                                                                                              \
		return capture_ended(REAL(cuStreamEndCapture##suffix)(stream, graph), stream ? stream : zero);         \
	}                                                                                                              \
	WRAPPER(cuStreamEndCapture##suffix, (CUstream stream, CUgraph *graph), (stream, graph))                        \
	/* An event of a capture draws a stream into it. */                                                            \
	static CUresult on_cuStreamWaitEvent##suffix(CUstream stream, CUevent event, unsigned int flags)               \
	{                                                                                                              \
		CUresult r;                                                                                            \
                                                                                                                       \
		if (!cudapool_captures())                                                                              \
			return REAL(cuStreamWaitEvent##suffix)(stream, event, flags);                                  \
		before_begin(stream);                                                                                  \
		r = REAL(cuStreamWaitEvent##suffix)(stream, event, flags);                                             \
		cudapool_streams_unlock();                                                                             \
		return r;                                                                                              \
	}                                                                                                              \
	WRAPPER(cuStreamWaitEvent##suffix, (CUstream stream, CUevent event, unsigned int flags),                       \
		(stream, event, flags))
CAPTURE(, CU_STREAM_LEGACY)
CAPTURE(_ptsz, CU_STREAM_PER_THREAD)
