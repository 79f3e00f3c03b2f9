// SPDX-License-Identifier: GPL-2.0-only
static bool is_cuda_device_available(void);

static void note_warm_context(void)
{
	const struct cudapool_welcome *pool = cudapool_pool_welcome();

	g_context_initialized = pool->worker_state == CUDAPOOL_WORKER_WARM;
	g_warm_context = (CUcontext)(uintptr_t)pool->warm_context;
	g_warm_device = pool->warm_device;
	if (g_context_initialized)
		pr_info("GPU context pool initialized successfully: ctx=%p device=%d\n", g_warm_context, g_warm_device);
}

/*
 * Connects to the pool if CRIU_CUDA_CONTEXT_POOL asks for it. 0: go on, with the pool or
 * as upstream does; -1: a restore that nothing on this machine can carry out.
 */
static int __attribute__((__noinline__)) init_gpu_context_pool(int stage)
{
	if (!cudapool_settings()->pool) {
		pr_info("GPU context pool is off (CRIU_CUDA_CONTEXT_POOL=1 turns it on); executing %s\n", CUDA_CHECKPOINT);
		return 0;
	}
	if (cudapool_pool_needed())
		pr_info("This checkpoint has parked GPU memory: the pool is used whatever CRIU_CUDA_CONTEXT_POOL "
			"says\n");

	pr_info("Initializing GPU context pool...\n");
	if (cudapool_pool_open(stage) == 0) {
		g_context_pool_enabled = true;
		note_warm_context();
		if (!g_context_initialized)
			pr_info("GPU context pool is warming up while CRIU restores\n");
		pr_info("GPU context pool ENABLED - expect faster restore\n");
		return 0;
	}

	if (cudapool_pool_needed()) {
		pr_err("This checkpoint has parked GPU memory, which only a pool can map back: %s\n",
		       cudapool_pool_text());
		return -1;
	}
	pr_warn("GPU context pool not available (%s); going on with %s\n", cudapool_pool_text(), CUDA_CHECKPOINT);
	if (stage != CR_PLUGIN_STAGE__RESTORE)
		return 0;

	/* Upstream would disable itself here, and leave the processes without their GPU state */
	if (!fault_injected(FI_PLUGIN_CUDA_FORCE_ENABLE) && !is_cuda_device_available()) {
		pr_err("This checkpoint needs a GPU: no pool, and no GPU found\n");
		return -1;
	}
	if (cuda_checkpoint_supports_flag("--action") != 1) {
		pr_err("This checkpoint needs a pool, or a %s with --action in $PATH\n", CUDA_CHECKPOINT);
		return -1;
	}
	return 0;
}

/* Sees to it that the driver is warm before it rebuilds the contexts of a process */
static void __attribute__((__noinline__)) prewarm_context_for_restore(int pid)
{
	if (!context_pool_enter())
		return;
	if (!g_context_initialized && cudapool_pool_warm() == 0)
		note_warm_context();
	context_pool_leave();

	if (!g_context_pool_enabled)
		return;
	if (g_warm_context)
		pr_info("Warm context set for pid %d: ctx=%p device=%d\n", pid, g_warm_context, g_warm_device);
	else
		pr_info("Warm driver set for pid %d, the pool keeps no context\n", pid);
}

/*
 * Before the plugin gives back what a dump has taken: a pool is there if one can be had, and keeps the images of
 * processes that get their memory back because they go on, not because the dump failed
 */
static void prepare_giving_back(int stage, int err)
{
	if (stage != CR_PLUGIN_STAGE__DUMP || !cudapool_pool_needed())
		return;
	if (!g_context_pool_enabled)
		g_context_pool_enabled = cudapool_pool_reopen() == 0;
	if (err == 0 && opts.final_state == TASK_ALIVE && context_pool_enter()) {
		cudapool_pool_release(CUDAPOOL_RELEASE_GO_ON);
		context_pool_leave();
	}
}

/* Ends the use of the pool, and tells it what becomes of the processes that a dump has locked */
static void __attribute__((__noinline__)) fini_gpu_context_pool(int stage, int err)
{
	/* Before the pool lets go: if CRIU is killed meanwhile, the processes are given back */
	if (stage == CR_PLUGIN_STAGE__DUMP && err == 0)
		cudapool_sync_images();
	if (context_pool_enter()) {
		if (stage == CR_PLUGIN_STAGE__DUMP && err == 0 && opts.final_state == TASK_DEAD)
			cudapool_pool_release(CUDAPOOL_RELEASE_WATCH);
		else if (stage == CR_PLUGIN_STAGE__DUMP && err == 0 && opts.final_state == TASK_STOPPED)
			cudapool_pool_release(CUDAPOOL_RELEASE_KEEP);
		cudapool_pool_close();
		context_pool_leave();
	}
	g_context_initialized = false;
	g_warm_context = NULL;
	g_warm_device = -1;
}

static int act_by_tool(int pid, const char *action)
{
	char msg_buf[CUDA_CKPT_BUF_SIZE] = "";
	int status = cuda_process_checkpoint_action(pid, action, 0, msg_buf, sizeof(msg_buf));

	if (status)
		pr_err("RESUME_DEVICES %s of pid %d failed with %s\n", action, pid, msg_buf);
	return status;
}

/* See cudapool_tree_ops */
static int restore_by_tool(int pid, bool ask)
{
	cuda_task_state_t state, before = CUDA_TASK_UNKNOWN;

	if (!ask)
		return act_by_tool(pid, ACTION_RESTORE) || act_by_tool(pid, ACTION_UNLOCK) ? -1 : 0;

	/*
	 * The pool was lost in the middle, and its action may still be under way in the driver: so the state
	 * says what is to be done, and whether it was. An action that leaves the state as it is has failed.
	 */
	while ((state = get_cuda_state(pid)) != before && state != CUDA_TASK_UNKNOWN) {
		if (state == CUDA_TASK_RUNNING)
			return 0;
		before = state;
		act_by_tool(pid, state == CUDA_TASK_CHECKPOINTED ? ACTION_RESTORE : ACTION_UNLOCK);
	}
	return -1;
}

static const struct cudapool_tree_ops restore_ops = {
	.restore_tid = get_cuda_restore_tid,
	.prewarm = prewarm_context_for_restore,
	.threads = &shim_threads,
	.restore = restore_by_tool,
};

