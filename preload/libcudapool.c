// SPDX-License-Identifier: MIT
/* The shim: loaded with LD_PRELOAD, it hands contexts that were warmed in the background to the application. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "shim.h"

#define THREAD_STACK (1 << 20) /* bytes */

/* wire/options.c refers to it, for files, which the shim does not read; as a symbol of libc it would need glibc 2.33.
 */
int fstat(int fd, struct stat *st)
{
	return syscall(SYS_fstat, fd, st);
}

struct cudapool_state cudapool_state;
struct cudapool_options cudapool_options;

static const char *argv0 = "";

/* Programs that work on other processes: warming or commanding them helps nobody. */
static const char tools[] = "cuda-checkpoint,cudapoold,criu,runc,crun,conmon,podman";

static const char *base_name(const char *path)
{
	const char *slash = strrchr(path, '/');

	return slash ? slash + 1 : path;
}

static bool listed(const char *names, const char *name)
{
	size_t length = strlen(name), item;

	for (; length && *names; names += item + (names[item] == ',')) {
		item = strcspn(names, ",");
		if (item == length && !memcmp(names, name, length))
			return true;
	}
	return false;
}

/* By the executable and by argv[0]: python3 is a link to python3.11, and both names are in use. */
bool cudapool_program_is(const char *names)
{
	char path[PATH_MAX];
	ssize_t n;

	if (listed(names, base_name(argv0)))
		return true;
	n = readlink("/proc/self/exe", path, sizeof(path) - 1);
	if (n <= 0)
		return false;
	path[n] = '\0';
	return listed(names, base_name(path));
}

/* Three states: free, held, held and waited for. */
void cudapool_lock(uint32_t *lock)
{
	uint32_t expected = 0;

	if (__atomic_compare_exchange_n(lock, &expected, 1, false, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED))
		return;
	while (__atomic_exchange_n(lock, 2, __ATOMIC_ACQUIRE))
		cudapool_futex_wait(lock, 2, 1000);
}

void cudapool_unlock(uint32_t *lock)
{
	if (__atomic_exchange_n(lock, 0, __ATOMIC_RELEASE) == 2)
		cudapool_futex_wake(lock, 1);
}

long cudapool_futex_wait(uint32_t *word, uint32_t value, long limit_ms)
{
	struct timespec limit = {limit_ms / 1000, limit_ms % 1000 * 1000000};
	int saved_errno = errno;
	long ret = syscall(SYS_futex, word, FUTEX_WAIT, value, &limit, NULL, 0);

	if (ret < 0)
		ret = -errno;
	errno = saved_errno;
	return ret;
}

long cudapool_futex_wake(uint32_t *word, int count)
{
	int saved_errno = errno;
	long ret = syscall(SYS_futex, word, FUTEX_WAKE, count, NULL, NULL, 0);

	errno = saved_errno;
	return ret;
}

static int log_fd = -1;

bool cudapool_log_begin(enum cudapool_log_level level)
{
	int saved_errno = errno;

	if (!cudapool_options.log_file[0] || (int)level > cudapool_options.log)
		return false;
	cudapool_lock(&cudapool_state.log_lock);
	log_fd = open(cudapool_options.log_file, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC | O_NOCTTY | O_NONBLOCK,
		      0644);
	cudapool_log_to(log_fd, cudapool_options.log);
	if (log_fd < 0)
		cudapool_unlock(&cudapool_state.log_lock);
	errno = saved_errno;
	return log_fd >= 0;
}

void cudapool_log_end(void)
{
	int saved_errno = errno;

	close(log_fd);
	cudapool_unlock(&cudapool_state.log_lock);
	errno = saved_errno;
}

/*
 * The thread. It blocks every signal but the two that glibc keeps for itself (setuid waits until every
 * thread has handled one of them). The caller's mask is changed for the moment of its creation, with
 * the system call itself, so that no other thread ever sees it.
 */
static void start_thread(void)
{
	const uint64_t glibc_signals = 1ull << (32 - 1) | 1ull << (33 - 1);
	uint64_t all = ~glibc_signals, before;
	__typeof__(&pthread_create) create = cudapool_libc_function("pthread_create");
	__typeof__(&pthread_attr_init) attr_init = cudapool_libc_function("pthread_attr_init");
	__typeof__(&pthread_attr_setdetachstate) set_detached = cudapool_libc_function("pthread_attr_setdetachstate");
	__typeof__(&pthread_attr_setstacksize) set_stack = cudapool_libc_function("pthread_attr_setstacksize");
	pthread_attr_t attr;
	pthread_t thread;
	int err;

	if (!create || !attr_init || !set_detached || !set_stack) {
		shim_log(CUDAPOOL_LOG_ERR, "no thread library is loaded in this process: nothing will be warmed");
		return;
	}
	attr_init(&attr);
	set_detached(&attr, PTHREAD_CREATE_DETACHED);
	set_stack(&attr, THREAD_STACK);
	if (syscall(SYS_rt_sigprocmask, SIG_SETMASK, &all, &before, sizeof(all)))
		return;
	err = create(&thread, &attr, cudapool_thread, NULL);
	syscall(SYS_rt_sigprocmask, SIG_SETMASK, &before, NULL, sizeof(before));
	if (err)
		shim_log(CUDAPOOL_LOG_ERR, "cannot start a thread (%s): nothing will be warmed", strerror(err));
}

void cudapool_start(void)
{
	struct cudapool_state *s = &cudapool_state;
	char text[CUDAPOOL_TEXT_LEN];
	int saved_errno = errno;

	if (cudapool_inert || __atomic_load_n(&s->started, __ATOMIC_RELAXED) ||
	    __atomic_exchange_n(&s->started, 1, __ATOMIC_RELAXED))
		return;
	/* Without this a child would believe that our thread is its own. Then everything just passes through. */
	if (cudapool_program_is(tools) || madvise(s, sizeof(*s), MADV_WIPEONFORK)) {
		errno = saved_errno;
		return;
	}
	cudapool_options_read(&cudapool_options, CUDAPOOL_READER_SHIM, false, text);
	if (text[0])
		shim_log(CUDAPOOL_LOG_ERR, "%s", text);
	cudapool_page_make();
	start_thread();
	errno = saved_errno;
}

/*
 * In a process without CUDA this is all that ever runs. When the thread starts: a thread is visible
 * (unshare -U fails, Python warns when it forks), so not here, but when the process first looks up one of the
 * driver's functions. A program that links libcuda calls it without any lookup, and may be dumped before its first
 * call; it has declared at its start that it uses CUDA, so there, and only there, the constructor does it.
 * CUDAPOOL_WARM=start:NAME asks for it by name.
 */
static void __attribute__((constructor)) begin(int argc, char **argv)
{
	const char *warm;
	int saved_errno = errno;

	if (getauxval(AT_SECURE)) {
		cudapool_inert = true;
		return;
	}
	if (argc > 0 && argv && argv[0])
		argv0 = argv[0];
	warm = getenv("CUDAPOOL_WARM");
	if (warm && !strncmp(warm, "start:", 6) && cudapool_program_is(warm + 6)) {
		cudapool_state.warm_at_start = 1;
		cudapool_start();
	} else if (cudapool_driver_find()) {
		cudapool_start();
	}
	errno = saved_errno;
}

/* Handlers that the driver registered later ran already; ours in warm.c is the one that normally comes first. */
static void __attribute__((destructor)) end(void)
{
	cudapool_quiesce();
}
