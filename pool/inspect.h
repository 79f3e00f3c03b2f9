// SPDX-License-Identifier: MIT
/* What an image says of itself, and whether all of it is as it was written. Needs no pool and no driver. */
#ifndef CUDAPOOL_POOL_INSPECT_H
#define CUDAPOOL_POOL_INSPECT_H

#include <stdbool.h>

/*
 * Prints a JSON document on the standard output: header and pieces; with `verify`, after every block was read by
 * several threads and compared with its checksum (and then how fast). `error` (0 or a negative errno) and `text` say
 * what is wrong. Long readings tell their progress on the standard error. Returns `error`.
 */
int inspect_image(const char *path, bool verify);

#endif
