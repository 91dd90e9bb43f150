"""The patch object: model, codec, checks."""
