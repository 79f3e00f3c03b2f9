// SPDX-License-Identifier: GPL-2.0-only
	/* Somebody else has parked it, so its image is not among those of this dump, and need not be complete */
	if (task_state != CUDA_TASK_RUNNING && cudapool_parked_says(pid)) {
		pr_err("The GPU memory of pid %d was parked before this dump, which would not have it: give it back first, "
		       "with cuda-checkpoint --%s --pid %d\n",
		       pid, task_state == CUDA_TASK_CHECKPOINTED ? "toggle" : "action unlock", pid);
		return -1;
	}

