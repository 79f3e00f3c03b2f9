// SPDX-License-Identifier: MIT
/* Clocks, futexes, threads and log lines without heap or stdio streams. */
#include "internal.h"

#include <errno.h>
#include <linux/futex.h>
#include <signal.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "log.h"

uint64_t softcuda_now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000000ull + now.tv_nsec;
}

void softcuda_sleep_ns(uint64_t ns)
{
	struct timespec left = {ns / 1000000000, ns % 1000000000};

	while (clock_nanosleep(CLOCK_MONOTONIC, 0, &left, &left) == EINTR)
		;
}

long softcuda_futex_wait(_Atomic uint32_t *word, uint32_t value, uint64_t timeout_ns, bool shared)
{
	struct timespec limit = {timeout_ns / 1000000000, timeout_ns % 1000000000};

	return syscall(SYS_futex, word, shared ? FUTEX_WAIT : FUTEX_WAIT_PRIVATE, value, timeout_ns ? &limit : NULL,
		       NULL, 0);
}

void softcuda_futex_wake(_Atomic uint32_t *word, bool shared)
{
	syscall(SYS_futex, word, shared ? FUTEX_WAKE : FUTEX_WAKE_PRIVATE, INT32_MAX, NULL, NULL, 0);
}

void softcuda_say(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	cudapool_log_line(STDERR_FILENO, "softcuda: ", format, args);
	va_end(args);
}

int softcuda_thread(pthread_t *thread, const char *name, void *(*main)(void *), void *arg)
{
	sigset_t all, before;
	int error;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	error = pthread_create(thread, NULL, main, arg);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (error)
		return -error;
	pthread_setname_np(*thread, name);
	return 0;
}

/* FNV-1a, 64 bits. */
uint64_t softcuda_hash(const void *data, size_t size, uint64_t seed)
{
	const unsigned char *byte = data;
	uint64_t hash = 0xcbf29ce484222325ull ^ seed;

	while (size--) {
		hash ^= *byte++;
		hash *= 0x100000001b3ull;
	}
	return hash;
}
