"""One door to every kind of data: a name, a folder or a CSV file becomes a Dataset."""

import os
from difflib import get_close_matches
from pathlib import Path

from resnetkit.data.cifar import CIFARS, find_cifar, load_cifar
from resnetkit.data.folder import load_csv, load_folder
from resnetkit.data.listing import is_utf8
from resnetkit.data.samples import Dataset
from resnetkit.errors import DataError, UsageError
from resnetkit.files import expanded

ACCEPTED = f"{', '.join(CIFARS)}, a folder or a .csv file"


def open_dataset(
    data: str | Path,
    *,
    train_split: str = "45k",
    val_fraction: float = 0.2,
    seed: int = 0,
    strict: bool = False,
) -> Dataset:
    """Open `data`: "cifar10", "cifar100", a folder (class folders, or official CIFAR files) or a .csv file.

    A folder that is called cifar10 needs a slash, ./cifar10, or is given as a Path; ~ is the home folder. `train_split`
    ("45k" or "50k") divides CIFAR's training pictures, `val_fraction` those of folders and CSV files that have no val;
    both are drawn with `seed`. With `strict`, what would be skipped (files that are no pictures, or not there) is an
    error.

    Raises DataError where there is no such data, or it is not laid out as expected, and UsageError for wrong values.
    """
    if not isinstance(data, str | Path) or not str(data):
        raise UsageError(f"data is {data!r:.50}; give {ACCEPTED}")
    path = expanded(data)
    if str(data) in CIFARS and (isinstance(data, str) or not _is_there(path)):
        return load_cifar(str(data), train_split=train_split, seed=seed)
    if not is_utf8(str(path)):
        raise DataError(f"{os.fsencode(path)!r}: the name is not UTF-8; rename it")
    if _is_there(path) and (name := find_cifar(path)):
        return load_cifar(name, folder=path, train_split=train_split, seed=seed)
    if path.is_dir():
        return load_folder(path, val_fraction=val_fraction, seed=seed, strict=strict)
    if path.suffix.lower() == ".csv":
        return load_csv(path, val_fraction=val_fraction, seed=seed, strict=strict)
    if _is_there(path):
        raise DataError(f"{data} is a file of another kind; give {ACCEPTED}")
    near = get_close_matches(str(data).lower(), CIFARS, n=1) if os.sep not in str(data) else []
    raise DataError(f"{data}: no such data{f' (did you mean {near[0]}?)' if near else ''}; give {ACCEPTED}")


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError as error:  # no permission for its folder, or a name that no file can have
        raise DataError(f"{path} can't be read: {error.strerror or error}; give {ACCEPTED}") from None
