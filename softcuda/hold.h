// SPDX-License-Identifier: MIT
/* The table in the device directory, for those who change it in several steps. */
#ifndef SOFTCUDA_HOLD_H
#define SOFTCUDA_HOLD_H

#include "internal.h"

/* Between processes and between threads. */
CUresult softcuda_table_lock(void);
void softcuda_table_unlock(void);

/* With the lock held. `device`: the host's. */
CUresult softcuda_memory_take_locked(int device, uint64_t bytes);
void softcuda_memory_give_locked(int device, uint64_t bytes);
/* From this process's account to the table's own, and away from there. */
void softcuda_memory_share_locked(int device, uint64_t bytes);
void softcuda_memory_unshare_locked(int device, uint64_t bytes);

#endif
