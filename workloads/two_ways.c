// SPDX-License-Identifier: MIT
/*
 * With LD_PRELOAD, before the shim: a process whose libraries look the driver's functions up, as CUDA's runtime does, can
 * call them through the shim and past it, as it is told (two_ways.h). So one process shows both, where two would differ by
 * more than the shim makes. What the shim has code of its own for (WRAPPED in functions.def) goes through it always. So
 * does what is linked against libcuda directly; what comes from cuGetExportTable never does.
 */
#include <cuda.h>
#include <dlfcn.h>
#include <pthread.h>
#include <string.h>

#include "../preload/elf.h"
#include "asked.h"
#include "two_ways.h"

#ifndef __x86_64__
#error "its thunks are for x86-64"
#endif

#define PUBLIC __attribute__((visibility("default")))

/* A function that was looked up is given out as a thunk, which jumps to the target of its number. */
#define THUNKS 1024
#define THUNK_BYTES 8
#define TEXT(x) #x
#define NUMBER(x) TEXT(x)

static const void *targets[THUNKS] __attribute__((used));
extern const char thunks[] __attribute__((visibility("hidden")));
/* clang-format off */
__asm__(".pushsection .text\n"
	"	.balign 64\n"
	"thunks:\n"
	"	.set at, 0\n"
	"	.rept " NUMBER(THUNKS) "\n"
	"	jmp	*targets + at(%rip)\n"
	"	.balign " NUMBER(THUNK_BYTES) "\n"
	"	.set at, at + 8\n"
	"	.endr\n"
	".popsection");
/* clang-format on */

static struct way {
	const void *through, *past;
} ways[THUNKS];
static int used;
static bool going_past;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

typedef CUresult lookup_fn(const char *, void **, int, cuuint64_t);
typedef CUresult lookup_v2_fn(const char *, void **, int, cuuint64_t, CUdriverProcAddressQueryResult *);

static struct elf_object driver;
static void *(*real_dlsym)(void *, const char *);
static lookup_fn *real_lookup;
static lookup_v2_fn *real_lookup_v2;

PUBLIC int two_ways(bool past)
{
	int i;

	pthread_mutex_lock(&lock);
	going_past = past;
	for (i = 0; i < used; i++)
		__atomic_store_n(&targets[i], past ? ways[i].past : ways[i].through, __ATOMIC_RELEASE);
	pthread_mutex_unlock(&lock);
	return i;
}

static void *either(void *through, void *past)
{
	int i;

	pthread_mutex_lock(&lock);
	for (i = 0; i < used && (ways[i].through != through || ways[i].past != past); i++)
		;
	if (i == THUNKS)
		fail("more driver functions than %d", THUNKS);
	if (i == used) {
		ways[i] = (struct way){through, past};
		targets[i] = going_past ? past : through;
		used++;
	}
	pthread_mutex_unlock(&lock);
	return (void *)&thunks[i * THUNK_BYTES];
}

/* Is `name` that of a wrapped function, or what it is looked up by, which is without _v2 and the like? */
static bool is_wrapped(const char *name)
{
	static const char *const names[] = {
#define WRAPPED(name) #name,
#define GATED(name)
#include "../preload/functions.def"
	};
	size_t length = strlen(name), i;

	for (i = 0; i < sizeof(names) / sizeof(*names); i++) {
		if (!strncmp(names[i], name, length) && (!names[i][length] || names[i][length] == '_'))
			return true;
	}
	return false;
}

static lookup_fn lookup;
static lookup_v2_fn lookup_v2;

/* `version` is the CUDA version that was asked for: it says which ABI a name without one has. */
static void *handed_out(const char *name, void *through, void *past, int version)
{
	if (!strncmp(name, "cuGetProcAddress_v2", 19) || (!strcmp(name, "cuGetProcAddress") && version >= 12000)) {
		real_lookup_v2 = (lookup_v2_fn *)through;
		return (void *)lookup_v2;
	}
	if (!strcmp(name, "cuGetProcAddress")) {
		real_lookup = (lookup_fn *)through;
		return (void *)lookup;
	}
	return past && past != through && !is_wrapped(name) ? either(through, past) : through;
}

static CUresult lookup(const char *name, void **function, int version, cuuint64_t flags)
{
	lookup_fn *own = (lookup_fn *)elf_find(&driver, "cuGetProcAddress");
	CUresult result = real_lookup(name, function, version, flags);
	void *past = NULL;

	if (!result && function && *function && !own(name, &past, version, flags))
		*function = handed_out(name, *function, past, version);
	return result;
}

static CUresult lookup_v2(const char *name, void **function, int version, cuuint64_t flags,
			  CUdriverProcAddressQueryResult *status)
{
	lookup_v2_fn *own = (lookup_v2_fn *)elf_find(&driver, "cuGetProcAddress_v2");
	CUresult result = real_lookup_v2(name, function, version, flags, status);
	CUdriverProcAddressQueryResult found;
	void *past = NULL;

	if (!result && function && *function && !own(name, &past, version, flags, &found))
		*function = handed_out(name, *function, past, version);
	return result;
}

static bool is_driver(const struct elf_object *o, const void *unused)
{
	(void)unused;
	return !strcmp(o->soname, "libcuda.so.1");
}

/* RTLD_NEXT is relative to the caller: what is not the driver's is jumped to, not called. */
PUBLIC __attribute__((optimize("O2"))) void *dlsym(void *handle, const char *name)
{
	if (!real_dlsym)
		real_dlsym = elf_find_next("dlsym");
	if (handle != RTLD_NEXT && handle != RTLD_DEFAULT && name[0] == 'c' && name[1] == 'u') {
		void *through = real_dlsym(handle, name), *past = NULL;

		if (through && (driver.symbols || elf_select(is_driver, NULL, &driver)))
			past = elf_find(&driver, name);
		return past ? handed_out(name, through, past, 0) : through;
	}
	return real_dlsym(handle, name);
}
