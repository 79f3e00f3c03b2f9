// SPDX-License-Identifier: MIT
/* CRC-32C (Castagnoli), and a look for zeros, at the speed of memory. */
#include "checksum.h"

#include <pthread.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
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

/* Where the processor multiplies polynomials 512 bits at a time, four of these registers are folded side by side. */
#define FOLD 256

static uint32_t bytes_table[8][256];
static uint32_t skip_table[4][256]; /* what a checksum becomes when LANE zero bytes follow, by its bytes */
static bool have_instruction;
static bool have_folding;
static uint64_t fold_by[2]; /* what FOLD bytes further means for the lower and the upper half of 128 bits */

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

/* x^n modulo the polynomial, bits reversed. */
static uint32_t power_of_x(unsigned n)
{
	uint32_t power = 1u << 31;

	while (n--)
		power = power >> 1 ^ (power & 1 ? POLYNOMIAL : 0);
	return power;
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
	fold_by[0] = (uint64_t)power_of_x(8 * FOLD + 32) << 1;
	fold_by[1] = (uint64_t)power_of_x(8 * FOLD - 32) << 1;
#if defined(__x86_64__)
	have_instruction = __builtin_cpu_supports("sse4.2");
	have_folding = have_instruction && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
		       __builtin_cpu_supports("vpclmulqdq");
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

#if defined(__x86_64__)
/*
 * What is behind `x` by FOLD bytes, plus what `x` becomes there: 128 bits are two halves, each times x^(8 * FOLD), give
 * or take the 32 bits that a product is out of place.
 */
#define FOLDED(x, by, next)                                                                                            \
	_mm512_ternarylogic_epi64(_mm512_clmulepi64_epi128(x, by, 0x00), _mm512_clmulepi64_epi128(x, by, 0x11), next, 0x96)

/*
 * At the speed of memory, and copying on the way where `to` is given: written past the caches if `away`, which needs
 * `to` to be a multiple of 64. `size` is a multiple of FOLD, and not 0.
 */
__attribute__((target("sse4.2,avx512f,avx512dq,vpclmulqdq"))) static inline __attribute__((always_inline)) uint32_t
fold(uint32_t crc, uint8_t *to, const uint8_t *from, size_t size, bool copy, bool away)
{
	__m512i by = _mm512_broadcast_i64x2(_mm_set_epi64x((long long)fold_by[1], (long long)fold_by[0]));
	__m512i x[4] = {_mm512_zextsi128_si512(_mm_cvtsi32_si128((int)crc))}; /* it stands for all that was before */
	__m512i next;
	uint8_t rest[FOLD];
	size_t at;
	int i;

	for (at = 0; at < size; at += FOLD) {
#pragma GCC unroll 4
		for (i = 0; i < 4; i++) {
			next = _mm512_loadu_si512(from + at + 64 * i);
			if (copy && away)
				_mm512_stream_si512((void *)(to + at + 64 * i), next);
			else if (copy)
				_mm512_storeu_si512(to + at + 64 * i, next);
			x[i] = at ? FOLDED(x[i], by, next) : _mm512_xor_si512(x[i], next);
		}
	}
#pragma GCC unroll 4
	for (i = 0; i < 4; i++)
		_mm512_storeu_si512(rest + 64 * i, x[i]);
	return quick(0, rest, FOLD); /* which has the same remainder as all of it */
}

#define FOLDING __attribute__((target("sse4.2,avx512f,avx512dq,vpclmulqdq")))
FOLDING static uint32_t fold_only(uint32_t crc, const uint8_t *from, size_t size)
{
	return fold(crc, NULL, from, size, false, false);
}

FOLDING static uint32_t fold_copy(uint32_t crc, uint8_t *to, const uint8_t *from, size_t size)
{
	return fold(crc, to, from, size, true, false);
}

FOLDING static uint32_t fold_away(uint32_t crc, uint8_t *to, const uint8_t *from, size_t size)
{
	crc = fold(crc, to, from, size, true, true);
	_mm_sfence();
	return crc;
}

static void copy_away(uint8_t *to, const uint8_t *from, size_t size)
{
	size_t i;

	for (; size >= 64; size -= 64, to += 64, from += 64) {
		for (i = 0; i < 64; i += 16)
			_mm_stream_si128((__m128i *)(to + i), _mm_loadu_si128((const __m128i *)(from + i)));
	}
	_mm_sfence();
	memcpy(to, from, size);
}
#else
#define copy_away memcpy
static uint32_t fold_only(uint32_t crc, const uint8_t *from, size_t size)
{
	return plain(crc, from, size);
}
#endif

static void prepare(void)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;

	pthread_once(&once, make_tables);
}

static uint32_t checksum(uint32_t crc, const uint8_t *from, size_t size)
{
	size_t folded = have_folding ? size & ~(size_t)(FOLD - 1) : 0;

	if (folded)
		crc = fold_only(crc, from, folded);
	return (have_instruction ? quick : plain)(crc, from + folded, size - folded);
}

uint32_t checksum_crc32c(uint32_t crc, const void *data, size_t size)
{
	prepare();
	return ~checksum(~crc, data, size);
}

/* A part at a time, so that it is still in the processor's nearest cache when it is read again. */
static uint32_t copy_in_parts(uint32_t crc, uint8_t *to, const uint8_t *from, size_t size, bool away)
{
	size_t part;

	for (; size; size -= part, to += part, from += part) {
		part = size < 2 * ROUND ? size : 2 * ROUND;
		if (away && !((uintptr_t)to % 64)) {
			crc = checksum(crc, from, part);
			copy_away(to, from, part);
		} else {
			memcpy(to, from, part);
			crc = checksum(crc, to, part);
		}
	}
	return crc;
}

uint32_t checksum_copy(uint32_t crc, void *to, const void *from, size_t size, bool away)
{
	size_t folded = 0;

	prepare();
	crc = ~crc;
#if defined(__x86_64__)
	if (have_folding && size >= FOLD) {
		folded = size & ~(size_t)(FOLD - 1);
		crc = (away && !((uintptr_t)to % 64) ? fold_away : fold_copy)(crc, to, from, folded);
	}
#endif
	return ~copy_in_parts(crc, (uint8_t *)to + folded, (const uint8_t *)from + folded, size - folded, away);
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
