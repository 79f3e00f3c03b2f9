// SPDX-License-Identifier: MIT
/* Deposits: the descriptors of a park, left with systemd for as long as they are all there is of its memory. */
#include "deposit.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "image.h"
#include "log.h"
#include "rights.h"

#define PREFIX	     DEPOSIT_PREFIX
#define PROBE_PREFIX PREFIX "probe-"
/*
 * The kernel counts descriptors that are in sockets' queues by real user, and refuses more to each process of that
 * user whose limit of open files is lower. This user has no processes.
 */
#define NOBODY_ELSE 0xfff0c0dau

static enum { STATE_NONE, STATE_UNKNOWN, STATE_ON } state;
static struct deposit self; /* asks at the start whether anything is kept at all */
static unsigned probes;

/* ---- the box ---------------------------------------------------------------------------------- */

static int put_in(int socket, const int *fds, unsigned count)
{
	int err = rights_send(socket, "", 1, fds, count, MSG_DONTWAIT);

	return err == -EAGAIN ? -ENOBUFS : err;
}

/* By the system call itself, which is for this thread alone. Where it is not allowed, the count is our own user's. */
static void charge_to(uid_t real)
{
	if (syscall(SYS_setresuid, real, -1, -1)) {
		/* As said. */
	}
}

/* A box with all of it; -errno. */
static int pack(int table, const int *fds, unsigned count)
{
	int ends[2], size = 1 << 30, err; /* the kernel cuts that to what it allows */
	unsigned at, n;
	uid_t real = getuid();

	if (socketpair(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends))
		return -errno;
	setsockopt(ends[1], SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));
	charge_to(NOBODY_ELSE);
	err = put_in(ends[1], &table, 1);
	for (at = 0; !err && at < count; at += n) {
		n = count - at < CUDAPOOL_ATTACHED_MOST ? count - at : CUDAPOOL_ATTACHED_MOST;
		err = put_in(ends[1], fds + at, n);
	}
	charge_to(real);
	close(ends[1]);
	if (!err)
		return ends[0];
	close(ends[0]);
	return err;
}

/* Without room for descriptors they are closed on the way. */
static void empty(int box)
{
	int off = -1;
	char byte;

	setsockopt(box, SOL_SOCKET, SO_PEEK_OFF, &off, sizeof(off));
	while (recv(box, &byte, 1, MSG_DONTWAIT) > 0)
		;
}

/* The next message's descriptors, at most `most`: how many there were. The message stays. */
static int peek(int box, int *fds, unsigned most)
{
	int got[CUDAPOOL_ATTACHED_MOST];
	struct rights came = {.fds = got, .most = CUDAPOOL_ATTACHED_MOST};
	char byte;
	ssize_t n = rights_receive(box, &byte, 1, &came, MSG_PEEK | MSG_DONTWAIT);

	if (n < 0)
		return n == -EAGAIN ? -ENODATA : (int)n;
	if (n == 1 && came.count && came.count <= most && !came.lost) {
		memcpy(fds, got, came.count * sizeof(int));
		return (int)came.count;
	}
	rights_close(got, came.count);
	return came.lost ? -EMFILE : -EBADMSG;
}

static bool is_box(int fd)
{
	int type = 0, domain = 0;
	socklen_t size = sizeof(int);

	return !getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &size) && domain == AF_UNIX &&
	       !getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size) && type == SOCK_DGRAM;
}

/* ---- with systemd ----------------------------------------------------------------------------- */

static void remove_from_systemd(const char *name)
{
	char text[NOTIFY_TEXT_LEN];

	snprintf(text, sizeof(text), "FDSTOREREMOVE=1\nFDNAME=%s", name);
	notify_send(text, -1);
}

/* Not to be removed because its other end was closed: that is what other services want. */
static int store(const char *name, int fd)
{
	char text[NOTIFY_TEXT_LEN];

	snprintf(text, sizeof(text), "FDSTORE=1\nFDNAME=%s\nFDPOLL=0", name);
	return fd < 0 ? -errno : notify_send(text, fd);
}

static void stop_waiting(struct deposit *deposit)
{
	if (!deposit->waiting)
		return;
	deposit->waiting = false;
	loop_timer_cancel(&deposit->limit);
	loop_unwatch(&deposit->barrier);
	close(deposit->barrier.fd);
	close(deposit->probe);
	remove_from_systemd(deposit->probe_name);
}

static void answered(struct loop_watch *watch, uint32_t events)
{
	struct deposit *deposit = container_of(watch, struct deposit, barrier);
	struct pollfd probe = {.fd = deposit->probe};
	bool kept = poll(&probe, 1, 0) == 0;

	if (deposit != &self && self.waiting) /* it was asked before, so that is answered by now */
		answered(&self.barrier, events);
	stop_waiting(deposit);
	deposit->done(deposit, kept || (deposit != &self && state != STATE_ON) ? 0 : -EXFULL);
}

static void silent(struct loop_timer *timer)
{
	struct deposit *deposit = container_of(timer, struct deposit, limit);

	stop_waiting(deposit);
	deposit->done(deposit, -ETIMEDOUT);
}

/* What was sent before is followed by a probe and a barrier. limit_ms 0: none. */
static int ask(struct deposit *deposit, unsigned limit_ms)
{
	int probe[2], barrier[2], err;

	if (pipe2(probe, O_CLOEXEC))
		return -errno;
	if (pipe2(barrier, O_CLOEXEC)) {
		err = -errno;
		close(probe[0]);
		close(probe[1]);
		return err;
	}
	deposit->probe = probe[0];
	deposit->barrier = (struct loop_watch){.fd = barrier[0], .ready = answered};
	deposit->limit = (struct loop_timer){.fire = silent};
	deposit->waiting = true;
	snprintf(deposit->probe_name, sizeof(deposit->probe_name), PROBE_PREFIX "%u", probes++);
	err = store(deposit->probe_name, probe[1]);
	if (err)
		close(barrier[1]);
	else
		err = notify_send("BARRIER=1", barrier[1]);
	if (!err)
		err = loop_watch(&deposit->barrier, 0);
	if (err)
		stop_waiting(deposit);
	else if (limit_ms)
		loop_timer_set(&deposit->limit, limit_ms);
	return err;
}

/* ---- leaving and taking back ---------------------------------------------------------------------- */

static void name_it(struct deposit *deposit, const uint8_t token[16])
{
	char hex[2 * IMAGE_TOKEN_LEN + 1];

	image_hex(hex, token);
	snprintf(deposit->name, sizeof(deposit->name), PREFIX "%s", hex);
}

int deposit_start(struct deposit *deposit, const uint8_t token[16], int table, const int *fds, unsigned count)
{
	int err;

	deposit->box = pack(table, fds, count);
	if (deposit->box < 0)
		return deposit->box;
	name_it(deposit, token);
	deposit->made = true;
	err = store(deposit->name, fcntl(deposit->box, F_DUPFD_CLOEXEC, NOTIFY_FIRST));
	if (!err)
		err = ask(deposit, DEPOSIT_LIMIT_MS);
	if (err)
		deposit_end(deposit);
	return err;
}

void deposit_end(struct deposit *deposit)
{
	stop_waiting(deposit);
	if (!deposit->made)
		return;
	empty(deposit->box);
	remove_from_systemd(deposit->name);
	deposit_leave(deposit);
}

void deposit_leave(struct deposit *deposit)
{
	close(deposit->box);
	deposit->made = false;
}

int deposit_find(struct deposit *deposit, const uint8_t token[16])
{
	struct notify_passed *passed;
	unsigned count, i;

	name_it(deposit, token);
	passed = notify_passed(&count);
	for (i = 0; i < count; i++) {
		if (passed[i].fd < 0 || strcmp(passed[i].name, deposit->name) || !is_box(passed[i].fd))
			continue;
		deposit->box = passed[i].fd;
		deposit->made = true;
		passed[i].fd = -1;
		return 0;
	}
	return -ENOENT;
}

int deposit_table(struct deposit *deposit)
{
	int start = 0, table, n;

	if (setsockopt(deposit->box, SOL_SOCKET, SO_PEEK_OFF, &start, sizeof(start)))
		return -errno;
	n = peek(deposit->box, &table, 1);
	return n < 0 ? n : table;
}

int deposit_pieces(struct deposit *deposit, int *fds, unsigned count)
{
	unsigned got = 0;
	int n = 0, more;

	for (; got < count && n >= 0; got += n > 0 ? (unsigned)n : 0)
		n = peek(deposit->box, fds + got, count - got);
	if (n >= 0) {
		n = peek(deposit->box, &more, 1);
		if (n == -ENODATA)
			return 0;
		if (n > 0)
			close(more);
		n = -EBADMSG;
	}
	rights_close(fds, got);
	return n == -ENODATA ? -EBADMSG : n;
}

/* ---- the start -------------------------------------------------------------------------------- */

static void self_known(struct deposit *deposit, int error)
{
	state = error ? STATE_NONE : STATE_ON;
	if (error)
		cudapool_log(CUDAPOOL_LOG_INFO,
			     "systemd keeps no descriptors for this service (FileDescriptorStoreMax=): if the pool is "
			     "killed in the middle of a dump, the GPU memory that was being dumped is lost");
}

void deposits_init(void)
{
	if (!notify_wanted())
		return;
	self.done = self_known;
	state = ask(&self, 0) ? STATE_NONE : STATE_UNKNOWN;
}

bool deposits_possible(void)
{
	return state != STATE_NONE;
}

static bool is_own(const struct notify_passed *passed)
{
	return !strncmp(passed->name, PREFIX, strlen(PREFIX)) && is_box(passed->fd);
}

/* Nothing to speak of: a keeper was killed while it asked, or right after it had emptied a box. */
static bool is_leftover(const struct notify_passed *passed)
{
	struct pollfd box = {.fd = passed->fd, .events = POLLIN};

	return !strncmp(passed->name, PROBE_PREFIX, strlen(PROBE_PREFIX)) ||
	       (is_own(passed) && poll(&box, 1, 0) == 0);
}

void deposits_discard(void)
{
	unsigned count, i, unknown = 0;
	struct notify_passed *passed = notify_passed(&count);
	char example[NOTIFY_NAME_LEN] = "";

	for (i = 0; i < count; i++) {
		if (passed[i].fd < 0)
			continue;
		if (!is_leftover(&passed[i])) {
			unknown++;
			memcpy(example, passed[i].name, sizeof(example));
		}
		if (passed[i].name[0])
			remove_from_systemd(passed[i].name);
		if (is_own(&passed[i]))
			empty(passed[i].fd);
		close(passed[i].fd);
		passed[i].fd = -1;
	}
	if (unknown)
		cudapool_log(CUDAPOOL_LOG_ERR,
			     "systemd had %u descriptors that belong to no parked process (such as '%s'): let go of",
			     unknown, example);
}
