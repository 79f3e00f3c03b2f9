// SPDX-License-Identifier: MIT
/* What the pool says of itself, as JSON. */
#ifndef CUDAPOOL_POOL_REPORT_H
#define CUDAPOOL_POOL_REPORT_H

#include <stddef.h>

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
 *                  restore, unlock, shim, unpark }; the times are those of the
 *                  driver's calls; unpark: of the exchange with the shim
 *   held_count   processes held
 *   held         [ { pid, name, owner_pid (0: nobody's), locked, checkpointed, parked, under_way (an action or null),
 *                    giving_back, failed_attempts } ]
 *   owner_count  those for whom the pool acts, or holds something
 *   owners       [ { pid, name, alive, plugin_connections, held,
 *                    streams (CRIU_CUDA_STREAMS), chunk_mb (CRIU_CUDA_CHUNK_MB) } ]; these two
 *                  as its last HELLO said, 0: the pool's default
 *   given_back   { ok, failed }: processes, when an owner died or said UNDO
 *   connections  { open, accepted, refused (not allowed, or too many), dropped (broke the protocol, or too slow) }
 *   and what store_report() (store.h) writes of parked memory
 *   errors       [ { ago_ms, text } ], the last ones, newest first
 *
 * Lists are cut where the report would not fit into one message; the counts beside them are not.
 */

void report_init(const char *socket_path);

/* `connections` are open. The length of the report, NUL ended, or -ENOBUFS. */
int report_write(char *json, size_t size, unsigned connections);

#endif
