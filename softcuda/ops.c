// SPDX-License-Identifier: MIT
/* Carrying out one piece of work. */
#include "internal.h"

#include <string.h>
#if defined(__x86_64__)
#include <emmintrin.h>
#endif

/*
 * What a GPU copies into its own memory does not go through the processor's caches: large copies are written past them,
 * which also spares memory the reading of what is overwritten.
 */
#define LARGE (256 << 10)

static void copy_row(char *to, const char *from, size_t bytes, bool on_device)
{
#if defined(__x86_64__)
	bool apart = to + bytes <= from || from + bytes <= to;

	if (on_device && bytes >= LARGE && apart && !((uintptr_t)to % 64)) {
		for (; bytes >= 64; bytes -= 64, to += 64, from += 64) {
			for (int i = 0; i < 64; i += 16)
				_mm_stream_si128((__m128i *)(to + i), _mm_loadu_si128((const __m128i *)(from + i)));
		}
		_mm_sfence();
	}
#endif
	memmove(to, from, bytes);
}

/* What from its first to its last byte it spans. */
static size_t span(size_t width, size_t height, size_t depth, size_t pitch, size_t slice)
{
	return (depth - 1) * slice + (height - 1) * pitch + width;
}

/*
 * Memory is looked up when the work is carried out, with the map held still: memory that is gone by then, or closed to
 * the device, is an error that stays, as on a real one.
 */
static CUresult copy(struct CUctx_st *ctx, const struct softcuda_op *op)
{
	size_t width = op->copy.width, height = op->copy.height, depth = op->copy.depth;
	uint64_t start = softcuda_now_ns();
	const char *from;
	char *to;

	pthread_rwlock_rdlock(&softcuda_map_lock);
	to = softcuda_reach(op->copy.to, span(width, height, depth, op->copy.to_pitch, op->copy.to_slice), true, ctx,
			    true, op->copy.to_host);
	from = softcuda_reach(op->copy.from, span(width, height, depth, op->copy.from_pitch, op->copy.from_slice),
			      false, ctx, true, op->copy.from_host);
	for (size_t slice = 0; to && from && slice < depth; slice++)
		for (size_t row = 0; row < height; row++)
			copy_row(to + slice * op->copy.to_slice + row * op->copy.to_pitch,
				 from + slice * op->copy.from_slice + row * op->copy.from_pitch, width,
				 !op->copy.to_host);
	pthread_rwlock_unlock(&softcuda_map_lock);
	softcuda_spend(start, 0, width * height * depth, op->copy.gbps);
	return to && from ? CUDA_SUCCESS : CUDA_ERROR_ILLEGAL_ADDRESS;
}

static void fill_row(void *to, const struct softcuda_op *op)
{
	if (op->fill.element == 1) {
		memset(to, op->fill.value, op->fill.count);
	} else if (op->fill.element == 2) {
		for (size_t i = 0; i < op->fill.count; i++)
			((uint16_t *)to)[i] = op->fill.value;
	} else {
		for (size_t i = 0; i < op->fill.count; i++)
			((uint32_t *)to)[i] = op->fill.value;
	}
}

static CUresult fill(struct CUctx_st *ctx, const struct softcuda_op *op)
{
	size_t width = op->fill.count * op->fill.element;
	char *to;

	pthread_rwlock_rdlock(&softcuda_map_lock);
	to = softcuda_reach(op->fill.to, span(width, op->fill.height, 1, op->fill.pitch, 0), true, ctx, false, false);
	for (size_t row = 0; to && row < op->fill.height; row++)
		fill_row(to + row * op->fill.pitch, op);
	pthread_rwlock_unlock(&softcuda_map_lock);
	return to ? CUDA_SUCCESS : CUDA_ERROR_ILLEGAL_ADDRESS;
}

/* Reads or, with a value, writes the word that an operation on a value names. */
static CUresult word(struct CUctx_st *ctx, const struct softcuda_op *op, const uint64_t *write, uint64_t *read)
{
	size_t size = op->value.wide ? 8 : 4;
	volatile void *at;

	pthread_rwlock_rdlock(&softcuda_map_lock);
	at = softcuda_reach(op->value.address, size, write != NULL, ctx, false, false);
	if (at && read)
		*read = op->value.wide ? *(volatile uint64_t *)at : *(volatile uint32_t *)at;
	if (at && write && op->value.wide)
		*(volatile uint64_t *)at = *write;
	else if (at && write)
		*(volatile uint32_t *)at = *write;
	pthread_rwlock_unlock(&softcuda_map_lock);
	return at ? CUDA_SUCCESS : CUDA_ERROR_ILLEGAL_ADDRESS;
}

bool softcuda_value_met(struct CUctx_st *ctx, const struct softcuda_op *op)
{
	uint64_t value;

	if (word(ctx, op, NULL, &value))
		return true;
	switch (op->value.flags) {
	case CU_STREAM_WAIT_VALUE_EQ:
		return value == op->value.value;
	case CU_STREAM_WAIT_VALUE_AND:
		return value & op->value.value;
	case CU_STREAM_WAIT_VALUE_NOR:
		return op->value.wide ? ~(value | op->value.value) != 0 : (uint32_t) ~(value | op->value.value) != 0;
	default: /* at least, in cyclic order */
		return op->value.wide ? (int64_t)(value - op->value.value) >= 0
				      : (int32_t)((uint32_t)value - (uint32_t)op->value.value) >= 0;
	}
}

CUresult softcuda_op_run(struct CUctx_st *ctx, struct softcuda_op *op)
{
	CUresult error = atomic_load(&ctx->error);
	uint64_t ignored;

	/*
	 * Nothing is carried out any more in a context that has failed; only callbacks learn of it, and memory is
	 * freed.
	 */
	if (error != CUDA_SUCCESS && op->kind != OP_CALLBACK && op->kind != OP_ALLOC && op->kind != OP_FREE &&
	    op->kind != OP_FREE_PLAIN)
		return CUDA_SUCCESS;
	switch (op->kind) {
	case OP_COPY:
		return copy(ctx, op);
	case OP_FILL:
		return fill(ctx, op);
	case OP_LAUNCH:
		return softcuda_kernel_run(op->launch.kernel, op->launch.args, ctx);
	case OP_HOST:
		softcuda_host_function = ctx;
		op->host.fn(op->host.data);
		softcuda_host_function = NULL;
		break;
	case OP_CALLBACK:
		softcuda_host_function = ctx;
		op->host.callback(op->host.stream, error, op->host.data);
		softcuda_host_function = NULL;
		break;
	case OP_WRITE_VALUE:
		return word(ctx, op, &op->value.value, NULL);
	case OP_WAIT_VALUE:
		return word(ctx, op, NULL, &ignored);
	case OP_ALLOC:
		softcuda_ordered_alloc(op->block);
		break;
	case OP_FREE:
		softcuda_ordered_free(op->block);
		break;
	case OP_FREE_PLAIN:
		softcuda_free_range(op->plain, SOFTCUDA_ALLOC);
		break;
	case OP_RECORD:
	case OP_WAIT_EVENT:
		break; /* the scheduler's business */
	}
	return CUDA_SUCCESS;
}
