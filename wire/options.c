// SPDX-License-Identifier: MIT
/* Reads the options of wire/options.def from the environment and the configuration file. */
#include "options.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define LINE_MAX_BYTES 4352 /* the longest value, its name, and a little blank space */
#define SHOWN_BYTES    48   /* of a bad value, in a message */

enum type { BOOL, NUMBER, STRING };

/* The short names that options.def uses. */
enum {
	POOL = CUDAPOOL_READER_POOL,
	SHIM = CUDAPOOL_READER_SHIM,
	PLUGIN = CUDAPOOL_READER_PLUGIN,
	HARNESS = CUDAPOOL_READER_HARNESS,
};

struct option {
	const char *name, *environment, *fallback, *text;
	enum type type;
	unsigned readers;
	long min, max;
	size_t offset;
};

static const struct option table[CUDAPOOL_OPTION_COUNT] = {
#define OPTION(name, environment, type, fallback, min, max, readers, text)                                             \
	{#name, environment, fallback, text, type, readers, min, max, offsetof(struct cudapool_options, name)},
#include "options.def"
#undef OPTION
};

static void __attribute__((format(printf, 2, 3))) say(char *text, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vsnprintf(text, CUDAPOOL_TEXT_LEN, format, args);
	va_end(args);
}

/* A piece of input as a message may show it: short, one line, printable. */
static const char *shown(char out[SHOWN_BYTES + 4], const char *value, size_t length)
{
	size_t i, n = length < SHOWN_BYTES ? length : SHOWN_BYTES;

	for (i = 0; i < n; i++)
		out[i] = value[i] >= ' ' && value[i] <= '~' ? value[i] : '?';
	memcpy(out + n, n < length ? "..." : "", n < length ? 4 : 1);
	return out;
}

/* Decimal digits with an optional minus, and nothing else: no blanks, no locale, no overflow. */
static bool parse_number(const char *value, size_t length, long min, long max, int *number)
{
	bool negative = length > 0 && value[0] == '-';
	size_t i = negative ? 1 : 0;
	long n = 0;

	if (i == length || length - i > 9)
		return false;
	for (; i < length; i++) {
		if (value[i] < '0' || value[i] > '9')
			return false;
		n = n * 10 + (value[i] - '0');
	}
	if (negative)
		n = -n;
	if (n < min || n > max)
		return false;
	*number = (int)n;
	return true;
}

static bool parse_string(const char *value, size_t length, long min, long max, char *string)
{
	size_t i;

	if ((long)length < min || (long)length > max)
		return false;
	for (i = 0; i < length; i++)
		if ((unsigned char)value[i] < ' ' || value[i] == 127)
			return false;
	memcpy(string, value, length);
	string[length] = '\0';
	return true;
}

/* Puts a checked value into its field; the field stays as it was if the value is not allowed. */
static bool set(struct cudapool_options *o, const struct option *option, const char *value, size_t length)
{
	void *field = (char *)o + option->offset;

	if (option->type == STRING)
		return parse_string(value, length, option->min, option->max, field);
	return parse_number(value, length, option->min, option->max, field);
}

static void allowed(const struct option *option, char *out, size_t size)
{
	switch (option->type) {
	case BOOL:
		snprintf(out, size, "0 or 1");
		break;
	case NUMBER:
		snprintf(out, size, "a whole number from %ld to %ld", option->min, option->max);
		break;
	case STRING:
		snprintf(out, size, "at most %ld bytes without control characters", option->max);
		break;
	}
}

static void say_bad_value(char *text, const struct option *option, const char *value, size_t length, const char *where,
			  const char *consequence)
{
	char what[SHOWN_BYTES + 4], permitted[64];

	allowed(option, permitted, sizeof(permitted));
	say(text, "%s is '%s' (%s), allowed is %s%s", option->environment, shown(what, value, length), where, permitted,
	    consequence);
}

/* How many characters must be changed, added or left out to come from one name to the other. */
static unsigned distance(const char *a, size_t length, const char *b)
{
	unsigned row[64], diagonal, above, best;
	size_t i, j, width = strlen(b);

	if (width >= sizeof(row) / sizeof(row[0]))
		return UINT32_MAX;
	for (j = 0; j <= width; j++)
		row[j] = j;
	for (i = 0; i < length; i++) {
		diagonal = row[0];
		row[0] = i + 1;
		for (j = 0; j < width; j++) {
			above = row[j + 1];
			best = diagonal + (toupper((unsigned char)a[i]) != b[j]);
			if (above + 1 < best)
				best = above + 1;
			if (row[j] + 1 < best)
				best = row[j] + 1;
			diagonal = above;
			row[j + 1] = best;
		}
	}
	return row[width];
}

static const struct option *find(const char *name, size_t length)
{
	size_t i;

	for (i = 0; i < CUDAPOOL_OPTION_COUNT; i++)
		if (strlen(table[i].environment) == length && !memcmp(table[i].environment, name, length))
			return &table[i];
	return NULL;
}

static void say_unknown(char *text, const char *where, const char *name, size_t length)
{
	unsigned best = 5, d; /* more changes than that are another name */
	const char *nearest = NULL;
	char what[SHOWN_BYTES + 4];
	size_t i;

	for (i = 0; i < CUDAPOOL_OPTION_COUNT && length < 64; i++) {
		d = distance(name, length, table[i].environment);
		if (d < best) {
			best = d;
			nearest = table[i].environment;
		}
	}
	if (nearest)
		say(text, "%s: there is no option '%s'; did you mean %s?", where, shown(what, name, length), nearest);
	else
		say(text, "%s: there is no option '%s'; 'cudapoold --options' lists them", where,
		    shown(what, name, length));
}

static void trim(const char **text, size_t *length)
{
	while (*length && (**text == ' ' || **text == '\t')) {
		(*text)++;
		(*length)--;
	}
	while (*length && ((*text)[*length - 1] == ' ' || (*text)[*length - 1] == '\t' || (*text)[*length - 1] == '\r'))
		(*length)--;
}

/* Cuts off a comment: '#' at the start of the line or after a blank, so that a path may contain one. */
static size_t without_comment(const char *line, size_t length)
{
	size_t i;

	for (i = 0; i < length; i++)
		if (line[i] == '#' && (i == 0 || line[i - 1] == ' ' || line[i - 1] == '\t'))
			return i;
	return length;
}

static int parse_line(struct cudapool_options *o, unsigned readers, const char *where, unsigned number, unsigned *seen,
		      const char *line, size_t length, char *text)
{
	const struct option *option;
	const char *name = line, *value, *equals;
	size_t name_length, value_length, i;
	char what[SHOWN_BYTES + 4];

	for (i = 0; i < length; i++) {
		if ((unsigned char)line[i] >= ' ' || line[i] == '\t' || (line[i] == '\r' && i + 1 == length))
			continue;
		say(text, "%s: byte 0x%02x does not belong in a text file: it is damaged, or not a configuration file",
		    where, (unsigned char)line[i]);
		return -EBADMSG;
	}
	if (length > LINE_MAX_BYTES) {
		say(text, "%s: the line has %zu bytes, allowed are %d", where, length, LINE_MAX_BYTES);
		return -EBADMSG;
	}

	length = without_comment(line, length);
	trim(&name, &length);
	if (!length)
		return 0;
	equals = memchr(name, '=', length);
	if (!equals) {
		say(text, "%s: expected NAME=VALUE, found '%s'", where, shown(what, name, length));
		return -EBADMSG;
	}
	value = equals + 1;
	value_length = name + length - value;
	name_length = equals - name;
	trim(&name, &name_length);
	trim(&value, &value_length);

	option = find(name, name_length);
	if (!option) {
		say_unknown(text, where, name, name_length);
		return -EINVAL;
	}
	if (seen[option - table]) {
		say(text, "%s: %s is set a second time, line %u sets it already: remove one of the two", where,
		    option->environment, seen[option - table]);
		return -EINVAL;
	}
	seen[option - table] = number;

	if (!(option->readers & readers) || !value_length)
		return 0;
	if (value[0] == '"' || value[0] == '\'') {
		say(text, "%s: write the value of %s without quotes", where, option->environment);
		return -EINVAL;
	}
	if (!set(o, option, value, value_length)) {
		say_bad_value(text, option, value, value_length, where, "");
		return -EINVAL;
	}
	o->source[option - table] = CUDAPOOL_SOURCE_FILE;
	return 0;
}

/* Only what the caller or root wrote: the file names a program and a library that root will run. */
static int check_file(int fd, const char *path, char *text)
{
	struct stat st;

	if (fstat(fd, &st)) {
		int error = -errno;

		say(text, "%.160s: cannot be examined: %s", path, strerror(errno));
		return error;
	}
	if (!S_ISREG(st.st_mode)) {
		say(text, "%.160s is not a regular file; CUDAPOOL_CONFIG must name one", path);
		return -EINVAL;
	}
	if (st.st_uid != 0 && st.st_uid != geteuid()) {
		say(text, "%.120s belongs to user %u, it must be root's or your own: chown root %.60s", path, st.st_uid,
		    path);
		return -EPERM;
	}
	if ((st.st_mode & S_IWOTH) || ((st.st_mode & S_IWGRP) && st.st_gid != 0 && st.st_gid != getegid())) {
		say(text, "%.120s may be written by others (mode %04o): chmod go-w %.60s", path, st.st_mode & 07777,
		    path);
		return -EPERM;
	}
	if (st.st_size > CUDAPOOL_CONFIG_MAX) {
		say(text, "%.120s has %lld bytes, a configuration file has at most %d: is it the right file?", path,
		    (long long)st.st_size, CUDAPOOL_CONFIG_MAX);
		return -EFBIG;
	}
	return 0;
}

/* The length, at most `size`; the file may have grown since it was checked. */
static ssize_t read_all(int fd, char *buffer, size_t size)
{
	size_t used = 0;
	ssize_t n;

	while (used < size) {
		n = read(fd, buffer + used, size - used);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		if (n == 0)
			break;
		used += n;
	}
	return used;
}

static int read_file(struct cudapool_options *o, unsigned readers, char *text)
{
	const char *named = secure_getenv("CUDAPOOL_CONFIG"), *path, *line, *end, *newline;
	unsigned seen[CUDAPOOL_OPTION_COUNT] = {}, number;
	char buffer[CUDAPOOL_CONFIG_MAX + 1], where[128];
	ssize_t length;
	int fd, ret;

	path = named && *named ? named : CUDAPOOL_CONFIG_DEFAULT;
	if (!strcmp(path, "/dev/null"))
		return 0;
	/* Non-blocking, so that a FIFO or a device is refused instead of waited for. */
	fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	if (fd < 0) {
		ret = -errno;
		if (ret == -ENOENT && path != named)
			return 0;
		say(text, "%.140s: %s; %s", path, strerror(-ret),
		    path == named ? "correct CUDAPOOL_CONFIG or unset it" : "correct its permissions or remove it");
		return ret;
	}
	ret = check_file(fd, path, text);
	if (ret == 0) {
		length = read_all(fd, buffer, sizeof(buffer));
		if (length < 0 || length > CUDAPOOL_CONFIG_MAX) {
			ret = length < 0 ? (int)length : -EFBIG;
			say(text, "%.160s: cannot be read: %s", path, strerror(-ret));
		}
	}
	close(fd);
	if (ret)
		return ret;

	end = buffer + length;
	for (line = buffer, number = 1; line < end; line = newline + 1, number++) {
		newline = memchr(line, '\n', end - line);
		if (!newline)
			newline = end;
		snprintf(where, sizeof(where), "%.100s:%u", path, number);
		ret = parse_line(o, readers, where, number, seen, line, newline - line, text);
		if (ret)
			return ret;
	}
	return 0;
}

int cudapool_options_read(struct cudapool_options *o, unsigned readers, bool use_file, char *text)
{
	const char *value;
	size_t i, length;
	int ret;

	text[0] = '\0';
	memset(o, 0, sizeof(*o));
	for (i = 0; i < CUDAPOOL_OPTION_COUNT; i++)
		set(o, &table[i], table[i].fallback, strlen(table[i].fallback));

	if (use_file) {
		ret = read_file(o, readers, text);
		if (ret)
			return ret;
	}

	for (i = 0; i < CUDAPOOL_OPTION_COUNT; i++) {
		if (!(table[i].readers & readers))
			continue;
		value = secure_getenv(table[i].environment);
		if (!value || !*value)
			continue;
		length = strlen(value);
		if (set(o, &table[i], value, length)) {
			o->source[i] = CUDAPOOL_SOURCE_ENVIRONMENT;
			continue;
		}
		if (use_file) {
			say_bad_value(text, &table[i], value, length, "environment", "");
			return -EINVAL;
		}
		if (!text[0])
			say_bad_value(text, &table[i], value, length, "environment", "; its default is used");
	}
	return 0;
}

int cudapool_options_hot(const struct cudapool_options *o, char *text)
{
	static const char *const names[] = {
		[CUDAPOOL_HOT_AUTO] = "auto",
		[CUDAPOOL_HOT_MOVE] = "move",
		[CUDAPOOL_HOT_COPY] = "copy",
		[CUDAPOOL_HOT_OFF] = "off",
	};
	size_t i;

	for (i = 0; i < sizeof(names) / sizeof(names[0]); i++)
		if (!strcmp(o->hot, names[i]))
			return (int)i;
	say(text, "CUDAPOOL_HOT is '%s' (%s), allowed is auto, move, copy or off", o->hot,
	    cudapool_option_source_name(o, CUDAPOOL_OPTION_hot));
	return -EINVAL;
}

const char *cudapool_option_source_name(const struct cudapool_options *o, enum cudapool_option option)
{
	static const char *const names[] = {"default", "file", "environment"};

	return names[o->source[option]];
}
