// SPDX-License-Identifier: MIT
/* Statistics: what became of each checkpoint and restore, for the report and beside the images. */
#ifndef CUDAPOOL_POOL_RECORDS_H
#define CUDAPOOL_POOL_RECORDS_H

#include "json.h"
#include "store.h"

/*
 * Written into the image directory as cudapool-dump.json and cudapool-restore.json, one object:
 *
 *   schema   "cudapool-records-1"; fields may be added under it, none change
 *   records  [ one for each process, in the order in which they ended:
 *     { stage          "dump" | "restore"
 *       at             wall clock at its end, ISO 8601
 *       path           "stock" (not parked: `why`) | "parked" | "hot-move" | "hot-copy" | "loaded" | "returned"
 *       error          0 or a negative errno, and
 *       why            what failed, or why nothing was parked; ""
 *       container      the container's id, by its cgroup; "" outside of one
 *       process, pid   its name and number
 *       token          of the park, hexadecimal; "" if there is none
 *       tier           restore: where the memory was: "hot" | "staged" | "cold"; null
 *       parked_bytes, image_bytes (of the file), stored_bytes (in it: not zero)
 *       recycled_bytes dump: of the file of an earlier dump's image that was written over; 0: a new file
 *       left_bytes     { small, ordered, managed, array, shared, refused }: GPU memory that was not parked, by kind
 *       phases_us      { gate, drain, copy, export, map: in the shim; lock, checkpoint, restore, unlock: in the driver;
 *                        save: writing the image; claim: until there was memory; load: loading or copying it;
 *                        give: the unpark as the pool saw it }: microseconds; 0: did not happen
 *       held_threads   that waited at the gate at its end
 *     } ... ]
 *
 * The report has the same objects, of the last RECORDS_KEPT, newest first, as `records`.
 */
#define RECORDS_KEPT 32
#define RECORDS_DUMP "cudapool-dump.json"
#define RECORDS_RESTORE "cudapool-restore.json"

/* Of one directory and stage. Zeroed is empty. */
struct records {
	unsigned count;
	char **json;
};
void records_free(struct records *records);

/* Removes those of an earlier dump, and of restores from it. */
void records_remove(int dir_fd);

/* The id of the container that a process is in, as its cgroup has it: 64 hexadecimal digits; else "". */
void container_of_process(int pid, char id[65]);

const char *tier_name(enum cudapool_tier tier);

/* The member `records` of the report. */
void records_report(struct cudapool_json *json, int limit);

#endif
