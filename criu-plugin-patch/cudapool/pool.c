// SPDX-License-Identifier: GPL-2.0-only
/* The plugin's side of the pool: its options, its connection, and actions with CRIU's deadlines. */
#include "criu-log.h"
#include "criu-plugin.h"
#include "plugin.h"

#include "cudapool/pool.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "wire/clock.h"
#include "wire/options.h"
#include "wire/reach.h"

#undef LOG_PREFIX
#define LOG_PREFIX "cuda_plugin: "

#define DUMP_WAIT_MS     10000 /* for the driver to be warm before a dump begins */
#define RESTORE_WAIT_MS  30000 /* the same before the processes' own restore */
#define IMAGES_LIMIT_MS  60000 /* to remove the images of an earlier dump, or to check those of a restore */
#define RELEASE_LIMIT_MS 5000
#define ANSWER_MARGIN_MS 10000 /* for the answer, beyond the pool's own limit for an action */
#define PAUSE_MARGIN_MS  100   /* the driver's time limit for a lock passes so much before CRIU's alarm */
#define PAUSE_ANSWER_MS  1000  /* for the answer, beyond what is left of the pause; CRIU aborts 5 s after its alarm */
#define DYING_MS         1000  /* that a pool which is killed may take to be gone */
#define QUERY_LIMIT_MS   5000  /* for what a warm driver answers in microseconds, while CRIU's alarm is running */

/* Static: it is large, and CRIU's stack is CRIU's. */
static struct cudapool_options options;
static struct cudapool_client client = {.fd = -1};
static struct cudapool_settings settings;
static char mistake[CUDAPOOL_TEXT_LEN]; /* in the options; empty: none */
static int hot;			       /* enum cudapool_hot */
static int stage_now;
static bool needed;	       /* see cudapool_pool_need() */
static char loss[CUDAPOOL_TEXT_LEN]; /* why the last connection broke */
static int64_t pause_deadline; /* 0: no pause, or one without a limit */

const struct cudapool_settings *cudapool_settings(void)
{
	static bool known;
	int ret;

	if (known)
		return &settings;
	known = true;

	ret = cudapool_options_read(&options, CUDAPOOL_READER_PLUGIN, true, mistake);
	if (!ret) {
		hot = cudapool_options_hot(&options, mistake);
		ret = hot < 0 ? hot : 0;
	}
	if (ret) {
		pr_err("%s\n", mistake);
		pr_err("GPU context pool and parallel restore are off, because their options cannot be read\n");
		return &settings;
	}
	mistake[0] = '\0';

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

void cudapool_pool_need(void)
{
	cudapool_settings();
	needed = true;
	settings.pool = true;
	settings.loud = true;
}

bool cudapool_pool_needed(void)
{
	return needed;
}

static int connect_to(struct cudapool_client *c, unsigned int wait_ms)
{
	struct cudapool_hello hello = {
		.role = CUDAPOOL_ROLE_PLUGIN,
		.stage = stage_now == CR_PLUGIN_STAGE__DUMP ? CUDAPOOL_STAGE_DUMP : CUDAPOOL_STAGE_RESTORE,
		.wait_ms = wait_ms,
		.parallel = cudapool_settings()->pool_window > 1,
	};
	char started[CUDAPOOL_TEXT_LEN];
	int ret = cudapool_reach(c, &options, &hello, started);

	if (started[0])
		pr_info("GPU context pool: %s\n", started);
	return ret;
}

static int not_warm(struct cudapool_client *c, unsigned int waited_ms)
{
	snprintf(c->text, sizeof(c->text), "its driver was not ready after %u ms", waited_ms);
	cudapool_client_close(c);
	return -ETIMEDOUT;
}

/* The directory is not ours to keep: the pool gets a descriptor of its own. */
static int tell_directory(struct cudapool_client *c)
{
	bool dump = stage_now == CR_PLUGIN_STAGE__DUMP;
	struct cudapool_images images = {
		.purpose = dump ? CUDAPOOL_IMAGES_DUMP : CUDAPOOL_IMAGES_RESTORE,
		.sync = dump && options.sync,
		.hot = hot,
	};
	struct cudapool_found found;
	int ret;

	if (!dump && !needed)
		return 0;
	ret = cudapool_client_images(c, &images, criu_get_image_dir(), IMAGES_LIMIT_MS, &found);
	if (ret == -EREMOTEIO && dump) {
		pr_warn("GPU memory will not be parked: %s\n", c->text);
		return 0;
	}
	if (!ret && !dump && !found.count) {
		snprintf(c->text, sizeof(c->text),
			 "the checkpoint has parked GPU memory, but there is no cudapool-*.img among its images: copy "
			 "them as well");
		ret = -ENOENT;
	}
	if (ret)
		cudapool_client_close(c);
	else if (!dump)
		pr_info("%u image(s) of parked GPU memory, %llu MiB, %llu MiB of it still on the GPU\n", found.count,
			(unsigned long long)found.bytes >> 20, (unsigned long long)found.hot_bytes >> 20);
	return ret;
}

int cudapool_pool_open(int stage)
{
	unsigned int wait_ms = options.wait_ms;
	bool dump = stage == CR_PLUGIN_STAGE__DUMP;
	int ret;

	stage_now = stage;
	if (mistake[0]) {
		memcpy(client.text, mistake, sizeof(client.text));
		return -EINVAL;
	}
	if (dump && wait_ms < DUMP_WAIT_MS)
		wait_ms = DUMP_WAIT_MS;

	ret = connect_to(&client, wait_ms);
	if (!ret && dump && client.welcome.worker_state != CUDAPOOL_WORKER_WARM)
		ret = not_warm(&client, wait_ms);
	return ret ? ret : tell_directory(&client);
}

/* A connection that takes the place of ours as soon as it can: the pool goes on with what was begun for the old one. */
static int connect_anew(bool warm)
{
	unsigned int wait_ms = cudapool_pool_time_left(RESTORE_WAIT_MS);
	struct cudapool_client fresh;
	int ret;

	ret = connect_to(&fresh, wait_ms);
	if (!ret && warm && fresh.welcome.worker_state != CUDAPOOL_WORKER_WARM)
		ret = not_warm(&fresh, wait_ms);
	if (!ret && stage_now != CR_PLUGIN_STAGE__DUMP)
		ret = tell_directory(&fresh);
	cudapool_client_close(&client);
	client = fresh;
	return ret;
}

int cudapool_pool_reopen(void)
{
	const struct timespec pause = {.tv_nsec = 10000000};
	int64_t deadline = cudapool_now_ms() + DYING_MS;
	int ret;

	/* A pool that is just ending still accepts, and does not answer. */
	while ((ret = connect_anew(false)) == -ECONNRESET || ret == -EPIPE) {
		if (cudapool_now_ms() > deadline)
			break;
		nanosleep(&pause, NULL);
	}
	if (ret)
		pr_err("No GPU context pool is to be had again: %s\n", client.text);
	else
		pr_info("GPU context pool: %s, going on with it\n", client.text);
	return ret;
}

/* Said once, as nothing uses a closed connection again. Where the pool is not needed, upstream's way is left. */
static int lost(int error)
{
	if (cudapool_pool_usable()) {
		memcpy(loss, client.text, sizeof(loss));
		pr_warn("GPU context pool lost (%s)%s\n", loss, needed ? "" : "; going on with cuda-checkpoint");
	}
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
	ret = connect_anew(true);
	if (ret)
		pr_warn("GPU context pool does not get warm (%s)%s\n", client.text,
			needed ? "" : "; going on with cuda-checkpoint");
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

const char *cudapool_pool_loss(void)
{
	return loss;
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
	/* Nobody else can do better: parking has failed and was undone, or what is parked cannot be had. */
	if (needed || result->path == CUDAPOOL_PATH_PARKED)
		return 0;
	snprintf(client.text, sizeof(client.text), "%s", result->text[0] ? result->text : strerror(-result->error));
	return lost(result->error);
}

/* A pool that takes its time lives: it greets another client. */
static bool still_there(void)
{
	struct cudapool_hello hello = {.role = CUDAPOOL_ROLE_TOOL};
	struct cudapool_client other;
	int ret = cudapool_client_connect(&other, options.socket, &hello);

	cudapool_client_close(&other);
	return ret == 0;
}

/* The next result, whichever it is. */
static int next_result(struct cudapool_result *result, int limit_ms)
{
	int ret;

	do {
		ret = cudapool_client_next(&client, result, limit_ms);
	} while (ret == -ETIMEDOUT && needed && !pause_deadline && still_there());
	return ret;
}

int cudapool_pool_action(enum cudapool_op op, int pid, unsigned int timeout_ms, struct cudapool_result *result)
{
	uint32_t request;
	int ret = cudapool_client_begin(&client, op, pid, timeout_ms, &request);

	/* Those of earlier actions that nobody waits for any more are passed over. */
	do {
		if (!ret)
			ret = next_result(result, result_limit(op));
	} while (!ret && result->h.request != request);
	if (!ret && !result->error && (result->op != op || result->pid != pid)) {
		snprintf(client.text, sizeof(client.text), "it answered for another action or process than was asked");
		ret = -EPROTO;
	}
	return ret ? lost(ret) : verdict(result);
}

int cudapool_pool_begin(enum cudapool_op op, int pid, uint32_t *request)
{
	int ret = cudapool_client_begin(&client, op, pid, 0, request);

	return ret ? lost(ret) : 0;
}

int cudapool_pool_next(struct cudapool_result *result)
{
	int ret = next_result(result, result_limit(CUDAPOOL_OP_RESTORE));

	return ret ? lost(ret) : verdict(result);
}

int cudapool_pool_release(enum cudapool_release_how how)
{
	int ret = cudapool_client_release(&client, how, RELEASE_LIMIT_MS);

	return ret ? lost(ret) : 0;
}

void cudapool_sync_images(void)
{
	int64_t start = cudapool_now_ms();

	if (!cudapool_settings()->pool || !options.sync)
		return;
	if (syncfs(criu_get_image_dir()))
		pr_perror("The checkpoint may not survive a power cut: the file system of its images cannot be synced");
	else
		pr_info("file system of the images synced in %lld ms\n", (long long)(cudapool_now_ms() - start));
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
