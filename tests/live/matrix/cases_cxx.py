"""Kind 17: C++ in a program without exceptions; those with them are in `cases_exceptions.py`."""

from __future__ import annotations

from dataclasses import replace

from tests.live.matrix.model import Case

_CASES = (
    Case(
        17,
        "method",
        "struct Counter { long n; NOINLINE long add(long x); };\n"
        "long Counter::add(long x) { seen++; n = x; return n * <<<2=>3>>>; }\n"
        "static Counter one;\nask(method) { return one.add(x); }",
    ),
    Case(
        17,
        "virtual_method",
        "struct Shape { virtual ~Shape() {} virtual long area(long) = 0; };\n"
        "struct Square : Shape { NOINLINE long area(long x) override { seen++; return x * x <<<=>+ 1>>>; } "
        "};\nstruct Line : Shape { long area(long x) override { seen++; return x; } };\n"
        "static Shape *make(int k) { static Square s; static Line l; return k ? (Shape *)&s : &l; }\n"
        "ask(virtual_method) { return make(x & 1)->area(x); }",
    ),
    Case(
        17,
        "object_made_before",
        "struct Base { virtual ~Base() {} virtual long f(long x) { seen++; return x; } long k = 4; };\n"
        "struct Derived : Base { long f(long x) override { seen++; return <<<x * 2 + k=>x * 5 - k>>>; } };\n"
        "static Base *kept;\nask(object_made_before) { if (!kept) kept = new Derived; Derived now; return "
        "kept->f(x) * 1000 + now.f(x) + (dynamic_cast<Derived *>(kept) == kept); }",
    ),
    Case(
        17,
        "virtual_override_added",
        "struct Animal { virtual ~Animal() {} virtual long f(long x) { seen++; return x; } virtual long "
        "g(long x) { seen++; return x * 2; } };\n"
        "struct Dog : Animal { long f(long x) override { seen++; return x * 7; } <<<=>long g(long x) "
        "override { seen++; return x * 9; }>>> };\n"
        "static Animal *kept;\nask(virtual_override_added) { if (!kept) kept = new Dog; return kept->f(x) * "
        "1000 + kept->g(x); }",
    ),
    Case(
        17,
        "template",
        "template <class T> NOINLINE T twice(T x) { seen++; return x * <<<2=>4>>>; }\n"
        "ask(template) { return twice<long>(x) + twice<int>(x) * 100 + (long)twice<double>(1.5); }",
    ),
    Case(
        17,
        "template_new_instance",
        "template <class T> NOINLINE T doubled(T x) { seen++; return x + x; }\n"
        "ask(template_new_instance) { return doubled<int>(x) * 100 + <<<0=>(long)doubled<double>(1.5) + "
        "doubled<short>(3)>>>; }",
    ),
    Case(
        17,
        "template_in_two_files",
        "template <class T> NOINLINE T tw_thrice(T x) { seen++; return x * <<<3=>30>>>; }\n"
        "long tw_other(long);\nask(template_in_two_files) { return tw_thrice<long>(x) + tw_other(x) * 100; }",
        {
            "template_in_two_files_more.cc": "template <class T> NOINLINE T tw_thrice(T x) { seen++; "
            "return x * <<<3=>30>>>; }\n"
            "NOINLINE long tw_other(long x) { return tw_thrice<long>(x + 1); }"
        },
    ),
    Case(
        17,
        "lambda",
        "template <class F> static NOINLINE long run(F f, long x) { seen++; return f(x) + f(x + 1); }\n"
        "ask(lambda) { long k = 3; auto f = [k](long y) { seen++; return y * <<<k=>k * 2>>>; }; return "
        "run(f, x); }",
    ),
    Case(
        17,
        "lambda_added_before_another",
        "template <class F> static NOINLINE long run(F f, long x) { seen++; return f(x) + 1; }\n"
        "ask(lambda_added_before_another) { long r = 0; <<<=>r += run([](long y) { seen++; return y + 100; "
        "}, x);>>> r += run([](long y) { seen++; return y * 3; }, x); return r; }",
    ),
    Case(
        17,
        "function_pointer_lambda",
        "using fn = long (*)(long); static fn kept;\n"
        "ask(function_pointer_lambda) { fn f = [](long y) -> long { seen++; return y * <<<3=>7>>>; }; if "
        "(!kept) kept = f; return kept(x) * 10 + (kept == f); }",
    ),
    Case(
        17,
        "anonymous_namespace",
        "namespace { long value = 5; NOINLINE long step(long x) { seen++; return value = x + <<<1=>2>>>; } "
        "struct Local { NOINLINE long f(long x) { return x * <<<2=>3>>> + value; } }; }\n"
        "long an_other(long);\n"
        "ask(anonymous_namespace) { Local l; return step(x) * 1000 + l.f(x) * 10 + an_other(x); }",
        {
            "anonymous_namespace_more.cc": "namespace { long value = 9; NOINLINE long step(long x) "
            "{ seen++; return value = x + "
            "<<<3=>4>>>; } "
            "}\nlong an_other(long x) { return step(x) + value; }"
        },
    ),
    Case(
        17,
        "inline_comdat",
        "inline NOINLINE long ic_shared(long x) { static long n; n = x; seen++; return n * <<<5=>6>>>; }\n"
        "long ic_other(long);\nask(inline_comdat) { return ic_shared(x) + ic_other(x) * 100; }",
        {
            "inline_comdat_more.cc": "inline NOINLINE long ic_shared(long x) { static long "
            "n; n = x; seen++; return n * "
            "<<<5=>6>>>; }\n"
            "NOINLINE long ic_other(long x) { return ic_shared(x + 1); }"
        },
    ),
    Case(
        17,
        "inline_static_of_another_copy",
        "inline NOINLINE long is_count(long x) { static long n; seen++; n += x & 1; return n; }\n"
        "long is_other(long);\nask(inline_static_of_another_copy) { return is_count(x) + is_other(x) * 100; }",
        {
            "inline_static_of_another_copy_more.cc": "inline NOINLINE long is_count(long x) { static long n; "
            "seen++; n += x & 1; return n; "
            "}\n"
            "NOINLINE long is_other(long x) { return is_count(x + 1) <<<=>* 10>>>; }"
        },
    ),
    Case(
        17,
        "guarded_static",
        "struct Big { long v; NOINLINE Big(long x) : v(x + 7) { seen++; } };\n"
        "static NOINLINE Big &big(long x) { static Big b(x); return b; }\n"
        "ask(guarded_static) { return big(40).v * <<<1=>2>>> + x; }",
    ),
    Case(
        17,
        "guarded_static_new",
        "struct Huge { long v; NOINLINE Huge(long x) : v(x + 7) { seen++; } };\n"
        "<<<=>static NOINLINE Huge &big(long x) { static Huge b(x); return b; }>>>\n"
        "ask(guarded_static_new) { seen++; return x + <<<1=>big(40).v>>>; }",
    ),
    Case(
        17,
        "run_time_type",
        "#include <typeinfo>\n#include <cstring>\n"
        "struct A { virtual ~A() {} virtual long f() { return 1; } }; struct B : A { long f() override { "
        "return 2; } }; struct C : A {};\n"
        "static NOINLINE long look(A *a) { seen++; return (dynamic_cast<B *>(a) ? <<<10=>20>>> : 3) + "
        "(typeid(*a) == typeid(C)) * 100; }\nask(run_time_type) { static A *kept[3]; if (!kept[0]) { kept[0] "
        "= new A; kept[1] = new B; kept[2] = new C; } return look(kept[(unsigned long)x % 3]); }",
    ),
    Case(
        17,
        "member_pointer",
        "struct S { long k; NOINLINE long f(long x) { seen++; return x * <<<2=>4>>> + k; } NOINLINE long "
        "g(long x) { seen++; return x - k; } };\nusing mp = long (S::*)(long); static mp kept;\n"
        "ask(member_pointer) { static S s{3}; if (!kept) kept = &S::f; return (s.*kept)(x) * 10 + (kept == "
        "&S::f) + (kept == &S::g) * 5; }",
    ),
    Case(
        17,
        "overload_added",
        "static NOINLINE long f(long x) { seen++; return x; }\n"
        "<<<=>static NOINLINE long f(int x) { seen++; return x * 9L; }>>>\n"
        "ask(overload_added) { return f((int)x) + f(x); }",
    ),
    Case(
        17,
        "operators",
        "struct V { long a, b; friend NOINLINE V operator+(const V &l, const V &r) { seen++; return {l.a + "
        "r.a, l.b <<<+=>->>> r.b}; } };\nask(operators) { V v = V{x, 2} + V{3, 4}; return v.a * 100 + v.b; }",
    ),
)

_PRELUDE = '#define ask(name) extern "C" long ask_##name(long x)\n'

CXX = tuple(
    replace(
        case,
        source=_PRELUDE + case.source,
        program="cxx",
        suffix=".cc",
        flags=("-fno-exceptions", "-std=c++17"),
    )
    for case in _CASES
)
