// SPDX-License-Identifier: GPL-2.0-only
static int cuda_process_checkpoint_action(int pid, const char *action, unsigned int timeout, char *msg_buf,
					  int buf_size);

static cuda_task_state_t state_after(enum cudapool_op op)
{
	if (op == CUDAPOOL_OP_LOCK || op == CUDAPOOL_OP_RESTORE)
		return CUDA_TASK_LOCKED;
	return op == CUDAPOOL_OP_CHECKPOINT ? CUDA_TASK_CHECKPOINTED : CUDA_TASK_RUNNING;
}

/*
 * The pool was lost in the middle of an action: it may have been carried out, or still be under
 * way in the driver. So the state decides, before and after cuda-checkpoint has a try.
 */
static int complete_checkpoint_action(int pid, enum cudapool_op op, const char *action, unsigned int timeout,
				      char *msg_buf, int buf_size)
{
	if (get_cuda_state(pid) == state_after(op))
		return 0;
	/* CRIU aborts soon after its alarm: there is no time to begin a lock anew */
	if (op == CUDAPOOL_OP_LOCK && alarm_timeouted()) {
		snprintf(msg_buf, buf_size, "the pool did not lock in time");
		return -1;
	}
	if (cuda_process_checkpoint_action(pid, action, timeout, msg_buf, buf_size) == 0)
		return 0;
	return get_cuda_state(pid) == state_after(op) ? 0 : -1;
}

/*
 * The same where GPU memory is parked: cuda-checkpoint knows nothing of it. A dump fails, as nobody can tell whether an
 * image is complete; giving back goes on with the pool that was found again.
 */
static void repeat_checkpoint_action(int pid, enum cudapool_op op, struct cudapool_result *result)
{
	*result = (struct cudapool_result){};
	if (op == CUDAPOOL_OP_RESTORE || op == CUDAPOOL_OP_UNLOCK) {
		if (get_cuda_state(pid) != state_after(op)) {
			if (context_pool_action(op, pid, 0, result))
				return;
		} else if (op == CUDAPOOL_OP_RESTORE || !cudapool_parked_says(pid)) {
			return;
		} else if (context_pool_action(CUDAPOOL_OP_SHIM, pid, 0, result)) {
			return; /* the thread's id, as UNLOCK would have told */
		}
	}
	result->error = -ENOTCONN;
	snprintf(result->text, sizeof(result->text), "the pool that parks GPU memory was lost (%.128s)",
		 cudapool_pool_loss());
}

static int resume_restore_thread(int restore_tid, k_rtsigset_t *save_sigset);
static int interrupt_restore_thread(int restore_tid, k_rtsigset_t *restore_sigset);

static const struct cudapool_threads shim_threads = {
	.resume = resume_restore_thread,
	.interrupt = interrupt_restore_thread,
};

static int context_pool_unpark(int pid, int tid)
{
	int ret = -1;

	if (context_pool_enter()) {
		ret = cudapool_unpark(&shim_threads, pid, tid);
		context_pool_leave();
	}
	return ret;
}

/* One of cuda-checkpoint's actions; its status */
static int context_pool_checkpoint_action(int pid, const char *action, unsigned int timeout, char *msg_buf,
					  int buf_size)
{
	enum cudapool_op op = cudapool_op_of(action);
	struct cudapool_result result = {};
	int64_t start = cudapool_now_ms();
	int ret = 0;

	if (!context_pool_action(op, pid, timeout, &result)) {
		if (!cudapool_pool_needed())
			return complete_checkpoint_action(pid, op, action, timeout, msg_buf, buf_size);
		repeat_checkpoint_action(pid, op, &result);
	}
	if (result.error)
		pr_err("%s of pid %d failed: %s\n", action, pid, result.text);
	else if (op == CUDAPOOL_OP_LOCK)
		ret = cudapool_parked_lock(pid, &result, cudapool_now_ms() - start);
	else if (op == CUDAPOOL_OP_CHECKPOINT)
		pr_info("pid %d: checkpointed in %lld ms\n", pid, (long long)(cudapool_now_ms() - start));
	else if (op == CUDAPOOL_OP_UNLOCK && result.value > 0)
		ret = context_pool_unpark(pid, result.value);
	snprintf(msg_buf, buf_size, "%.*s", buf_size - 1, result.text);
	return result.error ? -1 : ret;
}

/* The dump of a process that was parked has not succeeded before its image is complete: waits for that. 0 or -1 */
static int context_pool_saved(int pid)
{
	struct cudapool_result result = {};
	int64_t start = cudapool_now_ms();

	if (!cudapool_pool_needed())
		return 0;
	if (!context_pool_action(CUDAPOOL_OP_SAVED, pid, 0, &result)) {
		repeat_checkpoint_action(pid, CUDAPOOL_OP_SAVED, &result);
	} else if (!result.error && result.path != CUDAPOOL_PATH_PARKED && cudapool_parked_says(pid)) {
		result.error = -ENOENT;
		snprintf(result.text, sizeof(result.text), "the pool does not have its GPU memory");
	}
	if (result.error)
		pr_err("GPU memory of pid %d is not saved: %s\n", pid, result.text);
	else if (result.path == CUDAPOOL_PATH_PARKED)
		pr_info("pid %d: its image is complete, after %lld ms more\n", pid,
			(long long)(cudapool_now_ms() - start));
	return result.error ? -1 : 0;
}

