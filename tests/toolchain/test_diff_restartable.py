"""Functions with restartable sequences (rseq(2)): the kernel knows them by addresses in their code."""

from __future__ import annotations

import platform

import pytest

from tests.support.project import Project, Result, Variant, project_in

# `__rseq_cs` holds descriptors, which lead into the function and to the abort handler in `__rseq_failure`.  librseq
# keeps pointers to them for debuggers, tcmalloc gives each a name.
SOURCE = r"""
#include <stddef.h>
struct area { unsigned start, id; unsigned long long sequence; };
volatile long committed, aborted;
long limit = 5;
struct area *mine(void);
#define SEQUENCE(R, BY) \
  __asm__ goto( \
      ".pushsection __rseq_cs, \"aw\"\n .balign 32\n" \
      "3: " NAME " .long 0, 0\n .quad 1f, 2f - 1f, 4f\n .popsection\n" POINTERS \
      "lea 3b(%%rip), %%rax\n mov %%rax, %c[cs](%[r])\n" \
      "1: addq %[by], %[c]\n 2:\n" \
      ".pushsection __rseq_failure, \"ax\"\n .byte 0x0f, 0xb9, 0x3d\n .long 0x53053053\n" \
      "4: jmp %l[again]\n .popsection\n" \
      :: [r] "r"(R), [by] "r"(BY), [c] "m"(committed), [cs] "i"(offsetof(struct area, sequence)) \
      : "rax", "memory", "cc" : again)
__attribute__((noinline)) void bump(struct area *r, long by) {
  /*EARLY*/
  SEQUENCE(r, by);
  committed++; return;
again: /*LATE*/ aborted++;
}
__attribute__((noinline)) void push(struct area *r, long by) {
  /*PUSH*/
  committed += 2; return;
again: aborted += 2;
}
__attribute__((noinline)) long other(long x) { return x + 1/*OTHER*/; }
/*NEW*/
int serve(int x) { bump(mine(), x); push(mine(), x); return other(x); }
"""
FILES = {
    "main.c": "int serve(int); int main(int c, char **v) { return serve(c); }",
    "mine.c": "static long area[4]; void *mine(void) { return area; }",
}
FORMS = {
    "plain": ("", ""),
    "librseq": ("", r'".pushsection __rseq_cs_ptr_array, \"aw\"\n .quad 3b\n .popsection\n"'),
    "named": ("__rseq_cs_slab%=:", ""),
}
SEQUENCE = "SEQUENCE(r, by);"
CHANGES: dict[str, tuple[dict[str, str], str]] = {
    "before it": ({"/*EARLY*/": "by += limit;"}, "bump"),
    "behind it": ({"/*LATE*/": "committed += limit;"}, "bump"),
    "one that is new": ({"/*PUSH*/": SEQUENCE}, "push"),
    "one that goes": ({"/*EARLY*/\n  SEQUENCE(r, by);": "if (by == limit) goto again;"}, "bump"),
    "function that is new": (
        {"/*NEW*/": "__attribute__((noinline)) static void pop(struct area *r, long by) { SEQUENCE(r, by); return;\n"
                    "again: aborted += 3; }",
         "push(mine(), x);": "push(mine(), x); pop(mine(), x);"},
        "pop",
    ),
}  # fmt: skip

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="the sequence is written for x86-64")
project = project_in([Variant(), Variant("clang"), Variant("gcc", "-O0"), Variant(linker="gold")])


def changed(project: Project, form: str, edits: dict[str, str]) -> Result:
    name, pointers = FORMS[form]
    head = f'#define NAME "{name}"\n#define POINTERS {pointers}\n'
    after = SOURCE
    for old, new in edits.items():
        assert after.count(old) == 1
        after = after.replace(old, new)
    return project.change({**FILES, "a.c": head + SOURCE}, {"a.c": head + after})


@pytest.mark.parametrize(
    ("form", "change"),
    [
        *(("plain", c) for c in CHANGES),
        *((f, c) for f in ("librseq", "named") for c in ("behind it", "one that is new")),
    ],
)
def test_function_whose_sequence_would_have_to_move_is_refused_by_name(
    project: Project, form: str, change: str
) -> None:
    """A bug: it is carried, and the kernel takes the thread to the old code's abort handler; or the refusal speaks of a
    section that nobody wrote, or of a bug of Katana."""
    edits, function = CHANGES[change]
    result = changed(project, form, edits)
    refusals = [r for r in result.patch.reasons if r.severity == "refused"]
    assert {r.code for r in refusals} == {"restartable-sequence"}
    # Where descriptors lie otherwise, their functions count as changed.
    assert {function} <= {r.subject for r in refusals} <= {function, "bump"}
    assert "(rseq)" in refusals[0].text
    assert "restart the program" in refusals[0].text


@pytest.mark.parametrize("form", FORMS)
def test_function_beside_a_sequence_is_patched(project: Project, form: str) -> None:
    """A bug: one sequence in a file refuses all of it."""
    result = changed(project, form, {"/*OTHER*/": "00"})
    assert result.refusals == []
    assert result.replaced == ["other"]
