// SPDX-License-Identifier: MIT
/* What the software driver exports beyond the CUDA interface; found with dlsym, absent in a real driver. */
#ifndef SOFTCUDA_SOFTCUDA_H
#define SOFTCUDA_SOFTCUDA_H

/* 1 if times are those of a cost model (SOFTCUDA_COSTS): whatever is measured must say 'simulated'. After cuInit. */
int softcuda_simulated(void);

/* Spends what starting and ending a process with the driver costs beside cuInit; for cuda-checkpoint. After cuInit. */
void softcuda_spend_process(void);

#endif
