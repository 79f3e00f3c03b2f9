// SPDX-License-Identifier: MIT
/* Memory that is another process's, or that the application wants to share with one: imports WHAT. */
#include "memory_api.h"

#include <pthread.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include "../client/tap.h"
#include "attach.h"
#include "fake_pool.h"

#define MIB   0x100000ul
#define BYTES (6 * MIB)
#define MARK  0x600dcafe

static struct memory_api cu;
static struct fake_pool pool;
static CUcontext context;
static CUdeviceptr ptr;
static void must(CUresult r, const char *what)
{
	if (r == CUDA_SUCCESS)
		return;
	printf("Bail out! %s: %d\n", what, r);
	exit(1);
}
#define MUST(call) must(cu.call, #call)

static void begin(void)
{
	cu = memory_api();
	MUST(cuInit(0));
	MUST(cuDevicePrimaryCtxRetain(&context, 0));
	MUST(cuCtxSetCurrent(context));
}

static void map(CUmemGenericAllocationHandle handle, CUdeviceptr *where)
{
	CUmemAccessDesc access = {{CU_MEM_LOCATION_TYPE_DEVICE, 0}, CU_MEM_ACCESS_FLAGS_PROT_READWRITE};

	MUST(cuMemAddressReserve(where, BYTES, 0, 0, 0));
	MUST(cuMemMap(*where, BYTES, 0, handle, 0));
	MUST(cuMemSetAccess(*where, BYTES, &access, 1));
}

/* The other process: makes memory, marks it, hands out a descriptor, and lives until it hears that it may go. */
static void other(int socket)
{
	CUmemAllocationProp prop = {.type = CU_MEM_ALLOCATION_TYPE_PINNED,
				    .requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR,
				    .location = {CU_MEM_LOCATION_TYPE_DEVICE, 0}};
	char byte = 1;
	struct iovec data = {&byte, 1};
	struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1};
	union cudapool_attached control;
	CUmemGenericAllocationHandle handle;
	uint32_t mark = MARK;
	CUdeviceptr where;
	int fd;

	begin();
	MUST(cuMemCreate(&handle, BYTES, &prop, 0));
	map(handle, &where);
	MUST(cuMemcpyHtoD_v2(where, &mark, sizeof(mark)));
	MUST(cuMemExportToShareableHandle(&fd, handle, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0));
	cudapool_attach(&message, &control, &fd, 1);
	if (sendmsg(socket, &message, 0) != 1 || read(socket, &byte, 1) < 0)
		_exit(2);
	_exit(0);
}

/* A descriptor of memory of another process, which is alive as long as *alive is open. */
static int foreign(int *alive)
{
	char control[CMSG_SPACE(sizeof(int))], byte;
	struct iovec data = {&byte, 1};
	struct msghdr message = {
		.msg_iov = &data, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof(control)};
	int pair[2], fd;

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair))
		exit(2);
	if (!fork()) {
		close(pair[0]);
		other(pair[1]);
	}
	close(pair[1]);
	if (recvmsg(pair[0], &message, MSG_CMSG_CLOEXEC) != 1 || !CMSG_FIRSTHDR(&message))
		exit(2);
	memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof(fd));
	*alive = pair[0];
	return fd;
}

static CUmemGenericAllocationHandle import(int fd)
{
	CUmemGenericAllocationHandle handle;

	MUST(cuMemImportFromShareableHandle(&handle, (void *)(intptr_t)fd, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR));
	return handle;
}

static bool marked(CUdeviceptr where)
{
	uint32_t mark = 0;

	return cu.cuMemcpyDtoH_v2(&mark, where, sizeof(mark)) == CUDA_SUCCESS && mark == MARK;
}

/* Refused before anything is done, with the reason and the bytes; the application runs on. */
static void refused(uint32_t mb, const char *what)
{
	char bytes[32];

	snprintf(bytes, sizeof(bytes), " %u MiB of another process", mb);
	ok(fake_pool_park(&pool, 1000) == -EOPNOTSUPP && strstr(pool.page->reason, bytes) &&
		   strstr(pool.page->reason, "cannot restore"), "%s", what);
	ok(pool.page->foreign_mb == mb && pool.page->park_state == CUDAPOOL_PARK_OPEN && marked(ptr),
	   "the page says how much, and the application runs on");
}

static void parks(const char *what)
{
	ok(!pool.page->foreign_mb && !fake_pool_park(&pool, 10000) && !fake_pool_unpark(&pool, 10000) && marked(ptr),
	   "%s", what);
}

static void shim(int fd)
{
	CUmemGenericAllocationHandle one, two, again;
	CUdeviceptr first, second;

	if (fake_pool_find(&pool, getpid()))
		exit(2);
	parks("with memory of its own it parks");
	ok(cu.cuMemImportFromShareableHandle(&one, (void *)(intptr_t)9999, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR) !=
		   CUDA_SUCCESS, "an import that fails");
	parks("is none");
	one = import(fd);
	refused(1, "what is imported, and mapped nowhere, cannot be parked: its size is not known");
	MUST(cuMemRelease(one));
	parks("what was imported and released is no more");
	one = import(fd);
	map(one, &first);
	refused(6, "nor when it is mapped");
	two = import(fd);
	map(two, &second);
	refused(12, "nor what was imported twice");
	ok(marked(first) && marked(second), "it is the other process's memory");
	MUST(cuMemRelease(one));
	MUST(cuMemRelease(two));
	refused(12, "nor when only its mappings are left");
	MUST(cuMemRetainAllocationHandle(&again, (void *)(uintptr_t)first));
	MUST(cuMemUnmap(first, BYTES));
	refused(12, "nor when a handle was got from the address, and the mapping is gone");
	MUST(cuMemUnmap(second, BYTES));
	refused(6, "one of two is left");
	MUST(cuMemMap(first, BYTES, 0, again, 0));
	ok(cu.cuMemMap(first, BYTES, 0, again, 0) != CUDA_SUCCESS, "a mapping that fails");
	MUST(cuMemRelease(again));
	ok(cu.cuMemUnmap(first, 2 * MIB) != CUDA_SUCCESS && pool.page->foreign_mb == 6, "a part of it cannot be unmapped");
	MUST(cuMemUnmap(first, BYTES));
	parks("when all is closed it parks");
}

/* Of this process by a program on PATH; what it says, of either kind. */
static int act(const char *action, char *said, size_t size)
{
	char command[80];
	size_t n;
	FILE *pipe;

	snprintf(command, sizeof(command), "cuda-checkpoint --action %s --pid %d 2>&1", action, getpid());
	pipe = popen(command, "r");
	n = pipe ? fread(said, 1, size - 1, pipe) : 0;
	said[n] = '\0';
	return pipe ? pclose(pipe) : -1;
}

/* Through a pool: cuda-checkpoint is the drop-in. */
static void pooled(int fd)
{
	static const char *const cycle[] = {"lock", "checkpoint", "restore", "unlock"};
	CUmemGenericAllocationHandle handle = import(fd);
	CUdeviceptr where;
	char said[1024];
	bool good = true;
	unsigned i;

	map(handle, &where);
	ok(act("lock", said, sizeof(said)) != 0, "the checkpoint is refused");
	printf("# %s", said);
	ok(strstr(said, " 6 MiB of another process's memory") && strstr(said, "never restore it") &&
		   strstr(said, "cuMemUnmap and cuMemRelease"), "with the bytes, the reason, and what can be done");
	ok(marked(ptr) && marked(where), "the application runs on");
	MUST(cuMemUnmap(where, BYTES));
	MUST(cuMemRelease(handle));
	for (i = 0; i < sizeof(cycle) / sizeof(cycle[0]); i++) {
		if (act(cycle[i], said, sizeof(said))) {
			printf("# %s: %s", cycle[i], said);
			good = false;
		}
	}
	ok(good && marked(ptr), "without it the process is checkpointed and restored");
}

/* What it is refused for: the driver by itself, where there is no shim. */
static void stock(int fd)
{
	CUmemGenericAllocationHandle handle = import(fd);
	char said[1024];
	CUdeviceptr where;

	map(handle, &where);
	ok(!act("lock", said, sizeof(said)) && !act("checkpoint", said, sizeof(said)), "the driver checkpoints it");
	ok(act("restore", said, sizeof(said)) && strstr(said, "801"), "cannot restore it (801)");
	printf("# %s", said);
	ok(act("restore", said, sizeof(said)) && strstr(said, "401"), "and has lost it (401)");
}

static uint64_t left(enum cudapool_left kind)
{
	fake_pool_command(&pool, CUDAPOOL_PAGE_PING, 10000);
	return pool.page->left_bytes[kind];
}

/* Legacy IPC and fabric handles: refused for what can be parked, by the driver; else left to it. */
static void offered(int fd)
{
	static const CUmemAllocationHandleType types[] = {
		CU_MEM_HANDLE_TYPE_FABRIC, CU_MEM_HANDLE_TYPE_FABRIC | CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR};
	CUmemAllocationProp prop = {.type = CU_MEM_ALLOCATION_TYPE_PINNED,
				    .requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR,
				    .location = {CU_MEM_LOCATION_TYPE_DEVICE, 0}};
	CUmemGenericAllocationHandle handle;
	CUipcMemHandle ipc;
	CUdeviceptr small;
	unsigned capable = 9;
	char fabric[64];
	size_t i;

	close(fd);
	if (fake_pool_find(&pool, getpid()))
		exit(2);
	MUST(cuMemAlloc_v2(&small, 1000));
	ok(cu.cuIpcGetMemHandle(&ipc, ptr) == CUDA_ERROR_INVALID_VALUE, "no legacy IPC handle of memory that can be parked");
	ok(!cu.cuPointerGetAttribute(&capable, CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE, ptr) && !capable,
	   "which its attribute says");
	ok(cu.cuIpcGetMemHandle(&ipc, small) == CUDA_ERROR_NOT_SUPPORTED && left(CUDAPOOL_LEFT_SMALL) == 1000,
	   "of what is too small for that it is the driver's to say, and it is counted");
	MUST(cuMemCreate(&handle, BYTES, &prop, 0));
	ok(cu.cuMemExportToShareableHandle(fabric, handle, CU_MEM_HANDLE_TYPE_FABRIC, 0) == CUDA_ERROR_INVALID_VALUE &&
		   !left(CUDAPOOL_LEFT_SHARED), "no fabric handle of memory that was not made for it, which is not shared by that");
	MUST(cuMemRelease(handle));
	for (i = 0; i < sizeof(types) / sizeof(types[0]); i++) {
		prop.requestedHandleTypes = types[i];
		ok(cu.cuMemCreate(&handle, BYTES, &prop, 0) == CUDA_ERROR_NOT_SUPPORTED,
		   "memory for fabric handles is the driver's to make, or to refuse");
	}
	parks("the rest parks");
}

/* With a driver that has legacy IPC (newer.c): what is opened is left to it, and counted as long as it is open. */
static void opened(int fd)
{
	CUipcMemHandle ipc = {.reserved = {3}};
	CUdeviceptr one, two;

	close(fd);
	if (fake_pool_find(&pool, getpid()))
		exit(2);
	MUST(cuIpcOpenMemHandle_v2(&one, ipc, CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS));
	ok(left(CUDAPOOL_LEFT_SHARED) == 3 * MIB, "what is opened is counted");
	MUST(cuIpcOpenMemHandle(&two, ipc, CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS));
	ok(one == two && left(CUDAPOOL_LEFT_SHARED) == 3 * MIB, "once");
	parks("and left where it is");
	ok(cu.cuIpcCloseMemHandle(one + 1) != CUDA_SUCCESS && left(CUDAPOOL_LEFT_SHARED) == 3 * MIB,
	   "an address that was not opened is not closed");
	MUST(cuIpcCloseMemHandle(one));
	ok(left(CUDAPOOL_LEFT_SHARED) == 3 * MIB, "closed as often");
	MUST(cuIpcCloseMemHandle(one));
	ok(!left(CUDAPOOL_LEFT_SHARED) && cu.cuIpcCloseMemHandle(one) != CUDA_SUCCESS, "as it was opened it is gone");
}

int main(int argc, char **argv)
{
	uint32_t mark = MARK;
	int alive, fd = foreign(&alive); /* before CUDA: after it a child cannot use it */

	begin();
	MUST(cuMemAlloc_v2(&ptr, 4 * MIB));
	MUST(cuMemcpyHtoD_v2(ptr, &mark, sizeof(mark)));
	if (argc == 2 && !strcmp(argv[1], "shim"))
		shim(fd);
	else if (argc == 2 && !strcmp(argv[1], "pooled"))
		pooled(fd);
	else if (argc == 2 && !strcmp(argv[1], "stock"))
		stock(fd);
	else if (argc == 2 && !strcmp(argv[1], "offered"))
		offered(fd);
	else if (argc == 2 && !strcmp(argv[1], "opened"))
		opened(fd);
	close(alive);
	wait(NULL);
	fake_pool_close(&pool);
	return tap_end();
}
