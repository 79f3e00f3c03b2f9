/* SPDX-License-Identifier: MIT */
/* What racing.c asks of racing_driver.c, beside CUDA. */
#ifndef CUDAPOOL_TEST_SHIM_RACING_DRIVER_H
#define CUDAPOOL_TEST_SHIM_RACING_DRIVER_H

#include <stdatomic.h>

#define CUDAPOOL_ABI_NO_VERSIONS
#include <cuda.h>

struct racing_driver {
	const char *_Atomic hold[2]; /* calls of these functions wait at their beginning, until this is NULL again */
	atomic_int held[2];	     /* so many do now */
	atomic_int inits;	     /* calls of cuInit(0) */
	atomic_int retains;	     /* calls of cuDevicePrimaryCtxRetain */
	atomic_int failing;	     /* so many of which are to fail */
	CUcontext (*alive)(void);    /* the primary context; NULL: inactive */
	CUresult (*init)(unsigned int flags); /* cuInit, for those who get past the shim */
};

#endif
