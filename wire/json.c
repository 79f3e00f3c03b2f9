// SPDX-License-Identifier: MIT
/* Writes a JSON document into a buffer of fixed size. */
#include "json.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

static void put(struct cudapool_json *j, const char *bytes, size_t n)
{
	if (j->overflow || n >= j->size - j->used) { /* one byte stays free for NUL */
		j->overflow = true;
		return;
	}
	memcpy(j->out + j->used, bytes, n);
	j->used += n;
}

/* The length of the valid UTF-8 sequence at `s`, 0 if there is none. */
static size_t utf8_length(const unsigned char *s)
{
	size_t n = s[0] < 0x80                   ? 1
		   : s[0] >= 0xc2 && s[0] < 0xe0 ? 2
		   : (s[0] & 0xf0) == 0xe0       ? 3
		   : s[0] >= 0xf0 && s[0] < 0xf5 ? 4
						 : 0;
	size_t i;

	for (i = 1; i < n; i++)
		if ((s[i] & 0xc0) != 0x80)
			return 0;
	if ((s[0] == 0xe0 && s[1] < 0xa0) || (s[0] == 0xed && s[1] >= 0xa0) || /* overlong, surrogates */
	    (s[0] == 0xf0 && s[1] < 0x90) || (s[0] == 0xf4 && s[1] >= 0x90))   /* overlong, beyond U+10FFFF */
		return 0;
	return n;
}

static void quoted(struct cudapool_json *j, const char *string)
{
	const unsigned char *s = (const unsigned char *)string;
	char escaped[8];
	size_t n;

	put(j, "\"", 1);
	while (*s) {
		n = utf8_length(s);
		if (n == 0) {
			put(j, "\xef\xbf\xbd", 3);
			n = 1;
		} else if (*s == '"' || *s == '\\') {
			put(j, (char[]){'\\', (char)*s}, 2);
		} else if (*s < ' ' || *s == 127) {
			put(j, escaped, snprintf(escaped, sizeof(escaped), "\\u%04x", *s));
		} else {
			put(j, (const char *)s, n);
		}
		s += n;
	}
	put(j, "\"", 1);
}

static void begin(struct cudapool_json *j, const char *key)
{
	if (j->comma)
		put(j, ",", 1);
	j->comma = true;
	if (key) {
		quoted(j, key);
		put(j, ":", 1);
	}
}

void cudapool_json_open(struct cudapool_json *j, const char *key, char bracket)
{
	begin(j, key);
	put(j, &bracket, 1);
	j->comma = false;
}

void cudapool_json_close(struct cudapool_json *j, char bracket)
{
	put(j, &bracket, 1);
	j->comma = true;
}

void cudapool_json_number(struct cudapool_json *j, const char *key, long long number)
{
	char digits[24];

	begin(j, key);
	put(j, digits, snprintf(digits, sizeof(digits), "%lld", number));
}

void cudapool_json_bool(struct cudapool_json *j, const char *key, bool value)
{
	begin(j, key);
	put(j, value ? "true" : "false", value ? 4 : 5);
}

void cudapool_json_null(struct cudapool_json *j, const char *key)
{
	begin(j, key);
	put(j, "null", 4);
}

void cudapool_json_string(struct cudapool_json *j, const char *key, const char *string)
{
	begin(j, key);
	quoted(j, string);
}

int cudapool_json_end(struct cudapool_json *j)
{
	if (j->overflow || !j->size) {
		if (j->size)
			j->out[0] = '\0';
		return -ENOBUFS;
	}
	j->out[j->used] = '\0';
	return (int)j->used;
}
