// SPDX-License-Identifier: MIT
/* Copies and fills, synchronous and asynchronous. */
#include "internal.h"

#include <string.h>

static double speed(enum softcuda_where to, enum softcuda_where from)
{
	if (to == SOFTCUDA_ON_PAGEABLE || from == SOFTCUDA_ON_PAGEABLE)
		return softcuda_costs.copy_pageable_gbps;
	if (to == SOFTCUDA_ON_PINNED || from == SOFTCUDA_ON_PINNED)
		return softcuda_costs.copy_pinned_gbps;
	return softcuda_costs.copy_device_gbps;
}

static CUresult submit(const struct softcuda_op *op, CUstream handle, bool wait)
{
	CUresult result;
	struct CUstream_st *stream = softcuda_stream(handle, &result);

	if (!stream)
		return result;
	return wait ? softcuda_submit_and_wait(stream, op) : softcuda_submit(stream, op);
}

/* HOST: pageable memory is welcome there; DEVICE: only what the driver knows. */
enum side { DEVICE = 0, HOST = 1 };

static CUresult copy(CUdeviceptr to, enum side to_side, CUdeviceptr from, enum side from_side, size_t bytes,
		     int from_device, CUstream stream, bool wait)
{
	struct softcuda_op op = {.kind = OP_COPY, .copy = {.width = bytes, .height = 1}};
	enum softcuda_where to_where, from_where;
	int device = softcuda_current()->device;

	if (!bytes)
		return CUDA_SUCCESS;
	op.copy.to = softcuda_resolve(to, bytes, true, device, to_side == HOST, &to_where);
	op.copy.from = softcuda_resolve(from, bytes, false, from_device < 0 ? device : from_device, from_side == HOST,
					&from_where);
	if (!op.copy.to || !op.copy.from)
		return CUDA_ERROR_INVALID_VALUE;
	op.copy.gbps = speed(to_where, from_where);
	/*
	 * From pageable host memory an asynchronous copy returns when the source may be used again,
	 * and to it when the data are there; captured, it must stay asynchronous.
	 */
	if (!wait && (to_where == SOFTCUDA_ON_PAGEABLE || from_where == SOFTCUDA_ON_PAGEABLE)) {
		CUstreamCaptureStatus status = CU_STREAM_CAPTURE_STATUS_NONE;
		CUresult result = do_cuStreamIsCapturing(stream, &status);

		if (result != CUDA_SUCCESS)
			return result;
		wait = status == CU_STREAM_CAPTURE_STATUS_NONE;
	}
	return submit(&op, stream, wait);
}

CUresult do_cuMemcpy(CUdeviceptr to, CUdeviceptr from, size_t bytes)
{
	return copy(to, HOST, from, HOST, bytes, -1, NULL, true);
}

CUresult do_cuMemcpyAsync(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream)
{
	return copy(to, HOST, from, HOST, bytes, -1, stream, false);
}

CUresult do_cuMemcpyHtoD_v2(CUdeviceptr to, const void *from, size_t bytes)
{
	return copy(to, DEVICE, (uintptr_t)from, HOST, bytes, -1, NULL, true);
}

CUresult do_cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void *from, size_t bytes, CUstream stream)
{
	return copy(to, DEVICE, (uintptr_t)from, HOST, bytes, -1, stream, false);
}

CUresult do_cuMemcpyDtoH_v2(void *to, CUdeviceptr from, size_t bytes)
{
	return copy((uintptr_t)to, HOST, from, DEVICE, bytes, -1, NULL, true);
}

CUresult do_cuMemcpyDtoHAsync_v2(void *to, CUdeviceptr from, size_t bytes, CUstream stream)
{
	return copy((uintptr_t)to, HOST, from, DEVICE, bytes, -1, stream, false);
}

CUresult do_cuMemcpyDtoD_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes)
{
	return copy(to, DEVICE, from, DEVICE, bytes, -1, NULL, true);
}

CUresult do_cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream)
{
	return copy(to, DEVICE, from, DEVICE, bytes, -1, stream, false);
}

static CUresult peer(CUdeviceptr to, CUcontext to_ctx, CUdeviceptr from, CUcontext from_ctx, size_t bytes,
		     CUstream stream, bool wait)
{
	struct CUctx_st *source = softcuda_context(from_ctx);

	if (!softcuda_context(to_ctx) || !source)
		return CUDA_ERROR_INVALID_CONTEXT;
	return copy(to, DEVICE, from, DEVICE, bytes, source->device, stream, wait);
}

CUresult do_cuMemcpyPeer(CUdeviceptr to, CUcontext to_ctx, CUdeviceptr from, CUcontext from_ctx, size_t bytes)
{
	return peer(to, to_ctx, from, from_ctx, bytes, NULL, true);
}

CUresult do_cuMemcpyPeerAsync(CUdeviceptr to, CUcontext to_ctx, CUdeviceptr from, CUcontext from_ctx, size_t bytes,
			      CUstream stream)
{
	return peer(to, to_ctx, from, from_ctx, bytes, stream, false);
}

/* One side of a 2D copy: where its first byte is, with the whole of it checked. */
static void *side_2d(CUmemorytype type, CUdeviceptr device_ptr, const void *host, size_t x, size_t y, size_t pitch,
		     const CUDA_MEMCPY2D *c, bool write, enum softcuda_where *where)
{
	CUdeviceptr start = type == CU_MEMORYTYPE_HOST ? (uintptr_t)host : device_ptr;
	size_t bytes;

	if (type != CU_MEMORYTYPE_HOST && type != CU_MEMORYTYPE_DEVICE && type != CU_MEMORYTYPE_UNIFIED)
		return NULL;
	if (__builtin_mul_overflow(c->Height - 1, pitch, &bytes) ||
	    __builtin_add_overflow(bytes, c->WidthInBytes, &bytes) || __builtin_mul_overflow(y, pitch, &y))
		return NULL;
	return softcuda_resolve(start + y + x, bytes, write, softcuda_current()->device, type != CU_MEMORYTYPE_DEVICE,
				where);
}

static CUresult copy_2d(const CUDA_MEMCPY2D *c, CUstream stream, bool wait)
{
	struct softcuda_op op = {.kind = OP_COPY};
	enum softcuda_where to_where, from_where;

	if (!c)
		return CUDA_ERROR_INVALID_VALUE;
	if (!c->WidthInBytes || !c->Height)
		return CUDA_SUCCESS;
	op.copy.width = c->WidthInBytes;
	op.copy.height = c->Height;
	op.copy.to_pitch = c->dstPitch ? c->dstPitch : c->WidthInBytes;
	op.copy.from_pitch = c->srcPitch ? c->srcPitch : c->WidthInBytes;
	if (op.copy.to_pitch < c->WidthInBytes || op.copy.from_pitch < c->WidthInBytes)
		return CUDA_ERROR_INVALID_VALUE;
	op.copy.to = side_2d(c->dstMemoryType, c->dstDevice, c->dstHost, c->dstXInBytes, c->dstY, op.copy.to_pitch, c,
			     true, &to_where);
	op.copy.from = side_2d(c->srcMemoryType, c->srcDevice, c->srcHost, c->srcXInBytes, c->srcY, op.copy.from_pitch,
			       c, false, &from_where);
	if (!op.copy.to || !op.copy.from)
		return CUDA_ERROR_INVALID_VALUE;
	op.copy.gbps = speed(to_where, from_where);
	return submit(&op, stream, wait || to_where == SOFTCUDA_ON_PAGEABLE || from_where == SOFTCUDA_ON_PAGEABLE);
}

CUresult do_cuMemcpy2D_v2(const CUDA_MEMCPY2D *c)
{
	return copy_2d(c, NULL, true);
}

CUresult do_cuMemcpy2DUnaligned_v2(const CUDA_MEMCPY2D *c)
{
	return copy_2d(c, NULL, true);
}

CUresult do_cuMemcpy2DAsync_v2(const CUDA_MEMCPY2D *c, CUstream stream)
{
	return copy_2d(c, stream, false);
}

static CUresult fill(CUdeviceptr to, size_t pitch, unsigned value, unsigned element, size_t width, size_t height,
		     CUstream stream, bool wait)
{
	struct softcuda_op op = {.kind = OP_FILL};
	size_t row, bytes;

	if (!width || !height)
		return CUDA_SUCCESS;
	if (__builtin_mul_overflow(width, (size_t)element, &row) || to % element || pitch % element ||
	    (height > 1 && pitch < row) || __builtin_mul_overflow(height - 1, pitch, &bytes) ||
	    __builtin_add_overflow(bytes, row, &bytes))
		return CUDA_ERROR_INVALID_VALUE;
	op.fill.to = softcuda_resolve(to, bytes, true, softcuda_current()->device, false, NULL);
	if (!op.fill.to)
		return CUDA_ERROR_INVALID_VALUE;
	op.fill.count = width;
	op.fill.height = height;
	op.fill.pitch = pitch;
	op.fill.value = value;
	op.fill.element = element;
	return submit(&op, stream, wait);
}

#define FILL(bits, type)                                                                                               \
	CUresult do_cuMemsetD##bits##_v2(CUdeviceptr to, type value, size_t count)                                     \
	{                                                                                                              \
		return fill(to, 0, value, bits / 8, count, 1, NULL, true);                                             \
	}                                                                                                              \
	CUresult do_cuMemsetD##bits##Async(CUdeviceptr to, type value, size_t count, CUstream stream)                  \
	{                                                                                                              \
		return fill(to, 0, value, bits / 8, count, 1, stream, false);                                          \
	}                                                                                                              \
	CUresult do_cuMemsetD2D##bits##_v2(CUdeviceptr to, size_t pitch, type value, size_t width, size_t height)      \
	{                                                                                                              \
		return fill(to, pitch, value, bits / 8, width, height, NULL, true);                                    \
	}                                                                                                              \
	CUresult do_cuMemsetD2D##bits##Async(CUdeviceptr to, size_t pitch, type value, size_t width, size_t height,    \
					     CUstream stream)                                                          \
	{                                                                                                              \
		return fill(to, pitch, value, bits / 8, width, height, stream, false);                                 \
	}
FILL(8, unsigned char)
FILL(16, unsigned short)
FILL(32, unsigned int)
