// SPDX-License-Identifier: MIT
/* What happened: counters and the last errors, for the report (report.h). */
#ifndef CUDAPOOL_POOL_STATUS_H
#define CUDAPOOL_POOL_STATUS_H

#include <stdbool.h>
#include <stddef.h>

#include "json.h"
#include "message.h"

enum status_connection { STATUS_ACCEPTED, STATUS_REFUSED, STATUS_DROPPED, STATUS_CONNECTION_KINDS };

void status_count_action(enum cudapool_op op, int error, unsigned elapsed_us);
void status_count_undo(bool ok);
void status_count_connection(enum status_connection what);

/* Remembers one line for the report, and logs it as an error. */
void status_error(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Members of the report. */
void status_report_action(struct cudapool_json *json, enum cudapool_op op);
void status_report_undone(struct cudapool_json *json);
void status_report_connections(struct cudapool_json *json, unsigned open);
void status_report_errors(struct cudapool_json *json, int limit);

#endif
