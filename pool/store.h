// SPDX-License-Identifier: MIT
/* What the pool has of parked memory: where it is (hot, staged, cold), its image, and who gets it. */
#ifndef CUDAPOOL_POOL_STORE_H
#define CUDAPOOL_POOL_STORE_H

#include <stdbool.h>
#include <stdint.h>

#include "channel.h"
#include "control_page.h"
#include "image.h"
#include "json.h"
#include "message.h"
#include "options.h"
#include "process.h"

/*
 * A park is the memory of one process from one PARK on, named by its token. It lives in this order:
 *
 *   begun     pieces arrive; all of it may still go back                          store_begin, store_add
 *   taken     the pieces are the pool's; its image is being written               store_taken
 *   saved     the image is complete and has its name; the pieces are only a cache store_wait_saved
 *   dropped   memory and image were given back to the living process: forgotten   store_dropped
 *
 * and, in this pool or a later one, from the image: claimed (its memory exists or is being made), given, as often as it
 * is restored. The pieces of a saved park are hot: they stay within CUDAPOOL_HOT_PERCENT of each device, the least
 * recently used goes first, and at once when memory is wanted. What was given away by moving is not hot any more, even
 * if that restore failed.
 *
 * This file's functions are called in the keeper's thread, and never block: copying is the worker's, and what may take
 * long in the kernel is done beside the loop. `done` callbacks may come before the function returns.
 */
struct park;

/* Where images of one checkpoint are: a client's directory, or the pool's own. Reference counted. */
struct store_dir;

int store_init(const struct cudapool_options *options);

struct store_waiter { /* embedded in what waits */
	void (*done)(struct store_waiter *waiter, int error, const char *text);
	bool waiting;
	void *store; /* store.c's own */
	struct store_waiter *next;
};
/*
 * Takes `fd`. DUMP: removes the images, and half-written ones, of earlier dumps from it and begins a dump (a random id).
 * Their files may be written over for the new images; there is nothing to wait for.
 * RESTORE, PREFETCH: checks header and tables of every image in it, beside the loop, and begins to load what is not hot.
 * done(): *found is filled in but for its header and for what done() says itself; RESTORE: store_find() finds; PREFETCH:
 * `tier` is reached. Never called before this returns. *found must last until then, or until store_cancel().
 * NULL: found->error and found->text say why; done() is not called.
 */
struct store_dir *store_open(int fd, const struct cudapool_images *request, struct cudapool_found *found,
			     struct store_waiter *waiter);
/*
 * The pool's own directory (CUDAPOOL_IMAGE_DIR), for a DROPIN; begins a dump of its own each time. NULL: text says why.
 */
struct store_dir *store_own(char *text);
/* CRIU_CUDA_STREAMS and CRIU_CUDA_CHUNK_MB as the client said in HELLO; 0: the pool's default. */
void store_dir_tune(struct store_dir *dir, unsigned streams, unsigned chunk_mb);
/* DUMP: no more parks will begin, so what is left of the files of earlier dumps goes. */
void store_dir_parked(struct store_dir *dir);
/* Where it was when it was opened (an absolute path), for the keeper's journal; "" where that cannot be told. */
const char *store_dir_path(const struct store_dir *dir);
void store_dir_hold(struct store_dir *dir); /* one reference more */
void store_dir_release(struct store_dir *dir);
void store_cancel(struct store_waiter *waiter);

/* The dump side. */

/* A park of `process` into `dir` begins: its token is made. NULL: out of memory. */
struct park *store_begin(struct store_dir *dir, const struct process *process);
const uint8_t *store_token(const struct park *park);
/* BEGIN came: the devices that pieces will name. 0 or a negative errno (too much, unknown to the worker). */
int store_describe(struct park *park, const struct cudapool_channel_begin *begin);
/* `count` pieces with a descriptor each, which it takes, also on failure. Saving may begin at once. */
int store_add(struct park *park, const struct cudapool_channel_piece *pieces, const int *fds, unsigned count);
/*
 * All pieces are there: under systemd they are left with it as well (deposit.h), so that a keeper that is killed from
 * GO on loses nothing. done(): 0: store_taken() may follow; or an error, and it must not. May be cancelled.
 */
void store_deposit(struct park *park, const uint64_t left[CUDAPOOL_CHANNEL_DEVICES], struct store_waiter *waiter);
/* All pieces are there, and the shim is told GO. left: bytes by device that the driver carries. */
int store_taken(struct park *park, const uint64_t left[CUDAPOOL_CHANNEL_DEVICES]);
/* Before store_taken(): forgets it and closes everything. */
void store_abandon(struct park *park);
/* done(): the image is complete and named, or never will be. */
void store_wait_saved(struct park *park, struct store_waiter *waiter);
/* True from the moment on at which the image is complete and has its name. */
bool store_saved(const struct park *park);
/*
 * After store_taken(), when nobody will ever restore it: its dump failed and the process has its memory back, or died
 * before the image was complete. Ends saving, closes the memory, removes the image. (A saved park whose process merely
 * goes on, as with --leave-running, is not dropped: the image stays, and store_gave() of the returned gift lets go of
 * the memory.)
 */
void store_dropped(struct park *park);
/* The process that it was taken from has ended. A saved park stays, for restores; one that is not is dropped. */
void store_orphaned(struct park *park);
/*
 * After a keeper that was killed: the park of this living process, as after store_taken(), if that keeper left it with
 * systemd and had not completed the image, which then is written anew (into `path`, where that one wrote). NULL: there
 * is none, or it cannot be used, which was said.
 */
struct park *store_adopt(const uint8_t token[CUDAPOOL_TOKEN_LEN], const struct process *process, const char *path);
/* Not this keeper can adopt it: it stays with systemd for the next one. */
void store_leave(const uint8_t token[CUDAPOOL_TOKEN_LEN]);
/*
 * From store_begin() on, `park` stays valid until one of store_abandon(), store_dropped(), store_orphaned(), and
 * store_gave() of its returned gift, taken. One that store_find() gave is valid until the loop turns, or with a gift
 * until store_gave().
 */

/* The restore side. */

/* The park with this token: of an image that was found in `dir`; where that is NULL, one that is known. NULL: none. */
struct park *store_find(struct store_dir *dir, const uint8_t token[CUDAPOOL_TOKEN_LEN]);
/*
 * Reads the image of this token in the directory at `path` ("": the pool's own), beside the loop, for store_find().
 * done() is called later: 0, whether there is one or not; or it is not to be trusted. NULL: there is no such directory.
 */
struct store_dir *store_look(const char *path, const uint8_t token[CUDAPOOL_TOKEN_LEN], struct store_waiter *waiter);
/* Why there was none, in CUDAPOOL_TEXT_LEN bytes: what the directory has instead. The error is -ENOENT. */
void store_missing(const struct store_dir *dir, const uint8_t token[CUDAPOOL_TOKEN_LEN], char *text);
/*
 * Sees to it that there is memory for it, and for what the driver itself restores (image_header.left, and a margin for
 * the context): what is hot but unused is evicted first. done(): it is hot, or being loaded into memory that
 * is allocated; or -ENOMEM, -EXDEV (a device that this machine lacks), -EBADMSG, -EBUSY (its image is not complete)
 * with the reason: then the gift has ended.
 * `hot`: of this restore. gift->begin and gift->path are valid from the claim or return on.
 */
struct store_gift { /* embedded; one restore of one park */
	struct park *park;
	enum cudapool_path path; /* how the memory came about */
	unsigned pieces;
	const struct cudapool_channel_piece *piece; /* valid from store_give()'s done() on */
	const int *fds;
	struct cudapool_channel_begin begin; /* as the shim is to be told */
	uint64_t claim_us, load_us; /* what it took */
	struct store_waiter waiter;
	void *own; /* store.c's */
};
void store_claim(struct store_gift *gift, struct park *park, enum cudapool_hot hot, struct store_waiter *waiter);
/*
 * The driver has restored the process: what was kept free for that is in use by now. Optional; store_give() implies it.
 */
void store_claim_used(struct store_gift *gift);
/*
 * A process that was not parked is about to be restored by the driver: what is hot but unused is evicted until what it
 * has in host memory now (its GPU memory is part of that) would fit on each device. Never fails: nobody knows what it
 * really needs.
 */
void store_make_room(const struct process *process, struct store_waiter *waiter);
/* done(): the memory of a claimed gift is there in full; pieces and fds may be sent. */
void store_give(struct store_gift *gift, struct store_waiter *waiter);
/*
 * The shim has copied the pieces before `upto` into memory of the process's own. They are closed, unless they were
 * parked by that very process: then there is the image, from which it is loaded again should the rest never arrive.
 * done(): their memory is free.
 */
void store_passed(struct store_gift *gift, unsigned upto, struct store_waiter *waiter);
/*
 * The shim has it (taken), or nobody got it: what was moved is closed either way. Also ends a claim that was not used.
 * But of a returned gift (store_return) that was not taken, the park keeps the pieces. Not with a waiter of it waiting.
 */
void store_gave(struct store_gift *gift, bool taken);

/*
 * The process that it was taken from lives (a dump that is undone): the gift of its own pieces, path RETURNED; if they
 * were evicted since, of the image. store_give() and store_gave() follow.
 */
void store_return(struct store_gift *gift, struct park *park);

/*
 * Statistics. One checkpoint or restore of one process has ended, well or not: it is kept for the report, and written
 * into `dir` (NULL: not written) as records.h says. For a checkpoint once CHECKPOINT has ended (or LOCK, where it
 * failed), for a restore once UNPARK has (or RESTORE or UNLOCK, where it failed, or where nothing was parked). What the
 * store knows itself it takes from `park` and `gift`, before store_gave(); NULL: nothing was parked.
 */
struct store_note {
	enum cudapool_stage stage; /* DUMP or RESTORE */
	enum cudapool_path path;
	int error; /* 0 or a negative errno */
	const struct process *process;
	const char *why; /* path STOCK: why; else what failed; "" */
	const struct cudapool_channel_end *end; /* of the shim; NULL: none came */
	uint64_t left[CUDAPOOL_LEFT_KINDS]; /* DUMP: the page's left_bytes */
	uint64_t lock_us, checkpoint_us, restore_us, unlock_us; /* in the driver's calls; 0: did not happen */
	uint64_t give_us; /* RESTORE: from the page command to END, as the keeper sees it */
};
void store_note(struct store_dir *dir, const struct park *park, const struct store_gift *gift,
		const struct store_note *note);

/*
 * Tiers, for clients. *found is filled in at once, but for its header and for what done() says itself. done(): for COLD,
 * all of the images is out of the page cache; -EBUSY: it is in use; -EOPNOTSUPP: it is on a file system in memory;
 * -ENOENT: no such park. The hot memory is let go of either way. done() may come before this returns.
 */
void store_evict(const struct cudapool_evict *request, struct cudapool_found *found, struct store_waiter *waiter);

/*
 * Members of the report:
 *
 *   parks       [ { container (its id; "" outside of one), process, pid (when it was dumped),
 *                   token, dump (hexadecimal),
 *                   state: "parking" | "saving" | "unsaved" | "saved" | "restoring", tier: "hot" | "staged" | "cold",
 *                   bytes (of GPU memory), image_bytes (of the file), age_s, restores (from it, in this pool),
 *                   path (of the image) } ]
 *   park_count  how many there are; the list may be cut
 *   records     the last checkpoints and restores, newest first: see records.h
 */
void store_report(struct cudapool_json *json, int limit);

/* To be called from the worker link: see struct link_config. */
struct worker_message;
void store_worker_message(const struct worker_message *message, const int *fds, unsigned count);
void store_worker_lost(const char *what);
void store_worker_changed(void);
void store_worker_room(void);

#endif
