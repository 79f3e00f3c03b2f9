// SPDX-License-Identifier: GPL-2.0-only
	/* Only a lock has a limit: what is left of CRIU's for the whole tree */
	if (timeout > 0)
		timeout = cudapool_pool_time_left(timeout);
	if (g_context_pool_enabled || cudapool_pool_needed())
		return context_pool_checkpoint_action(pid, action, timeout, msg_buf, buf_size);

