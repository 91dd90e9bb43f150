"""Kinds 6 to 9, 14 and 15: jump tables, pointers, small functions, line numbers, frames, control "
"flow from outside."""

from __future__ import annotations

from tests.live.matrix.model import Case

_ARMS = " ".join(f"case {i}: seen++; return x * {i * 7 + 3} + {i * i};" for i in range(8))

FLOW = (
    Case(
        6,
        "switch_arm",
        f"long ask_switch_arm(long x) {{ switch (x) {{ {_ARMS} case 8: return 5; case 9: return <<<9=>90>>>; "
        f"default: return <<<-1=>-2>>>; }} }}",
        asked=(0, 1, 5, 8, 9, 10, -1),
    ),
    Case(
        6,
        "switch_grows",
        f"long ask_switch_grows(long x) {{ switch (x) {{ {_ARMS} <<<=>case 8: return 5; case 9: seen += 2; "
        f"return 90; case 10: seen += 3; return x * 91;>>> default: return -1; }} }}",
        asked=(0, 1, 5, 8, 9, 10, 11, -1),
    ),
    Case(
        6,
        "switch_strings",
        "#include <string.h>\nstatic NOINLINE const char *name(long x) { switch (x) { "
        + " ".join(f'case {i}: return "{"abcdefghij"[i] * (i + 1)}";' for i in range(9))
        + ' case 9: return "<<<nine=>neun!>>>"; default: return "?"; } }\n'
        "long ask_switch_strings(long x) { const char *n = name(x); return strlen(n) * 1000 + n[0]; }",
        asked=(0, 1, 5, 8, 9, 10),
    ),
    Case(
        6,
        "computed_goto",
        "long ask_computed_goto(long x) { static const void *const at[] = {&&zero, &&one, &&two}; long s = 0;\n"
        " goto *at[(unsigned long)x % 3];\n zero: s += <<<1=>10>>>; seen++; if (s > 40) return s; goto *at[1 "
        "+ (s & 1)];\n one: s += 20; seen += 2; goto two;\n two: s += <<<300=>301>>>; return s; }",
    ),
    Case(
        6,
        "interpreter",
        "static NOINLINE long run(const unsigned char *p, long x) { static const void *const op[] = {&&stop, "
        "&&add, &&mul, &&neg};\n"
        " goto *op[*p++]; stop: return x; add: x += <<<1=>2>>>; goto *op[*p++]; mul: x *= 3; seen ^= x; goto "
        "*op[*p++]; neg: x = -x; goto *op[*p++]; }\n"
        "long ask_interpreter(long x) { static const unsigned char code[] = {1, 2, 3, 1, 1, 2, 0}; return "
        "run(code, x); }",
    ),
    Case(
        6,
        "tail_call_into",
        "NOINLINE long tc_target(long x) { seen++; return x * <<<2=>22>>>; }\nlong ask_tail_call_into(long x);",
        {
            "tail_call_user.c": "long tc_target(long);\nlong ask_tail_call_into(long x) { seen += 3; return "
            "tc_target(x + 1); }"
        },
    ),
    Case(
        6,
        "tail_call_from",
        "NOINLINE long tf_one(long x) { seen++; return x * 2; }\n"
        "NOINLINE long tf_two(long x) { seen++; return x * 5; }\n"
        "long ask_tail_call_from(long x) { seen += 3; return <<<tf_one=>tf_two>>>(x + 1); }",
    ),
    Case(
        7,
        "pointer_identity",
        "typedef long fn(long);\nNOINLINE long pi_f(long x) { seen++; return x + <<<1=>2>>>; }\n"
        "static fn *volatile kept;\nfn *pi_get(void); long pi_compare(fn *);\n"
        "long ask_pointer_identity(long x) { if (!kept) kept = pi_f; return (kept == pi_f) + 10 * (kept == "
        "pi_get()) + 100 * pi_compare(pi_f) + 1000 * kept(x) <<<=>+ 1000000>>>; }",
        {
            "pointer_identity_other.c": "typedef long fn(long); long pi_f(long); static fn *volatile first;\n"
            "fn *pi_get(void) { seen++; return pi_f; }\n"
            "long pi_compare(fn *f) { if (!first) first = f; seen++; return (first == f) + (f == pi_f); }"
        },
    ),
    Case(
        7,
        "pointer_of_static",
        "typedef long fn(long);\nstatic NOINLINE long f(long x) { seen++; return x * <<<3=>4>>>; }\n"
        "static NOINLINE long g(long x) { seen++; return x - 1; }\n"
        "static fn *const table[] = {f, g};\nfn *volatile ps_now = f;\n"
        "long ask_pointer_of_static(long x) { seen++; return table[x & 1](x) * 100 + (ps_now == f) * 10 + "
        "(table[0] == ps_now) + <<<0=>100000>>>; }",
    ),
    Case(
        7,
        "pointer_taken_first_by_new_code",
        "typedef long fn(long);\nstatic NOINLINE long f(long x) { seen++; return x * <<<3=>4>>>; }\n"
        "static fn *volatile now;\n"
        "long ask_pointer_taken_first_by_new_code(long x) { long r = f(x); <<<=>now = f; r += now(x) + (now "
        "== f);>>> return r; }",
    ),
    Case(
        7,
        "pointer_as_key",
        "#include <stdlib.h>\ntypedef long fn(long);\n"
        "struct entry { fn *key; long count; };\nstatic struct entry *map; \n"
        "static NOINLINE long alpha(long x) { seen++; return x + <<<1=>5>>>; }\n"
        "static NOINLINE long beta(long x) { seen++; return x * 2; }\n"
        "static NOINLINE long *slot(fn *f) { if (!map) map = calloc(4, sizeof *map); for (int i = 0; i < 4; "
        "i++) { if (!map[i].key) map[i].key = f; if (map[i].key == f) return &map[i].count; } return "
        "&map[3].count; }\n"
        "long ask_pointer_as_key(long x) { fn *f = x & 1 ? alpha : beta; long n = ++*slot(f); return n * "
        "1000 + f(x); }",
    ),
)

_TINY = "long ask_{0}(long x); int {1}(void); int {1}_next(void);\n"
# Functions of 1 to 6 bytes that follow each other at once.
SMALL = (
    Case(
        8,
        "tiny_static",
        "static NOINLINE int one(int x) { return x<<<=> * 5>>>; }\nstatic NOINLINE int two(int x) { return x; }\n"
        "long ask_tiny_static(long x) { seen++; return x + one(x) * 10 + two(x + 1) * 100; }",
        flags=("-falign-functions=1", "-fcf-protection=none"),
    ),
    Case(
        8,
        "tiny_global_grows",
        "NOINLINE int tg_first(void) { return 0; }\n"
        "NOINLINE void tg_f(void) { <<<=>seen++;>>> }\n"
        "NOINLINE int tg_next(void) { return 0; }\n"
        "long ask_tiny_global_grows(long x) { long before = seen; tg_f(); return x + (seen - before) * 10 + "
        "tg_next() + tg_first(); }",
        flags=("-falign-functions=1", "-fcf-protection=none"),
    ),
    Case(
        8,
        "tiny_called_from_another_file",
        "NOINLINE int ta_first(void) { return 0; }\n"
        "NOINLINE int ta_f(int x) { return <<<x=>2 * x>>>; }\n"
        "NOINLINE int ta_next(void) { return 0; }",
        {
            "tiny_called_user.c": "int ta_f(int), ta_next(void), ta_first(void);\n"
            "long ask_tiny_called_from_another_file(long x) { seen++; return ta_f(x) + 10 * ta_next() + "
            "ta_first(); }\n"
            "long ta_again(long x) { seen++; return ta_f(x + 1); }"
        },
        flags=("-falign-functions=1", "-fcf-protection=none"),
    ),
    Case(
        8,
        "tiny_tail_called",
        "NOINLINE int tt_first(void) { return 0; }\n"
        "NOINLINE int tt_f(int x) { return <<<x=>x + 5>>>; }\n"
        "NOINLINE int tt_next(void) { return 0; }\n"
        "NOINLINE int tt_user(int x) { seen++; return tt_f(x * 3); }\n"
        "long ask_tiny_tail_called(long x) { return tt_user(x) + tt_next() + tt_first(); }",
        flags=("-falign-functions=1", "-fcf-protection=none"),
    ),
    Case(
        8,
        "tiny_aligned",
        "NOINLINE __attribute__((aligned(16))) int tl_f(int x) { return <<<x=>3 * x>>>; }\n"
        "NOINLINE __attribute__((aligned(16))) int tl_next(int x) { return x; }\n"
        "static int (*volatile tl_p)(int) = tl_f;\n"
        "long ask_tiny_aligned(long x) { seen++; return tl_f(x) + 10 * tl_next(x) + 100 * tl_p(x) + 1000 * "
        "(tl_p == tl_f); }",
        flags=("-fcf-protection=none",),
    ),
    Case(
        8,
        "neighbour_at_once",
        "static NOINLINE long f(long x) { return x <<<+ 1=>+ 1000>>>; }\n"
        "static NOINLINE long g(long x) { return x + 3; }\n"
        "static NOINLINE long h(long x) { return x + 7; }\n"
        "long ask_neighbour_at_once(long x) { return f(x) + 10 * g(x) + 100 * h(x); }",
        flags=("-falign-functions=1", "-fcf-protection=none"),
    ),
    Case(
        8,
        "tiny_pointed_at",
        "NOINLINE int tp_first(void) { return 0; }\n"
        "NOINLINE int tp_f(int x) { return <<<x=>2 * x>>>; }\n"
        "NOINLINE int tp_next(int x) { return x; }\n"
        "static int (*volatile tp_p)(int) = tp_f;\n"
        "long ask_tiny_pointed_at(long x) { seen++; return tp_p(x) + tp_next(x) + tp_first(); }",
        flags=("-falign-functions=1", "-fcf-protection=none"),
        must=False,
    ),
)

LINES = (
    Case(
        9,
        "line_in_assert",
        "#include <stdio.h>\n#include <stdlib.h>\n"
        'static NOINLINE void failed(const char *what, const char *file, int line) { fprintf(stderr, "%s %s '
        '%d", what, file, line); abort(); }\n'
        "<<<=>// a comment of\n// two lines\n>>>#define CHECK(c) ((c) ? (void)0 : failed(#c, __FILE__, __LINE__))\n"
        "long ask_line_in_assert(long x) { CHECK(x < 100000);\nseen++; CHECK(x > -100000); return x * 3; }",
        nothing=True,
    ),
    Case(
        9,
        "line_and_one_change",
        "#include <stdio.h>\n#include <stdlib.h>\n"
        'static NOINLINE void failed(const char *what, const char *file, int line) { fprintf(stderr, "%s %s '
        '%d", what, file, line); abort(); }\n'
        "#define CHECK(c) ((c) ? (void)0 : failed(#c, __FILE__, __LINE__))\n<<<=>\n\n\n>>>"
        "static NOINLINE long one(long x) { CHECK(x < 100000); seen++; return x * 3; }\n"
        "static NOINLINE long two(long x) { CHECK(x < 100000); seen++; return x * <<<3=>5>>>; }\n"
        "long ask_line_and_one_change(long x) { return one(x) * 100 + two(x); }",
        replaced=frozenset({"two"}),
    ),
    Case(
        9,
        "date_and_time",
        '#include <string.h>\nstatic const char *const build = __DATE__ " @TIME@";\n'
        "long ask_date_and_time(long x) { return strlen(build) + x; }",
        nothing=True,
    ),
    Case(
        9,
        "comment",
        "/* <<<one=>another>>> */\nlong ask_comment(long x) { return x * 3 /* <<<old=>new words>>> */; }",
        nothing=True,
    ),
    Case(
        9,
        "whitespace",
        "long ask_whitespace(long x) {<<<=>\n\n   >>> return x<<<*=> *\n"
        "\n >>>3; }\nNOINLINE int ws_other(int x) {<<<=>\n"
        ">>> seen += x; return x;<<<=>\n\n>>>}",
        nothing=True,
    ),
)

_ADD = " + ".join(f"{n} * {i + 1}" for i, n in enumerate("abcdefghij"))
_STEPS = " ".join(f"seen = seen + {i}; v = v * 3 + seen % {i + 2};" for i in range(200))
FRAMES = (
    Case(
        14,
        "recursion",
        "static NOINLINE long f(long n) { seen++; return n <= 0 ? <<<1=>2>>> : f(n - 1) + f(n - 3) + n; }\n"
        "long ask_recursion(long x) { return f(x); }",
    ),
    Case(
        14,
        "mutual_recursion",
        "static long g(long); static NOINLINE long f(long n) { seen++; return n <= 0 ? <<<1=>2>>> : g(n - 1) "
        "+ 1; }\nstatic NOINLINE long g(long n) { seen += 2; return n <= 0 ? 7 : f(n - 2) * 2; }\n"
        "long ask_mutual_recursion(long x) { return f(x); }",
    ),
    Case(
        14,
        "varargs",
        "#include <stdarg.h>\n#include <stdio.h>\n"
        "static NOINLINE double sum(int n, ...) { va_list a; va_start(a, n); double s = 0; for (int i = 0; i "
        "< n; i++) s += i & 1 ? va_arg(a, double) : va_arg(a, int) * <<<1=>10>>>; va_end(a); seen++; return "
        "s; }\n"
        "static NOINLINE int show(char *b, const char *f, ...) { va_list a; va_start(a, f); int n = "
        "vsnprintf(b, 90, f, a); va_end(a); return n; }\n"
        'long ask_varargs(long x) { char b[100]; int n = show(b, "<<<%d %s %.1f=>%05d|%s|%.3f>>>", (int)x, '
        '"text", 2.5); return sum(12, (int)x, 1.5, 2, 2.5, 3, 3.5, 4, 4.5, 5, 5.5, 6, 6.5) * 100 + n + b[2]; '
        "}",
    ),
    Case(
        14,
        "many_arguments",
        "static NOINLINE double many(long a, double b, int c, float d, char e, double f, long g, double h, "
        "short i, double j, long k, double l, double m, double n, double o) "
        "{ seen++; return a + b * 2 + c * 3 + d * 4 + e * 5 + f * 6 + g * 7 + h * 8 + i * 9 + j * 10 + k * "
        "11 + l * 12 + m * 13 + n * 14 + o * <<<15=>16>>>; }\n"
        "long ask_many_arguments(long x) { return many(x, x, 1, 2.5f, 'a', .5, 4, 1.25, 6, 7, 8, 9, x * 2, "
        "11, 12.5); }",
    ),
    Case(
        14,
        "struct_by_value",
        "struct three { long a, b, c; }; struct two { double x; int y; };\n"
        "static NOINLINE struct three build(struct three p, struct two q) { seen++; p.a += <<<q.y=>2 * "
        "q.y>>>; p.c = q.x * 4; return p; }\n"
        "long ask_struct_by_value(long x) { struct three r = build((struct three){x, 2, 3}, (struct "
        "two){1.5, (int)x}); return r.a * 10000 + r.b * 100 + r.c; }",
    ),
    Case(
        14,
        "red_zone",
        f"static NOINLINE long leaf(long x) {{ volatile long a = x, b = x + 1, c = x + 2, d = "
        f"x * 3; long {', '.join(f'{n} = a + {i}' for i, n in enumerate('efghij'))}; "
        f"return a + b + c + d <<<- 1=>* 2>>> + e + f + g + h + i + j; }}\n"
        "long ask_red_zone(long x) { return leaf(x) + leaf(x + 1); }",
    ),
    Case(
        14,
        "crosses_a_page",
        f"static NOINLINE long wide(long v) {{ {_STEPS} return v <<<+ 1=>+ 100>>>; }}\n"
        f"long ask_crosses_a_page(long x) {{ seen = 0; return wide(x); }}",
    ),
    Case(
        14,
        "entry_crosses_a_page",
        # The filler ends two bytes before a page does, and the function is aligned to one byte.
        '__asm__(".section .text.ep_filler,\\"ax\\",@progbits\\n.p2align 12\\n.fill 4094,1,0xcc\\n.text");\n'
        "static NOINLINE long entry(long x) { seen++; return x * <<<3=>31>>> + 1; }\n"
        "long ask_entry_crosses_a_page(long x) { return entry(x) + 1; }",
        flags=("-falign-functions=1",),
    ),
    Case(
        14,
        "large_frame",
        "#include <string.h>\nstatic NOINLINE long deep(long x) { char b[20000]; memset(b, (int)x, sizeof "
        "b); seen++; return b[100] + b[19999] * <<<2=>3>>>; }\n"
        "long ask_large_frame(long x) { return deep(x); }",
    ),
    Case(
        14,
        "alloca",
        "static NOINLINE long fill(char *b, long n) { for (long i = 0; i < n; i++) b[i] = i; seen++; return "
        "b[n / 2]; }\n"
        "static NOINLINE long f(long n) { char *b = __builtin_alloca(n * 3 + 16); return fill(b, n * 3) + "
        "<<<1=>100>>>; }\nlong ask_alloca(long x) { return f((x & 15) + 1); }",
    ),
)

OUTSIDE = (
    Case(
        15,
        "setjmp",
        "#include <setjmp.h>\nstatic jmp_buf there;\n"
        "static NOINLINE void jump(long x) { seen++; if (x > 1) longjmp(there, <<<3=>5>>>); }\n"
        "static NOINLINE long guarded(long x) { volatile long s = x; int r = setjmp(there); if (r) return s "
        "* 100 + r; s += 7; jump(x); return s <<<=>+ 1>>>; }\n"
        "long ask_setjmp(long x) { return guarded(x); }",
    ),
    Case(
        15,
        "signal_handler",
        "#include <signal.h>\nstatic volatile sig_atomic_t last; static int ready;\n"
        "static void on(int s) { seen++; last = s * <<<1=>10>>>; }\n"
        "long ask_signal_handler(long x) { if (!ready) { signal(SIGUSR1, on); ready = 1; } last = 0; "
        "raise(SIGUSR1); return last + x; }",
    ),
    Case(
        15,
        "qsort_callback",
        "#include <stdlib.h>\nstatic int order(const void *a, const void *b) { seen++; return <<<*(const int "
        "*)a - *(const int *)b=>*(const int *)b - *(const int *)a>>>; }\n"
        "long ask_qsort_callback(long x) { int v[] = {3, (int)x, 9, 1, -5}; qsort(v, 5, sizeof *v, order); "
        "return v[0] * 10000 + v[2] * 100 + v[4]; }",
    ),
    Case(
        15,
        "callback_and_caller",
        "#include <stdlib.h>\nstatic int order(const void *a, const void *b) { seen++; return (*(const int "
        "*)a - *(const int *)b) * <<<1=>-1>>>; }\n"
        "long ask_callback_and_caller(long x) { int v[] = {3, (int)x, 9, 1, -5<<<=>, 40>>>}; qsort(v, sizeof "
        "v / sizeof *v, sizeof *v, order); int *f = bsearch(&v[1], v, sizeof v / sizeof *v, sizeof *v, "
        "order); return v[0] * 100 + (f ? f - v : -1); }",
    ),
    Case(
        15,
        "atexit_handler",
        "#include <stdio.h>\n#include <stdlib.h>\n"
        'static long total;\nstatic void bye(void) { printf("bye <<<%ld=>now %ld!>>>\\n'
        '", total); }\n'
        "long ask_atexit_handler(long x) { if (!total) atexit(bye); total = 5; return x + <<<1=>2>>>; }",
        exits=True,
    ),
    Case(
        15,
        "pthread_start",
        "#include <pthread.h>\nstatic void *work(void *p) { seen++; return (char *)p + <<<5=>50>>>; }\n"
        "long ask_pthread_start(long x) { pthread_t t; void *r = 0; if (pthread_create(&t, 0, work, (void "
        "*)x)) return -1; pthread_join(t, &r); return (long)r; }",
    ),
    Case(
        15,
        "timer_thread_local",
        "static __thread long mine = 3;\nstatic NOINLINE long f(long x) { seen++; return mine * <<<x=>2 * "
        "x>>>; }\nlong ask_timer_thread_local(long x) { return f(x); }",
    ),
)
