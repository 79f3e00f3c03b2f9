// SPDX-License-Identifier: MIT
/* wire/client.c against a scripted server that answers well, badly, late or not at all. */
#include "client.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "clock.h"
#include "fake_pool.h"
#include "tap.h"

static char directory[] = "/tmp/cudapool-client-XXXXXX", path[64];

static bool one_line(const char *text)
{
	return text[0] && !strchr(text, '\n') && strlen(text) < CUDAPOOL_TEXT_LEN;
}

/* A pool that behaves so, and what comes of it. */
struct turn {
	const char *name;
	void (*script)(int);
	int ret;
	const char *says;
};

static void connecting(void)
{
	static const struct turn table[] = {
		{"closes", s_closes, -ECONNRESET, "closed"},
		{"refuses", s_refuses, -EACCES, "you are nobody"},
		{"refuses before it reads", s_refuses_unread, -EACCES, "nobody asked you"},
		{"another version", s_other_version, -EPROTONOSUPPORT, "the pool 9.9-fake speaks version 9"},
		{"bad magic", s_bad_magic, -EPROTO, "no pool"},
		{"two bytes", s_short, -EPROTO, "2 bytes"},
		{"a byte less than announced", s_truncated, -EPROTO, "announced"},
		{"another size", s_wrong_size, -EPROTO, "bytes"},
		{"oversized", s_oversized, -EPROTO, "bytes"},
		{"an unknown type", s_unknown_type, -EPROTO, "unknown type 99"},
		{"another type", s_wrong_type, -EPROTO, "type 9"},
		{"another request number", s_wrong_request, -EPROTO, "never made"},
		{"an unknown worker state", s_bad_state, -EPROTO, "state 1000"},
		{"a positive error", s_positive_error, -EPROTO, "error 13"},
		{"strings without end", s_endless_strings, 0, "bbb"},
	};
	struct cudapool_hello hello = {.role = CUDAPOOL_ROLE_TOOL};
	struct cudapool_client c;
	int before = open_descriptors();
	size_t i;

	for (i = 0; i < sizeof(table) / sizeof(table[0]); i++) {
		pid_t server = serve(table[i].script);
		int ret = cudapool_client_connect(&c, path, &hello);

		ok(ret == table[i].ret && strstr(c.text, table[i].says) && one_line(c.text), "connect, %s: %d %s",
		   table[i].name, ret, c.text);
		if (ret == 0)
			ok(strlen(c.welcome.build) == CUDAPOOL_BUILD_LEN - 1 &&
				   strspn(c.welcome.text, " ") == CUDAPOOL_TEXT_LEN - 1,
			   "its strings end, and are one line");
		else
			ok(c.fd == -1, "and is closed");
		cudapool_client_close(&c);
		cudapool_client_close(&c);
		end(server);
	}
	ok(open_descriptors() == before, "no descriptor is left");
}

static void nobody_there(void)
{
	struct cudapool_hello hello = {.role = CUDAPOOL_ROLE_TOOL};
	struct cudapool_client c;
	char other[128], text[CUDAPOOL_TEXT_LEN];
	int fd = socket(AF_UNIX, SOCK_SEQPACKET, 0), ret;
	struct sockaddr_un a = {.sun_family = AF_UNIX};

	snprintf(other, sizeof(other), "%s/none", directory);
	ok(cudapool_client_connect(&c, other, &hello) == -ENOENT && strstr(c.text, "systemctl start"), "no socket: %s",
	   c.text);
	setenv("CUDAPOOL_SOCKET", other, 1);
	ok(cudapool_client_connect(&c, NULL, &hello) == -ENOENT && strstr(c.text, other), "as CUDAPOOL_SOCKET says");
	unsetenv("CUDAPOOL_SOCKET");

	snprintf(a.sun_path, sizeof(a.sun_path), "%s/dead", directory);
	bind(fd, (struct sockaddr *)&a, sizeof(a));
	close(fd);
	ok(cudapool_client_connect(&c, a.sun_path, &hello) == -ECONNREFUSED, "a socket that nobody serves: %s", c.text);
	unlink(a.sun_path);

	memset(other, 'x', sizeof(other));
	other[sizeof(other) - 1] = '\0';
	ok(cudapool_client_connect(&c, other, &hello) == -ENAMETOOLONG && c.fd == -1, "a long path: %s", c.text);
	ok(cudapool_client_begin(&c, CUDAPOOL_OP_STATE, 1, 0, &(uint32_t){0}) == -ENOTCONN, "an action unconnected");
	ok(cudapool_client_status(&c, text, sizeof(text), 10) == -ENOTCONN, "status unconnected: %s", c.text);

	if (geteuid() == 0) { /* served by a stranger: the kernel says so, whatever the path */
		pid_t child = fork();
		int status;

		if (child == 0) {
			snprintf(a.sun_path, sizeof(a.sun_path), "%s/stranger", directory);
			chmod(directory, 0777);
			fd = socket(AF_UNIX, SOCK_SEQPACKET, 0);
			if (setuid(65534) || bind(fd, (struct sockaddr *)&a, sizeof(a)) || listen(fd, 1))
				_exit(1);
			alarm(10);
			pause();
		}
		snprintf(other, sizeof(other), "%s/stranger", directory);
		while (access(other, F_OK) && waitpid(child, &status, WNOHANG) == 0)
			usleep(1000);
		do
			ret = cudapool_client_connect(&c, other, &hello);
		while (ret == -ECONNREFUSED && waitpid(child, &status, WNOHANG) == 0);
		ok(ret == -EPERM && strstr(c.text, "65534"), "served by a stranger: %s", c.text);
		end(child);
		unlink(other);
	}
}

static void acting(void)
{
	static const struct turn table[] = {
		{"answers", s_answers, 0, "done"},
		{"answers with descriptors", s_descriptors, 0, "done"},
		{"an older result first", s_older_first, 0, "done"},
		{"fails", s_fails, -EREMOTEIO, "xxx"},
		{"refuses", s_refuses_action, -EREMOTEIO, "too many at once"},
		{"another process", s_other_pid, -EPROTO, "asked was"},
		{"an impossible op", s_impossible_op, -EPROTO, "impossible"},
		{"an impossible path", s_impossible_path, -EPROTO, "impossible"},
		{"a request never made", s_result_of_the_future, -EPROTO, "never made"},
		{"closes midway", s_closes_midway, -ECONNRESET, "closed"},
		{"expels", s_expels, -ETIMEDOUT, "you took too long"},
		{"is silent", s_silent_later, -ETIMEDOUT, "in time"},
		{"says only what nobody waits for", s_older_only, -ETIMEDOUT, "in time"},
		{"says welcome", s_welcomes_again, -EPROTO, "instead of a result"},
	};
	struct cudapool_hello hello = {.role = CUDAPOOL_ROLE_TOOL};
	struct cudapool_client c;
	struct cudapool_result r;
	int before = open_descriptors();
	size_t i;

	for (i = 0; i < sizeof(table) / sizeof(table[0]); i++) {
		pid_t server = serve(table[i].script);
		int ret = cudapool_client_connect(&c, path, &hello);

		if (ret) {
			ok(false, "connect: %s", c.text);
			end(server);
			continue;
		}
		ret = cudapool_client_action(&c, CUDAPOOL_OP_STATE, 1234, 0, 200, &r);
		ok(ret == table[i].ret && strstr(c.text, table[i].says) && one_line(c.text), "action, %s: %d %s",
		   table[i].name, ret, c.text);
		if (ret == 0)
			ok(r.value == 42, "the value arrives");
		if (ret == -EREMOTEIO)
			ok(r.error < 0 && strlen(r.text) < sizeof(r.text), "the result has the error");
		ok(open_descriptors() == before + 1, "no descriptor but the socket");
		cudapool_client_close(&c);
		end(server);
	}
}

/* Two under way, answered in the other order; then one that the pool refuses, and one that never comes. */
static void s_reversed(int fd)
{
	struct cudapool_result a, b;

	greet(fd);
	take(fd);
	a = result();
	take(fd);
	b = result();
	give(fd, &b, sizeof(b));
	give(fd, &a, sizeof(a));
	take(fd);
	refuse(fd, -EBUSY, "full");
	pause();
}

static void several(void)
{
	struct cudapool_hello hello = {.role = CUDAPOOL_ROLE_PLUGIN};
	struct cudapool_client c;
	struct cudapool_result r;
	uint32_t first, second, third;
	pid_t server = serve(s_reversed);
	int ret = cudapool_client_connect(&c, path, &hello);

	ok(ret == 0, "connected: %s", c.text);
	ok(cudapool_client_begin(&c, CUDAPOOL_OP_LOCK, 10, 1, &first) == 0 &&
		   cudapool_client_begin(&c, CUDAPOOL_OP_LOCK, 20, 1, &second) == 0 && first != second,
	   "two actions under way");
	ok(cudapool_client_next(&c, &r, 1000) == 0 && r.h.request == second && r.pid == 20, "the second ends first");
	ok(cudapool_client_next(&c, &r, 1000) == 0 && r.h.request == first && r.pid == 10, "then the first");
	cudapool_client_begin(&c, CUDAPOOL_OP_LOCK, 30, 1, &third);
	ok(cudapool_client_next(&c, &r, 1000) == 0 && r.h.request == third && r.error == -EBUSY &&
		   !strcmp(r.text, "full"),
	   "a refused one is a failed result");
	ok(cudapool_client_next(&c, &r, 20) == -ETIMEDOUT && cudapool_client_next(&c, &r, 20) == -ETIMEDOUT,
	   "waiting again after a time-out is fine");
	cudapool_client_close(&c);
	end(server);
}

/* STATUS, RELEASE and STOP in this order, `status_bytes` of JSON. */
static const char *status_text;
static size_t status_bytes;

static void s_verbs(int fd)
{
	struct cudapool_header h;
	char report[CUDAPOOL_WIRE_MAX];

	greet(fd);
	take(fd);
	h = header(CUDAPOOL_MSG_REPORT, sizeof(h) + status_bytes);
	memcpy(report, &h, sizeof(h));
	memcpy(report + sizeof(h), status_text, status_bytes);
	give(fd, report, sizeof(h) + status_bytes);
	take(fd);
	h = header(CUDAPOOL_MSG_DONE, sizeof(h));
	give(fd, &h, sizeof(h));
	take(fd);
	refuse(fd, -EBUSY, "process 12 is locked");
}

static void verbs(void)
{
	static const struct {
		const char *json;
		size_t n;
		int ret;
	} table[] = {{"{}", 3, 0},
		     {"{}", 2, -EPROTO},
		     {"{\0}", 4, -EPROTO},
		     {"", 0, -EPROTO},
		     {"{\"long\":\"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\"}", 45, -ENOBUFS}};
	struct cudapool_hello hello = {.role = CUDAPOOL_ROLE_TOOL};
	struct cudapool_client c;
	char json[32];
	size_t i;

	for (i = 0; i < sizeof(table) / sizeof(table[0]); i++) {
		pid_t server;
		int ret;

		status_text = table[i].json;
		status_bytes = table[i].n;
		server = serve(s_verbs);
		cudapool_client_connect(&c, path, &hello);
		ret = cudapool_client_status(&c, json, sizeof(json), 1000);
		ok(ret == table[i].ret && (ret || !strcmp(json, "{}")), "status of %zu bytes: %d %s", table[i].n, ret,
		   c.text);
		if (!ret) {
			ok(cudapool_client_release(&c, CUDAPOOL_RELEASE_KEEP, 1000) == 0, "release");
			ok(cudapool_client_stop(&c, 1000) == -EBUSY && strstr(c.text, "12 is locked"), "stop: %s",
			   c.text);
		}
		cudapool_client_close(&c);
		end(server);
	}
}

/* IMAGES carries a descriptor, EVICT none; FOUND answers both. */
static void images(void)
{
	struct cudapool_hello hello = {.role = CUDAPOOL_ROLE_TOOL};
	struct cudapool_images request = {
		.purpose = CUDAPOOL_IMAGES_PREFETCH, .tier = CUDAPOOL_TIER_STAGED, .sync = 1, .hot = CUDAPOOL_HOT_OFF};
	uint8_t token[CUDAPOOL_TOKEN_LEN] = {7, [15] = 9};
	struct cudapool_client c;
	struct cudapool_found f;
	pid_t server = serve(s_images);
	int fd = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC), before, ret;
	char one[64];

	snprintf(one, sizeof(one), "%s/one", directory);
	close(open(one, O_CREAT | O_CLOEXEC, 0600));
	cudapool_client_connect(&c, path, &hello);
	before = open_descriptors();
	ret = cudapool_client_images(&c, &request, fd, 1000, &f);
	ok(ret == 0 && f.count == 1 && f.bytes == 2113, "images: %d, %u found, asked %llu", ret, f.count,
	   (unsigned long long)f.bytes);
	ret = cudapool_client_evict(&c, token, CUDAPOOL_TIER_COLD, 1000, &f);
	ok(ret == 0 && f.bytes == 7092, "evict: %d, asked %llu", ret, (unsigned long long)f.bytes);
	ok(open_descriptors() == before && fcntl(fd, F_GETFD) == FD_CLOEXEC, "the directory stays the caller's");
	cudapool_client_close(&c);
	end(server);
	unlink(one);

	server = serve(s_finds_errors);
	cudapool_client_connect(&c, path, &hello);
	ret = cudapool_client_images(&c, &request, fd, 1000, &f);
	ok(ret == -EREMOTEIO && f.error == -EBADMSG && one_line(c.text), "refused, in many lines");
	ret = cudapool_client_images(&c, &request, fd, 1000, &f);
	ok(ret == -EREMOTEIO && strstr(c.text, "Bad message"), "refused without a word: %s", c.text);
	ret = cudapool_client_evict(&c, NULL, CUDAPOOL_TIER_COLD, 1000, &f);
	ok(ret == -EPROTO && strstr(c.text, "impossible"), "refused in an impossible way: %s", c.text);
	cudapool_client_close(&c);
	end(server);
	close(fd);
}

static void on_alarm(int signal)
{
}

/* A timer that interrupts every millisecond must neither end a wait nor lengthen it. */
static void interrupted(void)
{
	struct itimerval each_ms = {{0, 1000}, {0, 1000}}, none = {{0, 0}, {0, 0}};
	struct sigaction action = {.sa_handler = on_alarm};
	struct cudapool_hello hello = {.role = CUDAPOOL_ROLE_TOOL};
	struct cudapool_client c;
	struct cudapool_result r;
	pid_t server = serve(s_silent_later);
	int64_t started, took;
	int ret;

	sigaction(SIGALRM, &action, NULL);
	setitimer(ITIMER_REAL, &each_ms, NULL);
	ret = cudapool_client_connect(&c, path, &hello);
	started = cudapool_now_ms();
	if (!ret)
		ret = cudapool_client_action(&c, CUDAPOOL_OP_STATE, 1, 0, 300, &r);
	took = cudapool_now_ms() - started;
	setitimer(ITIMER_REAL, &none, NULL);
	ok(ret == -ETIMEDOUT && took >= 300 && took < 2000, "interrupted all the time: ends after %lld ms of 300",
	   (long long)took);
	cudapool_client_close(&c);
	end(server);
}

/* HELLO is answered late, within what wait_ms allows; and never, beyond it. */
static void slow_welcome(void)
{
	struct cudapool_hello hello = {.role = CUDAPOOL_ROLE_TOOL};
	struct cudapool_client c;
	pid_t server = serve(s_silent);
	int64_t started = cudapool_now_ms();
	int ret = cudapool_client_connect(&c, path, &hello);

	ok(ret == -ETIMEDOUT && cudapool_now_ms() - started < 8000, "never welcomed: %s", c.text);
	end(server);
}

static int listen_at(const char *where)
{
	struct sockaddr_un a = {.sun_family = AF_UNIX};

	snprintf(a.sun_path, sizeof(a.sun_path), "%s", where);
	listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	return listener < 0 || bind(listener, (struct sockaddr *)&a, sizeof(a)) || listen(listener, 8);
}

/* For the TypeScript tests: follows one script for each of `count` connections, one after the other. */
static int be_the_pool(const char *where, const char *script, int count)
{
	static const struct {
		const char *name;
		void (*script)(int);
	} scripts[] = {{"closes-midway", s_closes_midway}, {"other-version", s_other_version}, {"refuses", s_refuses}};
	size_t i;

	if (listen_at(where))
		return 1;
	for (i = 0; i < sizeof(scripts) / sizeof(scripts[0]); i++)
		while (!strcmp(script, scripts[i].name) && count-- > 0)
			waitpid(serve(scripts[i].script), NULL, 0);
	unlink(where);
	return 0;
}

int main(int argc, char **argv)
{
	if (argc == 4)
		return be_the_pool(argv[1], argv[2], atoi(argv[3]));
	if (!mkdtemp(directory))
		return 1;
	snprintf(path, sizeof(path), "%s/sock", directory);
	if (listen_at(path))
		return 1;
	connecting();
	nobody_there();
	acting();
	several();
	verbs();
	images();
	interrupted();
	slow_welcome();
	unlink(path);
	rmdir(directory);
	return tap_end();
}
