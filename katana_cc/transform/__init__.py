"""Data transformations: from two layouts of a type, how a live object of the old becomes one of the new.  Pure."""
