"""Kind 51: what a debugger shows in new code.  gdb stops in a function that is old and called by new code, and has to
say of all callers, with their arguments and variables, what it says of the new build."""

from __future__ import annotations

from tests.live.matrix.model import Case

_STOP = "NOINLINE void {0}_stop(long x) {{ seen = x; }}\n"

WATCHED = (
    Case(
        51,
        "debugger_sees_a_body",
        "struct pair { int first; const char *second; };\n"
        + _STOP.format("debugger_sees_a_body")
        + "static NOINLINE long f(const struct pair *p, long x) {\n"
        "  long sum = p->first;\n"
        "  debugger_sees_a_body_stop(sum);\n"
        "  sum += x <<<=>* 3 + p->second[0]>>>;\n"
        "  seen += sum;\n"
        "  return sum;\n"
        "}\n"
        'long ask_debugger_sees_a_body(long x) { struct pair p = {(int)x, "text"}; return f(&p, x) + 1; }',
        watched="debugger_sees_a_body_stop",
        program="watched",
    ),
    Case(
        51,
        "debugger_sees_a_new_function",
        _STOP.format("debugger_sees_a_new_function")
        + "<<<=>static NOINLINE long added(long a, double b) { long c = a * 2; "
        "debugger_sees_a_new_function_stop(c); return c + (long)b; }>>>\n"
        "static NOINLINE long f(long x) { seen++; return <<<x + 7 - seen + seen=>added(x, 2.5) + x>>>; }\n"
        "long ask_debugger_sees_a_new_function(long x) { "
        "debugger_sees_a_new_function_stop(x); return f(x) * 2; }",
        watched="debugger_sees_a_new_function_stop if x == 2 * 4",
        asked=(0, 1, -4, 4),
        program="watched",
    ),
    Case(
        51,
        "debugger_sees_what_was_inlined",
        _STOP.format("debugger_sees_what_was_inlined")
        + "static inline __attribute__((always_inline)) long inner(long k) { long twice = k * <<<2=>4>>>; "
        "debugger_sees_what_was_inlined_stop(twice); return twice + seen * 0; }\n"
        "long ask_debugger_sees_what_was_inlined(long x) { long r = inner(x + 1); seen++; return r + x; }",
        watched="debugger_sees_what_was_inlined_stop",
        program="watched",
    ),
    Case(
        51,
        "debugger_sees_recursion",
        _STOP.format("debugger_sees_recursion")
        + "static NOINLINE long f(long depth, long x) { long here = depth * <<<10=>20>>> + x; "
        "if (depth <= 0) { debugger_sees_recursion_stop(here); return here; } "
        "return f(depth - 1, x + 1) + here; }\n"
        "long ask_debugger_sees_recursion(long x) { long r = f(3, x); seen++; return r; }",
        watched="debugger_sees_recursion_stop",
        program="watched",
    ),
    Case(
        51,
        "debugger_sees_a_callback",
        "#include <stdlib.h>\n"
        + _STOP.format("debugger_sees_a_callback")
        + "static int compare(const void *a, const void *b) { int left = *(const int *)a, right = *(const int *)b; "
        "debugger_sees_a_callback_stop(left + right); return <<<left - right=>right - left>>>; }\n"
        "long ask_debugger_sees_a_callback(long x) { int all[3] = {3, (int)x, 9}; "
        "qsort(all, 3, sizeof *all, compare); seen++; return all[0] * 100L + all[1] * 10 + all[2]; }",
        watched="debugger_sees_a_callback_stop",
        program="watched",
    ),
    Case(
        51,
        "debugger_sees_a_method",
        "namespace space { struct Counter { long base; NOINLINE long add(long x) const; }; }\n"
        + _STOP.format("debugger_sees_a_method")
        + "NOINLINE long space::Counter::add(long x) const { long sum = base + x <<<=>* 5>>>; "
        "debugger_sees_a_method_stop(sum); seen += sum; return sum; }\n"
        'extern "C" long ask_debugger_sees_a_method(long x) { space::Counter c{x * 2}; return c.add(x) + 1; }',
        watched="debugger_sees_a_method_stop",
        program="watched_cxx",
        suffix=".cc",
    ),
    Case(
        51,
        "debugger_sees_a_template",
        _STOP.format("debugger_sees_a_template")
        + "template <class T, int N> struct Box { T items[N]; NOINLINE T sum(T start) const { T all = start; "
        "for (T item : items) all += item <<<=>* 2>>>; debugger_sees_a_template_stop((long)all); "
        "seen += 1; return all; } };\n"
        'extern "C" long ask_debugger_sees_a_template(long x) { Box<long, 3> b{{1, 2, x}}; return b.sum(4) + 1; }',
        watched="debugger_sees_a_template_stop",
        program="watched_cxx",
        suffix=".cc",
    ),
)
