// SPDX-License-Identifier: MIT
/*
 * What memory of cuMemAlloc says against mapped memory: attributes, ranges, alignment, errors; what functions for
 * mapped memory say about it; maps of a part, access to a part. It ends where the driver does not survive a handle that
 * never was one.
 */
#include "memory.h"

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
	CUdeviceptr p = 0, q = 0, v = 0;
	size_t fr, fr2, to;
	R(D(cuMemAlloc_v2)(&p, 4096));
	R(D(cuMemFree_v2)(0));
	CUcontext c;
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
	R(D(cuMemRelease)(12345)); /* a 580 driver does not survive it; memory2.c goes on from here */
	return 0;
}
