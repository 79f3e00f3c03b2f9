// SPDX-License-Identifier: MIT
/*
 * Runs a command, and then reaps what it left behind: a process that CRIU restored is nobody's child, and where the
 * first process of the machine reaps every two seconds only, its id is not free for the next restore until then.
 *
 *   reaper [--session] COMMAND [ARGUMENT...]
 *
 * Prints "end STATUS" when the command has ended (STATUS as a shell has it, 128 and the number for a signal), and
 * ends itself when there is no process left to reap. With --session the command leads a session of its own, as what is
 * to be dumped must, and nothing is printed: it shares our output, and CRIU compares the size of files.
 */
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	bool session = argc > 1 && !strcmp(argv[1], "--session");
	int status, code = 1;
	pid_t command, ended;

	argv += 1 + session;
	if (argc < 2 + session) {
		fputs("usage: reaper [--session] COMMAND [ARGUMENT...]\n", stderr);
		return 2;
	}
	if (prctl(PR_SET_CHILD_SUBREAPER, 1)) {
		fprintf(stderr, "reaper: cannot become a subreaper: %s\n", strerror(errno));
		return 1;
	}
	command = fork();
	if (command < 0) {
		fprintf(stderr, "reaper: cannot fork: %s\n", strerror(errno));
		return 1;
	}
	if (!command) {
		if (session)
			setsid();
		execvp(argv[0], argv);
		fprintf(stderr, "reaper: cannot execute %s: %s\n", argv[0], strerror(errno));
		_exit(127);
	}
	for (;;) {
		ended = wait(&status);
		if (ended < 0 && errno == EINTR)
			continue;
		if (ended < 0)
			return code;
		if (ended != command)
			continue;
		code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
		if (!session) {
			printf("end %d\n", code);
			fflush(stdout);
		}
	}
}
