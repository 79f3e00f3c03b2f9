// SPDX-License-Identifier: MIT
/*
 * What the driver's checkpoint does with memory that is exported or imported, and whether it can be exported
 * afterwards; errors of addresses without memory or access; cuMemUnmap under running work; copies between two devices
 * without access. Needs root.
 */
#define CUDAPOOL_ABI_NO_VERSIONS
#include <cuda.h>
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>
static void *drv;
#define F(n) ((__typeof__(&n))dlsym(drv, #n))
static CUmemAllocationProp pr = {.type = 1, .requestedHandleTypes = 1, .location = {.type = 1, .id = 0}};
static CUmemAccessDesc ad = {.location = {.type = 1, .id = 0}, .flags = 3};
#define G (2ul << 20)

static void start(void)
{
	CUcontext c;
	drv = dlopen("libcuda.so.1", RTLD_NOW);
	F(cuInit)(0);
	F(cuDevicePrimaryCtxRetain)(&c, 0);
	F(cuCtxSetCurrent)(c);
}

static int sendfd(int s, int fd)
{
	char b = 0, c[CMSG_SPACE(4)] = {0};
	struct iovec i = {&b, 1};
	struct msghdr m = {.msg_iov = &i, .msg_iovlen = 1, .msg_control = c, .msg_controllen = sizeof(c)};
	struct cmsghdr *h = CMSG_FIRSTHDR(&m);
	h->cmsg_level = SOL_SOCKET;
	h->cmsg_type = SCM_RIGHTS;
	h->cmsg_len = CMSG_LEN(4);
	memcpy(CMSG_DATA(h), &fd, 4);
	return sendmsg(s, &m, 0);
}

static int recvfd(int s)
{
	char b, c[CMSG_SPACE(4)];
	struct iovec i = {&b, 1};
	struct msghdr m = {.msg_iov = &i, .msg_iovlen = 1, .msg_control = c, .msg_controllen = sizeof(c)};
	int fd = -1;
	if (recvmsg(s, &m, 0) == 1 && CMSG_FIRSTHDR(&m))
		memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&m)), 4);
	return fd;
}
// child: makes memory; how: 0 plain, 1 exported fd open, 2 exported and closed here but the parent has it, 3 exported
// and closed everywhere, 4 imported from the parent, 5 imported, its descriptor closed everywhere, 6 exported, all
// released, the parent has it

static void child(int s, int how)
{
	CUmemGenericAllocationHandle h;
	CUdeviceptr va;
	int fd = -1;
	unsigned w = 0;
	start();
	F(cuMemAddressReserve)(&va, G, 0, 0, 0);
	if (how == 4 || how == 5) {
		fd = recvfd(s);
		printf("  import %d\n", F(cuMemImportFromShareableHandle)(&h, (void *)(size_t)fd, 1));
		close(fd);
		fd = -1;
	} else
		F(cuMemCreate)(&h, G, &pr, 0);
	F(cuMemMap)(va, G, 0, h, 0);
	F(cuMemSetAccess)(va, G, &ad, 1);
	if (how != 4 && how != 5)
		F(cuMemsetD32_v2)(va, 0xabcd, G / 4);
	if (how == 1 || how == 2 || how == 3 || how == 6) {
		printf("  export %d\n", F(cuMemExportToShareableHandle)(&fd, h, 1, 0));
		if (how == 2 || how == 6)
			sendfd(s, fd);
		if (how != 1)
			close(fd);
	}
	if (how == 6) {
		F(cuMemUnmap)(va, G);
		F(cuMemRelease)(h);
	}
	F(cuCtxSynchronize)();
	fflush(stdout);
	char b = 1;
	if (write(s, &b, 1) != 1 || read(s, &b, 1) != 1)
		_exit(1);
	if (how != 6) {
		int r = F(cuMemcpyDtoH_v2)(&w, va, 4);
		printf("  after: copy %d value %x; handle still good: %d\n", r, w,
		       F(cuMemGetAllocationPropertiesFromHandle)(&pr, h));
		r = F(cuMemExportToShareableHandle)(&fd, h, 1, 0);
		printf("  export after restore: %d\n", r);
	}
	fflush(stdout);
	_exit(0);
}

int main(void)
{
	for (int how = 0; how < 7; how++) {
		int s[2];
		pid_t p;
		char b = 1;
		fflush(stdout);
		socketpair(AF_UNIX, SOCK_STREAM, 0, s);
		printf("how %d\n", how);
		fflush(stdout);
		if (!(p = fork()))
			child(s[1], how);
		// the parent asks through yet another process, which also makes the memory to import
		if (!fork()) {
			CUmemGenericAllocationHandle h;
			CUdeviceptr va;
			int fd = -1;
			size_t a, t;
			CUcheckpointLockArgs l = {.timeoutMs = 5000};
			start();
			if (how == 4 || how == 5) {
				F(cuMemCreate)(&h, G, &pr, 0);
				F(cuMemAddressReserve)(&va, G, 0, 0, 0);
				F(cuMemMap)(va, G, 0, h, 0);
				F(cuMemSetAccess)(va, G, &ad, 1);
				F(cuMemsetD32_v2)(va, 0xabcd, G / 4);
				F(cuMemExportToShareableHandle)(&fd, h, 1, 0);
				sendfd(s[0], fd);
				if (how == 5) {
					F(cuMemUnmap)(va, G);
					F(cuMemRelease)(h);
					close(fd);
				}
			}
			if (how == 2 || how == 6)
				fd = recvfd(s[0]);
			if (read(s[0], &b, 1) != 1)
				_exit(1);
			F(cuMemGetInfo_v2)(&a, &t);
			printf("  free before %zu KiB\n", a >> 10);
			int r = F(cuCheckpointProcessLock)(p, &l);
			printf("  lock %d\n", r);
			r = F(cuCheckpointProcessCheckpoint)(p, 0);
			CUprocessState st = 9;
			F(cuCheckpointProcessGetState)(p, &st);
			printf("  checkpoint %d state %d\n", r, st);
			F(cuMemGetInfo_v2)(&a, &t);
			printf("  free while checkpointed %zu KiB\n", a >> 10);
			char cmd[200];
			snprintf(cmd, sizeof cmd, "ls -l /proc/%d/fd | grep -c nvidia", p);
			fflush(stdout);
			if (system(cmd)) {
			}
			if (st == CU_PROCESS_STATE_CHECKPOINTED) {
				r = F(cuCheckpointProcessRestore)(p, 0);
				printf("  restore %d\n", r);
			}
			r = F(cuCheckpointProcessUnlock)(p, 0);
			printf("  unlock %d\n", r);
			fflush(stdout);
			if (write(s[0], &b, 1) != 1) {
			}
			_exit(0);
		}
		close(s[0]);
		close(s[1]);
		while (wait(0) > 0) {
		}
	}
	// errors
	if (!fork()) {
		CUdeviceptr va, p;
		CUmemGenericAllocationHandle h;
		unsigned w;
		start();
		F(cuMemAlloc_v2)(&p, G);
		F(cuMemAddressReserve)(&va, 4 * G, 0, 0, 0);
		printf("reserved, unmapped: DtoH %d, memset %d, DtoDAsync %d, sync %d\n", F(cuMemcpyDtoH_v2)(&w, va, 4),
		       F(cuMemsetD32_v2)(va, 1, 1), F(cuMemcpyDtoDAsync_v2)(p, va, 4, 0), F(cuCtxSynchronize)());
		fflush(stdout);
		F(cuMemCreate)(&h, G, &pr, 0);
		F(cuMemMap)(va, G, 0, h, 0);
		printf("handle %llx\n", h);
		printf("mapped, no access: DtoH %d", F(cuMemcpyDtoH_v2)(&w, va, 4));
		printf(", sync %d", F(cuCtxSynchronize)());
		printf(", memset %d", F(cuMemsetD32_v2)(va, 1, 1));
		printf(", sync %d\n", F(cuCtxSynchronize)());
		fflush(stdout);
		_exit(0);
	}
	wait(0);
	if (!fork()) { // unmap while copies run
		CUdeviceptr va;
		CUmemGenericAllocationHandle h;
		CUstream s;
		size_t big = 1ul << 30;
		start();
		F(cuMemAddressReserve)(&va, big, 0, 0, 0);
		F(cuMemCreate)(&h, big, &pr, 0);
		F(cuMemMap)(va, big, 0, h, 0);
		F(cuMemSetAccess)(va, big, &ad, 1);
		F(cuStreamCreate)(&s, 1);
		for (int i = 0; i < 2000; i++)
			F(cuMemsetD32Async)(va, i, big / 4, s);
		printf("unmap under work: query %d", F(cuStreamQuery)(s));
		printf(" unmap %d", F(cuMemUnmap)(va, big));
		printf(" query %d", F(cuStreamQuery)(s));
		printf(" sync %d\n", F(cuStreamSynchronize)(s));
		fflush(stdout);
		_exit(0);
	}
	wait(0);
	int n = 0; // two GPUs: copy between mapped memories of two devices without access for the peer
	if (!fork()) {
		start();
		F(cuDeviceGetCount)(&n);
		if (n < 2) {
			printf("one GPU\n");
			fflush(stdout);
			_exit(0);
		}
		CUdeviceptr a, b;
		CUmemGenericAllocationHandle h;
		unsigned w = 0;
		CUcontext c0, c1;
		F(cuCtxGetCurrent)(&c0);
		F(cuDevicePrimaryCtxRetain)(&c1, 1);
		F(cuMemAddressReserve)(&a, G, 0, 0, 0);
		F(cuMemAddressReserve)(&b, G, 0, 0, 0);
		F(cuMemCreate)(&h, G, &pr, 0);
		F(cuMemMap)(a, G, 0, h, 0);
		F(cuMemSetAccess)(a, G, &ad, 1);
		pr.location.id = 1;
		ad.location.id = 1;
		F(cuMemCreate)(&h, G, &pr, 0);
		F(cuMemMap)(b, G, 0, h, 0);
		F(cuMemSetAccess)(b, G, &ad, 1);
		F(cuMemsetD32_v2)(a, 7, G / 4);
		printf("peer copy without access: cuMemcpyPeer %d", F(cuMemcpyPeer)(b, c1, a, c0, G));
		printf(" sync %d", F(cuCtxSynchronize)());
		printf(" DtoD %d", F(cuMemcpyDtoD_v2)(b, a, G));
		printf(" cuMemcpy %d", F(cuMemcpy)(b, a, G));
		printf(" sync %d", F(cuCtxSynchronize)());
		printf(" DtoH of the other's %d", F(cuMemcpyDtoH_v2)(&w, b, 4));
		printf(" value %u\n", w);
		fflush(stdout);
		_exit(0);
	}
	wait(0);
	return 0;
}
