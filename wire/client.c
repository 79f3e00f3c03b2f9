// SPDX-License-Identifier: MIT
/* The client's side of wire/message.h, for CRIU's plugin, the drop-in cuda-checkpoint and cudapoold's own verbs. */
#include "attach.h"
#include "client.h"
#include "clock.h"

#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#ifndef CUDAPOOL_VERSION
#define CUDAPOOL_VERSION "of unknown version"
#endif

#define ANSWER_LIMIT_MS 5000  /* for what the pool does at once: accepting, greeting, taking a message */
#define WAIT_MAX_MS     60000 /* the largest hello.wait_ms */
#define ERRNO_MAX       4095

union answer {
	struct cudapool_header h;
	struct cudapool_welcome welcome;
	struct cudapool_result result;
	struct cudapool_error error;
	struct cudapool_found found;
	char bytes[CUDAPOOL_WIRE_MAX];
};

static int __attribute__((format(printf, 3, 4))) fail(struct cudapool_client *c, int error, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vsnprintf(c->text, sizeof(c->text), format, args);
	va_end(args);
	return error;
}

static int64_t deadline_in(int limit_ms)
{
	return cudapool_now_ms() + (limit_ms > 0 ? limit_ms : 0);
}

/* Makes a string of the peer's safe to show: it ends, and it is one line. */
static void tame(char *string, size_t size)
{
	size_t i;

	string[size - 1] = '\0';
	for (i = 0; string[i]; i++)
		if ((unsigned char)string[i] < ' ' || string[i] == 127)
			string[i] = ' ';
}

static int late(struct cudapool_client *c)
{
	return fail(c, -ETIMEDOUT, "the pool did not answer in time: see its log, or restart it");
}

/* 0 when the socket is ready for `events` or has an error to tell. */
static int wait_for(struct cudapool_client *c, short events, int64_t deadline)
{
	struct pollfd p = {.fd = c->fd, .events = events};
	int64_t left;
	int n;

	for (;;) {
		left = deadline - cudapool_now_ms();
		n = poll(&p, 1, left > 0 ? (int)left : 0);
		if (n > 0)
			return 0;
		if (n == 0 && left <= 0)
			return late(c);
		if (n < 0 && errno != EINTR)
			return fail(c, -errno, "waiting for the pool failed: %s", strerror(errno));
	}
}

/* `attached`: a descriptor that goes along, and stays the caller's; -1: none. */
static int send_with(struct cudapool_client *c, struct cudapool_header *h, uint16_t type, size_t length, int attached)
{
	union cudapool_attached control;
	struct iovec data = {h, length};
	struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1};
	int64_t deadline = deadline_in(ANSWER_LIMIT_MS);
	int ret;

	if (c->fd < 0)
		return fail(c, -ENOTCONN, "not connected to a pool");
	cudapool_attach(&message, &control, &attached, attached >= 0);
	*h = (struct cudapool_header){CUDAPOOL_WIRE_MAGIC, CUDAPOOL_WIRE_VERSION, type, length, c->next_request++};
	for (;;) {
		if (sendmsg(c->fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT) >= 0)
			return 0;
		if (errno == EPIPE || errno == ECONNRESET)
			return fail(c, -errno, "the pool has closed the connection: see its log");
		if (errno != EAGAIN && errno != EINTR)
			return fail(c, -errno, "cannot send to the pool: %s", strerror(errno));
		ret = wait_for(c, POLLOUT, deadline);
		if (ret)
			return ret;
	}
}

static int send_message(struct cudapool_client *c, struct cudapool_header *h, uint16_t type, size_t length)
{
	return send_with(c, h, type, length, -1);
}

static int other_version(struct cudapool_client *c, union answer *a)
{
	bool named = a->h.type == CUDAPOOL_MSG_ERROR && a->h.length >= sizeof(a->error);

	if (named)
		tame(a->error.build, sizeof(a->error.build));
	return fail(c, -EPROTONOSUPPORT,
		    "the pool %s%sspeaks version %u, this client (%s) version %u: restart it with 'systemctl restart "
		    "cudapoold', or end it with 'cudapoold --stop' of its own version",
		    named ? a->error.build : "", named ? " " : "", a->h.version, CUDAPOOL_VERSION,
		    CUDAPOOL_WIRE_VERSION);
}

/* What every message must be, whatever it says. `length` is what the kernel saw, also beyond our buffer. */
static int check_message(struct cudapool_client *c, union answer *a, size_t length)
{
	size_t wanted;

	if (length < sizeof(a->h) || length > sizeof(*a) || a->h.magic != CUDAPOOL_WIRE_MAGIC)
		return fail(c, -EPROTO, "what answers on the pool's socket is no pool (a message of %zu bytes)",
			    length);
	if (a->h.length != length)
		return fail(c, -EPROTO, "the pool sent %zu bytes and announced %u", length, a->h.length);
	if (a->h.version != CUDAPOOL_WIRE_VERSION)
		return other_version(c, a);

	switch (a->h.type) {
	case CUDAPOOL_MSG_WELCOME:
		wanted = sizeof(a->welcome);
		break;
	case CUDAPOOL_MSG_RESULT:
		wanted = sizeof(a->result);
		break;
	case CUDAPOOL_MSG_DONE:
		wanted = sizeof(a->h);
		break;
	case CUDAPOOL_MSG_ERROR:
		wanted = sizeof(a->error);
		break;
	case CUDAPOOL_MSG_FOUND:
		wanted = sizeof(a->found);
		break;
	case CUDAPOOL_MSG_REPORT:
		wanted = length > sizeof(a->h) ? length : 0;
		break;
	default:
		return fail(c, -EPROTO, "the pool sent a message of unknown type %u", a->h.type);
	}
	if (length != wanted)
		return fail(c, -EPROTO, "the pool sent a message of type %u with %zu bytes", a->h.type, length);
	/* An ERROR without a number is about the connection: it was refused, or is ended. */
	if (a->h.request >= c->next_request || (a->h.request == 0 && a->h.type != CUDAPOOL_MSG_ERROR))
		return fail(c, -EPROTO, "the pool answered request %u, which was never made", a->h.request);
	if (a->h.type == CUDAPOOL_MSG_ERROR) {
		if (a->error.error >= 0 || a->error.error < -ERRNO_MAX)
			return fail(c, -EPROTO, "the pool refused a request with error %d", a->error.error);
		tame(a->error.build, sizeof(a->error.build));
		tame(a->error.text, sizeof(a->error.text));
		if (a->h.request == 0) {
			memcpy(c->text, a->error.text, sizeof(c->text));
			return a->error.error;
		}
	}
	return 0;
}

/*
 * One message. There is no room for control data, so descriptors that a peer attaches never become
 * ours: the kernel closes them.
 */
static int receive(struct cudapool_client *c, union answer *a, int64_t deadline)
{
	ssize_t n;
	int ret;

	if (c->fd < 0)
		return fail(c, -ENOTCONN, "not connected to a pool");
	for (;;) {
		ret = wait_for(c, POLLIN, deadline);
		if (ret)
			return ret;
		n = recv(c->fd, a, sizeof(*a), MSG_DONTWAIT | MSG_TRUNC);
		if (n > 0)
			return check_message(c, a, n);
		if (n == 0 || errno == ECONNRESET)
			return fail(c, -ECONNRESET, "the pool has closed the connection: see its log");
		if (errno != EAGAIN && errno != EINTR)
			return fail(c, -errno, "cannot receive from the pool: %s", strerror(errno));
	}
}

/*
 * The answer to `request`, whatever it is. Results of earlier actions that nobody waits for any more are skipped, but
 * not beyond the deadline, however many there are.
 */
static int receive_for(struct cudapool_client *c, union answer *a, uint32_t request, int64_t deadline)
{
	int ret;

	for (;;) {
		ret = receive(c, a, deadline);
		if (ret || a->h.request == request)
			return ret;
		if (cudapool_now_ms() >= deadline)
			return late(c);
	}
}

/* The answer to `request`, of type `type`. */
static int receive_answer(struct cudapool_client *c, union answer *a, uint32_t request, uint16_t type, int64_t deadline)
{
	int ret = receive_for(c, a, request, deadline);

	if (ret)
		return ret;
	if (a->h.type == CUDAPOOL_MSG_ERROR) {
		memcpy(c->text, a->error.text, sizeof(c->text));
		return a->error.error;
	}
	if (a->h.type != type)
		return fail(c, -EPROTO, "the pool answered with a message of type %u, expected %u", a->h.type, type);
	return 0;
}

/* The server must be root's or the caller's own: anyone could have made a socket at a path in a shared directory. */
static int check_server(struct cudapool_client *c, const char *path)
{
	struct ucred peer;
	socklen_t length = sizeof(peer);

	if (getsockopt(c->fd, SOL_SOCKET, SO_PEERCRED, &peer, &length))
		return fail(c, -errno, "%.100s: cannot tell who answers there: %s", path, strerror(errno));
	if (peer.uid != 0 && peer.uid != geteuid())
		return fail(c, -EPERM, "%.100s is served by user %u, neither root nor you: correct CUDAPOOL_SOCKET",
			    path, peer.uid);
	return 0;
}

static int open_socket(struct cudapool_client *c, const char *path)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int64_t deadline = deadline_in(ANSWER_LIMIT_MS), left;
	struct timeval limit;

	if (strlen(path) >= sizeof(address.sun_path))
		return fail(c, -ENAMETOOLONG, "the socket's path has %zu bytes, allowed are %zu: %.100s", strlen(path),
			    sizeof(address.sun_path) - 1, path);
	strcpy(address.sun_path, path);
	c->fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (c->fd < 0)
		return fail(c, -errno, "cannot make a socket: %s", strerror(errno));

	for (;;) {
		left = deadline - cudapool_now_ms();
		if (left <= 0)
			return fail(c, -ETIMEDOUT, "%.100s: the pool does not accept: see its log, or restart it",
				    path);
		limit = (struct timeval){left / 1000, left % 1000 * 1000};
		setsockopt(c->fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
		if (connect(c->fd, (struct sockaddr *)&address, sizeof(address)) == 0)
			return check_server(c, path);
		switch (errno) {
		case EINTR:
		case EAGAIN: /* the limit passed, or its queue is full */
			continue;
		case ENOENT:
		case ECONNREFUSED:
			return fail(c, -errno,
				    "%.100s: no pool answers there: start one with 'systemctl start cudapoold'", path);
		case EACCES:
			return fail(c, -errno, "%.100s: permission denied: be root or a member of the pool's group",
				    path);
		default:
			return fail(c, -errno, "%.100s: %s", path, strerror(errno));
		}
	}
}

static int greet(struct cudapool_client *c, struct cudapool_hello *hello)
{
	union answer a;
	int ret;

	if (hello->wait_ms > WAIT_MAX_MS)
		hello->wait_ms = WAIT_MAX_MS;
	memset(hello->build, 0, sizeof(hello->build));
	snprintf(hello->build, sizeof(hello->build), "%s", CUDAPOOL_VERSION);
	ret = send_message(c, &hello->h, CUDAPOOL_MSG_HELLO, sizeof(*hello));
	/* Whoever refuses a peer may close before it reads: then the reason waits to be read, and sending failed. */
	if (ret && ret != -EPIPE && ret != -ECONNRESET)
		return ret;
	ret = receive_answer(c, &a, hello->h.request, CUDAPOOL_MSG_WELCOME,
			     deadline_in(ANSWER_LIMIT_MS + (int)hello->wait_ms));
	if (ret)
		return ret;
	if (a.welcome.worker_state > CUDAPOOL_WORKER_FAILED)
		return fail(c, -EPROTO, "the pool's worker is in unknown state %u", a.welcome.worker_state);
	c->welcome = a.welcome;
	tame(c->welcome.build, sizeof(c->welcome.build));
	tame(c->welcome.text, sizeof(c->welcome.text));
	return 0;
}

int cudapool_client_connect(struct cudapool_client *c, const char *path, struct cudapool_hello *hello)
{
	int ret;

	*c = (struct cudapool_client){.fd = -1, .next_request = 1};
	if (!path || !*path)
		path = secure_getenv("CUDAPOOL_SOCKET");
	if (!path || !*path)
		path = CUDAPOOL_SOCKET_DEFAULT;
	ret = open_socket(c, path);
	if (!ret)
		ret = greet(c, hello);
	if (ret)
		cudapool_client_close(c);
	else
		fail(c, 0, "connected to the pool %s (process %d)", c->welcome.build, c->welcome.pool_pid);
	return ret;
}

int cudapool_client_begin(struct cudapool_client *c, enum cudapool_op op, int pid, unsigned timeout_ms,
			  uint32_t *request)
{
	struct cudapool_action action = {.op = op, .pid = pid, .timeout_ms = timeout_ms};
	int ret = send_message(c, &action.h, CUDAPOOL_MSG_ACTION, sizeof(action));

	*request = ret ? 0 : action.h.request;
	return ret;
}

/* Turns a message into a result; a request that the pool refused becomes a failed one. */
static int take_result(struct cudapool_client *c, union answer *a, struct cudapool_result *result)
{
	if (a->h.type == CUDAPOOL_MSG_ERROR) {
		*result = (struct cudapool_result){.h = a->h, .error = a->error.error};
		memcpy(result->text, a->error.text, sizeof(result->text));
	} else if (a->h.type == CUDAPOOL_MSG_RESULT) {
		*result = a->result;
		if (result->error > 0 || result->error < -ERRNO_MAX || result->op < CUDAPOOL_OP_STATE ||
		    result->op > CUDAPOOL_OP_LAST || result->path > CUDAPOOL_PATH_LAST)
			return fail(c, -EPROTO, "the pool sent an impossible result (op %u, error %d, path %u)",
				    result->op, result->error, result->path);
		tame(result->text, sizeof(result->text));
	} else {
		return fail(c, -EPROTO, "the pool sent a message of type %u instead of a result", a->h.type);
	}
	if (!result->error)
		fail(c, 0, "done");
	else if (result->text[0])
		memcpy(c->text, result->text, sizeof(c->text));
	else
		fail(c, 0, "the pool could not do it: %s", strerror(-result->error));
	return 0;
}

int cudapool_client_next(struct cudapool_client *c, struct cudapool_result *result, int limit_ms)
{
	union answer a;
	int ret = receive(c, &a, deadline_in(limit_ms));

	return ret ? ret : take_result(c, &a, result);
}

int cudapool_client_action(struct cudapool_client *c, enum cudapool_op op, int pid, unsigned timeout_ms, int limit_ms,
			   struct cudapool_result *result)
{
	int64_t deadline = deadline_in(limit_ms);
	uint32_t request;
	union answer a;
	int ret;

	memset(result, 0, sizeof(*result));
	ret = cudapool_client_begin(c, op, pid, timeout_ms, &request);
	if (ret)
		return ret;
	ret = receive_for(c, &a, request, deadline);
	if (!ret)
		ret = take_result(c, &a, result);
	if (ret)
		return ret;
	if (a.h.type == CUDAPOOL_MSG_RESULT && (result->op != (uint32_t)op || result->pid != pid))
		return fail(c, -EPROTO, "the pool answered for action %u on process %d, asked was %u on %d", result->op,
			    result->pid, op, pid);
	return result->error ? -EREMOTEIO : 0;
}

/* Sends one message and waits for the answer of type `type` to it. */
static int ask(struct cudapool_client *c, struct cudapool_header *h, uint16_t type, size_t length, union answer *a,
	       uint16_t answer_type, int limit_ms)
{
	int64_t deadline = deadline_in(limit_ms);
	int ret = send_message(c, h, type, length);

	return ret ? ret : receive_answer(c, a, h->request, answer_type, deadline);
}

int cudapool_client_release(struct cudapool_client *c, enum cudapool_release_how how, int limit_ms)
{
	struct cudapool_release release = {.how = how};
	union answer a;

	return ask(c, &release.h, CUDAPOOL_MSG_RELEASE, sizeof(release), &a, CUDAPOOL_MSG_DONE, limit_ms);
}

/* One message that FOUND answers, with the descriptor that goes along. */
static int ask_found(struct cudapool_client *c, struct cudapool_header *h, uint16_t type, size_t length, int attached,
		     int limit_ms, struct cudapool_found *found)
{
	int64_t deadline = deadline_in(limit_ms);
	union answer a;
	int ret;

	memset(found, 0, sizeof(*found));
	ret = send_with(c, h, type, length, attached);
	if (!ret)
		ret = receive_answer(c, &a, h->request, CUDAPOOL_MSG_FOUND, deadline);
	if (ret)
		return ret;
	*found = a.found;
	tame(found->text, sizeof(found->text));
	if (found->error > 0 || found->error < -ERRNO_MAX)
		return fail(c, -EPROTO, "the pool looked for images with the impossible error %d", found->error);
	if (found->error && !found->text[0])
		return fail(c, -EREMOTEIO, "the pool cannot use the images: %s", strerror(-found->error));
	memcpy(c->text, found->text, sizeof(c->text));
	return found->error ? -EREMOTEIO : 0;
}

int cudapool_client_images(struct cudapool_client *c, struct cudapool_images *images, int directory, int limit_ms,
			   struct cudapool_found *found)
{
	return ask_found(c, &images->h, CUDAPOOL_MSG_IMAGES, sizeof(*images), directory, limit_ms, found);
}

int cudapool_client_evict(struct cudapool_client *c, const uint8_t *token, enum cudapool_tier tier, int limit_ms,
			  struct cudapool_found *found)
{
	struct cudapool_evict evict = {.tier = tier};

	if (token)
		memcpy(evict.token, token, sizeof(evict.token));
	return ask_found(c, &evict.h, CUDAPOOL_MSG_EVICT, sizeof(evict), -1, limit_ms, found);
}

int cudapool_client_status(struct cudapool_client *c, char *json, size_t size, int limit_ms)
{
	struct cudapool_header h;
	union answer a;
	size_t length;
	int ret;

	ret = ask(c, &h, CUDAPOOL_MSG_STATUS, sizeof(h), &a, CUDAPOOL_MSG_REPORT, limit_ms);
	if (ret)
		return ret;
	length = a.h.length - sizeof(h);
	if (a.bytes[a.h.length - 1] != '\0' || strlen(a.bytes + sizeof(h)) != length - 1)
		return fail(c, -EPROTO, "the pool's report does not end where it should");
	if (length > size)
		return fail(c, -ENOBUFS, "the pool's report has %zu bytes, there is room for %zu", length, size);
	memcpy(json, a.bytes + sizeof(h), length);
	return 0;
}

int cudapool_client_stop(struct cudapool_client *c, int limit_ms)
{
	struct cudapool_header h;
	union answer a;

	return ask(c, &h, CUDAPOOL_MSG_STOP, sizeof(h), &a, CUDAPOOL_MSG_DONE, limit_ms);
}

void cudapool_client_close(struct cudapool_client *c)
{
	if (c->fd >= 0)
		close(c->fd);
	c->fd = -1;
}
