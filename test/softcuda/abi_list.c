// SPDX-License-Identifier: MIT
/* Compiled twice, with our cuda.h and with NVIDIA's: the facts that must agree, and the types of all functions. */
#include "abi_list.h"

#define STRINGIFY(text)    #text
#define IS_REAL_abi_real   1
#define IS_REAL(list)      IS_REAL_##list
#define IS_REAL_LIST(list) IS_REAL(list)

#if defined(REAL_CUDA)
#define __CUDA_API_VERSION_INTERNAL /* all variants are declared, and no bare name stands for another */
#endif
#if !defined(LIST_WITHOUT_HEADER)
#define CUDAPOOL_ABI_NO_VERSIONS
#if defined(REAL_CUDA) || !IS_REAL_LIST(LIST)
#include <cuda.h>
#define HAVE_HEADER
#endif
#endif

#if defined(HAVE_HEADER) && CUDA_VERSION >= 13000
#include <stddef.h>

/* A function that the header declares with other types does not compile here. */
#define CUDA_API(needs, symbol, base, since, params, args) CUresult symbol params;
#define CUDA_API_PTSZ(needs, symbol, base, since, since_ptsz, params, args)                                            \
	CUresult symbol params;                                                                                        \
	CUresult symbol##_ptsz params;
#define CUDA_API_PTDS(needs, symbol, base, since, since_ptds, params, args)                                            \
	CUresult symbol params;                                                                                        \
	CUresult symbol##_ptds params;
#include "cuda_api.def"

#define VALUE(name)                    {#name, name},
#define CUDA_RESULT(name, value, text) VALUE(name)
/* clang-format off */ /* it would make blocks of code of these */
#define SIZE(type)      {"sizeof " #type, sizeof(type)}
#define AT(type, field) {#type "." #field, offsetof(type, field)}
/* clang-format on */
static const struct abi_fact facts[] = {
#include "cuda_results.def"
#include "values.def"
	SIZE(CUresult),
	SIZE(CUdeviceptr),
	SIZE(CUdevice),
	SIZE(CUmemGenericAllocationHandle),
	SIZE(CUuuid),
	SIZE(CUipcMemHandle),
	SIZE(CUexecAffinityParam),
	AT(CUexecAffinityParam, param),
	SIZE(CUctxCreateParams),
	AT(CUctxCreateParams, execAffinityParams),
	AT(CUctxCreateParams, numExecAffinityParams),
	AT(CUctxCreateParams, cigParams),
	SIZE(CUDA_MEMCPY2D),
	AT(CUDA_MEMCPY2D, srcXInBytes),
	AT(CUDA_MEMCPY2D, srcY),
	AT(CUDA_MEMCPY2D, srcMemoryType),
	AT(CUDA_MEMCPY2D, srcHost),
	AT(CUDA_MEMCPY2D, srcDevice),
	AT(CUDA_MEMCPY2D, srcArray),
	AT(CUDA_MEMCPY2D, srcPitch),
	AT(CUDA_MEMCPY2D, dstXInBytes),
	AT(CUDA_MEMCPY2D, dstY),
	AT(CUDA_MEMCPY2D, dstMemoryType),
	AT(CUDA_MEMCPY2D, dstHost),
	AT(CUDA_MEMCPY2D, dstDevice),
	AT(CUDA_MEMCPY2D, dstArray),
	AT(CUDA_MEMCPY2D, dstPitch),
	AT(CUDA_MEMCPY2D, WidthInBytes),
	AT(CUDA_MEMCPY2D, Height),
	SIZE(CUDA_MEMCPY3D),
	AT(CUDA_MEMCPY3D, srcXInBytes),
	AT(CUDA_MEMCPY3D, srcY),
	AT(CUDA_MEMCPY3D, srcZ),
	AT(CUDA_MEMCPY3D, srcLOD),
	AT(CUDA_MEMCPY3D, srcMemoryType),
	AT(CUDA_MEMCPY3D, srcHost),
	AT(CUDA_MEMCPY3D, srcDevice),
	AT(CUDA_MEMCPY3D, srcArray),
	AT(CUDA_MEMCPY3D, reserved0),
	AT(CUDA_MEMCPY3D, srcPitch),
	AT(CUDA_MEMCPY3D, srcHeight),
	AT(CUDA_MEMCPY3D, dstXInBytes),
	AT(CUDA_MEMCPY3D, dstY),
	AT(CUDA_MEMCPY3D, dstZ),
	AT(CUDA_MEMCPY3D, dstLOD),
	AT(CUDA_MEMCPY3D, dstMemoryType),
	AT(CUDA_MEMCPY3D, dstHost),
	AT(CUDA_MEMCPY3D, dstDevice),
	AT(CUDA_MEMCPY3D, dstArray),
	AT(CUDA_MEMCPY3D, reserved1),
	AT(CUDA_MEMCPY3D, dstPitch),
	AT(CUDA_MEMCPY3D, dstHeight),
	AT(CUDA_MEMCPY3D, WidthInBytes),
	AT(CUDA_MEMCPY3D, Height),
	AT(CUDA_MEMCPY3D, Depth),
	SIZE(CUmemLocation),
	AT(CUmemLocation, type),
	AT(CUmemLocation, id),
	SIZE(CUmemAllocationProp),
	AT(CUmemAllocationProp, type),
	AT(CUmemAllocationProp, requestedHandleTypes),
	AT(CUmemAllocationProp, location),
	AT(CUmemAllocationProp, win32HandleMetaData),
	AT(CUmemAllocationProp, allocFlags),
	AT(CUmemAllocationProp, allocFlags.compressionType),
	AT(CUmemAllocationProp, allocFlags.gpuDirectRDMACapable),
	AT(CUmemAllocationProp, allocFlags.usage),
	SIZE(CUmemAccessDesc),
	AT(CUmemAccessDesc, location),
	AT(CUmemAccessDesc, flags),
	SIZE(CUmemPoolProps),
	AT(CUmemPoolProps, allocType),
	AT(CUmemPoolProps, handleTypes),
	AT(CUmemPoolProps, location),
	AT(CUmemPoolProps, win32SecurityAttributes),
	AT(CUmemPoolProps, maxSize),
	AT(CUmemPoolProps, usage),
	AT(CUmemPoolProps, reserved),
	SIZE(CUmemPoolPtrExportData),
	SIZE(CUipcEventHandle),
	SIZE(CUgraphEdgeData),
	AT(CUgraphEdgeData, from_port),
	AT(CUgraphEdgeData, to_port),
	AT(CUgraphEdgeData, type),
	SIZE(CUlaunchAttribute),
	AT(CUlaunchAttribute, id),
	AT(CUlaunchAttribute, value),
	AT(CUlaunchAttribute, value.cooperative),
	AT(CUlaunchAttribute, value.priority),
	SIZE(CUlaunchConfig),
	AT(CUlaunchConfig, gridDimX),
	AT(CUlaunchConfig, blockDimX),
	AT(CUlaunchConfig, sharedMemBytes),
	AT(CUlaunchConfig, hStream),
	AT(CUlaunchConfig, attrs),
	AT(CUlaunchConfig, numAttrs),
	SIZE(CUcheckpointLockArgs),
	AT(CUcheckpointLockArgs, timeoutMs),
	AT(CUcheckpointLockArgs, reserved0),
	SIZE(CUcheckpointCheckpointArgs),
	SIZE(CUcheckpointUnlockArgs),
	SIZE(CUcheckpointGpuPair),
	AT(CUcheckpointGpuPair, newUuid),
	SIZE(CUcheckpointRestoreArgs),
	AT(CUcheckpointRestoreArgs, gpuPairs),
	AT(CUcheckpointRestoreArgs, gpuPairsCount),
	AT(CUcheckpointRestoreArgs, reserved),
	AT(CUcheckpointRestoreArgs, reserved1),
	{"CU_STREAM_LEGACY", (long)CU_STREAM_LEGACY},
	{"CU_STREAM_PER_THREAD", (long)CU_STREAM_PER_THREAD},
	{"CU_LAUNCH_PARAM_END", (long)CU_LAUNCH_PARAM_END},
	{"CU_LAUNCH_PARAM_BUFFER_POINTER", (long)CU_LAUNCH_PARAM_BUFFER_POINTER},
	{"CU_LAUNCH_PARAM_BUFFER_SIZE", (long)CU_LAUNCH_PARAM_BUFFER_SIZE},
	VALUE(CU_MEMHOSTALLOC_PORTABLE) VALUE(CU_MEMHOSTALLOC_DEVICEMAP) VALUE(CU_MEMHOSTALLOC_WRITECOMBINED)
		VALUE(CU_MEMHOSTREGISTER_PORTABLE) VALUE(CU_MEMHOSTREGISTER_DEVICEMAP)
			VALUE(CU_MEMHOSTREGISTER_READ_ONLY) VALUE(CUDA_VERSION)};

const struct abi_list LIST = {
#ifdef REAL_CUDA
	.typedefs = REAL_CUDA "/cudaTypedefs.h",
#endif
	.facts = facts,
	.count = sizeof(facts) / sizeof(*facts),
};
#else
const struct abi_list LIST = {.missing = "no cuda.h of CUDA 13.0 or newer in /usr/local/cuda*/include"};
#endif
