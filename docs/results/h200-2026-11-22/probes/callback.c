// SPDX-License-Identifier: MIT
/* What calls return within host callbacks (cuLaunchHostFunc, cuStreamAddCallback), each in a process of its own, for at
 * most 15 s. */
#define CUDAPOOL_ABI_NO_VERSIONS
#include <cuda.h>
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>
static void *drv;
#define F(n) ((__typeof__(&n))dlsym(drv, #n))
static CUcontext ctx;
static CUstream s, o;
static CUevent ev;
static CUdeviceptr p;
static int which, set;

static int call(void)
{
	CUcontext c = 0;
	CUdeviceptr q;
	size_t a, b;
	CUdevice d;
	CUstreamCaptureStatus st;
	CUmemGenericAllocationHandle h;
	char buf[16];
	CUmemAllocationProp pr = {.type = 1, .requestedHandleTypes = 1, .location = {.type = 1}};
	if (set) {
		int r = F(cuCtxSetCurrent)(ctx);
		if (r)
			return 10000 + r;
	}
	switch (which) {
	case 0: {
		int r = F(cuCtxGetCurrent)(&c);
		printf(" (ctx %s)", c ? "set" : "none");
		return r;
	}
	case 1:
		return F(cuMemGetInfo_v2)(&a, &b);
	case 2:
		return F(cuMemAlloc_v2)(&q, 4096);
	case 3:
		return F(cuEventQuery)(ev);
	case 4:
		return F(cuEventRecord)(ev, o);
	case 5:
		return F(cuStreamQuery)(o);
	case 6:
		return F(cuStreamSynchronize)(o);
	case 7:
		return F(cuMemsetD8Async)(p, 0, 16, o);
	case 8:
		return F(cuMemcpyDtoH_v2)(buf, p, 16);
	case 9:
		return F(cuMemCreate)(&h, 2 << 20, &pr, 0);
	case 10:
		return F(cuDeviceGet)(&d, 0);
	case 11:
		return F(cuStreamIsCapturing)(o, &st);
	case 12:
		return F(cuMemFree_v2)(p);
	case 13:
		return F(cuLaunchHostFunc)(o, (CUhostFn)free, 0);
	case 14:
		return F(cuEventDestroy_v2)(ev);
	}
	return -1;
}

static void fn(void *x)
{
	printf(" %d", call());
	fflush(stdout);
}

static void cb(CUstream t, CUresult r, void *x)
{
	fn(x);
}

int main(void)
{
	static const char *names[] = {"cuCtxGetCurrent",
				      "cuMemGetInfo",
				      "cuMemAlloc",
				      "cuEventQuery",
				      "cuEventRecord",
				      "cuStreamQuery(other)",
				      "cuStreamSynchronize(other)",
				      "cuMemsetD8Async(other)",
				      "cuMemcpyDtoH",
				      "cuMemCreate",
				      "cuDeviceGet",
				      "cuStreamIsCapturing",
				      "cuMemFree",
				      "cuLaunchHostFunc",
				      "cuEventDestroy"};
	for (which = 0; which < 15; which++)
		for (int how = 0; how < 2; how++)
			for (set = 0; set < 2; set++) {
				printf("%-28s %-18s %-8s", names[which],
				       how ? "cuStreamAddCallback" : "cuLaunchHostFunc", set ? "set ctx" : "");
				fflush(stdout);
				pid_t pid = fork();
				int status;
				if (!pid) {
					alarm(15);
					drv = dlopen("libcuda.so.1", RTLD_NOW);
					F(cuInit)(0);
					F(cuDevicePrimaryCtxRetain)(&ctx, 0);
					F(cuCtxSetCurrent)(ctx);
					F(cuStreamCreate)(&s, 1);
					F(cuStreamCreate)(&o, 1);
					F(cuEventCreate)(&ev, 2);
					F(cuMemAlloc_v2)(&p, 4096);
					F(cuEventRecord)(ev, o);
					F(cuCtxSynchronize)();
					if (how)
						F(cuStreamAddCallback)(s, cb, 0, 0);
					else
						F(cuLaunchHostFunc)(s, fn, 0);
					printf(" then sync %d", F(cuStreamSynchronize)(s));
					fflush(stdout);
					_exit(0);
				}
				waitpid(pid, &status, 0);
				printf("%s\n", WIFSIGNALED(status) ? " HUNG OR CRASHED" : "");
				fflush(stdout);
			}
	return 0;
}
