// SPDX-License-Identifier: MIT
/* wire/spawn.c: this program is the daemon as well, and then reports what state it was started in. */
#include "spawn.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "clock.h"
#include "tap.h"

static char directory[] = "/tmp/cudapool-spawn-XXXXXX", path[64], report_path[64], self[512], text[CUDAPOOL_TEXT_LEN];

/* --- the daemon --- */

static void write_report(int argc, char **argv)
{
	char from[32], to[256], pending[4096] = "";
	FILE *report = fopen(getenv("SPAWN_REPORT"), "we");
	struct sigaction action;
	struct dirent *entry;
	sigset_t mask;
	DIR *fds;
	int i, bad = 0, n;

	fprintf(report, "arguments");
	for (i = 1; i < argc; i++)
		fprintf(report, " %s", argv[i]);
	fprintf(report, "\nleader %d\n", getsid(0) != getpid());
	fprintf(report, "cwd %s\n", getcwd(to, sizeof(to)));
	sigprocmask(SIG_BLOCK, NULL, &mask);
	for (i = 1; i < NSIG; i++) {
		bad += sigismember(&mask, i) == 1;
#ifdef __SANITIZE_ADDRESS__
		if (i == SIGSEGV || i == SIGBUS || i == SIGFPE) /* it catches these itself */
			continue;
#endif
		bad += sigaction(i, NULL, &action) == 0 && action.sa_handler != SIG_DFL;
	}
	fprintf(report, "signals %d\n", bad);
	prctl(PR_GET_PDEATHSIG, &i);
	fprintf(report, "pdeathsig %d\n", i);
	fprintf(report, "kept %s\n", getenv("SPAWN_KEPT"));
	fprintf(report, "dropped %s%s%s\n", getenv("NOTIFY_SOCKET") ?: "", getenv("LISTEN_PID") ?: "",
		getenv("LD_PRELOAD") ?: "");
	fds = opendir("/proc/self/fd");
	while ((entry = readdir(fds))) {
		snprintf(from, sizeof(from), "/proc/self/fd/%.8s", entry->d_name);
		n = readlink(from, to, sizeof(to) - 1);
		if (n <= 0 || atoi(entry->d_name) == dirfd(fds) || atoi(entry->d_name) == fileno(report))
			continue;
		to[n] = '\0';
		snprintf(pending + strlen(pending), sizeof(pending) - strlen(pending), " %s=%s", entry->d_name, to);
	}
	closedir(fds);
	fprintf(report, "descriptors%s\n", pending);
	fclose(report);
}

/* As the contract says: whoever does not get the lock gives way. */
static int serve(const char *socket_path)
{
	struct sockaddr_un a = {.sun_family = AF_UNIX};
	char lock_path[128];
	int lock, fd;

	snprintf(lock_path, sizeof(lock_path), "%s.lock", socket_path);
	lock = open(lock_path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	if (flock(lock, LOCK_EX | LOCK_NB))
		return 0;
	if (getenv("SPAWN_SLOW_MS"))
		usleep(atoi(getenv("SPAWN_SLOW_MS")) * 1000);
	snprintf(a.sun_path, sizeof(a.sun_path), "%s", socket_path);
	unlink(socket_path);
	fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (bind(fd, (struct sockaddr *)&a, sizeof(a)) || listen(fd, 64))
		return 1;
	if (write(lock, &(int){getpid()}, sizeof(int)) < 0)
		return 1;
	alarm(20); /* never left behind */
	for (;;)
		close(accept(fd, NULL, NULL));
}

static int daemon_main(int argc, char **argv)
{
	if (getenv("SPAWN_REPORT"))
		write_report(argc, argv);
	return getenv("SPAWN_FAIL") ? 1 : serve(argv[3]);
}

/* --- the tests --- */

/* The process that holds the lock; 0 if there is none. */
static int daemon_pid(void)
{
	char lock_path[128];
	int lock, pid = 0;

	snprintf(lock_path, sizeof(lock_path), "%s.lock", path);
	lock = open(lock_path, O_RDONLY | O_CLOEXEC);
	if (lock < 0 || read(lock, &pid, sizeof(pid)) != sizeof(pid))
		pid = 0;
	close(lock);
	return pid;
}

/* Ends it, and waits until it is gone. */
static int stop_daemon(void)
{
	char lock_path[128];
	int lock, pid = daemon_pid(), i;

	if (pid > 0)
		kill(pid, SIGKILL);
	snprintf(lock_path, sizeof(lock_path), "%s.lock", path);
	lock = open(lock_path, O_RDONLY | O_CLOEXEC);
	for (i = 0; lock >= 0 && i < 2000 && flock(lock, LOCK_EX | LOCK_NB); i++)
		usleep(1000);
	close(lock);
	unlink(lock_path);
	unlink(path);
	return pid;
}

static bool report_has(const char *line)
{
	static char content[8192];
	int fd = open(report_path, O_RDONLY | O_CLOEXEC), n = read(fd, content + 1, sizeof(content) - 2);
	char wanted[300];

	close(fd);
	if (n < 0)
		return false;
	content[0] = '\n';
	content[n + 1] = '\0';
	snprintf(wanted, sizeof(wanted), "\n%s\n", line);
	return ok(strstr(content, wanted), "the daemon's %s", line);
}

static int caught;

static void on_child(int signal)
{
	int status;

	while (waitpid(-1, &status, WNOHANG) > 0) /* as CRIU's does */
		caught++;
}

static void state_of_the_daemon(void)
{
	struct sigaction action = {.sa_handler = on_child, .sa_flags = SA_RESTART}, ignore = {.sa_handler = SIG_IGN};
	int before = open_descriptors(), ret;
	sigset_t usr1, mask;
	char line[128];

	sigaction(SIGCHLD, &action, NULL);
	sigaction(SIGPIPE, &ignore, NULL);
	sigemptyset(&usr1);
	sigaddset(&usr1, SIGUSR1);
	sigprocmask(SIG_BLOCK, &usr1, NULL);
	prctl(PR_SET_PDEATHSIG, SIGTERM);
	setenv("SPAWN_REPORT", report_path, 1);
	setenv("SPAWN_KEPT", "yes", 1);
	setenv("NOTIFY_SOCKET", "@n", 1);
	setenv("LISTEN_PID", "1", 1);
	setenv("LD_PRELOAD", "/nonexistent/libcudapool.so", 1);

	ret = cudapool_spawn(self, path, 77, 5000, text);
	unsetenv("LD_PRELOAD");
	ok(ret == 0 && strstr(text, "started a pool"), "started: %d %s", ret, text);
	ok(open_descriptors() == before, "no descriptor is left");
	ok(caught == 0, "the caller's SIGCHLD handler saw no child of its");
	sigprocmask(SIG_BLOCK, NULL, &mask);
	ok(sigismember(&mask, SIGUSR1) == 1 && sigismember(&mask, SIGCHLD) == 0, "the signal mask is as before");
	ok(waitpid(-1, NULL, WNOHANG) == -1 && errno == ECHILD, "no child is left");

	snprintf(line, sizeof(line), "arguments --foreground --socket %s --idle 77", path);
	report_has(line);
	report_has("leader 1"); /* in a session, but not its leader: it cannot get a terminal */
	report_has("cwd /");
	report_has("signals 0");
	report_has("pdeathsig 0");
	report_has("kept yes");
	report_has("dropped ");
	report_has("descriptors 0=/dev/null 1=/dev/null 2=/dev/null");

	ret = cudapool_spawn("/nonexistent", path, 77, 5000, text);
	ok(ret == 0 && strstr(text, "a pool listens"), "the second time nothing is executed: %s", text);
	stop_daemon();
	unsetenv("SPAWN_REPORT");
	unlink(report_path);
	signal(SIGCHLD, SIG_DFL);
}

/* Descriptors 0 to 2 may be closed in CRIU: nothing of ours may then land there and leak. */
static void without_standard_descriptors(void)
{
	pid_t child = fork();
	int status;

	if (child == 0) {
		close(0);
		close(1);
		close(2);
		setenv("SPAWN_REPORT", report_path, 1);
		_exit(cudapool_spawn(self, path, 1, 5000, text) != 0);
	}
	waitpid(child, &status, 0);
	ok(WIFEXITED(status) && WEXITSTATUS(status) == 0, "started by a process without descriptors 0 to 2");
	report_has("descriptors 0=/dev/null 1=/dev/null 2=/dev/null");
	stop_daemon();
	unlink(report_path);
}

/* The line of /proc/PID/cgroup that begins with, or has after its first colon, `controllers`. */
static void cgroup_path(int pid, const char *controllers, char *out, size_t size)
{
	char file[32], line[512], *colon;
	FILE *f;

	snprintf(file, sizeof(file), "/proc/%d/cgroup", pid);
	snprintf(out, size, "?");
	f = fopen(file, "re");
	while (f && fgets(line, sizeof(line), f)) {
		colon = strchr(line, ':');
		if (colon && !strncmp(colon + 1, controllers, strlen(controllers)) &&
		    colon[1 + strlen(controllers)] == ':')
			snprintf(out, size, "%s", strtok(colon + 2 + strlen(controllers), "\n"));
	}
	if (f)
		fclose(f);
}

static bool join(const char *cgroup)
{
	char file[256];
	int fd;
	bool joined;

	snprintf(file, sizeof(file), "%s/cgroup.procs", cgroup);
	fd = open(file, O_WRONLY | O_CLOEXEC);
	joined = fd >= 0 && write(fd, "0", 1) == 1;
	close(fd);
	return joined;
}

/*
 * In a cgroup of a container manager's name, and in one that is not the parent's: it leaves those. In an ordinary one
 * that it shares with the parent: it stays.
 */
static void leaving_cgroups(void)
{
	static const struct {
		const char *name;
		bool parent_too, leaves;
	} table[] = {{"libpod", true, true}, {"ordinary", false, true}, {"ordinary", true, false}};
	bool v1 = access("/sys/fs/cgroup/pids", W_OK) == 0;
	const char *root = v1 ? "/sys/fs/cgroup/pids" : "/sys/fs/cgroup", *controllers = v1 ? "pids" : "";
	char cgroup[128], after[256], memory[256], memory_after[256];
	size_t i;

	for (i = 0; i < sizeof(table) / sizeof(table[0]); i++) {
		pid_t parent;
		int status, pid;

		snprintf(cgroup, sizeof(cgroup), "%s/%s-cudapool-test-%d", root, table[i].name, getpid());
		if (mkdir(cgroup, 0755)) {
			note("no cgroup can be made here: %s", strerror(errno));
			return;
		}
		parent = fork();
		if (parent == 0) {
			pid_t child;

			if (table[i].parent_too && !join(cgroup))
				_exit(2);
			child = fork();
			if (child == 0)
				_exit(!join(cgroup) ? 2 : cudapool_spawn(self, path, 1, 5000, text) != 0);
			waitpid(child, &status, 0);
			_exit(WEXITSTATUS(status));
		}
		waitpid(parent, &status, 0);
		pid = daemon_pid();
		cgroup_path(pid, controllers, after, sizeof(after));
		cgroup_path(getpid(), "memory", memory, sizeof(memory));
		cgroup_path(pid, "memory", memory_after, sizeof(memory_after));
		ok(WIFEXITED(status) && WEXITSTATUS(status) == 0, "started in %s", cgroup);
		ok(table[i].leaves ? !strcmp(after, "/") : strstr(after, "ordinary") != NULL, "%s it: %s",
		   table[i].leaves ? "left" : "stays in", after);
		ok(!v1 || !strcmp(memory, memory_after), "and stays where it was in other hierarchies");
		stop_daemon();
		rmdir(cgroup);
	}
}

static void ignoring_children(void)
{
	int ret;

	signal(SIGCHLD, SIG_IGN);
	ret = cudapool_spawn(self, path, 1, 5000, text);
	ok(ret == 0, "started by a process that ignores SIGCHLD: %s", text);
	signal(SIGCHLD, SIG_DFL);
	stop_daemon();
}

static void failures(void)
{
	char other[600], long_path[200];
	int ret, fd, before = open_descriptors();
	int64_t started;

	ret = cudapool_spawn("/nonexistent/cudapoold", path, 1, 1000, text);
	ok(ret == -ENOENT && strstr(text, "CUDAPOOL_DAEMON"), "no daemon: %d %s", ret, text);
	setenv("PATH", directory, 1);
	ret = cudapool_spawn(NULL, path, 1, 1000, text);
	ok(ret == -ENOENT && strstr(text, "PATH"), "none in PATH: %d %s", ret, text);

	snprintf(other, sizeof(other), "%s/cudapoold", directory);
	fd = open(other, O_WRONLY | O_CREAT | O_CLOEXEC, 0755);
	if (write(fd, "\177nothing that can be executed", 30) < 0)
		ok(false, "write");
	close(fd);
	ret = cudapool_spawn("", path, 1, 1000, text);
	ok(ret == -ENOEXEC && strstr(text, "cannot be executed"), "found in PATH, but no program: %d %s", ret, text);
	unlink(other);
	if (symlink(self, other))
		ok(false, "symlink");
	ret = cudapool_spawn(NULL, path, 1, 5000, text);
	ok(ret == 0 && strstr(text, other), "found in PATH: %d %s", ret, text);
	stop_daemon();
	unlink(other);

	setenv("SPAWN_FAIL", "1", 1);
	started = cudapool_now_ms();
	ret = cudapool_spawn(self, path, 1, 10000, text);
	ok(ret == -EPIPE && strstr(text, "ended at once") && cudapool_now_ms() - started < 8000, "it ends at once: %d %s", ret,
	   text);
	unsetenv("SPAWN_FAIL");

	setenv("SPAWN_SLOW_MS", "1500", 1);
	started = cudapool_now_ms();
	ret = cudapool_spawn(self, path, 1, 200, text);
	ok(ret == -ETIMEDOUT && cudapool_now_ms() - started < 1400, "too slow for the limit: %d %s", ret, text);
	ret = cudapool_spawn(self, path, 1, 10000, text);
	ok(ret == 0, "the next caller meets the one that was slow: %d %s", ret, text);
	unsetenv("SPAWN_SLOW_MS");
	stop_daemon();

	memset(long_path, 'x', sizeof(long_path));
	long_path[sizeof(long_path) - 1] = '\0';
	ok(cudapool_spawn(self, long_path, 1, 100, text) == -ENAMETOOLONG, "a long path: %s", text);
	ok(open_descriptors() == before, "no descriptor is left");
}

/* Relative paths are the caller's, although the daemon runs in the root directory. */
static void relative_paths(void)
{
	char *base = strrchr(self, '/') + 1, program[300], old[512];
	int ret;

	if (!getcwd(old, sizeof(old)))
		return;
	snprintf(program, sizeof(program), "%s/link", directory);
	if (symlink(self, program) || chdir(directory))
		ok(false, "%s: %s", base, strerror(errno));
	ret = cudapool_spawn("./link", "sock", 1, 5000, text);
	ok(ret == 0 && access(path, F_OK) == 0, "relative daemon and socket: %d %s", ret, text);
	stop_daemon();
	unlink(program);
	if (chdir(old))
		ok(false, "chdir");
}

/* Many callers at once: all of them get the one pool that stays. */
static void concurrent(void)
{
	enum { CALLERS = 12 };
	int i, status, well = 0;

	setenv("SPAWN_SLOW_MS", "50", 1);
	for (i = 0; i < CALLERS; i++)
		if (fork() == 0)
			_exit(cudapool_spawn(self, path, 1, 8000, text) != 0);
	while (wait(&status) > 0)
		well += WIFEXITED(status) && WEXITSTATUS(status) == 0;
	ok(well == CALLERS, "%d of %d concurrent callers have a pool", well, CALLERS);
	unsetenv("SPAWN_SLOW_MS");
	stop_daemon();
}

int main(int argc, char **argv)
{
	ssize_t n = readlink("/proc/self/exe", self, sizeof(self) - 1);

	if (argc > 1)
		return daemon_main(argc, argv);
	if (n <= 0 || !mkdtemp(directory))
		return 1;
	snprintf(path, sizeof(path), "%s/sock", directory);
	snprintf(report_path, sizeof(report_path), "%s/report", directory);
	state_of_the_daemon();
	without_standard_descriptors();
	leaving_cgroups();
	ignoring_children();
	relative_paths();
	concurrent();
	failures();
	rmdir(directory);
	return tap_end();
}
