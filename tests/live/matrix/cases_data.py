"""Kinds 20 to 31: live data.

Variables are global or volatile, so that no optimiser takes them apart: that is another story (`diff/storage.py`).
What a case counts, both versions count in the same way: the patched process answers as the new build does, which
counted by itself from the start, only if each value was kept or carried over.  Addresses that must stay are compared
with what the old code kept of them.
"""

from __future__ import annotations

from dataclasses import replace

from tests.live.matrix.model import AT_APPLY, AT_REVERT, Case, Refusal

_KEPT = (
    Case(
        20,
        "static_locals_shift",
        "<<<=>static NOINLINE long kx_new(long x) { static volatile long count = 100; return count + x; }>>>\n"
        "static NOINLINE long kx_one(long x) { static volatile long count = 10; static volatile long *volatile kept; "
        "if (!kept) kept = &count; count += x & 7; return count * 10 + (kept == &count); }\n"
        "static NOINLINE long kx_two(long x) { static volatile long count = 20; static volatile long *volatile kept; "
        "if (!kept) kept = &count; count += x & 3; return count * 10 + (kept == &count); }\n"
        "long ask_static_locals_shift(long x) { return kx_one(x) * 10000 + kx_two(x) <<<=>+ kx_new(x) * 7>>>; }",
    ),
    Case(
        20,
        "static_locals_swap",
        "<<<=>static NOINLINE long ks_two(long x) { static volatile long n = 2; n += x & 3; return n; }>>>\n"
        "static NOINLINE long ks_one(long x) { static volatile long n = 1; n += x & 7; return n; }\n"
        "<<<static NOINLINE long ks_two(long x) { static volatile long n = 2; n += x & 3; return n; }=>>>>\n"
        "long ask_static_locals_swap(long x) { return ks_one(x) * 1000 + ks_two(x) * <<<2=>3>>>; }",
    ),
    Case(
        20,
        "same_name_in_blocks",
        "static NOINLINE long kb_f(long x) { long r = 0; <<<=>if (x != 99) { static volatile long n = 500; r += n; "
        "}>>> "
        "if (x & 1) { static volatile long n = 5; n += 1; r += n * 100; } else { static volatile long n = 7; n += 2; "
        "r += n * 10000; } return r; }\n"
        "long ask_same_name_in_blocks(long x) { return kb_f(x); }",
        must=False,
        refused=Refusal("data-ambiguous", "several variables of that name cannot be told apart"),
    ),
    Case(
        20,
        "globals_keep_address",
        "<<<long ka_gone = 4;=>long ka_first = 9; char ka_more[100] = {1};>>>\n"
        "long ka_value = 5; static volatile long ka_own = 6;\n"
        "long *ka_to; static volatile long *volatile ka_kept;\n"
        "long ask_globals_keep_address(long x) { if (!ka_to) ka_to = &ka_value, ka_kept = &ka_own; ka_value += x; "
        "ka_own -= x; return ka_value * 100000 + ka_own * 100 + (ka_to == &ka_value) * 2 + (ka_kept == &ka_own) + "
        "<<<ka_gone=>ka_first + ka_more[0]>>>; }",
    ),
    Case(
        20,
        "zeroed_keep_address",
        "<<<=>long kz_first[30];>>> long kz_value[4]; <<<=>long kz_last[30];>>> long *kz_kept;\n"
        "long ask_zeroed_keep_address(long x) { if (!kz_kept) kz_kept = &kz_value[1]; kz_value[1] += x; return "
        "kz_value[1] * 10 + (kz_kept == &kz_value[1]) + <<<0=>1000 + kz_first[x & 7] + kz_last[x & 7]>>>; }",
    ),
    Case(
        20,
        "static_of_another_file",
        "long ko_other(long); static volatile long n = 3;\n"
        "long ask_static_of_another_file(long x) { n += x; return n * 1000 + ko_other(x) <<<=>* 2>>>; }",
        {
            "static_of_another_file_more.c": "<<<=>static volatile long first = 8;>>> static volatile long n = 4; "
            "NOINLINE long ko_other(long x) { n -= x; return n <<<=>+ first>>>; }"
        },
    ),
)

_NEW = (
    Case(
        21,
        "global_new",
        "<<<=>long nw_value = 7; long nw_zero[100];>>>\n"
        "long ask_global_new(long x) { seen++; return <<<x=>(nw_zero[x & 7] = x) * nw_value + nw_zero[50]>>>; }",
    ),
    Case(
        21,
        "global_new_of_another_file",
        "<<<=>extern long nf_value; long nf_get(void);>>>\n"
        "long ask_global_new_of_another_file(long x) { seen++; return <<<x=>(nf_value = x + 1) * 10 + nf_get()>>>; }",
        {
            "global_new_of_another_file_more.c": "<<<long nf_nothing(void) { return seen; }=>long nf_value = 7; "
            "NOINLINE "
            "long nf_get(void) { seen++; return nf_value; }>>>"
        },
    ),
    Case(
        21,
        "static_new",
        "<<<=>static volatile long ns_value = 7, ns_zero;>>>\n"
        "long ask_static_new(long x) { seen++; <<<=>ns_zero = x;>>> return <<<x=>ns_zero * ns_value>>>; }",
    ),
    Case(
        21,
        "static_local_new",
        "long ask_static_local_new(long x) { <<<=>static volatile long n = 40; static volatile char room[300]; room[x "
        "& "
        "63] = (char)x;>>> seen++; return x <<<=>* n + room[x & 63]>>>; }",
    ),
    Case(
        21,
        "large_bss_new",
        "<<<=>char nb_room[3 << 20];>>>\n"
        "long ask_large_bss_new(long x) { seen++; return <<<x=>(nb_room[(3 << 20) - 1] = (char)x) * 3 + "
        "nb_room[5]>>>; }",
    ),
    Case(
        21,
        "pointers_new",
        "long np_value = 5; static NOINLINE long np_f(long x) { seen++; return x * 3; }\n"
        '<<<=>long *np_to = &np_value; long (*np_call)(long) = np_f; const char *np_text = "new text"; '
        'struct { const char *name; long *to; } np_table[] = {{"a", &np_value}, {"bc", 0}};>>>\n'
        "long ask_pointers_new(long x) { np_value += x; return <<<np_value + np_f(x)=>*np_to * 100 + np_call(x) + "
        "np_text[x & 3] + *np_table[0].to + (np_to == &np_value) * 10000 + (np_call == np_f) * 20000>>>; }",
    ),
    Case(
        21,
        "struct_new",
        "<<<=>struct nt { int a; struct { char c; double d; } in[2]; }; struct nt nt_v = {1, {{'x', 1.5}, {'y', "
        "2.5}}};>>>\n"
        "long ask_struct_new(long x) { seen++; return x <<<=>+ nt_v.in[x & 1].c + (long)(nt_v.in[1].d * 2) + "
        "nt_v.a>>>; }",
    ),
    Case(
        21,
        "entry_of_a_linker_set_new",
        "extern long *__start_ls_set[], *__stop_ls_set[]; static long ls_a = 3; "
        '__attribute__((section("ls_set"), used)) static long *ls_pa = &ls_a; '
        '<<<=>static long ls_b = 40; __attribute__((section("ls_set"), used)) static long *ls_pb = &ls_b;>>>\n'
        "long ask_entry_of_a_linker_set_new(long x) { long r = 0; seen++; for (long **p = __start_ls_set; p < "
        "__stop_ls_set; p++) "
        "r += **p; return r + x <<<=>* 2>>>; }",
        must=False,
        refused=Refusal("section-changed", "section ls_set changed, and its use is not known"),
    ),
)

_CONSTANTS = (
    Case(
        22,
        "literal",
        'static NOINLINE const char *lt_f(long x) { seen++; return x & 1 ? "<<<odd=>not even>>>" : "even"; }\n'
        "long ask_literal(long x) { const char *s = lt_f(x); long n = 0; while (*s) n = n * 3 + *s++; return n; }",
    ),
    Case(
        22,
        "literal_kept_by_a_pointer",
        "const char *lk_p; static NOINLINE long lk_sum(const char *s) { long n = 0; seen++; while (*s) n = n * 3 + "
        "*s++; "
        "return n; }\n"
        'long ask_literal_kept_by_a_pointer(long x) { if (x == 0) lk_p = "<<<before=>afterwards>>>"; return '
        "lk_sum(lk_p "
        '? lk_p : "") + x; }',
    ),
    Case(
        22,
        "floating_constant",
        "double fc_total; static NOINLINE double fc_f(double x) { seen++; return x * <<<0.1=>0.3>>> + "
        "<<<2.5f=>3.25f>>>; }\n"
        "long ask_floating_constant(long x) { fc_total += x; return (long)(fc_f(fc_total) * 1000); }",
    ),
    Case(
        22,
        "vector_constant",
        "double vc_a[8]; long ask_vector_constant(long x) { long r = 0; for (int i = 0; i < 8; i++) vc_a[i] += x; "
        "for (int i = 0; i < 8; i++) r += (long)(vc_a[i] * <<<1.5=>2.5>>> + <<<0.25=>0.75>>>); return r * 10 + (seen "
        "& 0); }",
    ),
    Case(
        22,
        "table_changed",
        "const int tc_table[8] = {1, 2, <<<3=>33>>>, 4, 5, 6, <<<7=>77>>>, 8};\n"
        "long ask_table_changed(long x) { seen++; return tc_table[x & 7] * 10; }",
        asked=(0, 2, 6, 7),
    ),
    Case(
        22,
        "table_grown",
        "static const short tg_table[] = {1, 2, 3<<<=>, 40, 50>>>};\n"
        "static NOINLINE long tg_n(void) { seen++; return sizeof tg_table / sizeof *tg_table; }\n"
        "long ask_table_grown(long x) { return tg_table[(unsigned long)x % tg_n()] * 10 + tg_n(); }",
    ),
    Case(
        22,
        "table_grown_that_is_exported",
        "extern const short te_table[]; extern const int te_n; long ask_table_grown_that_is_exported(long x) { seen++; "
        "return te_table[(unsigned long)x % te_n]; }",
        {
            "table_grown_that_is_exported_more.c": "const short te_table[] = {1, 2, 3<<<=>, 40, 50>>>}; const int "
            "te_n = "
            "sizeof te_table / sizeof *te_table;"
        },
    ),
    Case(
        22,
        "table_reordered",
        'struct tr { const char *name; int n; }; static const struct tr tr_table[] = {<<<{"one", 1}, {"two", 2}, '
        '{"three", 3}=>{"three", 3}, {"one", 1}, {"two", 2}>>>};\n'
        "long ask_table_reordered(long x) { unsigned long i = (unsigned long)x % 3; seen++; return "
        "tr_table[i].name[0] * 100 "
        "+ tr_table[i].name[2] + tr_table[i].n * 1000000; }",
    ),
    Case(
        22,
        "table_of_names_gains_one",
        'static const char *const tn_names[] = {"alpha", <<<=>"beta", >>>"gamma", 0};\n'
        "long ask_table_of_names_gains_one(long x) { long n = 0, s = 0; seen++; for (; tn_names[n]; n++) s = s * 7 + "
        "tn_names[n][1]; return s * 10 + n + x; }",
    ),
    Case(
        22,
        "table_of_functions_gains_one",
        "static NOINLINE long tf_a(long x) { seen++; return x * 3; }\nstatic NOINLINE long tf_b(long x) { seen++; "
        "return x * "
        "5; }\n<<<=>static NOINLINE long tf_c(long x) { seen++; return x * 7; }>>>\n"
        "static long (*const tf_table[])(long) = {tf_a, tf_b<<<=>, tf_c>>>};\n"
        "long ask_table_of_functions_gains_one(long x) { return tf_table[(unsigned long)x % (sizeof tf_table / 8)](x "
        "+ 1); }",
    ),
    Case(
        22,
        "table_whose_type_changed",
        "struct tt { int n; <<<=>int more; >>>const char *name; }; static const struct tt tt_table[] = {{1, <<<=>5, "
        '>>>"ab"}, '
        '{2, <<<=>6, >>>"cd"}};\n'
        "long ask_table_whose_type_changed(long x) { const volatile long i = x & 1; seen++; return tt_table[i].n * "
        "100 + "
        "tt_table[i].name[0] <<<=>+ tt_table[i].more * 1000>>>; }",
    ),
    Case(
        22,
        "table_grown_that_a_variable_points_to",
        "static const int tp_table[] = {1, 2, 3<<<=>, 4>>>}; const int *tp_kept = tp_table; "
        "long ask_table_grown_that_a_variable_points_to(long x) { seen++; return tp_kept[x & 1] * 10 + (tp_kept == "
        "tp_table) + "
        "(long)(sizeof tp_table); }",
        refused=Refusal("data-pointers-changed", "it may hold the address of tp_table, which is made anew"),
    ),
)

_INITIALISERS = (
    Case(
        23,
        "initialiser_kept",
        "long ik_value = <<<5=>50>>>; long ask_initialiser_kept(long x) { seen++; ik_value += x == 2; return x ? x * "
        "<<<2=>3>>> : ik_value; }",
        as_old=(0,),
        codes=frozenset({"initialiser-kept"}),
    ),
    Case(
        23,
        "initialiser_of_a_static_kept",
        "static volatile struct { int a; long b; } is_v = {<<<1, 2=>10, 20>>>}; long "
        "ask_initialiser_of_a_static_kept(long x) "
        "{ seen++; return x ? x * <<<2=>3>>> : is_v.a * 100 + is_v.b; }",
        as_old=(0,),
        codes=frozenset({"initialiser-kept"}),
    ),
    Case(
        23,
        "initialiser_that_is_a_text_kept",
        'const char *it_text = "<<<old=>new>>>"; char it_room[8] = "<<<one=>two>>>"; long '
        "ask_initialiser_that_is_a_text_kept(long x) { seen++; return x ? x * <<<2=>3>>> : it_text[0] * 1000 + "
        "it_room[0]; }",
        as_old=(0,),
        codes=frozenset({"initialiser-kept"}),
    ),
    Case(
        23,
        "initialiser_turns_zero",
        "long iz_value = <<<5=>0>>>; long iz_other = <<<0=>5>>>; long ask_initialiser_turns_zero(long x) { seen++; "
        "return x ? "
        "x * <<<2=>3>>> : iz_value * 10 + iz_other; }",
        as_old=(0,),
        codes=frozenset({"initialiser-kept"}),
    ),
    Case(
        23,
        "initialiser_taken",
        "long ii_value = <<<5=>50>>>; long ii_table[3] = {1, <<<2=>20>>>, 3}; long ask_initialiser_taken(long x) { "
        "seen++; "
        "return x + ii_value * 1000 + ii_table[x & 1] * 100; }",
        granted=("--take-initialiser ii_value", "--take-initialiser ii_table"),
        codes=frozenset({"initialiser-kept"}),
    ),
    Case(
        23,
        "initialiser_of_a_static_taken",
        'static volatile long iu_value = <<<5=>50>>>; static const char *volatile iu_text = "<<<old=>newer>>>"; long '
        "ask_initialiser_of_a_static_taken(long x) { seen++; return x + iu_value * 1000 + iu_text[1]; }",
        granted=("--take-initialiser iu_value", "--take-initialiser iu_text"),
        codes=frozenset({"initialiser-kept"}),
    ),
    Case(
        23,
        "initialiser_of_a_struct_that_moves",
        "struct im { <<<=>long more; >>>int a; long b; }; struct im im_v = {<<<1, 2=>7, 10, 20>>>}; long "
        "ask_initialiser_of_a_struct_that_moves(long x) { seen++; return x ? x * <<<2=>3 + im_v.more>>> : im_v.a * "
        "100 + "
        "im_v.b; }",
        as_old=(0,),
        codes=frozenset({"initialiser-kept"}),
        moved=frozenset({"im_v"}),
    ),
)

_FUNCTIONS_OF = (
    "static NOINLINE long {0}_a(long x) {{ seen++; return x * 3; }}\nstatic NOINLINE long {0}_b(long x) {{ seen++; "
    "return x "
    "* 5; }}\nstatic NOINLINE long {0}_c(long x) {{ seen++; return x * 7; }}\n"
)

_TABLES = (
    Case(
        24,
        "entry_changes",
        _FUNCTIONS_OF.format("ec") + "long (*ec_table[])(long) = {ec_a, <<<ec_b=>ec_c>>>, ec_b, ec_c};\n"
        "long ask_entry_changes(long x) { return ec_table[x & 3](x + 1); }",
        codes=frozenset({"pointer-rewritten"}),
    ),
    Case(
        24,
        "entry_changes_to_a_new_function",
        _FUNCTIONS_OF.format("en") + "<<<=>static NOINLINE long en_d(long x) { seen++; return x * 11; }>>>\n"
        "long (*en_table[])(long) = {en_a, en_b, <<<en_c=>en_d>>>};\n"
        "long ask_entry_changes_to_a_new_function(long x) { return en_table[(unsigned long)x % 3](x + 1) + en_c(1); }",
        codes=frozenset({"pointer-rewritten"}),
    ),
    Case(
        24,
        "entry_of_a_table_of_commands_changes",
        _FUNCTIONS_OF.format("et") + "struct et { const char *name; long (*call)(long); long calls; };\n"
        'struct et et_table[] = {{"get", et_a, 0}, {"set", <<<et_b=>et_c>>>, 0}};\n'
        "long ask_entry_of_a_table_of_commands_changes(long x) { et_table[x & 1].calls++; return et_table[x & "
        "1].call(x + 1) * "
        "1000 + et_table[x & 1].calls * 10 + (et_table[x & 1].name[0] == 's') + et_b(1); }",
        codes=frozenset({"pointer-rewritten"}),
    ),
    Case(
        24,
        "entry_that_the_program_replaced",
        _FUNCTIONS_OF.format("er") + "long (*er_table[])(long) = {er_a, <<<er_b=>er_c>>>};\n"
        "long ask_entry_that_the_program_replaced(long x) { er_table[1] = er_a; return er_table[x & 1](x + 1) * "
        "<<<1=>2>>> + "
        "er_b(1); }",
        must=False,
        refused=Refusal(AT_APPLY, r"er_table\+0x8 at 0x[0-9a-f]+ is not what the build produced"),
    ),
    Case(
        24,
        "entry_added_at_the_end",
        _FUNCTIONS_OF.format("ea") + "long (*ea_table[])(long) = {ea_a, ea_b<<<=>, ea_c>>>};\n"
        "long ask_entry_added_at_the_end(long x) { return ea_table[(unsigned long)x % (sizeof ea_table / 8)](x + 1) + "
        "ea_c(1); "
        "}",
        moved=frozenset({"ea_table"}),
    ),
    Case(
        24,
        "command_added_at_the_end",
        _FUNCTIONS_OF.format("ed") + "struct ed { const char *name; long (*call)(long); long calls; };\n"
        'struct ed ed_table[] = {{"get", ed_a, 0}, {"set", ed_b, 0}<<<=>, {"del", ed_c, 3}>>>};\n'
        "enum { ED_N = sizeof ed_table / sizeof *ed_table };\n"
        "long ask_command_added_at_the_end(long x) { long i = (unsigned long)x % 2; ed_table[i].calls++; return "
        "ed_table[i].call(x + 1) * 1000 + ed_table[i].calls * 10 + ed_c(1) + ed_table[ED_N - 1].name[0] + ED_N; }",
        moved=frozenset({"ed_table"}),
    ),
    Case(
        24,
        "entry_added_before_the_terminator",
        _FUNCTIONS_OF.format("eb") + "long (*eb_table[])(long) = {eb_a, eb_b, <<<=>eb_c, >>>0};\n"
        "long ask_entry_added_before_the_terminator(long x) { long r = eb_c(1); for (int i = 0; eb_table[i]; i++) r = "
        "r * 10 + "
        "eb_table[i](x); return r; }",
        codes=frozenset({"table-taken-over"}),
        moved=frozenset({"eb_table"}),
    ),
    Case(
        24,
        "entry_added_in_the_midst",
        _FUNCTIONS_OF.format("ei") + "long (*ei_table[])(long) = {ei_a, <<<=>ei_c, >>>ei_b};\n"
        "long ask_entry_added_in_the_midst(long x) { return ei_table[x & 1](x + 1) + ei_c(1); }",
        codes=frozenset({"table-taken-over"}),
        moved=frozenset({"ei_table"}),
    ),
    Case(
        24,
        "entry_added_before_the_terminator_of_a_table_with_room",
        _FUNCTIONS_OF.format("em") + "long (*em_table[6])(long) = {em_a, em_b<<<=>, em_c>>>};\n"
        "long ask_entry_added_before_the_terminator_of_a_table_with_room(long x) { long r = em_c(1); for (int i = 0; "
        "em_table[i]; i++) r = r * 10 + em_table[i](x); return r; }",
        codes=frozenset({"table-taken-over"}),
    ),
    Case(
        24,
        "table_of_tables_changes_an_entry",
        'const char *eq_one[] = {"a", "b", 0}, *eq_two[] = {"c", 0}, *eq_three[] = {"d", "e", 0};\n'
        "struct eq { const char *name; const char **list; };\n"
        'struct eq eq_table[] = {{"x", eq_one}, {"y", <<<eq_two=>eq_three>>>}};\n'
        "long ask_table_of_tables_changes_an_entry(long x) { long r = x; for (int i = 0; i < 2; i++) for (const char "
        "**p = eq_table[i].list; *p; p++) r = r * 3 + **p; return r; }",
        codes=frozenset({"table-taken-over"}),
    ),
    Case(
        24,
        "command_added_in_the_midst_of_counters_in_use",
        _FUNCTIONS_OF.format("eu") + "struct eu { const char *name; long (*call)(long); long calls; };\n"
        'struct eu eu_table[] = {{"get", eu_a, 0}, <<<=>{"del", eu_c, 0}, >>>{"set", eu_b, 0}};\n'
        "long ask_command_added_in_the_midst_of_counters_in_use(long x) { eu_table[0].calls++; return "
        "eu_table[x & 1].call(x + 1) * 1000 + eu_table[0].calls + eu_c(1); }",
        must=False,
        refused=Refusal(AT_APPLY, r"eu_table at 0x[0-9a-f]+ is not what the build produced"),
    ),
)

_QUESTIONS = (0, 1, 2, 3, -4, 17)


def _struct(name: str, tag: str, fields: str, initial: str, asked: tuple[int, ...] = _QUESTIONS) -> Case:
    """A struct with fields `a` and `b`, of a global that two functions use: one changes, the other need not."""
    source = (
        f"struct {tag} {{ {fields} }}; struct {tag} {tag}_v = {{ {initial} }};\n"
        f"NOINLINE long {tag}_more(void) {{ seen++; return {tag}_v.b & 7; }}\n"
        f"long ask_{name}(long x) {{ {tag}_v.a += (int)x; {tag}_v.b -= x; return {tag}_more() * 1000000 + {tag}_v.a * "
        f"1000 + "
        f"{tag}_v.b <<<=>+ 1>>>; }}"
    )
    return Case(25, name, source, asked=asked, moved=frozenset({f"{tag}_v"}))


_FIELDS = (
    _struct("field_in_front", "ff", "<<<=>long fresh; >>>int a; long b;", "<<<=>.fresh = 77, >>>.a = 3, .b = 400"),
    _struct("field_in_the_middle", "fm", "int a; <<<=>char fresh[20]; >>>long b;", ".a = 3, .b = 400"),
    _struct("field_at_the_end", "fe", "int a; long b;<<<=> long fresh;>>>", ".a = 3, .b = 400<<<=>, .fresh = 77>>>"),
    _struct("field_in_padding", "fp", "int a; <<<=>int fresh; >>>long b;", ".a = 3, .b = 400<<<=>, .fresh = 77>>>"),
    _struct("field_lost", "fl", "<<<long gone; =>>>>int a; long b;", "<<<.gone = 9, =>>>>.a = 3, .b = 400"),
    _struct("fields_swapped", "fs", "<<<int a; long b;=>long b; int a;>>>", ".a = 3, .b = 400"),
    _struct("field_moves", "fv", "<<<int a; =>>>>char text[12]; long b;<<<=> int a;>>>",
            '.a = 3, .b = 400, .text = "abc"'),
    _struct("field_widens", "fw", "<<<short=>long>>> a; <<<int=>long>>> b;", ".a = -3, .b = -400"),
    _struct("field_narrows_and_fits", "fn", "<<<long=>short>>> a; <<<long=>int>>> b;", ".a = -3, .b = -400"),
    _struct("field_changes_its_sign", "fg", "<<<int=>long>>> a; <<<unsigned=>unsigned long>>> b;", ".a = 3, .b = 4000"),
    _struct("field_becomes_a_double", "fd", "<<<float=>double>>> a; <<<=>int fresh; >>>long b;", ".a = 3, .b = 400",
            asked=(0, 1, 2, 3, -4)),
)  # fmt: skip

_NARROW = "struct {0} {{ <<<long=>signed char>>> a; int b; }}; struct {0} {0}_v = {{ 3, 4 }};\n"

_STRUCTS = (
    Case(
        25,
        "field_narrows_and_does_not_fit",
        _NARROW.format("nn")
        + "long ask_field_narrows_and_does_not_fit(long x) { nn_v.a = 5000; nn_v.b += x; return nn_v.a * "
        "<<<1=>2>>> + nn_v.b; }",
        refused=Refusal(AT_APPLY, r"nn_v: `a` is 5000, which 8 signed bits do not hold", is_right=True),
    ),
    Case(
        25,
        "field_renamed",
        "struct rn { int <<<count=>total>>>; long b; }; struct rn rn_v = {3, 4};\n"
        "long ask_field_renamed(long x) { seen++; rn_v.<<<count=>total>>> += x; return rn_v.<<<count=>total>>> * "
        "<<<2=>3>>> + "
        "rn_v.b; }",
        refused=Refusal("variable-type-changed", "renamed"),
    ),
    Case(
        25,
        "field_renamed_as_a_person_says",
        "struct rp { int <<<count=>total>>>; <<<=>long more; >>>long b; }; struct rp rp_v = {.b = 4};\n"
        "long ask_field_renamed_as_a_person_says(long x) { seen++; rp_v.<<<count=>total>>> += x + 1; return "
        "rp_v.<<<count=>total>>> * <<<2=>3>>> + rp_v.b; }",
        answers={("rp", "count"): "total"},
        moved=frozenset({"rp_v"}),
    ),
    Case(
        25,
        "field_gone_as_a_person_says",
        "struct rg { int <<<count=>total>>>; long b; }; struct rg rg_v = {3, 4};\n"
        "long ask_field_gone_as_a_person_says(long x) { seen++; rg_v.b += x; return rg_v.<<<count=>total>>> * "
        "<<<2=>3>>> + rg_v.b; }",
        answers={("rg", "count"): ""},
        moved=frozenset({"rg_v"}),
    ),
    Case(
        25,
        "new_field_holds_a_value",
        "struct nh { int a; <<<=>long hits; >>>long b; }; struct nh nh_v = {.a = 3, .b = 4};\n"
        "long ask_new_field_holds_a_value(long x) { seen++; nh_v.a += x; <<<=>nh_v.hits = x * x + 1;>>> return nh_v.a "
        "* 100 + "
        "nh_v.b <<<=>+ nh_v.hits>>>; }",
        moved=frozenset({"nh_v"}),
        refused=Refusal(AT_REVERT, r"nh_v: `hits` .*, and there is no such field", is_right=True),
    ),
    Case(
        25,
        "nested_struct",
        "struct ns_in { <<<=>char fresh; >>>int a; }; struct ns_out { long n; struct ns_in in; struct ns_in two[2]; "
        "long last; "
        "};\nstruct ns_out ns_v = {.n = 1, .in.a = 2, .two = {{.a = 3}, {.a = 4}}, .last = 5};\n"
        "long ask_nested_struct(long x) { ns_v.in.a += x; ns_v.two[1].a -= x; ns_v.last ^= x; seen++; return ns_v.n + "
        "ns_v.in.a "
        "* 10 + ns_v.two[0].a * 100 + ns_v.two[1].a * 1000 + ns_v.last * 100000 <<<=>+ 7>>>; }",
        moved=frozenset({"ns_v"}),
    ),
    Case(
        25,
        "array_of_structs",
        "struct as { int a; <<<=>long fresh; >>>short b; }; struct as as_v[5] = {{.a = 1}, {.a = 2, .b = 7}};\n"
        "long ask_array_of_structs(long x) { long r = 0; as_v[x & 3].a += x; as_v[4].b += 1; seen++; for (int i = 0; "
        "i < 5; i++) "
        "r = r * 10 + as_v[i].a + as_v[i].b; return r <<<=>* 2>>>; }",
        moved=frozenset({"as_v"}),
    ),
    Case(
        25,
        "array_of_structs_that_grows",
        "struct ag { int a; <<<=>long fresh; >>>short b; }; struct ag ag_v[<<<3=>6>>>];\n"
        "long ask_array_of_structs_that_grows(long x) { long r = 0; ag_v[x & 1].a += x; ag_v[2].b += 1; seen++; for "
        "(unsigned i "
        "= 0; i < sizeof ag_v / sizeof *ag_v; i++) r = r * 10 + ag_v[i].a + ag_v[i].b + <<<0=>1>>>; return r; }",
        moved=frozenset({"ag_v"}),
    ),
    Case(
        25,
        "bit_fields_move_and_widen",
        "struct bf { <<<=>unsigned fresh : 5; >>>unsigned a : 3; int b : <<<5=>9>>>; unsigned c : 1; long d; };\n"
        "struct bf bf_v = {.a = 5, .b = -3, .c = 1, .d = 9};\n"
        "long ask_bit_fields_move_and_widen(long x) { bf_v.d += x; bf_v.a ^= x & 3; seen++; return bf_v.a * 100 + "
        "bf_v.b * 10 + "
        "bf_v.c * 10000 + bf_v.d * 100000 <<<=>+ 7>>>; }",
        moved=frozenset({"bf_v"}),
    ),
    Case(
        25,
        "bit_field_becomes_a_number",
        "struct bn { unsigned a<<< : 3=>>>>; int b<<< : 5=>>>>; long d; }; struct bn bn_v = {.a = 5, .b = -3, .d = "
        "9};\n"
        "long ask_bit_field_becomes_a_number(long x) { bn_v.d += x; seen++; return bn_v.a * 100 + bn_v.b * 10 + "
        "bn_v.d * 100000 "
        "<<<=>+ 7>>>; }",
        moved=frozenset({"bn_v"}),
    ),
    Case(
        25,
        "union_gains_a_member",
        "union un { int a; char text[4];<<<=> double more[3];>>> }; struct { long n; union un u; } un_v = {1, {2}};\n"
        "long ask_union_gains_a_member(long x) { un_v.u.a += x; un_v.n ^= x; seen++; return un_v.u.a * 100 + un_v.n "
        "<<<=>+ 50>>>; "
        "}",
        moved=frozenset({"un_v"}),
    ),
    Case(
        25,
        "union_member_widens",
        "union uw { <<<int=>long>>> a; char text[4]; }; union uw uw_v = {2};\n"
        "long ask_union_member_widens(long x) { uw_v.a += x & 3; seen++; return uw_v.a * 100 <<<=>+ 50>>>; }",
        must=False,
        refused=Refusal("variable-type-changed", "union"),
    ),
    Case(
        25,
        "enumerator_added_at_the_end",
        "enum ee { EE_A, EE_B<<<=>, EE_C>>> }; enum ee ee_v = EE_B;\n"
        "long ask_enumerator_added_at_the_end(long x) { if (x == 2) ee_v = !ee_v; seen++; return ee_v * 10 + (ee_v == "
        "EE_B) <<<=>+ "
        "100 * EE_C>>>; }",
        codes=frozenset({"enumerator-added"}),
    ),
    Case(
        25,
        "enumerator_added_in_front",
        "enum ef { <<<=>EF_NEW, >>>EF_A, EF_B }; enum ef ef_v = EF_B;\n"
        "long ask_enumerator_added_in_front(long x) { seen++; return (ef_v == EF_B) * 100 + (ef_v == EF_A) * 10 + x "
        "<<<=>+ "
        "EF_NEW>>>; }",
        refused=Refusal("variable-type-changed", "EF_"),
    ),
    Case(
        25,
        "struct_of_two_files",
        '#include "struct_of_two_files_both.h"\nstruct tw tw_v = {.a = 3, .b = 4};\n'
        "long tw_other(long); long ask_struct_of_two_files(long x) { seen++; tw_v.a += x; return tw_other(x) * 1000 + "
        "tw_v.a; }",
        {
            "struct_of_two_files_both.h": "struct tw { <<<=>long fresh; >>>int a; long b; }; extern struct tw tw_v;",
            "struct_of_two_files_more.c": '#include "struct_of_two_files_both.h"\nNOINLINE long tw_other(long x) { '
            "seen++; tw_v.b += "
            "x; return tw_v.b * 10 + tw_v.a <<<=>+ tw_v.fresh + 3>>>; }",
        },
        moved=frozenset({"tw_v"}),
    ),
    Case(
        25,
        "struct_of_a_static_local",
        "long ask_struct_of_a_static_local(long x) { static volatile struct { <<<=>long fresh; >>>int a; char b[3]; } "
        "s = {.a = 5, "
        '.b = "xy"}; seen++; s.a += x; return s.a * 1000 + s.b[x & 1] <<<=>+ 5>>>; }',
        moved=frozenset({"ask_struct_of_a_static_local()::s"}),
    ),
    Case(
        25,
        "struct_with_pointers",
        "struct wp { <<<=>long fresh; >>>const char *name; long (*call)(long); long *to; }; static NOINLINE long "
        "wp_f(long x) { "
        'seen++; return x * 3; }\nlong wp_n = 4; struct wp wp_v = {.name = "ab", .call = wp_f, .to = &wp_n};\n'
        'long ask_struct_with_pointers(long x) { *wp_v.to += x; if (x == 2) wp_v.name = "cd"; return wp_v.call(x) * '
        "1000 + "
        "wp_n * 10 + wp_v.name[0] <<<=>+ 5>>>; }",
        moved=frozenset({"wp_v"}),
    ),
    Case(
        25,
        "variable_widens",
        "<<<int=>long>>> vw_v = -5; static volatile <<<unsigned char=>unsigned>>> vw_own = 200;\n"
        "long ask_variable_widens(long x) { vw_v += x; vw_own ^= x & 15; seen++; return vw_v * 1000 + vw_own <<<=>* "
        "2>>>; }",
        moved=frozenset({"vw_v", "vw_own"}),
    ),
    Case(
        25,
        "variable_changes_its_sign_only",
        "<<<int=>unsigned>>> vs_v = 5; int *vs_kept;\n"
        "long ask_variable_changes_its_sign_only(long x) { if (!vs_kept) vs_kept = (int *)&vs_v; vs_v += x & 3; "
        "seen++; return "
        "vs_v * 10 + (vs_kept == (int *)&vs_v) <<<=>+ 100>>>; }",
    ),
    Case(
        25,
        "struct_with_an_open_array",
        "struct oo { int n; <<<=>int fresh; >>>int data[]; }; struct oo oo_v = {.n = 3, .data = {1, 2, 3}};\n"
        "long ask_struct_with_an_open_array(long x) { oo_v.data[x & 1] += x; seen++; return oo_v.data[1] * 10 + "
        "oo_v.data[0] * "
        "10000 + oo_v.n <<<=>+ 100>>>; }",
        refused=Refusal("variable-type-changed", "how many elements there are, its type does not say"),
    ),
)

_ARRAYS = (
    Case(
        26,
        "array_grows",
        "long ar_v[<<<4=>9>>>] = {1, 2, 3, 4}; long ask_array_grows(long x) { long r = 0; ar_v[x & 3] += x; seen++; "
        "for (unsigned "
        "i = 0; i < sizeof ar_v / sizeof *ar_v; i++) r = r * 7 + ar_v[i]; return r; }",
        moved=frozenset({"ar_v"}),
    ),
    Case(
        26,
        "static_array_grows",
        "static volatile short sr_v[<<<4=>300>>>]; static NOINLINE long sr_n(void) { seen++; return sizeof sr_v / "
        "sizeof *sr_v; "
        "}\nlong ask_static_array_grows(long x) { sr_v[x & 3] += x; sr_v[3]++; return sr_v[x & 3] * 1000 + sr_n(); }",
        moved=frozenset({"sr_v"}),
    ),
    Case(
        26,
        "array_of_another_file_grows",
        '#include "array_of_another_file_grows_both.h"\nlong ask_array_of_another_file_grows(long x) { seen++; ao_v[x '
        "& 1] += x; return "
        "ao_get(x & 1) * 100 + AO_N; }",
        {
            "array_of_another_file_grows_both.h": "#define AO_N <<<2=>5>>>\nextern int ao_v[AO_N]; int ao_get(long);",
            "array_of_another_file_grows_more.c": '#include "array_of_another_file_grows_both.h"\nint ao_v[AO_N] = '
            "{5, 6}; NOINLINE "
            "int ao_get(long i) { seen++; return ao_v[i]; }",
        },
        moved=frozenset({"ao_v"}),
    ),
    Case(
        26,
        "text_grows",
        '#include <string.h>\nchar tx_v[<<<8=>64>>>] = "abc"; long ask_text_grows(long x) { seen++; tx_v[x & 1] = '
        "'a' + (x & 7); "
        "return strlen(tx_v) * 100000 + tx_v[0] * 100 + tx_v[1] + sizeof tx_v * 1000000; }",
        moved=frozenset({"tx_v"}),
    ),
    Case(
        26,
        "array_of_arrays_grows",
        "int aa_v[2][<<<3=>4>>>] = {{1, 2, 3}, {4, 5, 6}}; long ask_array_of_arrays_grows(long x) { aa_v[x & 1][2] += "
        "x; seen++; "
        "return aa_v[0][2] * 1000 + aa_v[1][0] * 100 + aa_v[1][2] <<<=>+ aa_v[1][3] + 9>>>; }",
        moved=frozenset({"aa_v"}),
    ),
    Case(
        26,
        "array_of_pointers_grows",
        "long ap_n = 3; long *ap_v[<<<2=>5>>>] = {0, &ap_n}; long ask_array_of_pointers_grows(long x) { seen++; ap_n "
        "+= x; if (x == "
        "2) ap_v[0] = &ap_n; return *ap_v[1] * 100 + (ap_v[0] == &ap_n) * 10 + sizeof ap_v; }",
        moved=frozenset({"ap_v"}),
    ),
    Case(
        26,
        "array_shrinks_by_what_was_empty",
        "long ae_v[<<<9=>4>>>] = {1, 2, 3, 4}; long ask_array_shrinks_by_what_was_empty(long x) { long r = 0; ae_v[x "
        "& 3] += x; "
        "seen++; for (unsigned i = 0; i < sizeof ae_v / sizeof *ae_v; i++) r = r * 7 + ae_v[i]; return r; }",
        moved=frozenset({"ae_v"}),
    ),
    Case(
        26,
        "array_with_another_name_grows",
        'long aw_v[<<<4=>9>>>] = {1, 2, 3}; extern long aw_other[<<<4=>9>>>] __attribute__((alias("aw_v"))); long '
        "aw_get(long);\n"
        "long ask_array_with_another_name_grows(long x) { seen++; aw_v[x & 3] += x; return aw_other[x & 3] * 100 + "
        "aw_get(x & 3) * "
        "10000 + sizeof aw_v; }",
        {
            "array_with_another_name_grows_more.c": "extern long aw_other[]; NOINLINE long aw_get(long i) { seen++; "
            "return "
            "aw_other[i]; }"
        },
        moved=frozenset({"aw_v"}),
    ),
    Case(
        26,
        "common_array_grows",
        "long cg_v[<<<4=>9>>>]; long ask_common_array_grows(long x) { seen++; cg_v[x & 3] += x; return cg_v[x & 3] * "
        "100 + sizeof "
        "cg_v; }",
        flags=("-fcommon",),
        must=False,
        refused=Refusal("data-resized", "-fno-common"),
    ),
    Case(
        26,
        "array_in_a_section_of_its_own_name_grows",
        '__attribute__((section(".mine"))) long os_v[<<<4=>9>>>] = {1, 2, 3}; long '
        "ask_array_in_a_section_of_its_own_name_grows"
        "(long x) { seen++; os_v[x & 3] += x; return os_v[x & 3] * 100 + sizeof os_v; }",
        must=False,
        refused=Refusal("data-resized", "it has no writable section of its own"),
    ),
)

_P = "struct {0} {{ int a; <<<=>char fresh[20]; >>>long b; }}; struct {0} {0}_v = {{ .a = 3, .b = 40 }};\n"

_POINTERS = (
    Case(
        27,
        "pointer_in_a_global",
        _P.format("pg") + "struct pg *pg_whole = &pg_v; long *pg_into = &pg_v.b; int *pg_later;\n"
        "NOINLINE long pg_get(void) { seen++; return pg_whole->a * 100 + *pg_into; }\n"
        "long ask_pointer_in_a_global(long x) { if (!pg_later) pg_later = &pg_v.a; pg_v.a += x; pg_v.b -= x; return "
        "pg_get() * 100 "
        "+ (pg_whole == &pg_v) + (pg_into == &pg_v.b) * 2 + (pg_later == &pg_v.a) * 4 <<<=>+ 50>>>; }",
        moved=frozenset({"pg_v"}),
    ),
    Case(
        27,
        "pointers_in_structs_and_arrays",
        _P.format("ps")
        + "struct { char c; struct { long *into; struct ps *whole; } in[2]; } ps_held; struct ps *ps_shelf[4];\n"
        "NOINLINE void ps_set(void) { ps_held.in[1].into = &ps_v.b; ps_held.in[1].whole = ps_shelf[2] = &ps_v; "
        "seen++; }\n"
        "long ask_pointers_in_structs_and_arrays(long x) { if (!ps_shelf[2]) ps_set(); ps_v.a += x; ps_v.b -= x; "
        "return "
        "ps_held.in[1].whole->a * 1000 + *ps_held.in[1].into * 10 + (ps_shelf[2] == &ps_v) <<<=>+ 5>>>; }",
        moved=frozenset({"ps_v"}),
    ),
    Case(
        27,
        "pointers_of_moved_to_moved",
        "struct pm { int a; <<<=>char fresh[20]; >>>struct pm *next; }; extern struct pm pm_two; struct pm pm_one = "
        "{.a = 1, .next = "
        "&pm_two}, pm_two = {.a = 2, .next = &pm_one}; struct pm *pm_head = &pm_one;\n"
        "long ask_pointers_of_moved_to_moved(long x) { pm_head = pm_head->next; pm_head->a += x; seen++; return "
        "pm_head->a * 100 + "
        "pm_head->next->a * 10000 + (pm_head->next->next == pm_head) + (pm_one.next == &pm_two) * 2 <<<=>+ 50>>>; }",
        asked=(0, 1, 2, 3),
        moved=frozenset({"pm_one", "pm_two"}),
    ),
    Case(
        27,
        "pointer_into_an_array_that_grows",
        "int pa_v[<<<4=>9>>>] = {1, 2, 3, 4}; int *pa_to = &pa_v[2]; static int *volatile pa_own;\n"
        "NOINLINE long pa_get(void) { seen++; return *pa_to * 100 + *pa_own; }\n"
        "long ask_pointer_into_an_array_that_grows(long x) { if (!pa_own) pa_own = pa_v; pa_v[2] += x; pa_v[0]--; "
        "return pa_get() * "
        "100 + (pa_to == &pa_v[2]) + (pa_own == pa_v) * 2 + sizeof pa_v; }",
        moved=frozenset({"pa_v"}),
    ),
    Case(
        27,
        "pointer_of_another_file",
        '#include "pointer_of_another_file_both.h"\nlong ask_pointer_of_another_file(long x) { po_v.a += x; po_v.b -= '
        "x; seen++; return "
        "po_get() * 10 + (po_whole() == &po_v) <<<=>+ 5>>>; }",
        {
            "pointer_of_another_file_both.h": _P.format("po").partition("; struct")[0]
            + "; extern struct po po_v; long po_get(void); struct po *po_whole(void);",
            "pointer_of_another_file_more.c": '#include "pointer_of_another_file_both.h"\nstruct po po_v = {.a = 3, '
            ".b = 40}; static "
            "struct po *volatile kept = &po_v; NOINLINE long po_get(void) { seen++; return kept->a * 1000 + kept->b; "
            "} NOINLINE "
            "struct po *po_whole(void) { seen++; return kept; }",
        },
        moved=frozenset({"po_v"}),
    ),
    Case(
        27,
        "pointer_into_an_element_of_an_array_of_structs",
        "struct pe { int a; <<<=>int fresh[3]; >>>int b; }; struct pe pe_v[4] = {{.b = 1}, {.b = 2}}; int *pe_to;\n"
        "long ask_pointer_into_an_element_of_an_array_of_structs(long x) { if (!pe_to) pe_to = &pe_v[1].b; *pe_to += "
        "x; seen++; "
        "return pe_v[1].b * 10 + (pe_to == &pe_v[1].b) <<<=>+ 100>>>; }",
        moved=frozenset({"pe_v"}),
    ),
    Case(
        27,
        "pointer_in_constants",
        "struct pc { int a; <<<=>long fresh; >>>long b; }; struct pc pc_v = {.a = 1, .b = 2}; static long *const "
        "pc_to = &pc_v.b; "
        "long *const pc_table[] = {&pc_v.b, 0}; NOINLINE long pc_get(long *const *p) { seen++; return **p; }\n"
        "long ask_pointer_in_constants(long x) { pc_v.b += x; return pc_get(&pc_table[0]) * 10 + (*pc_to == pc_v.b) "
        "<<<=>+ 100>>>; }",
        moved=frozenset({"pc_v"}),
    ),
    Case(
        27,
        "pointer_past_the_end",
        "int pz_v[<<<4=>9>>>] = {1, 2, 3, 4}; int *pz_end = pz_v + 4; long ask_pointer_past_the_end(long x) { long r "
        "= 0; seen++; for "
        "(int *p = pz_v; p != pz_end; p++) r = r * 7 + *p; return r * 100 + x + sizeof pz_v; }",
        refused=Refusal("data-pointers-changed", "byte 16 of pz_v, and what that means in the new one is not known"),
    ),
    Case(
        27,
        "pointer_in_a_thread_local",
        "struct pt { int a; <<<=>long fresh; >>>long b; }; struct pt pt_v = {.a = 1, .b = 2}; _Thread_local long "
        "*pt_to;\n"
        "long ask_pointer_in_a_thread_local(long x) { if (!pt_to) pt_to = &pt_v.b; pt_v.b += x; seen++; return *pt_to "
        "* 10 + (pt_to == "
        "&pt_v.b) <<<=>+ 100>>>; }",
        granted=("--follow pt_v",),
        moved=frozenset({"pt_v"}),
    ),
    Case(
        27,
        "pointer_in_a_heap_object_behind_a_typed_pointer",
        "#include <stdlib.h>\nlong ph_v[<<<4=>9>>>] = {1, 2, 3, 4}; struct ph { long n; long *to; }; struct ph "
        "*ph_held;\n"
        "NOINLINE void ph_set(void) { ph_held = calloc(1, sizeof *ph_held); ph_held->to = &ph_v[1]; seen++; }\n"
        "long ask_pointer_in_a_heap_object_behind_a_typed_pointer(long x) { if (!ph_held) ph_set(); ph_v[1] += x; "
        "return "
        "*ph_held->to * 100 + (ph_held->to == &ph_v[1]) + sizeof ph_v; }",
        moved=frozenset({"ph_v"}),
    ),
    Case(
        27,
        "pointer_on_the_heap_behind_void",
        "#include <stdlib.h>\nlong pv_v[<<<4=>9>>>] = {1, 2, 3, 4}; void *pv_held;\n"
        "NOINLINE void pv_set(void) { pv_held = calloc(40, sizeof(long *)); ((long **)pv_held)[2] = &pv_v[1]; seen++; "
        "}\n"
        "long ask_pointer_on_the_heap_behind_void(long x) { if (!pv_held) pv_set(); pv_v[1] += x; long *p = ((long "
        "**)pv_held)[2]; "
        "return *p * 100 + (p == &pv_v[1]) + sizeof pv_v; }",
        must=False,
        granted=("--follow pv_v",),
        moved=frozenset({"pv_v"}),
    ),
    Case(
        27,
        "pointer_on_the_heap_is_not_followed_unasked",
        "#include <stdlib.h>\nlong pn_v[<<<4=>9>>>] = {1, 2, 3, 4}; void *pn_held;\n"
        "NOINLINE void pn_set(void) { pn_held = calloc(40, sizeof(long *)); ((long **)pn_held)[2] = &pn_v[1]; seen++; "
        "}\n"
        "long ask_pointer_on_the_heap_is_not_followed_unasked(long x) { if (!pn_held) pn_set(); pn_v[1] += x; long *p "
        "= ((long "
        "**)pn_held)[2]; return *p * 100 + (p == &pn_v[1]) + sizeof pn_v; }",
        must=False,
        refused=Refusal(AT_APPLY, r"(?s)0x[0-9a-f]+ in \[heap\]: pn_v.*--follow pn_v", is_right=True),
    ),
    Case(
        27,
        "pointer_to_void_in_a_global",
        "struct pw { int a; long b;<<<=> long fresh;>>> }; struct pw pw_v = {.a = 3, .b = 40}; void *pw_held = &pw_v;\n"
        "long ask_pointer_to_void_in_a_global(long x) { pw_v.a += x; seen++; return pw_v.a * 10 + (pw_held == &pw_v) "
        "<<<=>+ 5>>>; }",
        must=False,
        granted=("--follow pw_v",),
        moved=frozenset({"pw_v"}),
    ),
    Case(
        27,
        "pointer_to_void_that_came_later",
        "struct pl { int a; long b;<<<=> long fresh;>>> }; struct pl pl_v = {.a = 3, .b = 40}; void *pl_held;\n"
        "long ask_pointer_to_void_that_came_later(long x) { if (!pl_held) pl_held = &pl_v; pl_v.a += x; seen++; "
        "return pl_v.a * 10 "
        "+ (pl_held == &pl_v) <<<=>+ 5>>>; }",
        must=False,
        granted=("--follow pl_v",),
        moved=frozenset({"pl_v"}),
    ),
    Case(
        27,
        "number_that_holds_an_address",
        "long pq_v[<<<4=>9>>>] = {1, 2, 3, 4}; unsigned long pq_number;\n"
        "long ask_number_that_holds_an_address(long x) { pq_number = (unsigned long)&pq_v[1]; pq_v[1] += x; seen++; "
        "return "
        "*(long *)pq_number * 100 + sizeof pq_v; }",
        must=False,
        refused=Refusal(AT_APPLY, r"(?s)0x[0-9a-f]+ in .*: pq_v.*--follow pq_v"),
    ),
)

_HEAP = (
    Case(
        28,
        "heap_objects_of_a_changed_type",
        "#include <stdlib.h>\nstruct hp { <<<=>long fresh; >>>int a; struct hp *next; }; struct hp *hp_list, "
        "hp_first;\n"
        "long ask_heap_objects_of_a_changed_type(long x) { struct hp *p = calloc(1, sizeof *p); long r = 0; p->a = x; "
        "p->next = "
        "hp_list; hp_list = p; seen++; for (; p; p = p->next) r += p->a; return r <<<=>* 2>>>; }",
        codes=frozenset({"type-walked"}),
    ),
    Case(
        28,
        "heap_object_behind_one_pointer",
        "#include <stdlib.h>\nstruct ho { int a; long b;<<<=> long fresh;>>> }; struct ho ho_own; static struct ho "
        "*volatile ho_one;\n"
        "long ask_heap_object_behind_one_pointer(long x) { if (!ho_one) ho_one = calloc(1, sizeof *ho_one); ho_one->a "
        "+= x; seen++; "
        "return ho_one->a <<<=>* 2 + ho_one->fresh>>>; }",
        codes=frozenset({"type-walked"}),
    ),
    Case(
        28,
        "heap_objects_that_stay_in_their_blocks",
        "#include <stdlib.h>\nstruct hk { <<<short a; long b;=>long b; int a;>>> struct hk *next; }; static struct hk "
        "*volatile hk_list;\n"
        "long ask_heap_objects_that_stay_in_their_blocks(long x) { struct hk *p = calloc(1, sizeof *p); long r = 0; "
        "p->a = x, p->b = x * 7; p->next = hk_list; hk_list = p; seen++; for (; p; p = p->next) r = r * 3 + p->a + "
        "p->b; return r <<<=>+ 2>>>; }",
        codes=frozenset({"type-walked"}),
    ),
    Case(
        28,
        "heap_tree",
        "#include <stdlib.h>\nstruct ht { struct ht *left; <<<=>int fresh[5]; >>>long key; struct ht *right; }; "
        "struct ht "
        "*ht_root; long ht_number;\n"
        "NOINLINE void ht_put(long key) { struct ht **at = &ht_root; while (*at) at = key < (*at)->key ? "
        "&(*at)->left : "
        "&(*at)->right; *at = calloc(1, sizeof **at); (*at)->key = key; seen++; }\n"
        "NOINLINE long ht_sum(const struct ht *t, long depth) { return t ? t->key * depth + ht_sum(t->left, "
        "depth + 1) + "
        "ht_sum(t->right, depth + 2) : 0; }\n"
        "long ask_heap_tree(long x) { for (int i = 0; i < 20; i++) ht_put((ht_number = ht_number * 1103515245 + "
        "12345 + x) "
        ">> 16 & 255); return ht_sum(ht_root, 1) <<<=>* 2>>>; }",
        codes=frozenset({"type-walked"}),
    ),
    Case(
        28,
        "heap_table_of_pointers",
        "#include <stdlib.h>\nstruct hb { struct hb *next; long key, <<<=>fresh, >>>value; }; struct { unsigned "
        "size; struct "
        "hb **slots; } hb_table;\n"
        "NOINLINE void hb_put(long key, long value) { if (!hb_table.slots) hb_table.slots = calloc(hb_table.size = 64, "
        "sizeof *hb_table.slots); struct hb *b = calloc(1, sizeof *b); b->key = key, b->value = value; b->next = "
        "hb_table.slots[key & 63]; hb_table.slots[key & 63] = b; seen++; }\n"
        "NOINLINE long hb_sum(void) { long r = 0; for (unsigned i = 0; i < hb_table.size; i++) for (struct hb *b = "
        "hb_table.slots[i]; b; b = b->next) r = r * 5 + b->key + b->value * 3; return r; }\n"
        "long ask_heap_table_of_pointers(long x) { for (int i = 0; i < 30; i++) hb_put(seen * 7 + x, x + i); return "
        "hb_sum() <<<=>+ 7>>>; }",
        codes=frozenset({"type-walked"}),
    ),
    Case(
        28,
        "heap_array_of_objects",
        "#include <stdlib.h>\nstruct ha { <<<int=>long>>> n; struct ha *peer; long own; }; struct ha *ha_all, "
        "*ha_third;\n"
        "NOINLINE void ha_set(void) { ha_all = calloc(50, sizeof *ha_all); for (int i = 0; i < 50; i++) "
        "ha_all[i].n = i * "
        "i, ha_all[i].peer = &ha_all[49 - i]; ha_third = &ha_all[3]; seen++; }\n"
        "long ask_heap_array_of_objects(long x) { long r = 0; if (!ha_all) ha_set(); ha_third->n += x; for (int "
        "i = 0; i < "
        "50; i++) r = r * 3 + ha_all[i].n + (ha_all[i].peer == &ha_all[49 - i]) + ha_all[i].peer->n; return r + "
        "(ha_third == "
        "ha_all + 3) <<<=>+ 9>>>; }",
        codes=frozenset({"type-walked"}),
    ),
    Case(
        28,
        "heap_cycle_with_pointers_to_pointers",
        "#include <stdlib.h>\nstruct hc { struct hc *next, **back; <<<=>long fresh[3]; >>>long n; }; struct { "
        "struct hc "
        "*first, **last; } hc_queue;\n"
        "NOINLINE void hc_put(long n) { if (!hc_queue.last) hc_queue.last = &hc_queue.first; struct hc *p = "
        "calloc(1, sizeof "
        "*p); p->n = n; p->back = hc_queue.last; *hc_queue.last = p; hc_queue.last = &p->next; seen++; }\n"
        "NOINLINE void hc_drop(struct hc *p) { if (p->next) p->next->back = p->back; else hc_queue.last = "
        "p->back; *p->back "
        "= p->next; free(p); }\n"
        "long ask_heap_cycle_with_pointers_to_pointers(long x) { long r = 0; for (int i = 0; i < 9; i++) "
        "hc_put(x + i); "
        "hc_drop(hc_queue.first->next->next); hc_drop(hc_queue.first); for (struct hc *p = hc_queue.first; p; p "
        "= p->next) r "
        "= r * 3 + p->n + (*p->back == p); return r <<<=>* 2>>>; }",
        codes=frozenset({"type-walked"}),
    ),
    Case(
        28,
        "heap_pointers_into_fields",
        "#include <stdlib.h>\nstruct hi { <<<=>long fresh; >>>int a; long b[4]; }; struct hi *hi_one; long "
        "*hi_into; struct "
        "hv { long *at; } *hi_view;\n"
        "NOINLINE void hi_set(void) { hi_one = calloc(1, sizeof *hi_one); hi_into = &hi_one->b[2]; hi_view = calloc(1, "
        "sizeof *hi_view); hi_view->at = &hi_one->b[1]; seen++; }\n"
        "long ask_heap_pointers_into_fields(long x) { if (!hi_one) hi_set(); hi_one->a += x; hi_one->b[2] -= x; "
        "hi_one->b[1] = x * 3; return hi_one->a * 100 + *hi_into * 10 + *hi_view->at + (hi_into == "
        "&hi_one->b[2]) <<<=>+ "
        "50>>>; }",
        codes=frozenset({"type-walked"}),
    ),
    Case(
        28,
        "heap_object_by_value_in_another",
        "#include <stdlib.h>\nstruct hx { <<<=>int fresh; >>>short a; struct hx *to; }; struct hy { long n; "
        "struct hx in[2]; "
        "struct hy *next; }; struct hy *hy_list;\n"
        "long ask_heap_object_by_value_in_another(long x) { struct hy *p = calloc(1, sizeof *p); long r = 0; p->n = x; "
        "p->in[1].a = x * 3; p->in[0].to = hy_list ? &hy_list->in[1] : &p->in[1]; p->next = hy_list; hy_list = "
        "p; seen++; for "
        "(; p; p = p->next) r = r * 3 + p->n + p->in[1].a + p->in[0].to->a; return r <<<=>+ 3>>>; }",
        codes=frozenset({"type-walked"}),
    ),
    Case(
        28,
        "heap_objects_of_another_file",
        '#include "heap_objects_of_another_file_both.h"\nlong ask_heap_objects_of_another_file(long x) { struct hf '
        "*p = "
        "calloc(1, sizeof *p); long r = 0; p->a = x; hf_keep(p); seen++; for (p = hf_first(); p; p = p->next) r "
        "= r * 3 + p->a; "
        "return r <<<=>+ 4>>>; }",
        {
            "heap_objects_of_another_file_both.h": "#include <stdlib.h>\nstruct hf { <<<=>long fresh; >>>long a; "
            "struct hf "
            "*next; }; void hf_keep(struct hf *p); struct hf *hf_first(void);",
            "heap_objects_of_another_file_more.c": '#include "heap_objects_of_another_file_both.h"\nstruct hold { '
            "struct hf "
            "*list; long n; }; static struct hold *volatile held; NOINLINE void hf_keep(struct hf *p) { if "
            "(!held) held = "
            "calloc(1, sizeof *held); p->next = held->list; held->list = p; seen++; } NOINLINE struct hf "
            "*hf_first(void) { "
            "seen++; return held->list; }",
        },
        codes=frozenset({"type-walked"}),
    ),
    Case(
        28,
        "heap_value_that_does_not_fit",
        "#include <stdlib.h>\nstruct hn { <<<long=>short>>> a; struct hn *next; }; struct hn *hn_list;\n"
        "long ask_heap_value_that_does_not_fit(long x) { struct hn *p = calloc(1, sizeof *p); p->a = 70000; "
        "p->next = hn_list; "
        "hn_list = p; seen++; return hn_list->a + x; }",
        must=False,
        refused=Refusal(AT_APPLY, r"struct hn at 0x[0-9a-f]+: .*70000", is_right=True),
    ),
    Case(
        28,
        "heap_pointer_to_freed_memory",
        "#include <stdlib.h>\nstruct hz { <<<=>long fresh[9]; >>>long a[75]; struct hz *next, *old; }; struct hz "
        "*hz_list;\n"
        "long ask_heap_pointer_to_freed_memory(long x) { struct hz *p = calloc(1, sizeof *p), *gone = calloc(1, "
        "sizeof *p); "
        "p->a[3] = x; p->next = hz_list; p->old = gone; hz_list = p; free(gone); seen++; return p->a[3] <<<=>* 2>>>; }",
        must=False,
        asked=(3,),
        refused=Refusal(AT_APPLY, r"hz_list->old \(0x[0-9a-f]+\) leads to memory that is free", is_right=True),
    ),
    Case(
        28,
        "heap_pool_of_the_program",
        "#include <stdlib.h>\nstruct ho2 { <<<=>long fresh; >>>long a; struct ho2 *next; }; struct ho2 "
        "*ho2_list; static char "
        "*volatile ho2_pool; static long ho2_used;\n"
        "long ask_heap_pool_of_the_program(long x) { if (!ho2_pool) ho2_pool = calloc(1, 4000); struct ho2 *p = "
        "(struct ho2 "
        "*)(ho2_pool + 64 + ho2_used); ho2_used += sizeof *p; p->a = x; p->next = ho2_list; ho2_list = p; "
        "seen++; return p->a "
        "<<<=>* 2>>>; }",
        must=False,
        refused=Refusal(
            AT_APPLY, r"ho2_list(->next.*)? \(0x[0-9a-f]+\) leads into a block of char, which holds no struct ho2"
        ),
    ),
    Case(
        28,
        "heap_objects_behind_void",
        "#include <stdlib.h>\nstruct hw { <<<=>long fresh; >>>long a; long b[50]; }; void *hw_held;\n"
        "long ask_heap_objects_behind_void(long x) { if (!hw_held) hw_held = calloc(1, sizeof(struct hw)); "
        "struct hw *p = "
        "hw_held; p->a += x; seen++; return p->a <<<=>* 2>>>; }",
        must=False,
        refused=Refusal("type-changed", "typed pointers lead there from no variable"),
    ),
    Case(
        28,
        "heap_objects_behind_void_beside_others",
        "#include <stdlib.h>\nstruct hq { <<<=>long fresh; >>>long a[20]; }; static void *volatile hq_held; "
        "struct hq *hq_one;\n"
        "long ask_heap_objects_behind_void_beside_others(long x) { if (!hq_held) hq_held = calloc(1, "
        "sizeof(struct hq)), hq_one "
        "= calloc(1, sizeof(struct hq)); struct hq *p = hq_held; p->a[3] += x; hq_one->a[2]++; seen++; return "
        "p->a[3] <<<=>* "
        "2>>>; }",
        must=False,
        refused=Refusal(AT_APPLY, r"struct hq \(160 bytes\): 1, at 0x[0-9a-f]+", is_right=True),
    ),
    Case(
        28,
        "heap_objects_in_a_union",
        "#include <stdlib.h>\nstruct hu { <<<=>long fresh[5]; >>>long a; struct hu *next; }; union { struct hu "
        "*as; long number; } "
        "hu_held; struct hu *hu_list;\n"
        "long ask_heap_objects_in_a_union(long x) { struct hu *p = calloc(1, sizeof *p); p->a = x; p->next = "
        "hu_list; hu_list "
        "= p; hu_held.as = p; seen++; return hu_held.as->a <<<=>* 2>>>; }",
        must=False,
        granted=("--only-reached struct hu", "--follow struct hu"),
    ),
    Case(
        28,
        "type_that_only_variables_have",
        "struct hs { <<<=>long fresh; >>>int a; long b; }; struct hs hs_v = {.a = 3, .b = 4}; static NOINLINE long "
        "hs_get(const "
        "struct hs *p) { seen++; return p->a * 10 + p->b; }\n"
        "long ask_type_that_only_variables_have(long x) { hs_v.a += x; return hs_get(&hs_v) <<<=>+ 1>>>; }",
        granted=("--only-static struct hs",),
        moved=frozenset({"hs_v"}),
    ),
    Case(
        28,
        "type_of_a_local_variable",
        "struct hl { <<<=>long fresh; >>>int a; long b; }; struct hl hl_v; long hl_n; static NOINLINE long "
        "hl_get(struct hl s) { "
        "seen++; return s.a "
        "* 10 + s.b <<<=>+ 1>>>; }\n"
        "long ask_type_of_a_local_variable(long x) { struct hl mine = {.a = x, .b = ++hl_n}; return hl_get(mine) "
        "<<<=>+ 1>>>; }",
    ),
)

_THREADS = (
    Case(
        29,
        "thread_local_referenced",
        "static volatile _Thread_local long tl_own = 5; _Thread_local long tl_v = 6; static _Thread_local volatile "
        "long tl_zero;\n"
        "long ask_thread_local_referenced(long x) { tl_own += x; tl_v -= x; tl_zero++; seen++; return tl_own * 1000 + "
        "tl_v * 10 + "
        "<<<0=>tl_zero * 100000>>>; }",
    ),
    Case(
        29,
        "thread_local_of_another_file",
        "extern _Thread_local long to_v; long to_get(void); long ask_thread_local_of_another_file(long x) { to_v += "
        "x; seen++; "
        "return to_get() * 10 <<<=>+ to_v * 1000>>>; }",
        {
            "thread_local_of_another_file_more.c": "_Thread_local long to_v = 7; NOINLINE long to_get(void) { seen++; "
            "return to_v "
            "<<<=>+ 1>>>; }"
        },
    ),
    Case(
        29,
        "thread_local_new",
        "<<<=>static volatile _Thread_local long tn_v = 7;>>> long ask_thread_local_new(long x) { seen++; return x "
        "<<<=>* tn_v>>>; }",
        must=False,
    ),
    Case(
        29,
        "thread_local_widens",
        "_Thread_local <<<int=>long>>> tw_count = 7; long ask_thread_local_widens(long x) { seen++; tw_count += x; "
        "return tw_count "
        "<<<=>* 2>>>; }",
        must=False,
        refused=Refusal("thread-local-changed", "each thread has one of its own"),
    ),
    Case(
        29,
        "thread_local_struct_gains",
        "static volatile _Thread_local struct { int a; <<<=>long fresh; >>>} tg_v = {7}; long "
        "ask_thread_local_struct_gains(long x) "
        "{ seen++; tg_v.a += x; return tg_v.a <<<=>* 2 + tg_v.fresh>>>; }",
        must=False,
        refused=Refusal("thread-local-changed", "each thread has one of its own"),
    ),
    Case(
        29,
        "thread_local_initialiser",
        "_Thread_local long ti_v = <<<7=>8>>>; long ask_thread_local_initialiser(long x) { seen++; ti_v += x; return "
        "ti_v; }",
        must=False,
        refused=Refusal("thread-local-changed", "threads that start later would still get the old one"),
    ),
)

_KINDS = (
    Case(
        30,
        "variable_removed",
        "<<<long vr_v = 5; static volatile long vr_own = 6;=>>>> long ask_variable_removed(long x) { seen++; return "
        "<<<vr_v + "
        "vr_own=>100>>> * x; }",
    ),
    Case(
        30,
        "variable_turns_static",
        "<<<=>static volatile >>>long vt_v = 5; volatile long *vt_kept; long ask_variable_turns_static(long x) { if "
        "(!vt_kept) "
        "vt_kept = &vt_v; vt_v += x; seen++; return vt_v * 10 + (vt_kept == &vt_v) <<<=>+ 100>>>; }",
    ),
    Case(
        30,
        "static_data_turns_global",
        "<<<static volatile =>>>>long vg_v = 5; volatile long *vg_kept; long ask_static_data_turns_global(long x) { "
        "if (!vg_kept) vg_kept "
        "= &vg_v; vg_v += x; seen++; return vg_v * 10 + (vg_kept == &vg_v) <<<=>+ 100>>>; }",
    ),
    Case(
        30,
        "variable_turns_const",
        "<<<=>const >>>long vc_v = 5; long vc_get(void); long ask_variable_turns_const(long x) { seen++; <<<vc_v += "
        "x;=>>>> return "
        "vc_get() * 10 + x <<<=>+ 100>>>; }",
        {
            "variable_turns_const_more.c": "extern <<<=>const >>>long vc_v; NOINLINE long vc_get(void) { seen++; "
            "return vc_v; }",
        },
        must=False,
        refused=Refusal("data-kind-changed", "it was a writable variable and is read-only now"),
    ),
    Case(
        30,
        "const_turns_variable",
        "<<<const =>>>>long cv_v = 5; long cv_get(void); long ask_const_turns_variable(long x) { seen++; <<<=>cv_v = "
        "x;>>> return "
        "cv_get() * 10 + x <<<=>+ 100>>>; }",
        {
            "const_turns_variable_more.c": "extern <<<const =>>>>long cv_v; NOINLINE long cv_get(void) { seen++; "
            "return cv_v; }",
        },
        must=False,
        refused=Refusal("data-kind-changed", "read-only, writable or thread-local before"),
    ),
    Case(
        30,
        "variable_turns_thread_local",
        "<<<=>_Thread_local >>>long vh_v = 5; long ask_variable_turns_thread_local(long x) { seen++; vh_v += x; "
        "return vh_v * 10 "
        "<<<=>+ 100>>>; }",
        must=False,
        refused=Refusal("data-kind-changed", "read-only, writable or thread-local before"),
    ),
)

_ALIGNED = (
    Case(
        31,
        "packed",
        "struct <<<=>__attribute__((packed)) >>>pk { char c; int a; short s; long b; }; struct pk pk_v = {'x', 3, 4, "
        "50};\n"
        "long ask_packed(long x) { pk_v.a += x; pk_v.b -= x; pk_v.s++; seen++; return pk_v.c + pk_v.a * 1000 + pk_v.s "
        "* 100000 + "
        "pk_v.b * 10000000 <<<=>+ 1>>>; }",
        moved=frozenset({"pk_v"}),
    ),
    Case(
        31,
        "no_longer_packed",
        "struct <<<__attribute__((packed)) =>>>>pu { char c; int a; short s; long b; }; struct pu pu_v = {'x', 3, 4, "
        "50};\n"
        "long ask_no_longer_packed(long x) { pu_v.a += x; pu_v.b -= x; pu_v.s++; seen++; return pu_v.c + pu_v.a * "
        "1000 + pu_v.s * "
        "100000 + pu_v.b * 10000000 <<<=>+ 1>>>; }",
        moved=frozenset({"pu_v"}),
    ),
    Case(
        31,
        "field_aligned",
        "struct fa { char c; <<<=>__attribute__((aligned(32))) >>>int a; long b; }; struct fa fa_v = {'x', 3, 4};\n"
        "long ask_field_aligned(long x) { fa_v.a += x; fa_v.b -= x; seen++; return fa_v.c + fa_v.a * 1000 + fa_v.b * "
        "100000 + "
        "<<<0=>(((unsigned long)&fa_v.a & 31) == 0)>>>; }",
        moved=frozenset({"fa_v"}),
    ),
    Case(
        31,
        "type_aligned",
        "struct <<<=>__attribute__((aligned(64))) >>>ta { int a; long b; }; struct ta ta_v[2] = {{3, 4}, {5, 6}};\n"
        "long ask_type_aligned(long x) { ta_v[1].a += x; ta_v[0].b -= x; seen++; return ta_v[1].a * 1000 + ta_v[0].b "
        "* 100000 + "
        "<<<0=>(((unsigned long)&ta_v[1] & 63) == 0)>>>; }",
        moved=frozenset({"ta_v"}),
    ),
    Case(
        31,
        "variable_aligned",
        "char va_before = 1; <<<=>__attribute__((aligned(4096))) >>>long va_v = 5; long ask_variable_aligned(long x) "
        "{ va_v += x; "
        "va_before ^= 1; seen++; volatile unsigned long at = (unsigned long)&va_v; return va_v * 1000 + va_before * "
        "10 + "
        "<<<0=>((at & 4095) == 0)>>>; }",
        moved=frozenset({"va_v"}),
    ),
    Case(
        31,
        "optimiser_raises_the_alignment",
        # clang -O2 does so for vector instructions, which fault where one of the old objects lies.
        "struct oa { double a, b, c; }; struct oa oa_v = {1, 2, 3}, oa_w = {4, 5, 6};\n"
        'NOINLINE void oa_f(double x) { seen++; oa_v.a += x; <<<__asm__ volatile("" ::: "memory");=>>>> oa_v.b += x; '
        'oa_w.a += x; <<<__asm__ volatile("" ::: "memory");=>>>> oa_w.b += x; }\n'
        "long ask_optimiser_raises_the_alignment(long x) { oa_f(x); return (long)(oa_v.a * 10 + oa_v.b * 1000 + "
        "oa_w.a * 100000 + oa_w.b * 10000000) <<<=>+ 1>>>; }",
    ),
    Case(
        31,
        "padding_made_a_field",
        "struct pp { char c; <<<=>char pad[3]; >>>int a; long b; }; struct pp pp_v = {.c = 'x', .a = 3, .b = 4};\n"
        "long ask_padding_made_a_field(long x) { pp_v.a += x; pp_v.b -= x; seen++; return pp_v.c + pp_v.a * 1000 + "
        "pp_v.b * 100000 "
        "<<<=>+ pp_v.pad[x & 1] + 1>>>; }",
    ),
    Case(
        31,
        "padding_of_a_field_grows",
        "struct pd { char c; char pad[<<<3=>11>>>]; int a; long b; }; struct pd pd_v = {.c = 'x', .a = 3, .b = 4};\n"
        "long ask_padding_of_a_field_grows(long x) { pd_v.a += x; pd_v.b -= x; seen++; return pd_v.c + pd_v.a * 1000 "
        "+ pd_v.b * "
        "100000 <<<=>+ 1>>>; }",
        moved=frozenset({"pd_v"}),
    ),
    Case(
        31,
        "constant_aligned",
        "<<<=>__attribute__((aligned(64))) >>>const int ca_v[4] = {1, 2, 3, 4}; long ask_constant_aligned(long x) { "
        "volatile "
        "unsigned long at = (unsigned long)ca_v; seen++; return ca_v[x & 3] * 10 + <<<0=>((at & 63) == 0) + 5>>>; }",
    ),
)

DATA = tuple(
    replace(case, program="data")
    for case in (
        *_KEPT, *_NEW, *_CONSTANTS, *_INITIALISERS, *_TABLES, *_FIELDS, *_STRUCTS, *_ARRAYS, *_POINTERS, *_HEAP,
        *_THREADS, *_KINDS, *_ALIGNED,
    )
)  # fmt: skip

_CXX = (
    Case(
        20,
        "class_static_keeps",
        "struct Cs { static long n; <<<=>static long first;>>> NOINLINE static long f(long x) { static volatile long "
        "calls; "
        "seen++; calls++; return (n += x) * 100 + calls; } };\nlong Cs::n = 5; <<<=>long Cs::first = 7;>>> static "
        "long *kept;\n"
        "ask(class_static_keeps) { if (!kept) kept = &Cs::n; return Cs::f(x) * 10 + (kept == &Cs::n) <<<=>+ Cs::first "
        "* "
        "1000000>>>; }",
    ),
    Case(
        20,
        "inline_variable_keeps",
        "inline long iv_n = 5; <<<=>inline long iv_more = 4;>>> long iv_other(long); ask(inline_variable_keeps) { "
        "static long "
        "*kept; if (!kept) kept = &iv_n; iv_n += x; seen++; return iv_other(x) * 10 + (kept == &iv_n) <<<=>+ iv_more "
        "* 1000000>>>; "
        "}",
        {
            "inline_variable_keeps_more.cc": "inline long iv_n = 5; NOINLINE long iv_other(long x) { seen++; return "
            "iv_n * "
            "<<<2=>3>>> + x; }"
        },
    ),
    Case(
        25,
        "class_gains_a_field",
        "struct Cg { int a; <<<=>long fresh = 9; >>>long b; NOINLINE long f(long x) { seen++; a += x; return a * 100 + "
        "b; } }; volatile long cg_turn;\nCg cg_v{.a = 3, .b = 4};\n"
        "ask(class_gains_a_field) { cg_turn += 1; return cg_v.f(x) <<<=>+ cg_v.fresh * 100000>>>; }",
        granted=("--only-static struct Cg",),
        moved=frozenset({"cg_v"}),
    ),
    Case(
        25,
        "virtual_class_gains_a_field",
        "struct Vb { virtual long f(long x) { seen++; return x + a; } int a = 3; <<<=>long fresh = 9;>>> }; struct Vd "
        ": Vb { long b = "
        "4; long f(long x) override { seen++; b += x; return b * <<<10=>100>>> + a; } };\nVd vd_v; Vb *vd_to = &vd_v;\n"
        "ask(virtual_class_gains_a_field) { vd_v.a += 1; return vd_to->f(x) * 10 + (vd_to == &vd_v); }",
        must=False,  # clang describes a base class where its virtual table is
        granted=("--only-static struct Vb", "--only-static struct Vd"),
        moved=frozenset({"vd_v"}),
    ),
    Case(
        25,
        "bases_with_fields",
        "struct B1 { int a = 1; <<<=>long fresh[2] = {6};>>> }; struct B2 { long b = 2; }; struct Bd : B1, B2 { long "
        "c = 3; }; Bd bd_v; B2 "
        "*bd_to = &bd_v;\n"
        "ask(bases_with_fields) { seen++; bd_v.a += x; bd_v.c -= x; bd_to->b += 1; return bd_v.a * 100 + bd_v.b * "
        "10000 + bd_v.c * "
        "1000000 + (bd_to == &bd_v) <<<=>+ 7>>>; }",
        moved=frozenset({"bd_v"}),
    ),
    Case(
        25,
        "enum_class_and_bool",
        "enum class Ec : <<<int=>long>>> { A, B }; Ec ec_cv = Ec::B; struct Eh { bool on; <<<=>int fresh; >>>Ec e; }; "
        "Eh ec_held = {true};\n"
        "ask(enum_class_and_bool) { seen++; if (x == 2) ec_cv = Ec::A, ec_held.on = !ec_held.on; ec_held.e = ec_cv; "
        "return "
        "(long)ec_cv * 100 + ec_held.on * 10 + (long)ec_held.e <<<=>+ 1000>>>; }",
        moved=frozenset({"ec_cv", "ec_held"}),
    ),
    Case(
        26,
        "template_static_array_grows",
        "template <class T> struct Ta { static T room[<<<4=>9>>>]; }; template <class T> T Ta<T>::room[<<<4=>9>>>] = "
        "{1, 2};\n"
        "ask(template_static_array_grows) { seen++; Ta<long>::room[x & 3] += x; return Ta<long>::room[x & 3] * 100 + "
        "sizeof "
        "Ta<long>::room; }",
        codes=frozenset({"data-transformed"}),
    ),
    Case(
        22,
        "constexpr_table_grown",
        "namespace { constexpr int ct_table[] = {1, 2, 3<<<=>, 40>>>}; } ask(constexpr_table_grown) { volatile "
        "unsigned long i = "
        "(unsigned long)x % (sizeof ct_table / sizeof *ct_table); seen++; return ct_table[i] * 10; }",
    ),
)

DATA_CXX = tuple(
    replace(
        case,
        source='#define ask(name) extern "C" long ask_##name(long x)\n' + case.source,
        program="data_cxx",
        suffix=".cc",
        flags=("-fno-exceptions", "-std=c++20"),
    )
    for case in _CXX
)
