// SPDX-License-Identifier: MIT
/* What the pool holds for whom, on disk: so that a keeper that was killed can be succeeded by one that knows. */
#ifndef CUDAPOOL_POOL_JOURNAL_H
#define CUDAPOOL_POOL_JOURNAL_H

#include <assert.h>
#include <stdint.h>

/*
 * The file: SOCKET.journal, a header and then records, all little endian and of fixed width, appended with
 * one write each. A record says everything there is to know about one process and replaces all earlier
 * ones of that process (pid and start time). One with nothing held and nothing under way: forgotten.
 *
 * Each record has a checksum. The first that is torn or wrong ends the file: it can only be the
 * last one that was begun. A header of another boot, or another format, makes all of it void: no process
 * of another boot exists. Records of another format in the same boot are not lost silently: the log says so.
 * There is no fsync: the page cache survives the keeper, and after a crash of the kernel there is nothing
 * to give back.
 *
 * When the file has grown, it is written anew with the living records only, beside the old one, and renamed.
 */
#define JOURNAL_MAGIC	0x324a5043u /* "CPJ2" in memory */
#define JOURNAL_DIR_MAX 1024	    /* bytes of a path, its NUL included */

struct journal_header {
	uint32_t magic;
	uint32_t record_size;
	uint8_t boot[16]; /* the kernel's boot_id */
	uint32_t reserved;
	uint32_t checksum; /* CRC-32 of all before it */
};
static_assert(sizeof(struct journal_header) == 32, "file format");

/* What is to be given back; of all three: restore, then unlock, then unpark. */
enum journal_held {
	JOURNAL_HELD_LOCKED = 1,
	JOURNAL_HELD_CHECKPOINTED = 2,
	JOURNAL_HELD_PARKED = 4, /* its memory is the pool's: token and dir are valid */
};

struct journal_record {
	uint64_t owner_start; /* start times as in struct process */
	uint64_t start;
	int32_t owner_pid; /* 0: nobody's */
	int32_t pid;
	uint32_t held;     /* enum journal_held, or'ed */
	uint32_t pending;  /* enum cudapool_op that is under way; 0: none */
	int32_t before;    /* the driver's state before that, or -1 */
	uint8_t token[16]; /* of the park */
	char dir[JOURNAL_DIR_MAX]; /* where its image is, or was going to be: an absolute path; NUL ended */
	uint32_t checksum; /* CRC-32 of all before it */
};
static_assert(sizeof(struct journal_record) == 56 + JOURNAL_DIR_MAX, "file format");

/*
 * Opens or makes the journal; `replay` is called for each whole record in it, oldest first. 0 or a negative
 * errno; -EPERM: the file is somebody else's.
 */
int journal_open(const char *path, void (*replay)(const struct journal_record *record));

/* Appends one record (the checksum is filled in). On failure the file is as before. */
int journal_put(struct journal_record *record);

/* True if the file has grown so much that journal_rewrite() is due. */
int journal_is_long(void);

/* Replaces the file by one with the records that `next` gives until it returns NULL. */
int journal_rewrite(struct journal_record *(*next)(void *cursor), void *cursor);

#endif
