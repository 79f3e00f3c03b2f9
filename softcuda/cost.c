// SPDX-License-Identifier: MIT
/* The cost model: times measured on a real machine, spent by sleeping. */
#include "internal.h"
#include "softcuda.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define SPIN_NS 60000u /* a sleep may end so late; costs of single calls are less */

struct softcuda_costs softcuda_costs;

static double *field(const char *name)
{
#define X(field_name)                                                                                                  \
	if (!strcmp(name, #field_name))                                                                                \
		return &softcuda_costs.field_name;
	SOFTCUDA_COSTS(X)
#undef X
	return NULL;
}

/* Lines of "name = value", '#' starts a comment. Every name must be there, once, so that no figure is made up. */
int softcuda_costs_read(const char *path)
{
	unsigned line_number = 0, found = 0, wanted = 0;
	char line[256], name[64], rest[2];
	struct softcuda_costs fresh = {};
	double value, *slot;
	FILE *file;

	file = fopen(path, "re");
	if (!file) {
		softcuda_say("SOFTCUDA_COSTS=%s: %s; the project's own is softcuda/costs-h200.conf", path,
			     strerror(errno));
		return -EINVAL;
	}
	softcuda_costs = fresh;
#define X(field_name)                                                                                                  \
	softcuda_costs.field_name = -1;                                                                                \
	wanted++;
	SOFTCUDA_COSTS(X)
#undef X
	while (fgets(line, sizeof(line), file)) {
		line_number++;
		line[strcspn(line, "#\n")] = 0;
		if (line[strspn(line, " \t")] == 0)
			continue;
		slot = NULL;
		if (sscanf(line, " %63[a-z0-9_] = %lf %1s", name, &value, rest) == 2)
			slot = field(name);
		if (!slot || *slot >= 0 || !(value >= 0 && value <= 1e6)) {
			softcuda_say("%s:%u: not a cost, given twice, or not a number from 0 to 1000000: %s", path,
				     line_number, line);
			fclose(file);
			return -EINVAL;
		}
		*slot = value;
		found++;
	}
	fclose(file);
	if (found != wanted) {
		softcuda_say("%s: %u of %u costs are missing; softcuda/costs-h200.conf has them all", path,
			     wanted - found, wanted);
		return -EINVAL;
	}
	softcuda_costs.on = true;
	return 0;
}

void softcuda_spend(uint64_t start_ns, double ms, uint64_t bytes, double gbps)
{
	uint64_t now, until;

	if (!softcuda_costs.on)
		return;
	until = start_ns + (uint64_t)(ms * 1e6) + (gbps > 0 ? (uint64_t)(bytes / gbps) : 0);
	now = softcuda_now_ns();
	if (until > now + SPIN_NS)
		softcuda_sleep_ns(until - now - SPIN_NS);
	while (softcuda_now_ns() < until)
		;
}

__attribute__((visibility("default"))) int softcuda_simulated(void)
{
	return softcuda_costs.on;
}

double softcuda_init_ms(void)
{
	unsigned more = softcuda_config.devices - 1;

	return softcuda_started_cold ? softcuda_costs.init_cold_ms + more * softcuda_costs.init_more_device_cold_ms
				     : softcuda_costs.init_warm_ms + more * softcuda_costs.init_more_device_warm_ms;
}

static uint64_t loaded_ns;

__attribute__((constructor)) static void at_load(void)
{
	loaded_ns = softcuda_now_ns();
}

/* Counted from when the library was loaded, so that what the process really takes is not added to it. */
__attribute__((visibility("default"))) void softcuda_spend_process(void)
{
	softcuda_spend(loaded_ns,
		       softcuda_init_ms() +
			       (softcuda_started_cold ? softcuda_costs.tool_cold_ms : softcuda_costs.tool_warm_ms),
		       0, 0);
}
