// SPDX-License-Identifier: MIT
/* The driver's functions as a test program reaches them: by one of the routes. */
#ifndef CUDAPOOL_TEST_SHIM_API_H
#define CUDAPOOL_TEST_SHIM_API_H

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CUDAPOOL_ABI_NO_VERSIONS
#include <cuda.h>

/*
 * F(field, exported name, name for cuGetProcAddress, version for it). Through cuGetProcAddress, the version decides
 * which of several functions of one name comes.
 */
#define API(F)                                                                                                         \
	F(cuInit, "cuInit", 2000)                                                                                      \
	F(cuDriverGetVersion, "cuDriverGetVersion", 2020)                                                              \
	F(cuDeviceGetCount, "cuDeviceGetCount", 2000)                                                                  \
	F(cuDeviceGet, "cuDeviceGet", 2000)                                                                            \
	F(cuCtxGetCurrent, "cuCtxGetCurrent", 4000)                                                                    \
	F(cuCtxSetCurrent, "cuCtxSetCurrent", 4000)                                                                    \
	F(cuCtxSynchronize, "cuCtxSynchronize", 2000)                                                                  \
	F(cuCtxGetApiVersion, "cuCtxGetApiVersion", 3020)                                                              \
	F(cuCtxPopCurrent_v2, "cuCtxPopCurrent", 4000)                                                                 \
	F(cuCtxCreate, "cuCtxCreate", 2000)                                                                            \
	F(cuCtxCreate_v2, "cuCtxCreate", 3020)                                                                         \
	F(cuCtxCreate_v3, "cuCtxCreate", 11040)                                                                        \
	F(cuCtxCreate_v4, "cuCtxCreate", 12050)                                                                        \
	F(cuCtxGetFlags, "cuCtxGetFlags", 7000)                                                                        \
	F(cuCtxDestroy, "cuCtxDestroy", 2000)                                                                          \
	F(cuCtxDestroy_v2, "cuCtxDestroy", 4000)                                                                       \
	F(cuDevicePrimaryCtxRetain, "cuDevicePrimaryCtxRetain", 7000)                                                  \
	F(cuDevicePrimaryCtxRelease, "cuDevicePrimaryCtxRelease", 7000)                                                \
	F(cuDevicePrimaryCtxRelease_v2, "cuDevicePrimaryCtxRelease", 11000)                                            \
	F(cuDevicePrimaryCtxReset, "cuDevicePrimaryCtxReset", 7000)                                                    \
	F(cuDevicePrimaryCtxReset_v2, "cuDevicePrimaryCtxReset", 11000)                                                \
	F(cuDevicePrimaryCtxSetFlags, "cuDevicePrimaryCtxSetFlags", 7000)                                              \
	F(cuDevicePrimaryCtxSetFlags_v2, "cuDevicePrimaryCtxSetFlags", 11000)                                          \
	F(cuDevicePrimaryCtxGetState, "cuDevicePrimaryCtxGetState", 7000)

struct api {
#define F(name, base, version) __typeof__(&name) name;
	API(F)
#undef F
};

enum route { ROUTE_DIRECT, ROUTE_DLSYM, ROUTE_DLVSYM, ROUTE_DEFAULT, ROUTE_NEXT, ROUTE_PROC, ROUTE_PROC_V2 };

static inline enum route route_named(const char *name)
{
	static const char *const names[] = {"direct", "dlsym", "dlvsym", "default", "next", "proc", "proc_v2"};
	unsigned i;

	for (i = 0; i < sizeof(names) / sizeof(names[0]); i++)
		if (!strcmp(names[i], name))
			return i;
	fprintf(stderr, "no such route: %s\n", name);
	exit(2);
}

/* One function by one route. "dlvsym" asks for a version that the driver does not have: what comes is the loader's
 * affair. */
static inline void *api_lookup(void *lib, enum route route, const char *name, const char *base, int version)
{
	__typeof__(&cuGetProcAddress) proc;
	__typeof__(&cuGetProcAddress_v2) proc_v2;
	CUdriverProcAddressQueryResult status = 99;
	void *found = NULL;
	CUresult r;

	switch (route) {
	case ROUTE_DLVSYM:
		found = dlvsym(lib, name, "GLIBC_2.2.5");
		return found ? found : dlsym(lib, name);
	case ROUTE_DEFAULT:
		return dlsym(RTLD_DEFAULT, name);
	case ROUTE_NEXT:
		return dlsym(RTLD_NEXT, name);
	case ROUTE_PROC:
		proc = (__typeof__(proc))dlsym(lib, "cuGetProcAddress");
		r = proc(base, &found, version, 0);
		printf("cuGetProcAddress %s %d: %d\n", base, version, r);
		return found;
	case ROUTE_PROC_V2:
		proc_v2 = (__typeof__(proc_v2))dlsym(lib, "cuGetProcAddress_v2");
		r = proc_v2("cuGetProcAddress", &found, 12000, 0, &status);
		if (r == CUDA_SUCCESS && found)
			proc_v2 = (__typeof__(proc_v2))found; /* what the runtime does, too */
		r = proc_v2(base, &found, version, 0, &status);
		printf("cuGetProcAddress_v2 %s %d: %d status %d\n", base, version, r, status);
		return found;
	default:
		return dlsym(lib, name);
	}
}

static inline void *api_open(int flags)
{
	void *lib = dlopen("libcuda.so.1", RTLD_NOW | flags);

	if (!lib) {
		fprintf(stderr, "%s\n", dlerror());
		exit(2);
	}
	return lib;
}

static inline struct api api_by(enum route route)
{
	void *lib = api_open(route == ROUTE_DEFAULT || route == ROUTE_NEXT ? RTLD_GLOBAL : RTLD_LOCAL);
	struct api api;

#define F(name, base, version)                                                                                         \
	api.name = (__typeof__(api.name))api_lookup(lib, route, #name, base, version);                                 \
	if (!api.name)                                                                                                 \
		printf(#name " not found\n");
	API(F)
#undef F
	return api;
}

#endif
