// SPDX-License-Identifier: MIT
/* Reaches the driver by one route and prints all it says, so that runs with and without the shim can be compared. */
#include "api.h"

#include <unistd.h>

#define SAY(call) printf("%-60s %d\n", #call, call)

static void state(const struct api *a, CUdevice device)
{
	unsigned int flags = 99;
	int active = 99;
	CUresult r = a->cuDevicePrimaryCtxGetState(device, &flags, &active);

	printf("state of %d: %d flags %u active %d\n", device, r, flags, active);
}

static void context(const struct api *a, const char *what, CUresult r, CUcontext ctx)
{
	CUcontext current = NULL, popped = NULL;
	unsigned int version = 0;

	printf("%s: %d %s\n", what, r, ctx ? "a context" : "none");
	if (r != CUDA_SUCCESS)
		return;
	a->cuCtxGetApiVersion(ctx, &version);
	a->cuCtxGetCurrent(&current);
	printf("  version %u current %d sync %d", version, current == ctx, a->cuCtxSynchronize());
	r = a->cuCtxPopCurrent_v2(&popped);
	printf(" pop %d the same %d", r, popped == ctx);
	printf(" destroy %d", a->cuCtxDestroy_v2(ctx));
	a->cuCtxGetCurrent(&current);
	printf(" then %s\n", current ? "another" : "none");
}

static void scenario(const struct api *a)
{
	CUcontext ctx = NULL, again = NULL;
	CUdevice device = -1;
	int n = -1, version = -1;
	CUresult r;

	SAY(a->cuDriverGetVersion(&version));
	SAY(a->cuDeviceGetCount(&n));
	SAY(a->cuDeviceGet(&device, 0));
	SAY(a->cuCtxGetCurrent(&ctx));
	SAY(a->cuCtxSynchronize());
	SAY(a->cuDevicePrimaryCtxRetain(&ctx, 0));
	SAY(a->cuDevicePrimaryCtxRelease_v2(0));
	SAY(a->cuDevicePrimaryCtxSetFlags_v2(0, 4));
	SAY(a->cuCtxCreate_v2(&ctx, 0, 0));
	SAY(a->cuCtxDestroy(NULL));
	state(a, 0);
	SAY(a->cuInit(1));
	SAY(a->cuInit(0));
	SAY(a->cuInit(0));
	SAY(a->cuDeviceGetCount(&n));
	SAY(a->cuCtxGetCurrent(&ctx));
	SAY(a->cuCtxSynchronize());
	state(a, 0);
	SAY(a->cuDevicePrimaryCtxRelease_v2(0));
	SAY(a->cuDevicePrimaryCtxReset_v2(0));
	SAY(a->cuDevicePrimaryCtxSetFlags_v2(0, 0));
	SAY(a->cuDevicePrimaryCtxSetFlags(0, 0));
	SAY(a->cuDevicePrimaryCtxSetFlags_v2(0, 0x10000));
	SAY(a->cuDevicePrimaryCtxRetain(NULL, 0));
	SAY(a->cuDevicePrimaryCtxRetain(&ctx, 77));
	state(a, 0);
	state(a, 77);
	SAY(a->cuDevicePrimaryCtxRetain(&ctx, 0));
	state(a, 0);
	SAY(a->cuDevicePrimaryCtxRetain(&again, 0));
	printf("the same: %d\n", ctx == again);
	SAY(a->cuCtxSetCurrent(ctx));
	SAY(a->cuCtxSynchronize());
	SAY(a->cuCtxSetCurrent(NULL));
	SAY(a->cuDevicePrimaryCtxRelease_v2(0));
	state(a, 0);
	SAY(a->cuDevicePrimaryCtxRelease(0));
	state(a, 0);
	SAY(a->cuDevicePrimaryCtxRelease_v2(0));
	SAY(a->cuDevicePrimaryCtxSetFlags_v2(0, 4));
	state(a, 0);
	SAY(a->cuDevicePrimaryCtxReset_v2(0));
	state(a, 0);
	SAY(a->cuDevicePrimaryCtxReset(0));
	ctx = NULL;
	r = a->cuCtxCreate_v2(&ctx, 0, 0);
	context(a, "v2", r, ctx);
	ctx = NULL;
	r = a->cuCtxCreate(&ctx, 0, 0);
	context(a, "v1", r, ctx);
	ctx = NULL;
	r = a->cuCtxCreate_v3(&ctx, NULL, 0, 0, 0);
	context(a, "v3", r, ctx);
	ctx = NULL;
	r = a->cuCtxCreate_v4(&ctx, NULL, 0, 0);
	context(a, "v4", r, ctx);
	ctx = NULL;
	r = a->cuCtxCreate_v2(&ctx, 0, 77);
	context(a, "v2 bad device", r, ctx);
	SAY(a->cuCtxCreate_v2(NULL, 0, 0));
	SAY(a->cuCtxCreate_v2(&ctx, 0, 0));
	SAY(a->cuCtxDestroy(ctx));
	SAY(a->cuCtxDestroy(ctx));
	SAY(a->cuCtxGetCurrent(&ctx));
	printf("%s\n", ctx ? "still a context" : "no context");
}

/* Every function of the table: is it there, and what does it say before cuInit? (Those of the runtime's own kind only.)
 */
static void presence(void)
{
	static const char *const names[] = {
#define GATED(name)   #name,
#define WRAPPED(name) #name,
#include "functions.def"
#undef GATED
#undef WRAPPED
	};
	void *lib = api_open(RTLD_LOCAL);
	unsigned i;

	for (i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
		CUresult (*f)(long, long, long, long, long, long, long, long) =
			(CUresult(*)(long, long, long, long, long, long, long, long))dlsym(lib, names[i]);

		if (!f)
			printf("%s absent\n", names[i]);
		else if (!strcmp(names[i], "cuInit") || !strncmp(names[i], "cuGetProcAddress", 16))
			printf("%s present\n", names[i]);
		else
			printf("%s %d\n", names[i], f(0, 0, 0, 0, 0, 0, 0, 0));
	}
}

static void run(const char *route)
{
	const char *wait = getenv("ROUTES_WAIT_MS");
	struct api api;

	setvbuf(stdout, NULL, _IOFBF, 1 << 16);
	if (wait)
		usleep(atoi(wait) * 1000);
	if (!strcmp(route, "presence")) {
		presence();
	} else {
#ifdef DIRECT
#define F(name, base, version) api.name = name;
		API(F)
#undef F
#else
		api = api_by(route_named(route));
#endif
		scenario(&api);
	}
	fflush(stdout);
}

#ifdef CONSTRUCTOR
static void __attribute__((constructor)) first(void)
{
	run(getenv("ROUTES_ROUTE"));
}
#else
int main(int argc, char **argv)
{
	run(argc > 1 ? argv[1] : "direct");
	return 0;
}
#endif
