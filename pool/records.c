// SPDX-License-Identifier: MIT
/* Statistics: what became of each checkpoint and restore, for the report and beside the images. */
#include "records.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "log.h"
#include "store_internal.h"

#define RECORD_JSON 4096 /* bytes of one record that suffice */
#define OF_DIR_MAX  256	 /* records of one directory */
#define ID_LEN	    64	 /* of a container's id */

struct record {
	struct store_note note; /* its pointers are not valid any more */
	struct cudapool_channel_end end;
	char why[CUDAPOOL_TEXT_LEN], container[ID_LEN + 1], name[16], token[2 * IMAGE_TOKEN_LEN + 1];
	int pid, tier; /* enum cudapool_tier; -1: none */
	time_t at;
	uint64_t parked_bytes, image_bytes, stored_bytes, recycled_bytes, save_us, claim_us, load_us;
};

static struct record last[RECORDS_KEPT];
static uint64_t count;

const char *tier_name(enum cudapool_tier tier)
{
	static const char *const names[] = {"hot", "staged", "cold"};

	return names[tier];
}

void container_of_process(int pid, char id[65])
{
	char path[32], text[4096], *c;
	int fd, length = 0;
	ssize_t n = -1;

	id[0] = '\0';
	snprintf(path, sizeof(path), "/proc/%d/cgroup", pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return;
	n = read(fd, text, sizeof(text) - 1);
	close(fd);
	text[n > 0 ? n : 0] = '\0';
	/* Podman, Docker and Kubernetes all name the cgroup by it, each with something else around it. */
	for (c = text; *c; c++) {
		length = isxdigit((unsigned char)*c) && !isupper((unsigned char)*c) ? length + 1 : 0;
		if (length == ID_LEN && !isxdigit((unsigned char)c[1])) {
			snprintf(id, ID_LEN + 1, "%s", c + 1 - ID_LEN);
			return;
		}
	}
}

/* ---- as JSON ----------------------------------------------------------------------------------- */

static void put_left(struct cudapool_json *json, const uint64_t left[CUDAPOOL_LEFT_KINDS])
{
	static const char *const kinds[CUDAPOOL_LEFT_KINDS] = {
		[CUDAPOOL_LEFT_SMALL] = "small",   [CUDAPOOL_LEFT_ORDERED] = "ordered",
		[CUDAPOOL_LEFT_MANAGED] = "managed", [CUDAPOOL_LEFT_ARRAY] = "array",
		[CUDAPOOL_LEFT_SHARED] = "shared", [CUDAPOOL_LEFT_REFUSED] = "refused",
	};
	unsigned i;

	cudapool_json_open(json, "left_bytes", '{');
	for (i = 0; i < CUDAPOOL_LEFT_KINDS; i++)
		cudapool_json_number(json, kinds[i], (long long)left[i]);
	cudapool_json_close(json, '}');
}

static void put_phases(struct cudapool_json *json, const struct record *record)
{
	static const char *const phases[CUDAPOOL_PHASE_COUNT] = {
		[CUDAPOOL_PHASE_GATE] = "gate",	    [CUDAPOOL_PHASE_DRAIN] = "drain", [CUDAPOOL_PHASE_COPY] = "copy",
		[CUDAPOOL_PHASE_EXPORT] = "export", [CUDAPOOL_PHASE_MAP] = "map",
	};
	const struct store_note *note = &record->note;
	unsigned i;

	cudapool_json_open(json, "phases_us", '{');
	for (i = 0; i < CUDAPOOL_PHASE_COUNT; i++)
		cudapool_json_number(json, phases[i], record->end.phase_us[i]);
	cudapool_json_number(json, "lock", (long long)note->lock_us);
	cudapool_json_number(json, "checkpoint", (long long)note->checkpoint_us);
	cudapool_json_number(json, "save", (long long)record->save_us);
	cudapool_json_number(json, "claim", (long long)record->claim_us);
	cudapool_json_number(json, "load", (long long)record->load_us);
	cudapool_json_number(json, "restore", (long long)note->restore_us);
	cudapool_json_number(json, "unlock", (long long)note->unlock_us);
	cudapool_json_number(json, "give", (long long)note->give_us);
	cudapool_json_close(json, '}');
}

static void put_record(struct cudapool_json *json, const struct record *record)
{
	static const char *const paths[] = {
		[CUDAPOOL_PATH_STOCK] = "stock",       [CUDAPOOL_PATH_PARKED] = "parked",
		[CUDAPOOL_PATH_HOT_MOVE] = "hot-move", [CUDAPOOL_PATH_HOT_COPY] = "hot-copy",
		[CUDAPOOL_PATH_LOADED] = "loaded",     [CUDAPOOL_PATH_RETURNED] = "returned",
	};
	char at[32];
	struct tm tm;

	gmtime_r(&record->at, &tm);
	strftime(at, sizeof(at), "%FT%TZ", &tm);
	cudapool_json_open(json, NULL, '{');
	cudapool_json_string(json, "stage", record->note.stage == CUDAPOOL_STAGE_DUMP ? "dump" : "restore");
	cudapool_json_string(json, "at", at);
	cudapool_json_string(json, "path", paths[record->note.path]);
	cudapool_json_number(json, "error", record->note.error);
	cudapool_json_string(json, "why", record->why);
	cudapool_json_string(json, "container", record->container);
	cudapool_json_string(json, "process", record->name);
	cudapool_json_number(json, "pid", record->pid);
	cudapool_json_string(json, "token", record->token);
	if (record->tier < 0)
		cudapool_json_null(json, "tier");
	else
		cudapool_json_string(json, "tier", tier_name((enum cudapool_tier)record->tier));
	cudapool_json_number(json, "parked_bytes", (long long)record->parked_bytes);
	cudapool_json_number(json, "image_bytes", (long long)record->image_bytes);
	cudapool_json_number(json, "stored_bytes", (long long)record->stored_bytes);
	cudapool_json_number(json, "recycled_bytes", (long long)record->recycled_bytes);
	put_left(json, record->note.left);
	put_phases(json, record);
	cudapool_json_number(json, "held_threads", record->end.held);
	cudapool_json_close(json, '}');
}

/* ---- beside the images -------------------------------------------------------------------------- */

void records_free(struct records *records)
{
	while (records->count)
		free(records->json[--records->count]);
	free(records->json);
	records->json = NULL;
}

void records_remove(int dir_fd)
{
	unlinkat(dir_fd, RECORDS_DUMP, 0);
	unlinkat(dir_fd, RECORDS_RESTORE, 0);
}

static bool put_text(int fd, const char *text)
{
	size_t length = strlen(text);

	return write(fd, text, length) == (ssize_t)length;
}

/* Small, and of no consequence: where the directory is gone or full, so are the statistics. */
static void write_file(const struct store_dir *dir, const char *name)
{
	char part[64];
	bool ok;
	unsigned i;
	int fd;

	snprintf(part, sizeof(part), "%s.part", name);
	unlinkat(dir->fd, part, 0);
	fd = openat(dir->fd, part, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (fd < 0)
		return;
	ok = put_text(fd, "{\"schema\":\"cudapool-records-1\",\"records\":[\n");
	for (i = 0; i < dir->records.count; i++)
		ok = ok && put_text(fd, i ? ",\n" : "") && put_text(fd, dir->records.json[i]);
	ok = ok && put_text(fd, "\n]}\n");
	close(fd);
	if (!ok || renameat(dir->fd, part, dir->fd, name)) {
		cudapool_log(CUDAPOOL_LOG_INFO, "the statistics cannot be written to %.200s/%s: %s", dir->path, name,
			     strerror(errno));
		unlinkat(dir->fd, part, 0);
	}
}

static void add_to_dir(struct store_dir *dir, const struct record *record)
{
	struct records *records = &dir->records;
	char json[RECORD_JSON], **more;
	struct cudapool_json j = {.out = json, .size = sizeof(json)};

	put_record(&j, record);
	if (cudapool_json_end(&j) < 0 || records->count == OF_DIR_MAX)
		return;
	more = realloc(records->json, (records->count + 1) * sizeof(*more));
	if (!more)
		return;
	records->json = more;
	records->json[records->count] = strdup(json);
	if (!records->json[records->count])
		return;
	records->count++;
	write_file(dir, record->note.stage == CUDAPOOL_STAGE_DUMP ? RECORDS_DUMP : RECORDS_RESTORE);
}

void store_note(struct store_dir *dir, const struct park *park, const struct store_gift *gift,
		const struct store_note *note)
{
	struct record *record = &last[count++ % RECORDS_KEPT];

	*record = (struct record){.note = *note, .pid = note->process->pid, .tier = -1, .at = time(NULL)};
	if (note->end)
		record->end = *note->end;
	snprintf(record->why, sizeof(record->why), "%s", note->why ? note->why : "");
	container_of_process(record->pid, record->container);
	process_name(record->pid, record->name);
	if (!park && gift)
		park = gift->park;
	if (park) {
		image_hex(record->token, park->header.token);
		record->parked_bytes = park->header.bytes;
		record->image_bytes = park->image_bytes;
		record->stored_bytes = park->header.stored;
		record->save_us = note->stage == CUDAPOOL_STAGE_DUMP ? park->save_us : 0;
		record->recycled_bytes = note->stage == CUDAPOOL_STAGE_DUMP ? park->recycled_bytes : 0;
	}
	if (gift) {
		record->claim_us = gift->claim_us;
		record->load_us = gift->load_us;
		if (note->stage == CUDAPOOL_STAGE_RESTORE)
			record->tier = gift->path == CUDAPOOL_PATH_LOADED ? (int)park->tier : CUDAPOOL_TIER_HOT;
	}
	if (dir && !dir->own)
		add_to_dir(dir, record);
}

void records_report(struct cudapool_json *json, int limit)
{
	uint64_t i;

	cudapool_json_open(json, "records", '[');
	for (i = count; i > 0 && count - i < RECORDS_KEPT && limit-- > 0; i--)
		put_record(json, &last[(i - 1) % RECORDS_KEPT]);
	cudapool_json_close(json, ']');
}
