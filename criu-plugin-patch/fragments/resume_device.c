// SPDX-License-Identifier: GPL-2.0-only
	if (checkpointed) {
		prewarm_context_for_restore(pid);
		/* A checkpoint that failed has left the process locked: there is nothing to restore, only to unlock */
		if (cudapool_settings()->pool && get_cuda_state(pid) == CUDA_TASK_LOCKED)
			checkpointed = 0;
	}

