// SPDX-License-Identifier: MIT
/*
 * An application for CRIU: `app CUDA PLAIN DIR` becomes a tree of CUDA processes that 'use CUDA' and PLAIN that do not.
 * `app CUDA PLAIN DIR ROOT` puts it into pid and mount namespaces of its own, like a container; DIR is then below ROOT.
 */
#include "fakestate.h"

#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

#include "control_page.h"
#include "detach.h"

static char answer[4096];

static struct cudapool_page *page;

/* Shows that the process runs, and has its 'GPU memory': a file that was not there when it was dumped. */
static void on_ask(int signal)
{
	int fd;

	if (page && page->park_state != CUDAPOOL_PARK_OPEN)
		return;
	fd = open(answer, O_WRONLY | O_CREAT | O_CLOEXEC, 0644);

	if (fd >= 0)
		close(fd);
}

/* The control page of a shim, so that a scripted pool can 'park' this process: CRIU carries what it says. */
static void make_page(void)
{
	int fd = memfd_create(CUDAPOOL_PAGE_NAME, 0);

	if (fd < 0 || ftruncate(fd, CUDAPOOL_PAGE_SIZE))
		_exit(1);
	page = mmap(NULL, CUDAPOOL_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (page == MAP_FAILED)
		_exit(1);
	close(fd);
	page->magic = CUDAPOOL_PAGE_MAGIC;
	page->version = CUDAPOOL_PAGE_VERSION;
	page->size = sizeof(*page);
}

static void *sleeper(void *unused)
{
	for (;;)
		pause();
	return unused;
}

/* Becomes ROOT/app, the first process of new namespaces whose only mounts are ROOT and its /proc. */
static int contain(char **argv)
{
	const char *root = argv[4];
	int status;
	pid_t child;

	if (unshare(CLONE_NEWPID | CLONE_NEWNS))
		return -1;
	child = fork();
	if (child > 0) {
		waitpid(child, &status, 0);
		_exit(0);
	}
	if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) || mount(root, root, NULL, MS_BIND, NULL) ||
	    chdir(root) || mkdir("proc", 0755) || mount("proc", "proc", "proc", 0, NULL) || mkdir("dev", 0755) ||
	    mknod("dev/null", S_IFCHR | 0666, makedev(1, 3)))
		return -1;
	if (syscall(SYS_pivot_root, ".", ".") || umount2(".", MNT_DETACH))
		return -1;
	return execl("/app", "app", argv[1], argv[2], argv[3], NULL);
}

int main(int argc, char **argv)
{
	int cuda, plain, index = 0, i;
	pthread_t thread;

	if (argc != 4 && argc != 5)
		return 2;
	if (argc == 5 && contain(argv))
		return 1;
	cuda = atoi(argv[1]);
	plain = atoi(argv[2]);
	if (!detach())
		return 1;

	for (i = 1; i < cuda + plain; i++) {
		if (fork() == 0) {
			index = i;
			break;
		}
	}

	prctl(PR_SET_NAME, index < cuda ? FAKE_APP_NAME : "plain-app");
	if (index < cuda)
		make_page();
	snprintf(answer, sizeof(answer), "%s/alive.%d", argv[3], getpid());
	signal(SIGUSR1, on_ask);
	/* The thread that stands for the driver's restore thread, and the one that stands for the shim's. */
	if (pthread_create(&thread, NULL, sleeper, NULL) || pthread_create(&thread, NULL, sleeper, NULL))
		return 1;
	on_ask(SIGUSR1);
	sleeper(NULL);
	return 0;
}
