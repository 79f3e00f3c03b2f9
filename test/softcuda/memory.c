// SPDX-License-Identifier: MIT
/* Allocation, host-wide accounting, copies and fills, and that device memory is not the host's. */
#include "cu.h"

#include <setjmp.h>
#include <signal.h>

static sigjmp_buf fault;

static void on_fault(int sig)
{
	siglongjmp(fault, 1);
}

static bool host_can_read(CUdeviceptr ptr)
{
	struct sigaction action = {.sa_handler = on_fault}, before;
	volatile bool read = false;

	sigaction(SIGSEGV, &action, &before);
	if (!sigsetjmp(fault, 1)) {
		(void)*(volatile char *)(uintptr_t)ptr;
		read = true;
	}
	sigaction(SIGSEGV, &before, NULL);
	return read;
}

static size_t free_now(void)
{
	size_t free, total;

	must(cuMemGetInfo(&free, &total));
	return free >> 20;
}

/* Takes 16 MiB, tells the parent, and dies without a word. */
static int crash(void *arg)
{
	int *pipes = arg;
	CUcontext ctx;
	CUdeviceptr ptr;
	char byte =
		cuInit(0) || cuDevicePrimaryCtxRetain(&ctx, 0) || cuCtxSetCurrent(ctx) || cuMemAlloc(&ptr, 16 << 20);

	if (write(pipes[1], &byte, 1) != 1 || read(pipes[2], &byte, 1) != 1)
		return 1;
	kill(getpid(), SIGKILL);
	return 1;
}

int main(void)
{
	CUDA_MEMCPY2D copy = {.srcMemoryType = CU_MEMORYTYPE_HOST, .dstMemoryType = CU_MEMORYTYPE_DEVICE};
	CUdeviceptr a, b, base;
	int to_us[2], to_it[2], pipes[3], status;
	unsigned char host[256], back[256];
	size_t size, pitch;
	unsigned kind;
	CUcontext ctx;
	void *pinned;
	pid_t pid;
	char byte;

	device_dir_make();
	setenv("SOFTCUDA_MEMORY_MB", "64", 1);
	if (pipe(to_us) || pipe(to_it))
		return 1;
	pipes[0] = to_us[0], pipes[1] = to_us[1], pipes[2] = to_it[0];
	fflush(stdout);
	pid = fork();
	if (!pid)
		_exit(crash(pipes));

	must(cuInit(0));
	is(cuMemAlloc(&a, 1), CUDA_ERROR_INVALID_CONTEXT);
	must(cuCtxCreate(&ctx, NULL, 0, 0));
	ok(read(to_us[0], &byte, 1) == 1 && !byte, "another process has taken 16 MiB");
	ok(free_now() == 48, "which this one sees");
	is(cuMemAlloc(&a, 50 << 20), CUDA_ERROR_OUT_OF_MEMORY);
	ok(write(to_it[1], &byte, 1) == 1 && waitpid(pid, &status, 0) == pid && WIFSIGNALED(status), "it is killed");
	ok(free_now() == 64, "and its memory is there again");

	is(cuMemAlloc(&a, 50 << 20), CUDA_SUCCESS);
	ok(free_now() == 14, "an allocation counts");
	is(cuMemAlloc(&b, 16 << 20), CUDA_ERROR_OUT_OF_MEMORY);
	is(cuMemAlloc(&b, SIZE_MAX), CUDA_ERROR_OUT_OF_MEMORY);
	is(cuMemAlloc(&b, 0), CUDA_ERROR_INVALID_VALUE);
	is(cuMemFree(a + 512), CUDA_ERROR_INVALID_VALUE);
	is(cuMemFree(a), CUDA_SUCCESS);
	is(cuMemFree(a), CUDA_ERROR_INVALID_VALUE);
	is(cuMemFree(0), CUDA_SUCCESS);
	ok(free_now() == 64, "freed, it counts no more");

	must(cuMemAlloc(&a, 1000));
	is(cuMemGetAddressRange(&base, &size, a + 999), CUDA_SUCCESS);
	ok(base == a && size == 1000, "an address is found in its allocation");
	is(cuMemGetAddressRange(&base, &size, a + 1000), CUDA_ERROR_NOT_FOUND);
	ok(!host_can_read(a), "the host cannot read device memory");
	for (unsigned i = 0; i < sizeof(host); i++)
		host[i] = i * 7;
	is(cuMemcpyHtoD(a, host, sizeof(host)), CUDA_SUCCESS);
	is(cuMemcpyDtoH(back, a, sizeof(host)), CUDA_SUCCESS);
	ok(!memcmp(host, back, sizeof(host)), "what is copied there comes back");
	is(cuMemcpyHtoD(a + 900, host, 101), CUDA_ERROR_INVALID_VALUE);
	is(cuMemcpyHtoD((uintptr_t)host, back, 1), CUDA_ERROR_INVALID_VALUE);
	must(cuMemAlloc(&b, 4096));
	is(cuMemcpyDtoD(b + 1, a, 100), CUDA_SUCCESS);
	memset(back, 0, sizeof(back));
	is(cuMemcpy((uintptr_t)back, b + 1, 100), CUDA_SUCCESS);
	ok(!memcmp(host, back, 100), "between allocations, and with unified addresses");
	is(cuMemcpyPeer(b, ctx, a, ctx, 16), CUDA_SUCCESS);
	is(cuMemcpyPeer(b, NULL, a, ctx, 16), CUDA_ERROR_INVALID_CONTEXT);

	is(cuMemsetD8(b, 0x5a, 64), CUDA_SUCCESS);
	is(cuMemsetD16(b + 2, 0x1234, 2), CUDA_SUCCESS);
	is(cuMemsetD32(b + 8, 0xdeadbeef, 1), CUDA_SUCCESS);
	is(cuMemsetD32(b + 2, 0, 1), CUDA_ERROR_INVALID_VALUE);
	is(cuMemsetD2D8(b + 16, 8, 1, 2, 3), CUDA_SUCCESS);
	is(cuMemsetD32(b, 0, SIZE_MAX / 2), CUDA_ERROR_INVALID_VALUE);
	must(cuMemcpyDtoH(back, b, 40));
	ok(!memcmp(back, "\x5a\x5a\x34\x12\x34\x12\x5a\x5a\xef\xbe\xad\xde", 12), "fills of every width");
	ok(!memcmp(back + 16, "\1\1\x5a\x5a\x5a\x5a\x5a\x5a\1\1\x5a\x5a\x5a\x5a\x5a\x5a\1\1\x5a", 19), "and in rows");

	is(cuMemAllocPitch(&base, &pitch, 100, 4, 4), CUDA_SUCCESS);
	ok(pitch == 512, "a pitch of 512");
	copy.srcHost = host, copy.srcPitch = 20, copy.dstDevice = base, copy.dstPitch = pitch;
	copy.WidthInBytes = 10, copy.Height = 4;
	is(cuMemcpy2D(&copy), CUDA_SUCCESS);
	must(cuMemcpyDtoH(back, base + 3 * pitch, 10));
	ok(!memcmp(back, host + 60, 10), "a copy in rows");
	copy.Height = 5;
	is(cuMemcpy2D(&copy), CUDA_ERROR_INVALID_VALUE);

	is(cuMemHostAlloc(&pinned, 100, 0), CUDA_SUCCESS);
	memcpy(pinned, host, 100);
	is(cuMemHostGetDevicePointer(&base, pinned, 0), CUDA_SUCCESS);
	ok(base == (uintptr_t)pinned, "pinned memory has one address");
	is(cuPointerGetAttribute(&kind, CU_POINTER_ATTRIBUTE_MEMORY_TYPE, base), CUDA_SUCCESS);
	ok(kind == CU_MEMORYTYPE_HOST, "and is the host's");
	is(cuPointerGetAttribute(&kind, CU_POINTER_ATTRIBUTE_MEMORY_TYPE, (uintptr_t)host), CUDA_ERROR_INVALID_VALUE);
	is(cuMemHostRegister(host, sizeof(host), 0), CUDA_SUCCESS);
	is(cuMemHostRegister(host, sizeof(host), 0), CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED);
	is(cuMemHostUnregister(host), CUDA_SUCCESS);
	is(cuMemHostUnregister(host), CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED);
	is(cuMemAllocManaged(&base, 64, CU_MEM_ATTACH_GLOBAL), CUDA_SUCCESS);
	must(cuMemsetD8(base, 9, 64));
	ok(host_can_read(base) && *(char *)(uintptr_t)base == 9, "managed memory is both's");
	is(cuMemFree(base), CUDA_SUCCESS);
	is(cuMemFreeHost(pinned), CUDA_SUCCESS);
	is(cuMemAllocAsync(&base, 1 << 20, NULL), CUDA_SUCCESS);
	is(cuMemFreeAsync(base, NULL), CUDA_SUCCESS);
	must(cuCtxSynchronize());
	is(cuMemFree(base), CUDA_ERROR_INVALID_VALUE);
	must(cuMemAlloc(&base, 8 << 20));
	must(cuCtxDestroy(ctx));
	must(cuCtxCreate(&ctx, NULL, 0, 0));
	ok(free_now() == 64, "a destroyed context gives its memory back");
	must(cuCtxDestroy(ctx));

	device_dir_remove();
	return tap_end();
}
