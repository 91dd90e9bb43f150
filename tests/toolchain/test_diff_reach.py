"""Types of which objects live on the heap: which pointers lead there, and what keeps them from being found."""

from __future__ import annotations

from pathlib import Path

import pytest

from katana_cc.patch.model import Basis, Verdict
from katana_cc.transform.model import Copy, Pointer, Transformation
from katana_cc.transform.places import leading, pointers
from tests.support.project import Project, Result, Variant, project_in
from tests.toolchain.test_diff_code import MAIN, NOINLINE, change
from tests.toolchain.test_diff_relayout import VARIANTS, moved, needs, refused, staying

project = project_in(VARIANTS)

HEAD = "void *calloc(unsigned long, unsigned long); "
NODE = "struct node {{ {} int key; struct node *next; }}; "
MAKE = (
    NOINLINE + "struct node *make(int x) {{ struct node *p = calloc(1, sizeof *p); p->key = x * 3 + {}; return p; }} "
)


def named(result: Result) -> dict[str, Transformation]:
    """All types in the patch, by the text that pointers to them have."""
    return {d.transformation.name: d.transformation for d in result.patch.transforms if d.is_type}


def walked(result: Result) -> dict[str, Transformation]:
    """Those of them that are made anew, or lead there."""
    types = named(result)
    begins = {d.transformation.name: d.begins for d in result.patch.transforms if d.is_type}
    return {name: types[name] for name in leading(types, begins)}


def text(result: Result, code: str) -> str:
    """What is said of the one thing with a code."""
    (reason,) = [r for r in result.patch.reasons if r.code == code]
    return reason.text


def nodes(project: Project, more: str, use: str) -> Result:
    """A change in which `struct node` gains a field at its start; `more` declares variables, `use` is code."""
    source = HEAD + NODE + more + MAKE + "int serve(int x) {{ " + use + " }}"
    before, after = (source.format(field, number) for field, number in (("", 0), ("long fresh;", 1)))
    return change(project, before, after)


def test_list_behind_a_variable_is_walked(project: Project) -> None:
    use = "struct node *p = make(x); p->next = head; head = p; return p->key; "
    result = nodes(project, "struct node *head; ", use)
    assert result.refusals == []
    assert result.patch.verdict is Verdict.SAFE
    assert staying(result) == {"head"}
    assert {name: (t.old_size, t.new_size) for name, t in walked(result).items()} == {"struct node": (16, 24)}
    assert [p.pointee for p in pointers(walked(result)["struct node"])] == ["struct node"]
    assert text(result, "type-walked").endswith("its objects are found by following pointers from: head")


def test_way_through_tables_of_pointers_and_nested_structs(project: Project) -> None:
    more = (
        "struct list {{ int n; struct node **slots; }}; struct server {{ char name[8]; struct list in[2]; }}; "
        "struct other {{ long n; struct other *next; }}; struct server *the; struct other *unrelated; "
    )
    use = (
        "if (!the) {{ the = calloc(1, sizeof *the); the->in[1].slots = calloc(4, 8); }} "
        "the->in[1].slots[x & 3] = make(x); unrelated = unrelated ? unrelated->next : 0; return the->in[0].n; "
    )
    result = nodes(project, more, use)
    assert result.refusals == []
    assert staying(result) == {"the", "unrelated"}
    found = walked(result)
    assert set(found) == {"struct node", "struct node *", "struct server"}
    assert [(p.old, p.pointee) for p in pointers(found["struct server"])] == [
        (16, "struct node *"),
        (32, "struct node *"),
    ]
    assert found["struct server"].is_identity
    assert found["struct node *"].is_identity
    # What leads elsewhere is named with its pointers alone.
    others = {name: t for name, t in named(result).items() if name not in found}
    assert others == {
        "struct other": Transformation("struct other", 16, 16, (Pointer(8, 8, "struct other", "next", "next"),))
    }


def test_array_of_pointers_behind_a_pointer(project: Project) -> None:
    use = "if (!rows) rows = calloc(3, sizeof *rows); rows[1][x & 3] = make(x); return rows[1][x & 3]->key; "
    result = nodes(project, "struct node *(*rows)[4]; ", use)
    assert result.refusals == []
    assert [p.old for p in pointers(walked(result)["struct node *[4]"])] == [0, 8, 16, 24]


def test_what_holds_one_by_value_is_transformed_too(project: Project) -> None:
    """Its own fields are the same, and only what it holds makes it grow."""
    more = "struct pair {{ struct node in[2]; }}; struct pair *pairs; struct node *head; "
    use = "if (!pairs) pairs = calloc(1, sizeof *pairs); head = make(x); pairs->in[1].next = head; return head->key; "
    result = nodes(project, more, use)
    assert result.refusals == []
    assert (walked(result)["struct pair"].old_size, walked(result)["struct pair"].new_size) == (32, 48)
    assert {("type-walked", "struct node"), ("type-walked", "struct pair")} <= {
        (r.code, r.subject) for r in result.patch.reasons
    }


def test_moved_variable_leads_there_as_well(project: Project) -> None:
    use = "first.next = make(x); return first.key + first.next->key; "
    result = nodes(project, "struct node first; ", use)
    assert result.refusals == []
    assert list(moved(result)) == ["first"]
    assert text(result, "type-walked").endswith("from: first")


def test_root_in_an_object_that_does_not_change(tmp_path: Path) -> None:
    """It only declares the type, and hands it on."""
    files = {
        "main.c": MAIN,
        "a.c": '#include "n.h"\nstruct node *make(int x) { struct node *p = calloc(1, sizeof *p); p->key = x; '
        "return p; } int serve(int x) { struct node *p = make(x); keep(p); return p->key; }",
        "n.h": HEAD + "struct node { int key; }; void keep(struct node *p);",
        "b.c": "struct node; static struct node *volatile kept; void keep(struct node *p) { kept = p; }",
    }
    new = HEAD + "struct node { long fresh; int key; }; void keep(struct node *p);"
    result = Project(tmp_path).change(files, {"n.h": new})
    assert result.refusals == []
    assert staying(result) == {"kept"}


def test_what_a_type_begins_with_is_named(project: Project) -> None:
    """A pointer to that may lead to the whole: the block it leads to may hold either."""
    source = (
        "void *calloc(unsigned long, unsigned long); struct link {{ struct link *next; long n; }}; "
        "struct node {{ struct link in; {} int key; }}; struct pair {{ struct {{ struct node two[2]; }} both; }}; "
        "struct pair *pairs; struct node *head, **table; struct link *links; struct link **last; "
        "int serve(int x) {{ head = calloc(1, sizeof *head); links = &head->in; last = &head->in.next; "
        "pairs = calloc(1, sizeof *pairs); table = calloc(2, 8); table[1] = head; return links->n + x + {}; }}"
    )
    result = change(project, source.format("", 0), source.format("long fresh;", 1))
    assert result.refusals == []
    assert {
        d.transformation.name: d.begins for d in result.patch.transforms if d.transformation.name in walked(result)
    } == {
        "struct link *": "",
        "struct link": "struct link *",
        "struct node": "struct link",
        "struct node *": "",
        "struct pair": "struct pair.both",
        "struct pair.both": "struct node",
    }


def test_pointer_into_a_field_makes_a_root(project: Project) -> None:
    """It leads to no object, and into one: it has to follow."""
    more = "struct node *head; int *keys; struct {{ void *n; }} unrelated; "
    use = "head = make(x); keys = &head->key; return *keys + (unrelated.n != 0); "
    result = nodes(project, more, use)
    assert staying(result) == {"head", "keys"}
    assert text(result, "type-walked").endswith("from: head")


def test_heap_objects_with_pointers_to_a_variable_that_moves_are_named(project: Project) -> None:
    """They have to follow, wherever they are."""
    source = (
        "void *calloc(unsigned long, unsigned long); struct view {{ int n; long *at; struct view *next; }}; "
        "struct view *views; char *name; long v[{}] = {{ 1, 2 }}; int serve(int x) {{ struct view *p = "
        "calloc(1, sizeof *p); p->at = &v[1]; p->next = views; views = p; return *p->at + x + sizeof v + !name; }}"
    )
    result = change(project, source.format(4), source.format(9))
    assert result.refusals == []
    assert {"views", "name"} <= staying(result)
    found = named(result)
    assert [(p.old, p.pointee) for p in pointers(found["struct view"])] == [(8, "long"), (16, "struct view")]
    assert found["char"] == Transformation("char", 1, 1, (Copy(0, 0, 1),))
    assert walked(result) == {}


# -- what keeps objects from being found -------------------------------------------------------------------------------


def test_type_that_no_variable_leads_to_is_refused(plain: Project) -> None:
    result = nodes(plain, "void *opaque; ", "opaque = make(x); return ((struct node *)opaque)->key; ")
    assert refused(result) == {"type-changed"}
    assert "typed pointers lead there from no variable" in text(result, "type-changed")
    assert needs(result) == set()


@pytest.mark.parametrize(
    ("more", "use", "why"),
    [
        (
            "union either {{ struct node *as; long number; }}; struct holder {{ union either u; }}; "
            "struct holder *held; struct node *head; ",
            "head = make(x); if (!held) held = calloc(1, sizeof *held); held->u.as = head; return head->key; ",
            "from `as` of union either, which may be something else",
        ),
        (
            "struct tree {{ int n; struct node *of[]; }}; struct tree *tree; struct node *head; ",
            "head = make(x); if (!tree) tree = calloc(1, 64); tree->of[2] = head; return head->key; ",
            "from `of` of struct tree, of which no type says how many there are",
        ),
        (
            "_Thread_local struct node *mine; struct node *head; ",
            "head = make(x); mine = head; return mine->key; ",
            "from mine, of which each thread has one of its own",
        ),
    ],
    ids=["union", "open-array", "thread-local"],
)
def test_pointers_that_cannot_be_followed_need_a_decision(plain: Project, more: str, use: str, why: str) -> None:
    """They may lead to objects that nothing else leads to."""
    result = nodes(plain, more, use)
    assert result.refusals == []
    assert needs(result) == {("type-reached-otherwise", "struct node")}
    assert why in text(result, "type-reached-otherwise")
    assert "struct node" in walked(result)


def test_object_in_the_frame_of_a_function_that_stays_is_refused(plain: Project) -> None:
    source = (
        "void *calloc(unsigned long, unsigned long); struct node { long a; %s struct node *next; }; struct node *head; "
        + NOINLINE
        + "void fill(struct node *p, int x) { p->b += x; p->c -= x; p->next = head; head = calloc(1, sizeof *p); } "
        "int serve(int x) { struct node mine; fill(&mine, x); return mine.a; }"
    )
    result = change(plain, source % "int b; int c;", source % "int c; int b;")
    assert ("type-changed", "node") in result.refusals
    assert "`mine` of serve is one" in text(result, "type-changed")


def test_old_code_must_not_go_on_with_new_objects(project: Project) -> None:
    """It would misread them; whether it looks at any, nobody can see."""
    use = "struct node *p = make(x); p->next = head; head = p; return p->key; "
    result = nodes(project, "struct node *head; ", use)
    known = {(result.patch.replacements[r.caller].name, r.through, r.basis) for r in result.patch.reliances}
    assert {("serve", "struct node", Basis.TYPE_CHANGED), ("make", "struct node", Basis.TYPE_CHANGED)} <= known


def test_main_that_may_use_such_objects_is_refused(plain: Project) -> None:
    source = (
        HEAD + "int putchar(int); struct node {{ {} int key; }}; struct node *head; "
        "int main(void) {{ head = calloc(1, sizeof *head); for (;;) head->key += putchar(head->key); }}"
    )
    result = plain.change({"a.c": source.format("")}, {"a.c": source.format("long fresh;")})
    assert ("active-code-relies-on-old", "main") in result.refusals


def test_function_that_is_gone_and_may_use_such_objects_is_refused(plain: Project) -> None:
    source = HEAD + NODE + "struct node *head; int (*volatile hook)(int); "
    before = "static int old(int x) {{ return head->key + x; }} int serve(int x) {{ if (!hook) {{ head = calloc(1, "
    before += "sizeof *head); hook = old; }} return hook(x); }}"
    after = "int serve(int x) {{ return hook ? hook(x) : head->key; }}"
    result = change(plain, (source + before).format(""), (source + after).format("long fresh;"))
    assert ("removed-code-relies-on-old", "old") in result.refusals


def test_what_no_variable_leads_to_is_asked_where_variables_are_of_the_type(plain: Project) -> None:
    source = (
        HEAD + "struct leaf {{ {} int key; }}; void *hold; struct leaf first; int serve(int x) {{ struct leaf *p = "
        "calloc(1, sizeof *p); p->key = x; hold = p; first.key += x; return p->key; }}"
    )
    result = change(plain, source.format(""), source.format("long fresh;"))
    assert result.refusals == []
    assert needs(result) == {("type-changed-elsewhere", "struct leaf")}
    assert "typed pointers lead there from no variable" in text(result, "type-changed-elsewhere")
    assert "struct leaf" not in named(result)


def test_name_of_two_types_is_refused(tmp_path: Path) -> None:
    """By name a pointer to the one looks like one to the other."""
    node = HEAD + "struct node {{ {} int key; struct node *next; }}; static struct node *volatile head; "
    use = "int serve(int x) {{ struct node *p = calloc(1, sizeof *p); p->key = x; head = p; return other(x) + {}; }}"
    files = {
        "main.c": MAIN,
        "a.c": (node + "int other(int); " + use).format("", 0),
        "b.c": "struct node { double d[3]; }; static struct node *volatile kept; "
        "int other(int x) { return !kept + x; }",
    }
    result = Project(tmp_path).change(files, {"a.c": (node + "int other(int); " + use).format("long fresh;", 1)})
    assert ("type-changed", "node") in result.refusals
    assert "node is the name of several types" in text(result, "type-changed")


def test_way_through_objects_that_stay_as_they_are_leads_nowhere(plain: Project) -> None:
    """Those of the one type are not found, so what lies behind them is not either."""
    more = "struct box {{ {} struct node *in; int n; }}; _Thread_local struct box *mine; struct box first; "
    use = "first.in = make(x); mine = &first; return first.in->key; "
    parts = HEAD + NODE.format("%s") + more.format("%s") + MAKE.format(3) + "int serve(int x) { " + use + " }"
    result = change(plain, parts % ("", ""), parts % ("long fresh;", "long more;"))
    assert ("type-changed-elsewhere", "struct box") in needs(result)
    assert ("type-changed", "node") in result.refusals
    assert walked(result) == {}


def test_object_that_was_not_made_again(tmp_path: Path) -> None:
    """Its code goes on with the old layout, in the new build as well."""
    files = {
        "main.c": MAIN,
        "n.h": HEAD + "struct node { int key; struct node *next; }; extern struct node *head; int other(int);",
        "a.c": '#include "n.h"\nstruct node *head; int serve(int x) { struct node *p = calloc(1, sizeof *p); '
        "p->key = x; head = p; return other(x); }",
        "b.c": '#include "n.h"\nint other(int x) { return head->key + x; }',
    }
    project = Project(tmp_path)
    changed = files["a.c"].replace('#include "n.h"', files["n.h"].replace("{ int key", "{ long fresh; int key"))
    result = project.change(files, {"a.c": changed})
    assert "b.o was not made again, and lays node out as before" in text(result, "type-changed")


@pytest.mark.parametrize(
    "give", ["struct node *first(void) {{ return head; }}", "int count(struct node *n) {{ return n != 0; }}"]
)
def test_type_that_other_modules_get_at_needs_a_decision(tmp_path: Path, give: str) -> None:
    """One that knows the layout is not patched with the library."""
    source = HEAD + NODE + "static struct node *head; " + give + " static " + MAKE
    source += "int serve(int x) {{ struct node *p = make(x); p->next = head; head = p; return p->key; }}"
    before, after = (source.format(field, number) for field, number in (("", 0), ("long fresh;", 1)))
    result = change(Project(tmp_path, Variant("gcc", "-O2", "shared")), before, after)
    assert result.refusals == []
    name = "first" if "first" in give else "count"
    assert f"other modules get at its objects by {name}, " in text(result, "type-exported")
    assert ("type-exported", "struct node") in needs(result)


def test_variable_of_a_section_that_was_left_out_is_no_obstacle(plain: Project) -> None:
    use = "struct node *p = make(x); p->next = head; head = p; return p->key; "
    source = HEAD + NODE + "struct node *head, *spare; int unused(void) {{ return spare->key; }} " + MAKE
    source += "int serve(int x) {{ " + use + " }}"
    before, after = (source.format(field, number) for field, number in (("", 0), ("long fresh;", 1)))
    result = change(plain, before, after, link_flags=["-Wl,--gc-sections"])
    assert result.refusals == []
    assert text(result, "type-walked").endswith("from: head")


def test_variable_without_a_section_of_its_own_is_an_obstacle(plain: Project) -> None:
    use = "struct node *p = make(x); p->next = head; head = p; return p->key; "
    source = HEAD + NODE + "struct node *head; " + MAKE + "int serve(int x) {{ " + use + " }}"
    before, after = (source.format(field, number) for field, number in (("", 0), ("long fresh;", 1)))
    result = change(plain, before, after, compile_flags=["-fcommon"])
    assert ("type-changed", "node") in result.refusals
    assert "only from head, of which the place is not known" in text(result, "type-changed")


CPP = [Variant("gcc", "-O2", "pie"), Variant("clang", "-O2", "pie")]


@pytest.mark.parametrize("variant", CPP, ids=str)
def test_container_that_keeps_objects_as_bytes_is_refused(tmp_path: Path, variant: Variant) -> None:
    source = (
        "#include <list>\nstruct node { %s int key; node *next; }; std::list<node> *all; node *head; "
        'extern "C" int serve(int x) { if (!all) all = new std::list<node>; all->emplace_back(); '
        "head = new node; head->key = x; return all->back().key; }"
    )
    main = 'extern "C" int serve(int); int main(int c, char **) { return serve(c); }'
    result = Project(tmp_path, variant).change(
        {"main.cc": main, "a.cc": source % ""},
        {"a.cc": source % "long fresh;"},
        compile_flags=("-fno-exceptions",),
        link_flags=("-Wl,--no-as-needed", "-lstdc++"),
    )
    assert ("type-changed", "node") in result.refusals
    assert "keeps one as bytes" in " ".join(r.text for r in result.patch.reasons)


@pytest.mark.parametrize(
    "field",
    ["_Alignas(64) long wide; ", "struct {{ int n; }} __attribute__((aligned(32))) in; ", "wide v; "],
)
def test_alignment_that_malloc_does_not_give_is_refused(plain: Project, field: str) -> None:
    """A new block for it would be misaligned, and the program die at the first vector instruction."""
    node = "typedef int wide __attribute__((vector_size(32))); " + NODE.replace("int key", f"{field} int key")
    source = HEAD + node + "struct node *head; " + MAKE + "int serve(int x) {{ head = make(x); return head->key; }}"
    result = change(plain, source.format("", 0), source.format("long fresh;", 1))
    assert "which malloc does not give" in " ".join(r.text for r in result.patch.reasons)
    assert result.refusals != []
