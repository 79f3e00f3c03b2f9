// SPDX-License-Identifier: MIT
/* One park or unpark with a shim, over the control page and a channel (wire/channel.h), without ever waiting. */
#include "park_internal.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include "descriptors.h"
#include "log.h"
#include "packet.h"
#include "text.h"

#define SPIN_US	    500		/* an answer from the page usually takes 200: so long each turn of the loop looks */
#define LOOK_MAX_MS 20		/* between two looks at a page that has been silent for long */
#define LIMIT_MAX_MS 600000	/* that a shim is told */
#define GRANULE	    (2u << 20)	/* the driver's allocation granularity */
#define BYTES_MAX   (1ull << 50) /* of one park */

static bool parks(const struct parking *parking)
{
	return !parking->gift;
}

/* ---- the end ---------------------------------------------------------------------------------- */

/* Whatever was begun ends here; what the shim does at the end of its channel is said in channel.h. */
static void let_go(struct parking *parking)
{
	loop_timer_cancel(&parking->limit);
	loop_timer_cancel(&parking->look);
	store_cancel(&parking->passed);
	store_cancel(&parking->deposit);
	if (parking->step == PARKING_ACK)
		cudapool_shim_leave(&parking->shim, true);
	/* The shim may have a copy of our end still, so that closing ours would tell it nothing. */
	if (parking->channel.on)
		shutdown(parking->channel.fd, SHUT_RDWR);
	loop_unwatch(&parking->channel);
	if (parking->channel.fd >= 0)
		packet_close_all(&parking->channel.fd, 1); /* what it sent and we have not read is closed with it */
	parking->channel.fd = -1;
	cudapool_shim_close(&parking->shim);
}

static void report(struct loop_timer *timer)
{
	struct parking *parking = container_of(timer, struct parking, look);

	parking->step = PARKING_IDLE;
	parking->done(parking);
}

static void finish(struct parking *parking, int error)
{
	let_go(parking);
	if (error && parks(parking) && !parking->taken) {
		store_abandon(parking->park);
		parking->park = NULL;
	}
	parking->error = error;
	parking->step = PARKING_REPORT;
	parking->look.fire = report;
	loop_timer_set(&parking->look, 0);
}

static __attribute__((format(printf, 3, 4))) void fail(struct parking *parking, int error, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	text_replace(parking->text, format, args);
	va_end(args);
	finish(parking, error);
}

void parking_fail_protocol(struct parking *parking, const char *what)
{
	fail(parking, -EPROTO, "the shim of process %d %s", parking->process->pid, what);
}

static void fail_to_keep(struct parking *parking, int error)
{
	fail(parking, error, "the memory of process %d cannot be kept: %s", parking->process->pid, strerror(-error));
}

static void limit_reached(struct loop_timer *timer)
{
	struct parking *parking = container_of(timer, struct parking, limit);

	if (parking->step == PARKING_DEPOSIT) {
		fail(parking, -ETIMEDOUT,
		     "systemd did not take the descriptors of process %d in the time that its park has (%u ms in all)",
		     parking->process->pid, parking->limit_ms);
		return;
	}
	fail(parking, -ETIMEDOUT, "the shim of process %d did not %s within %u ms%s", parking->process->pid,
	     parking->step <= PARKING_ACK ? "answer" : parks(parking) ? "park its memory" : "map its memory back",
	     parking->limit_ms, process_stopped(parking->process) ? ": threads of it are stopped" : "");
}

/* A few bytes, to which the shim answers before it sends more: they fit, or the channel is not used as it should be. */
static bool send_small(struct parking *parking, enum cudapool_channel_type type)
{
	struct cudapool_channel_ack message = {.next = parking->next};
	size_t size = type == CUDAPOOL_CHANNEL_ACK ? sizeof(message) : sizeof(message.h);

	return packet_send(parking->channel.fd, type, &message, size, NULL, 0) == 0;
}

/* ---- parking ---------------------------------------------------------------------------------- */

static void note_left(struct parking *parking, const struct cudapool_page *page)
{
	memcpy(parking->left, page->left_bytes, sizeof(parking->left));
	parking->left_bytes = cudapool_shim_left(page);
}

static uint64_t time_left_ms(const struct parking *parking)
{
	uint64_t spent_ms = (loop_now_us() - parking->started_us) / 1000;

	return spent_ms < parking->limit_ms ? parking->limit_ms - spent_ms : 0;
}

/* From GO on the pieces are the pool's, so everything that may fail comes before. */
static void take(struct store_waiter *waiter, int error, const char *text)
{
	struct parking *parking = container_of(waiter, struct parking, deposit);
	int err;

	if (error) {
		fail(parking, error, "%s", text);
		return;
	}
	loop_timer_set(&parking->limit, time_left_ms(parking));
	err = parking->before_go(parking);
	if (err) {
		finish(parking, err);
		return;
	}
	err = store_taken(parking->park, parking->device_left);
	if (err) {
		fail_to_keep(parking, err);
		return;
	}
	parking->taken = true;
	parking->step = PARKING_END;
	if (!send_small(parking, CUDAPOOL_CHANNEL_GO)) /* it may yet have said why it closed: that is read next */
		cudapool_log(CUDAPOOL_LOG_INFO, "the shim of process %d is gone before GO", parking->process->pid);
}

static void all_came(struct parking *parking)
{
	struct cudapool_page page;

	if (parking->bytes != parking->announced) {
		parking_fail_protocol(parking, "announced another size than it sent");
		return;
	}
	if (!cudapool_shim_read(&parking->shim, &page))
		note_left(parking, &page);
	parking->step = PARKING_DEPOSIT;
	parking->deposit.done = take;
	loop_timer_set(&parking->limit, time_left_ms(parking) / 2); /* so that the shim still waits, and hears no */
	store_deposit(parking->park, parking->device_left, &parking->deposit);
}

/* False: it cannot be true. */
static bool note_device_left(struct parking *parking, const struct cudapool_channel_begin *begin)
{
	uint64_t all = 0;
	uint32_t i;

	for (i = 0; i < begin->devices && begin->left[i] <= BYTES_MAX - all; i++)
		all += parking->device_left[i] = begin->left[i];
	return i == begin->devices;
}

static void begin_came(struct parking *parking, const struct cudapool_channel_begin *begin)
{
	int err;

	if (memcmp(begin->token, parking->token, sizeof(begin->token))) {
		parking_fail_protocol(parking, "answers for another park");
		return;
	}
	if (begin->pieces > CUDAPOOL_CHANNEL_MOST || begin->devices > CUDAPOOL_CHANNEL_DEVICES ||
	    begin->bytes > BYTES_MAX || begin->bytes % GRANULE || begin->bytes / GRANULE < begin->pieces ||
	    !note_device_left(parking, begin)) {
		parking_fail_protocol(parking, "announces what no process has");
		return;
	}
	parking->pieces = begin->pieces;
	parking->devices = begin->devices;
	parking->announced = begin->bytes;
	err = store_describe(parking->park, begin);
	if (err == -EMFILE) { /* each piece is a descriptor in this process, for as long as its memory is here */
		parking->refused = true;
		fail(parking, err,
		     "process %d has %u pieces of memory, for which the pool's limit of open files is too low: raise "
		     "LimitNOFILE (ulimit -n) of cudapoold",
		     parking->process->pid, begin->pieces);
		return;
	}
	if (err) {
		fail_to_keep(parking, err);
		return;
	}
	parking->step = PARKING_PIECES;
	if (!parking->pieces)
		all_came(parking);
}

static const char *objection(const struct parking *parking, const struct cudapool_channel_pieces *pieces,
			     const int *fds, unsigned descriptors)
{
	size_t length = offsetof(struct cudapool_channel_pieces, piece);
	uint64_t bytes = parking->bytes;
	uint32_t i;

	if (!pieces->count || pieces->count > CUDAPOOL_CHANNEL_BATCH || pieces->first != parking->next ||
	    pieces->count > parking->pieces - parking->next ||
	    pieces->h.length != length + pieces->count * sizeof(pieces->piece[0]))
		return "sends pieces that are not due";
	if (pieces->count != descriptors)
		return "sends another number of descriptors than of pieces";
	for (i = 0; i < pieces->count; i++) {
		if (!pieces->piece[i].bytes || pieces->piece[i].bytes % GRANULE ||
		    pieces->piece[i].bytes > parking->announced - bytes)
			return "sends a piece of an impossible size";
		bytes += pieces->piece[i].bytes;
		if (pieces->piece[i].device >= parking->devices || pieces->piece[i].flags > 1)
			return "sends a piece of an unknown device or kind";
		if (!descriptor_is_memory(fds[i]))
			return "sends a descriptor of something else than GPU memory";
	}
	return NULL;
}

/* Takes the descriptors, in any case. */
static void pieces_came(struct parking *parking, const struct cudapool_channel_pieces *pieces, const int *fds,
			unsigned count)
{
	const char *text = objection(parking, pieces, fds, count);
	uint32_t i;
	int err;

	if (text) {
		packet_close_all(fds, count);
		parking_fail_protocol(parking, text);
		return;
	}
	for (i = 0; i < count; i++)
		parking->bytes += pieces->piece[i].bytes;
	parking->next += count;
	err = store_add(parking->park, pieces->piece, fds, count);
	if (err)
		fail_to_keep(parking, err);
	else if (!send_small(parking, CUDAPOOL_CHANNEL_ACK))
		parking_fail_protocol(parking, "does not take the acknowledgement of its pieces");
	else if (parking->next == parking->pieces)
		all_came(parking);
}

/* ---- receiving -------------------------------------------------------------------------------- */

static void end_came(struct parking *parking, const struct cudapool_channel_end *end)
{
	char *c;

	parking->end = *end;
	parking->ended = true;
	parking->end.text[sizeof(parking->end.text) - 1] = '\0';
	for (c = parking->end.text; *c; c++)
		if (*c < ' ' || *c > '~')
			*c = '?';
	if (!end->error && parking->step != PARKING_END)
		parking_fail_protocol(parking, "says that it is done before it is");
	else if (end->error)
		fail(parking, end->error < 0 && end->error > -4096 ? end->error : -EPROTO,
		     "the shim of process %d: %s%s", parking->process->pid,
		     parking->end.text[0] ? parking->end.text : strerror(-end->error),
		     parking->taken ? " (after its memory was taken)" : "");
	else
		finish(parking, 0);
}

/* True for a message of a kind that may come now; its content is looked at by who handles it. */
static bool is_due(const struct parking *parking, const union packet *message, unsigned descriptors)
{
	size_t n = message->h.length;

	if (descriptors && message->h.type != CUDAPOOL_CHANNEL_PIECES)
		return false;
	switch (message->h.type) {
	case CUDAPOOL_CHANNEL_BEGIN:
		return parking->step == PARKING_BEGIN && n == sizeof(message->begin);
	case CUDAPOOL_CHANNEL_PIECES:
		return parks(parking) && parking->step == PARKING_PIECES &&
		       n > offsetof(struct cudapool_channel_pieces, piece);
	case CUDAPOOL_CHANNEL_ACK:
		return !parks(parking) && parking->step == PARKING_PIECES && n == sizeof(message->ack);
	case CUDAPOOL_CHANNEL_END:
		return n == sizeof(message->end);
	default:
		return false;
	}
}

static void channel_ready(struct loop_watch *watch, uint32_t events)
{
	struct parking *parking = container_of(watch, struct parking, channel);
	int fds[CUDAPOOL_CHANNEL_BATCH], n;
	union packet message;
	unsigned count;

	n = packet_receive(watch->fd, &message, fds, &count);
	if (n == -EAGAIN)
		return;
	if (n == 0 && !process_alive(parking->process)) {
		fail(parking, -ESRCH, "process %d has ended", parking->process->pid);
		return;
	}
	if (n > 0 && !is_due(parking, &message, count)) {
		packet_close_all(fds, count);
		n = -EPROTO;
	}
	if (n <= 0) {
		parking_fail_protocol(parking, n == 0		? "closed the channel in the middle"
				       : n == -EMSGSIZE ? "sent what the pool could not receive"
							: "sends what is not due");
		return;
	}
	switch (message.h.type) {
	case CUDAPOOL_CHANNEL_BEGIN:
		begin_came(parking, &message.begin);
		break;
	case CUDAPOOL_CHANNEL_PIECES:
		pieces_came(parking, &message.pieces, fds, count);
		break;
	case CUDAPOOL_CHANNEL_ACK:
		parking_ack_came(parking, &message.ack);
		break;
	case CUDAPOOL_CHANNEL_END:
		end_came(parking, &message.end);
		break;
	}
}

/* ---- the page --------------------------------------------------------------------------------- */

/* There is nothing to talk about, says the shim. */
static void no_channel(struct parking *parking, int32_t result)
{
	struct cudapool_page page;
	const char *why;

	switch (result) {
	case -ENODATA:
		why = "the process has not used CUDA yet";
		break;
	case -EOPNOTSUPP:
		why = "its memory cannot be parked";
		break;
	case -ENOSYS:
		why = "its shim cannot park";
		break;
	case -EALREADY:
		fail(parking, parks(parking) ? -EBUSY : -EALREADY, "process %d: %s", parking->process->pid,
		     parks(parking) ? "its memory is parked already" : "nothing of it is parked");
		return;
	default:
		fail(parking, -EIO, "the shim of process %d could not open a channel (%d)", parking->process->pid,
		     result);
		return;
	}
	parking->refused = parks(parking);
	if (cudapool_shim_read(&parking->shim, &page))
		page.reason[0] = '\0';
	fail(parking, result, "%s%s%s", why, page.reason[0] ? ": " : "", page.reason);
}

static void no_end(struct parking *parking, int error)
{
	if (error == -ESRCH)
		fail(parking, error, "process %d has ended", parking->process->pid);
	else if (error == -EPROTO)
		parking_fail_protocol(parking, "offers a channel that is none of its own");
	else
		fail(parking, -EPROTO, "the channel of process %d cannot be taken: %s", parking->process->pid,
		     strerror(-error));
}

static void acknowledged(struct parking *parking, int32_t result, int32_t channel_fd)
{
	if (result) {
		no_channel(parking, result);
		return;
	}
	parking->channel.fd = packet_take_end(parking->process, channel_fd);
	if (parking->channel.fd < 0) {
		no_end(parking, parking->channel.fd);
		return;
	}
	cudapool_shim_taken(&parking->shim, channel_fd);
	parking->channel.ready = channel_ready;
	if (loop_watch(&parking->channel, EPOLLIN)) {
		fail(parking, -ENOMEM, "the channel of process %d cannot be watched", parking->process->pid);
		return;
	}
	if (parks(parking))
		parking->step = PARKING_BEGIN;
	else
		parking_give(parking);
}

static void look_later(struct parking *parking)
{
	uint64_t waited_us = loop_now_us() - parking->started_us, delay_ms = waited_us / 16000 + 1;

	loop_timer_set(&parking->look, waited_us < SPIN_US ? 0 : delay_ms < LOOK_MAX_MS ? delay_ms : LOOK_MAX_MS);
}

/* Its page names the park, for pools to find the image by: a command that is refused must not write over that. */
static bool is_parked(struct parking *parking)
{
	struct cudapool_page page;

	return parks(parking) && !cudapool_shim_read(&parking->shim, &page) && page.park_state != CUDAPOOL_PARK_OPEN;
}

static void look(struct loop_timer *timer)
{
	struct parking *parking = container_of(timer, struct parking, look);
	unsigned limit_ms = parking->limit_ms - parking->limit_ms / 10;
	int32_t result, channel_fd;
	int err;

	if (parking->step == PARKING_SEND) {
		parking_send_batch(parking);
		return;
	}
	if (parking->step == PARKING_POST) {
		if (is_parked(parking)) {
			no_channel(parking, -EALREADY);
			return;
		}
		err = cudapool_shim_post(&parking->shim, parks(parking) ? CUDAPOOL_PAGE_PARK : CUDAPOOL_PAGE_UNPARK,
					 parking->token, limit_ms < LIMIT_MAX_MS ? limit_ms : LIMIT_MAX_MS,
					 &parking->seq);
		if (err) {
			look_later(parking);
			return;
		}
		parking->step = PARKING_ACK;
	}
	err = cudapool_shim_acknowledged(&parking->shim, parking->seq, &result, &channel_fd);
	if (err == -EAGAIN) {
		look_later(parking);
	} else if (err) {
		fail(parking, err, "%s", parking->shim.text);
	} else {
		cudapool_shim_leave(&parking->shim, false);
		parking->step = PARKING_BEGIN;
		acknowledged(parking, result, channel_fd);
	}
}

/* ---- for others ------------------------------------------------------------------------------- */

int parking_open(struct parking *parking)
{
	struct cudapool_page page;
	int err;

	parking->channel.fd = -1;
	err = cudapool_shim_open(&parking->shim, parking->process->pid);
	if (!err && !process_same(&parking->shim.process, parking->process))
		err = -ESRCH;
	if (!err)
		err = cudapool_shim_read(&parking->shim, &page);
	if (err) {
		parking->refused = true;
		parking->error = err;
		snprintf(parking->text, sizeof(parking->text), "%s", parking->shim.text);
		cudapool_shim_close(&parking->shim);
		return err;
	}
	note_left(parking, &page);
	return 0;
}

void parking_close(struct parking *parking)
{
	cudapool_shim_close(&parking->shim);
}

void parking_start(struct parking *parking)
{
	parking->step = PARKING_POST;
	parking->started_us = loop_now_us();
	parking->look = (struct loop_timer){.fire = look};
	parking->limit = (struct loop_timer){.fire = limit_reached};
	loop_timer_set(&parking->look, 0);
	loop_timer_set(&parking->limit, parking->limit_ms);
}

bool parking_cancel(struct parking *parking)
{
	if (parking->taken || parking->step == PARKING_REPORT)
		return false;
	let_go(parking);
	if (parks(parking))
		store_abandon(parking->park);
	parking->park = NULL;
	parking->step = PARKING_IDLE;
	return true;
}
