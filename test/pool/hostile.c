// SPDX-License-Identifier: MIT
/* Peers that break the rules: each is answered or dropped, and an honest one beside them is served as ever. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "attach.h"
#include "message.h"
#include "random.h"
#include "tap.h"

static const char *path;
static int app_pid;

static int dial(void)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	struct timeval limit = {.tv_sec = 10};
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

	snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
	if (connect(fd, (struct sockaddr *)&address, sizeof(address))) {
		close(fd);
		return -1;
	}
	return fd;
}

static struct cudapool_header header(enum cudapool_msg_type type, size_t size, uint32_t request)
{
	return (struct cudapool_header){CUDAPOOL_WIRE_MAGIC, CUDAPOOL_WIRE_VERSION, type, (uint32_t)size, request};
}

static struct cudapool_hello hello_of(enum cudapool_role role)
{
	return (struct cudapool_hello){.h = header(CUDAPOOL_MSG_HELLO, sizeof(struct cudapool_hello), 1), .role = role};
}

static struct cudapool_action state_of(int pid, uint32_t request)
{
	return (struct cudapool_action){.h = header(CUDAPOOL_MSG_ACTION, sizeof(struct cudapool_action), request),
					.op = CUDAPOOL_OP_STATE,
					.pid = pid};
}

static bool say(int fd, const void *message, size_t size)
{
	return send(fd, message, size, MSG_NOSIGNAL) == (ssize_t)size;
}

/* The type of the next message; 0: the connection ended; -1: nothing came. */
static int hear(int fd, struct cudapool_error *error)
{
	union {
		struct cudapool_header h;
		struct cudapool_error error;
		char bytes[CUDAPOOL_WIRE_MAX];
	} message;
	ssize_t n = recv(fd, &message, sizeof(message), 0);

	if (n <= 0)
		return n == 0 || errno == ECONNRESET ? 0 : -1;
	if (error && message.h.type == CUDAPOOL_MSG_ERROR)
		*error = message.error;
	return message.h.type;
}

static int dial_and_greet(void)
{
	struct cudapool_hello hello = hello_of(CUDAPOOL_ROLE_PLUGIN);
	int fd = dial();

	if (fd >= 0 && (!say(fd, &hello, sizeof(hello)) || hear(fd, NULL) != CUDAPOOL_MSG_WELCOME)) {
		close(fd);
		return -1;
	}
	return fd;
}

static double now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double)ts.tv_sec * 1e3 + (double)ts.tv_nsec / 1e6;
}

/* An honest client gets its answer at once: no limit of those beside it (HELLO_MS and longer) is waited for. */
static void honest(const char *beside)
{
	struct cudapool_action action = state_of(app_pid, 2);
	double begin = now_ms(), took;
	int fd = dial_and_greet(), type;

	say(fd, &action, sizeof(action));
	type = hear(fd, NULL);
	took = now_ms() - begin;
	close(fd);
	ok(type == CUDAPOOL_MSG_RESULT && took < 4000, "an honest client is served beside %s (%.1f ms)", beside, took);
}

/* Sends one message on a fresh connection and expects ERROR with this errno, and then the end. */
static void expelled(bool greet, const void *message, size_t size, int error, const char *what)
{
	struct cudapool_error answer = {0};
	int fd = greet ? dial_and_greet() : dial(), first, second;

	say(fd, message, size);
	first = hear(fd, &answer);
	second = hear(fd, NULL);
	ok(first == CUDAPOOL_MSG_ERROR && answer.error == -error && second == 0 && answer.text[0] && answer.build[0],
	   "%s: %s (%s)", what, strerror(error), answer.text);
	close(fd);
}

static void wrong_messages(void)
{
	static char big[CUDAPOOL_WIRE_MAX + 5000];
	struct cudapool_hello hello = hello_of(CUDAPOOL_ROLE_PLUGIN), bad;
	struct cudapool_action action = state_of(app_pid, 3), odd;
	struct cudapool_release release = {.h = header(CUDAPOOL_MSG_RELEASE, sizeof(release), 4), .how = 9};
	struct cudapool_header bare;
	size_t i;

	for (i = 0; i < sizeof(big); i++)
		big[i] = (char)(i * 2654435761u >> 13);
	expelled(false, big, 1, EPROTO, "one byte");
	expelled(false, big, 100, EPROTO, "garbage");
	expelled(true, big, 16384, EPROTO, "garbage of the greatest length");
	expelled(true, big, sizeof(big), EPROTO, "more than the greatest length");
	memcpy(big, &action.h, sizeof(action.h));
	expelled(true, big, sizeof(big), EPROTO, "a good header and too much after it");
	expelled(true, &action, sizeof(action) - 1, EPROTO, "a truncated action");
	expelled(true, &action, sizeof(action.h), EPROTO, "an action without its body");
	expelled(false, &action, sizeof(action), EPROTO, "an action before HELLO");
	expelled(true, &hello, sizeof(hello), EPROTO, "HELLO twice");

	bad = hello;
	bad.h.version = CUDAPOOL_WIRE_VERSION + 1;
	expelled(false, &bad, sizeof(bad), EPROTONOSUPPORT, "another version");
	bad.h.length = 20;
	expelled(false, &bad, 20, EPROTONOSUPPORT, "another version with a shorter HELLO");
	bad = hello;
	bad.role = 77;
	expelled(false, &bad, sizeof(bad), EINVAL, "an unknown role");
	bad = hello;
	bad.wait_ms = 3600000;
	expelled(false, &bad, sizeof(bad), EINVAL, "waiting for an hour");
	bad = hello;
	bad.streams = 65;
	expelled(false, &bad, sizeof(bad), EINVAL, "65 streams");
	bad = hello;
	bad.chunk_mb = 1025;
	expelled(false, &bad, sizeof(bad), EINVAL, "chunks of 1025 MiB");
	bad = hello;
	bad.owner_pid = 1;
	expelled(false, &bad, sizeof(bad), EPERM, "an owner that is not the parent");

	odd = action;
	odd.op = 99;
	expelled(true, &odd, sizeof(odd), EINVAL, "an unknown action");
	odd = action;
	odd.pid = -1;
	expelled(true, &odd, sizeof(odd), EINVAL, "every process at once");
	odd = action;
	odd.h.length = 0x7fffffff;
	expelled(true, &odd, sizeof(odd), EPROTO, "a length that lies");
	odd = action;
	odd.h.type = CUDAPOOL_MSG_RESULT;
	expelled(true, &odd, sizeof(odd), EPROTO, "a message that only the pool sends");
	expelled(true, &release, sizeof(release), EINVAL, "an unknown way to release");
	bare = header(CUDAPOOL_MSG_STATUS, sizeof(bare), 5);
	bare.magic = 0;
	expelled(true, &bare, sizeof(bare), EPROTO, "no magic");
	honest("wrong messages");
}

/*
 * The same with `count` descriptors along with it, none of which the pool may keep. A message of no bytes looks like the
 * end, and gets no answer.
 */
static void expelled_with(bool greet, void *bytes, size_t size, unsigned count, const char *what)
{
	struct iovec iov = {bytes, size};
	char control[CMSG_SPACE(8 * sizeof(int))] = {0};
	struct msghdr message = {.msg_iov = &iov,
				 .msg_iovlen = 1,
				 .msg_control = control,
				 .msg_controllen = CMSG_SPACE(count * sizeof(int))};
	struct cmsghdr *c = CMSG_FIRSTHDR(&message);
	struct cudapool_error answer = {0};
	struct pollfd end = {.events = POLLIN};
	int fd = greet ? dial_and_greet() : dial(), ends[2], type;
	ssize_t sent;
	unsigned i;

	if (pipe(ends))
		return;
	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN(count * sizeof(int));
	for (i = 0; i < count; i++)
		memcpy(CMSG_DATA(c) + i * sizeof(int), &ends[1], sizeof(int));
	sent = sendmsg(fd, &message, MSG_NOSIGNAL);
	close(ends[1]);
	type = hear(fd, &answer);
	ok(sent == (ssize_t)size && type == (size ? CUDAPOOL_MSG_ERROR : 0) && answer.error == (size ? -EPROTO : 0),
	   "%s: refused (%s)", what, answer.text);
	end.fd = ends[0];
	ok(poll(&end, 1, 2000) == 1 && (end.revents & POLLHUP), "and the pool does not keep it");
	close(ends[0]);
	close(fd);
}

static void descriptors(void)
{
	struct cudapool_hello hello = hello_of(CUDAPOOL_ROLE_PLUGIN);
	struct cudapool_action action = state_of(app_pid, 3);
	struct cudapool_images images = {.h = header(CUDAPOOL_MSG_IMAGES, sizeof(images), 4)};
	struct cudapool_evict evict = {.h = header(CUDAPOOL_MSG_EVICT, sizeof(evict), 5), .tier = CUDAPOOL_TIER_STAGED};

	expelled_with(false, &hello, sizeof(hello), 1, "a descriptor along with HELLO");
	expelled_with(false, &hello, sizeof(hello), 8, "eight of them");
	expelled_with(true, &action, sizeof(action), 1, "a descriptor along with ACTION");
	expelled_with(true, &evict, sizeof(evict), 1, "a descriptor along with EVICT");
	expelled_with(true, &images, sizeof(images), 2, "two along with IMAGES");
	expelled_with(true, &images, sizeof(images) - 4, 1, "one along with half of IMAGES");
	expelled_with(true, &images, 0, 1, "one along with nothing");
	expelled(true, &images, sizeof(images), EPROTO, "IMAGES without a descriptor");
	evict.tier = CUDAPOOL_TIER_HOT;
	expelled(true, &evict, sizeof(evict), EINVAL, "EVICT to where it is");
	evict.tier = 77;
	expelled(true, &evict, sizeof(evict), EINVAL, "EVICT to an unknown tier");
}

/* Asks and asks and never reads. */
static void never_reading(void)
{
	struct cudapool_header status = header(CUDAPOOL_MSG_STATUS, sizeof(status), 1);
	struct timeval limit = {.tv_sec = 0, .tv_usec = 200000};
	int fd = dial_and_greet(), sent = 0, i;

	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
	for (i = 0; i < 20000 && say(fd, &status, sizeof(status)); i++)
		sent++;
	ok(sent < 20000 && (errno == EPIPE || errno == ECONNRESET), "who never reads is dropped (after %d questions)",
	   sent);
	honest("one who never reads");
	close(fd);
}

static void half_open(void)
{
	struct cudapool_action action = state_of(app_pid, 6);
	int fd = dial_and_greet();

	say(fd, &action, sizeof(action));
	shutdown(fd, SHUT_WR);
	while (hear(fd, NULL) > 0)
		;
	ok(hear(fd, NULL) == 0, "who closes its sending half is closed");
	close(fd);

	fd = dial_and_greet();
	shutdown(fd, SHUT_RD);
	say(fd, &action, sizeof(action));
	close(fd);
	honest("half-open connections");
}

/* More at once than one client may have: refused one by one, the connection lives. */
static void too_many_requests(void)
{
	struct cudapool_action action;
	struct cudapool_error error;
	int fd = dial_and_greet(), results = 0, refused = 0, i, type;

	for (i = 0; i < 200; i++) {
		action = state_of(app_pid, (uint32_t)i + 10);
		if (!say(fd, &action, sizeof(action)))
			break;
	}
	for (i = 0; i < 200; i++) {
		type = hear(fd, &error);
		results += type == CUDAPOOL_MSG_RESULT;
		refused += type == CUDAPOOL_MSG_ERROR && error.error == -EBUSY && error.h.request >= 10;
	}
	ok(results >= 64 && results + refused == 200, "200 actions at once: %d answered, %d refused", results, refused);
	action = state_of(app_pid, 7);
	say(fd, &action, sizeof(action));
	ok(hear(fd, NULL) == CUDAPOOL_MSG_RESULT, "and the connection lives");
	close(fd);
}

/* ---- at random --------------------------------------------------------------------------------- */

#define CONNECTIONS 300

union any_message {
	struct cudapool_header h;
	struct cudapool_hello hello;
	struct cudapool_action action;
	struct cudapool_release release;
	struct cudapool_images images;
	struct cudapool_evict evict;
	char bytes[512];
};

/* A message as clients send it, with a few of its fields as they should be; its length. */
static size_t random_message(union any_message *message)
{
	static const size_t sizes[] = {
		[CUDAPOOL_MSG_HELLO] = sizeof(struct cudapool_hello),
		[CUDAPOOL_MSG_ACTION] = sizeof(struct cudapool_action),
		[CUDAPOOL_MSG_RELEASE] = sizeof(struct cudapool_release),
		[CUDAPOOL_MSG_STATUS] = sizeof(struct cudapool_header),
		[CUDAPOOL_MSG_IMAGES] = sizeof(struct cudapool_images),
		[CUDAPOOL_MSG_EVICT] = sizeof(struct cudapool_evict),
	};
	unsigned type;

	do {
		type = (unsigned)(random_number() % (sizeof(sizes) / sizeof(sizes[0])));
	} while (!sizes[type]);
	memset(message, 0, sizeof(*message));
	message->h = header((enum cudapool_msg_type)type, sizes[type], (uint32_t)random_number());
	if (type == CUDAPOOL_MSG_ACTION)
		message->action.op = (uint32_t)(random_number() % (CUDAPOOL_OP_LAST + 2));
	if (type == CUDAPOOL_MSG_IMAGES)
		message->images.purpose = (uint32_t)(random_number() % 4);
	if (type == CUDAPOOL_MSG_EVICT)
		message->evict.tier = (uint32_t)(random_number() % 4);
	return sizes[type];
}

/*
 * With some bytes changed, or cut or longer. Of what it then says, three things must not happen to others, or to the
 * tests that follow: a process that is none of ours, a pool that ends, and one that keeps what it holds.
 */
static size_t harm(union any_message *message, size_t size)
{
	const int pids[] = {app_pid, app_pid, 0, -1, INT32_MAX, 4194305};
	unsigned flips = random_number() % 2 ? 0 : 1 + (unsigned)(random_number() % 3);

	while (flips--)
		message->bytes[random_number() % size] ^= (char)(1 + random_number() % 255);
	if (message->h.type == CUDAPOOL_MSG_ACTION)
		message->action.pid = pids[random_number() % (sizeof(pids) / sizeof(pids[0]))];
	if (message->h.type == CUDAPOOL_MSG_STOP)
		message->h.type = CUDAPOOL_MSG_STATUS;
	if (message->h.type == CUDAPOOL_MSG_RELEASE && message->release.how == CUDAPOOL_RELEASE_KEEP)
		message->release.how = CUDAPOOL_RELEASE_UNDO;
	return random_number() % 8 ? size : random_number() % sizeof(*message);
}

static bool say_with(int fd, void *bytes, size_t size, int along)
{
	struct iovec iov = {bytes, size};
	struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1};
	union cudapool_attached control;

	cudapool_attach(&message, &control, &along, along >= 0);
	return sendmsg(fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT) >= 0;
}

/* One connection: most begin with a good HELLO. A directory, a file, a pipe, or nothing comes along. */
static unsigned one_connection(const int along[4])
{
	union any_message message;
	unsigned count = 1 + (unsigned)(random_number() % 20), sent = 0;
	int fd = random_number() % 8 ? dial_and_greet() : dial();
	char answer[CUDAPOOL_WIRE_MAX];
	size_t size;

	while (fd >= 0 && count--) {
		size = random_message(&message);
		size = harm(&message, size);
		if (!say_with(fd, &message, size, message.h.type == CUDAPOOL_MSG_IMAGES || !(random_number() % 16)
							  ? along[random_number() % 4]
							  : -1))
			break;
		sent++;
		if (random_number() % 2)
			recv(fd, answer, sizeof(answer), MSG_DONTWAIT);
	}
	close(fd);
	return sent;
}

/* In a process of its own: what it has taken is given back when it ends. */
static void at_random(void)
{
	char directory[] = "/tmp/cudapool-hostile-XXXXXX";
	int along[4] = {-1, -1, -1, -1}, ends[2], status = -1, i;
	unsigned sent = 0;
	pid_t child;

	note("seed %llu", (unsigned long long)seed);
	if (!mkdtemp(directory) || pipe(ends))
		return;
	along[0] = along[1] = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	along[2] = open("/dev/null", O_RDWR | O_CLOEXEC);
	along[3] = ends[0];
	child = fork();
	if (child == 0) {
		for (i = 0; i < CONNECTIONS; i++)
			sent += one_connection(along);
		_exit(sent > 2 * CONNECTIONS ? 0 : 1);
	}
	waitpid(child, &status, 0);
	ok(WIFEXITED(status) && WEXITSTATUS(status) == 0, "%d connections say what comes to mind", CONNECTIONS);
	honest("those");
	close(along[0]);
	close(along[2]);
	close(ends[0]);
	close(ends[1]);
	rmdir(directory);
}

static void thousands(void)
{
	enum { MANY = 3000, OPEN = 300 };
	static int open_ones[OPEN];
	int i, fd, refused = 0;
	struct cudapool_error error;

	for (i = 0; i < MANY; i++) {
		fd = dial();
		if (fd < 0)
			break;
		close(fd);
	}
	ok(i == MANY, "%d connections that say nothing come and go", i);
	honest("the last of them");

	for (i = 0; i < OPEN; i++)
		open_ones[i] = dial();
	for (i = 0; i < OPEN; i++) {
		struct pollfd poll_fd = {.fd = open_ones[i], .events = POLLIN};

		/* Who is let in hears nothing; the others hear at once, where the machine is not busy. */
		if (poll(&poll_fd, 1, i < 128 ? 0 : 5000) == 1 && hear(open_ones[i], &error) == CUDAPOOL_MSG_ERROR &&
		    error.error == -EBUSY)
			refused++;
	}
	ok(refused >= OPEN - 128, "of %d that stay, %d are told that these are too many", OPEN, refused);
	for (i = 0; i < OPEN; i++)
		close(open_ones[i]);
	for (i = 0; i < 500 && (fd = dial_and_greet()) < 0; i++)
		usleep(10000); /* until the pool has seen them go */
	close(fd);
	honest("those that have gone");
}

static void slow(void)
{
	struct cudapool_error error = {0};
	double begin = now_ms();
	int fd = dial(), type = hear(fd, &error);

	ok(type == CUDAPOOL_MSG_ERROR && error.error == -ETIMEDOUT && hear(fd, NULL) == 0,
	   "who says no HELLO is dropped after %.1f s", (now_ms() - begin) / 1000);
	close(fd);
}

/* hostile SOCKET PID [SEED]: PID is a process with CUDA. */
int main(int argc, char **argv)
{
	if (argc != 3 && argc != 4)
		return 2;
	path = argv[1];
	app_pid = atoi(argv[2]);
	seed = argc == 4 ? strtoull(argv[3], NULL, 0) : (uint64_t)time(NULL) << 20 | (uint64_t)getpid();
	honest("nobody");
	wrong_messages();
	descriptors();
	half_open();
	too_many_requests();
	never_reading();
	at_random();
	thousands();
	slow();
	honest("all that was");
	return tap_end();
}
