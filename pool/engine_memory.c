// SPDX-License-Identifier: MIT
/* Devices by their UUID, their contexts, and physical memory as it comes and goes by descriptor. */
#include "engine_internal.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

const struct driver *engine_driver;

static struct {
	CUdevice device;
	uint8_t uuid[16];
	CUcontext context; /* its primary one, once it was needed; guarded by the lock */
} devices[DEVICES_MAX];
static int device_count;
static pthread_mutex_t context_lock = PTHREAD_MUTEX_INITIALIZER;

int driver_failed(CUresult cu, const char *call, char *text)
{
	const char *name = driver_error_name(engine_driver, cu);

	if (cu == CUDA_ERROR_OUT_OF_MEMORY) {
		snprintf(text, CUDAPOOL_TEXT_LEN, "there is not enough memory (%s: %s)", call, name);
		return -ENOMEM;
	}
	snprintf(text, CUDAPOOL_TEXT_LEN, "%s: %s (%d)", call, name, cu);
	return -EREMOTEIO;
}

int engine_init(const struct driver *driver, char text[CUDAPOOL_TEXT_LEN])
{
	CUresult cu;
	CUuuid uuid;
	int i;

	engine_driver = driver;
	cu = driver->cuDeviceGetCount(&device_count);
	if (device_count > DEVICES_MAX)
		device_count = DEVICES_MAX;
	for (i = 0; cu == CUDA_SUCCESS && i < device_count; i++) {
		cu = driver->cuDeviceGet(&devices[i].device, i);
		if (cu == CUDA_SUCCESS)
			cu = driver->cuDeviceGetUuid(&uuid, devices[i].device);
		memcpy(devices[i].uuid, uuid.bytes, sizeof(devices[i].uuid));
	}
	return cu == CUDA_SUCCESS ? 0 : driver_failed(cu, "looking for devices", text);
}

static int device_find(const uint8_t uuid[16], char *text)
{
	int i;

	for (i = 0; i < device_count; i++) {
		if (!memcmp(devices[i].uuid, uuid, 16))
			return i;
	}
	snprintf(text, CUDAPOOL_TEXT_LEN,
		 "this machine has no GPU %02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x",
		 uuid[0], uuid[1], uuid[2], uuid[3], uuid[4], uuid[5], uuid[6], uuid[7], uuid[8], uuid[9], uuid[10],
		 uuid[11], uuid[12], uuid[13], uuid[14], uuid[15]);
	return -EXDEV;
}

int devices_find(const struct image_header *header, int device[IMAGE_DEVICES], char *text)
{
	uint32_t i;

	for (i = 0; i < header->devices; i++) {
		device[i] = device_find(header->uuid[i], text);
		if (device[i] < 0)
			return device[i];
	}
	return 0;
}

int device_enter(int device, char *text, CUresult *cu)
{
	pthread_mutex_lock(&context_lock);
	*cu = CUDA_SUCCESS;
	if (!devices[device].context)
		*cu = engine_driver->cuDevicePrimaryCtxRetain(&devices[device].context, devices[device].device);
	pthread_mutex_unlock(&context_lock);
	if (*cu != CUDA_SUCCESS)
		return driver_failed(*cu, "cuDevicePrimaryCtxRetain", text);
	*cu = engine_driver->cuCtxSetCurrent(devices[device].context);
	return *cu == CUDA_SUCCESS ? 0 : driver_failed(*cu, "cuCtxSetCurrent", text);
}

int engine_memory(const uint8_t uuid[16], uint64_t *free, uint64_t *total, char text[CUDAPOOL_TEXT_LEN])
{
	size_t free_bytes = 0, total_bytes = 0;
	int device = device_find(uuid, text), err;
	CUresult cu;

	if (device < 0)
		return device;
	err = device_enter(device, text, &cu);
	if (err)
		return err;
	cu = engine_driver->cuMemGetInfo(&free_bytes, &total_bytes);
	*free = free_bytes;
	*total = total_bytes;
	return cu == CUDA_SUCCESS ? 0 : driver_failed(cu, "cuMemGetInfo", text);
}

/* ---- physical memory --------------------------------------------------------------------------- */

int memory_create(CUmemGenericAllocationHandle *memory, int device, uint64_t bytes, bool rdma, char *text, CUresult *cu)
{
	CUmemAllocationProp prop = {
		.type = CU_MEM_ALLOCATION_TYPE_PINNED,
		.requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR,
		.location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = devices[device].device},
		.allocFlags = {.gpuDirectRDMACapable = rdma},
	};

	*cu = engine_driver->cuMemCreate(memory, bytes, &prop, 0);
	return *cu == CUDA_SUCCESS ? 0 : driver_failed(*cu, "cuMemCreate", text);
}

int memory_import(CUmemGenericAllocationHandle *memory, int fd, char *text, CUresult *cu)
{
	*cu = engine_driver->cuMemImportFromShareableHandle(memory, (void *)(intptr_t)fd,
							    CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR);
	return *cu == CUDA_SUCCESS ? 0 : driver_failed(*cu, "cuMemImportFromShareableHandle", text);
}

int memory_export(CUmemGenericAllocationHandle memory, char *text, CUresult *cu)
{
	int fd = -1;

	*cu = engine_driver->cuMemExportToShareableHandle(&fd, memory, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0);
	return *cu == CUDA_SUCCESS ? fd : driver_failed(*cu, "cuMemExportToShareableHandle", text);
}

void memory_release(CUmemGenericAllocationHandle memory)
{
	engine_driver->cuMemRelease(memory);
}

/* ---- addresses for it -------------------------------------------------------------------------- */

int range_reserve(struct range *range, uint64_t size, char *text, CUresult *cu)
{
	*range = (struct range){.size = size};
	*cu = engine_driver->cuMemAddressReserve(&range->start, size, 0, 0, 0);
	if (*cu == CUDA_SUCCESS)
		return 0;
	range->start = 0;
	return driver_failed(*cu, "cuMemAddressReserve", text);
}

int range_map(struct range *range, CUmemGenericAllocationHandle memory, uint64_t bytes, char *text, CUresult *cu)
{
	*cu = engine_driver->cuMemMap(range->start + range->mapped, bytes, 0, memory, 0);
	if (*cu != CUDA_SUCCESS)
		return driver_failed(*cu, "cuMemMap", text);
	range->mapped += bytes;
	return 0;
}

int range_open(const struct range *range, int device, char *text, CUresult *cu)
{
	CUmemAccessDesc access = {
		.location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = devices[device].device},
		.flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE,
	};

	*cu = engine_driver->cuMemSetAccess(range->start, range->mapped, &access, 1);
	return *cu == CUDA_SUCCESS ? 0 : driver_failed(*cu, "cuMemSetAccess", text);
}

void range_end(struct range *range)
{
	if (!range->start)
		return;
	if (range->mapped)
		engine_driver->cuMemUnmap(range->start, range->mapped);
	engine_driver->cuMemAddressFree(range->start, range->size);
	range->start = 0;
}

/* ---- both, of one piece ------------------------------------------------------------------------ */

static int map_or_release(struct mapping *mapping, int device, uint64_t bytes, char *text, CUresult *cu)
{
	int err = range_reserve(&mapping->range, bytes, text, cu);

	if (!err)
		err = range_map(&mapping->range, mapping->memory, bytes, text, cu);
	if (!err)
		err = range_open(&mapping->range, device, text, cu);
	if (err) {
		range_end(&mapping->range);
		memory_release(mapping->memory);
	}
	return err;
}

int mapping_create(struct mapping *mapping, int device, uint64_t bytes, bool rdma, char *text, CUresult *cu)
{
	int err = memory_create(&mapping->memory, device, bytes, rdma, text, cu);

	return err ? err : map_or_release(mapping, device, bytes, text, cu);
}

int mapping_import(struct mapping *mapping, int device, uint64_t bytes, int fd, char *text, CUresult *cu)
{
	int err = memory_import(&mapping->memory, fd, text, cu);

	return err ? err : map_or_release(mapping, device, bytes, text, cu);
}

void mapping_end(struct mapping *mapping)
{
	if (!mapping->range.start)
		return;
	range_end(&mapping->range);
	memory_release(mapping->memory);
}
