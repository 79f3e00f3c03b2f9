// SPDX-License-Identifier: MIT
/*
 * The same, second part: errors of cuMemCreate, alignment of reservations, stream-ordered pools and what may be freed
 * through them, what fails within a capture, memory of other contexts, and times.
 */
#include "memory.h"

int main(int argc, char **argv)
{
	lib = dlopen("libcuda.so.1", RTLD_NOW);
	R(D(cuInit)(0));
	int nd = 0;
	D(cuDeviceGetCount)(&nd);
	SAY("devices %d\n", nd);
	CUdevice dev;
	D(cuDeviceGet)(&dev, 0);
	int a, dfd;
	size_t fr, fr2, to, pitch;
	CUdeviceptr p = 0, q = 0, v = 0, big = 0;
	CUcontext c, c1 = NULL;
	R(D(cuDevicePrimaryCtxRetain)(&c, dev));
	R(D(cuCtxSetCurrent)(c));
	CUmemAllocationProp pr = {.type = 1, .requestedHandleTypes = 1, .location = {1, 0}}, pg = pr, pd;
	pg.allocFlags.gpuDirectRDMACapable = 1;
	pd = pg;
	pd.allocFlags.usage = 2;
	CUmemLocation loc = {CU_MEM_LOCATION_TYPE_DEVICE, 0};
	CUmemGenericAllocationHandle h = 77;
	CUmemAccessDesc ad = {loc, CU_MEM_ACCESS_FLAGS_PROT_READWRITE};
	D(cuMemAlloc_v2)(&q, 1000);
	D(cuMemAddressReserve)(&v, 64 << 20, 0, 0, 0);
	R(D(cuMemCreate)(&h, (2 << 20) + 4096, &pr, 0));
	R(D(cuMemCreate)(&h, 1ull << 45, &pr, 0));
	R(D(cuMemCreate)(&h, 0, &pr, 0));
	/* usage 2: HW decompress */
	R(D(cuMemCreate)(&h, 8 << 20, &pd, 0));
	R(D(cuMemMap)(v, 8 << 20, 0, h, 0));
	R(D(cuMemSetAccess)(v, 8 << 20, &ad, 1));
	attributes("mapped, usage 2", v);
	R(D(cuMemExportToShareableHandle)(&dfd, h, 1, 0));
	R(D(cuMemUnmap)(v, 8 << 20));
	R(D(cuMemRelease)(h));
	/* host access to device memory: location HOST */
	D(cuMemCreate)(&h, 8 << 20, &pg, 0);
	D(cuMemMap)(v, 8 << 20, 0, h, 0);
	CUmemAccessDesc ah = {{2, 0}, 3};
	R(D(cuMemSetAccess)(v, 8 << 20, &ah, 1));
	R(D(cuMemMap)(v + (16 << 20), 16 << 20, 0, h, 0));
	SAY("^ map more than the handle has\n");
	R(D(cuMemUnmap)(v, 8 << 20));
	R(D(cuMemRelease)(h));
	/* alignments of reservations */
	for (int i = 1; i <= 1024; i *= 4) {
		CUdeviceptr x;
		size_t n = i * (2ull << 20);
		D(cuMemAddressReserve)(&x, n, 0, 0, 0);
		SAY("reserve %zx: %llx\n", n, x);
		D(cuMemAddressFree)(x, n);
	}
	/* pools */
	CUmemoryPool mp = 0, mp2 = 0;
	R(D(cuDeviceGetDefaultMemPool)(&mp, 0));
	SAY("pool %p\n", mp);
	R(D(cuDeviceGetMemPool)(&mp2, 0));
	CUresult (*pga)(CUmemoryPool, int, void *) = dlsym(lib, "cuMemPoolGetAttribute"),
						(*psa)(CUmemoryPool, int, void *) = dlsym(lib, "cuMemPoolSetAttribute"),
						(*trim)(CUmemoryPool, size_t) = dlsym(lib, "cuMemPoolTrimTo");
#define POOL(what)                                                                                                     \
	do {                                                                                                           \
		SAY("pool %s:", what);                                                                                 \
		for (int i = 1; i <= 8; i++) {                                                                         \
			unsigned long long x = 0;                                                                      \
			CUresult r = pga(mp, i, &x);                                                                   \
			SAY(" %d=%llx(%d)", i, x, r);                                                                  \
		}                                                                                                      \
		SAY("\n");                                                                                             \
	} while (0)
	if (pga && trim) {
		POOL("new");
		D(cuMemGetInfo_v2)(&fr, &to);
		R(D(cuMemAllocAsync)(&p, 10 << 20, 0));
		POOL("10 MiB");
		attributes("cuMemAllocAsync 10M", p);
		R(D(cuMemAllocAsync)(&big, 1000, 0));
		SAY("%llx\n", big);
		POOL("and 1000");
		D(cuMemGetInfo_v2)(&fr2, &to);
		SAY("took %zx\n", fr - fr2);
		CUdeviceptr y[6];
		for (int i = 0; i < 6; i++) {
			D(cuMemAllocAsync)(&y[i], (3 << 20) + i, 0);
			SAY("3M %llx\n", y[i]);
		}
		POOL("and 6 of 3 MiB");
		for (int i = 0; i < 6; i++)
			D(cuMemFreeAsync)(y[i], 0);
		POOL("6 freed");
		R(D(cuMemFreeAsync)(p, 0));
		POOL("10 freed");
		R(D(cuMemFreeAsync)(p, 0));
		D(cuStreamSynchronize)(0);
		POOL("synchronised");
		R(trim(mp, 0));
		POOL("trimmed to 0");
		unsigned long long z = 1ull << 40;
		R(psa(mp, 4, &z));
		R(D(cuMemAllocAsync)(&p, 50 << 20, 0));
		POOL("50 MiB with a threshold");
		D(cuMemFreeAsync)(p, 0);
		D(cuStreamSynchronize)(0);
		POOL("freed");
		R(D(cuMemAllocAsync)(&big, 30 << 20, 0));
		SAY("50 was %llx, 30 is %llx\n", p, big);
		z = 0;
		R(psa(mp, 6, &z));
		R(psa(mp, 8, &z));
		z = 5;
		R(psa(mp, 8, &z));
		R(psa(mp, 5, &z));
		POOL("high reset");
		R(D(cuMemFree_v2)(big));
		POOL("cuMemFree");
		R(D(cuMemAllocAsync)(&big, 0, 0));
		R(D(cuMemAllocAsync)(&big, 1ull << 45, 0));
		R(D(cuMemFreeAsync)(0, 0));
		R(D(cuMemFreeAsync)(q, 0));
		SAY("^ of cuMemAlloc\n");
		D(cuMemAlloc_v2)(&q, 1000);
		z = 0;
		psa(mp, 4, &z);
		trim(mp, 0);
		double t0 = now();
		for (int i = 0; i < 1000; i++) {
			D(cuMemAllocAsync)(&p, 4 << 20, 0);
			D(cuMemFreeAsync)(p, 0);
		}
		SAY("alloc and free async %.2f us\n", (now() - t0) / 1000);
		D(cuStreamSynchronize)(0);
	}
	/* capture, what to ask with: candidates for a call that obeys cuMemAlloc's rule and does nothing */
	CUstream st;
	R(D(cuStreamCreate)(&st, 1));
	CUgraph gr = 0;
	CUevent ev;
	D(cuEventCreate)(&ev, 2);
#define C(e)                                                                                                           \
	do {                                                                                                           \
		D(cuStreamBeginCapture_v2)(st, 0);                                                                     \
		R(e);                                                                                                  \
		CUresult er = D(cuStreamEndCapture)(st, &gr);                                                          \
		SAY("   then EndCapture %d\n", er);                                                                    \
		if (gr)                                                                                                \
			D(cuGraphDestroy)(gr);                                                                         \
		gr = 0;                                                                                                \
		double t0 = now();                                                                                     \
		for (int i = 0; i < 100; i++)                                                                          \
			e;                                                                                             \
		SAY("   outside: %d, %.2f us\n", (int)(e), (now() - t0) / 100);                                        \
	} while (0)
	C(D(cuMemAlloc_v2)(&big, 0));
	C(D(cuMemAlloc_v2)(NULL, 0));
	C(D(cuMemAlloc_v2)(&big, 1ull << 62));
	C(D(cuMemFree_v2)(0));
	C(D(cuMemFree_v2)(1));
	C(D(cuMemFree_v2)(q + 8));
	C(D(cuMemAllocPitch_v2)(&big, &pitch, 0, 0, 4));
	C(D(cuEventQuery)(ev));
	C(D(cuMemAllocManaged)(&big, 0, 1));
	C(D(cuMemFreeHost)(NULL));
	C(D(cuMemHostUnregister)((void *)8));
	C(D(cuMemAllocManaged)(&big, 4096, 9));
	C(D(cuMemHostAlloc)((void **)&big, 0, 0));
	D(cuStreamBeginCapture_v2)(st, 2);
	R(D(cuMemAllocAsync)(&big, 4 << 20, st));
	SAY("in a capture: %llx\n", big);
	attributes("graph memory in capture", big);
	R(D(cuMemFreeAsync)(big, st));
	R(D(cuMemAlloc_v2)(&p, 4 << 20));
	R(D(cuMemFree_v2)(p));
	R(D(cuStreamEndCapture)(st, &gr));
	/* without a context, in the driver's eyes */
	R(D(cuCtxSetCurrent)(NULL));
	R(D(cuMemAlloc_v2)(&p, 8 << 20));
	R(D(cuMemFree_v2)(q));
	R(D(cuMemFree_v2)(0));
	R(D(cuMemGetInfo_v2)(&fr, &to));
	R(D(cuMemCreate)(&h, 8 << 20, &pr, 0));
	R(D(cuMemMap)(v, 8 << 20, 0, h, 0));
	R(D(cuMemSetAccess)(v, 8 << 20, &ad, 1));
	R(D(cuMemUnmap)(v, 8 << 20));
	R(D(cuMemRelease)(h));
	R(D(cuMemGetAddressRange_v2)(NULL, NULL, q));
	R(D(cuPointerGetAttribute)(&a, 2, q));
	R(D(cuMemAddressFree)(v, 64 << 20));
	R(D(cuMemAllocAsync)(&v, 4096, 0));
	R(D(cuCtxSetCurrent)(c));
	/* a second context of the device */
	CUcontext cc;
	R(D(cuCtxCreate_v2)(&cc, 0, dev));
	D(cuMemAlloc_v2)(&v, 8 << 20);
	void *vc = 0;
	D(cuPointerGetAttribute)(&vc, 1, v);
	SAY("ctx of alloc %p in %p\n", vc, cc);
	R(D(cuCtxSetCurrent)(c));
	R(D(cuMemFree_v2)(v));
	R(D(cuCtxSetCurrent)(cc));
	D(cuMemAlloc_v2)(&v, 8 << 20);
	R(D(cuCtxSetCurrent)(c));
	R(D(cuCtxDestroy_v2)(cc));
	R(D(cuMemFree_v2)(v));
	attributes("of a destroyed context", v);
	/* times */
	double t[8] = {0};
	enum { N = 200 };
	static CUdeviceptr x[N];
	static CUmemGenericAllocationHandle hh[N];
	double t0;
	for (int i = 0; i < N; i++) {
		t0 = now();
		D(cuMemAddressReserve)(&x[i], 2 << 20, 0, 0, 0);
		t[0] += now() - t0;
		t0 = now();
		D(cuMemCreate)(&hh[i], 2 << 20, &pg, 0);
		t[1] += now() - t0;
		t0 = now();
		D(cuMemMap)(x[i], 2 << 20, 0, hh[i], 0);
		t[2] += now() - t0;
		t0 = now();
		D(cuMemSetAccess)(x[i], 2 << 20, &ad, 1);
		t[3] += now() - t0;
	}
	for (int i = 0; i < N; i++) {
		t0 = now();
		D(cuMemUnmap)(x[i], 2 << 20);
		t[4] += now() - t0;
		t0 = now();
		D(cuMemRelease)(hh[i]);
		t[5] += now() - t0;
		t0 = now();
		D(cuMemAddressFree)(x[i], 2 << 20);
		t[6] += now() - t0;
	}
	SAY("2M each: reserve %.1f create %.1f map %.1f access %.1f unmap %.1f release %.1f addressfree %.1f us\n",
	    t[0] / N, t[1] / N, t[2] / N, t[3] / N, t[4] / N, t[5] / N, t[6] / N);
	t0 = now();
	for (int i = 0; i < N; i++)
		D(cuMemAlloc_v2)(&x[i], 2 << 20);
	SAY("cuMemAlloc 2M %.1f us", (now() - t0) / N);
	t0 = now();
	for (int i = 0; i < N; i++)
		D(cuMemFree_v2)(x[i]);
	SAY(" free %.1f us\n", (now() - t0) / N);
	t0 = now();
	for (int i = 0; i < 10000; i++)
		D(cuPointerGetAttribute)(&a, 2, q);
	SAY("cuPointerGetAttribute %.3f us\n", (now() - t0) / 10000);
	t0 = now();
	for (int i = 0; i < N; i++)
		D(cuMemAlloc_v2)(&x[i], 1000);
	SAY("cuMemAlloc 1000 %.1f us", (now() - t0) / N);
	t0 = now();
	for (int i = 0; i < N; i++)
		D(cuMemFree_v2)(x[i]);
	SAY(" free %.1f us\n", (now() - t0) / N);
	t0 = now();
	for (int i = 0; i < 1000; i++)
		D(cuCtxSynchronize)();
	SAY("idle cuCtxSynchronize %.2f us\n", (now() - t0) / 1000);
	/* one access call for many mappings against one each */
	D(cuMemAddressReserve)(&v, N * (2ull << 20), 0, 0, 0);
	for (int i = 0; i < N; i++) {
		D(cuMemCreate)(&hh[i], 2 << 20, &pg, 0);
		D(cuMemMap)(v + i * (2ull << 20), 2 << 20, 0, hh[i], 0);
	}
	t0 = now();
	R(D(cuMemSetAccess)(v, N * (2ull << 20), &ad, 1));
	SAY("one access call for 200 mappings %.0f us\n", now() - t0);
	t0 = now();
	R(D(cuMemUnmap)(v, N * (2ull << 20)));
	SAY("one unmap for 200 mappings %.0f us\n", now() - t0);
	for (int i = 0; i < N; i++)
		D(cuMemRelease)(hh[i]);
	/* released while mapped: is it kept until unmapped? */
	D(cuMemGetInfo_v2)(&fr, &to);
	D(cuMemCreate)(&h, 1 << 30, &pg, 0);
	D(cuMemMap)(v, N * (2ull << 20) < (1 << 30) ? N * (2ull << 20) : (1 << 30), 0, h, 0);
	/* two devices */
	if (nd > 1) {
		CUdevice d1;
		D(cuDeviceGet)(&d1, 1);
		R(D(cuDevicePrimaryCtxRetain)(&c1, d1));
		D(cuCtxSetCurrent)(c);
		CUdeviceptr l0, l1, m0;
		D(cuMemAlloc_v2)(&l0, 8 << 20);
		D(cuMemAddressReserve)(&m0, 8 << 20, 0, 0, 0);
		D(cuMemCreate)(&h, 8 << 20, &pg, 0);
		D(cuMemMap)(m0, 8 << 20, 0, h, 0);
		D(cuMemSetAccess)(m0, 8 << 20, &ad, 1);
		D(cuCtxSetCurrent)(c1);
		D(cuMemAlloc_v2)(&l1, 8 << 20);
		static char buf[4096];
		SAY("-- current: device 1, without peer access\n");
		R(D(cuMemcpyHtoD_v2)(l0, buf, 4096));
		R(D(cuMemcpyHtoD_v2)(m0, buf, 4096));
		R(D(cuMemcpyDtoH_v2)(buf, l0, 4096));
		R(D(cuMemcpyDtoH_v2)(buf, m0, 4096));
		R(D(cuMemcpyDtoD_v2)(l1, l0, 4096));
		R(D(cuMemcpyDtoD_v2)(l1, m0, 4096));
		R(D(cuMemcpyDtoD_v2)(m0, l1, 4096));
		R(D(cuMemcpy)(m0, l1, 4096));
		R(D(cuMemcpyPeer)(m0, c, l1, c1, 4096));
		R(D(cuMemcpyPeer)(l1, c1, m0, c, 4096));
		R(D(cuMemsetD8_v2)(l0, 1, 4096));
		R(D(cuMemsetD8_v2)(m0, 1, 4096));
		R(D(cuCtxSynchronize)());
		attributes("device 0's cuMemAlloc seen from device 1", l0);
		attributes("device 0's mapped memory seen from device 1", m0);
		R(D(cuMemFree_v2)(l0));
		D(cuCtxSetCurrent)(c);
		D(cuMemAlloc_v2)(&l0, 8 << 20);
		D(cuCtxSetCurrent)(c1);
		int can = 0;
		D(cuDeviceCanAccessPeer)(&can, 1, 0);
		SAY("can access %d\n", can);
		R(D(cuCtxEnablePeerAccess)(c, 0));
		R(D(cuMemcpyDtoD_v2)(l1, m0, 4096));
		CUmemAccessDesc a1 = {{1, 1}, 3};
		R(D(cuMemSetAccess)(m0, 8 << 20, &a1, 1));
		R(D(cuMemcpyDtoD_v2)(l1, m0, 4096));
		R(D(cuMemsetD8_v2)(m0, 1, 4096));
		R(D(cuMemsetD8_v2)(l0, 1, 4096));
		attributes("with peer access: cuMemAlloc", l0);
		attributes("with peer access: mapped", m0);
		R(D(cuCtxDisablePeerAccess)(c));
		a1.flags = 0;
		R(D(cuMemSetAccess)(m0, 8 << 20, &a1, 1));
		R(D(cuMemcpyDtoD_v2)(l1, m0, 4096));
		R(D(cuCtxSynchronize)());
	/* SetAccess for a device without a context */ }
	return 0;
}
