"""Everything that knows the CPU."""
