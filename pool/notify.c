// SPDX-License-Identifier: MIT
/* What the keeper says to systemd, and what it got from it at its start: the one place for sd_notify's protocol. */
#include "notify.h"

#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/queue.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "log.h"
#include "loop.h"
#include "rights.h"

#define AGAIN_MS   2
#define QUEUE_MOST 4096

struct message {
	int fd;
	char text[NOTIFY_TEXT_LEN];
	STAILQ_ENTRY(message) link;
};

static struct notify_passed passed[NOTIFY_PASSED_MOST];
static unsigned passed_count;
static struct sockaddr_un address = {.sun_family = AF_UNIX};
static socklen_t address_size; /* 0: nobody wants to hear */
static int sending = -1;
static STAILQ_HEAD(, message) queue = STAILQ_HEAD_INITIALIZER(queue);
static unsigned queued;
static struct loop_timer again;

/* ---- the environment ---------------------------------------------------------------------------- */

/* A number of digits only; 0 for anything else. */
static unsigned long number(const char *text)
{
	size_t length = text ? strlen(text) : 0;

	return length && length < 10 && strspn(text, "0123456789") == length ? strtoul(text, NULL, 10) : 0;
}

static void read_address(const char *path)
{
	size_t length = path ? strlen(path) : 0;

	if (length < 2 || length >= sizeof(address.sun_path) || (path[0] != '/' && path[0] != '@'))
		return;
	memcpy(address.sun_path, path, length);
	if (path[0] == '@')
		address.sun_path[0] = '\0'; /* the abstract namespace */
	address_size = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + length);
}

/* The names are in the order of the descriptors, with colons between. */
static void read_passed(unsigned long count, const char *names)
{
	unsigned i;
	size_t n;
	int fd;

	for (i = 0; i < count && i < NOTIFY_PASSED_MOST; i++) {
		n = names ? strcspn(names, ":") : 0;
		fd = NOTIFY_FIRST + (int)i;
		if (!fcntl(fd, F_SETFD, FD_CLOEXEC)) {
			passed[passed_count].fd = fd;
			snprintf(passed[passed_count].name, NOTIFY_NAME_LEN, "%.*s", (int)(n < 256 ? n : 256),
				 n ? names : "");
			passed_count++;
		}
		if (names)
			names = names[n] ? names + n + 1 : NULL;
	}
}

int notify_init(void)
{
	unsigned long count = number(getenv("LISTEN_FDS"));

	read_address(getenv("NOTIFY_SOCKET"));
	if (number(getenv("LISTEN_PID")) != (unsigned long)getpid())
		count = 0;
	read_passed(count, getenv("LISTEN_FDNAMES"));
	unsetenv("NOTIFY_SOCKET");
	unsetenv("LISTEN_PID");
	unsetenv("LISTEN_FDS");
	unsetenv("LISTEN_FDNAMES");
	return NOTIFY_FIRST + (int)(count < NOTIFY_PASSED_MOST ? count : NOTIFY_PASSED_MOST);
}

struct notify_passed *notify_passed(unsigned *count)
{
	*count = passed_count;
	return passed;
}

bool notify_wanted(void)
{
	return address_size > 0;
}

/* ---- telling ---------------------------------------------------------------------------------- */

/* 0; -EAGAIN: later; or it will never be heard. */
static int transmit(const struct message *message)
{
	union cudapool_attached control;
	struct iovec iov = {.iov_base = (void *)message->text, .iov_len = strlen(message->text)};
	struct msghdr header = {.msg_name = &address, .msg_namelen = address_size, .msg_iov = &iov, .msg_iovlen = 1};

	cudapool_attach(&header, &control, &message->fd, message->fd >= 0);
	if (sendmsg(sending, &header, MSG_NOSIGNAL | MSG_DONTWAIT) >= 0)
		return 0;
	return errno == EAGAIN || errno == ENOBUFS || errno == EINTR || errno == ETOOMANYREFS ? -EAGAIN : -errno;
}

static void flush(struct loop_timer *timer)
{
	struct message *message;
	int err;

	while ((message = STAILQ_FIRST(&queue))) {
		err = transmit(message);
		if (err == -EAGAIN) {
			again.fire = flush;
			loop_timer_set(&again, AGAIN_MS);
			return;
		}
		if (err)
			cudapool_log(CUDAPOOL_LOG_INFO, "systemd cannot be told %.40s: %s", message->text,
				     strerror(-err));
		STAILQ_REMOVE_HEAD(&queue, link);
		queued--;
		if (message->fd >= 0)
			close(message->fd);
		free(message);
	}
}

int notify_send(const char *text, int fd)
{
	struct message *message;
	int err = 0;

	if (address_size && sending < 0)
		sending = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (!address_size || sending < 0)
		err = -ENOTCONN;
	else if (queued >= QUEUE_MOST)
		err = -ENOBUFS;
	message = err ? NULL : malloc(sizeof(*message));
	if (!message) {
		if (fd >= 0)
			close(fd);
		return err ? err : -ENOMEM;
	}
	message->fd = fd;
	snprintf(message->text, sizeof(message->text), "%s", text);
	STAILQ_INSERT_TAIL(&queue, message, link);
	queued++;
	flush(&again);
	return 0;
}
