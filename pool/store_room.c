// SPDX-License-Identifier: MIT
/* Room on the devices: what is free, kept free for whom, evicted for it; and the budget of what is hot. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "log.h"
#include "store_internal.h"

#define DEVICES_KNOWN	  64
#define DESCRIPTORS_SPARE 1024 /* for clients, channels, files */

struct device {
	uint8_t uuid[16];
	uint64_t free, total; /* as last heard */
	uint64_t kept;	      /* by rooms in ROOM_KEPT */
	int error;	      /* of the last answer */
	bool asked;
	struct job_memory query;
	char text[CUDAPOOL_TEXT_LEN];
};

static struct device devices[DEVICES_KNOWN];
static unsigned device_count, hot_percent;
static TAILQ_HEAD(, room) waiting = TAILQ_HEAD_INITIALIZER(waiting);
static struct loop_timer look;
static struct room *asked_for; /* the first of `waiting`, while questions for it are under way */

/* One that this machine lacks: images of other machines and pages of processes may name any number of them. */
static struct device *find_absent(void)
{
	struct device *device;

	for (device = devices; device < devices + device_count; device++)
		if (device->error == -EXDEV && !device->asked && !device->kept)
			return device;
	return NULL;
}

static struct device *device_find(const uint8_t uuid[16], bool make)
{
	struct device *device;

	for (device = devices; device < devices + device_count; device++)
		if (MATCHES(device->uuid, uuid))
			return device;
	if (!make)
		return NULL;
	if (device_count < DEVICES_KNOWN)
		device_count++;
	else
		device = find_absent();
	if (device) {
		*device = (struct device){};
		memcpy(device->uuid, uuid, sizeof(device->uuid));
	}
	return device;
}

/* Bytes of a park's pieces on a device. */
static uint64_t bytes_on(const struct park *park, const uint8_t uuid[16])
{
	uint64_t bytes = 0;
	unsigned i;

	for (i = 0; i < park->header.devices; i++)
		if (MATCHES(park->header.uuid[i], uuid))
			bytes += park->bytes[i];
	return bytes;
}

/* The least recently used park that may be evicted and has memory on the device (NULL: on any). */
static struct park *least_used(const uint8_t *uuid, const struct park *but)
{
	struct park *park, *least = NULL;

	LIST_FOREACH(park, &parks, link)
		if (park != but && park_evictable(park) && (!least || park->used_ms < least->used_ms) &&
		    (!uuid || bytes_on(park, uuid)))
			least = park;
	return least;
}

uint64_t rooms_evictable(const uint8_t uuid[16])
{
	uint64_t bytes = 0;
	struct park *park;

	LIST_FOREACH(park, &parks, link)
		if (park_evictable(park))
			bytes += bytes_on(park, uuid);
	return bytes;
}

/* ---- rooms ------------------------------------------------------------------------------------ */

static unsigned descriptors_most(void)
{
	struct rlimit limit;

	if (getrlimit(RLIMIT_NOFILE, &limit) || limit.rlim_cur <= 2 * DESCRIPTORS_SPARE)
		return DESCRIPTORS_SPARE;
	return limit.rlim_cur > 1u << 30 ? 1u << 30 : (unsigned)limit.rlim_cur - DESCRIPTORS_SPARE;
}

static void end_room(struct room *room, int error, const char *text)
{
	TAILQ_REMOVE(&waiting, room, link);
	room->state = error ? ROOM_IDLE : ROOM_KEPT;
	loop_timer_set(&look, 0);
	room->done(room, error, text);
}

static void keep(struct room *room, int sign)
{
	struct device *device;
	unsigned i;

	for (i = 0; i < room->need.devices; i++) {
		device = device_find(room->need.uuid[i], false);
		if (device)
			device->kept += sign * room->need.bytes[i];
	}
}

/* What is free on the device beyond what is kept for others. */
static uint64_t available(const struct device *device)
{
	return device->free > device->kept ? device->free - device->kept : 0;
}

/* 0: it fits; -EAGAIN: it may, once something has been closed or has ended; else never, and `text` says why. */
static int make_fit(struct room *room, char *text)
{
	const struct device *device, *lacking = NULL;
	uint64_t missing, evicted = 0, needed = 0;
	struct park *park;
	unsigned i;

	for (i = 0; i < room->need.devices && !lacking; i++) {
		device = device_find(room->need.uuid[i], false);
		if (room->need.bytes[i] && available(device) < room->need.bytes[i]) {
			lacking = device;
			needed = room->need.bytes[i];
		}
	}
	if (!lacking)
		return 0;
	if (!room->gently && memory_closing())
		return -EAGAIN; /* it would count as missing */
	missing = needed - available(lacking);
	while (!room->gently && missing && (park = least_used(lacking->uuid, room->for_park))) {
		evicted = bytes_on(park, lacking->uuid);
		missing -= evicted < missing ? evicted : missing;
		park_evict(park);
	}
	if (evicted || (!room->gently && !room->soon && jobs_busy()))
		return -EAGAIN;
	snprintf(text, CUDAPOOL_TEXT_LEN,
		 "not enough GPU memory: %llu MiB are needed, %llu of %llu MiB are free%s, and no parked memory is "
		 "left to evict: end what else uses this GPU",
		 (unsigned long long)needed >> 20, (unsigned long long)lacking->free >> 20,
		 (unsigned long long)lacking->total >> 20, lacking->kept ? " (some kept for other restores)" : "");
	return -ENOMEM;
}

/* The same for descriptors. */
static int fit_descriptors(const struct room *room, char *text)
{
	unsigned most = descriptors_most();
	struct park *park;

	if (memory_descriptors() <= most)
		return 0;
	park = room->gently ? NULL : least_used(NULL, room->for_park);
	if (park)
		park_evict(park);
	if (park || (!room->gently && memory_closing()))
		return -EAGAIN;
	snprintf(text, CUDAPOOL_TEXT_LEN,
		 "%u pieces of parked memory need a descriptor each, and the pool may have %u: raise its limit of open "
		 "files (LimitNOFILE= of cudapoold.service, ulimit -n)",
		 memory_descriptors(), most);
	return -EMFILE;
}

/* All that was asked has been answered. */
static void decide(struct room *room)
{
	char text[CUDAPOOL_TEXT_LEN] = "";
	struct device *device;
	unsigned i;
	int err;

	for (i = 0; i < room->need.devices; i++) {
		device = device_find(room->need.uuid[i], false);
		if (!device || device->error) {
			end_room(room, device ? device->error : -EXDEV,
				 device ? device->text : "this machine lacks a GPU");
			return;
		}
	}
	err = fit_descriptors(room, text);
	if (!err)
		err = make_fit(room, text);
	if (err == -EAGAIN)
		return; /* rooms_kick() comes when a job has ended or memory is closed */
	if (!err)
		keep(room, 1);
	end_room(room, err, text);
}

static void answered(struct job_memory *query)
{
	struct device *device = container_of(query, struct device, query), *other;
	struct room *room;
	bool all = true;

	device->asked = false;
	device->error = query->error;
	snprintf(device->text, sizeof(device->text), "%s", query->text);
	if (!query->error) {
		device->free = query->free;
		device->total = query->total;
	}
	for (other = devices; other < devices + device_count; other++)
		all &= !other->asked;
	if (!all)
		return;
	room = asked_for;
	asked_for = NULL;
	if (room && room == TAILQ_FIRST(&waiting))
		decide(room);
	else
		rooms_kick();
	rooms_enforce();
}

static void ask(struct device *device)
{
	if (device->asked)
		return;
	device->asked = true;
	memcpy(device->query.uuid, device->uuid, sizeof(device->uuid));
	device->query.done = answered;
	job_memory_start(&device->query);
}

static void look_at_first(struct loop_timer *timer)
{
	struct room *room = TAILQ_FIRST(&waiting);
	struct device *device;
	unsigned i;

	if (!room || asked_for)
		return;
	for (i = 0; i < room->need.devices; i++) {
		device = device_find(room->need.uuid[i], true);
		if (!device) {
			asked_for = NULL;
			end_room(room, -EXDEV, "more different GPUs than this pool can count");
			return;
		}
		asked_for = room;
		ask(device);
	}
	if (!asked_for)
		decide(room); /* nothing is needed */
}

void room_ask(struct room *room)
{
	room->state = ROOM_WAITING;
	if (room->soon)
		TAILQ_INSERT_HEAD(&waiting, room, link);
	else
		TAILQ_INSERT_TAIL(&waiting, room, link);
	loop_timer_set(&look, 0);
}

void room_release(struct room *room)
{
	if (room->state == ROOM_WAITING)
		TAILQ_REMOVE(&waiting, room, link);
	else if (room->state == ROOM_KEPT)
		keep(room, -1);
	if (room->state != ROOM_IDLE)
		loop_timer_set(&look, 0);
	if (asked_for == room)
		asked_for = NULL;
	room->state = ROOM_IDLE;
}

void rooms_kick(void)
{
	loop_timer_set(&look, 0);
}

int rooms_descriptors(unsigned count)
{
	unsigned most = descriptors_most();
	struct park *park;

	while (memory_descriptors() + count > most && (park = least_used(NULL, NULL)))
		park_evict(park);
	/* What is being closed is as good as closed: it takes longer for as many others to come. */
	return memory_descriptors() - memory_closing() + count > most ? -EMFILE : 0;
}

/* ---- the budget --------------------------------------------------------------------------------- */

static uint64_t hot_on(const uint8_t uuid[16])
{
	uint64_t bytes = 0;
	struct park *park;

	LIST_FOREACH(park, &parks, link)
		if (park->hot && !park->held)
			bytes += bytes_on(park, uuid);
	return bytes;
}

static void enforce_on(struct device *device)
{
	uint64_t most = device->total / 100 * hot_percent;
	struct park *park;

	while (hot_on(device->uuid) > most && (park = least_used(device->uuid, NULL))) {
		cudapool_log(CUDAPOOL_LOG_INFO, "evicting process %d (%s): hot memory is beyond %u %% of the GPU",
			     park->header.pid, park->header.name, hot_percent);
		park_evict(park);
	}
}

void rooms_enforce(void)
{
	struct park *park, *next;
	struct device *device;
	unsigned i;

	for (park = LIST_FIRST(&parks); park; park = next) {
		next = LIST_NEXT(park, link);
		if (!park->held && park_evictable(park) && (park->hot_mode == CUDAPOOL_HOT_OFF || !hot_percent))
			park_evict(park);
		for (i = 0; park->hot && i < park->header.devices; i++) {
			device = device_find(park->header.uuid[i], true);
			if (device && !device->total && !device->error)
				ask(device);
		}
	}
	for (device = devices; device < devices + device_count; device++)
		if (device->total)
			enforce_on(device);
	watch_changed();
}

void rooms_init(unsigned percent)
{
	hot_percent = percent;
	look.fire = look_at_first;
}
