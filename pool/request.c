// SPDX-License-Identifier: MIT
/* What clients ask for: HELLO, ACTION, IMAGES, RELEASE, EVICT, STATUS, STOP. */
#include "request.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "build.h"
#include "holding.h"
#include "operation.h"
#include "process.h"
#include "report.h"
#include "session.h"
#include "store.h"
#include "worker_link.h"

#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77
#endif

#define TIMEOUT_MAX_MS (24 * 3600000) /* the largest timeout_ms of ACTION; it is cut to the action limit anyway */

/* The largest values of the options that HELLO hands over. */
enum {
#define OPTION(name, environment, type, fallback, min, max, readers, text) max_##name = (max),
#include "options.def"
#undef OPTION
};

static const char elsewhere[] =
	"you are in another pid namespace than the pool, where numbers name other processes: run CRIU (or "
	"cuda-checkpoint) where the pool runs, on the host";

static unsigned requests_open;
static void (*stop_pool)(void);
static enum cudapool_hot hot_default;
static bool ending;

/* ---- HELLO ------------------------------------------------------------------------------------ */

static void welcome(struct peer *peer)
{
	struct cudapool_welcome message;
	struct link_info info;

	peer->welcome_waits = false;
	loop_timer_cancel(&peer->hello);
	link_info(&info);
	memset(&message, 0, sizeof(message));
	peer_fill_header(&message.h, CUDAPOOL_MSG_WELCOME, sizeof(message), peer->hello_request);
	message.pool_pid = getpid();
	message.worker_pid = info.pid;
	message.worker_state = info.state;
	message.worker_generation = info.generation;
	message.driver_version = info.driver_version;
	message.device_count = info.devices;
	message.warm_device = info.warm_device;
	message.warm_context = info.warm_context;
	snprintf(message.build, sizeof(message.build), "%s", build_name());
	snprintf(message.text, sizeof(message.text), "%s", info.text);
	peer_send(peer, &message, sizeof(message));
}

void request_hello_limit(struct loop_timer *timer)
{
	struct peer *peer = container_of(timer, struct peer, hello);

	if (peer->welcome_waits)
		welcome(peer);
	else
		peer_expel(peer, 0, -ETIMEDOUT, "no HELLO came");
}

/* The peer's process. The kernel's pidfd of whoever connected shows that the number was not given to another since. */
static int open_peer_process(struct peer *peer, struct process *process)
{
	struct process connected = PROCESS_NONE;
	socklen_t size = sizeof(connected.fd);
	int err;

	if (getsockopt(peer->watch.fd, SOL_SOCKET, SO_PEERPIDFD, &connected.fd, &size) && errno != ENOPROTOOPT)
		return -ESRCH;
	err = process_open(process, peer->who.pid);
	if (!err && connected.fd >= 0 && !process_alive(&connected)) {
		process_close(process);
		err = -ESRCH;
	}
	process_close(&connected);
	return err;
}

/* Finds out for whom this peer acts, see struct cudapool_hello. A negative errno, and why in *text, if it may not. */
static int attach_owner(struct peer *peer, const struct cudapool_hello *hello, const char **text)
{
	struct process self = PROCESS_NONE, parent = PROCESS_NONE, *owner = &self;
	int err = 0;

	peer->shares_pids = !open_peer_process(peer, &self) && process_shares_pids(&self);
	/* A tool may be anywhere, if it only asks how the pool is. */
	if (!peer->shares_pids && hello->role != CUDAPOOL_ROLE_TOOL) {
		*text = elsewhere;
		err = -EPERM;
		goto out;
	}
	if (hello->role == CUDAPOOL_ROLE_TOOL || (hello->role == CUDAPOOL_ROLE_DROPIN && !hello->owner_pid))
		goto out;
	if (hello->owner_pid && hello->owner_pid != self.pid) {
		owner = &parent;
		err = process_open(&parent, hello->owner_pid);
		if (err || process_parent(&self) != parent.pid) {
			*text = "the owner that HELLO names is not the parent of your process";
			err = -EPERM;
			goto out;
		}
	}
	/* A person's cuda-checkpoint: what it locks stays locked when the shell ends. */
	if (hello->role == CUDAPOOL_ROLE_DROPIN && !process_is_criu(owner))
		goto out;
	peer->client.plugin = hello->role == CUDAPOOL_ROLE_PLUGIN;
	peer->client.owner = session_attach(owner, peer->client.plugin);
	if (!peer->client.owner) {
		*text = "the pool is out of memory or descriptors";
		err = -ENOMEM;
		goto out;
	}
	peer->client.owner->streams = hello->streams;
	peer->client.owner->chunk_mb = hello->chunk_mb;
out:
	process_close(&self);
	process_close(&parent);
	return err;
}

static void on_hello(struct peer *peer, const struct cudapool_hello *hello)
{
	const char *text = "";
	struct link_info info;
	int err;

	if (peer->greeted) {
		peer_expel(peer, hello->h.request, -EPROTO, "HELLO came twice");
		return;
	}
	if (hello->role > CUDAPOOL_ROLE_DROPIN || hello->stage > CUDAPOOL_STAGE_RESTORE || hello->owner_pid < 0 ||
	    hello->wait_ms > max_wait_ms || hello->parallel > 1 || hello->streams > max_streams ||
	    hello->chunk_mb > max_chunk_mb || hello->reserved) {
		peer_expel(peer, hello->h.request, -EINVAL, "HELLO says what no client of this version says");
		return;
	}
	err = attach_owner(peer, hello, &text);
	if (err) {
		peer_expel(peer, hello->h.request, err, text);
		return;
	}
	peer->greeted = true;
	peer->client.dropin = hello->role == CUDAPOOL_ROLE_DROPIN;
	peer->client.dumps = hello->stage == CUDAPOOL_STAGE_DUMP;
	peer->streams = hello->streams;
	peer->chunk_mb = hello->chunk_mb;
	peer->hello_request = hello->h.request;
	loop_timer_cancel(&peer->hello);
	link_look_again();
	link_info(&info);
	if (info.state == CUDAPOOL_WORKER_STARTING && hello->wait_ms) {
		peer->welcome_waits = true;
		loop_timer_set(&peer->hello, hello->wait_ms);
	} else {
		welcome(peer);
	}
}

static void welcome_waiting(struct peer *peer)
{
	if (peer->welcome_waits)
		welcome(peer);
}

void request_worker_changed(void)
{
	struct link_info info;

	link_info(&info);
	if (info.state != CUDAPOOL_WORKER_STARTING)
		peers_each(welcome_waiting);
}

static void send_done(struct peer *peer, uint32_t request)
{
	struct cudapool_header done;

	peer_fill_header(&done, CUDAPOOL_MSG_DONE, sizeof(done), request);
	peer_send(peer, &done, sizeof(done));
}

/* ---- requests --------------------------------------------------------------------------------- */

static void send_result(struct peer *peer, uint32_t request, int pid, const struct operation *operation)
{
	struct cudapool_result message;

	memset(&message, 0, sizeof(message));
	peer_fill_header(&message.h, CUDAPOOL_MSG_RESULT, sizeof(message), request);
	message.op = operation->op;
	message.pid = pid;
	message.error = operation->error;
	message.cu_result = operation->cu_result;
	message.value = operation->value;
	message.elapsed_us = operation->elapsed_us;
	message.worker_generation = operation->generation;
	message.path = operation->path;
	message.parked_bytes = operation->parked_bytes;
	message.left_bytes = operation->left_bytes;
	memcpy(message.text, operation->text, sizeof(message.text));
	peer_send(peer, &message, sizeof(message));
}

static void answer(struct session_request *request, const struct operation *operation)
{
	struct peer *peer = request->context;

	LIST_REMOVE(request, link);
	peer->request_count--;
	requests_open--;
	send_result(peer, request->number, request->pid, operation);
}

static void on_action(struct peer *peer, const struct cudapool_action *message)
{
	struct operation failed = {.op = message->op};
	struct session_request *request;

	if (message->op < CUDAPOOL_OP_STATE || message->op > CUDAPOOL_OP_LAST || message->pid <= 0 ||
	    message->reserved || message->timeout_ms > TIMEOUT_MAX_MS) {
		peer_expel(peer, message->h.request, -EINVAL, "ACTION says what no client of this version says");
		return;
	}
	if (!peer->shares_pids) {
		peer_refuse(peer, message->h.request, -EPERM, "%s", elsewhere);
		return;
	}
	if (ending) {
		peer_refuse(peer, message->h.request, -ESHUTDOWN, "the pool is ending");
		return;
	}
	if (peer->request_count >= REQUESTS_MAX_OF_PEER || requests_open >= REQUESTS_MAX) {
		peer_refuse(peer, message->h.request, -EBUSY,
			    "too many actions at once: at most %d, and %d of all clients", REQUESTS_MAX_OF_PEER,
			    REQUESTS_MAX);
		return;
	}
	failed.error =
		session_start(&request, &peer->client, message->op, message->pid, message->timeout_ms);
	if (failed.error) {
		if (failed.error == -ESRCH)
			snprintf(failed.text, sizeof(failed.text), "there is no process %d", message->pid);
		else
			snprintf(failed.text, sizeof(failed.text), "process %d cannot be looked at: %s", message->pid,
				 strerror(-failed.error));
		send_result(peer, message->h.request, message->pid, &failed);
		return;
	}
	request->answer = answer;
	request->context = peer;
	request->number = message->h.request;
	LIST_INSERT_HEAD(&peer->requests, request, link);
	peer->request_count++;
	requests_open++;
}

static void undone(struct session_undo *undo, int error)
{
	struct peer *peer = container_of(undo, struct peer, undo);

	if (error)
		peer_refuse(peer, peer->undo_request, error,
			    "not every process could be given back: see cudapoold --status");
	else
		send_done(peer, peer->undo_request);
}

static void on_release(struct peer *peer, const struct cudapool_release *message)
{
	if (message->how > CUDAPOOL_RELEASE_GO_ON || message->reserved) {
		peer_expel(peer, message->h.request, -EINVAL, "RELEASE says what no client of this version says");
		return;
	}
	if (peer->undo.waiting) {
		peer_refuse(peer, message->h.request, -EBUSY, "an earlier RELEASE is under way");
		return;
	}
	if (peer->client.owner && message->how == CUDAPOOL_RELEASE_UNDO) {
		peer->undo_request = message->h.request;
		session_undo(peer->client.owner, &peer->undo);
		return;
	}
	peer->client.goes_on = message->how == CUDAPOOL_RELEASE_GO_ON;
	if (peer->client.owner && (message->how == CUDAPOOL_RELEASE_WATCH || peer->client.goes_on))
		session_watch(peer->client.owner);
	if (peer->client.owner && message->how == CUDAPOOL_RELEASE_KEEP)
		session_keep(peer->client.owner);
	send_done(peer, message->h.request);
}

/* ---- images ----------------------------------------------------------------------------------- */

static void send_found(struct peer *peer, uint32_t request, struct cudapool_found *found)
{
	peer_fill_header(&found->h, CUDAPOOL_MSG_FOUND, sizeof(*found), request);
	found->text[sizeof(found->text) - 1] = '\0';
	peer_send(peer, found, sizeof(*found));
}

static void end_finding(struct finding *finding)
{
	finding->under_way = false;
	store_cancel(&finding->waiter);
	if (finding->dir)
		store_dir_release(finding->dir);
	finding->dir = NULL;
}

static void use_dir(struct peer *peer, struct store_dir *dir, enum cudapool_hot hot)
{
	if (peer->client.dir)
		store_dir_release(peer->client.dir);
	peer->client.dir = dir;
	peer->client.hot = hot;
}

static void found_them(struct store_waiter *waiter, int error, const char *text)
{
	struct finding *finding = container_of(waiter, struct finding, waiter);
	struct peer *peer = container_of(finding, struct peer, finding);

	if (error) {
		finding->found.error = error;
		snprintf(finding->found.text, sizeof(finding->found.text), "%s",
			 text && text[0] ? text : strerror(-error));
	} else if (finding->dir && finding->images.purpose == CUDAPOOL_IMAGES_RESTORE) {
		use_dir(peer, finding->dir, finding->images.hot);
		finding->dir = NULL;
	}
	end_finding(finding);
	send_found(peer, finding->found.h.request, &finding->found);
}

/* False, and refused: a connection has one IMAGES or EVICT at a time. */
static bool begin_finding(struct peer *peer, uint32_t request)
{
	struct finding *finding = &peer->finding;

	if (finding->under_way) {
		peer_refuse(peer, request, -EBUSY, "an earlier IMAGES or EVICT is under way");
		return false;
	}
	*finding = (struct finding){.waiter.done = found_them, .under_way = true};
	finding->found.h.request = request;
	return true;
}

static void find_images(struct peer *peer, const struct cudapool_images *message, int fd)
{
	struct finding *finding = &peer->finding;

	finding->images = *message;
	finding->dir = store_open(fd, message, &finding->found, &finding->waiter);
	if (finding->dir) {
		store_dir_tune(finding->dir, peer->streams, peer->chunk_mb);
		return;
	}
	end_finding(finding);
	send_found(peer, message->h.request, &finding->found);
}

/* The pool writes and removes files there, so it has to be a directory of whoever asks. */
static const char *objection_to(const struct peer *peer, int fd)
{
	struct stat st;

	if (fstat(fd, &st) || !S_ISDIR(st.st_mode))
		return "what came with IMAGES is no directory";
	if (peer->who.uid && peer->who.uid != geteuid() && peer->who.uid != st.st_uid)
		return "the directory of images belongs to somebody else";
	return NULL;
}

static void on_images(struct peer *peer, const struct cudapool_images *message, int fd)
{
	struct cudapool_found found = {.error = 0};
	struct store_dir *dir;
	const char *text;

	if (message->purpose > CUDAPOOL_IMAGES_PREFETCH || message->tier > CUDAPOOL_TIER_STAGED || message->sync > 1 ||
	    message->hot > CUDAPOOL_HOT_OFF) {
		close(fd);
		peer_expel(peer, message->h.request, -EINVAL, "IMAGES says what no client of this version says");
		return;
	}
	text = objection_to(peer, fd);
	if (text) {
		close(fd);
		found.error = -EACCES;
		snprintf(found.text, sizeof(found.text), "%s", text);
		send_found(peer, message->h.request, &found);
		return;
	}
	if (!begin_finding(peer, message->h.request)) {
		close(fd);
		return;
	}
	if (message->purpose != CUDAPOOL_IMAGES_DUMP) {
		find_images(peer, message, fd);
		return;
	}
	end_finding(&peer->finding);
	dir = store_open(fd, message, &found, NULL);
	if (dir) {
		store_dir_tune(dir, peer->streams, peer->chunk_mb);
		use_dir(peer, dir, message->hot);
	}
	send_found(peer, message->h.request, &found);
}

static void on_evict(struct peer *peer, const struct cudapool_evict *message)
{
	if ((message->tier != CUDAPOOL_TIER_STAGED && message->tier != CUDAPOOL_TIER_COLD) || message->reserved) {
		peer_expel(peer, message->h.request, -EINVAL, "EVICT says what no client of this version says");
		return;
	}
	if (begin_finding(peer, message->h.request))
		store_evict(message, &peer->finding.found, &peer->finding.waiter);
}

/* ---- the pool itself ---------------------------------------------------------------------------- */

static void on_status(struct peer *peer, uint32_t request)
{
	static union {
		struct cudapool_header h;
		char bytes[CUDAPOOL_WIRE_MAX];
	} report;
	int length = report_write(report.bytes + sizeof(report.h), sizeof(report.bytes) - sizeof(report.h),
				  peer_count());

	if (length < 0) {
		peer_refuse(peer, request, length, "the report does not fit into one message");
		return;
	}
	/* The NUL travels with it. */
	peer_fill_header(&report.h, CUDAPOOL_MSG_REPORT, sizeof(report.h) + (size_t)length + 1, request);
	peer_send(peer, &report, report.h.length);
}

static void on_stop(struct peer *peer, uint32_t request)
{
	if (holding_count() || operations_count()) {
		peer_refuse(peer, request, -EBUSY,
			    "the pool holds %u processes and has %u actions under way: end their CRIU, or see "
			    "cudapoold --status",
			    holding_count(), operations_count());
		return;
	}
	send_done(peer, request);
	stop_pool();
}

void request_handle(struct peer *peer, const union request_message *message, int fd)
{
	switch (message->h.type) {
	case CUDAPOOL_MSG_HELLO:
		on_hello(peer, &message->hello);
		break;
	case CUDAPOOL_MSG_ACTION:
		on_action(peer, &message->action);
		break;
	case CUDAPOOL_MSG_RELEASE:
		on_release(peer, &message->release);
		break;
	case CUDAPOOL_MSG_IMAGES:
		on_images(peer, &message->images, fd);
		break;
	case CUDAPOOL_MSG_EVICT:
		on_evict(peer, &message->evict);
		break;
	case CUDAPOOL_MSG_STATUS:
		on_status(peer, message->h.request);
		break;
	case CUDAPOOL_MSG_STOP:
		on_stop(peer, message->h.request);
		break;
	}
}

/* ---- for peer.c and keeper.c -------------------------------------------------------------------- */

void request_peer_came(struct peer *peer)
{
	LIST_INIT(&peer->requests);
	peer->undo.done = undone;
	peer->client.hot = hot_default;
}

void request_peer_gone(struct peer *peer)
{
	struct session_request *request;

	while ((request = LIST_FIRST(&peer->requests))) {
		LIST_REMOVE(request, link);
		session_abandon(request);
		requests_open--;
	}
	session_undo_cancel(&peer->undo);
	end_finding(&peer->finding);
	if (peer->client.owner)
		session_detach(peer->client.owner, peer->client.plugin);
	if (peer->client.dir)
		store_dir_release(peer->client.dir);
	peer->client = (struct session_client){.owner = NULL};
}

void request_init(enum cudapool_hot hot, void (*stop)(void))
{
	hot_default = hot;
	stop_pool = stop;
}

void request_refuse_actions(void)
{
	ending = true;
}
