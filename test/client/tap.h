// SPDX-License-Identifier: MIT
/* The few lines of TAP that a C test program needs. */
#ifndef CUDAPOOL_TEST_CLIENT_TAP_H
#define CUDAPOOL_TEST_CLIENT_TAP_H

#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>

#include "leaks.h"

static int tap_count, tap_failed;

/* One test point, of any thread; `...` is its name, as for printf. */
static inline bool __attribute__((format(printf, 2, 3))) ok(bool passed, const char *name, ...)
{
	va_list args;

	flockfile(stdout);
	printf("%sok %d - ", passed ? "" : "not ", ++tap_count);
	va_start(args, name);
	vprintf(name, args);
	va_end(args);
	printf("\n");
	fflush(stdout);
	tap_failed += !passed;
	funlockfile(stdout);
	return passed;
}

static inline void __attribute__((format(printf, 1, 2))) note(const char *format, ...)
{
	va_list args;

	printf("# ");
	va_start(args, format);
	vprintf(format, args);
	va_end(args);
	printf("\n");
	fflush(stdout);
}

static inline int tap_end(void)
{
	printf("1..%d\n", tap_count);
	return tap_failed || !tap_count;
}

#endif
