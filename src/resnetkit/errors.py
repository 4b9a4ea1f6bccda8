"""Errors written for the person who made the mistake: they name the file or the field, and the mend.

A field or argument stands in backticks under its Python name: "`batch_size` is 0; it must be at least 1". The command
line prints an error as one or two lines, with the field as its flag, --batch-size, and exits with its `exit_code`. Any
other exception that escapes is a bug.
"""


class ResnetkitError(Exception):
    """Base of every error that this package raises on purpose."""

    exit_code = 1


class UsageError(ResnetkitError, ValueError):
    """Wrong use: an unknown name, an impossible combination, a value out of range."""

    exit_code = 2


class DataError(ResnetkitError):
    """Data that is missing, broken, or not laid out as expected."""

    def __init__(self, reason: str, *, name: str = "") -> None:
        """`name` is the name of the file, if it is one file that is at fault; the message begins with it."""
        super().__init__(f"{name}: {reason}" if name else reason)
        self.reason = reason


class ModelFileError(ResnetkitError):
    """A model file that is missing, broken, or made for something else."""


class TrainingError(ResnetkitError):
    """A training run that can't go on: a loss that is not finite, a run folder that is in use or can't be written."""


class ExportError(ResnetkitError):
    """An exported file that could not be made or written, or whose outputs are not those of its source."""
