// SPDX-License-Identifier: MIT
/* Asks a process's control page, without a pool, whether its GPU memory is parked. */
#include "parked.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>

#include "control_page.h"

static bool read_page(int pid, unsigned long address, struct cudapool_page *page)
{
	struct iovec local = {page, sizeof(*page)}, remote = {(void *)address, sizeof(*page)};

	return process_vm_readv(pid, &local, 1, &remote, 1, 0) == sizeof(*page) &&
	       page->magic == CUDAPOOL_PAGE_MAGIC && page->version == CUDAPOOL_PAGE_VERSION;
}

bool cudapool_parked_says(int pid)
{
	struct cudapool_page page = {0};
	unsigned long address;
	bool found = false;
	size_t size = 0;
	char *line = NULL;
	char path[64];
	FILE *maps;

	snprintf(path, sizeof(path), "/proc/%d/maps", pid);
	maps = fopen(path, "re");
	while (maps && !found && getline(&line, &size, maps) > 0)
		found = strstr(line, " /memfd:" CUDAPOOL_PAGE_NAME) && sscanf(line, "%lx-", &address) == 1 &&
			read_page(pid, address, &page);
	free(line);
	if (maps)
		fclose(maps);
	return found && (page.park_state == CUDAPOOL_PARK_PARKED || page.park_state == CUDAPOOL_PARK_UNPARKING);
}
