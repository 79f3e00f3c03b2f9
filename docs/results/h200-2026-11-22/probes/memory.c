// SPDX-License-Identifier: MIT
/*
 * What memory of cuMemAlloc says against mapped memory: attributes, ranges, alignment, errors; what functions for
 * mapped memory say about it; maps of a part, access to a part. It ends where the driver does not survive a handle that
 * never was one.
 */
#define CUDAPOOL_ABI_NO_VERSIONS
#include <cuda.h>
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>
static void *lib;
#define D(n) ((__typeof__(&n))dlsym(lib, #n))

static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1e6 + t.tv_nsec / 1e3;
}
#define SAY(...)                                                                                                       \
	do {                                                                                                           \
		printf(__VA_ARGS__);                                                                                   \
		fflush(stdout);                                                                                        \
	} while (0)
#define R(e) SAY("%-70s %d\n", #e, (int)(e))

static CUresult setattr(const void *v, int a, CUdeviceptr p)
{
	CUresult (*f)(const void *, int, CUdeviceptr) = dlsym(lib, "cuPointerSetAttribute");
	return f ? f(v, a, p) : CUDA_ERROR_NOT_FOUND;
}

static CUresult dmabuf(void *v, CUdeviceptr p, size_t s, int t, unsigned long long fl)
{
	CUresult (*f)(void *, CUdeviceptr, size_t, int, unsigned long long) =
		dlsym(lib, "cuMemGetHandleForAddressRange");
	return f ? f(v, p, s, t, fl) : CUDA_ERROR_NOT_FOUND;
}

static void attributes(const char *what, CUdeviceptr p)
{
	static const char *names[] = {"",        "CONTEXT", "MEMTYPE", "DEVPTR",  "HOSTPTR", "P2P",
				      "SYNC",    "BUFID",   "MANAGED", "ORDINAL", "IPC",     "START",
				      "SIZE",    "MAPPED",  "HANDLES", "RDMA",    "ACCESS",  "MEMPOOL",
				      "MAPSIZE", "MAPBASE", "BLOCKID", "HWDECOMP"};
	SAY("-- attributes of %s %llx\n", what, p);
	for (int i = 1; i <= 21; i++) {
		unsigned long long v[4] = {0xaaaaaaaaaaaaaaaaull, 0xaaaaaaaaaaaaaaaaull};
		CUresult r = D(cuPointerGetAttribute)(v, i, p);
		SAY("  %2d %-9s r=%d %llx\n", i, names[i], r, v[0]);
	}
	unsigned long long v[21];
	void *q[21];
	for (int i = 0; i < 21; i++) {
		v[i] = 0xaaaaaaaaaaaaaaaaull;
		q[i] = &v[i];
	}
	CUpointer_attribute few[] = {1, 2, 3, 4, 7, 8, 9, 10, 11, 12, 13, 14, 17, 21};
	for (int i = 0; i < 14; i++)
		q[i] = &v[i];
	CUresult r = D(cuPointerGetAttributes)(14, few, q, p);
	SAY("  many r=%d:", r);
	for (int i = 0; i < 14; i++)
		SAY(" %d=%llx", few[i], v[i]);
	SAY("\n");
	CUdeviceptr b = 1;
	size_t s = 1;
	r = D(cuMemGetAddressRange_v2)(&b, &s, p);
	SAY("  range r=%d %llx %zx\n", r, b, s);
	R(D(cuMemGetAddressRange_v2)(NULL, NULL, p));
}

int main(int argc, char **argv)
{
	lib = dlopen("libcuda.so.1", RTLD_NOW);
	R(D(cuInit)(0));
	int nd = 0;
	D(cuDeviceGetCount)(&nd);
	SAY("devices %d\n", nd);
	CUdevice dev;
	D(cuDeviceGet)(&dev, 0);
	int a;
	for (int i = 102; i <= 116; i++) {
		D(cuDeviceGetAttribute)(&a, i, dev);
		SAY("device attribute %d = %d\n", i, a);
	}
	CUdeviceptr p = 0, q = 0, v = 0, big = 0;
	size_t fr, fr2, to;
	R(D(cuMemAlloc_v2)(&p, 4096));
	R(D(cuMemFree_v2)(0));
	CUcontext c, c1 = NULL;
	R(D(cuDevicePrimaryCtxRetain)(&c, dev));
	R(D(cuCtxSetCurrent)(c));
	SAY("ctx %p\n", c);
	/* sizes and alignments */
	size_t sizes[] = {1,
			  4096,
			  65536,
			  1048576,
			  1048577,
			  (2 << 20) - 1,
			  2 << 20,
			  (2 << 20) + 1,
			  3 << 20,
			  (3 << 20) + 12345,
			  20 << 20,
			  33554433,
			  1073741824ull,
			  1073741824ull + 7};
	for (unsigned i = 0; i < sizeof sizes / sizeof *sizes; i++) {
		D(cuMemGetInfo_v2)(&fr, &to);
		double t = now();
		CUresult r = D(cuMemAlloc_v2)(&p, sizes[i]);
		t = now() - t;
		D(cuMemGetInfo_v2)(&fr2, &to);
		CUdeviceptr b;
		size_t s;
		D(cuMemGetAddressRange_v2)(&b, &s, p);
		size_t rs = 0;
		D(cuPointerGetAttribute)(&rs, 12, p);
		size_t ms = 0;
		D(cuPointerGetAttribute)(&ms, 18, p);
		SAY("alloc %zx r=%d %llx took %zx range %zx attr %zx mapsize %zx %.0f us", sizes[i], r, p, fr - fr2, s,
		    rs, ms, t);
		t = now();
		D(cuMemFree_v2)(p);
		SAY(" free %.0f us\n", now() - t);
	}
	CUdeviceptr two[6];
	for (int i = 0; i < 6; i++) {
		D(cuMemAlloc_v2)(&two[i], (2 << 20) + 512);
		SAY("same size %d: %llx\n", i, two[i]);
	}
	for (int i = 0; i < 6; i++)
		D(cuMemFree_v2)(two[i]);
	D(cuMemAlloc_v2)(&p, (6 << 20) + 12345);
	D(cuMemAlloc_v2)(&q, 1000);
	attributes("cuMemAlloc 6M+12345", p);
	attributes("the same, inside", p + (5 << 20));
	attributes("the same, behind its end", p + (6 << 20) + 12345);
	attributes("small", q);
	size_t pitch = 0;
	CUdeviceptr pp = 0;
	R(D(cuMemAllocPitch_v2)(&pp, &pitch, 5000, 1000, 4));
	SAY("pitch %zx %llx\n", pitch, pp);
	attributes("pitch 5000x1000", pp);
	R(D(cuMemAllocPitch_v2)(&pp, &pitch, 5000, 1000, 3));
	R(D(cuMemAllocPitch_v2)(&pp, &pitch, 0, 1000, 4));
	R(D(cuMemAllocPitch_v2)(&pp, &pitch, 5000, 0, 4));
	R(D(cuMemAllocPitch_v2)(&pp, NULL, 5000, 10, 4));
	R(D(cuMemAllocPitch_v2)(NULL, &pitch, 5000, 10, 4));
	R(D(cuMemAllocPitch_v2)(&pp, &pitch, 1ull << 40, 1ull << 40, 4));
	for (size_t w = 1; w < 3000000; w = w * 3 + 1) {
		CUdeviceptr x = 0;
		CUresult r = D(cuMemAllocPitch_v2)(&x, &pitch, w, 16, 4);
		SAY("width %zu pitch %zu r=%d", w, pitch, r);
		size_t s = 0;
		D(cuMemGetAddressRange_v2)(NULL, &s, x);
		SAY(" range %zu\n", s);
		D(cuMemFree_v2)(x);
	}
	/* errors */
	R(D(cuMemAlloc_v2)(&v, 0));
	R(D(cuMemAlloc_v2)(NULL, 4096));
	R(D(cuMemAlloc_v2)(NULL, 8 << 20));
	R(D(cuMemAlloc_v2)(&v, 1ull << 40));
	R(D(cuMemAlloc_v2)(&v, 1ull << 52));
	R(D(cuMemAlloc_v2)(&v, ~0ull));
	R(D(cuMemAlloc_v2)(&v, ~0ull - 4096));
	SAY("v after failures %llx\n", v);
	R(D(cuMemFree_v2)(p + 4096));
	R(D(cuMemFree_v2)(0x1234000));
	R(D(cuMemFree_v2)(0));
	/* VMM functions on cuMemAlloc'd memory */
	unsigned long long fl = 99;
	CUmemLocation loc = {CU_MEM_LOCATION_TYPE_DEVICE, 0};
	CUmemGenericAllocationHandle h = 77, h2 = 77;
	CUmemAccessDesc ad = {loc, CU_MEM_ACCESS_FLAGS_PROT_READWRITE};
	R(D(cuMemGetAccess)(&fl, &loc, p));
	SAY("flags %llu\n", fl);
	R(D(cuMemSetAccess)(p, 6 << 20, &ad, 1));
	R(D(cuMemSetAccess)(p, 8 << 20, &ad, 1));
	R(D(cuMemUnmap)(p, 6 << 20));
	R(D(cuMemUnmap)(p, 8 << 20));
	R(D(cuMemAddressFree)(p, 8 << 20));
	R(D(cuMemRetainAllocationHandle)(&h, (void *)p));
	int one = 1;
	R(setattr(&one, 6, p));
	CUipcMemHandle ipc;
	R(D(cuIpcGetMemHandle)(&ipc, p));
	R(D(cuIpcGetMemHandle)(&ipc, p + 4096));
	int dfd = -1;
	R(dmabuf(&dfd, p, 2 << 20, 1, 0));
	SAY("dmabuf %d\n", dfd);
	if (dfd >= 0)
		close(dfd);
	R(D(cuMemFree_v2)(p));
	R(D(cuMemFree_v2)(p));
	attributes("freed", p);
	/* mapped memory */
	CUmemAllocationProp pr = {.type = 1, .requestedHandleTypes = 1, .location = {1, 0}},
			    pn = {.type = 1, .location = {1, 0}}, pg = pr;
	pg.allocFlags.gpuDirectRDMACapable = 1;
	size_t g = 0;
	R(D(cuMemGetAllocationGranularity)(&g, &pr, 0));
	SAY("min %zx\n", g);
	R(D(cuMemGetAllocationGranularity)(&g, &pr, 1));
	SAY("recommended %zx\n", g);
	R(D(cuMemGetAllocationGranularity)(&g, &pg, 0));
	SAY("rdma min %zx\n", g);
	R(D(cuMemAddressReserve)(&v, 64 << 20, 0, 0, 0));
	R(D(cuMemCreate)(&h, 8 << 20, &pg, 0));
	SAY("handle %llx\n", h);
	R(D(cuMemCreate)(&h2, 8 << 20, &pn, 0));
	SAY("handle without type %llx\n", h2);
	CUmemAllocationProp got;
	memset(&got, 0xaa, sizeof got);
	R(D(cuMemGetAllocationPropertiesFromHandle)(&got, h));
	SAY("prop type %d handles %d loc %d %d win %p comp %d rdma %d usage %d res %x\n", got.type,
	    got.requestedHandleTypes, got.location.type, got.location.id, got.win32HandleMetaData,
	    got.allocFlags.compressionType, got.allocFlags.gpuDirectRDMACapable, got.allocFlags.usage,
	    *(int *)got.allocFlags.reserved);
	R(D(cuMemMap)(v, 8 << 20, 0, h, 0));
	attributes("mapped without access", v);
	R(D(cuMemSetAccess)(v, 8 << 20, &ad, 1));
	attributes("mapped", v + 4096);
	R(setattr(&one, 6, v));
	R(D(cuMemFree_v2)(v));
	R(D(cuIpcGetMemHandle)(&ipc, v));
	R(dmabuf(&dfd, v, 2 << 20, 1, 0));
	R(D(cuMemMap)(v, 8 << 20, 0, h2, 0)); /* already mapped */
	R(D(cuMemMap)(v + (8 << 20), 8 << 20, 0, h2, 0));
	attributes("mapped second, no handle type, no access", v + (8 << 20));
	R(D(cuMemSetAccess)(v, 16 << 20, &ad, 1));
	R(D(cuMemSetAccess)(v, 4 << 20, &ad, 1));
	R(D(cuMemSetAccess)(v + (2 << 20), 2 << 20, &ad, 1));
	R(D(cuMemSetAccess)(v + 4096, 4096, &ad, 1));
	R(D(cuMemSetAccess)(v, 18 << 20, &ad, 1));
	attributes("mapped second with access", v + (8 << 20));
	R(D(cuMemcpyDtoD_v2)(v + (4 << 20), v + (8 << 20) + 4096, 1 << 20));
	R(D(cuMemcpyDtoD_v2)(v + (7 << 20), v, 2 << 20));
	R(D(cuMemsetD8_v2)(v, 1, 16 << 20));
	R(D(cuMemMap)(v + (20 << 20), 2 << 20, 0, h, 0));
	SAY("^ partial map\n");
	R(D(cuMemMap)(v + (24 << 20), 2 << 20, 2 << 20, h, 0));
	SAY("^ map at offset\n");
	R(D(cuMemMap)(v + (28 << 20), 8 << 20, 0, h, 0));
	SAY("^ second map\n");
	R(D(cuMemSetAccess)(v + (28 << 20), 8 << 20, &ad, 1));
	R(D(cuMemUnmap)(v + (2 << 20), 2 << 20));
	R(D(cuMemUnmap)(v, 2 << 20));
	R(D(cuMemUnmap)(v, 12 << 20));
	R(D(cuMemAddressFree)(v, 64 << 20));
	CUmemGenericAllocationHandle h3 = 77;
	R(D(cuMemRetainAllocationHandle)(&h3, (void *)(v + 12345)));
	SAY("retained %llx of %llx\n", h3, h);
	R(D(cuMemRelease)(h3));
	R(D(cuMemRelease)(h));
	R(D(cuMemRelease)(h));
	R(D(cuMemRetainAllocationHandle)(&h3, (void *)(v)));
	R(D(cuMemRelease)(h3));
	R(D(cuMemExportToShareableHandle)(&dfd, h2, 1, 0));
	R(D(cuMemUnmap)(v, 16 << 20));
	R(D(cuMemUnmap)(v, 8 << 20));
	R(D(cuMemUnmap)(v + (28 << 20), 8 << 20));
	R(D(cuMemRelease)(h2));
	R(D(cuMemRelease)(12345));
	R(D(cuMemCreate)(&h, (2 << 20) + 4096, &pr, 0));
	R(D(cuMemCreate)(&h, 1ull << 45, &pr, 0));
	R(D(cuMemCreate)(&h, 0, &pr, 0));
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
	/* capture: what is forbidden, by mode */
	for (int mode = 0; mode < 3; mode++) {
		CUstream st;
		CUgraph gr = 0;
		R(D(cuStreamCreate)(&st, 1));
		D(cuMemAlloc_v2)(&p, 8 << 20);
		D(cuMemAddressReserve)(&v, 8 << 20, 0, 0, 0);
		D(cuMemCreate)(&h2, 8 << 20, &pr, 0);
#define C(e)                                                                                                           \
	do {                                                                                                           \
		R(D(cuStreamBeginCapture_v2)(st, mode));                                                               \
		R(e);                                                                                                  \
		CUresult er = D(cuStreamEndCapture)(st, &gr);                                                          \
		SAY("   mode %d: then EndCapture %d\n", mode, er);                                                     \
		if (gr)                                                                                                \
			D(cuGraphDestroy)(gr);                                                                         \
		gr = 0;                                                                                                \
	} while (0)
		C(D(cuMemAlloc_v2)(&big, 8 << 20));
		C(D(cuMemAlloc_v2)(&big, 1000));
		C(D(cuMemAlloc_v2)(&big, 0));
		C(D(cuMemFree_v2)(p));
		C(D(cuMemFree_v2)(0));
		C(D(cuMemGetInfo_v2)(&fr, &to));
		C(D(cuMemCreate)(&h, 8 << 20, &pr, 0));
		C(D(cuMemMap)(v, 8 << 20, 0, h2, 0));
		C(D(cuMemSetAccess)(v, 8 << 20, &ad, 1));
		C(D(cuMemUnmap)(v, 8 << 20));
		C(D(cuMemRelease)(h2));
		C(D(cuMemAddressReserve)(&big, 8 << 20, 0, 0, 0));
		C(D(cuMemAddressFree)(v, 8 << 20));
		C(D(cuCtxSynchronize)());
		C(D(cuPointerGetAttribute)(&a, 2, q));
		C(D(cuMemExportToShareableHandle)(&dfd, h, 1, 0));
		C(D(cuMemAllocAsync)(&big, 4096, st));
		C(D(cuStreamSynchronize)(0));
		C(D(cuStreamQuery)(0));
		C(D(cuMemAllocPitch_v2)(&big, &pitch, 1000, 1000, 4));
		C(D(cuMemAllocManaged)(&big, 4096, 1));
		C(D(cuMemsetD8_v2)(q, 0, 100));
	}
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
