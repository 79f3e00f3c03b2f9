// SPDX-License-Identifier: GPL-2.0-only
static void prewarm_context_for_restore(int pid);

