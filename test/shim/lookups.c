// SPDX-License-Identifier: MIT
/* What cuGetProcAddress answers for many names, versions and flags, and which of the exported functions it gives. */
#include "api.h"

#include <stdbool.h>
#include <stdint.h>

static void *lib;

/* The export that it is. With the shim, dlsym gives the shim's own: what cuGetProcAddress gave must be that one, too.
 */
static const char *export_of(const char *base, const void *address)
{
	static const char *const endings[] = {"", "_v2", "_v3", "_v4", "_ptsz", "_ptds", "_v2_ptsz", "_v2_ptds",
					      "WithFlags"};
	static char name[128];
	unsigned i;

	if (!address)
		return "nothing";
	if (address == &lib)
		return "left as it was";
	for (i = 0; base && i < sizeof(endings) / sizeof(endings[0]); i++) {
		snprintf(name, sizeof(name), "%s%s", base, endings[i]);
		if (dlsym(lib, name) == address)
			return name;
	}
	return "no export of that name";
}

static void ask(const char *how, const char *base, int version, cuuint64_t flags)
{
	void *proc = dlsym(lib, how), *found = &lib;
	CUdriverProcAddressQueryResult status = 99;
	bool old = !strcmp(how, "cuGetProcAddress");
	CUresult r;

	if (!proc)
		return;
	r = old ? ((__typeof__(&cuGetProcAddress))proc)(base, &found, version, flags)
		: ((__typeof__(&cuGetProcAddress_v2))proc)(base, &found, version, flags, &status);
	printf("%s(%s, %d, %d): %d status %d %s\n", how, base ? base : "NULL", version, (int)flags, r, status,
	       export_of(base, found));
}

int main(int argc, char **argv)
{
	static const char *const ways[] = {"cuGetProcAddress", "cuGetProcAddress_v2", "cuGetProcAddress_v2_ptsz"};
	static const char *const names[] = {"cuInit",
					    "cuCtxCreate",
					    "cuCtxDestroy",
					    "cuGetProcAddress",
					    "cuMemcpyHtoD",
					    "cuLaunchKernel",
					    "cuGreenCtxCreate",
					    "cuGraphInstantiate",
					    "cuStreamWaitEvent",
					    "cuCtxDestroy_",
					    "cuNoSuchFunction",
					    "",
					    NULL};
	static const int versions[] = {0, 1000, 2000, 3020, 4000, 7000, 12050, 13000, 99000};
	static const cuuint64_t flags[] = {CU_GET_PROC_ADDRESS_DEFAULT, CU_GET_PROC_ADDRESS_LEGACY_STREAM,
					   CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM, 4};
	unsigned way, name, version, flag;

	lib = api_open(RTLD_LOCAL);
	for (way = 0; way < 3; way++)
		for (name = 0; name < sizeof(names) / sizeof(names[0]); name++)
			for (version = 0; version < sizeof(versions) / sizeof(versions[0]); version++)
				for (flag = 0; flag < sizeof(flags) / sizeof(flags[0]); flag++)
					ask(ways[way], names[name], versions[version], flags[flag]);
	printf("without a place for the answer: %d\n",
	       ((__typeof__(&cuGetProcAddress))dlsym(lib, ways[0]))("cuInit", NULL, 12000, 0));
	return 0;
}
