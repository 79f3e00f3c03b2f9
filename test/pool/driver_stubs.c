// SPDX-License-Identifier: MIT
/*
 * What a driver has to have for the pool to take it, besides what olddriver.c and slowdriver.c do: each does nothing.
 * With CHECKPOINT, those of newer drivers as well.
 */
#include "driver.h"

#define STUB(name)                                                                                                     \
	__attribute__((weak, visibility("default"))) CUresult stub_##name(void) __asm__(#name);                        \
	CUresult stub_##name(void)                                                                                     \
	{                                                                                                              \
		return CUDA_SUCCESS;                                                                                   \
	}
#define STUB_DRIVER_BASIC(name) STUB(name)
#ifdef CHECKPOINT
#define STUB_DRIVER_CHECKPOINT(name) STUB(name)
#else
#define STUB_DRIVER_CHECKPOINT(name)
#endif
#define STUB_OF(name, purpose) STUB_##purpose(name)
DRIVER_FUNCTIONS(STUB_OF)
