/* What things cost: a library, so that other shops can ask too. */
#include "shop.h"

#include <stddef.h>
#include <string.h>

static const struct {
    const char *name;
    long cents;
} list[] = { { "tea", 255 }, { "milk", 119 }, { "honey", 649 } };

long price(const char *item, long count)
{
    for (size_t i = 0; i < sizeof list / sizeof *list; i++)
        if (strcmp(list[i].name, item) == 0)
            return list[i].cents * count;
    return -1;
}
