// SPDX-License-Identifier: MIT
/*
 * An application and its own small shim, which parks and unparks real memory of the driver by the book, or breaks it
 * as it is told: shim MODE [PIECES]. "honest" does everything right; the others say what they do where they do it.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "attach.h"
#include "channel.h"
#include "control_page.h"
#include "driver_calls.h"

#define PIECE  (2u << 20)
#define MOST   4096
#define WORDS  16

static const char *mode;
static struct cudapool_page *page;
static pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER; /* whoever uses the memory has it; while parked, the shim */
static bool parked;
static int channel = -1, theirs = -1, borrowed[2] = {-1, -1};
static unsigned pieces = 3;

static CUcontext context;
static CUdeviceptr at[MOST];
static CUmemGenericAllocationHandle handle[MOST];
static bool imported[MOST]; /* the pool's still: cannot be exported again, and not be restored by the driver */

static bool is(const char *what)
{
	return !strcmp(mode, what);
}

/* ---- the driver ------------------------------------------------------------------------------- */

static const CUmemAllocationProp prop = {
	.type = CU_MEM_ALLOCATION_TYPE_PINNED,
	.requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR,
	.location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = 0},
};

static void map(unsigned i)
{
	static const CUmemAccessDesc access = {.location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = 0},
					       .flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE};

	CALL(cuMemMap, at[i], (size_t)PIECE, (size_t)0, handle[i], 0ull);
	CALL(cuMemSetAccess, at[i], (size_t)PIECE, &access, (size_t)1);
}

/* Makes a piece the process's own. False: there is no memory for that. */
static bool renew(unsigned i)
{
	CUmemGenericAllocationHandle old = handle[i], made;
	CUdeviceptr there = at[i];
	CUresult result = RESULT(cuMemCreate, &made, PIECE, &prop, 0);

	if (result == CUDA_ERROR_OUT_OF_MEMORY)
		return false;
	must(result, "cuMemCreate");
	handle[i] = made;
	CALL(cuMemAddressReserve, &at[i], (size_t)PIECE, (size_t)0, (CUdeviceptr)0, 0ull);
	map(i);
	CALL(cuMemcpyDtoD_v2, at[i], there, (size_t)PIECE);
	CALL(cuMemUnmap, at[i], (size_t)PIECE);
	CALL(cuMemAddressFree, at[i], (size_t)PIECE);
	CALL(cuMemUnmap, there, (size_t)PIECE);
	CALL(cuMemRelease, old);
	at[i] = there;
	map(i);
	imported[i] = false;
	page->imported_bytes -= PIECE;
	return true;
}

static void allocate(void)
{
	CUdevice device;
	unsigned i;

	CALL(cuInit, 0u);
	CALL(cuDeviceGet, &device, 0);
	CALL(cuDevicePrimaryCtxRetain, &context, device);
	CALL(cuCtxSetCurrent, context);
	CALL(cuDeviceGetUuid, (CUuuid *)page->devices[0].uuid, device);
	for (i = 0; i < pieces; i++) {
		CALL(cuMemCreate, &handle[i], (size_t)PIECE, &prop, 0ull);
		CALL(cuMemAddressReserve, &at[i], (size_t)PIECE, (size_t)0, (CUdeviceptr)0, 0ull);
		map(i);
		CALL(cuMemsetD32_v2, at[i], 1000u + i, (size_t)PIECE / 4);
	}
	page->parked_bytes = (uint64_t)pieces * PIECE;
	page->left_bytes[CUDAPOOL_LEFT_SMALL] = 4096;
}

static void check(void)
{
	unsigned words[WORDS], i, n;

	for (i = 0; i < pieces; i += pieces / 8 + 1) {
		CALL(cuMemcpyDtoH_v2, words, at[i] + PIECE - sizeof(words), sizeof(words));
		for (n = 0; n < WORDS; n++)
			if (words[n] != 1000 + i) {
				fprintf(stderr, "shim: piece %u has %u\n", i, words[n]);
				exit(1);
			}
	}
}

/* ---- the channel ------------------------------------------------------------------------------ */

static bool send_it(void *message, unsigned type, size_t size, const int *fds, unsigned count)
{
	struct cudapool_channel_header *h = message;
	union cudapool_attached control;
	struct iovec iov = {message, size};
	struct msghdr header = {.msg_iov = &iov, .msg_iovlen = 1};

	*h = (struct cudapool_channel_header){CUDAPOOL_CHANNEL_MAGIC, (uint16_t)type, (uint16_t)size};
	cudapool_attach(&header, &control, fds, count);
	return sendmsg(channel, &header, MSG_NOSIGNAL) == (ssize_t)size;
}

/* The type of what came, or -1 where the pool has closed. */
static int receive(void *message, size_t size, int *fds, unsigned *count)
{
	char control[CMSG_SPACE(CUDAPOOL_CHANNEL_BATCH * sizeof(int))];
	struct iovec iov = {message, size};
	struct msghdr header = {
		.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof(control)};
	struct timeval limit = {.tv_sec = page->limit_ms / 1000, .tv_usec = page->limit_ms % 1000 * 1000};
	struct cmsghdr *cmsg;

	setsockopt(channel, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
	if (recvmsg(channel, &header, 0) <= 0)
		return -1;
	close(theirs); /* the pool has its own */
	theirs = -1;
	cmsg = CMSG_FIRSTHDR(&header);
	if (count)
		*count = cmsg ? (unsigned)((cmsg->cmsg_len - CMSG_LEN(0)) / sizeof(int)) : 0;
	if (count && cmsg)
		memcpy(fds, CMSG_DATA(cmsg), *count * sizeof(int));
	return ((struct cudapool_channel_header *)message)->type;
}

static void send_end(int error, const char *text)
{
	struct cudapool_channel_end end = {.error = error, .phase_us = {1, 2, 3, 4, 5}, .held = 1};

	snprintf(end.text, sizeof(end.text), "%s", text);
	send_it(&end, CUDAPOOL_CHANNEL_END, sizeof(end), NULL, 0);
}

/* One batch, with its lies. False: it is over. */
static bool send_pieces(unsigned first)
{
	struct cudapool_channel_pieces message = {.first = first};
	unsigned i, count = pieces - first < CUDAPOOL_CHANNEL_BATCH ? pieces - first : CUDAPOOL_CHANNEL_BATCH;
	size_t size = offsetof(struct cudapool_channel_pieces, piece);
	int fds[CUDAPOOL_CHANNEL_BATCH + 1];
	struct cudapool_channel_ack ack;
	int pair[2];
	bool sent;

	message.count = count;
	for (i = 0; i < count; i++) {
		if (imported[first + i] && !renew(first + i))
			return false;
		CALL(cuMemExportToShareableHandle, &fds[i], handle[first + i],
		     CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0ull);
		message.piece[i].bytes = is("size-odd")	   ? PIECE + 1
					 : is("size-zero") ? 0
					 : is("size-huge") ? 1ull << 40
							   : PIECE;
		message.piece[i].device = is("device") ? 99 : 0;
		message.piece[i].flags = is("flags") ? 77 : 0;
	}
	if (is("order"))
		message.first = first + 1;
	if (is("count"))
		message.count = 60000;
	if (is("zero"))
		message.count = 0;
	if (is("socket") || is("pipe") || is("device-file") || is("no-memory")) { /* not the driver's descriptor */
		close(fds[0]);
		if (is("pipe")) {
			if (pipe(pair))
				exit(1);
			close(pair[1]);
		}
		fds[0] = is("socket")	     ? socket(AF_INET, SOCK_STREAM, 0)
			 : is("pipe")	     ? pair[0]
			 : is("device-file") ? open("/dev/zero", O_RDWR)
					     : open("/proc/self/status", O_RDONLY);
	}
	fds[count] = fds[0];
	size += count * sizeof(message.piece[0]);
	sent = send_it(&message, CUDAPOOL_CHANNEL_PIECES, is("length") ? 17 : is("empty") ? 0 : size, fds,
		       is("no-descriptors")	 ? 0
		       : is("more-descriptors")	 ? count + 1
		       : is("fewer-descriptors") ? count - 1
						 : count);
	for (i = 0; i < count; i++)
		close(fds[i]);
	return sent && receive(&ack, sizeof(ack), NULL, NULL) == CUDAPOOL_CHANNEL_ACK && ack.next == first + count;
}

static void detach(unsigned count)
{
	unsigned i;

	for (i = 0; i < count; i++) {
		CALL(cuMemUnmap, at[i], (size_t)PIECE);
		CALL(cuMemRelease, handle[i]);
	}
	parked = true;
}

static void park(void)
{
	struct cudapool_channel_begin begin = {.pieces = pieces, .devices = 1, .bytes = (uint64_t)pieces * PIECE};
	struct cudapool_channel_header go;
	unsigned first;

	memcpy(begin.token, page->token, sizeof(begin.token));
	memcpy(begin.uuid[0], page->devices[0].uuid, 16);
	begin.left[0] = is("left") ? UINT64_MAX : page->left_bytes[CUDAPOOL_LEFT_SMALL];
	if (is("token"))
		begin.token[3] ^= 1;
	if (is("pieces"))
		begin.pieces = 1u << 30;
	if (is("devices"))
		begin.devices = 17;
	if (is("bytes"))
		begin.bytes += PIECE;
	if (is("stall"))
		usleep(3000000);
	if (is("end-early"))
		send_end(0, "");
	if (is("refuse"))
		send_end(-ETIMEDOUT, "work is still under way\033[2J");
	if (is("garbage"))
		send_it(&begin, 77, 100, NULL, 0);
	else
		send_it(&begin, CUDAPOOL_CHANNEL_BEGIN, is("begin-short") ? 40 : sizeof(begin), NULL, 0);
	if (is("die"))
		_exit(0);
	for (first = 0; first < pieces; first += CUDAPOOL_CHANNEL_BATCH)
		if (!send_pieces(first))
			return;
	if (receive(&go, sizeof(go), NULL, NULL) != CUDAPOOL_CHANNEL_GO)
		return;
	detach(pieces);
	memcpy(page->token, begin.token, sizeof(begin.token));
	__atomic_store_n(&page->park_state, CUDAPOOL_PARK_PARKED, __ATOMIC_RELEASE);
	if (is("go-silent"))
		usleep(3000000);
	if (!is("go-close") && !is("go-silent"))
		send_end(is("go-fail") ? -EIO : 0, is("go-fail") ? "one piece stayed mapped" : "");
}

/* Leaves memory on the GPU for little more than one batch of pieces. */
static CUmemGenericAllocationHandle hog(void)
{
	CUmemGenericAllocationHandle taken;
	size_t available, total;

	CALL(cuMemGetInfo_v2, &available, &total);
	available = (available / PIECE - CUDAPOOL_CHANNEL_BATCH - 4) * PIECE;
	CALL(cuMemCreate, &taken, available, &prop, 0ull);
	return taken;
}

/*
 * A batch has come to a hogged GPU, and the pool needs long to free memory. The one before is being freed (half of the
 * room is taken, or a little less by now), and those before that have been.
 */
static void check_room(uint32_t first)
{
	unsigned most = CUDAPOOL_CHANNEL_BATCH + 4, least = most - CUDAPOOL_CHANNEL_BATCH / 2;
	size_t available, total;

	CALL(cuMemGetInfo_v2, &available, &total);
	if (first && (available < (size_t)least * PIECE || available >= (size_t)most * PIECE)) {
		fprintf(stderr, "shim: the batch at piece %u comes with room for %zu pieces, not %u to %u\n", first,
			available / PIECE, least, most - 1);
		exit(1);
	}
}

static void unpark(void)
{
	struct cudapool_channel_begin begin;
	struct cudapool_channel_pieces message;
	struct cudapool_channel_ack ack = {.next = 0};
	int fds[CUDAPOOL_CHANNEL_BATCH];
	CUmemGenericAllocationHandle taken = 0;
	static int refused;
	unsigned i, count;

	if (receive(&begin, sizeof(begin), NULL, NULL) != CUDAPOOL_CHANNEL_BEGIN || begin.pieces != pieces)
		return;
	if ((is("unpark-fails") || is("unpark-fails-once")) && (refused++ == 0 || is("unpark-fails"))) {
		send_end(-ENOMEM, "the driver would not map it");
		return;
	}
	if (is("hog"))
		taken = hog();
	while (ack.next < pieces) {
		if (receive(&message, sizeof(message), fds, &count) != CUDAPOOL_CHANNEL_PIECES ||
		    count != message.count || message.first != ack.next) {
			fprintf(stderr, "shim: the pool sends nonsense\n");
			exit(1);
		}
		if (is("unpark-fails-late") && message.first >= CUDAPOOL_CHANNEL_BATCH && refused++ == 0) {
			for (i = 0; i < count; i++)
				close(fds[i]);
			detach(ack.next);
			send_end(-EIO, "the driver would not map the rest");
			return;
		}
		if (taken)
			check_room(message.first);
		for (i = 0; i < count; i++) {
			CALL(cuMemImportFromShareableHandle, &handle[ack.next + i], (void *)(intptr_t)fds[i],
			     CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR);
			map(ack.next + i);
			imported[ack.next + i] = true;
			page->imported_bytes += PIECE;
			if (!is("scarce"))
				renew(ack.next + i);
			close(fds[i]);
		}
		ack.next += count;
		if (is("ack-more"))
			ack.next += 7;
		send_it(&ack, CUDAPOOL_CHANNEL_ACK, sizeof(ack), NULL, 0);
	}
	if (taken)
		CALL(cuMemRelease, taken);
	parked = false;
	__atomic_store_n(&page->park_state, CUDAPOOL_PARK_OPEN, __ATOMIC_RELEASE);
	send_end(0, "");
}

/* ---- the page --------------------------------------------------------------------------------- */

/* The end for the pool, or what it shall take for one. */
static int open_channel(int pair[2])
{
	if (socketpair(AF_UNIX, (is("stream") ? SOCK_STREAM : SOCK_SEQPACKET) | SOCK_CLOEXEC, 0, pair))
		return -1;
	if (is("foreign")) {
		dup2(borrowed[0], pair[0]);
		dup2(borrowed[1], pair[1]);
	}
	channel = pair[0];
	theirs = pair[1];
	return is("no-descriptor") ? 9999 : is("negative") ? -5 : is("file") ? open("/dev/null", O_RDWR) : pair[1];
}

static void obey(uint32_t number)
{
	uint32_t command = page->command;
	bool parks = command == CUDAPOOL_PAGE_PARK, unparks = command == CUDAPOOL_PAGE_UNPARK;
	int pair[2] = {-1, -1};
	bool was_open;

	if (is("silent") && parks)
		for (;;)
			pause();
	if (is("late") && parks)
		usleep(1500000);
	if (is("slow-unpark") && unparks)
		usleep(3000000);
	page->result = 0;
	if ((parks && parked) || (unparks && !parked))
		page->result = -EALREADY;
	if (parks && is("no-cuda"))
		page->result = -ENODATA;
	if (parks && is("unparkable")) {
		page->result = -EOPNOTSUPP;
		strcpy(page->reason, "it shares memory\nwith others");
	}
	if (parks && is("strange"))
		page->result = 12345;
	if (page->result || !(parks || unparks)) {
		__atomic_store_n(&page->ack_seq, number, __ATOMIC_RELEASE);
		return;
	}
	was_open = !parked;
	if (was_open)
		pthread_mutex_lock(&gate);
	page->channel_fd = open_channel(pair);
	__atomic_store_n(&page->ack_seq, number, __ATOMIC_RELEASE);
	if (parks)
		park();
	else
		unpark();
	close(pair[0]);
	if (theirs >= 0)
		close(theirs);
	page->channel_fd = -1;
	if (!parked)
		pthread_mutex_unlock(&gate);
}

static void *serve(void *unused)
{
	uint32_t done = 0, number;

	prctl(PR_SET_NAME, is("name") ? "else" : "cudapool");
	page->tid = is("tid") ? 1 : (int)syscall(SYS_gettid);
	CALL(cuCtxSetCurrent, context);
	for (;;) {
		number = __atomic_load_n(&page->command_seq, __ATOMIC_ACQUIRE);
		if (number != done) {
			obey(number);
			done = number;
		} else {
			syscall(SYS_futex, &page->command_seq, FUTEX_WAIT, number, NULL, NULL, 0);
		}
	}
	return unused;
}

/* Writes nonsense all over the page for as long as it lives, but for what must stay for it to be looked at. */
static void *scribble(void *unused)
{
	volatile unsigned char *byte = (volatile unsigned char *)page;
	unsigned seed = 1;
	size_t i;

	for (;;) {
		i = 8 + (size_t)rand_r(&seed) % (CUDAPOOL_PAGE_SIZE - 8);
		byte[i] = (unsigned char)rand_r(&seed);
	}
	return unused;
}

static void make_page(void)
{
	int fd = memfd_create(CUDAPOOL_PAGE_NAME, MFD_CLOEXEC | MFD_ALLOW_SEALING);

	if (fd < 0 || ftruncate(fd, CUDAPOOL_PAGE_SIZE) || fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW))
		exit(1);
	page = mmap(NULL, CUDAPOOL_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	close(fd);
	if (page == MAP_FAILED)
		exit(1);
	madvise(page, CUDAPOOL_PAGE_SIZE, MADV_DONTFORK);
	page->version = is("version") ? CUDAPOOL_PAGE_VERSION + 1 : CUDAPOOL_PAGE_VERSION;
	page->size = sizeof(*page);
	page->pid = getpid();
	page->channel_fd = -1;
	if (is("says-parked")) { /* which it never was */
		page->park_state = CUDAPOOL_PARK_PARKED;
		memset(page->token, 0x5a, sizeof(page->token));
	}
}

int main(int argc, char **argv)
{
	char line[64];
	pthread_t thread;
	unsigned n;
	pid_t child;

	mode = argc > 1 ? argv[1] : "honest";
	pieces = argc > 2 ? (unsigned)atoi(argv[2]) : 3;
	if (pieces > MOST)
		return 2;
	if (is("foreign")) { /* another process than the application made the sockets */
		if (socketpair(AF_UNIX, SOCK_SEQPACKET, 0, borrowed))
			return 1;
		child = fork();
		if (child) {
			prctl(PR_SET_NAME, "parent");
			return waitpid(child, NULL, 0) < 0;
		}
		prctl(PR_SET_PDEATHSIG, SIGKILL);
	}
	make_page();
	allocate();
	__atomic_store_n(&page->magic, CUDAPOOL_PAGE_MAGIC, __ATOMIC_RELEASE);
	pthread_create(&thread, NULL, serve, NULL);
	if (is("scribble"))
		pthread_create(&thread, NULL, scribble, NULL);
	for (n = 1;; n++) {
		pthread_mutex_lock(&gate);
		check();
		pthread_mutex_unlock(&gate);
		if (write(1, line, (size_t)snprintf(line, sizeof(line), "tick %u %d\n", n, getpid())) < 0)
			return 0;
		usleep(5000);
	}
}
