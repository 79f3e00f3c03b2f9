// SPDX-License-Identifier: MIT
/* Our declarations of the driver's interface against a real cuda.h. */
#include <stdlib.h>
#include <string.h>

#define CUDAPOOL_ABI_NO_VERSIONS
#include <cuda.h>

#include "../client/tap.h"
#include "abi_list.h"

static char *file_text(const char *path)
{
	FILE *file = fopen(path, "re");
	char *text = NULL;
	long size;

	if (!file)
		return NULL;
	if (!fseek(file, 0, SEEK_END) && (size = ftell(file)) > 0 && !fseek(file, 0, SEEK_SET) &&
	    (text = calloc(1, size + 1)) && fread(text, 1, size, file) != (size_t)size) {
		free(text);
		text = NULL;
	}
	fclose(file);
	return text;
}

static int unknown; /* functions of which the real header does not know that version */

static void check_since(const char *typedefs, const char *base, int since, const char *variant)
{
	char name[128];

	snprintf(name, sizeof(name), "PFN_%s_v%d%s)", base, since, variant);
	if (!strstr(typedefs, name)) {
		note("no %s in the real header", name);
		unknown++;
	}
}

int main(void)
{
	char *typedefs;
	int differ = 0;

	if (abi_real.missing) {
		printf("1..0 # SKIP %s\n", abi_real.missing);
		return 0;
	}
	ok(abi_ours.count == abi_real.count && abi_ours.count > 300, "%d facts of each header", abi_ours.count);
	for (int i = 0; i < abi_ours.count; i++) {
		if (abi_ours.facts[i].value == abi_real.facts[i].value)
			continue;
		/* These two move with the version of the header. */
		if (abi_real.facts[abi_real.count - 1].value != abi_ours.facts[abi_ours.count - 1].value &&
		    (!strcmp(abi_ours.facts[i].name, "CUDA_VERSION") ||
		     strstr(abi_ours.facts[i].name, "ATTRIBUTE_MAX")))
			continue;
		note("%s: ours %lld, real %lld", abi_ours.facts[i].name, abi_ours.facts[i].value,
		     abi_real.facts[i].value);
		differ++;
	}
	ok(differ == 0, "values, sizes and offsets agree");

	typedefs = file_text(abi_real.typedefs);
	if (ok(typedefs != NULL, "read %s", abi_real.typedefs)) {
#define CUDA_API(needs, symbol, base, since, params, args) check_since(typedefs, base, since, "");
#define CUDA_API_PTSZ(needs, symbol, base, since, since_ptsz, params, args)                                            \
	check_since(typedefs, base, since, "");                                                                        \
	check_since(typedefs, base, since_ptsz, "_ptsz");
#define CUDA_API_PTDS(needs, symbol, base, since, since_ptds, params, args)                                            \
	check_since(typedefs, base, since, "");                                                                        \
	check_since(typedefs, base, since_ptds, "_ptds");
#include "cuda_api.def"
		ok(unknown == 0, "every function's version is one that the real header knows");
	}
	free(typedefs);
	return tap_end();
}
