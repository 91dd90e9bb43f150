"""Kind 17 once more: C++ with exceptions, and C with cleanups, in one program that throws."""

from __future__ import annotations

from dataclasses import replace

from tests.live.matrix.model import Case

_CASES = (
    Case(
        17,
        "thrown_by_new",
        "struct TbError { long k; };\n"
        "static NOINLINE long work(long x) { seen++; <<<=>if (x > 1) throw TbError{x};>>> return x + 1; "
        "}\n"
        "ask(thrown_by_new) { try { return work(x); } catch (const TbError &e) { return 100 + e.k; } }",
    ),
    Case(
        17,
        "caught_by_new",
        "struct CbError { long k; };\n"
        "static NOINLINE long risky(long x) { seen++; if (x > 1) throw CbError{x}; return x; }\n"
        "static NOINLINE long work(long x) { seen++; <<<return risky(x);=>try { return risky(x); } catch "
        "(const CbError &e) { return e.k * 7; }>>> }\n"
        "ask(caught_by_new) { try { return work(x); } catch (...) { return -1; } }",
    ),
    Case(
        17,
        "passed_on_by_new",
        "struct PbError { long k; };\n"
        "static NOINLINE long risky(long x) { seen++; if (x > 1) throw PbError{x}; return x; }\n"
        "NOINLINE long pb_work(long x) { seen++; long r = risky(x); seen += r; return r * <<<2=>3>>>; }\n"
        "ask(passed_on_by_new) { try { return pb_work(x); } catch (const PbError &e) { return 50 + e.k; "
        "} }",
    ),
    Case(
        17,
        "cleaned_up_by_new",
        "static volatile long cleaned; struct CuGuard { long k; NOINLINE ~CuGuard() { seen++; cleaned += k; } };\n"
        "static NOINLINE long risky(long x) { seen++; if (x > 1) throw x; return x; }\n"
        "static NOINLINE long work(long x) { seen++; <<<=>CuGuard one{x}; CuGuard two{100};>>> return "
        "risky(x) + 1; }\n"
        "ask(cleaned_up_by_new) { cleaned = 0; long r = -5; try { r = work(x); } catch (long e) { r = e; "
        "} return r + 1000 * cleaned; }",
    ),
    Case(
        17,
        "handler_of_another_type",
        "struct HaOne { long k; }; struct HaTwo { long k; };\n"
        "static NOINLINE long risky(long x) { seen++; if (x > 1) throw HaOne{x}; if (x < 0) throw "
        "HaTwo{x}; return x; }\n"
        "static NOINLINE long work(long x) { seen++; try { return risky(x); } catch (const "
        "<<<HaOne=>HaTwo>>> &) { return 5; } }\n"
        "ask(handler_of_another_type) { try { return work(x); } catch (const HaOne &e) { return 10 + "
        "e.k; } catch (const HaTwo &e) { return 20 - e.k; } }",
    ),
    Case(
        17,
        "new_exception_class",
        "#include <stdexcept>\n"
        "<<<=>namespace { struct Fresh : std::runtime_error { long k; Fresh(long k) : "
        'std::runtime_error("fresh"), k(k) {} }; }>>>\n'
        "static NOINLINE long work(long x) { seen++; <<<=>try { if (x > 1) throw Fresh(x); } catch "
        "(const Fresh &f) { if (f.k > 2) throw; return f.k * 3; }>>> return x; }\n"
        "ask(new_exception_class) { try { return work(x); } catch (const std::exception &e) { return "
        "e.what()[0]; } }",
    ),
    Case(
        17,
        "exception_of_a_library",
        "#include <string>\n"
        "#include <stdexcept>\n"
        "static NOINLINE char pick(const std::string &s, long at) { seen++; return s.at((unsigned "
        "long)at); }\n"
        "static NOINLINE long work(long x) { seen++; std::string s(4, 'a'); <<<return pick(s, x & "
        "3);=>try { return pick(s, x); } catch (const std::out_of_range &) { return -4; }>>> }\n"
        "ask(exception_of_a_library) { return work(x); }",
    ),
    Case(
        17,
        "rethrown_and_nested",
        "static NOINLINE long risky(long x) { seen++; if (x > 1) throw x; if (x < 0) throw (int)x; "
        "return x; }\n"
        "static NOINLINE long work(long x) { seen++; <<<return risky(x);=>try { try { return risky(x); } "
        "catch (long e) { seen++; if (e == 3) throw; throw (int)(e * 2); } } catch (int e) { return "
        "risky(1) + e; }>>> }\n"
        "ask(rethrown_and_nested) { try { return work(x); } catch (long e) { return 70 + e; } catch (int "
        "e) { return 90 + e; } }",
    ),
    Case(
        17,
        "constructor_that_throws",
        "static long made, gone; struct CtPart { CtPart() { made++; } NOINLINE ~CtPart() { "
        "seen++; gone++; } };\n"
        "struct CtWhole { CtPart a; long v; CtPart b; NOINLINE CtWhole(long x) : v(x) { seen++; <<<=>if "
        "(x & 1) throw x;>>> } };\n"
        "ask(constructor_that_throws) { long r; try { CtWhole w(x); r = w.v; } catch (long e) { r = 50 + "
        "e; } return r * 100 + made - gone; }",
    ),
    Case(
        17,
        "guarded_static_that_throws_first",
        "static long tries; struct GtThing { long v; NOINLINE GtThing(long x) : v(x) { seen++; if "
        "(++tries < 3) throw x; } };\n"
        "static NOINLINE long thing(long x) { static GtThing t(x + 40); return t.v * <<<1=>2>>>; }\n"
        "ask(guarded_static_that_throws_first) { try { return thing(3) + x; } catch (long e) { return "
        "-e; } }",
    ),
    Case(
        17,
        "template_with_cleanup",
        "static long left; template <class T> struct TcHold { T v; NOINLINE ~TcHold() { seen++; left += "
        "(long)v; } };\n"
        "template <class T> static NOINLINE T twice(T x) { TcHold<T> h{x}; seen++; if (x > 2) throw x; "
        "return x * <<<2=>5>>>; }\n"
        "ask(template_with_cleanup) { left = 0; try { return (long)(twice<long>(x) + "
        "twice<int>((int)x)); } catch (...) { return 1000 + left; } }",
    ),
    Case(
        17,
        "comdat_that_throws",
        "struct CmError { long k; }; inline NOINLINE long cm_shared(long x) { seen++; if (x > 2) throw "
        "CmError{x * <<<5=>6>>>}; return x; }\n"
        "long cm_other(long);\n"
        "ask(comdat_that_throws) { try { return cm_shared(x) + cm_other(x); } catch (const CmError &e) { "
        "return 300 + e.k; } }",
        {
            "comdat_that_throws_more.cc": "struct CmError { long k; }; inline NOINLINE long cm_shared(long x) { "
            "seen++; if (x > 2) throw CmError{x * <<<5=>6>>>}; return x; }\n"
            "NOINLINE long cm_other(long x) { return cm_shared(x + 1) * 10; }"
        },
    ),
    Case(
        17,
        "lambda_that_throws",
        "template <class F> static NOINLINE long run(F f, long x) { seen++; return f(x) + 1; }\n"
        "ask(lambda_that_throws) { long r = 0; try { <<<=>r += run([](long y) { seen++; if (y == 3) "
        "throw (int)y; return y + 100; }, x);>>> r += run([](long y) { seen++; if (y == 2) throw y; "
        "return y * 3; }, x); } catch (long e) { r += e * 1000; } catch (int e) { r -= e; } return r; }",
    ),
    Case(
        17,
        "exception_that_was_kept",
        "#include <exception>\n"
        "struct EkError { long k; };\n"
        "static std::exception_ptr kept;\n"
        "static NOINLINE void keep(long x) { seen++; if (!kept) try { throw EkError{x + 40}; } catch "
        "(...) { kept = std::current_exception(); } }\n"
        "ask(exception_that_was_kept) { keep(2); try { std::rethrow_exception(kept); } catch (const "
        "EkError &e) { return e.k * <<<1=>3>>> + x; } }",
    ),
    Case(
        17,
        "run_time_type_of_new_class",
        "#include <typeinfo>\n"
        "struct RtBase { virtual ~RtBase() {} virtual long f() { seen++; return 1; } };\n"
        "struct RtOld : RtBase { long f() override { seen++; return 2; } };\n"
        "<<<=>struct RtNew : RtOld { long f() override { seen++; return 3; } };>>>\n"
        "static NOINLINE long look(RtBase *b) { seen++; return (dynamic_cast<RtOld *>(b) ? 10 : 0) + "
        "(typeid(*b) == typeid(RtOld)) * 100 + b->f(); }\n"
        "static RtBase *kept;\n"
        "ask(run_time_type_of_new_class) { if (!kept) kept = new RtOld; <<<RtOld now;=>RtNew now;>>> "
        "return look(kept) * 1000 + look(&now) + x; }",
    ),
    Case(
        17,
        "vtable_that_grows",
        "struct VgShape { virtual ~VgShape() {} virtual long a(long x) { seen++; return x; } "
        "<<<=>virtual long b(long x) { seen++; return x * 5; }>>> };\n"
        "static VgShape *kept;\n"
        "ask(vtable_that_grows) { if (!kept) kept = new VgShape; return kept->a(x) + "
        "<<<1=>kept->b(x)>>>; }",
        must=False,
    ),
    Case(
        17,
        "cleanup_of_c",
        "static volatile long done; static NOINLINE void finish(long *p) { seen++; done += *p; }\n"
        "long leave(long); \n"
        "static NOINLINE long work(long x) { <<<=>long held __attribute__((cleanup(finish))) = x + 7;>>> "
        "seen++; return leave(x) + 1; }\n"
        "long cleanup_of_c(long x) { done = 0; long r = work(x); return r * 100 + done; }",
        {
            "cleanup_of_c_more.cc": 'extern "C" NOINLINE long leave(long x) { seen++; if (x > 2) throw x; return x; '
            "}\n"
            'extern "C" long cleanup_of_c(long);\n'
            "ask(cleanup_of_c) { try { return cleanup_of_c(x); } catch (long e) { return -e; "
            "} }"
        },
        flags=("-fexceptions",),
    ),
)

_PRELUDE = '#define ask(name) extern "C" long ask_##name(long x)\n'


def _completed(case: Case) -> Case:
    is_c = bool(case.flags)
    return replace(
        case,
        source=case.source if is_c else _PRELUDE + case.source,
        more={name: _PRELUDE + text for name, text in case.more.items()},
        program="throws",
        suffix=".c" if is_c else ".cc",
        flags=case.flags if is_c else ("-std=c++17",),
    )


THROWS = tuple(map(_completed, _CASES))
