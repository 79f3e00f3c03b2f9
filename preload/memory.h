// SPDX-License-Identifier: MIT
/* Device memory that can be parked: allocations made of exportable pieces, and the application's own mappings. */
#ifndef CUDAPOOL_PRELOAD_MEMORY_H
#define CUDAPOOL_PRELOAD_MEMORY_H

#include <cuda.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "control_page.h"

/*
 * A piece is one physical allocation of the driver, of at most CUDAPOOL_PIECE_MAX bytes. An allocation of the
 * application is a reserved address range with pieces mapped into it; a handle that the application got from
 * cuMemCreate stands for pieces, which may be mapped at several places, or nowhere. The application sees addresses
 * and handles of ours, which stay the same over any number of parks; the driver's handles change.
 *
 * The tables are our own memory (mmap, no malloc): while the gate is closed and no call is under way, nobody is
 * inside of them, whatever locks the stopped threads hold.
 */
#ifndef CUDAPOOL_PIECE_MAX /* tests make it smaller */
#define CUDAPOOL_PIECE_MAX (1ull << 30)
#endif

/*
 * For parking; the gate is closed, all work is done, in the shim's thread. Pieces are numbered from 0, in the same
 * order until the application allocates or frees. No malloc, no stdio, no lock of the application's.
 *
 * park:    settle, renew all, export each, (GO), detach. A failure before GO: only descriptors are to be closed.
 * unpark:  a batch at a time: import each, renew, map.   A failure: detach, which takes back what was imported.
 */
struct cudapool_piece_info {
	uint64_t bytes;
	int device; /* ordinal */
	uint32_t flags; /* as in wire/channel.h */
	bool imported; /* the pool's: must be renewed before it can be exported again */
};

/* Releases what pools for stream-ordered allocation hold beyond their thresholds, as when work is waited for. */
void cudapool_memory_settle(void);
unsigned cudapool_memory_count(void);
void cudapool_memory_piece(unsigned index, struct cudapool_piece_info *info);
/* Bytes on a device, by ordinal, that parking does not take. */
uint64_t cudapool_memory_left(int device);
/*
 * Makes pieces the process's own, by replacing those that were imported with copies in new memory: on the GPU, and a
 * batch at a time, so that little free memory is enough. On an error all memory is where it was, and some pieces are
 * renewed.
 */
CUresult cudapool_memory_renew(unsigned first, unsigned count);
/* The descriptor is the caller's. */
CUresult cudapool_memory_export(unsigned index, int *fd);
/*
 * Unmaps and releases every piece that is here. On an error the rest is detached all the same, and the first error
 * returned: a piece that could not be unmapped is still here, and importing it is then nothing.
 */
CUresult cudapool_memory_detach(void);
/* Imports one piece, which is mapped nowhere yet; the descriptor stays the caller's. */
CUresult cudapool_memory_import(unsigned index, int fd);
/* Maps what was imported, and not renewed since, wherever it was, with the access it had. */
CUresult cudapool_memory_map(unsigned first, unsigned count);

/* Withdraws peer access between contexts before the driver's lock, and gives it back afterwards. */
CUresult cudapool_peers_withdraw(void);
CUresult cudapool_peers_restore(void);

/* Brings parked_bytes, left_bytes and the devices' UUIDs on the page up to date. Gate closed, or from within a call. */
void cudapool_memory_report(struct cudapool_page *page);

/*
 * What ends with a context, when the application destroys, resets, or finally releases it: begin before the driver is
 * told to, and when it has done so, say that it ended. What a new context with the same handle has by then stays.
 */
struct cudapool_ending {
	uint32_t noted; /* by streams.c */
	CUcontext context; /* NULL: none that concerns us */
	uint64_t last;	   /* identity of the newest thing that can belong to it */
};
void cudapool_context_ending(struct cudapool_ending *ending, CUcontext context);
void cudapool_primary_ending(struct cudapool_ending *ending, CUdevice device);
void cudapool_context_ended(const struct cudapool_ending *ending);

/* True, and why, if this process holds something with which it cannot be parked at all. */
bool cudapool_memory_unparkable(char *reason, size_t size);

#endif
