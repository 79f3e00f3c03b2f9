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
#define CUDAPOOL_PAGE_VERSION 1
#define CUDAPOOL_PAGE_SIZE 4096

enum cudapool_page_command {
	CUDAPOOL_PAGE_PING = 1, /* do nothing: measures the way there and back, and shows that the thread lives */
	CUDAPOOL_PAGE_WARM = 2, /* warm now, if the process has no context yet; result 0 or a CUresult */
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
};
static_assert(sizeof(struct cudapool_page) == 112, "shared with the pool of another build");

#endif
