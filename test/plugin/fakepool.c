// SPDX-License-Identifier: MIT
/* A pool that speaks the wire protocol and does as a test says: refuses, hangs, dies at a given action. */
#include "fakestate.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "control_page.h"

#define CLIENTS_MAX 8
#define PENDING_MAX 128
#define FAULTS_MAX  8

enum fault_kind {
	FAULT_NONE,
	FAULT_REFUSE,    /* the driver says no */
	FAULT_OWN,       /* the pool says that it cannot */
	FAULT_DIE,       /* the pool ends before it acts */
	FAULT_DIE_AFTER, /* the pool ends after it acted, without an answer */
	FAULT_HANG,      /* no answer */
};
static const char *const fault_names[] = {"none", "refuse", "own", "die", "die-after", "hang"};

static struct fault {
	unsigned op;
	enum fault_kind kind;
	int nth;   /* which one; counts down */
	bool each; /* @each: every one */
} faults[FAULTS_MAX];
static int fault_count;

static struct pending {
	int fd;
	long long due_ms;
	struct cudapool_result result;
	enum fault_kind fault;
} pending[PENDING_MAX];
static int pending_count;

static int restore_ms, warm_ms = -1;
static unsigned devices = 1, version = CUDAPOOL_WIRE_VERSION, stage;
static bool failed;
static bool parks;	       /* LOCK parks what has a control page */
static bool forgets;	       /* SAVED: that nothing was parked */
static bool wrong_thread;      /* UNLOCK names a thread of another process */
static int images_error;       /* of FOUND */
static int image_directory = -1;
static long long started_ms;

static long long now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000ll + ts.tv_nsec / 1000000;
}

static int parse_fault(char *text)
{
	char *kind = strchr(text, ':'), *nth = kind ? strchr(kind + 1, '@') : NULL;
	struct fault *f = &faults[fault_count++];
	unsigned i;

	if (!kind || fault_count == FAULTS_MAX)
		return -1;
	*kind++ = '\0';
	if (nth)
		*nth++ = '\0';
	f->each = nth && strcmp(nth, "each") == 0;
	f->nth = nth ? atoi(nth) : 1;
	for (i = CUDAPOOL_OP_STATE; i <= CUDAPOOL_OP_LAST; i++)
		if (strcmp(fake_op_name(i), text) == 0)
			f->op = i;
	for (i = 1; i < sizeof(fault_names) / sizeof(*fault_names); i++)
		if (strcmp(fault_names[i], kind) == 0)
			f->kind = i;
	return f->op && f->kind ? 0 : -1;
}

static enum fault_kind fault_of(unsigned op)
{
	int i;

	for (i = 0; i < fault_count; i++)
		if (faults[i].op == op && (faults[i].each || --faults[i].nth == 0))
			return faults[i].kind;
	return FAULT_NONE;
}

static void answer(int fd, void *message, unsigned type, size_t length, uint32_t request)
{
	struct cudapool_header h = {CUDAPOOL_WIRE_MAGIC, version, type, length, request};

	memcpy(message, &h, sizeof(h));
	if (send(fd, message, length, MSG_NOSIGNAL) < 0)
		fake_note("log", "nobody takes the answer");
}

static void welcome(int fd, const struct cudapool_hello *hello)
{
	struct cudapool_welcome w = {
		.pool_pid = getpid(), .worker_pid = getpid(), .worker_generation = 1, .warm_device = -1};
	long long warm_at = started_ms + warm_ms, wait = warm_at - now_ms();

	fake_note("log", "hello role %u stage %u wait %u parallel %u streams %u chunk %u", hello->role, hello->stage,
		  hello->wait_ms, hello->parallel, hello->streams, hello->chunk_mb);
	stage = hello->stage;
	if (version != CUDAPOOL_WIRE_VERSION) {
		struct cudapool_error e = {.error = -EPROTONOSUPPORT, .build = "9.9.9", .text = "another version"};

		answer(fd, &e, CUDAPOOL_MSG_ERROR, sizeof(e), hello->h.request);
		return;
	}
	if (wait > hello->wait_ms)
		wait = hello->wait_ms;
	if (warm_ms > 0 && wait > 0)
		usleep(wait * 1000);
	if (failed) {
		w.worker_state = CUDAPOOL_WORKER_FAILED;
		strcpy(w.text, "there is no driver in this test");
	} else if (warm_ms <= 0 || now_ms() >= warm_at) {
		w.worker_state = CUDAPOOL_WORKER_WARM;
		w.device_count = devices;
		w.warm_device = 0;
		w.warm_context = 0xabcd00;
	}
	strcpy(w.build, "fake");
	answer(fd, &w, CUDAPOOL_MSG_WELCOME, sizeof(w), hello->h.request);
}

/* Takes the directory. Names and numbers images; a dump's are removed. */
static unsigned look_for_images(bool remove)
{
	DIR *dir = fdopendir(openat(image_directory, ".", O_RDONLY | O_CLOEXEC));
	struct dirent *entry;
	unsigned count = 0;

	while (dir && (entry = readdir(dir))) {
		if (strncmp(entry->d_name, "cudapool-", 9) != 0)
			continue;
		count++;
		if (remove)
			unlinkat(image_directory, entry->d_name, 0);
	}
	if (dir)
		closedir(dir);
	return count;
}

static void images(int fd, const struct cudapool_images *images, int directory)
{
	bool dump = images->purpose == CUDAPOOL_IMAGES_DUMP;
	struct cudapool_found found = {.error = images_error};

	fake_note("log", "images %s sync %u hot %u%s", dump ? "dump" : "restore", images->sync, images->hot,
		  directory < 0 ? ", and no directory" : "");
	if (image_directory >= 0)
		close(image_directory);
	image_directory = directory;
	found.count = look_for_images(dump);
	if (images_error) {
		strcpy(found.text, "the test wants no images");
		close(image_directory);
		image_directory = -1;
	}
	answer(fd, &found, CUDAPOOL_MSG_FOUND, sizeof(found), images->h.request);
}

/* What LOCK, CHECKPOINT, SAVED and UNLOCK do beyond the driver's part. */
static int park(struct cudapool_result *r)
{
	char name[64];
	int fd;

	switch (r->op) {
	case CUDAPOOL_OP_LOCK:
		if (!parks || image_directory < 0 || fake_set_park_state(r->pid, CUDAPOOL_PARK_PARKED)) {
			strcpy(r->text, "the test wants it so");
			return 0;
		}
		r->path = CUDAPOOL_PATH_PARKED;
		r->parked_bytes = 7ull << 20;
		r->left_bytes = 2ull << 20;
		return 0;
	case CUDAPOOL_OP_CHECKPOINT:
		r->path = fake_is_parked(r->pid) ? CUDAPOOL_PATH_PARKED : CUDAPOOL_PATH_STOCK;
		return 0;
	case CUDAPOOL_OP_SAVED:
		if (!fake_is_parked(r->pid) || forgets)
			return 0;
		r->path = CUDAPOOL_PATH_PARKED;
		snprintf(name, sizeof(name), "cudapool-%d.img", r->pid);
		fd = openat(image_directory, name, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
		if (fd < 0)
			return -1;
		close(fd);
		return 0;
	case CUDAPOOL_OP_UNLOCK:
	case CUDAPOOL_OP_SHIM:
		r->value = fake_is_parked(r->pid) ? wrong_thread ? 1 : fake_shim_tid(r->pid) : 0;
		return 0;
	case CUDAPOOL_OP_UNPARK:
		r->path = stage == CUDAPOOL_STAGE_DUMP ? CUDAPOOL_PATH_RETURNED : CUDAPOOL_PATH_LOADED;
		r->parked_bytes = 7ull << 20;
		return 0;
	}
	return 0;
}

static void begin(int fd, const struct cudapool_action *a)
{
	struct pending *p = &pending[pending_count];

	fake_note("log", "%s %d limit %u", fake_op_name(a->op), a->pid, a->timeout_ms);
	if (pending_count == PENDING_MAX)
		abort();
	*p = (struct pending){.fd = fd, .due_ms = now_ms(), .fault = fault_of(a->op)};
	p->result =
		(struct cudapool_result){.h.request = a->h.request, .op = a->op, .pid = a->pid, .worker_generation = 1};
	if (p->fault == FAULT_DIE)
		exit(0);
	if (p->fault == FAULT_HANG)
		return;
	if (a->op == CUDAPOOL_OP_RESTORE)
		p->due_ms += restore_ms;
	pending_count++;
}

static void finish(struct pending *p)
{
	struct cudapool_result *r = &p->result;
	int ret = 0;

	if (p->fault == FAULT_REFUSE || p->fault == FAULT_OWN) {
		r->error = p->fault == FAULT_OWN ? -EIO : -EREMOTEIO;
		if (r->op == CUDAPOOL_OP_LOCK && parks)
			r->path = CUDAPOOL_PATH_PARKED;
		snprintf(r->text, sizeof(r->text), "the test wants %s of %d to fail", fake_op_name(r->op), r->pid);
	} else if (r->op == CUDAPOOL_OP_STATE || r->op == CUDAPOOL_OP_RESTORE_TID) {
		r->value = r->op == CUDAPOOL_OP_STATE ? fake_state(r->pid) : fake_restore_tid(r->pid);
		ret = fake_is_cuda(r->pid) && r->value >= 0 ? 0 : -1;
	} else if (r->op == CUDAPOOL_OP_SHIM || r->op == CUDAPOOL_OP_SAVED) {
		ret = park(r);
	} else {
		ret = fake_act(r->op, r->pid) ? -1 : park(r);
	}
	if (p->fault == FAULT_DIE_AFTER)
		exit(0);
	if (ret) {
		r->error = -EREMOTEIO;
		snprintf(r->text, sizeof(r->text), "%s of %d: not in this state", fake_op_name(r->op), r->pid);
	}
	if (r->op >= CUDAPOOL_OP_LOCK)
		fake_note("log", "%s %d %s", fake_op_name(r->op), r->pid, r->error ? "failed" : "done");
	answer(p->fd, r, CUDAPOOL_MSG_RESULT, sizeof(*r), r->h.request);
}

static bool serve(int fd)
{
	union {
		struct cudapool_header h;
		struct cudapool_hello hello;
		struct cudapool_action action;
		struct cudapool_release release;
		struct cudapool_images images;
		char bytes[CUDAPOOL_WIRE_MAX];
	} m;
	union {
		struct cmsghdr h;
		char bytes[CMSG_SPACE(sizeof(int))];
	} control = {};
	struct iovec data = {&m, sizeof(m)};
	struct msghdr message = {
		.msg_iov = &data, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control)};
	ssize_t n = recvmsg(fd, &message, MSG_CMSG_CLOEXEC);
	int attached = -1;

	if (n < (ssize_t)sizeof(m.h))
		return false;
	if (message.msg_controllen >= CMSG_LEN(sizeof(int)))
		memcpy(&attached, CMSG_DATA(&control.h), sizeof(attached));
	switch (m.h.type) {
	case CUDAPOOL_MSG_HELLO:
		welcome(fd, &m.hello);
		return true;
	case CUDAPOOL_MSG_ACTION:
		begin(fd, &m.action);
		return true;
	case CUDAPOOL_MSG_IMAGES:
		images(fd, &m.images, attached);
		return true;
	case CUDAPOOL_MSG_RELEASE:
		fake_note("log", "release %u", m.release.how);
		answer(fd, &m, CUDAPOOL_MSG_DONE, sizeof(m.h), m.h.request);
		return true;
	}
	return false;
}

static int run(const char *path)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	struct pollfd fds[1 + CLIENTS_MAX];
	int count = 1, i;

	unlink(path);
	strcpy(address.sun_path, path);
	fds[0] = (struct pollfd){.fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0), .events = POLLIN};
	if (bind(fds[0].fd, (struct sockaddr *)&address, sizeof(address)) || listen(fds[0].fd, 8))
		return 1;
	for (;;) {
		poll(fds, count, pending_count ? 1 : 1000);
		for (i = 1; i < count; i++) {
			if (!fds[i].revents || serve(fds[i].fd))
				continue;
			fake_note("log", "bye");
			close(fds[i].fd);
			fds[i--] = fds[--count];
		}
		if ((fds[0].revents & POLLIN) && count <= CLIENTS_MAX)
			fds[count++] =
				(struct pollfd){.fd = accept4(fds[0].fd, NULL, NULL, SOCK_CLOEXEC), .events = POLLIN};
		for (i = 0; i < pending_count; i++) {
			if (pending[i].due_ms > now_ms())
				continue;
			finish(&pending[i]);
			pending[i--] = pending[--pending_count];
		}
	}
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{"fault", required_argument, NULL, 'f'},   {"restore-ms", required_argument, NULL, 'r'},
		{"warm-ms", required_argument, NULL, 'w'}, {"devices", required_argument, NULL, 'd'},
		{"version", required_argument, NULL, 'v'}, {"failed", no_argument, NULL, 'x'},
		{"socket", required_argument, NULL, 's'},  {"foreground", no_argument, NULL, 'g'},
		{"idle", required_argument, NULL, 'i'},    {"park", no_argument, NULL, 'p'},
		{"images-error", no_argument, NULL, 'e'},  {"wrong-thread", no_argument, NULL, 't'},
		{"forgets", no_argument, NULL, 'F'},
		{},
	};
	const char *path = NULL;
	int option;

	signal(SIGPIPE, SIG_IGN);
	started_ms = now_ms();
	while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (option) {
		case 'f':
			if (parse_fault(optarg))
				return 2;
			break;
		case 'r':
			restore_ms = atoi(optarg);
			break;
		case 'w':
			warm_ms = atoi(optarg);
			break;
		case 'd':
			devices = atoi(optarg);
			break;
		case 'v':
			version = atoi(optarg);
			break;
		case 'x':
			failed = true;
			break;
		case 'p':
			parks = true;
			break;
		case 't':
			wrong_thread = true;
			break;
		case 'F':
			forgets = true;
			break;
		case 'e':
			images_error = -EBADMSG;
			break;
		case 's':
			path = optarg;
			break;
		case 'g': /* these two come from the plugin, when it starts a pool */
			break;
		case 'i':
			fake_note("log", "started with idle %s", optarg);
			break;
		default:
			return 2;
		}
	}
	alarm(60); /* a test that forgets it leaves nothing behind */
	return path ? run(path) : 2;
}
