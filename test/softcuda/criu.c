// SPDX-License-Identifier: MIT
/* A real CRIU, its upstream CUDA plugin and our cuda-checkpoint: dump and restore of a process tree, contents verified.
 */
#include "target.h"

#include <ftw.h>
#include <sched.h>
#include <sys/mount.h>

/* criu CRIU PLUGINS: the program, and the folder with an unpatched cuda_plugin.so. */
static char images[128], empty[128];

static int run(const char *libs, const char *const *args, unsigned limit_s)
{
	int status;
	pid_t pid;

	fflush(stdout);
	pid = fork();
	if (!pid) {
		int null = open("/dev/null", O_RDWR);

		setenv("CRIU_LIBS_DIR", libs, 1);
		dup2(null, 1);
		dup2(null, 2);
		alarm(limit_s);
		execv(args[0], (char **)args);
		_exit(127);
	}
	return waitpid(pid, &status, 0) == pid && WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void show_log(const char *name)
{
	char path[256], line[512];
	FILE *file;

	snprintf(path, sizeof(path), "%s/%s", images, name);
	file = fopen(path, "re");
	while (file && fgets(line, sizeof(line), file)) {
		line[strcspn(line, "\n")] = 0;
		if (strstr(line, "Error"))
			note("%s", line);
	}
	if (file)
		fclose(file);
}

/* As pid 1 of a namespace of its own, so that every pid is free again at the restore. */
static int inside(char **argv)
{
	char pid_text[16];
	const char *dump[] = {argv[1], "dump", "-t", pid_text, "-D", images, "-o", "dump.log", "-v4", NULL};
	const char *restore[] = {argv[1], "restore", "-D", images, "-o", "restore.log", "-v4", "-d", NULL};
	struct app app;
	long count;

	if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) || mount("proc", "/proc", "proc", 0, NULL)) {
		ok(false, "a /proc of its own: %s", strerror(errno));
		return tap_end();
	}
	if (!ok(app_start(&app, argv[0], device_dir, "4", "exported"), "a CUDA process with exported memory"))
		return tap_end();
	snprintf(pid_text, sizeof(pid_text), "%d", app.pid);
	ok(run(argv[2], dump, 30) != 0, "cannot be dumped while its descriptor is open");
	ok(app_answers(&app, 5000), "and runs on");
	app_end(&app);
	if (!ok(app_start(&app, argv[0], device_dir, "4", "child"), "a CUDA process with a child"))
		return tap_end();
	snprintf(pid_text, sizeof(pid_text), "%d", app.pid);

	ok(run(empty, dump, 30) != 0, "a process that has the device cannot be dumped without the plugin");
	ok(app_answers(&app, 2000), "and runs on");
	if (!ok(run(argv[2], dump, 30) == 0, "with it, CRIU dumps and kills the tree")) {
		show_log("dump.log");
		app_end(&app);
		kill(-1, SIGKILL);
	}
	while (waitpid(-1, NULL, 0) > 0)
		;
	for (int round = 1; round <= 3; round++) {
		count = app_count(&app);
		if (round == 3) {
			device_file("faults", "restore=999");
			run(argv[2], restore, 30);
			ok(app_stands(&app), "a restored process whose CUDA restore is made to fail does not run on");
			device_file("faults", "");
			kill(app.pid, SIGKILL);
		} else {
			if (!ok(run(argv[2], restore, 30) == 0, "restore %d", round))
				show_log("restore.log");
			ok(count >= 0 && app_answers(&app, 3000), "it goes on from there with its device memory right");
			kill(app.pid, SIGKILL);
		}
		kill(-1, SIGKILL); /* in this namespace: the child is left */
		while (waitpid(-1, NULL, 0) > 0)
			;
	}
	unlink(app.file);
	return tap_end();
}

static int remove_one(const char *path, const struct stat *info, int type, struct FTW *where)
{
	return remove(path);
}

int main(int argc, char **argv)
{
	char path[512], program[512];
	int status;
	pid_t pid;

	if (argc < 3 || geteuid() || access(argv[1], X_OK)) {
		printf("1..0 # SKIP needs root, and criu and its plugin folder as arguments\n");
		return 0;
	}
	if (!realpath(argv[0], program))
		return 1;
	argv[0] = program;
	device_dir_make();
	snprintf(images, sizeof(images), "%s/images", device_dir);
	snprintf(empty, sizeof(empty), "%s/none", device_dir);
	mkdir(images, 0700);
	mkdir(empty, 0700);
	snprintf(path, sizeof(path), DRIVER_BIN ":%s", getenv("PATH"));
	setenv("PATH", path, 1);
	setenv("CRIU_FAULT", "138", 1); /* no /proc/driver/nvidia/gpus is needed */
	fflush(stdout);
	if (unshare(CLONE_NEWPID | CLONE_NEWNS)) {
		printf("1..0 # SKIP no namespaces: %s\n", strerror(errno));
		return 0;
	}
	pid = fork();
	if (!pid) {
		status = inside(argv);
		fflush(stdout);
		_exit(status);
	}
	waitpid(pid, &status, 0);
	/* Not with rm: after the namespace's first process has ended there can be no other. */
	nftw(device_dir, remove_one, 16, FTW_DEPTH | FTW_PHYS);
	return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
}
