// SPDX-License-Identifier: GPL-2.0-only
	/* Less for CRIU to write, and to read before the application runs again */
	if (status == 0 && int_ret == 0 && cudapool_settings()->drop_zero_pages)
		int_ret = cudapool_drop_zero_pages(pid, restore_tid);

