// SPDX-License-Identifier: MIT
/* CUDA arrays: not parked, only counted. */
#include "pieces.h"

/* As far as we look into them; the driver's interface, version 2. */
struct array_descriptor {
	size_t width, height;
	uint32_t format; /* CUarray_format */
	uint32_t channels;
};

struct array3d_descriptor {
	size_t width, height, depth;
	uint32_t format;
	uint32_t channels;
	uint32_t flags;
};

typedef struct CUmipmappedArray_st *mipmap_t;

/* Of functions that our <cuda.h> lacks; by their wrappers' types. */
#define REAL(name) ((__typeof__(&cudapool_wrap_##name))cudapool_driver_function(cudapool_fn_##name))

/* Bytes of one channel; of compressed and planar formats, one of which is like no other, it is a guess. */
static uint64_t channel_bytes(uint32_t format)
{
	switch (format) {
	case 0x02: /* CU_AD_FORMAT_UNSIGNED_INT16 */
	case 0x09: /* CU_AD_FORMAT_SIGNED_INT16 */
	case 0x10: /* CU_AD_FORMAT_HALF */
		return 2;
	case 0x03: /* CU_AD_FORMAT_UNSIGNED_INT32 */
	case 0x0a: /* CU_AD_FORMAT_SIGNED_INT32 */
	case 0x20: /* CU_AD_FORMAT_FLOAT */
		return 4;
	default:
		return 1;
	}
}

static uint64_t at_least_one(uint64_t n)
{
	return n ? n : 1;
}

static uint64_t bytes_of(uint64_t width, uint64_t height, uint64_t depth, uint32_t format, uint32_t channels)
{
	return at_least_one(width) * at_least_one(height) * at_least_one(depth) * channels * channel_bytes(format);
}

static void array_add(void *handle, uint64_t bytes)
{
	struct memory *m = cudapool_memory(true);
	struct array *array;
	CUcontext context;
	int device;

	if (!m || !cudapool_memory_current(&context, &device))
		return;
	cudapool_lock(&m->lock);
	array = cudapool_slab_get(&m->array_slab);
	if (array) {
		array->node.key = (uintptr_t)handle;
		array->bytes = bytes;
		array->context = context;
		array->device = device;
		array->id = ++m->next_id;
		cudapool_tree_insert(&m->arrays, &array->node);
		*left_of(m, CUDAPOOL_LEFT_ARRAY, device) += bytes;
	}
	cudapool_unlock(&m->lock);
}

static void array_remove(struct memory *m, struct array *array)
{
	cudapool_tree_remove(&m->arrays, &array->node);
	*left_of(m, CUDAPOOL_LEFT_ARRAY, array->device) -= array->bytes;
	cudapool_slab_put(&m->array_slab, array);
}

/* Out of the tables before the driver may give its handle to another one. The bytes, to put it back if that fails. */
static uint64_t array_take(void *handle)
{
	struct memory *m = cudapool_memory(false);
	struct array *array;
	uint64_t bytes = 0;

	if (!m)
		return 0;
	cudapool_lock(&m->lock);
	array = (struct array *)cudapool_tree_at_most(m->arrays, (uintptr_t)handle);
	if (array && array->node.key == (uintptr_t)handle) {
		bytes = array->bytes;
		array_remove(m, array);
	}
	cudapool_unlock(&m->lock);
	return bytes;
}

#define MAKER(name, params, args, bytes)                                                                  \
	static CUresult on_##name params;                                                                              \
	WRAPPER(name, params, args)                                                                                    \
	static CUresult on_##name params                                                                               \
	{                                                                                                              \
		CUresult r = REAL(name) args;                                                                          \
                                                                                                                       \
		if (r == CUDA_SUCCESS)                                                                                 \
			array_add(*out, bytes);                                                                        \
		return r;                                                                                              \
	}
#define DESTROYER(name, handle_type)                                                                                   \
	static CUresult on_##name(handle_type handle);                                                                 \
	WRAPPER(name, (handle_type handle), (handle))                                                                  \
	static CUresult on_##name(handle_type handle)                                                                  \
	{                                                                                                              \
		uint64_t bytes = array_take(handle);                                                                   \
		CUresult r = REAL(name)(handle);                                                                       \
                                                                                                                       \
		if (r != CUDA_SUCCESS && bytes)                                                                        \
			array_add(handle, bytes);                                                                      \
		return r;                                                                                              \
	}

MAKER(cuArrayCreate_v2, (CUarray *out, const struct array_descriptor *d), (out, d),
      bytes_of(d->width, d->height, 1, d->format, d->channels))
MAKER(cuArray3DCreate_v2, (CUarray *out, const struct array3d_descriptor *d), (out, d),
      bytes_of(d->width, d->height, d->depth, d->format, d->channels))
MAKER(cuMipmappedArrayCreate, (mipmap_t *out, const struct array3d_descriptor *d, unsigned int levels),
      (out, d, levels), bytes_of(d->width, d->height, d->depth, d->format, d->channels))
DESTROYER(cuArrayDestroy, CUarray)
DESTROYER(cuMipmappedArrayDestroy, mipmap_t)

void cudapool_arrays_gone(struct memory *m, const struct cudapool_ending *ending)
{
	struct array *array = (struct array *)cudapool_tree_more(m->arrays, 0), *next;

	for (; array; array = next) {
		next = (struct array *)cudapool_tree_more(m->arrays, array->node.key);
		if (array->context != ending->context || array->id > ending->last)
			continue;
		array_remove(m, array);
	}
}
