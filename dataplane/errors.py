"""Base classes of the errors that hotplane expects."""


class HotplaneError(Exception):
    """An expected error: bad input, a refused kernel change, a missing tool.

    The text is one sentence for the user: what failed, where (namespace/name, field, file), what to do. The command
    line prints it on stderr and exits 1; every other exception is a bug and keeps its traceback.
    """


class PlaneError(HotplaneError):
    """The kernel refused a change; nothing of it was applied. The text says what, where and what to do."""


class UsageError(HotplaneError):
    """The request itself is wrong (an option's value, a combination of options): exit 2 instead of 1."""
