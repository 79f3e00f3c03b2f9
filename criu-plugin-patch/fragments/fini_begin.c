// SPDX-License-Identifier: GPL-2.0-only
	cudapool_pool_paused();
