// SPDX-License-Identifier: MIT
/* Which contexts may use the plain memory of which other devices. */
#include "internal.h"

CUresult do_cuCtxEnablePeerAccess(CUcontext handle, unsigned int flags)
{
	struct CUctx_st *ctx = softcuda_current(), *peer = softcuda_context(handle);

	if (flags)
		return CUDA_ERROR_INVALID_VALUE;
	if (!peer)
		return CUDA_ERROR_INVALID_CONTEXT;
	if (peer->device == ctx->device)
		return CUDA_ERROR_PEER_ACCESS_UNSUPPORTED;
	if (ctx->peers & 1u << peer->device)
		return CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED;
	if (!ctx->peers)
		atomic_fetch_add(&softcuda_peer_links, 1);
	ctx->peers |= 1u << peer->device;
	return CUDA_SUCCESS;
}

CUresult do_cuCtxDisablePeerAccess(CUcontext handle)
{
	struct CUctx_st *ctx = softcuda_current(), *peer = softcuda_context(handle);

	if (!peer)
		return CUDA_ERROR_INVALID_CONTEXT;
	if (!(ctx->peers & 1u << peer->device))
		return CUDA_ERROR_PEER_ACCESS_NOT_ENABLED;
	ctx->peers &= ~(1u << peer->device);
	if (!ctx->peers)
		atomic_fetch_sub(&softcuda_peer_links, 1);
	return CUDA_SUCCESS;
}
