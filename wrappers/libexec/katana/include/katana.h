/* katana.h: functions of your own that run when a patch goes into a running process, or comes out of it.
 *
 *     #if __has_include(<katana.h>)
 *     #include <katana.h>
 *     static int fill_cache(void) { return cache_fill() ? 0 : 1; }
 *     KATANA_BEFORE(fill_cache);
 *     #endif
 *
 * A function is named in the file that defines it.  It takes nothing and returns 0 when all is well.
 *
 *     KATANA_BEFORE(f)         before the patch takes effect; anything but 0 keeps it out
 *     KATANA_AFTER(f)          once it is in effect
 *     KATANA_BEFORE_REVERT(f)  before `katana revert` takes it out; anything but 0 keeps it in
 *     KATANA_AFTER_REVERT(f)   once it is out
 *
 * A live object of a type that the new build lays out otherwise, in a way that Katana cannot tell by itself, is made by
 * a function of yours:
 *
 *     struct conn_v1 { int port; };                                       the type as it was
 *     static int renew(const struct conn_v1 *before, struct conn *after) { after->number = before->port; return 0; }
 *     KATANA_TRANSFORM(struct conn_v1, struct conn, renew);
 *     KATANA_TRANSFORM_BACK(struct conn, struct conn_v1, recall);         the way back, for `katana revert`
 *
 * A variable whose initial value is to be taken over when it changes, in place of the live value that is kept otherwise:
 *
 *     static int limit = 200;
 *     KATANA_TAKE_INITIALISER(limit);
 *
 * Nothing of this is ever called by the program itself.  A function runs when a patch brings it: when the build that
 * the patch starts from did not have it, or had other code in its place.
 *
 * Each macro makes a small function that calls yours, which is kept though nobody refers to it (`used`; `retain` for
 * the linker's --gc-sections), and a record of it in the section .katana.hooks of the object.  That section is of the
 * kind that linkers leave out of what they make (SHF_EXCLUDE), and holds, for each record, aligned to 8:
 *
 *     8  an address within the small function, 0       4  size of the text with its NUL
 *        of a variable                                     the text: the name of your function or variable
 *     4  which macro, by its number below
 *     4  a number that grows in the order of the source
 *
 * C and C++; gcc and clang.  docs/hooks.md of Katana tells more.
 */
#ifndef KATANA_H
#define KATANA_H

#if defined __has_attribute
#define KATANA_HAS_(attribute) __has_attribute(attribute)
#else
#define KATANA_HAS_(attribute) 0
#endif
#if KATANA_HAS_(retain)
#define KATANA_RETAIN_ __attribute__((retain))
#else
#define KATANA_RETAIN_
#endif
#if KATANA_HAS_(noipa)
#define KATANA_WHOLE_ __attribute__((noipa))
#else
#define KATANA_WHOLE_ __attribute__((noinline))
#endif
#define KATANA_KEPT_ __attribute__((used)) KATANA_RETAIN_ KATANA_WHOLE_

/* __COUNTER__ is to be in a standard of C, so newer clangs warn of it in older ones. */
#if defined __clang__ && defined __has_warning
#if __has_warning("-Wc2y-extensions")
#define KATANA_QUIETLY_ _Pragma("clang diagnostic push") _Pragma("clang diagnostic ignored \"-Wc2y-extensions\"")
#define KATANA_LOUDLY_ _Pragma("clang diagnostic pop")
#endif
#endif
#ifndef KATANA_QUIETLY_
#define KATANA_QUIETLY_
#define KATANA_LOUDLY_
#endif

/* Assembled into the function it stands in: the place that the record names is the one it is made at. */
#define KATANA_TEXT_(word) KATANA_TEXT_OF_(word)
#define KATANA_TEXT_OF_(word) #word
#define KATANA_ENTRY_(place, number, text)                                                                             \
  ".pushsection .katana.hooks,\"e\",@progbits\n\t.balign 8\n\t.quad " place "\n\t"                                     \
  ".long " number ", " KATANA_TEXT_(__COUNTER__) ", 6612f - 6611f\n6611:\t.asciz \"" text                              \
  "\"\n6612:\t.balign 8\n\t.popsection"
#define KATANA_RECORD_(number, text)                                                                                   \
  KATANA_QUIETLY_ __asm__ __volatile__("6610:\n\t" KATANA_ENTRY_("6610b", number, text)) KATANA_LOUDLY_

/* An exception may not leave a hook: there is nobody to catch it. */
#if defined __cplusplus && defined __cpp_exceptions
#define KATANA_RESULT_(call)                                                                                           \
  try {                                                                                                                \
    return call;                                                                                                       \
  } catch (...) {                                                                                                      \
    return -2147483647 - 1;                                                                                            \
  }
#define KATANA_STORE_(result, call)                                                                                    \
  try {                                                                                                                \
    result = call;                                                                                                     \
  } catch (...) {                                                                                                      \
    result = -2147483647 - 1;                                                                                          \
  }
#else
#define KATANA_RESULT_(call) return call;
#define KATANA_STORE_(result, call) result = call;
#endif
#ifdef __cplusplus
#define KATANA_NONE_
#else
#define KATANA_NONE_ void
#endif

#define KATANA_HOOK_(number, wrapper, f)                                                                               \
  static int wrapper(KATANA_NONE_) KATANA_KEPT_;                                                                       \
  static int wrapper(KATANA_NONE_) {                                                                                   \
    KATANA_RECORD_(number, #f);                                                                                        \
    KATANA_RESULT_(f())                                                                                                \
  }                                                                                                                    \
  struct katana_hook

#define KATANA_BEFORE(f) KATANA_HOOK_("1", katana_before_hook_##f, f)
#define KATANA_AFTER(f) KATANA_HOOK_("2", katana_after_hook_##f, f)
#define KATANA_BEFORE_REVERT(f) KATANA_HOOK_("3", katana_before_revert_hook_##f, f)
/* One call for all objects: `*done` tells how far it came. */
#define KATANA_CONVERT_(number, wrapper, from, to, f)                                                                  \
  static int wrapper(const from *const *, to *const *, unsigned long, volatile unsigned long *) KATANA_KEPT_;          \
  static int wrapper(const from *const *katana_from, to *const *katana_to, unsigned long katana_count,                 \
                     volatile unsigned long *katana_done) {                                                            \
    int katana_result = 0;                                                                                             \
    KATANA_RECORD_(number, #f);                                                                                        \
    for (; *katana_done < katana_count; *katana_done = *katana_done + 1) {                                             \
      KATANA_STORE_(katana_result, f(katana_from[*katana_done], katana_to[*katana_done]))                              \
      if (katana_result) return katana_result;                                                                         \
    }                                                                                                                  \
    return 0;                                                                                                          \
  }                                                                                                                    \
  struct katana_hook
#define KATANA_TRANSFORM(from, to, f) KATANA_CONVERT_("5", katana_transform_hook_##f, from, to, f)
#define KATANA_TRANSFORM_BACK(from, to, f) KATANA_CONVERT_("6", katana_transform_back_hook_##f, from, to, f)
#define KATANA_AFTER_REVERT(f) KATANA_HOOK_("4", katana_after_revert_hook_##f, f)
/* No code, and no use of the variable: it is compiled as without.  Its size is asked for so that a wrong name is an error. */
#define KATANA_TAKE_INITIALISER(variable)                                                                              \
  KATANA_QUIETLY_ __asm__(KATANA_ENTRY_("0", "7", #variable)) KATANA_LOUDLY_;                                          \
  typedef char katana_take_initialiser_##variable[sizeof(variable) ? 1 : -1] __attribute__((unused))

#endif
