// SPDX-License-Identifier: MIT
/* Connects to the pool that the options name, one started for the purpose if there is none. */
#include "reach.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "spawn.h"

#define START_LIMIT_MS 5000 /* for a pool to accept after it was started; its driver may take longer */

/* A pool without a driver, or without a GPU, carries nothing out. */
static int check_welcome(struct cudapool_client *c)
{
	const struct cudapool_welcome *w = &c->welcome;

	if (w->worker_state == CUDAPOOL_WORKER_FAILED)
		snprintf(c->text, sizeof(c->text), "%s", w->text[0] ? w->text : "it has no usable driver");
	else if (w->worker_state == CUDAPOOL_WORKER_WARM && w->device_count == 0)
		snprintf(c->text, sizeof(c->text), "its driver finds no GPU");
	else
		return 0;
	cudapool_client_close(c);
	return -ENODEV;
}

int cudapool_reach(struct cudapool_client *c, const struct cudapool_options *options, struct cudapool_hello *hello,
		   char *started)
{
	bool asked = options->source[CUDAPOOL_OPTION_idle_s] != CUDAPOOL_SOURCE_DEFAULT;
	int ret;

	started[0] = '\0';
	hello->streams = options->streams;
	hello->chunk_mb = options->chunk_mb;
	ret = cudapool_client_connect(c, options->socket, hello);
	if ((ret == -ENOENT || ret == -ECONNREFUSED) && options->start) {
		ret = cudapool_spawn(options->daemon, options->socket, asked ? options->idle_s : CUDAPOOL_SPAWN_IDLE_S,
				     START_LIMIT_MS, started);
		if (ret) {
			memcpy(c->text, started, sizeof(c->text));
			started[0] = '\0';
			return ret;
		}
		ret = cudapool_client_connect(c, options->socket, hello);
	}
	return ret ? ret : check_welcome(c);
}
