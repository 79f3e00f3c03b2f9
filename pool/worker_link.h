// SPDX-License-Identifier: MIT
/* The keeper's side of the worker: starts it, watches its heart, replaces it. */
#ifndef CUDAPOOL_POOL_WORKER_LINK_H
#define CUDAPOOL_POOL_WORKER_LINK_H

#include <stdbool.h>
#include <stdint.h>

#include "message.h"
#include "worker.h"

struct link_config {
	/*
	 * What is called when something happens, never from within a function of this header (but for link_stop and
	 * link_replace, which call lost()).
	 */
	void (*changed)(void);                                /* link_info() says something new */
	void (*result)(const struct worker_message *message); /* the WORKER_RESULT of an action came */
	/* Anything about a job or about memory came; the callee owns the descriptors. */
	void (*job)(const struct worker_message *message, const int *fds, unsigned count);
	void (*room)(void);                                   /* after link_send_job() said -EAGAIN: try again */
	void (*lost)(const char *what);                       /* the worker is gone: it 'died', 'hung', … */
};

struct link_info {
	enum cudapool_worker_state state;
	bool ready;          /* cuInit is done: link_send() makes sense */
	int pid;             /* 0: there is none now */
	unsigned generation; /* of the newest worker; the first is 1 */
	unsigned replaced;   /* workers that died or were killed; planned ends are not counted */
	unsigned driver_version, devices, contexts;
	int warm_device;
	uint64_t warm_context;
	uint64_t warm_us; /* what warming took */
	const char *text; /* why FAILED, or what is not as it should be; may be empty */
};

/* Starts the first worker, soon. Its options it reads from the environment. */
void link_init(const struct link_config *config);

/* Hands one WORKER_ACTION over. False if there is no worker that could take it. */
bool link_send(const struct worker_message *message);

/*
 * Hands over what is not an action, with up to WORKER_BATCH descriptors, which stay the caller's. 0; -EAGAIN: the link
 * is
 * full, room() will be called; -ENOTCONN: there is no worker that could take it; another negative errno: it cannot be
 * sent.
 */
int link_send_job(const struct worker_message *message, const int *fds, unsigned count);

/* Kills the worker, which `what` ('hung'), and starts another. */
void link_replace(const char *what);

/* If there is no usable driver, and the last look is a while ago, starts a worker that looks again. */
void link_look_again(void);

void link_info(struct link_info *info);

/* Ends the worker for good, and waits for its end (a second at the most). */
void link_stop(void);

#endif
