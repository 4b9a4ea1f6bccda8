"""Class folders and CSV files: which pictures there are, of which class, and which of them are for what."""

import csv
import hashlib
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unicodedata import normalize

import numpy as np

from resnetkit.data.listing import OF_RUNS, Found, find_below, is_of_runs, listed, loose_pictures, subfolders
from resnetkit.data.samples import Dataset, Samples
from resnetkit.errors import DataError, UsageError
from resnetkit.files import expanded

SPLIT_NAMES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
"""Folder names, and values of a CSV's split column, by the part of a Dataset that they mean."""
MOST_LEVELS = 4
"""How far down a set is looked for where a folder holds nothing but a folder."""
SPLIT_RULE = "val: of every class the val_fraction with the smallest SHA-256 of '<seed>/<relative path>', at least one"


@dataclass(frozen=True)
class _Picture:
    key: str
    """The path as the split rule and the order see it: relative, with slashes, composed Unicode."""
    path: Path
    label: str
    source: str
    """What gave it its label: a class folder, or a line of a CSV."""


def load_folder(root: Path, *, val_fraction: float = 0.2, seed: int = 0, strict: bool = False) -> Dataset:
    """Find the pictures below `root`, laid out as root/<class>/... or root/{train,val,test}/<class>/...

    Folders within a class folder belong to the class. Where there is no val, every class gives `val_fraction` of its
    training pictures to it, the same ones on every machine. val and test may lack classes that train has. What is in a
    class folder but no picture is listed in `skipped`; with `strict` it is an error. So are the folders of training
    runs, which are never data, whatever `strict` is.

    Raises DataError for any other layout, for a folder that can't be read and for classes that train does not have.
    """
    if not root.is_dir():
        raise DataError(
            f"{root} {'is not a folder' if root.exists() else 'does not exist'}; expected {_expected(root)}"
        )
    if is_of_runs(root):
        raise DataError(f"{root} {OF_RUNS}; give the folder of pictures that it was trained on")
    skipped: list[tuple[Path, str]] = []
    parts: dict[str, list[_Picture]] = {}
    folders = subfolders(root)
    split_folders = _split_folders(folders)
    for folder in split_folders:
        part = SPLIT_NAMES[folder.name.lower()]
        if part in parts:
            raise DataError(f"{root} has two folders for {part}, one of them {folder.name}/; merge them")
        parts[part] = _class_folders(root, folder, skipped)
    if split_folders:
        for folder in folders:
            if folder not in split_folders and any(found.kind == "picture" for found in _readable(folder, [root])):
                raise DataError(
                    f"{root} has {split_folders[0].name}/ with class folders, but also pictures in {folder.name}/. "
                    f"Move {folder} elsewhere, or into a class folder; expected {_expected(root)}"
                )
        skipped.extend((path, OF_RUNS) for path in listed(root) if isinstance(path, Path) and is_of_runs(path))
    elif (inner := _one_level_down(root)) and _split_folders(subfolders(inner)):
        raise DataError(f"{root} has no class folders{too_high(str(root))}")
    else:
        parts["train"] = _class_folders(root, root, skipped)
    if strict and (wrong := [(path, reason) for path, reason in skipped if reason != OF_RUNS]):
        raise DataError(f"{wrong[0][0]}: {wrong[0][1]} ({len(wrong)} in all); remove it, or leave out strict")
    return _dataset(str(root), parts, skipped, val_fraction=val_fraction, seed=seed)


def too_high(name: str) -> str:
    """The end of an error about a set of one class: which folder within it looks like a set; empty if none does."""
    inner = _one_level_down(Path(name)) if Path(name).is_dir() else None
    return f". It looks one level too high: give {inner}" if inner else ""


def _one_level_down(root: Path) -> Path | None:
    """The folder that is alone in `root`, if it holds folders as a set does and no pictures; else None."""
    inner = root
    for _ in range(MOST_LEVELS):
        folders = subfolders(inner)
        if loose_pictures(inner):
            return None
        if len(folders) != 1 or _split_folders(folders):
            return inner if folders and inner != root else None
        inner = folders[0]
    return None


def _split_folders(folders: Sequence[Path]) -> list[Path]:
    """Those for a part of the set: train, val and test with folders in them."""
    return [folder for folder in folders if folder.name.lower() in SPLIT_NAMES and subfolders(folder)]


def load_csv(path: Path, *, val_fraction: float = 0.2, seed: int = 0, strict: bool = False) -> Dataset:
    """Read the columns path, label and, if it is there, split (train, val or test) of a CSV file in UTF-8.

    Paths are relative to the CSV's folder. Without val it is split from train, as in `load_folder`. Files that do not
    exist are listed in `skipped`; with `strict` one is an error.

    Raises DataError, with the line, for missing columns, empty labels and contradictions, and where no file exists.
    """
    parts: dict[str, list[_Picture]] = defaultdict(list)
    seen: dict[Path, tuple[int, str]] = {}
    skipped: list[tuple[Path, str]] = []
    for line, row in _rows(path):
        where = f"{path}, line {line}"
        name, label = row["path"], normalize("NFC", row["label"])
        part = SPLIT_NAMES.get(row.get("split", "train").lower())
        if not name or not label:
            raise DataError(f"{where}: the {'label' if name else 'path'} is empty; fill it in or remove the line")
        if part is None:
            raise DataError(f"{where}: split is {row['split']!r}; expected train, val or test")
        picture = path.parent / expanded(name)
        if reason := _missing(picture):
            if strict:
                raise DataError(f"{where}: {picture} {reason}; paths are relative to the folder of the CSV")
            skipped.append((picture, f"{reason} ({where})"))
            continue
        if (known := seen.setdefault(picture, (line, label)))[1] != label:
            raise DataError(f"{where}: {name} is {label!r}, but {known[1]!r} in line {known[0]}; remove one of them")
        parts[part].append(_Picture(normalize("NFC", Path(name).as_posix()), picture, label, where))
    if not any(parts.values()):
        if skipped:
            raise DataError(
                f"{path}: none of its {len(skipped)} files exists, first {skipped[0][0]}; "
                "paths are relative to the folder of the CSV"
            )
        raise DataError(f"{path} lists no pictures; expected a line per picture below the line path,label")
    return _dataset(str(path), parts, skipped, val_fraction=val_fraction, seed=seed)


def _missing(picture: Path) -> str:
    """Why there is no such file; empty where there is one."""
    try:
        return "" if picture.is_file() else "does not exist"
    except OSError as error:  # no permission for its folder, or a name that no file can have
        return f"can't be read: {error.strerror or error}"


def _rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the lines of a CSV, each with its number in the file; column names in lower case, values stripped."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:  # Excel writes the signature
            reader = csv.DictReader(file, restval="")
            columns = [column.strip().lower() for column in reader.fieldnames or ()]
            for column in ("path", "label"):
                if column not in columns:
                    raise DataError(
                        f"{path}, line 1: there is no column {column!r}, only {', '.join(columns) or 'an empty line'}; "
                        "expected path,label or path,label,split"
                    )
            for row in reader:
                yield reader.line_num, {str(key).strip().lower(): str(value).strip() for key, value in row.items()}
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror or error}; give the CSV file's path") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is not a CSV file in UTF-8 ({error}); save it as one") from None


def _class_folders(root: Path, folder: Path, skipped: list[tuple[Path, str]]) -> list[_Picture]:
    """Return the pictures in the class folders of `folder`, and add to `skipped` what is in them but is none."""
    pictures: list[_Picture] = []
    classes: list[Path] = []
    loose = 0
    for found in listed(folder):
        if isinstance(found, Path):
            skipped.append((found, OF_RUNS)) if is_of_runs(found) else classes.append(found)
        elif found.kind == "picture":
            loose += 1
            skipped.append((found.path, "a picture in no class folder"))
        elif found.kind == "broken" and found.path.is_dir():
            raise DataError(f"{os.fsencode(found.path)!r}: the folder's name is not UTF-8; rename it")
    for class_folder in classes:
        label = normalize("NFC", class_folder.name)
        count = len(pictures)
        for found in _readable(class_folder, [root, folder]):
            if found.kind == "picture":
                key = normalize("NFC", found.path.relative_to(root).as_posix())
                pictures.append(_Picture(key, found.path, label, str(class_folder)))
            else:
                skipped.append((found.path, found.reason))
        if len(pictures) == count:
            skipped.append((class_folder, "a class folder without pictures"))
    if not pictures:
        lack = f"it has {len(classes)} folders, but no pictures in them" if classes else "it has no class folders"
        if loose:
            lack += f", and {loose} pictures right in it; move them into a folder for each class"
        raise DataError(f"{folder}: {lack}. Expected {_expected(root)}")
    return pictures


def _readable(folder: Path, above: Sequence[Path]) -> Iterator[Found]:
    """What find_below finds. Raises DataError at a folder that can't be listed: who knows what a set without it is."""
    for found in find_below(folder, above=above):
        if found.kind == "unreadable":
            raise DataError(f"{found.path} {found.reason}; check its permissions")
        yield found


def _expected(root: Path) -> str:
    return f"{root}/<class>/<picture> or {root}/{{train,val,test}}/<class>/<picture>"


def _dataset(
    name: str,
    parts: Mapping[str, Sequence[_Picture]],
    skipped: Sequence[tuple[Path, str]] = (),
    *,
    val_fraction: float,
    seed: int,
) -> Dataset:
    """Divide the pictures, number the classes, and check that no part has a class that the first one lacks."""
    if not 0 <= val_fraction < 1:
        raise UsageError(f"val_fraction is {val_fraction}; it must be at least 0 and less than 1")
    parts = {part: sorted(pictures, key=lambda picture: picture.key) for part, pictures in parts.items() if pictures}
    split: dict[str, Any] = {"rule": "as given"}
    if "train" in parts and "val" not in parts and val_fraction:
        chosen = _choose_val(parts["train"], val_fraction, seed)
        parts["val"] = [picture for picture in parts["train"] if picture.key in chosen]
        parts["train"] = [picture for picture in parts["train"] if picture.key not in chosen]
        split = {"rule": SPLIT_RULE, "seed": seed, "val_fraction": val_fraction}
    # Without train the set is for evaluation, and its own classes are all there is to go by.
    known = parts.get("train") or [picture for pictures in parts.values() for picture in pictures]
    classes = tuple(sorted({picture.label for picture in known}))
    index = {label: i for i, label in enumerate(classes)}
    for part, pictures in parts.items():
        labels = sorted({picture.label for picture in pictures})
        if only := [label for label in labels if label not in index]:
            named = ", ".join(f'"{label}"' for label in only)
            example = next(picture for picture in pictures if picture.label == only[0])
            raise DataError(
                f"{name} has {len(classes)} classes in train but {len(labels)} in {part} (only in {part}: {named}). "
                f"Move or remove {example.source}, or add the class to train"
            )
    samples = {
        part: Samples(
            classes,
            np.array([index[picture.label] for picture in pictures], np.int64),
            paths=tuple(picture.path for picture in pictures),
        )
        for part, pictures in parts.items()
        if pictures
    }
    return Dataset(name, classes, samples.get("train"), samples.get("val"), samples.get("test"), split, tuple(skipped))


def _choose_val(pictures: Sequence[_Picture], fraction: float, seed: int) -> set[str]:
    """Return the keys of the pictures that become val. A class of one picture keeps it for training."""
    by_class: dict[str, list[str]] = defaultdict(list)
    for picture in pictures:
        by_class[picture.label].append(picture.key)
    chosen: set[str] = set()
    for keys in by_class.values():
        count = min(max(round(len(keys) * fraction), 1), len(keys) - 1)
        # A hash, not a generator: the choice does not depend on the other pictures' order or on NumPy's version.
        keys.sort(key=lambda key: hashlib.sha256(f"{seed}/{key}".encode()).digest())
        chosen.update(keys[:count])
    return chosen
