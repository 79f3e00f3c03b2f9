// SPDX-License-Identifier: MIT
/* What memory.c and memory2.c ask with: a call and its result, the time, all that an address says of itself. */
#ifndef CUDAPOOL_PROBES_MEMORY_H
#define CUDAPOOL_PROBES_MEMORY_H

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

static inline void attributes(const char *what, CUdeviceptr p)
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

#endif
