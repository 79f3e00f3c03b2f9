// SPDX-License-Identifier: MIT
/* The keeper: the process that clients talk to. It never calls CUDA, has one thread, and is small enough to be trusted.
 */
#include "keeper.h"

#include <errno.h>
#include <grp.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "action.h"
#include "build.h"
#include "deposit.h"
#include "holding.h"
#include "listener.h"
#include "log.h"
#include "loop.h"
#include "notify.h"
#include "operation.h"
#include "peer.h"
#include "report.h"
#include "request.h"
#include "session.h"
#include "status.h"
#include "store.h"
#include "undo.h"
#include "worker_link.h"

#define END_MS       10000 /* for what is under way, at the end */
#define SAVE_MS      120000 /* and for images of memory that is nowhere else */
#define END_STEP_MS  20
#define IDLE_STEP_MS 500
#define PAUSE_MS     200 /* without accepting, when descriptors ran out */

/*
 * Who calls whom, from the outside in: keeper accepts; peer and request speak with clients; session knows the rules,
 * undo gives back, operation puts together what is asked for; park speaks with shims, store has the memory, holding
 * keeps book of who owns what, deposit leaves with systemd what must outlive this process; action and worker_link have
 * things done. Answers come back by callbacks, which are set
 * here.
 */
static struct listener listener;
static struct loop_watch accepting, signals;
static struct loop_timer pause_over, idle_look, end_look;
static uint64_t busy_ms, end_ms; /* when it was last seen busy; when it has to have ended */
static uint64_t idle_limit_ms;

static bool acting(void)
{
	return operations_count() > 0;
}

/* ---- ending ----------------------------------------------------------------------------------- */

static void look_for_end(struct loop_timer *timer)
{
	uint64_t now = loop_now_ms();

	if ((acting() && now < end_ms) || (holding_unsaved() && now < end_ms - END_MS + SAVE_MS)) {
		loop_timer_set(timer, END_STEP_MS);
		return;
	}
	if (holding_unsaved())
		status_error("the memory of %u processes %s: no complete image after %u s", holding_unsaved(),
			     deposits_possible() ? "stays with systemd for the next pool" : "is lost with this pool",
			     SAVE_MS / 1000);
	loop_quit();
}

/* What is held stays held, in the journal, for the next keeper; what is under way gets its time. */
static void begin_end(const char *why)
{
	if (end_ms)
		return;
	cudapool_log(CUDAPOOL_LOG_INFO, "ending: %s%s", why,
		     holding_count() ? "; what is held stays so until a pool starts on this socket again" : "");
	notify_send("STOPPING=1", -1);
	loop_unwatch(&accepting);
	request_refuse_actions();
	end_ms = loop_now_ms() + END_MS;
	loop_timer_set(&end_look, 0);
}

static void stop_asked_for(void)
{
	begin_end("a client said STOP");
}

static void signal_came(struct loop_watch *watch, uint32_t events)
{
	struct signalfd_siginfo info;

	if (read(watch->fd, &info, sizeof(info)) != sizeof(info))
		return;
	if (end_ms)
		loop_quit(); /* the second time: now */
	else
		begin_end(info.ssi_signo == SIGINT ? "interrupted" : "terminated");
}

static void look_for_idleness(struct loop_timer *timer)
{
	uint64_t now = loop_now_ms();

	if (peer_count() || holding_count() || acting())
		busy_ms = now;
	if (now - busy_ms >= idle_limit_ms)
		begin_end("nobody needed it for the idle time");
	else
		loop_timer_set(timer, IDLE_STEP_MS);
}

/* ---- accepting -------------------------------------------------------------------------------- */

static void accept_again(struct loop_timer *timer)
{
	if (!end_ms)
		loop_watch(&accepting, EPOLLIN);
}

static void connection_came(struct loop_watch *watch, uint32_t events)
{
	int fd = accept4(watch->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);

	if (fd >= 0) {
		busy_ms = loop_now_ms();
		peer_accept(fd);
	} else if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
		/* The connection stays in the queue; looking at it again at once would only burn time. */
		loop_unwatch(watch);
		loop_timer_set(&pause_over, PAUSE_MS);
		status_error("no connection can be accepted: %s", strerror(errno));
	}
}

/* ---- starting --------------------------------------------------------------------------------- */

static int watch_signals(void)
{
	sigset_t set;

	signal(SIGPIPE, SIG_IGN);
	signal(SIGHUP, SIG_IGN);
	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	if (sigprocmask(SIG_SETMASK, &set, NULL))
		return -errno;
	signals = (struct loop_watch){.fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK), .ready = signal_came};
	return signals.fd < 0 ? -errno : loop_watch(&signals, EPOLLIN);
}

/* Each connection, request and held process needs a descriptor or two, and each piece of parked memory one. */
static void raise_descriptor_limit(void)
{
	struct rlimit limit;

	if (getrlimit(RLIMIT_NOFILE, &limit))
		return;
	limit.rlim_cur = limit.rlim_max;
	setrlimit(RLIMIT_NOFILE, &limit);
}

static gid_t find_group(const char *name)
{
	struct group *group = name[0] ? getgrnam(name) : NULL;

	return group ? group->gr_gid : (gid_t)-1;
}

static void worker_changed(void)
{
	actions_worker_changed();
	store_worker_changed();
	request_worker_changed();
}

static void worker_lost(const char *what)
{
	actions_worker_lost(what);
	store_worker_lost(what);
}

static void give_back(struct holding *holding, bool failed_dump)
{
	undo_release(holding, false, failed_dump);
}

/* How the parts hear of each other. 0, or a negative errno and why. */
static int join_parts(const struct cudapool_options *options, gid_t group, char *text, size_t size)
{
	struct holding_hooks hooks = {
		.died = operation_process_died,
		.idle = undo_continue,
		.dropped = undo_dropped,
		.left = session_holding_left,
	};
	struct operation_config operations = {
		.park = options->park,
		.action_limit_s = options->action_limit_s,
		.give_back = give_back,
	};
	struct link_config link = {
		.changed = worker_changed,
		.result = actions_result,
		.job = store_worker_message,
		.room = store_worker_room,
		.lost = worker_lost,
	};
	char hot_text[CUDAPOOL_TEXT_LEN];
	int hot = cudapool_options_hot(options, hot_text), err;

	if (hot < 0) {
		snprintf(text, size, "%s", hot_text);
		return hot;
	}
	actions_init(options->threads, options->action_limit_s);
	err = store_init(options);
	if (err) {
		snprintf(text, size, "parked memory cannot be kept: %s", strerror(-err));
		return err;
	}
	holding_init(&hooks);
	operations_init(&operations);
	session_init();
	peers_init(group);
	request_init((enum cudapool_hot)hot, stop_asked_for);
	link_init(&link);
	return 0;
}

static int start(const struct cudapool_options *options, gid_t group, char *text, size_t size)
{
	char journal[sizeof(listener.path) + 16];
	int err = join_parts(options, group, text, size);

	if (err)
		return err;
	snprintf(journal, sizeof(journal), "%s.journal", listener.path);
	deposits_init();
	err = holding_recover(journal);
	if (err) {
		snprintf(text, size, "the journal %s cannot be used: %s", journal, strerror(-err));
		return err;
	}
	deposits_discard();
	pause_over.fire = accept_again;
	end_look.fire = look_for_end;
	idle_look.fire = look_for_idleness;
	busy_ms = loop_now_ms();
	idle_limit_ms = (uint64_t)options->idle_s * 1000;
	if (idle_limit_ms)
		loop_timer_set(&idle_look, IDLE_STEP_MS);
	accepting = (struct loop_watch){.fd = listener.fd, .ready = connection_came};
	return loop_watch(&accepting, EPOLLIN);
}

int keeper_run(const struct cudapool_options *options, void (*ready)(void), char *text, size_t size)
{
	gid_t group = find_group(options->group);
	int err;

	raise_descriptor_limit();
	err = listener_open(&listener, options->socket, group);
	if (err) {
		snprintf(text, size, "%s", listener.text);
		return err;
	}
	report_init(listener.path);
	err = loop_init();
	if (!err)
		err = watch_signals();
	if (err)
		snprintf(text, size, "cannot start: %s", strerror(-err));
	else
		err = start(options, group, text, size);
	if (!err) {
		cudapool_log(CUDAPOOL_LOG_INFO, "cudapoold %s serves %s", build_name(), listener.path);
		ready();
		notify_send("READY=1", -1);
		err = loop_run();
		if (err)
			snprintf(text, size, "the event loop failed: %s", strerror(-err));
		link_stop();
	}
	listener_close(&listener);
	return err;
}
