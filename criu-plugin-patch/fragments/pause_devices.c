// SPDX-License-Identifier: GPL-2.0-only
	/* CRIU's alarm has just been set, for the whole tree: one deadline for all locks */
	cudapool_pool_pausing(opts.timeout);

