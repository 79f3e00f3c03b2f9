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
 * The path that every dlsym takes calls no function of libc that a sanitizer intercepts: sanitizers look up
 * their own with dlsym before those work. Hence our own strcmp.
 */
static inline int elf_compare(const char *a, const char *b)
{
	while (*a && *a == *b)
		a++, b++;
	return (unsigned char)*a - (unsigned char)*b;
}

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

/* The same for the objects after ourselves, by the loader's list alone. For the first lookups of a process. */
void *elf_find_next(const char *name);

/* Calls `want` for each loaded object until it returns true; then *found is that object, and the result true. */
bool elf_select(bool (*want)(const struct elf_object *o, const void *arg), const void *arg, struct elf_object *found);

#endif
