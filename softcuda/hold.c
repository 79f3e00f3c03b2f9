// SPDX-License-Identifier: MIT
/* A process's place in the device directory: who has the driver open, and how much memory of which device is taken. */
#include "internal.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/landlock.h>
#include <stddef.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/*
 * DIR/state is a table of slots, one a process. A process owns a slot as long as it holds the POSIX record
 * lock on the slot's first byte: those locks are the process's own (a forked child has none), end with
 * it whatever way it ends, and can be asked for across pid namespaces. So a crash gives its memory
 * back: whoever counts finds the slot unlocked. Byte 0 is the lock for changing the table.
 *
 * Without a usable directory the process is alone on its device: always cold, nothing shared.
 *
 * The restore thread comes here: no heap, no stdio, and no lock that a stopped thread could hold.
 */
#define SLOTS         1024
#define LOCK_LIMIT_MS 5000

struct slot {
	uint64_t opened_ns;                  /* CLOCK_REALTIME: CRIU sets the others of a restored process */
	uint64_t used[SOFTCUDA_MAX_DEVICES]; /* bytes, by the host's device */
	uint64_t reserved[7];
};

static int state_fd = -1, device_fd = -1, slot_index = -1;
static struct slot mine;
static pthread_mutex_t memory_lock =
	PTHREAD_MUTEX_INITIALIZER; /* threads of this process: record locks do not part them */

static uint64_t wall_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	return now.tv_sec * 1000000000ull + now.tv_nsec;
}

static off_t slot_offset(int index)
{
	return (off_t)(1 + index) * sizeof(struct slot);
}

static int record_lock(int command, short type, off_t offset)
{
	struct flock lock = {.l_type = type, .l_whence = SEEK_SET, .l_start = offset, .l_len = 1};

	if (fcntl(state_fd, command, &lock))
		return -errno;
	return command == F_GETLK && lock.l_type != F_UNLCK;
}

/* The table's lock, waited for with a limit: whoever holds it does so for microseconds. */
static int table_lock(void)
{
	for (unsigned waited = 0; record_lock(F_SETLK, F_WRLCK, 0); waited++) {
		if (waited == LOCK_LIMIT_MS) {
			softcuda_say("%s/state has been locked for %u s: another process is stuck; remove the file",
				     softcuda_config.dir, LOCK_LIMIT_MS / 1000);
			return -EBUSY;
		}
		softcuda_sleep_ns(1000000);
	}
	return 0;
}

static void table_unlock(void)
{
	record_lock(F_SETLK, F_UNLCK, 0);
}

static bool slot_read(int index, struct slot *slot)
{
	return pread(state_fd, slot, sizeof(*slot), slot_offset(index)) == sizeof(*slot);
}

static void slot_write(void)
{
	if (slot_index >= 0 && pwrite(state_fd, &mine, sizeof(mine), slot_offset(slot_index)) != sizeof(mine))
		softcuda_say("cannot write %s/state", softcuda_config.dir);
}

static int slots_in_file(void)
{
	struct stat file;
	off_t slots;

	if (fstat(state_fd, &file))
		return 0;
	slots = file.st_size / (off_t)sizeof(struct slot) - 1; /* the first place is the table's lock */
	return slots < 0 ? 0 : slots > SLOTS ? SLOTS : slots;
}

static bool slot_live(int index)
{
	return index == slot_index || record_lock(F_GETLK, F_WRLCK, slot_offset(index)) == 1;
}

static void directory_open(void)
{
	char path[sizeof(softcuda_config.dir) + 8];

	if (mkdir(softcuda_config.dir, 01777) == 0)
		chmod(softcuda_config.dir, 01777); /* whatever the umask: containers of other users come here as well */
	strcpy(path, softcuda_config.dir);
	strcat(path, "/state");
	state_fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0666);
	if (state_fd >= 0)
		fchmod(state_fd, 0666);
}

int softcuda_hold_open(bool *cold)
{
	struct slot other;
	int index, count;

	*cold = true;
	directory_open();
	if (state_fd < 0)
		return 0;
	if (table_lock()) {
		softcuda_hold_close();
		return -EBUSY;
	}
	count = slots_in_file();
	for (index = 0; index < count; index++) {
		if (slot_read(index, &other) && other.opened_ns && slot_live(index))
			*cold = false;
		else if (slot_index < 0 && !record_lock(F_SETLK, F_WRLCK, slot_offset(index)))
			slot_index = index;
	}
	if (slot_index < 0 && count < SLOTS && !record_lock(F_SETLK, F_WRLCK, slot_offset(count)))
		slot_index = count;
	if (slot_index >= 0) {
		memset(&mine, 0, sizeof(mine));
		mine.opened_ns = wall_ns();
		slot_write();
	}
	table_unlock();
	if (slot_index < 0) {
		softcuda_say("%s/state has no free slot: more than %u processes", softcuda_config.dir, SLOTS);
		softcuda_hold_close();
		return -ENOSPC;
	}
	return 0;
}

/*
 * A rule of the model, not a measurement: a driver that was opened less than this ago has not made the machine warm.
 * Without it, whoever asks for a restore would make that restore warm by asking: cold restores were measured with a
 * cuda-checkpoint that was started for each.
 */
#define SETTLE_NS 500000000ull

bool softcuda_hold_is_warm(void)
{
	uint64_t now = wall_ns();
	struct slot other;
	int index, count;

	if (state_fd < 0)
		return false;
	count = slots_in_file();
	for (index = 0; index < count; index++) {
		if (slot_read(index, &other) && other.opened_ns && other.opened_ns + SETTLE_NS <= now &&
		    slot_live(index))
			return true;
	}
	return false;
}

/*
 * A process that has the device must be impossible for CRIU to dump, as with the real driver's
 * device files. These kinds of descriptor are unknown to CRIU 4.2, and at least the first two can be
 * made in a container with podman's default seccomp profile and no capability.
 */
int softcuda_hold_device(void)
{
	struct landlock_ruleset_attr rules = {.handled_access_fs = LANDLOCK_ACCESS_FS_EXECUTE};

	if (device_fd >= 0)
		return 0;
	device_fd = syscall(SYS_landlock_create_ruleset, &rules, sizeof(rules), 0); /* close-on-exec by itself */
	if (device_fd < 0)
		device_fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 262 /* IPPROTO_MPTCP */);
	if (device_fd < 0)
		device_fd = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (device_fd < 0)
		device_fd = socket(AF_ALG, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (device_fd < 0)
		device_fd = syscall(SYS_userfaultfd, O_CLOEXEC | 1);
	return device_fd < 0 ? -errno : 0;
}

void softcuda_hold_close(void)
{
	if (state_fd >= 0 && slot_index >= 0) {
		memset(&mine, 0, sizeof(mine));
		slot_write();
	}
	if (state_fd >= 0)
		close(state_fd); /* ends the record locks */
	if (device_fd >= 0)
		close(device_fd);
	state_fd = device_fd = slot_index = -1;
}

void softcuda_hold_in_child(void)
{
	slot_index = -1; /* it is the parent's */
	softcuda_hold_close();
}

/* All that is taken from a device, ours included; a slot whose process is gone counts nothing. */
static uint64_t used_by_all(int device)
{
	uint64_t sum = 0;
	struct slot slot;
	int index, count;

	if (state_fd < 0)
		return mine.used[device];
	count = slots_in_file();
	for (index = 0; index < count; index++) {
		if (slot_read(index, &slot) && slot.used[device] && slot_live(index))
			sum += slot.used[device];
	}
	return sum;
}

CUresult softcuda_memory_take(int device, uint64_t bytes)
{
	CUresult result = CUDA_ERROR_OUT_OF_MEMORY;
	uint64_t used;

	pthread_mutex_lock(&memory_lock);
	if (state_fd >= 0 && table_lock()) {
		result = CUDA_ERROR_OPERATING_SYSTEM;
	} else {
		used = used_by_all(device);
		if (used <= softcuda_config.memory_bytes && bytes <= softcuda_config.memory_bytes - used) {
			mine.used[device] += bytes;
			if (state_fd >= 0)
				slot_write();
			result = CUDA_SUCCESS;
		}
		if (state_fd >= 0)
			table_unlock();
	}
	pthread_mutex_unlock(&memory_lock);
	return result;
}

void softcuda_memory_give(int device, uint64_t bytes)
{
	pthread_mutex_lock(&memory_lock);
	mine.used[device] -= bytes < mine.used[device] ? bytes : mine.used[device];
	if (state_fd >= 0)
		slot_write(); /* one's own slot, shrinking: no need for the table's lock */
	pthread_mutex_unlock(&memory_lock);
}

void softcuda_memory_info(int device, uint64_t *used)
{
	pthread_mutex_lock(&memory_lock);
	*used = used_by_all(device);
	pthread_mutex_unlock(&memory_lock);
}

/*
 * UUIDs depend on the ordinal and, where it exists, on what the file DIR/machine says: another text there makes
 * another machine, with other devices, for tests of restores elsewhere.
 */
void softcuda_uuid(int ordinal, CUuuid *uuid)
{
	char path[sizeof(softcuda_config.dir) + 16], text[128];
	uint64_t half[2];
	ssize_t size = 0;
	int fd;

	strcpy(path, softcuda_config.dir);
	strcat(path, "/machine");
	fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
	if (fd >= 0) {
		size = read(fd, text, sizeof(text));
		close(fd);
	}
	half[0] = softcuda_hash(text, size > 0 ? size : 0, 0x50f7c0da + ordinal);
	half[1] = softcuda_hash(half, sizeof(*half), 0);
	memcpy(uuid->bytes, half, sizeof(uuid->bytes));
	uuid->bytes[6] = (uuid->bytes[6] & 0x0f) | 0x40; /* a random UUID, by RFC 9562 */
	uuid->bytes[8] = (uuid->bytes[8] & 0x3f) | (char)0x80;
}
