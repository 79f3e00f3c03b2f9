// SPDX-License-Identifier: MIT
/*
 * Memory of device 0 that device 1 reaches: which copies work with and without access, what access costs, and what the
 * driver's checkpoint makes of a process in which device 1 has access. Needs two GPUs and root.
 */
#include "memory.h"

#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>

#define SIZE (8ul << 20)

/* Of whose memory device 1 gets access. */
enum way { NONE, MAPPED, EXPORTABLE, WITHDRAWN, EACH, POOL, PEER, PEERS, WAYS };
static const char *const way_names[WAYS] = {
	"none", "mapped, for both devices", "mapped and exportable, for both", "the same, withdrawn meanwhile",
	"the same of each device, for both", "stream-ordered, its pool's access", "cuMemAlloc, peer access",
	"cuMemAlloc, peer access both ways",
};

static CUcontext context[2];
static CUmemAccessDesc access_of[2] = {{.location = {.type = 1, .id = 0}, .flags = 3},
				       {.location = {.type = 1, .id = 1}, .flags = 3}};

static void start(void)
{
	lib = dlopen("libcuda.so.1", RTLD_NOW);
	D(cuInit)(0);
	for (int i = 0; i < 2; i++)
		D(cuDevicePrimaryCtxRetain)(&context[i], i);
	D(cuCtxSetCurrent)(context[0]);
}

static CUdeviceptr mapped(int device, size_t bytes, int exportable, int devices)
{
	CUmemAllocationProp prop = {
		.type = 1, .requestedHandleTypes = exportable, .location = {.type = 1, .id = device}};
	CUmemGenericAllocationHandle h;
	CUdeviceptr v = 0;

	D(cuMemAddressReserve)(&v, bytes, 0, 0, 0);
	D(cuMemCreate)(&h, bytes, &prop, 0);
	D(cuMemMap)(v, bytes, 0, h, 0);
	D(cuMemRelease)(h);
	if (D(cuMemSetAccess)(v, bytes, devices == 2 ? access_of : &access_of[device], devices))
		SAY("no access\n");
	return v;
}

static CUdeviceptr ordered(void)
{
	CUdeviceptr p = 0;

	D(cuMemAllocAsync)(&p, SIZE, 0);
	D(cuStreamSynchronize)(0);
	return p;
}

/* With device 1's context current. */
static void copies(const char *what, CUdeviceptr there)
{
	static char host[4096];
	CUdeviceptr here;
	CUstream st;
	CUDA_MEMCPY2D flat = {.dstMemoryType = 2, .dstPitch = 4096, .srcMemoryType = 1, .srcHost = host,
			      .srcPitch = 1024, .WidthInBytes = 1024, .Height = 4, .dstDevice = there};

	D(cuMemAlloc_v2)(&here, SIZE);
	D(cuStreamCreate)(&st, 1);
	SAY("-- device 1 current, memory of device 0: %s\n", what);
	R(D(cuMemcpyHtoD_v2)(there, host, 4096));
	R(D(cuMemcpyDtoH_v2)(host, there, 4096));
	R(D(cuMemcpyDtoD_v2)(here, there, 4096));
	R(D(cuMemcpyDtoD_v2)(there, here, 4096));
	R(D(cuMemcpy)(there, here, 4096));
	R(D(cuMemcpy2D_v2)(&flat));
	R(D(cuMemcpyPeer)(here, context[1], there, context[0], 4096));
	R(D(cuMemcpyHtoDAsync_v2)(there, host, 4096, st));
	R(D(cuMemcpyDtoHAsync_v2)(host, there, 4096, st));
	R(D(cuMemcpyDtoDAsync_v2)(here, there, 4096, st));
	R(D(cuMemcpyAsync)(there, here, 4096, st));
	R(D(cuMemcpy2DAsync_v2)(&flat, st));
	R(D(cuMemcpyPeerAsync)(here, context[1], there, context[0], 4096, st));
	R(D(cuStreamSynchronize)(st));
	R(D(cuCtxSynchronize)());
	D(cuStreamDestroy_v2)(st);
	D(cuMemFree_v2)(here);
}

/* Of device 0, open to both, before there is a context on device 1. */
static CUdeviceptr alone(void)
{
	CUdeviceptr p;

	lib = dlopen("libcuda.so.1", RTLD_NOW);
	D(cuInit)(0);
	D(cuDevicePrimaryCtxRetain)(&context[0], 0);
	D(cuCtxSetCurrent)(context[0]);
	p = mapped(0, SIZE, 1, 2);
	R(D(cuDevicePrimaryCtxRetain)(&context[1], 1));
	D(cuCtxSetCurrent)(context[1]);
	return p;
}

/* Of each kind in a process of its own: what goes wrong may stay wrong. */
static void copies_of(int kind)
{
	CUdeviceptr p, late;
	CUmemoryPool pool;

	if (kind != 3)
		start();
	switch (kind) {
	case 0:
		D(cuMemAlloc_v2)(&p, SIZE);
		D(cuCtxSetCurrent)(context[1]);
		copies("cuMemAlloc", p);
		break;
	case 1:
		p = mapped(0, SIZE, 0, 1);
		D(cuCtxSetCurrent)(context[1]);
		copies("mapped", p);
		break;
	case 2:
		p = mapped(0, SIZE, 1, 2);
		D(cuCtxSetCurrent)(context[1]);
		copies("mapped and exportable, for both", p);
		break;
	case 3: /* device 1 has a context later, and another one later still */
		p = alone();
		copies("mapped for both, then context 1", p);
		R(D(cuDevicePrimaryCtxRelease_v2)(1));
		R(D(cuCtxSetCurrent)(context[0]));
		late = mapped(0, SIZE, 1, 2);
		R(D(cuDevicePrimaryCtxRetain)(&context[1], 1));
		D(cuCtxSetCurrent)(context[1]);
		copies("mapped for both before context 1 ended", p);
		copies("mapped for both without context 1", late);
		break;
	default:
		p = ordered();
		D(cuDeviceGetDefaultMemPool)(&pool, 0);
		D(cuCtxSetCurrent)(context[1]);
		copies("stream-ordered", p);
		R(D(cuMemPoolSetAccess)(pool, &access_of[1], 1));
		copies("stream-ordered, its pool's access", p);
	}
}

static void cost(void)
{
	static const size_t sizes[] = {2ul << 20, 32ul << 20, 1ul << 30};

	start();
	for (unsigned i = 0; i < sizeof(sizes) / sizeof(*sizes); i++)
		for (int devices = 1; devices <= 2; devices++) {
			enum { N = 20 };
			CUdeviceptr v[N];
			double t0, set = 0, unmap = 0;

			for (int k = 0; k < N; k++) {
				v[k] = mapped(0, sizes[i], 1, 1);
				D(cuMemsetD8_v2)(v[k], 1, 4096);
				D(cuMemUnmap)(v[k], sizes[i]);
			}
			for (int k = 0; k < N; k++) {
				CUmemAllocationProp prop = {
					.type = 1, .requestedHandleTypes = 1, .location = {.type = 1, .id = 0}};
				CUmemGenericAllocationHandle h;

				D(cuMemCreate)(&h, sizes[i], &prop, 0);
				D(cuMemMap)(v[k], sizes[i], 0, h, 0);
				D(cuMemRelease)(h);
				t0 = now();
				D(cuMemSetAccess)(v[k], sizes[i], access_of, devices);
				set += now() - t0;
			}
			for (int k = 0; k < N; k++) {
				t0 = now();
				D(cuMemUnmap)(v[k], sizes[i]);
				unmap += now() - t0;
			}
			SAY("%zu MiB for %d: access %.1f us, unmap %.1f us\n", sizes[i] >> 20, devices, set / N,
			    unmap / N);
		}
}

static CUdeviceptr reached(enum way way)
{
	CUdeviceptr p = 0;
	CUmemoryPool pool;

	switch (way) {
	case PEER:
	case PEERS:
		D(cuMemAlloc_v2)(&p, SIZE);
		D(cuCtxSetCurrent)(context[1]);
		R(D(cuCtxEnablePeerAccess)(context[0], 0));
		D(cuCtxSetCurrent)(context[0]);
		if (way == PEERS)
			R(D(cuCtxEnablePeerAccess)(context[1], 0));
		return p;
	case EACH:
		mapped(1, SIZE, 1, 2);
		return mapped(0, SIZE, 1, 2);
	case POOL:
		p = ordered();
		D(cuDeviceGetDefaultMemPool)(&pool, 0);
		R(D(cuMemPoolSetAccess)(pool, &access_of[1], 1));
		return p;
	default:
		return mapped(0, SIZE, way == EXPORTABLE || way == WITHDRAWN, way == NONE ? 1 : 2);
	}
}

static void child(int s, enum way way)
{
	CUmemAccessDesc off = access_of[1];
	CUdeviceptr p;
	unsigned w = 0;
	char b = 1;

	start();
	p = reached(way);
	D(cuMemsetD32_v2)(p, 0xabcd, SIZE / 4);
	D(cuCtxSetCurrent)(context[1]);
	if (way != NONE)
		R(D(cuMemsetD32_v2)(p, 0xabce, 1)); /* by device 1 */
	R(D(cuCtxSynchronize)());
	off.flags = 0;
	if (way == WITHDRAWN)
		R(D(cuMemSetAccess)(p, SIZE, &off, 1));
	if (write(s, &b, 1) != 1 || read(s, &b, 1) != 1)
		_exit(1);
	if (way == WITHDRAWN)
		R(D(cuMemSetAccess)(p, SIZE, &access_of[1], 1));
	D(cuCtxSetCurrent)(context[0]);
	R(D(cuMemcpyDtoH_v2)(&w, p, 4));
	SAY("value %x\n", w);
	D(cuCtxSetCurrent)(context[1]);
	R(D(cuMemcpyDtoH_v2)(&w, p, 4)); /* of `none`: refused, as before */
	if (way != NONE)
		R(D(cuMemsetD32_v2)(p, 1, 1));
	R(D(cuCtxSynchronize)());
	_exit(0);
}

/* Asks for one process's checkpoint and restore. */
static void checkpointer(int s, pid_t p)
{
	CUcheckpointLockArgs l = {.timeoutMs = 5000};
	CUprocessState st = 9;
	char b = 1;

	lib = dlopen("libcuda.so.1", RTLD_NOW);
	D(cuInit)(0);
	if (read(s, &b, 1) != 1)
		_exit(1);
	R(D(cuCheckpointProcessLock)(p, &l));
	R(D(cuCheckpointProcessCheckpoint)(p, 0));
	D(cuCheckpointProcessGetState)(p, &st);
	SAY("state %d\n", st);
	if (st == CU_PROCESS_STATE_CHECKPOINTED)
		R(D(cuCheckpointProcessRestore)(p, 0));
	R(D(cuCheckpointProcessUnlock)(p, 0));
	D(cuCheckpointProcessGetState)(p, &st);
	SAY("state %d\n", st);
	if (write(s, &b, 1) != 1)
		_exit(1);
	_exit(0);
}

static void checkpoint(enum way way)
{
	int s[2];
	pid_t target, other;

	SAY("== %s\n", way_names[way]);
	if (socketpair(AF_UNIX, SOCK_STREAM, 0, s))
		exit(1);
	target = fork();
	if (!target) {
		close(s[0]);
		child(s[1], way);
	}
	other = fork();
	if (!other) {
		close(s[1]);
		checkpointer(s[0], target);
	}
	close(s[0]);
	close(s[1]);
	for (int i = 0; i < 400; i++) { /* 20 s: one that is lost answers no more */
		int status;

		if (waitpid(target, &status, WNOHANG) == target) {
			SAY("ended %d\n", status);
			target = 0;
			break;
		}
		usleep(50000);
	}
	if (target) {
		SAY("lost\n");
		kill(target, SIGKILL);
	}
	kill(other, SIGKILL);
	for (int i = 0; i < 100 && waitpid(-1, NULL, WNOHANG) != -1; i++)
		usleep(50000);
}

int main(void)
{
	int count = 0, i;
	pid_t p = fork();

	if (!p) {
		start();
		D(cuDeviceGetCount)(&count);
		_exit(count < 2);
	}
	if (waitpid(p, &i, 0) != p || i) {
		SAY("needs two GPUs\n");
		return 1;
	}
	for (i = 0; i < 6; i++) {
		p = fork();
		if (!p) {
			if (i < 5)
				copies_of(i);
			else
				cost();
			_exit(0);
		}
		waitpid(p, NULL, 0);
	}
	for (i = 0; i < WAYS; i++)
		checkpoint((enum way)i);
	return 0;
}
