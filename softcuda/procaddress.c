// SPDX-License-Identifier: MIT
/* cuGetProcAddress: the newest variant of a function that a program built for a given CUDA version knows. */
#include "internal.h"

#include <string.h>

struct entry {
	const char *base;
	int since;
	void *function;
	int since_per_thread; /* 0: there is no such variant */
	void *per_thread;
};

static const struct entry table[] = {
#define CUDA_API(needs, symbol, base, since, params, args) {base, since, (void *)symbol, 0, NULL},
#define CUDA_API_PTSZ(needs, symbol, base, since, since_ptsz, params, args)                                            \
	{base, since, (void *)symbol, since_ptsz, (void *)symbol##_ptsz},
#define CUDA_API_PTDS(needs, symbol, base, since, since_ptds, params, args)                                            \
	{base, since, (void *)symbol, since_ptds, (void *)symbol##_ptds},
#include "cuda_api.def"
#undef CUDA_API
#undef CUDA_API_PTSZ
#undef CUDA_API_PTDS
	/* Under the name that cuda.h gives it from then on. */
	{"cuGraphInstantiate", 12000, (void *)cuGraphInstantiateWithFlags, 0, NULL},
};

CUresult do_cuGetProcAddress_v2(const char *symbol, void **function, int version, cuuint64_t flags,
				CUdriverProcAddressQueryResult *status)
{
	bool per_thread = flags & CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM, known = false;
	const struct entry *entry;
	int best = 0;

	if (!symbol || !function || version > SOFTCUDA_DRIVER_VERSION ||
	    (flags & ~(cuuint64_t)(CU_GET_PROC_ADDRESS_LEGACY_STREAM | CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM)))
		return CUDA_ERROR_INVALID_VALUE;

	*function = NULL;
	for (entry = table; entry < table + sizeof(table) / sizeof(*table); entry++) {
		if (strcmp(entry->base, symbol))
			continue;
		known = true;
		if (entry->since > version || entry->since < best)
			continue;
		best = entry->since;
		*function = per_thread && entry->per_thread && entry->since_per_thread <= version ? entry->per_thread
												  : entry->function;
	}
	if (status)
		*status = *function ? CU_GET_PROC_ADDRESS_SUCCESS
			  : known   ? CU_GET_PROC_ADDRESS_VERSION_NOT_SUFFICIENT
				    : CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
	return CUDA_SUCCESS;
}

CUresult do_cuGetProcAddress(const char *symbol, void **function, int version, cuuint64_t flags)
{
	return do_cuGetProcAddress_v2(symbol, function, version, flags, NULL);
}

/* There are no private tables. */
CUresult do_cuGetExportTable(const void **table_out, const CUuuid *id)
{
	if (!table_out || !id)
		return CUDA_ERROR_INVALID_VALUE;
	*table_out = NULL;
	return CUDA_ERROR_NOT_FOUND;
}
