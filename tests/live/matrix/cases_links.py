"""Kinds 10 and 11: what libraries define, and symbols that are not plain ones."""

from __future__ import annotations

from dataclasses import replace

from tests.live.matrix.model import Case

_IMPORTS = (
    Case(
        10,
        "library_function",
        '#include <stdlib.h>\nlong ask_library_function(long x) { seen++; return <<<x=>strtol("123", 0, 10) '
        "+ labs(x)>>>; }",
    ),
    Case(
        10,
        "library_function_pointer",
        "#include <stdlib.h>\nlong lp_run(long (*f)(long), long x);\n"
        "long ask_library_function_pointer(long x) { seen++; return <<<x=>lp_run(labs, x) * 2>>>; }",
        {"library_function_pointer_other.c": "NOINLINE long lp_run(long (*f)(long), long x) { seen++; return f(x); }"},
    ),
    Case(
        10,
        "library_variable",
        "#include <stdio.h>\nlong ask_library_variable(long x) { seen++; return <<<x=>fileno(stderr) * 100 + "
        "fileno(stdin) + x>>>; }",
        flags=("-U_FORTIFY_SOURCE",),
    ),
    Case(
        10,
        "library_variable_compared",
        "#include <unistd.h>\n#include <stdio.h>\n"
        "extern char **environ; FILE *lc_other(void);\n"
        "long ask_library_variable_compared(long x) { seen++; return <<<x=>(environ != 0) + 10 * (stderr == "
        "stdin) + 100 * (lc_other() == stderr)>>>; }",
        {
            "library_variable_compared_other.c": "#include <stdio.h>\nNOINLINE FILE *lc_other(void) { "
            "seen++; return stdout; }"
        },
    ),
    Case(
        10,
        "library_integer",
        "#include <unistd.h>\nlong ask_library_integer(long x) { seen++; return <<<x=>opterr + 10 * (optopt "
        "== 63)>>>; }",
    ),
    Case(
        10,
        "library_integer_written",
        "#include <unistd.h>\nlong ask_library_integer_written(long x) { seen++; <<<=>optind = 7; optind += "
        "x; if (optind == 9) optind = x;>>> return <<<x=>optind>>>; }",
        asked=(0, 1, 2, 3),
    ),
    Case(
        10,
        "library_variable_address",
        "#include <stdio.h>\nNOINLINE long va_deref(FILE **p) { seen++; return fileno(*p); }\n"
        "long ask_library_variable_address(long x) { seen++; return <<<x=>va_deref(&stderr) + x>>>; }",
    ),
    Case(
        10,
        "library_variable_known_before",
        "#include <stdio.h>\nNOINLINE FILE *kb_get(void) { seen++; return stdout; }\n"
        "long ask_library_variable_known_before(long x) { seen++; return <<<x=>fileno(stdout) + (kb_get() == "
        "stdout) * 10>>>; }",
    ),
    Case(
        10,
        "indirect_function",
        "#include <string.h>\nlong ask_indirect_function(long x) { char b[300]; seen++; <<<b[2] = "
        "x;=>volatile size_t n = 200; memset(b, 'a', n); memmove(b + 1, b, n - 1); b[n] = 0; b[2] = "
        "(char)(strrchr(b, 'a') - b);>>> return b[2]; }",
    ),
    Case(
        10,
        "indirect_function_pointer",
        "#include <string.h>\ntypedef void *copy(void *, const void *, size_t);\n"
        'NOINLINE long ip_run(copy *f) { char a[8] = "hello", b[8] = ""; f(b, a, 6); seen++; return b[1]; }\n'
        "long ask_indirect_function_pointer(long x) { seen++; return <<<x=>ip_run(memcpy) + x>>>; }",
    ),
    Case(
        10,
        "error_number",
        "#include <errno.h>\n#include <fcntl.h>\nlong ask_error_number(long x) { errno = 0; seen++; return "
        '<<<x=>open("/nowhere/at/all", O_RDONLY) * 100 + errno>>>; }',
    ),
)

IMPORTS = tuple(replace(case, program="imports") for case in _IMPORTS)

SYMBOLS = (
    Case(
        11,
        "weak_function",
        "__attribute__((weak)) NOINLINE long wf_f(long x) { seen++; return x * <<<3=>4>>>; }\n"
        "long ask_weak_function(long x) { return wf_f(x); }",
    ),
    Case(
        11,
        "weak_overridden",
        "__attribute__((weak)) NOINLINE long wo_f(long x) { seen++; return x * 3; }\n"
        "long ask_weak_overridden(long x) { return wo_f(x) <<<=>+ 1>>>; }",
        {"weak_overridden_strong.c": "NOINLINE long wo_f(long x) { seen++; return x * <<<7=>8>>>; }"},
    ),
    Case(
        11,
        "weak_absent",
        "extern long wa_nowhere(long) __attribute__((weak));\n"
        "long ask_weak_absent(long x) { seen++; return wa_nowhere ? wa_nowhere(x) : x <<<=>* 2>>>; }",
    ),
    Case(
        11,
        "weak_absent_appears",
        "extern long wp_nowhere(long) __attribute__((weak));\n"
        "long ask_weak_absent_appears(long x) { seen++; <<<=>if (wp_nowhere) return wp_nowhere(x);>>> return "
        "x <<<=>* 2>>>; }",
    ),
    Case(
        11,
        "alias",
        "NOINLINE long al_f(long x) { seen++; return x * <<<3=>4>>>; }\n"
        'long al_g(long) __attribute__((alias("al_f")));\n'
        "long al_user(long);\nlong ask_alias(long x) { return al_g(x) * 100 + al_user(x); }",
        {
            "alias_user.c": "long al_f(long), al_g(long);\nNOINLINE long al_user(long x) { seen++; return al_f(x) "
            "+ al_g(x) * "
            "10; }"
        },
    ),
    Case(
        11,
        "alias_of_static",
        "static NOINLINE long f(long x) { seen++; return x * <<<3=>4>>>; }\n"
        'long as_g(long) __attribute__((alias("f"), weak));\n'
        "long ask_alias_of_static(long x) { return as_g(x) * 100 + f(x); }",
    ),
    Case(
        11,
        "alias_of_data",
        'long ad_value = 5; extern long ad_other __attribute__((alias("ad_value")));\n'
        "long ask_alias_of_data(long x) { seen++; ad_value = 5 + x; return ad_other * <<<2=>3>>>; }",
    ),
    Case(
        11,
        "version",
        '__asm__(".symver vs_realpath,realpath@GLIBC_2.2.5");\n'
        "extern char *vs_realpath(const char *, char *);\n"
        "extern char *realpath(const char *, char *);\n"
        'long ask_version(long x) { seen++; return <<<x=>(vs_realpath("/", 0) != 0) * 2 + (realpath("/", 0) '
        "!= 0)>>>; }",
    ),
    Case(
        11,
        "version_known_before",
        '__asm__(".symver vk_realpath,realpath@GLIBC_2.2.5");\nextern char *vk_realpath(const char *, char *);\n'
        'long ask_version_known_before(long x) { seen++; return (vk_realpath("/", 0) != 0) + x <<<=>* 2>>>; }',
    ),
    Case(
        11,
        "version_default_beside_another",
        '__asm__(".symver vb_realpath,realpath@GLIBC_2.2.5");\n'
        "extern char *vb_realpath(const char *, char *);\n"
        "extern char *realpath(const char *, char *);\n"
        'long ask_version_default_beside_another(long x) { seen++; return (vb_realpath("/", 0) != 0) + x '
        '<<<=>+ 10 * (realpath("/", 0) != 0)>>>; }',
        program="version",
    ),
    Case(
        11,
        "hidden",
        '__attribute__((visibility("hidden"))) long hd_value = 3;\n'
        '__attribute__((visibility("hidden"))) NOINLINE long hd_f(long x) { seen++; return x * hd_value '
        "<<<=>+ 1>>>; }\nlong hd_user(long);\nlong ask_hidden(long x) { return hd_user(x) + hd_value; }",
        {
            "hidden_user.c": 'long hd_f(long) __attribute__((visibility("hidden")));\n'
            "NOINLINE long hd_user(long x) { seen++; return hd_f(x) * 10; }"
        },
    ),
    Case(
        11,
        "common",
        "long cm_value; long cm_more[10];\nlong ask_common(long x) { seen++; cm_value += 2; cm_more[x & 7] = "
        "cm_value; return cm_more[x & 7] * <<<10=>11>>>; }",
        {"common_other.c": "long cm_value; long cm_more[10];\nNOINLINE long cm_user(void) { return cm_value; }"},
        flags=("-fcommon",),
    ),
    Case(
        11,
        "common_new",
        "<<<=>long cn_value;>>>\nlong cn_user(void);\n"
        "long ask_common_new(long x) { seen++; return x + <<<1=>(cn_value = 9) * 10 + cn_user()>>>; }",
        {
            "common_new_other.c": "<<<=>long cn_value;>>> NOINLINE long cn_user(void) { seen++; return "
            "<<<0=>cn_value>>>; }"
        },
        flags=("-fcommon",),
    ),
    Case(
        11,
        "same_named_statics",
        "static long value = 1; static NOINLINE long step(long x) { seen++; return value = x + <<<1=>2>>>; "
        "}\nlong sn_other(long);\nlong ask_same_named_statics(long x) { return step(x) * 1000 + sn_other(x) "
        "+ value; }",
        {
            "same_named_other.c": "static long value = 100; static NOINLINE long "
            "step(long x) { seen++; return value = "
            "x + <<<5=>6>>>; "
            "}\nlong sn_other(long x) { return step(x) + 10 * value; }"
        },
    ),
    Case(
        11,
        "same_named_in_one",
        "static NOINLINE long step(long x) { static long value = 1; seen++; value = x + <<<1=>2>>>; return "
        "value; }\nlong sf_other(long);\nlong ask_same_named_in_one(long x) { return step(x) * 1000 + "
        "sf_other(x); }",
        {
            "same_named_in_one_other.c": "static NOINLINE long step(long x) { static long value "
            "= 100; seen++; return value++ "
            "* 0 + x; }\n"
            "long sf_other(long x) { return step(x) * 10; }"
        },
    ),
    Case(
        11,
        "static_turns_global",
        "<<<static=>>>> NOINLINE long sg_f(long x) { seen++; return x * <<<3=>5>>>; }\n"
        "static long (*volatile sg_p)(long) = sg_f;\n"
        "long ask_static_turns_global(long x) { return sg_f(x) + 100 * sg_p(x) + (sg_p == sg_f); }",
    ),
    Case(
        11,
        "moved_to_another_file",
        "<<<NOINLINE long mv_f(long x) { seen++; return x * 3; }=>long mv_f(long);>>>\n"
        "long ask_moved_to_another_file(long x) { return mv_f(x) + 1; }",
        {"moved_other.c": "<<<long mv_nothing;=>NOINLINE long mv_f(long x) { seen++; return x * 5; }>>>"},
    ),
    Case(
        11,
        "own_indirect_function",
        "static long plain(long x) { return x + 1; }\n"
        "static long (*choose(void))(long) { return plain; }\n"
        'long oi_f(long) __attribute__((ifunc("choose")));\n'
        "long ask_own_indirect_function(long x) { seen++; return oi_f(x) * <<<2=>3>>>; }",
    ),
)
