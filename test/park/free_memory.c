// SPDX-License-Identifier: MIT
/* Prints the bytes that are free on each device, as a program without the shim sees them: a JSON array. */
#include "gpu.h"

int main(void)
{
	size_t free_bytes, total;
	CUcontext context;
	int devices, i;

	gpu_load();
	MUST(cuInit(0));
	MUST(cuDeviceGetCount(&devices));
	for (i = 0; i < devices; i++) {
		MUST(cuDevicePrimaryCtxRetain(&context, i));
		MUST(cuCtxSetCurrent(context));
		MUST(cuMemGetInfo_v2(&free_bytes, &total));
		MUST(cuDevicePrimaryCtxRelease_v2(i));
		printf("%s%zu", i ? "," : "[", free_bytes);
	}
	puts("]");
	return 0;
}
