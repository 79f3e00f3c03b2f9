// SPDX-License-Identifier: MIT
/* CRC-32C (Castagnoli), copying, and a look for zeros, at the speed of memory. */
#ifndef CUDAPOOL_POOL_CHECKSUM_H
#define CUDAPOOL_POOL_CHECKSUM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The checksum of `size` bytes, going on from `crc`, which is 0 at the start. Any alignment. Uses the processor's own
 * instruction. */
uint32_t checksum_crc32c(uint32_t crc, const void *data, size_t size);

/*
 * The same while copying it, which costs hardly more than copying alone. With `away` nobody will read `to` soon: it is
 * written past the caches if it is a multiple of 64, and `from` must not change meanwhile. Without, `from` may: the
 * checksum is of what arrived.
 */
uint32_t checksum_copy(uint32_t crc, void *to, const void *from, size_t size, bool away);

/* The same in plain C: what processors without the instruction get, and what tests compare with. */
uint32_t checksum_crc32c_plain(uint32_t crc, const void *data, size_t size);

/* Is all of it zero? Returns at the first byte that is not, so that it costs nothing where there is something. */
bool checksum_zero(const void *data, size_t size);

#endif
