// SPDX-License-Identifier: GPL-2.0-only

	fini_gpu_context_pool(stage, ret);
