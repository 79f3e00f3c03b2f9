// SPDX-License-Identifier: MIT
/* Reads, checks and writes an image's header and tables. */
#include "image.h"

#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "build.h"
#include "checksum.h"

#define SAY(text, ...) snprintf(text, CUDAPOOL_TEXT_LEN, __VA_ARGS__)

int image_pread(int fd, void *to, uint64_t bytes, uint64_t at)
{
	ssize_t n;

	while (bytes) {
		n = pread(fd, to, bytes, (off_t)at);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n ? -errno : -EBADMSG;
		to = (char *)to + n;
		bytes -= n;
		at += n;
	}
	return 0;
}

int image_pwrite(int fd, const void *from, uint64_t bytes, uint64_t at)
{
	ssize_t n;

	while (bytes) {
		n = pwrite(fd, from, bytes, (off_t)at);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n ? -errno : -EIO;
		from = (const char *)from + n;
		bytes -= n;
		at += n;
	}
	return 0;
}

void image_hex(char out[2 * IMAGE_TOKEN_LEN + 1], const uint8_t token[IMAGE_TOKEN_LEN])
{
	int i;

	for (i = 0; i < IMAGE_TOKEN_LEN; i++)
		sprintf(out + 2 * i, "%02x", token[i]);
}

static uint32_t header_crc(const struct image_header *header)
{
	return checksum_crc32c(0, header, offsetof(struct image_header, crc));
}

/* Sizes of the pieces against each other; fills in `first`. */
static int check_pieces(struct image *image, char *text)
{
	const struct image_header *header = &image->header;
	uint64_t bytes = 0, blocks = 0;
	uint32_t i;

	for (i = 0; i < header->pieces; i++) {
		if (!image->piece[i].bytes || image->piece[i].bytes > IMAGE_BYTES_MOST - bytes) {
			SAY(text, "piece %u has an impossible size", i);
			return -EBADMSG;
		}
		if (image->piece[i].device >= header->devices) {
			SAY(text, "piece %u is on a device that the header does not name", i);
			return -EBADMSG;
		}
		if (image->piece[i].flags & ~1u) {
			SAY(text, "piece %u is of a kind that this cudapool does not know", i);
			return -EBADMSG;
		}
		image->first[i] = blocks;
		bytes += image->piece[i].bytes;
		blocks += image_blocks(image->piece[i].bytes);
	}
	if (bytes != header->bytes || blocks != header->blocks) {
		SAY(text, "its pieces are not what the header says");
		return -EBADMSG;
	}
	return 0;
}

/* Takes `count` places from `at` on, a bit each, by words: there are millions. False: one of them is taken already. */
static bool take_places(uint64_t *taken, uint64_t at, uint64_t count)
{
	uint64_t bits, mask;

	for (; count; at += bits, count -= bits) {
		bits = 64 - at % 64 < count ? 64 - at % 64 : count;
		mask = ~0ull >> (64 - bits) << at % 64;
		if (taken[at / 64] & mask)
			return false;
		taken[at / 64] |= mask;
	}
	return true;
}

/*
 * Every stored block lies between header and tables, none on another. `taken` has a bit for each IMAGE_ALIGN bytes
 * there, and that there is no more room than blocks was checked before, so it is no larger than the image warrants.
 */
static int check_places(const struct image *image, uint64_t *taken, char *text)
{
	const struct image_header *header = &image->header;
	uint64_t number, stored = 0;
	uint32_t i, length;

	for (i = 0; i < header->pieces; i++) {
		for (number = 0; number < image_blocks(image->piece[i].bytes); number++) {
			const struct image_block *block = &image->block[image->first[i] + number];

			if (!block->at && !block->crc && !block->reserved)
				continue;
			length = image_block_length(image->piece[i].bytes, number);
			if (block->reserved || block->at < IMAGE_HEADER_SIZE || block->at % IMAGE_ALIGN ||
			    block->at >= header->tables_at || image_aligned(length) > header->tables_at - block->at) {
				SAY(text, "block %llu of piece %u is not within the file's blocks",
				    (unsigned long long)number, i);
				return -EBADMSG;
			}
			if (!take_places(taken, (block->at - IMAGE_HEADER_SIZE) / IMAGE_ALIGN,
					 image_aligned(length) / IMAGE_ALIGN)) {
				SAY(text, "block %llu of piece %u lies on another one", (unsigned long long)number, i);
				return -EBADMSG;
			}
			stored += length;
		}
	}
	if (stored != header->stored) {
		SAY(text, "its blocks are not what the header says");
		return -EBADMSG;
	}
	return 0;
}

static int check_blocks(const struct image *image, char *text)
{
	const struct image_header *header = &image->header;
	uint64_t room = header->tables_at - IMAGE_HEADER_SIZE;
	uint64_t *taken;
	int err;

	/* What blocks take beyond their length is less than IMAGE_ALIGN for each piece's last one. */
	if (header->stored > room || room - header->stored > (uint64_t)header->pieces * IMAGE_ALIGN) {
		SAY(text, "the room for its blocks is not what the header says");
		return -EBADMSG;
	}
	taken = calloc(room / IMAGE_ALIGN / 64 + 1, sizeof(*taken));
	if (!taken) {
		SAY(text, "no memory to check it");
		return -ENOMEM;
	}
	err = check_places(image, taken, text);
	free(taken);
	return err;
}

/* The header by itself, and against the file's size. */
static int check_header(const struct image_header *header, uint64_t file_size, char *text)
{
	uint64_t tables_size;

	if (memcmp(header->magic, IMAGE_MAGIC, sizeof(header->magic))) {
		SAY(text, "it is no image of parked GPU memory, or one that was never finished");
		return -ENODATA;
	}
	if (header->version != IMAGE_VERSION || header->header_size != IMAGE_HEADER_SIZE) {
		SAY(text, "it has format version %u, this cudapool reads %u: use the version that wrote it",
		    header->version, IMAGE_VERSION);
		return -EPROTONOSUPPORT;
	}
	if (header->crc != header_crc(header)) {
		SAY(text, "the checksum of its header is wrong: the image is damaged, use another copy of it");
		return -EBADMSG;
	}
	if (header->file_size != file_size) {
		SAY(text, "it is %llu bytes long and should be %llu: the image is %s, use another copy of it",
		    (unsigned long long)file_size, (unsigned long long)header->file_size,
		    file_size < header->file_size ? "cut off" : "not as it was written");
		return -EBADMSG;
	}
	if (header->block != IMAGE_BLOCK || header->devices > IMAGE_DEVICES || header->pieces > IMAGE_PIECES_MOST ||
	    header->bytes > IMAGE_BYTES_MOST || header->stored > header->bytes ||
	    header->blocks > image_blocks(header->bytes) + header->pieces) {
		SAY(text, "its header says impossible sizes");
		return -EBADMSG;
	}
	tables_size = header->pieces * sizeof(struct image_piece) + header->blocks * sizeof(struct image_block);
	if (header->tables_size != tables_size || header->tables_at < IMAGE_HEADER_SIZE ||
	    header->tables_at % IMAGE_ALIGN || header->tables_at > file_size ||
	    tables_size != file_size - header->tables_at) {
		SAY(text, "its tables are not where they should be");
		return -EBADMSG;
	}
	if (!memchr(header->name, 0, sizeof(header->name)) || !memchr(header->build, 0, sizeof(header->build))) {
		SAY(text, "its header has a name without an end");
		return -EBADMSG;
	}
	return 0;
}

static int allocate(struct image *image)
{
	const struct image_header *header = &image->header;

	image->piece = calloc(header->pieces + 1, sizeof(*image->piece));
	image->block = calloc(header->blocks + 1, sizeof(*image->block));
	image->first = calloc(header->pieces + 1, sizeof(*image->first));
	return image->piece && image->block && image->first ? 0 : -ENOMEM;
}

static uint32_t tables_crc(const struct image *image)
{
	uint32_t crc = checksum_crc32c(0, image->piece, image->header.pieces * sizeof(struct image_piece));

	return checksum_crc32c(crc, image->block, image->header.blocks * sizeof(struct image_block));
}

static int read_tables(struct image *image, int fd, char *text)
{
	const struct image_header *header = &image->header;
	uint64_t pieces_size = header->pieces * sizeof(struct image_piece);
	int err = allocate(image);

	if (!err)
		err = image_pread(fd, image->piece, pieces_size, header->tables_at);
	if (!err)
		err = image_pread(fd, image->block, header->blocks * sizeof(struct image_block),
				  header->tables_at + pieces_size);
	if (err) {
		SAY(text, "its tables cannot be read: %s", strerror(-err));
		return err;
	}
	if (tables_crc(image) != header->tables_crc) {
		SAY(text, "the checksum of its tables is wrong: the image is damaged, use another copy of it");
		return -EBADMSG;
	}
	err = check_pieces(image, text);
	return err ? err : check_blocks(image, text);
}

int image_read(struct image *image, int fd, char text[CUDAPOOL_TEXT_LEN])
{
	char page[IMAGE_HEADER_SIZE];
	struct stat file;
	int err;

	*image = (struct image){};
	if (fstat(fd, &file)) {
		err = -errno;
		SAY(text, "it cannot be looked at: %s", strerror(errno));
		return err;
	}
	if (!S_ISREG(file.st_mode) || file.st_size < IMAGE_HEADER_SIZE) {
		SAY(text, "it is no image of parked GPU memory, or one that was never finished");
		return -ENODATA;
	}
	err = image_pread(fd, page, sizeof(page), 0);
	if (err) {
		SAY(text, "it cannot be read: %s", strerror(-err));
		return err;
	}
	memcpy(&image->header, page, sizeof(image->header));
	err = check_header(&image->header, file.st_size, text);
	if (!err && !checksum_zero(page + sizeof(image->header), sizeof(page) - sizeof(image->header))) {
		SAY(text, "there is something behind its header: the image is damaged, use another copy of it");
		err = -EBADMSG;
	}
	if (!err)
		err = read_tables(image, fd, text);
	if (err)
		image_free(image);
	return err;
}

void image_free(struct image *image)
{
	free(image->piece);
	free(image->block);
	free(image->first);
	image->piece = NULL;
	image->block = NULL;
	image->first = NULL;
}

int image_plan(struct image *image, const struct image_header *about, const struct image_piece *piece, uint32_t pieces,
	       char text[CUDAPOOL_TEXT_LEN])
{
	struct image_header *header = &image->header;
	uint32_t i;
	int err;

	*image = (struct image){.header = *about};
	memcpy(header->magic, IMAGE_MAGIC, sizeof(header->magic));
	header->version = IMAGE_VERSION;
	header->header_size = IMAGE_HEADER_SIZE;
	header->block = IMAGE_BLOCK;
	header->pieces = pieces;
	header->bytes = header->blocks = header->stored = 0;
	header->name[sizeof(header->name) - 1] = '\0';
	snprintf(header->build, sizeof(header->build), "%s", build_name());
	if (pieces > IMAGE_PIECES_MOST || header->devices > IMAGE_DEVICES) {
		SAY(text, "no image can have %u pieces on %u devices", pieces, header->devices);
		return -EINVAL;
	}
	for (i = 0; i < pieces && piece[i].bytes <= IMAGE_BYTES_MOST - header->bytes; i++) {
		header->bytes += piece[i].bytes;
		header->blocks += image_blocks(piece[i].bytes);
	}
	if (i < pieces) {
		SAY(text, "no image can have a piece of %llu bytes", (unsigned long long)piece[i].bytes);
		return -EINVAL;
	}
	err = allocate(image);
	if (err) {
		SAY(text, "no memory for the tables of an image of %u pieces", pieces);
	} else {
		memcpy(image->piece, piece, pieces * sizeof(*piece));
		err = check_pieces(image, text) ? -EINVAL : 0;
	}
	if (err)
		image_free(image);
	return err;
}

int image_write(struct image *image, int fd, uint64_t end, char text[CUDAPOOL_TEXT_LEN])
{
	struct image_header *header = &image->header;
	uint64_t pieces_size = header->pieces * sizeof(struct image_piece), number;
	uint64_t blocks_size = header->blocks * sizeof(struct image_block);
	char page[IMAGE_HEADER_SIZE] = {};
	uint32_t i;
	int err;

	header->stored = 0;
	for (i = 0; i < header->pieces; i++) {
		for (number = 0; number < image_blocks(image->piece[i].bytes); number++) {
			if (image->block[image->first[i] + number].at)
				header->stored += image_block_length(image->piece[i].bytes, number);
		}
	}
	header->tables_at = end;
	header->tables_size = pieces_size + blocks_size;
	header->file_size = end + header->tables_size;
	header->tables_crc = tables_crc(image);
	header->crc = header_crc(header);
	memcpy(page, header, sizeof(*header));
	err = ftruncate(fd, (off_t)header->file_size) ? -errno : 0;
	if (!err)
		err = image_pwrite(fd, image->piece, pieces_size, end);
	if (!err)
		err = image_pwrite(fd, image->block, blocks_size, end + pieces_size);
	if (!err)
		err = image_pwrite(fd, page, sizeof(page), 0);
	if (err)
		SAY(text, "the image cannot be written: %s%s", strerror(-err),
		    err == -ENOSPC ? ": make room in the file system of the checkpoint" : "");
	return err;
}
