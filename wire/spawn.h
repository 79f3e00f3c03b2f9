// SPDX-License-Identifier: MIT
/* Starts a pool on demand, also from inside CRIU. */
#ifndef CUDAPOOL_WIRE_SPAWN_H
#define CUDAPOOL_WIRE_SPAWN_H

#include "message.h" /* CUDAPOOL_TEXT_LEN */

#define CUDAPOOL_SPAWN_IDLE_S 600 /* for idle_s: a pool started on demand ends by itself */

/*
 * Makes sure that a pool listens on `socket` (NULL or empty: CUDAPOOL_SOCKET_DEFAULT). If none does, executes
 * `daemon` (a path; NULL or empty: cudapoold from PATH) with --foreground --socket SOCKET --idle idle_s, in a
 * session of its own, with /dev/null for its standard descriptors and none other, no signal blocked,
 * ignored or caught, and outside of a container's cgroups; then waits until the socket accepts. The environment passes
 * through, except for what is meant for the caller alone (systemd's variables, an LD_PRELOAD of the shim). Where
 * systemd holds the socket, nothing is executed here: connecting starts the pool.
 *
 * Any number of callers may do this at once: the daemon sees to it that one of them stays. No
 * thread, no allocation, waits for no child but its own, and the signal mask is as before afterwards.
 *
 * 0 within limit_ms, or a negative errno: -ENOENT there is no daemon to execute, -EPIPE it ended
 * at once, -ETIMEDOUT, else what connecting or executing said. `text` (CUDAPOOL_TEXT_LEN bytes) is one line for
 * people, also on success.
 */
int cudapool_spawn(const char *daemon, const char *socket, unsigned idle_s, int limit_ms, char *text);

#endif
