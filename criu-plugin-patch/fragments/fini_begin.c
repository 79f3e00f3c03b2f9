// SPDX-License-Identifier: GPL-2.0-only
	cudapool_pool_paused();
	prepare_giving_back(stage, ret);
