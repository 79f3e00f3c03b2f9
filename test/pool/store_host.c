// SPDX-License-Identifier: MIT
/* The store on a host with more of everything: GPUs of other machines, processes, pieces of memory. */
#include "descriptors.h"
#include "shim_page.h"
#include "store_support.h"

static struct room unknown;
static int unknown_error;

static void unknown_answered(struct room *room, int error, const char *text)
{
	unknown_error = error;
}

static bool unknown_idle(void)
{
	return unknown.state == ROOM_IDLE;
}

/* Images of other machines come and go, and pages name what they like: none of their GPUs takes a known one's place. */
static void test_unknown_devices(void)
{
	unsigned i, refused = 0;

	for (i = 0; i < 100; i++) {
		unknown = (struct room){.need = {.devices = 1, .bytes[0] = MIB}, .done = unknown_answered};
		snprintf((char *)unknown.need.uuid[0], 16, "elsewhere %u", i);
		room_ask(&unknown);
		refused += until(unknown_idle, 1000) && unknown_error == -EXDEV;
	}
	ok(refused == 100, "GPUs that this machine lacks are refused");
}

enum { IDLE = 40, SLOW_MS = 1 };

static unsigned looked, looked_most, looked_all;

int __real_cudapool_shim_open(struct cudapool_shim *shim, int pid);
int __wrap_cudapool_shim_open(struct cudapool_shim *shim, int pid);

int __wrap_cudapool_shim_open(struct cudapool_shim *shim, int pid)
{
	looked++;
	looked_all++;
	usleep(SLOW_MS * 1000);
	return __real_cudapool_shim_open(shim, pid);
}

/* Somebody else, who wants the loop each millisecond. */
static void beat(struct loop_timer *timer)
{
	looked_most = looked > looked_most ? looked : looked_most;
	looked = 0;
	loop_timer_set(timer, 1);
}

static bool all_looked_at(void)
{
	return looked_all >= IDLE;
}

/* A host has thousands of processes, and some have thousands of mappings. */
static void test_many_processes(void)
{
	struct loop_timer other = {.fire = beat};
	uint8_t token[16];
	pid_t idle[IDLE];
	unsigned i;

	evict_all();
	settle(300); /* so that nobody is known any more */
	for (i = 0; i < IDLE; i++) {
		idle[i] = fork();
		if (!idle[i])
			for (;;)
				pause();
	}
	looked = looked_most = looked_all = 0;
	loop_timer_set(&other, 1);
	dump("many", 2, 4, CUDAPOOL_HOT_AUTO, token);
	until(all_looked_at, 6000);
	settle(5);
	ok(looked_all >= IDLE && looked_most < IDLE / 2,
	   "looking at %u processes leaves the loop free for others, after %u at the most", looked_all, looked_most);
	loop_timer_cancel(&other);
	for (i = 0; i < IDLE; i++) {
		kill(idle[i], SIGKILL);
		waitpid(idle[i], NULL, 0);
	}
}

static unsigned lists_read;

FILE *__real_fopen(const char *path, const char *mode);
FILE *__wrap_fopen(const char *path, const char *mode);

/* A machine whose driver has the device number of /dev/null. */
FILE *__wrap_fopen(const char *path, const char *mode)
{
	static char list[] = "Character devices:\n  1 nvidia-frontend\n  5 ttys\n\nBlock devices:\n  5 nvidia\n";

	if (strcmp(path, "/proc/devices"))
		return __real_fopen(path, mode);
	lists_read++;
	return fmemopen(list, strlen(list), "r");
}

static void test_driver_descriptors(void)
{
	int drivers = open("/dev/null", O_RDWR | O_CLOEXEC), other = open("/dev/ptmx", O_RDWR | O_CLOEXEC | O_NOCTTY);
	unsigned i, taken = 0;

	ok(!descriptor_is_memory(other), "a descriptor of another device is not taken");
	lists_read = 0;
	for (i = 0; i < 1000; i++)
		taken += descriptor_is_memory(drivers);
	ok(taken == 1000 && lists_read == 1, "the driver's are, and the devices are looked at once for %u of them", taken);
	ok(!descriptor_is_memory(other), "and others are no more than before");
	close(drivers);
	close(other);
}

int main(void)
{
	if (!begin_tests())
		return 1;
	test_unknown_devices();
	test_many_processes();
	test_driver_descriptors();
	return end_tests();
}
