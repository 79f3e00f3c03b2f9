// SPDX-License-Identifier: MIT
/* Symbol lookup in loaded objects: without allocation, without dlsym, without touching dlerror. */
#ifndef CUDAPOOL_PRELOAD_ELF_H
#define CUDAPOOL_PRELOAD_ELF_H

#include <link.h>
#include <stdbool.h>
#include <stdint.h>

struct elf_object {
	const char *path, *soname; /* soname: "" if there is none; valid as long as the object is loaded */
	uintptr_t base, low, high; /* low <= address < high */
	const ElfW(Sym) * symbols;
	const char *strings;
	const uint32_t *gnu_hash, *hash; /* either may be NULL */
	const ElfW(Half) * versions;     /* NULL: no versions */
};

void elf_object(struct elf_object *o, const struct dl_phdr_info *info);

/*
 * The address of a defined symbol whose version, if there are any, is the default one: what dlsym(handle
 * of that object alone) finds. NULL for an indirect function, which none of those that we look for is.
 */
void *elf_find(const struct elf_object *o, const char *name);

/*
 * The first definition of `name`, in load order, in the objects after the one that holds the address
 * `after` (NULL: in all).
 */
void *elf_find_after(const void *after, const char *name);

/* Calls `want` for each loaded object until it returns true; then *found is that object, and the result true. */
bool elf_select(bool (*want)(const struct elf_object *o, const void *arg), const void *arg, struct elf_object *found);

#endif
