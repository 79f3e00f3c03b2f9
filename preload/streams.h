// SPDX-License-Identifier: MIT
/* The contexts and streams of the process, and what is known of captures: what drain.c goes by. */
#ifndef CUDAPOOL_PRELOAD_STREAMS_H
#define CUDAPOOL_PRELOAD_STREAMS_H

#define CUDAPOOL_ABI_NO_VERSIONS
#include <cuda.h>
#include <stdbool.h>
#include <stdint.h>

#include "tables.h"

/*
 * Kept by the wrappers in streams.c and by warm.c, all within the gate; so when the gate is closed and no call is
 * under way, the shim's thread goes through it without the lock.
 */
struct stream_note {
	struct node node; /* by handle */
	struct stream_note *next; /* of the context */
	struct context_note *context;
	void *green;	 /* the green context that it was made in, or NULL */
	CUevent before;	 /* recorded in it before it became part of a capture; NULL: never */
	bool blocking;	 /* towards the legacy stream */
	bool origin;	 /* a capture began in it and has not ended */
};

/* An event that work is known by whose stream is gone. */
struct leftover {
	struct leftover *next;
	CUevent event;
};

struct context_note {
	struct node node; /* by handle */
	struct stream_note *streams;
	struct leftover *leftovers;
	void *green;	  /* the green context that it stands for, or NULL */
	CUcontext primary; /* then: whose memory and work it shares; NULL: not known */
	CUevent mark;	  /* ours: recorded in the legacy stream by the last drain; NULL: not made yet */
	CUstream beside;  /* ours: a blocking stream, to ask about the legacy one while that must not be used */
	bool marked;	  /* this drain waits for `mark` */
	uint32_t noted;	  /* how often */
};

struct streams {
	struct node *contexts, *streams;
	struct slab context_slab, stream_slab, leftover_slab;
	uint32_t captures;	   /* under way, as far as they began in our sight */
	uint32_t default_captures; /* of those: in threads' default streams, which have no note */
};

static inline CUcontext note_context(const struct context_note *note)
{
	return (CUcontext)note->node.key;
}

static inline CUstream note_stream(const struct stream_note *note)
{
	return (CUstream)note->node.key;
}

/* Of the process; NULL as long as it has no context. */
struct streams *cudapool_streams(void);
void cudapool_streams_lock(void);
void cudapool_streams_unlock(void);
struct context_note *cudapool_context_noted(CUcontext context); /* with the lock held; NULL: none */

/* Captures under way; may be too many (a thread ended without ending its capture), never too few. */
uint32_t cudapool_captures(void);

/*
 * The calling thread's own calls neither take part in a capture's rules nor break one, until the second of these. The
 * current context is `context` in between (NULL: as it is). False: there is no such context (any more).
 */
struct aside {
	CUcontext current;
	CUstreamCaptureMode mode;
};
bool cudapool_aside(struct aside *aside, CUcontext context);
void cudapool_aside_end(const struct aside *aside);

/* A context on a device was made, or handed out: once or again. Within the gate. */
void cudapool_note_context(CUcontext context, CUdevice device);
/* Whose memory it is that is made in a context: its own, but for a green one the primary one's. */
CUcontext cudapool_context_owner(CUcontext context);
/* The first one noted after `after`, in no order of meaning, that stands for a green one of this primary one, or NULL. */
CUcontext cudapool_context_green(CUcontext primary, CUcontext after);
/*
 * For a context that ends: how often it was noted, asked before the driver may give its handle to another one, and
 * then, when it has ended, that it has. With another number by then it is another one, and stays.
 */
uint32_t cudapool_context_times_noted(CUcontext context);
void cudapool_context_gone(CUcontext context, uint32_t times_noted);

#endif
