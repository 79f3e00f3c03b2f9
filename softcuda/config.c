// SPDX-License-Identifier: MIT
/* The software driver's environment variables, read and checked once, by cuInit. */
#include "internal.h"

#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct softcuda_config softcuda_config;

static int number(const char *name, uint64_t fallback, uint64_t min, uint64_t max, uint64_t *value)
{
	const char *text = getenv(name);
	char *end;

	*value = fallback;
	if (!text || !*text)
		return 0;
	errno = 0;
	*value = strtoull(text, &end, 10);
	if (!errno && isdigit((unsigned char)*text) && !*end && *value >= min && *value <= max)
		return 0;
	softcuda_say("%s=%s: give a number from %llu to %llu", name, text, (unsigned long long)min,
		     (unsigned long long)max);
	return -EINVAL;
}

static int path(const char *name, const char *fallback, char *value, size_t size)
{
	const char *text = getenv(name);

	if (!text || !*text)
		text = fallback;
	if (strlen(text) >= size || (*text && *text != '/')) {
		softcuda_say("%s=%s: give an absolute path shorter than %zu bytes", name, text, size);
		return -EINVAL;
	}
	strcpy(value, text);
	return 0;
}

int softcuda_config_read(void)
{
	uint64_t devices, megabytes;

	if (number("SOFTCUDA_DEVICES", 1, 0, SOFTCUDA_MAX_DEVICES, &devices) ||
	    number("SOFTCUDA_MEMORY_MB", 8192, 16, 1 << 24, &megabytes) ||
	    path("SOFTCUDA_DIR", "/dev/shm/softcuda", softcuda_config.dir, sizeof(softcuda_config.dir)) ||
	    path("SOFTCUDA_COSTS", "", softcuda_config.costs, sizeof(softcuda_config.costs)))
		return -EINVAL;
	softcuda_config.devices = devices;
	softcuda_config.memory_bytes = megabytes << 20;
	if (*softcuda_config.costs && softcuda_costs_read(softcuda_config.costs))
		return -EINVAL;
	return softcuda_faults_parse(getenv("SOFTCUDA_FAULTS"), "SOFTCUDA_FAULTS");
}
