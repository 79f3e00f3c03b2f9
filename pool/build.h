// SPDX-License-Identifier: MIT
/* The name of this build, for people: version and the linker's build id. */
#ifndef CUDAPOOL_POOL_BUILD_H
#define CUDAPOOL_POOL_BUILD_H

/* "0.3.0 1f2e3d4c5b6a7988", shorter than CUDAPOOL_BUILD_LEN. */
const char *build_name(void);

#endif
