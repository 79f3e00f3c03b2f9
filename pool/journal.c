// SPDX-License-Identifier: MIT
/* What the pool holds for whom, on disk: so that a keeper that was killed can be succeeded by one that knows. */
#include "journal.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "log.h"

#define RECORDS_LONG 2048 /* 2 MiB */

static char journal_path[PATH_MAX];
static int journal_fd = -1;
static off_t end; /* of the last whole record */
static unsigned records;

static uint32_t crc32(const void *data, size_t size)
{
	/* What four bits add. */
	static const uint32_t table[16] = {
		0x00000000, 0x1db71064, 0x3b6e20c8, 0x26d930ac, 0x76dc4190, 0x6b6b51f4, 0x4db26158, 0x5005713c,
		0xedb88320, 0xf00f9344, 0xd6d6a3e8, 0xcb61b38c, 0x9b64c2b0, 0x86d3d2d4, 0xa00ae278, 0xbdbdf21c,
	};
	const uint8_t *byte = data;
	uint32_t crc = ~0u;

	while (size--) {
		crc ^= *byte++;
		crc = crc >> 4 ^ table[crc & 15];
		crc = crc >> 4 ^ table[crc & 15];
	}
	return ~crc;
}

static int read_boot_id(uint8_t boot[16])
{
	char text[64] = "";
	unsigned value;
	int fd, i, at = 0;
	ssize_t n;

	fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	n = read(fd, text, sizeof(text) - 1);
	close(fd);
	if (n < 36)
		return -EIO;
	for (i = 0; i < 16; i++) {
		if (text[at] == '-')
			at++;
		if (sscanf(text + at, "%2x", &value) != 1)
			return -EIO;
		boot[i] = (uint8_t)value;
		at += 2;
	}
	return 0;
}

static int write_whole(int fd, const void *data, size_t size, off_t at)
{
	ssize_t n = pwrite(fd, data, size, at);

	return n < 0 ? -errno : (size_t)n == size ? 0 : -ENOSPC;
}

static int make_header(struct journal_header *header)
{
	*header = (struct journal_header){.magic = JOURNAL_MAGIC, .record_size = sizeof(struct journal_record)};
	if (read_boot_id(header->boot))
		return -EIO;
	header->checksum = crc32(header, offsetof(struct journal_header, checksum));
	return 0;
}

/* Nobody else may have prepared the file: what it says makes the pool act on processes. */
static int open_own(const char *path, int flags)
{
	int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW | flags, 0600);
	struct stat st;

	if (fd < 0)
		return -errno;
	if (fstat(fd, &st) || !S_ISREG(st.st_mode) || st.st_uid != geteuid() || (st.st_mode & 022) ||
	    st.st_nlink != 1) {
		close(fd);
		return -EPERM;
	}
	return fd;
}

/* Of this boot, so that the processes may live. One that is torn within its header never had any. */
static bool has_foreign_records(const struct journal_header *found, const struct journal_header *own)
{
	struct stat st;

	return !memcmp(found->boot, own->boot, sizeof(found->boot)) && !fstat(journal_fd, &st) &&
	       st.st_size > (off_t)sizeof(*found);
}

int journal_open(const char *path, void (*replay)(const struct journal_record *record))
{
	struct journal_header header, found = {};
	struct journal_record record;
	int err;

	if (snprintf(journal_path, sizeof(journal_path), "%s", path) >= (int)sizeof(journal_path) - 4)
		return -ENAMETOOLONG;
	err = make_header(&header);
	if (err)
		return err;
	journal_fd = open_own(path, 0);
	if (journal_fd < 0)
		return journal_fd;

	if (pread(journal_fd, &found, sizeof(found), 0) != sizeof(found) || memcmp(&found, &header, sizeof(found))) {
		if (has_foreign_records(&found, &header))
			cudapool_log(CUDAPOOL_LOG_ERR,
				     "%s is of another version of the pool: what that one held is not given back (see "
				     "cuda-checkpoint --get-state --pid PID)", path);
		if (ftruncate(journal_fd, 0))
			return -errno;
		end = sizeof(header);
		return write_whole(journal_fd, &header, sizeof(header), 0);
	}
	end = sizeof(header);
	while (pread(journal_fd, &record, sizeof(record), end) == sizeof(record) &&
	       record.checksum == crc32(&record, offsetof(struct journal_record, checksum))) {
		end += sizeof(record);
		records++;
		replay(&record);
	}
	/* What a torn record left behind must not be taken for part of the next one. */
	return ftruncate(journal_fd, end) ? -errno : 0;
}

int journal_put(struct journal_record *record)
{
	int err;

	record->checksum = crc32(record, offsetof(struct journal_record, checksum));
	err = write_whole(journal_fd, record, sizeof(*record), end);
	if (err) {
		if (ftruncate(journal_fd, end))
			cudapool_log(CUDAPOOL_LOG_ERR, "the journal cannot be cut back: %s", strerror(errno));
		return err;
	}
	end += sizeof(*record);
	records++;
	return 0;
}

int journal_is_long(void)
{
	return records >= RECORDS_LONG;
}

int journal_rewrite(struct journal_record *(*next)(void *cursor), void *cursor)
{
	char path[PATH_MAX + 8];
	struct journal_header header;
	struct journal_record *record;
	unsigned written = 0;
	off_t at = sizeof(header);
	int fd, err;

	err = make_header(&header);
	if (err)
		return err;
	snprintf(path, sizeof(path), "%s.new", journal_path);
	unlink(path); /* of a keeper that was killed in here */
	fd = open_own(path, O_EXCL);
	if (fd < 0)
		return fd;
	err = write_whole(fd, &header, sizeof(header), 0);
	while (!err && (record = next(cursor))) {
		record->checksum = crc32(record, offsetof(struct journal_record, checksum));
		err = write_whole(fd, record, sizeof(*record), at);
		at += sizeof(*record);
		written++;
	}
	if (!err && rename(path, journal_path))
		err = -errno;
	if (err) {
		close(fd);
		unlink(path);
		return err;
	}
	close(journal_fd);
	journal_fd = fd;
	end = at;
	records = written;
	return 0;
}
