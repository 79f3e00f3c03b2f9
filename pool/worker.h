// SPDX-License-Identifier: MIT
/* The worker: the process with the warm driver; the keeper starts it and is the only one that talks to it. */
#ifndef CUDAPOOL_POOL_WORKER_H
#define CUDAPOOL_POOL_WORKER_H

#include <assert.h>
#include <stdint.h>

#include "image.h"
#include "message.h"

/*
 * Keeper and worker are one binary, so this needs no version: one struct each way over a SOCK_SEQPACKET pair.
 * The worker ends when the other end is closed, and the kernel kills it with the keeper.
 */
enum worker_message_kind {
	WORKER_PING = 1,   /* keeper: are you there? */
	WORKER_PONG = 2,   /* worker: its main thread is, whatever the others do */
	WORKER_ACTION = 3, /* keeper: carry this out (op, pid, timeout_ms) */
	WORKER_RESULT = 4, /* worker: how it ended (error, cu_result, value, elapsed_us, text) */
	WORKER_STAGE = 5,  /* worker: how far the driver is (stage and what follows it, text) */
	WORKER_JOB = 6,    /* keeper: copy memory (op: enum worker_job_kind); descriptors: the job, and the image file */
	WORKER_PIECES = 7, /* both: descriptors of `count` pieces of job `id`, from `first` on; at most WORKER_BATCH */
	/* worker: `bytes` of job `id`, a SAVE or LOAD, are done; at least each half second, if there are more */
	WORKER_PROGRESS = 8,
	WORKER_MEMORY = 9, /* both: free and total memory of the device `uuid`; the answer has the same `id` */
	WORKER_CANCEL = 10, /* keeper: job `id` is not wanted any more; its WORKER_RESULT says -ECANCELED, or that it was done */
};

#define WORKER_BATCH 64 /* descriptors in one message */

/* What CRIU_CUDA_STREAMS and CRIU_CUDA_CHUNK_MB mean by 0: what measures best, and is warmed ahead of need. */
#define WORKER_STREAMS	16
#define WORKER_CHUNK_MB 4

/*
 * Jobs: GPU memory to and from files, and copies of it. The job is described by a sealed memfd: struct worker_job, and a
 * struct image_piece (image.h) for each piece. Pieces go over afterwards (SAVE, COPY) or come back before the
 * WORKER_RESULT (LOAD, COPY), each with one descriptor, in the order of the job. Whoever receives owns them.
 * LOAD sends all pieces as soon as they are allocated and before it fills them, so that the keeper knows that there is room.
 * The worker keeps nothing: when it has answered, the descriptors are all that keeps the memory.
 * WORKER_RESULT of a job: error, cu_result, text, `bytes` of GPU memory, `stored` bytes in the file, elapsed_us.
 */
enum worker_job_kind {
	WORKER_SAVE = 0x101, /* write an image; the file is new and empty */
	WORKER_LOAD = 0x102, /* allocate and fill; a block whose checksum is wrong fails it with -EBADMSG */
	WORKER_COPY = 0x103, /* allocate and copy on the GPU */
};

struct worker_job {
	uint32_t kind;	 /* enum worker_job_kind */
	uint32_t pieces; /* that follow */
	uint32_t threads;  /* 1 to 64; COPY does not use it, */
	uint32_t chunk_mb; /* nor this; 1 to 1024 */
	struct image_header header; /* SAVE: what the image shall say; its sizes and checksums are filled in by the worker */
};

enum worker_stage {
	WORKER_LOADING = 0,
	WORKER_READY = 1,  /* cuInit is done: actions are welcome */
	WORKER_WARM = 2,   /* the contexts exist as well, or `text` says why not */
	WORKER_FAILED = 3, /* no usable driver, `text` says why; the worker ends */
};

#define WORKER_CONTEXTS_MAX 64

struct worker_message {
	uint32_t kind; /* enum worker_message_kind */
	uint32_t id;   /* of the action */
	uint32_t op;   /* enum cudapool_op */
	int32_t pid;
	uint32_t timeout_ms;
	int32_t error; /* 0 or a negative errno */
	int32_t cu_result;
	int32_t value;
	uint32_t elapsed_us;
	uint32_t stage; /* enum worker_stage */
	uint32_t driver_version;
	uint32_t devices;
	uint32_t contexts; /* warm ones */
	int32_t warm_device;
	uint64_t warm_context;
	uint64_t warm_us; /* what reaching this stage took, from the start of the worker */
	uint32_t first, count; /* WORKER_PIECES */
	uint64_t bytes;	       /* of a job; WORKER_MEMORY: free */
	uint64_t stored;       /* by a SAVE; WORKER_MEMORY: total */
	uint8_t uuid[16];      /* WORKER_MEMORY */
	char text[CUDAPOOL_TEXT_LEN];
};
static_assert(sizeof(struct worker_message) == 112 + CUDAPOOL_TEXT_LEN, "no padding, so nothing uninitialised is sent");

struct worker_config {
	int fd; /* the worker's end of the pair */
	const char *libcuda;
	int contexts;
	int threads;
};

/* Runs the worker until the keeper closes its end; returns the exit status of the process. */
int worker_main(const struct worker_config *config);

#endif
