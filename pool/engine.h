// SPDX-License-Identifier: MIT
/* Copies GPU memory: into images, out of them, and on the GPU itself, with many threads through a small pinned ring. */
#ifndef CUDAPOOL_POOL_ENGINE_H
#define CUDAPOOL_POOL_ENGINE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "driver.h"
#include "image.h"

/*
 * A save or a load runs in the thread that calls its function, which imports, allocates and maps pieces in their order,
 * and in `threads` more, which take chunks of what is mapped from one cursor:
 *
 *   save  GPU -> pinned buffer, by a copy on the thread's own stream. Then, while the next chunk is being copied into
 *         the other buffer: is it zero? buffer -> file, with the checksum worked out on the way
 *   load  file -> pinned buffer, the checksum likewise; buffer -> GPU, by a copy on the stream, while the next chunk is
 *         being read
 *
 * A copy runs in the calling thread alone: the GPU copies batch after batch while the next ones are being mapped.
 *
 * Each piece is mapped into this process while the job lasts. Jobs may run at once; they share the buffers, which are
 * made when first needed and kept.
 */
#define ENGINE_THREADS_MOST 64
#define ENGINE_CHUNK_MOST   1024 /* MiB */

struct engine_job {
	/* To be filled in; zero the rest. */
	unsigned threads;  /* save, load: 1 to ENGINE_THREADS_MOST */
	/* save, load: 1 to ENGINE_CHUNK_MOST; fewer where all buffers would exceed ENGINE_PINNED_MOST */
	unsigned chunk_mb;
	/* save: new, or an image's that is none any more, and is written over; load: an image. It stays the caller's */
	int file;
	/* save: all of it but its sizes; copy: the devices; load: the token, if there is one */
	struct image_header header;
	const struct image_piece *piece; /* load: as the image has them, or it is another one: -EBADMSG */
	uint32_t pieces;
	/*
	 * save, copy: the descriptor of a piece, once it came; the engine closes it. Called for each in turn from the
	 * job's thread. A negative errno ends the job with it.
	 */
	int (*take)(struct engine_job *job, uint32_t piece);
	/*
	 * load, copy: descriptors of the next pieces, at most ENGINE_BATCH; they are the callee's now. Called from the
	 * job's thread, in order, as soon as they are allocated: not filled yet. A negative errno ends the job with it.
	 */
	int (*made)(struct engine_job *job, uint32_t first, uint32_t count, const int *fds);
	/*
	 * save, load: some bytes more are done. Called from the job's thread, every ENGINE_PROGRESS_MS at the most. May
	 * be NULL. Of a copy, made() tells as much.
	 */
	void (*progress)(struct engine_job *job, uint64_t bytes);
	_Atomic bool cancelled; /* may be set by any thread; ends it with -ECANCELED within two chunks, or a batch */

	/* The outcome. */
	uint64_t bytes;               /* of GPU memory */
	uint64_t stored;              /* of them in the file */
	CUresult cu_result;           /* of the driver call that failed */
	char text[CUDAPOOL_TEXT_LEN]; /* what failed, for people */
};
#define ENGINE_BATCH       64
#define ENGINE_PROGRESS_MS 250
#define ENGINE_PINNED_MOST (1ull << 30) /* bytes of all buffers */

/* The driver is initialised (cuInit): finds its devices. Before anything else, once. 0, or -EREMOTEIO and why. */
int engine_init(const struct driver *driver, char text[CUDAPOOL_TEXT_LEN]);

/* Makes the buffers of one job on device 0 ahead of need. What fails here is found again by who needs it. */
void engine_warm(unsigned threads, unsigned chunk_mb);

/*
 * They return 0 or a negative errno, and then `text` says what failed: -EXDEV (a device that this machine lacks),
 * -ENOMEM (the GPU's or the host's), -EREMOTEIO (the driver), -ECANCELED, what image_read() says, -EBADMSG (a
 * checksum), what the file system says. Nothing stays mapped, and no descriptor open. A load or copy that failed may
 * have called made().
 */
int engine_save(struct engine_job *job);
int engine_load(struct engine_job *job);
int engine_copy(struct engine_job *job);

/* Free and total memory of a device, in bytes. 0; -EXDEV: there is no such device; -EREMOTEIO. */
int engine_memory(const uint8_t uuid[16], uint64_t *free, uint64_t *total, char text[CUDAPOOL_TEXT_LEN]);

#endif
