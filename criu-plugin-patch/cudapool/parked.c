// SPDX-License-Identifier: GPL-2.0-only
/* Parked GPU memory: what the inventory and the processes say of it, and how it is mapped back. */
#include "criu-log.h"
#include "image.h"

#include "cudapool/parked.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cudapool/pool.h"
#include "wire/clock.h"

#undef LOG_PREFIX
#define LOG_PREFIX "cuda_plugin: "

#define INVENTORY_NAME "cudapool" /* also that of the images' files: cudapool-*.img */
#define NO_PLUGIN      "cudapool?" /* a name that no inventory has */

static bool take_name(const char *name)
{
	return check_and_remove_inventory_plugin(name, strlen(name));
}

int cudapool_parked_init(const char *plugin)
{
	/* An inventory from before CRIU kept names is said to have them all; it is none of ours. */
	if (take_name(NO_PLUGIN) || !take_name(INVENTORY_NAME))
		return 0;
	cudapool_pool_need();
	take_name(plugin);
	return add_inventory_plugin(plugin);
}

int cudapool_parked_lock(int pid, const struct cudapool_result *result, long long ms)
{
	static bool named;
	unsigned long long parked = result->parked_bytes >> 20, left = result->left_bytes >> 20;

	if (result->path != CUDAPOOL_PATH_PARKED) {
		pr_info("pid %d: GPU memory is not parked, the driver carries it: %s; locked in %lld ms\n", pid,
			result->text[0] ? result->text : "the pool gives no reason", ms);
		return 0;
	}
	pr_info("pid %d: %llu MiB of GPU memory parked, %llu MiB left to the driver; parked and locked in %lld ms\n",
		pid, parked, left, ms);
	cudapool_pool_need();
	if (!named && add_inventory_plugin(INVENTORY_NAME)) {
		pr_err("Failed to add %s to the inventory image\n", INVENTORY_NAME);
		return -1;
	}
	named = true;
	return 0;
}

const char *cudapool_path_name(unsigned int path)
{
	static const char *const names[] = {"stock", "parked", "hot-move", "hot-copy", "loaded", "returned"};

	return path < sizeof(names) / sizeof(names[0]) ? names[path] : "?";
}

/* Who traces a thread of `pid`; 0: nobody, -1: there is no such thread. */
static int tracer(int pid, int tid)
{
	size_t size = 0;
	char *line = NULL;
	char path[64];
	FILE *status;
	int who = -1;

	snprintf(path, sizeof(path), "/proc/%d/task/%d/status", pid, tid);
	status = fopen(path, "re");
	while (status && getline(&line, &size, status) > 0 && sscanf(line, "TracerPid: %d", &who) != 1)
		;
	free(line);
	if (status)
		fclose(status);
	return who;
}

int cudapool_shim_resume(const struct cudapool_threads *threads, int pid, int tid, struct cudapool_shim_thread *thread)
{
	int who = tracer(pid, tid);

	thread->tid = tid;
	thread->resumed = who == getpid();
	if (who < 0) {
		pr_err("The pool names thread %d of pid %d for mapping GPU memory back, which there is not\n", tid,
		       pid);
		return -1;
	}
	return thread->resumed ? threads->resume(tid, &thread->saved) : 0;
}

int cudapool_shim_interrupt(const struct cudapool_threads *threads, struct cudapool_shim_thread *thread)
{
	bool resumed = thread->resumed;

	thread->resumed = false;
	return resumed ? threads->interrupt(thread->tid, &thread->saved) : 0;
}

int cudapool_unpark(const struct cudapool_threads *threads, int pid, int tid)
{
	struct cudapool_shim_thread thread;
	struct cudapool_result result = {};
	int64_t start = cudapool_now_ms();
	int ret;

	if (cudapool_shim_resume(threads, pid, tid, &thread))
		return -1;
	ret = cudapool_pool_action(CUDAPOOL_OP_UNPARK, pid, 0, &result);
	if (ret && cudapool_pool_reopen() == 0)
		ret = cudapool_pool_action(CUDAPOOL_OP_UNPARK, pid, 0, &result);
	if (cudapool_shim_interrupt(threads, &thread))
		return -1;
	if (ret || (result.error && result.error != -EALREADY)) {
		pr_err("GPU memory of pid %d was not mapped back: %s\n", pid, ret ? cudapool_pool_loss() : result.text);
		return -1;
	}
	pr_info("pid %d: %s, %llu MiB of GPU memory mapped back in %lld ms\n", pid, cudapool_path_name(result.path),
		(unsigned long long)result.parked_bytes >> 20, (long long)(cudapool_now_ms() - start));
	return 0;
}
