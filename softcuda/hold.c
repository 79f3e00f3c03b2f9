// SPDX-License-Identifier: MIT
/* A process's place in the device directory: who has the driver open, and how much memory of which device is taken. */
#include "hold.h"
#include "backing.h"

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
 * back: whoever counts finds the slot unlocked. Byte 0 is the lock for changing the table; the first
 * place, behind it, counts what is nobody's alone: memory that was exported (backing.c).
 *
 * Without a usable directory the process is alone on its device: always cold, nothing shared.
 *
 * The restore thread comes here: no heap, no stdio, and no lock that a stopped thread could hold.
 */
#define SLOTS         1024
#define SHARED        (-1) /* the place before the first slot */
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
	uint64_t deadline = 0, pause_ns = 5000;

	while (record_lock(F_SETLK, F_WRLCK, 0)) {
		if (!deadline)
			deadline = softcuda_now_ns() + LOCK_LIMIT_MS * 1000000ull;
		if (softcuda_now_ns() >= deadline) {
			softcuda_say("%s/state has been locked for %u s: another process is stuck; remove the file",
				     softcuda_config.dir, LOCK_LIMIT_MS / 1000);
			return -EBUSY;
		}
		softcuda_sleep_ns(pause_ns);
		pause_ns = pause_ns < 1000000 ? 2 * pause_ns : pause_ns;
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

static void slot_put(int index, const struct slot *slot)
{
	if (pwrite(state_fd, slot, sizeof(*slot), slot_offset(index)) != sizeof(*slot))
		softcuda_say("cannot write %s/state", softcuda_config.dir);
}

static void slot_write(void)
{
	if (slot_index >= 0)
		slot_put(slot_index, &mine);
}

/* The first place: what is exported, never less than there is. */
static void shared_read(struct slot *shared)
{
	if (!slot_read(SHARED, shared))
		memset(shared, 0, sizeof(*shared));
}

/* Makes it exact. */
static void shared_look(bool own_too)
{
	struct slot shared = {};

	softcuda_backings_look(own_too, shared.used);
	slot_put(SHARED, &shared);
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

/*
 * Has a process died with the driver open, whose memory nobody has tidied up? With the table's lock: from now on none
 * has.
 */
static bool left_behind(bool forget)
{
	static const struct slot nobody;
	bool found = false;
	struct slot slot;
	int index, count;

	count = slots_in_file();
	for (index = 0; index < count; index++) {
		if (!slot_read(index, &slot) || !slot.opened_ns || slot_live(index))
			continue;
		found = true;
		if (forget)
			slot_put(index, &nobody);
	}
	return found;
}

int softcuda_hold_open(bool *cold)
{
	bool dead;
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
	dead = left_behind(true);
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
	if (dead)
		shared_look(true);
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
	struct slot slot;
	uint64_t sum;
	int index, count;

	if (state_fd < 0)
		return mine.used[device];
	shared_read(&slot);
	sum = slot.used[device] + mine.used[device];
	count = slots_in_file();
	for (index = 0; index < count; index++) {
		if (index != slot_index && slot_read(index, &slot) && slot.used[device] && slot_live(index))
			sum += slot.used[device];
	}
	return sum;
}

static bool shared_any(int device)
{
	struct slot shared;

	if (state_fd < 0)
		return false;
	shared_read(&shared);
	return shared.used[device];
}

CUresult softcuda_table_lock(void)
{
	if (state_fd < 0)
		return CUDA_ERROR_NOT_SUPPORTED;
	pthread_mutex_lock(&memory_lock);
	if (!table_lock())
		return CUDA_SUCCESS;
	pthread_mutex_unlock(&memory_lock);
	return CUDA_ERROR_OPERATING_SYSTEM;
}

void softcuda_table_unlock(void)
{
	table_unlock();
	pthread_mutex_unlock(&memory_lock);
}

static bool fits(int device, uint64_t bytes)
{
	uint64_t used = used_by_all(device);

	return used <= softcuda_config.memory_bytes && bytes <= softcuda_config.memory_bytes - used;
}

CUresult softcuda_memory_take_locked(int device, uint64_t bytes)
{
	if (!fits(device, bytes)) {
		if (!shared_any(device))
			return CUDA_ERROR_OUT_OF_MEMORY;
		shared_look(left_behind(true)); /* some of it may be gone by now */
		if (!fits(device, bytes))
			return CUDA_ERROR_OUT_OF_MEMORY;
	}
	mine.used[device] += bytes;
	slot_write();
	return CUDA_SUCCESS;
}

void softcuda_memory_give_locked(int device, uint64_t bytes)
{
	mine.used[device] -= bytes < mine.used[device] ? bytes : mine.used[device];
	slot_write(); /* one's own slot, shrinking: no need for the table's lock */
}

void softcuda_memory_share_locked(int device, uint64_t bytes)
{
	struct slot shared;

	shared_read(&shared);
	shared.used[device] += bytes;
	slot_put(SHARED, &shared);
	softcuda_memory_give_locked(device, bytes);
}

void softcuda_memory_unshare_locked(int device, uint64_t bytes)
{
	struct slot shared;

	shared_read(&shared);
	shared.used[device] -= bytes < shared.used[device] ? bytes : shared.used[device];
	slot_put(SHARED, &shared);
}

CUresult softcuda_memory_take(int device, uint64_t bytes)
{
	CUresult result = softcuda_table_lock();

	if (result == CUDA_ERROR_NOT_SUPPORTED) { /* alone: threads of this process only */
		pthread_mutex_lock(&memory_lock);
		result = softcuda_memory_take_locked(device, bytes);
		pthread_mutex_unlock(&memory_lock);
	} else if (result == CUDA_SUCCESS) {
		result = softcuda_memory_take_locked(device, bytes);
		softcuda_table_unlock();
	}
	return result;
}

void softcuda_memory_give(int device, uint64_t bytes)
{
	pthread_mutex_lock(&memory_lock);
	softcuda_memory_give_locked(device, bytes);
	pthread_mutex_unlock(&memory_lock);
}

CUresult softcuda_memory_info(int device, uint64_t *used)
{
	CUresult result = CUDA_SUCCESS;

	if (state_fd < 0 || (!shared_any(device) && !left_behind(false))) {
		pthread_mutex_lock(&memory_lock);
		*used = used_by_all(device);
		pthread_mutex_unlock(&memory_lock);
		return result;
	}
	result = softcuda_table_lock();
	if (result == CUDA_SUCCESS) {
		shared_look(left_behind(true));
		*used = used_by_all(device);
		softcuda_table_unlock();
	}
	return result;
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
