"""The errors of this package. Messages name the file or the field, and say how to fix the mistake.

A field or argument has its Python name, in backticks: "`batch_size` is 0; it must be at least 1". The command line
prints an error as one or two lines, with the flag, --batch-size, instead of the field, and exits with its `exit_code`.
Any other exception that reaches the user is a bug.
"""


class ResnetkitError(Exception):
    """Base class of all errors of this package."""

    exit_code = 1


class UsageError(ResnetkitError, ValueError):
    """Wrong use: an unknown name, an impossible combination, a value out of range."""

    exit_code = 2


class DataError(ResnetkitError):
    """Data that is missing, broken, or not laid out as expected."""

    def __init__(self, reason: str, *, name: str = "") -> None:
        """`name` is the name of the wrong file, if it is one file; the message is then the name and `reason`."""
        super().__init__(f"{name}: {reason}" if name else reason)
        self.reason = reason


class LayoutError(DataError):
    """A folder whose pictures are not in class folders."""


class ModelFileError(ResnetkitError):
    """A model file that is missing, broken, or made for something else."""


class TrainingError(ResnetkitError):
    """A training run that can't go on: a loss that is not finite, a run folder that is in use or can't be written."""


class ExportError(ResnetkitError):
    """An exported file that could not be made or written, or whose outputs differ from those of its model."""
