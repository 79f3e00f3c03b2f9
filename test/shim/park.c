// SPDX-License-Identifier: MIT
/* Parking and unparking by a pool of the test's own, in the same process: park WHAT. */
#include "gpu.h"

#include <sys/resource.h>
#include <sys/wait.h>

#include "../client/leaks.h"
#include "fake_pool.h"

#define MIB (1ul << 20)
#define LIMIT_MS 1000 /* of parks that are to fail; memory that had come back is copied within it */
#define BLOCKS 70 /* more than one batch */

static struct fake_pool pool;
static CUdeviceptr block[BLOCKS];
static int blocks = BLOCKS;

static size_t bytes_of(int i)
{
	return (2 + i % 10 / 9 * 2) * MIB;
}

static void allocate(void)
{
	int i;

	gpu_begin();
	for (i = 0; i < blocks; i++) {
		MUST(cuMemAlloc_v2(&block[i], bytes_of(i)));
		must(gpu_fill(block[i], bytes_of(i), i, NULL, false), "fill");
	}
	if (fake_pool_find(&pool, getpid())) {
		printf("Bail out! no control page\n");
		exit(2);
	}
}

static bool all_hold(void)
{
	bool same = true;
	int i;

	for (i = 0; i < blocks; i++)
		same = same && gpu_holds(block[i], bytes_of(i), i);
	return same;
}

/* A call that would touch memory, in another thread: has it returned? */
static volatile int touched;
static void *touch(void *unused)
{
	uint32_t word;

	gpu.cuCtxSetCurrent(gpu.ctx);
	touched = gpu.cuMemcpyDtoH_v2(&word, block[0], 4) == CUDA_SUCCESS ? 1 : 2;
	return unused;
}

static void cycles(void)
{
	pthread_t thread;
	uint64_t parked = 0;
	int i, fds;
	size_t free_before, free_after, total;

	allocate();
	MUST(cuMemGetInfo_v2(&free_before, &total));
	fds = open_descriptors();
	for (i = 0; i < blocks; i++)
		parked += bytes_of(i);
	for (i = 0; i < 3; i++) {
		ok(fake_pool_park(&pool, 10000) == 0, "parks");
		ok(pool.begin.bytes == parked && pool.pieces == BLOCKS && pool.begin.devices == 1, "everything");
		/* The next command is carried out when this one is over, and the channel closed. */
		fake_pool_command(&pool, CUDAPOOL_PAGE_PING, 1000);
		ok(pool.page->park_state == CUDAPOOL_PARK_PARKED && pool.page->channel_fd == -1, "and says so");
		ok(descriptors_become(fds + BLOCKS), "only the pool's descriptors are open");
		touched = 0;
		pthread_create(&thread, NULL, touch, NULL);
		sleep_ms(50);
		ok(!touched, "a call waits");
		pool.page->token[5] ^= 1;
		ok(fake_pool_command(&pool, CUDAPOOL_PAGE_PARK, 1000) == -EALREADY, "it cannot be parked again");
		ok(!memcmp(pool.page->token, pool.begin.token, sizeof(pool.page->token)), "and keeps its token");
		ok(fake_pool_unpark(&pool, 10000) == 0, "unparks");
		ok(pool.end.held == 1, "one thread was waiting");
		pthread_join(thread, NULL);
		ok(touched == 1, "and has gone on");
		ok(pool.page->park_state == CUDAPOOL_PARK_OPEN, "and says so");
		ok(fake_pool_command(&pool, CUDAPOOL_PAGE_UNPARK, 1000) == -EALREADY, "it cannot be unparked again");
		ok(descriptors_become(fds), "no descriptor is left");
		ok(all_hold(), "memory is as it was");
		ok(pool.page->imported_bytes == 0, "and the process's own");
		MUST(cuMemGetInfo_v2(&free_after, &total));
		ok(free_after == free_before, "so is what is free");
		printf("# gate %u drain %u copy %u export %u map %u us\n", pool.end.phase_us[0], pool.end.phase_us[1],
		       pool.end.phase_us[2], pool.end.phase_us[3], pool.end.phase_us[4]);
		/* What is allocated and freed in between takes part the next time. */
		MUST(cuMemFree_v2(block[7]));
		MUST(cuMemAlloc_v2(&block[7], bytes_of(7)));
		must(gpu_fill(block[7], bytes_of(7), 7, NULL, false), "fill");
	}
	for (i = 0; i < blocks; i++)
		MUST(cuMemFree_v2(block[i]));
	ok(fake_pool_park(&pool, 10000) == 0 && pool.begin.pieces == 0, "parks nothing");
	ok(fake_pool_unpark(&pool, 10000) == 0, "and gets it back");
}

/* A pool that dies or lies at each point of a park and of an unpark. */
static void pools(void)
{
	static const char *const names[FAKE_POOL_POINTS] = {
		[FAKE_POOL_DIES_UNHEARD] = "that never answers",
		[FAKE_POOL_DIES_AT_BEGIN] = "that dies at BEGIN",
		[FAKE_POOL_DIES_AT_PIECES] = "that dies at PIECES",
		[FAKE_POOL_DIES_BEFORE_GO] = "that dies before GO, or the last batch",
		[FAKE_POOL_DIES_AFTER_GO] = "that dies before END",
		[FAKE_POOL_LIES_ACK] = "that counts wrongly",
		[FAKE_POOL_LIES_TYPE] = "with messages of no type",
		[FAKE_POOL_LIES_MAGIC] = "with messages of another protocol",
		[FAKE_POOL_LIES_SHORT] = "with messages that end early",
		[FAKE_POOL_LIES_TOKEN] = "with another park's token",
		[FAKE_POOL_LIES_COUNT] = "with too many pieces",
		[FAKE_POOL_LIES_BYTES] = "with a piece of another size",
		[FAKE_POOL_LIES_UUID] = "with another device",
		[FAKE_POOL_LIES_FDS] = "with too few descriptors",
		[FAKE_POOL_LIES_GARBAGE] = "with descriptors of something else",
		[FAKE_POOL_LATE] = "that is late",
		[FAKE_POOL_EARLY_GO] = "that says GO too early",
	};
	static const int park_errors[FAKE_POOL_POINTS] = {
		[FAKE_POOL_LIES_ACK] = -EPROTO,	  [FAKE_POOL_LIES_TYPE] = -EPROTO,  [FAKE_POOL_LIES_MAGIC] = -EPROTO,
		[FAKE_POOL_LIES_SHORT] = -EPROTO, [FAKE_POOL_LATE] = -ETIMEDOUT,    [FAKE_POOL_EARLY_GO] = -EPROTO,
	};
	static const int unpark_errors[FAKE_POOL_POINTS] = {
		[FAKE_POOL_LIES_ACK] = -EPROTO,	  [FAKE_POOL_LIES_TYPE] = -EPROTO,  [FAKE_POOL_LIES_MAGIC] = -EPROTO,
		[FAKE_POOL_LIES_SHORT] = -EPROTO, [FAKE_POOL_LIES_TOKEN] = -ESTALE, [FAKE_POOL_LIES_COUNT] = -EPROTO,
		[FAKE_POOL_LIES_BYTES] = -EPROTO, [FAKE_POOL_LIES_UUID] = -EXDEV,   [FAKE_POOL_LIES_FDS] = -EPROTO,
		[FAKE_POOL_LIES_GARBAGE] = -EIO,  [FAKE_POOL_LATE] = -ETIMEDOUT,
	};
	int at, err, fds;
	uint32_t limit_ms;
	long begun;

	blocks = 8;
	allocate();
	fds = open_descriptors();
	for (at = FAKE_POOL_HONEST + 1; at < FAKE_POOL_POINTS; at++) {
		pool.at = at;
		begun = now_ms();
		/* A pool that has taken its end of the channel and dies is noticed at once, whatever the limit. */
		limit_ms = at > FAKE_POOL_DIES_UNHEARD && at <= FAKE_POOL_DIES_AFTER_GO ? 10 * LIMIT_MS : LIMIT_MS;
		if (at < FAKE_POOL_LIES_TOKEN || at >= FAKE_POOL_LATE) {
			err = fake_pool_park(&pool, limit_ms);
			ok(err == (park_errors[at] ? park_errors[at] : -ECANCELED), "a park by a pool %s fails (%d)",
			   names[at], err);
			/* The next command is carried out when this one is over. */
			fake_pool_command(&pool, CUDAPOOL_PAGE_PING, 10000);
			ok(now_ms() - begun < LIMIT_MS + 1500, "and %s (%ld ms)",
			   limit_ms > LIMIT_MS ? "at once" : "within its limit", now_ms() - begun);
			if (at == FAKE_POOL_DIES_AFTER_GO) {
				ok(pool.page->park_state == CUDAPOOL_PARK_PARKED, "after GO it is parked");
			} else {
				ok(pool.page->park_state == CUDAPOOL_PARK_OPEN, "the gate is open");
				ok(gpu_holds(block[1], bytes_of(1), 1), "and memory is where it was");
				ok(descriptors_become(fds), "and nothing is left open");
			}
		}
		pool.at = FAKE_POOL_HONEST;
		if (pool.page->park_state == CUDAPOOL_PARK_OPEN && fake_pool_park(&pool, 10000))
			ok(false, "parks all the same");
		if (at != FAKE_POOL_EARLY_GO) {
			pool.at = at;
			begun = now_ms();
			err = fake_pool_unpark(&pool, limit_ms);
			ok(at == FAKE_POOL_DIES_AFTER_GO ? err == -ECANCELED
							 : err == (unpark_errors[at] ? unpark_errors[at] : -ECANCELED),
			   "an unpark by a pool %s fails (%d)", names[at], err);
			fake_pool_command(&pool, CUDAPOOL_PAGE_PING, 10000);
			ok(now_ms() - begun < LIMIT_MS + 1500, limit_ms > LIMIT_MS ? "and at once" : "and within its limit");
		}
		pool.at = FAKE_POOL_HONEST;
		if (at == FAKE_POOL_DIES_AFTER_GO || at == FAKE_POOL_DIES_AT_PIECES) { /* there is one batch */
			ok(pool.page->park_state == CUDAPOOL_PARK_OPEN, "with all pieces there it is unparked");
			fake_pool_forget(&pool);
		} else {
			ok(pool.page->park_state == CUDAPOOL_PARK_PARKED, "it is parked still");
			err = fake_pool_unpark(&pool, 10000);
			ok(err == 0, "and can be unparked (%d, %s)", err, err ? pool.end.text : "");
		}
		fake_pool_command(&pool, CUDAPOOL_PAGE_PING, 1000);
		ok(descriptors_become(fds), "with nothing left open");
	}
	ok(all_hold(), "after all that memory is as it was");
}

/* Few descriptors are left in the process. */
static void few(void)
{
	struct rlimit limit;
	int status;
	pid_t child;
	int go[2], done[2];
	char c;

	if (pipe(go) || pipe(done))
		exit(2);
	child = fork();
	if (!child) {
		allocate();
		getrlimit(RLIMIT_NOFILE, &limit);
		limit.rlim_cur = open_descriptors() + 8;
		setrlimit(RLIMIT_NOFILE, &limit);
		if (write(done[1], "x", 1) != 1 || read(go[0], &c, 1) != 1)
			_exit(3);
		_exit(all_hold() ? 0 : 1);
	}
	if (read(done[0], &c, 1) != 1)
		exit(2);
	ok(fake_pool_find(&pool, child) == 0, "its page is found from outside");
	ok(fake_pool_park(&pool, 10000) == 0 && pool.pieces == BLOCKS, "parks all pieces");
	ok(fake_pool_unpark(&pool, 10000) == 0, "and unparks them");
	if (write(go[1], "x", 1) != 1)
		exit(2);
	waitpid(child, &status, 0);
	ok(WIFEXITED(status) && WEXITSTATUS(status) == 0, "memory is as it was");
}

/* What the driver does with the process by itself, as a dump without a pool has it. */
static bool stock(void)
{
	static const char *const actions[] = {"lock", "checkpoint", "restore", "unlock"};
	char command[80];
	unsigned i;

	for (i = 0; i < sizeof(actions) / sizeof(actions[0]); i++) {
		snprintf(command, sizeof(command), "cuda-checkpoint --action %s --pid %d", actions[i], getpid());
		if (system(command)) {
			printf("# %s fails\n", actions[i]);
			return false;
		}
	}
	return true;
}

/* Memory that came back is the process's own: the driver can checkpoint and restore it, as if there were no pool. */
static void own(void)
{
	allocate();
	ok(fake_pool_park(&pool, 10000) == 0 && fake_pool_unpark(&pool, 10000) == 0, "parks and unparks");
	ok(pool.end.phase_us[CUDAPOOL_PHASE_COPY] > 0, "the time that copying took is known");
	ok(stock() && all_hold(), "then the driver checkpoints and restores it");
	ok(fake_pool_park(&pool, 10000) == 0, "it parks again");
	ok(pool.end.phase_us[CUDAPOOL_PHASE_COPY] < pool.end.phase_us[CUDAPOOL_PHASE_EXPORT], "with nothing to copy");
	ok(fake_pool_unpark(&pool, 10000) == 0 && all_hold(), "and unparks");
}

/* Takes all of the GPU's memory but for `bytes`; shared, so that it is not parked. */
static void leave_free(size_t bytes)
{
	CUmemAllocationProp prop = {.type = CU_MEM_ALLOCATION_TYPE_PINNED,
				    .requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR,
				    .location = {CU_MEM_LOCATION_TYPE_DEVICE, 0}};
	CUmemGenericAllocationHandle handle;
	size_t available, total;
	int fd;

	MUST(cuMemGetInfo_v2(&available, &total));
	MUST(cuMemCreate(&handle, (available - bytes) / (2 * MIB) * (2 * MIB), &prop, 0));
	MUST(cuMemExportToShareableHandle(&fd, handle, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0));
	close(fd);
}

/* There is little memory beside that of the process. */
static void scarce(void)
{
	uint64_t parked = 0, left;
	int i;

	allocate();
	for (i = 0; i < blocks; i++)
		parked += bytes_of(i);
	leave_free(16 * MIB);
	pool.keep = true;
	ok(fake_pool_park(&pool, 10000) == 0 && fake_pool_unpark(&pool, 10000) == 0,
	   "unparks from a pool that keeps all");
	left = pool.page->imported_bytes;
	ok(left < parked && left >= parked - 16 * MIB,
	   "what there was room for is its own, and the page says how much is not");
	ok(all_hold(), "memory is as it was");
	MUST(cuMemFree_v2(block[BLOCKS - 1]));
	ok(pool.page->imported_bytes == left - bytes_of(BLOCKS - 1), "what is freed counts no more");
	blocks--;
	fake_pool_forget(&pool);
	pool.keep = false;
	ok(fake_pool_park(&pool, 10000) == 0 && pool.page->imported_bytes == 0, "it can be parked again");
	pool.batch = 4; /* 8 to 12 MiB */
	pool.passes = true;
	ok(fake_pool_unpark(&pool, 10000) == 0 && pool.page->imported_bytes == 0,
	   "room for a batch is enough where the pool lets go of each one");
	ok(all_hold() && stock() && all_hold(), "and nothing of it is the pool's");
}

/* What is left to the driver is known by device. */
static void left(void)
{
	CUdeviceptr there;
	CUcontext other;

	blocks = 2;
	allocate();
	MUST(cuMemAlloc_v2(&there, 3000));
	MUST(cuDevicePrimaryCtxRetain(&other, 1));
	MUST(cuCtxSetCurrent(other));
	MUST(cuMemAlloc_v2(&there, 50000));
	MUST(cuMemAlloc_v2(&there, 20000));
	MUST(cuCtxSetCurrent(gpu.ctx));
	ok(fake_pool_park(&pool, 10000) == 0 && pool.begin.pieces == 2 && pool.begin.devices == 2,
	   "both devices are named, though only one has pieces");
	ok(pool.begin.left[0] == 3000 && pool.begin.left[1] == 70000 && !pool.begin.left[2],
	   "with what is left on each");
	ok(fake_pool_unpark(&pool, 10000) == 0 && all_hold(), "unparks");
}

/* What has no CUDA cannot be parked, and what is switched off is not. */
static void nothing(void)
{
	gpu_load();
	fake_pool_find(&pool, getpid());
	ok(fake_pool_park(&pool, 1000) == -ENODATA, "before cuInit there is nothing to park");
	MUST(cuInit(0));
	ok(fake_pool_park(&pool, 1000) == -ENODATA, "nor without a context");
	MUST(cuDevicePrimaryCtxRetain(&gpu.ctx, 0));
	if (getenv("CUDAPOOL_PARK")) {
		ok(fake_pool_park(&pool, 1000) == -EOPNOTSUPP, "where it is switched off, it is not done");
		ok(strstr(pool.page->reason, "CUDAPOOL_PARK"), "and the page says why");
	} else {
		ok(fake_pool_park(&pool, 1000) == 0 && fake_pool_unpark(&pool, 1000) == 0, "a context can be, without memory");
	}
}

int main(int argc, char **argv)
{
	static const struct tap_test tests[] = {{"cycles", cycles}, {"pools", pools}, {"few", few}, {"nothing", nothing},
						{"own", own},	    {"scarce", scarce}, {"left", left}, {}};

	tap_run(tests, argc, argv);
	fake_pool_close(&pool);
	return tap_end();
}
