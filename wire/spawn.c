// SPDX-License-Identifier: MIT
/* Starts a pool on demand, also from inside CRIU. */
#include "spawn.h"
#include "clock.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifndef SYS_close_range
#define SYS_close_range 436
#endif
#ifndef SYS_pidfd_open
#define SYS_pidfd_open 434
#endif

#define PROBE_MS        5    /* between two attempts to connect */
#define LOST_RACE_MS    2000 /* how long another caller's pool may take to listen once ours has given way to it */
#define FD_MAX          65536
#define ENVIRONMENT_MAX 4096
#define CGROUP_FILE     8192 /* bytes of /proc/PID/cgroup, and of one block of mountinfo */

/* What the daemon-to-be tells through the pipe: who it is, and why it could not be executed. */
struct report {
	int32_t pid;
	int32_t error;
};

static int __attribute__((format(printf, 3, 4))) fail(char *text, int error, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vsnprintf(text, CUDAPOOL_TEXT_LEN, format, args);
	va_end(args);
	return error;
}

/* 0 if something listens there. */
static int probe(const struct sockaddr_un *address)
{
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	int ret = 0;

	if (fd < 0)
		return -errno;
	if (connect(fd, (const struct sockaddr *)address, sizeof(*address)) &&
	    errno != EAGAIN) /* EAGAIN: listens, is busy */
		ret = -errno;
	close(fd);
	return ret;
}

static int find_in_path(const char *name, char *out, size_t size)
{
	const char *path = getenv("PATH"), *end;
	struct stat st;
	int n;

	if (!path || !*path)
		path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
	for (;; path = end + 1) {
		end = strchrnul(path, ':');
		n = snprintf(out, size, "%.*s/%s", (int)(end - path), path, name);
		if (end > path && n < (int)size && !access(out, X_OK) && !stat(out, &st) && S_ISREG(st.st_mode))
			return 0;
		if (!*end)
			return -ENOENT;
	}
}

/* The daemon changes to the root directory before it could look at a relative path. */
static int make_absolute(const char *path, char *out, size_t size)
{
	char directory[PATH_MAX] = "";

	if (path[0] != '/' && !getcwd(directory, sizeof(directory)))
		return -errno;
	return snprintf(out, size, "%s%s%s", directory, path[0] == '/' ? "" : "/", path) < (int)size ? 0
												     : -ENAMETOOLONG;
}

static ssize_t read_some(const char *path, char *buffer, size_t size)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	size_t used = 0;
	ssize_t n = 0;

	if (fd < 0)
		return -errno;
	while (used < size - 1) {
		n = read(fd, buffer + used, size - 1 - used);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			break;
		used += n;
	}
	close(fd);
	buffer[used] = '\0';
	return used;
}

/*
 * runc puts the CRIU that restores into the container's cgroups. A pool there would be counted, limited
 * and killed with the container, so it leaves them: those that bear a container manager's name, and
 * those that are not the cgroups of the caller's parent. Where else the administrator put the caller (a service, a
 * session) the pool stays.
 */
struct cgroups {
	char own[CGROUP_FILE], parents[CGROUP_FILE]; /* lines of HIERARCHY:CONTROLLERS:PATH; the same order in both */
};

static void read_cgroups(struct cgroups *cgroups)
{
	char path[32];

	snprintf(path, sizeof(path), "/proc/%d/cgroup", getppid());
	if (read_some("/proc/self/cgroup", cgroups->own, sizeof(cgroups->own)) < 0)
		cgroups->own[0] = '\0';
	if (read_some(path, cgroups->parents, sizeof(cgroups->parents)) < 0)
		cgroups->parents[0] = '\0';
}

static bool names_container(const char *path, size_t length)
{
	static const char *const names[] = {"libpod", "docker", "crio-", "cri-containerd", "kubepods", "lxc"};
	size_t i;

	for (i = 0; i < sizeof(names) / sizeof(names[0]); i++)
		if (memmem(path, length, names[i], strlen(names[i])))
			return true;
	return false;
}

/* True if one of a mount's comma-separated options is `option`, which has `length` bytes. */
static bool has_option(const char *options, const char *option, size_t length)
{
	const char *end;

	for (;; options = end + 1) {
		end = strchrnul(options, ',');
		if ((size_t)(end - options) == length && !memcmp(options, option, length))
			return true;
		if (!*end)
			return false;
	}
}

/* Whether the hierarchy of the mount with these options (NULL: version 2) is one where we are in a container's cgroup.
 */
static bool must_leave(const struct cgroups *cgroups, const char *options)
{
	const char *line, *end, *name, *colon, *theirs, *path;
	size_t first;

	for (line = cgroups->own; *line; line = *end ? end + 1 : end) {
		end = strchrnul(line, '\n');
		name = strchr(line, ':');
		colon = name ? strchr(++name, ':') : NULL;
		if (!colon || colon > end)
			continue;
		first = strcspn(name, ",:"); /* one controller names its hierarchy */
		if (options ? !first || !has_option(options, name, first) : first > 0)
			continue;
		path = colon + 1;
		theirs = memmem(cgroups->parents, strlen(cgroups->parents), line, path - line);
		return names_container(path, end - path) ||
		       (theirs &&
			(strncmp(theirs, line, end - line) || (theirs[end - line] && theirs[end - line] != '\n')));
	}
	return false;
}

/* Moves the calling process into the root of the hierarchy that is mounted at `mount`. */
static void join_root(const char *mount)
{
	char path[PATH_MAX];
	int fd;

	if (snprintf(path, sizeof(path), "%s/cgroup.procs", mount) >= (int)sizeof(path))
		return;
	fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd < 0)
		return;
	if (write(fd, "0", 1) < 0) {
		/* Best effort: a hierarchy may be read-only, or not ours. */
	}
	close(fd);
}

/* One line of mountinfo: "ID PARENT MAJOR:MINOR ROOT MOUNTPOINT OPTIONS ... - TYPE SOURCE OPTIONS" */
static void leave_mount(const struct cgroups *cgroups, char *line)
{
	char *tail = strstr(line, " - cgroup"), *field[5], *rest = line, *options = NULL;
	size_t i;

	if (!tail)
		return;
	if (strncmp(tail, " - cgroup2 ", 11))
		options = strrchr(tail, ' ') + 1;
	for (i = 0; i < 5; i++)
		field[i] = strsep(&rest, " ");
	if (field[4] && !strcmp(field[3], "/") && must_leave(cgroups, options))
		join_root(field[4]);
}

static void leave_cgroups(const struct cgroups *cgroups)
{
	char block[CGROUP_FILE], *line, *newline;
	size_t used = 0;
	ssize_t n;
	int fd = open("/proc/self/mountinfo", O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		return;
	while ((n = read(fd, block + used, sizeof(block) - 1 - used)) > 0) {
		used += n;
		block[used] = '\0';
		for (line = block; (newline = strchr(line, '\n')); line = newline + 1) {
			*newline = '\0';
			leave_mount(cgroups, line);
		}
		used -= line - block;
		memmove(block, line, used);
		if (used == sizeof(block) - 1)
			used = 0; /* a line longer than the block is none of a cgroup */
	}
	close(fd);
}

static void close_from(int first)
{
	struct rlimit limit;
	int fd;

	if (syscall(SYS_close_range, first, ~0u, 0) == 0)
		return;
	if (getrlimit(RLIMIT_NOFILE, &limit) || limit.rlim_cur > FD_MAX)
		limit.rlim_cur = FD_MAX;
	for (fd = first; fd < (int)limit.rlim_cur; fd++)
		close(fd);
}

static void reset_signals(void)
{
	struct sigaction action = {.sa_handler = SIG_DFL};
	sigset_t none;
	int signal;

	for (signal = 1; signal < NSIG; signal++)
		sigaction(signal, &action, NULL);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
}

/* The grandchild: becomes the daemon. Only what is safe after a fork in a process with threads. */
static void __attribute__((noreturn))
become_daemon(char *const *arguments, char *const *environment, int pipe_end, const struct cgroups *cgroups)
{
	int null, standard, pipe_fd = fcntl(pipe_end, F_DUPFD, 10); /* clear of 0 to 2, which may be closed */
	struct report report = {getpid(), 0};

	if (pipe_fd < 0 || write(pipe_fd, &report.pid, sizeof(report.pid)) < 0)
		_exit(1);
	leave_cgroups(cgroups);
	prctl(PR_SET_PDEATHSIG, 0);
	umask(022);
	null = open("/dev/null", O_RDWR);
	for (standard = 0; standard <= 2 && null >= 0; standard++)
		dup2(null, standard);
	if (dup2(pipe_fd, 3) == 3 && fcntl(3, F_SETFD, FD_CLOEXEC) == 0 && null >= 0 && chdir("/") == 0) {
		close_from(4);
		reset_signals();
		execve(arguments[0], arguments, environment);
	}
	report.error = errno;
	if (write(3, &report.error, sizeof(report.error)) < 0) {
		/* The caller has stopped waiting. */
	}
	_exit(1);
}

/* Two forks, so that the daemon is no child of the caller. Returns the pipe's end to read from. */
static int start(char *const *arguments, char *const *environment, char *text)
{
	struct cgroups cgroups;
	int pipes[2], status, ret;
	sigset_t all, old;
	pid_t child, done;

	if (pipe2(pipes, O_CLOEXEC))
		return fail(text, -errno, "cannot make a pipe: %s", strerror(errno));

	read_cgroups(&cgroups);

	/* No handler of the caller's may run in the children, nor learn of them. */
	sigfillset(&all);
	sigprocmask(SIG_SETMASK, &all, &old);
	child = fork();
	if (child == 0) {
		setsid();
		child = fork();
		if (child == 0)
			become_daemon(arguments, environment, pipes[1], &cgroups);
		_exit(child < 0);
	}
	ret = child < 0 ? fail(text, -errno, "cannot fork: %s", strerror(errno)) : pipes[0];
	close(pipes[1]);
	if (child < 0)
		close(pipes[0]);
	else
		do
			done = waitpid(child, &status, 0); /* it only forks: no need of a limit */
		while (done < 0 && errno == EINTR);
	sigprocmask(SIG_SETMASK, &old, NULL);
	return ret;
}

/* Reads the report; the pipe ends when the daemon is executed, or failed to be. */
static int read_report(int fd, struct report *report, int64_t deadline)
{
	struct pollfd p = {.fd = fd, .events = POLLIN};
	size_t used = 0;
	int64_t left;
	ssize_t n;

	memset(report, 0, sizeof(*report));
	while (used < sizeof(*report)) {
		left = deadline - cudapool_now_ms();
		if (left <= 0)
			return -ETIMEDOUT;
		if (poll(&p, 1, (int)left) <= 0)
			continue;
		n = read(fd, (char *)report + used, sizeof(*report) - used);
		if (n == 0)
			break;
		if (n > 0)
			used += n;
		else if (errno != EINTR)
			return -errno;
	}
	return 0;
}

static int wait_until_it_listens(const struct sockaddr_un *address, const char *daemon, int pid, int64_t deadline,
				 char *text)
{
	int pidfd = syscall(SYS_pidfd_open, pid, 0), ret;
	bool ended = pidfd < 0 && errno == ESRCH;
	struct pollfd p = {.fd = pidfd, .events = POLLIN};
	int64_t started = cudapool_now_ms();

	for (;;) {
		ret = probe(address);
		if (ret == 0) {
			fail(text, 0, "started a pool: %.100s (process %d)", daemon, pid);
			break;
		}
		if (ret != -ENOENT && ret != -ECONNREFUSED) {
			fail(text, ret, "%.100s: %s", address->sun_path, strerror(-ret));
			break;
		}
		if (cudapool_now_ms() >= deadline && ended) {
			ret = fail(text, -EPIPE,
				   "%.80s ended at once: run '%.40s --foreground --socket %.60s' to see why", daemon,
				   daemon, address->sun_path);
			break;
		}
		if (cudapool_now_ms() >= deadline) {
			ret = fail(text, -ETIMEDOUT,
				   "%.80s (process %d) does not listen on %.80s after %lld ms: see its log", daemon,
				   pid, address->sun_path, (long long)(cudapool_now_ms() - started));
			break;
		}
		if (poll(&p, 1, PROBE_MS) > 0 && !ended) {
			ended = true; /* it failed, or gave way to a pool that somebody else just started */
			p.fd = -1;
			if (deadline > cudapool_now_ms() + LOST_RACE_MS)
				deadline = cudapool_now_ms() + LOST_RACE_MS;
		}
	}
	if (pidfd >= 0)
		close(pidfd);
	return ret;
}

/* The caller's environment without what is not meant for the pool. */
static void copy_environment(char **out)
{
	static const char *const unwanted[] = {
		"NOTIFY_SOCKET=", "LISTEN_PID=", "LISTEN_FDS=", "LISTEN_FDNAMES=", "WATCHDOG_PID=", "WATCHDOG_USEC="};
	size_t i, j, used = 0;
	bool keep;

	for (i = 0; environ && environ[i] && used < ENVIRONMENT_MAX; i++) {
		keep = strncmp(environ[i], "LD_PRELOAD=", 11) || !strstr(environ[i], "libcudapool.so");
		for (j = 0; j < sizeof(unwanted) / sizeof(unwanted[0]); j++)
			keep = keep && strncmp(environ[i], unwanted[j], strlen(unwanted[j]));
		if (keep)
			out[used++] = environ[i];
	}
	out[used] = NULL;
}

int cudapool_spawn(const char *daemon, const char *socket, unsigned idle_s, int limit_ms, char *text)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int64_t deadline = cudapool_now_ms() + (limit_ms > 0 ? limit_ms : 0);
	char found[PATH_MAX], program[PATH_MAX], idle[16], *environment[ENVIRONMENT_MAX + 1];
	struct report report;
	int ret, fd;

	if (!socket || !*socket)
		socket = CUDAPOOL_SOCKET_DEFAULT;
	ret = make_absolute(socket, address.sun_path, sizeof(address.sun_path));
	if (ret)
		return fail(text, ret, "%.100s: %s: a socket's path has at most %zu bytes", socket, strerror(-ret),
			    sizeof(address.sun_path) - 1);
	ret = probe(&address);
	if (ret == 0)
		return fail(text, 0, "a pool listens on %.100s", socket);
	if (ret != -ENOENT && ret != -ECONNREFUSED)
		return fail(text, ret, "%.100s: %s", socket, strerror(-ret));

	if (!daemon || !*daemon) {
		if (find_in_path("cudapoold", found, sizeof(found)))
			return fail(text, -ENOENT, "there is no cudapoold in PATH: set CUDAPOOL_DAEMON to its path");
		daemon = found;
	}
	ret = make_absolute(daemon, program, sizeof(program));
	if (!ret && access(program, X_OK))
		ret = -errno;
	if (ret)
		return fail(text, ret, "%.120s: %s: correct CUDAPOOL_DAEMON", daemon, strerror(-ret));

	snprintf(idle, sizeof(idle), "%u", idle_s);
	copy_environment(environment);
	fd = start((char *const[]){program, "--foreground", "--socket", address.sun_path, "--idle", idle, NULL},
		   environment, text);
	if (fd < 0)
		return fd;
	ret = read_report(fd, &report, deadline);
	close(fd);
	if (ret == 0 && report.error)
		ret = -report.error;
	if (ret == 0 && !report.pid)
		ret = -EAGAIN; /* the second fork failed */
	if (ret)
		return fail(text, ret, "%.120s cannot be executed: %s", program, strerror(-ret));
	return wait_until_it_listens(&address, program, report.pid, deadline, text);
}
