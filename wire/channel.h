// SPDX-License-Identifier: MIT
/* How parked memory changes hands between a shim and the pool: descriptors in small acknowledged batches. */
#ifndef CUDAPOOL_WIRE_CHANNEL_H
#define CUDAPOOL_WIRE_CHANNEL_H

#include <assert.h>
#include <stdint.h>

/*
 * Transport: a SOCK_SEQPACKET pair that the shim makes for one PARK or UNPARK (control_page.h). The pool takes its end
 * with pidfd_getfd, and writes -1 over its number on the page; the shim then closes its own copy of that end, so that each
 * side notices the other's death at once. Little endian, one message a packet. Both sides end it by closing; none waits
 * longer than `limit_ms` of the page for the other.
 *
 * Memory is spoken of in pieces: one piece is one physical allocation of the driver, with one descriptor. The shim
 * numbers them from 0 and knows where they are mapped; the pool knows sizes and devices only.
 *
 *   PARK                                    shim                pool
 *     gate closed, all work done             BEGIN  ->
 *     per batch                              PIECES ->                  with one descriptor for each piece
 *                                                          <-  ACK      `next`: how many the pool has by now
 *     all sent                                             <-  GO       the pool has written down that they are its own
 *     unmapped, released, closed             END    ->                  error 0: parked. The gate stays closed
 *
 *   The shim closing, or END with an error, before GO: nothing has changed, the pool closes what it got, the gate opens.
 *   After GO the memory is the pool's. If then something cannot be unmapped, END says so, and the pool unparks at once.
 *   The pool closing before GO: the shim goes back. After GO: parked.
 *
 *   UNPARK                                  pool                shim
 *                                            BEGIN  ->
 *     per batch                              PIECES ->                  with descriptors
 *                                                          <-  ACK      copied to new memory of the process's own,
 *                                                                       which is mapped; its descriptors are closed
 *     all mapped, the gate is open                         <-  END      error 0; the pool lets go of what it gave
 *
 *   A piece for whose copy there is no room is mapped as it is, and stays the pool's (control_page.h: imported_bytes).
 *   What the pool has in an image besides, it lets go of with each ACK, and sends the next batch meanwhile, because
 *   the driver needs about as long to free memory as to copy it. What is being freed and what is being copied are
 *   together at most CUDAPOOL_CHANNEL_BATCH pieces and CUDAPOOL_CHANNEL_BATCH_BYTES, or one piece, and that is all the
 *   room that copying needs. Therefore a batch to a shim is at most half of that, or one piece.
 *
 *   An error: END, the shim unmaps what it got, stays parked, the gate stays closed; may be tried again.
 *
 *   Whoever finds the other side gone while sending reads what is left: END may be there.
 */
#define CUDAPOOL_CHANNEL_MAGIC 0x31484350u /* "PCH1" in memory */
#define CUDAPOOL_CHANNEL_BATCH 64	   /* pieces in one message, at most */
#define CUDAPOOL_CHANNEL_BATCH_BYTES (4ull << 30)
#define CUDAPOOL_CHANNEL_MOST (1 << 18)  /* pieces in one park, at most */
#define CUDAPOOL_CHANNEL_DEVICES 16

enum cudapool_channel_type {
	CUDAPOOL_CHANNEL_BEGIN = 1,
	CUDAPOOL_CHANNEL_PIECES = 2,
	CUDAPOOL_CHANNEL_ACK = 3,
	CUDAPOOL_CHANNEL_GO = 4,
	CUDAPOOL_CHANNEL_END = 5,
};

struct cudapool_channel_header {
	uint32_t magic;
	uint16_t type;	 /* enum cudapool_channel_type */
	uint16_t length; /* of the whole message */
};

struct cudapool_channel_begin {
	struct cudapool_channel_header h;
	uint8_t token[16]; /* as on the page */
	uint32_t pieces;
	uint32_t devices; /* that follow: those with pieces, and of PARK those with bytes that are left */
	uint64_t bytes;
	uint8_t uuid[CUDAPOOL_CHANNEL_DEVICES][16];
	uint64_t left[CUDAPOOL_CHANNEL_DEVICES]; /* PARK: bytes on each that the driver carries; UNPARK: 0 */
};
static_assert(sizeof(struct cudapool_channel_begin) == 424, "wire format");

struct cudapool_channel_piece {
	uint64_t bytes;	 /* a multiple of the allocation granularity */
	uint32_t device; /* index into BEGIN's uuid */
	uint32_t flags;	 /* CUDAPOOL_CHANNEL_RDMA; others 0 */
};
#define CUDAPOOL_CHANNEL_RDMA 1u /* allocated GPUDirect RDMA capable */

struct cudapool_channel_pieces {
	struct cudapool_channel_header h;
	uint32_t first;
	uint32_t count; /* 1 to CUDAPOOL_CHANNEL_BATCH; also the number of descriptors */
	struct cudapool_channel_piece piece[CUDAPOOL_CHANNEL_BATCH]; /* `count` are sent */
};
static_assert(sizeof(struct cudapool_channel_pieces) == 16 + 16 * CUDAPOOL_CHANNEL_BATCH, "wire format");

struct cudapool_channel_ack {
	struct cudapool_channel_header h;
	uint32_t next; /* pieces taken so far */
	uint32_t reserved;
};

/* What a phase took in the shim, in microseconds; 0 where it did not happen. */
enum cudapool_channel_phase {
	CUDAPOOL_PHASE_GATE = 0,    /* until no call was under way */
	CUDAPOOL_PHASE_DRAIN = 1,   /* until no work was */
	CUDAPOOL_PHASE_COPY = 2,    /* pieces that are the pool's, copied to new ones, which are mapped instead */
	CUDAPOOL_PHASE_EXPORT = 3,  /* exporting and sending, or receiving and importing */
	CUDAPOOL_PHASE_MAP = 4,	    /* unmapping and releasing, or mapping and giving access */
	CUDAPOOL_PHASE_COUNT = 5,
};

struct cudapool_channel_end {
	struct cudapool_channel_header h;
	/*
	 * 0, or -ETIMEDOUT, -EPIPE (the other side went), -EPROTO, -EIO (cu_result), -EOPNOTSUPP (park: a context in error,
	 * or something that cannot be parked), -EMFILE (unpark: no room for so many descriptors; smaller batches may
	 * do), -ESTALE (unpark: the memory of another park), -EXDEV (unpark: of another GPU).
	 */
	int32_t error;
	int32_t cu_result; /* of the driver call that failed; 0 none */
	uint32_t phase_us[CUDAPOOL_PHASE_COUNT];
	uint32_t held; /* threads that waited at the gate when this was sent */
	char text[128]; /* for people: what failed; NUL ended */
};
static_assert(sizeof(struct cudapool_channel_end) == 168, "wire format");

#endif
