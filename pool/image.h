// SPDX-License-Identifier: MIT
/* The image: parked GPU memory of one process as a file, beside CRIU's own images. */
#ifndef CUDAPOOL_POOL_IMAGE_H
#define CUDAPOOL_POOL_IMAGE_H

#include <assert.h>
#include <stdint.h>

#include "message.h"

/*
 * The file, all little endian:
 *
 *   struct image_header                         at 0, IMAGE_HEADER_SIZE bytes long with what follows it reserved (0)
 *   blocks                                      from IMAGE_HEADER_SIZE on, each at a multiple of IMAGE_ALIGN, in any
 *						 order; a block of zeros has none
 *   struct image_piece [pieces]                 at tables_at
 *   struct image_block [blocks]                 behind them: the blocks of piece 0, of piece 1, ...
 *
 * A piece is cut into blocks of IMAGE_BLOCK bytes; its last one may be shorter. Checksums are CRC-32C. The header is
 * written last: a file without it is no image. It is written as IMAGE_NAME with IMAGE_PART behind it, and gets its name
 * when it is complete (and synced, where that was asked for). A reader takes nothing from it that it has not checked:
 * sizes against the file's, offsets against both, checksums of header and tables before their content. Between header
 * and tables there is nothing but blocks, each at most once.
 *
 * Another version is refused. Images of one checkpoint carry the same `dump`.
 */
#define IMAGE_MAGIC       "CUDAPOOL" /* 8 bytes, no NUL */
#define IMAGE_VERSION     1
#define IMAGE_HEADER_SIZE 4096
#define IMAGE_ALIGN       4096
#define IMAGE_BLOCK       (1u << 20)
#define IMAGE_DEVICES     16
#define IMAGE_PREFIX      "cudapool-"
#define IMAGE_SUFFIX      ".img"
#define IMAGE_NAME        IMAGE_PREFIX "%s" IMAGE_SUFFIX /* the token, 32 hexadecimal digits */
#define IMAGE_PART        ".part"
#define IMAGE_TOKEN_LEN   16

struct image_header {
	char magic[8];
	uint32_t version;
	uint32_t header_size;           /* IMAGE_HEADER_SIZE */
	uint8_t token[IMAGE_TOKEN_LEN]; /* of the park: the process carries it on its control page */
	uint8_t dump[IMAGE_TOKEN_LEN];  /* of the checkpoint, random */
	uint64_t created_us;            /* wall clock since 1970 */
	uint32_t block;                 /* IMAGE_BLOCK */
	uint32_t devices;
	uint32_t pieces;
	uint32_t driver_version;
	uint64_t blocks; /* of all pieces */
	uint64_t bytes;  /* of all pieces */
	uint64_t stored; /* bytes of the blocks that are in the file */
	uint64_t tables_at;
	uint64_t tables_size;
	uint64_t file_size;
	uint64_t left[IMAGE_DEVICES]; /* GPU memory of this process that was not parked: the driver will want it back */
	uint8_t uuid[IMAGE_DEVICES][16];
	int32_t pid;       /* when it was dumped, for people */
	char name[16];     /* of the process, for people; NUL ended */
	char build[48];    /* of the pool that wrote it, for people; NUL ended */
	uint32_t reserved; /* 0 */
	uint32_t tables_crc;
	uint32_t crc; /* of the header before this field */
};
static_assert(sizeof(struct image_header) == 584, "file format; and no padding behind crc");

struct image_piece {
	uint64_t bytes;
	uint32_t device; /* index into uuid */
	uint32_t flags;  /* as in wire/channel.h */
};
static_assert(sizeof(struct image_piece) == 16, "file format");

struct image_block {
	uint64_t at;  /* in the file; 0: all zero, not stored */
	uint32_t crc; /* of its content; 0 if not stored */
	uint32_t reserved;
};
static_assert(sizeof(struct image_block) == 16, "file format");

#define IMAGE_PIECES_MOST (1u << 18)
#define IMAGE_BYTES_MOST  (1ull << 44) /* of all pieces */

/* An image's header and tables, in memory. */
struct image {
	struct image_header header;
	struct image_piece *piece; /* header.pieces */
	struct image_block *block; /* header.blocks */
	uint64_t *first;           /* of each piece: the index of its first block */
};

/* Blocks of a piece of so many bytes; and how long the one with this number is. */
static inline uint64_t image_blocks(uint64_t bytes)
{
	return (bytes + IMAGE_BLOCK - 1) / IMAGE_BLOCK;
}
static inline uint32_t image_block_length(uint64_t bytes, uint64_t number)
{
	return bytes - number * IMAGE_BLOCK < IMAGE_BLOCK ? (uint32_t)(bytes - number * IMAGE_BLOCK) : IMAGE_BLOCK;
}
/* What a block takes in the file. */
static inline uint64_t image_aligned(uint64_t length)
{
	return (length + IMAGE_ALIGN - 1) & ~(uint64_t)(IMAGE_ALIGN - 1);
}

/*
 * Reads and checks header and tables, not the blocks. 0, and image_free() is due; -ENODATA: no image, or one that was
 * never finished; -EPROTONOSUPPORT: of another version; -EBADMSG: altered or cut off; another negative errno: it cannot
 * be read. `text` says what is wrong, without the file's name. Leaves the file's position alone.
 */
int image_read(struct image *image, int fd, char text[CUDAPOOL_TEXT_LEN]);
void image_free(struct image *image);

/*
 * An image that is to be written: `header` as far as it says what it is of (token, dump, devices, uuid, pid, name, …);
 * sizes are worked out, and all blocks are zero. 0, and image_free() is due; -EINVAL: pieces that no image can have;
 * -ENOMEM.
 */
int image_plan(struct image *image, const struct image_header *header, const struct image_piece *piece, uint32_t pieces,
	       char text[CUDAPOOL_TEXT_LEN]);
/*
 * Writes tables and, last, the header: the blocks are in the file, from IMAGE_HEADER_SIZE up to `end`, a multiple of
 * IMAGE_ALIGN, and image->block says where. 0 or a negative errno.
 */
int image_write(struct image *image, int fd, uint64_t end, char text[CUDAPOOL_TEXT_LEN]);

/* All of it, at that place; a signal does not stop them. 0 or a negative errno; reading beyond the end is -EBADMSG. */
int image_pread(int fd, void *to, uint64_t bytes, uint64_t at);
int image_pwrite(int fd, const void *from, uint64_t bytes, uint64_t at);

/* A token or a dump's id as 32 hexadecimal digits and NUL. */
void image_hex(char out[2 * IMAGE_TOKEN_LEN + 1], const uint8_t token[IMAGE_TOKEN_LEN]);

#endif
