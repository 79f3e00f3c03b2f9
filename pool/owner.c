// SPDX-License-Identifier: MIT
/* Owners: the CRIU processes for which the pool acts, and that it sees die. */
#include "owner.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>

static LIST_HEAD(, owner) owners = LIST_HEAD_INITIALIZER(owners);
static struct owner_config callbacks;

void owner_init(const struct owner_config *config)
{
	callbacks = *config;
}

static void grace_over(struct loop_timer *timer)
{
	callbacks.grace_over(container_of(timer, struct owner, grace));
}

static void owner_died(struct loop_watch *watch, uint32_t events)
{
	struct owner *owner = container_of(watch, struct owner, death);

	loop_unwatch(watch);
	owner->dead = true;
	loop_timer_set(&owner->grace, OWNER_GRACE_MS);
	callbacks.died(owner);
}

static struct owner *make(const struct process *process)
{
	struct owner *owner = calloc(1, sizeof(*owner));

	if (!owner)
		return NULL;
	owner->process = (struct process){.pid = process->pid, .start = process->start, .fd = -1};
	owner->grace.fire = grace_over;
	owner->references = 1;
	LIST_INIT(&owner->holdings);
	LIST_INIT(&owner->undos);
	process_name(process->pid, owner->name);
	LIST_INSERT_HEAD(&owners, owner, link);
	return owner;
}

static struct owner *find(const struct process *process)
{
	struct owner *owner;

	LIST_FOREACH(owner, &owners, link)
	if (process_same(&owner->process, process))
		return owner;
	return NULL;
}

void owner_hold(struct owner *owner)
{
	owner->references++;
}

void owner_put(struct owner *owner)
{
	if (--owner->references)
		return;
	loop_unwatch(&owner->death);
	loop_timer_cancel(&owner->grace);
	LIST_REMOVE(owner, link);
	process_close(&owner->process);
	free(owner);
}

struct owner *owner_get(const struct process *process)
{
	struct owner *owner = find(process);

	if (owner) {
		owner_hold(owner);
		return owner;
	}
	owner = make(process);
	if (!owner)
		return NULL;
	if (process_dup(&owner->process, process))
		goto fail;
	owner->death = (struct loop_watch){.fd = owner->process.fd, .ready = owner_died};
	if (loop_watch(&owner->death, EPOLLIN))
		goto fail;
	return owner;
fail:
	owner_put(owner);
	return NULL;
}

struct owner *owner_recovered(int pid, uint64_t start)
{
	struct process process;
	struct owner *owner;
	int err = process_reopen(&process, pid, start);

	if (!err) {
		owner = owner_get(&process);
		process_close(&process);
		return owner;
	}
	if (err != -ESRCH) { /* not known to be dead */
		errno = -err;
		return NULL;
	}
	process = (struct process){.pid = pid, .start = start, .fd = -1};
	owner = find(&process);
	if (owner) {
		owner_hold(owner);
		return owner;
	}
	owner = make(&process);
	if (!owner)
		return NULL;
	owner->dead = true;
	snprintf(owner->name, sizeof(owner->name), "(ended)"); /* the number may be another's by now */
	loop_timer_set(&owner->grace, OWNER_GRACE_MS);
	return owner;
}

unsigned owner_count(void)
{
	struct owner *owner;
	unsigned n = 0;

	LIST_FOREACH(owner, &owners, link)
	n++;
	return n;
}

void owner_report(struct cudapool_json *json, int limit)
{
	struct owner *owner;

	LIST_FOREACH(owner, &owners, link)
	{
		if (limit-- <= 0)
			return;
		cudapool_json_open(json, NULL, '{');
		cudapool_json_number(json, "pid", owner->process.pid);
		cudapool_json_string(json, "name", owner->name);
		cudapool_json_bool(json, "alive", !owner->dead);
		cudapool_json_number(json, "plugin_connections", owner->plugins);
		cudapool_json_number(json, "held", owner->held);
		cudapool_json_number(json, "streams", owner->streams);
		cudapool_json_number(json, "chunk_mb", owner->chunk_mb);
		cudapool_json_close(json, '}');
	}
}
