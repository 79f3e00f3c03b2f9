// SPDX-License-Identifier: MIT
/* The option table as JSON; apart from options.c because the shim and CRIU's plugin have no use for it. */
#include "options.h"

#include "json.h"

enum {
	POOL = CUDAPOOL_READER_POOL,
	SHIM = CUDAPOOL_READER_SHIM,
	PLUGIN = CUDAPOOL_READER_PLUGIN,
	HARNESS = CUDAPOOL_READER_HARNESS
};

static void put_readers(struct cudapool_json *j, unsigned readers)
{
	cudapool_json_open(j, "readers", '[');
	if (readers & POOL)
		cudapool_json_string(j, NULL, "pool");
	if (readers & SHIM)
		cudapool_json_string(j, NULL, "shim");
	if (readers & PLUGIN)
		cudapool_json_string(j, NULL, "plugin");
	if (readers & HARNESS)
		cudapool_json_string(j, NULL, "harness");
	cudapool_json_close(j, ']');
}

#define VALUE_BOOL(name)   cudapool_json_number(&j, "value", o->name)
#define VALUE_NUMBER(name) cudapool_json_number(&j, "value", o->name)
#define VALUE_STRING(name) cudapool_json_string(&j, "value", o->name)

int cudapool_options_json(const struct cudapool_options *o, char *json, size_t size)
{
	struct cudapool_json j = {json, size};

	cudapool_json_open(&j, NULL, '[');
#define OPTION(name_, environment_, type_, fallback_, min_, max_, readers_, text_)                                     \
	cudapool_json_open(&j, NULL, '{');                                                                             \
	cudapool_json_string(&j, "name", #name_);                                                                      \
	cudapool_json_string(&j, "environment", environment_);                                                         \
	cudapool_json_string(&j, "type", #type_);                                                                      \
	cudapool_json_string(&j, "default", fallback_);                                                                \
	cudapool_json_number(&j, "min", min_);                                                                         \
	cudapool_json_number(&j, "max", max_);                                                                         \
	put_readers(&j, readers_);                                                                                     \
	cudapool_json_string(&j, "text", text_);                                                                       \
	if (o) {                                                                                                       \
		VALUE_##type_(name_);                                                                                  \
		cudapool_json_string(&j, "source", cudapool_option_source_name(o, CUDAPOOL_OPTION_##name_));           \
	}                                                                                                              \
	cudapool_json_close(&j, '}');
#include "options.def"
#undef OPTION
	cudapool_json_close(&j, ']');
	return cudapool_json_end(&j);
}
