"""AArch64: encodings, tested against the assembler, linkers and an emulator; no program is patched yet
(docs/porting.md)."""
