// SPDX-License-Identifier: MIT
/* The page's commands PARK and UNPARK: gives the process's GPU memory to the pool, and takes it back. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#define CUDAPOOL_ABI_NO_VERSIONS
#include "drain.h"
#include "gate.h"
#include "memory.h"
#include "park.h"
#include "shim.h"
#include "streams.h"
#include "talk.h"

#define LIMIT_MAX_MS 600000
#define state	     cudapool_state

/* One conversation. */
struct run {
	struct talk talk;
	struct cudapool_channel_end end; /* what we shall say about it */
	uint64_t phase_us;		 /* when the present phase began */
	bool copying_failed;		 /* not for lack of memory: it is not tried again */
	struct cudapool_channel_begin begin;
};

static struct talk waiting; /* between prepare and talk */

static void copy_text(char *to, size_t size, const char *from)
{
	size_t i;

	for (i = 0; i + 1 < size && from[i]; i++)
		to[i] = from[i];
	to[i] = '\0';
}

static void set_state(struct cudapool_page *page, enum cudapool_park_state now)
{
	state.park = now;
	__atomic_store_n(&page->park_state, now, __ATOMIC_RELEASE);
}

bool cudapool_parked(void)
{
	return state.park == CUDAPOOL_PARK_PARKED;
}

void cudapool_park_restored(struct cudapool_page *page)
{
	if (cudapool_parked())
		copy_text(page->reason, sizeof(page->reason),
			  "restored, but the pool has not given its GPU memory back: its CUDA calls wait");
}

/* The time since the last one belongs to this phase. */
static void phase(struct run *run, enum cudapool_channel_phase which)
{
	uint64_t now = cudapool_now_us();

	run->end.phase_us[which] += now - run->phase_us;
	run->phase_us = now;
}

/* Keeps what is said first: later failures are consequences. */
static int failed(struct run *run, int err, CUresult r, const char *text)
{
	if (!run->end.error) {
		run->end.error = err;
		run->end.cu_result = r;
		copy_text(run->end.text, sizeof(run->end.text), text);
	}
	return err;
}

static int talk_failed(struct run *run, int err)
{
	return failed(run, err, 0,
		      err == -ETIMEDOUT ? "the pool did not answer in time"
		      : err == -EMFILE	? "the process has too few descriptors left for a batch"
		      : err == -EPIPE	? "the pool went away, or gave up"
		      : err == -EPROTO	? "the pool said something that makes no sense here"
					: "talking to the pool failed");
}

static uint64_t left_us(const struct run *run)
{
	uint64_t now = cudapool_now_us();

	return now < run->talk.deadline_us ? run->talk.deadline_us - now : 0;
}

/* What a device is known by; all zero if the driver does not say. */
static void uuid_of(int device, uint8_t uuid[16])
{
	CUresult (*ask)(CUuuid *, CUdevice) = DRIVER(cuDeviceGetUuid_v2);

	memset(uuid, 0, 16);
	if (!ask)
		ask = DRIVER(cuDeviceGetUuid);
	if (ask)
		ask((CUuuid *)uuid, device);
}

/* The index of a device in BEGIN, where it is added; -1: there are too many. */
static int device_index(struct run *run, int device, int8_t index[CUDAPOOL_PAGE_DEVICES])
{
	struct cudapool_channel_begin *b = &run->begin;

	if (device < 0 || device >= CUDAPOOL_PAGE_DEVICES)
		return -1;
	if (index[device] < 0) {
		if (b->devices == CUDAPOOL_CHANNEL_DEVICES)
			return -1;
		uuid_of(device, b->uuid[b->devices]);
		index[device] = b->devices++;
	}
	return index[device];
}

/* Park. */

/* What a pool would give up here and now is not true where the process comes back. */
static void forget_evictable(struct cudapool_page *page)
{
	unsigned i;

	for (i = 0; i < CUDAPOOL_PAGE_DEVICES; i++)
		__atomic_store_n(&page->devices[i].evictable, 0, __ATOMIC_RELAXED);
}

static int calls_go_on(struct run *run)
{
	char text[sizeof(run->end.text)];

	snprintf(text, sizeof(text), "calls into the driver did not end in time: thread %u is in one",
		 cudapool_gate_occupant());
	return failed(run, -ETIMEDOUT, 0, text);
}

static int close_gate(struct run *run)
{
	CUresult r;
	int err = cudapool_gate_close(left_us(run));

	phase(run, CUDAPOOL_PHASE_GATE);
	if (err == -ETIMEDOUT)
		return calls_go_on(run);
	if (err)
		return failed(run, err, 0, "the gate cannot be closed: no membarrier, or too many threads or streams");
	err = cudapool_drain_all(left_us(run), &r);
	phase(run, CUDAPOOL_PHASE_DRAIN);
	if (err == -ETIMEDOUT)
		return failed(run, err, 0, "work on the GPU did not end in time");
	if (err == -EBUSY)
		return failed(run, -ETIMEDOUT, 0,
			      "a blocking stream is being captured: until that ends nobody can wait for "
			      "threads' default streams");
	/* Of the application's own making: it hears of it by its next call, and cannot be parked. */
	return err ? failed(run, -EOPNOTSUPP, r, "earlier work failed: a context is in error") : 0;
}

/* Makes all pieces exportable, and BEGIN. */
static int prepare_pieces(struct run *run, int8_t index[CUDAPOOL_PAGE_DEVICES])
{
	struct cudapool_channel_begin *b = &run->begin;
	struct cudapool_piece_info info;
	unsigned i, device;
	CUresult r;

	if (cudapool_memory_unparkable(run->end.text, sizeof(run->end.text))) {
		run->end.error = -EOPNOTSUPP;
		return -EOPNOTSUPP;
	}
	cudapool_memory_settle();
	b->pieces = cudapool_memory_count();
	if (b->pieces > CUDAPOOL_CHANNEL_MOST)
		return failed(run, -EOPNOTSUPP, 0, "more pieces of memory than one park can hold");
	memset(index, -1, CUDAPOOL_PAGE_DEVICES);
	for (i = 0; i < b->pieces; i++) {
		cudapool_memory_piece(i, &info);
		b->bytes += info.bytes;
		if (device_index(run, info.device, index) < 0)
			return failed(run, -EOPNOTSUPP, 0, "memory on more devices than one park can hold");
	}
	for (device = 0; device < CUDAPOOL_PAGE_DEVICES; device++)
		if (cudapool_memory_left(device))
			b->left[device_index(run, device, index)] = cudapool_memory_left(device);
	r = cudapool_memory_renew(0, b->pieces);
	if (r != CUDA_SUCCESS)
		return failed(run, -EIO, r, "memory that came from the pool could not be copied");
	phase(run, CUDAPOOL_PHASE_COPY);
	return 0;
}

static int send_batch(struct run *run, struct cudapool_channel_pieces *batch, const int *fds)
{
	struct cudapool_channel_ack ack;
	size_t length = offsetof(struct cudapool_channel_pieces, piece[batch->count]);
	int err;

	err = cudapool_talk_send(&run->talk, CUDAPOOL_CHANNEL_PIECES, batch, length, fds, batch->count);
	cudapool_close_all(fds, batch->count);
	if (!err)
		err = cudapool_talk_receive(&run->talk, CUDAPOOL_CHANNEL_ACK, &ack, sizeof(ack), sizeof(ack), &length,
					    NULL, NULL);
	if (!err && ack.next != batch->first + batch->count)
		err = -EPROTO;
	if (err)
		return talk_failed(run, err);
	batch->first += batch->count;
	batch->count = 0;
	return 0;
}

static int hand_over(struct run *run, const int8_t index[CUDAPOOL_PAGE_DEVICES])
{
	struct cudapool_channel_pieces batch = {};
	struct cudapool_channel_header go;
	struct cudapool_piece_info info;
	int fds[CUDAPOOL_CHANNEL_BATCH], err;
	unsigned total = run->begin.pieces;
	size_t length;
	CUresult r;

	err = cudapool_talk_send(&run->talk, CUDAPOOL_CHANNEL_BEGIN, &run->begin, sizeof(run->begin), NULL, 0);
	if (err)
		return talk_failed(run, err);
	while (batch.first + batch.count < total) {
		cudapool_memory_piece(batch.first + batch.count, &info);
		r = cudapool_memory_export(batch.first + batch.count, &fds[batch.count]);
		if (r == CUDA_SUCCESS) {
			batch.piece[batch.count++] = (struct cudapool_channel_piece){info.bytes, index[info.device],
										    info.flags};
			if (batch.count < CUDAPOOL_CHANNEL_BATCH && batch.first + batch.count < total)
				continue;
		} else if (!batch.count) {
			return failed(run, -EIO, r, "memory could not be exported");
		}
		/* It is full, or the last one, or the process is short of descriptors: these are closed once sent. */
		err = send_batch(run, &batch, fds);
		if (err)
			return err;
	}
	err = cudapool_talk_receive(&run->talk, CUDAPOOL_CHANNEL_GO, &go, sizeof(go), sizeof(go), &length, NULL, NULL);
	phase(run, CUDAPOOL_PHASE_EXPORT);
	return err ? talk_failed(run, err) : 0;
}

static void park(struct run *run, struct cudapool_page *page)
{
	int8_t index[CUDAPOOL_PAGE_DEVICES];
	bool peers = false;
	CUresult r;
	int err;

	set_state(page, CUDAPOOL_PARK_CLOSING);
	err = close_gate(run);
	if (!err)
		err = prepare_pieces(run, index);
	if (!err) {
		cudapool_memory_report(page); /* the pool reads it before GO */
		r = cudapool_peers_withdraw();
		peers = true;
		err = r == CUDA_SUCCESS ? hand_over(run, index)
					: failed(run, -EIO, r, "access between devices could not be withdrawn");
	}
	if (err) {
		r = peers ? cudapool_peers_restore() : CUDA_SUCCESS;
		if (r != CUDA_SUCCESS)
			shim_log(CUDAPOOL_LOG_ERR, "access between devices could not be given back (%d)", r);
		run->end.held = cudapool_gate_waiting();
		set_state(page, CUDAPOOL_PARK_OPEN);
		cudapool_gate_open();
	} else {
		/* From here on it is the pool's, whatever happens. */
		memcpy(state.token, run->begin.token, sizeof(state.token));
		set_state(page, CUDAPOOL_PARK_PARKED);
		forget_evictable(page);
		r = cudapool_memory_detach();
		if (r != CUDA_SUCCESS)
			failed(run, -EIO, r, "memory could not be unmapped");
		phase(run, CUDAPOOL_PHASE_MAP);
		run->end.held = cudapool_gate_waiting();
	}
}

/* Unpark. */

static int check_begin(struct run *run)
{
	struct cudapool_channel_begin *b = &run->begin;
	size_t length;
	int err;

	err = cudapool_talk_receive(&run->talk, CUDAPOOL_CHANNEL_BEGIN, b, sizeof(*b), sizeof(*b), &length, NULL, NULL);
	if (err)
		return talk_failed(run, err);
	if (memcmp(b->token, state.token, sizeof(b->token)))
		return failed(run, -ESTALE, 0, "this is the memory of another park");
	if (b->pieces != cudapool_memory_count() || b->devices > CUDAPOOL_CHANNEL_DEVICES)
		return failed(run, -EPROTO, 0, "this is not as many pieces as were parked");
	return 0;
}

static int import(struct run *run, unsigned i, const struct cudapool_channel_piece *piece, int fd)
{
	struct cudapool_piece_info info;
	uint8_t uuid[16];
	CUresult r;

	cudapool_memory_piece(i, &info);
	if (piece->bytes != info.bytes || piece->device >= run->begin.devices)
		return failed(run, -EPROTO, 0, "a piece has another size than when it was parked");
	uuid_of(info.device, uuid);
	if (memcmp(uuid, run->begin.uuid[piece->device], sizeof(uuid)))
		return failed(run, -EXDEV, 0, "a piece is on another GPU than the one that it is needed on");
	r = cudapool_memory_import(i, fd);
	return r == CUDA_SUCCESS ? 0 : failed(run, -EIO, r, "memory could not be imported");
}

/*
 * What was imported becomes the process's own, as far as there is room for it, and is mapped where it belongs. That it
 * stays the pool's is no failure: it is as usable, and the page says how much it is.
 */
static int settle_in(struct run *run, unsigned first, unsigned count)
{
	CUresult r;

	phase(run, CUDAPOOL_PHASE_EXPORT);
	if (!run->copying_failed) {
		r = cudapool_memory_renew(first, count);
		run->copying_failed = r != CUDA_SUCCESS && r != CUDA_ERROR_OUT_OF_MEMORY;
	}
	phase(run, CUDAPOOL_PHASE_COPY);
	r = cudapool_memory_map(first, count);
	phase(run, CUDAPOOL_PHASE_MAP);
	return r == CUDA_SUCCESS ? 0 : failed(run, -EIO, r, "memory could not be mapped");
}

static int take_batch(struct run *run, unsigned done)
{
	struct cudapool_channel_pieces batch;
	struct cudapool_channel_ack ack = {};
	int fds[CUDAPOOL_CHANNEL_BATCH], err;
	unsigned count, i;
	size_t length;

	err = cudapool_talk_receive(&run->talk, CUDAPOOL_CHANNEL_PIECES, &batch,
				    offsetof(struct cudapool_channel_pieces, piece[1]), sizeof(batch), &length, fds,
				    &count);
	if (err)
		return talk_failed(run, err);
	if (batch.first != done || !batch.count || batch.count > CUDAPOOL_CHANNEL_BATCH || count != batch.count ||
	    length != offsetof(struct cudapool_channel_pieces, piece[batch.count]) ||
	    batch.count > run->begin.pieces - done)
		err = talk_failed(run, -EPROTO);
	for (i = 0; i < batch.count && !err; i++)
		err = import(run, done + i, &batch.piece[i], fds[i]);
	cudapool_close_all(fds, count);
	if (!err)
		err = settle_in(run, done, batch.count);
	if (err)
		return err;
	ack.next = done + batch.count;
	err = cudapool_talk_send(&run->talk, CUDAPOOL_CHANNEL_ACK, &ack, sizeof(ack), NULL, 0);
	return err ? talk_failed(run, err) : (int)batch.count;
}

static void unpark(struct run *run, struct cudapool_page *page)
{
	int err, taken = 0;
	unsigned done;
	CUresult r;

	set_state(page, CUDAPOOL_PARK_UNPARKING);
	err = check_begin(run);
	for (done = 0; !err && done < run->begin.pieces; done += taken) {
		taken = take_batch(run, done);
		err = taken < 0 ? taken : 0;
		if (err)
			break;
	}
	if (!err) {
		r = cudapool_peers_restore();
		if (r != CUDA_SUCCESS)
			err = failed(run, -EIO, r, "access between devices could not be given back");
		phase(run, CUDAPOOL_PHASE_MAP);
	}
	run->end.held = cudapool_gate_waiting();
	if (err) {
		cudapool_memory_detach();
		set_state(page, CUDAPOOL_PARK_PARKED);
		return;
	}
	memset(state.token, 0, sizeof(state.token));
	cudapool_memory_report(page);
	page->reason[0] = '\0';
	set_state(page, CUDAPOOL_PARK_OPEN);
	cudapool_gate_open();
}

/* The commands. */

static int may_park(struct cudapool_page *page)
{
	if (state.park != CUDAPOOL_PARK_OPEN)
		return -EALREADY;
	page->reason[0] = '\0';
	if (!state.app_inited || !cudapool_streams())
		return -ENODATA;
	if (!cudapool_options.park) {
		copy_text(page->reason, sizeof(page->reason), "parking is switched off: CUDAPOOL_PARK=0");
		return -EOPNOTSUPP;
	}
	return cudapool_memory_unparkable(page->reason, sizeof(page->reason)) ? -EOPNOTSUPP : 0;
}

int cudapool_park_prepare(struct cudapool_page *page, enum cudapool_page_command command)
{
	int err = command == CUDAPOOL_PAGE_PARK	   ? may_park(page)
		  : state.park != CUDAPOOL_PARK_PARKED ? -EALREADY
						       : 0;

	if (err && command == CUDAPOOL_PAGE_PARK && state.park == CUDAPOOL_PARK_PARKED)
		memcpy(page->token, state.token, sizeof(page->token)); /* the command has brought another one */
	return err ? err : cudapool_talk_open(&waiting, &page->channel_fd);
}

/* A batch of descriptors must fit, whatever the application has open: its soft limit is raised meanwhile. */
static void raise_limit(struct rlimit64 *before)
{
	struct rlimit64 most;

	if (syscall(SYS_prlimit64, 0, RLIMIT_NOFILE, NULL, before))
		before->rlim_cur = before->rlim_max = 0;
	most = (struct rlimit64){before->rlim_max, before->rlim_max};
	if (before->rlim_cur < before->rlim_max)
		syscall(SYS_prlimit64, 0, RLIMIT_NOFILE, &most, NULL);
}

static void lower_limit(const struct rlimit64 *before)
{
	if (before->rlim_cur < before->rlim_max)
		syscall(SYS_prlimit64, 0, RLIMIT_NOFILE, before, NULL);
}

void cudapool_park_talk(struct cudapool_page *page, enum cudapool_page_command command)
{
	uint32_t limit_ms = __atomic_load_n(&page->limit_ms, __ATOMIC_RELAXED);
	struct run run = {.talk = waiting, .phase_us = cudapool_now_us()};
	struct rlimit64 limit;

	limit_ms = limit_ms < 1 ? 1 : limit_ms > LIMIT_MAX_MS ? LIMIT_MAX_MS : limit_ms;
	run.talk.deadline_us = run.phase_us + limit_ms * 1000ull;
	raise_limit(&limit);
	if (command == CUDAPOOL_PAGE_PARK) {
		memcpy(run.begin.token, page->token, sizeof(run.begin.token));
		park(&run, page);
	} else {
		unpark(&run, page);
	}
	lower_limit(&limit);
	/* Even if the time is up, what came out of it is said, if that can be done at once. */
	cudapool_talk_send(&run.talk, CUDAPOOL_CHANNEL_END, &run.end, sizeof(run.end), NULL, 0);
	cudapool_talk_close(&run.talk);
}
