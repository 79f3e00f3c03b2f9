// SPDX-License-Identifier: MIT
/* The worker's side of jobs: what the keeper asks of the engine. */
#include "worker_job.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/queue.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "engine.h"
#include "loop.h" /* container_of */

/*
 * The main thread receives and never waits; each job has a thread of its own, in which the engine runs it. What came
 * for it is in `fd`, in the order of the pieces, until that thread takes it.
 */
struct worker_job_run {
	LIST_ENTRY(worker_job_run) link;
	uint32_t id;
	struct engine_job engine;
	struct worker_job description;
	struct image_piece *piece;
	int *fd;                 /* SAVE, COPY */
	uint32_t arrived, taken; /* of them; with the lock */
	int broken;              /* with the lock: a negative errno if no more can come */
};

static LIST_HEAD(, worker_job_run) runs = LIST_HEAD_INITIALIZER(runs); /* with the lock */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static bool ready;
static worker_send *send_message;

void worker_jobs_init(worker_send *send)
{
	send_message = send;
}

void worker_jobs_ready(void)
{
	pthread_mutex_lock(&lock);
	ready = true;
	pthread_cond_broadcast(&changed);
	pthread_mutex_unlock(&lock);
}

static struct worker_job_run *of(struct engine_job *engine)
{
	return container_of(engine, struct worker_job_run, engine);
}

/* ---- in the job's thread: what the engine asks for ----------------------------------------------- */

static int take(struct engine_job *engine, uint32_t piece)
{
	struct worker_job_run *run = of(engine);
	int fd;

	pthread_mutex_lock(&lock);
	while (run->arrived <= piece && !run->broken && !atomic_load(&engine->cancelled))
		pthread_cond_wait(&changed, &lock);
	if (run->arrived > piece) {
		fd = run->fd[piece];
		run->taken = piece + 1;
	} else {
		fd = run->broken ? run->broken : -ECANCELED;
	}
	pthread_mutex_unlock(&lock);
	return fd;
}

static int made(struct engine_job *engine, uint32_t first, uint32_t count, const int *fds)
{
	struct worker_message message = {.kind = WORKER_PIECES,
					 .id = of(engine)->id,
					 .op = of(engine)->description.kind,
					 .first = first,
					 .count = count};
	int err = send_message(&message, fds, count);

	rights_close(fds, count);
	return err;
}

static void progress(struct engine_job *engine, uint64_t bytes)
{
	struct worker_message message = {
		.kind = WORKER_PROGRESS, .id = of(engine)->id, .op = of(engine)->description.kind, .bytes = bytes};

	send_message(&message, NULL, 0);
}

static int run_engine(struct worker_job_run *run)
{
	switch (run->description.kind) {
	case WORKER_SAVE:
		return engine_save(&run->engine);
	case WORKER_LOAD:
		return engine_load(&run->engine);
	default:
		return engine_copy(&run->engine);
	}
}

static void free_run(struct worker_job_run *run)
{
	if (run->fd && run->arrived > run->taken)
		rights_close(run->fd + run->taken, run->arrived - run->taken);
	if (run->engine.file >= 0)
		close(run->engine.file);
	free(run->fd);
	free(run->piece);
	free(run);
}

static void *job_main(void *argument)
{
	struct worker_job_run *run = argument;
	struct worker_message result = {.kind = WORKER_RESULT, .id = run->id, .op = run->description.kind};
	struct timespec begun, ended;

	pthread_mutex_lock(&lock);
	while (!ready)
		pthread_cond_wait(&changed, &lock);
	pthread_mutex_unlock(&lock);
	clock_gettime(CLOCK_MONOTONIC, &begun);
	result.error = run_engine(run);
	clock_gettime(CLOCK_MONOTONIC, &ended);
	result.elapsed_us =
		(uint32_t)((ended.tv_sec - begun.tv_sec) * 1000000 + (ended.tv_nsec - begun.tv_nsec) / 1000);
	result.cu_result = (int32_t)run->engine.cu_result;
	result.bytes = run->engine.bytes;
	result.stored = run->engine.stored;
	if (result.error)
		snprintf(result.text, sizeof(result.text), "%s", run->engine.text);

	pthread_mutex_lock(&lock);
	LIST_REMOVE(run, link);
	pthread_mutex_unlock(&lock);
	free_run(run);
	send_message(&result, NULL, 0); /* last: whoever hears it finds nothing of the job left */
	return NULL;
}

/* ---- in the main thread -------------------------------------------------------------------------- */

/* From the memfd, which belongs to the keeper and is read once. */
static int read_description(struct worker_job_run *run, int fd)
{
	struct worker_job *job = &run->description;
	struct stat file;
	size_t size;

	if (pread(fd, job, sizeof(*job), 0) != sizeof(*job) || fstat(fd, &file))
		return -EPROTO;
	size = (size_t)job->pieces * sizeof(*run->piece);
	if (job->kind < WORKER_SAVE || job->kind > WORKER_COPY || job->pieces > IMAGE_PIECES_MOST || !job->threads ||
	    job->threads > ENGINE_THREADS_MOST || !job->chunk_mb || job->chunk_mb > ENGINE_CHUNK_MOST ||
	    file.st_size != (off_t)(sizeof(*job) + size))
		return -EPROTO;
	run->piece = malloc(size + 1);
	run->fd = malloc(job->pieces * sizeof(*run->fd) + 1);
	if (!run->piece || !run->fd)
		return -ENOMEM;
	return image_pread(fd, run->piece, size, sizeof(*job));
}

static void begin(const struct worker_message *message, const struct rights *came)
{
	struct worker_message result = {.kind = WORKER_RESULT, .id = message->id, .op = message->op};
	struct worker_job_run *run = calloc(1, sizeof(*run));
	pthread_attr_t attr;
	pthread_t thread;
	int err = run ? came->lost ? -EMFILE : -EPROTO : -ENOMEM;

	if (!run || !came->count) {
		rights_close(came->fds, came->count);
		free(run);
		goto failed;
	}
	run->id = message->id;
	run->engine.file = came->count > 1 ? came->fds[1] : -1;
	if (!came->lost)
		err = read_description(run, came->fds[0]);
	close(came->fds[0]);
	if (!err && (run->description.kind != message->op ||
		     (run->description.kind != WORKER_COPY) != (came->count == 2)))
		err = -EPROTO;
	if (err) {
		free_run(run);
		goto failed;
	}
	run->engine.threads = run->description.threads;
	run->engine.chunk_mb = run->description.chunk_mb;
	run->engine.header = run->description.header;
	run->engine.piece = run->piece;
	run->engine.pieces = run->description.pieces;
	run->engine.take = take;
	run->engine.made = made;
	run->engine.progress = progress;
	pthread_mutex_lock(&lock);
	LIST_INSERT_HEAD(&runs, run, link);
	pthread_mutex_unlock(&lock);
	pthread_attr_init(&attr);
	pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
	err = -pthread_create(&thread, &attr, job_main, run);
	pthread_attr_destroy(&attr);
	if (!err)
		return;
	pthread_mutex_lock(&lock);
	LIST_REMOVE(run, link);
	pthread_mutex_unlock(&lock);
	free_run(run);
failed:
	result.error = err;
	snprintf(result.text, sizeof(result.text), "the job cannot begin: %s", strerror(-err));
	send_message(&result, NULL, 0);
}

/* True if the descriptors were taken. */
static bool pieces_came(struct worker_job_run *run, const struct worker_message *message, const struct rights *came)
{
	if (came->lost || message->first != run->arrived || message->count != came->count ||
	    came->count > run->description.pieces - run->arrived || run->description.kind == WORKER_LOAD) {
		run->broken = came->lost ? -EMFILE : -EPROTO;
		return false;
	}
	memcpy(run->fd + run->arrived, came->fds, came->count * sizeof(*came->fds));
	run->arrived += came->count;
	return true;
}

void worker_job_message(const struct worker_message *message, const struct rights *came)
{
	struct worker_job_run *run;
	bool taken = false;

	if (message->kind == WORKER_JOB) {
		begin(message, came);
		return;
	}
	pthread_mutex_lock(&lock);
	LIST_FOREACH(run, &runs, link)
	if (run->id == message->id)
		break;
	if (run && message->kind == WORKER_PIECES)
		taken = pieces_came(run, message, came);
	else if (run && message->kind == WORKER_CANCEL)
		atomic_store(&run->engine.cancelled, true);
	pthread_cond_broadcast(&changed);
	pthread_mutex_unlock(&lock);
	if (!taken)
		rights_close(came->fds, came->count);
}
