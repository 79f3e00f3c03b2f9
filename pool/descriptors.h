// SPDX-License-Identifier: MIT
/* Descriptors of GPU memory: what may be one, and closing them where that takes nobody's time. */
#ifndef CUDAPOOL_POOL_DESCRIPTORS_H
#define CUDAPOOL_POOL_DESCRIPTORS_H

#include <stdbool.h>

/*
 * False for what no driver exports: closing a descriptor may call into whoever stands behind it, and a shim that is not
 * ours could send one that never returns from that (a file of a FUSE file system, a socket that lingers). Asks nobody
 * but the kernel, so it does not wait itself.
 */
bool descriptor_is_memory(int fd);

/*
 * Closes them beside the loop (background.h): the last descriptor of GPU memory frees it, which takes the driver its
 * time. closed(): they are (may be NULL); from the loop, or at once where there is no memory to do it beside.
 */
void descriptors_close(const int *fds, unsigned count, void (*closed)(void *own, unsigned count), void *own);

#endif
