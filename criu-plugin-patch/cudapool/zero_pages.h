// SPDX-License-Identifier: GPL-2.0-only
/* Gives back the pages of a checkpointed process that hold only zeros, before CRIU writes them to its images. */
#ifndef CUDAPOOL_PLUGIN_ZERO_PAGES_H
#define CUDAPOOL_PLUGIN_ZERO_PAGES_H

/*
 * The driver copies GPU memory into the process when it checkpoints it, and most of that is zeros: 523 of
 * the 540 MB of a process with an empty context (measured on an H200). CRIU would write and read them all. A page of
 * private anonymous memory that is not there reads as zeros, so the process cannot tell.
 *
 * All threads of `pid` must be stopped and traced by the caller; `tid`, one of them, is made to call madvise(). A
 * process whose memory something else may be writing to is left alone, and the log says why. 0: everything else that
 * fails only leaves pages in. -1: the thread may not be what it was before; it must not be dumped. Bounded in time,
 * whatever the process has.
 */
int cudapool_drop_zero_pages(int pid, int tid);

#endif
