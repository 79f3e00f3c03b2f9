// SPDX-License-Identifier: GPL-2.0-only
	struct cudapool_result result;

	if (context_pool_action(CUDAPOOL_OP_RESTORE_TID, root_pid, 0, &result)) {
		if (result.error)
			pr_debug("No restore thread in pid %d: %s\n", root_pid, result.text);
		return result.error ? -1 : result.value;
	}

