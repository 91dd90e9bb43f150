"""The one error of staging.  Apart from `katana_cc.errors`, which costs more to import than a link may."""


class StagingError(Exception):
    """The link cannot be recorded, for a reason the user can do something about."""
