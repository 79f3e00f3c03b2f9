// SPDX-License-Identifier: MIT
/* The pool's socket: made safely, or taken over from systemd; one pool per socket. */
#include "listener.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "deposit.h"
#include "notify.h"

#define BACKLOG    128
#define LINKS_MAX  40 /* as the kernel */

static __attribute__((format(printf, 3, 4))) int fail(struct listener *listener, int error, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vsnprintf(listener->text, sizeof(listener->text), format, args);
	va_end(args);
	return error;
}

/* A socket of a socket unit, and nothing that an earlier keeper left with systemd. */
static bool is_passed_socket(const struct notify_passed *passed)
{
	struct stat st;

	return passed->fd >= 0 && strncmp(passed->name, DEPOSIT_PREFIX, strlen(DEPOSIT_PREFIX)) &&
	       (!passed->name[0] || (!fstat(passed->fd, &st) && S_ISSOCK(st.st_mode)));
}

/* How many there are; *fd is the last, and the listener's from now on. */
static unsigned take_passed(int *fd)
{
	unsigned count, found = 0, i;
	struct notify_passed *passed = notify_passed(&count);

	for (i = 0; i < count; i++)
		if (is_passed_socket(&passed[i])) {
			*fd = passed[i].fd;
			passed[i].fd = -1;
			found++;
		}
	return found;
}

static int take_from_systemd(struct listener *listener, unsigned count, int fd)
{
	struct sockaddr_un address = {0};
	socklen_t size = sizeof(address);
	int type = 0, listening = 0;
	socklen_t int_size = sizeof(int);

	if (count != 1)
		return fail(listener, -EINVAL, "systemd passed %u sockets: one ListenSequentialPacket= is wanted",
			    count);
	if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &int_size) ||
	    getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listening, &int_size) ||
	    getsockname(fd, (struct sockaddr *)&address, &size) || address.sun_family != AF_UNIX ||
	    type != SOCK_SEQPACKET || !listening || address.sun_path[0] != '/')
		return fail(listener, -EINVAL,
			    "systemd passed something else than a socket of ListenSequentialPacket=/PATH");
	memcpy(listener->path, address.sun_path, sizeof(listener->path));
	listener->path[sizeof(listener->path) - 1] = '\0';
	fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
	listener->fd = fd;
	return 0;
}

/* Open to those of the socket's group, whatever umask a service manager gave us: what is in it has modes of its own. */
static int make_directory(const char *path)
{
	mode_t mask = umask(0022);
	int err = mkdir(path, 0755) ? -errno : 0;

	umask(mask);
	return err;
}

/* One step of a path; the last one is made where it is missing. *st is of the step itself, also where it is a link. */
static int check_step(struct listener *listener, const char *step, bool last, struct stat *st)
{
	int err = lstat(step, st) ? -errno : 0;

	if (err == -ENOENT && last) {
		err = make_directory(step);
		if (!err && lstat(step, st))
			err = -errno;
	}
	if (err)
		return fail(listener, err, "cannot use %.150s: %s", step, strerror(-err));
	if (!S_ISDIR(st->st_mode) && !S_ISLNK(st->st_mode))
		return fail(listener, -ENOTDIR, "%.150s is no directory", step);
	if (st->st_uid != 0 && st->st_uid != geteuid())
		return fail(listener, -EPERM,
			    "%.100s belongs to user %u, who could replace what is below it: choose a directory of your "
			    "own with --socket",
			    step, st->st_uid);
	if (S_ISDIR(st->st_mode) && (st->st_mode & 022) && !(st->st_mode & S_ISVTX))
		return fail(
			listener, -EPERM,
			"others may write to %.100s: choose a directory of your own with --socket, or chmod go-w it",
			step);
	return 0;
}

/*
 * Whoever can write to the directory can replace the socket, the lock and the journal; whoever can write to one
 * above it, or owns a link on the way, can replace the directory. So each step from the root on is looked at, and
 * links are followed by hand.
 */
static int check_directory(struct listener *listener)
{
	char path[PATH_MAX], target[PATH_MAX], joined[PATH_MAX], after;
	size_t begin = 0, end = 1, next; /* of the step's name, and where the next one begins; the first is the root */
	int links = 0, err;
	struct stat st;
	bool last;
	ssize_t n;

	snprintf(path, sizeof(path), "%s", listener->path);
	if (path[0] != '/' || strrchr(path, '/') == path)
		return fail(listener, -EINVAL, "the socket needs an absolute path in a directory of its own, not '%s'",
			    listener->path);
	*strrchr(path, '/') = '\0';
	for (;;) {
		next = end + strspn(path + end, "/");
		last = !path[next];
		after = path[end];
		path[end] = '\0';
		err = check_step(listener, path, last, &st);
		if (err)
			return err;
		n = S_ISLNK(st.st_mode) ? readlink(path, target, sizeof(target)) : 0;
		path[end] = after;
		if (S_ISLNK(st.st_mode)) {
			if (n <= 0 || ++links > LINKS_MAX ||
			    snprintf(joined, sizeof(joined), "%.*s%.*s%s", target[0] == '/' ? 0 : (int)begin, path,
				     (int)n, target, path + end) >= (int)sizeof(joined))
				return fail(listener, -ELOOP, "the way to %s leads through too many links",
					    listener->path);
			memcpy(path, joined, sizeof(path));
			begin = 0;
			end = 1;
		} else if (!last) {
			begin = next;
			end = begin + strcspn(path + begin, "/");
		} else {
			return 0;
		}
	}
}

/* The lock outlives no process, so it never goes stale. Whoever may read the file could take it, and keep us out. */
static int take_lock(struct listener *listener)
{
	char path[sizeof(listener->path) + 8], holder[16] = "";
	struct stat st;

	snprintf(path, sizeof(path), "%s.lock", listener->path);
	listener->lock_fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (listener->lock_fd < 0)
		return fail(listener, -errno, "cannot open %s: %s", path, strerror(errno));
	if (fstat(listener->lock_fd, &st) || !S_ISREG(st.st_mode) || st.st_uid != geteuid() || st.st_nlink != 1)
		return fail(listener, -EPERM, "%s belongs to somebody else: remove it", path);
	if (fchmod(listener->lock_fd, 0600))
		return fail(listener, -errno, "cannot close %s to others: %s", path, strerror(errno));
	if (flock(listener->lock_fd, LOCK_EX | LOCK_NB)) {
		if (read(listener->lock_fd, holder, sizeof(holder) - 1) > 0)
			holder[strcspn(holder, "\n")] = '\0';
		return fail(listener, -EADDRINUSE, "a pool (process %s) serves %s already: see cudapoold --status",
			    holder, listener->path);
	}
	snprintf(holder, sizeof(holder), "%d\n", getpid());
	if (ftruncate(listener->lock_fd, 0) || pwrite(listener->lock_fd, holder, strlen(holder), 0) < 0)
		return fail(listener, -errno, "cannot write %s: %s", path, strerror(errno));
	return 0;
}

/* What is at the path: nothing any more (0), or somebody who serves it without our lock, such as systemd. */
static int remove_stale(struct listener *listener, const struct sockaddr_un *address)
{
	struct stat st;
	int fd, err = 0;

	if (lstat(listener->path, &st))
		return errno == ENOENT
			       ? 0
			       : fail(listener, -errno, "cannot look at %s: %s", listener->path, strerror(errno));
	if (!S_ISSOCK(st.st_mode))
		return fail(listener, -EEXIST,
			    "%s is there and is no socket: remove it, or choose another with --socket", listener->path);
	fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return fail(listener, -errno, "cannot make a socket: %s", strerror(errno));
	if (!connect(fd, (const struct sockaddr *)address, sizeof(*address)) || errno == EAGAIN || errno == EPROTOTYPE)
		err = fail(listener, -EADDRINUSE, "%s is served by another program (systemd's cudapoold.socket?)",
			   listener->path);
	else if (unlink(listener->path) && errno != ENOENT)
		err = fail(listener, -errno, "cannot remove the stale %s: %s", listener->path, strerror(errno));
	close(fd);
	return err;
}

static int make_socket(struct listener *listener, gid_t group)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	mode_t mask;
	int err;

	snprintf(address.sun_path, sizeof(address.sun_path), "%s", listener->path);
	err = remove_stale(listener, &address);
	if (err)
		return err;
	listener->fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (listener->fd < 0)
		return fail(listener, -errno, "cannot make a socket: %s", strerror(errno));
	/* Nobody can connect before listen(), so the order of what follows leaves no gap. */
	mask = umask(group == (gid_t)-1 ? 0177 : 0117);
	err = bind(listener->fd, (struct sockaddr *)&address, sizeof(address)) ? -errno : 0;
	umask(mask);
	if (err)
		return fail(listener, err, "cannot bind %s: %s", listener->path, strerror(-err));
	listener->ours = true;
	if (group != (gid_t)-1 && chown(listener->path, (uid_t)-1, group))
		return fail(listener, -errno, "cannot give %s to its group: %s", listener->path, strerror(errno));
	if (listen(listener->fd, BACKLOG))
		return fail(listener, -errno, "cannot listen on %s: %s", listener->path, strerror(errno));
	return 0;
}

int listener_open(struct listener *listener, const char *path, gid_t group)
{
	int fd = -1, err;
	unsigned passed = take_passed(&fd);

	*listener = (struct listener){.fd = -1, .lock_fd = -1};
	if (!passed && snprintf(listener->path, sizeof(listener->path), "%s", path) >= (int)sizeof(listener->path))
		return fail(listener, -ENAMETOOLONG, "the socket's path is longer than %zu bytes",
			    sizeof(listener->path) - 1);
	err = passed ? take_from_systemd(listener, passed, fd) : 0;
	if (!err)
		err = check_directory(listener);
	if (!err)
		err = take_lock(listener);
	if (!err && !passed)
		err = make_socket(listener, group);
	if (err)
		listener_close(listener);
	return err;
}

void listener_close(struct listener *listener)
{
	if (listener->ours)
		unlink(listener->path);
	listener->ours = false;
	if (listener->fd >= 0)
		close(listener->fd);
	if (listener->lock_fd >= 0)
		close(listener->lock_fd);
	listener->fd = listener->lock_fd = -1;
}
