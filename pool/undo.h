// SPDX-License-Identifier: MIT
/* Giving back: restores what was checkpointed, unlocks what was locked, unparks what was parked, until it is done. */
#ifndef CUDAPOOL_POOL_UNDO_H
#define CUDAPOOL_POOL_UNDO_H

#include <stdbool.h>

#include "holding.h"

/*
 * Gives the holding back from now on, step by step; each holding by itself. It waits for the end of what is under way
 * on the process, and, unless `at_once`, while threads of the process are stopped: they could not take part in the
 * driver's actions. failed_dump: nobody will restore what was parked, so its image goes, too. May free the holding.
 */
void undo_release(struct holding *holding, bool at_once, bool failed_dump);

/* Attempts that failed so far. */
int undo_attempts(const struct holding *holding);

/* For holding_hooks. */
void undo_continue(struct holding *holding);
void undo_dropped(struct holding *holding);

#endif
