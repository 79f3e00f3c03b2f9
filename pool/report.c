// SPDX-License-Identifier: MIT
/* What the pool says of itself, as JSON. */
#include "report.h"

#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <unistd.h>

#include "action.h"
#include "build.h"
#include "holding.h"
#include "json.h"
#include "loop.h"
#include "operation.h"
#include "owner.h"
#include "process.h"
#include "status.h"
#include "store.h"
#include "undo.h"
#include "worker_link.h"

static uint64_t started_ms;
static const char *socket_path;

void report_init(const char *path)
{
	started_ms = loop_now_ms();
	socket_path = path;
}

static void number_or_null(struct cudapool_json *json, const char *key, long number)
{
	if (number < 0)
		cudapool_json_null(json, key);
	else
		cudapool_json_number(json, key, number);
}

static void report_usage(struct cudapool_json *json, int pid)
{
	number_or_null(json, "memory_kb", pid ? process_rss_kb(pid) : -1);
	number_or_null(json, "descriptors", pid ? process_descriptors(pid) : -1);
}

static void report_worker(struct cudapool_json *json)
{
	static const char *const states[] = {"starting", "warm", "failed"};
	struct link_info info;
	char context[24];

	link_info(&info);
	snprintf(context, sizeof(context), "0x%llx", (unsigned long long)info.warm_context);
	cudapool_json_open(json, "worker", '{');
	cudapool_json_number(json, "pid", info.pid);
	cudapool_json_string(json, "state", states[info.state]);
	cudapool_json_number(json, "generation", info.generation);
	cudapool_json_number(json, "replaced", info.replaced);
	cudapool_json_number(json, "driver_version", info.driver_version);
	cudapool_json_number(json, "devices", info.devices);
	cudapool_json_number(json, "contexts", info.contexts);
	cudapool_json_number(json, "warm_device", info.warm_device);
	cudapool_json_string(json, "warm_context", context);
	cudapool_json_number(json, "warm_us", (long long)info.warm_us);
	report_usage(json, info.pid);
	cudapool_json_string(json, "text", info.text);
	cudapool_json_close(json, '}');
}

static void report_actions(struct cudapool_json *json)
{
	unsigned queued, running;
	int op;

	actions_count(&queued, &running);
	cudapool_json_open(json, "actions", '{');
	cudapool_json_number(json, "queued", queued);
	cudapool_json_number(json, "running", running);
	for (op = CUDAPOOL_OP_STATE; op <= CUDAPOOL_OP_LAST; op++) {
		cudapool_json_open(json, action_name((enum cudapool_op)op), '{');
		status_report_action(json, (enum cudapool_op)op);
		cudapool_json_close(json, '}');
	}
	cudapool_json_close(json, '}');
}

static const char *under_way(const struct holding *holding)
{
	return holding->operation ? action_name(holding->operation->op) : NULL;
}

static int report(char *out, size_t size, unsigned connections, int limit)
{
	struct cudapool_json json = {.out = out, .size = size};

	cudapool_json_open(&json, NULL, '{');
	cudapool_json_string(&json, "schema", "cudapool-status-1");
	cudapool_json_string(&json, "build", build_name());
	cudapool_json_string(&json, "socket", socket_path);
	cudapool_json_number(&json, "pid", getpid());
	cudapool_json_number(&json, "uptime_ms", (long long)(loop_now_ms() - started_ms));
	report_usage(&json, getpid());
	report_worker(&json);
	report_actions(&json);
	cudapool_json_number(&json, "held_count", holding_count());
	cudapool_json_open(&json, "held", '[');
	holding_report(&json, limit, under_way, undo_attempts);
	cudapool_json_close(&json, ']');
	cudapool_json_number(&json, "owner_count", owner_count());
	cudapool_json_open(&json, "owners", '[');
	owner_report(&json, limit);
	cudapool_json_close(&json, ']');
	cudapool_json_open(&json, "given_back", '{');
	status_report_undone(&json);
	cudapool_json_close(&json, '}');
	cudapool_json_open(&json, "connections", '{');
	status_report_connections(&json, connections);
	cudapool_json_close(&json, '}');
	store_report(&json, limit);
	cudapool_json_open(&json, "errors", '[');
	status_report_errors(&json, limit);
	cudapool_json_close(&json, ']');
	cudapool_json_close(&json, '}');
	return cudapool_json_end(&json);
}

int report_write(char *out, size_t size, unsigned connections)
{
	int limit, length = -ENOBUFS;

	for (limit = 32; length < 0 && limit; limit /= 2)
		length = report(out, size, connections, limit);
	return length < 0 ? report(out, size, connections, 0) : length;
}
