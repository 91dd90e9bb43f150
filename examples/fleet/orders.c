/* The orders: what customers say, what they are answered, and what was sold. */
#include "shop.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

/* What was sold since the shop opened. */
static struct {
    long orders;
    long cents;
} books;

static int buy(const char *item, long count, long *orders, char *out, size_t size)
{
    long cents = price(item, count);
    if (cents == -1)
        return snprintf(out, size, "ERROR: no %s here\n", item);
    pthread_mutex_lock(&lock);
    books.orders++;
    books.cents += cents;
    pthread_mutex_unlock(&lock);
    return snprintf(out, size, "OK %ld %ld\n", ++*orders, cents);
}

static int tell(char *out, size_t size)
{
    pthread_mutex_lock(&lock);
    int length = snprintf(out, size, "orders=%ld cents=%ld\n", books.orders, books.cents);
    pthread_mutex_unlock(&lock);
    return length;
}

int answer(const char *line, long *orders, char *out, size_t size)
{
    char item[32] = "";
    long count = 0;
    if (sscanf(line, "PRICE %31s %ld", item, &count) == 2)
        return snprintf(out, size, "%ld\n", price(item, count));
    if (sscanf(line, "BUY %31s %ld", item, &count) == 2)
        return buy(item, count, orders, out, size);
    if (strncmp(line, "BOOKS", 5) == 0)
        return tell(out, size);
    return snprintf(out, size, "ERROR: what?\n");
}
