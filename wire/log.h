// SPDX-License-Identifier: MIT
/* Log lines of the pool and the shim: one write(2) each, no allocation, no stdio stream. */
#ifndef CUDAPOOL_WIRE_LOG_H
#define CUDAPOOL_WIRE_LOG_H

#include <stdarg.h>

enum cudapool_log_level {
	CUDAPOOL_LOG_NONE = 0,
	CUDAPOOL_LOG_ERR = 1,    /* something that a person must act upon, or that made us go a slower way */
	CUDAPOOL_LOG_INFO = 2,   /* what happened, a few lines per dump or restore */
	CUDAPOOL_LOG_ACTION = 3, /* each action and each command */
	CUDAPOOL_LOG_DEBUG = 4,  /* everything */
};

/* Lines go to `fd` up to `level`; the file descriptor stays the caller's. Before the first call nothing is logged. */
void cudapool_log_to(int fd, enum cudapool_log_level level);

/* "cudapool[PID]: " and the message, cut at 512 bytes; a newline is added. errno is left alone. */
void cudapool_log(enum cudapool_log_level level, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* The same to any `fd`, with any prefix, whatever the level. */
void cudapool_log_line(int fd, const char *prefix, const char *format, va_list args)
	__attribute__((format(printf, 3, 0)));

#endif
