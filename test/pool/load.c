// SPDX-License-Identifier: MIT
/* Many clients with many actions at once: every request is answered once, with its own answer. */
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "client.h"
#include "tap.h"

#define LIMIT_MS  30000
#define IN_FLIGHT 8

static const char *path;
static int rounds, *pids, pid_count;

struct counts {
	int client;
	int answered, wrong, cycles_failed;
};

/* All in flight at once: answers come in any order, and each number comes back once. */
static void ask_many(struct cudapool_client *pool, struct counts *counts)
{
	struct {
		uint32_t request;
		int pid;
		enum cudapool_op op;
	} asked[IN_FLIGHT];
	struct cudapool_result result;
	int i, n;

	for (i = 0; i < IN_FLIGHT; i++) {
		asked[i].pid = pids[(counts->client + i) % pid_count];
		asked[i].op = i % 2 ? CUDAPOOL_OP_STATE : CUDAPOOL_OP_RESTORE_TID;
		if (cudapool_client_begin(pool, asked[i].op, asked[i].pid, 0, &asked[i].request))
			counts->wrong++;
	}
	for (n = 0; n < IN_FLIGHT; n++) {
		if (cudapool_client_next(pool, &result, LIMIT_MS)) {
			counts->wrong++;
			return;
		}
		for (i = 0; i < IN_FLIGHT; i++)
			if (asked[i].request == result.h.request)
				break;
		if (i == IN_FLIGHT || asked[i].pid != result.pid || asked[i].op != result.op || result.error)
			counts->wrong++;
		else
			asked[i].request = 0;
		counts->answered++;
	}
}

/* The first clients own a process each, and take it through all states. */
static void cycle(struct cudapool_client *pool, struct counts *counts)
{
	static const enum cudapool_op steps[] = {CUDAPOOL_OP_LOCK, CUDAPOOL_OP_CHECKPOINT, CUDAPOOL_OP_RESTORE,
						 CUDAPOOL_OP_UNLOCK};
	struct cudapool_result result;
	size_t i;

	for (i = 0; i < sizeof(steps) / sizeof(steps[0]); i++) {
		if (cudapool_client_action(pool, steps[i], pids[counts->client], 10000, LIMIT_MS, &result)) {
			if (!counts->cycles_failed++)
				note("client %d: step %d: %d %s", counts->client, steps[i], result.error, result.text);
		}
		counts->answered++;
	}
}

static void *run(void *argument)
{
	struct cudapool_hello hello = {.role = CUDAPOOL_ROLE_PLUGIN, .parallel = 1};
	struct counts *counts = argument;
	struct cudapool_client pool;
	int i;

	if (cudapool_client_connect(&pool, path, &hello)) {
		note("client %d: %s", counts->client, pool.text);
		counts->wrong++;
		return NULL;
	}
	for (i = 0; i < rounds; i++) {
		if (counts->client < pid_count)
			cycle(&pool, counts);
		ask_many(&pool, counts);
	}
	cudapool_client_close(&pool);
	return NULL;
}

/* load SOCKET CLIENTS ROUNDS PID… */
int main(int argc, char **argv)
{
	int clients, i, expected = 0, answered = 0, wrong = 0, failed = 0;
	struct counts *counts;
	pthread_t *threads;

	if (argc < 5)
		return 2;
	path = argv[1];
	clients = atoi(argv[2]);
	rounds = atoi(argv[3]);
	pid_count = argc - 4;
	pids = calloc((size_t)pid_count, sizeof(*pids));
	counts = calloc((size_t)clients, sizeof(*counts));
	threads = calloc((size_t)clients, sizeof(*threads));
	for (i = 0; i < pid_count; i++)
		pids[i] = atoi(argv[4 + i]);
	for (i = 0; i < clients; i++) {
		counts[i].client = i;
		pthread_create(&threads[i], NULL, run, &counts[i]);
	}
	for (i = 0; i < clients; i++) {
		pthread_join(threads[i], NULL);
		expected += rounds * (IN_FLIGHT + (i < pid_count ? 4 : 0));
		answered += counts[i].answered;
		wrong += counts[i].wrong;
		failed += counts[i].cycles_failed;
	}
	ok(answered == expected, "%d requests of %d clients are answered", expected, clients);
	ok(wrong == 0, "each with its own answer");
	ok(failed == 0, "no step through the states failed");
	free(pids);
	free(counts);
	free(threads);
	return tap_end();
}
