// SPDX-License-Identifier: MIT
/* The distance of two stubs, for C and assembly. */
#ifndef CUDAPOOL_PRELOAD_STUB_SIZE_H
#define CUDAPOOL_PRELOAD_STUB_SIZE_H

#define CUDAPOOL_STUB_SIZE 32

#endif
