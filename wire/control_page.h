// SPDX-License-Identifier: MIT
/* The page through which the pool finds and commands the shim of a process. */
#ifndef CUDAPOOL_WIRE_CONTROL_PAGE_H
#define CUDAPOOL_WIRE_CONTROL_PAGE_H

#include <assert.h>
#include <stdint.h>

/*
 * The shim makes a sealed-size memfd of this name, maps it shared and MADV_DONTFORK, and closes the descriptor. The
 * pool finds it as "/memfd:cudapool-control (deleted)" in /proc/PID/maps and maps it by way of
 * /proc/PID/map_files. Nothing is mounted into the container, and CRIU carries the page like any
 * other memory.
 *
 * The application can write to its own page, so the pool believes nothing in it: every field is
 * read once, checked and bounded, and none is used as an index, a length or an address unchecked.
 *
 * Commands: the pool writes `command`, raises `command_seq` (release) and wakes a futex waiter on it.
 * The shim's thread carries it out, writes `result`, copies the number to `ack_seq` (release) and wakes
 * a futex waiter on that. One pool commands at a time: it holds `owner` (compare and swap from 0 to
 * its pid; the pid of a dead pool may be replaced).
 */

#define CUDAPOOL_PAGE_NAME "cudapool-control"
#define CUDAPOOL_PAGE_MAGIC 0x31504350u /* "PCP1" */
#define CUDAPOOL_PAGE_VERSION 2
#define CUDAPOOL_PAGE_SIZE 4096

enum cudapool_page_command {
	CUDAPOOL_PAGE_PING = 1, /* do nothing: measures the way there and back, and shows that the thread lives */
	CUDAPOOL_PAGE_WARM = 2, /* warm now, if the process has no context yet; result 0 or a CUresult */
	/*
	 * The next two open a channel (wire/channel.h). They are acknowledged as soon as `channel_fd` can be taken, with
	 * result 0, or with a negative errno if there is nothing to talk about: -EALREADY (parked already, or not
	 * parked), -ENODATA (no CUDA in this process yet), -EOPNOTSUPP (this process cannot be parked: `reason` says why).
	 * What happens next, and how it ends, is said on the channel. Arguments: `token`, `limit_ms`.
	 */
	CUDAPOOL_PAGE_PARK = 3,
	CUDAPOOL_PAGE_UNPARK = 4,
};

enum cudapool_park_state {
	CUDAPOOL_PARK_OPEN = 0,	     /* the application runs */
	CUDAPOOL_PARK_CLOSING = 1,   /* the gate is closed or closing, all memory is where it was */
	CUDAPOOL_PARK_PARKED = 2,    /* the memory is the pool's; `token` names it */
	CUDAPOOL_PARK_UNPARKING = 3, /* memory is coming back, the gate is closed */
};

/* Device memory that parking does not take, by kind: the driver's own checkpoint carries it. */
enum cudapool_left {
	CUDAPOOL_LEFT_SMALL = 0,   /* allocations below the threshold */
	CUDAPOOL_LEFT_ORDERED = 1, /* stream-ordered: graphs', and of pools that the shim does not stand for */
	CUDAPOOL_LEFT_MANAGED = 2,
	CUDAPOOL_LEFT_ARRAY = 3,
	CUDAPOOL_LEFT_SHARED = 4, /* shared with other processes: legacy IPC, imported or exported handles, multicast */
	CUDAPOOL_LEFT_REFUSED = 5, /* the driver did not make it exportable */
	CUDAPOOL_LEFT_KINDS = 6,
};

#define CUDAPOOL_PAGE_DEVICES 16

struct cudapool_page_device { /* by the ordinal that the process knows the device under */
	uint8_t uuid[16];     /* by the shim; all zero: no such device */
	uint64_t evictable;   /* by the pool: bytes of hot memory on it that it would give up for this process */
};

enum cudapool_warmth { /* how far warming got */
	CUDAPOOL_WARMTH_NONE = 0,
	CUDAPOOL_WARMTH_DRIVER = 1,  /* cuInit was done ahead of the application */
	CUDAPOOL_WARMTH_CONTEXT = 2, /* a context waits to be handed back */
	CUDAPOOL_WARMTH_TAKEN = 3,   /* the application has it */
	CUDAPOOL_WARMTH_FAILED = 4,  /* `warm_result` says why; the application goes the driver's own way */
};

struct cudapool_page {
	uint32_t magic;	      /* written last, when the rest is valid */
	uint16_t version;
	uint16_t size;	      /* sizeof(struct cudapool_page) */
	char build[32];	      /* the shim's build id, hexadecimal, NUL ended */
	int32_t pid;	      /* as the process saw itself when it made the page: in its own pid namespace */
	uint32_t owner;	      /* the commanding pool, see above */
	uint32_t command;     /* enum cudapool_page_command */
	uint32_t command_seq; /* futex */
	uint32_t ack_seq;     /* futex */
	int32_t result;	      /* of the command numbered ack_seq */
	uint32_t warmth;      /* enum cudapool_warmth */
	int32_t warm_result;  /* CUresult of the last attempt to warm */
	uint32_t restores;    /* how often the thread noticed that it was restored */
	uint32_t app_inited;  /* 1 once the application's own cuInit succeeded */
	uint64_t warm_us;     /* wall clock that the last warming took */
	uint64_t handed_back; /* contexts given to the application warm */
	uint64_t created;     /* contexts that the application had to create itself */
	uint64_t resolved;    /* driver functions looked up through the shim */

	/* Parking. */
	int32_t tid;	       /* of the shim's thread, in its own pid namespace */
	uint32_t park_state;   /* enum cudapool_park_state: what the shim says; its own truth is in private memory */
	int32_t channel_fd;    /* of the shim: the end for the pool, until that has taken it, and says so by -1; else -1 */
	uint32_t limit_ms;     /* argument: the shim undoes a PARK by itself if it has not ended by then; at most 600000 */
	uint8_t token[16];     /* argument of both; the shim keeps that of the park that it is in; all zero: none */
	uint64_t parked_bytes; /* that the last park took, or that the next would, as of now */
	uint64_t left_bytes[CUDAPOOL_LEFT_KINDS];
	/*
	 * Of the memory that could be parked, what is the pool's still: it was given back, and there was no room to
	 * make it the process's own. The driver checkpoints a process with such memory and can never restore it: it
	 * has to be parked first.
	 */
	uint64_t imported_bytes;
	uint64_t held_calls;   /* calls that ever waited at the gate */
	uint32_t unknown;      /* driver functions that were looked up and that the gate does not know */
	char unknown_name[60]; /* the first of them; NUL ended */
	char reason[128];      /* for people, NUL ended: why this process cannot be parked */

	/*
	 * Memory that the pool could free. An allocation that fails although `evictable` of its device is not zero writes
	 * `want_device` and `want_bytes`, raises want_seq (release) and wakes it, and waits, within limits, on the futex granted_seq;
	 * the pool evicts, sets granted_seq to the want_seq that it saw (release) and wakes. Then the shim tries once more.
	 */
	uint32_t want_seq;    /* futex */
	uint32_t granted_seq; /* futex */
	uint32_t want_device; /* ordinal: an index into `devices` */
	/*
	 * MiB, rounded up, of other processes' memory that the application has imported and open; 1 at least if there is any.
	 * The driver checkpoints a process with such memory and can never restore it.
	 */
	uint32_t foreign_mb;
	uint64_t want_bytes;
	struct cudapool_page_device devices[CUDAPOOL_PAGE_DEVICES];
};
static_assert(sizeof(struct cudapool_page) == 816, "shared with the pool of another build");

#endif
