// SPDX-License-Identifier: MIT
/* What the pool says of itself: counters, and the report as JSON. */
#ifndef CUDAPOOL_POOL_STATUS_H
#define CUDAPOOL_POOL_STATUS_H

#include <stdbool.h>
#include <stddef.h>

#include "message.h"

/*
 * The report, one JSON object. Times are in the unit that the name ends with; a figure that cannot be told is null.
 *
 *   schema       "cudapool-status-1"; fields may be added under it, none change
 *   build, socket, pid, uptime_ms
 *   memory_kb    resident memory of the keeper, and
 *   descriptors  how many it has open: steady over any number of restores
 *   worker       { pid (0: none), state: "starting" | "warm" | "failed", generation, replaced,
 *                  driver_version (13000: 13.0), devices, contexts (warm ones), warm_device (-1: none),
 *                  warm_context (hexadecimal string), warm_us, memory_kb, descriptors,
 *                  text (why failed, or what is amiss) }
 *   actions      { queued, running, state: {ok, failed, total_us, max_us}, "restore-tid": …, lock, checkpoint,
 *                  restore, unlock, shim }; the times are those of the driver's calls
 *   held_count   processes held
 *   held         [ { pid, name, owner_pid, locked, checkpointed, under_way (an action or null), giving_back,
 *                    failed_attempts } ]
 *   owner_count  those for whom the pool acts, or holds something
 *   owners       [ { pid, name, alive, plugin_connections, held,
 *                    streams (CRIU_CUDA_STREAMS), chunk_mb (CRIU_CUDA_CHUNK_MB) } ]; these two as its last HELLO
 *                  said, 0: the pool's default
 *   given_back   { ok, failed }: processes, when an owner died or said UNDO
 *   connections  { open, accepted, refused (not allowed, or too many), dropped (broke the protocol, or too slow) }
 *   errors       [ { ago_ms, text } ], the last ones, newest first
 *
 * Lists are cut where the report would not fit into one message; the counts beside them are not.
 */

enum status_connection { STATUS_ACCEPTED, STATUS_REFUSED, STATUS_DROPPED, STATUS_CONNECTION_KINDS };

void status_init(const char *socket_path);
void status_count_action(enum cudapool_op op, int error, unsigned elapsed_us);
void status_count_undo(bool ok);
void status_count_connection(enum status_connection what);

/* Remembers one line for the report, and logs it as an error. */
void status_error(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* The length of the report, NUL ended, or -ENOBUFS. */
int status_report(char *json, size_t size);

#endif
