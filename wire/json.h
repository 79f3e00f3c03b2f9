// SPDX-License-Identifier: MIT
/* Writes a JSON document into a buffer of fixed size. */
#ifndef CUDAPOOL_WIRE_JSON_H
#define CUDAPOOL_WIRE_JSON_H

#include <stdbool.h>
#include <stddef.h>

/*
 * struct cudapool_json j = { out, size };
 * Commas and escapes are its own business. `key` is NULL inside an array and for the outermost value. What does not
 * fit is dropped, and cudapool_json_end() says so. No allocation.
 */
struct cudapool_json {
	char *out;
	size_t size;
	size_t used;
	bool overflow;
	bool comma; /* one is due before the next value */
};

void cudapool_json_open(struct cudapool_json *j, const char *key, char bracket); /* '{' or '[' */
void cudapool_json_close(struct cudapool_json *j, char bracket);                 /* '}' or ']' */
void cudapool_json_number(struct cudapool_json *j, const char *key, long long number);
void cudapool_json_bool(struct cudapool_json *j, const char *key, bool value);
void cudapool_json_null(struct cudapool_json *j, const char *key);

/* Any bytes: quotes and control characters are escaped, what is not UTF-8 becomes U+FFFD. */
void cudapool_json_string(struct cudapool_json *j, const char *key, const char *string);

/* Ends the text with NUL. Its length, or -ENOBUFS (and then an empty text). */
int cudapool_json_end(struct cudapool_json *j);

#endif
