// SPDX-License-Identifier: MIT
/* Jobs of the worker: saving, loading and copying of pieces, and what memory a device has. */
#ifndef CUDAPOOL_POOL_STORE_JOB_H
#define CUDAPOOL_POOL_STORE_JOB_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/queue.h>

#include "image.h"
#include "loop.h"
#include "worker.h"

#define JOBS_AT_ONCE 8 /* with the worker; they share the threads by their size */

/*
 * One job, embedded in what needs it, which zeroes it and fills in the first part; all pointers stay the asker's and
 * valid until done(). A job that a worker did not come back from, because it died or because there was no progress,
 * goes to the next worker once.
 */
struct job {
	enum worker_job_kind kind;
	unsigned pieces;
	const struct image_piece *piece;
	const int *source; /* SAVE, COPY: the pieces' descriptors */
	int *made;	   /* LOAD, COPY: room for those of the new ones, which are the asker's from done() on */
	int image;	   /* SAVE, LOAD: the file; else -1 */
	const struct image_header *header;  /* SAVE, COPY: devices; SAVE: what the image shall say */
	unsigned streams, chunk_mb;	    /* 0: the pool's own */
	int (*again)(struct job *job);	    /* SAVE: before the second attempt: sets `image` to a new file */
	void (*allocated)(struct job *job); /* LOAD: all of `made` is there, not filled yet; NULL: not wanted */
	void (*done)(struct job *job);	    /* called from the loop, once. The job may be freed in it */

	/* The outcome. */
	int error; /* 0 or a negative errno; then `text` says why, and nothing is in `made` */
	unsigned got; /* of `made` */
	uint64_t bytes, stored; /* so far; as in struct worker_message */
	unsigned elapsed_us;
	char text[CUDAPOOL_TEXT_LEN];

	/* store_job.c's own */
	enum job_state { JOB_IDLE, JOB_EXPECTED, JOB_QUEUED, JOB_SENDING, JOB_RUNNING } state;
	uint32_t id;
	unsigned sent, attempts;
	uint64_t size;
	struct loop_timer progress;
	TAILQ_ENTRY(job) link;
};

/*
 * streams, chunk_mb: the pool's own; 0: what measures best. progress_s: CUDAPOOL_PROGRESS_S. memory_freed: called from
 * the loop when what a job had made is closed, which is done beside it; jobs that make something wait for that.
 */
void jobs_init(unsigned streams, unsigned chunk_mb, unsigned progress_s, void (*memory_freed)(void));
/* job_start() will follow, as soon as there is memory for it: until then it has its share of the threads. */
void job_expect(struct job *job);
void job_start(struct job *job);
/* Done() will not be called, and what was made is closed. Idle jobs may be cancelled. */
void job_cancel(struct job *job);
/*
 * True while the worker has jobs, cancelled ones included, and while what they made is being closed: memory that they
 * hold is not all accounted for.
 */
bool jobs_busy(void);

/* How much memory a device has. Embedded; done() is called from the loop, once. */
struct job_memory {
	uint8_t uuid[16];
	void (*done)(struct job_memory *query);
	int error; /* -EXDEV: this machine has no such device; -ENODEV: no usable driver; -ETIMEDOUT */
	uint64_t free, total;
	char text[CUDAPOOL_TEXT_LEN];

	/* store_job.c's own */
	bool waiting;
	uint32_t id;
	bool sent;
	struct loop_timer limit;
	TAILQ_ENTRY(job_memory) link;
};
void job_memory_start(struct job_memory *query);
void job_memory_cancel(struct job_memory *query);

/* To be called from the worker link: see struct link_config. */
void jobs_message(const struct worker_message *message, const int *fds, unsigned count);
void jobs_room(void);
void jobs_worker_lost(const char *what);
void jobs_worker_changed(void);

#endif
