// SPDX-License-Identifier: MIT
/* The page by which other processes find the restore thread of a CUDA process and give it its orders. */
#ifndef SOFTCUDA_PAGE_H
#define SOFTCUDA_PAGE_H

#include "internal.h"

/*
 * A memfd of this name, mapped shared; found as "/memfd:softcuda-control (deleted)" in /proc/PID/maps, and
 * reached through /proc/PID/map_files, so namespaces do not matter. Whoever gives an order holds an
 * exclusive flock on the memfd, which ends with its holder.
 *
 * phase: IDLE -> ASKED (by the one who asks) -> TAKEN (by the restore thread) -> DONE -> IDLE. An order that
 * was not taken may be withdrawn.
 */
#define SOFTCUDA_PAGE_NAME    "softcuda-control"
#define SOFTCUDA_PAGE_MAGIC   0x43544653u
#define SOFTCUDA_PAGE_VERSION 1

enum softcuda_order { ORDER_LOCK = 1, ORDER_CHECKPOINT, ORDER_RESTORE, ORDER_UNLOCK };
enum softcuda_order_phase { ORDER_IDLE = 0, ORDER_ASKED, ORDER_TAKEN, ORDER_DONE };

/* A lock without a time limit gives up after this all the same. */
#define SOFTCUDA_LOCK_LIMIT_MS 600000u

struct softcuda_page {
	uint32_t magic; /* written last */
	uint16_t version;
	uint16_t size;
	int32_t restore_tid;    /* in the process's own pid namespace */
	_Atomic uint32_t state; /* CUprocessState */
	_Atomic uint32_t phase; /* futex */
	uint32_t order;
	uint32_t timeout_ms;
	uint32_t warm; /* whoever asks found another process with the driver open */
	uint32_t result;
	uint32_t pair_count;
	_Atomic uint64_t progress; /* grows while an order is carried out */
	CUcheckpointGpuPair pairs[SOFTCUDA_MAX_DEVICES];
};

extern struct softcuda_page *softcuda_page; /* this process's; NULL before cuInit */

#endif
