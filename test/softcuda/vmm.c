// SPDX-License-Identifier: MIT
/* Virtual memory management, also between processes. */
#include "cu.h"
#include "pass.h"

static const CUmemAllocationProp prop = {.type = CU_MEM_ALLOCATION_TYPE_PINNED,
					 .requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR,
					 .location = {.type = CU_MEM_LOCATION_TYPE_DEVICE}};
static const CUmemAccessDesc read_write = {.location = {.type = CU_MEM_LOCATION_TYPE_DEVICE},
					   .flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE};
static size_t grain;

/* Makes a piece, fills it, hands its descriptor over and dies. */
static int exporter(int socket)
{
	CUmemGenericAllocationHandle handle;
	CUdeviceptr ptr;
	CUcontext ctx;
	int fd;

	must(cuInit(0));
	must(cuCtxCreate(&ctx, NULL, 0, 0));
	must(cuMemCreate(&handle, grain, &prop, 0));
	must(cuMemAddressReserve(&ptr, grain, 0, 0, 0));
	must(cuMemMap(ptr, grain, 0, handle, 0));
	must(cuMemSetAccess(ptr, grain, &read_write, 1));
	must(cuMemsetD32(ptr, 0xc0ffee, grain / 4));
	must(cuMemExportToShareableHandle(&fd, handle, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0));
	return !pass(socket, fd);
}

int main(void)
{
	CUmemGenericAllocationHandle handle, second, imported, retained;
	CUmemAllocationProp wrong = prop, found;
	CUmemAccessDesc none = read_write;
	CUdeviceptr ptr, base, other;
	size_t size, free_before, free_after, total;
	unsigned long long flags;
	int sockets[2], fd, status;
	unsigned word[4];
	CUcontext ctx;
	FILE *file;
	pid_t pid;

	device_dir_make();
	setenv("SOFTCUDA_MEMORY_MB", "64", 1);
	grain = 2 << 20;
	if (socketpair(AF_UNIX, SOCK_SEQPACKET, 0, sockets))
		return 1;
	fflush(stdout);
	pid = fork();
	if (!pid)
		_exit(exporter(sockets[1]));
	fd = passed(sockets[0]);
	ok(waitpid(pid, &status, 0) == pid && !status, "another process makes memory, exports it and ends");

	must(cuInit(0));
	must(cuCtxCreate(&ctx, NULL, 0, 0));
	is(cuMemGetAllocationGranularity(&size, &prop, CU_MEM_ALLOC_GRANULARITY_MINIMUM), CUDA_SUCCESS);
	ok(size == grain, "the granularity is 2 MiB");
	is(cuMemCreate(&handle, grain + 1, &prop, 0), CUDA_ERROR_INVALID_VALUE);
	is(cuMemCreate(&handle, 128 << 20, &prop, 0), CUDA_ERROR_OUT_OF_MEMORY);
	wrong.location.id = 3;
	is(cuMemCreate(&handle, grain, &wrong, 0), CUDA_ERROR_INVALID_DEVICE);
	wrong = prop;
	wrong.requestedHandleTypes = CU_MEM_HANDLE_TYPE_FABRIC;
	is(cuMemCreate(&handle, grain, &wrong, 0), CUDA_ERROR_NOT_SUPPORTED);

	must(cuMemGetInfo(&free_before, &total));
	is(cuMemCreate(&handle, 2 * grain, &prop, 0), CUDA_SUCCESS);
	must(cuMemGetInfo(&free_after, &total));
	ok(free_before - free_after == 2 * grain, "created memory counts");
	is(cuMemAddressReserve(&ptr, 8 * grain, 0, 0, 0), CUDA_SUCCESS);
	ok(ptr % grain == 0, "addresses are aligned");
	is(cuMemMap(ptr + grain, 2 * grain, 0, handle, 0), CUDA_SUCCESS);
	is(cuMemMap(ptr, 2 * grain, 0, handle, 0), CUDA_ERROR_INVALID_VALUE);
	is(cuMemMap(ptr + 7 * grain, 2 * grain, 0, handle, 0), CUDA_ERROR_INVALID_VALUE);
	is(cuMemSetAccess(ptr, grain, &read_write, 1), CUDA_ERROR_INVALID_VALUE);
	is(cuMemSetAccess(ptr + grain, 2 * grain, &read_write, 1), CUDA_SUCCESS);
	is(cuMemGetAccess(&flags, &read_write.location, ptr + grain), CUDA_SUCCESS);
	ok(flags == CU_MEM_ACCESS_FLAGS_PROT_READWRITE, "access is as set");
	is(cuMemCreate(&second, grain, &prop, 0), CUDA_SUCCESS);
	is(cuMemMap(ptr + 3 * grain, grain, 0, second, 0), CUDA_SUCCESS);
	must(cuMemSetAccess(ptr + 3 * grain, grain, &read_write, 1));
	is(cuMemsetD32(ptr + grain, 7, 3 * grain / 4), CUDA_SUCCESS);
	is(cuMemcpyDtoH(word, ptr + 3 * grain - 8, 16), CUDA_SUCCESS);
	ok(word[0] == 7 && word[3] == 7, "one copy spans two pieces");
	is(cuMemsetD8(ptr + grain, 0, 8 * grain), CUDA_ERROR_INVALID_VALUE);
	is(cuMemGetAddressRange(&base, &size, ptr + 3 * grain + 5), CUDA_SUCCESS);
	ok(base == ptr + 3 * grain && size == grain, "a piece is an allocation");
	is(cuMemRetainAllocationHandle(&retained, (void *)(uintptr_t)(ptr + 3 * grain)), CUDA_SUCCESS);
	ok(retained == second, "an address gives its handle back");
	is(cuMemRelease(second), CUDA_SUCCESS);
	none.flags = CU_MEM_ACCESS_FLAGS_PROT_READ;
	is(cuMemSetAccess(ptr + 3 * grain, grain, &none, 1), CUDA_SUCCESS);
	is(cuMemcpyDtoH(word, ptr + 3 * grain, 4), CUDA_SUCCESS);

	/* The same memory at two addresses. */
	must(cuMemAddressReserve(&other, 2 * grain, 0, 0, 0));
	is(cuMemMap(other, 2 * grain, 0, handle, 0), CUDA_SUCCESS);
	must(cuMemSetAccess(other, 2 * grain, &read_write, 1));
	must(cuMemsetD32(other + 64, 99, 1));
	must(cuMemcpyDtoH(word, ptr + grain + 64, 4));
	ok(word[0] == 99, "one memory at two addresses");
	is(cuMemAddressFree(other, 2 * grain), CUDA_ERROR_INVALID_VALUE);
	is(cuMemUnmap(other, grain), CUDA_ERROR_INVALID_VALUE);
	is(cuMemUnmap(other, 2 * grain), CUDA_SUCCESS);
	is(cuMemRelease(handle), CUDA_SUCCESS);
	is(cuMemRelease(handle), CUDA_ERROR_INVALID_VALUE);
	must(cuMemcpyDtoH(word, ptr + grain + 64, 4));
	ok(word[0] == 99, "released, it lives while it is mapped");

	is(cuMemImportFromShareableHandle(&imported, (void *)(intptr_t)fd, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR),
	   CUDA_SUCCESS);
	close(fd);
	is(cuMemGetAllocationPropertiesFromHandle(&found, imported), CUDA_SUCCESS);
	ok(found.location.id == 0 && found.type == CU_MEM_ALLOCATION_TYPE_PINNED, "it says what it is");
	is(cuMemMap(other, grain, 0, imported, 0), CUDA_SUCCESS);
	must(cuMemSetAccess(other, grain, &read_write, 1));
	must(cuMemcpyDtoH(word, other + grain - 4, 4));
	ok(word[0] == 0xc0ffee, "its content outlived the process that made it");
	is(cuMemExportToShareableHandle(&fd, imported, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0),
	   CUDA_ERROR_INVALID_VALUE);
	is(cuMemMap(ptr + 4 * grain, 2 * grain, 0, imported, 0), CUDA_ERROR_NOT_SUPPORTED);
	is(cuMemMap(ptr + 4 * grain, grain, 0, handle, 0), CUDA_ERROR_INVALID_VALUE);
	file = tmpfile();
	is(cuMemImportFromShareableHandle(&second, (void *)(intptr_t)fileno(file),
					  CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR),
	   CUDA_ERROR_INVALID_VALUE);
	fclose(file);
	is(cuMemImportFromShareableHandle(&second, (void *)(intptr_t)-1, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR),
	   CUDA_ERROR_INVALID_VALUE);

	must(cuMemUnmap(other, grain));
	must(cuMemRelease(imported));
	is(cuMemAddressFree(other, 2 * grain), CUDA_SUCCESS);
	is(cuMemUnmap(ptr + grain, 3 * grain), CUDA_SUCCESS);
	is(cuMemAddressFree(ptr, 8 * grain), CUDA_SUCCESS);
	must(cuMemRelease(retained));
	must(cuMemGetInfo(&free_after, &total));
	ok(free_after == free_before + grain, "all of it is given back, and what had been kept by its descriptor");
	must(cuCtxDestroy(ctx));
	device_dir_remove();
	return tap_end();
}
