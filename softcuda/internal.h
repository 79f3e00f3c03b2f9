// SPDX-License-Identifier: MIT
/* What the files of the software driver share. */
#ifndef SOFTCUDA_INTERNAL_H
#define SOFTCUDA_INTERNAL_H

#define CUDAPOOL_ABI_NO_VERSIONS
#include <cuda.h>

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#define SOFTCUDA_DRIVER_VERSION 13000
#define SOFTCUDA_MAX_DEVICES    16
#define SOFTCUDA_PAGE_SIZE      4096ul
#define SOFTCUDA_GRANULARITY    (2ul << 20) /* of mapped memory, as on the H200 */

#define round_up(value, unit) (((value) + (unit)-1) / (unit) * (unit))

/*
 * Every exported function is generated from wire/abi/cuda_api.def (entry.c): it passes the gate, checks
 * that driver and context are there, obeys faults asked for, and calls do_SYMBOL, which is
 * written by hand. Functions of the driver call each other only as do_SYMBOL, so the gate is passed once.
 */
enum softcuda_api {
#define CUDA_API(needs, symbol, base, since, params, args)                  API_##symbol,
#define CUDA_API_PTSZ(needs, symbol, base, since, since_ptsz, params, args) API_##symbol,
#define CUDA_API_PTDS(needs, symbol, base, since, since_ptds, params, args) API_##symbol,
#include "cuda_api.def"
#undef CUDA_API
#undef CUDA_API_PTSZ
#undef CUDA_API_PTDS
	SOFTCUDA_API_COUNT,
};

#define CUDA_API(needs, symbol, base, since, params, args)                  CUresult do_##symbol params;
#define CUDA_API_PTSZ(needs, symbol, base, since, since_ptsz, params, args) CUresult do_##symbol params;
#define CUDA_API_PTDS(needs, symbol, base, since, since_ptds, params, args) CUresult do_##symbol params;
#include "cuda_api.def"
#undef CUDA_API
#undef CUDA_API_PTSZ
#undef CUDA_API_PTDS

extern const char *const softcuda_api_names[SOFTCUDA_API_COUNT];

/* True in the calling thread while a _ptsz or _ptds function runs: stream 0 is the thread's own. */
extern _Thread_local bool softcuda_per_thread;
extern _Thread_local struct CUctx_st *softcuda_host_function; /* of the stream whose host function runs in this thread */

/* The gate (entry.c). Closed by a checkpoint's lock: calls that are not in yet wait. */
void softcuda_gate_close(void);
void softcuda_gate_open(void);
/* Waits until no call is inside; deadline in CLOCK_MONOTONIC nanoseconds, 0 none. 0, or -ETIMEDOUT. */
int softcuda_gate_drain(uint64_t deadline_ns);
void softcuda_gate_reset_in_child(void);

/* util.c: the restore thread uses only what needs no lock, no heap and no stdio. */
uint64_t softcuda_now_ns(void);
void softcuda_sleep_ns(uint64_t ns);
long softcuda_futex_wait(_Atomic uint32_t *word, uint32_t value, uint64_t timeout_ns,
			 bool shared); /* timeout 0: none */
void softcuda_futex_wake(_Atomic uint32_t *word, bool shared);
/* One line on stderr, "softcuda: ...", with write(2). */
void softcuda_say(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* A thread with every signal blocked. 0 or -errno. */
int softcuda_thread(pthread_t *thread, const char *name, void *(*main)(void *), void *arg);
uint64_t softcuda_hash(const void *data, size_t size, uint64_t seed);

/* config.c: the environment, read once by cuInit. */
struct softcuda_config {
	unsigned devices;
	uint64_t memory_bytes; /* of each device */
	char dir[256];         /* the device directory */
	char costs[256];       /* the cost file; empty: no cost model */
};
extern struct softcuda_config softcuda_config;
/* 0, or -EINVAL after one line on stderr. */
int softcuda_config_read(void);

/* fault.c */
int softcuda_faults_parse(const char *spec, const char *where);
/* Reads the device directory's `faults` file again, if there is one; no heap, no stdio. 0 or -EINVAL. */
int softcuda_faults_refresh(void);
CUresult softcuda_fault(enum softcuda_api api);
CUresult softcuda_fault_named(const char *name);
extern _Atomic bool softcuda_faults_armed;

/* cost.c: times of a recorded machine, spent by sleeping; all do nothing without SOFTCUDA_COSTS. */
#define SOFTCUDA_COSTS(X)                                                                                              \
	X(init_cold_ms)                                                                                                \
	X(init_warm_ms)                                                                                                \
	X(init_more_device_cold_ms)                                                                                    \
	X(init_more_device_warm_ms)                                                                                    \
	X(context_ms)                                                                                                  \
	X(alloc_us)                                                                                                    \
	X(create_us)                                                                                                   \
	X(export_us)                                                                                                   \
	X(import_us)                                                                                                   \
	X(map_us)                                                                                                      \
	X(access_us)                                                                                                   \
	X(release_us)                                                                                                  \
	X(unmap_us)                                                                                                    \
	X(ordered_us)                                                                                                  \
	X(copy_pinned_gbps)                                                                                            \
	X(copy_pageable_gbps)                                                                                          \
	X(copy_device_gbps)                                                                                            \
	X(checkpoint_ms)                                                                                               \
	X(checkpoint_gbps)                                                                                             \
	X(restore_cold_ms)                                                                                             \
	X(restore_warm_ms)                                                                                             \
	X(restore_more_device_ms)                                                                                      \
	X(restore_gbps)                                                                                                \
	X(query_us)                                                                                                    \
	X(tool_cold_ms)                                                                                                \
	X(tool_warm_ms)
struct softcuda_costs {
	bool on;
#define X(name) double name;
	SOFTCUDA_COSTS(X)
#undef X
};
extern struct softcuda_costs softcuda_costs;
int softcuda_costs_read(const char *path); /* 0 or -EINVAL after one line on stderr */
/* Sleeps until `ms` milliseconds and `bytes` at `gbps` have passed since start_ns. */
void softcuda_spend(uint64_t start_ns, double ms, uint64_t bytes, double gbps);
double softcuda_init_ms(void); /* what cuInit costs here, cold or warm */

/* hold.c: this process's place in the device directory, shared by all processes of the host. */
int softcuda_hold_open(bool *cold); /* take a slot; *cold: no other process has the driver open */
int softcuda_hold_device(void);     /* the descriptors that make a process that has the device impossible to dump */
void softcuda_hold_close(void);     /* let go of all of it */
void softcuda_hold_in_child(void);  /* after fork: close what was inherited */
bool softcuda_hold_is_warm(void);   /* does a process beside the caller's target have it open, and long enough */
CUresult softcuda_memory_take(int device, uint64_t bytes);
void softcuda_memory_give(int device, uint64_t bytes);
CUresult softcuda_memory_info(int device, uint64_t *used); /* of all processes together */
void softcuda_uuid(int ordinal, CUuuid *uuid);             /* of this host's device */

/* driver.c */
enum softcuda_phase {
	SOFTCUDA_BEFORE = 0, /* cuInit was not called */
	SOFTCUDA_READY = 1,
	SOFTCUDA_CHILD = 2, /* a child forked after cuInit: CUDA is of no use here */
	SOFTCUDA_ENDED = 3, /* the process is exiting */
};
extern _Atomic int softcuda_phase;
extern bool softcuda_started_cold; /* no other process had the driver open at cuInit */

struct softcuda_device {
	CUuuid uuid;
	int host_index; /* whose memory it takes: differs from the ordinal after a restore onto another device */
	struct CUctx_st *primary;
	unsigned primary_refs;
	unsigned primary_flags;
	_Atomic unsigned contexts; /* alive */
};
extern struct softcuda_device softcuda_devices[SOFTCUDA_MAX_DEVICES];
CUresult softcuda_device_check(CUdevice device);

/* context.c */
struct CUctx_st {
	struct CUctx_st *next; /* every context of the process */
	int device;
	bool primary;
	_Atomic bool alive;
	unsigned refs; /* places in threads' stacks, and the list's own while alive or primary */
	unsigned flags;
	unsigned api_version;
	unsigned attached;
	uint64_t id;
	_Atomic CUresult error; /* sticky: set by failed work */
	size_t limits[7];
	CUfunc_cache cache;
	uint32_t peers;              /* bit mask of devices whose memory it may use */
	struct CUstream_st *streams; /* guarded by the scheduler's lock */
	struct CUstream_st *legacy;
	uint64_t seq; /* of the last work submitted */
	struct CUmod_st *modules;
};
/* What is wrong with the calling thread's current context, or CUDA_SUCCESS. */
CUresult softcuda_current_check(void);
struct CUctx_st *softcuda_current(void); /* after a successful check */
/* NULL unless it is a context of this process that has not been destroyed. */
struct CUctx_st *softcuda_context(CUcontext ctx);
extern _Atomic unsigned softcuda_peer_links; /* contexts with peer access */

/* memory.c: the address map. */
enum softcuda_kind {
	SOFTCUDA_ALLOC = 1, /* cuMemAlloc */
	SOFTCUDA_RESERVED,  /* cuMemAddressReserve; pieces are mapped into it */
	SOFTCUDA_ORDERED,   /* of a pool, cuMemAllocAsync */
	SOFTCUDA_MANAGED,
	SOFTCUDA_PINNED,
	SOFTCUDA_REGISTERED,
};

#define SOFTCUDA_BACKING_NAME 37 /* with its NUL */

struct softcuda_backing { /* backing.c */
	char *map;        /* all of it, inaccessible: what others are made of */
	size_t size;
	int host;         /* the device that it was taken from */
	bool shared;      /* it was exported, here or by whom it came from */
	char name[SOFTCUDA_BACKING_NAME];
};

struct softcuda_physical { /* memory made by cuMemCreate, or imported */
	uint64_t id;       /* the handle */
	size_t size;
	int device;
	struct softcuda_backing backing; /* no map while checkpointed */
	CUmemAllocationProp prop;
	bool imported;
	unsigned handles; /* how often it must be released */
	unsigned maps;
	char *staged; /* its content while checkpointed */
};

struct softcuda_piece { /* a physical memory mapped into a reservation */
	size_t offset, size;
	struct softcuda_physical *physical;
	uint32_t readable, writable; /* devices, as bits */
};

struct softcuda_block; /* ordered.c */

struct softcuda_range {
	CUdeviceptr start;
	size_t size;
	enum softcuda_kind kind;
	struct CUctx_st *ctx; /* whose destruction frees it; NULL: nobody's */
	int device;
	unsigned flags;
	uint64_t id;
	char *alias; /* where the driver reads and writes it: the device address itself is inaccessible */
	void *base;  /* of the mapping that holds both, and its size */
	size_t span;
	size_t counted; /* bytes taken from the device */
	char *staged;   /* ALLOC, ORDERED: content while checkpointed */
	bool sync_memops;
	bool freed; /* ALLOC: a stream will free it */
	struct softcuda_block *block;  /* ORDERED */
	struct softcuda_piece *pieces; /* RESERVED: by rising offset */
	unsigned piece_count, piece_room;
};

extern pthread_rwlock_t softcuda_map_lock;
extern struct softcuda_range **softcuda_ranges; /* sorted by start; guarded by the lock */
extern size_t softcuda_range_count;
/* All physical memory, by index; NULL: a free place. Guarded by the lock. */
extern struct softcuda_physical **softcuda_physicals;
extern uint32_t softcuda_physical_places;

struct softcuda_range *softcuda_range_find(CUdeviceptr ptr); /* with the lock held */
int softcuda_range_insert(struct softcuda_range *range);     /* with the lock held for writing */
void softcuda_range_remove(struct softcuda_range *range);
/* An inaccessible device range and its alias, `size` bytes each. 0 or -errno. */
int softcuda_range_map(struct softcuda_range *range, size_t size, size_t alignment, CUdeviceptr hint);
void softcuda_range_unmap(struct softcuda_range *range);

/* The index of the first piece of a reservation that ends behind `offset`. */
unsigned softcuda_piece_index(const struct softcuda_range *range, size_t offset);
/* vmm.c, also for the restore thread: no heap, no stdio, no lock. 0 or -errno. */
int softcuda_piece_map(struct softcuda_range *range, struct softcuda_piece *piece);
int softcuda_piece_unmap(struct softcuda_range *range, struct softcuda_piece *piece);
/* The process ends: takes away what else somebody would have to clean up. */
void softcuda_physicals_forget(void);

enum softcuda_where { SOFTCUDA_ON_DEVICE, SOFTCUDA_ON_PINNED, SOFTCUDA_ON_PAGEABLE };
/* Of another device's memory, without access: what names the device reaches all, a copy cuMemAlloc's, a fill none. */
enum softcuda_use { SOFTCUDA_BY_PEER, SOFTCUDA_BY_COPY, SOFTCUDA_BY_FILL };
/*
 * Asked when work is submitted: does the driver know all of [ptr, ptr + bytes), and is it not closed to the current
 * device's `use`? Of a reservation it only asks when the work is carried out whether all of it is mapped. host_too: an
 * address that it does not know is taken as pageable host memory.
 */
bool softcuda_known(CUdeviceptr ptr, size_t bytes, bool host_too, enum softcuda_use use, enum softcuda_where *where);
/*
 * Asked when work is carried out, with the map's lock held: the host address behind it, or NULL if not all of it may
 * be used so by the context. copying: by a copy, which may also go through the memory's own device.
 */
void *softcuda_reach(CUdeviceptr ptr, size_t bytes, bool write, struct CUctx_st *ctx, bool copying, bool host_too);
void softcuda_memory_free_all(struct CUctx_st *ctx);
CUresult softcuda_free_range(CUdeviceptr ptr, enum softcuda_kind kind);
/* Memory of a device at an address of its own, in the map; not to be used before it is complete. */
CUresult softcuda_range_new(struct softcuda_range **out, size_t bytes, size_t counted, enum softcuda_kind kind,
			    struct CUctx_st *owner, int device, struct softcuda_block *block);
void softcuda_range_free(struct softcuda_range *range); /* after it was removed */

/* ordered.c: pools for stream-ordered allocation. */
void softcuda_ordered_alloc(struct softcuda_block *block); /* what the stream does when it is the block's turn */
void softcuda_ordered_free(struct softcuda_block *block);
CUresult softcuda_ordered_free_now(struct softcuda_block *block);
bool softcuda_ordered_reachable(const struct softcuda_block *block, bool write, struct CUctx_st *ctx, bool copying);
CUmemoryPool softcuda_ordered_pool(const struct softcuda_block *block);
/* Something was synchronised: pools let go of what they need not keep. */
void softcuda_pools_settle(void);

/* stream.c: ordered queues, each with a thread of its own once it is used asynchronously. */
enum softcuda_op_kind {
	OP_COPY = 1,
	OP_FILL,
	OP_LAUNCH,
	OP_HOST,
	OP_CALLBACK,
	OP_RECORD,
	OP_WAIT_EVENT,
	OP_WRITE_VALUE,
	OP_WAIT_VALUE,
	OP_ALLOC,
	OP_FREE,
	OP_FREE_PLAIN,
};

struct softcuda_kernel; /* module.c */
#define SOFTCUDA_MAX_ARGS 4

struct softcuda_op {
	struct softcuda_op *next;
	enum softcuda_op_kind kind;
	uint64_t seq;
	bool own_thread; /* run by the thread that submitted it */
	bool finished;
	union {
		struct {
			CUdeviceptr to, from;
			bool to_host, from_host;     /* may be pageable */
			size_t width, height, depth; /* bytes, rows, slices */
			size_t to_pitch, from_pitch, to_slice, from_slice;
			double gbps;
		} copy;
		struct {
			CUdeviceptr to;
			size_t count, height, pitch;
			uint32_t value;
			unsigned element;
		} fill;
		struct {
			const struct softcuda_kernel *kernel;
			uint64_t args[SOFTCUDA_MAX_ARGS];
		} launch;
		struct {
			CUhostFn fn;
			CUstreamCallback callback;
			CUstream stream;
			void *data;
		} host;
		struct {
			struct CUevent_st *event;
			uint64_t generation;
		} event;
		struct {
			CUdeviceptr address;
			uint64_t value;
			unsigned flags;
			bool wide;
		} value;
		struct softcuda_block *block; /* ALLOC, FREE */
		CUdeviceptr plain;            /* FREE_PLAIN */
	};
};

struct CUstream_st {
	struct CUstream_st *next;     /* of the context */
	struct CUstream_st *all_next; /* of the process */
	struct CUctx_st *ctx;
	unsigned flags;
	int priority;
	uint64_t id;
	bool legacy;
	bool per_thread;
	bool ending;
	bool has_thread;
	pthread_t thread;
	struct softcuda_op *head, **tail;
	CUstreamCaptureStatus capture;
	CUstreamCaptureMode capture_mode;
	uint64_t capture_id;
	struct CUgraph_st *graph;
	struct CUstream_st *capture_origin;
	pthread_t capture_thread;      /* of the origin: which began it */
	uint64_t captured;             /* pieces of work that this stream has captured */
	struct CUstream_st *joined_to; /* which waits for the last of them */
};

struct CUevent_st {
	struct CUevent_st *next;
	struct CUctx_st *ctx;
	unsigned flags;
	unsigned refs;
	uint64_t submitted, done;     /* generations */
	uint64_t time_ns;             /* when the last one was done */
	/* Recorded in a capture, if not 0, in this stream, after so much of its work. */
	uint64_t capture_id;
	struct CUstream_st *capture_stream;
	uint64_t capture_at;
};

extern pthread_mutex_t softcuda_sched_lock;
extern struct CUstream_st *softcuda_all_streams; /* of the process, guarded by the lock */
/* Waits for the next piece of work, of whichever stream, to end; with the lock held. */
void softcuda_sched_wait(void);
/* The stream behind a handle (0, legacy, per thread, or created). NULL and *error if it is none. */
struct CUstream_st *softcuda_stream(CUstream handle, CUresult *error);
/* The legacy stream, or the thread's own in a _ptds function. */
struct CUstream_st *softcuda_default_stream(CUresult *error);
/* Copies *op and appends it (or captures it). */
CUresult softcuda_submit(struct CUstream_st *stream, const struct softcuda_op *op);
/* The same, and returns when it is done. */
CUresult softcuda_submit_and_wait(struct CUstream_st *stream, const struct softcuda_op *op);
/* Of all work submitted so far, whatever is being captured. Returns an error of earlier work. */
CUresult softcuda_context_wait(struct CUctx_st *ctx);
void softcuda_streams_end(struct CUctx_st *ctx);
/* Waits until all streams of the process are idle. 0 or -ETIMEDOUT. */
int softcuda_streams_drain(uint64_t deadline_ns);
void softcuda_event_get(struct CUevent_st *event);
void softcuda_event_put(struct CUevent_st *event);
/* ops.c */
CUresult softcuda_op_run(struct CUctx_st *ctx, struct softcuda_op *op);
/* Also true where it can never be met: running it then fails. */
bool softcuda_value_met(struct CUctx_st *ctx, const struct softcuda_op *op);

/* graph.c */
struct CUgraph_st *softcuda_graph_new(void);
int softcuda_graph_add(struct CUgraph_st *graph, const struct softcuda_op *op);

/* module.c */
CUresult softcuda_kernel_run(const struct softcuda_kernel *kernel, const uint64_t *args, struct CUctx_st *ctx);
void softcuda_modules_end(struct CUctx_st *ctx);

/* checkpoint.c: the page and the restore thread. */
int softcuda_checkpoint_start(void);
void softcuda_checkpoint_in_child(void);

#endif
