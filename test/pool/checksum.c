// SPDX-License-Identifier: MIT
/* Checksums: known ones, and at random places and lengths, from a seed that it prints: checksum [SEED]. */
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "checksum.h"
#include "random.h"
#include "tap.h"

static void checksums(void)
{
	/* From RFC 3720, and "123456789" as every list of checksums has it. */
	uint8_t bytes[32], *at = malloc(65536 + 64);
	uint8_t *to = aligned_alloc(64, 65536 + 128);
	bool same = true, parts = true, zeros = true, copies = true;
	size_t i, from, size, cut;
	uint32_t crc;

	ok(checksum_crc32c(0, "123456789", 9) == 0xe3069283, "CRC-32C of '123456789'");
	memset(bytes, 0, 32);
	ok(checksum_crc32c(0, bytes, 32) == 0x8a9136aa, "of 32 zeros");
	memset(bytes, 0xff, 32);
	ok(checksum_crc32c(0, bytes, 32) == 0x62a8ab43, "of 32 ones");
	for (i = 0; i < 32; i++)
		bytes[i] = (uint8_t)i;
	ok(checksum_crc32c(0, bytes, 32) == 0x46dd794e, "of 0 to 31");
	for (i = 0; i < 32; i++)
		bytes[i] = (uint8_t)(31 - i);
	ok(checksum_crc32c(0, bytes, 32) == 0x113fdb5c, "of 31 to 0");
	ok(checksum_crc32c_plain(0, "123456789", 9) == 0xe3069283, "and in plain C");

	for (i = 0; i < 65536 + 64; i++)
		at[i] = (uint8_t)random_number();
	for (i = 0; i < 300; i++) {
		from = random_number() % 64;
		size = random_number() % 65536;
		cut = size ? random_number() % size : 0;
		crc = checksum_crc32c(0, at + from, size);
		same &= crc == checksum_crc32c_plain(0, at + from, size);
		parts &= crc == checksum_crc32c(checksum_crc32c(0, at + from, cut), at + from + cut, size - cut);
	}
	ok(same, "both ways agree, at any place and of any length");
	ok(parts, "in two parts as in one");
	for (i = 0; i < 600; i++) {
		from = random_number() % 64;
		size = random_number() % 65536;
		cut = i % 3 ? 0 : random_number() % 64;
		crc = (uint32_t)random_number();
		memset(to, 0, 65536 + 128);
		copies &= checksum_copy(crc, to + cut, at + from, size, i % 2) ==
			  checksum_crc32c_plain(crc, at + from, size);
		copies &= !memcmp(to + cut, at + from, size) && checksum_zero(to, cut) &&
			  checksum_zero(to + cut + size, 65536 + 128 - cut - size);
	}
	ok(copies, "copying gives the same checksum and the same bytes, and writes nothing beside them");
	free(to);
	memset(at, 0, 65536 + 64);
	for (i = 0; i < 2000; i++) {
		from = random_number() % 64;
		size = random_number() % 3000;
		zeros &= checksum_zero(at + from, size);
		if (!size)
			continue;
		cut = random_number() % size;
		at[from + cut] = 1;
		zeros &= !checksum_zero(at + from, size);
		at[from + cut] = 0;
		if (from)
			at[from - 1] = 1;
		at[from + size] = 1;
		zeros &= checksum_zero(at + from, size);
		at[from + size] = 0;
		if (from)
			at[from - 1] = 0;
	}
	ok(zeros, "zeros are seen as such, and nothing else is");
	free(at);
}

int main(int argc, char **argv)
{
	seed = argc > 1 ? strtoull(argv[1], NULL, 0) : (uint64_t)time(NULL) << 20 | (uint64_t)getpid();
	note("seed %llu", (unsigned long long)seed);
	checksums();
	return tap_end();
}
