// SPDX-License-Identifier: MIT
/* The distance of two stubs, for C and assembly. */
#ifndef CUDAPOOL_PRELOAD_STUB_SIZE_H
#define CUDAPOOL_PRELOAD_STUB_SIZE_H

#if defined(__aarch64__)
#define CUDAPOOL_STUB_SIZE 256
#else
#define CUDAPOOL_STUB_SIZE 128
#endif

#endif
