// SPDX-License-Identifier: MIT
/* What went wrong, for people: the text that goes along with an error. */
#ifndef CUDAPOOL_POOL_TEXT_H
#define CUDAPOOL_POOL_TEXT_H

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "message.h"

/* Writes a new text over an old one, which may be among its own arguments. */
static inline __attribute__((format(printf, 2, 0))) void text_replace(char text[CUDAPOOL_TEXT_LEN], const char *format,
								      va_list args)
{
	char fresh[CUDAPOOL_TEXT_LEN];

	vsnprintf(fresh, sizeof(fresh), format, args);
	memcpy(text, fresh, sizeof(fresh));
}

#endif
