// SPDX-License-Identifier: GPL-2.0-only
	/* Less for CRIU to write, and to read before the application runs again */
	if (status == 0 && int_ret == 0 && cudapool_settings()->drop_zero_pages)
		int_ret = cudapool_drop_zero_pages(pid, restore_tid);
	/* Meanwhile the pool was writing the image of what is parked */
	if (status == 0 && int_ret == 0)
		int_ret = context_pool_saved(pid);

