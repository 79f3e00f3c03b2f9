// SPDX-License-Identifier: MIT
/* Exported memory: what keeps it alive, who counts it, and ten thousand pieces at once. */
#include "pass.h"
#include "target.h"

#include <dirent.h>
#include <sys/resource.h>

#define GRAIN  (2ul << 20)
#define PIECES 10000

static const CUmemAllocationProp prop = {.type = CU_MEM_ALLOCATION_TYPE_PINNED,
					 .requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR,
					 .location = {.type = CU_MEM_LOCATION_TYPE_DEVICE}};
static const CUmemAccessDesc read_write = {.location = {.type = CU_MEM_LOCATION_TYPE_DEVICE},
					   .flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE};

static size_t free_pieces(void)
{
	size_t free, total;

	must(cuMemGetInfo(&free, &total));
	return free / GRAIN;
}

/* Files in the device directory's folder of memory. */
static unsigned files(void)
{
	struct dirent *entry;
	unsigned count = 0;
	char path[128];
	DIR *folder;

	snprintf(path, sizeof(path), "%s/memory", device_dir);
	folder = opendir(path);
	while (folder && (entry = readdir(folder)))
		count += *entry->d_name != '.';
	if (folder)
		closedir(folder);
	return count;
}

static unsigned descriptors(void)
{
	unsigned count = 0;

	for (int fd = 0; fd < 20000; fd++)
		count += fcntl(fd, F_GETFD) >= 0;
	return count;
}

static CUdeviceptr mapped(CUmemGenericAllocationHandle handle)
{
	CUdeviceptr ptr;

	must(cuMemAddressReserve(&ptr, GRAIN, 0, 0, 0));
	must(cuMemMap(ptr, GRAIN, 0, handle, 0));
	must(cuMemSetAccess(ptr, GRAIN, &read_write, 1));
	return ptr;
}

static void unmapped(CUdeviceptr ptr)
{
	must(cuMemUnmap(ptr, GRAIN));
	must(cuMemAddressFree(ptr, GRAIN));
}

/* Makes two pieces, exports one, sends it and waits to be killed. */
static void maker(int socket)
{
	CUmemGenericAllocationHandle handles[2];
	CUcontext ctx;
	int fd;

	must(cuInit(0));
	must(cuCtxCreate(&ctx, NULL, 0, 0));
	for (int i = 0; i < 2; i++) {
		must(cuMemCreate(&handles[i], GRAIN, &prop, 0));
		must(cuMemsetD32(mapped(handles[i]), 0xfeed + i, GRAIN / 4));
	}
	must(cuMemExportToShareableHandle(&fd, handles[1], CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0));
	if (pass(socket, fd))
		pause();
	_exit(1);
}

static void outlives_its_maker(pid_t pid, int fd, size_t all)
{
	CUmemGenericAllocationHandle handle;
	CUdeviceptr ptr;
	unsigned word;
	int again;

	ok(free_pieces() == all - 2 && files() == 2, "another process has two pieces, one of them exported");
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	ok(free_pieces() == all - 1, "it is killed: the exported piece stays counted, the other does not");
	again = dup(fd);
	close(fd);
	ok(free_pieces() == all - 1, "as long as there is any descriptor of it");
	is(cuMemImportFromShareableHandle(&handle, (void *)(intptr_t)again, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR),
	   CUDA_SUCCESS);
	close(again);
	ok(free_pieces() == all - 1, "imported, it is counted once, also without a descriptor");
	ptr = mapped(handle);
	must(cuMemcpyDtoH(&word, ptr + GRAIN - 4, 4));
	ok(word == 0xfeee, "its content is there");
	is(cuMemExportToShareableHandle(&again, handle, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0),
	   CUDA_ERROR_INVALID_VALUE);
	must(cuMemRelease(handle));
	ok(free_pieces() == all - 1, "released, it lives while it is mapped");
	unmapped(ptr);
	ok(free_pieces() == all, "and then is gone at once");
}

static void own_exports(size_t all)
{
	CUmemGenericAllocationHandle handle, huge;
	size_t before = descriptors();
	int fds[2];

	must(cuMemCreate(&handle, GRAIN, &prop, 0));
	ok(descriptors() == before, "memory costs its process no descriptor");
	for (int i = 0; i < 2; i++)
		must(cuMemExportToShareableHandle(&fds[i], handle, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0));
	ok(descriptors() == before + 2 && free_pieces() == all - 1, "two exports are two descriptors and one memory");
	must(cuMemRelease(handle));
	ok(free_pieces() == all - 1, "its handle released, two descriptors keep it");
	close(fds[0]);
	ok(free_pieces() == all - 1, "one does");
	is(cuMemCreate(&huge, all * GRAIN, &prop, 0), CUDA_ERROR_OUT_OF_MEMORY);
	close(fds[1]);
	is(cuMemCreate(&huge, all * GRAIN, &prop, 0), CUDA_SUCCESS);
	ok(files() == 1, "none does: an allocation that needs all of it finds it");
	must(cuMemRelease(huge));
	ok(free_pieces() == all && files() == 0, "nothing is kept");
}

/* Of the processor, which a busy machine does not change. */
static double cpu_ms(void)
{
	struct timespec used;

	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &used);
	return used.tv_sec * 1e3 + used.tv_nsec / 1e6;
}

static void many(size_t all)
{
	static CUmemGenericAllocationHandle handles[PIECES];
	struct rlimit limit = {20000, 20000};
	static int fds[PIECES];
	double start, took;
	CUdeviceptr base;

	setrlimit(RLIMIT_NOFILE, &limit);
	start = cpu_ms();
	must(cuMemAddressReserve(&base, PIECES * GRAIN, 0, 0, 0));
	for (int i = 0; i < PIECES; i++) {
		must(cuMemCreate(&handles[i], GRAIN, &prop, 0));
		must(cuMemMap(base + i * GRAIN, GRAIN, 0, handles[i], 0));
	}
	must(cuMemSetAccess(base, PIECES * GRAIN, &read_write, 1));
	for (int i = 0; i < PIECES; i++)
		must(cuMemExportToShareableHandle(&fds[i], handles[i], CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0));
	ok(free_pieces() == all - PIECES, "%d pieces", PIECES);
	for (int i = 0; i < PIECES; i++) {
		must(cuMemUnmap(base + i * GRAIN, GRAIN));
		must(cuMemRelease(handles[i]));
	}
	for (int i = 0; i < PIECES; i++) {
		must(cuMemImportFromShareableHandle(&handles[i], (void *)(intptr_t)fds[i],
						    CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR));
		close(fds[i]);
		must(cuMemMap(base + i * GRAIN, GRAIN, 0, handles[i], 0));
	}
	must(cuMemSetAccess(base, PIECES * GRAIN, &read_write, 1));
	ok(free_pieces() == all - PIECES, "still");
	must(cuMemUnmap(base, PIECES * GRAIN));
	for (int i = 0; i < PIECES; i++)
		must(cuMemRelease(handles[i]));
	must(cuMemAddressFree(base, PIECES * GRAIN));
	took = cpu_ms() - start;
	ok(free_pieces() == all && files() == 0, "and nothing is kept");
	note("made, mapped, exported, released, imported and released again in %.0f ms of CPU", took);
	ok(took < 5000, "it does not take long"); /* on an idle machine, without sanitizers: 800 */
}

int main(void)
{
	size_t all = (32768ul << 20) / GRAIN;
	int sockets[2], fd;
	CUcontext ctx;
	pid_t pid;

	device_dir_make();
	setenv("SOFTCUDA_MEMORY_MB", "32768", 1);
	if (socketpair(AF_UNIX, SOCK_SEQPACKET, 0, sockets))
		return 1;
	fflush(stdout);
	pid = fork();
	if (!pid)
		maker(sockets[1]);
	fd = passed(sockets[0]);
	must(cuInit(0));
	must(cuCtxCreate(&ctx, NULL, 0, 0));
	outlives_its_maker(pid, fd, all);
	own_exports(all);
	many(all);
	must(cuCtxDestroy(ctx));
	device_dir_remove();
	return tap_end();
}
