// SPDX-License-Identifier: GPL-2.0-only
	struct cudapool_result result;

	if (context_pool_action(CUDAPOOL_OP_STATE, pid, 0, &result)) {
		if (!result.error && result.value >= CUDA_TASK_RUNNING && result.value <= CUDA_TASK_CHECKPOINTED)
			return result.value;
		pr_err("No CUDA state of pid %d: %s\n", pid, result.error ? result.text : "the process has failed");
		return CUDA_TASK_UNKNOWN;
	}

