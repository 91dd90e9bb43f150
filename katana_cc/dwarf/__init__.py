"""DWARF: call frames, types, lines."""
