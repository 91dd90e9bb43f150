"""The arguments of a link: response files, and the few options that matter to recording.

Source: ld(1) "OPTIONS", gcc(1) "@file".
"""

from __future__ import annotations


def expand_responses(argv: list[bytes], depth: int = 0) -> list[bytes]:
    """Replace each `@file` by the words in it, as gcc's, binutils' and LLVM's drivers do (gcc(1), "@file").

    Words are separated by white space; quotes and backslashes protect it.  A file that cannot be read stays as it is,
    as it does there.
    """
    expanded: list[bytes] = []
    for word in argv:
        if not word.startswith(b"@") or depth > 100:
            expanded.append(word)
            continue
        try:
            with open(word[1:], "rb") as file:
                words = split_words(file.read())
        except OSError:
            expanded.append(word)
            continue
        expanded.extend(expand_responses(words, depth + 1))
    return expanded


def split_words(text: bytes) -> list[bytes]:
    """Split a response file: the inverse of libiberty's `writeargv`, and a superset of what shells quote."""
    words: list[bytes] = []
    word = bytearray()
    started = escaped = False
    quote = 0
    for byte in text:
        if escaped:
            word.append(byte)
            escaped = False
        elif byte == 0x5C:  # backslash, also inside either kind of quotes
            escaped = started = True
        elif quote:
            if byte == quote:
                quote = 0
            else:
                word.append(byte)
        elif byte in b"\"'":
            quote = byte
            started = True
        elif byte in b" \t\n\r\f\v":
            if started:
                words.append(bytes(word))
                word.clear()
                started = False
        else:
            word.append(byte)
            started = True
    if started:
        words.append(bytes(word))
    return words


class Options:
    """What of a link's arguments matters here.  ld(1): long options have one dash or two, values after "=" or next."""

    __slots__ = ("build_id", "cross_reference", "output", "print_map", "pure", "scripted", "soname", "user_map")

    def __init__(self, argv: list[bytes]) -> None:
        self.output = b"a.out"
        self.soname = self.user_map = self.build_id = b""
        self.pure = self.scripted = self.print_map = self.cross_reference = False
        words = iter(argv)
        for word in words:
            if word[:1] != b"-":
                continue
            name, equals, value = word.partition(b"=")
            name = name[1:] if name[:2] == b"--" else name
            if word == b"-o" or (name == b"-output" and word != name):
                self.output = value if equals else next(words, b"a.out")
            elif word[:2] == b"-o":  # long options in o need two dashes
                self.output = word[2:]
            elif name in (b"-soname", b"-h"):
                self.soname = value if equals else next(words, b"")
            elif name == b"-Map":
                self.user_map = value if equals else next(words, b"")
            elif name in (b"-M", b"-print-map"):
                self.print_map = True
            elif name == b"-cref":
                self.cross_reference = True
            elif name in (b"-r", b"-i", b"-Ur", b"-relocatable"):
                self.pure = True
            elif name == b"-oformat":
                self.pure = self.pure or not (value if equals else next(words, b"")).startswith(b"elf")
            elif name == b"-build-id":
                self.build_id = value or b"default"
            elif name in (b"-T", b"-script", b"-dT", b"-default-script"):
                self.scripted = True
                if not equals:
                    next(words, None)
            elif (name == b"-orphan-handling" and value == b"error") or (
                word[:2] == b"-T" and name not in _SEGMENT_OPTIONS
            ):
                self.scripted = True
            elif name in _VALUED and not equals:
                next(words, None)


_SEGMENT_OPTIONS = (b"-Tbss", b"-Tdata", b"-Ttext", b"-Ttext-segment", b"-Trodata-segment", b"-Tldata-segment")
# Options whose value is the next word: it must not be taken for an option.  The same table as in libexec/katana/ld.
_VALUED = frozenset(
    b"""-A -a -b -c -e -F -f -G -I -l -L -m -P -R -u -Y -y -z -library -library-path -plugin -plugin-opt -rpath
    -rpath-link -dynamic-linker -version-script -dynamic-list -defsym -wrap -undefined -entry -format -init -fini -audit
    -depaudit -auxiliary -filter -just-symbols -section-start -exclude-libs -dependency-file -retain-symbols-file
    -out-implib -image-base -Tbss -Tdata -Ttext -Ttext-segment -Trodata-segment -Tldata-segment""".split()
)


def scan(argv: list[bytes]) -> bytes:
    """What the shell needs to know of a link whose arguments are in response files; its reader is libexec/katana/ld."""
    options = Options(expand_responses(argv))
    flags = (
        options.pure,
        bool(options.build_id),
        options.scripted,
        options.print_map,
        options.cross_reference,
    )
    lines = [b"%d" % flag for flag in flags] + [b"=" + options.user_map, b"=" + options.output]
    return b"\n".join(lines) + b"\n"
