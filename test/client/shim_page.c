// SPDX-License-Identifier: MIT
/* pool/shim_page.c against processes with an honest control page and with lying ones. */
#include "shim_page.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "clock.h"
#include "tap.h"

#define SEALS (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)

/* --- the application's side --- */

static struct cudapool_page *make(const char *name, int size, int seals, int protection, int flags)
{
	int fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
	struct cudapool_page *page;

	if (ftruncate(fd, size))
		_exit(1);
	page = mmap(NULL, CUDAPOOL_PAGE_SIZE, protection, flags, fd, 0);
	if (page == MAP_FAILED || (seals && fcntl(fd, F_ADD_SEALS, seals)))
		_exit(1);
	close(fd);
	if (protection & PROT_WRITE) {
		page->version = CUDAPOOL_PAGE_VERSION;
		page->size = sizeof(*page);
		page->pid = getpid();
		strcpy(page->build, "0123abcd");
		page->warmth = CUDAPOOL_WARMTH_CONTEXT;
		page->warm_us = 1234;
		page->handed_back = 5;
		page->magic = CUDAPOOL_PAGE_MAGIC;
	}
	return page;
}

static struct cudapool_page *make_honest(void)
{
	return make(CUDAPOOL_PAGE_NAME, CUDAPOOL_PAGE_SIZE, SEALS, PROT_READ | PROT_WRITE, MAP_SHARED);
}

/* Carries out commands as the shim does: answers with the command's own number. */
static void *answer(void *argument)
{
	struct cudapool_page *page = argument;
	uint32_t seen = 0, seq;

	for (;;) {
		seq = __atomic_load_n(&page->command_seq, __ATOMIC_ACQUIRE);
		if (seq == seen) {
			syscall(SYS_futex, &page->command_seq, FUTEX_WAIT, seq, NULL, NULL, 0);
			continue;
		}
		seen = seq;
		page->result = page->command;
		__atomic_store_n(&page->ack_seq, seq, __ATOMIC_RELEASE);
		syscall(SYS_futex, &page->ack_seq, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
	}
	return NULL;
}

static void honest(void)
{
	pthread_t thread;

	pthread_create(&thread, NULL, answer, make_honest());
}
static void none(void)
{
}
static void other_name(void)
{
	make("cudapool-control2", CUDAPOOL_PAGE_SIZE, SEALS, PROT_READ | PROT_WRITE, MAP_SHARED);
	make("cudapool-control (deleted)", CUDAPOOL_PAGE_SIZE, SEALS, PROT_READ | PROT_WRITE, MAP_SHARED);
	make("x\n/memfd:cudapool-control", CUDAPOOL_PAGE_SIZE, SEALS, PROT_READ | PROT_WRITE, MAP_SHARED);
}
static void private_mapping(void)
{
	make(CUDAPOOL_PAGE_NAME, CUDAPOOL_PAGE_SIZE, SEALS, PROT_READ | PROT_WRITE, MAP_PRIVATE);
}
static void read_only(void)
{
	make(CUDAPOOL_PAGE_NAME, CUDAPOOL_PAGE_SIZE, SEALS, PROT_READ, MAP_SHARED);
}
static void unsealed(void)
{
	make(CUDAPOOL_PAGE_NAME, CUDAPOOL_PAGE_SIZE, 0, PROT_READ | PROT_WRITE, MAP_SHARED);
}
static void sealed_otherwise(void)
{
	make(CUDAPOOL_PAGE_NAME, CUDAPOOL_PAGE_SIZE, F_SEAL_GROW, PROT_READ | PROT_WRITE, MAP_SHARED);
}
static void too_small(void) /* the second half of the page would be SIGBUS, were it not one page */
{
	make(CUDAPOOL_PAGE_NAME, 100, SEALS, PROT_READ | PROT_WRITE, MAP_SHARED);
}
static void too_large(void)
{
	make(CUDAPOOL_PAGE_NAME, 1 << 20, SEALS, PROT_READ | PROT_WRITE, MAP_SHARED);
}
static void sealed_against_writing(void)
{
	struct cudapool_page *page;
	int fd = memfd_create(CUDAPOOL_PAGE_NAME, MFD_CLOEXEC | MFD_ALLOW_SEALING);

	if (ftruncate(fd, CUDAPOOL_PAGE_SIZE))
		_exit(1);
	page = mmap(NULL, CUDAPOOL_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (page == MAP_FAILED || fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_FUTURE_WRITE))
		_exit(1);
}
static void unfinished(void)
{
	make_honest()->magic = 0;
}
static void other_version(void)
{
	make_honest()->version++;
}
static void other_size(void)
{
	make_honest()->size = 65535;
}
static void endless_build(void)
{
	memset(make_honest()->build, 'b', 32);
}
static void ugly_build(void)
{
	strcpy(make_honest()->build, "a\n\x1b[31m");
}
static void impossible_warmth(void)
{
	make_honest()->warmth = 1u << 30;
}
static void impossible_pid(void)
{
	make_honest()->pid = -1;
}
static void impossible_count(void)
{
	make_honest()->handed_back = UINT64_MAX;
}
static void silent(void)
{
	make_honest();
}
/* Nine false ones before the right one: more than are tried. */
static void many(void)
{
	int i;

	for (i = 0; i < 9; i++)
		unsealed();
}
static void one_false_one_right(void)
{
	unsealed();
	honest();
}
static void dies(void)
{
	make_honest();
	alarm(1); /* while the command waits */
}
static void *scribble(void *argument)
{
	struct cudapool_page *page = argument;

	for (;;)
		__atomic_add_fetch(&page->ack_seq, 0x1000000, __ATOMIC_RELAXED);
	return NULL;
}
static void scribbles(void)
{
	pthread_t thread;

	pthread_create(&thread, NULL, scribble, make_honest());
}

static int ready[2];
static uint32_t owner_to_claim;

static void owned(void)
{
	struct cudapool_page *page = make_honest();
	pthread_t thread;

	page->owner = owner_to_claim;
	pthread_create(&thread, NULL, answer, page);
}

static pid_t application(void (*script)(void))
{
	char byte;
	pid_t pid;

	if (pipe(ready))
		exit(1);
	pid = fork();
	if (pid == 0) {
		script();
		if (write(ready[1], "", 1) != 1)
			_exit(1);
		for (;;)
			pause();
	}
	close(ready[1]);
	if (read(ready[0], &byte, 1) != 1)
		ok(false, "the application did not start");
	close(ready[0]);
	return pid;
}

static void end(pid_t pid)
{
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
}

/* --- the pool's side --- */

static void opening(void)
{
	static const struct {
		const char *name;
		void (*script)(void);
		int ret;
		const char *says;
	} table[] = {
		{"honest", honest, 0, ""},
		{"none", none, -ENOENT, "no shim"},
		{"similar names", other_name, -ENOENT, "no shim"},
		{"a private mapping", private_mapping, -ENOENT, "no shim"},
		{"a read-only mapping", read_only, -ENOENT, "no shim"},
		{"not sealed", unsealed, -EBADMSG, "no control page"},
		{"sealed against growing only", sealed_otherwise, -EBADMSG, "no control page"},
		{"too small a file", too_small, -EBADMSG, "size 100"},
		{"too large a file", too_large, -EBADMSG, "size 1048576"},
		{"sealed against writing", sealed_against_writing, -EPERM, "cannot map"},
		{"nine false ones", many, -EBADMSG, "no control page"},
		{"a false one first", one_false_one_right, 0, ""},
		{"not filled in", unfinished, -EBADMSG, "not filled in"},
		{"another version", other_version, -EPROTONOSUPPORT, "version 3"},
		{"another size", other_size, -EPROTONOSUPPORT, "65535 bytes"},
		{"a build without end", endless_build, 0, ""},
		{"a build with control characters", ugly_build, -EBADMSG, "impossible build"},
		{"an impossible warmth", impossible_warmth, -EBADMSG, "impossible"},
		{"an impossible pid", impossible_pid, -EBADMSG, "impossible"},
		{"an impossible count", impossible_count, -EBADMSG, "impossible"},
	};
	int before = open_descriptors();
	size_t i;

	for (i = 0; i < sizeof(table) / sizeof(table[0]); i++) {
		pid_t pid = application(table[i].script);
		char json[CUDAPOOL_SHIM_REPORT];
		struct cudapool_shim shim;
		int ret = cudapool_shim_open(&shim, pid);

		ok(ret == table[i].ret && (!ret || strstr(shim.text, table[i].says)), "%s: %d %s", table[i].name, ret,
		   ret ? shim.text : "");
		ok(ret == 0 || (!shim.page && shim.process.fd == -1), "nothing is held after an error");
		cudapool_shim_close(&shim);
		cudapool_shim_close(&shim);
		ok(cudapool_shim_report(pid, 100, json, sizeof(json)) == ret &&
			   strstr(json, ret ? "\"shim\":false" : "\"shim\":true"),
		   "report: %s", json);
		end(pid);
	}
	ok(open_descriptors() == before, "no descriptor is left");
	{
		char json[CUDAPOOL_SHIM_REPORT];
		struct cudapool_shim shim;
		pid_t pid = fork();

		if (pid == 0)
			_exit(0);
		waitpid(pid, NULL, 0);
		ok(cudapool_shim_open(&shim, pid) == -ESRCH, "an ended process: %s", shim.text);
		ok(cudapool_shim_open(&shim, 0) == -ESRCH && cudapool_shim_open(&shim, -1) == -ESRCH,
		   "no process at all");
		ok(cudapool_shim_report(pid, 1, json, 20) == -ENOBUFS, "too small a buffer");
	}
}

/* An ordinary file can have the very name that a memfd shows in maps. It is not opened: that may take for ever. */
static void ordinary_file(void)
{
	int fd = open("/memfd:" CUDAPOOL_PAGE_NAME, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600), ret;
	struct cudapool_shim shim;

	if (fd < 0) {
		note("no ordinary file of that name can be made here: %s", strerror(errno));
		return;
	}
	unlink("/memfd:" CUDAPOOL_PAGE_NAME);
	if (ftruncate(fd, CUDAPOOL_PAGE_SIZE) ||
	    mmap(NULL, CUDAPOOL_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) == MAP_FAILED)
		ok(false, "mapping it: %s", strerror(errno));
	close(fd);
	ret = cudapool_shim_open(&shim, getpid());
	ok(ret == -ENOENT, "an ordinary file under the page's name: %d %s", ret, shim.text);
	cudapool_shim_close(&shim);
}

static void commanding(void)
{
	pid_t pid = application(honest), waiting;
	struct cudapool_shim shim;
	int32_t result = -1;
	uint64_t us = 0, sum = 0, best = UINT64_MAX;
	int64_t started;
	int ret, i;

	ok(cudapool_shim_open(&shim, pid) == 0, "opened %s", shim.text);
	ret = cudapool_shim_command(&shim, CUDAPOOL_PAGE_WARM, 1000, &result, &us);
	ok(ret == 0 && result == CUDAPOOL_PAGE_WARM && us < 1000000, "a command is answered in %llu us",
	   (unsigned long long)us);
	ok(shim.page->owner == 0, "and the page has no owner again");
	for (i = 0; i < 100 && cudapool_shim_command(&shim, CUDAPOOL_PAGE_PING, 1000, NULL, &us) == 0; i++) {
		sum += us;
		best = us < best ? us : best;
	}
	ok(i == 100, "100 pings, mean %llu us, best %llu us", (unsigned long long)sum / 100, (unsigned long long)best);
	kill(pid, SIGSTOP);
	waitpid(pid, NULL, WUNTRACED);
	ret = cudapool_shim_command(&shim, CUDAPOOL_PAGE_PING, 50, NULL, NULL);
	ok(ret == -ETIMEDOUT && strstr(shim.text, "stopped"), "stopped: %d %s", ret, shim.text);
	kill(pid, SIGCONT);
	ok(cudapool_shim_command(&shim, CUDAPOOL_PAGE_PING, 1000, NULL, NULL) == 0, "and continued");
	cudapool_shim_close(&shim);
	end(pid);

	pid = application(silent);
	cudapool_shim_open(&shim, pid);
	started = cudapool_now_ms();
	ret = cudapool_shim_command(&shim, CUDAPOOL_PAGE_PING, 100, &result, NULL);
	ok(ret == -ETIMEDOUT && cudapool_now_ms() - started < 5000 && shim.page->owner == 0, "unanswered: %d %s", ret,
	   shim.text);
	cudapool_shim_close(&shim);
	end(pid);

	pid = application(scribbles);
	cudapool_shim_open(&shim, pid);
	started = cudapool_now_ms();
	ret = cudapool_shim_command(&shim, CUDAPOOL_PAGE_PING, 100, NULL, NULL);
	ok(ret == -ETIMEDOUT && cudapool_now_ms() - started < 5000, "acknowledgements that change all the time: %d %s", ret,
	   shim.text);
	cudapool_shim_close(&shim);
	end(pid);

	pid = application(dies);
	cudapool_shim_open(&shim, pid);
	started = cudapool_now_ms();
	ret = cudapool_shim_command(&shim, CUDAPOOL_PAGE_PING, 20000, NULL, NULL);
	ok(ret == -ESRCH && cudapool_now_ms() - started < 5000, "it ends meanwhile: %d %s", ret, shim.text);
	cudapool_shim_close(&shim);
	end(pid);

	/* Owners: a live one of the same program, a dead one, another program. */
	waiting = application(none);
	owner_to_claim = waiting;
	pid = application(owned);
	cudapool_shim_open(&shim, pid);
	ret = cudapool_shim_command(&shim, CUDAPOOL_PAGE_PING, 50, NULL, NULL);
	ok(ret == -EBUSY && shim.page->owner == owner_to_claim, "commanded by another: %d %s", ret, shim.text);
	end(waiting);
	ok(cudapool_shim_command(&shim, CUDAPOOL_PAGE_PING, 1000, NULL, NULL) == 0, "that one is dead");
	shim.page->owner = 1;
	ok(cudapool_shim_command(&shim, CUDAPOOL_PAGE_PING, 1000, NULL, NULL) == 0,
	   "the number stands for another program");
	shim.page->owner = UINT32_MAX;
	ok(cudapool_shim_command(&shim, CUDAPOOL_PAGE_PING, 1000, NULL, NULL) == 0, "the number is none");
	shim.page->command_seq = shim.page->ack_seq = UINT32_MAX;
	ok(cudapool_shim_command(&shim, CUDAPOOL_PAGE_PING, 1000, NULL, NULL) == 0, "the counter starts again");
	cudapool_shim_close(&shim);
	end(pid);
}

static pid_t shared_application;

static void *command_often(void *argument)
{
	struct cudapool_shim shim;
	intptr_t done = 0;
	int i;

	if (cudapool_shim_open(&shim, shared_application))
		return NULL;
	for (i = 0; i < 50; i++)
		done += cudapool_shim_command(&shim, CUDAPOOL_PAGE_PING, 5000, NULL, NULL) == 0;
	cudapool_shim_close(&shim);
	return (void *)done;
}

static void several_at_once(void)
{
	pthread_t threads[4];
	intptr_t done = 0;
	void *part;
	int i;

	shared_application = application(honest);
	for (i = 0; i < 4; i++)
		pthread_create(&threads[i], NULL, command_often, NULL);
	for (i = 0; i < 4; i++) {
		pthread_join(threads[i], &part);
		done += (intptr_t)part;
	}
	ok(done == 200, "four threads command one process in turn: %d of 200", (int)done);
	end(shared_application);
}

/* A thread's id stands for its process. */
static void by_thread(void)
{
	pid_t pid = application(honest), tid = 0;
	struct cudapool_shim shim;
	struct dirent *entry;
	char path[64];
	DIR *d;

	snprintf(path, sizeof(path), "/proc/%d/task", pid);
	d = opendir(path);
	while ((entry = readdir(d)))
		if (atoi(entry->d_name) > 0 && atoi(entry->d_name) != pid)
			tid = atoi(entry->d_name);
	closedir(d);
	ok(tid && cudapool_shim_open(&shim, tid) == 0 && shim.process.pid == pid, "thread %d of process %d", tid, pid);
	cudapool_shim_close(&shim);
	end(pid);
}

int main(void)
{
	opening();
	commanding();
	several_at_once();
	by_thread();
	ordinary_file();
	return tap_end();
}
