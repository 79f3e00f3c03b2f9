// SPDX-License-Identifier: MIT
/* Symbol lookup in loaded objects: without allocation, without dlsym, without touching dlerror. */
#include "elf.h"

#include <elf.h>
#include <stddef.h>

#define VERSION_HIDDEN 0x8000

static void read_dynamic(struct elf_object *o, const ElfW(Dyn) * dyn)
{
	ElfW(Addr) soname = 0;
	bool named = false;

	for (; dyn && dyn->d_tag != DT_NULL; dyn++) {
		/* glibc has added the base to these already, except in objects that it cannot write to (the vDSO). */
		uintptr_t at = dyn->d_un.d_ptr < o->base ? o->base + dyn->d_un.d_ptr : dyn->d_un.d_ptr;

		switch (dyn->d_tag) {
		case DT_SYMTAB:
			o->symbols = (const void *)at;
			break;
		case DT_STRTAB:
			o->strings = (const void *)at;
			break;
		case DT_GNU_HASH:
			o->gnu_hash = (const void *)at;
			break;
		case DT_HASH:
			o->hash = (const void *)at;
			break;
		case DT_VERSYM:
			o->versions = (const void *)at;
			break;
		case DT_SONAME:
			soname = dyn->d_un.d_val;
			named = true;
			break;
		}
	}
	if (named && o->strings)
		o->soname = o->strings + soname;
}

void elf_object(struct elf_object *o, const struct dl_phdr_info *info)
{
	const ElfW(Dyn) *dyn = NULL;
	int i;

	*o = (struct elf_object){.path = info->dlpi_name, .soname = "", .base = info->dlpi_addr, .low = UINTPTR_MAX};
	for (i = 0; i < info->dlpi_phnum; i++) {
		const ElfW(Phdr) *ph = &info->dlpi_phdr[i];
		uintptr_t start = o->base + ph->p_vaddr;

		if (ph->p_type == PT_DYNAMIC)
			dyn = (const void *)start;
		if (ph->p_type != PT_LOAD)
			continue;
		if (start < o->low)
			o->low = start;
		if (start + ph->p_memsz > o->high)
			o->high = start + ph->p_memsz;
	}
	read_dynamic(o, dyn);
}

static void *defined(const struct elf_object *o, uint32_t index, const char *name)
{
	const ElfW(Sym) *s = &o->symbols[index];
	int type = ELF64_ST_TYPE(s->st_info); /* the same for both classes */

	if (s->st_shndx == SHN_UNDEF || (type != STT_FUNC && type != STT_NOTYPE))
		return NULL;
	if (o->versions && (o->versions[index] & VERSION_HIDDEN))
		return NULL;
	return elf_compare(o->strings + s->st_name, name) ? NULL : (void *)(o->base + s->st_value);
}

static void *find_gnu(const struct elf_object *o, const char *name)
{
	const uint32_t *h = o->gnu_hash;
	uint32_t buckets = h[0], first = h[1], bloom_words = h[2], shift = h[3], hash = 5381, i;
	const ElfW(Addr) *bloom = (const void *)(h + 4);
	const uint32_t *bucket = (const void *)(bloom + bloom_words), *chain = bucket + buckets;
	const unsigned bits = 8 * sizeof(*bloom);
	const unsigned char *c;
	ElfW(Addr) word;
	void *found;

	for (c = (const void *)name; *c; c++)
		hash = hash * 33 + *c;
	if (!buckets || !bloom_words)
		return NULL;
	word = bloom[hash / bits % bloom_words];
	if (!(word >> hash % bits & word >> (hash >> shift) % bits & 1))
		return NULL;
	for (i = bucket[hash % buckets]; i >= first; i++) {
		uint32_t entry = chain[i - first];

		if ((entry | 1) == (hash | 1) && (found = defined(o, i, name)))
			return found;
		if (entry & 1)
			break;
	}
	return NULL;
}

static void *find_sysv(const struct elf_object *o, const char *name)
{
	const uint32_t *h = o->hash;
	uint32_t buckets = h[0], hash = 0, i;
	const unsigned char *c;
	void *found;

	for (c = (const void *)name; *c; c++) {
		hash = (hash << 4) + *c;
		hash = (hash ^ (hash >> 24 & 0xf0)) & 0x0fffffff;
	}
	if (!buckets)
		return NULL;
	for (i = h[2 + hash % buckets]; i != STN_UNDEF; i = h[2 + buckets + i])
		if ((found = defined(o, i, name)))
			return found;
	return NULL;
}

void *elf_find(const struct elf_object *o, const char *name)
{
	if (!o->symbols || !o->strings)
		return NULL;
	if (o->gnu_hash)
		return find_gnu(o, name);
	return o->hash ? find_sysv(o, name) : NULL;
}

void *elf_find_next(const char *name)
{
	const struct link_map *map;
	bool passed = false;
	void *found = NULL;

	for (map = _r_debug.r_map; map && !found; map = map->l_next) {
		struct elf_object o = {.soname = "", .base = map->l_addr};

		if (passed) {
			read_dynamic(&o, map->l_ld);
			found = elf_find(&o, name);
		} else {
			passed = map->l_ld == _DYNAMIC;
		}
	}
	return found;
}

struct after {
	const char *name;
	uintptr_t after;
	bool passed;
	void *found;
};

static int visit_after(struct dl_phdr_info *info, size_t size, void *arg)
{
	struct after *a = arg;
	struct elf_object o;

	elf_object(&o, info);
	if (a->passed)
		a->found = elf_find(&o, a->name);
	else if (o.low <= a->after && a->after < o.high)
		a->passed = true;
	return a->found != NULL;
}

void *elf_find_after(const void *after, const char *name)
{
	struct after a = {.name = name, .after = (uintptr_t)after, .passed = !after};

	dl_iterate_phdr(visit_after, &a);
	return a.found;
}

struct select {
	bool (*want)(const struct elf_object *o, const void *arg);
	const void *arg;
	struct elf_object *found;
};

static int visit_select(struct dl_phdr_info *info, size_t size, void *arg)
{
	struct select *s = arg;

	elf_object(s->found, info);
	return s->want(s->found, s->arg);
}

bool elf_select(bool (*want)(const struct elf_object *o, const void *arg), const void *arg, struct elf_object *found)
{
	struct select s = {want, arg, found};

	return dl_iterate_phdr(visit_select, &s) != 0;
}
