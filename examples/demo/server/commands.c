/* The commands.
 *
 *   SET key text     OK                      INCR key         the new value
 *   GET key          the text, or NONE       ADD key number   OK
 *   STATS            counters                MEAN key         the mean of the numbers added
 */
#include "server.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define COMPLAIN(text) snprintf(out, size, "ERROR %s (commands.c:%d)\n", text, __LINE__)

/* What STATS tells. */
static struct counters {
    long requests;
} counters;

static int cmd_set(char *key, char *rest, char *out, size_t size)
{
    if (!key || !rest)
        return COMPLAIN("SET needs a key and a text");
    struct entry *entry = store_find(key, 1);
    free(entry->text);
    entry->text = strdup(rest);
    store_release(entry);
    return snprintf(out, size, "OK\n");
}

static int cmd_get(char *key, char *rest, char *out, size_t size)
{
    (void)rest;
    if (!key)
        return COMPLAIN("GET needs a key");
    struct entry *entry = store_find(key, 0);
    int length = snprintf(out, size, "%s\n", entry && entry->text ? entry->text : "NONE");
    if (entry)
        store_release(entry);
    return length;
}

static int cmd_mean(char *key, char *rest, char *out, size_t size)
{
    (void)rest;
    struct entry *entry = key ? store_find(key, 0) : NULL;
    if (!entry)
        return COMPLAIN("MEAN needs a key that has numbers");
    long mean = entry->samples ? entry->total / entry->samples : 0;
    store_release(entry);
    return snprintf(out, size, "%ld\n", mean);
}

static int cmd_incr(char *key, char *rest, char *out, size_t size)
{
    (void)rest;
    if (!key)
        return COMPLAIN("INCR needs a key");
    struct entry *entry = store_find(key, 1);
    long value = ++entry->counter;
    store_release(entry);
    return snprintf(out, size, "%ld\n", value);
}

static int cmd_add(char *key, char *rest, char *out, size_t size)
{
    if (!key || !rest)
        return COMPLAIN("ADD needs a key and a number");
    struct entry *entry = store_find(key, 1);
    entry->total += strtol(rest, NULL, 10);
    entry->samples++;
    store_release(entry);
    return snprintf(out, size, "OK\n");
}

static int cmd_stats(char *key, char *rest, char *out, size_t size)
{
    (void)key, (void)rest;
    return snprintf(out, size, "requests=%ld keys=%ld\n", __atomic_load_n(&counters.requests, __ATOMIC_RELAXED),
                    store_keys());
}

static const struct command {
    const char *name;
    int (*run)(char *key, char *rest, char *out, size_t size);
} commands[] = {
    { "SET", cmd_set }, { "GET", cmd_get },   { "MEAN", cmd_mean },
    { "INCR", cmd_incr }, { "ADD", cmd_add }, { "STATS", cmd_stats },
};

size_t answer(char *line, char *out, size_t size)
{
    char *rest = line;
    char *name = strsep(&rest, " ");
    char *key = strsep(&rest, " ");
    int length = -1;
    __atomic_add_fetch(&counters.requests, 1, __ATOMIC_RELAXED);
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++)
        if (strcmp(commands[i].name, name) == 0)
            length = commands[i].run(key, rest, out, size);
    if (length < 0)
        length = COMPLAIN("unknown command");
    return (size_t)length < size ? (size_t)length : size - 1;
}
