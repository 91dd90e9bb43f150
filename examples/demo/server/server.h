/* A small key-value server that speaks lines over TCP: what the files share. */
#ifndef SERVER_H
#define SERVER_H

#include <pthread.h>
#include <stddef.h>

/* What is kept for a key: a text, a counter, and numbers to take the mean of. */
struct entry {
    struct entry *next;
    char *key;
    char *text;
    long counter;
    long samples;
    long total;
};

/* Find a key, or make it when `create` is set.  The entry comes back locked; give it to `store_release`. */
struct entry *store_find(const char *key, int create);
void store_release(const struct entry *entry);
long store_keys(void);

/* Answer one request (a line without its end) into `out`; the length of the answer, its newline included. */
size_t answer(char *line, char *out, size_t size);

#endif
