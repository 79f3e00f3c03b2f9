// SPDX-License-Identifier: GPL-2.0-only
	/* All processes are paused: CRIU's alarm is off */
	cudapool_pool_paused();

