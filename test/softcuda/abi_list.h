// SPDX-License-Identifier: MIT
/* What abi_list.c finds in one header: names with values, sizes and offsets. */
#ifndef CUDAPOOL_TEST_SOFTCUDA_ABI_LIST_H
#define CUDAPOOL_TEST_SOFTCUDA_ABI_LIST_H

struct abi_fact {
	const char *name;
	long long value;
};

struct abi_list {
	const char *typedefs; /* NVIDIA's file of function types with the versions in their names; NULL without */
	const char *missing;  /* why there is nothing to compare with; NULL if there is */
	const struct abi_fact *facts;
	int count;
};

extern const struct abi_list abi_ours, abi_real;

#endif
