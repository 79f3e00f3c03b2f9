// SPDX-License-Identifier: MIT
/* Uses the driver in an unusual way, by name, and prints what comes of it. */
#include "api.h"

#include <unistd.h>

/* With the file's library in a namespace of its own, or before all others. */
static void use(void *lib)
{
	__typeof__(&cuInit) init;
	__typeof__(&cuDeviceGetCount) count;
	__typeof__(&cuDevicePrimaryCtxRetain) retain;
	CUcontext ctx;
	int n = -1;

	if (!lib) {
		printf("%s\n", dlerror());
		return;
	}
	init = (__typeof__(init))dlsym(lib, "cuInit");
	count = (__typeof__(count))dlsym(lib, "cuDeviceGetCount");
	retain = (__typeof__(retain))dlsym(lib, "cuDevicePrimaryCtxRetain");
	printf("before: %d\n", count(&n));
	printf("init: %d\n", init(0));
	printf("count: %d", count(&n));
	printf(" %d\n", n);
	printf("retain: %d\n", retain(&ctx, 0));
}

/* Does our memory hold the shim's page? */
static int pages(void)
{
	FILE *maps = fopen("/proc/self/maps", "r");
	char line[512];
	int found = 0;

	while (maps && fgets(line, sizeof(line), maps))
		found += !!strstr(line, "cudapool-control");
	if (maps)
		fclose(maps);
	return found;
}

int main(int argc, char **argv)
{
	const char *what = argc > 1 ? argv[1] : "";

	setvbuf(stdout, NULL, _IOLBF, 0);
	if (!strcmp(what, "dlmopen")) {
		use(dlmopen(LM_ID_NEWLM, "libcuda.so.1", RTLD_NOW));
	} else if (!strcmp(what, "deepbind")) {
		use(dlopen("libcuda.so.1", RTLD_NOW | RTLD_DEEPBIND));
	} else if (!strcmp(what, "plugin")) { /* which looks functions up itself, as soon as it is there */
		if (argc < 3 || !dlopen(argv[2], RTLD_NOW | RTLD_DEEPBIND))
			printf("%s\n", dlerror());
	} else if (!strcmp(what, "secure")) {
		printf("secure %d user %d\n", !secure_getenv("PATH"), geteuid());
		use(dlopen("libcuda.so.1", RTLD_NOW));
		printf("pages %d\n", pages());
	} else {
		return 2;
	}
	return 0;
}
