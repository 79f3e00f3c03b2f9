// SPDX-License-Identifier: MIT
/* What park.c, one conversation with a shim, and unpark.c, how memory is given in it, share. */
#ifndef CUDAPOOL_POOL_PARK_INTERNAL_H
#define CUDAPOOL_POOL_PARK_INTERNAL_H

#include "park.h"

/* park.c: the shim `what`, and that is the end. */
void parking_fail_protocol(struct parking *parking, const char *what);

/* unpark.c: the channel is there; what the shim acknowledges; the batch that could not be sent, again. */
void parking_give(struct parking *parking);
void parking_ack_came(struct parking *parking, const struct cudapool_channel_ack *ack);
void parking_send_batch(struct parking *parking);

#endif
