// SPDX-License-Identifier: MIT
/* Contexts: created and primary ones, and each thread's stack of current contexts. */
#include "graph.h"

#include <stdlib.h>
#include <string.h>

_Atomic unsigned softcuda_peer_links;

static pthread_mutex_t contexts_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_mutex_t primary_lock = PTHREAD_MUTEX_INITIALIZER; /* making and ending primary contexts */
static struct CUctx_st *contexts;
static uint64_t next_id = 1;

/* The calling thread's stack; its places hold references. */
static _Thread_local struct {
	struct CUctx_st **places;
	unsigned used, size;
} stack;
static pthread_key_t stack_key;
static pthread_once_t stack_once = PTHREAD_ONCE_INIT;

static void context_put_locked(struct CUctx_st *ctx)
{
	struct CUctx_st **link;

	if (--ctx->refs)
		return;
	for (link = &contexts; *link != ctx; link = &(*link)->next)
		;
	*link = ctx->next;
	free(ctx);
}

static void stack_end(void *places)
{
	pthread_mutex_lock(&contexts_lock);
	while (stack.used)
		context_put_locked(stack.places[--stack.used]);
	pthread_mutex_unlock(&contexts_lock);
	free(places);
	memset(&stack, 0, sizeof(stack));
}

static void stack_key_make(void)
{
	pthread_key_create(&stack_key, stack_end);
}

static CUresult stack_push(struct CUctx_st *ctx)
{
	if (stack.used == stack.size) {
		unsigned size = stack.size ? 2 * stack.size : 8;
		struct CUctx_st **places = realloc(stack.places, size * sizeof(*places));

		if (!places)
			return CUDA_ERROR_OUT_OF_MEMORY;
		stack.places = places;
		stack.size = size;
		pthread_once(&stack_once, stack_key_make);
		pthread_setspecific(stack_key, places);
	}
	pthread_mutex_lock(&contexts_lock);
	ctx->refs++;
	pthread_mutex_unlock(&contexts_lock);
	stack.places[stack.used++] = ctx;
	return CUDA_SUCCESS;
}

static void stack_pop(void)
{
	pthread_mutex_lock(&contexts_lock);
	context_put_locked(stack.places[--stack.used]);
	pthread_mutex_unlock(&contexts_lock);
}

struct CUctx_st *softcuda_current(void)
{
	if (softcuda_host_function)
		return softcuda_host_function;
	return stack.used ? stack.places[stack.used - 1] : NULL;
}

CUresult softcuda_current_check(void)
{
	struct CUctx_st *ctx = softcuda_current();

	if (!ctx)
		return CUDA_ERROR_INVALID_CONTEXT;
	if (!atomic_load(&ctx->alive))
		return CUDA_ERROR_CONTEXT_IS_DESTROYED;
	return atomic_load(&ctx->error);
}

struct CUctx_st *softcuda_context(CUcontext handle)
{
	struct CUctx_st *ctx;

	pthread_mutex_lock(&contexts_lock);
	for (ctx = contexts; ctx && ctx != handle; ctx = ctx->next)
		;
	pthread_mutex_unlock(&contexts_lock);
	return ctx && atomic_load(&ctx->alive) ? ctx : NULL;
}

/* Everything that a new or revived context starts with. */
static void context_reset(struct CUctx_st *ctx, unsigned flags)
{
	static const size_t limits[7] = {
		[CU_LIMIT_STACK_SIZE] = 1024,
		[CU_LIMIT_PRINTF_FIFO_SIZE] = 1048576,
		[CU_LIMIT_MALLOC_HEAP_SIZE] = 8388608,
		[CU_LIMIT_DEV_RUNTIME_SYNC_DEPTH] = 2,
		[CU_LIMIT_DEV_RUNTIME_PENDING_LAUNCH_COUNT] = 2048,
		[CU_LIMIT_MAX_L2_FETCH_GRANULARITY] = 64,
	};

	memcpy(ctx->limits, limits, sizeof(limits));
	ctx->flags = flags;
	ctx->cache = CU_FUNC_CACHE_PREFER_NONE;
	ctx->peers = 0;
	ctx->id = next_id++;
	atomic_store(&ctx->error, CUDA_SUCCESS);
	atomic_store(&ctx->alive, true);
	atomic_fetch_add(&softcuda_devices[ctx->device].contexts, 1);
}

static CUresult context_new(struct CUctx_st **out, int device, unsigned flags, unsigned api_version, bool primary)
{
	uint64_t start = softcuda_now_ns();
	struct CUctx_st *ctx = calloc(1, sizeof(*ctx));

	if (!ctx)
		return CUDA_ERROR_OUT_OF_MEMORY;
	ctx->device = device;
	ctx->primary = primary;
	ctx->api_version = api_version;
	ctx->attached = 1;
	pthread_mutex_lock(&contexts_lock);
	context_reset(ctx, flags);
	ctx->refs = 1;
	ctx->next = contexts;
	contexts = ctx;
	pthread_mutex_unlock(&contexts_lock);
	softcuda_spend(start, softcuda_costs.context_ms, 0, 0);
	*out = ctx;
	return CUDA_SUCCESS;
}

/* Frees all that belongs to it. The handle of a primary context stays, so that reviving it gives the same. */
static void context_end(struct CUctx_st *ctx)
{
	softcuda_context_wait(ctx);
	atomic_store(&ctx->alive, false);
	atomic_fetch_sub(&softcuda_devices[ctx->device].contexts, 1);
	softcuda_streams_end(ctx);
	softcuda_modules_end(ctx);
	softcuda_memory_free_all(ctx);
	if (ctx->peers)
		atomic_fetch_sub(&softcuda_peer_links, 1);
	ctx->peers = 0;
}

static void context_destroy(struct CUctx_st *ctx)
{
	context_end(ctx);
	if (softcuda_current() == ctx)
		stack_pop();
	pthread_mutex_lock(&contexts_lock);
	context_put_locked(ctx);
	pthread_mutex_unlock(&contexts_lock);
}

static bool flags_valid(unsigned flags)
{
	unsigned sched = flags & CU_CTX_SCHED_MASK;

	return !(flags & ~(unsigned)CU_CTX_FLAGS_MASK) &&
	       (sched == CU_CTX_SCHED_AUTO || sched == CU_CTX_SCHED_SPIN || sched == CU_CTX_SCHED_YIELD ||
		sched == CU_CTX_SCHED_BLOCKING_SYNC);
}

CUresult do_cuCtxCreate_v2(CUcontext *out, unsigned int flags, CUdevice device)
{
	struct CUctx_st *ctx;
	CUresult result;

	if (!out || !flags_valid(flags))
		return CUDA_ERROR_INVALID_VALUE;
	if (softcuda_device_check(device))
		return CUDA_ERROR_INVALID_DEVICE;
	result = context_new(&ctx, device, flags, 3020, false);
	if (result != CUDA_SUCCESS)
		return result;
	result = stack_push(ctx);
	if (result != CUDA_SUCCESS) {
		context_destroy(ctx);
		return result;
	}
	*out = ctx;
	return CUDA_SUCCESS;
}

CUresult do_cuCtxCreate(CUcontext *out, unsigned int flags, CUdevice device)
{
	CUresult result = do_cuCtxCreate_v2(out, flags, device);

	if (result == CUDA_SUCCESS)
		(*out)->api_version = 3010;
	return result;
}

CUresult do_cuCtxCreate_v3(CUcontext *out, CUexecAffinityParam *affinity, int count, unsigned int flags,
			   CUdevice device)
{
	if (count < 0 || (!affinity && count))
		return CUDA_ERROR_INVALID_VALUE;
	if (count) /* as on a device that is not shared through MPS */
		return CUDA_ERROR_UNSUPPORTED_EXEC_AFFINITY;
	return do_cuCtxCreate_v2(out, flags, device);
}

CUresult do_cuCtxCreate_v4(CUcontext *out, CUctxCreateParams *params, unsigned int flags, CUdevice device)
{
	if (params && params->cigParams)
		return CUDA_ERROR_NOT_SUPPORTED;
	if (params)
		return do_cuCtxCreate_v3(out, params->execAffinityParams, params->numExecAffinityParams, flags, device);
	return do_cuCtxCreate_v2(out, flags, device);
}

CUresult do_cuCtxDestroy_v2(CUcontext handle)
{
	struct CUctx_st *ctx = softcuda_context(handle);

	if (!handle)
		return CUDA_ERROR_INVALID_VALUE;
	if (!ctx || ctx->primary)
		return CUDA_ERROR_INVALID_CONTEXT;
	context_destroy(ctx);
	return CUDA_SUCCESS;
}

CUresult do_cuCtxDestroy(CUcontext ctx)
{
	return do_cuCtxDestroy_v2(ctx);
}

CUresult do_cuCtxAttach(CUcontext *out, unsigned int flags)
{
	if (!out || flags)
		return CUDA_ERROR_INVALID_VALUE;
	*out = softcuda_current();
	(*out)->attached++;
	return CUDA_SUCCESS;
}

CUresult do_cuCtxDetach(CUcontext ctx)
{
	if (ctx != softcuda_current() || ctx->primary)
		return CUDA_ERROR_INVALID_CONTEXT;
	return --ctx->attached ? CUDA_SUCCESS : do_cuCtxDestroy_v2(ctx);
}

CUresult do_cuDevicePrimaryCtxRetain(CUcontext *out, CUdevice device)
{
	CUresult result = CUDA_SUCCESS;
	struct softcuda_device *dev;

	if (!out)
		return CUDA_ERROR_INVALID_VALUE;
	if (softcuda_device_check(device))
		return CUDA_ERROR_INVALID_DEVICE;
	dev = &softcuda_devices[device];
	pthread_mutex_lock(&primary_lock);
	if (!dev->primary) {
		result = context_new(&dev->primary, device, dev->primary_flags, 3020, true);
	} else if (!atomic_load(&dev->primary->alive)) {
		uint64_t start = softcuda_now_ns();

		softcuda_spend(start, softcuda_costs.context_ms, 0, 0);
		pthread_mutex_lock(&contexts_lock);
		context_reset(dev->primary, dev->primary_flags);
		pthread_mutex_unlock(&contexts_lock);
	}
	if (result == CUDA_SUCCESS) {
		dev->primary_refs++;
		*out = dev->primary;
	}
	pthread_mutex_unlock(&primary_lock);
	return result;
}

CUresult do_cuDevicePrimaryCtxRelease_v2(CUdevice device)
{
	CUresult result = CUDA_SUCCESS;
	struct softcuda_device *dev;

	if (softcuda_device_check(device))
		return CUDA_ERROR_INVALID_DEVICE;
	dev = &softcuda_devices[device];
	pthread_mutex_lock(&primary_lock);
	if (!dev->primary_refs)
		result = CUDA_ERROR_INVALID_CONTEXT;
	else if (!--dev->primary_refs && atomic_load(&dev->primary->alive))
		context_end(dev->primary);
	pthread_mutex_unlock(&primary_lock);
	return result;
}

CUresult do_cuDevicePrimaryCtxRelease(CUdevice device)
{
	return do_cuDevicePrimaryCtxRelease_v2(device);
}

/* Ends the context whoever retained it; what was retained must still be released. */
CUresult do_cuDevicePrimaryCtxReset_v2(CUdevice device)
{
	struct softcuda_device *dev;

	if (softcuda_device_check(device))
		return CUDA_ERROR_INVALID_DEVICE;
	dev = &softcuda_devices[device];
	pthread_mutex_lock(&primary_lock);
	if (dev->primary && atomic_load(&dev->primary->alive))
		context_end(dev->primary);
	dev->primary_flags = 0;
	pthread_mutex_unlock(&primary_lock);
	return CUDA_SUCCESS;
}

CUresult do_cuDevicePrimaryCtxReset(CUdevice device)
{
	return do_cuDevicePrimaryCtxReset_v2(device);
}

CUresult do_cuDevicePrimaryCtxSetFlags_v2(CUdevice device, unsigned int flags)
{
	struct softcuda_device *dev;

	if (!flags_valid(flags))
		return CUDA_ERROR_INVALID_VALUE;
	if (softcuda_device_check(device))
		return CUDA_ERROR_INVALID_DEVICE;
	dev = &softcuda_devices[device];
	dev->primary_flags = flags;
	if (dev->primary && atomic_load(&dev->primary->alive))
		dev->primary->flags = flags;
	return CUDA_SUCCESS;
}

/* The first version refuses to change a context that is in use. */
CUresult do_cuDevicePrimaryCtxSetFlags(CUdevice device, unsigned int flags)
{
	if (!softcuda_device_check(device) && softcuda_devices[device].primary_refs)
		return CUDA_ERROR_PRIMARY_CONTEXT_ACTIVE;
	return do_cuDevicePrimaryCtxSetFlags_v2(device, flags);
}

CUresult do_cuDevicePrimaryCtxGetState(CUdevice device, unsigned int *flags, int *active)
{
	struct softcuda_device *dev;

	if (!flags || !active)
		return CUDA_ERROR_INVALID_VALUE;
	if (softcuda_device_check(device))
		return CUDA_ERROR_INVALID_DEVICE;
	dev = &softcuda_devices[device];
	*flags = dev->primary_flags;
	*active = dev->primary && atomic_load(&dev->primary->alive);
	return CUDA_SUCCESS;
}

CUresult do_cuCtxPushCurrent_v2(CUcontext handle)
{
	struct CUctx_st *ctx = softcuda_context(handle);

	if (!handle)
		return CUDA_ERROR_INVALID_VALUE;
	return ctx ? stack_push(ctx) : CUDA_ERROR_INVALID_CONTEXT;
}

CUresult do_cuCtxPushCurrent(CUcontext ctx)
{
	return do_cuCtxPushCurrent_v2(ctx);
}

CUresult do_cuCtxPopCurrent_v2(CUcontext *out)
{
	if (!stack.used)
		return CUDA_ERROR_INVALID_CONTEXT;
	if (out)
		*out = softcuda_current();
	stack_pop();
	return CUDA_SUCCESS;
}

CUresult do_cuCtxPopCurrent(CUcontext *ctx)
{
	return do_cuCtxPopCurrent_v2(ctx);
}

/* Replaces the top of the stack; NULL pops it. */
CUresult do_cuCtxSetCurrent(CUcontext handle)
{
	struct CUctx_st *ctx = softcuda_context(handle);

	if (handle && !ctx)
		return CUDA_ERROR_INVALID_CONTEXT;
	if (stack.used)
		stack_pop();
	return ctx ? stack_push(ctx) : CUDA_SUCCESS;
}

CUresult do_cuCtxGetCurrent(CUcontext *out)
{
	if (!out)
		return CUDA_ERROR_INVALID_VALUE;
	*out = softcuda_current();
	return CUDA_SUCCESS;
}

CUresult do_cuCtxGetDevice(CUdevice *device)
{
	if (!device)
		return CUDA_ERROR_INVALID_VALUE;
	*device = softcuda_current()->device;
	return CUDA_SUCCESS;
}

/* For the functions that take a context or, with NULL, the current one. */
static CUresult context_or_current(CUcontext handle, struct CUctx_st **ctx)
{
	CUresult result;

	if (handle) {
		*ctx = softcuda_context(handle);
		return *ctx ? CUDA_SUCCESS : CUDA_ERROR_INVALID_CONTEXT;
	}
	result = softcuda_current_check();
	*ctx = softcuda_current();
	return result;
}

CUresult do_cuCtxGetDevice_v2(CUdevice *device, CUcontext handle)
{
	struct CUctx_st *ctx;
	CUresult result = context_or_current(handle, &ctx);

	if (!device)
		return CUDA_ERROR_INVALID_VALUE;
	if (result == CUDA_SUCCESS)
		*device = ctx->device;
	return result;
}

CUresult do_cuCtxGetFlags(unsigned int *flags)
{
	if (!flags)
		return CUDA_ERROR_INVALID_VALUE;
	*flags = softcuda_current()->flags;
	return CUDA_SUCCESS;
}

CUresult do_cuCtxSetFlags(unsigned int flags)
{
	struct CUctx_st *ctx = softcuda_current();

	if (!flags_valid(flags))
		return CUDA_ERROR_INVALID_VALUE;
	ctx->flags = flags;
	if (ctx->primary)
		softcuda_devices[ctx->device].primary_flags = flags;
	return CUDA_SUCCESS;
}

CUresult do_cuCtxGetId(CUcontext handle, unsigned long long *id)
{
	struct CUctx_st *ctx;
	CUresult result = context_or_current(handle, &ctx);

	if (!id)
		return CUDA_ERROR_INVALID_VALUE;
	if (result == CUDA_SUCCESS)
		*id = ctx->id;
	return result;
}

CUresult do_cuCtxGetApiVersion(CUcontext handle, unsigned int *version)
{
	struct CUctx_st *ctx;
	CUresult result = context_or_current(handle, &ctx);

	if (!version)
		return CUDA_ERROR_INVALID_VALUE;
	if (result == CUDA_SUCCESS)
		*version = ctx->api_version;
	return result;
}

static CUresult synchronize(struct CUctx_st *ctx)
{
	CUresult result = softcuda_capture_context(ctx);

	if (result != CUDA_SUCCESS)
		return result;
	result = softcuda_context_wait(ctx);
	softcuda_pools_settle();
	return result;
}

CUresult do_cuCtxSynchronize(void)
{
	return synchronize(softcuda_current());
}

CUresult do_cuCtxSynchronize_v2(CUcontext handle)
{
	struct CUctx_st *ctx;
	CUresult result = context_or_current(handle, &ctx);

	return result ? result : synchronize(ctx);
}

CUresult do_cuCtxGetLimit(size_t *value, CUlimit limit)
{
	if (!value)
		return CUDA_ERROR_INVALID_VALUE;
	if ((unsigned)limit > CU_LIMIT_PERSISTING_L2_CACHE_SIZE)
		return CUDA_ERROR_UNSUPPORTED_LIMIT;
	*value = softcuda_current()->limits[limit];
	return CUDA_SUCCESS;
}

CUresult do_cuCtxSetLimit(CUlimit limit, size_t value)
{
	if ((unsigned)limit > CU_LIMIT_PERSISTING_L2_CACHE_SIZE)
		return CUDA_ERROR_UNSUPPORTED_LIMIT;
	softcuda_current()->limits[limit] = value;
	return CUDA_SUCCESS;
}

CUresult do_cuCtxGetCacheConfig(CUfunc_cache *config)
{
	if (!config)
		return CUDA_ERROR_INVALID_VALUE;
	*config = softcuda_current()->cache;
	return CUDA_SUCCESS;
}

CUresult do_cuCtxSetCacheConfig(CUfunc_cache config)
{
	if ((unsigned)config > CU_FUNC_CACHE_PREFER_EQUAL)
		return CUDA_ERROR_INVALID_VALUE;
	softcuda_current()->cache = config;
	return CUDA_SUCCESS;
}

CUresult do_cuCtxGetStreamPriorityRange(int *least, int *greatest)
{
	if (least)
		*least = 0;
	if (greatest)
		*greatest = -5;
	return CUDA_SUCCESS;
}

CUresult do_cuCtxResetPersistingL2Cache(void)
{
	return CUDA_SUCCESS;
}

CUresult do_cuCtxGetExecAffinity(CUexecAffinityParam *affinity, CUexecAffinityType type)
{
	if (!affinity || type != CU_EXEC_AFFINITY_TYPE_SM_COUNT)
		return CUDA_ERROR_INVALID_VALUE;
	return CUDA_ERROR_UNSUPPORTED_EXEC_AFFINITY;
}
