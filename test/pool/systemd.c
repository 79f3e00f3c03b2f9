// SPDX-License-Identifier: MIT
/*
 * Does for a pool what systemd does, as far as the pool can tell: systemd NOTIFY LISTEN MAX PROGRAM ARGUMENT… Holds
 * the socket LISTEN, listens on the socket NOTIFY, keeps up to MAX descriptors, starts the program anew when it was
 * killed, and hands over what it has. Says what happens, a line each; ends with its standard input, and the program
 * with it.
 *
 * What it hears there:
 *   silent | speak     leaves messages where they are from now on, or not any more
 *   kill               kills the program, which it then starts again
 *   foreign            puts descriptors of its own among those that it keeps
 *   count              says how many it keeps
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#define MOST	 1024
#define NAME_LEN 128

static struct {
	int fd;
	char name[NAME_LEN];
} kept[MOST];
static unsigned count, most;
static int notify, listening;
static const char *notify_path;
static char **command;
static pid_t program;
static bool silent;

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

static int bound(const char *path, int type, mode_t mode)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, type | SOCK_CLOEXEC, 0);

	snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
	if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof(address)) || chmod(path, mode))
		fail(path);
	return fd;
}

/* ---- the program ------------------------------------------------------------------------------ */

/* The socket first, then what is kept. */
static void start(void)
{
	static char names[MOST * (NAME_LEN + 1) + 64];
	static int copies[MOST + 1];
	char number[16];
	size_t length;
	unsigned i;

	program = fork();
	if (program < 0)
		fail("fork");
	if (program) {
		printf("started %d %u\n", program, count);
		return;
	}
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	length = (size_t)snprintf(names, sizeof(names), "cudapoold.socket");
	for (i = 0; i <= count; i++) {
		copies[i] = fcntl(i ? kept[i - 1].fd : listening, F_DUPFD, 4 * MOST);
		if (i)
			length += (size_t)snprintf(names + length, sizeof(names) - length, ":%s", kept[i - 1].name);
	}
	for (i = 0; i <= count; i++)
		if (dup2(copies[i], 3 + (int)i) < 0)
			fail("dup2");
	snprintf(number, sizeof(number), "%d", getpid());
	setenv("LISTEN_PID", number, 1);
	snprintf(number, sizeof(number), "%u", count + 1);
	setenv("LISTEN_FDS", number, 1);
	setenv("LISTEN_FDNAMES", names, 1);
	setenv("NOTIFY_SOCKET", notify_path, 1);
	execv(command[0], command);
	fail(command[0]);
}

static void look_after(void)
{
	int status;

	if (waitpid(program, &status, WNOHANG) != program)
		return;
	if (WIFEXITED(status)) {
		printf("ended %d\n", WEXITSTATUS(status));
		exit(0);
	}
	start();
}

/* ---- what it says ------------------------------------------------------------------------------ */

static bool has_line(const char *text, const char *line)
{
	size_t n = strlen(line);

	for (; text; text = strchr(text, '\n') ? strchr(text, '\n') + 1 : NULL)
		if (!strncmp(text, line, n) && (!text[n] || text[n] == '\n'))
			return true;
	return false;
}

static void keep(const char *name, int fd)
{
	if (count >= most) {
		printf("refused %s\n", name);
		close(fd);
		return;
	}
	kept[count].fd = fd;
	snprintf(kept[count++].name, NAME_LEN, "%s", name);
	printf("kept %s\n", name);
}

static void drop(const char *name)
{
	unsigned i = 0;

	printf("removed %s\n", name);
	while (i < count) {
		if (strcmp(kept[i].name, name)) {
			i++;
			continue;
		}
		close(kept[i].fd);
		kept[i] = kept[--count];
	}
}

static void hear(void)
{
	union {
		struct cmsghdr align;
		char bytes[CMSG_SPACE(253 * sizeof(int)) + CMSG_SPACE(sizeof(struct ucred))];
	} control;
	char text[4096], name[NAME_LEN] = "stored", *at;
	struct iovec iov = {.iov_base = text, .iov_len = sizeof(text) - 1};
	struct msghdr header = {
		.msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control)};
	ssize_t n = recvmsg(notify, &header, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	struct ucred who = {.pid = 0};
	struct cmsghdr *cmsg;
	int fds[253];
	size_t fd_count = 0, i;

	if (n < 0)
		return;
	text[n] = '\0';
	for (cmsg = CMSG_FIRSTHDR(&header); cmsg; cmsg = CMSG_NXTHDR(&header, cmsg)) {
		if (cmsg->cmsg_type == SCM_CREDENTIALS)
			memcpy(&who, CMSG_DATA(cmsg), sizeof(who));
		if (cmsg->cmsg_type == SCM_RIGHTS) {
			fd_count = (cmsg->cmsg_len - CMSG_LEN(0)) / sizeof(int);
			memcpy(fds, CMSG_DATA(cmsg), fd_count * sizeof(int));
		}
	}
	at = strstr(text, "FDNAME=");
	if (at)
		snprintf(name, sizeof(name), "%.*s", (int)strcspn(at + 7, "\n"), at + 7);
	for (i = 0; i < fd_count; i++) {
		if (who.pid == program && has_line(text, "FDSTORE=1"))
			keep(name, fds[i]);
		else
			close(fds[i]); /* a barrier, or nobody's business */
	}
	if (who.pid == program && has_line(text, "FDSTOREREMOVE=1"))
		drop(name);
	if (who.pid == program && has_line(text, "READY=1"))
		puts("ready");
}

/* ---- what it is told ---------------------------------------------------------------------------- */

static void told(const char *line)
{
	int ends[2];

	if (!strcmp(line, "silent") || !strcmp(line, "speak")) {
		silent = line[1] == 'i';
		puts(line);
	} else if (!strcmp(line, "kill")) {
		kill(program, SIGKILL);
	} else if (!strcmp(line, "count")) {
		printf("count %u\n", count);
	} else if (!strcmp(line, "foreign")) {
		if (socketpair(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0, ends) || send(ends[0], "no box", 6, 0) != 6)
			fail("foreign");
		close(ends[0]);
		keep("cudapool-00112233445566778899aabbccddeeff", ends[1]);
		keep("stored", open("/dev/null", O_RDONLY | O_CLOEXEC));
		keep("cudapool-probe-7", open("/dev/null", O_RDONLY | O_CLOEXEC));
		keep("cudapool-", memfd_create("x", MFD_CLOEXEC));
	}
}

int main(int argc, char **argv)
{
	struct pollfd wait[2] = {{.fd = STDIN_FILENO, .events = POLLIN}, {.events = POLLIN}};
	char line[64];
	size_t length = 0;
	int yes = 1;

	if (argc < 5)
		return 2;
	setvbuf(stdout, NULL, _IOLBF, 0);
	notify_path = argv[1];
	notify = bound(argv[1], SOCK_DGRAM, 0700);
	setsockopt(notify, SOL_SOCKET, SO_PASSCRED, &yes, sizeof(yes));
	listening = bound(argv[2], SOCK_SEQPACKET, 0660);
	if (listen(listening, 16))
		fail("listen");
	most = (unsigned)atoi(argv[3]);
	if (most > MOST)
		return 2;
	command = argv + 4;
	start();
	for (;;) {
		wait[1].fd = silent ? -1 : notify;
		if (poll(wait, 2, 20) < 0 && errno != EINTR)
			fail("poll");
		if (wait[1].revents)
			hear();
		else
			look_after(); /* what it said before it died counts */
		if (!wait[0].revents)
			continue;
		if (read(STDIN_FILENO, line + length, 1) != 1)
			break;
		if (line[length] == '\n' || length == sizeof(line) - 2) {
			line[length] = '\0';
			length = 0;
			told(line);
		} else {
			length++;
		}
	}
	kill(program, SIGKILL);
	waitpid(program, NULL, 0);
	return 0;
}
