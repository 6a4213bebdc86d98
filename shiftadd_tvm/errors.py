"""The closed list of user-facing errors.

Each carries one sentence that says what is wrong, where, what was expected, what was found, and
the remedy; `exit_code` is what the command line returns for it. Anything else that escapes is a bug.

    0 ok · 1 bug · 2 usage · 3 unsupported · 4 bad input file · 5 a gate failed · 130 interrupted
"""


class ShiftAddError(Exception):
    """Base of every error that a user can cause and mend."""

    exit_code = 1


class UsageError(ShiftAddError):
    """An option or argument has a value that cannot be used."""

    exit_code = 2


class OutputError(ShiftAddError):
    """The output exists already, cannot be written, or the disk is full."""

    exit_code = 2


class UnsupportedError(ShiftAddError):
    """The model, the target or a feature of either is not supported."""

    exit_code = 3


class BadFileError(ShiftAddError):
    """An input file is missing, damaged, or not what it claims to be."""

    exit_code = 4


class GateError(ShiftAddError):
    """A gate found wrong numbers; nothing was published."""

    exit_code = 5
