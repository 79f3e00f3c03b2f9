// SPDX-License-Identifier: MIT
/* The journal: what is written comes back, and nothing that is torn, forged or of another boot does. */
#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "journal.h"
#include "log.h"
#include "tap.h"

static struct journal_record seen[8192];
static int count, log_file;
static off_t log_size;

static void replay(const struct journal_record *record)
{
	seen[count++] = *record;
}

static int reopen(const char *path)
{
	count = 0;
	return journal_open(path, replay);
}

/* True if something was, since the last call. */
static bool logged(void)
{
	off_t size = lseek(log_file, 0, SEEK_END);
	bool grew = size > log_size;

	log_size = size;
	return grew;
}

static struct journal_record record_of(int pid)
{
	return (struct journal_record){
		.owner_pid = 7, .owner_start = 70, .pid = pid, .start = (uint64_t)pid * 10, .held = 1, .before = -1};
}

static int put(int pid)
{
	struct journal_record record = record_of(pid);

	return journal_put(&record);
}

static off_t size_of(const char *path)
{
	struct stat st;

	return stat(path, &st) ? -1 : st.st_size;
}

/* Changes one byte at `at`, counted from the end if negative. */
static void spoil(const char *path, off_t at)
{
	int fd = open(path, O_RDWR);
	unsigned char byte = 0;

	if (at < 0)
		at += size_of(path);
	if (pread(fd, &byte, 1, at) == 1) {
		byte ^= 0x40;
		if (pwrite(fd, &byte, 1, at) != 1)
			abort();
	}
	close(fd);
}

static struct journal_record *two_left(void *cursor)
{
	static struct journal_record record;
	int *n = cursor;

	record = record_of(500 + *n);
	return (*n)++ < 2 ? &record : NULL;
}

int main(int argc, char **argv)
{
	char path[4096], other[4200];
	int i, cursor = 0;
	off_t whole;

	if (argc != 2)
		return 2;
	log_file = memfd_create("log", MFD_CLOEXEC);
	cudapool_log_to(log_file, CUDAPOOL_LOG_ERR);
	snprintf(path, sizeof(path), "%s/journal", argv[1]);
	snprintf(other, sizeof(other), "%s/other", argv[1]);

	ok(reopen(path) == 0 && count == 0, "a new journal is empty");
	ok(put(1) == 0 && put(2) == 0 && put(3) == 0, "three records are written");
	ok(reopen(path) == 0 && count == 3, "and come back");
	ok(seen[0].pid == 1 && seen[2].pid == 3 && seen[2].start == 30 && seen[2].owner_start == 70 &&
		   seen[2].held == 1 && seen[2].before == -1,
	   "in order, with all that they say");
	whole = size_of(path);

	ok(truncate(path, whole - 5) == 0 && reopen(path) == 0 && count == 2, "a torn last record is not one");
	ok(size_of(path) == whole - (off_t)sizeof(struct journal_record), "and is cut off");
	ok(put(4) == 0 && reopen(path) == 0 && count == 3 && seen[2].pid == 4, "the next one takes its place");

	spoil(path, -9);
	ok(reopen(path) == 0 && count == 2, "a record with a wrong checksum is not one");
	put(5);
	spoil(path, sizeof(struct journal_header) + 3);
	ok(reopen(path) == 0 && count == 0, "and nothing after it counts");

	put(6);
	spoil(path, offsetof(struct journal_header, boot));
	ok(reopen(path) == 0 && count == 0 && !logged(), "a journal of another boot is void");
	ok(size_of(path) == sizeof(struct journal_header), "and begun anew");
	spoil(path, offsetof(struct journal_header, record_size));
	ok(reopen(path) == 0 && count == 0 && !logged(), "an empty one of another format is nothing to speak of");
	put(6);
	spoil(path, offsetof(struct journal_header, record_size));
	ok(reopen(path) == 0 && count == 0 && logged(), "one with records is void as well, and the log says so");
	ok(truncate(path, 3) == 0 && reopen(path) == 0 && count == 0 && !logged(), "a torn header is no header");
	put(7);
	ok(reopen(path) == 0 && count == 1, "and the journal works on");

	for (i = 0; !journal_is_long() && i < 100000; i++)
		put(8);
	ok(journal_is_long() && i < 100000, "after %d records it is long", i);
	ok(journal_rewrite(two_left, &cursor) == 0 && !journal_is_long(), "it is written anew");
	put(9);
	ok(reopen(path) == 0 && count == 3 && seen[0].pid == 500 && seen[1].pid == 501 && seen[2].pid == 9,
	   "with the living ones, and goes on after them");

	ok(symlink(path, other) == 0 && reopen(other) == -ELOOP, "a link in its place is refused");
	unlink(other);
	ok(chmod(path, 0666) == 0 && reopen(path) == -EPERM, "a file that others may write to is refused");
	chmod(path, 0600);
	if (geteuid() == 0)
		ok(chown(path, 65534, (gid_t)-1) == 0 && reopen(path) == -EPERM, "somebody else's file is refused");
	return tap_end();
}
