// SPDX-License-Identifier: MIT
/* The memory behind a physical allocation, counted as long as anybody has it. */
#ifndef SOFTCUDA_BACKING_H
#define SOFTCUDA_BACKING_H

#include "internal.h"

/* Takes `size` bytes, a multiple of a page, from the memory of `device` (an ordinal). */
CUresult softcuda_backing_make(struct softcuda_backing *backing, size_t size, int device);
/* Another process's, by its descriptor, which stays the caller's. *device: the ordinal here. */
CUresult softcuda_backing_import(struct softcuda_backing *backing, int fd, int *device);
/* Lets go of it. Every mapping that was made of `map` must be gone. */
void softcuda_backing_end(struct softcuda_backing *backing);
/* A descriptor for others, which keeps it alive. Or -errno. */
int softcuda_backing_export(struct softcuda_backing *backing);
/* A descriptor for reading and writing it, which does not. Or -errno. */
int softcuda_backing_fd(const struct softcuda_backing *backing);
/* The process ends: takes the name away that nobody else needs. */
void softcuda_backing_forget(const struct softcuda_backing *backing);
/* Is this the path of such a file? */
bool softcuda_backing_is(const char *path);
/* Removes what nobody has, and counts exported memory by device. With the table's lock held (hold.h). */
void softcuda_backings_look(bool own_too, uint64_t shared[SOFTCUDA_MAX_DEVICES]);

#endif
