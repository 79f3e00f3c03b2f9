// SPDX-License-Identifier: MIT
/* Carrying out one piece of work. */
#include "internal.h"

#include <string.h>

static void copy(const struct softcuda_op *op)
{
	uint64_t start = softcuda_now_ns();

	for (size_t slice = 0; slice < op->copy.depth; slice++)
		for (size_t row = 0; row < op->copy.height; row++)
			memmove(op->copy.to + slice * op->copy.to_slice + row * op->copy.to_pitch,
				op->copy.from + slice * op->copy.from_slice + row * op->copy.from_pitch,
				op->copy.width);
	softcuda_spend(start, 0, op->copy.width * op->copy.height * op->copy.depth, op->copy.gbps);
}

static void fill(const struct softcuda_op *op)
{
	for (size_t row = 0; row < op->fill.height; row++) {
		char *to = op->fill.to + row * op->fill.pitch;

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
}

bool softcuda_value_met(const struct softcuda_op *op)
{
	uint64_t value =
		op->value.wide ? *(volatile uint64_t *)op->value.address : *(volatile uint32_t *)op->value.address;

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
	switch (op->kind) {
	case OP_COPY:
		copy(op);
		break;
	case OP_FILL:
		fill(op);
		break;
	case OP_LAUNCH:
		return softcuda_kernel_run(op->launch.kernel, op->launch.args, ctx->device);
	case OP_HOST:
		op->host.fn(op->host.data);
		break;
	case OP_CALLBACK:
		op->host.callback(op->host.stream, atomic_load(&ctx->error), op->host.data);
		break;
	case OP_WRITE_VALUE:
		if (op->value.wide)
			*(volatile uint64_t *)op->value.address = op->value.value;
		else
			*(volatile uint32_t *)op->value.address = op->value.value;
		break;
	case OP_FREE:
		return softcuda_free_range(op->free, SOFTCUDA_ALLOC);
	case OP_RECORD:
	case OP_WAIT_EVENT:
	case OP_WAIT_VALUE:
		break; /* the scheduler's business */
	}
	return CUDA_SUCCESS;
}
