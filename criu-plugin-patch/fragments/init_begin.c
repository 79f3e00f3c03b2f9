// SPDX-License-Identifier: GPL-2.0-only
	/* Whatever the options say: a checkpoint with parked GPU memory bears our name beside upstream's */
	if (stage == CR_PLUGIN_STAGE__RESTORE && cudapool_parked_init(CR_PLUGIN_DESC.name))
		return -1;

