// SPDX-License-Identifier: MIT
/* A CUDA C program with the static runtime: state on the GPU that goes on changing, checked at every step (protocol.h). */
#include <cuda_runtime.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "../asked.h"

/*
 * A state of WORDS words is stepped EPOCH times and then set back to where it began, for ever. What each step must give is
 * found out before anything is checkpointed. LEAD steps are in flight at any moment, on one stream; their results
 * arrive in the order in which they were submitted.
 */
#define WORDS (64u << 20)
#define EPOCH 16
#define LEAD  4

#define CUDA(call)                                                                                                     \
	do {                                                                                                           \
		cudaError_t result = (call);                                                                           \
		if (result)                                                                                            \
			fail("%s: %s", #call, cudaGetErrorName(result));                                               \
	} while (0)

__global__ static void begin(uint32_t *state)
{
	for (uint32_t i = blockIdx.x * blockDim.x + threadIdx.x; i < WORDS; i += gridDim.x * blockDim.x)
		state[i] = i * WORKLOAD_FILL_FACTOR;
}

/* Each word depends on itself and on another one of the step before. */
__global__ static void step(uint32_t *to, const uint32_t *from, unsigned long long *digest)
{
	unsigned long long sum = 0;

	for (uint32_t i = blockIdx.x * blockDim.x + threadIdx.x; i < WORDS; i += gridDim.x * blockDim.x) {
		uint32_t word = from[i] * 1664525u + (from[(i + 4097u) % WORDS] >> 7) + 1013904223u;

		to[i] = word;
		sum += (unsigned long long)(word ^ i) * (2ull * i + 1);
	}
	atomicAdd(digest, sum);
}

struct flight {
	cudaEvent_t done;
	unsigned long long *digest; /* on the GPU */
};

static cudaStream_t stream;
static uint32_t *state[2];
static struct flight flights[LEAD];
static unsigned submitted, ended; /* steps */
static unsigned long long expected[EPOCH];

static void submit(void)
{
	struct flight *flight = &flights[submitted % LEAD];
	unsigned at = submitted % EPOCH;

	if (!at)
		begin<<<1024, 256, 0, stream>>>(state[0]);
	CUDA(cudaMemsetAsync(flight->digest, 0, sizeof(*flight->digest), stream));
	step<<<1024, 256, 0, stream>>>(state[(at + 1) % 2], state[at % 2], flight->digest);
	CUDA(cudaGetLastError());
	CUDA(cudaEventRecord(flight->done, stream));
	submitted++;
}

static unsigned long long result(void)
{
	struct flight *flight = &flights[ended++ % LEAD];
	unsigned long long digest;

	CUDA(cudaEventSynchronize(flight->done));
	/* The flights behind it go on meanwhile: their stream does not wait for the default one. */
	CUDA(cudaMemcpy(&digest, flight->digest, sizeof(digest), cudaMemcpyDeviceToHost));
	return digest;
}

static void terminated(int signal)
{
	_exit(0);
}

int main(int argc, char **argv)
{
	unsigned long long counter = 0, wrong = 0;
	struct sigaction term = {};
	struct asked asked = {};
	char question[PATH_MAX];

	if (argc != 3 || strcmp(argv[1], "--dir"))
		fail("usage: cudart_static --dir DIR");
	term.sa_handler = terminated;
	sigaction(SIGTERM, &term, NULL);
	CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
	for (unsigned i = 0; i < 2; i++)
		CUDA(cudaMalloc(&state[i], WORDS * sizeof(uint32_t)));
	for (unsigned i = 0; i < LEAD; i++) {
		CUDA(cudaEventCreateWithFlags(&flights[i].done, cudaEventDisableTiming));
		CUDA(cudaMalloc(&flights[i].digest, sizeof(*flights[i].digest)));
	}
	for (unsigned i = 0; i < EPOCH; i++) {
		submit();
		expected[i] = result();
	}
	puts("READY");
	fflush(stdout);

	snprintf(question, sizeof(question), "%s/ask", argv[2]);
	for (;;) {
		struct answer text = {};
		unsigned long long digest;

		while (submitted - ended < LEAD)
			submit();
		digest = result();
		wrong += digest != expected[(ended - 1) % EPOCH];
		if (!new_question(question, &asked))
			continue;
		append(&text,
		       "{\"nonce\":\"%s\",\"index\":0,\"pid\":%d,\"counter\":%llu,\"checksum\":\"%016llx\",\"steps\":%u,"
		       "\"wrong\":%llu,\"gpu_bytes\":%llu,\"answer_us\":0}\n",
		       asked.nonce, getpid(), ++counter, expected[EPOCH - 1], ended, wrong, 2ull * WORDS * sizeof(uint32_t));
		write_answer(argv[2], 0, &text);
	}
}
