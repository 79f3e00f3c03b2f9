// SPDX-License-Identifier: MIT
/* For applications: any function of the driver, found by its name. */
#ifndef CUDAPOOL_TEST_POOL_DRIVER_CALLS_H
#define CUDAPOOL_TEST_POOL_DRIVER_CALLS_H

#define CUDAPOOL_ABI_NO_VERSIONS
#include <cuda.h>
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#define CUDA_API(needs, symbol, base, since, params, args)		     typedef CUresult symbol##_function params;
#define CUDA_API_PTSZ(needs, symbol, base, since, since_ptsz, params, args) typedef CUresult symbol##_function params;
#define CUDA_API_PTDS(needs, symbol, base, since, since_ptds, params, args) typedef CUresult symbol##_function params;
#include "cuda_api.def"

static inline void *driver_function(const char *name)
{
	static void *driver;
	void *function;

	if (!driver)
		driver = dlopen("libcuda.so.1", RTLD_NOW);
	function = driver ? dlsym(driver, name) : NULL;
	if (!function) {
		fprintf(stderr, "%s: %s\n", program_invocation_short_name, dlerror());
		exit(1);
	}
	return function;
}

static inline void must(CUresult result, const char *what)
{
	if (result == CUDA_SUCCESS)
		return;
	fprintf(stderr, "%s: %s: %d\n", program_invocation_short_name, what, result);
	exit(1);
}

/* The call's result; and a call that must succeed, or the application ends. */
#define RESULT(name, ...) ((name##_function *)driver_function(#name))(__VA_ARGS__)
#define CALL(name, ...)	  must(RESULT(name, __VA_ARGS__), #name)

#endif
