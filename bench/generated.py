"""The program that is always at hand: some hundred C files generated alike on every machine, with a makefile.

Each unit has public functions that call the next unit's, static helpers, string and constant tables, a switch large
enough for a jump table, static locals and a struct walk: every kind of section and relocation a C compiler emits.
"""

from __future__ import annotations

import string
from pathlib import Path
from typing import Final

from bench.workload import Workload

FUNCTIONS: Final = 6

_HEADER = """\
#ifndef PROGRAM_H
#define PROGRAM_H
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
struct item { struct item *next; const char *name; unsigned long weight; unsigned kind; char text[32]; };
struct list { struct item *head; size_t count; unsigned long total; };
"""

_UNIT_HEAD = string.Template("""\
#include "program.h"
static const char *const names[] = { "alpha-$u", "beta-$u", "gamma-$u", "delta-$u", "epsilon-$u", "zeta-$u" };
static const unsigned long weights[8] = { $u, 3, 5, 7, 11, 13, 17, 19 };
static unsigned long seen_$u;
static unsigned long mix(unsigned long hash, const char *text)
{
	for (; *text; text++)
		hash = (hash ^ (unsigned char)*text) * 1099511628211ul;
	return hash;
}
static struct item *prepend(struct list *list, const char *name, unsigned kind)
{
	struct item *item = calloc(1, sizeof *item);
	if (!item)
		abort();
	item->name = name;
	item->kind = kind;
	item->weight = weights[kind % 8];
	snprintf(item->text, sizeof item->text, "%s/%u", name, kind);
	item->next = list->head;
	list->head = item;
	list->count++;
	return item;
}
""")

_FUNCTION = string.Template("""\
unsigned long unit_${u}_$f(struct list *list, unsigned depth)
{
	static unsigned calls;
	unsigned long total = ${f}ul + ${u}ul;
	calls++;
	for (struct item *item = list->head; item; item = item->next) {
		switch ((item->kind + depth) % 9) {
		case 0: total += item->weight * $f; break;
		case 1: total ^= mix(total, item->name); break;
		case 2: total -= strlen(item->text); break;
		case 3: total = total << 3 | total >> 61; break;
		case 4: total += mix(calls, "unit $u function $f"); break;
		case 5: total *= 31; break;
		case 6: total += weights[total % 8]; break;
		case 7: seen_$u += total & 1; break;
		default: total = ~total; break;
		}
	}
	if (list->count < 16)
		prepend(list, names[(calls + $f) % 6], (unsigned)total % 64);
	if (depth > 0)
		total += unit_${next}_$g(list, depth - 1);
	list->total += total;
	return total;
}
""")

_MAIN = """\
#include "program.h"
int main(void)
{
	struct list list = { 0 };
	unsigned long total = 0;
	for (unsigned round = 0; round < 4; round++)
		total += unit_0_0(&list, 20 + round);
	printf("%lu\\n", total);
	return 0;
}
"""

_MAKEFILE = """\
CC ?= cc
OPTIMIZATION ?= -O2
OBJECTS := {objects}
program: $(OBJECTS)
\t$(CC) -o $@ $(OBJECTS)
%.o: %.c program.h
\t$(CC) $(OPTIMIZATION) -Wall -c -o $@ $<
"""


def generate(folder: Path, units: int) -> Workload:
    """Write the program's sources, `units` of them and a main, into `folder`."""
    names = ["main", *(f"unit_{u}" for u in range(units))]
    declarations = "".join(
        f"unsigned long unit_{u}_{f}(struct list *list, unsigned depth);\n"
        for u in range(units)
        for f in range(FUNCTIONS)
    )
    (folder / "program.h").write_text(f"{_HEADER}{declarations}#endif\n")
    (folder / "main.c").write_text(_MAIN)
    for u in range(units):
        functions = (
            _FUNCTION.substitute(u=u, f=f, next=(u + 1) % units, g=(f + 1) % FUNCTIONS) for f in range(FUNCTIONS)
        )
        (folder / f"unit_{u}.c").write_text(_UNIT_HEAD.substitute(u=u) + "".join(functions))
    objects = tuple(f"{name}.o" for name in names)
    (folder / "Makefile").write_text(_MAKEFILE.format(objects=" ".join(objects)))
    changed = units // 2
    return Workload(
        name="generated",
        folder=folder,
        place=".",
        make=("program",),
        output="program",
        compile=("-O2", "-Wall", "-c", "-o", f"unit_{changed}.o", f"unit_{changed}.c"),
        link=("-o", "program", *objects),
        edit=(
            f"unit_{changed}.c",
            f"unsigned long total = 5ul + {changed}ul;",
            f"unsigned long total = {{n}}ul + {changed}ul;",
        ),
        objects=len(objects),
        note=f"{len(objects)} generated objects",
    )
