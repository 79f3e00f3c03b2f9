// SPDX-License-Identifier: MIT
/* wire/options.c: the environment, the file, the defaults, and everything that can be wrong with them. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "options.h"
#include "tap.h"

#define ALL (CUDAPOOL_READER_POOL | CUDAPOOL_READER_SHIM | CUDAPOOL_READER_PLUGIN | CUDAPOOL_READER_HARNESS)

static char directory[] = "/tmp/cudapool-options-XXXXXX", path[64], text[CUDAPOOL_TEXT_LEN];
static struct cudapool_options o;

static void write_file(const void *bytes, size_t n)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);

	if (fd < 0 || write(fd, bytes, n) != (ssize_t)n || fchmod(fd, 0600))
		ok(false, "writing %s: %s", path, strerror(errno));
	close(fd);
}

static int read_with(const char *content)
{
	write_file(content, strlen(content));
	return cudapool_options_read(&o, ALL, true, text);
}

static void defaults(void)
{
	char config[32] = "";

	setenv("CUDAPOOL_CONFIG", config, 1); /* empty: the default file */
	if (access(CUDAPOOL_CONFIG_DEFAULT, F_OK)) {
		ok(cudapool_options_read(&o, ALL, true, text) == 0 && !text[0], "no file and no variable: %s", text);
		ok(o.source[CUDAPOOL_OPTION_socket] == CUDAPOOL_SOURCE_DEFAULT, "the source is the default");
	}
	ok(cudapool_options_read(&o, 0, false, text) == 0, "defaults alone");
	ok(!strcmp(o.socket, CUDAPOOL_SOCKET_DEFAULT), "the table's socket is the one of message.h");
	ok(o.threads == 16 && o.parallel_restore == -1 && !o.context_pool && !strcmp(o.warm, "restore"),
	   "as in the table");
	setenv("CUDAPOOL_CONFIG", path, 1);
}

/* Every default must be a value that the option itself would accept. */
static void defaults_are_allowed(void)
{
	char bad[512] = "", value[4200];

#define OPTION(name, environment, type, fallback, min, max, readers, text_)                                            \
	write_file("", 0);                                                                                             \
	setenv(environment, fallback, 1);                                                                              \
	if (cudapool_options_read(&o, ALL, true, text))                                                                \
		snprintf(bad, sizeof(bad), "%s: %s", environment, text);                                               \
	unsetenv(environment);
#include "options.def"
#undef OPTION
	ok(!bad[0], "each default is within its bounds %s", bad);

#define BOOL   1
#define NUMBER 1
#define STRING 0
#define OPTION(name, environment, type, fallback, min, max, readers, text_)                                            \
	if (type)                                                                                                      \
		snprintf(value, sizeof(value), "%ld", (long)(max) + 1);                                                \
	else                                                                                                           \
		memset(value, 'x', (max) + 1), value[(max) + 1] = '\0';                                                \
	setenv(environment, value, 1);                                                                                 \
	if (cudapool_options_read(&o, ALL, true, text) != -EINVAL || !strstr(text, environment))                       \
		snprintf(bad, sizeof(bad), "%s took more than its maximum", environment);                              \
	unsetenv(environment);
#include "options.def"
#undef OPTION
	ok(!bad[0], "each option refuses more than its maximum, and names itself %s", bad);
}

static void order(void)
{
	ok(read_with("# a comment\n\n  CUDAPOOL_THREADS = 3  # another\r\nCUDAPOOL_SOCKET=/tmp/a#b") == 0 &&
		   o.threads == 3,
	   "the file: blanks, comments, CR, no newline at its end (%s)", text);
	ok(!strcmp(o.socket, "/tmp/a#b"), "'#' within a word is no comment");
	ok(!strcmp(cudapool_option_source_name(&o, CUDAPOOL_OPTION_threads), "file"), "the source is the file");

	setenv("CUDAPOOL_THREADS", "5", 1);
	ok(read_with("CUDAPOOL_THREADS=3\n") == 0 && o.threads == 5, "the environment comes before the file");
	ok(!strcmp(cudapool_option_source_name(&o, CUDAPOOL_OPTION_threads), "environment"), "and is the source");
	setenv("CUDAPOOL_THREADS", "", 1);
	ok(read_with("CUDAPOOL_THREADS=3\n") == 0 && o.threads == 3, "an empty variable is as good as none");
	unsetenv("CUDAPOOL_THREADS");
	ok(read_with("CUDAPOOL_THREADS=\n") == 0 && o.threads == 16, "so is an empty value in the file");

	write_file("CUDAPOOL_WARM_DEVICE=7777\nCUDAPOOL_THREADS=4\n", 45);
	ok(cudapool_options_read(&o, CUDAPOOL_READER_POOL, true, text) == 0 && o.threads == 4,
	   "a bad value of another reader's option does no harm");
}

static void values(void)
{
	static const struct {
		const char *line, *says;
		int ret;
	} table[] = {
		{"CUDAPOOL_THREADS=64", "", 0},
		{"CUDAPOOL_THREADS=65", "allowed is a whole number from 1 to 64", -EINVAL},
		{"CUDAPOOL_THREADS=0", "'0'", -EINVAL},
		{"CUDAPOOL_THREADS=-1", "'-1'", -EINVAL},
		{"CUDAPOOL_THREADS=+1", "'+1'", -EINVAL},
		{"CUDAPOOL_THREADS=1.5", "'1.5'", -EINVAL},
		{"CUDAPOOL_THREADS=0x10", "'0x10'", -EINVAL},
		{"CUDAPOOL_THREADS=1 2", "'1 2'", -EINVAL},
		{"CUDAPOOL_THREADS=four", "'four'", -EINVAL},
		{"CUDAPOOL_THREADS=18446744073709551617", "CUDAPOOL_THREADS", -EINVAL},
		{"CUDAPOOL_THREADS=-", "'-'", -EINVAL},
		{"CRIU_CUDA_PARALLEL_RESTORE=-1", "", 0},
		{"CRIU_CUDA_PARALLEL_RESTORE=-2", "from -1 to 1", -EINVAL},
		{"CRIU_CUDA_CONTEXT_POOL=1", "", 0},
		{"CRIU_CUDA_CONTEXT_POOL=2", "allowed is 0 or 1", -EINVAL},
		{"CRIU_CUDA_CONTEXT_POOL=yes", "allowed is 0 or 1", -EINVAL},
		{"CUDAPOOL_SOCKET=\"/run/x\"", "without quotes", -EINVAL},
		{"CUDAPOOL_GROUP=abcdefghijklmnopqrstuvwxyz0123456789", "at most 31 bytes", -EINVAL},
		{"CUDAPOOL_TREADS=3", "did you mean CUDAPOOL_THREADS?", -EINVAL},
		{"cudapool_socket=/x", "did you mean CUDAPOOL_SOCKET?", -EINVAL},
		{"NOTHING_LIKE_IT=3", "cudapoold --options", -EINVAL},
		{"CUDAPOOL_THREADS", "expected NAME=VALUE", -EBADMSG},
		{"=3", "there is no option ''", -EINVAL},
		{"CUDAPOOL_LOG=1\nCUDAPOOL_LOG=2", ":2: CUDAPOOL_LOG is set a second time, line 1", -EINVAL},
		{"CUDAPOOL_LOG=1\n\n#\nCUDAPOOL_LOG_FILE=a\x01z", ":4: byte 0x01", -EBADMSG},
		{"CUDAPOOL_LOG=\x1b[31m", "byte 0x1b", -EBADMSG},
		{"CUDAPOOL_LOG=\xff\xff", "'?\?'", -EINVAL},
	};
	size_t i;

	for (i = 0; i < sizeof(table) / sizeof(table[0]); i++) {
		int ret = read_with(table[i].line);

		ok(ret == table[i].ret && strstr(text, table[i].says) && (ret == 0) == !text[0] &&
			   (ret == 0 || strstr(text, path)),
		   "line %zu: %d %s", i, ret, text);
	}
}

static void damaged_files(void)
{
	static char big[CUDAPOOL_CONFIG_MAX + 2];
	char fifo[64];
	int i;

	write_file("CUDAPOOL_LOG=1\n\0\0\0", 18);
	ok(cudapool_options_read(&o, ALL, true, text) == -EBADMSG && strstr(text, ":2: byte 0x00"), "NUL bytes: %s",
	   text);
	write_file("\x7f"
		   "ELF\x02\x01\x01",
		   7);
	ok(cudapool_options_read(&o, ALL, true, text) == -EBADMSG, "a binary: %s", text);
	memset(big, 'x', sizeof(big));
	write_file(big, 5000);
	ok(cudapool_options_read(&o, ALL, true, text) == -EBADMSG && strstr(text, "5000 bytes"), "a long line: %s",
	   text);
	write_file(big, CUDAPOOL_CONFIG_MAX + 1);
	ok(cudapool_options_read(&o, ALL, true, text) == -EFBIG, "a large file: %s", text);
	for (i = 0; i < CUDAPOOL_CONFIG_MAX; i++)
		big[i] = i % 64 == 63 ? '\n' : '#';
	write_file(big, CUDAPOOL_CONFIG_MAX);
	ok(cudapool_options_read(&o, ALL, true, text) == 0, "the largest file allowed %s", text);

	write_file("CUDAPOOL_LOG=2\n", 15);
	chmod(path, 0602);
	ok(cudapool_options_read(&o, ALL, true, text) == -EPERM && strstr(text, "chmod go-w"), "world-writable: %s",
	   text);
	chmod(path, 0600);
	if (geteuid() == 0) {
		if (chown(path, 12345, -1))
			ok(false, "chown: %s", strerror(errno));
		ok(cudapool_options_read(&o, ALL, true, text) == -EPERM && strstr(text, "12345"), "a stranger's: %s",
		   text);
		if (chown(path, 0, 12345) || chmod(path, 0620))
			ok(false, "chown: %s", strerror(errno));
		ok(cudapool_options_read(&o, ALL, true, text) == -EPERM, "a strange group may write: %s", text);
		unlink(path);
	}

	setenv("CUDAPOOL_CONFIG", directory, 1);
	ok(cudapool_options_read(&o, ALL, true, text) == -EINVAL && strstr(text, "regular"), "a directory: %s", text);
	setenv("CUDAPOOL_CONFIG", "/dev/zero", 1);
	ok(cudapool_options_read(&o, ALL, true, text) == -EINVAL, "a device: %s", text);
	setenv("CUDAPOOL_CONFIG", "/dev/null", 1);
	ok(cudapool_options_read(&o, ALL, true, text) == 0 && !text[0], "/dev/null is no file");
	snprintf(fifo, sizeof(fifo), "%s/fifo", directory);
	mkfifo(fifo, 0600);
	setenv("CUDAPOOL_CONFIG", fifo, 1);
	ok(cudapool_options_read(&o, ALL, true, text) == -EINVAL, "a FIFO, without waiting for its other end: %s",
	   text);
	unlink(fifo);
	setenv("CUDAPOOL_CONFIG", "/nonexistent/cudapool.conf", 1);
	ok(cudapool_options_read(&o, ALL, true, text) == -ENOENT && strstr(text, "CUDAPOOL_CONFIG"), "absent: %s",
	   text);
	setenv("CUDAPOOL_CONFIG", path, 1);
}

/* In the shim a bad value must not stop the host. */
static void lenient(void)
{
	setenv("CUDAPOOL_WARM_DEVICE", "99", 1);
	setenv("CUDAPOOL_LOG", "2", 1);
	write_file("CUDAPOOL_LOG=4\n", 15);
	ok(cudapool_options_read(&o, CUDAPOOL_READER_SHIM, false, text) == 0 && o.warm_device == 0 && o.log == 2,
	   "the shim goes on with the default, and reads no file");
	ok(strstr(text, "CUDAPOOL_WARM_DEVICE is '99'") && strstr(text, "default is used"), "and says so: %s", text);
	unsetenv("CUDAPOOL_WARM_DEVICE");
	ok(cudapool_options_read(&o, CUDAPOOL_READER_SHIM, false, text) == 0 && !text[0], "silent when all is well");
	unsetenv("CUDAPOOL_LOG");
}

/* What CUDAPOOL_HOT may be is more than a string. */
static void hot(void)
{
	static const struct {
		const char *value;
		int is;
	} table[] = {{"auto", CUDAPOOL_HOT_AUTO}, {"move", CUDAPOOL_HOT_MOVE}, {"copy", CUDAPOOL_HOT_COPY},
		     {"off", CUDAPOOL_HOT_OFF},	  {"mov", -EINVAL},	       {"OFF", -EINVAL}};
	size_t i;

	for (i = 0; i < sizeof(table) / sizeof(table[0]); i++) {
		setenv("CUDAPOOL_HOT", table[i].value, 1);
		ok(cudapool_options_read(&o, ALL, true, text) == 0 && cudapool_options_hot(&o, text) == table[i].is,
		   "CUDAPOOL_HOT=%s: %s", table[i].value, text);
	}
	ok(strstr(text, "CUDAPOOL_HOT is 'OFF' (environment), allowed is auto, move, copy or off"), "and says so");
	unsetenv("CUDAPOOL_HOT");
}

static void json(void)
{
	static char out[CUDAPOOL_OPTIONS_JSON];
	int length;

	setenv("CUDAPOOL_LOG_FILE", "/tmp/\"q\"\\\xff\xc3\xa9", 1);
	write_file("CUDAPOOL_THREADS=3\n", 19);
	ok(cudapool_options_read(&o, ALL, true, text) == 0, "read %s", text);
	unsetenv("CUDAPOOL_LOG_FILE");
	length = cudapool_options_json(&o, out, sizeof(out));
	ok(length > 0 && (size_t)length == strlen(out), "%d bytes of JSON", length);
	ok(strstr(out, "\"environment\":\"CUDAPOOL_THREADS\",\"type\":\"NUMBER\",\"default\":\"16\",\"min\":1,\"max\":"
		       "64,\"readers\":[\"pool\",\"plugin\"]") &&
		   strstr(out, "\"value\":3,\"source\":\"file\""),
	   "names, bounds, value and source");
	ok(strstr(out, "\"value\":\"/tmp/\\\"q\\\"\\\\\xef\xbf\xbd\xc3\xa9\""), "strings are escaped, and are UTF-8");
	ok(cudapool_options_json(&o, out, 100) == -ENOBUFS && !out[0], "too small a buffer");
	ok(cudapool_options_json(NULL, out, sizeof(out)) > 0 && !strstr(out, "\"value\""), "the table alone");
}

int main(int argc, char **argv)
{
	if (argc == 2) { /* print the JSON, for the TypeScript side to parse */
		static char out[CUDAPOOL_OPTIONS_JSON];

		if (cudapool_options_read(&o, ALL, true, text) || cudapool_options_json(&o, out, sizeof(out)) < 0)
			return 1;
		return puts(out) < 0;
	}
	clearenv();
	if (!mkdtemp(directory))
		return 1;
	snprintf(path, sizeof(path), "%s/conf", directory);
	setenv("CUDAPOOL_CONFIG", path, 1);
	defaults();
	defaults_are_allowed();
	order();
	values();
	damaged_files();
	lenient();
	hot();
	json();
	unlink(path);
	rmdir(directory);
	return tap_end();
}
