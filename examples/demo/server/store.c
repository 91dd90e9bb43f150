/* The keys: a hash table on the heap, with a lock for each part of it so that workers do not wait for one another. */
#include "server.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PARTS 16
#define CHAINS 64

static struct part {
    pthread_mutex_t lock;
    struct entry *chains[CHAINS];
} parts[PARTS] = { [0 ... PARTS - 1] = { .lock = PTHREAD_MUTEX_INITIALIZER } };

static long keys;

static unsigned long hash(const char *key)
{
    unsigned long value = 5381;
    while (*key)
        value = value * 33 + (unsigned char)*key++;
    return value;
}

static void *need(void *memory)
{
    if (!memory) {
        fprintf(stderr, "server: out of memory\n");
        exit(1);
    }
    return memory;
}

struct entry *store_find(const char *key, int create)
{
    unsigned long value = hash(key);
    struct part *part = &parts[value % PARTS];
    struct entry **chain = &part->chains[value / PARTS % CHAINS];
    pthread_mutex_lock(&part->lock);
    for (struct entry *entry = *chain; entry; entry = entry->next)
        if (strcmp(entry->key, key) == 0)
            return entry;
    if (create) {
        struct entry *entry = need(calloc(1, sizeof *entry));
        entry->key = need(strdup(key));
        entry->next = *chain;
        *chain = entry;
        __atomic_add_fetch(&keys, 1, __ATOMIC_RELAXED);
        return entry;
    }
    pthread_mutex_unlock(&part->lock);
    return NULL;
}

void store_release(const struct entry *entry)
{
    pthread_mutex_unlock(&parts[hash(entry->key) % PARTS].lock);
}

long store_keys(void)
{
    return __atomic_load_n(&keys, __ATOMIC_RELAXED);
}
