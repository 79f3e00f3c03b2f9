// SPDX-License-Identifier: MIT
/* Where the shim keeps what it knows of memory: pages of its own, and an ordered index. */
#include <string.h>
#include <sys/mman.h>

#include "tables.h"

#define SLAB_BYTES (256 << 10) /* that a slab grows by */

/* Well mixed, and another for each key: addresses are far from random. */
static uint32_t priority_of(uint64_t key)
{
	key = (key ^ key >> 31) * 0x7fb5d329728ea185ull;
	key = (key ^ key >> 27) * 0x81dadef4bc2dd44dull;
	return key >> 32;
}

void cudapool_tree_insert(struct node **root, struct node *node)
{
	struct node **link = root, **low = &node->left, **high = &node->right, *rest;

	node->priority = priority_of(node->key);
	while (*link && (*link)->priority > node->priority)
		link = node->key < (*link)->key ? &(*link)->left : &(*link)->right;
	/* What was here hangs below the new node: smaller keys to the left, larger ones to the right. */
	rest = *link;
	*link = node;
	while (rest) {
		if (rest->key < node->key) {
			*low = rest;
			low = &rest->right;
			rest = rest->right;
		} else {
			*high = rest;
			high = &rest->left;
			rest = rest->left;
		}
	}
	*low = *high = NULL;
}

void cudapool_tree_remove(struct node **root, struct node *node)
{
	struct node **link = root, *low = node->left, *high = node->right;

	while (*link != node)
		link = node->key < (*link)->key ? &(*link)->left : &(*link)->right;
	while (low && high) {
		if (low->priority > high->priority) {
			*link = low;
			link = &low->right;
			low = low->right;
		} else {
			*link = high;
			link = &high->left;
			high = high->left;
		}
	}
	*link = low ? low : high;
}

struct node *cudapool_tree_at_most(struct node *root, uint64_t key)
{
	struct node *best = NULL;

	while (root) {
		if (root->key <= key) {
			best = root;
			root = root->right;
		} else {
			root = root->left;
		}
	}
	return best;
}

struct node *cudapool_tree_more(struct node *root, uint64_t key)
{
	struct node *best = NULL;

	while (root) {
		if (root->key > key) {
			best = root;
			root = root->left;
		} else {
			root = root->right;
		}
	}
	return best;
}

void *cudapool_pages_get(size_t bytes)
{
	void *pages = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (pages == MAP_FAILED)
		return NULL;
	if (madvise(pages, bytes, MADV_DONTFORK)) {
		munmap(pages, bytes);
		return NULL;
	}
	return pages;
}

void cudapool_pages_put(void *pages, size_t bytes)
{
	if (pages)
		munmap(pages, bytes);
}

void *cudapool_slab_get(struct slab *slab)
{
	void *object = slab->free;

	if (!object) {
		char *pages = cudapool_pages_get(SLAB_BYTES);
		size_t at;

		if (!pages)
			return NULL;
		for (at = slab->size; at + slab->size <= SLAB_BYTES; at += slab->size)
			cudapool_slab_put(slab, pages + at);
		return pages;
	}
	slab->free = *(void **)object;
	memset(object, 0, slab->size);
	return object;
}

void cudapool_slab_put(struct slab *slab, void *object)
{
	*(void **)object = slab->free;
	slab->free = object;
}
