// SPDX-License-Identifier: MIT
/* The pool's socket: made safely, or taken over from systemd; one pool per socket. */
#ifndef CUDAPOOL_POOL_LISTENER_H
#define CUDAPOOL_POOL_LISTENER_H

#include <stdbool.h>
#include <sys/types.h>
#include <sys/un.h>

#include "message.h"

struct listener {
	int fd;
	int lock_fd; /* SOCKET.lock: flocked for as long as the pool lives, and holds its pid */
	bool ours;   /* we made the socket, so we remove it */
	char path[sizeof(((struct sockaddr_un *)0)->sun_path)];
	char text[CUDAPOOL_TEXT_LEN]; /* why something failed, with the fix */
};

/*
 * Where systemd passed a socket (notify.h): takes that. Else makes one at `path`: its directory if that is missing
 * (0755), the socket with mode 0660 and of `group` (mode 0600 where that is (gid_t)-1), instead of one that a
 * dead pool left. Non-blocking, close-on-exec. A directory that others may write to is refused, and so is each one
 * above it and each link on the way that others could replace.
 * 0; -EADDRINUSE: another pool serves it; or another negative errno.
 */
int listener_open(struct listener *listener, const char *path, gid_t group);

/* Closes it, and removes what it made but the lock file (removing that would let two pools in). */
void listener_close(struct listener *listener);

#endif
