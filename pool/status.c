// SPDX-License-Identifier: MIT
/* What happened: counters and the last errors, for the report (report.h). */
#include "status.h"

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>

#include "log.h"
#include "loop.h"

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

void status_report_action(struct cudapool_json *json, enum cudapool_op op)
{
	cudapool_json_number(json, "ok", (long long)actions[op].ok);
	cudapool_json_number(json, "failed", (long long)actions[op].failed);
	cudapool_json_number(json, "total_us", (long long)actions[op].total_us);
	cudapool_json_number(json, "max_us", actions[op].max_us);
}

void status_report_undone(struct cudapool_json *json)
{
	cudapool_json_number(json, "ok", (long long)undone[true]);
	cudapool_json_number(json, "failed", (long long)undone[false]);
}

void status_report_connections(struct cudapool_json *json, unsigned open)
{
	cudapool_json_number(json, "open", open);
	cudapool_json_number(json, "accepted", (long long)connections[STATUS_ACCEPTED]);
	cudapool_json_number(json, "refused", (long long)connections[STATUS_REFUSED]);
	cudapool_json_number(json, "dropped", (long long)connections[STATUS_DROPPED]);
}

void status_report_errors(struct cudapool_json *json, int limit)
{
	uint64_t i, now = loop_now_ms();

	for (i = error_count; i > 0 && error_count - i < ERRORS_KEPT && limit-- > 0; i--) {
		cudapool_json_open(json, NULL, '{');
		cudapool_json_number(json, "ago_ms", (long long)(now - errors[(i - 1) % ERRORS_KEPT].at_ms));
		cudapool_json_string(json, "text", errors[(i - 1) % ERRORS_KEPT].text);
		cudapool_json_close(json, '}');
	}
}
