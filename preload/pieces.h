// SPDX-License-Identifier: MIT
/* What the files of the subject memory share: pieces, blocks made of them, and the regions where they are mapped. */
#ifndef CUDAPOOL_PRELOAD_PIECES_H
#define CUDAPOOL_PRELOAD_PIECES_H

#include <errno.h>
#include <stdbool.h>
#include <stdint.h>

#define CUDAPOOL_ABI_NO_VERSIONS
#include <cuda.h>

#include "channel.h"
#include "gate.h"
#include "memory.h"
#include "shim.h"
#include "streams.h"
#include "tables.h"

#define MEMORY_DEVICES CUDAPOOL_PAGE_DEVICES
#define ID_BASE (1ull << 62) /* of the identities that we give: the driver counts from 1 */
#define MEMORY_GRANULE (2ull << 20) /* what physical memory is made of, and addresses are aligned to */

/* One physical allocation of the driver. */
struct piece {
	struct piece *next; /* of the block */
	struct block *block;
	CUmemGenericAllocationHandle handle; /* the driver's; valid while `present` */
	uint64_t bytes;
	uint64_t offset; /* in the block */
	uint32_t index;	 /* in memory.pieces, if the block is parked */
	bool present;	 /* false while it is the pool's */
	bool imported;	 /* the pool's: the driver neither exports it again nor restores a process that has it */
	bool apart;	 /* here again, and mapped nowhere yet */
};

/* Physical memory as the application knows it: that of an allocation, or of a handle. */
struct block {
	struct node node; /* by the application's handle; only if it has one */
	struct piece *pieces;
	struct region *regions; /* where it is mapped */
	uint64_t bytes;
	uint64_t id; /* CU_POINTER_ATTRIBUTE_MEMORY_BLOCK_ID */
	CUmemAllocationProp prop; /* of a handle: as the application asked */
	int device;
	uint32_t users; /* calls under way that need it */
	uint32_t handles; /* how often the application must release it; 0: no handle (any more) */
	bool rdma;	  /* it was made GPUDirect RDMA capable */
	bool parked;	  /* its pieces are in memory.pieces */
	bool shared;	  /* others have it, too: counted as LEFT_SHARED */
};

enum region_kind {
	REGION_ALLOCATION, /* of cuMemAlloc, made of our pieces */
	REGION_CHUNK,	   /* memory of a pool (heap.h), made of our pieces: in a tree of its own */
	REGION_ORDERED,	   /* of cuMemAllocAsync, in a chunk */
	REGION_VIEW,	   /* a handle that the application mapped */
	REGION_DRIVERS,	   /* the driver's own: only counted, in `left` */
};

enum sync_memops { SYNC_MEMOPS_UNSET, SYNC_MEMOPS_ON, SYNC_MEMOPS_OFF };

/* Addresses that the application uses. */
struct region {
	struct node node; /* by address */
	struct region *next; /* of the block */
	struct block *block; /* NULL for REGION_DRIVERS; the chunk's for REGION_ORDERED */
	struct chunk *chunk; /* of REGION_ORDERED */
	struct import *import; /* of REGION_DRIVERS: another process's memory is mapped (imports.c); or NULL */
	uint64_t bytes;	     /* as the application asked */
	uint64_t span;	     /* of the mapping; from the start of the block on */
	uint64_t id;	     /* CU_POINTER_ATTRIBUTE_BUFFER_ID; rises with each new region */
	CUcontext context;   /* with which it ends; NULL: with none */
	CUmemoryPool pool;   /* of REGION_ORDERED: CU_POINTER_ATTRIBUTE_MEMPOOL_HANDLE */
	uint32_t readable, writable; /* devices, as bits */
	uint32_t unasked; /* of those: given without the application asking, for copies as of the driver's own memory */
	int device;
	uint8_t kind;	 /* enum region_kind */
	uint8_t left;	 /* enum cudapool_left, for REGION_DRIVERS */
	uint8_t sync_memops; /* enum sync_memops: CU_POINTER_ATTRIBUTE_SYNC_MEMOPS */
};

struct peer {
	struct peer *next;
	CUcontext from, to; /* `from` may use what is allocated in `to` */
	int from_device;
	uint64_t id;
	bool withdrawn; /* for the time of a park */
};

/* What the application imported, as long as it is open. */
struct import {
	struct node node; /* by the driver's handle */
	uint64_t bytes;	  /* 0: not known before it is mapped the first time */
	uint32_t handles; /* how often the application must release it */
	uint32_t maps;
};

/* A CUDA array, only counted. */
struct array {
	struct node node; /* by handle */
	uint64_t bytes, id;
	CUcontext context;
	int device;
};

struct memory {
	uint32_t heap_lock; /* of pools (heap.h), also while the driver works; taken before `lock` */
	struct node *pools;
	struct stamp *stamps; /* that nobody uses */
	uint64_t stamp_order;
	uint32_t want_lock; /* of the request on the control page */
	uint32_t lock;	    /* of all that follows; not held while the driver works, but in peers.c */
	struct node *regions, *chunks, *handles, *arrays, *imports;
	struct slab region_slab, block_slab, piece_slab, array_slab, import_slab;
	struct piece **pieces; /* that can be parked, in no order of meaning */
	uint32_t piece_count, piece_room;
	uint64_t parked_bytes;
	uint64_t imported_bytes;
	uint64_t foreign_bytes; /* of `imports`, as far as they are known */
	uint64_t left[CUDAPOOL_LEFT_KINDS][MEMORY_DEVICES];
	uint64_t next_id; /* rises from ID_BASE on: of regions, blocks, arrays, peers */
	uint64_t next_handle;
	CUcontext context[MEMORY_DEVICES]; /* one that lives, if we know one */
	size_t pitch_unit[MEMORY_DEVICES], total[MEMORY_DEVICES];
	struct peer *peers;
	uint32_t devices; /* as bits: on which the application has had a context */
	uint32_t near[MEMORY_DEVICES]; /* those of them that can access this one, without itself */
	struct slab peer_slab, pool_slab, chunk_slab, gap_slab, stamp_slab;
	bool rdma[MEMORY_DEVICES], usable[MEMORY_DEVICES], asked[MEMORY_DEVICES];
};

/* NULL: this process parks nothing (switched off, a tool, no memory for it), or, with `make` false, has nothing. */
struct memory *cudapool_memory(bool make);


/* Defines the wrapper of a function, which passes the gate, keeps errno, and calls on_NAME. */
#define WRAPPER(name, params, args)                                                                                    \
	CUresult cudapool_wrap_##name params;                                                                          \
	CUresult cudapool_wrap_##name params                                                                           \
	{                                                                                                              \
		int saved_errno = errno;                                                                               \
		CUresult r;                                                                                            \
                                                                                                                       \
		cudapool_gate_enter();                                                                                 \
		r = on_##name args;                                                                                    \
		cudapool_gate_leave();                                                                                 \
		errno = saved_errno;                                                                                   \
		return r;                                                                                              \
	}

/* memory.c */

bool cudapool_device_usable(struct memory *m, int device);
/*
 * Physical memory of `bytes` (a multiple of MEMORY_GRANULE) on a device, in pieces of at most `most` bytes, that can
 * be exported. If it runs out, the pool is asked once to give up what it would. The block is parked from now on, and
 * mapped nowhere. Another error than OUT_OF_MEMORY: let the driver do it.
 */
CUresult cudapool_block_make(struct memory *m, struct block **block, uint64_t bytes, uint64_t most, int device,
			     bool rdma);
void cudapool_block_free(struct memory *m, struct block *block); /* without regions and handles; not under the lock */
/* From now on it is left to the driver: others have it, too. With the lock held. */
void cudapool_block_share(struct memory *m, struct block *block);
/* Maps all of it at `address`, without access; or nothing. */
CUresult cudapool_block_map(const struct block *block, CUdeviceptr address);
/* Devices, as bits; those of `none` lose what they had. */
CUresult cudapool_access_set(CUdeviceptr address, uint64_t bytes, uint32_t readable, uint32_t writable, uint32_t none);
/* A physical allocation for `piece`, which has none. */
CUresult cudapool_piece_make(struct piece *piece, bool rdma);
/* A piece that is here is the pool's from now on, or not any more: counted, and said on the page. */
void cudapool_piece_imported(struct memory *m, struct piece *piece, bool imported);
/* Counts memory that is the driver's own. Takes the lock. Without memory for it, it goes uncounted. */
void cudapool_left_add(struct memory *m, CUdeviceptr start, uint64_t bytes, enum cudapool_left left, CUcontext context,
		       int device);

/* The count of what is left to the driver, of a kind on a device. With the lock held, from here on. */
static inline uint64_t *left_of(struct memory *m, enum cudapool_left kind, int device)
{
	return &m->left[kind][device >= 0 && device < MEMORY_DEVICES ? device : 0];
}

/* NULL: no memory for it. */
struct region *cudapool_region_new(struct memory *m, CUdeviceptr start, uint64_t bytes, enum region_kind kind);
void cudapool_region_enter(struct memory *m, struct region *region);  /* into the tables, and its block's list */
void cudapool_region_remove(struct memory *m, struct region *region); /* out of them; it still exists */
struct region *cudapool_region_at(struct memory *m, CUdeviceptr address); /* that contains it, or NULL */
struct region *cudapool_region_before(struct memory *m, CUdeviceptr address); /* the last that begins there or before */
struct region *cudapool_region_after(struct memory *m, CUdeviceptr address); /* the first one that begins behind it */

static inline CUdeviceptr region_start(const struct region *region)
{
	return region->node.key;
}

/* allocate.c */
bool cudapool_memory_current(CUcontext *context, int *device); /* false: there is none */
/*
 * Memory that is used through one region: reserved, mapped, with access for its device and peers, in the tables.
 * Errors as of cudapool_block_make().
 */
CUresult cudapool_region_make(struct memory *m, struct region **region, uint64_t bytes, enum region_kind kind,
			      CUcontext context, int device);
/* Of a region out of the tables, whose work is done: all of it is freed. On an error it is in the tables again. */
CUresult cudapool_region_unmake(struct memory *m, struct region *region);

/* Of a region in the tables: the same, and out of them first. */
CUresult cudapool_chunk_unmake(struct memory *m, struct region *region);
CUresult cudapool_memory_free(CUdeviceptr ptr); /* as cuMemFree */

/* ordered.c */
/*
 * Releases what pools hold and nobody uses, of a device (-1: all); all of it, or what is above their thresholds. Returns
 * the bytes that it released.
 */
uint64_t cudapool_pools_trim(struct memory *m, int device, bool all);
void cudapool_pools_context_ending(struct memory *m, CUcontext context);
/* Frees an allocation of a pool whose work is done; it is out of the tables. */
void cudapool_ordered_free(struct memory *m, struct region *region);

/* left.c: with the lock held. */
void cudapool_arrays_gone(struct memory *m, const struct cudapool_ending *ending);

/* imports.c: with the lock held, but for cudapool_import_released(). */
/* A mapping of all of this handle, `bytes`, is about to be made. NULL: it is not another process's memory. */
struct import *cudapool_import_mapping(struct memory *m, CUmemGenericAllocationHandle handle, uint64_t bytes);
void cudapool_import_unmapped(struct memory *m, struct import *import); /* it is gone, or did not come about */
void cudapool_import_reopened(struct import *import); /* by cuMemRetainAllocationHandle */
void cudapool_import_released(CUmemGenericAllocationHandle handle); /* any of the driver's; takes the lock */

/* peers.c */
/*
 * Writes down which devices may use a region's memory: its own, and, if it is an allocation, those with peer access and
 * those near it. With the lock held.
 */
void cudapool_access_note(struct memory *m, struct region *region);
/*
 * Carries that out for a part of a region; `none` lose what they had. If that fails, it is tried, and written down,
 * without what nobody asked for.
 */
CUresult cudapool_access_give(struct region *region, CUdeviceptr address, uint64_t bytes, uint32_t none);
/* The application has a context on this device from now on, if it had none before. Takes the lock. */
void cudapool_peers_device(CUdevice device);
void cudapool_peers_gone(struct memory *m, const struct cudapool_ending *ending); /* with the lock held */

/* attributes.c: asks the pool for memory that it would give up. True: it may be there now, try again. */
bool cudapool_memory_want(int device, uint64_t bytes);
uint64_t cudapool_memory_evictable(int device);

#endif
