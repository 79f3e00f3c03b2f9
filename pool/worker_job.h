// SPDX-License-Identifier: MIT
/* The worker's side of jobs: what the keeper asks of the engine. */
#ifndef CUDAPOOL_POOL_WORKER_JOB_H
#define CUDAPOOL_POOL_WORKER_JOB_H

#include "rights.h"
#include "worker.h"

/*
 * Sends a message with descriptors to the keeper, from any thread; waits until there is room. 0 or a negative errno;
 * the descriptors stay the caller's.
 */
typedef int worker_send(const struct worker_message *message, const int *fds, unsigned count);

/* Before the other two, once. */
void worker_jobs_init(worker_send *send);

/*
 * A WORKER_JOB, WORKER_PIECES or WORKER_CANCEL came; its descriptors are taken. Never waits for anything but memory. A
 * job begins when the driver is initialised: worker_jobs_ready().
 */
void worker_job_message(const struct worker_message *message, const struct rights *came);
void worker_jobs_ready(void);

#endif
