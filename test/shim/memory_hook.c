// SPDX-License-Identifier: MIT
/* Linked into a shim for tests: takes the memory out of the process and puts it back, without pool and gate. */
#define CUDAPOOL_ABI_NO_VERSIONS
#include <cuda.h>

#include <unistd.h>

#include "memory.h"
#include "shim.h"

#define EXPORT __attribute__((visibility("default")))

EXPORT int hook_park(int *fds, unsigned most);
EXPORT int hook_unpark(const int *fds, unsigned count);
EXPORT int hook_peers(int withdraw);
EXPORT const struct cudapool_page *hook_report(void);
EXPORT /* The number of pieces, or a negative CUresult; then all is where it was. The descriptors are the caller's. */
int hook_park(int *fds, unsigned most)
{
	unsigned count, i;
	CUresult r;

	cudapool_memory_settle();
	count = cudapool_memory_count();
	r = count > most ? CUDA_ERROR_INVALID_VALUE : cudapool_memory_renew(0, count);
	for (i = 0; i < count && r == CUDA_SUCCESS; i++)
		r = cudapool_memory_export(i, &fds[i]);
	if (r != CUDA_SUCCESS)
		return -(int)r;
	r = cudapool_memory_detach();
	return r == CUDA_SUCCESS ? (int)count : -(int)r;
}

/* 0, or a negative CUresult; then nothing is attached. Closes the descriptors if it could. */
int hook_unpark(const int *fds, unsigned count)
{
	CUresult r = CUDA_SUCCESS;
	unsigned i;

	for (i = 0; i < count && r == CUDA_SUCCESS; i++)
		r = cudapool_memory_import(i, fds[i]);
	if (r == CUDA_SUCCESS)
		r = cudapool_memory_map(0, count);
	if (r != CUDA_SUCCESS) {
		cudapool_memory_detach();
		return -(int)r;
	}
	for (i = 0; i < count; i++)
		close(fds[i]);
	return 0;
}

int hook_peers(int withdraw)
{
	return -(int)(withdraw ? cudapool_peers_withdraw() : cudapool_peers_restore());
}

const struct cudapool_page *hook_report(void)
{
	cudapool_memory_report(cudapool_state.page);
	return cudapool_state.page;
}
