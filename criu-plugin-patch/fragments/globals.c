// SPDX-License-Identifier: GPL-2.0-only

/*
 * cudapool: the pool's warm context, as the pool names it. A context belongs to its process, so to us
 * this is a name for the log; what makes the restore faster is the warm driver behind it.
 */
static CUcontext g_warm_context __attribute__((used));
static CUdevice g_warm_device __attribute__((used));

/* Actions go through the pool; otherwise each executes cuda-checkpoint, as upstream does */
static bool g_context_pool_enabled __attribute__((used));
/* The pool has said that its driver is warm */
static bool g_context_initialized __attribute__((used));
/* Held while the pool's connection is in use; a use within a use is refused. Not a mutex: the plugin has no threads */
static int g_context_lock __attribute__((used));

static bool context_pool_enter(void)
{
	return g_context_pool_enabled && !__sync_lock_test_and_set(&g_context_lock, 1);
}

static void context_pool_leave(void)
{
	g_context_pool_enabled = cudapool_pool_usable();
	__sync_lock_release(&g_context_lock);
}

/*
 * One action through the pool; timeout (ms) is for a lock, 0: none. False: the pool is not in use, or not any
 * more, and upstream's way is left. Where GPU memory is parked a pool that was lost is looked for again: then a
 * question is answered all the same, while of anything else it is unknown how far it came.
 */
static bool context_pool_action(enum cudapool_op op, int pid, unsigned int timeout, struct cudapool_result *result)
{
	bool query = op == CUDAPOOL_OP_STATE || op == CUDAPOOL_OP_RESTORE_TID || op == CUDAPOOL_OP_SHIM;
	int ret;

	if (!context_pool_enter())
		return false;
	ret = cudapool_pool_action(op, pid, timeout, result);
	if (ret && (cudapool_pool_needed() || cudapool_parked_says(pid))) {
		cudapool_pool_need();
		if (cudapool_pool_reopen() == 0 && query)
			ret = cudapool_pool_action(op, pid, timeout, result);
	}
	context_pool_leave();
	return ret == 0;
}
