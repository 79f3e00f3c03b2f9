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

int device_find(const uint8_t uuid[16], char *text)
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

/* Gives what the handle stands for an address, for this device. */
static CUresult map(struct mapping *mapping, int device, const char **call)
{
	CUmemAccessDesc access = {
		.location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = devices[device].device},
		.flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE,
	};
	CUresult cu;

	*call = "cuMemAddressReserve";
	cu = engine_driver->cuMemAddressReserve(&mapping->at, mapping->bytes, 0, 0, 0);
	if (cu != CUDA_SUCCESS)
		return cu;
	*call = "cuMemMap";
	cu = engine_driver->cuMemMap(mapping->at, mapping->bytes, 0, mapping->handle, 0);
	if (cu == CUDA_SUCCESS) {
		*call = "cuMemSetAccess";
		cu = engine_driver->cuMemSetAccess(mapping->at, mapping->bytes, &access, 1);
		if (cu != CUDA_SUCCESS)
			engine_driver->cuMemUnmap(mapping->at, mapping->bytes);
	}
	if (cu != CUDA_SUCCESS)
		engine_driver->cuMemAddressFree(mapping->at, mapping->bytes);
	return cu;
}

static int map_or_release(struct mapping *mapping, int device, char *text, CUresult *cu)
{
	const char *call;

	*cu = map(mapping, device, &call);
	if (*cu == CUDA_SUCCESS)
		return 0;
	engine_driver->cuMemRelease(mapping->handle);
	mapping->at = 0;
	return driver_failed(*cu, call, text);
}

int mapping_create(struct mapping *mapping, int device, uint64_t bytes, bool rdma, char *text, CUresult *cu)
{
	CUmemAllocationProp prop = {
		.type = CU_MEM_ALLOCATION_TYPE_PINNED,
		.requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR,
		.location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = devices[device].device},
		.allocFlags = {.gpuDirectRDMACapable = rdma},
	};

	mapping->bytes = bytes;
	*cu = engine_driver->cuMemCreate(&mapping->handle, bytes, &prop, 0);
	if (*cu != CUDA_SUCCESS)
		return driver_failed(*cu, "cuMemCreate", text);
	return map_or_release(mapping, device, text, cu);
}

int mapping_import(struct mapping *mapping, int device, uint64_t bytes, int fd, char *text, CUresult *cu)
{
	mapping->bytes = bytes;
	*cu = engine_driver->cuMemImportFromShareableHandle(&mapping->handle, (void *)(intptr_t)fd,
							    CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR);
	if (*cu != CUDA_SUCCESS)
		return driver_failed(*cu, "cuMemImportFromShareableHandle", text);
	return map_or_release(mapping, device, text, cu);
}

int mapping_export(const struct mapping *mapping, char *text, CUresult *cu)
{
	int fd = -1;

	*cu = engine_driver->cuMemExportToShareableHandle(&fd, mapping->handle,
							  CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0);
	return *cu == CUDA_SUCCESS ? fd : driver_failed(*cu, "cuMemExportToShareableHandle", text);
}

void mapping_end(struct mapping *mapping)
{
	if (!mapping->at)
		return;
	engine_driver->cuMemUnmap(mapping->at, mapping->bytes);
	engine_driver->cuMemAddressFree(mapping->at, mapping->bytes);
	engine_driver->cuMemRelease(mapping->handle);
	mapping->at = 0;
}
