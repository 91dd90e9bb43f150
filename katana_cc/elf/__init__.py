"""ELF: reading objects and outputs, and the numbers of the format."""
