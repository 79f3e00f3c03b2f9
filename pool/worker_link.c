// SPDX-License-Identifier: MIT
/* The keeper's side of the worker: starts it, watches its heart, replaces it. */
#include "worker_link.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/pidfd.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "log.h"
#include "loop.h"
#include "rights.h"
#include "status.h"

#define BEAT_MS        1000  /* between two heartbeats */
#define BEATS_MISSED   4     /* unanswered in a row: the worker hangs */
#define LOADING_MS     90000 /* for cuInit; eight cold GPUs take two seconds */
#define BACKOFF_MS     100   /* before the second replacement in a row; doubles up to: */
#define BACKOFF_MAX_MS 10000
#define STEADY_MS      60000 /* a worker that lasted so long was a good one: the back-off starts anew */
#define LOADING_DEATHS 5     /* in a row before cuInit was done: the driver is not usable */
#define LOOK_AGAIN_MS  3000  /* between two looks for a driver that was not usable */
#define REAP_MS        100   /* given to a killed worker to disappear; longer only if it is stuck in the kernel */
#define ABANDONED_MAX  8     /* killed workers that were stuck so */
#define WAITING_MAX    128   /* messages without descriptors that wait for room: actions, heartbeats */
#define CROWDED_MS     5     /* before another attempt where too many descriptors were under way */

static struct {
	struct link_config config;
	int pid, pidfd;            /* 0: none */
	struct loop_watch socket;  /* .fd is -1 while there is none */
	struct loop_timer beat;    /* while there is a worker */
	struct loop_timer restart; /* while one is due */
	struct loop_timer crowded; /* descriptors were refused: try again */
	struct worker_message waiting[WAITING_MAX];
	unsigned waiting_count;
	bool wants_room; /* link_send_job() was refused */
	struct worker_message at;  /* the last WORKER_STAGE, or what stands for it */
	uint64_t started_ms;
	unsigned unanswered; /* heartbeats */
	unsigned generation, replaced, in_a_row, loading_deaths;
	int abandoned[ABANDONED_MAX];
} worker = {.socket.fd = -1};

static void start_worker(void);

static void reap_abandoned(void)
{
	size_t i;

	for (i = 0; i < ABANDONED_MAX; i++)
		if (worker.abandoned[i] && waitpid(worker.abandoned[i], NULL, WNOHANG))
			worker.abandoned[i] = 0;
}

/* Kills the worker if it still lives. Its wait status, or -1 if the kernel does not let go of it. */
static int kill_and_reap(int wait_ms)
{
	struct pollfd poll_fd = {.fd = worker.pidfd, .events = POLLIN};
	int status = -1;
	size_t i;

	kill(worker.pid, SIGKILL); /* not reaped yet, so the number is still its own; too late if it is dead already */
	poll(&poll_fd, 1, wait_ms);
	reap_abandoned();
	if (waitpid(worker.pid, &status, WNOHANG) == 0) {
		status = -1;
		for (i = 0; i < ABANDONED_MAX - 1 && worker.abandoned[i]; i++)
			;
		worker.abandoned[i] = worker.pid;
	}
	close(worker.pidfd);
	worker.pid = 0;
	return status;
}

static void close_socket(void)
{
	loop_unwatch(&worker.socket);
	if (worker.socket.fd >= 0)
		close(worker.socket.fd);
	worker.socket.fd = -1;
	worker.waiting_count = 0;
	worker.wants_room = false;
	loop_timer_cancel(&worker.beat);
	loop_timer_cancel(&worker.crowded);
}

/* There is no usable driver: worker.at.text says why. Everyone is told so until somebody has us look again. */
static void no_driver(void)
{
	worker.at.stage = WORKER_FAILED;
	worker.at.contexts = 0;
	worker.at.warm_context = 0;
	worker.at.warm_device = -1;
	cudapool_log(CUDAPOOL_LOG_ERR, "%s", worker.at.text);
	status_error("%s", worker.at.text);
	worker.config.changed();
}

static void describe_end(int status, const char *what, char *text, size_t size)
{
	if (status >= 0 && WIFSIGNALED(status) && !strcmp(what, "died"))
		snprintf(text, size, "worker %d died of signal %d (%s)", worker.generation, WTERMSIG(status),
			 strsignal(WTERMSIG(status)));
	else if (status >= 0 && WIFEXITED(status))
		snprintf(text, size, "worker %d ended with status %d", worker.generation, WEXITSTATUS(status));
	else
		snprintf(text, size, "worker %d %s and was killed%s", worker.generation, what,
			 status < 0 ? "; the kernel does not let go of it yet" : "");
}

/* Whatever became of the worker: buries it, decides when the next one starts, and only then tells the others. */
static void lose_worker(const char *what)
{
	bool loading = worker.at.stage == WORKER_LOADING;
	uint64_t lasted_ms = loop_now_ms() - worker.started_ms, delay_ms;
	char text[CUDAPOOL_TEXT_LEN];

	close_socket();
	describe_end(kill_and_reap(REAP_MS), what, text, sizeof(text));
	cudapool_log(CUDAPOOL_LOG_ERR, "%s", text);
	status_error("%s", text);

	worker.replaced++;
	worker.at = (struct worker_message){.warm_device = -1};
	worker.loading_deaths = loading ? worker.loading_deaths + 1 : 0;
	if (worker.loading_deaths >= LOADING_DEATHS) {
		worker.loading_deaths = 0;
		snprintf(worker.at.text, sizeof(worker.at.text),
			 "the CUDA driver cannot be initialised (%.100s, %d times in a row): see nvidia-smi and the "
			 "kernel's log",
			 text, LOADING_DEATHS);
		worker.config.lost(what);
		no_driver();
		return;
	}
	if (lasted_ms >= STEADY_MS)
		worker.in_a_row = 0;
	delay_ms = worker.in_a_row ? (uint64_t)BACKOFF_MS << (worker.in_a_row - 1) : 0;
	if (delay_ms < BACKOFF_MAX_MS)
		worker.in_a_row++;
	else
		delay_ms = BACKOFF_MAX_MS;
	loop_timer_set(&worker.restart, delay_ms);
	worker.config.lost(what);
	worker.config.changed();
}

static void restart_due(struct loop_timer *timer)
{
	start_worker();
}

static void heartbeat(struct loop_timer *timer)
{
	struct worker_message ping = {.kind = WORKER_PING};

	if (worker.at.stage == WORKER_LOADING && loop_now_ms() - worker.started_ms > LOADING_MS) {
		lose_worker("hung while it initialised the driver");
		return;
	}
	if (worker.unanswered >= BEATS_MISSED) {
		lose_worker("did not answer");
		return;
	}
	worker.unanswered++;
	loop_timer_set(timer, BEAT_MS);
	link_send(&ping); /* where that fails, the next but few beats find the worker silent */
}

static void stage_reached(const struct worker_message *message)
{
	worker.at = *message;
	worker.at.text[sizeof(worker.at.text) - 1] = '\0';
	if (message->stage == WORKER_FAILED) {
		close_socket();
		kill_and_reap(REAP_MS);
		no_driver();
		return;
	}
	worker.loading_deaths = 0;
	cudapool_log(CUDAPOOL_LOG_INFO, "worker %u: %s after %llu ms: driver %u, %u devices, %u warm contexts%s%s",
		     worker.generation, message->stage == WORKER_WARM ? "warm" : "driver initialised",
		     (unsigned long long)message->warm_us / 1000, message->driver_version, message->devices,
		     message->contexts, worker.at.text[0] ? "; " : "", worker.at.text);
	worker.config.changed();
}

/* One packet. 0 or a negative errno; -EAGAIN: no room; -ETOOMANYREFS: too many descriptors under way. */
static int send_packet(const struct worker_message *message, const int *fds, unsigned count)
{
	return rights_send(worker.socket.fd, message, sizeof(*message), fds, count, MSG_DONTWAIT);
}

/* What waited goes first; then whoever was refused may try again. */
static void send_waiting(void)
{
	unsigned sent = 0;

	while (sent < worker.waiting_count && !send_packet(&worker.waiting[sent], NULL, 0))
		sent++;
	worker.waiting_count -= sent;
	memmove(worker.waiting, worker.waiting + sent, worker.waiting_count * sizeof(worker.waiting[0]));
	if (worker.waiting_count)
		return;
	loop_watch(&worker.socket, EPOLLIN);
	if (worker.wants_room) {
		worker.wants_room = false;
		worker.config.room();
	}
}

static void no_longer_crowded(struct loop_timer *timer)
{
	send_waiting();
}

static void message_came(struct worker_message *message, const int *fds, unsigned count)
{
	message->text[sizeof(message->text) - 1] = '\0';
	if (message->kind == WORKER_PONG) {
		worker.unanswered = 0;
	} else if (message->kind == WORKER_STAGE) {
		stage_reached(message);
	} else if (message->kind == WORKER_RESULT && message->op <= CUDAPOOL_OP_LAST) {
		worker.config.result(message);
	} else {
		worker.config.job(message, fds, count);
		return;
	}
	rights_close(fds, count);
}

static void socket_ready(struct loop_watch *watch, uint32_t events)
{
	struct worker_message message;
	int fds[WORKER_BATCH];
	struct rights came = {.fds = fds, .most = WORKER_BATCH};
	ssize_t n;

	if (events & EPOLLOUT) {
		send_waiting();
		return; /* the loop comes back for what else there is */
	}
	n = rights_receive(watch->fd, &message, sizeof(message), &came, MSG_DONTWAIT);
	if (n == sizeof(message)) {
		/* Where some descriptors were lost, the job that they belong to sees that they are missing. */
		message_came(&message, fds, came.count);
	} else if (n != -EAGAIN && n != -EINTR) {
		rights_close(fds, came.count);
		lose_worker("died");
	}
}

/* In the child. The binary is executed anew so that the driver meets a process that is nobody's copy. */
static _Noreturn void become_worker(int fd, int keeper)
{
	char fd_text[16];
	sigset_t none;

	snprintf(fd_text, sizeof(fd_text), "%d", fd);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	signal(SIGPIPE, SIG_DFL);
	signal(SIGHUP, SIG_DFL);
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != keeper)
		_exit(1); /* the keeper died before the line above */
	fcntl(fd, F_SETFD, 0);
	unsetenv("LD_PRELOAD"); /* the shim would take the worker for an application */
	execl("/proc/self/exe", "cudapoold", "--worker", fd_text, NULL);
	_exit(1);
}

static void start_worker(void)
{
	int keeper = getpid(), pair[2] = {-1, -1}, err;

	worker.at = (struct worker_message){.warm_device = -1};
	worker.started_ms = loop_now_ms();
	worker.unanswered = 0;
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair))
		goto fail;
	worker.pid = fork();
	if (worker.pid < 0)
		goto fail;
	if (worker.pid == 0)
		become_worker(pair[1], keeper);
	close(pair[1]);
	worker.generation++;
	worker.socket = (struct loop_watch){.fd = pair[0], .ready = socket_ready};
	worker.pidfd = pidfd_open(worker.pid, 0);
	loop_watch(&worker.socket, EPOLLIN);
	worker.beat.fire = heartbeat;
	loop_timer_set(&worker.beat, BEAT_MS);
	return;
fail:
	err = errno;
	worker.pid = 0;
	if (pair[0] >= 0) {
		close(pair[0]);
		close(pair[1]);
	}
	snprintf(worker.at.text, sizeof(worker.at.text), "cannot start a worker: %s", strerror(err));
	no_driver();
}

void link_init(const struct link_config *config)
{
	worker.config = *config;
	worker.restart.fire = restart_due;
	loop_timer_set(&worker.restart, 0);
}

bool link_send(const struct worker_message *message)
{
	if (worker.socket.fd < 0)
		return false;
	if (!worker.waiting_count) {
		switch (send_packet(message, NULL, 0)) {
		case 0:
			return true;
		case -EAGAIN:
			break;
		default:
			return false;
		}
	}
	if (worker.waiting_count == WAITING_MAX)
		return false;
	worker.waiting[worker.waiting_count++] = *message;
	loop_watch(&worker.socket, EPOLLIN | EPOLLOUT);
	return true;
}

int link_send_job(const struct worker_message *message, const int *fds, unsigned count)
{
	int err;

	if (worker.socket.fd < 0)
		return -ENOTCONN;
	err = worker.waiting_count ? -EAGAIN : send_packet(message, fds, count);
	if (err == -EPIPE || err == -ECONNRESET)
		return -ENOTCONN; /* it died, and the loop will say so */
	if (err == -ETOOMANYREFS) {
		worker.crowded.fire = no_longer_crowded;
		loop_timer_set(&worker.crowded, CROWDED_MS);
		err = -EAGAIN;
	} else if (err == -EAGAIN) {
		loop_watch(&worker.socket, EPOLLIN | EPOLLOUT);
	}
	if (err == -EAGAIN)
		worker.wants_room = true;
	return err;
}

void link_replace(const char *what)
{
	if (worker.pid)
		lose_worker(what);
}

void link_look_again(void)
{
	if (worker.at.stage != WORKER_FAILED || loop_now_ms() - worker.started_ms < LOOK_AGAIN_MS)
		return;
	start_worker();
}

void link_info(struct link_info *info)
{
	const struct worker_message *at = &worker.at;

	*info = (struct link_info){
		.state = at->stage == WORKER_WARM     ? CUDAPOOL_WORKER_WARM
			 : at->stage == WORKER_FAILED ? CUDAPOOL_WORKER_FAILED
						      : CUDAPOOL_WORKER_STARTING,
		.ready = at->stage == WORKER_READY || at->stage == WORKER_WARM,
		.pid = worker.pid,
		.generation = worker.generation,
		.replaced = worker.replaced,
		.driver_version = at->driver_version,
		.devices = at->devices,
		.contexts = at->contexts,
		.warm_device = at->contexts ? at->warm_device : -1,
		.warm_context = at->warm_context,
		.warm_us = at->warm_us,
		.text = at->text,
	};
}

void link_stop(void)
{
	loop_timer_cancel(&worker.restart);
	if (!worker.pid)
		return;
	close_socket();
	kill_and_reap(1000);
}
