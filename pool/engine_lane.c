// SPDX-License-Identifier: MIT
/* Lanes: pinned buffers, streams and events of one copying thread, kept for the next job. */
#include "engine_internal.h"

#include <errno.h>
#include <stdlib.h>

#define PINNED_KEPT (256ull << 20) /* bytes of buffers that stay when nobody uses them: the ring of one job */

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t given_back = PTHREAD_COND_INITIALIZER;
static struct lane *idle; /* guarded by the lock, as is: */
static uint64_t pinned;   /* bytes of all buffers */

static uint64_t pinned_by(const struct lane *lane)
{
	return (uint64_t)lane->chunk * LANE_BUFFERS;
}

/* Streams and events stay: they are small, and the driver needs time to make them. */
static void free_buffers(struct lane *lane)
{
	if (lane->chunk)
		engine_driver->cuMemFreeHost(lane->buffer[0]);
	lane->chunk = 0;
}

/* With the lock. An idle lane with buffers of this size, or else one without. */
static struct lane *take_idle(size_t chunk)
{
	struct lane **link, **found = NULL, *lane = NULL;

	for (link = &idle; *link && (!found || (*found)->chunk != chunk); link = &(*link)->next) {
		if ((*link)->chunk == chunk || (!found && !(*link)->chunk))
			found = link;
	}
	if (found) {
		lane = *found;
		*found = lane->next;
	}
	return lane;
}

/* With the lock: room for the buffers of one more lane, if need be at the cost of idle ones. */
static bool room_for(uint64_t bytes)
{
	struct lane *lane;

	for (lane = idle; lane && pinned + bytes > ENGINE_PINNED_MOST; lane = lane->next) {
		pinned -= pinned_by(lane);
		free_buffers(lane);
	}
	return pinned + bytes <= ENGINE_PINNED_MOST;
}

static int make_buffers(struct lane *lane, size_t chunk, char *text, CUresult *cu)
{
	void *buffers;
	int i;

	/* One allocation, good in every context. */
	*cu = engine_driver->cuMemHostAlloc(&buffers, chunk * LANE_BUFFERS, CU_MEMHOSTALLOC_PORTABLE);
	if (*cu != CUDA_SUCCESS)
		return driver_failed(*cu, "cuMemHostAlloc", text);
	lane->chunk = chunk;
	for (i = 0; i < LANE_BUFFERS; i++)
		lane->buffer[i] = (uint8_t *)buffers + i * chunk;
	return 0;
}

int lane_get(struct lane **out, size_t chunk, bool wait, char *text, CUresult *cu)
{
	uint64_t bytes = (uint64_t)chunk * LANE_BUFFERS;
	struct lane *lane;
	int err = 0;

	pthread_mutex_lock(&lock);
	while (!(lane = take_idle(chunk)) || lane->chunk != chunk) {
		if (room_for(bytes)) {
			pinned += bytes;
			break;
		}
		if (lane) {
			lane->next = idle;
			idle = lane;
		}
		if (!wait) {
			pthread_mutex_unlock(&lock);
			return -EAGAIN;
		}
		pthread_cond_wait(&given_back, &lock);
	}
	pthread_mutex_unlock(&lock);
	if (!lane)
		lane = calloc(1, sizeof(*lane));
	if (lane && lane->chunk != chunk)
		err = make_buffers(lane, chunk, text, cu);
	if (lane && !err) {
		*out = lane;
		return 0;
	}
	pthread_mutex_lock(&lock);
	pinned -= bytes;
	pthread_mutex_unlock(&lock);
	if (lane)
		lane_put(lane);
	return lane ? err : -ENOMEM;
}

void lane_put(struct lane *lane)
{
	pthread_mutex_lock(&lock);
	if (pinned > PINNED_KEPT) {
		pinned -= pinned_by(lane);
		free_buffers(lane);
	}
	lane->next = idle;
	idle = lane;
	pthread_cond_broadcast(&given_back);
	pthread_mutex_unlock(&lock);
}

int lane_enter(struct lane *lane, int device, char *text, CUresult *cu)
{
	const char *call = "cuEventCreate";
	int i;

	for (i = 0; i < LANE_BUFFERS; i++) {
		if (lane->event[device][i])
			continue;
		/* Not by spinning: CRIU wants the processors, too. */
		*cu = engine_driver->cuEventCreate(&lane->event[device][i],
						   CU_EVENT_DISABLE_TIMING | CU_EVENT_BLOCKING_SYNC);
		if (*cu != CUDA_SUCCESS)
			return driver_failed(*cu, call, text);
	}
	if (lane->stream[device])
		return 0;
	call = "cuStreamCreate";
	*cu = engine_driver->cuStreamCreate(&lane->stream[device], CU_STREAM_NON_BLOCKING);
	return *cu == CUDA_SUCCESS ? 0 : driver_failed(*cu, call, text);
}
