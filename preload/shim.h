// SPDX-License-Identifier: MIT
/* What the parts of the shim share. */
#ifndef CUDAPOOL_PRELOAD_SHIM_H
#define CUDAPOOL_PRELOAD_SHIM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "control_page.h"
#include "log.h"
#include "options.h"

/* Indices into the tables below: cudapool_fn_cuInit and so on. */
enum cudapool_function {
#define GATED(name) cudapool_fn_##name,
#include "functions.def"
	CUDAPOOL_FUNCTIONS
};

/* A thread's place at the gate, on a cache line of its own (gate.c). */
#define CUDAPOOL_SLOTS 4096
struct cudapool_slot {
	uint32_t depth;   /* calls under way in the thread, one within another. First: stubs.S counts it */
	uint32_t waiting; /* 1: at the gate */
	void *self;       /* the thread pointer of the thread that has it; stubs.S compares it */
	uint32_t tid;     /* of that thread; 0: free */
} __attribute__((aligned(64)));

/*
 * Everything that belongs to this process and not to its children. It lies in pages that fork leaves
 * zeroed in the child (MADV_WIPEONFORK), so a child starts as if the shim had just been loaded, with every lock free,
 * however it was forked. All zero is the initial state.
 */
#define CUDAPOOL_UNKNOWN 64 /* names of functions that we do not know, and that are told apart */
#define CUDAPOOL_STATE_ALIGN 65536 /* the largest page size */
struct cudapool_state {
	uint8_t app_inited;    /* the application's own cuInit succeeded, for good. stubs.S reads the first two, HELD at once */
	uint8_t closed;        /* enum cudapool_gate_state in gate.h */
	uint8_t started;       /* cudapool_start() was called */
	uint8_t warm_at_start; /* the thread's first task */
	uint8_t drop;          /* the application has a context of its own: the warm one is not wanted any more */
	uint8_t exiting;       /* begin nothing new */
	uint8_t initialised;   /* the driver, by us, or it is about to be; changes in our thread only */
	uint8_t warms;         /* our thread has begun to warm, once: see init.c */
	uint8_t at_exit;       /* our exit handler is registered */
	uint32_t lock;         /* of all that follows; cudapool_lock() */
	uint32_t log_lock;
	uint32_t stage;                /* enum warm_stage in warm.c; a futex */
	uint32_t context_calls;        /* under way: those that make, change or end contexts (warm.c) */
	uint32_t early_calls;          /* and those before the application's cuInit (init.c) */
	int device;                    /* of the warm context, from RUNNING on */
	bool created_kind;             /* it was made by cuCtxCreate and is not a primary one */
	struct streams *streams;       /* the application's contexts and streams (streams.h); not inherited */
	uint32_t streams_lock;         /* of those */
	bool per_thread;               /* functions were looked up for which stream 0 is the thread's own */
	int64_t context_ms;            /* when the process got its first context; 0: none yet */
	struct memory *memory;         /* what is known of GPU memory (pieces.h); not inherited either */
	void *context;                 /* the warm context */
	uint64_t contexts;             /* that the application ever had */
	uint64_t primaries;            /* bit N: the application retained the primary context of device N */
	uint64_t environment;          /* what the driver was initialised with, as a hash */
	unsigned long long start_time; /* of this process, as /proc says: a restored process has another */
	struct cudapool_page *page;    /* never NULL once started: `own_page` where there is no memfd */
	struct cudapool_page own_page;
	uint32_t park;         /* enum cudapool_park_state: the truth, of which the page has a copy */
	uint8_t token[16];     /* of the park that the process is in */
	uint32_t unknown[CUDAPOOL_UNKNOWN]; /* driver functions that were looked up and are not in our table, as hashes */
	uint32_t gate_turn;    /* rises when calls that wait at the gate may pass; a futex */
	bool gate_careful;     /* the kernel refuses membarrier */
	uint32_t unparkable;   /* a thread found no slot, or a stream no note: parking is not safe any more */
	uint32_t slots_used;   /* no slot from here on was ever taken */
	struct cudapool_slot slots[CUDAPOOL_SLOTS];
} __attribute__((aligned(CUDAPOOL_STATE_ALIGN)));
extern struct cudapool_state cudapool_state;

/* libcudapool.c */
extern struct cudapool_options cudapool_options; /* valid once started */
void cudapool_start(void);                       /* the page and the thread, once per process; from any thread */
bool cudapool_program_is(const char *names);     /* one of a comma-separated list names this program */
/* A lock that is no cancellation point, and that fork leaves free in the child. */
void cudapool_lock(uint32_t *lock);
void cudapool_unlock(uint32_t *lock);
/* errno is left alone by these two. Wakes return how many were woken. */
long cudapool_futex_wait(uint32_t *word, uint32_t value, long limit_ms);
long cudapool_futex_wake(uint32_t *word, int count);
/* The log file is opened for one line at a time: a file that is open and grows cannot be restored twice by CRIU. */
bool cudapool_log_begin(enum cudapool_log_level level);
void cudapool_log_end(void);
#define shim_log(level, ...)                                                                                           \
	do {                                                                                                           \
		if (cudapool_log_begin(level)) {                                                                       \
			cudapool_log(level, __VA_ARGS__);                                                              \
			cudapool_log_end();                                                                            \
		}                                                                                                      \
	} while (0)

/* resolve.c */
extern bool cudapool_inert; /* hand out nothing, start nothing */
extern void *cudapool_real[CUDAPOOL_FUNCTIONS];
bool cudapool_driver_find(void);                           /* binds to a libcuda that is loaded */
void *cudapool_driver_function(enum cudapool_function fn); /* the driver's own; NULL if it has none */
void *cudapool_libc_function(const char *name);            /* the first definition in load order, without versions */
/* The driver's own, of any function of <cuda.h>, also one that the application never looked up; may be NULL. */
#define DRIVER(name) ((__typeof__(&name))cudapool_driver_function(cudapool_fn_##name))

/* page.c */
void cudapool_page_make(void);
void *cudapool_thread(void *unused);

/* init.c */
int cudapool_init_driver(void);           /* cuInit by us: 0 or a CUresult; in the shim's thread only */
void cudapool_note_warming(bool now);     /* around whatever enters the driver; in the shim's thread only */
bool cudapool_forked_while_warming(void); /* a child of that: the driver's locks may be held by nobody */

/* warm.c */
int cudapool_warm(const char *why); /* 0 or a CUresult; in the shim's thread only */
void cudapool_drop(void);           /* carries out state.drop; in the shim's thread */
void cudapool_quiesce(void);        /* waits, within limits, until no warming is under way */
/*
 * Waits, within limits, until none of the calls is under way that are counted there; in the shim's thread, when they can
 * see that it warms. False: they go on, or the application made a context, or exits.
 */
bool cudapool_none_under_way(const uint32_t *calls);

#endif
