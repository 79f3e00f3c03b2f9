// SPDX-License-Identifier: GPL-2.0-only
static int cuda_process_checkpoint_action(int pid, const char *action, unsigned int timeout, char *msg_buf,
					  int buf_size);

/*
 * The pool was lost in the middle of an action: it may have been carried out, or still be under
 * way in the driver. So the state decides, before and after cuda-checkpoint has a try.
 */
static int complete_checkpoint_action(int pid, enum cudapool_op op, const char *action, unsigned int timeout,
				      char *msg_buf, int buf_size)
{
	cuda_task_state_t after = CUDA_TASK_RUNNING;

	if (op == CUDAPOOL_OP_LOCK || op == CUDAPOOL_OP_RESTORE)
		after = CUDA_TASK_LOCKED;
	else if (op == CUDAPOOL_OP_CHECKPOINT)
		after = CUDA_TASK_CHECKPOINTED;

	if (get_cuda_state(pid) == after)
		return 0;
	/* CRIU aborts soon after its alarm: there is no time to begin a lock anew */
	if (op == CUDAPOOL_OP_LOCK && alarm_timeouted()) {
		snprintf(msg_buf, buf_size, "the pool did not lock in time");
		return -1;
	}
	if (cuda_process_checkpoint_action(pid, action, timeout, msg_buf, buf_size) == 0)
		return 0;
	return get_cuda_state(pid) == after ? 0 : -1;
}

/* One of cuda-checkpoint's actions; its status */
static int context_pool_checkpoint_action(int pid, const char *action, unsigned int timeout, char *msg_buf,
					  int buf_size)
{
	struct cudapool_result result;
	enum cudapool_op op = cudapool_op_of(action);

	if (!context_pool_action(op, pid, timeout, &result))
		return complete_checkpoint_action(pid, op, action, timeout, msg_buf, buf_size);

	if (result.error)
		pr_err("%s of pid %d failed: %s\n", action, pid, result.text);
	snprintf(msg_buf, buf_size, "%.*s", buf_size - 1, result.text);
	return result.error ? -1 : 0;
}

