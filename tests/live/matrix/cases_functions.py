"""Kinds 1 to 5: functions, inlining, new and removed ones, signatures, clones."""

from __future__ import annotations

from tests.live.matrix.model import Case

FUNCTIONS = (
    Case(
        1,
        "global_body",
        "NOINLINE int gb_f(int x) { return x * <<<3=>5>>> + 1; } long ask_global_body(long x) { return gb_f(x); }",
    ),
    Case(
        1,
        "static_body",
        "static NOINLINE int work(int x) { seen++; return x * <<<7=>9>>> - 2; }\n"
        "long ask_static_body(long x) { return work(x) + work(x + 1); }",
    ),
    Case(
        1,
        "static_keeps_state",
        "static long calls; static NOINLINE long work(long x) { static long sum; sum += x; calls++; return "
        "<<<sum=>10 * sum>>>; }\n"
        "long ask_static_keeps_state(long x) { return 1000 * work(x) + calls; }",
    ),
    Case(
        1,
        "grown_body",
        "long ask_grown_body(long x) { long s = 0; <<<s = x + 1;=>for (int i = 0; i < 40; i++) { s += i * x; "
        "seen ^= s; if (s > 900) s -= 7; }>>> return s; }",
    ),
    Case(
        1,
        "shrunk_body",
        "long ask_shrunk_body(long x) { long s = 0; <<<for (int i = 0; i < 40; i++) { s += i * x; seen ^= s; "
        "if (s > 900) s -= 7; }=>s = x + 1;>>> return s; }",
    ),
    Case(
        1,
        "floats_and_strings",
        "#include <stdio.h>\n#include <string.h>\n"
        "static NOINLINE double scale(double x) { return x * <<<1.5=>2.25>>> + seen * 0; }\n"
        'long ask_floats_and_strings(long x) { char b[64]; snprintf(b, sizeof b, "<<<%.2f=>value %.3f>>>", '
        "scale(x)); return strlen(b) * 100000 + b[x & 3] * 1000 + (long)scale(x); }",
    ),
    Case(
        2,
        "inlined_callee",
        "static inline __attribute__((always_inline)) int scale(int x) { seen ^= x * <<<7=>9>>>; return x * "
        "<<<7=>9>>> + 3; }\n"
        "static NOINLINE int first(int x) { seen++; return scale(x) + 1; }\n"
        "static NOINLINE int second(int x) { seen++; return scale(x) * 2; }\n"
        "NOINLINE int ic_other(int x) { return x + 77; }\n"
        "long ask_inlined_callee(long x) { return first(x) * 100 + second(x) + ic_other(x); }",
        replaced=frozenset({"first", "second", "scale", "ask_inlined_callee"}),
        codes=frozenset({"inlined-function-changed"}),
    ),
    Case(
        2,
        "inlined_chain",
        "static inline __attribute__((always_inline)) int inner(int x) { seen += x ^ <<<0x55=>0x33>>>; "
        "return x ^ <<<0x55=>0x33>>>; }\n"
        "static inline __attribute__((always_inline)) int outer(int x) { return inner(x) + inner(x + 1); }\n"
        "static NOINLINE int user(int x) { seen++; return outer(x); }\n"
        "long ask_inlined_chain(long x) { return user(x) * 3L; }",
        replaced=frozenset({"user", "ask_inlined_chain"}),
        codes=frozenset({"inlined-function-changed"}),
    ),
    Case(
        3,
        "new_static",
        "<<<=>static NOINLINE int fresh(int x) { static int n = 4; n |= 1; return n * x; }>>>\n"
        "long ask_new_static(long x) { seen++; return <<<x=>fresh(x)>>> + 1; }",
    ),
    Case(
        3,
        "new_global",
        "<<<=>int ng_fresh(int); >>>long ask_new_global(long x) { seen++; return <<<x=>ng_fresh(x)>>> + 1; }",
        {"new_global_more.c": "<<<int ng_placeholder;=>NOINLINE int ng_fresh(int x) { return x * x + seen * 0; }>>>"},
    ),
    Case(
        3,
        "new_file",
        "<<<=>int nf_fresh(int); >>>long ask_new_file(long x) { seen++; return <<<x=>nf_fresh(x)>>> + 1; }",
        {
            "new_file_more.c": '<<<=>static const char names[3][4] = {"ab", "cd", "ef"}; NOINLINE int nf_fresh(int '
            "x) { return "
            "names[(unsigned)x % 3][0]; }>>>"
        },
    ),
    Case(
        3,
        "removed_but_pointed_at",
        "static long (*volatile hook)(long);\n<<<static NOINLINE long gone(long x) { seen++; return x * 11; }=>>>>\n"
        "static NOINLINE long other(long x) { seen++; return x * 13; }\n"
        "NOINLINE long rp_call(long x) { seen++; return hook ? hook(x) : -1; }\n"
        "long ask_removed_but_pointed_at(long x) { if (x == 2) return other(x) + <<<1=>2>>>; if (!hook) hook "
        "= <<<gone=>other>>>; return rp_call(x); }",
        asked=(0, 1, 2, 5),
        as_old=(0, 1, 5),
    ),
    Case(
        3,
        "two_new_that_call_each_other",
        "<<<=>static NOINLINE int odd(unsigned); static NOINLINE int even(unsigned n) { seen++; return n ? "
        "odd(n - 1) : 1; }\n"
        "static NOINLINE int odd(unsigned n) { seen++; return n ? even(n - 1) : 0; }>>>\n"
        "long ask_two_new_that_call_each_other(long x) { seen++; return <<<0=>even(x & 15)>>>; }",
        asked=(0, 1, 2, 3, 12),
    ),
    Case(
        4,
        "signature",
        "static NOINLINE int mix(<<<int a=>long a, int b, char c>>>) { seen++; return a <<<* 2=>* 3 + b - c>>>; }\n"
        "static NOINLINE int first(int x) { return mix(x<<<=>, x + 1, 'a'>>>) + 1; }\n"
        "static NOINLINE int second(int x) { return mix(x + 5<<<=>, 3, 'b'>>>) - 1; }\n"
        "long ask_signature(long x) { return first(x) * 1000 + second(x); }",
    ),
    Case(
        4,
        "signature_to_struct",
        "struct pair { long a, b; };\nstatic NOINLINE long mix(<<<long a, long b=>const struct pair *p>>>) { "
        "seen++; return <<<a - b=>p->a - 2 * p->b>>>; }\n"
        "long ask_signature_to_struct(long x) { <<<return mix(x, 4);=>struct pair p = {x, 4}; return mix(&p);>>> }",
    ),
    Case(
        4,
        "result_type",
        "static NOINLINE <<<int=>double>>> half(int x) { seen++; return x / <<<2=>2.0>>>; }\n"
        "long ask_result_type(long x) { return half(x) * 10; }",
    ),
)

_LONG = "for (int i = 0; i < 9; i++) { s += v[i % 4] * x; seen ^= s; if (s > 999) s -= 17 + i; }"

CLONES = (
    Case(
        5,
        "cold_part",
        "static NOINLINE __attribute__((cold)) void complain(int x) { seen += x; }\n"
        "long ask_cold_part(long x) { if (__builtin_expect(x < 0, 0)) { complain(x); complain(2 * x); return "
        "<<<-7=>-70>>> + x; } seen++; return x * <<<2=>3>>>; }",
    ),
    Case(
        5,
        "cold_appears",
        "static NOINLINE __attribute__((cold)) void complain(int x) { seen += x; }\n"
        "long ask_cold_appears(long x) { <<<=>if (__builtin_expect(x < 0, 0)) { complain(x); complain(2 * "
        "x); return -70 + x; }>>> seen++; return x * <<<2=>3>>>; }",
    ),
    Case(
        5,
        "cold_vanishes",
        "static NOINLINE __attribute__((cold)) void complain(int x) { seen += x; }\n"
        "long ask_cold_vanishes(long x) { <<<if (__builtin_expect(x < 0, 0)) { complain(x); complain(2 * x); "
        "return -70 + x; }=>>>> seen++; return x * <<<2=>3>>>; }",
    ),
    Case(
        5,
        "cold_alone",
        "static NOINLINE __attribute__((cold)) void complain(int x) { seen += x; }\n"
        "long ask_cold_alone(long x) { if (__builtin_expect(x < 0, 0)) { complain(x); complain(<<<2=>5>>> * "
        "x); return seen * 0 + <<<1=>6>>>; } seen++; return x * 3; }",
    ),
    Case(
        5,
        "part",
        "static long v[4] = {1, 2, 3, 4};\n"
        f"static long heavy(long x) {{ if (x < 0) return -1; long s = <<<5=>50>>>; {_LONG} {_LONG} {_LONG} "
        f"return s; }}\n"
        "NOINLINE long pt_a(long x) { return heavy(x) + 1; }\n"
        "NOINLINE long pt_b(long x) { return heavy(x + 1) * 2; }\n"
        "NOINLINE long pt_c(long x) { return heavy(x - 1) * 3; }\n"
        "long ask_part(long x) { return pt_a(x) + pt_b(x) * 7 + pt_c(x); }",
    ),
    Case(
        5,
        "part_vanishes",
        "static long v[4] = {1, 2, 3, 4};\n"
        f"static long heavy(long x) {{ <<<if (x < 0) return -1;=>>>> long s = 5; {_LONG} {_LONG} {_LONG} "
        f"return s; }}\n"
        "NOINLINE long pv_a(long x) { return heavy(x) + 1; }\n"
        "NOINLINE long pv_b(long x) { return heavy(x + 1) * 2; }\n"
        "NOINLINE long pv_c(long x) { return heavy(x - 1) * 3; }\n"
        "long ask_part_vanishes(long x) { return pv_a(x) + pv_b(x) * 7 + pv_c(x); }",
    ),
    Case(
        5,
        "isra",
        "struct big { long a[20]; long b; };\nstatic struct big one = {{1, 2, 3}, 4}, two = {{3, 2}, 9};\n"
        "static NOINLINE long pick(struct big *p, long x, long unused) { seen++; return p->b * x + <<<1=>100>>>; }\n"
        "NOINLINE long is_a(struct big *p, long x) { return pick(p, x, x * 3) + 1; }\n"
        "long ask_isra(long x) { return is_a(&one, x) + pick(&two, x + 1, 9); }",
    ),
    Case(
        5,
        "isra_appears",
        "struct big { long a[20]; long b; };\nstatic struct big one = {{1, 2, 3}, 4}, two = {{3, 2}, 9};\n"
        "static NOINLINE long pick(struct big *p, long x, long used) { seen++; return p->b * x + 1 <<<"
        "+ p->a[x & 3] + used=>>>>; }\n"
        "NOINLINE long ia_a(struct big *p, long x) { return pick(p, x, x * 3) + 1; }\n"
        "long ask_isra_appears(long x) { return ia_a(&one, x) + pick(&two, x + 1, 9); }",
    ),
    Case(
        5,
        "constprop",
        "static long v[4] = {1, 2, 3, 4};\n"
        f"static NOINLINE long spin(long x, int mode) {{ long s = mode; if (mode == 3) {{ {_LONG} }} else if "
        f"(mode == 4) {{ {_LONG} s *= 3; }} return s + <<<1=>8>>>; }}\n"
        "long ask_constprop(long x) { return spin(x, 3) + spin(x + 1, 3); }",
    ),
    Case(
        5,
        "constprop_appears",
        "static long v[4] = {1, 2, 3, 4};\n"
        f"static NOINLINE long spin(long x, int mode) {{ long s = mode; if (mode == 3) {{ {_LONG} }} else if "
        f"(mode == 4) {{ {_LONG} s *= 3; }} return s + 1; }}\n"
        "long ask_constprop_appears(long x) { return spin(x, 3) + spin(x + 1, <<<(int)x=>3>>>); }",
    ),
)
