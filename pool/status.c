// SPDX-License-Identifier: MIT
/* What the pool says of itself: counters, and the report as JSON. */
#include "status.h"

#include <errno.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <unistd.h>

#include "action.h"
#include "build.h"
#include "holding.h"
#include "json.h"
#include "log.h"
#include "loop.h"
#include "peer.h"
#include "process.h"
#include "session.h"
#include "worker_link.h"

#define ERRORS_KEPT 16

static struct {
	uint64_t ok, failed, total_us;
	unsigned max_us;
} actions[CUDAPOOL_OP_LAST + 1];

static struct {
	uint64_t at_ms;
	char text[CUDAPOOL_TEXT_LEN];
} errors[ERRORS_KEPT];

static uint64_t error_count, undone[2], connections[STATUS_CONNECTION_KINDS];
static uint64_t started_ms;
static const char *socket_path;

void status_init(const char *path)
{
	started_ms = loop_now_ms();
	socket_path = path;
}

void status_count_action(enum cudapool_op op, int error, unsigned elapsed_us)
{
	if (error)
		actions[op].failed++;
	else
		actions[op].ok++;
	actions[op].total_us += elapsed_us;
	if (elapsed_us > actions[op].max_us)
		actions[op].max_us = elapsed_us;
}

void status_count_undo(bool ok)
{
	undone[ok]++;
}

void status_count_connection(enum status_connection what)
{
	connections[what]++;
}

void status_error(const char *format, ...)
{
	char *text = errors[error_count % ERRORS_KEPT].text;
	va_list args;

	va_start(args, format);
	vsnprintf(text, CUDAPOOL_TEXT_LEN, format, args);
	va_end(args);
	errors[error_count++ % ERRORS_KEPT].at_ms = loop_now_ms();
	cudapool_log(CUDAPOOL_LOG_ERR, "%s", text);
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
		cudapool_json_number(json, "ok", (long long)actions[op].ok);
		cudapool_json_number(json, "failed", (long long)actions[op].failed);
		cudapool_json_number(json, "total_us", (long long)actions[op].total_us);
		cudapool_json_number(json, "max_us", actions[op].max_us);
		cudapool_json_close(json, '}');
	}
	cudapool_json_close(json, '}');
}

static void report_errors(struct cudapool_json *json, int limit)
{
	uint64_t i, now = loop_now_ms();

	for (i = error_count; i > 0 && error_count - i < ERRORS_KEPT && limit-- > 0; i--) {
		cudapool_json_open(json, NULL, '{');
		cudapool_json_number(json, "ago_ms", (long long)(now - errors[(i - 1) % ERRORS_KEPT].at_ms));
		cudapool_json_string(json, "text", errors[(i - 1) % ERRORS_KEPT].text);
		cudapool_json_close(json, '}');
	}
}

static int report(char *out, size_t size, int limit)
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
	holding_report(&json, limit);
	cudapool_json_close(&json, ']');
	cudapool_json_number(&json, "owner_count", session_count());
	cudapool_json_open(&json, "owners", '[');
	session_report(&json, limit);
	cudapool_json_close(&json, ']');
	cudapool_json_open(&json, "given_back", '{');
	cudapool_json_number(&json, "ok", (long long)undone[true]);
	cudapool_json_number(&json, "failed", (long long)undone[false]);
	cudapool_json_close(&json, '}');
	cudapool_json_open(&json, "connections", '{');
	cudapool_json_number(&json, "open", peer_count());
	cudapool_json_number(&json, "accepted", (long long)connections[STATUS_ACCEPTED]);
	cudapool_json_number(&json, "refused", (long long)connections[STATUS_REFUSED]);
	cudapool_json_number(&json, "dropped", (long long)connections[STATUS_DROPPED]);
	cudapool_json_close(&json, '}');
	cudapool_json_open(&json, "errors", '[');
	report_errors(&json, limit);
	cudapool_json_close(&json, ']');
	cudapool_json_close(&json, '}');
	return cudapool_json_end(&json);
}

int status_report(char *out, size_t size)
{
	int limit, length = -ENOBUFS;

	for (limit = 32; length < 0 && limit; limit /= 2)
		length = report(out, size, limit);
	return length < 0 ? report(out, size, 0) : length;
}
