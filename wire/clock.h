// SPDX-License-Identifier: MIT
/* The clock of every time limit: it neither jumps nor stops. */
#ifndef CUDAPOOL_WIRE_CLOCK_H
#define CUDAPOOL_WIRE_CLOCK_H

#include <stdint.h>
#include <time.h>

/* Milliseconds since some moment before this process began. */
static inline int64_t cudapool_now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000LL + ts.tv_nsec / 1000000;
}

#endif
