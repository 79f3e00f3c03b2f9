// SPDX-License-Identifier: MIT
/* Reads the options of wire/options.def from the environment and the configuration file. */
#ifndef CUDAPOOL_WIRE_OPTIONS_H
#define CUDAPOOL_WIRE_OPTIONS_H

#include <stdbool.h>
#include <stddef.h>

#include "message.h" /* CUDAPOOL_TEXT_LEN */

#define CUDAPOOL_CONFIG_DEFAULT "/etc/cudapool/cudapool.conf"
#define CUDAPOOL_CONFIG_MAX     65536 /* bytes of the longest configuration file */
#define CUDAPOOL_OPTIONS_JSON   32768 /* bytes that suffice for cudapool_options_json() with ordinary values */

/* The readers of options.def, for the mask of cudapool_options_read(). */
enum cudapool_option_reader {
	CUDAPOOL_READER_POOL = 1,
	CUDAPOOL_READER_SHIM = 2,
	CUDAPOOL_READER_PLUGIN = 4, /* the drop-in cuda-checkpoint as well */
	CUDAPOOL_READER_HARNESS = 8,
};

/* One index per option: CUDAPOOL_OPTION_socket and so on. */
enum cudapool_option {
#define OPTION(name, environment, type, fallback, min, max, readers, text) CUDAPOOL_OPTION_##name,
#include "options.def"
#undef OPTION
	CUDAPOOL_OPTION_COUNT
};

enum cudapool_option_source {
	CUDAPOOL_SOURCE_DEFAULT = 0,
	CUDAPOOL_SOURCE_FILE = 1,
	CUDAPOOL_SOURCE_ENVIRONMENT = 2,
};

/* One field per option, named as in the table: `int` for BOOL and NUMBER, a NUL-ended char[max + 1] for STRING. */
struct cudapool_options {
#define CUDAPOOL_FIELD_BOOL(name, max)                                     int name;
#define CUDAPOOL_FIELD_NUMBER(name, max)                                   int name;
#define CUDAPOOL_FIELD_STRING(name, max)                                   char name[(max) + 1];
#define OPTION(name, environment, type, fallback, min, max, readers, text) CUDAPOOL_FIELD_##type(name, max)
#include "options.def"
#undef OPTION
	unsigned char source[CUDAPOOL_OPTION_COUNT]; /* enum cudapool_option_source */
};

/*
 * Fills in *o: for each option of `readers` (a mask) the environment, else the file, else the default;
 * for all others the default. An empty value counts as none. A process with raised privileges
 * (AT_SECURE) ignores its environment. No allocation, no stdio stream, no lock.
 *
 * use_file: read CUDAPOOL_CONFIG or, where that is not set, CUDAPOOL_CONFIG_DEFAULT, which may be
 * absent; CUDAPOOL_CONFIG=/dev/null is no file. The first thing wrong ends the reading: a negative errno, and `text`
 * (CUDAPOOL_TEXT_LEN bytes) names the option, the value, where it stands and what is allowed.
 *
 * !use_file is for the shim, which must never stop its host: a bad value is replaced by its
 * default, the result is 0, and `text` says so. `text` is empty if nothing was wrong.
 */
int cudapool_options_read(struct cudapool_options *o, unsigned readers, bool use_file, char *text);

/*
 * Writes the table as a JSON array of {name, environment, type, default, min, max, readers, text},
 * and, unless o is NULL, {value, source}; NUL ended. The length, or -ENOBUFS.
 */
int cudapool_options_json(const struct cudapool_options *o, char *json, size_t size);

/* enum cudapool_hot (message.h) for the value of CUDAPOOL_HOT; -EINVAL: it is none of those, and `text` says so. */
int cudapool_options_hot(const struct cudapool_options *o, char *text);

/* "environment", "file" or "default". */
const char *cudapool_option_source_name(const struct cudapool_options *o, enum cudapool_option option);

#endif
