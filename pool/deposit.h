// SPDX-License-Identifier: MIT
/* Deposits: the descriptors of a park, left with systemd for as long as they are all there is of its memory. */
#ifndef CUDAPOOL_POOL_DEPOSIT_H
#define CUDAPOOL_POOL_DEPOSIT_H

#include <stdbool.h>
#include <stdint.h>

#include "loop.h"
#include "notify.h"

/*
 * A park may have thousands of descriptors, and systemd compares each one that it gets with all that it has. So they
 * go into a box: a socket, in whose queue they wait as messages. The box is one descriptor, named cudapool-TOKEN, and
 * systemd has all of it or none. In it are
 *
 *   a sealed memfd with the table of the pieces, in the format of an image's header and tables, without blocks
 *   the pieces' descriptors, in the table's order, so many in a message as the kernel takes
 *
 * A successor looks without taking (MSG_PEEK), so that it may be killed as well. Whoever needs it no longer empties the
 * box: nothing is in it from then on, whether or not systemd has let go of its copy by then.
 *
 * Systemd never answers. That it has come so far is seen by its closing of a pipe (BARRIER=1), and that it has taken
 * the box, and not closed it at once because it may keep none or no more, by a probe: a pipe that was sent to be kept
 * right behind the box, and is still open.
 *
 * Without systemd, or where it keeps no descriptors for this unit (FileDescriptorStoreMax=), there are no deposits.
 */
#define DEPOSIT_PREFIX	 "cudapool-" /* of the names of all that is ours */
#define DEPOSIT_LIMIT_MS 5000

struct deposit { /* zeroed, and embedded in what it is of */
	/* Of deposit_start(): 0; or -ETIMEDOUT: systemd is silent; -EXFULL: it takes no more. */
	void (*done)(struct deposit *deposit, int error);

	/* deposit.c's own */
	bool made; /* `box` is open, and systemd has it or may have it */
	int box;
	char name[NOTIFY_NAME_LEN], probe_name[NOTIFY_NAME_LEN];
	bool waiting; /* for the barrier */
	int probe;
	struct loop_watch barrier;
	struct loop_timer limit;
};

/* Asks systemd whether it keeps descriptors, and finds what earlier keepers left with it. */
void deposits_init(void);

/* False: there are none here. */
bool deposits_possible(void);

/*
 * Leaves `table` and the pieces with systemd; they stay the caller's. 0: done() is called, from the loop, unless
 * deposit_end() comes first; or a negative errno: nothing was begun (-ENOBUFS: more pieces than a socket's queue takes,
 * see net.core.wmem_max).
 */
int deposit_start(struct deposit *deposit, const uint8_t token[16], int table, const int *fds, unsigned count);

/* It is not needed any more. Idle ones may be ended. */
void deposit_end(struct deposit *deposit);

/* What an earlier keeper left under this token. 0, and one of deposit_end() and deposit_leave() is due; or -ENOENT. */
int deposit_find(struct deposit *deposit, const uint8_t token[16]);

/* It stays with systemd, and a later keeper may find it again. */
void deposit_leave(struct deposit *deposit);

/* A new descriptor of the table of a found one; -ENODATA: the box is empty, -EBADMSG: it is none; or as recvmsg(). */
int deposit_table(struct deposit *deposit);

/* After deposit_table(): new descriptors of all pieces. 0; -EBADMSG: there are not so many; -EMFILE; … */
int deposit_pieces(struct deposit *deposit, int *fds, unsigned count);

/* Lets go of all that was passed and that nobody has asked for by now. */
void deposits_discard(void);

#endif
