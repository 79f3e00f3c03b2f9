// SPDX-License-Identifier: MIT
/* The messages between the pool and those who command it. This is their only definition. */
#ifndef CUDAPOOL_WIRE_MESSAGE_H
#define CUDAPOOL_WIRE_MESSAGE_H

#include <assert.h>
#include <stdint.h>

/*
 * Transport: SOCK_SEQPACKET on a unix socket, so one send is one message and a truncated one is
 * seen as such. Little endian, fixed widths, no padding that is not named. The kernel names the
 * peer (SO_PEERCRED); nothing in a message is trusted for that.
 *
 * A connection starts with HELLO. Then any number of ACTIONs may be under way at once: each carries
 * a request number that its RESULT repeats, and results come in the order in which they are ready.
 *
 * What a connection has locked or checkpointed is given back (restored, unlocked) when its owner
 * dies, unless RELEASE said otherwise. The owner of what a PLUGIN takes is the peer itself, or a parent of it
 * that HELLO names. Of what a DROPIN takes it is the CRIU that HELLO names as its parent: a cuda-checkpoint that
 * CRIU executes is gone after each action, CRIU is not. Without one, nobody is: it stays locked or checkpointed
 * until somebody says otherwise, as with NVIDIA's own. Nor does anybody own what a TOOL takes.
 *
 * Process numbers are the pool's: it refuses a PLUGIN, a DROPIN, and each ACTION from another pid namespace.
 */

#define CUDAPOOL_SOCKET_DEFAULT "/run/cudapool/cudapoold.sock"

#define CUDAPOOL_WIRE_MAGIC 0x31575043u /* "CPW1" in memory */
#define CUDAPOOL_WIRE_VERSION 2
#define CUDAPOOL_WIRE_MAX 16384 /* bytes of the longest message, header included */

#define CUDAPOOL_BUILD_LEN 48 /* bytes, NUL included: version and build id, for people */
#define CUDAPOOL_TEXT_LEN 256 /* bytes, NUL included: one message for people, no newline */

enum cudapool_msg_type {
	CUDAPOOL_MSG_HELLO = 1,	  /* client: who it is, what it will do */
	CUDAPOOL_MSG_WELCOME = 2, /* pool: how warm it is */
	CUDAPOOL_MSG_ACTION = 3,  /* client: one checkpoint action on one process */
	CUDAPOOL_MSG_RESULT = 4,  /* pool: how that action ended */
	CUDAPOOL_MSG_RELEASE = 5, /* client: what becomes of what it holds; answered by DONE */
	CUDAPOOL_MSG_STATUS = 6,  /* client: a bare header; answered by REPORT */
	CUDAPOOL_MSG_REPORT = 7,  /* pool: one JSON document, the format is in pool/status.h */
	CUDAPOOL_MSG_STOP = 8,	  /* client: end the pool; answered by DONE, refused while it holds anything */
	CUDAPOOL_MSG_DONE = 9,	  /* pool: a bare header */
	CUDAPOOL_MSG_ERROR = 10,  /* pool: the request was refused; the connection ends if it cannot be trusted any more */
	CUDAPOOL_MSG_IMAGES = 11, /* client: a directory, as the message's one descriptor; answered by FOUND */
	CUDAPOOL_MSG_FOUND = 12,  /* pool: what is in it */
	CUDAPOOL_MSG_EVICT = 13,  /* client: let go of hot memory; answered by FOUND */
};

struct cudapool_header {
	uint32_t magic;	  /* CUDAPOOL_WIRE_MAGIC */
	uint16_t version; /* CUDAPOOL_WIRE_VERSION; another one is answered with ERROR EPROTONOSUPPORT */
	uint16_t type;	  /* enum cudapool_msg_type */
	uint32_t length;  /* bytes of the whole message, this header included */
	uint32_t request; /* chosen by the client, repeated in the answer */
};
static_assert(sizeof(struct cudapool_header) == 16, "wire format");

enum cudapool_role {
	CUDAPOOL_ROLE_TOOL = 0,	  /* cudapool status and the like: owns nothing */
	CUDAPOOL_ROLE_PLUGIN = 1, /* CRIU's plugin, in CRIU itself */
	CUDAPOOL_ROLE_DROPIN = 2, /* cuda-checkpoint, executed by CRIU or by a person */
};

enum cudapool_stage {
	CUDAPOOL_STAGE_NONE = 0,
	CUDAPOOL_STAGE_DUMP = 1,
	CUDAPOOL_STAGE_RESTORE = 2,
};

struct cudapool_hello {
	struct cudapool_header h;
	uint32_t role;	    /* enum cudapool_role */
	uint32_t stage;	    /* enum cudapool_stage */
	int32_t owner_pid;  /* its parent, and the pool checks that it is; 0: PLUGIN: the peer itself, DROPIN: nobody */
	uint32_t wait_ms;   /* how long WELCOME may be held back until the driver is warm; at most 60000 */
	uint32_t parallel;  /* 1: the client will have several processes under way at once (CRIU_CUDA_PARALLEL_RESTORE) */
	uint32_t streams;   /* CRIU_CUDA_STREAMS, at most 64; 0: the pool's default */
	uint32_t chunk_mb;  /* CRIU_CUDA_CHUNK_MB, MiB, at most 1024; 0: the pool's default */
	uint32_t reserved;  /* 0 */
	char build[CUDAPOOL_BUILD_LEN];
};
static_assert(sizeof(struct cudapool_hello) == 96, "wire format");

enum cudapool_worker_state {
	CUDAPOOL_WORKER_STARTING = 0, /* the driver is being initialised */
	CUDAPOOL_WORKER_WARM = 1,     /* cuInit is done, and the contexts that were asked for exist */
	CUDAPOOL_WORKER_FAILED = 2,   /* there is no usable driver; WELCOME's text says why */
};

struct cudapool_welcome {
	struct cudapool_header h;
	int32_t pool_pid;	   /* the keeper */
	int32_t worker_pid;	   /* 0 while there is none */
	uint32_t worker_state;	   /* enum cudapool_worker_state */
	uint32_t worker_generation; /* grows by one with each worker; the first is 1 */
	uint32_t driver_version;   /* as cuDriverGetVersion says, 13000 for 13.0; 0 unknown */
	uint32_t device_count;
	int32_t warm_device;	   /* ordinal of the warm context's device; -1 none */
	uint32_t reserved;	   /* 0 */
	uint64_t warm_context;	   /* the context's handle in the worker: a name for people and logs, of no use elsewhere; 0 none */
	char build[CUDAPOOL_BUILD_LEN];
	char text[CUDAPOOL_TEXT_LEN];
};
static_assert(sizeof(struct cudapool_welcome) == 360, "wire format");

/*
 * Parking is part of the actions (../docs/architecture.md):
 *
 *   LOCK        parks first, where the process has a shim and CUDAPOOL_PARK is on. A process that cannot be parked is
 *		 locked as it is, and `text` of the RESULT says why. A park that fails is undone and fails the LOCK.
 *		 -ENOTSUP: it cannot be parked, and has memory of the pool or of another process (control_page.h:
 *		 imported_bytes, foreign_mb), with which the driver could not restore it. -EBUSY: it runs, and its memory
 *		 is parked already: UNPARK is due.
 *		 timeout_ms is for both.
 *   CHECKPOINT  of a parked process, for a PLUGIN: ends when the driver is done, while its image is still being written.
 *		 For others: when its image is complete and has its name as well
 *   SAVED       ends when the image is complete and has its name, or with the reason why it never will be: the dump of
 *		 a PLUGIN has not succeeded before. Path STOCK, and at once: nothing of the process is parked
 *   RESTORE     of a process that was parked first sees to it that its image is there and valid, and that there is GPU
 *		 memory for it (hot, being loaded, or free after evicting); -ENOMEM, -ENOENT, -EBADMSG, -EXDEV (another GPU)
 *		 before the driver is asked
 *   UNLOCK      of a parked process: `value` is the shim's thread, in the pool's pid namespace; 0: nothing is parked
 *   UNPARK      maps the memory back and opens the gate; the shim's thread must be able to run. After UNLOCK. -EALREADY:
 *		 nothing is parked
 *   SHIM	 `value` and path PARKED as after UNLOCK, at any time: for a client that does not know how far it came
 *
 * Which step of a LOCK, CHECKPOINT or SAVED failed is said by `path`: PARKED, the parking or its image; STOCK, the
 * driver's.
 *
 * A DROPIN's UNLOCK begins an UNPARK that nobody waits for.
 */
enum cudapool_op {
	CUDAPOOL_OP_STATE = 1,	     /* value: enum cudapool_process_state */
	CUDAPOOL_OP_RESTORE_TID = 2, /* value: the driver's restore thread */
	CUDAPOOL_OP_LOCK = 3,	     /* timeout_ms: 0 waits as long as the pool's own limit */
	CUDAPOOL_OP_CHECKPOINT = 4,
	CUDAPOOL_OP_RESTORE = 5,
	CUDAPOOL_OP_UNLOCK = 6,
	CUDAPOOL_OP_SHIM = 7, /* what the process's shim says of itself, as text (wire/control_page.h) */
	CUDAPOOL_OP_UNPARK = 8, /* timeout_ms: 0 is the pool's own limit; value: enum cudapool_path */
	CUDAPOOL_OP_SAVED = 9,
};
#define CUDAPOOL_OP_LAST CUDAPOOL_OP_SAVED

enum cudapool_path { /* the way that parked memory took */
	CUDAPOOL_PATH_STOCK = 0,    /* none: it was not parked, the driver carries everything */
	CUDAPOOL_PATH_PARKED = 1,   /* LOCK, CHECKPOINT, SAVED: parked */
	CUDAPOOL_PATH_HOT_MOVE = 2, /* UNPARK: the hot memory itself was given */
	CUDAPOOL_PATH_HOT_COPY = 3, /* a copy of it, made on the GPU */
	CUDAPOOL_PATH_LOADED = 4,   /* the image was loaded: staged or cold */
	CUDAPOOL_PATH_RETURNED = 5, /* what was parked went back to the same process: a dump was undone */
};
#define CUDAPOOL_PATH_LAST CUDAPOOL_PATH_RETURNED

enum cudapool_process_state { /* the driver's CUprocessState */
	CUDAPOOL_PROCESS_RUNNING = 0,
	CUDAPOOL_PROCESS_LOCKED = 1,
	CUDAPOOL_PROCESS_CHECKPOINTED = 2,
	CUDAPOOL_PROCESS_FAILED = 3,
};

struct cudapool_action {
	struct cudapool_header h;
	uint32_t op;	     /* enum cudapool_op */
	int32_t pid;	     /* in the pool's pid namespace; a thread's id stands for its process */
	uint32_t timeout_ms; /* LOCK only */
	uint32_t reserved;   /* 0 */
};
static_assert(sizeof(struct cudapool_action) == 32, "wire format");

struct cudapool_result {
	struct cudapool_header h;
	uint32_t op;	     /* as asked */
	int32_t pid;	     /* as asked */
	int32_t error;	     /* 0, or a negative errno: the pool could not carry the action out, or the driver refused it (-EREMOTEIO) */
	int32_t cu_result;   /* the driver's CUresult; 0 if it was not asked */
	int32_t value;	     /* as the op says */
	uint32_t elapsed_us; /* spent in the driver's call */
	uint32_t worker_generation; /* the worker that did it */
	uint32_t path;	     /* enum cudapool_path */
	uint64_t parked_bytes; /* GPU memory that was, or is, parked */
	uint64_t left_bytes; /* GPU memory that is left to the driver, as far as the shim knows */
	char text[CUDAPOOL_TEXT_LEN]; /* why it failed, or why nothing was parked, in words; may be empty */
};
static_assert(sizeof(struct cudapool_result) == 320, "wire format");

enum cudapool_release_how {
	CUDAPOOL_RELEASE_WATCH = 0, /* the dump is done and its processes are about to die: give back those that do not */
	CUDAPOOL_RELEASE_KEEP = 1,  /* leave everything as it is (criu --leave-stopped, a person's cuda-checkpoint) */
	CUDAPOOL_RELEASE_UNDO = 2,  /* give everything back now; DONE comes when that is done */
	CUDAPOOL_RELEASE_GO_ON = 3, /* the dump is done and its processes go on (criu --leave-running): as WATCH, but
				     * what this connection gives back from now on keeps its image */
};

struct cudapool_release {
	struct cudapool_header h;
	uint32_t how;	   /* enum cudapool_release_how */
	uint32_t reserved; /* 0 */
};
static_assert(sizeof(struct cudapool_release) == 24, "wire format");

enum cudapool_images_for {
	CUDAPOOL_IMAGES_DUMP = 0,     /* images of this connection's parks go here; those of earlier dumps are removed at once */
	CUDAPOOL_IMAGES_RESTORE = 1,  /* check all, and load what is not hot, while the client does other things */
	CUDAPOOL_IMAGES_PREFETCH = 2, /* the same for a TOOL: FOUND comes when `tier` is reached */
};

enum cudapool_tier {
	CUDAPOOL_TIER_HOT = 0,    /* on the GPU */
	CUDAPOOL_TIER_STAGED = 1, /* in host memory: the page cache */
	CUDAPOOL_TIER_COLD = 2,   /* on disk only */
};

enum cudapool_hot { /* CUDAPOOL_HOT: how a restore takes hot memory */
	CUDAPOOL_HOT_AUTO = 0, /* moved; copied from the second restore of a checkpoint on, where there is room */
	CUDAPOOL_HOT_MOVE = 1,
	CUDAPOOL_HOT_COPY = 2, /* copied, where there is room */
	CUDAPOOL_HOT_OFF = 3,  /* a dump keeps nothing hot; a restore loads the image even if it is */
};

struct cudapool_images {
	struct cudapool_header h;
	uint32_t purpose;  /* enum cudapool_images_for */
	uint32_t tier;	   /* PREFETCH: HOT or STAGED */
	uint32_t sync;	   /* DUMP: CUDAPOOL_SYNC */
	uint32_t hot;	   /* enum cudapool_hot */
};
static_assert(sizeof(struct cudapool_images) == 32, "wire format");

#define CUDAPOOL_TOKEN_LEN 16 /* random bytes */

struct cudapool_evict {
	struct cudapool_header h;
	uint8_t token[CUDAPOOL_TOKEN_LEN]; /* of one park; all zero: of all */
	uint32_t tier; /* where it may stay: STAGED lets go of GPU memory, COLD of the page cache as well: then FOUND comes
			* when nothing of the images is in it any more, with an error where something has to stay */
	uint32_t reserved; /* 0 */
};
static_assert(sizeof(struct cudapool_evict) == 40, "wire format");

struct cudapool_found {
	struct cudapool_header h;
	int32_t error;	/* 0; negative errno: nothing may be restored from this directory, or not all was evicted; see `text` */
	uint32_t count; /* images found or begun, or parks evicted */
	uint64_t bytes; /* of GPU memory that they stand for */
	uint64_t hot_bytes; /* of that on the GPU already, or evicted */
	uint8_t dump[CUDAPOOL_TOKEN_LEN]; /* the dump that they are of, or begin; all zero: none */
	char text[CUDAPOOL_TEXT_LEN];
};
static_assert(sizeof(struct cudapool_found) == 312, "wire format");

struct cudapool_error {
	struct cudapool_header h;
	int32_t error;	   /* negative errno */
	uint32_t reserved; /* 0 */
	char build[CUDAPOOL_BUILD_LEN]; /* the pool's, so that a client of another version can say so */
	char text[CUDAPOOL_TEXT_LEN];
};
static_assert(sizeof(struct cudapool_error) == 328, "wire format");

#endif
