// SPDX-License-Identifier: GPL-2.0-only
	/* The whole tree at the first call. Unlike upstream, a failure then fails the restore. */
	if (cudapool_settings()->loud)
		return cudapool_restore_tree(&restore_ops);

