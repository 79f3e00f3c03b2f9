// SPDX-License-Identifier: MIT
/* The worker and its jobs, by the messages that the keeper sends: jobs PATH-OF-CUDAPOOLD. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "attach.h"
#include "gpu.h"
#include "tap.h"
#include "worker.h"

#define PIECES   130 /* more than two messages take */
#define PIECE    (2ull << 20)
#define LIMIT_MS 60000

static int worker, worker_pid, pongs;
static struct image_piece piece[PIECES];
static struct mapping mapping[PIECES];
static int fd[PIECES], made[PIECES];
static unsigned made_count;
static struct image_header header = {.devices = 1, .token = "a token", .dump = "a dump", .pid = 4711};

static void start(const char *program)
{
	int pair[2];
	char number[16];

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair))
		abort();
	worker_pid = fork();
	if (!worker_pid) {
		fcntl(pair[1], F_SETFD, 0);
		snprintf(number, sizeof(number), "%d", pair[1]);
		execl(program, "cudapoold", "--worker", number, NULL);
		_exit(127);
	}
	close(pair[1]);
	worker = pair[0];
}

static void say(const struct worker_message *message, const int *fds, unsigned count)
{
	struct iovec iov = {(void *)message, sizeof(*message)};
	struct msghdr packet = {.msg_iov = &iov, .msg_iovlen = 1};
	union cudapool_attached control;

	cudapool_attach(&packet, &control, fds, count);
	if (sendmsg(worker, &packet, MSG_NOSIGNAL) != sizeof(*message))
		abort();
}

static void take_made(const struct worker_message *message, struct msghdr *packet)
{
	struct cmsghdr *cmsg = CMSG_FIRSTHDR(packet);
	unsigned count = cmsg ? (unsigned)((cmsg->cmsg_len - CMSG_LEN(0)) / sizeof(int)) : 0;

	if (message->first != made_count || message->count != count || count > PIECES - made_count ||
	    count > WORKER_BATCH)
		abort();
	memcpy(made + made_count, CMSG_DATA(cmsg), count * sizeof(int));
	made_count += count;
}

/* The next message of this kind (and job, unless 0); pieces before it are kept. */
static struct worker_message hear(uint32_t kind, uint32_t id)
{
	char control[CMSG_SPACE(WORKER_BATCH * sizeof(int))];
	struct worker_message message;
	struct iovec iov = {&message, sizeof(message)};
	struct pollfd poll_fd = {.fd = worker, .events = POLLIN};

	for (;;) {
		struct msghdr packet = {
			.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof(control)};

		if (poll(&poll_fd, 1, LIMIT_MS) != 1 || recvmsg(worker, &packet, MSG_CMSG_CLOEXEC) != sizeof(message)) {
			note("the worker says nothing any more");
			exit(tap_end() | 1);
		}
		if (message.kind == WORKER_PIECES)
			take_made(&message, &packet);
		pongs += message.kind == WORKER_PONG;
		if (message.kind == kind && (!id || message.id == id))
			return message;
	}
}

static int description(uint32_t kind, uint32_t pieces)
{
	struct worker_job job = {.kind = kind, .pieces = pieces, .threads = 4, .chunk_mb = 1, .header = header};
	int file = memfd_create("job", MFD_CLOEXEC);

	if (write(file, &job, sizeof(job)) != sizeof(job) ||
	    write(file, piece, pieces * sizeof(*piece)) != (ssize_t)(pieces * sizeof(*piece)))
		abort();
	return file;
}

static void begin(uint32_t id, uint32_t kind, int file)
{
	struct worker_message message = {.kind = WORKER_JOB, .id = id, .op = kind};
	int fds[2] = {description(kind, PIECES), file};

	made_count = 0;
	say(&message, fds, file >= 0 ? 2 : 1);
	close(fds[0]);
}

static void send_pieces(uint32_t id, unsigned from, unsigned until)
{
	struct worker_message message = {.kind = WORKER_PIECES, .id = id, .first = from};

	for (; message.first < until; message.first += message.count) {
		message.count = until - message.first < WORKER_BATCH ? until - message.first : WORKER_BATCH;
		say(&message, fd + message.first, message.count);
	}
}

static void result(uint32_t id, int expected, const char *says, const char *what)
{
	struct worker_message message = hear(WORKER_RESULT, id);

	ok(message.error == expected && strstr(message.text, says), "%s: %d %s", what, message.error, message.text);
}

static bool made_is_right(void)
{
	static uint8_t found[PIECE];
	struct mapping copy;
	char text[CUDAPOOL_TEXT_LEN];
	bool right = made_count == PIECES;
	unsigned i, k;
	CUresult cu;

	for (i = 0; i < made_count; i++) {
		if (mapping_import(&copy, 0, PIECE, made[i], text, &cu))
			abort();
		gpu_read(0, found, copy.range.start, PIECE);
		for (k = 0; k < PIECE && found[k] == (i % 3 ? (uint8_t)i : 0); k++)
			;
		right &= k == PIECE;
		mapping_end(&copy);
	}
	return right;
}

static void close_made(void)
{
	while (made_count)
		close(made[--made_count]);
}

static int worker_descriptors(void)
{
	char path[64];
	int count = 0;
	DIR *dir;

	snprintf(path, sizeof(path), "/proc/%d/fd", worker_pid);
	dir = opendir(path);
	while (dir && readdir(dir))
		count++;
	if (dir)
		closedir(dir);
	return count;
}

static void make_pieces(void)
{
	static uint8_t content[PIECE];
	unsigned i;

	gpu_uuid(0, header.uuid[0]);
	for (i = 0; i < PIECES; i++) {
		piece[i].bytes = PIECE;
		fd[i] = gpu_piece(0, PIECE, &mapping[i]);
		memset(content, i % 3 ? (int)i : 0, PIECE);
		gpu_write(0, mapping[i].range.start, content, PIECE);
	}
}

static void memory(void)
{
	struct worker_message question = {.kind = WORKER_MEMORY, .id = 900}, answer;

	memcpy(question.uuid, header.uuid[0], 16);
	say(&question, NULL, 0);
	answer = hear(WORKER_MEMORY, 900);
	ok(!answer.error && answer.bytes == gpu_free_bytes(0) && answer.stored > answer.bytes,
	   "it says what memory there is");
	question.uuid[5] ^= 1;
	say(&question, NULL, 0);
	answer = hear(WORKER_MEMORY, 900);
	ok(answer.error == -EXDEV && answer.text[0], "and what there is not: %s", answer.text);
}

static void well(int file)
{
	struct worker_message ping = {.kind = WORKER_PING}, message;

	begin(1, WORKER_SAVE, file);
	send_pieces(1, 0, 40);
	say(&ping, NULL, 0);
	hear(WORKER_PONG, 0);
	ok(true, "a job that waits for pieces does not keep it from answering");
	send_pieces(1, 40, PIECES);
	message = hear(WORKER_RESULT, 1);
	ok(!message.error && message.op == WORKER_SAVE && message.bytes == PIECES * PIECE &&
		   message.stored == (uint64_t)(PIECES - (PIECES + 2) / 3) * PIECE,
	   "saved: %llu MiB, of them %llu in the file %s", (unsigned long long)message.bytes >> 20,
	   (unsigned long long)message.stored >> 20, message.text);
	begin(2, WORKER_LOAD, file);
	result(2, 0, "", "loaded");
	ok(made_is_right(), "as it was");
	close_made();
	begin(3, WORKER_COPY, -1);
	send_pieces(3, 0, PIECES);
	result(3, 0, "", "copied");
	ok(made_is_right(), "as it was");
	close_made();
}

static void badly(int file)
{
	struct worker_message message = {.kind = WORKER_JOB, .id = 10, .op = WORKER_SAVE};
	struct image image;
	int fds[2];
	char text[CUDAPOOL_TEXT_LEN];
	uint8_t byte = 0x5a;

	begin(10, WORKER_SAVE, -1);
	result(10, -EPROTO, "cannot begin", "a job without its file");
	fds[0] = description(4711, 1);
	fds[1] = file;
	say(&message, fds, 2);
	close(fds[0]);
	result(10, -EPROTO, "cannot begin", "a job of no kind");

	begin(11, WORKER_COPY, -1);
	send_pieces(11, 64, PIECES);
	result(11, -EPROTO, "piece 0 did not come", "pieces out of order");
	close_made();

	begin(12, WORKER_COPY, -1);
	send_pieces(12, 0, 3);
	message = (struct worker_message){.kind = WORKER_CANCEL, .id = 12};
	say(&message, NULL, 0);
	result(12, -ECANCELED, "", "a job that is cancelled while it waits");
	close_made();
	send_pieces(12, 3, 10); /* to nobody */

	if (image_read(&image, file, text) || image_pwrite(file, &byte, 1, image.block[image.first[4]].at + 100))
		abort();
	image_free(&image);
	begin(13, WORKER_LOAD, file);
	result(13, -EBADMSG, "block 0 of piece 4", "an image that is damaged");
	close_made();
}

int main(int argc, char **argv)
{
	int file = memfd_create("image", MFD_CLOEXEC), status, before;

	if (argc != 2)
		return 2;
	gpu_open();
	make_pieces();
	start(argv[1]);
	while (hear(WORKER_STAGE, 0).stage != WORKER_WARM)
		;
	ok(true, "the worker is warm");
	memory();
	well(file);
	before = worker_descriptors();
	badly(file);
	memory();
	ok(worker_descriptors() == before, "the worker has no descriptor left: %d, %d before", worker_descriptors(),
	   before);
	close(worker);
	waitpid(worker_pid, &status, 0);
	ok(WIFEXITED(status) && !WEXITSTATUS(status), "and ends with its keeper");
	return tap_end();
}
