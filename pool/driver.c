// SPDX-License-Identifier: MIT
/* The CUDA driver as the worker uses it, found at run time. */
#include "driver.h"

#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>

int driver_load(struct driver *driver, const char *library, char *text, size_t size)
{
	const struct {
		const char *name;
		enum driver_purpose purpose;
		void **field;
	} functions[] = {
#define DRIVER_ROW(name, purpose) {#name, purpose, (void **)&driver->name},
		DRIVER_FUNCTIONS(DRIVER_ROW)
#undef DRIVER_ROW
	};
	void *handle = dlopen(library, RTLD_NOW | RTLD_LOCAL);
	const char *reason;
	size_t i;

	if (!handle) {
		reason = dlerror();
		snprintf(text, size,
			 "no CUDA driver (%s): install the NVIDIA driver, or name its library in CUDAPOOL_LIBCUDA",
			 reason ? reason : library);
		return -ENOENT;
	}
	for (i = 0; i < sizeof(functions) / sizeof(functions[0]); i++) {
		*functions[i].field = dlsym(handle, functions[i].name);
		if (*functions[i].field)
			continue;
		if (functions[i].purpose == DRIVER_CHECKPOINT)
			snprintf(text, size, "the CUDA driver has no %s: driver r570 or newer is needed",
				 functions[i].name);
		else
			snprintf(text, size,
				 "%s has no %s: it is no CUDA driver; name the right library in CUDAPOOL_LIBCUDA",
				 library, functions[i].name);
		return -ENOSYS;
	}
	return 0;
}

const char *driver_error_name(const struct driver *driver, CUresult result)
{
	const char *name = NULL;

	if (driver->cuGetErrorName(result, &name) != CUDA_SUCCESS || !name)
		return "unknown error";
	return name;
}
