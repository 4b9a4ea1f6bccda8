"""Open any kind of data, a name, a folder or a list, as a Dataset."""

import os
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Literal

from resnetkit.data.corrections import corrected
from resnetkit.data.detection.sources import NAMES, forms_of
from resnetkit.data.division import NOT_KEPT, Keeping
from resnetkit.data.folders.archives import is_archive, is_spreadsheet, of_archive
from resnetkit.data.folders.folder import NO_CLASS, load_folder, refuse_left_out
from resnetkit.data.folders.listing import decoded, is_utf8
from resnetkit.data.lists.beside import refuse_lists_beside
from resnetkit.data.lists.lists import load_list
from resnetkit.data.published.cifar import CIFARS, find_cifar, load_cifar
from resnetkit.data.reading import LISTS, Reading
from resnetkit.data.samples import Dataset
from resnetkit.display import shell, wrong_name
from resnetkit.errors import DataError, LayoutError, UsageError
from resnetkit.files import expanded

ACCEPTED = f"{', '.join(CIFARS)}, a folder or a .csv file, or another list of pictures (.tsv, .txt, .jsonl)"

OF_BOXES = {*NO_CLASS, "jpegimages", "annotations", "annotation", "labels", "segmentationclass", "segmentationobject"}
"""Names of folders in data with boxes, in lower case, that are no classes there."""
BESIDE = (".xml", ".txt", ".json")
"""Suffixes of files in class folders that may be boxes."""


def open_dataset(
    data: str | Path,
    *,
    train_split: str = "45k",
    val_fraction: float = 0.2,
    seed: int = 0,
    strict: bool = False,
    parts: str | None = None,
    images: str | Path | None = None,
    path_column: str | None = None,
    label_column: str | None = None,
    split_column: str | None = None,
    group_by: str | None = None,
    labels: Literal["one", "several"] | None = None,
    corrections: str | Path | None = None,
) -> Dataset:
    """Open `data`: "cifar10", "cifar100", a folder (class folders or official CIFAR files), a .csv file or other list.

    A folder with the name cifar10 must be given with a slash, ./cifar10, or as a Path. ~ is the home folder.
    `train_split` ("45k" or "50k") divides CIFAR's training pictures. `val_fraction` (at least 0, less than 1) of the
    training pictures of a folder or list without val become val. `seed` decides which pictures are drawn. With
    `strict`, a file that is not a picture or does not exist is an error; otherwise it is skipped.

    The layout of a folder or list is detected; `understood` of the result describes an unusual one. It can also be
    given: `parts` is "train=DIR,val=DIR,test=DIR", with folders relative to `data`, or "none" if all folders are
    classes. `images` is the folder that the paths in a list are relative to, by default the folder of the list.
    `path_column`, `label_column` and `split_column` are the columns of the list, by name or by number from 1.
    `group_by` says which pictures stay in one part if val is drawn: parent, exif-time, a column of the list, or a
    regular expression for the paths.
    `labels` says whether a picture has one label, or may have several or none (multi-label).
    `corrections` is a CSV file that relabels pictures or leaves them out: see `corrections.corrected`.

    Raises:
        DataError: the data do not exist, can't be read, or have another layout.
        UsageError: an argument has a wrong value or does not fit the data.
    """
    reading = Reading(
        parts,
        None if images is None else str(images),
        path_column,
        label_column,
        split_column,
        group_by,
        labels,
        None if corrections is None else str(corrections),
    )
    return open_read(data, reading, train_split=train_split, val_fraction=val_fraction, seed=seed, strict=strict)


def open_read(
    data: str | Path,
    reading: Reading,
    *,
    train_split: str = "45k",
    val_fraction: float = 0.2,
    seed: int = 0,
    strict: bool = False,
    keeping: Keeping = NOT_KEPT,
) -> Dataset:
    """Do the same as `open_dataset`, with the layout as one value; `keeping` decides about alike pictures."""
    dataset = _open(
        data, reading, train_split=train_split, val_fraction=val_fraction, seed=seed, strict=strict, keeping=keeping
    )
    if not reading.corrections:
        return dataset
    if dataset.several:
        raise UsageError("`corrections` relabels pictures with one label each; correct the labels in the list itself")
    return corrected(dataset, reading.corrections)


def _open(
    data: str | Path,
    reading: Reading,
    *,
    train_split: str,
    val_fraction: float,
    seed: int,
    strict: bool,
    keeping: Keeping,
) -> Dataset:
    """Open the data as they are, without corrections."""
    if not isinstance(data, str | Path) or not str(data):
        raise UsageError(f"`data` is {data!r:.50}; give {ACCEPTED}")
    path = expanded(data)
    if str(data) in CIFARS and (isinstance(data, str) or not _is_there(path)):
        reading.refuse("corrections", why=f"the pictures of {data} are not files that corrections can name")
        reading.refuse(*reading.given(), why=f"the layout of {data} is known")
        return load_cifar(str(data), train_split=train_split, seed=seed)
    if not is_utf8(decoded(str(path))):
        raise DataError(f"{path}: the name {wrong_name('; rename it')}")
    if _is_there(path) and (name := find_cifar(path)):
        reading.refuse("corrections", why=f"the pictures of {name} are not files that corrections can name")
        reading.refuse(*reading.given(), why=f"{data} contains {name}, whose layout is known")
        return load_cifar(name, folder=path, train_split=train_split, seed=seed)
    if path.is_dir():
        try:
            dataset = load_folder(path, val_fraction=val_fraction, seed=seed, reading=reading, keeping=keeping)
        except LayoutError:
            if reading.parts is None:
                _refuse_boxes(data)
            raise
        if reading.parts is None:
            if len(dataset.classes) < 2 or {name.lower() for name in dataset.classes} & OF_BOXES:
                _refuse_boxes(data)
            refuse_lists_beside(dataset, path)
        if strict:
            refuse_left_out(dataset.skipped)
        return _with_boxes_named(dataset, data)
    if path.suffix.lower() in LISTS:
        return load_list(path, val_fraction=val_fraction, seed=seed, strict=strict, reading=reading, keeping=keeping)
    if _is_there(path):
        _refuse_boxes(data)
        if is_spreadsheet(path):
            raise DataError(f"{data} is a spreadsheet; save it as CSV, and give the CSV file")
        if is_archive(path):
            raise DataError(f"{data} is {of_archive(path)}")
        if path.suffix.lower() == ".json":
            raise DataError(f"{data} is one JSON document; give a file with one JSON object per line (.jsonl)")
        raise DataError(f"{data} is a file of another kind; give {ACCEPTED}")
    near = get_close_matches(str(data).lower(), CIFARS, n=1) if os.sep not in str(data) else []
    raise DataError(f"{data}: no such data{f' (did you mean {near[0]}?)' if near else ''}; give {ACCEPTED}")


def _refuse_boxes(data: str | Path) -> None:
    """Raise DataError if `data`, which is no set of class folders, has boxes."""
    if not (forms := forms_of(data)):
        return
    kind = " and ".join(NAMES[form] for form in forms)
    reason = f"{data} has boxes ({kind}) and no class folders; train a detector: resnetkit detect train {shell(data)}"
    if expanded(data).is_dir():
        reason += "; or, if its folders are classes, give `parts` none"
    raise DataError(reason)


def _with_boxes_named(dataset: Dataset, data: str | Path) -> Dataset:
    """Return class folders with a note if there are boxes in them, too, which nothing reads here."""
    if not any(path.suffix.lower() in BESIDE for path, _ in dataset.skipped) or not (forms := forms_of(data)):
        return dataset
    kind = " and ".join(NAMES[form] for form in forms)
    note = f"beside the pictures are boxes ({kind}), which class folders do not need: resnetkit detect train reads them"
    return replace(dataset, understood=(*dataset.understood, note))


def _is_there(path: Path) -> bool:
    """Whether a path exists. Raises DataError if this can't be found out."""
    try:
        return path.exists()
    except OSError as error:  # no permission for the folder, or a name that a file can't have
        raise DataError(f"{path} can't be read: {error.strerror or error}; give {ACCEPTED}") from None
