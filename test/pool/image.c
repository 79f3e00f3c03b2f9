// SPDX-License-Identifier: MIT
/*
 * The format of images: what is written is read, and whatever else lies there is refused. The last part changes bytes at
 * random, from a seed that it prints: image [SEED [ROUNDS]]. `image write FILE` leaves an image in a file, `image alter
 * FILE` makes another one of it that is as right. `image time` says how long header and tables of large ones take: each
 * restore begins with that.
 */
#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "checksum.h"
#include "image.h"
#include "inspect.h"
#include "random.h"
#include "tap.h"

#define MIB (1ull << 20)

/* ---- images -------------------------------------------------------------------------------------- */

/* Five pieces on two devices; every third block is zero. */
static int image_new(struct image *image)
{
	static const uint64_t sizes[] = {2 * MIB, 6 * MIB, 3 * MIB + 65536, 2 * MIB, MIB / 2};
	struct image_header header = {.devices = 2, .pid = 4711, .name = "python3", .created_us = 1, .left = {1, 2}};
	struct image_piece piece[5] = {};
	uint8_t *block = malloc(IMAGE_BLOCK);
	uint64_t end = IMAGE_HEADER_SIZE, number, i;
	int fd = memfd_create("image", MFD_CLOEXEC);
	char text[CUDAPOOL_TEXT_LEN];
	uint32_t length, p;

	memcpy(header.token, "0123456789abcdef", IMAGE_TOKEN_LEN);
	for (p = 0; p < 5; p++)
		piece[p] = (struct image_piece){.bytes = sizes[p], .device = p % 2, .flags = p == 3};
	if (fd < 0 || image_plan(image, &header, piece, 5, text))
		abort();
	for (p = 0; p < 5; p++) {
		for (number = 0; number < image_blocks(sizes[p]); number++) {
			struct image_block *entry = &image->block[image->first[p] + number];

			length = image_block_length(sizes[p], number);
			for (i = 0; i < length; i++)
				block[i] = (uint8_t)(i * 7 + number);
			if ((image->first[p] + number) % 3 == 0)
				continue;
			entry->at = end;
			entry->crc = checksum_crc32c(0, block, length);
			if (image_pwrite(fd, block, length, end))
				abort();
			end += image_aligned(length);
		}
	}
	if (image_write(image, fd, end, text))
		abort();
	free(block);
	return fd;
}

static void written_is_read(void)
{
	struct image written, read;
	int fd = image_new(&written), err;
	char text[CUDAPOOL_TEXT_LEN] = "";

	err = image_read(&read, fd, text);
	ok(!err, "what was written is read%s%s", err ? ": " : "", text);
	ok(!memcmp(&written.header, &read.header, sizeof(read.header)), "with its header");
	ok(!memcmp(written.piece, read.piece, 5 * sizeof(*read.piece)) &&
		   !memcmp(written.block, read.block, read.header.blocks * sizeof(*read.block)) &&
		   !memcmp(written.first, read.first, 5 * sizeof(*read.first)),
	   "and tables");
	ok(read.header.stored < read.header.bytes && read.header.file_size == (uint64_t)lseek(fd, 0, SEEK_END),
	   "zeros are not in it");
	image_free(&read);
	image_free(&written);
	close(fd);
}

/* Makes checksums right again, so that what lies behind them is looked at. */
static void seal(int fd, struct image *image)
{
	struct image_header *header = &image->header;
	uint64_t pieces = header->pieces * sizeof(*image->piece), blocks = header->blocks * sizeof(*image->block);

	header->tables_crc = checksum_crc32c(checksum_crc32c(0, image->piece, pieces), image->block, blocks);
	header->crc = checksum_crc32c(0, header, offsetof(struct image_header, crc));
	if (image_pwrite(fd, header, sizeof(*header), 0) || image_pwrite(fd, image->piece, pieces, header->tables_at) ||
	    image_pwrite(fd, image->block, blocks, header->tables_at + pieces))
		abort();
}

static void refused(int fd, int expected, const char *says, const char *what)
{
	char text[CUDAPOOL_TEXT_LEN] = "";
	struct image image;
	int err = image_read(&image, fd, text);

	ok(err == expected && strstr(text, says), "%s: %s", what, err ? text : "accepted");
	if (!err)
		image_free(&image);
}

/* Each case changes a field of an image that is right otherwise. */
#define LIE(what, expected, says, change)                                                                              \
	do {                                                                                                           \
		struct image image;                                                                                    \
		int fd = image_new(&image);                                                                            \
		struct image_header *header = &image.header, right = *header;                                          \
                                                                                                                       \
		(void)right;                                                                                           \
		change;                                                                                                \
		seal_with(fd, &image, &right);                                                                         \
		refused(fd, expected, says, what);                                                                     \
		header->pieces = right.pieces;                                                                         \
		image_free(&image);                                                                                    \
		close(fd);                                                                                             \
	} while (0)

/* The tables stay where and as long as they are; only the header may lie about that. */
static void seal_with(int fd, struct image *image, const struct image_header *right)
{
	struct image_header lie = image->header;
	uint32_t tables_crc;

	image->header = *right;
	seal(fd, image);
	tables_crc = image->header.tables_crc;
	image->header = lie;
	image->header.tables_crc = tables_crc;
	image->header.crc = checksum_crc32c(0, &image->header, offsetof(struct image_header, crc));
	if (image_pwrite(fd, &image->header, sizeof(image->header), 0))
		abort();
}

static void lies(void)
{
	LIE("a newer version", -EPROTONOSUPPORT, "version 2", header->version = 2);
	LIE("another header's size", -EPROTONOSUPPORT, "version", header->header_size = 8192);
	LIE("no magic", -ENODATA, "no image", header->magic[3] ^= 1);
	LIE("blocks of another size", -EBADMSG, "impossible", header->block = 1 << 16);
	LIE("too many devices", -EBADMSG, "impossible", header->devices = 17);
	LIE("too few devices", -EBADMSG, "device", header->devices = 1);
	LIE("too many pieces", -EBADMSG, "impossible", header->pieces = IMAGE_PIECES_MOST + 1);
	LIE("more pieces than the tables have", -EBADMSG, "tables", header->pieces++);
	LIE("too many blocks", -EBADMSG, "impossible", header->blocks = 1ull << 60);
	LIE("blocks that overflow the tables' size", -EBADMSG, "impossible", header->blocks += 1ull << 60);
	LIE("too many bytes", -EBADMSG, "impossible", header->bytes = 1ull << 50);
	LIE("fewer bytes", -EBADMSG, "pieces are not", header->bytes -= 4096);
	LIE("fewer stored bytes", -EBADMSG, "not what the header says", header->stored -= 4096);
	LIE("stored bytes that are not in the file", -EBADMSG, "room", header->stored = header->bytes);
	LIE("stored bytes beyond all measure", -EBADMSG, "impossible", header->stored = 1ull << 63);
	LIE("tables behind the end", -EBADMSG, "tables", header->tables_at = header->file_size);
	LIE("tables before the blocks", -EBADMSG, "tables", header->tables_at = 0);
	LIE("tables that overflow", -EBADMSG, "tables", header->tables_at = -4096ull);
	LIE("another length of the tables", -EBADMSG, "tables", header->tables_size -= 16);
	LIE("another length of the file", -EBADMSG, "cut off", header->file_size += 4096);
	LIE("a name without an end", -EBADMSG, "without an end", memset(header->name, 'x', sizeof(header->name)));
	LIE("a build without an end", -EBADMSG, "without an end", memset(header->build, 'x', sizeof(header->build)));
	LIE("a piece of no bytes", -EBADMSG, "impossible size", image.piece[1].bytes = 0);
	LIE("a piece that is huge", -EBADMSG, "impossible size", image.piece[1].bytes = -1ull);
	LIE("pieces whose sizes overflow", -EBADMSG, "impossible size",
	    (image.piece[0].bytes = 1ull << 63, image.piece[1].bytes = 1ull << 63));
	LIE("a piece on a device that is none", -EBADMSG, "device", image.piece[1].device = 2);
	LIE("a piece of an unknown kind", -EBADMSG, "kind", image.piece[1].flags = 2);
	LIE("a block in the header", -EBADMSG, "not within", image.block[1].at = 0x800);
	LIE("a block that is not aligned", -EBADMSG, "not within", image.block[1].at += 512);
	LIE("a block in the tables", -EBADMSG, "not within", image.block[1].at = header->tables_at);
	LIE("a block that reaches into the tables", -EBADMSG, "not within",
	    image.block[1].at = header->tables_at - 4096);
	LIE("a block behind the end", -EBADMSG, "not within", image.block[1].at = 1ull << 40);
	LIE("a block whose place overflows", -EBADMSG, "not within", image.block[1].at = -4096ull);
	LIE("a block on another", -EBADMSG, "on another", image.block[1].at = image.block[2].at);
	LIE("a block half on another", -EBADMSG, "on another", image.block[1].at += 4096);
	LIE("a block too few", -EBADMSG, "not what the header says", image.block[1].at = image.block[1].crc = 0);
	LIE("a checksum of nothing", -EBADMSG, "not within", image.block[0].crc = 1);
	LIE("something reserved", -EBADMSG, "not within", image.block[0].reserved = 1);
}

static void not_images(void)
{
	static const char words[8192] = "#!/bin/sh\necho this is a script\n";
	int fd = memfd_create("other", MFD_CLOEXEC), pipes[2];
	struct image image;

	refused(fd, -ENODATA, "no image", "an empty file");
	if (image_pwrite(fd, words, sizeof(words), 0))
		abort();
	refused(fd, -ENODATA, "no image", "some other file");
	close(fd);
	fd = image_new(&image);
	if (image_pwrite(fd, words + 1024, 4096, 0))
		abort();
	refused(fd, -ENODATA, "never finished", "an image that was never finished");
	image_free(&image);
	close(fd);
	if (pipe(pipes))
		abort();
	refused(pipes[0], -ENODATA, "no image", "a pipe");
	close(pipes[0]);
	close(pipes[1]);
}

/* Cut off anywhere: at each step of the tables, and here and there in the blocks. */
static void cut_off(void)
{
	struct image image;
	int fd = image_new(&image), err;
	uint64_t size, step, accepted = 0, tried = 0;
	char text[CUDAPOOL_TEXT_LEN];
	struct image read;

	for (size = image.header.file_size; size-- > 0; size -= size < step ? size : step) {
		step = size > image.header.tables_at ? 15 : 77777;
		if (ftruncate(fd, (off_t)size))
			abort();
		err = image_read(&read, fd, text);
		tried++;
		accepted += !err;
		if (!err)
			image_free(&read);
	}
	ok(!accepted && tried > 50, "cut off at %llu places: refused", (unsigned long long)tried);
	image_free(&image);
	close(fd);
}

/* ---- at random ----------------------------------------------------------------------------------- */

/* An image that was accepted must be safe to use: every block within the file, as the tables say. */
static bool usable(const struct image *image)
{
	uint64_t number, bytes = 0;
	uint32_t i, length;

	for (i = 0; i < image->header.pieces; i++) {
		bytes += image->piece[i].bytes;
		for (number = 0; number < image_blocks(image->piece[i].bytes); number++) {
			const struct image_block *block = &image->block[image->first[i] + number];

			length = image_block_length(image->piece[i].bytes, number);
			if (block->at &&
			    (block->at < IMAGE_HEADER_SIZE || block->at + length > image->header.tables_at))
				return false;
		}
		if (image->piece[i].device >= image->header.devices)
			return false;
	}
	return bytes == image->header.bytes;
}

static void at_random(unsigned rounds)
{
	struct image image, read;
	int fd = image_new(&image), err;
	struct image_header right = image.header;
	uint64_t tables_at = right.tables_at, pieces = right.pieces * sizeof(*image.piece);
	uint64_t blocks = right.blocks * sizeof(*image.block);
	unsigned round, flips, unsealed = 0, sealed = 0, unusable = 0;
	uint8_t *page = malloc(IMAGE_HEADER_SIZE), *tables = malloc(pieces + blocks);
	char text[CUDAPOOL_TEXT_LEN];

	for (round = 0; round < rounds; round++) {
		bool with_seal = round % 4;

		memset(page, 0, IMAGE_HEADER_SIZE);
		memcpy(page, &right, sizeof(right));
		memcpy(tables, image.piece, pieces);
		memcpy(tables + pieces, image.block, blocks);
		for (flips = 1 + random_number() % 3; flips; flips--) {
			uint8_t bits = (uint8_t)(1 + random_number() % 255);

			if (random_number() % 2)
				tables[random_number() % (pieces + blocks)] ^= bits;
			else if (with_seal) /* not magic and version: they come before the checksum */
				page[16 + random_number() % (sizeof(right) - 24)] ^= bits;
			else
				page[random_number() % IMAGE_HEADER_SIZE] ^= bits;
		}
		if (with_seal) {
			struct image_header *header = (struct image_header *)page;

			header->tables_crc = checksum_crc32c(0, tables, pieces + blocks);
			header->crc = checksum_crc32c(0, header, offsetof(struct image_header, crc));
		}
		if (image_pwrite(fd, page, IMAGE_HEADER_SIZE, 0) ||
		    image_pwrite(fd, tables, pieces + blocks, tables_at))
			abort();
		err = image_read(&read, fd, text);
		if (err)
			continue;
		/* Two changes of the same byte may undo each other. */
		if (!with_seal && (memcmp(page, &right, sizeof(right)) || memcmp(tables, image.piece, pieces) ||
				   memcmp(tables + pieces, image.block, blocks)))
			unsealed++;
		sealed += with_seal;
		unusable += !usable(&read);
		image_free(&read);
	}
	ok(!unsealed, "%u times some bytes of header or tables were changed: each was noticed", rounds / 4);
	ok(!unusable, "%u times with checksums made right again: %u were accepted, and none was dangerous",
	   rounds - rounds / 4, sealed);
	free(page);
	free(tables);
	image_free(&image);
	close(fd);
}

/* Does a byte of the file mean anything? All do, but those that fill up a piece's last block. */
static void mark_meaning(const struct image *image, uint8_t *means)
{
	uint64_t number, at;
	uint32_t i, length;

	memset(means, 1, image->header.file_size);
	for (i = 0; i < image->header.pieces; i++) {
		for (number = 0; number < image_blocks(image->piece[i].bytes); number++) {
			at = image->block[image->first[i] + number].at;
			length = image_block_length(image->piece[i].bytes, number);
			if (at)
				memset(means + at + length, 0, image_aligned(length) - length);
		}
	}
}

/* What --inspect or --verify says of a file; its JSON is not of interest. */
static int inspect(const char *path, bool verify)
{
	int null = open("/dev/null", O_WRONLY | O_CLOEXEC), out, err;

	fflush(stdout);
	out = dup(STDOUT_FILENO);
	dup2(null, STDOUT_FILENO);
	err = inspect_image(path, verify);
	fflush(stdout);
	dup2(out, STDOUT_FILENO);
	close(out);
	close(null);
	return err;
}

enum harm { FLIP, ZERO, SWAP, CUT, GROW, HARMS };

static uint64_t do_harm(uint8_t *bytes, uint64_t size)
{
	/* Header and tables are small, and most of what can be wrong is there. */
	uint64_t where = random_number() % 3, tables = 512, at, to, i, length = 1 + random_number() % 5000;

	at = where == 0 ? random_number() % IMAGE_HEADER_SIZE : random_number() % size;
	at = where == 1 ? size - 1 - random_number() % tables : at;
	to = random_number() % size;
	length = length < size - at ? length : size - at;
	length = length < size - to ? length : size - to;
	switch ((enum harm)(random_number() % HARMS)) {
	case FLIP:
		bytes[at] ^= (uint8_t)(1 + random_number() % 255);
		return size;
	case ZERO:
		memset(bytes + at, 0, length);
		return size;
	case SWAP:
		for (i = 0; i < length; i++) {
			uint8_t byte = bytes[at + i];

			bytes[at + i] = bytes[to + i];
			bytes[to + i] = byte;
		}
		return size;
	case CUT:
		return at;
	default:
		return size + length;
	}
}

/* The whole file, by the commands that people have for it: what matters and differs is never 'fine'. */
static void whole_files(unsigned rounds)
{
	char path[] = "/tmp/cudapool-image-XXXXXX";
	struct image image;
	int from = image_new(&image), to = mkstemp(path);
	uint64_t size = image.header.file_size, most = size + 5000, now, at;
	uint8_t *right = malloc(size), *bytes = malloc(most), *means = malloc(size);
	unsigned round, differ = 0, unnoticed = 0, unsure = 0;

	if (to < 0 || !right || !bytes || !means || image_pread(from, right, size, 0))
		abort();
	mark_meaning(&image, means);
	for (round = 0; round < rounds; round++) {
		bool matters;

		memcpy(bytes, right, size);
		memset(bytes + size, 0, most - size);
		now = do_harm(bytes, size);
		matters = now != size;
		for (at = 0; !matters && at < size; at++)
			matters = bytes[at] != right[at] && means[at];
		if (ftruncate(to, 0) || ftruncate(to, (off_t)now) || image_pwrite(to, bytes, now, 0))
			abort();
		differ += matters;
		unnoticed += matters && !inspect(path, true);
		unsure += !matters && inspect(path, true);
		inspect(path, false);
	}
	ok(!unnoticed && differ > rounds / 2, "%u of %u files were harmed where it matters: each was noticed", differ, rounds);
	ok(!unsure, "the others are fine");
	unlink(path);
	close(to);
	close(from);
	free(right);
	free(bytes);
	free(means);
	image_free(&image);
}

static int leave(const char *path)
{
	struct image image;
	int from = image_new(&image), to = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	char *all = malloc(image.header.file_size);

	if (to < 0 || !all || image_pread(from, all, image.header.file_size, 0) ||
	    image_pwrite(to, all, image.header.file_size, 0))
		return 1;
	printf("%llu\n", (unsigned long long)image.block[1].at); /* where a stored block is */
	free(all);
	image_free(&image);
	close(from);
	close(to);
	return 0;
}

/* The first byte that is stored is another one, and all checksums say so. */
static int alter(const char *path)
{
	int fd = open(path, O_RDWR | O_CLOEXEC);
	char text[CUDAPOOL_TEXT_LEN] = "";
	uint8_t *block = malloc(IMAGE_BLOCK);
	struct image image;
	uint64_t i = 0;
	uint32_t length;

	if (fd < 0 || !block || image_read(&image, fd, text))
		return 1;
	while (i + 1 < image_blocks(image.piece[0].bytes) && !image.block[i].at)
		i++;
	length = image_block_length(image.piece[0].bytes, i);
	if (!image.block[i].at || image_pread(fd, block, length, image.block[i].at))
		return 1;
	block[0] ^= 1;
	image.block[i].crc = checksum_crc32c(0, block, length);
	if (image_pwrite(fd, block, length, image.block[i].at) || image_write(&image, fd, image.header.tables_at, text))
		return 1;
	free(block);
	image_free(&image);
	close(fd);
	return 0;
}

/* ---- how long it takes --------------------------------------------------------------------------- */

#define TRIES 10

static double now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double)ts.tv_sec * 1e3 + (double)ts.tv_nsec / 1e6;
}

/* An image of so many GiB, all of it stored, with nothing in the blocks: those are not read. */
static int large_image(uint32_t gib)
{
	struct image_piece *piece = calloc(gib, sizeof(*piece));
	struct image_header header = {.devices = 1};
	uint64_t end = IMAGE_HEADER_SIZE, i;
	int fd = memfd_create("image", MFD_CLOEXEC);
	char text[CUDAPOOL_TEXT_LEN];
	struct image image;

	for (i = 0; i < gib; i++)
		piece[i].bytes = 1ull << 30;
	if (fd < 0 || image_plan(&image, &header, piece, gib, text))
		abort();
	for (i = 0; i < image.header.blocks; i++, end += IMAGE_BLOCK)
		image.block[i] = (struct image_block){.at = end, .crc = (uint32_t)i};
	if (image_write(&image, fd, end, text))
		abort();
	image_free(&image);
	free(piece);
	return fd;
}

/* The best of a few, as other work gets in the way; looking at each place in the file by itself took ten times this. */
static void takes_at_most(uint32_t gib, double most_ms)
{
	double best = most_ms + 1e9, took;
	int fd = large_image(gib), i, err = 0;
	char text[CUDAPOOL_TEXT_LEN] = "";
	struct image image;

	for (i = 0; !err && i < TRIES; i++) {
		took = now_ms();
		err = image_read(&image, fd, text);
		took = now_ms() - took;
		best = took < best ? took : best;
		if (!err)
			image_free(&image);
	}
	ok(!err && best < most_ms, "an image of %u blocks is read and checked in %.2f ms, less than %.0f%s%s", gib * 1024,
	   best, most_ms, err ? ": " : "", text);
	close(fd);
}

static int reading_time(void)
{
	takes_at_most(1, 1);
	takes_at_most(32, 4);
	takes_at_most(128, 16);
	return tap_end();
}

int main(int argc, char **argv)
{
	if (argc == 2 && !strcmp(argv[1], "time"))
		return reading_time();
	if (argc == 3 && !strcmp(argv[1], "write"))
		return leave(argv[2]);
	if (argc == 3 && !strcmp(argv[1], "alter"))
		return alter(argv[2]);
	seed = argc > 1 ? strtoull(argv[1], NULL, 0) : (uint64_t)time(NULL) << 20 | (uint64_t)getpid();
	note("seed %llu", (unsigned long long)seed);
	written_is_read();
	not_images();
	lies();
	cut_off();
	at_random(argc > 2 ? (unsigned)atoi(argv[2]) : 20000);
	whole_files(argc > 2 ? (unsigned)atoi(argv[2]) / 50 : 400);
	return tap_end();
}
