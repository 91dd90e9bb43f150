"""The proof that a patch object accounts for all that differs between two linked outputs."""
