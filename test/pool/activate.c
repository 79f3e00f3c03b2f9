// SPDX-License-Identifier: MIT
/* Starts a pool as systemd does, with a socket that it holds: activate SOCKET MODE PROGRAM ARGUMENT… */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	char pid[16];
	int fd;

	if (argc < 4)
		return 2;
	snprintf(address.sun_path, sizeof(address.sun_path), "%s", argv[1]);
	fd = socket(AF_UNIX, SOCK_SEQPACKET, 0);
	if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof(address)) ||
	    chmod(argv[1], (mode_t)strtol(argv[2], NULL, 8)) || listen(fd, 16) || (fd != 3 && dup2(fd, 3) < 0)) {
		perror("activate");
		return 1;
	}
	snprintf(pid, sizeof(pid), "%d", getpid());
	setenv("LISTEN_PID", pid, 1);
	setenv("LISTEN_FDS", "1", 1);
	execv(argv[3], argv + 3);
	perror(argv[3]);
	return 1;
}
