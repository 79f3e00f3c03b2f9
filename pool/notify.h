// SPDX-License-Identifier: MIT
/* What the keeper says to systemd, and what it got from it at its start: the one place for sd_notify's protocol. */
#ifndef CUDAPOOL_POOL_NOTIFY_H
#define CUDAPOOL_POOL_NOTIFY_H

#include <stdbool.h>

#define NOTIFY_FIRST	  3    /* the first descriptor that systemd passes */
#define NOTIFY_PASSED_MOST 1024 /* so many are looked at */
#define NOTIFY_NAME_LEN	  64   /* of a name, NUL included; longer ones are cut */
#define NOTIFY_TEXT_LEN	  128

/* A descriptor that was passed: a socket of a socket unit, or one that an earlier process left with systemd. */
struct notify_passed {
	int fd;			    /* -1: somebody has taken it */
	char name[NOTIFY_NAME_LEN]; /* "": systemd gave none */
};

/*
 * Reads what systemd left in the environment (NOTIFY_SOCKET, LISTEN_PID, LISTEN_FDS, LISTEN_FDNAMES) and removes it
 * from there: no child is meant. The lowest number from which on no descriptor was passed. Once, before any file is
 * opened.
 */
int notify_init(void);

/* What was passed, close-on-exec. Whoever takes one says so in `fd`. */
struct notify_passed *notify_passed(unsigned *count);

/* True if this process is one that systemd, or something that speaks like it, wants to hear from. */
bool notify_wanted(void);

/*
 * Tells systemd, in the order of the calls and without waiting, however long it takes to listen. `fd` goes along (-1:
 * none), and is taken, also on failure. 0; -ENOTCONN: nobody wants to hear; -ENOBUFS: too much waits already; -ENOMEM.
 * What cannot be delivered later on is dropped, its descriptor closed.
 */
int notify_send(const char *text, int fd);

#endif
