// SPDX-License-Identifier: MIT
/* A client of the pool that says what it is told on its standard input, and prints what it hears, a line each. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "client.h"

#define LIMIT_MS 30000

static struct cudapool_client pool = {.fd = -1};
static const char *socket_path;

static enum cudapool_op op_named(const char *name)
{
	static const char *const names[] = {"",           "state",   "restore-tid", "lock",
					    "checkpoint", "restore", "unlock",      "shim",
					    "unpark",     "saved"};
	unsigned op;

	for (op = 1; op <= CUDAPOOL_OP_LAST; op++)
		if (!strcmp(names[op], name))
			return (enum cudapool_op)op;
	fprintf(stderr, "client: what is '%s'?\n", name);
	exit(2);
}

static void print_result(const struct cudapool_result *r)
{
	printf("result %u op %u pid %d error %d cu %d value %d generation %u path %u parked %llu left %llu text %s\n",
	       r->h.request, r->op, r->pid, r->error, r->cu_result, r->value, r->worker_generation, r->path,
	       (unsigned long long)r->parked_bytes, (unsigned long long)r->left_bytes, r->text);
}

/* connect ROLE [wait_ms] [owner_pid] */
static void do_connect(const char *role, unsigned wait_ms, int owner)
{
	struct cudapool_hello hello = {.wait_ms = wait_ms, .owner_pid = owner, .streams = 8, .chunk_mb = 256};
	int err;

	hello.role = !strcmp(role, "plugin")   ? CUDAPOOL_ROLE_PLUGIN
		     : !strcmp(role, "dropin") ? CUDAPOOL_ROLE_DROPIN
					       : CUDAPOOL_ROLE_TOOL;
	err = cudapool_client_connect(&pool, socket_path, &hello);
	if (err)
		printf("error %d %s\n", err, pool.text);
	else
		printf("welcome %u generation %u device %d text %s\n", pool.welcome.worker_state,
		       pool.welcome.worker_generation, pool.welcome.warm_device, pool.welcome.text);
}

/* A checkpoint is complete with its image, which CRIU's plugin asks for. */
static void do_action(const char *op, int pid, unsigned timeout_ms)
{
	struct cudapool_result result, saved;
	int err = cudapool_client_action(&pool, op_named(op), pid, timeout_ms, LIMIT_MS, &result);

	if (!err && result.op == CUDAPOOL_OP_CHECKPOINT) {
		err = cudapool_client_action(&pool, CUDAPOOL_OP_SAVED, pid, 0, LIMIT_MS, &saved);
		if (err)
			result = saved;
	}
	if (err && err != -EREMOTEIO)
		printf("error %d %s\n", err, pool.text);
	else
		print_result(&result);
}

/* As CRIU executes a drop-in: a child that does one thing, and names its parent as the owner. */
static void do_child(const char *op, int pid)
{
	pid_t child;

	fflush(stdout);
	child = fork();
	if (child == 0) {
		do_connect("dropin", 0, getppid());
		do_action(op, pid, 0);
		fflush(stdout);
		_exit(0);
	}
	waitpid(child, NULL, 0);
}

/* images dump|restore|prefetch DIRECTORY */
static void do_images(const char *purpose, const char *directory)
{
	struct cudapool_images images = {.purpose = !strcmp(purpose, "dump")	  ? CUDAPOOL_IMAGES_DUMP
						    : !strcmp(purpose, "restore") ? CUDAPOOL_IMAGES_RESTORE
										  : CUDAPOOL_IMAGES_PREFETCH};
	int fd = open(directory, O_RDONLY | O_CLOEXEC), err;
	struct cudapool_found found;

	err = cudapool_client_images(&pool, &images, fd, LIMIT_MS, &found);
	close(fd);
	if (err && err != -EREMOTEIO)
		printf("error %d %s\n", err, pool.text);
	else
		printf("found %u error %d bytes %llu hot %llu text %s\n", found.count, found.error,
		       (unsigned long long)found.bytes, (unsigned long long)found.hot_bytes, found.text);
}

static void report(const char *what, int err)
{
	if (err)
		printf("error %d %s\n", err, pool.text);
	else
		printf("%s\n", what);
}

int main(int argc, char **argv)
{
	char line[512], word[32], text[32], path[256];
	struct cudapool_result result;
	uint32_t request;
	int a, b, err;

	if (argc != 2)
		return 2;
	socket_path = argv[1];
	setvbuf(stdout, NULL, _IOLBF, 0);
	while (fgets(line, sizeof(line), stdin)) {
		a = b = 0;
		word[0] = text[0] = '\0';
		sscanf(line, "%31s %31s %d %d", word, text, &a, &b);
		if (!strcmp(word, "connect")) {
			do_connect(text, (unsigned)a, b);
		} else if (!strcmp(word, "do")) {
			do_action(text, a, (unsigned)b);
		} else if (!strcmp(word, "begin")) {
			err = cudapool_client_begin(&pool, op_named(text), a, (unsigned)b, &request);
			report("begun", err);
		} else if (!strcmp(word, "next")) {
			err = cudapool_client_next(&pool, &result, LIMIT_MS);
			if (err)
				report("", err);
			else
				print_result(&result);
		} else if (!strcmp(word, "images") && sscanf(line, "%*s %*s %255s", path) == 1) {
			do_images(text, path);
		} else if (!strcmp(word, "child")) {
			do_child(text, a);
		} else if (!strcmp(word, "release")) {
			report("released", cudapool_client_release(&pool,
								   !strcmp(text, "watch")  ? CUDAPOOL_RELEASE_WATCH
								   : !strcmp(text, "keep") ? CUDAPOOL_RELEASE_KEEP
											   : CUDAPOOL_RELEASE_UNDO,
								   LIMIT_MS));
		} else if (!strcmp(word, "stop")) {
			report("stopped", cudapool_client_stop(&pool, LIMIT_MS));
		} else if (!strcmp(word, "close")) {
			cudapool_client_close(&pool);
			printf("closed\n");
		} else {
			fprintf(stderr, "client: what is '%s'?\n", word);
			return 2;
		}
	}
	return 0;
}
