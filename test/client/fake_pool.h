// SPDX-License-Identifier: MIT
/* A pool that follows a script: the server's side of client.c. */
#ifndef CUDAPOOL_TEST_CLIENT_FAKE_POOL_H
#define CUDAPOOL_TEST_CLIENT_FAKE_POOL_H

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "message.h"

static int listener;

/* The server's side: one connection, one message in hand. */
static union {
	struct cudapool_header h;
	struct cudapool_hello hello;
	struct cudapool_action action;
	struct cudapool_images images;
	struct cudapool_evict evict;
	char bytes[CUDAPOOL_WIRE_MAX];
} got;

static void take(int fd)
{
	if (recv(fd, &got, sizeof(got), 0) <= 0)
		_exit(1);
}

static void give(int fd, const void *message, size_t n)
{
	if (send(fd, message, n, MSG_NOSIGNAL) < 0)
		_exit(1);
}

static struct cudapool_header header(uint16_t type, uint32_t length)
{
	return (struct cudapool_header){CUDAPOOL_WIRE_MAGIC, CUDAPOOL_WIRE_VERSION, type, length, got.h.request};
}

static struct cudapool_welcome welcome(void)
{
	struct cudapool_welcome w = {.h = header(CUDAPOOL_MSG_WELCOME, sizeof(w)), .pool_pid = 77, .build = "fake"};

	return w;
}

static void greet(int fd)
{
	struct cudapool_welcome w;

	take(fd);
	w = welcome();
	give(fd, &w, sizeof(w));
}

static struct cudapool_result result(void)
{
	struct cudapool_result r = {
		.h = header(CUDAPOOL_MSG_RESULT, sizeof(r)), .op = got.action.op, .pid = got.action.pid};

	return r;
}

static void refuse(int fd, int error, const char *text)
{
	struct cudapool_error e = {.h = header(CUDAPOOL_MSG_ERROR, sizeof(e)), .error = error};

	snprintf(e.text, sizeof(e.text), "%s", text);
	give(fd, &e, sizeof(e));
}

/* What the server does until it closes. */
static void s_silent(int fd)
{
	take(fd);
	pause();
}
static void s_closes(int fd)
{
	take(fd);
}
static void s_refuses(int fd)
{
	take(fd);
	refuse(fd, -EACCES, "you are\nnobody");
}
static void s_refuses_unread(int fd)
{
	got.h.request = 0;
	refuse(fd, -EACCES, "nobody asked you");
}
static void s_other_version(int fd)
{
	struct cudapool_error e;

	take(fd);
	e = (struct cudapool_error){
		.h = header(CUDAPOOL_MSG_ERROR, sizeof(e)), .error = -EPROTONOSUPPORT, .build = "9.9-fake"};
	e.h.version = 9;
	give(fd, &e, sizeof(e));
}
static void s_bad_magic(int fd)
{
	struct cudapool_welcome w;

	take(fd);
	w = welcome();
	w.h.magic = 0x50545448;
	give(fd, &w, sizeof(w));
}
static void s_short(int fd)
{
	take(fd);
	give(fd, "hi", 2);
}
static void s_truncated(int fd)
{
	struct cudapool_welcome w;

	take(fd);
	w = welcome();
	give(fd, &w, sizeof(w) - 1);
}
static void s_wrong_size(int fd)
{
	struct cudapool_welcome w;

	take(fd);
	w = welcome();
	w.h.length = sizeof(w) - 8;
	give(fd, &w, sizeof(w) - 8);
}
static void s_oversized(int fd)
{
	static char big[CUDAPOOL_WIRE_MAX + 100];
	struct cudapool_header h;

	take(fd);
	h = header(CUDAPOOL_MSG_REPORT, sizeof(big));
	memcpy(big, &h, sizeof(h));
	give(fd, big, sizeof(big));
}
static void s_unknown_type(int fd)
{
	struct cudapool_header h;

	take(fd);
	h = header(99, sizeof(h));
	give(fd, &h, sizeof(h));
}
static void s_wrong_type(int fd)
{
	struct cudapool_header h;

	take(fd);
	h = header(CUDAPOOL_MSG_DONE, sizeof(h));
	give(fd, &h, sizeof(h));
}
static void s_wrong_request(int fd)
{
	struct cudapool_welcome w;

	take(fd);
	w = welcome();
	w.h.request += 5;
	give(fd, &w, sizeof(w));
}
static void s_bad_state(int fd)
{
	struct cudapool_welcome w;

	take(fd);
	w = welcome();
	w.worker_state = 1000;
	give(fd, &w, sizeof(w));
}
static void s_positive_error(int fd)
{
	take(fd);
	refuse(fd, EACCES, "");
}
static void s_endless_strings(int fd)
{
	struct cudapool_welcome w;

	take(fd);
	w = welcome();
	memset(w.build, 'b', sizeof(w.build));
	memset(w.text, '\n', sizeof(w.text));
	give(fd, &w, sizeof(w));
	take(fd);
}
static void s_answers(int fd)
{
	struct cudapool_result r;

	greet(fd);
	take(fd);
	r = result();
	r.value = 42;
	give(fd, &r, sizeof(r));
}
static void s_fails(int fd)
{
	struct cudapool_result r;

	greet(fd);
	take(fd);
	r = result();
	r.error = -EREMOTEIO;
	r.cu_result = 2;
	memset(r.text, 'x', sizeof(r.text)); /* without NUL */
	give(fd, &r, sizeof(r));
}
static void s_refuses_action(int fd)
{
	greet(fd);
	take(fd);
	refuse(fd, -EBUSY, "too many at once");
}
static void s_other_pid(int fd)
{
	struct cudapool_result r;

	greet(fd);
	take(fd);
	r = result();
	r.pid++;
	give(fd, &r, sizeof(r));
}
static void s_impossible_op(int fd)
{
	struct cudapool_result r;

	greet(fd);
	take(fd);
	r = result();
	r.op = 1u << 31;
	give(fd, &r, sizeof(r));
}
static void s_result_of_the_future(int fd)
{
	struct cudapool_result r;

	greet(fd);
	take(fd);
	r = result();
	r.h.request = 1000;
	give(fd, &r, sizeof(r));
}
static void s_older_only(int fd) /* answers the greeting's number, again and again */
{
	struct cudapool_result r;

	greet(fd);
	take(fd);
	r = result();
	r.h.request--;
	for (;;)
		give(fd, &r, sizeof(r));
}
static void s_older_first(int fd) /* answers the greeting's number again before the action's */
{
	struct cudapool_result r;

	greet(fd);
	take(fd);
	r = result();
	r.h.request = 1;
	give(fd, &r, sizeof(r));
	r = result();
	r.value = 42;
	give(fd, &r, sizeof(r));
}
static void s_closes_midway(int fd)
{
	greet(fd);
	take(fd);
}
static void s_silent_later(int fd)
{
	greet(fd);
	take(fd);
	pause();
}
static void s_welcomes_again(int fd)
{
	struct cudapool_welcome w;

	greet(fd);
	take(fd);
	w = welcome();
	give(fd, &w, sizeof(w));
}
/* Attaches ten descriptors to a right answer. */
static void s_descriptors(int fd)
{
	struct cudapool_result r;
	union {
		struct cmsghdr h;
		char room[CMSG_SPACE(10 * sizeof(int))];
	} control = {.h = {CMSG_LEN(10 * sizeof(int)), SOL_SOCKET, SCM_RIGHTS}};
	struct iovec iov = {&r, sizeof(r)};
	struct msghdr m = {
		.msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control)};
	int i, *fds = (int *)CMSG_DATA(&control.h);

	for (i = 0; i < 10; i++)
		fds[i] = 2;
	greet(fd);
	take(fd);
	r = result();
	r.value = 42;
	if (sendmsg(fd, &m, 0) < 0)
		_exit(1);
}

/* Takes IMAGES with a directory and EVICT: says how many files `one` are in it, and what it was asked. */
static void s_images(int fd)
{
	struct cudapool_found f;
	union {
		struct cmsghdr h;
		char room[CMSG_SPACE(4 * sizeof(int))];
	} control;
	struct iovec iov = {&got, sizeof(got)};
	struct msghdr m = {
		.msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control)};
	int directory = -1;

	greet(fd);
	if (recvmsg(fd, &m, 0) <= 0)
		_exit(1);
	if (m.msg_controllen >= CMSG_LEN(sizeof(int)) && control.h.cmsg_len == CMSG_LEN(sizeof(int)))
		memcpy(&directory, CMSG_DATA(&control.h), sizeof(directory));
	f = (struct cudapool_found){.h = header(CUDAPOOL_MSG_FOUND, sizeof(f))};
	f.count = faccessat(directory, "one", F_OK, 0) == 0;
	f.bytes = got.images.purpose * 1000 + got.images.tier * 100 + got.images.sync * 10 + got.images.hot;
	give(fd, &f, sizeof(f));
	take(fd);
	f = (struct cudapool_found){.h = header(CUDAPOOL_MSG_FOUND, sizeof(f))};
	f.bytes = got.evict.token[0] * 1000 + got.evict.token[15] * 10 + got.evict.tier;
	give(fd, &f, sizeof(f));
}

static void s_finds_errors(int fd) /* with words, without, and an impossible one */
{
	struct cudapool_found f;
	int i;

	greet(fd);
	for (i = 0; i < 3; i++) {
		take(fd);
		f = (struct cudapool_found){.h = header(CUDAPOOL_MSG_FOUND, sizeof(f)), .error = -EBADMSG};
		if (i == 0)
			memset(f.text, '\n', sizeof(f.text));
		if (i == 2)
			f.error = 1;
		give(fd, &f, sizeof(f));
	}
}

static void s_impossible_path(int fd)
{
	struct cudapool_result r;

	greet(fd);
	take(fd);
	r = result();
	r.path = CUDAPOOL_PATH_LAST + 1;
	give(fd, &r, sizeof(r));
}

/* Ends the connection with a reason, while an action is under way. */
static void s_expels(int fd)
{
	greet(fd);
	take(fd);
	got.h.request = 0;
	refuse(fd, -ETIMEDOUT, "you took too long");
}

static pid_t serve(void (*script)(int))
{
	pid_t pid = fork();

	if (pid == 0) {
		int fd = accept(listener, NULL, NULL);

		alarm(20);
		script(fd);
		shutdown(fd, SHUT_WR);
		while (recv(fd, &got, sizeof(got), 0) > 0) /* until the client closes, so that nothing it sends fails */
			;
		_exit(0);
	}
	return pid;
}

static void end(pid_t pid)
{
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
}

#endif
