// SPDX-License-Identifier: MIT
/* The workload's side of protocol.h: seeing a question, writing the answer. For C, and for C++ as nvcc compiles it. */
#ifndef CUDAPOOL_WORKLOADS_ASKED_H
#define CUDAPOOL_WORKLOADS_ASKED_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/stat.h>

#include "protocol.h"

#ifdef __cplusplus
extern "C" {
#endif

struct asked {
	struct stat seen; /* of the file that was read last */
	char nonce[WORKLOAD_NONCE_MAX + 1];
	bool refill;
	uint32_t seed;
};

struct answer {
	char text[WORKLOAD_ANSWER_MAX];
	int length;
};

/* Says why on stderr, and ends the process. */
void fail(const char *format, ...) __attribute__((format(printf, 1, 2), noreturn));

/* Microseconds of wall clock. */
uint64_t wall_us(void);

/* True if there is a question at `path` (DIR/ask) that was not answered yet. */
bool new_question(const char *path, struct asked *asked);

/* Adds to an answer, which begins as {0}. */
void append(struct answer *answer, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Process `index` of the tree answers in `dir`. */
void write_answer(const char *dir, unsigned index, const struct answer *answer);

#ifdef __cplusplus
}
#endif
#endif
