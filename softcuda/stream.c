// SPDX-License-Identifier: MIT
/* Streams: queues of work in order, the rules between them, and the threads that carry it out. */
#include "internal.h"
#include "graph.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/*
 * Work that a stream was given asynchronously is carried out by the stream's own thread, made with the first of
 * it; a synchronous call does its work itself when its turn comes. Each piece has a number, rising
 * within the context: the legacy stream waits for all earlier work of the blocking streams, and they for
 * earlier work of the legacy stream.
 *
 * One lock and one condition for all streams of the process: work here is coarse. The condition is a number that
 * rises, because pthread_cond_broadcast() may wait for a thread that it woke earlier and that has been stopped since;
 * and while a process is restored, all threads but one are stopped, whose work goes on with a real GPU.
 */
#define POLL_NS 100000 /* how often a wait for a value in memory looks */

pthread_mutex_t softcuda_sched_lock = PTHREAD_MUTEX_INITIALIZER;
static _Atomic uint32_t sched_turn;
static pthread_once_t sched_once = PTHREAD_ONCE_INIT;
static uint64_t next_stream_id = 1;
struct CUstream_st *softcuda_all_streams;
static _Atomic unsigned busy; /* streams with unfinished work, process wide */

static pthread_key_t thread_key; /* list of the calling thread's own streams */
struct thread_stream {
	struct thread_stream *next;
	struct CUctx_st *ctx;
	uint64_t ctx_id;
	struct CUstream_st *stream;
};

static void thread_streams_end(void *list)
{
	struct thread_stream *entry;

	while ((entry = list)) {
		list = entry->next;
		if (softcuda_context(entry->ctx) && entry->ctx->id == entry->ctx_id)
			do_cuStreamDestroy_v2(entry->stream);
		free(entry);
	}
}

static void sched_make(void)
{
	pthread_key_create(&thread_key, thread_streams_end);
}

static void sched_enter(void)
{
	pthread_once(&sched_once, sched_make);
	pthread_mutex_lock(&softcuda_sched_lock);
}

static void sched_leave(void)
{
	pthread_mutex_unlock(&softcuda_sched_lock);
}

/* false once the deadline (CLOCK_MONOTONIC, 0 none) has passed. */
static bool sched_wait(uint64_t deadline_ns)
{
	uint32_t turn = atomic_load(&sched_turn);
	uint64_t now = deadline_ns ? softcuda_now_ns() : 0;
	int saved_errno = errno;

	if (deadline_ns && now >= deadline_ns)
		return false;
	sched_leave();
	softcuda_futex_wait(&sched_turn, turn, deadline_ns ? deadline_ns - now : 0, false);
	pthread_mutex_lock(&softcuda_sched_lock);
	errno = saved_errno;
	return true;
}

static void sched_wake(void)
{
	atomic_fetch_add(&sched_turn, 1);
	softcuda_futex_wake(&sched_turn, false);
}

void softcuda_sched_wait(void)
{
	sched_wait(0);
}

static bool ready(struct CUstream_st *stream, const struct softcuda_op *op)
{
	struct CUctx_st *ctx = stream->ctx;
	struct CUstream_st *other;

	if (stream->head != op)
		return false;
	if (stream->legacy) {
		for (other = ctx->streams; other; other = other->next) {
			if (other != stream && !(other->flags & CU_STREAM_NON_BLOCKING) && other->head &&
			    other->head->seq < op->seq)
				return false;
		}
	} else if (!(stream->flags & CU_STREAM_NON_BLOCKING) && ctx->legacy && ctx->legacy->head &&
		   ctx->legacy->head->seq < op->seq) {
		return false;
	}
	if (op->kind == OP_WAIT_EVENT)
		return op->event.event->done >= op->event.generation;
	if (op->kind == OP_WAIT_VALUE)
		return softcuda_value_met(ctx, op);
	return true;
}

/* With the lock held; runs the head of the stream, which is ready, without it. */
static void run_head(struct CUstream_st *stream)
{
	struct softcuda_op *op = stream->head;
	CUresult result, none = CUDA_SUCCESS;

	sched_leave();
	result = softcuda_op_run(stream->ctx, op);
	sched_enter();
	if (result != CUDA_SUCCESS)
		atomic_compare_exchange_strong(&stream->ctx->error, &none, result); /* the first one stays */
	if (op->kind == OP_RECORD) {
		if (op->event.generation > op->event.event->done) {
			op->event.event->done = op->event.generation;
			op->event.event->time_ns = softcuda_now_ns();
		}
	}
	stream->head = op->next;
	if (!stream->head) {
		stream->tail = &stream->head;
		atomic_fetch_sub(&busy, 1);
	}
	op->finished = true;
	sched_wake();
}

static void op_release(struct softcuda_op *op)
{
	if (op->kind == OP_RECORD || op->kind == OP_WAIT_EVENT)
		softcuda_event_put(op->event.event);
	free(op);
}

static void *stream_main(void *arg)
{
	struct CUstream_st *stream = arg;
	struct softcuda_op *op;

	sched_enter();
	while (!stream->ending || stream->head) {
		op = stream->head;
		if (op && !op->own_thread && ready(stream, op)) {
			run_head(stream);
			op_release(op);
		} else {
			sched_wait(op && op->kind == OP_WAIT_VALUE ? softcuda_now_ns() + POLL_NS : 0);
		}
	}
	sched_leave();
	return NULL;
}

/* With the lock held. */
static struct softcuda_op *append(struct CUstream_st *stream, const struct softcuda_op *model, bool own_thread)
{
	struct softcuda_op *op = malloc(sizeof(*op));

	if (!op)
		return NULL;
	*op = *model;
	op->next = NULL;
	op->finished = false;
	op->own_thread = own_thread;
	op->seq = ++stream->ctx->seq;
	if (op->kind == OP_RECORD || op->kind == OP_WAIT_EVENT)
		op->event.event->refs++;
	if (!stream->head)
		atomic_fetch_add(&busy, 1);
	*stream->tail = op;
	stream->tail = &op->next;
	return op;
}

CUresult softcuda_submit(struct CUstream_st *stream, const struct softcuda_op *op)
{
	CUresult result;

	sched_enter();
	result = softcuda_capture_legacy(stream, true);
	if (result == CUDA_SUCCESS && stream->capture != CU_STREAM_CAPTURE_STATUS_NONE) {
		result = softcuda_capture_op(stream, op);
	} else if (result == CUDA_SUCCESS) {
		if (!stream->has_thread && !softcuda_thread(&stream->thread, "softcuda-stream", stream_main, stream))
			stream->has_thread = true;
		if (!stream->has_thread || !append(stream, op, false))
			result = CUDA_ERROR_OUT_OF_MEMORY;
		else
			sched_wake();
	}
	sched_leave();
	return result;
}

CUresult softcuda_submit_and_wait(struct CUstream_st *stream, const struct softcuda_op *model)
{
	struct softcuda_op *op;
	CUresult result;

	sched_enter();
	result = softcuda_capture_legacy(stream, true);
	if (result == CUDA_SUCCESS && stream->capture != CU_STREAM_CAPTURE_STATUS_NONE) {
		softcuda_capture_spoil(stream);
		result = CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED; /* what is to be waited for cannot be captured */
	}
	if (result != CUDA_SUCCESS) {
		sched_leave();
		return result;
	}
	op = append(stream, model, true);
	if (!op) {
		sched_leave();
		return CUDA_ERROR_OUT_OF_MEMORY;
	}
	while (!ready(stream, op))
		sched_wait(0);
	run_head(stream);
	result = atomic_load(&stream->ctx->error);
	op_release(op);
	sched_leave();
	return result;
}

/* With the lock held: for all work submitted by now, of one stream or all of a context. */
static void wait_idle(struct CUctx_st *ctx, struct CUstream_st *only)
{
	struct CUstream_st *stream;
	uint64_t seq = ctx->seq;
	bool pending;

	do {
		pending = false;
		for (stream = ctx->streams; stream; stream = stream->next) {
			if (only && stream != only && !(only->legacy && !(stream->flags & CU_STREAM_NON_BLOCKING)))
				continue;
			pending |= stream->head && stream->head->seq <= seq;
		}
	} while (pending && (sched_wait(0) || true));
}

CUresult softcuda_context_wait(struct CUctx_st *ctx)
{
	sched_enter();
	wait_idle(ctx, NULL);
	sched_leave();
	return atomic_load(&ctx->error);
}

int softcuda_streams_drain(uint64_t deadline_ns)
{
	int error = 0;

	sched_enter();
	while (atomic_load(&busy) && !error) {
		if (!sched_wait(deadline_ns))
			error = -ETIMEDOUT;
	}
	sched_leave();
	return error;
}

static struct CUstream_st *stream_new(struct CUctx_st *ctx, unsigned flags, int priority)
{
	struct CUstream_st *stream = calloc(1, sizeof(*stream));

	if (!stream)
		return NULL;
	stream->ctx = ctx;
	stream->flags = flags;
	stream->priority = priority;
	stream->tail = &stream->head;
	sched_enter();
	stream->id = next_stream_id++;
	stream->next = ctx->streams;
	ctx->streams = stream;
	stream->all_next = softcuda_all_streams;
	softcuda_all_streams = stream;
	sched_leave();
	return stream;
}

/* With the lock held. */
static void stream_unlink(struct CUstream_st *stream)
{
	struct CUgraph_st *graph = stream->graph;
	struct CUstream_st **link;

	if (stream->capture_origin == stream) { /* nobody can end its capture any more */
		softcuda_capture_end(stream);
		do_cuGraphDestroy(graph);
	} else if (stream->capture_origin) {
		softcuda_capture_spoil(stream);
	}

	for (link = &stream->ctx->streams; *link != stream; link = &(*link)->next)
		;
	*link = stream->next;
	for (link = &softcuda_all_streams; *link != stream; link = &(*link)->all_next)
		;
	*link = stream->all_next;
	if (stream->ctx->legacy == stream)
		stream->ctx->legacy = NULL;
}

static void stream_free(struct CUstream_st *stream)
{
	if (stream->has_thread) {
		sched_enter();
		stream->ending = true;
		sched_wake();
		sched_leave();
		pthread_join(stream->thread, NULL);
	}
	free(stream);
}

void softcuda_streams_end(struct CUctx_st *ctx)
{
	struct CUstream_st *stream;

	sched_enter();
	while ((stream = ctx->streams)) {
		stream_unlink(stream);
		sched_leave();
		stream_free(stream);
		sched_enter();
	}
	sched_leave();
}

static struct CUstream_st *legacy_stream(struct CUctx_st *ctx)
{
	static pthread_mutex_t make_lock = PTHREAD_MUTEX_INITIALIZER;

	pthread_mutex_lock(&make_lock);
	if (!ctx->legacy) {
		struct CUstream_st *stream = stream_new(ctx, 0, 0);

		if (stream)
			stream->legacy = true;
		ctx->legacy = stream;
	}
	pthread_mutex_unlock(&make_lock);
	return ctx->legacy;
}

static struct CUstream_st *thread_stream(struct CUctx_st *ctx)
{
	struct thread_stream *entry, *list;

	pthread_once(&sched_once, sched_make);
	list = pthread_getspecific(thread_key);
	for (entry = list; entry; entry = entry->next) {
		if (entry->ctx == ctx && entry->ctx_id == ctx->id)
			return entry->stream;
	}
	entry = calloc(1, sizeof(*entry));
	if (!entry)
		return NULL;
	entry->ctx = ctx;
	entry->ctx_id = ctx->id;
	entry->stream = stream_new(ctx, 0, 0);
	if (!entry->stream) {
		free(entry);
		return NULL;
	}
	entry->stream->per_thread = true;
	entry->next = list;
	pthread_setspecific(thread_key, entry);
	return entry->stream;
}

struct CUstream_st *softcuda_stream(CUstream handle, CUresult *error)
{
	struct CUctx_st *ctx = softcuda_current();
	struct CUstream_st *stream;

	*error = CUDA_ERROR_OUT_OF_MEMORY;
	if (handle == CU_STREAM_PER_THREAD || (!handle && softcuda_per_thread))
		return thread_stream(ctx);
	if (handle == CU_STREAM_LEGACY || !handle)
		return legacy_stream(ctx);
	*error = CUDA_ERROR_INVALID_HANDLE;
	sched_enter();
	for (stream = ctx->streams; stream && stream != handle; stream = stream->next)
		;
	sched_leave();
	return stream;
}

struct CUstream_st *softcuda_default_stream(CUresult *error)
{
	return softcuda_stream(NULL, error);
}

CUresult do_cuStreamCreateWithPriority(CUstream *out, unsigned int flags, int priority)
{
	struct CUstream_st *stream;

	if (!out || flags & ~(unsigned)CU_STREAM_NON_BLOCKING)
		return CUDA_ERROR_INVALID_VALUE;
	priority = priority > 0 ? 0 : priority < -5 ? -5 : priority;
	stream = stream_new(softcuda_current(), flags, priority);
	if (!stream)
		return CUDA_ERROR_OUT_OF_MEMORY;
	*out = stream;
	return CUDA_SUCCESS;
}

CUresult do_cuStreamCreate(CUstream *out, unsigned int flags)
{
	return do_cuStreamCreateWithPriority(out, flags, 0);
}

/* Work that it still has is carried out; this waits for it. The stream may belong to any context. */
CUresult do_cuStreamDestroy_v2(CUstream handle)
{
	struct CUstream_st *stream;

	sched_enter();
	for (stream = softcuda_all_streams; stream && stream != handle; stream = stream->all_next)
		;
	if (!stream || stream->legacy) {
		sched_leave();
		return CUDA_ERROR_INVALID_HANDLE;
	}
	while (stream->head)
		sched_wait(0);
	stream_unlink(stream);
	sched_leave();
	stream_free(stream);
	return CUDA_SUCCESS;
}

CUresult do_cuStreamDestroy(CUstream stream)
{
	return do_cuStreamDestroy_v2(stream);
}

CUresult do_cuStreamQuery(CUstream handle)
{
	CUresult result;
	struct CUstream_st *stream = softcuda_stream(handle, &result);

	if (!stream)
		return result;
	sched_enter();
	result = softcuda_capture_waiting(stream);
	if (result == CUDA_SUCCESS)
		result = stream->head ? CUDA_ERROR_NOT_READY : atomic_load(&stream->ctx->error);
	sched_leave();
	return result;
}

CUresult do_cuStreamSynchronize(CUstream handle)
{
	CUresult result;
	struct CUstream_st *stream = softcuda_stream(handle, &result);

	if (!stream)
		return result;
	sched_enter();
	result = softcuda_capture_waiting(stream);
	if (result == CUDA_SUCCESS)
		wait_idle(stream->ctx, stream);
	sched_leave();
	if (result != CUDA_SUCCESS)
		return result;
	softcuda_pools_settle();
	return atomic_load(&stream->ctx->error);
}

CUresult do_cuStreamAddCallback(CUstream handle, CUstreamCallback callback, void *data, unsigned int flags)
{
	struct softcuda_op op = {.kind = OP_CALLBACK};
	CUresult result;
	struct CUstream_st *stream = softcuda_stream(handle, &result);

	if (!stream)
		return result;
	if (!callback || flags)
		return CUDA_ERROR_INVALID_VALUE;
	op.host.callback = callback;
	op.host.stream = handle;
	op.host.data = data;
	return softcuda_submit(stream, &op);
}

CUresult do_cuLaunchHostFunc(CUstream handle, CUhostFn fn, void *data)
{
	struct softcuda_op op = {.kind = OP_HOST};
	CUresult result;
	struct CUstream_st *stream = softcuda_stream(handle, &result);

	if (!stream)
		return result;
	if (!fn)
		return CUDA_ERROR_INVALID_VALUE;
	op.host.fn = fn;
	op.host.data = data;
	return softcuda_submit(stream, &op);
}

#define STREAM_GETTER(name, type, expression)                                                                          \
	CUresult name(CUstream handle, type *out)                                                                      \
	{                                                                                                              \
		CUresult result;                                                                                       \
		struct CUstream_st *stream = softcuda_stream(handle, &result);                                         \
                                                                                                                       \
		if (!stream)                                                                                           \
			return result;                                                                                 \
		if (!out)                                                                                              \
			return CUDA_ERROR_INVALID_VALUE;                                                               \
		*out = expression;                                                                                     \
		return CUDA_SUCCESS;                                                                                   \
	}
STREAM_GETTER(do_cuStreamGetPriority, int, stream->priority)
STREAM_GETTER(do_cuStreamGetFlags, unsigned int, stream->flags)
STREAM_GETTER(do_cuStreamGetId, unsigned long long, stream->id)
STREAM_GETTER(do_cuStreamGetCtx, CUcontext, stream->ctx)
STREAM_GETTER(do_cuStreamGetDevice, CUdevice, stream->ctx->device)

static CUresult value_op(CUstream handle, CUdeviceptr address, uint64_t value, unsigned flags, bool wide,
			 enum softcuda_op_kind kind)
{
	struct softcuda_op op = {.kind = kind};
	CUresult result;
	struct CUstream_st *stream = softcuda_stream(handle, &result);
	size_t size = wide ? 8 : 4;

	if (!stream)
		return result;
	if (!softcuda_known(address, size, false, SOFTCUDA_BY_PEER, NULL) || address % size)
		return CUDA_ERROR_INVALID_VALUE;
	op.value.address = address;
	op.value.value = value;
	op.value.flags = flags;
	op.value.wide = wide;
	return softcuda_submit(stream, &op);
}

CUresult do_cuStreamWriteValue32_v2(CUstream stream, CUdeviceptr address, cuuint32_t value, unsigned int flags)
{
	return flags & ~1u ? CUDA_ERROR_INVALID_VALUE : value_op(stream, address, value, flags, false, OP_WRITE_VALUE);
}

CUresult do_cuStreamWriteValue64_v2(CUstream stream, CUdeviceptr address, cuuint64_t value, unsigned int flags)
{
	return flags & ~1u ? CUDA_ERROR_INVALID_VALUE : value_op(stream, address, value, flags, true, OP_WRITE_VALUE);
}

CUresult do_cuStreamWaitValue32_v2(CUstream stream, CUdeviceptr address, cuuint32_t value, unsigned int flags)
{
	return flags & ~3u ? CUDA_ERROR_INVALID_VALUE : value_op(stream, address, value, flags, false, OP_WAIT_VALUE);
}

CUresult do_cuStreamWaitValue64_v2(CUstream stream, CUdeviceptr address, cuuint64_t value, unsigned int flags)
{
	return flags & ~3u ? CUDA_ERROR_INVALID_VALUE : value_op(stream, address, value, flags, true, OP_WAIT_VALUE);
}
