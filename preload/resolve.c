// SPDX-License-Identifier: MIT
/* Which function a lookup is given: dlsym, dlvsym, cuGetProcAddress, and the first call through an export. */
#include <dlfcn.h>
#include <errno.h>

#define CUDAPOOL_ABI_NO_VERSIONS
#include <cuda.h>

#include "elf.h"
#include "shim.h"
#include "stub_size.h"

/*
 * As long as the name is not one of the driver's, nothing here allocates, logs, takes a lock, or calls a function
 * of libc at all: allocators and sanitizers call dlsym, before they work themselves.
 *
 * The real dlsym cannot be had from dlvsym(RTLD_NEXT, "dlsym", ...), the usual way, because dlvsym is
 * intercepted as well, and a reference of ours would find ourselves. So both, and whatever else of libc has
 * another version or another library in another glibc, are read out of the symbol tables of the loaded
 * objects; thus the shim loads with any glibc. Addresses of the driver's functions are found in the same
 * way: dlsym's failures would show in the application's dlerror().
 */

extern const char cudapool_stubs[];
extern CUresult cudapool_refuse(void);
/* Called by stubs.S only. */
void *cudapool_on_dlsym(void *handle, const char *name, const void *caller);
void *cudapool_on_dlvsym(void *handle, const char *name, const char *version, const void *caller);
void *cudapool_bind(enum cudapool_function fn);
CUresult cudapool_wrap_cuGetProcAddress(const char *symbol, void **function, int version, cuuint64_t flags);
CUresult cudapool_wrap_cuGetProcAddress_v2(const char *symbol, void **function, int version, cuuint64_t flags,
					   CUdriverProcAddressQueryResult *status);
CUresult cudapool_wrap_cuGetProcAddress_v2_ptsz(const char *symbol, void **function, int version, cuuint64_t flags,
						CUdriverProcAddressQueryResult *status);

void *cudapool_real[CUDAPOOL_FUNCTIONS];
void *cudapool_entry[CUDAPOOL_FUNCTIONS] __attribute__((visibility("hidden")));
void *(*cudapool_real_dlsym)(void *handle, const char *name);
void *(*cudapool_real_dlvsym)(void *handle, const char *name, const char *version);
bool cudapool_inert;

/* The names, one after another in one object: pointers to them would have to be relocated in every process. */
static const struct names {
#define GATED(name) char name[sizeof(#name)];
#include "functions.def"
} names = {
#define GATED(name) #name,
#include "functions.def"
};

static const uint16_t name_at[CUDAPOOL_FUNCTIONS] = {
#define GATED(name) offsetof(struct names, name),
#include "functions.def"
};

/* Those that are known and not intercepted. */
static const char free_names[][40] = {
#define GATED(name)
#define FREE(name) #name,
#include "functions.def"
};

static const char *name_of(int fn)
{
	return (const char *)&names + name_at[fn];
}

/* The first function whose name is not less than `name`. */
static int lower_bound(const char *name)
{
	int low = 0, high = CUDAPOOL_FUNCTIONS;

	while (low < high) {
		int middle = (low + high) / 2;

		if (elf_compare(name_of(middle), name) < 0)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

static int function_named(const char *name)
{
	int fn = lower_bound(name);

	return fn < CUDAPOOL_FUNCTIONS && !elf_compare(name_of(fn), name) ? fn : -1;
}

static void *stub_of(int fn)
{
	return (void *)(cudapool_stubs + fn * CUDAPOOL_STUB_SIZE);
}

void *cudapool_libc_function(const char *name)
{
	return elf_find_after(NULL, name);
}

static void find_real(void)
{
	void *(*real)(void *, const char *) = elf_find_next("dlsym");

	/* Also before our constructor ran, and by several threads at once: all find the same. */
	__atomic_store_n(&cudapool_real_dlvsym, elf_find_next("dlvsym"), __ATOMIC_RELAXED);
	__atomic_store_n(&cudapool_real_dlsym, real, __ATOMIC_RELEASE);
}

/* The driver. */

static struct elf_object driver; /* once bound, this one only: another copy of libcuda is left alone */
static bool driver_bound;

static bool is_libcuda(const struct elf_object *o)
{
	return !elf_compare(o->soname, "libcuda.so.1") && elf_find(o, "cuInit");
}

static bool want_libcuda(const struct elf_object *o, const void *unused)
{
	return is_libcuda(o);
}

static bool want_holder(const struct elf_object *o, const void *address)
{
	return o->low <= (uintptr_t)address && (uintptr_t)address < o->high;
}

/*
 * From here on the driver stays loaded: its addresses are in our tables, and warming may be inside it. An
 * application that closes it and opens it again finds it as it left it.
 */
static void bind_driver(const struct elf_object *o)
{
	void *(*open)(const char *, int) = cudapool_libc_function("dlopen");

	if (open)
		open(o->path, RTLD_LAZY | RTLD_NOLOAD);
	/* Threads that come here at the same time write the same. */
	driver = *o;
	__atomic_store_n(&driver_bound, true, __ATOMIC_RELEASE);
}

bool cudapool_driver_find(void)
{
	struct elf_object o;

	if (__atomic_load_n(&driver_bound, __ATOMIC_ACQUIRE))
		return true;
	if (!elf_select(want_libcuda, NULL, &o))
		return false;
	bind_driver(&o);
	return true;
}

static bool is_drivers(const void *address)
{
	struct elf_object o;

	if (!address)
		return false;
	if (__atomic_load_n(&driver_bound, __ATOMIC_ACQUIRE))
		return want_holder(&driver, address);
	if (!elf_select(want_holder, address, &o) || !is_libcuda(&o))
		return false;
	bind_driver(&o);
	return true;
}

void *cudapool_driver_function(enum cudapool_function fn)
{
	void *real = __atomic_load_n(&cudapool_real[fn], __ATOMIC_ACQUIRE);

	if (!real && __atomic_load_n(&driver_bound, __ATOMIC_ACQUIRE)) {
		real = elf_find(&driver, name_of(fn));
		__atomic_store_n(&cudapool_real[fn], real, __ATOMIC_RELEASE);
	}
	return real;
}

/* A name in _ptsz or _ptds. */
static bool is_per_thread(const char *name)
{
	const char *end = name;

	while (*end)
		end++;
	return end - name > 5 && (!elf_compare(end - 5, "_ptsz") || !elf_compare(end - 5, "_ptds"));
}

/* What an application gets that looked `fn` up and found the driver's own. */
static void *hand_out(int fn, void *real)
{
	int saved_errno = errno;

	__atomic_store_n(&cudapool_real[fn], real, __ATOMIC_RELEASE);
	cudapool_start();
	if (is_per_thread(name_of(fn)))
		cudapool_state.per_thread = true;
	if (cudapool_state.page)
		__atomic_fetch_add(&cudapool_state.page->resolved, 1, __ATOMIC_RELAXED);
	errno = saved_errno;
	return stub_of(fn);
}

/* Lookups by name. */

/* version: NULL for dlsym. */
static void *real_lookup(void *handle, const char *name, const char *version)
{
	return version ? cudapool_real_dlvsym(handle, name, version) : cudapool_real_dlsym(handle, name);
}

/*
 * Does a lookup of `name` by the code at `caller`, with RTLD_DEFAULT or RTLD_NEXT, find anything? The
 * global scope is the same for everyone; a library that was opened with RTLD_LOCAL sees itself and what it depends on.
 */
static void *visible_to(const void *caller, const char *name, const char *version)
{
	void *(*open)(const char *, int) = cudapool_libc_function("dlopen");
	int (*close)(void *) = cudapool_libc_function("dlclose");
	void *found = real_lookup(RTLD_DEFAULT, name, version), *handle;
	struct elf_object o;

	if (found || !open || !close || !elf_select(want_holder, caller, &o) || !*o.path)
		return found;
	handle = open(o.path, RTLD_LAZY | RTLD_NOLOAD);
	if (handle) {
		found = real_lookup(handle, name, version);
		close(handle);
	}
	return found;
}

static void *lookup(void *handle, const char *name, const char *version, const void *caller)
{
	void *found;

	if (handle != RTLD_DEFAULT && handle != RTLD_NEXT)
		return real_lookup(handle, name, version);
	found = visible_to(caller, name, version);
	return found && handle == RTLD_NEXT ? elf_find_after(caller, name) : found;
}

/* Is this lookup about a function of the driver? By the look of its name: cuBLAS and its kin go on in lower case. */
static bool candidate(const char *name)
{
	if (!__atomic_load_n(&cudapool_real_dlsym, __ATOMIC_ACQUIRE))
		find_real();
	return !cudapool_inert && name && name[0] == 'c' && name[1] == 'u' && name[2] >= 'A' && name[2] <= 'Z';
}

static bool is_free(const char *name)
{
	size_t i;

	for (i = 0; i < sizeof(free_names) / sizeof(free_names[0]); i++)
		if (!elf_compare(free_names[i], name))
			return true;
	return false;
}

/* The driver has it, an application looked it up, and we do not know it: a hole in the gate, which the page names. */
static void note_unknown(const char *name)
{
	struct cudapool_page *page = cudapool_state.page;
	uint32_t hash = 1, i;
	const char *c;

	if (!page || is_free(name))
		return;
	for (c = name; *c; c++)
		hash = hash * 33 + (unsigned char)*c;
	for (i = 0; i < CUDAPOOL_UNKNOWN; i++) {
		uint32_t none = 0;

		if (__atomic_compare_exchange_n(&cudapool_state.unknown[i], &none, hash, false, __ATOMIC_RELAXED,
						__ATOMIC_RELAXED))
			break;
		if (none == hash)
			return;
	}
	if (__atomic_fetch_add(&page->unknown, 1, __ATOMIC_RELAXED))
		return;
	for (i = 0; name[i] && i < sizeof(page->unknown_name) - 1; i++)
		page->unknown_name[i] = name[i];
}

/* What the application gets instead of what it would find by itself; NULL: that. */
static void *intercepted(void *handle, const char *name, const char *version, const void *caller)
{
	int fn = function_named(name);
	void *real;

	if (fn < 0 && !__atomic_load_n(&driver_bound, __ATOMIC_ACQUIRE))
		return NULL;
	real = lookup(handle, name, version, caller);
	if (!is_drivers(real))
		return NULL;
	if (fn >= 0)
		return hand_out(fn, real);
	note_unknown(name);
	return NULL;
}

void *cudapool_on_dlsym(void *handle, const char *name, const void *caller)
{
	return candidate(name) && cudapool_real_dlsym ? intercepted(handle, name, NULL, caller) : NULL;
}

void *cudapool_on_dlvsym(void *handle, const char *name, const char *version, const void *caller)
{
	return candidate(name) && cudapool_real_dlvsym && version ? intercepted(handle, name, version, caller) : NULL;
}

/*
 * Where the first call through an export goes. A library between us and the driver that defines the
 * same name is called, as it would be without us; it finds our stub when it looks for the next one.
 */
void *cudapool_bind(enum cudapool_function fn)
{
	int saved_errno = errno;
	void *next = elf_find_after(cudapool_stubs, name_of(fn)), *target = next;

	if (next && is_drivers(next)) {
		target = cudapool_inert ? next : hand_out(fn, next);
	} else if (!next) {
		/* Only a weak reference gets here: without us it would have been NULL. */
		errno = saved_errno;
		return cudapool_refuse;
	}
	__atomic_store_n(&cudapool_entry[fn], target, __ATOMIC_RELEASE);
	errno = saved_errno;
	return target;
}

/*
 * cuGetProcAddress: the driver has chosen by the version and the flags, and what it returns is always the
 * address of one of its exported functions (on a 580 driver without exception, any version, any flags). So the
 * choice is recognised by the address, first among the names that begin like this symbol, which nearly always is enough.
 */
static void *replace(const char *symbol, void *address)
{
	int fn;

	for (fn = lower_bound(symbol); fn < CUDAPOOL_FUNCTIONS; fn++) {
		const char *rest = name_of(fn), *s = symbol;

		for (; *s && *rest == *s; s++)
			rest++;
		if (*s)
			break;
		if ((!*rest || *rest == '_') && cudapool_driver_function(fn) == address)
			return hand_out(fn, address);
	}
	if (!candidate(symbol) || is_free(symbol))
		return address;
	/* From CUDA 12.0 on cuGraphInstantiate is cuGraphInstantiateWithFlags. */
	for (fn = 0; fn < CUDAPOOL_FUNCTIONS; fn++)
		if (cudapool_driver_function(fn) == address)
			return hand_out(fn, address);
	note_unknown(symbol);
	return address;
}

static CUresult replaced(CUresult result, const char *symbol, void **function)
{
	int saved_errno = errno;

	if (result == CUDA_SUCCESS && symbol && function && *function && !cudapool_inert)
		*function = replace(symbol, *function);
	errno = saved_errno;
	return result;
}

CUresult cudapool_wrap_cuGetProcAddress(const char *symbol, void **function, int version, cuuint64_t flags)
{
	__typeof__(&cudapool_wrap_cuGetProcAddress) real = cudapool_real[cudapool_fn_cuGetProcAddress];

	return replaced(real(symbol, function, version, flags), symbol, function);
}

CUresult cudapool_wrap_cuGetProcAddress_v2(const char *symbol, void **function, int version, cuuint64_t flags,
					   CUdriverProcAddressQueryResult *status)
{
	__typeof__(&cudapool_wrap_cuGetProcAddress_v2) real = cudapool_real[cudapool_fn_cuGetProcAddress_v2];

	return replaced(real(symbol, function, version, flags, status), symbol, function);
}

CUresult cudapool_wrap_cuGetProcAddress_v2_ptsz(const char *symbol, void **function, int version, cuuint64_t flags,
						CUdriverProcAddressQueryResult *status)
{
	__typeof__(&cudapool_wrap_cuGetProcAddress_v2_ptsz) real = cudapool_real[cudapool_fn_cuGetProcAddress_v2_ptsz];

	return replaced(real(symbol, function, version, flags, status), symbol, function);
}
