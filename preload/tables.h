// SPDX-License-Identifier: MIT
/* Where the shim keeps what it knows of memory: pages of its own, and an ordered index. */
#ifndef CUDAPOOL_PRELOAD_TABLES_H
#define CUDAPOOL_PRELOAD_TABLES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Nodes in the order of their keys, each key once: a treap. Every step takes O(log n) and needs no memory of its own. */
struct node {
	struct node *left, *right;
	uint64_t key;
	uint32_t priority;
};

void cudapool_tree_insert(struct node **root, struct node *node);
void cudapool_tree_remove(struct node **root, struct node *node);
struct node *cudapool_tree_at_most(struct node *root, uint64_t key); /* the last one with a key <= `key`, or NULL */
struct node *cudapool_tree_more(struct node *root, uint64_t key);    /* the first one with a key > `key`, or NULL */

/*
 * Objects of one size, in pages that no child of a fork inherits and that nothing else uses: the application's
 * allocator may be at any point when we need one. What is given back is used again, and never unmapped.
 */
struct slab {
	void *free;
	size_t size; /* of one object: at least a pointer's; set it before the first use */
};
void *cudapool_slab_get(struct slab *slab); /* zeroed; NULL: no memory */
void cudapool_slab_put(struct slab *slab, void *object);

/* Zeroed pages that fork does not copy; NULL: none. */
void *cudapool_pages_get(size_t bytes);
void cudapool_pages_put(void *pages, size_t bytes); /* NULL is fine */

#endif
