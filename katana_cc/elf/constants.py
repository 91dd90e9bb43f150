"""Numbers of the ELF format: gABI (System V ABI, generic), and its x86-64 supplement for R_X86_64_*."""

from __future__ import annotations

from typing import Final

ET_REL: Final = 1
ET_EXEC: Final = 2
ET_DYN: Final = 3
EM_X86_64: Final = 62
EM_AARCH64: Final = 183

SHT_NULL: Final = 0
SHT_PROGBITS: Final = 1
SHT_SYMTAB: Final = 2
SHT_STRTAB: Final = 3
SHT_RELA: Final = 4
SHT_DYNAMIC: Final = 6
SHT_NOTE: Final = 7
SHT_NOBITS: Final = 8
SHT_REL: Final = 9
SHT_DYNSYM: Final = 11
SHT_INIT_ARRAY: Final = 14
SHT_FINI_ARRAY: Final = 15
SHT_PREINIT_ARRAY: Final = 16
SHT_GROUP: Final = 17
SHT_SYMTAB_SHNDX: Final = 18
SHT_LLVM_ADDRSIG: Final = 0x6FFF4C03
SHT_X86_64_UNWIND: Final = 0x70000001

SHF_WRITE: Final = 0x1
SHF_ALLOC: Final = 0x2
SHF_EXECINSTR: Final = 0x4
SHF_MERGE: Final = 0x10
SHF_STRINGS: Final = 0x20
SHF_INFO_LINK: Final = 0x40
SHF_LINK_ORDER: Final = 0x80
SHF_GROUP: Final = 0x200
SHF_TLS: Final = 0x400
SHF_COMPRESSED: Final = 0x800

SHN_UNDEF: Final = 0
SHN_LORESERVE: Final = 0xFF00
SHN_ABS: Final = 0xFFF1
SHN_COMMON: Final = 0xFFF2
SHN_XINDEX: Final = 0xFFFF

STB_LOCAL: Final = 0
STB_GLOBAL: Final = 1
STB_WEAK: Final = 2
STB_GNU_UNIQUE: Final = 10

STT_NOTYPE: Final = 0
STT_OBJECT: Final = 1
STT_FUNC: Final = 2
STT_SECTION: Final = 3
STT_FILE: Final = 4
STT_COMMON: Final = 5
STT_TLS: Final = 6
STT_GNU_IFUNC: Final = 10

PT_LOAD: Final = 1
PT_DYNAMIC: Final = 2
PT_INTERP: Final = 3
PT_NOTE: Final = 4
PT_TLS: Final = 7
PT_GNU_EH_FRAME: Final = 0x6474E550
PT_GNU_RELRO: Final = 0x6474E552

PF_X: Final = 1
PF_W: Final = 2
PF_R: Final = 4

NT_GNU_BUILD_ID: Final = 3

DT_NULL: Final = 0
DT_NEEDED: Final = 1
DT_PLTRELSZ: Final = 2
DT_HASH: Final = 4
DT_STRTAB: Final = 5
DT_SYMTAB: Final = 6
DT_RELA: Final = 7
DT_RELASZ: Final = 8
DT_STRSZ: Final = 10
DT_SONAME: Final = 14
DT_DEBUG: Final = 21
DT_TEXTREL: Final = 22
DT_JMPREL: Final = 23
DT_FLAGS: Final = 30
DT_GNU_HASH: Final = 0x6FFFFEF5
DF_TEXTREL: Final = 0x4

R_X86_64_NONE: Final = 0
R_X86_64_64: Final = 1
R_X86_64_PC32: Final = 2
R_X86_64_GOT32: Final = 3
R_X86_64_PLT32: Final = 4
R_X86_64_COPY: Final = 5
R_X86_64_GLOB_DAT: Final = 6
R_X86_64_JUMP_SLOT: Final = 7
R_X86_64_RELATIVE: Final = 8
R_X86_64_GOTPCREL: Final = 9
R_X86_64_32: Final = 10
R_X86_64_32S: Final = 11
R_X86_64_16: Final = 12
R_X86_64_PC16: Final = 13
R_X86_64_8: Final = 14
R_X86_64_PC8: Final = 15
R_X86_64_DTPMOD64: Final = 16
R_X86_64_DTPOFF64: Final = 17
R_X86_64_TPOFF64: Final = 18
R_X86_64_TLSGD: Final = 19
R_X86_64_TLSLD: Final = 20
R_X86_64_DTPOFF32: Final = 21
R_X86_64_GOTTPOFF: Final = 22
R_X86_64_TPOFF32: Final = 23
R_X86_64_PC64: Final = 24
R_X86_64_GOTOFF64: Final = 25
R_X86_64_GOTPC32: Final = 26
R_X86_64_SIZE32: Final = 32
R_X86_64_SIZE64: Final = 33
R_X86_64_GOTPC32_TLSDESC: Final = 34
R_X86_64_TLSDESC_CALL: Final = 35
R_X86_64_TLSDESC: Final = 36
R_X86_64_IRELATIVE: Final = 37
R_X86_64_GOTPCRELX: Final = 41
R_X86_64_REX_GOTPCRELX: Final = 42

STV_DEFAULT: Final = 0
DT_SYMBOLIC: Final = 16
DT_FLAGS_1: Final = 0x6FFFFFFB
DF_SYMBOLIC: Final = 2
DF_1_PIE: Final = 0x08000000
