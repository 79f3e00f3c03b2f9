// SPDX-License-Identifier: MIT
/* The model's pool: parks and unparks the application again and again, and often dies, or lies. */
#ifndef CUDAPOOL_TEST_PARK_MODEL_POOL_H
#define CUDAPOOL_TEST_PARK_MODEL_POOL_H

#include <poll.h>

#include "fake_pool.h"
#include "gpu.h"

#define PARK_MS	 10000 /* on a machine that is busy */
#define LATE_MS	 30
#define ATTEMPTS 5
#define PAUSE_MS 500 /* between two parks, at most */

static struct fake_pool pool;
static struct {
	unsigned parks, refused, unparks, failed, most;
} count;

/* The next command is carried out when the last one is over. */
static uint32_t state_of_shim(void)
{
	if (fake_pool_command(&pool, CUDAPOOL_PAGE_PING, PARK_MS)) {
		printf("# a pool of kind %d, state %u, command %u\n", pool.at, pool.page->park_state, pool.page->command);
		ok(false, "the shim answers");
		return UINT32_MAX;
	}
	return __atomic_load_n(&pool.page->park_state, __ATOMIC_ACQUIRE);
}

static bool wait_ms(int fd, int ms)
{
	struct pollfd p = {.fd = fd, .events = POLLIN};

	return poll(&p, 1, ms) > 0;
}

/* A pool that dies early, or says nothing, is waited for so long. */
static uint32_t limit_ms(void)
{
	return pool.at == FAKE_POOL_HONEST ? PARK_MS : LATE_MS;
}

static bool unpark_all(uint64_t *random)
{
	for (int i = 0; i < ATTEMPTS; i++) {
		int err;

		pool.at = i == 0 && next_random(random) % 4 == 0 ? next_random(random) % FAKE_POOL_POINTS : FAKE_POOL_HONEST;
		err = fake_pool_unpark(&pool, limit_ms());
		if (err)
			count.failed++;
		if (err && pool.at == FAKE_POOL_HONEST)
			printf("# unpark: %d, %s (%d)\n", err, pool.end.text, pool.end.cu_result);
		if (state_of_shim() == CUDAPOOL_PARK_OPEN) {
			count.unparks++;
			fake_pool_forget(&pool);
			return true;
		}
	}
	return false;
}

/* The driver was told to refuse memory; and a context may have failed (do_context()), and not yet ended. */
static bool excused(int err)
{
	return (err == -EIO && pool.end.cu_result == CUDA_ERROR_OUT_OF_MEMORY) ||
	       (err == -EOPNOTSUPP && pool.end.cu_result == CUDA_ERROR_ILLEGAL_ADDRESS);
}

/* Parks and unparks until the application says that it is done. */
static void parking(uint64_t random, int ready)
{
	while (!wait_ms(ready, next_random(&random) % PAUSE_MS)) {
		int err;

		pool.at = next_random(&random) % 4 == 0 ? next_random(&random) % FAKE_POOL_POINTS : FAKE_POOL_HONEST;
		if (pool.at >= FAKE_POOL_LIES_TOKEN && pool.at < FAKE_POOL_LATE)
			pool.at = FAKE_POOL_HONEST; /* of an unpark only */
		err = fake_pool_park(&pool, limit_ms());
		if (err && pool.at == FAKE_POOL_HONEST && !excused(err)) {
			printf("# park: %d, %s (%d)\n", err, pool.end.text, pool.end.cu_result);
			ok(false, "an honest pool parks, unless the driver refuses or work has failed");
			return;
		}
		if (state_of_shim() != CUDAPOOL_PARK_PARKED) {
			count.refused++;
			continue;
		}
		count.parks++;
		count.most = pool.pieces > count.most ? pool.pieces : count.most;
		if (next_random(&random) % 2)
			sleep_ms(next_random(&random) % 4);
		if (!unpark_all(&random)) {
			ok(false, "an honest pool unparks");
			return;
		}
	}
}

#endif
