// SPDX-License-Identifier: MIT
/* Parks that outlive the keeper: deposited before they are taken, adopted by its successor. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "log.h"
#include "store_internal.h"

/* ---- depositing --------------------------------------------------------------------------------- */

/* What a successor has to know: an image's header and tables, without its blocks. A sealed memfd; -errno. */
static int make_table(const struct park *park)
{
	char text[CUDAPOOL_TEXT_LEN];
	struct image image;
	int fd, err;

	err = image_plan(&image, &park->header, park->piece, park->header.pieces, text);
	if (err)
		return err;
	fd = memfd_create("cudapool-park", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	err = fd < 0 ? -errno : image_write(&image, fd, IMAGE_HEADER_SIZE, text);
	image_free(&image);
	if (!err && fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL))
		err = -errno;
	if (!err)
		return fd;
	if (fd >= 0)
		close(fd);
	return err;
}

static void deposited(struct deposit *deposit, int error)
{
	struct park *park = container_of(deposit, struct park, deposit);
	char text[CUDAPOOL_TEXT_LEN] = "";

	if (error == -EXFULL)
		snprintf(text, sizeof(text),
			 "systemd keeps no more descriptors for cudapoold, so that a pool that is killed would lose "
			 "the memory of process %d: raise FileDescriptorStoreMax= of its unit", park->header.pid);
	else if (error)
		snprintf(text, sizeof(text),
			 "systemd did not take the descriptors of process %d within %u ms, so that a pool that is "
			 "killed would lose its memory: see whether systemd is busy, or NOTIFY_SOCKET is wrong",
			 park->header.pid, DEPOSIT_LIMIT_MS);
	waiters_done(&park->deposited, error, text);
}

void store_deposit(struct park *park, const uint64_t left[CUDAPOOL_CHANNEL_DEVICES], struct store_waiter *waiter)
{
	char text[CUDAPOOL_TEXT_LEN];
	int table, err;

	if (!deposits_possible()) {
		waiter->done(waiter, 0, "");
		return;
	}
	save_describe(park, left);
	table = make_table(park);
	park->deposit.done = deposited;
	err = table < 0 ? table : deposit_start(&park->deposit, park->header.token, table, park->hot->fds, park->hot->got);
	if (table >= 0)
		close(table);
	if (!err) {
		waiters_add(&park->deposited, waiter);
		return;
	}
	snprintf(text, sizeof(text), "the descriptors of process %d cannot be left with systemd: %s%s", park->header.pid,
		 strerror(-err), err == -ENOBUFS ? ": raise net.core.wmem_max" : "");
	waiter->done(waiter, err, text);
}

/* ---- adopting --------------------------------------------------------------------------------- */

/* The park that a table describes, without its memory. -EBADMSG and so on, and text. */
static int read_table(struct deposit *deposit, const uint8_t token[CUDAPOOL_TOKEN_LEN], const struct process *process,
		      struct image *image, char *text)
{
	int table = deposit_table(deposit), err;

	if (table < 0) {
		snprintf(text, CUDAPOOL_TEXT_LEN, "%s", strerror(-table));
		return table;
	}
	err = image_read(image, table, text);
	close(table);
	if (!err && (!MATCHES(image->header.token, token) || image->header.pid != process->pid)) {
		snprintf(text, CUDAPOOL_TEXT_LEN, "it is of another process");
		image_free(image);
		err = -EBADMSG;
	}
	return err == -ENODATA ? -EBADMSG : err;
}

static int take_over(struct park *park, struct deposit *deposit, struct image *image, char *text)
{
	unsigned i;
	int err = rooms_descriptors(image->header.pieces);

	park->header = image->header;
	park->piece = image->piece;
	image->piece = NULL;
	for (i = 0; i < park->header.pieces; i++)
		park->bytes[park->piece[i].device] += park->piece[i].bytes;
	park->hot = err ? NULL : memory_new(park);
	if (!err && !park->hot)
		err = -ENOMEM;
	if (!err)
		err = deposit_pieces(deposit, park->hot->fds, park->header.pieces);
	if (err) {
		snprintf(text, CUDAPOOL_TEXT_LEN, "%s%s", strerror(-err),
			 err == -EMFILE ? ": raise LimitNOFILE (ulimit -n) of cudapoold" : "");
		return err;
	}
	park->hot->got = park->header.pieces;
	park->hot->ready = true;
	return 0;
}

/* Its image is written from the beginning: what there is of it was written by a worker that died. */
static void save_again(struct park *park, struct store_dir *dir)
{
	char name[64];
	int err = -ENOENT;

	park->held = true;
	park->dir = dir;
	park->life = PARK_TAKEN;
	if (dir) {
		park->sync = dir->sync;
		park->hot_mode = dir->hot;
		memcpy(dir->dump, park->header.dump, sizeof(dir->dump));
		image_name(park->header.token, true, name);
		err = files_remove(dir->fd, name);
		if (!err)
			err = save_begin(park);
	}
	if (err) {
		park->life = PARK_FAILED;
		park->save_error = err;
		snprintf(park->text, sizeof(park->text), "the image of process %d cannot be written: %s",
			 park->header.pid, strerror(-err));
	}
}

static bool has_image(const struct store_dir *dir, const uint8_t token[CUDAPOOL_TOKEN_LEN])
{
	char name[64];

	image_name(token, false, name);
	return !faccessat(dir->fd, name, F_OK, AT_SYMLINK_NOFOLLOW);
}

static struct park *adopt(struct deposit *deposit, const uint8_t token[CUDAPOOL_TOKEN_LEN],
			  const struct process *process, struct store_dir *dir)
{
	char text[CUDAPOOL_TEXT_LEN] = "";
	struct image image = {};
	struct park *park = NULL;
	int err = dir && has_image(dir, token) ? -ENODATA : read_table(deposit, token, process, &image, text);

	if (!err) {
		park = park_new();
		err = park ? take_over(park, deposit, &image, text) : -ENOMEM;
		image_free(&image);
	}
	if (!err) {
		park->deposit = *deposit;
		save_again(park, dir);
		cudapool_log(CUDAPOOL_LOG_INFO, "the memory of process %d (%s), %llu MiB, is here again, from systemd",
			     park->header.pid, park->header.name, (unsigned long long)park->header.bytes >> 20);
		return park;
	}
	if (park) {
		park->life = PARK_DROPPED;
		park_settle(park);
	}
	if (err != -ENODATA)
		cudapool_log(CUDAPOOL_LOG_ERR, "the memory of process %d, which an earlier pool left with systemd, "
			     "cannot be taken over: %s", process->pid, text[0] ? text : strerror(-err));
	/* Another keeper may do better where this one merely lacks something. */
	if (err == -EBADMSG || err == -EPROTONOSUPPORT || err == -ENODATA)
		deposit_end(deposit);
	else
		deposit_leave(deposit);
	return NULL;
}

struct park *store_adopt(const uint8_t token[CUDAPOOL_TOKEN_LEN], const struct process *process, const char *path)
{
	struct deposit deposit = {};
	struct store_dir *dir;
	struct park *park;

	if (deposit_find(&deposit, token))
		return NULL;
	dir = dir_again(path);
	park = adopt(&deposit, token, process, dir);
	if (!park && dir)
		store_dir_release(dir);
	return park;
}

void store_leave(const uint8_t token[CUDAPOOL_TOKEN_LEN])
{
	struct deposit deposit = {};

	if (!deposit_find(&deposit, token))
		deposit_leave(&deposit);
}
