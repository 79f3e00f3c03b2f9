// SPDX-License-Identifier: GPL-2.0-only
/* Restores the GPU state of all processes of the tree, and ends a restore that failed. */
#include "criu-log.h"
#include "pstree.h"
#include "xmalloc.h"

#include "cudapool/tree.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "cudapool/pool.h"
#include "wire/clock.h"

#undef LOG_PREFIX
#define LOG_PREFIX "cuda_plugin: "

#define REAP_LIMIT_MS 5000 /* for what was killed to end */
#define POOLS_MAX     3    /* that may be lost, one after the other, while they restore parked GPU memory */

struct task {
	int pid;
	int restore_tid;
	k_rtsigset_t saved; /* the restore thread's signal mask */
	bool begun;         /* something was asked of the pool */
	bool done;
	bool unsure;           /* a pool was lost in one of its steps: an error may only mean that it was done before */
	enum cudapool_op next; /* what is to be asked of the pool */
	enum cudapool_op op;   /* under way in the pool, as `request`; 0: nothing */
	uint32_t request;
	struct cudapool_shim_thread shim; /* from UNPARK on */
	int64_t since;			  /* ms: when the step that is under way began */
	long long restore_ms, unlock_ms;
	int child; /* the process that executes cuda-checkpoint; 0: none */
};

struct tree {
	const struct cudapool_tree_ops *ops;
	struct task *tasks;
	int count; /* of those that use CUDA */
};

/* Reaps a thread that was killed; a stop that it reported before is taken along. True: it is gone. */
static bool reap(int tid)
{
	int status, ret;

	do {
		ret = waitpid(tid, &status, __WALL | WNOHANG);
		if (ret == tid && (WIFEXITED(status) || WIFSIGNALED(status)))
			return true;
	} while (ret == tid || (ret < 0 && errno == EINTR));
	return ret < 0;
}

static int reap_task(const struct pstree_item *item)
{
	int left = !reap(item->pid->real), i;

	for (i = 0; i < item->nr_threads; i++)
		if (item->threads[i].real > 0 && item->threads[i].real != item->pid->real)
			left += !reap(item->threads[i].real);
	return left;
}

/*
 * CRIU would wait for the first process only, and for ever: that one ends after all others of its pid
 * namespace, and those, being traced, are gone only when we reap them. There is no order to do that in, as
 * any thread of the first process may be the one that waits for the rest: so all are asked for in turn.
 */
static void kill_tree(void)
{
	const struct timespec pause = {.tv_nsec = 1000000};
	int64_t deadline = cudapool_now_ms() + REAP_LIMIT_MS;
	struct pstree_item *item;
	int left;

	for_each_pstree_item(item)
		if (task_alive(item))
			kill(item->pid->real, SIGKILL);

	for (;;) {
		left = 0;
		for_each_pstree_item(item)
			if (task_alive(item))
				left += reap_task(item);
		if (!left)
			return;
		if (cudapool_now_ms() > deadline)
			break;
		nanosleep(&pause, NULL);
	}
	pr_err("%d threads were killed and do not end; CRIU may wait for them\n", left);
}

static int collect(struct tree *tree)
{
	struct pstree_item *item;
	int alive = 0;

	for_each_pstree_item(item)
		alive += task_alive(item);
	tree->tasks = xzalloc(alive * sizeof(*tree->tasks));
	if (!tree->tasks)
		return -1;

	for_each_pstree_item(item) {
		int tid;

		if (!task_alive(item))
			continue;
		tid = tree->ops->restore_tid(item->pid->real);
		if (tid == -1 && cudapool_parked_says(item->pid->real)) {
			pr_err("The GPU memory of pid %d is parked, but the CUDA driver does not know the process: is "
			       "it running, and is it the same version?\n",
			       item->pid->real);
			return -1;
		}
		if (tid == -1) {
			pr_info("No need to resume devices on pid %d\n", item->pid->real);
			continue;
		}
		tree->ops->prewarm(item->pid->real);
		tree->tasks[tree->count].pid = item->pid->real;
		tree->tasks[tree->count].restore_tid = tid;
		tree->tasks[tree->count].next = CUDAPOOL_OP_RESTORE;
		tree->count++;
	}

	/* The dump put the plugin's name into the inventory because it saw at least one. */
	if (tree->count == 0) {
		pr_err("No process of the tree answers to the CUDA driver, although the dump had one: is the driver "
		       "running, and is it the same version?\n");
		return -1;
	}
	return 0;
}

static struct task *find_task(struct tree *tree, uint32_t request)
{
	int i;

	for (i = 0; i < tree->count; i++)
		if (tree->tasks[i].op && tree->tasks[i].request == request)
			return &tree->tasks[i];
	return NULL;
}

static const char *step_name(enum cudapool_op op)
{
	static const char *const names[] = {
		[CUDAPOOL_OP_STATE] = "STATE", [CUDAPOOL_OP_RESTORE] = "RESTORE", [CUDAPOOL_OP_UNLOCK] = "UNLOCK",
		[CUDAPOOL_OP_SHIM] = "SHIM",   [CUDAPOOL_OP_UNPARK] = "UNPARK",
	};

	return names[op];
}

static int begin_next(struct task *task)
{
	task->op = task->next;
	task->begun = true;
	task->since = cudapool_now_ms();
	return cudapool_pool_begin(task->op, task->pid, &task->request) ? -EAGAIN : 0;
}

static int finish(struct tree *tree, struct task *task, const struct cudapool_result *result)
{
	unsigned long long parked = result->parked_bytes >> 20, left = result->left_bytes >> 20;

	if (task->op == CUDAPOOL_OP_UNPARK)
		pr_info("pid %d: %s, %llu MiB of GPU memory mapped back, %llu MiB by the driver; restore %lld ms, "
			"unlock %lld ms, unpark %lld ms\n",
			task->pid, cudapool_path_name(result->path), parked, left, task->restore_ms, task->unlock_ms,
			(long long)(cudapool_now_ms() - task->since));
	else if (task->op == CUDAPOOL_OP_STATE)
		pr_info("pid %d: the pool that was lost had restored it\n", task->pid);
	else
		pr_info("pid %d: stock, the driver restored its GPU memory; restore %lld ms, unlock %lld ms\n",
			task->pid, task->restore_ms, task->unlock_ms);
	task->op = 0;
	task->done = true;
	return cudapool_shim_interrupt(tree->ops->threads, &task->shim);
}

/* The thread that maps parked memory back has to run, while the rest may stay stopped. */
static int unpark(struct tree *tree, struct task *task, int tid)
{
	if (!task->shim.resumed && cudapool_shim_resume(tree->ops->threads, task->pid, tid, &task->shim))
		return -1;
	task->next = CUDAPOOL_OP_UNPARK;
	return begin_next(task);
}

/* After a pool was lost, what is left to do for a process is what its state and its control page say. */
static int go_on_from(struct tree *tree, struct task *task, const struct cudapool_result *result)
{
	switch (result->value) {
	case CUDAPOOL_PROCESS_CHECKPOINTED:
		task->next = CUDAPOOL_OP_RESTORE;
		return begin_next(task);
	case CUDAPOOL_PROCESS_LOCKED:
		task->next = CUDAPOOL_OP_UNLOCK;
		return begin_next(task);
	case CUDAPOOL_PROCESS_RUNNING:
		if (!cudapool_parked_says(task->pid))
			return finish(tree, task, result);
		task->next = CUDAPOOL_OP_SHIM; /* names the thread, as UNLOCK would have */
		return begin_next(task);
	}
	pr_err("The CUDA state of pid %d has failed\n", task->pid);
	return -1;
}

/* One step has ended well: on to the next, if there is one. 0; -EAGAIN: the pool was lost; -1. */
static int step_ended(struct tree *tree, struct task *task, const struct cudapool_result *result)
{
	long long ms = cudapool_now_ms() - task->since;

	pr_debug("%s of pid %d took the driver %u us\n", step_name(task->op), task->pid, result->elapsed_us);
	switch (task->op) {
	case CUDAPOOL_OP_STATE:
		return go_on_from(tree, task, result);
	case CUDAPOOL_OP_RESTORE:
		task->restore_ms = ms;
		task->next = CUDAPOOL_OP_UNLOCK;
		return begin_next(task);
	case CUDAPOOL_OP_UNLOCK:
		task->unlock_ms = ms;
		break;
	case CUDAPOOL_OP_SHIM:
		break;
	default:
		return finish(tree, task, result);
	}
	return result->value > 0 ? unpark(tree, task, result->value) : finish(tree, task, result);
}

/* The same for one that ended in an error. */
static int step_failed(struct task *task, const struct cudapool_result *result)
{
	/* What the lost pool had begun may have come to its end just now. */
	if (task->unsure && task->op != CUDAPOOL_OP_STATE) {
		task->unsure = false;
		task->next = CUDAPOOL_OP_STATE;
		return begin_next(task);
	}
	pr_err("RESUME_DEVICES %s of pid %d failed: %s\n", step_name(task->op), task->pid, result->text);
	return -1;
}

/* 0: all done. -EAGAIN: the pool was lost. -1: one has failed. */
static int restore_by_pool(struct tree *tree, int window)
{
	int next = 0, under_way = 0, ret;

	for (;;) {
		struct cudapool_result result;
		struct task *task;

		for (; under_way < window && next < tree->count; next++) {
			if (tree->tasks[next].done)
				continue;
			if (begin_next(&tree->tasks[next]))
				return -EAGAIN;
			under_way++;
		}
		if (!under_way)
			return 0;

		if (cudapool_pool_next(&result))
			return -EAGAIN;
		task = find_task(tree, result.h.request);
		if (!task)
			continue; /* an answer that nobody waits for */
		ret = result.error ? step_failed(task, &result) : step_ended(tree, task, &result);
		if (ret)
			return ret;
		under_way -= task->done;
	}
}

/* The same where GPU memory is parked: images are on disk, so any pool will do. 0 or -1. */
static int restore_parked_by_pool(struct tree *tree, int window)
{
	int ret = cudapool_pool_usable() ? restore_by_pool(tree, window) : -EAGAIN, lost, i;

	for (lost = 0; ret == -EAGAIN && lost < POOLS_MAX; lost++) {
		if (cudapool_pool_reopen())
			break;
		for (i = 0; i < tree->count; i++) {
			struct task *task = &tree->tasks[i];

			task->op = 0;
			task->unsure = task->begun;
			if (task->begun)
				task->next = CUDAPOOL_OP_STATE;
		}
		ret = restore_by_pool(tree, window);
	}
	return ret ? -1 : 0;
}

/* A child of our own, as upstream's way of executing cuda-checkpoint waits until that has ended. */
static int start_child(const struct cudapool_tree_ops *ops, struct task *task)
{
	int child = fork();

	if (child < 0) {
		pr_perror("Cannot fork to restore pid %d", task->pid);
		return -1;
	}
	if (child == 0) {
		setpgid(0, 0); /* so that it can be ended together with what it executes */
		_exit(ops->restore(task->pid, task->begun) ? 1 : 0);
	}
	setpgid(child, child);
	task->child = child;
	return 0;
}

static int wait_child(struct task *task)
{
	int status, ret;

	/* Never for 'any child': that would take what the traced threads report to CRIU. */
	do {
		ret = waitpid(task->child, &status, 0);
	} while (ret < 0 && errno == EINTR);
	task->child = 0;
	task->done = ret > 0 && WIFEXITED(status) && WEXITSTATUS(status) == 0;
	return task->done ? 0 : -1;
}

static void end_children(struct tree *tree)
{
	int i;

	for (i = 0; i < tree->count; i++) {
		if (!tree->tasks[i].child)
			continue;
		kill(-tree->tasks[i].child, SIGKILL);
		wait_child(&tree->tasks[i]);
	}
}

/* Those that are not done yet, `window` at once, waited for in their order. */
static int restore_by_children(struct tree *tree, int window)
{
	int next = 0, under_way = 0, i, ret = 0;

	for (i = 0; i < tree->count && !ret; i++) {
		for (; under_way < window && next < tree->count && !ret; next++) {
			if (tree->tasks[next].done)
				continue;
			ret = start_child(tree->ops, &tree->tasks[next]);
			under_way += !ret;
		}
		if (ret || !tree->tasks[i].child)
			continue;
		ret = wait_child(&tree->tasks[i]);
		under_way--;
		if (ret)
			pr_err("RESUME_DEVICES of pid %d failed\n", tree->tasks[i].pid);
	}
	if (ret)
		end_children(tree);
	return ret;
}

static int restore_all(struct tree *tree)
{
	const struct cudapool_settings *settings = cudapool_settings();
	int i, ret;

	/* The threads have to be running while the driver restores, and everything else of the processes stopped. */
	for (i = 0; i < tree->count; i++) {
		pr_info("resuming devices on pid %d, restore thread %d\n", tree->tasks[i].pid,
			tree->tasks[i].restore_tid);
		if (tree->ops->threads->resume(tree->tasks[i].restore_tid, &tree->tasks[i].saved))
			return -1;
	}

	if (cudapool_pool_needed()) {
		ret = restore_parked_by_pool(tree, settings->pool_window);
	} else {
		ret = cudapool_pool_usable() ? restore_by_pool(tree, settings->pool_window) : -EAGAIN;
		if (ret == -EAGAIN)
			ret = restore_by_children(tree, settings->tool_window);
	}
	if (ret)
		return -1;

	for (i = 0; i < tree->count; i++)
		if (tree->ops->threads->interrupt(tree->tasks[i].restore_tid, &tree->tasks[i].saved))
			return -1;
	return 0;
}

int cudapool_restore_tree(const struct cudapool_tree_ops *ops)
{
	static bool known;
	static int outcome;
	struct tree tree = {.ops = ops};
	int64_t start = cudapool_now_ms();

	if (known)
		return outcome;
	known = true;

	outcome = collect(&tree);
	if (!outcome)
		outcome = restore_all(&tree);
	if (outcome) {
		pr_err("The GPU restore failed: killing the tree, so that CRIU fails too. The images stay as they are "
		       "and can be restored again\n");
		kill_tree();
	} else {
		pr_info("GPU state of %d process(es) restored in %lld ms\n", tree.count,
			(long long)(cudapool_now_ms() - start));
	}
	xfree(tree.tasks);
	return outcome;
}
