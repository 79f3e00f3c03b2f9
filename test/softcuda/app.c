// SPDX-License-Identifier: MIT
/* A CUDA process for tests: memory of both kinds with known content, and an answer a few times a second. */
#include "cu.h"

#include <fcntl.h>

/*
 * app FILE MEBIBYTES [child|exported]: writes to FILE, over and over, one line of a fixed length: a count, and
 * whether what is in device memory is what it must be ("right", "wrong", or an error's number). `child`: with a child
 * process that has no CUDA. `exported`: with a descriptor of its memory open.
 */
static CUfunction checksum;

static CUresult sum_of(CUdeviceptr ptr, uint64_t words, CUdeviceptr out, uint64_t *sum)
{
	CUresult result = cuMemsetD32(out, 0, 2);

	if (!result)
		result = cuLaunchKernel(checksum, 1, 1, 1, 1, 1, 1, 0, NULL, (void *[]){&ptr, &words, &out}, NULL);
	return result ? result : cuMemcpyDtoH(sum, out, 8);
}

int main(int argc, char **argv)
{
	CUmemAllocationProp prop = {.type = CU_MEM_ALLOCATION_TYPE_PINNED,
				    .requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR,
				    .location = {.type = CU_MEM_LOCATION_TYPE_DEVICE}};
	CUmemAccessDesc access = {.location = prop.location, .flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE};
	CUmemGenericAllocationHandle handle;
	uint64_t words, size, sums[2];
	CUdeviceptr plain, mapped, out;
	uint32_t seeds[2] = {11, 22};
	CUmodule module;
	CUfunction fill;
	CUcontext ctx;
	char line[64];
	int fd, child;

	if (argc < 3)
		return 2;
	size = strtoull(argv[2], NULL, 10) << 20;
	words = size / 4;
	child = argc > 3 && !strcmp(argv[3], "child");
	must(cuInit(0));
	if (child && !fork()) {
		for (;;)
			pause();
	}
	must(cuDevicePrimaryCtxRetain(&ctx, 0));
	must(cuCtxSetCurrent(ctx));
	must(cuModuleLoadData(&module, test_ptx));
	must(cuModuleGetFunction(&fill, module, "cudapool_fill"));
	must(cuModuleGetFunction(&checksum, module, "cudapool_checksum"));
	must(cuMemAlloc(&plain, size));
	must(cuMemAlloc(&out, 8));
	must(cuMemCreate(&handle, size, &prop, 0));
	must(cuMemAddressReserve(&mapped, size, 0, 0, 0));
	must(cuMemMap(mapped, size, 0, handle, 0));
	must(cuMemSetAccess(mapped, size, &access, 1));
	if (argc > 3 && !strcmp(argv[3], "exported"))
		must(cuMemExportToShareableHandle(&fd, handle, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0));
	launch(fill, NULL, (void *[]){&plain, &words, &seeds[0]});
	launch(fill, NULL, (void *[]){&mapped, &words, &seeds[1]});
	fd = open(argv[1], O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
	for (unsigned count = 0; fd >= 0; count++) {
		CUresult result = sum_of(plain, words, out, &sums[0]);

		if (!result)
			result = sum_of(mapped, words, out, &sums[1]);
		snprintf(line, sizeof(line), "%10u %-8s\n", count,
			 result                                                                 ? "error"
			 : sums[0] == filled_sum(words, 11) && sums[1] == filled_sum(words, 22) ? "right"
												: "wrong");
		if (pwrite(fd, line, strlen(line), 0) < 0)
			return 1;
		sleep_ms(10);
	}
	return 1;
}
