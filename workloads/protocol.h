// SPDX-License-Identifier: MIT
/* How a workload is asked, and answers, through files in a directory: the only definition of that protocol. */
#ifndef CUDAPOOL_WORKLOADS_PROTOCOL_H
#define CUDAPOOL_WORKLOADS_PROTOCOL_H

/*
 * A directory, mounted into the container, holds everything; there is no socket that a checkpoint
 * would have to carry, and between two questions no file is open.
 *
 * The asker writes DIR/ask.tmp and renames it to DIR/ask. It holds one line:
 *
 *     NONCE [SEED]
 *
 * NONCE: 1 to 64 letters and digits, another one for each question. SEED: decimal, 32 bits; if it is
 * there, the memory on the GPU is filled anew with it before the answer.
 *
 * The asker removes DIR/ask when it has all answers, so that a process that is restored later does not find it.
 *
 * The workload looks at DIR/ask (stat, not open) every half millisecond. When another file lies there it
 * reads it, and if the nonce is another one than it answered last, it writes DIR/answer.tmp and
 * renames it to DIR/answer. Process number I of a tree, I > 0, answers in DIR/answer.I. The answer is one
 * line of JSON:
 *
 *     nonce          string, as asked
 *     index          number of the process in the tree; 0 is the root
 *     pid            as the process sees itself
 *     counter        questions answered so far, this one included; host memory, so a restore takes it back
 *     words          32-bit words of GPU memory
 *     seed           with which they were filled
 *     checksum       sixteen hexadecimal digits, computed from the GPU's memory now (see below)
 *     context        the CUDA context's handle, hexadecimal
 *     copies         true if the memory was filled and read by copies, as the driver took no kernel
 *     first_call_us  only in the first answer of a process that had not used CUDA: microseconds of wall
 *                    clock from its first CUDA call until it had a current context
 *     answer_us      microseconds of wall clock from reading the question to having the answer
 *     steps          only from a workload that has work in flight all the time: pieces of it that ended so far
 *     wrong          ... and how many of them had another result than they must have; anything but 0 is a corruption
 *     tokens         only from workloads that compute something of their own (*.py): the result of the work that was
 *                    done for this answer, sixteen hexadecimal digits
 *     step_ms        ... wall clock of a step, milliseconds: the median since the last answer, or of the one step
 *     gpu_bytes      ... GPU memory that its framework has allocated
 *     error          only if a CUDA call failed: its name and result; then the fields from `words` on may be missing
 *
 * gpu_app's memory consists of one or several pieces of the same size. Word i of piece p is
 * ((uint32_t)i * 2654435761u) ^ (seed + p * 2654435769u); process I of a tree uses seed + I. A part of each piece may be
 * left zero, from some word on. A piece's checksum is the sum over i of (word[i] ^ (uint32_t)i) * (2 * i + 1), modulo 2^64;
 * the checksum is the sum over p of those times (2 * p + 1).
 */

#define WORKLOAD_NONCE_MAX  64
#define WORKLOAD_ANSWER_MAX 1024
#define WORKLOAD_POLL_NS    500000

#define WORKLOAD_FILL_FACTOR  2654435761u
#define WORKLOAD_PIECE_FACTOR 2654435769u

#endif
