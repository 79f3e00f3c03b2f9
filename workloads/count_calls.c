// SPDX-License-Identifier: MIT
/*
 * With LD_PRELOAD: counts the driver calls of a process whose libraries look the driver's functions up, as CUDA's runtime does.
 * Each function that dlsym or cuGetProcAddress finds is given out as a thunk, which counts and jumps. What is linked against
 * libcuda directly, and what comes from cuGetExportTable, is not counted; the shim's gate does not hold the latter either.
 */
#include <cuda.h>
#include <dlfcn.h>
#include <pthread.h>
#include <string.h>
#include <sys/mman.h>

#include "../preload/elf.h"
#include "asked.h"

#ifndef __x86_64__
#error "its thunks are for x86-64"
#endif

#define PUBLIC __attribute__((visibility("default")))

/* For whoever is in the process: calls so far, in all threads. */
PUBLIC uint64_t driver_calls;

enum { THUNKS = 2048 };

/* mov $&driver_calls, %r11; lock incq (%r11); mov $function, %r11; jmp *%r11. Nothing is passed in r11. */
struct thunk {
	uint8_t mov_counter[2];
	uint64_t counter;
	uint8_t count[4];
	uint8_t mov_function[2];
	uint64_t function;
	uint8_t jump[3];
	uint8_t rest[5];
} __attribute__((packed));
_Static_assert(sizeof(struct thunk) == 32, "a thunk is 32 bytes");

static struct thunk *thunks;
static int used;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void *(*real_dlsym)(void *, const char *);
static CUresult (*real_lookup)(const char *, void **, int, cuuint64_t);
static CUresult (*real_lookup_v2)(const char *, void **, int, cuuint64_t, CUdriverProcAddressQueryResult *);

static void *counted(void *function)
{
	struct thunk thunk = {{0x49, 0xbb}, (uintptr_t)&driver_calls, {0xf0, 0x49, 0xff, 0x03}, {0x49, 0xbb},
			      (uintptr_t)function, {0x41, 0xff, 0xe3}, {0xcc}};
	int i;

	pthread_mutex_lock(&lock);
	if (!thunks)
		thunks = mmap(NULL, THUNKS * sizeof(*thunks), PROT_READ | PROT_WRITE | PROT_EXEC,
			      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (thunks == MAP_FAILED)
		fail("no memory that can be executed");
	for (i = 0; i < used && thunks[i].function != thunk.function; i++)
		;
	if (i == THUNKS)
		fail("more driver functions than %d", THUNKS);
	if (i == used)
		thunks[used++] = thunk;
	pthread_mutex_unlock(&lock);
	return &thunks[i];
}

static void *handed_out(const char *name, void *function, int version);

static CUresult lookup(const char *name, void **function, int version, cuuint64_t flags)
{
	CUresult result = real_lookup(name, function, version, flags);

	if (!result && function && *function)
		*function = handed_out(name, *function, version);
	return result;
}

static CUresult lookup_v2(const char *name, void **function, int version, cuuint64_t flags,
			  CUdriverProcAddressQueryResult *status)
{
	CUresult result = real_lookup_v2(name, function, version, flags, status);

	if (!result && function && *function)
		*function = handed_out(name, *function, version);
	return result;
}

/* `version` is the CUDA version that was asked for: it says which ABI a name without one has. */
static void *handed_out(const char *name, void *function, int version)
{
	if (!strncmp(name, "cuGetProcAddress_v2", 19) || (!strcmp(name, "cuGetProcAddress") && version >= 12000)) {
		real_lookup_v2 = function;
		return lookup_v2;
	}
	if (!strcmp(name, "cuGetProcAddress")) {
		real_lookup = function;
		return lookup;
	}
	return counted(function);
}

/* RTLD_NEXT is relative to the caller: what is not the driver's is jumped to, not called. */
PUBLIC __attribute__((optimize("O2"))) void *dlsym(void *handle, const char *name)
{
	if (!real_dlsym)
		real_dlsym = elf_find_next("dlsym");
	if (handle != RTLD_NEXT && handle != RTLD_DEFAULT && name[0] == 'c' && name[1] == 'u') {
		void *function = real_dlsym(handle, name);
		Dl_info at;

		if (function && dladdr(function, &at) && at.dli_fname && strstr(at.dli_fname, "/libcuda.so"))
			return handed_out(name, function, 0);
		return function;
	}
	return real_dlsym(handle, name);
}
