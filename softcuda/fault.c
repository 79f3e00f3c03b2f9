// SPDX-License-Identifier: MIT
/* Faults on request: an error, a delay or a hang, per function and call. */
#include "internal.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

/*
 * "NAME=WHAT[@N],…". NAME: a function, with or without its version (cuMemAlloc, cuMemAlloc_v2), or an
 * action that this process carries out when another one asks: lock, checkpoint, restore, unlock.
 * WHAT: a CUresult as a number, `hang` (an hour), or `hang:MS` (then go on). @N: only the N-th call
 * from when the list was read; otherwise all of them.
 *
 * The list is SOFTCUDA_FAULTS from the environment, or the file `faults` in the device directory, which comes
 * first, is read again whenever another process asks for an action, and so reaches restored processes.
 * No heap, no stdio: the restore thread comes here while other threads may hold any lock.
 */
#define MAX_FAULTS 32
#define HANG_MS    (3600u * 1000)

struct fault {
	char name[64];
	CUresult result; /* CUDA_SUCCESS: a delay */
	unsigned delay_ms;
	unsigned only; /* call number, 0 all */
	_Atomic unsigned calls;
};

static struct fault from_environment[MAX_FAULTS], from_file[MAX_FAULTS];
static _Atomic unsigned environment_count, file_count;
static uint64_t file_hash;
_Atomic bool softcuda_faults_armed;

static const char *parse_number(const char *text, unsigned max, unsigned *value)
{
	uint64_t sum = 0;

	if (*text < '0' || *text > '9')
		return NULL;
	for (; *text >= '0' && *text <= '9'; text++) {
		sum = sum * 10 + (*text - '0');
		if (sum > max)
			return NULL;
	}
	*value = sum;
	return text;
}

static const char *parse_one(const char *text, struct fault *fault)
{
	size_t length = strcspn(text, "=");
	unsigned number = 0;

	memset(fault, 0, sizeof(*fault));
	if (!length || length >= sizeof(fault->name) || text[length] != '=')
		return NULL;
	memcpy(fault->name, text, length);
	text += length + 1;
	if (!strncmp(text, "hang", 4)) {
		fault->delay_ms = HANG_MS;
		text += 4;
		if (*text == ':' && !(text = parse_number(text + 1, HANG_MS, &fault->delay_ms)))
			return NULL;
	} else {
		text = parse_number(text, 999, &number);
		if (!text || !number)
			return NULL;
		fault->result = number;
	}
	if (*text == '@' && (!(text = parse_number(text + 1, 1u << 30, &fault->only)) || !fault->only))
		return NULL;
	return text;
}

static int parse(const char *spec, struct fault *faults, _Atomic unsigned *count_out)
{
	unsigned count = 0;

	while (spec && *spec) {
		if (*spec == ',' || *spec == '\n' || *spec == ' ') {
			spec++;
			continue;
		}
		if (count == MAX_FAULTS)
			return -EINVAL;
		spec = parse_one(spec, &faults[count]);
		if (!spec || (*spec && *spec != ',' && *spec != '\n' && *spec != ' '))
			return -EINVAL;
		count++;
	}
	atomic_store(count_out, count);
	return 0;
}

static void arm(void)
{
	atomic_store(&softcuda_faults_armed, atomic_load(&environment_count) || atomic_load(&file_count));
}

int softcuda_faults_parse(const char *spec, const char *where)
{
	atomic_store(&environment_count, 0);
	if (parse(spec, from_environment, &environment_count)) {
		softcuda_say("%s=%s: give NAME=CODE, NAME=hang or NAME=hang:MS, each with @N or without, separated by "
			     "commas",
			     where, spec);
		return -EINVAL;
	}
	arm();
	return softcuda_faults_refresh();
}

int softcuda_faults_refresh(void)
{
	char path[sizeof(softcuda_config.dir) + 8], text[2048];
	ssize_t size = 0;
	uint64_t hash;
	int fd;

	strcpy(path, softcuda_config.dir);
	strcat(path, "/faults");
	fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
	if (fd >= 0) {
		size = read(fd, text, sizeof(text) - 1);
		close(fd);
	}
	text[size > 0 ? size : 0] = 0;
	hash = softcuda_hash(text, strlen(text), 0);
	if (hash == file_hash) /* unchanged: its calls stay counted */
		return 0;
	atomic_store(&file_count, 0);
	if (parse(text, from_file, &file_count)) {
		softcuda_say("%s: not a list of faults: %.100s", path, text);
		return -EINVAL;
	}
	file_hash = hash;
	arm();
	return 0;
}

static bool same_function(const char *fault, const char *name)
{
	size_t length = strlen(fault);

	/* cuMemAlloc stands for cuMemAlloc_v2, too, but not for cuMemAllocHost. */
	return !strncmp(fault, name, length) && (!name[length] || !strncmp(name + length, "_v", 2));
}

static CUresult apply(struct fault *faults, unsigned count, const char *name)
{
	struct fault *fault;
	unsigned call;

	for (fault = faults; fault < faults + count; fault++) {
		if (!same_function(fault->name, name))
			continue;
		call = atomic_fetch_add(&fault->calls, 1) + 1;
		if (fault->only && call != fault->only)
			continue;
		if (fault->delay_ms)
			softcuda_sleep_ns(fault->delay_ms * 1000000ull);
		return fault->result;
	}
	return CUDA_SUCCESS;
}

CUresult softcuda_fault_named(const char *name)
{
	CUresult result = apply(from_file, atomic_load(&file_count), name);

	return result ? result : apply(from_environment, atomic_load(&environment_count), name);
}

CUresult softcuda_fault(enum softcuda_api api)
{
	return softcuda_fault_named(softcuda_api_names[api]);
}
