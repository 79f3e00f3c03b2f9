// SPDX-License-Identifier: GPL-2.0-only
	if (init_gpu_context_pool(stage))
		return -1;
	/* What the pool answers stands for the checks of the GPU and of cuda-checkpoint */
	if (g_context_pool_enabled)
		goto initialized;

