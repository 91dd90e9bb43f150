/* A shop that takes orders at a socket. */
#ifndef SHOP_H
#define SHOP_H

#include <stddef.h>

/* Answer a line into `out`; the length of the answer.  `orders` counts those of this customer.
 *
 *   PRICE item count     the price in cents
 *   BUY item count       OK, how many orders of this customer that makes, the price
 *   BOOKS                what was sold
 */
int answer(const char *line, long *orders, char *out, size_t size);

/* What so many pieces cost, in cents; -1 where there is no such thing. */
long price(const char *item, long count);

#endif
