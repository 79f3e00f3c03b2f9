// SPDX-License-Identifier: MIT
/* Starting and asking app.c. */
#ifndef CUDAPOOL_TEST_SOFTCUDA_TARGET_H
#define CUDAPOOL_TEST_SOFTCUDA_TARGET_H

#include "cu.h"

#include <fcntl.h>
#include <signal.h>

struct app {
	pid_t pid;
	char file[128];
};

/* The count in its file, or -1 if its last answer is not right (or there is none). */
static inline long app_count(const struct app *app)
{
	char line[64] = {0}, word[16];
	long count = -1;
	int fd = open(app->file, O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		return -1;
	if (read(fd, line, sizeof(line) - 1) < 0 || sscanf(line, "%ld %15s", &count, word) != 2 ||
	    strcmp(word, "right"))
		count = -1;
	close(fd);
	return count;
}

/* Waits for a right answer that was given after this call. */
static inline bool app_answers(const struct app *app, unsigned limit_ms)
{
	double end = now_ms() + limit_ms;
	long first = app_count(app);

	while (now_ms() < end) {
		if (app_count(app) > first + 1)
			return true;
		sleep_ms(5);
	}
	return false;
}

/* Is it silent for a while? */
static inline bool app_stands(const struct app *app)
{
	long before;

	sleep_ms(60);
	before = app_count(app);
	sleep_ms(120);
	return before == app_count(app);
}

/* In a session of its own, all standard descriptors on /dev/null, as CRIU likes it. */
static inline bool app_start(struct app *app, const char *program, const char *dir, const char *size, const char *child)
{
	char path[512], *slash;

	snprintf(path, sizeof(path), "%s", program);
	slash = strrchr(path, '/');
	snprintf(slash ? slash + 1 : path, 8, "app");
	snprintf(app->file, sizeof(app->file), "%s/answer-%d", dir, getpid());
	fflush(stdout);
	app->pid = fork();
	if (!app->pid) {
		int null = open("/dev/null", O_RDWR);

		setsid();
		for (int fd = 0; fd < 3; fd++)
			dup2(null, fd);
		for (int fd = 3; fd < 1024; fd++)
			close(fd);
		execl(path, path, app->file, size, child, (char *)NULL);
		_exit(127);
	}
	return app_answers(app, 10000);
}

static inline void app_end(struct app *app)
{
	if (app->pid > 0) {
		kill(app->pid, SIGKILL);
		waitpid(app->pid, NULL, 0);
	}
	unlink(app->file);
}

#endif
