// SPDX-License-Identifier: MIT
/* Jobs of the worker: saving, loading and copying of pieces, and what memory a device has. */
#include "store_job.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "descriptors.h"
#include "log.h"
#include "worker_link.h"

#define ATTEMPTS  2
#define MEMORY_MS 30000 /* for an answer about memory, the start of a driver included */

/* A job that was cancelled and that the worker has not answered yet. */
struct ghost {
	uint32_t id;
	LIST_ENTRY(ghost) link;
};

static TAILQ_HEAD(job_list, job) jobs = TAILQ_HEAD_INITIALIZER(jobs);
static TAILQ_HEAD(, job_memory) queries = TAILQ_HEAD_INITIALIZER(queries);
static LIST_HEAD(, ghost) ghosts = LIST_HEAD_INITIALIZER(ghosts);
static unsigned own_streams, own_chunk_mb, progress_ms, running;
static unsigned closing; /* descriptors of what jobs have made and nobody wants */
static void (*freed)(void);
static uint32_t last_id;
static struct loop_timer pump;

static void made_closed(void *own, unsigned count)
{
	closing -= count;
	loop_timer_set(&pump, 0);
	freed();
}

static void close_made(struct job *job)
{
	unsigned count = job->got;

	job->got = 0;
	closing += count;
	if (count)
		descriptors_close(job->made, count, made_closed, NULL);
}

static void leave(struct job *job)
{
	running -= job->state == JOB_SENDING || job->state == JOB_RUNNING;
	loop_timer_cancel(&job->progress);
	TAILQ_REMOVE(&jobs, job, link);
	job->state = JOB_IDLE;
}

static void end(struct job *job, int error)
{
	leave(job);
	job->error = error;
	if (error)
		close_made(job);
	loop_timer_set(&pump, 0);
	job->done(job);
}

/* ---- handing over ------------------------------------------------------------------------------ */

/* A share of the threads by size, so that the processes of a tree end together. The GPU copies without. */
static unsigned share_of(const struct job *job)
{
	unsigned streams = job->streams ? job->streams : own_streams, share;
	uint64_t all = 0;
	struct job *other;

	TAILQ_FOREACH(other, &jobs, link)
		all += other->kind == WORKER_COPY ? 0 : other->size;
	share = all ? (unsigned)((double)streams * (double)job->size / (double)all + 0.5) : streams;
	return share < 1 ? 1 : share > streams ? streams : share;
}

/* The description, in a file that nobody can change any more; or a negative errno. */
static int describe(const struct job *job)
{
	struct worker_job head = {
		.kind = job->kind,
		.pieces = job->pieces,
		.threads = share_of(job),
		.chunk_mb = job->chunk_mb ? job->chunk_mb : own_chunk_mb,
	};
	size_t size = job->pieces * sizeof(*job->piece);
	int fd = memfd_create("cudapool-job", MFD_CLOEXEC | MFD_ALLOW_SEALING), err = 0;

	if (fd < 0)
		return -errno;
	if (job->header)
		head.header = *job->header;
	if (write(fd, &head, sizeof(head)) != sizeof(head) || write(fd, job->piece, size) != (ssize_t)size ||
	    fcntl(fd, F_ADD_SEALS, F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE))
		err = errno ? -errno : -ENOSPC;
	if (!err)
		return fd;
	close(fd);
	return err;
}

static void no_progress(struct loop_timer *timer)
{
	struct job *job = container_of(timer, struct job, progress);

	cudapool_log(CUDAPOOL_LOG_ERR, "job %u (%s) made no progress for %u s", job->id,
		     job->kind == WORKER_SAVE ? "saving" : job->kind == WORKER_LOAD ? "loading" : "copying",
		     progress_ms / 1000);
	snprintf(job->text, sizeof(job->text), "no progress for %u s (CUDAPOOL_PROGRESS_S)", progress_ms / 1000);
	job->attempts++;
	link_replace("hung within a job"); /* which calls jobs_worker_lost() */
}

static int hand_over(struct job *job)
{
	struct worker_message message = {.kind = WORKER_JOB, .op = job->kind};
	int fds[2], err;

	fds[0] = describe(job);
	if (fds[0] < 0)
		return fds[0];
	fds[1] = job->image;
	job->id = message.id = ++last_id;
	err = link_send_job(&message, fds, job->image >= 0 ? 2 : 1);
	close(fds[0]);
	if (err)
		return err;
	running++;
	job->state = job->source ? JOB_SENDING : JOB_RUNNING;
	job->sent = 0;
	job->bytes = job->stored = 0;
	job->progress.fire = no_progress;
	loop_timer_set(&job->progress, progress_ms);
	return 0;
}

static int send_pieces(struct job *job)
{
	struct worker_message message = {.kind = WORKER_PIECES, .id = job->id, .op = job->kind};
	int err;

	while (job->sent < job->pieces) {
		message.first = job->sent;
		message.count = job->pieces - job->sent < WORKER_BATCH ? job->pieces - job->sent : WORKER_BATCH;
		err = link_send_job(&message, job->source + job->sent, message.count);
		if (err)
			return err;
		job->sent += message.count;
	}
	job->state = JOB_RUNNING;
	loop_timer_set(&job->progress, progress_ms);
	return 0;
}

/* As far as the link takes it; one job's pieces after another's. */
static int advance(struct job *job)
{
	int err = 0;

	/* What is being closed still takes the place of what is to be made. */
	if (job->state == JOB_QUEUED && running < JOBS_AT_ONCE && !(job->made && closing))
		err = hand_over(job);
	if (!err && job->state == JOB_SENDING)
		err = send_pieces(job);
	return err;
}

static int ask_memory(struct job_memory *query)
{
	struct worker_message message = {.kind = WORKER_MEMORY};
	int err;

	query->id = message.id = ++last_id;
	memcpy(message.uuid, query->uuid, sizeof(message.uuid));
	err = link_send_job(&message, NULL, 0);
	query->sent = !err;
	return err;
}

static void end_memory(struct job_memory *query, int error)
{
	query->error = error;
	job_memory_cancel(query);
	query->done(query);
}

static void fail_all(const char *text)
{
	struct job_memory *query;
	struct job *job, *next;

	while ((query = TAILQ_FIRST(&queries))) {
		snprintf(query->text, sizeof(query->text), "%s", text);
		end_memory(query, -ENODEV);
	}
	for (job = TAILQ_FIRST(&jobs); job; job = next) {
		next = TAILQ_NEXT(job, link);
		if (job->state == JOB_EXPECTED)
			continue;
		snprintf(job->text, sizeof(job->text), "%s", text);
		end(job, -ENODEV);
		next = TAILQ_FIRST(&jobs); /* done() may have changed the list */
	}
}

static void do_pump(struct loop_timer *timer)
{
	struct job_memory *query;
	struct link_info info;
	struct job *job, *next;
	int err;

	link_info(&info);
	if (info.state == CUDAPOOL_WORKER_FAILED)
		fail_all(info.text);
	if (!info.ready)
		return;
	TAILQ_FOREACH(query, &queries, link)
		if (!query->sent && ask_memory(query))
			return;
	for (job = TAILQ_FIRST(&jobs); job; job = next) {
		next = TAILQ_NEXT(job, link);
		err = advance(job);
		if (err == -EAGAIN || err == -ENOTCONN)
			return; /* jobs_room() or jobs_worker_changed() comes */
		if (err) {
			snprintf(job->text, sizeof(job->text), "it cannot be handed to the worker: %s", strerror(-err));
			end(job, err);
			return; /* end() has set the pump: `next` may be gone by now */
		}
	}
}

/* ---- coming back --------------------------------------------------------------------------------- */

static struct job *find(uint32_t id)
{
	struct job *job;

	TAILQ_FOREACH(job, &jobs, link)
		if (job->id == id && (job->state == JOB_SENDING || job->state == JOB_RUNNING))
			return job;
	return NULL;
}

static void ghost_gone(uint32_t id)
{
	struct ghost *ghost;

	LIST_FOREACH(ghost, &ghosts, link)
		if (ghost->id == id) {
			LIST_REMOVE(ghost, link);
			free(ghost);
			return;
		}
}

/*
 * True if it took the descriptors. Where some were lost on the way, the next ones do not fit, and the result says so.
 */
static bool take_pieces(struct job *job, const struct worker_message *message, const int *fds, unsigned count)
{
	if (!job->made || message->first != job->got || message->count != count || count > job->pieces - job->got)
		return false;
	memcpy(job->made + job->got, fds, count * sizeof(*fds));
	job->got += count;
	if (job->got == job->pieces && job->allocated)
		job->allocated(job);
	return true;
}

static void take_result(struct job *job, const struct worker_message *message)
{
	int error = message->error > 0 ? -EPROTO : message->error;

	job->bytes = message->bytes;
	job->stored = message->stored;
	job->elapsed_us = message->elapsed_us;
	snprintf(job->text, sizeof(job->text), "%s", message->text);
	if (error && !job->text[0])
		snprintf(job->text, sizeof(job->text), "%s", strerror(-error));
	if (!error && job->made && job->got != job->pieces) {
		error = -EMFILE;
		snprintf(job->text, sizeof(job->text),
			 "%u of %u descriptors came from the worker: raise the pool's limit of open files "
			 "(LimitNOFILE=)",
			 job->got, job->pieces);
	}
	end(job, error);
}

static void take_memory(const struct worker_message *message)
{
	struct job_memory *query;

	TAILQ_FOREACH(query, &queries, link)
		if (query->sent && query->id == message->id) {
			query->free = message->bytes;
			query->total = message->stored;
			snprintf(query->text, sizeof(query->text), "%s", message->text);
			end_memory(query, message->error);
			return;
		}
}

void jobs_message(const struct worker_message *message, const int *fds, unsigned count)
{
	struct job *job = find(message->id);
	bool taken = false;

	if (message->kind == WORKER_MEMORY) {
		take_memory(message);
	} else if (job) {
		loop_timer_set(&job->progress, progress_ms);
		if (message->kind == WORKER_PIECES)
			taken = take_pieces(job, message, fds, count);
		else if (message->kind == WORKER_PROGRESS)
			job->bytes = message->bytes;
		else if (message->kind == WORKER_RESULT)
			take_result(job, message);
	} else if (message->kind == WORKER_RESULT) {
		ghost_gone(message->id);
	}
	while (!taken && count)
		close(fds[--count]);
}

void jobs_room(void)
{
	do_pump(&pump);
}

void jobs_worker_changed(void)
{
	loop_timer_set(&pump, 0);
}

/* What the worker had goes back into the queue. `what`: 'died', or it was replaced, for a reason that no_progress()
 * counted. */
void jobs_worker_lost(const char *what)
{
	bool died = !strcmp(what, "died");
	struct job_memory *query;
	struct ghost *ghost;
	struct job *job, *next;
	int err;

	while ((ghost = LIST_FIRST(&ghosts)))
		ghost_gone(ghost->id);
	TAILQ_FOREACH(query, &queries, link)
		query->sent = false;
	for (job = TAILQ_FIRST(&jobs); job; job = next) {
		next = TAILQ_NEXT(job, link);
		if (job->state == JOB_QUEUED || job->state == JOB_EXPECTED)
			continue;
		running--;
		job->state = JOB_QUEUED;
		loop_timer_cancel(&job->progress);
		close_made(job);
		if (died) {
			job->attempts++;
			snprintf(job->text, sizeof(job->text), "the worker died within it");
		}
		err = job->attempts >= ATTEMPTS ? -EIO : 0;
		if (!err && job->again)
			err = job->again(job);
		if (err)
			end(job, err);
		next = TAILQ_FIRST(&jobs); /* again() and done() may have changed the list */
	}
}

/* ---- asking ------------------------------------------------------------------------------------- */

void jobs_init(unsigned streams, unsigned chunk_mb, unsigned progress_s, void (*memory_freed)(void))
{
	freed = memory_freed;
	own_streams = streams ? streams : WORKER_STREAMS;
	own_chunk_mb = chunk_mb ? chunk_mb : WORKER_CHUNK_MB;
	progress_ms = progress_s * 1000;
	pump.fire = do_pump;
}

void job_expect(struct job *job)
{
	unsigned i;

	job->size = 0;
	for (i = 0; i < job->pieces; i++)
		job->size += job->piece[i].bytes;
	job->state = JOB_EXPECTED;
	TAILQ_INSERT_TAIL(&jobs, job, link);
}

void job_start(struct job *job)
{
	if (job->state == JOB_IDLE)
		job_expect(job);
	job->state = JOB_QUEUED;
	loop_timer_set(&pump, 0); /* not now: those that are asked for at once share the threads */
}

void job_cancel(struct job *job)
{
	struct worker_message message = {.kind = WORKER_CANCEL, .id = job->id};
	struct ghost *ghost;

	bool handed_over = job->state == JOB_SENDING || job->state == JOB_RUNNING;

	if (job->state == JOB_IDLE)
		return;
	leave(job);
	close_made(job);
	ghost = handed_over ? malloc(sizeof(*ghost)) : NULL;
	if (ghost) {
		ghost->id = job->id;
		LIST_INSERT_HEAD(&ghosts, ghost, link);
	}
	if (handed_over && !link_send(&message))
		ghost_gone(job->id); /* the worker is gone, or hangs */
}

bool jobs_busy(void)
{
	return running || closing || !LIST_EMPTY(&ghosts);
}

static void memory_late(struct loop_timer *timer)
{
	struct job_memory *query = container_of(timer, struct job_memory, limit);

	snprintf(query->text, sizeof(query->text), "the worker did not say within %d s how much memory there is",
		 MEMORY_MS / 1000);
	end_memory(query, -ETIMEDOUT);
}

void job_memory_start(struct job_memory *query)
{
	query->sent = false;
	query->waiting = true;
	query->limit.fire = memory_late;
	loop_timer_set(&query->limit, MEMORY_MS);
	TAILQ_INSERT_TAIL(&queries, query, link);
	loop_timer_set(&pump, 0);
}

void job_memory_cancel(struct job_memory *query)
{
	if (!query->waiting)
		return;
	query->waiting = false;
	loop_timer_cancel(&query->limit);
	TAILQ_REMOVE(&queries, query, link);
}
