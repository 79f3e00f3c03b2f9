// SPDX-License-Identifier: MIT
/* The worker: initialises the driver once, keeps it warm, and carries out checkpoint actions. */
#include "worker.h"

#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "driver.h"
#include "engine.h"
#include "log.h"
#include "rights.h"
#include "shim_page.h"
#include "worker_job.h"

#define SHIM_LIMIT_MS    200 /* for a shim's answer to a ping */
#define QUEUE_MAX        256
#define CROWDED_MS       1 /* before another attempt where too many descriptors are under way */
#define CROWDED_ATTEMPTS 10000

/*
 * Threads: main() answers the keeper and never calls the driver, so that a heartbeat tells "busy" from "hung";
 * one thread warms; each job has its own (worker_job.c); the rest act. There is one more of those than the keeper has
 * actions under way at once, so that questions for memory, which restores wait for, never wait for an action.
 */
static struct worker_config config;
static struct driver driver;
static struct timespec started;

static pthread_mutex_t queue_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t queue_filled = PTHREAD_COND_INITIALIZER;
static struct worker_message queue[QUEUE_MAX];
static unsigned queue_length;
static bool driver_ready; /* guarded like the queue: whoever sees it sees what initialise() did */

static uint64_t us_since(const struct timespec *then)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)(now.tv_sec - then->tv_sec) * 1000000 + now.tv_nsec / 1000 - then->tv_nsec / 1000;
}

/* Waits for room; descriptors that are under way in too large a number are the keeper's to receive. */
static int send_message(const struct worker_message *message, const int *fds, unsigned count)
{
	unsigned attempts = 0;
	int err;

	for (;;) {
		err = rights_send(config.fd, message, sizeof(*message), fds, count, 0);
		if (!err || (err == -ETOOMANYREFS && ++attempts > CROWDED_ATTEMPTS))
			return err;
		if (err == -ETOOMANYREFS)
			usleep(CROWDED_MS * 1000);
		else if (err != -EINTR)
			_exit(1); /* there is no keeper any more */
	}
}

static void tell(const struct worker_message *message)
{
	send_message(message, NULL, 0);
}

static int failed(struct worker_message *stage)
{
	stage->stage = WORKER_FAILED;
	stage->warm_us = us_since(&started);
	tell(stage);
	return -1;
}

static int initialise(struct worker_message *stage)
{
	int version = 0, devices = 0;
	CUresult cu;

	if (driver_load(&driver, config.libcuda, stage->text, sizeof(stage->text)))
		return failed(stage);
	cu = driver.cuInit(0);
	if (cu == CUDA_SUCCESS)
		cu = driver.cuDeviceGetCount(&devices);
	if (cu == CUDA_ERROR_NO_DEVICE || (cu == CUDA_SUCCESS && devices == 0)) {
		snprintf(stage->text, sizeof(stage->text),
			 "the CUDA driver finds no GPU: see nvidia-smi, and that the device files are accessible");
		return failed(stage);
	}
	if (cu != CUDA_SUCCESS) {
		snprintf(stage->text, sizeof(stage->text),
			 "cuInit failed: %s (%d): see nvidia-smi; restarting nvidia-persistenced may help",
			 driver_error_name(&driver, cu), cu);
		return failed(stage);
	}
	driver.cuDriverGetVersion(&version);
	stage->driver_version = version;
	stage->devices = devices;
	if (engine_init(&driver, stage->text))
		return failed(stage);
	worker_jobs_ready();
	pthread_mutex_lock(&queue_lock);
	driver_ready = true;
	pthread_cond_broadcast(&queue_filled);
	pthread_mutex_unlock(&queue_lock);
	stage->stage = WORKER_READY;
	stage->warm_us = us_since(&started);
	tell(stage);
	return 0;
}

/* Retains the primary contexts of the first devices; they last as long as the worker. */
static void warm_contexts(struct worker_message *stage)
{
	int i, wanted = config.contexts < (int)stage->devices ? config.contexts : (int)stage->devices;
	CUcontext context;
	CUdevice device;
	CUresult cu;

	for (i = 0; i < wanted; i++) {
		cu = driver.cuDeviceGet(&device, i);
		if (cu == CUDA_SUCCESS)
			cu = driver.cuDevicePrimaryCtxRetain(&context, device);
		if (cu != CUDA_SUCCESS) {
			snprintf(stage->text, sizeof(stage->text),
				 "no warm context on device %d: %s (%d); restores work, somewhat slower", i,
				 driver_error_name(&driver, cu), cu);
			continue;
		}
		if (stage->contexts++ == 0) {
			stage->warm_device = i;
			stage->warm_context = (uint64_t)(uintptr_t)context;
		}
	}
	stage->stage = WORKER_WARM;
	stage->warm_us = us_since(&started);
	tell(stage);
}

static void *warm_thread(void *unused)
{
	struct worker_message stage = {.kind = WORKER_STAGE, .warm_device = -1};

	if (initialise(&stage))
		return NULL;
	warm_contexts(&stage);
	if (stage.contexts)
		engine_warm(WORKER_STREAMS, WORKER_CHUNK_MB);
	return NULL;
}

/* What the process's shim says of itself, in one line. */
static int describe_shim(int pid, char *text, int32_t *warmth)
{
	static const char *const words[] = {"nothing warm", "driver warm", "context warm", "warm context in use",
					    "warming failed"};
	struct cudapool_page page;
	struct cudapool_shim shim;
	int32_t unused;
	uint64_t us;
	int err, ping;

	err = cudapool_shim_open(&shim, pid);
	if (err) {
		snprintf(text, CUDAPOOL_TEXT_LEN, "%.*s", CUDAPOOL_TEXT_LEN - 1, shim.text);
		return err;
	}
	ping = cudapool_shim_command(&shim, CUDAPOOL_PAGE_PING, SHIM_LIMIT_MS, &unused, &us);
	err = cudapool_shim_read(&shim, &page);
	if (!err) {
		*warmth = (int32_t)page.warmth;
		snprintf(text, CUDAPOOL_TEXT_LEN, "shim %s: %s, thread %s, %llu handed back, %llu created, %u restores",
			 page.build, page.warmth < sizeof(words) / sizeof(words[0]) ? words[page.warmth] : "?",
			 ping ? "does not answer" : "answers", (unsigned long long)page.handed_back,
			 (unsigned long long)page.created, page.restores);
	} else {
		snprintf(text, CUDAPOOL_TEXT_LEN, "%.*s", CUDAPOOL_TEXT_LEN - 1, shim.text);
	}
	cudapool_shim_close(&shim);
	return err;
}

static void act(const struct worker_message *action)
{
	struct worker_message result = {.kind = WORKER_RESULT, .id = action->id, .op = action->op, .pid = action->pid};
	CUcheckpointLockArgs lock = {.timeoutMs = action->timeout_ms};
	CUprocessState state = CU_PROCESS_STATE_RUNNING;
	const char *call = "";
	CUresult cu = CUDA_SUCCESS;
	struct timespec begun;

	clock_gettime(CLOCK_MONOTONIC, &begun);
#define CALL(function, ...) (call = #function, cu = driver.function(__VA_ARGS__))
	switch ((enum cudapool_op)action->op) {
	case CUDAPOOL_OP_STATE:
		CALL(cuCheckpointProcessGetState, action->pid, &state);
		result.value = (int32_t)state;
		break;
	case CUDAPOOL_OP_RESTORE_TID:
		CALL(cuCheckpointProcessGetRestoreThreadId, action->pid, &result.value);
		break;
	case CUDAPOOL_OP_LOCK:
		CALL(cuCheckpointProcessLock, action->pid, &lock);
		break;
	case CUDAPOOL_OP_CHECKPOINT:
		CALL(cuCheckpointProcessCheckpoint, action->pid, NULL);
		break;
	case CUDAPOOL_OP_RESTORE:
		CALL(cuCheckpointProcessRestore, action->pid, NULL);
		break;
	case CUDAPOOL_OP_UNLOCK:
		CALL(cuCheckpointProcessUnlock, action->pid, NULL);
		break;
	case CUDAPOOL_OP_SHIM:
		result.error = describe_shim(action->pid, result.text, &result.value);
		break;
	case CUDAPOOL_OP_UNPARK: /* the keeper's own business */
	case CUDAPOOL_OP_SAVED:
		result.error = -EPROTO;
		break;
	}
#undef CALL
	result.elapsed_us = (uint32_t)us_since(&begun);
	result.cu_result = (int32_t)cu;
	if (cu != CUDA_SUCCESS) {
		result.error = -EREMOTEIO;
		result.value = 0;
		snprintf(result.text, sizeof(result.text), "%s: %s (%d)", call, driver_error_name(&driver, cu), cu);
	}
	tell(&result);
}

static void answer_memory(const struct worker_message *question)
{
	struct worker_message answer = *question;

	answer.error = engine_memory(question->uuid, &answer.bytes, &answer.stored, answer.text);
	tell(&answer);
}

static void *acting_thread(void *unused)
{
	struct worker_message action;

	for (;;) {
		pthread_mutex_lock(&queue_lock);
		while (!queue_length || !driver_ready)
			pthread_cond_wait(&queue_filled, &queue_lock);
		action = queue[0];
		queue_length--;
		memmove(queue, queue + 1, queue_length * sizeof(queue[0]));
		pthread_mutex_unlock(&queue_lock);
		if (action.kind == WORKER_MEMORY)
			answer_memory(&action);
		else
			act(&action);
	}
	return NULL;
}

static int start_threads(void)
{
	pthread_attr_t attr;
	pthread_t thread;
	int i, err;

	pthread_attr_init(&attr);
	pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
	err = pthread_create(&thread, &attr, warm_thread, NULL);
	for (i = 0; !err && i <= config.threads; i++)
		err = pthread_create(&thread, &attr, acting_thread, NULL);
	pthread_attr_destroy(&attr);
	return -err;
}

static bool enqueue(const struct worker_message *action)
{
	bool fits;

	pthread_mutex_lock(&queue_lock);
	fits = queue_length < sizeof(queue) / sizeof(queue[0]);
	if (fits)
		queue[queue_length++] = *action;
	pthread_cond_signal(&queue_filled);
	pthread_mutex_unlock(&queue_lock);
	return fits;
}

/* One message and its descriptors. False: the keeper is gone. */
static bool receive(struct worker_message *message, struct rights *came)
{
	ssize_t n;

	do
		n = rights_receive(config.fd, message, sizeof(*message), came, 0);
	while (n == -EINTR);
	return n == sizeof(*message);
}

/* A piece is a descriptor while it is on its way, here as in the keeper. */
static void raise_limit(void)
{
	struct rlimit limit;

	if (!getrlimit(RLIMIT_NOFILE, &limit)) {
		limit.rlim_cur = limit.rlim_max;
		setrlimit(RLIMIT_NOFILE, &limit);
	}
}

int worker_main(const struct worker_config *given)
{
	struct worker_message message;
	int fds[WORKER_BATCH], err;
	struct rights came = {.fds = fds, .most = WORKER_BATCH};
	bool understood;

	config = *given;
	clock_gettime(CLOCK_MONOTONIC, &started);
	prctl(PR_SET_NAME, "cudapool-worker");
	raise_limit();
	worker_jobs_init(send_message);

	err = start_threads();
	if (err) {
		cudapool_log(CUDAPOOL_LOG_ERR, "worker: cannot start threads: %s", strerror(-err));
		return 1;
	}
	while (receive(&message, &came)) {
		understood = true;
		switch (message.kind) {
		case WORKER_PING:
			message.kind = WORKER_PONG;
			tell(&message);
			break;
		case WORKER_ACTION:
		case WORKER_MEMORY:
			understood = enqueue(&message);
			break;
		case WORKER_JOB:
		case WORKER_PIECES:
		case WORKER_CANCEL:
			worker_job_message(&message, &came);
			break;
		default:
			understood = false;
		}
		if (!understood) {
			cudapool_log(CUDAPOOL_LOG_ERR, "worker: the keeper sent what it should not (kind %u)",
				     message.kind);
			return 1;
		}
	}
	/*
	 * The keeper closed its end; contexts go with the process. Not exit(): a library's destructors must not run
	 * beside threads that are inside of the driver.
	 */
	_exit(0);
}
