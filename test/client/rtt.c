// SPDX-License-Identifier: MIT
/* rtt SOCKET PID COUNT: how long a question about a process takes through the pool, in microseconds. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "client.h"

#define COUNT_MAX 100000

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000000000ull + ts.tv_nsec;
}

static int compare(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return (x > y) - (x < y);
}

int main(int argc, char **argv)
{
	struct cudapool_hello hello = {.role = CUDAPOOL_ROLE_TOOL, .wait_ms = 10000};
	static uint64_t ns[COUNT_MAX];
	struct cudapool_client client;
	struct cudapool_result result;
	uint64_t started, connected;
	int i, count, ret;

	count = argc == 4 ? atoi(argv[3]) : 0;
	if (count < 1 || count > COUNT_MAX)
		return 2;
	started = now_ns();
	ret = cudapool_client_connect(&client, argv[1], &hello);
	connected = now_ns() - started;
	for (i = 0; !ret && i < count; i++) {
		started = now_ns();
		ret = cudapool_client_action(&client, CUDAPOOL_OP_STATE, atoi(argv[2]), 0, 5000, &result);
		ns[i] = now_ns() - started;
	}
	if (ret) {
		fprintf(stderr, "%s\n", client.text);
		return 1;
	}
	cudapool_client_close(&client);
	qsort(ns, count, sizeof(ns[0]), compare);
	printf("{\"connect_us\":%.1f,\"min_us\":%.1f,\"median_us\":%.1f,\"p99_us\":%.1f,\"max_us\":%.1f,\"driver_us\":%"
	       "u}\n",
	       connected / 1e3, ns[0] / 1e3, ns[count / 2] / 1e3, ns[(size_t)count * 99 / 100] / 1e3,
	       ns[count - 1] / 1e3, result.elapsed_us);
	return 0;
}
