// SPDX-License-Identifier: MIT
/*
 * The memory behind a physical allocation: a file that counts as long as anybody maps it or holds a descriptor of it.
 */
#include "backing.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "hold.h"

/*
 * One allocation is one file, DIR/memory/NAME. Every open file description of it that lives holds a shared flock on
 * it: the one behind its maker's mapping (a mapping keeps its description, so nobody needs a descriptor for each
 * allocation), those behind exported descriptors in whatever process, and those behind mappings of importers. So
 * anybody can ask whether the memory still lives: it does not if the file can be locked exclusively. Locks are taken
 * and asked for only with the table's lock held.
 *
 * NAME says who counts it: 'o' (own) its maker, in its slot of the table; 's' (shared), from the first export on, the
 * table itself. The table's figure for these never is too low; whoever needs to be exact, looks
 * (softcuda_backings_look).
 *
 * The restore thread comes here: no heap, no stdio.
 */
#define NAME_DIGITS 16

struct label { /* the file's last page, behind the content: for whoever imports it */
	char magic[16];
	uint64_t size;
	CUuuid device;
	char name[SOFTCUDA_BACKING_NAME];
};
static const char label_magic[16] = "softcuda memory";

static char *hex(char *to, uint64_t value, unsigned digits)
{
	for (unsigned i = 0; i < digits; i++)
		to[i] = "0123456789abcdef"[value >> 4 * (digits - 1 - i) & 15];
	return to + digits;
}

/* "oD-SIZE-RANDOM": D the host's device. */
static void name_make(char *name, int device, uint64_t size, uint64_t random)
{
	char *at = name;

	*at++ = 'o';
	at = hex(at, device, 1);
	*at++ = '-';
	at = hex(at, size, NAME_DIGITS);
	*at++ = '-';
	*hex(at, random, NAME_DIGITS) = 0;
}

static bool name_read(const char *name, int *device, uint64_t *size)
{
	const char *digits = "0123456789abcdef", *digit;

	if (strlen(name) != SOFTCUDA_BACKING_NAME - 1 || (*name != 'o' && *name != 's'))
		return false;
	digit = strchr(digits, name[1]);
	if (!digit)
		return false;
	*device = digit - digits;
	*size = 0;
	for (unsigned i = 0; i < NAME_DIGITS; i++) {
		digit = strchr(digits, name[3 + i]);
		if (!digit)
			return false;
		*size = *size << 4 | (digit - digits);
	}
	return true;
}

/* The file's path, or with no name the folder's. */
static const char *path_of(char *path, const char *name)
{
	strcpy(path, softcuda_config.dir);
	strcat(path, "/memory");
	if (name) {
		strcat(path, "/");
		strcat(path, name);
	}
	return path;
}

#define PATH_SIZE (sizeof(softcuda_config.dir) + 16 + SOFTCUDA_BACKING_NAME)

/* Opened anew, with a lock of its own; with the table's lock held. */
static int backing_open(const char *name, int flags)
{
	char path[PATH_SIZE];
	int fd = open(path_of(path, name), O_RDWR | O_CLOEXEC | O_NOFOLLOW | flags, 0666);
	int error;

	if (fd >= 0 && flock(fd, LOCK_SH | LOCK_NB)) {
		error = -errno;
		close(fd);
		return error;
	}
	return fd < 0 ? -errno : fd;
}

static int file_make(char *name, int device, uint64_t size)
{
	char path[PATH_SIZE];
	uint64_t random;
	int fd;

	for (unsigned tries = 0; tries < 4; tries++) {
		if (getrandom(&random, sizeof(random), 0) != sizeof(random))
			return -EIO;
		name_make(name, device, size, random);
		fd = backing_open(name, O_CREAT | O_EXCL);
		/* A folder that everybody may tidy, whoever made it. */
		if (fd == -ENOENT && (!mkdir(path_of(path, NULL), 0777) || errno == EEXIST))
			chmod(path, 0777);
		else if (fd != -EEXIST)
			return fd;
	}
	return -EEXIST;
}

static void backing_unlink(const char *name)
{
	char path[PATH_SIZE];

	unlink(path_of(path, name));
}

static char *map_whole(int fd, size_t size)
{
	char *map = mmap(NULL, size, PROT_NONE, MAP_SHARED, fd, 0);

	if (map == MAP_FAILED)
		return NULL;
	madvise(map, size, MADV_DONTFORK);
	return map;
}

CUresult softcuda_backing_make(struct softcuda_backing *backing, size_t size, int device)
{
	int host = softcuda_devices[device].host_index, fd;
	struct label label = {.size = size, .device = softcuda_devices[device].uuid};
	CUresult result;

	result = softcuda_table_lock();
	if (result != CUDA_SUCCESS)
		return result;
	result = softcuda_memory_take_locked(host, size);
	if (result != CUDA_SUCCESS) {
		softcuda_table_unlock();
		return result;
	}
	fd = file_make(backing->name, host, size);
	if (fd < 0)
		softcuda_memory_give_locked(host, size);
	softcuda_table_unlock();
	if (fd < 0)
		return CUDA_ERROR_OPERATING_SYSTEM;

	backing->size = size;
	backing->host = host;
	backing->shared = false;
	memcpy(label.magic, label_magic, sizeof(label.magic));
	strcpy(label.name, backing->name);
	*label.name = 's';
	backing->map = NULL;
	if (!ftruncate(fd, size + SOFTCUDA_PAGE_SIZE) && pwrite(fd, &label, sizeof(label), size) == sizeof(label))
		backing->map = map_whole(fd, size);
	close(fd);
	if (!backing->map) {
		softcuda_backing_end(backing);
		return CUDA_ERROR_OUT_OF_MEMORY;
	}
	return CUDA_SUCCESS;
}

CUresult softcuda_backing_import(struct softcuda_backing *backing, int fd, int *device)
{
	struct label label;
	struct stat file;

	if (fstat(fd, &file) || !S_ISREG(file.st_mode) || file.st_size <= (off_t)SOFTCUDA_PAGE_SIZE ||
	    pread(fd, &label, sizeof(label), file.st_size - SOFTCUDA_PAGE_SIZE) != sizeof(label) ||
	    memcmp(label.magic, label_magic, sizeof(label.magic)) ||
	    label.size != (uint64_t)file.st_size - SOFTCUDA_PAGE_SIZE || label.name[sizeof(label.name) - 1] ||
	    !name_read(label.name, &backing->host, &backing->size) || backing->size != label.size)
		return CUDA_ERROR_INVALID_VALUE;
	for (*device = 0; *device < (int)softcuda_config.devices; ++*device) {
		if (!memcmp(&label.device, &softcuda_devices[*device].uuid, sizeof(label.device)))
			break;
	}
	if (*device == (int)softcuda_config.devices)
		return CUDA_ERROR_INVALID_VALUE;
	strcpy(backing->name, label.name);
	backing->shared = true;
	backing->map = map_whole(fd, backing->size);
	return backing->map ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

/* Unlinks the file if nobody has it any more; with the table's lock held. */
static bool reap(const char *name)
{
	char path[PATH_SIZE];
	int fd = open(path_of(path, name), O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	bool dead;

	if (fd < 0)
		return errno == ENOENT;
	dead = !flock(fd, LOCK_EX | LOCK_NB);
	if (dead)
		unlink(path);
	close(fd);
	return dead;
}

void softcuda_backing_end(struct softcuda_backing *backing)
{
	if (backing->map)
		munmap(backing->map, backing->size);
	backing->map = NULL;
	if (softcuda_table_lock()) {
		softcuda_say("%s/memory/%s stays behind", softcuda_config.dir, backing->name);
		return;
	}
	if (!backing->shared) {
		backing_unlink(backing->name);
		softcuda_memory_give_locked(backing->host, backing->size);
	} else if (reap(backing->name)) {
		softcuda_memory_unshare_locked(backing->host, backing->size);
	}
	softcuda_table_unlock();
}

/* From the first export on the table counts it. */
static int share(struct softcuda_backing *backing)
{
	char from[PATH_SIZE], to[PATH_SIZE];
	char own = *backing->name;

	path_of(from, backing->name);
	*backing->name = 's';
	if (rename(from, path_of(to, backing->name))) {
		*backing->name = own;
		return -errno;
	}
	softcuda_memory_share_locked(backing->host, backing->size);
	backing->shared = true;
	return 0;
}

int softcuda_backing_export(struct softcuda_backing *backing)
{
	int fd = -EBUSY;

	if (softcuda_table_lock())
		return fd;
	fd = backing->shared ? 0 : share(backing);
	if (!fd)
		fd = backing_open(backing->name, 0);
	softcuda_table_unlock();
	return fd;
}

int softcuda_backing_fd(const struct softcuda_backing *backing)
{
	char path[PATH_SIZE];
	int fd = open(path_of(path, backing->name), O_RDWR | O_CLOEXEC | O_NOFOLLOW);

	return fd < 0 ? -errno : fd;
}

void softcuda_backing_forget(const struct softcuda_backing *backing)
{
	if (!backing->shared)
		backing_unlink(backing->name);
}

bool softcuda_backing_is(const char *path)
{
	size_t length = strlen(softcuda_config.dir);

	return !strncmp(path, softcuda_config.dir, length) && !strncmp(path + length, "/memory/", 8);
}

void softcuda_backings_look(bool own_too, uint64_t shared[SOFTCUDA_MAX_DEVICES])
{
	char path[PATH_SIZE], entries[16384];
	int fd, device;
	uint64_t size;
	long got;

	memset(shared, 0, SOFTCUDA_MAX_DEVICES * sizeof(*shared));
	fd = open(path_of(path, NULL), O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
	if (fd < 0)
		return;
	while ((got = syscall(SYS_getdents64, fd, entries, sizeof(entries))) > 0) {
		for (long at = 0; at < got;) {
			struct {
				uint64_t inode, offset;
				uint16_t length;
				uint8_t type;
				char name[];
			} *entry = (void *)(entries + at);

			at += entry->length;
			if (!name_read(entry->name, &device, &size) || (*entry->name == 'o' && !own_too))
				continue;
			if (!reap(entry->name) && *entry->name == 's')
				shared[device] += size;
		}
	}
	close(fd);
}
