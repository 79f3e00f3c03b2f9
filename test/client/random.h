// SPDX-License-Identifier: MIT
/* Numbers of a test that is to be repeated by its seed, which it prints. */
#ifndef CUDAPOOL_TEST_CLIENT_RANDOM_H
#define CUDAPOOL_TEST_CLIENT_RANDOM_H

#include <stdint.h>

static uint64_t seed; /* not 0 */

static inline uint64_t random_number(void)
{
	seed ^= seed << 13;
	seed ^= seed >> 7;
	seed ^= seed << 17;
	return seed;
}

#endif
