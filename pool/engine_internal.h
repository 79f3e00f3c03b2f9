// SPDX-License-Identifier: MIT
/* What the parts of the engine share. */
#ifndef CUDAPOOL_POOL_ENGINE_INTERNAL_H
#define CUDAPOOL_POOL_ENGINE_INTERNAL_H

#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>

#include "engine.h"

/* ---- devices and pieces: engine_memory.c ----------------------------------------------------------- */

#define DEVICES_MAX 64

extern const struct driver *engine_driver;

/* Addresses, and what is mapped at them from the start on. */
struct range {
	CUdeviceptr start; /* 0: there are none */
	uint64_t size, mapped;
};

/* One physical allocation, mapped here. */
struct mapping {
	CUmemGenericAllocationHandle memory;
	struct range range;
};

/* Says which driver call failed, and what that means; returns the errno for it. */
int driver_failed(CUresult cu, const char *call, char *text);

/* The indices, for the functions below, of the devices that an image names. 0 or -EXDEV. */
int devices_find(const struct image_header *header, int device[IMAGE_DEVICES], char *text);
/* Makes its primary context the calling thread's, creating it where there is none. */
int device_enter(int device, char *text, CUresult *cu);

/*
 * Those that return an int need a context, and return 0 or a negative errno; then nothing was done, and `text` and `cu`
 * say why.
 */
/* Physical memory: `bytes` new ones on `device`, or what stands behind a descriptor. Stays as long as it is mapped. */
int memory_create(CUmemGenericAllocationHandle *memory, int device, uint64_t bytes, bool rdma, char *text,
		  CUresult *cu);
int memory_import(CUmemGenericAllocationHandle *memory, int fd, char *text, CUresult *cu);
/* A descriptor of what memory_create() made. */
int memory_export(CUmemGenericAllocationHandle memory, char *text, CUresult *cu);
void memory_release(CUmemGenericAllocationHandle memory);

/* Multiples of the driver's granularity. What is mapped goes behind what is there; it is for use once it was opened. */
int range_reserve(struct range *range, uint64_t size, char *text, CUresult *cu);
int range_map(struct range *range, CUmemGenericAllocationHandle memory, uint64_t bytes, char *text, CUresult *cu);
int range_open(const struct range *range, int device, char *text, CUresult *cu);
/* No work on it may be under way. */
void range_end(struct range *range);

/* All of that for one piece, which is of `bytes` bytes. */
int mapping_create(struct mapping *mapping, int device, uint64_t bytes, bool rdma, char *text, CUresult *cu);
int mapping_import(struct mapping *mapping, int device, uint64_t bytes, int fd, char *text, CUresult *cu);
/* No work on it may be under way. */
void mapping_end(struct mapping *mapping);

/* ---- lanes: engine_lane.c -------------------------------------------------------------------------- */

#define LANE_BUFFERS 2

/* What one thread copies with. */
struct lane {
	struct lane *next;
	size_t chunk;                  /* size of each buffer; 0: it has none */
	uint8_t *buffer[LANE_BUFFERS]; /* pinned */
	/* Of each device, as needed: */
	CUstream stream[DEVICES_MAX];
	CUevent event[DEVICES_MAX][LANE_BUFFERS];
};

/*
 * A lane with buffers of `chunk` bytes (0: none), used before or new. The calling thread has a context. Where all
 * buffers together would be too much: -EAGAIN, or, with `wait`, it waits until others give theirs back.
 */
int lane_get(struct lane **lane, size_t chunk, bool wait, char *text, CUresult *cu);
void lane_put(struct lane *lane);
/* Sees to it that it has a stream and events on a device, whose context is the thread's. */
int lane_enter(struct lane *lane, int device, char *text, CUresult *cu);

/* ---- an image in memory: engine_map.c --------------------------------------------------------------- */

#define HUGE_PAGE (2ull << 20)

/* C libraries may be older than the kernel. */
#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#endif
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

struct engine_map {
	uint8_t *at;   /* so that huge pages of the file fit; NULL: it is not mapped */
	uint64_t size; /* bytes of the file, aligned */
	_Atomic uint32_t *done;
};

/* Maps all of a file in memory, as `protection` says. False: it is in none, or cannot be mapped. */
bool map_begin(struct engine_map *map, int fd, uint64_t size, int protection);
/* Nobody needs these bytes any more, from any thread; each byte once. They may stay mapped until the end. */
void map_done(const struct engine_map *map, uint64_t at, uint64_t bytes);
void map_end(struct engine_map *map);

/* ---- the image being written: engine_file.c --------------------------------------------------------- */

struct engine_file {
	int fd;
	struct engine_map map; /* where that is the quicker way */
	uint64_t present;      /* bytes from the beginning on that have pages already */
	_Atomic bool huge;     /* new pages are asked for as huge ones: none was refused yet */
	pthread_mutex_t lock;
	pthread_cond_t changed;
	uint8_t *span; /* with the lock: enum span of each; NULL if there are none */
	uint64_t spans;
};

/* `fd` is new, or was an earlier image's: whatever is in it does not count. Blocks end within `size` bytes. */
void file_begin(struct engine_file *file, int fd, uint64_t size);
/*
 * Sees to it that there is space for blocks, before they are put there. Each byte behind the header is asked for by one
 * thread, and none is left out between them. 0 or a negative errno.
 */
int file_room(struct engine_file *file, uint64_t at, uint64_t bytes);
/* Writes all of it, from any thread, and says its checksum. 0 or a negative errno. */
int file_put(struct engine_file *file, const uint8_t *from, uint32_t length, uint64_t at, uint32_t *crc);
void file_end(struct engine_file *file);

/* ---- the image being read: engine_view.c ------------------------------------------------------------ */

struct engine_view {
	int fd;
	struct engine_map map; /* where that is the quicker way */
};

/* `fd` is a file of `size` bytes. */
void view_begin(struct engine_view *view, int fd, uint64_t size);
/*
 * Reads a block, from any thread, once, and says the checksum of what was read. 0; -EBADMSG: the file is cut off;
 * -errno.
 */
int view_get(const struct engine_view *view, uint8_t *to, uint32_t length, uint64_t at, uint32_t *crc);
void view_end(struct engine_view *view);

/* ---- running: engine.c ----------------------------------------------------------------------------- */

/* A part of a piece, from a multiple of IMAGE_BLOCK on. */
struct chunk {
	uint32_t piece;
	int device;
	uint64_t offset, bytes;
	CUdeviceptr at;
};

struct run;

/* What a lane's thread does with a chunk and one of its buffers. 0 or a negative errno, and then `text` and `cu` say
 * why. */
typedef int run_step(struct run *run, struct lane *lane, unsigned slot, const struct chunk *chunk, char *text,
		     CUresult *cu);
struct run_work {
	run_step *start;  /* ends with something on the lane's stream for the chunk's device, which is entered */
	run_step *finish; /* that is done; NULL: nothing else to do */
};

struct lane_thread {
	pthread_t id;
	struct run *run;
	bool first;
};

/* A save or a load under way. */
struct run {
	struct engine_job *job;
	const struct run_work *work;
	struct image image;
	int device[IMAGE_DEVICES]; /* of this machine, by the image's index */
	struct mapping *mapping;   /* of each piece */
	struct lane_thread thread[ENGINE_THREADS_MOST];
	size_t chunk;
	struct engine_file file; /* save */
	struct engine_view view; /* load */
	_Atomic uint64_t end;    /* save: where the file's next block goes */
	_Atomic uint64_t done;   /* bytes */

	pthread_mutex_t lock;
	pthread_cond_t changed;
	/* With the lock: */
	uint32_t mapped;   /* pieces that are */
	uint32_t at_piece; /* the cursor */
	uint64_t at_offset;
	unsigned lanes; /* threads that have not ended */
	int error;      /* the first one; what it says is in the job */

	/* The job's thread: */
	unsigned started; /* lanes' threads, to be joined */
	unsigned unsent;  /* descriptors of the pieces before `mapped` that were not handed out yet */
	int fds[ENGINE_BATCH];
	int64_t told_ms;
	uint64_t told;
};

/* Is there a reason to stop: an error, or that nobody wants it any more? */
bool run_stopped(struct run *run);
/* Keeps the first error. */
void run_fail(struct run *run, int error, CUresult cu, const char *text);

/*
 * What both do with `image`, which it takes: finds the devices, calls `map` for each piece in order, and has lanes
 * carry out `work` on what is mapped. 0, and run_end() is due in any case.
 */
typedef int run_map(struct run *run, uint32_t piece, int device, char *text, CUresult *cu);
int run_pieces(struct run *run, struct engine_job *job, const struct run_work *work, run_map *map);
void run_end(struct run *run);
/* For `map`: a descriptor of the new piece, to be handed out with the next batch. */
int run_export(struct run *run, uint32_t piece, char *text, CUresult *cu);
/* To be called now and then by the job's thread. */
void run_tell(struct run *run);

#endif
