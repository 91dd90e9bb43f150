"""Kinds 12, 13 and 16: assembly, folded code, start-up code.  All of these may be refused."""

from __future__ import annotations

from tests.live.matrix.model import Case

_ASM = (
    '__asm__(".text\\n.globl {0}\\n.type {0},@function\\n'
    "{0}:\\n.cfi_startproc\\nlea <<<3=>4>>>(%rdi),%rax\\n"
    "imul $5,%rax\\nret\\n.cfi_endproc\\n.size {0},.-{0}\\n"
    '");'
)

MACHINE = (
    Case(
        12,
        "inline_assembly",
        'static NOINLINE long f(long x) { long r; __asm__ volatile("lea <<<1=>9>>>(%1),%0\\n'
        '\\tadd $1,%0" : "=r"(r) : "r"(x) : "cc"); seen++; return r; }\n'
        "long ask_inline_assembly(long x) { return f(x); }",
        must=False,
    ),
    Case(
        12,
        "inline_assembly_with_labels",
        'static NOINLINE long f(long x) { long r = 0; __asm__ volatile("1: inc %0\\n'
        '\\tcmp $<<<5=>7>>>,%0\\n\\tjl 1b\\n\\tadd %1,%0" : "+r"(r) : "r"(x) : "cc"); seen++; return r; }\n'
        "long ask_inline_assembly_with_labels(long x) { return f(x); }",
        must=False,
    ),
    Case(
        12,
        "naked",
        '__attribute__((naked, noinline, used)) static long f(long x) { __asm__("lea <<<1=>7>>>(%rdi),%rax\\n'
        '\\tadd $2,%rax\\n\\tret"); }\nlong ask_naked(long x) { seen++; return f(x) * 2; }',
        must=False,
    ),
    Case(
        12,
        "assembly_in_text",
        _ASM.format("at_f") + "\nlong at_f(long);\nlong ask_assembly_in_text(long x) { seen++; return at_f(x); }",
        must=False,
    ),
    Case(
        12,
        "assembly_called_by_changed",
        _ASM.format("ac_f").replace("<<<3=>4>>>", "3")
        + "\nlong ac_f(long);\nlong ask_assembly_called_by_changed(long x) { seen++; return ac_f(x) <<<=>* 2>>>; }",
        must=False,
    ),
    Case(
        12,
        "assembly_file",
        "long af_f(long);\nlong ask_assembly_file(long x) { seen++; return af_f(x); }",
        {
            "assembly_file_more.S": '.section .text.af_f,"ax",@progbits\n.globl af_f\n'
            ".type af_f,@function\naf_f:\n.cfi_startproc\n"
            "lea <<<3=>4>>>(%rdi),%rax\nimul $5,%rax\n"
            "ret\n"
            '.cfi_endproc\n.size af_f,.-af_f\n.section .note.GNU-stack,"",@progbits\n'
        },
        must=False,
    ),
)

_TWINS = (
    "NOINLINE long {0}_a(long x) {{ seen += x; return x * {1} + 1; }}\n"
    "NOINLINE long {0}_b(long x) {{ seen += x; return x * {2} + 1; }}\n"
    "long ask_{3}(long x) {{ return {0}_a(x) * 1000 + {0}_b(x); }}"
)
FOLDED = (
    Case(
        13,
        "folded_one_changes",
        _TWINS.format("f1", "<<<3=>4>>>", "3", "folded_one_changes"),
        must=False,
        program="icf",
    ),
    Case(
        13,
        "folded_both_change",
        _TWINS.format("f2", "<<<5=>6>>>", "<<<5=>6>>>", "folded_both_change"),
        must=False,
        program="icf",
    ),
    Case(13, "folded_now", _TWINS.format("f3", "7", "<<<8=>7>>>", "folded_now"), must=False, program="icf"),
    Case(
        13,
        "folded_called_by_changed",
        _TWINS.format("f4", "9", "9", "folded_called_by_changed").replace("* 1000", "* <<<1000=>2000>>>"),
        must=False,
        program="icf",
    ),
)

_NEW_CONSTRUCTOR = (
    "static long value = 1;\n<<<=>__attribute__((constructor)) static void start(void) { value = 50; "
    "}>>>\nlong ask_constructor_added(long x) { seen++; return value + x<<<=> * 2>>>; }"
)
STARTUP = (
    Case(16, "constructor_added", _NEW_CONSTRUCTOR, must=False, program="startup"),
    Case(
        16,
        "constructor_changed",
        "static long value = 1;\n__attribute__((constructor)) static void start(void) { value = "
        "<<<30=>50>>>; }\nlong ask_constructor_changed(long x) { seen++; return value + x; }",
        must=False,
        program="startup",
    ),
    Case(
        16,
        "constructor_beside_a_change",
        "static long value = 1;\n__attribute__((constructor)) static void start(void) { value = 30; }\n"
        "long ask_constructor_beside_a_change(long x) { seen++; return value + x <<<=>* 2>>>; }",
        must=False,
        program="startup",
    ),
    Case(
        16,
        "destructor_changed",
        '#include <stdio.h>\n__attribute__((destructor)) static void end(void) { printf("<<<end=>the '
        'end>>>\\n"); seen++; }\nlong ask_destructor_changed(long x) { seen++; return x * <<<2=>3>>>; }',
        must=False,
        program="startup",
        exits=True,
    ),
    Case(
        16,
        "destructor_added",
        '#include <stdio.h>\n<<<=>__attribute__((destructor)) static void end(void) { printf("end\\n'
        '"); }>>>\nlong ask_destructor_added(long x) { seen++; return x * <<<2=>3>>>; }',
        must=False,
        program="startup",
        exits=True,
    ),
)
