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

/*
 * From pageable host memory an asynchronous copy returns when the source may be used again, and to it when the data
 * are there; captured, it must stay asynchronous.
 */
static bool returns_done(CUstream stream, enum softcuda_where to, enum softcuda_where from)
{
	CUstreamCaptureStatus status = CU_STREAM_CAPTURE_STATUS_NONE;

	return (to == SOFTCUDA_ON_PAGEABLE || from == SOFTCUDA_ON_PAGEABLE) &&
	       (do_cuStreamIsCapturing(stream, &status) || status == CU_STREAM_CAPTURE_STATUS_NONE);
}

/* HOST: pageable memory is welcome there; DEVICE: only what the driver knows. */
enum side { DEVICE = 0, HOST = 1 };

static CUresult copy_by(enum softcuda_use use, CUdeviceptr to, enum side to_side, CUdeviceptr from,
			enum side from_side, size_t bytes, CUstream stream, bool wait)
{
	struct softcuda_op op = {.kind = OP_COPY,
				 .copy = {.to = to,
					  .from = from,
					  .to_host = to_side == HOST,
					  .from_host = from_side == HOST,
					  .width = bytes,
					  .height = 1,
					  .depth = 1}};
	enum softcuda_where to_where, from_where;

	if (!bytes)
		return CUDA_SUCCESS;
	if (!softcuda_known(to, bytes, op.copy.to_host, use, &to_where) ||
	    !softcuda_known(from, bytes, op.copy.from_host, use, &from_where))
		return CUDA_ERROR_INVALID_VALUE;
	op.copy.gbps = speed(to_where, from_where);
	return submit(&op, stream, wait || returns_done(stream, to_where, from_where));
}

static CUresult copy(CUdeviceptr to, enum side to_side, CUdeviceptr from, enum side from_side, size_t bytes,
		     CUstream stream, bool wait)
{
	return copy_by(SOFTCUDA_BY_COPY, to, to_side, from, from_side, bytes, stream, wait);
}

CUresult do_cuMemcpy(CUdeviceptr to, CUdeviceptr from, size_t bytes)
{
	return copy(to, HOST, from, HOST, bytes, NULL, true);
}

CUresult do_cuMemcpyAsync(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream)
{
	return copy(to, HOST, from, HOST, bytes, stream, false);
}

CUresult do_cuMemcpyHtoD_v2(CUdeviceptr to, const void *from, size_t bytes)
{
	return copy(to, DEVICE, (uintptr_t)from, HOST, bytes, NULL, true);
}

CUresult do_cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void *from, size_t bytes, CUstream stream)
{
	return copy(to, DEVICE, (uintptr_t)from, HOST, bytes, stream, false);
}

CUresult do_cuMemcpyDtoH_v2(void *to, CUdeviceptr from, size_t bytes)
{
	return copy((uintptr_t)to, HOST, from, DEVICE, bytes, NULL, true);
}

CUresult do_cuMemcpyDtoHAsync_v2(void *to, CUdeviceptr from, size_t bytes, CUstream stream)
{
	return copy((uintptr_t)to, HOST, from, DEVICE, bytes, stream, false);
}

CUresult do_cuMemcpyDtoD_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes)
{
	return copy(to, DEVICE, from, DEVICE, bytes, NULL, true);
}

CUresult do_cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream)
{
	return copy(to, DEVICE, from, DEVICE, bytes, stream, false);
}

static CUresult peer(CUdeviceptr to, CUcontext to_ctx, CUdeviceptr from, CUcontext from_ctx, size_t bytes,
		     CUstream stream, bool wait)
{
	if (!softcuda_context(to_ctx) || !softcuda_context(from_ctx))
		return CUDA_ERROR_INVALID_CONTEXT;
	return copy_by(SOFTCUDA_BY_PEER, to, DEVICE, from, DEVICE, bytes, stream, wait);
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

/* One side of a copy in rows and slices. */
struct box {
	CUmemorytype type;
	CUdeviceptr device;
	const void *host;
	size_t x, y, z;
	size_t pitch, rows; /* from row to row, in bytes; from slice to slice, in rows; 0: as much as is copied */
};

/* Where its first byte is, with the whole of it checked, and what it is to the next slice; 0 if it is no such box. */
static CUdeviceptr box_start(struct box *box, const CUDA_MEMCPY3D *c, size_t *slice, enum softcuda_where *where)
{
	CUdeviceptr start = box->type == CU_MEMORYTYPE_HOST ? (uintptr_t)box->host : box->device;
	size_t y, z, rows, bytes;

	if (!box->pitch)
		box->pitch = c->WidthInBytes;
	if (!box->rows)
		box->rows = c->Height;
	if (box->pitch < c->WidthInBytes || (c->Depth > 1 && box->rows < c->Height))
		return 0;
	if (box->type != CU_MEMORYTYPE_HOST && box->type != CU_MEMORYTYPE_DEVICE && box->type != CU_MEMORYTYPE_UNIFIED)
		return 0;
	if (__builtin_mul_overflow(box->rows, box->pitch, slice) ||
	    __builtin_mul_overflow(c->Depth - 1, *slice, &bytes) ||
	    __builtin_mul_overflow(c->Height - 1, box->pitch, &rows) || __builtin_add_overflow(bytes, rows, &bytes) ||
	    __builtin_add_overflow(bytes, c->WidthInBytes, &bytes) || __builtin_mul_overflow(box->y, box->pitch, &y) ||
	    __builtin_mul_overflow(box->z, *slice, &z))
		return 0;
	start += z + y + box->x;
	return softcuda_known(start, bytes, box->type != CU_MEMORYTYPE_DEVICE, SOFTCUDA_BY_COPY, where) ? start : 0;
}

static CUresult copy_3d(const CUDA_MEMCPY3D *c, CUstream stream, bool wait)
{
	struct softcuda_op op = {.kind = OP_COPY};
	enum softcuda_where to_where, from_where;
	struct box to, from;

	if (!c)
		return CUDA_ERROR_INVALID_VALUE;
	if (!c->WidthInBytes || !c->Height || !c->Depth)
		return CUDA_SUCCESS;
	to = (struct box){c->dstMemoryType, c->dstDevice, c->dstHost,  c->dstXInBytes,
			  c->dstY,          c->dstZ,      c->dstPitch, c->dstHeight};
	from = (struct box){c->srcMemoryType, c->srcDevice, c->srcHost,  c->srcXInBytes,
			    c->srcY,          c->srcZ,      c->srcPitch, c->srcHeight};
	op.copy.width = c->WidthInBytes;
	op.copy.height = c->Height;
	op.copy.depth = c->Depth;
	op.copy.to = box_start(&to, c, &op.copy.to_slice, &to_where);
	op.copy.from = box_start(&from, c, &op.copy.from_slice, &from_where);
	if (!op.copy.to || !op.copy.from)
		return CUDA_ERROR_INVALID_VALUE;
	op.copy.to_host = to.type != CU_MEMORYTYPE_DEVICE;
	op.copy.from_host = from.type != CU_MEMORYTYPE_DEVICE;
	op.copy.to_pitch = to.pitch;
	op.copy.from_pitch = from.pitch;
	op.copy.gbps = speed(to_where, from_where);
	return submit(&op, stream, wait || returns_done(stream, to_where, from_where));
}

CUresult do_cuMemcpy3D_v2(const CUDA_MEMCPY3D *c)
{
	return copy_3d(c, NULL, true);
}

CUresult do_cuMemcpy3DAsync_v2(const CUDA_MEMCPY3D *c, CUstream stream)
{
	return copy_3d(c, stream, false);
}

static CUresult copy_2d(const CUDA_MEMCPY2D *c, CUstream stream, bool wait)
{
	CUDA_MEMCPY3D one_slice;

	if (!c)
		return CUDA_ERROR_INVALID_VALUE;
	one_slice = (CUDA_MEMCPY3D){
		.srcXInBytes = c->srcXInBytes,
		.srcY = c->srcY,
		.srcMemoryType = c->srcMemoryType,
		.srcHost = c->srcHost,
		.srcDevice = c->srcDevice,
		.srcPitch = c->srcPitch,
		.dstXInBytes = c->dstXInBytes,
		.dstY = c->dstY,
		.dstMemoryType = c->dstMemoryType,
		.dstHost = c->dstHost,
		.dstDevice = c->dstDevice,
		.dstPitch = c->dstPitch,
		.WidthInBytes = c->WidthInBytes,
		.Height = c->Height,
		.Depth = 1,
	};
	return copy_3d(&one_slice, stream, wait);
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
	if (!softcuda_known(to, bytes, false, SOFTCUDA_BY_FILL, NULL))
		return CUDA_ERROR_INVALID_VALUE;
	op.fill.to = to;
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
