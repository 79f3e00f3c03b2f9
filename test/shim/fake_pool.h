// SPDX-License-Identifier: MIT
/* A pool that only parks and unparks one process: it takes pieces from the shim, keeps them, and gives them back. */
#ifndef CUDAPOOL_TEST_SHIM_FAKE_POOL_H
#define CUDAPOOL_TEST_SHIM_FAKE_POOL_H

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <poll.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "attach.h"
#include "channel.h"
#include "control_page.h"

/*
 *	struct fake_pool pool = {};
 *
 *	fake_pool_find(&pool, pid);        0, or a negative errno; the caller's own process is fine, from any thread of it
 *	fake_pool_park(&pool, 5000);       0, what the shim answered, or its END's error; pool.end says more
 *	fake_pool_unpark(&pool, 5000);
 *	fake_pool_close(&pool);            lets go of all pieces
 *
 * `at` makes it misbehave once: it dies (closes the channel), or says something wrong, at that point.
 */
enum fake_pool_at {
	FAKE_POOL_HONEST = 0,
	FAKE_POOL_DIES_UNHEARD,	     /* never takes the channel */
	FAKE_POOL_DIES_AT_BEGIN,     /* park: after BEGIN; unpark: before it */
	FAKE_POOL_DIES_AT_PIECES,    /* park: before the first ACK; unpark: after the first batch's ACK */
	FAKE_POOL_DIES_BEFORE_GO,    /* park: all taken; unpark: the last batch is not sent */
	FAKE_POOL_DIES_AFTER_GO,     /* park: before END; unpark: before END */
	FAKE_POOL_LIES_ACK,	     /* park: counts wrongly; unpark: another first piece */
	FAKE_POOL_LIES_TYPE,	     /* the wrong kind of message */
	FAKE_POOL_LIES_MAGIC,
	FAKE_POOL_LIES_SHORT,	     /* a message that ends early */
	FAKE_POOL_LIES_TOKEN,	     /* unpark: of another park */
	FAKE_POOL_LIES_COUNT,	     /* unpark: too many pieces */
	FAKE_POOL_LIES_BYTES,	     /* unpark: a piece of another size */
	FAKE_POOL_LIES_UUID,	     /* unpark: on another device */
	FAKE_POOL_LIES_FDS,	     /* unpark: fewer descriptors than pieces */
	FAKE_POOL_LIES_GARBAGE,	     /* unpark: descriptors of something else */
	FAKE_POOL_LATE,		     /* says nothing until the limit has passed */
	FAKE_POOL_EARLY_GO,	     /* park: GO before all pieces were sent */
	FAKE_POOL_POINTS,
};

struct fake_pool {
	int pid;
	struct cudapool_page *page;
	struct cudapool_channel_begin begin; /* of the last park */
	struct cudapool_channel_piece *piece;
	int *fd;
	unsigned pieces; /* that we have */
	struct cudapool_channel_end end; /* the last one that the shim sent; error 1: none */
	enum fake_pool_at at;
	uint32_t limit_ms;
	bool keep; /* after an unpark, keep the descriptors, as a pool that copies does */
	unsigned batch; /* pieces in a batch of an unpark; 0: as many as go into one */
	bool passes;	/* an unpark closes what was acknowledged before it goes on, as a pool does that has an image */
	void (*closed)(struct fake_pool *pool); /* called when the gate is closed and all pieces were sent, before GO */
	void *data;
};

static inline void fake_pool_forget(struct fake_pool *pool)
{
	while (pool->pieces)
		close(pool->fd[--pool->pieces]);
	free(pool->fd);
	free(pool->piece);
	pool->fd = NULL;
	pool->piece = NULL;
}

static inline void fake_pool_close(struct fake_pool *pool)
{
	fake_pool_forget(pool);
	if (pool->page && pool->pid != getpid())
		munmap(pool->page, CUDAPOOL_PAGE_SIZE);
	pool->page = NULL;
}

static inline int fake_pool_find(struct fake_pool *pool, int pid)
{
	unsigned long start, end;
	char path[96], line[512];
	int fd, err = -ENOENT;
	FILE *maps;

	pool->pid = pid;
	pool->page = NULL;
	snprintf(path, sizeof(path), "/proc/%d/maps", pid);
	maps = fopen(path, "re");
	while (maps && err == -ENOENT && fgets(line, sizeof(line), maps)) {
		if (!strstr(line, "/memfd:" CUDAPOOL_PAGE_NAME " ") || sscanf(line, "%lx-%lx", &start, &end) != 2)
			continue;
		if (pid == getpid()) {
			pool->page = (struct cudapool_page *)start;
			err = 0;
			continue;
		}
		snprintf(path, sizeof(path), "/proc/%d/map_files/%lx-%lx", pid, start, end);
		fd = open(path, O_RDWR | O_CLOEXEC);
		if (fd >= 0)
			pool->page = mmap(NULL, CUDAPOOL_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
		err = fd < 0 || pool->page == MAP_FAILED ? -errno : 0;
		if (fd >= 0)
			close(fd);
	}
	if (maps)
		fclose(maps);
	return err;
}

static inline long fake_pool_now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000l + now.tv_nsec / 1000000;
}

/* Gives a command and waits for its acknowledgement: the result, or -ETIME. */
static inline int fake_pool_command(struct fake_pool *pool, enum cudapool_page_command command, long limit_ms)
{
	struct cudapool_page *page = pool->page;
	long end = fake_pool_now_ms() + limit_ms;
	struct timespec step = {0, 20000000};
	uint32_t number, ack;

	__atomic_store_n(&page->command, command, __ATOMIC_RELAXED);
	number = __atomic_add_fetch(&page->command_seq, 1, __ATOMIC_ACQ_REL);
	syscall(SYS_futex, &page->command_seq, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
	while ((ack = __atomic_load_n(&page->ack_seq, __ATOMIC_ACQUIRE)) != number) {
		if (fake_pool_now_ms() > end)
			return -ETIME;
		syscall(SYS_futex, &page->ack_seq, FUTEX_WAIT, ack, &step, NULL, 0);
	}
	return page->result;
}

/* The channel's end for the pool, or a negative errno. */
static inline int fake_pool_take(struct fake_pool *pool)
{
	int pidfd = syscall(SYS_pidfd_open, pool->pid, 0), fd, err;

	if (pidfd < 0)
		return -errno;
	fd = syscall(SYS_pidfd_getfd, pidfd, __atomic_load_n(&pool->page->channel_fd, __ATOMIC_ACQUIRE), 0);
	err = errno;
	close(pidfd);
	if (fd >= 0)
		__atomic_store_n(&pool->page->channel_fd, -1, __ATOMIC_RELEASE);
	return fd < 0 ? -err : fd;
}

/* One message of any kind, within the pool's limit: its length, or a negative errno; 0: the shim closed. */
static inline int fake_pool_receive(struct fake_pool *pool, int fd, void *message, size_t size, int *fds,
				    unsigned *count)
{
	union cudapool_attached control;
	struct iovec part = {message, size};
	struct msghdr msg = {
		.msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control)};
	struct pollfd poll_ = {.fd = fd, .events = POLLIN};
	struct cmsghdr *c;
	ssize_t n;

	*count = 0;
	if (poll(&poll_, 1, pool->limit_ms + 2000) != 1)
		return -ETIMEDOUT;
	n = recvmsg(fd, &msg, MSG_CMSG_CLOEXEC);
	if (n < 0)
		return -errno;
	c = CMSG_FIRSTHDR(&msg);
	if (c && c->cmsg_type == SCM_RIGHTS) {
		*count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
		memcpy(fds, CMSG_DATA(c), *count * sizeof(int));
	}
	if (msg.msg_flags & (MSG_CTRUNC | MSG_TRUNC))
		return -EMSGSIZE;
	if (n && ((struct cudapool_channel_header *)message)->length != n)
		return -EBADMSG;
	return n;
}

static inline int fake_pool_send(struct fake_pool *pool, int fd, uint16_t type, void *message, size_t length,
				 const int *fds, unsigned count)
{
	union cudapool_attached control;
	struct cudapool_channel_header *h = message;
	struct iovec part = {message, length};
	struct msghdr msg = {.msg_iov = &part, .msg_iovlen = 1};

	*h = (struct cudapool_channel_header){CUDAPOOL_CHANNEL_MAGIC, type, length};
	if (pool->at == FAKE_POOL_LIES_MAGIC)
		h->magic++;
	if (pool->at == FAKE_POOL_LIES_TYPE)
		h->type = 99;
	if (pool->at == FAKE_POOL_LIES_SHORT)
		part.iov_len = h->length = length - 4;
	cudapool_attach(&msg, &control, fds, count);
	return sendmsg(fd, &msg, MSG_NOSIGNAL) < 0 ? -errno : 0;
}

/* Waits for END; anything else that was under way is passed over. Its error, or a negative errno of ours. */
static inline int fake_pool_wait_end(struct fake_pool *pool, int fd)
{
	union {
		struct cudapool_channel_header h;
		struct cudapool_channel_pieces pieces;
		struct cudapool_channel_end end;
	} m;
	int fds[CUDAPOOL_CHANNEL_BATCH], n;
	unsigned count;

	for (;;) {
		n = fake_pool_receive(pool, fd, &m, sizeof(m), fds, &count);
		while (count)
			close(fds[--count]);
		if (n <= 0)
			return n ? n : -EPIPE;
		if (m.h.type == CUDAPOOL_CHANNEL_END) {
			pool->end = m.end;
			return m.end.error;
		}
	}
}

/* The size of what came. Not positive: it is over, by END with this error, or with a negative errno of ours. */
static inline int fake_pool_next(struct fake_pool *pool, int fd, struct cudapool_channel_pieces *pieces, int *fds,
				 unsigned *count)
{
	int n = fake_pool_receive(pool, fd, pieces, sizeof(*pieces), fds, count);

	if (n <= 0)
		return n ? n : -EPIPE;
	if (pieces->h.type != CUDAPOOL_CHANNEL_END)
		return n;
	memcpy(&pool->end, pieces, sizeof(pool->end));
	return pool->end.error;
}

static inline int fake_pool_park_on(struct fake_pool *pool, int fd)
{
	struct cudapool_channel_pieces pieces;
	struct cudapool_channel_ack ack = {};
	struct cudapool_channel_header go;
	int fds[CUDAPOOL_CHANNEL_BATCH], n;
	unsigned count;

	n = fake_pool_next(pool, fd, &pieces, fds, &count);
	if (n <= 0)
		return n;
	if (pieces.h.type != CUDAPOOL_CHANNEL_BEGIN || n != sizeof(pool->begin))
		return -EBADMSG;
	memcpy(&pool->begin, &pieces, sizeof(pool->begin));
	if (pool->at == FAKE_POOL_DIES_AT_BEGIN)
		return -ECANCELED;
	if (pool->at == FAKE_POOL_LATE)
		return fake_pool_wait_end(pool, fd);
	pool->piece = calloc(pool->begin.pieces + 1, sizeof(*pool->piece));
	pool->fd = calloc(pool->begin.pieces + 1, sizeof(*pool->fd));
	while (pool->pieces < pool->begin.pieces) {
		n = fake_pool_next(pool, fd, &pieces, fds, &count);
		if (n <= 0)
			return n;
		if (pieces.h.type != CUDAPOOL_CHANNEL_PIECES || pieces.count != count || !count ||
		    pieces.first != pool->pieces || pool->pieces + count > pool->begin.pieces)
			return -EBADMSG;
		memcpy(pool->fd + pool->pieces, fds, count * sizeof(int));
		memcpy(pool->piece + pool->pieces, pieces.piece, count * sizeof(pieces.piece[0]));
		pool->pieces += count;
		if (pool->at == FAKE_POOL_DIES_AT_PIECES)
			return -ECANCELED;
		ack.next = pool->pieces + (pool->at == FAKE_POOL_LIES_ACK);
		if (pool->at == FAKE_POOL_EARLY_GO)
			n = fake_pool_send(pool, fd, CUDAPOOL_CHANNEL_GO, &go, sizeof(go), NULL, 0);
		else
			n = fake_pool_send(pool, fd, CUDAPOOL_CHANNEL_ACK, &ack, sizeof(ack), NULL, 0);
		if (n < 0)
			return n;
	}
	if (pool->closed)
		pool->closed(pool);
	if (pool->at == FAKE_POOL_DIES_BEFORE_GO)
		return -ECANCELED;
	n = fake_pool_send(pool, fd, CUDAPOOL_CHANNEL_GO, &go, sizeof(go), NULL, 0);
	if (n < 0)
		return n;
	return pool->at == FAKE_POOL_DIES_AFTER_GO ? -ECANCELED : fake_pool_wait_end(pool, fd);
}

static inline int fake_pool_unpark_on(struct fake_pool *pool, int fd)
{
	struct cudapool_channel_begin begin = pool->begin;
	struct cudapool_channel_pieces pieces;
	struct cudapool_channel_ack ack;
	int fds[CUDAPOOL_CHANNEL_BATCH], n, null = -1;
	unsigned done, count, none;

	if (pool->at == FAKE_POOL_DIES_AT_BEGIN)
		return -ECANCELED;
	if (pool->at == FAKE_POOL_LATE)
		return fake_pool_wait_end(pool, fd);
	memset(begin.left, 0, sizeof(begin.left));
	begin.token[0] ^= pool->at == FAKE_POOL_LIES_TOKEN;
	begin.uuid[0][3] ^= pool->at == FAKE_POOL_LIES_UUID;
	begin.pieces += pool->at == FAKE_POOL_LIES_COUNT;
	n = fake_pool_send(pool, fd, CUDAPOOL_CHANNEL_BEGIN, &begin, sizeof(begin), NULL, 0);
	for (done = 0; !n && done < pool->pieces; done += count) {
		count = pool->batch ? pool->batch : CUDAPOOL_CHANNEL_BATCH;
		if (count > pool->pieces - done)
			count = pool->pieces - done;
		if (pool->at == FAKE_POOL_DIES_BEFORE_GO && done + count == pool->pieces)
			return -ECANCELED;
		pieces.first = done + (pool->at == FAKE_POOL_LIES_ACK);
		pieces.count = count;
		memcpy(pieces.piece, pool->piece + done, count * sizeof(pieces.piece[0]));
		memcpy(fds, pool->fd + done, count * sizeof(int));
		pieces.piece[count - 1].bytes <<= pool->at == FAKE_POOL_LIES_BYTES;
		if (pool->at == FAKE_POOL_LIES_GARBAGE)
			fds[count - 1] = null = open("/dev/null", O_RDWR | O_CLOEXEC);
		n = fake_pool_send(pool, fd, CUDAPOOL_CHANNEL_PIECES, &pieces,
				   offsetof(struct cudapool_channel_pieces, piece[count]), fds,
				   count - (pool->at == FAKE_POOL_LIES_FDS));
		if (null >= 0)
			close(null);
		if (n < 0)
			return n;
		n = fake_pool_next(pool, fd, &pieces, fds, &none);
		if (n <= 0)
			return n;
		memcpy(&ack, &pieces, sizeof(ack));
		if (pieces.h.type != CUDAPOOL_CHANNEL_ACK || ack.next != done + count)
			return -EBADMSG;
		for (n = 0; pool->passes && n < (int)count; n++) {
			close(pool->fd[done + n]);
			pool->fd[done + n] = -1;
		}
		if (pool->at == FAKE_POOL_DIES_AT_PIECES)
			return -ECANCELED;
		n = 0;
	}
	if (n < 0 || pool->at == FAKE_POOL_DIES_AFTER_GO)
		return n < 0 ? n : -ECANCELED;
	return fake_pool_wait_end(pool, fd);
}

static inline int fake_pool_do(struct fake_pool *pool, enum cudapool_page_command command, uint32_t limit_ms)
{
	int fd, err;

	pool->end = (struct cudapool_channel_end){.error = 1};
	pool->limit_ms = limit_ms;
	pool->page->limit_ms = limit_ms;
	err = fake_pool_command(pool, command, limit_ms + 5000);
	if (err || pool->at == FAKE_POOL_DIES_UNHEARD)
		return err ? err : -ECANCELED;
	fd = fake_pool_take(pool);
	if (fd < 0)
		return fd;
	err = command == CUDAPOOL_PAGE_PARK ? fake_pool_park_on(pool, fd) : fake_pool_unpark_on(pool, fd);
	if (err == -EPIPE) /* it has said why before it closed */
		err = fake_pool_wait_end(pool, fd);
	close(fd);
	return err;
}

/* A token that no other park has. */
static inline int fake_pool_park(struct fake_pool *pool, uint32_t limit_ms)
{
	static uint32_t parks;
	uint8_t token[16] = {};
	int err;

	fake_pool_forget(pool);
	parks++;
	memcpy(token, &pool->pid, sizeof(pool->pid));
	memcpy(token + 8, &parks, sizeof(parks));
	memcpy(pool->page->token, token, sizeof(token));
	err = fake_pool_do(pool, CUDAPOOL_PAGE_PARK, limit_ms);
	/* Before GO the memory stays theirs. */
	if (err && pool->at != FAKE_POOL_DIES_AFTER_GO)
		fake_pool_forget(pool);
	return err;
}

static inline int fake_pool_unpark(struct fake_pool *pool, uint32_t limit_ms)
{
	int err;

	memcpy(pool->page->token, pool->begin.token, sizeof(pool->begin.token));
	err = fake_pool_do(pool, CUDAPOOL_PAGE_UNPARK, limit_ms);
	if (!err && !pool->keep)
		fake_pool_forget(pool);
	return err;
}

#endif
