// SPDX-License-Identifier: MIT
/* The name of this build, for people: version and the linker's build id. */
#include "build.h"

#include <elf.h>
#include <link.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "message.h"

static char name[CUDAPOOL_BUILD_LEN] = CUDAPOOL_VERSION;

static void append_id(const unsigned char *id, size_t length)
{
	size_t used = strlen(name), i;

	if (used + 2 >= sizeof(name))
		return;
	name[used++] = ' ';
	for (i = 0; i < length && i < 8 && used + 3 <= sizeof(name); i++)
		used += (size_t)sprintf(name + used, "%02x", id[i]);
}

static int look_at_object(struct dl_phdr_info *info, size_t size, void *unused)
{
	const char *note, *end;
	const ElfW(Nhdr) * header;
	int i;

	for (i = 0; i < info->dlpi_phnum; i++) {
		if (info->dlpi_phdr[i].p_type != PT_NOTE)
			continue;
		note = (const char *)(info->dlpi_addr + info->dlpi_phdr[i].p_vaddr);
		end = note + info->dlpi_phdr[i].p_memsz;
		while (note + sizeof(*header) <= end) {
			header = (const void *)note;
			note += sizeof(*header);
			if (header->n_type == NT_GNU_BUILD_ID && header->n_namesz == 4 && !memcmp(note, "GNU", 4)) {
				append_id((const unsigned char *)note + 4, header->n_descsz);
				return 1;
			}
			note += ((header->n_namesz + 3) & ~3u) + ((header->n_descsz + 3) & ~3u);
		}
	}
	return 1; /* the first object is the program itself: no other counts */
}

static void look(void)
{
	dl_iterate_phdr(look_at_object, NULL);
}

const char *build_name(void)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT; /* the worker's jobs ask as well */

	pthread_once(&once, look);
	return name;
}
