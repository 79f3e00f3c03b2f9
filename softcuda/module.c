// SPDX-License-Identifier: MIT
/* Modules, functions, launches, and the few kernels that are carried out on the host. */
#include "internal.h"
#include "kernels.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAX_IMAGE (64ul << 20)

struct softcuda_kernel {
	const char *name;
	CUresult (*run)(const uint64_t *args, struct CUctx_st *ctx);
	unsigned sizes[SOFTCUDA_MAX_ARGS]; /* of the parameters; 0 ends them */
};

struct CUfunc_st {
	struct CUfunc_st *next;
	struct CUmod_st *module;
	const struct softcuda_kernel *kernel;
};

struct CUmod_st {
	struct CUmod_st *next;
	char *text;
	struct CUfunc_st *functions;
};

static pthread_mutex_t modules_lock = PTHREAD_MUTEX_INITIALIZER;

/* The memory a kernel touches is looked up as it runs, so that memory that is gone is an error, not a crash. */
static void *operand(uint64_t ptr, uint64_t count, size_t size, bool write, struct CUctx_st *ctx)
{
	size_t bytes;

	if (ptr % size || __builtin_mul_overflow(count, size, &bytes))
		return NULL;
	return softcuda_reach(ptr, bytes, write, ctx, false, false);
}

static CUresult cudapool_fill(const uint64_t *args, struct CUctx_st *ctx)
{
	uint32_t *word, seed = args[2];

	if (!args[1])
		return CUDA_SUCCESS;
	word = operand(args[0], args[1], sizeof(*word), true, ctx);
	if (!word)
		return CUDA_ERROR_ILLEGAL_ADDRESS;
	for (uint64_t i = 0; i < args[1]; i++)
		word[i] = (uint32_t)i * 2654435761u ^ seed;
	return CUDA_SUCCESS;
}

static CUresult cudapool_checksum(const uint64_t *args, struct CUctx_st *ctx)
{
	_Atomic uint64_t *out = operand(args[2], 1, sizeof(*out), true, ctx);
	const uint32_t *word;
	uint64_t sum = 0;

	if (!args[1])
		return CUDA_SUCCESS;
	word = operand(args[0], args[1], sizeof(*word), false, ctx);
	if (!out || !word)
		return CUDA_ERROR_ILLEGAL_ADDRESS;
	for (uint64_t i = 0; i < args[1]; i++)
		sum += (uint64_t)(word[i] ^ (uint32_t)i) * (2 * i + 1);
	atomic_fetch_add(out, sum);
	return CUDA_SUCCESS;
}

static CUresult cudapool_saxpy(const uint64_t *args, struct CUctx_st *ctx)
{
	const float *x;
	float *y, a;

	if (!args[3])
		return CUDA_SUCCESS;
	y = operand(args[0], args[3], sizeof(*y), true, ctx);
	x = operand(args[1], args[3], sizeof(*x), false, ctx);
	if (!x || !y)
		return CUDA_ERROR_ILLEGAL_ADDRESS;
	memcpy(&a, &args[2], sizeof(a));
	for (uint64_t i = 0; i < args[3]; i++)
		y[i] = fmaf(a, x[i], y[i]);
	return CUDA_SUCCESS;
}

static CUresult cudapool_spin(const uint64_t *args, struct CUctx_st *ctx)
{
	uint64_t until = softcuda_now_ns() + args[0];

	while (softcuda_now_ns() < until)
		;
	return CUDA_SUCCESS;
}

static const struct softcuda_kernel kernels[] = {
#define KERNEL(name, ...) {#name, name, {__VA_ARGS__}},
	SOFTCUDA_KERNELS(KERNEL)
#undef KERNEL
};

CUresult softcuda_kernel_run(const struct softcuda_kernel *kernel, const uint64_t *args, struct CUctx_st *ctx)
{
	CUresult result;

	if (kernel->run == cudapool_spin) /* touches no memory, and may be long */
		return cudapool_spin(args, ctx);
	pthread_rwlock_rdlock(&softcuda_map_lock);
	result = kernel->run(args, ctx);
	pthread_rwlock_unlock(&softcuda_map_lock);
	return result;
}

/* Is there `.entry NAME` in the text? */
static bool has_entry(const char *text, const char *name)
{
	size_t length = strlen(name);
	const char *at = text;

	while ((at = strstr(at, ".entry"))) {
		at += strlen(".entry");
		if (!isspace((unsigned char)*at))
			continue;
		at += strspn(at, " \t\r\n");
		if (!strncmp(at, name, length) && !isalnum((unsigned char)at[length]) && at[length] != '_' &&
		    at[length] != '$')
			return true;
	}
	return false;
}

static CUresult module_new(CUmodule *out, char *text)
{
	struct CUctx_st *ctx = softcuda_current();
	struct CUmod_st *module;

	if (!strstr(text, ".entry") && !strstr(text, ".version")) {
		free(text);
		return CUDA_ERROR_INVALID_IMAGE;
	}
	module = calloc(1, sizeof(*module));
	if (!module) {
		free(text);
		return CUDA_ERROR_OUT_OF_MEMORY;
	}
	module->text = text;
	pthread_mutex_lock(&modules_lock);
	module->next = ctx->modules;
	ctx->modules = module;
	pthread_mutex_unlock(&modules_lock);
	*out = module;
	return CUDA_SUCCESS;
}

CUresult do_cuModuleLoadData(CUmodule *module, const void *image)
{
	size_t length;
	char *text;

	if (!module || !image)
		return CUDA_ERROR_INVALID_VALUE;
	length = strnlen(image, MAX_IMAGE);
	text = length < MAX_IMAGE ? strndup(image, length) : NULL;
	return text ? module_new(module, text) : CUDA_ERROR_INVALID_IMAGE;
}

CUresult do_cuModuleLoadDataEx(CUmodule *module, const void *image, unsigned int count, CUjit_option *options,
			       void **values)
{
	if (count && (!options || !values))
		return CUDA_ERROR_INVALID_VALUE;
	for (unsigned i = 0; i < count; i++) {
		if (i && (options[i - 1] == CU_JIT_INFO_LOG_BUFFER || options[i - 1] == CU_JIT_ERROR_LOG_BUFFER) &&
		    values[i - 1])
			*(char *)values[i - 1] = 0; /* the compiler has nothing to say */
	}
	return do_cuModuleLoadData(module, image);
}

CUresult do_cuModuleLoad(CUmodule *module, const char *file)
{
	ssize_t length = -1;
	struct stat info;
	char *text;
	int fd;

	if (!module || !file)
		return CUDA_ERROR_INVALID_VALUE;
	fd = open(file, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return CUDA_ERROR_FILE_NOT_FOUND;
	if (fstat(fd, &info) || !S_ISREG(info.st_mode) || info.st_size >= (off_t)MAX_IMAGE) {
		close(fd);
		return CUDA_ERROR_INVALID_IMAGE;
	}
	text = malloc(info.st_size + 1);
	if (text)
		length = pread(fd, text, info.st_size, 0);
	close(fd);
	if (length < 0) {
		free(text);
		return text ? CUDA_ERROR_INVALID_IMAGE : CUDA_ERROR_OUT_OF_MEMORY;
	}
	text[length] = 0;
	return module_new(module, text);
}

static void module_free(struct CUmod_st *module)
{
	struct CUfunc_st *function;

	while ((function = module->functions)) {
		module->functions = function->next;
		free(function);
	}
	free(module->text);
	free(module);
}

void softcuda_modules_end(struct CUctx_st *ctx)
{
	struct CUmod_st *module;

	pthread_mutex_lock(&modules_lock);
	while ((module = ctx->modules)) {
		ctx->modules = module->next;
		module_free(module);
	}
	pthread_mutex_unlock(&modules_lock);
}

/* With the lock held. */
static struct CUmod_st *module_find(CUmodule handle)
{
	struct CUmod_st *module = softcuda_current()->modules;

	while (module && module != handle)
		module = module->next;
	return module;
}

static struct CUfunc_st *function_find(CUfunction handle)
{
	struct CUmod_st *module;
	struct CUfunc_st *function = NULL;

	pthread_mutex_lock(&modules_lock);
	for (module = softcuda_current()->modules; module && !function; module = module->next) {
		for (function = module->functions; function && function != handle; function = function->next)
			;
	}
	pthread_mutex_unlock(&modules_lock);
	return function;
}

CUresult do_cuModuleUnload(CUmodule handle)
{
	struct CUctx_st *ctx = softcuda_current();
	struct CUmod_st **link;

	softcuda_context_wait(ctx);
	pthread_mutex_lock(&modules_lock);
	for (link = &ctx->modules; *link && *link != handle; link = &(*link)->next)
		;
	if (!*link) {
		pthread_mutex_unlock(&modules_lock);
		return CUDA_ERROR_INVALID_HANDLE;
	}
	*link = handle->next;
	pthread_mutex_unlock(&modules_lock);
	module_free(handle);
	return CUDA_SUCCESS;
}

CUresult do_cuModuleGetLoadingMode(CUmoduleLoadingMode *mode)
{
	if (!mode)
		return CUDA_ERROR_INVALID_VALUE;
	*mode = CU_MODULE_LAZY_LOADING;
	return CUDA_SUCCESS;
}

CUresult do_cuModuleGetFunction(CUfunction *out, CUmodule handle, const char *name)
{
	CUresult result = CUDA_ERROR_NOT_FOUND;
	struct CUfunc_st *function;
	struct CUmod_st *module;

	if (!out || !name)
		return CUDA_ERROR_INVALID_VALUE;
	pthread_mutex_lock(&modules_lock);
	module = module_find(handle);
	if (!module)
		result = CUDA_ERROR_INVALID_HANDLE;
	for (size_t i = 0; module && i < sizeof(kernels) / sizeof(*kernels); i++) {
		if (strcmp(kernels[i].name, name) || !has_entry(module->text, name))
			continue;
		for (function = module->functions; function && function->kernel != &kernels[i];
		     function = function->next)
			;
		if (!function) {
			function = calloc(1, sizeof(*function));
			if (function) {
				function->module = module;
				function->kernel = &kernels[i];
				function->next = module->functions;
				module->functions = function;
			}
		}
		*out = function;
		result = function ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
	}
	pthread_mutex_unlock(&modules_lock);
	return result;
}

CUresult do_cuModuleGetFunctionCount(unsigned int *count, CUmodule handle)
{
	struct CUmod_st *module;

	if (!count)
		return CUDA_ERROR_INVALID_VALUE;
	*count = 0;
	pthread_mutex_lock(&modules_lock);
	module = module_find(handle);
	for (size_t i = 0; module && i < sizeof(kernels) / sizeof(*kernels); i++)
		*count += has_entry(module->text, kernels[i].name);
	pthread_mutex_unlock(&modules_lock);
	return module ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

CUresult do_cuFuncGetAttribute(int *value, CUfunction_attribute attribute, CUfunction handle)
{
	if (!value || (unsigned)attribute > CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT)
		return CUDA_ERROR_INVALID_VALUE;
	if (!function_find(handle))
		return CUDA_ERROR_INVALID_HANDLE;
	*value = attribute == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? 1024
		 : attribute == CU_FUNC_ATTRIBUTE_PTX_VERSION         ? 90
		 : attribute == CU_FUNC_ATTRIBUTE_BINARY_VERSION      ? 90
		 : attribute == CU_FUNC_ATTRIBUTE_NUM_REGS            ? 16
								      : 0;
	return CUDA_SUCCESS;
}

CUresult do_cuFuncGetModule(CUmodule *module, CUfunction handle)
{
	struct CUfunc_st *function = function_find(handle);

	if (!module)
		return CUDA_ERROR_INVALID_VALUE;
	if (!function)
		return CUDA_ERROR_INVALID_HANDLE;
	*module = function->module;
	return CUDA_SUCCESS;
}

CUresult do_cuFuncGetName(const char **name, CUfunction handle)
{
	struct CUfunc_st *function = function_find(handle);

	if (!name)
		return CUDA_ERROR_INVALID_VALUE;
	if (!function)
		return CUDA_ERROR_INVALID_HANDLE;
	*name = function->kernel->name;
	return CUDA_SUCCESS;
}

/* Takes the arguments from `params`, one pointer each, or from the packed buffer that `extra` names. */
static CUresult arguments(const struct softcuda_kernel *kernel, void **params, void **extra, uint64_t *args)
{
	const char *buffer = NULL;
	size_t size = 0, offset = 0;

	if (params && extra)
		return CUDA_ERROR_INVALID_VALUE;
	for (; extra && *extra != CU_LAUNCH_PARAM_END; extra += 2) {
		if (*extra == CU_LAUNCH_PARAM_BUFFER_POINTER)
			buffer = extra[1];
		else if (*extra == CU_LAUNCH_PARAM_BUFFER_SIZE && extra[1])
			size = *(size_t *)extra[1];
		else
			return CUDA_ERROR_INVALID_VALUE;
	}
	if (!params && !buffer)
		return CUDA_ERROR_INVALID_VALUE;
	for (unsigned i = 0; i < SOFTCUDA_MAX_ARGS && kernel->sizes[i]; i++) {
		args[i] = 0;
		offset = round_up(offset, kernel->sizes[i]);
		if (params ? !params[i] : offset + kernel->sizes[i] > size)
			return CUDA_ERROR_INVALID_VALUE;
		memcpy(&args[i], params ? params[i] : buffer + offset, kernel->sizes[i]);
		offset += kernel->sizes[i];
	}
	return CUDA_SUCCESS;
}

CUresult do_cuLaunchKernel(CUfunction handle, unsigned int grid_x, unsigned int grid_y, unsigned int grid_z,
			   unsigned int block_x, unsigned int block_y, unsigned int block_z, unsigned int shared_bytes,
			   CUstream stream_handle, void **params, void **extra)
{
	struct CUfunc_st *function = function_find(handle);
	struct softcuda_op op = {.kind = OP_LAUNCH};
	CUresult result;
	struct CUstream_st *stream = softcuda_stream(stream_handle, &result);

	if (!stream)
		return result;
	if (!function)
		return CUDA_ERROR_INVALID_HANDLE;
	if (!grid_x || !grid_y || !grid_z || !block_x || !block_y || !block_z || grid_x > INT32_MAX || grid_y > 65535 ||
	    grid_z > 65535 || block_x > 1024 || block_y > 1024 || block_z > 64 || block_x * block_y * block_z > 1024 ||
	    shared_bytes > 49152)
		return CUDA_ERROR_INVALID_VALUE;
	op.launch.kernel = function->kernel;
	result = arguments(function->kernel, params, extra, op.launch.args);
	return result ? result : softcuda_submit(stream, &op);
}

CUresult do_cuLaunchKernelEx(const CUlaunchConfig *config, CUfunction function, void **params, void **extra)
{
	if (!config || (config->numAttrs && !config->attrs))
		return CUDA_ERROR_INVALID_VALUE;
	return do_cuLaunchKernel(function, config->gridDimX, config->gridDimY, config->gridDimZ, config->blockDimX,
				 config->blockDimY, config->blockDimZ, config->sharedMemBytes, config->hStream, params,
				 extra);
}

CUresult do_cuLaunchCooperativeKernel(CUfunction function, unsigned int grid_x, unsigned int grid_y,
				      unsigned int grid_z, unsigned int block_x, unsigned int block_y,
				      unsigned int block_z, unsigned int shared_bytes, CUstream stream, void **params)
{
	return do_cuLaunchKernel(function, grid_x, grid_y, grid_z, block_x, block_y, block_z, shared_bytes, stream,
				 params, NULL);
}
