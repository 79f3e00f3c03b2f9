// SPDX-License-Identifier: MIT
/* What an image says of itself, and whether all of it is as it was written. Needs no pool and no driver. */
#include "inspect.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "checksum.h"
#include "clock.h"
#include "image.h"
#include "json.h"

#define THREADS_MOST 16
#define SAY_AFTER_MS 1000
#define JSON_SIZE    16384

/* ---- verifying --------------------------------------------------------------------------------- */

struct verification {
	const struct image *image;
	int file;
	pthread_mutex_t lock; /* for the cursor, and the first error: */
	uint32_t piece;
	uint64_t number;
	int error;
	char text[CUDAPOOL_TEXT_LEN];
	_Atomic uint64_t read; /* bytes */
};

/* The next block that is in the file; its length, or 0 at the end. */
static uint32_t next_block(struct verification *v, uint32_t *piece, uint64_t *number)
{
	const struct image *image = v->image;
	uint32_t length = 0;

	pthread_mutex_lock(&v->lock);
	while (!length && !v->error && v->piece < image->header.pieces) {
		*piece = v->piece;
		*number = v->number++;
		if (v->number == image_blocks(image->piece[v->piece].bytes)) {
			v->piece++;
			v->number = 0;
		}
		if (image->block[image->first[*piece] + *number].at)
			length = image_block_length(image->piece[*piece].bytes, *number);
	}
	pthread_mutex_unlock(&v->lock);
	return length;
}

static void *verify_main(void *argument)
{
	struct verification *v = argument;
	uint8_t *buffer = malloc(IMAGE_BLOCK);
	const struct image_block *block;
	uint32_t piece, length;
	uint64_t number;
	int err = buffer ? 0 : -ENOMEM;

	while (!err && (length = next_block(v, &piece, &number))) {
		block = &v->image->block[v->image->first[piece] + number];
		err = image_pread(v->file, buffer, length, block->at);
		if (!err && checksum_crc32c(0, buffer, length) != block->crc)
			err = -EBADMSG;
		if (err) {
			pthread_mutex_lock(&v->lock);
			if (!v->error)
				snprintf(v->text, sizeof(v->text), "block %llu of piece %u %s%s",
					 (unsigned long long)number, piece,
					 err == -EBADMSG ? "is not as it was written: the image is damaged"
							 : "cannot be read: ",
					 err == -EBADMSG ? "" : strerror(-err));
			pthread_mutex_unlock(&v->lock);
		}
		atomic_fetch_add(&v->read, length);
	}
	free(buffer);
	pthread_mutex_lock(&v->lock);
	if (err && !v->error)
		v->error = err;
	pthread_mutex_unlock(&v->lock);
	return NULL;
}

static void *tell_main(void *argument)
{
	struct verification *v = argument;
	struct timespec second = {.tv_sec = SAY_AFTER_MS / 1000};
	uint64_t read, before = 0;

	for (;;) {
		nanosleep(&second, NULL); /* where the thread is ended */
		read = atomic_load(&v->read);
		fprintf(stderr, "%llu of %llu MiB, %llu MB/s\n", (unsigned long long)read >> 20,
			(unsigned long long)v->image->header.stored >> 20,
			(unsigned long long)(read - before) / 1000000);
		before = read;
	}
	return NULL;
}

static int verify_blocks(const struct image *image, int file, char *text)
{
	struct verification v = {.image = image, .file = file, .lock = PTHREAD_MUTEX_INITIALIZER};
	long processors = sysconf(_SC_NPROCESSORS_ONLN), count = 0;
	pthread_t thread[THREADS_MOST], teller;
	bool telling = !pthread_create(&teller, NULL, tell_main, &v);

	while (count < THREADS_MOST && (count < processors || !count) &&
	       !pthread_create(&thread[count], NULL, verify_main, &v))
		count++;
	if (!count)
		verify_main(&v);
	while (count)
		pthread_join(thread[--count], NULL);
	if (telling) {
		pthread_cancel(teller);
		pthread_join(teller, NULL);
	}
	if (v.error && !v.text[0])
		snprintf(v.text, sizeof(v.text), "%s", strerror(-v.error));
	memcpy(text, v.text, sizeof(v.text));
	return v.error;
}

/* ---- telling ----------------------------------------------------------------------------------- */

static void tell_device(struct cudapool_json *json, const struct image *image, uint32_t device)
{
	const uint8_t *id = image->header.uuid[device];
	uint64_t bytes = 0, stored = 0, number;
	uint32_t pieces = 0, i;
	char uuid[48];

	for (i = 0; i < image->header.pieces; i++) {
		if (image->piece[i].device != device)
			continue;
		pieces++;
		bytes += image->piece[i].bytes;
		for (number = 0; number < image_blocks(image->piece[i].bytes); number++) {
			if (image->block[image->first[i] + number].at)
				stored += image_block_length(image->piece[i].bytes, number);
		}
	}
	snprintf(uuid, sizeof(uuid), "GPU-%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x", id[0],
		 id[1], id[2], id[3], id[4], id[5], id[6], id[7], id[8], id[9], id[10], id[11], id[12], id[13], id[14],
		 id[15]);
	cudapool_json_open(json, NULL, '{');
	cudapool_json_string(json, "uuid", uuid);
	cudapool_json_number(json, "pieces", pieces);
	cudapool_json_number(json, "bytes", (long long)bytes);
	cudapool_json_number(json, "stored_bytes", (long long)stored);
	cudapool_json_number(json, "left_bytes", (long long)image->header.left[device]);
	cudapool_json_close(json, '}');
}

static void tell_header(struct cudapool_json *json, const struct image *image)
{
	const struct image_header *header = &image->header;
	uint64_t smallest = header->pieces ? image->piece[0].bytes : 0, largest = 0;
	char hex[2 * IMAGE_TOKEN_LEN + 1], created[32] = "";
	time_t seconds = (time_t)(header->created_us / 1000000);
	uint32_t i, rdma = 0;
	struct tm utc;

	for (i = 0; i < header->pieces; i++) {
		smallest = image->piece[i].bytes < smallest ? image->piece[i].bytes : smallest;
		largest = image->piece[i].bytes > largest ? image->piece[i].bytes : largest;
		rdma += image->piece[i].flags & 1;
	}
	if (gmtime_r(&seconds, &utc))
		strftime(created, sizeof(created), "%Y-%m-%dT%H:%M:%SZ", &utc);
	cudapool_json_number(json, "version", header->version);
	image_hex(hex, header->token);
	cudapool_json_string(json, "token", hex);
	image_hex(hex, header->dump);
	cudapool_json_string(json, "dump", hex);
	cudapool_json_string(json, "created", created);
	cudapool_json_string(json, "process", header->name);
	cudapool_json_number(json, "pid", header->pid);
	cudapool_json_string(json, "build", header->build);
	cudapool_json_number(json, "driver_version", header->driver_version);
	cudapool_json_number(json, "file_bytes", (long long)header->file_size);
	cudapool_json_number(json, "bytes", (long long)header->bytes);
	cudapool_json_number(json, "stored_bytes", (long long)header->stored);
	cudapool_json_number(json, "zero_percent",
			     header->bytes ? (long long)((header->bytes - header->stored) * 100 / header->bytes) : 0);
	cudapool_json_number(json, "block_bytes", header->block);
	cudapool_json_number(json, "pieces", header->pieces);
	cudapool_json_number(json, "smallest_piece_bytes", (long long)smallest);
	cudapool_json_number(json, "largest_piece_bytes", (long long)largest);
	cudapool_json_number(json, "rdma_pieces", rdma);
	cudapool_json_open(json, "devices", '[');
	for (i = 0; i < header->devices; i++)
		tell_device(json, image, i);
	cudapool_json_close(json, ']');
}

int inspect_image(const char *path, bool verify)
{
	static char out[JSON_SIZE];
	struct cudapool_json json = {.out = out, .size = sizeof(out)};
	char text[CUDAPOOL_TEXT_LEN] = "";
	struct image image = {};
	int file = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK), err; /* whatever it is: it must not make us wait */
	int64_t begun = cudapool_now_ms(), took;
	bool readable;

	if (file < 0) {
		err = -errno;
		snprintf(text, sizeof(text), "it cannot be opened: %s", strerror(errno));
	} else {
		err = image_read(&image, file, text);
	}
	readable = !err;
	if (!err && verify)
		err = verify_blocks(&image, file, text);
	took = cudapool_now_ms() - begun;

	cudapool_json_open(&json, NULL, '{');
	cudapool_json_number(&json, "error", err);
	cudapool_json_string(&json, "text", text);
	if (readable)
		tell_header(&json, &image);
	if (!err && verify) {
		cudapool_json_bool(&json, "verified", true);
		cudapool_json_number(&json, "verify_ms", took);
		cudapool_json_number(&json, "verify_mb_per_s",
				     (long long)(image.header.stored / 1000 / (took ? took : 1)));
	}
	cudapool_json_close(&json, '}');
	if (cudapool_json_end(&json) > 0)
		puts(out);
	image_free(&image);
	if (file >= 0)
		close(file);
	return err;
}
