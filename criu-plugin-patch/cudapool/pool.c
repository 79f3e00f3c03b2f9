// SPDX-License-Identifier: GPL-2.0-only
/* The plugin's side of the pool: its options, its connection, and actions with CRIU's deadlines. */
#include "criu-log.h"
#include "plugin.h"

#include "cudapool/pool.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "wire/options.h"
#include "wire/spawn.h"
#include "wire/clock.h"

#undef LOG_PREFIX
#define LOG_PREFIX "cuda_plugin: "

#define SPAWN_LIMIT_MS   5000  /* for a pool to accept after it was started; its driver may take longer */
#define DUMP_WAIT_MS     10000 /* for the driver to be warm before a dump begins */
#define RESTORE_WAIT_MS  30000 /* the same before the processes' own restore */
#define RELEASE_LIMIT_MS 5000
#define ANSWER_MARGIN_MS 10000 /* for the answer, beyond the pool's own limit for an action */
#define PAUSE_MARGIN_MS  100   /* the driver's time limit for a lock passes so much before CRIU's alarm */
#define PAUSE_ANSWER_MS  1000  /* for the answer, beyond what is left of the pause; CRIU aborts 5 s after its alarm */
#define QUERY_LIMIT_MS   5000  /* for what a warm driver answers in microseconds, while CRIU's alarm is running */

/* Static: it is large, and CRIU's stack is CRIU's. */
static struct cudapool_options options;
static struct cudapool_client client = {.fd = -1};
static int stage_now;
static int64_t pause_deadline; /* 0: no pause, or one without a limit */

const struct cudapool_settings *cudapool_settings(void)
{
	static struct cudapool_settings settings;
	static bool known;
	char text[CUDAPOOL_TEXT_LEN];

	if (known)
		return &settings;
	known = true;

	if (cudapool_options_read(&options, CUDAPOOL_READER_PLUGIN, true, text)) {
		pr_err("%s\n", text);
		pr_err("GPU context pool and parallel restore are off, because their options cannot be read\n");
		return &settings;
	}

	settings.pool = options.context_pool;
	settings.loud = settings.pool || options.parallel_restore == 1;
	settings.drop_zero_pages = settings.pool && options.drop_zero_pages;
	/* As many as the pool carries out at once: more would only wait, with its time limit running. */
	settings.pool_window = options.parallel_restore == 0 ? 1 : options.threads;
	settings.tool_window = options.parallel_restore == 1 ? options.threads : 1;
	if (!settings.pool && (options.streams || options.chunk_mb))
		pr_info("CRIU_CUDA_STREAMS and CRIU_CUDA_CHUNK_MB are for the context pool, which is off\n");
	return &settings;
}

static int connect_once(unsigned int wait_ms)
{
	struct cudapool_hello hello = {
		.role = CUDAPOOL_ROLE_PLUGIN,
		.stage = stage_now == CR_PLUGIN_STAGE__DUMP ? CUDAPOOL_STAGE_DUMP : CUDAPOOL_STAGE_RESTORE,
		.wait_ms = wait_ms,
		.parallel = cudapool_settings()->pool_window > 1,
		.streams = options.streams,
		.chunk_mb = options.chunk_mb,
	};

	return cudapool_client_connect(&client, options.socket, &hello);
}

/* A pool without a driver, or without a GPU, carries nothing out. */
static int check_welcome(void)
{
	const struct cudapool_welcome *w = &client.welcome;

	if (w->worker_state == CUDAPOOL_WORKER_FAILED) {
		snprintf(client.text, sizeof(client.text), "%s", w->text[0] ? w->text : "it has no usable driver");
		return -ENODEV;
	}
	if (w->worker_state == CUDAPOOL_WORKER_WARM && w->device_count == 0) {
		snprintf(client.text, sizeof(client.text), "its driver finds no GPU");
		return -ENODEV;
	}
	return 0;
}

int cudapool_pool_open(int stage)
{
	unsigned int wait_ms = options.wait_ms;
	int idle_s = options.source[CUDAPOOL_OPTION_idle_s] ? options.idle_s : CUDAPOOL_SPAWN_IDLE_S;
	char text[CUDAPOOL_TEXT_LEN];
	int ret;

	stage_now = stage;
	if (stage == CR_PLUGIN_STAGE__DUMP && wait_ms < DUMP_WAIT_MS)
		wait_ms = DUMP_WAIT_MS;

	ret = connect_once(wait_ms);
	if ((ret == -ENOENT || ret == -ECONNREFUSED) && options.start) {
		ret = cudapool_spawn(options.daemon, options.socket, idle_s, SPAWN_LIMIT_MS, text);
		if (ret) {
			snprintf(client.text, sizeof(client.text), "%s", text);
			return ret;
		}
		pr_info("GPU context pool: %s\n", text);
		ret = connect_once(wait_ms);
	}
	if (!ret)
		ret = check_welcome();
	if (!ret && stage == CR_PLUGIN_STAGE__DUMP && client.welcome.worker_state != CUDAPOOL_WORKER_WARM) {
		snprintf(client.text, sizeof(client.text), "its driver was not ready after %u ms", wait_ms);
		ret = -ETIMEDOUT;
	}
	if (ret)
		cudapool_client_close(&client);
	return ret;
}

/* From here on upstream's way; said once, as nothing uses a closed connection again. */
static int lost(int error)
{
	if (cudapool_pool_usable())
		pr_warn("GPU context pool lost (%s); going on with cuda-checkpoint\n", client.text);
	cudapool_client_close(&client);
	return error;
}

int cudapool_pool_warm(void)
{
	int ret;

	if (!cudapool_pool_usable())
		return -ENOTCONN;
	if (client.welcome.worker_state == CUDAPOOL_WORKER_WARM)
		return 0;

	/* Warmth is told in WELCOME. This connection holds nothing yet, so another one can take its place. */
	cudapool_client_close(&client);
	ret = connect_once(RESTORE_WAIT_MS);
	if (!ret)
		ret = check_welcome();
	if (!ret && client.welcome.worker_state != CUDAPOOL_WORKER_WARM) {
		snprintf(client.text, sizeof(client.text), "its driver was not ready after %d ms", RESTORE_WAIT_MS);
		ret = -ETIMEDOUT;
	}
	if (ret) {
		pr_warn("GPU context pool does not get warm (%s); going on with cuda-checkpoint\n", client.text);
		cudapool_client_close(&client);
	}
	return ret;
}

const struct cudapool_welcome *cudapool_pool_welcome(void)
{
	return &client.welcome;
}

bool cudapool_pool_usable(void)
{
	return client.fd >= 0;
}

const char *cudapool_pool_text(void)
{
	return client.text;
}

void cudapool_pool_pausing(unsigned int timeout_s)
{
	if (!pause_deadline && timeout_s && cudapool_settings()->pool)
		pause_deadline = cudapool_now_ms() + timeout_s * 1000LL;
}

void cudapool_pool_paused(void)
{
	pause_deadline = 0;
}

unsigned int cudapool_pool_time_left(unsigned int timeout_ms)
{
	int64_t left = pause_deadline - cudapool_now_ms() - PAUSE_MARGIN_MS;

	if (!pause_deadline)
		return timeout_ms;
	return left > 0 ? left : 1;
}

/* How long to wait for a result, in ms, at most. */
static int result_limit(enum cudapool_op op)
{
	int64_t left = pause_deadline - cudapool_now_ms();

	if (!pause_deadline)
		return options.action_limit_s * 1000 + ANSWER_MARGIN_MS;
	if (left < 0)
		left = 0;
	if (op != CUDAPOOL_OP_LOCK && left > QUERY_LIMIT_MS)
		left = QUERY_LIMIT_MS;
	return left + PAUSE_ANSWER_MS;
}

/*
 * Did the pool carry the action out, or learn that it cannot be? Then its word stands. Otherwise
 * the trouble is its own: a worker that died, a driver that is gone, a request that it does not take.
 */
static int verdict(const struct cudapool_result *result)
{
	bool query = result->op == CUDAPOOL_OP_STATE || result->op == CUDAPOOL_OP_RESTORE_TID;

	if (result->error == 0 || result->error == -EREMOTEIO || result->error == -ESRCH)
		return 0;
	/* The driver hangs in an action, and would do so for anyone. That says nothing on whether a process uses it. */
	if (result->error == -ETIMEDOUT && !query)
		return 0;
	snprintf(client.text, sizeof(client.text), "%s", result->text[0] ? result->text : strerror(-result->error));
	return lost(result->error);
}

int cudapool_pool_action(enum cudapool_op op, int pid, unsigned int timeout_ms, struct cudapool_result *result)
{
	int ret = cudapool_client_action(&client, op, pid, timeout_ms, result_limit(op), result);

	if (ret && ret != -EREMOTEIO)
		return lost(ret);
	return verdict(result);
}

int cudapool_pool_begin(enum cudapool_op op, int pid, uint32_t *request)
{
	int ret = cudapool_client_begin(&client, op, pid, 0, request);

	return ret ? lost(ret) : 0;
}

int cudapool_pool_next(struct cudapool_result *result)
{
	int ret = cudapool_client_next(&client, result, result_limit(CUDAPOOL_OP_RESTORE));

	return ret ? lost(ret) : verdict(result);
}

int cudapool_pool_release(enum cudapool_release_how how)
{
	int ret = cudapool_client_release(&client, how, RELEASE_LIMIT_MS);

	return ret ? lost(ret) : 0;
}

void cudapool_pool_close(void)
{
	cudapool_client_close(&client);
}

enum cudapool_op cudapool_op_of(const char *action)
{
	if (strcmp(action, "lock") == 0)
		return CUDAPOOL_OP_LOCK;
	if (strcmp(action, "checkpoint") == 0)
		return CUDAPOOL_OP_CHECKPOINT;
	if (strcmp(action, "restore") == 0)
		return CUDAPOOL_OP_RESTORE;
	if (strcmp(action, "unlock") == 0)
		return CUDAPOOL_OP_UNLOCK;
	return 0;
}
