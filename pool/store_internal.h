// SPDX-License-Identifier: MIT
/* What the files of the store share: parks, their memory, room for it, directories. */
#ifndef CUDAPOOL_POOL_STORE_INTERNAL_H
#define CUDAPOOL_POOL_STORE_INTERNAL_H

#include <sys/queue.h>

#include "background.h"
#include "deposit.h"
#include "records.h"
#include "store.h"
#include "store_job.h"

/*
 * store.c        parks: begun, taken, saved, dropped
 * store_save.c   the image of a park: written, synced, named
 * store_files.c  files of images: made, taken over from an earlier dump, removed
 * store_gift.c   gifts: claimed, given, returned
 * store_memory.c memory: pieces by descriptor, parked, loaded or copied; closing it
 * store_room.c   devices: what is free, what is kept free for whom, what is evicted for it; the budget
 * store_dir.c    directories: cleaning, naming, finding
 * store_read.c   images of a directory: read and checked beside the loop
 * store_watch.c  pages of running applications: what could be evicted for them, and when they want it
 * store_tier.c   images that are not on the GPU: staged or cold; evict and prefetch, for clients
 * store_deposit.c what outlives the keeper: deposited with systemd, adopted
 * records.c      statistics
 */

/*
 * What the driver takes on each device of a process beside the memory that image_header.left counts: its context, code,
 * local memory (523.6 MiB for an empty context, probes/context_memory.c). A driver that runs out within a restore is
 * stuck for good, so this is kept free before it is asked.
 */
#define STORE_MARGIN (640ull << 20)
#define DEVICES	     IMAGE_DEVICES

#define MATCHES(a, b) (memcmp(a, b, 16) == 0)

/* ---- waiters ------------------------------------------------------------------------------------- */

struct waiters {
	struct store_waiter *first;
};
void waiters_add(struct waiters *waiters, struct store_waiter *waiter);
/* Moves those of `from` behind the others. */
void waiters_join(struct waiters *to, struct waiters *from);
/* Calls all that wait now. They may wait again. */
void waiters_done(struct waiters *waiters, int error, const char *text);

/* ---- room (store_room.c) ------------------------------------------------------------------------- */

struct need {
	unsigned devices;
	uint8_t uuid[DEVICES][16];
	uint64_t bytes[DEVICES];
};

/* Memory kept free for something that will be allocated. Embedded, zeroed. */
struct room {
	struct need need;
	const struct park *for_park; /* which is not evicted for it */
	bool gently; /* evicts nothing and does not wait: -ENOMEM at once */
	bool soon;   /* evicts, but does not wait until jobs have ended; goes before others */
	void (*done)(struct room *room, int error, const char *text); /* from the loop, once */

	/* store_room.c's own */
	enum { ROOM_IDLE, ROOM_WAITING, ROOM_KEPT } state;
	TAILQ_ENTRY(room) link;
};
void room_ask(struct room *room);
/* It is allocated by now, or not wanted any more. Idle rooms may be released. */
void room_release(struct room *room);

void rooms_init(unsigned hot_percent);
/* Something was freed, or a job has ended: those that wait look again. */
void rooms_kick(void);
/* Evicts what is beyond the budget, and what may not be hot. */
void rooms_enforce(void);
/* Refuses, or evicts for it, so many descriptors more. 0 or -EMFILE. */
int rooms_descriptors(unsigned count);
/* What of a device's memory could be evicted. */
uint64_t rooms_evictable(const uint8_t uuid[16]);

/* ---- memory (store_memory.c) ---------------------------------------------------------------------- */

enum memory_from { MEMORY_PARKED, MEMORY_LOADED, MEMORY_COPIED };

/* The pieces of a park, each by a descriptor. Owned by one place: park->hot, park->early, or a gift. */
struct memory {
	struct park *park;
	enum memory_from from;
	bool ready;
	int error;   /* it will never be ready */
	bool exposed; /* its own process was offered it, and may have it: for nobody else any more */
	unsigned got;
	unsigned passed; /* of those: closed already, since whom they were given to has copies */
	int *fds;
	struct memory *source; /* COPIED: until it is ready */
	unsigned users;	       /* copies that read from it */
	bool orphan;	       /* freed when these have ended */
	struct job job;
	struct room room;
	struct waiters allocated, filled;
	uint64_t started_us, took_us;
	char text[CUDAPOOL_TEXT_LEN];
};

/* Empty, for pieces that arrive. NULL: out of memory. */
struct memory *memory_new(struct park *park);
/* Being loaded from the image, once there is room. */
struct memory *memory_load(struct park *park);
/* Being copied from `source`, once there is room, which is taken `gently`. */
struct memory *memory_copy(struct memory *source);
/* Closes the pieces before `upto`: it is of no use any more but for the rest. done(): they are closed. */
void memory_pass(struct memory *memory, unsigned upto, struct store_waiter *waiter);
/* Ends what fills it and closes all; those who wait for that hear -ECANCELED. NULL is nothing. */
void memory_free(struct memory *memory);
/* Descriptors of memory that is being closed: it will be free soon. */
unsigned memory_closing(void);
/* Descriptors that memory has, is getting, or is still closing. */
unsigned memory_descriptors(void);
/* What a park's pieces need. */
void need_pieces(struct need *need, const struct park *park);

/* ---- parks (store.c) -------------------------------------------------------------------------------- */

enum park_life {
	PARK_BEGUN,
	PARK_TAKEN, /* being saved */
	PARK_FAILED, /* to be saved */
	PARK_SAVED, /* there is an image */
	PARK_DROPPED, /* nothing of it is of use; freed when nobody has it */
};

struct park {
	enum park_life life;
	struct image_header header; /* token, dump, devices, left, sizes; once it is saved, as it is in the image */
	struct image_piece *piece;
	uint64_t bytes[DEVICES];    /* of the pieces on each of header.uuid */
	struct memory *hot;	    /* its own pieces, or a master to copy from */
	struct memory *early;	    /* loaded ahead, for the next claim */
	bool held;		    /* the caller of store_begin() has it */
	unsigned gifts;		    /* that have it */
	unsigned opened;	    /* directories, opened for a restore, that have an image of it */
	struct store_dir *dir;	    /* where it is dumped to, until it is saved or dropped */
	int image;		    /* while `hot`, `early`, `gifts` or `opened`; else -1 */
	char *path;		    /* of the image, for people and for looking again; may be NULL */
	uint64_t dev, ino;	    /* of the image */
	struct {
		char *path; /* NULL: there is none */
		uint64_t dev, ino;
	} first; /* another copy of it, found before: where to look when the newest one is gone */
	uint64_t image_bytes;
	uint64_t used_ms;	    /* last taken, loaded or given */
	unsigned restores;	    /* from it, in this pool */
	enum cudapool_tier tier;    /* before the last load */
	char container[65];
	unsigned streams, chunk_mb;
	int sync;
	enum cudapool_hot hot_mode; /* as the dump asked for */

	/* With systemd, from before it is taken until it is saved or given back. */
	struct deposit deposit;
	struct waiters deposited;

	/* Saving. */
	struct job save;
	int part;
	struct background naming;
	int naming_error;
	bool naming_on;
	struct image_header written;
	uint64_t recycled_bytes; /* of the file: it was an earlier image's */
	uint64_t save_started_us, save_us;
	struct waiters saved;
	int save_error;		      /* FAILED: a negative errno, */
	char text[CUDAPOOL_TEXT_LEN]; /* and why */
	LIST_ENTRY(park) link;
};
LIST_HEAD(park_list, park);
extern struct park_list parks;

struct park *park_by_token(const uint8_t token[16]);
/* Empty, in the list. NULL: out of memory. */
struct park *park_new(void);
/*
 * The park of which that is the image, known or new; takes `fd` and `piece`, also on failure. 0; -ENOMEM; -EBADMSG: the
 * memory that the pool has of this token is not what the image is of: `text` names both.
 */
int park_of_image(struct park **park, const struct image_header *header, struct image_piece *piece, int fd,
		  const char *path, char *text);
/* Where the image is now, or a further copy of it. Takes `fd`. */
void park_set_image(struct park *park, int fd, const char *path);
/* Frees it soon if nobody has it. To be called whenever something was taken from it. */
void park_settle(struct park *park);
/* Its image is gone: if nobody has it, so is the park. */
void park_lost_image(struct park *park);
/* A returned gift of it: ends saving; its process has the memory again. */
void park_stop_saving(struct park *park);
void park_returned(struct park *park);
/* True if its hot memory may be closed: it is only a cache, and nobody is about to use it. */
bool park_evictable(const struct park *park);
void park_evict(struct park *park);
/* Where the newest copy is gone (a container that was restored from an archive is), an earlier one is its image again. */
bool park_image_exists(struct park *park);
/* Lets go of all parks of which this file is the image. False, and of none: one of them is in use. */
bool park_release_image(uint64_t dev, uint64_t ino);
/* An image file for reading: park->image, or opened again (and closed with park_settle()). Negative errno. */
int park_open_image(struct park *park);

/* ---- saving (store_save.c) ----------------------------------------------------------------------------- */

/* What the image shall say of this moment. */
void save_describe(struct park *park, const uint64_t left[CUDAPOOL_CHANNEL_DEVICES]);
/* The memory is there: writing begins. 0 or a negative errno. */
int save_begin(struct park *park);
/* The image will not be written; what there is of it goes. */
void save_stop(struct park *park);
void save_remove_image(struct park *park);

/* ---- files of images (store_files.c) -------------------------------------------------------------------- */

struct store_dir;

/* As close(); where that gives back a file's memory or blocks it takes long, and is done beside the loop. */
void files_close(int fd);
/* Its name goes at once. 0, also if it was not there, or a negative errno. */
int files_remove(int dir, const char *name);

/*
 * The image of an earlier dump is to be one no more: its memory is kept for a new one, as allocating is what takes a
 * file in memory most of its time; or the file is removed. 0 or a negative errno: it is still there.
 */
int files_keep(struct store_dir *dir, const char *name);
/* A file to write an image of so many bytes into, a new one or one that was kept: *recycled bytes of it. Or -errno. */
int files_make(struct store_dir *dir, const char *name, uint64_t bytes, uint64_t *recycled);
/* In the pool's own directory: removes what a pool that was killed has left half-written, unless somebody has it open. */
int files_sweep(struct store_dir *dir, const char *name);
/* What was kept, and is not needed. */
void files_drop(struct store_dir *dir);

/* ---- directories (store_dir.c) ------------------------------------------------------------------------ */

#define SPARES_MOST 64

/* A file without an image in it, which is called .part, and which nobody else has open. */
struct spare {
	int fd;
	uint64_t bytes;
	char name[64];
};

struct store_dir {
	int fd;
	unsigned references;
	enum cudapool_images_for purpose;
	enum cudapool_hot hot;
	int sync;
	bool own;
	uint8_t dump[16];
	uint64_t created_us;
	unsigned streams, chunk_mb;
	char path[4096];
	unsigned count;
	struct park **park; /* of the images in it; RESTORE, PREFETCH */
	struct cudapool_found *found; /* the asker's, while it waits; NULL: store_look(), which only reads */
	struct waiters asker;
	struct store_waiter step;    /* PREFETCH: on what is being loaded, one after another */
	enum cudapool_tier tier;
	unsigned reached; /* images of which `tier` is reached */
	struct records records;
	unsigned spares;
	struct spare spare[SPARES_MOST];
};

/*
 * Calls each() for the names that are those of images, or of half-written ones where `part`, until it returns an error.
 * May be called beside the loop.
 */
int dir_each(struct store_dir *dir, bool part, int (*each)(struct store_dir *dir, const char *name, void *context),
	     void *context);
/* What read_begin() has begun has ended: the parks are in `dir`, or `text` says why not. */
void dir_read(struct store_dir *dir, int error, const char *text);
/* Its images are not about to be restored any more. */
void store_dir_unpin(struct store_dir *dir);
void dirs_init(const struct cudapool_options *options);
/* A directory that an earlier keeper wrote images to, to go on with that. NULL: it is gone. */
struct store_dir *dir_again(const char *path);
/* What a client asked for, within what CUDAPOOL_HOT of the pool allows. */
enum cudapool_hot pool_hot(enum cudapool_hot hot);
/* cudapool-TOKEN.img, or with .part */
void image_name(const uint8_t token[16], bool part, char name[64]);

/* ---- reading (store_read.c) ----------------------------------------------------------------------------- */

/* Checks all images in it, or that one; dir_read() follows, from the loop, while the directory is held. 0 or -ENOMEM. */
int read_begin(struct store_dir *dir, const char *only);

/* ---- tiers (store_tier.c) ------------------------------------------------------------------------------ */

/* By a sample of the page cache: STAGED if most of the file is in it. */
enum cudapool_tier tier_of_file(int fd, uint64_t size);
/* Where the memory of a park is now. */
enum cudapool_tier tier_of_park(struct park *park);
/* Reads the image into the page cache, beside the loop, for as long as somebody waits for it. */
void tier_stage(struct park *park, struct store_waiter *waiter);

/* ---- pages of applications (store_watch.c) ------------------------------------------------------------- */

int watch_init(void);
/* What could be evicted has changed. */
void watch_changed(void);

#endif
