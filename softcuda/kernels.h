// SPDX-License-Identifier: MIT
/* The kernels that the software driver can run: their names, parameters and exact results. */
#ifndef SOFTCUDA_KERNELS_H
#define SOFTCUDA_KERNELS_H

/*
 * A module is PTX text (or anything whose first part is text that ends with NUL) with `.entry NAME`
 * lines; cuModuleGetFunction finds NAME if the module has such a line and it is one of these.
 * The code is not looked at: the same PTX must do the same on a real GPU (workloads/ has it), with any
 * grid, as each kernel strides over its data by the whole grid. All arithmetic is modulo 2^32 or 2^64.
 *
 * KERNEL(name, parameter sizes in bytes…)
 */
#define SOFTCUDA_KERNELS(KERNEL)                                                                                       \
	/* cudapool_fill(u64 ptr, u64 words, u32 seed): u32 word[i] = i * 2654435761 ^ seed */                         \
	KERNEL(cudapool_fill, 8, 8, 4)                                                                                 \
	/* cudapool_checksum(u64 ptr, u64 words, u64 out): u64 *out += sum of (word[i] ^ (u32)i) * (2 * i + 1), added  \
	 * atomically */                                                                                               \
	KERNEL(cudapool_checksum, 8, 8, 8)                                                                             \
	/* cudapool_saxpy(u64 y, u64 x, f32 a, u64 n): f32 y[i] = a * x[i] + y[i], fused */                            \
	KERNEL(cudapool_saxpy, 8, 8, 4, 8)                                                                             \
	/* cudapool_spin(u64 ns): is busy so long */                                                                   \
	KERNEL(cudapool_spin, 8)

#endif
