// SPDX-License-Identifier: MIT
/* What an application sees that does one thing, by name, before it takes its context; with the shim, one waits by then.
 */
#include "api.h"

#include <stdbool.h>
#include <unistd.h>

static struct api a;

static void state(void)
{
	unsigned int flags = 99;
	int active = 99;
	CUresult r = a.cuDevicePrimaryCtxGetState(0, &flags, &active);

	printf("state: %d flags %u active %d\n", r, flags, active);
}

static void said(const char *what, CUresult r)
{
	printf("%s: %d\n", what, r);
	state();
}

/* Of whichever context is current. */
static void current(CUcontext expected)
{
	unsigned int flags = 99, version = 0;
	CUcontext ctx = NULL;
	CUresult r;

	a.cuCtxGetCurrent(&ctx);
	r = a.cuCtxGetFlags(&flags);
	a.cuCtxGetApiVersion(ctx, &version);
	printf("current: %s, flags %d %u, version %u\n",
	       !ctx              ? "none"
	       : ctx == expected ? "the one"
				 : "another",
	       r, flags, version);
}

static void primary(void)
{
	CUcontext ctx = NULL;

	said("retain", a.cuDevicePrimaryCtxRetain(&ctx, 0));
	a.cuCtxSetCurrent(ctx);
	current(ctx);
	a.cuCtxSetCurrent(NULL);
	said("release", a.cuDevicePrimaryCtxRelease_v2(0));
	said("release", a.cuDevicePrimaryCtxRelease_v2(0));
}

static void created(CUresult r, const CUcontext *at)
{
	CUcontext ctx = *at; /* by now: the call was made with the others of our arguments */

	said("create", r);
	current(ctx);
	if (r == CUDA_SUCCESS)
		said("destroy", a.cuCtxDestroy_v2(ctx));
	current(NULL);
}

int main(int argc, char **argv)
{
	CUexecAffinityParam affinity = {.type = CU_EXEC_AFFINITY_TYPE_SM_COUNT, .param.smCount.val = 2};
	CUctxCreateParams params = {.execAffinityParams = &affinity, .numExecAffinityParams = 1};
	const char *what = argc > 1 ? argv[1] : "", *wait = getenv("WAITING_MS");
	CUresult (*green)(CUcontext *, void *, CUdevice, unsigned int);
	CUcontext ctx = NULL;

	a = api_by(ROUTE_DLSYM);
	if (wait)
		usleep(atoi(wait) * 1000);
	said("init", a.cuInit(0));
	if (!strcmp(what, "set")) {
		said(what, a.cuDevicePrimaryCtxSetFlags(0, CU_CTX_SCHED_BLOCKING_SYNC));
	} else if (!strcmp(what, "set_v2")) {
		said(what, a.cuDevicePrimaryCtxSetFlags_v2(0, CU_CTX_SCHED_BLOCKING_SYNC));
	} else if (!strcmp(what, "set_v2 unchangeable")) {
		said(what, a.cuDevicePrimaryCtxSetFlags_v2(0, CU_CTX_LMEM_RESIZE_TO_MAX));
	} else if (!strcmp(what, "reset")) {
		said(what, a.cuDevicePrimaryCtxReset(0));
	} else if (!strcmp(what, "reset_v2")) {
		said(what, a.cuDevicePrimaryCtxReset_v2(0));
	} else if (!strcmp(what, "set and reset")) {
		said("set", a.cuDevicePrimaryCtxSetFlags_v2(0, CU_CTX_SCHED_YIELD));
		said("reset", a.cuDevicePrimaryCtxReset(0));
	} else if (!strcmp(what, "set and reset_v2")) {
		said("set", a.cuDevicePrimaryCtxSetFlags_v2(0, CU_CTX_SCHED_YIELD));
		said("reset", a.cuDevicePrimaryCtxReset_v2(0));
	} else if (!strcmp(what, "green")) {
		green = (__typeof__(green))dlsym(api_open(RTLD_LOCAL), "cuGreenCtxCreate");
		said(what, green ? green(&ctx, NULL, 0, 1) : 99);
	} else if (!strcmp(what, "flags_v2")) {
		created(a.cuCtxCreate_v2(&ctx, CU_CTX_SCHED_BLOCKING_SYNC, 0), &ctx);
	} else if (!strcmp(what, "flags_v3")) {
		created(a.cuCtxCreate_v3(&ctx, NULL, 0, CU_CTX_SCHED_BLOCKING_SYNC, 0), &ctx);
	} else if (!strcmp(what, "flags_v4")) {
		created(a.cuCtxCreate_v4(&ctx, NULL, CU_CTX_SCHED_BLOCKING_SYNC, 0), &ctx);
	} else if (!strcmp(what, "affinity_v3")) {
		created(a.cuCtxCreate_v3(&ctx, &affinity, 1, 0, 0), &ctx);
	} else if (!strcmp(what, "affinity_v4")) {
		created(a.cuCtxCreate_v4(&ctx, &params, 0, 0), &ctx);
	} else {
		return 2;
	}
	if (!getenv("CUDAPOOL_WARM_CREATED"))
		primary();
	ctx = NULL;
	created(a.cuCtxCreate_v2(&ctx, 0, 0), &ctx);
	return 0;
}
