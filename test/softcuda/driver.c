// SPDX-License-Identifier: MIT
/* Initialisation, its errors, fork, devices, names, cuGetProcAddress. */
#include "cu.h"

#include <dlfcn.h>

static int init_with(void *setting)
{
	char **pair = setting;

	if (pair[0])
		setenv(pair[0], pair[1], 1);
	if (!freopen("/dev/null", "w", stderr))
		return 255;
	return cuInit(0);
}

static int child_after_init(void *arg)
{
	int count;
	CUcontext ctx;

	return cuInit(0) == CUDA_ERROR_NOT_INITIALIZED && cuDeviceGetCount(&count) == CUDA_ERROR_NOT_INITIALIZED &&
	       cuCtxGetCurrent(&ctx) == CUDA_ERROR_NOT_INITIALIZED && cuDriverGetVersion(&count) == CUDA_SUCCESS;
}

static int child_before_init(void *arg)
{
	CUcontext ctx;

	return cuInit(0) == CUDA_SUCCESS && cuDevicePrimaryCtxRetain(&ctx, 0) == CUDA_SUCCESS;
}

static void get(const char *symbol, int version, cuuint64_t flags, const char *wanted,
		CUdriverProcAddressQueryResult status_wanted)
{
	CUdriverProcAddressQueryResult status = 99;
	void *function = &status;
	CUresult result = cuGetProcAddress(symbol, &function, version, flags, &status);

	ok(result == CUDA_SUCCESS && status == status_wanted &&
		   function == (wanted ? dlsym(RTLD_DEFAULT, wanted) : NULL),
	   "cuGetProcAddress(%s, %d, %d) gives %s", symbol, version, (int)flags, wanted ? wanted : "nothing");
}

int main(void)
{
	static char *bad[][2] = {
		{"SOFTCUDA_DEVICES", "many"},          {"SOFTCUDA_DEVICES", "17"},    {"SOFTCUDA_MEMORY_MB", "-1"},
		{"SOFTCUDA_DIR", "relative"},          {"SOFTCUDA_FAULTS", "cuInit"}, {"SOFTCUDA_FAULTS", "cuInit=2x"},
		{"SOFTCUDA_COSTS", "/does/not/exist"},
	};
	char *none[2] = {NULL, NULL}, *no_devices[2] = {"SOFTCUDA_DEVICES", "0"},
	     *failing[2] = {"SOFTCUDA_FAULTS", "cuInit=802"};
	int count = -1, value, major, minor;
	CUuuid uuid[2];
	CUdevice device;
	CUcontext ctx;
	char text[64];
	const char *name;
	size_t bytes;
	void *function;

	device_dir_make();
	setenv("SOFTCUDA_DEVICES", "2", 1);
	setenv("SOFTCUDA_MEMORY_MB", "64", 1);

	is(cuDeviceGetCount(&count), CUDA_ERROR_NOT_INITIALIZED);
	is(cuCtxGetCurrent(&ctx), CUDA_ERROR_NOT_INITIALIZED);
	is(cuMemAlloc((CUdeviceptr *)&bytes, 1), CUDA_ERROR_NOT_INITIALIZED);
	is(cuDriverGetVersion(&value), CUDA_SUCCESS);
	ok(value == CUDA_VERSION, "the version is that of the header");
	for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++)
		ok(in_child(init_with, bad[i]) == CUDA_ERROR_INVALID_VALUE, "%s=%s is refused by cuInit", bad[i][0],
		   bad[i][1]);
	ok(in_child(init_with, no_devices) == CUDA_ERROR_NO_DEVICE, "no devices: CUDA_ERROR_NO_DEVICE");
	ok(in_child(init_with, failing) == 802 % 256, "a fault makes cuInit fail");
	ok(in_child(init_with, none) == CUDA_SUCCESS, "and without any of them it succeeds");
	ok(in_child(child_before_init, NULL) == 1, "a child forked before cuInit uses CUDA");

	is(cuInit(1), CUDA_ERROR_INVALID_VALUE);
	is(cuInit(0), CUDA_SUCCESS);
	is(cuInit(0), CUDA_SUCCESS);
	ok(in_child(child_after_init, NULL) == 1, "a child forked after cuInit cannot use CUDA");

	is(cuDeviceGetCount(&count), CUDA_SUCCESS);
	ok(count == 2, "two devices, as asked for");
	is(cuDeviceGet(&device, 2), CUDA_ERROR_INVALID_DEVICE);
	is(cuDeviceGet(&device, -1), CUDA_ERROR_INVALID_DEVICE);
	is(cuDeviceGet(&device, 1), CUDA_SUCCESS);
	is(cuDeviceGetName(text, sizeof(text), device), CUDA_SUCCESS);
	ok(!strcmp(text, "softcuda device"), "its name says what it is: %s", text);
	must(cuDeviceGetUuid(&uuid[0], 0));
	must(cuDeviceGetUuid(&uuid[1], 1));
	ok(memcmp(&uuid[0], &uuid[1], sizeof(*uuid)) != 0, "the UUIDs differ");
	is(cuDeviceTotalMem(&bytes, 0), CUDA_SUCCESS);
	ok(bytes == 64 << 20, "its memory is what was asked for");
	is(cuDeviceGetAttribute(&value, CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED, 0), CUDA_SUCCESS);
	ok(value == 1, "it has virtual memory management");
	is(cuDeviceGetAttribute(&value, 0, 0), CUDA_ERROR_INVALID_VALUE);
	is(cuDeviceGetAttribute(&value, CU_DEVICE_ATTRIBUTE_WARP_SIZE, 5), CUDA_ERROR_INVALID_DEVICE);
	is(cuDeviceComputeCapability(&major, &minor, 0), CUDA_SUCCESS);
	ok(major == 9 && minor == 0, "compute capability 9.0");
	must(cuDeviceGetPCIBusId(text, sizeof(text), 1));
	is(cuDeviceGetByPCIBusId(&device, text), CUDA_SUCCESS);
	ok(device == 1, "a device is found by its bus id, %s", text);
	is(cuDeviceGetByPCIBusId(&device, "0000:77:00.0"), CUDA_ERROR_INVALID_DEVICE);
	is(cuDeviceGetByPCIBusId(&device, "nonsense"), CUDA_ERROR_INVALID_VALUE);

	is(cuGetErrorName(CUDA_ERROR_ILLEGAL_STATE, &name), CUDA_SUCCESS);
	ok(!strcmp(name, "CUDA_ERROR_ILLEGAL_STATE"), "errors have their names");
	is(cuGetErrorName(12345, &name), CUDA_ERROR_INVALID_VALUE);
	ok(name == NULL, "an unknown one has none");

	get("cuMemAlloc", 12000, 0, "cuMemAlloc_v2", CU_GET_PROC_ADDRESS_SUCCESS);
	get("cuMemAlloc", 3010, 0, NULL, CU_GET_PROC_ADDRESS_VERSION_NOT_SUFFICIENT);
	get("cuMemAlloc_v2", 12000, 0, NULL, CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND);
	get("cuNothing", 12000, 0, NULL, CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND);
	get("cuCtxCreate", 2000, 0, "cuCtxCreate", CU_GET_PROC_ADDRESS_SUCCESS);
	get("cuCtxCreate", 11030, 0, "cuCtxCreate_v2", CU_GET_PROC_ADDRESS_SUCCESS);
	get("cuCtxCreate", 12040, 0, "cuCtxCreate_v3", CU_GET_PROC_ADDRESS_SUCCESS);
	get("cuCtxCreate", 13000, 0, "cuCtxCreate_v4", CU_GET_PROC_ADDRESS_SUCCESS);
	get("cuMemcpyHtoD", 12000, CU_GET_PROC_ADDRESS_LEGACY_STREAM, "cuMemcpyHtoD_v2", CU_GET_PROC_ADDRESS_SUCCESS);
	get("cuMemcpyHtoD", 12000, CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM, "cuMemcpyHtoD_v2_ptds",
	    CU_GET_PROC_ADDRESS_SUCCESS);
	get("cuMemcpyHtoD", 6050, CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM, "cuMemcpyHtoD_v2",
	    CU_GET_PROC_ADDRESS_SUCCESS);
	get("cuLaunchKernel", 12000, CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM, "cuLaunchKernel_ptsz",
	    CU_GET_PROC_ADDRESS_SUCCESS);
	get("cuGetProcAddress", 11030, 0, "cuGetProcAddress", CU_GET_PROC_ADDRESS_SUCCESS);
	get("cuGetProcAddress", 12000, 0, "cuGetProcAddress_v2", CU_GET_PROC_ADDRESS_SUCCESS);
	is(cuGetProcAddress("cuInit", &function, 99000, 0, NULL), CUDA_ERROR_INVALID_VALUE);
	is(cuGetProcAddress("cuInit", &function, 12000, 8, NULL), CUDA_ERROR_INVALID_VALUE);
	is(cuGetProcAddress(NULL, &function, 12000, 0, NULL), CUDA_ERROR_INVALID_VALUE);

	device_dir_remove();
	return tap_end();
}
