// SPDX-License-Identifier: MIT
/* GPU memory for tests of the engine: pieces as a shim would hand them over, and what is in them. */
#ifndef CUDAPOOL_TEST_POOL_GPU_H
#define CUDAPOOL_TEST_POOL_GPU_H

#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <unistd.h>

#include "engine_internal.h"

static struct driver gpu;

static inline const char *gpu_library(void)
{
	const char *library = getenv("CUDAPOOL_LIBCUDA");

	return library ? library : "libcuda.so.1";
}

/* One that the pool does not use. */
static inline void *gpu_function(const char *name)
{
	return dlsym(dlopen(gpu_library(), RTLD_NOW), name);
}

/* Without a driver there is nothing to test. */
static inline void gpu_open(void)
{
	char text[CUDAPOOL_TEXT_LEN] = "";

	if (driver_load(&gpu, gpu_library(), text, sizeof(text)) || gpu.cuInit(0) || engine_init(&gpu, text)) {
		fprintf(stderr, "no driver: %s\n", text);
		exit(1);
	}
}

static inline void gpu_uuid(int device, uint8_t uuid[16])
{
	CUuuid id;

	if (gpu.cuDeviceGetUuid(&id, device))
		abort();
	memcpy(uuid, id.bytes, 16);
}

/* A new piece; its descriptor. */
static inline int gpu_piece(int device, uint64_t bytes, struct mapping *mapping)
{
	char text[CUDAPOOL_TEXT_LEN] = "";
	CUresult cu;
	int fd = -1;

	if (device_enter(device, text, &cu) || mapping_create(mapping, device, bytes, false, text, &cu) ||
	    (fd = memory_export(mapping->memory, text, &cu)) < 0) {
		fprintf(stderr, "no piece of %llu bytes: %s\n", (unsigned long long)bytes, text);
		exit(1);
	}
	return fd;
}

static inline void gpu_write(int device, CUdeviceptr to, const void *from, uint64_t bytes)
{
	char text[CUDAPOOL_TEXT_LEN];
	CUresult cu;

	if (device_enter(device, text, &cu) || gpu.cuMemcpyHtoDAsync(to, from, bytes, NULL) ||
	    gpu.cuStreamSynchronize(NULL))
		abort();
}

static inline void gpu_read(int device, void *to, CUdeviceptr from, uint64_t bytes)
{
	char text[CUDAPOOL_TEXT_LEN];
	CUresult cu;

	if (device_enter(device, text, &cu) || gpu.cuMemcpyDtoHAsync(to, from, bytes, NULL) ||
	    gpu.cuStreamSynchronize(NULL))
		abort();
}

static inline uint64_t gpu_free_bytes(int device)
{
	char text[CUDAPOOL_TEXT_LEN];
	uint64_t free = 0, total;
	uint8_t uuid[16];

	gpu_uuid(device, uuid);
	if (engine_memory(uuid, &free, &total, text))
		abort();
	return free;
}

/* A file system in memory with one option, mounted nowhere; -1: one may not make it here. */
static inline int memory_fs(const char *option, const char *value)
{
	int config = fsopen("tmpfs", FSOPEN_CLOEXEC), root = -1;

	if (config >= 0 && !fsconfig(config, FSCONFIG_SET_STRING, option, value, 0) &&
	    !fsconfig(config, FSCONFIG_CMD_CREATE, NULL, NULL, 0))
		root = fsmount(config, FSMOUNT_CLOEXEC, 0);
	close(config);
	return root;
}

/* Numbers that look random, the same ones for the same seed. */
static inline uint64_t gpu_random(uint64_t *seed)
{
	*seed ^= *seed << 13;
	*seed ^= *seed >> 7;
	*seed ^= *seed << 17;
	return *seed;
}

#endif
