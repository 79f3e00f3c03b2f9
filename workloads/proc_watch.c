// SPDX-License-Identifier: MIT
/*
 * Prints every process creation, execution and end on this host, from the kernel's process connector, and every
 * execution of the files that are its arguments, from fanotify, until its standard input ends. It cannot
 * miss one without saying so: the kernel reports an overrun, and that is printed as 'lost'.
 *
 *   ready                   from here on nothing is missed
 *   fork PARENT CHILD       process ids; threads are left out
 *   exec PID NAME           NAME is the executable's file name, '?' if the process was gone already
 *   exit PID
 *   ran PID                 one of the files is being executed by that process
 *   lost                    events were dropped: the counts are not to be believed
 *
 * 'ran' does not depend on the process being there still when the event is read, as NAME does. The two
 * sources are not in order with each other.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/cn_proc.h>
#include <linux/connector.h>
#include <linux/netlink.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/fanotify.h>
#include <sys/socket.h>
#include <unistd.h>

#define RECEIVE_BUFFER (16 << 20)
#define DRAIN_LIMIT    100000

static int subscribe(void)
{
	struct sockaddr_nl group = {.nl_family = AF_NETLINK, .nl_groups = CN_IDX_PROC};
	int size = RECEIVE_BUFFER;
	char buf[NLMSG_SPACE(sizeof(struct cn_msg) + sizeof(enum proc_cn_mcast_op))] __attribute__((aligned(8))) = {0};
	struct nlmsghdr *h = (struct nlmsghdr *)buf;
	struct cn_msg *cn = NLMSG_DATA(h);
	enum proc_cn_mcast_op op = PROC_CN_MCAST_LISTEN;
	int fd = socket(PF_NETLINK, SOCK_DGRAM | SOCK_CLOEXEC, NETLINK_CONNECTOR);

	if (fd < 0)
		return -errno;
	/* Best effort: without the privilege the default size stays, and an overrun is noticed all the same. */
	setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof(size));
	h->nlmsg_len = NLMSG_LENGTH(sizeof(*cn) + sizeof(op));
	h->nlmsg_type = NLMSG_DONE;
	cn->id.idx = CN_IDX_PROC;
	cn->id.val = CN_VAL_PROC;
	cn->len = sizeof(op);
	memcpy(cn->data, &op, sizeof(op));
	if (bind(fd, (struct sockaddr *)&group, sizeof(group)) || send(fd, buf, h->nlmsg_len, 0) < 0) {
		int err = -errno;

		close(fd);
		return err;
	}
	return fd;
}

/* Watches the executions of these files. A descriptor or negative errno. */
static int mark(char **files)
{
	int fd =
		fanotify_init(FAN_CLASS_NOTIF | FAN_CLOEXEC | FAN_NONBLOCK | FAN_UNLIMITED_QUEUE, O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		return -errno;
	for (; *files; files++) {
		if (fanotify_mark(fd, FAN_MARK_ADD, FAN_OPEN_EXEC, AT_FDCWD, *files)) {
			int err = -errno;

			close(fd);
			return err;
		}
	}
	return fd;
}

/* 0 or negative errno. */
static int receive_marked(int fd)
{
	char buf[4096] __attribute__((aligned(8)));
	const struct fanotify_event_metadata *event = (const void *)buf;
	ssize_t left = read(fd, buf, sizeof(buf));

	if (left < 0)
		return errno == EAGAIN || errno == EINTR ? 0 : -errno;
	for (; FAN_EVENT_OK(event, left); event = FAN_EVENT_NEXT(event, left)) {
		if (event->mask & FAN_Q_OVERFLOW)
			puts("lost");
		else
			printf("ran %d\n", event->pid);
		if (event->fd >= 0)
			close(event->fd);
	}
	return 0;
}

static void print_exec(int pid)
{
	char link[32], exe[PATH_MAX];
	const char *name;
	ssize_t n;

	snprintf(link, sizeof(link), "/proc/%d/exe", pid);
	n = readlink(link, exe, sizeof(exe) - 1);
	if (n < 0)
		n = 0;
	exe[n] = '\0';
	name = strrchr(exe, '/');
	/* A name with a newline in it would be taken for another event. */
	printf("exec %d %s\n", pid, name && name[1] && !strchr(name, '\n') ? name + 1 : "?");
}

static void print_event(const struct proc_event *e)
{
	switch (e->what) {
	case PROC_EVENT_FORK:
		if (e->event_data.fork.child_pid == e->event_data.fork.child_tgid)
			printf("fork %d %d\n", e->event_data.fork.parent_tgid, e->event_data.fork.child_tgid);
		break;
	case PROC_EVENT_EXEC:
		print_exec(e->event_data.exec.process_tgid);
		break;
	case PROC_EVENT_EXIT:
		if (e->event_data.exit.process_pid == e->event_data.exit.process_tgid)
			printf("exit %d\n", e->event_data.exit.process_tgid);
		break;
	default:
		break;
	}
}

/* 1 if the kernel acknowledged the subscription, 0 if not, negative errno. */
static int receive(int fd)
{
	char buf[16384] __attribute__((aligned(8)));
	struct sockaddr_nl from;
	socklen_t from_len = sizeof(from);
	int acknowledged = 0;
	ssize_t got = recvfrom(fd, buf, sizeof(buf), MSG_DONTWAIT, (struct sockaddr *)&from, &from_len);
	size_t left;

	if (got < 0) {
		if (errno == ENOBUFS) {
			puts("lost");
			return 0;
		}
		return errno == EAGAIN || errno == EINTR ? 0 : -errno;
	}
	if (from_len != sizeof(from) || from.nl_pid) /* not from the kernel */
		return 0;
	left = (size_t)got;
	for (struct nlmsghdr *h = (struct nlmsghdr *)buf; NLMSG_OK(h, left); h = NLMSG_NEXT(h, left)) {
		const struct cn_msg *cn = NLMSG_DATA(h);
		struct proc_event e = {0};

		if (h->nlmsg_type == NLMSG_NOOP || h->nlmsg_len < NLMSG_LENGTH(sizeof(*cn)) ||
		    cn->id.idx != CN_IDX_PROC)
			continue;
		if (cn->len > h->nlmsg_len - NLMSG_LENGTH(sizeof(*cn)))
			continue;
		memcpy(&e, cn->data, cn->len < sizeof(e) ? cn->len : sizeof(e));
		if (e.what == PROC_EVENT_NONE)
			acknowledged = 1;
		print_event(&e);
	}
	return acknowledged;
}

static int watch(int fd, int marked)
{
	int ret, left = DRAIN_LIMIT;

	for (;;) {
		struct pollfd p[3] = {
			{.fd = fd, .events = POLLIN},
			{.fd = marked, .events = POLLIN}, /* -1 is left out */
			{.fd = STDIN_FILENO, .events = POLLIN},
		};

		/* At the end what is queued still counts; the limit is for a host on which the queue never empties. */
		if (poll(p, 3, left < DRAIN_LIMIT ? 0 : -1) < 0 && errno != EINTR)
			return -errno;
		if (p[2].revents && (!left-- || !(p[0].revents | p[1].revents)))
			return 0;
		if (p[0].revents) {
			ret = receive(fd);
			if (ret < 0)
				return ret;
			if (ret > 0)
				puts("ready");
		}
		if (p[1].revents) {
			ret = receive_marked(marked);
			if (ret < 0)
				return ret;
		}
	}
}

int main(int argc, char **argv)
{
	int marked = -1, fd, ret;

	setvbuf(stdout, NULL, _IOLBF, 0);
	if (argc > 1) {
		marked = mark(argv + 1);
		if (marked < 0) {
			fprintf(stderr, "proc_watch: cannot watch %s%s: %s\n", argv[1], argc > 2 ? " or another" : "",
				strerror(-marked));
			return 3;
		}
	}
	fd = subscribe();
	if (fd < 0) {
		fprintf(stderr,
			"proc_watch: %s (it needs root in the host's first pid namespace and CONFIG_PROC_EVENTS)\n",
			strerror(-fd));
		return 3;
	}
	ret = watch(fd, marked);
	if (ret < 0)
		fprintf(stderr, "proc_watch: %s\n", strerror(-ret));
	close(fd);
	return ret < 0 ? 1 : 0;
}
