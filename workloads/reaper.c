// SPDX-License-Identifier: MIT
/*
 * Runs a command, and then reaps what it left behind: a process that CRIU restored is nobody's child, and where the
 * first process of the machine reaps every two seconds only, its id is not free for the next restore until then.
 *
 *   reaper COMMAND [ARGUMENT...]
 *
 * Prints "end STATUS" when the command has ended (STATUS as a shell has it, 128 and the number for a signal), and
 * ends itself when there is no process left to reap.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	int status, code = 1;
	pid_t command, ended;

	if (argc < 2) {
		fputs("usage: reaper COMMAND [ARGUMENT...]\n", stderr);
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
		execvp(argv[1], argv + 1);
		fprintf(stderr, "reaper: cannot execute %s: %s\n", argv[1], strerror(errno));
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
		printf("end %d\n", code);
		fflush(stdout);
	}
}
