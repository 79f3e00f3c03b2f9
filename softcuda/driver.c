// SPDX-License-Identifier: MIT
/* Initialisation, fork, devices and error names. */
#include "internal.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

_Atomic int softcuda_phase;
bool softcuda_started_cold;
struct softcuda_device softcuda_devices[SOFTCUDA_MAX_DEVICES];

static pthread_mutex_t init_lock = PTHREAD_MUTEX_INITIALIZER;

static void in_child(void)
{
	pthread_mutex_init(&init_lock, NULL);
	if (atomic_load(&softcuda_phase) != SOFTCUDA_READY)
		return;
	atomic_store(&softcuda_phase, SOFTCUDA_CHILD);
	softcuda_gate_reset_in_child();
	softcuda_hold_in_child();
	softcuda_checkpoint_in_child();
}

__attribute__((destructor)) static void at_exit(void)
{
	if (atomic_load(&softcuda_phase) == SOFTCUDA_READY)
		softcuda_physicals_forget();
	atomic_store(&softcuda_phase, SOFTCUDA_ENDED);
}

static void devices_fill(void)
{
	for (unsigned i = 0; i < softcuda_config.devices; i++) {
		softcuda_uuid(i, &softcuda_devices[i].uuid);
		softcuda_devices[i].host_index = i;
	}
}

static CUresult init_once(void)
{
	uint64_t start = softcuda_now_ns();
	CUresult result = CUDA_ERROR_INVALID_VALUE;
	static bool fork_handled;
	int error;

	if (softcuda_config_read())
		return result;
	result = softcuda_fault(API_cuInit);
	if (result != CUDA_SUCCESS)
		return result;
	if (!softcuda_config.devices)
		return CUDA_ERROR_NO_DEVICE;
	if (softcuda_hold_open(&softcuda_started_cold))
		return CUDA_ERROR_OPERATING_SYSTEM;
	error = softcuda_hold_device();
	if (error)
		softcuda_say("no descriptor that CRIU refuses can be made here (%s): this process could be dumped "
			     "without a checkpoint",
			     strerror(-error));
	devices_fill();
	if (!fork_handled && pthread_atfork(NULL, NULL, in_child))
		goto undo;
	fork_handled = true;
	if (softcuda_checkpoint_start())
		goto undo;
	softcuda_spend(start, softcuda_init_ms(), 0, 0);
	atomic_store(&softcuda_phase, SOFTCUDA_READY);
	return CUDA_SUCCESS;
undo:
	softcuda_hold_close();
	return CUDA_ERROR_OPERATING_SYSTEM;
}

CUresult do_cuInit(unsigned int flags)
{
	CUresult result = CUDA_SUCCESS;

	if (flags)
		return CUDA_ERROR_INVALID_VALUE;
	pthread_mutex_lock(&init_lock);
	if (atomic_load(&softcuda_phase) == SOFTCUDA_CHILD)
		result = CUDA_ERROR_NOT_INITIALIZED;
	else if (atomic_load(&softcuda_phase) == SOFTCUDA_BEFORE)
		result = init_once();
	pthread_mutex_unlock(&init_lock);
	return result;
}

CUresult do_cuDriverGetVersion(int *version)
{
	if (!version)
		return CUDA_ERROR_INVALID_VALUE;
	*version = SOFTCUDA_DRIVER_VERSION;
	return CUDA_SUCCESS;
}

static const struct {
	CUresult value;
	const char *name, *text;
} results[] = {
#define CUDA_RESULT(name, value, text) {name, #name, text},
#include "cuda_results.def"
#undef CUDA_RESULT
};

static CUresult result_text(CUresult error, const char **text, bool name)
{
	if (!text)
		return CUDA_ERROR_INVALID_VALUE;
	*text = NULL;
	for (size_t i = 0; i < sizeof(results) / sizeof(*results); i++) {
		if (results[i].value == error)
			*text = name ? results[i].name : results[i].text;
	}
	return *text ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult do_cuGetErrorName(CUresult error, const char **text)
{
	return result_text(error, text, true);
}

CUresult do_cuGetErrorString(CUresult error, const char **text)
{
	return result_text(error, text, false);
}

CUresult softcuda_device_check(CUdevice device)
{
	return device >= 0 && (unsigned)device < softcuda_config.devices ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}

CUresult do_cuDeviceGet(CUdevice *device, int ordinal)
{
	if (!device)
		return CUDA_ERROR_INVALID_VALUE;
	if (softcuda_device_check(ordinal))
		return CUDA_ERROR_INVALID_DEVICE;
	*device = ordinal;
	return CUDA_SUCCESS;
}

CUresult do_cuDeviceGetCount(int *count)
{
	if (!count)
		return CUDA_ERROR_INVALID_VALUE;
	*count = softcuda_config.devices;
	return CUDA_SUCCESS;
}

CUresult do_cuDeviceGetName(char *name, int len, CUdevice device)
{
	if (!name || len <= 0)
		return CUDA_ERROR_INVALID_VALUE;
	if (softcuda_device_check(device))
		return CUDA_ERROR_INVALID_DEVICE;
	snprintf(name, len, "%s", softcuda_costs.on ? "softcuda simulated H200" : "softcuda device");
	return CUDA_SUCCESS;
}

CUresult do_cuDeviceGetUuid_v2(CUuuid *uuid, CUdevice device)
{
	if (!uuid)
		return CUDA_ERROR_INVALID_VALUE;
	if (softcuda_device_check(device))
		return CUDA_ERROR_INVALID_DEVICE;
	*uuid = softcuda_devices[device].uuid;
	return CUDA_SUCCESS;
}

CUresult do_cuDeviceGetUuid(CUuuid *uuid, CUdevice device)
{
	return do_cuDeviceGetUuid_v2(uuid, device);
}

CUresult do_cuDeviceTotalMem_v2(size_t *bytes, CUdevice device)
{
	if (!bytes)
		return CUDA_ERROR_INVALID_VALUE;
	if (softcuda_device_check(device))
		return CUDA_ERROR_INVALID_DEVICE;
	*bytes = softcuda_config.memory_bytes;
	return CUDA_SUCCESS;
}

/* An H200's figures where they can matter to a program; what is not here is not there (0). */
static const struct {
	CUdevice_attribute attribute;
	int value;
} attributes[] = {
	{CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK, 1024},
	{CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_X, 1024},
	{CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Y, 1024},
	{CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Z, 64},
	{CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_X, INT32_MAX},
	{CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Y, 65535},
	{CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Z, 65535},
	{CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK, 49152},
	{CU_DEVICE_ATTRIBUTE_TOTAL_CONSTANT_MEMORY, 65536},
	{CU_DEVICE_ATTRIBUTE_WARP_SIZE, 32},
	{CU_DEVICE_ATTRIBUTE_MAX_PITCH, INT32_MAX},
	{CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK, 65536},
	{CU_DEVICE_ATTRIBUTE_CLOCK_RATE, 1980000},
	{CU_DEVICE_ATTRIBUTE_TEXTURE_ALIGNMENT, 512},
	{CU_DEVICE_ATTRIBUTE_GPU_OVERLAP, 1},
	{CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, 132},
	{CU_DEVICE_ATTRIBUTE_CAN_MAP_HOST_MEMORY, 1},
	{CU_DEVICE_ATTRIBUTE_CONCURRENT_KERNELS, 1},
	{CU_DEVICE_ATTRIBUTE_ECC_ENABLED, 1},
	{CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE, 3201000},
	{CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH, 6144},
	{CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE, 62914560},
	{CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR, 2048},
	{CU_DEVICE_ATTRIBUTE_ASYNC_ENGINE_COUNT, 3},
	{CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING, 1},
	{CU_DEVICE_ATTRIBUTE_TEXTURE_PITCH_ALIGNMENT, 32},
	{CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, 9},
	{CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, 0},
	{CU_DEVICE_ATTRIBUTE_STREAM_PRIORITIES_SUPPORTED, 1},
	{CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR, 233472},
	{CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_MULTIPROCESSOR, 65536},
	{CU_DEVICE_ATTRIBUTE_MANAGED_MEMORY, 1},
	{CU_DEVICE_ATTRIBUTE_CONCURRENT_MANAGED_ACCESS, 1},
	{CU_DEVICE_ATTRIBUTE_COMPUTE_PREEMPTION_SUPPORTED, 1},
	{CU_DEVICE_ATTRIBUTE_CAN_USE_HOST_POINTER_FOR_REGISTERED_MEM, 1},
	{CU_DEVICE_ATTRIBUTE_COOPERATIVE_LAUNCH, 1},
	{CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN, 232448},
	{CU_DEVICE_ATTRIBUTE_HOST_REGISTER_SUPPORTED, 1},
	{CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED, 1},
	{CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED, 1},
	{CU_DEVICE_ATTRIBUTE_MAX_BLOCKS_PER_MULTIPROCESSOR, 32},
	{CU_DEVICE_ATTRIBUTE_CAN_USE_64_BIT_STREAM_MEM_OPS, 1},
	{CU_DEVICE_ATTRIBUTE_CAN_USE_STREAM_WAIT_VALUE_NOR, 1},
	{CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED, 1},
};

CUresult do_cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice device)
{
	if (!value || attribute <= 0 || attribute >= CU_DEVICE_ATTRIBUTE_MAX)
		return CUDA_ERROR_INVALID_VALUE;
	if (softcuda_device_check(device))
		return CUDA_ERROR_INVALID_DEVICE;
	*value = 0;
	if (attribute == CU_DEVICE_ATTRIBUTE_PCI_BUS_ID)
		*value = device + 1;
	for (size_t i = 0; i < sizeof(attributes) / sizeof(*attributes); i++) {
		if (attributes[i].attribute == attribute)
			*value = attributes[i].value;
	}
	return CUDA_SUCCESS;
}

CUresult do_cuDeviceComputeCapability(int *major, int *minor, CUdevice device)
{
	CUresult result = do_cuDeviceGetAttribute(major, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, device);

	return result ? result : do_cuDeviceGetAttribute(minor, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, device);
}

CUresult do_cuDeviceGetPCIBusId(char *bus_id, int len, CUdevice device)
{
	if (!bus_id || len <= 0)
		return CUDA_ERROR_INVALID_VALUE;
	if (softcuda_device_check(device))
		return CUDA_ERROR_INVALID_DEVICE;
	snprintf(bus_id, len, "0000:%02X:00.0", device + 1);
	return CUDA_SUCCESS;
}

CUresult do_cuDeviceGetByPCIBusId(CUdevice *device, const char *bus_id)
{
	unsigned domain = 0, bus, slot, function = 0;

	if (!device || !bus_id)
		return CUDA_ERROR_INVALID_VALUE;
	if (sscanf(bus_id, "%x:%x:%x.%x", &domain, &bus, &slot, &function) < 3) {
		domain = 0;
		if (sscanf(bus_id, "%x:%x.%x", &bus, &slot, &function) < 2)
			return CUDA_ERROR_INVALID_VALUE;
	}
	if (domain || !bus || bus > softcuda_config.devices || slot || function)
		return CUDA_ERROR_INVALID_DEVICE;
	*device = bus - 1;
	return CUDA_SUCCESS;
}

CUresult do_cuDeviceCanAccessPeer(int *can, CUdevice device, CUdevice peer)
{
	if (!can)
		return CUDA_ERROR_INVALID_VALUE;
	if (softcuda_device_check(device) || softcuda_device_check(peer))
		return CUDA_ERROR_INVALID_DEVICE;
	*can = device != peer;
	return CUDA_SUCCESS;
}

CUresult do_cuDeviceGetP2PAttribute(int *value, CUdevice_P2PAttribute attribute, CUdevice from, CUdevice to)
{
	if (!value || attribute < CU_DEVICE_P2P_ATTRIBUTE_PERFORMANCE_RANK ||
	    attribute > CU_DEVICE_P2P_ATTRIBUTE_CUDA_ARRAY_ACCESS_SUPPORTED)
		return CUDA_ERROR_INVALID_VALUE;
	if (softcuda_device_check(from) || softcuda_device_check(to) || from == to)
		return CUDA_ERROR_INVALID_DEVICE;
	*value = attribute == CU_DEVICE_P2P_ATTRIBUTE_ACCESS_SUPPORTED;
	return CUDA_SUCCESS;
}

CUresult do_cuDeviceGetExecAffinitySupport(int *supported, CUexecAffinityType type, CUdevice device)
{
	if (!supported || type != CU_EXEC_AFFINITY_TYPE_SM_COUNT)
		return CUDA_ERROR_INVALID_VALUE;
	if (softcuda_device_check(device))
		return CUDA_ERROR_INVALID_DEVICE;
	*supported = 0;
	return CUDA_SUCCESS;
}
