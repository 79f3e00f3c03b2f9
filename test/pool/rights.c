// SPDX-License-Identifier: MIT
/* Descriptors that go along with messages: none, too many, and more than a process may have. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "rights.h"
#include "tap.h"

static int ends[2];
static int pipes[CUDAPOOL_ATTACHED_MOST]; /* what is sent: one writing end, many times */
static int fds[CUDAPOOL_ATTACHED_MOST];

static bool send_some(unsigned count)
{
	return !rights_send(ends[0], "message", 7, pipes, count, 0);
}

static struct rights receive(unsigned most, size_t size, ssize_t *n)
{
	struct rights came = {.fds = fds, .most = most, .count = 77};
	char message[16];

	memset(fds, -1, sizeof(fds));
	*n = rights_receive(ends[1], message, size, &came, MSG_DONTWAIT);
	return came;
}

int main(void)
{
	struct rlimit limit = {1024, 1024}, low;
	unsigned i;
	int before;
	struct rights came;
	int pair[2];
	ssize_t n;

	closefrom(3); /* numbers are given out without gaps from here on */
	if (setrlimit(RLIMIT_NOFILE, &limit) || socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) ||
	    pipe2(pair, O_CLOEXEC))
		return 1;
	for (i = 0; i < CUDAPOOL_ATTACHED_MOST; i++)
		pipes[i] = pair[1];
	before = open_descriptors();

	ok(send_some(0), "a message without descriptors is sent");
	came = receive(3, 16, &n);
	ok(n == 7 && !came.count && !came.lost && fds[0] == -1, "and comes without any");

	ok(send_some(CUDAPOOL_ATTACHED_MOST), "one with as many as the kernel takes");
	came = receive(CUDAPOOL_ATTACHED_MOST, 16, &n);
	ok(n == 7 && came.count == CUDAPOOL_ATTACHED_MOST && !came.lost, "comes with all of them");
	ok(write(fds[CUDAPOOL_ATTACHED_MOST - 1], "x", 1) == 1 && read(pair[0], (char[1]){0}, 1) == 1, "which are what was sent");
	ok(fcntl(fds[0], F_GETFD) == FD_CLOEXEC, "and are not inherited");
	rights_close(fds, came.count);
	ok(open_descriptors() == before, "until all are closed");

	send_some(2);
	came = receive(1, 16, &n); /* there is padding behind the first one */
	ok(n == 7 && came.count == 1 && came.lost && fds[1] == -1, "of two where there is room for one, one comes");
	rights_close(fds, came.count);
	send_some(5);
	came = receive(0, 16, &n);
	ok(n == 7 && !came.count && came.lost && fds[0] == -1, "of five where there is room for none, none");
	ok(open_descriptors() == before, "the others are closed");

	send_some(3);
	low = (struct rlimit){(rlim_t)pair[1] + 3, 1024};
	setrlimit(RLIMIT_NOFILE, &low);
	came = receive(3, 16, &n);
	setrlimit(RLIMIT_NOFILE, &limit);
	ok(n == 7 && came.count == 2 && came.lost, "of three where the process may have two more, two come");
	rights_close(fds, came.count);
	ok(open_descriptors() == before, "and the third is closed");

	send_some(1);
	came = receive(1, 3, &n);
	ok(n == 7 && came.count == 1 && !came.lost, "a message that is too long says how long it was");
	rights_close(fds, came.count);
	came = receive(1, 16, &n);
	ok(n == -EAGAIN && !came.count, "nothing is there");
	ok(rights_send(ends[0], "", 1, (int[]){-1}, 1, 0) == -EBADF, "what is no descriptor is refused");
	close(ends[0]);
	came = receive(1, 16, &n);
	ok(n == 0 && !came.count, "and this is the end");
	return tap_end();
}
