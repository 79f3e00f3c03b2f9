// SPDX-License-Identifier: MIT
/* Every copy and fill of the table, in each of its variants, really called, with what it leaves behind checked. */
#define CUDAPOOL_ABI_NO_VERSIONS
#include "cu.h"

#define SIZE 96

static CUdeviceptr source, target;
static CUstream stream;
static unsigned char host[SIZE], back[SIZE], wanted[SIZE];
static int calls;

/* What the device holds, once everything is done. */
static bool target_is(const unsigned char *content)
{
	unsigned char now[SIZE];

	must(cuCtxSynchronize());
	must(cuMemcpyDtoH_v2(now, target, SIZE));
	return !memcmp(now, content, SIZE);
}

#define TO_DEVICE(call)                                                                                                \
	do {                                                                                                           \
		CUresult to_device;                                                                                    \
		must(cuMemsetD8_v2(target, 0xee, SIZE));                                                               \
		to_device = (call);                                                                                    \
		ok(to_device == CUDA_SUCCESS && target_is(wanted), "%s: %d", #call, to_device);                        \
		calls++;                                                                                               \
	} while (0)

#define TO_HOST(call)                                                                                                  \
	do {                                                                                                           \
		CUresult to_host;                                                                                      \
		memset(back, 0xee, SIZE);                                                                              \
		to_host = (call);                                                                                      \
		must(cuCtxSynchronize());                                                                              \
		ok(to_host == CUDA_SUCCESS && !memcmp(back, wanted, SIZE), "%s: %d", #call, to_host);                  \
		calls++;                                                                                               \
	} while (0)

#define BOTH(check, function, ...)                                                                                     \
	do {                                                                                                           \
		check(function(__VA_ARGS__));                                                                          \
		check(function##_ptds(__VA_ARGS__));                                                                   \
	} while (0)

#define BOTH_ASYNC(check, function, ...)                                                                               \
	do {                                                                                                           \
		check(function(__VA_ARGS__, NULL));                                                                    \
		check(function(__VA_ARGS__, stream));                                                                  \
		check(function##_ptsz(__VA_ARGS__, NULL));                                                             \
		check(function##_ptsz(__VA_ARGS__, stream));                                                           \
	} while (0)

/* `height` rows of `width` elements are to be filled, the rest is as it was. */
static void want_fill(size_t pitch, uint32_t value, size_t element, size_t width, size_t height)
{
	memset(wanted, 0xee, SIZE);
	for (size_t row = 0; row < height; row++)
		for (size_t i = 0; i < width; i++)
			memcpy(wanted + row * pitch + i * element, &value, element); /* little endian */
}

#define FILLS(bits, value)                                                                                             \
	do {                                                                                                           \
		want_fill(0, value, bits / 8, 9, 1);                                                                   \
		BOTH(TO_DEVICE, cuMemsetD##bits##_v2, target, value, 9);                                               \
		BOTH_ASYNC(TO_DEVICE, cuMemsetD##bits##Async, target, value, 9);                                       \
		want_fill(24, value, bits / 8, 5, 3);                                                                  \
		BOTH(TO_DEVICE, cuMemsetD2D##bits##_v2, target, 24, value, 5, 3);                                      \
		BOTH_ASYNC(TO_DEVICE, cuMemsetD2D##bits##Async, target, 24, value, 5, 3);                              \
	} while (0)

/* How many calls it takes: each variant of a function with a stream is given the default one and another. */
static int calls_due(void)
{
	int due = 0;

#define COPIES(symbol, times)                                               due += !strncmp(#symbol, "cuMemcpy", 8) || !strncmp(#symbol, "cuMemset", 8) ? (times) : 0;
#define CUDA_API(needs, symbol, base, since, params, args)                  COPIES(symbol, 1)
#define CUDA_API_PTSZ(needs, symbol, base, since, since_ptsz, params, args) COPIES(symbol, 4)
#define CUDA_API_PTDS(needs, symbol, base, since, since_ptds, params, args) COPIES(symbol, 2)
#include "cuda_api.def"
	return due;
}

static void linear(CUcontext ctx)
{
	memcpy(wanted, host, SIZE);
	BOTH(TO_DEVICE, cuMemcpy, target, source, SIZE);
	BOTH(TO_DEVICE, cuMemcpyHtoD_v2, target, host, SIZE);
	BOTH(TO_HOST, cuMemcpyDtoH_v2, back, source, SIZE);
	BOTH(TO_DEVICE, cuMemcpyDtoD_v2, target, source, SIZE);
	BOTH(TO_DEVICE, cuMemcpyPeer, target, ctx, source, ctx, SIZE);
	BOTH_ASYNC(TO_DEVICE, cuMemcpyAsync, target, source, SIZE);
	BOTH_ASYNC(TO_DEVICE, cuMemcpyHtoDAsync_v2, target, host, SIZE);
	BOTH_ASYNC(TO_HOST, cuMemcpyDtoHAsync_v2, back, source, SIZE);
	BOTH_ASYNC(TO_DEVICE, cuMemcpyDtoDAsync_v2, target, source, SIZE);
	BOTH_ASYNC(TO_DEVICE, cuMemcpyPeerAsync, target, ctx, source, ctx, SIZE);
}

/* From the host's rows 1 to 3, 16 bytes apart, to the device's rows 0 to 2, 20 apart. */
static void rows(void)
{
	CUDA_MEMCPY2D copy = {
		.srcMemoryType = CU_MEMORYTYPE_HOST,
		.srcHost = host,
		.srcPitch = 16,
		.srcXInBytes = 2,
		.srcY = 1,
		.dstMemoryType = CU_MEMORYTYPE_DEVICE,
		.dstDevice = target,
		.dstPitch = 20,
		.dstXInBytes = 4,
		.WidthInBytes = 7,
		.Height = 3,
	};

	memset(wanted, 0xee, SIZE);
	for (int row = 0; row < 3; row++)
		memcpy(wanted + row * 20 + 4, host + (row + 1) * 16 + 2, 7);
	BOTH(TO_DEVICE, cuMemcpy2D_v2, &copy);
	BOTH(TO_DEVICE, cuMemcpy2DUnaligned_v2, &copy);
	BOTH_ASYNC(TO_DEVICE, cuMemcpy2DAsync_v2, &copy);
}

/* Two slices of two rows, out of the device's slices 1 and 2 of three rows of 8 bytes, to the host's of two rows of 10.
 */
static void slices(void)
{
	CUDA_MEMCPY3D copy = {
		.srcMemoryType = CU_MEMORYTYPE_DEVICE,
		.srcDevice = source,
		.srcPitch = 8,
		.srcHeight = 3,
		.srcXInBytes = 1,
		.srcY = 1,
		.srcZ = 1,
		.dstMemoryType = CU_MEMORYTYPE_HOST,
		.dstHost = back,
		.dstPitch = 10,
		.dstHeight = 2,
		.dstZ = 1,
		.WidthInBytes = 6,
		.Height = 2,
		.Depth = 2,
	};

	memset(wanted, 0xee, SIZE);
	for (int slice = 0; slice < 2; slice++)
		for (int row = 0; row < 2; row++)
			memcpy(wanted + (slice + 1) * 20 + row * 10, host + (slice + 1) * 24 + (row + 1) * 8 + 1, 6);
	BOTH(TO_HOST, cuMemcpy3D_v2, &copy);
	BOTH_ASYNC(TO_HOST, cuMemcpy3DAsync_v2, &copy);

	copy.srcZ = 3; /* two rows of it are beyond the end of the allocation */
	is(cuMemcpy3D_v2(&copy), CUDA_ERROR_INVALID_VALUE);
	copy.srcZ = 1, copy.srcHeight = 1;
	is(cuMemcpy3D_v2(&copy), CUDA_ERROR_INVALID_VALUE);
	copy.srcHeight = 3, copy.srcPitch = 5;
	is(cuMemcpy3D_v2(&copy), CUDA_ERROR_INVALID_VALUE);
	copy.srcPitch = 8, copy.srcHeight = SIZE_MAX / 4;
	is(cuMemcpy3D_v2(&copy), CUDA_ERROR_INVALID_VALUE);
	copy.srcHeight = 3, copy.srcMemoryType = CU_MEMORYTYPE_ARRAY;
	is(cuMemcpy3D_v2(&copy), CUDA_ERROR_INVALID_VALUE);
	is(cuMemcpy3D_v2(NULL), CUDA_ERROR_INVALID_VALUE);
	copy.Depth = 0;
	is(cuMemcpy3D_v2(&copy), CUDA_SUCCESS);
}

int main(void)
{
	CUcontext ctx;

	device_dir_make();
	must(cuInit(0));
	must(cuCtxCreate_v4(&ctx, NULL, 0, 0));
	must(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
	must(cuMemAlloc_v2(&source, SIZE));
	must(cuMemAlloc_v2(&target, SIZE));
	for (unsigned i = 0; i < SIZE; i++)
		host[i] = i * 7 + 1;
	must(cuMemcpyHtoD_v2(source, host, SIZE));

	linear(ctx);
	rows();
	slices();
	FILLS(8, 0xa5);
	FILLS(16, 0x1234);
	FILLS(32, 0xdeadbeef);
	ok(calls == calls_due(), "%d calls: every variant that there is", calls);

	must(cuCtxDestroy_v2(ctx));
	device_dir_remove();
	return tap_end();
}
