// SPDX-License-Identifier: MIT
/*
 * What each call returns while a stream is captured, and whether that spoils the capture: modes of the capture (global,
 * thread, relaxed) x modes of the calling thread x the same thread or another.
 */
#define CUDAPOOL_ABI_NO_VERSIONS
#include <cuda.h>
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <stdlib.h>
static void *drv;
#define F(n) ((__typeof__(&n))dlsym(drv, #n))
static CUcontext ctx;
static CUstream cap, other, blocking;
static CUevent ev, evcap;
static CUdeviceptr spare;
static CUmemGenericAllocationHandle h;
static CUdeviceptr va;
static CUmemAllocationProp pr = {.type = 1, .requestedHandleTypes = 1, .location = {.type = 1, .id = 0}};
static CUmemAccessDesc ad = {.location = {.type = 1, .id = 0}, .flags = 3};

static int one(int which)
{
	CUdeviceptr p = 0;
	void *hp;
	CUmemGenericAllocationHandle g;
	size_t a, b;
	int fd, v;
	CUevent e;
	CUstream s;
	CUstreamCaptureStatus st;
	CUmodule m;
	char buf[16];
	CUresult r;
	switch (which) {
	case 0:
		return F(cuMemAlloc_v2)(&p, 4 << 20);
	case 1:
		return F(cuMemFree_v2)(spare);
	case 2:
		return F(cuCtxSynchronize)();
	case 3:
		return F(cuStreamSynchronize)(other);
	case 4:
		return F(cuStreamQuery)(other);
	case 5:
		return F(cuStreamQuery)(cap);
	case 6:
		return F(cuStreamQuery)(0);
	case 7:
		return F(cuStreamSynchronize)(0);
	case 8:
		return F(cuEventQuery)(ev);
	case 9:
		return F(cuEventSynchronize)(ev);
	case 10:
		return F(cuEventRecord)(ev, other);
	case 11:
		return F(cuEventRecord)(ev, 0);
	case 12:
		return F(cuEventCreate)(&e, 2);
	case 13:
		return F(cuStreamCreate)(&s, 1);
	case 14:
		return F(cuMemGetInfo_v2)(&a, &b);
	case 15:
		return F(cuMemCreate)(&g, 2 << 20, &pr, 0);
	case 16:
		return F(cuMemAddressReserve)(&p, 2 << 20, 0, 0, 0);
	case 17:
		return F(cuMemMap)(va, 2 << 20, 0, h, 0);
	case 18:
		return F(cuMemSetAccess)(va, 2 << 20, &ad, 1);
	case 19:
		r = F(cuMemExportToShareableHandle)(&fd, h, 1, 0);
		return r;
	case 20:
		return F(cuMemUnmap)(va, 2 << 20);
	case 21:
		return F(cuMemRelease)(h);
	case 22:
		return F(cuMemAddressFree)(va, 2 << 20);
	case 23:
		return F(cuPointerGetAttribute)(&v, 2, spare);
	case 24:
		return F(cuMemcpyDtoH_v2)(buf, spare, 16);
	case 25:
		return F(cuMemsetD8_v2)(spare, 0, 16);
	case 26:
		return F(cuMemcpyDtoDAsync_v2)(spare, spare + 4096, 16, other);
	case 27:
		return F(cuMemAllocHost_v2)(&hp, 4096);
	case 28:
		return F(cuMemHostRegister_v2)((void *)(((size_t)malloc(8192) + 4095) & ~4095ul), 4096, 0);
	case 29:
		return F(cuStreamIsCapturing)(0, &st) * 1000 + st;
	case 30:
		return F(cuStreamIsCapturing)(cap, &st) * 1000 + st;
	case 31:
		return F(cuMemAllocAsync)(&p, 4096, other);
	case 32:
		return F(cuStreamIsCapturing)(blocking, &st) * 1000 + st;
	case 33:
		return F(cuEventQuery)(evcap);
	case 34:
		return F(cuLaunchHostFunc)(other, (CUhostFn)free, 0);
	case 35:
		return F(cuStreamDestroy_v2)(other);
	case 36:
		return F(cuEventDestroy_v2)(ev);
	case 37:
		return F(cuModuleLoadData)(
			&m, ".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry k(){ ret; }\n");
	case 38:
		return F(cuMemFree_v2)(0);
	case 39:
		return F(cuStreamWaitEvent)(cap, ev, 0);
	case 40:
		return F(cuStreamSynchronize)(cap);
	}
	return -1;
}
static const char *names[] = {"cuMemAlloc",
			      "cuMemFree",
			      "cuCtxSynchronize",
			      "cuStreamSynchronize(other)",
			      "cuStreamQuery(other)",
			      "cuStreamQuery(cap)",
			      "cuStreamQuery(0)",
			      "cuStreamSynchronize(0)",
			      "cuEventQuery",
			      "cuEventSynchronize",
			      "cuEventRecord(other)",
			      "cuEventRecord(0)",
			      "cuEventCreate",
			      "cuStreamCreate",
			      "cuMemGetInfo",
			      "cuMemCreate",
			      "cuMemAddressReserve",
			      "cuMemMap",
			      "cuMemSetAccess",
			      "cuMemExport",
			      "cuMemUnmap",
			      "cuMemRelease",
			      "cuMemAddressFree",
			      "cuPointerGetAttribute",
			      "cuMemcpyDtoH",
			      "cuMemsetD8",
			      "cuMemcpyDtoDAsync(other)",
			      "cuMemAllocHost",
			      "cuMemHostRegister",
			      "cuStreamIsCapturing(0)",
			      "cuStreamIsCapturing(cap)",
			      "cuMemAllocAsync(other)",
			      "cuStreamIsCapturing(blocking)",
			      "cuEventQuery(captured)",
			      "cuLaunchHostFunc(other)",
			      "cuStreamDestroy(other)",
			      "cuEventDestroy",
			      "cuModuleLoadData",
			      "cuMemFree(0)",
			      "cuStreamWaitEvent(cap,uncaptured)",
			      "cuStreamSynchronize(cap)"};
struct call {
	int which, mode, result;
};

static void *run(void *arg)
{
	struct call *c = arg;
	CUstreamCaptureMode m = c->mode;
	F(cuCtxSetCurrent)(ctx);
	F(cuThreadExchangeStreamCaptureMode)(&m);
	c->result = one(c->which);
	F(cuThreadExchangeStreamCaptureMode)(&m);
	return 0;
}

int main(void)
{
	drv = dlopen("libcuda.so.1", RTLD_NOW);
	F(cuInit)(0);
	F(cuDevicePrimaryCtxRetain)(&ctx, 0);
	F(cuCtxSetCurrent)(ctx);
	printf("result/after: after 1 capture well, 2 spoilt. columns: stream blocking? capture-mode thread-mode "
	       "same|other\n");
	for (unsigned w = 0; w < sizeof(names) / sizeof(*names); w++)
		for (int blk = 0; blk < 2; blk++) {
			printf("%-34s %s", names[w], blk ? "blocking   " : "nonblocking");
			for (int cm = 0; cm < 3; cm++)
				for (int tm = 0; tm < 3; tm++)
					for (int same = 1; same >= 0; same--) {
						struct call c = {w, tm, 0};
						pthread_t t;
						CUgraph g;
						CUstreamCaptureStatus st = 9;
						F(cuCtxSynchronize)();
						F(cuStreamCreate)(&cap, blk ? 0 : 1);
						F(cuStreamCreate)(&other, 1);
						F(cuStreamCreate)(&blocking, 0);
						F(cuEventCreate)(&ev, 2);
						F(cuEventCreate)(&evcap, 2);
						F(cuEventRecord)(ev, other);
						F(cuMemAlloc_v2)(&spare, 4 << 20);
						F(cuMemCreate)(&h, 2 << 20, &pr, 0);
						F(cuMemAddressReserve)(&va, 2 << 20, 0, 0, 0);
						if (w == 18 || w == 20)
							F(cuMemMap)(va, 2 << 20, 0, h, 0);
						F(cuCtxSynchronize)();
						F(cuStreamBeginCapture_v2)(cap, cm);
						F(cuEventRecord)(evcap, cap);
						if (same)
							run(&c);
						else {
							pthread_create(&t, 0, run, &c);
							pthread_join(t, 0);
						}
						F(cuStreamIsCapturing)(cap, &st);
						int e = F(cuStreamEndCapture)(cap, &g);
						printf(" %c%c%c:%d/%d/%d", "GTR"[cm], "GTR"[tm], same ? 's' : 'o',
						       c.result, st, e);
						F(cuStreamDestroy_v2)(cap);
						F(cuStreamDestroy_v2)(other);
						F(cuStreamDestroy_v2)(blocking);
					}
			printf("\n");
			fflush(stdout);
		}
	return 0;
}
