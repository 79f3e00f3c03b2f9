// SPDX-License-Identifier: GPL-2.0-only
	if (restore_tid == -1 && cudapool_parked_says(pid)) {
		pr_err("The GPU memory of pid %d is parked, and its CUDA state cannot be asked for\n", pid);
		return -1;
	}

