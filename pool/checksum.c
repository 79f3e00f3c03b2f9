// SPDX-License-Identifier: MIT
/* CRC-32C (Castagnoli), and a look for zeros, at the speed of memory. */
#include "checksum.h"

#include <pthread.h>
#include <string.h>

#if defined(__x86_64__)
#include <nmmintrin.h>
#elif defined(__aarch64__)
#include <arm_acle.h>
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

#define POLYNOMIAL 0x82f63b78u /* bits reversed */

/* One round is three streams of LANE bytes, side by side: the instruction takes three cycles, but a new one can start
 * in each. */
#define LANE  2048
#define ROUND (3 * LANE)

static uint32_t bytes_table[8][256];
static uint32_t skip_table[4][256]; /* what a checksum becomes when LANE zero bytes follow, by its bytes */
static bool have_instruction;

/* The checksum that follows when one zero byte does. */
static uint32_t after_zero(uint32_t crc)
{
	return crc >> 8 ^ bytes_table[0][crc & 0xff];
}

static uint32_t skip_lane(uint32_t crc)
{
	return skip_table[0][crc & 0xff] ^ skip_table[1][crc >> 8 & 0xff] ^ skip_table[2][crc >> 16 & 0xff] ^
	       skip_table[3][crc >> 24];
}

static void make_tables(void)
{
	uint32_t bit_after[32], crc;
	int i, k, bit;

	for (i = 0; i < 256; i++) {
		crc = i;
		for (bit = 0; bit < 8; bit++)
			crc = crc >> 1 ^ (crc & 1 ? POLYNOMIAL : 0);
		bytes_table[0][i] = crc;
	}
	for (k = 1; k < 8; k++) {
		for (i = 0; i < 256; i++)
			bytes_table[k][i] = after_zero(bytes_table[k - 1][i]);
	}
	/* Linear: what becomes of a checksum is the sum of what becomes of its bits. */
	for (bit = 0; bit < 32; bit++) {
		crc = 1u << bit;
		for (i = 0; i < LANE; i++)
			crc = after_zero(crc);
		bit_after[bit] = crc;
	}
	for (k = 0; k < 4; k++) {
		for (i = 0; i < 256; i++) {
			for (bit = 0; bit < 8; bit++)
				skip_table[k][i] ^= i >> bit & 1 ? bit_after[8 * k + bit] : 0;
		}
	}
#if defined(__x86_64__)
	have_instruction = __builtin_cpu_supports("sse4.2");
#elif defined(__aarch64__)
	have_instruction = getauxval(AT_HWCAP) & HWCAP_CRC32;
#endif
}

static uint64_t word_at(const uint8_t *from)
{
	uint64_t word;

	memcpy(&word, from, sizeof(word));
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
	word = __builtin_bswap64(word);
#endif
	return word;
}

static uint32_t plain(uint32_t crc, const uint8_t *from, size_t size)
{
	uint64_t word;

	for (; size >= 8; size -= 8, from += 8) {
		word = word_at(from) ^ crc;
		crc = bytes_table[7][word & 0xff] ^ bytes_table[6][word >> 8 & 0xff] ^
		      bytes_table[5][word >> 16 & 0xff] ^ bytes_table[4][word >> 24 & 0xff] ^
		      bytes_table[3][word >> 32 & 0xff] ^ bytes_table[2][word >> 40 & 0xff] ^
		      bytes_table[1][word >> 48 & 0xff] ^ bytes_table[0][word >> 56];
	}
	for (; size; size--)
		crc = crc >> 8 ^ bytes_table[0][(crc ^ *from++) & 0xff];
	return crc;
}

#if defined(__x86_64__) || defined(__aarch64__)
#if defined(__x86_64__)
#define INSTRUCTION  __attribute__((target("sse4.2")))
#define STEP_8(c, w) (uint32_t) _mm_crc32_u64(c, w)
#define STEP_1(c, b) _mm_crc32_u8(c, b)
#else
#define INSTRUCTION  __attribute__((target("+crc")))
#define STEP_8(c, w) __crc32cd(c, w)
#define STEP_1(c, b) __crc32cb(c, b)
#endif

INSTRUCTION static uint32_t quick(uint32_t crc, const uint8_t *from, size_t size)
{
	uint32_t second, third;
	size_t i;

	for (; size >= ROUND; size -= ROUND, from += ROUND) {
		second = third = 0;
		for (i = 0; i < LANE; i += 8) {
			crc = STEP_8(crc, word_at(from + i));
			second = STEP_8(second, word_at(from + LANE + i));
			third = STEP_8(third, word_at(from + 2 * LANE + i));
		}
		crc = skip_lane(skip_lane(crc) ^ second) ^ third;
	}
	for (; size >= 8; size -= 8, from += 8)
		crc = STEP_8(crc, word_at(from));
	for (; size; size--)
		crc = STEP_1(crc, *from++);
	return crc;
}
#else
#define quick plain
#endif

static void prepare(void)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;

	pthread_once(&once, make_tables);
}

uint32_t checksum_crc32c(uint32_t crc, const void *data, size_t size)
{
	prepare();
	return ~(have_instruction ? quick : plain)(~crc, data, size);
}

uint32_t checksum_crc32c_plain(uint32_t crc, const void *data, size_t size)
{
	prepare();
	return ~plain(~crc, data, size);
}

bool checksum_zero(const void *data, size_t size)
{
	const uint8_t *from = data;
	uint64_t any;
	size_t i;

	/* In steps that the compiler makes vectors of. */
	for (; size >= 256; size -= 256, from += 256) {
		for (any = 0, i = 0; i < 256; i += 8)
			any |= word_at(from + i);
		if (any)
			return false;
	}
	for (any = 0; size; size--)
		any |= *from++;
	return !any;
}
