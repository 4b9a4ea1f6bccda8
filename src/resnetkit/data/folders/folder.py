"""Read class folders: find the pictures, their classes, and the parts (train, val, test)."""

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from unicodedata import normalize

from resnetkit.data.division import NOT_KEPT, Keeping, Labelled, divided
from resnetkit.data.folders.archives import is_archive
from resnetkit.data.folders.listing import (
    OF_RUNS,
    Found,
    decoded,
    find_below,
    is_of_runs,
    is_picture_name,
    listed,
    loose_pictures,
    subfolders,
)
from resnetkit.data.reading import CLASSES_ONLY, LISTS, NOTHING, PARTS, Reading, UnfitError, part_of
from resnetkit.data.samples import Dataset
from resnetkit.display import count as counted
from resnetkit.display import shell, wrong_name
from resnetkit.errors import DataError, LayoutError

IN_CLASSES = ("train", "val", "valid", "validation", "test")
"""Names of part folders within every class folder, in any letter case."""
NO_CLASS = ("unknown", "unlabeled", "unlabelled", "images", "image", "imgs", "img", "pictures", "photos", "data", "all")
"""Names of a folder that contains all pictures of a part, so it is not a class."""
NO_LABELS = ("pred", "predict", "prediction", "predictions", "unlabeled", "unlabelled", "submission")
"""Words in the names of parts without labels."""
MOST_LEVELS = 4
"""Largest number of nested folders, each the only folder in the one above it, that are passed through."""
MOST_NAMED = 5
"""Largest number of folders in an error."""
UNLABELLED = "pictures without class folders: unlabelled, left out"
FINE = (OF_RUNS, UNLABELLED)
"""Reasons to leave something out that are not mistakes: there is nothing to fix."""


@dataclass
class _Layout:
    """The class folders of each part."""

    root: Path
    parts: dict[str, list[tuple[str, Path]]] = field(default_factory=lambda: defaultdict(list))
    """Part -> class names with their folders."""
    understood: list[str] = field(default_factory=list)
    """See `Dataset.understood`."""
    skipped: list[tuple[Path, str]] = field(default_factory=list)
    """See `Dataset.skipped`."""


def refuse_left_out(skipped: Sequence[tuple[Path, str]]) -> None:
    """Raise DataError if files are left out that should not be there, unlike folders of training runs.

    `skipped` is that of the Dataset.
    """
    if wrong := [(path, reason) for path, reason in skipped if reason not in FINE]:
        raise DataError(f"{wrong[0][0]}: {wrong[0][1]} ({len(wrong)} in all); remove it, or leave `strict` out")


def load_folder(
    root: Path,
    *,
    val_fraction: float = 0.2,
    seed: int = 0,
    reading: Reading = NOTHING,
    keeping: Keeping = NOT_KEPT,
) -> Dataset:
    """Find the pictures below `root`, in the layout root/<class>/... or root/{train,val,test}/<class>/...

    Folders in a class folder belong to the class. Parts are recognised by their usual names (Training, test_set,
    seg_train). If a folder contains a single folder and nothing else, that folder is read in its place. `understood` of
    the result describes both. A part without class folders has no labels; if other parts have class folders, it is left
    out. `reading` decides between several possible layouts. If there is no val, `val_fraction` (0 to 1) of the training
    pictures of each class become val, the same ones on every machine. val and test may lack classes of train. Files in
    a class folder that are not pictures are listed in `skipped`, and so are folders of training runs; see
    `refuse_left_out`.

    Raises:
        DataError: the layout is another one or can be read in two ways, a folder can't be read, or val or test has a
            class that train does not have.
        UsageError: `reading` does not fit a folder, or `val_fraction` is out of range.
    """
    if not root.is_dir():
        raise DataError(
            f"{root} {'is not a folder' if root.exists() else 'does not exist'}; expected {_expected(root)}"
        )
    if is_of_runs(root):
        raise DataError(f"{root} {OF_RUNS}; give the folder of its training pictures")
    for name in ("images", "path_column", "label_column", "split_column", "labels"):
        reading.refuse(name, why=f"{root} is a folder, not a list")
    layout = _layout(root, reading)
    parts = {part: _labelled(layout, classes) for part, classes in layout.parts.items()}
    bare = sum(not is_picture_name(one.path.name) for pictures in parts.values() for one in pictures)
    if bare:
        are = "is recognised by its" if bare == 1 else "are recognised by their"
        layout.understood.append(f"{counted(bare, 'file')} without a picture's suffix {are} first bytes")
    return divided(
        str(root),
        parts,
        val_fraction=val_fraction,
        seed=seed,
        reading=reading,
        keeping=keeping,
        skipped=layout.skipped,
        understood=layout.understood,
    )


def _layout(root: Path, reading: Reading) -> _Layout:
    """Find the layout of `root`. Raises DataError if there is none, or if there are several possible ones."""
    if reading.parts == CLASSES_ONLY:
        layout = _Layout(root)
        layout.parts["train"] = _class_folders(layout, root)
        return layout
    if (named := reading.part_folders) is not None:
        for _, folder in named:
            if not (root / folder).is_dir():
                raise UnfitError(f"`parts`: {root} has no folder {folder}; it has {_names(subfolders(root))}")
        return _of_parts(root, root, [(part, root / folder) for part, folder in named], stated=True)
    inner = _around_classes(_unwrapped(root))
    folders = subfolders(inner)
    parts = {folder: part for folder in folders if (part := part_of(folder.name))}
    with_classes = [folder for folder in parts if _holds(folder) == "classes"]
    with_classes.sort(key=lambda folder: PARTS.index(parts[folder]))
    if with_classes:
        unlabelled = [folder for folder in folders if folder not in with_classes and _is_unlabelled(folder)]
        others = [one for one in folders if one not in parts and one not in unlabelled and _has_pictures(one, inner)]
        _refuse_two_ways(root, inner, parts, with_classes, others)
        layout = _of_parts(root, inner, [(parts[folder], folder) for folder in with_classes], unlabelled=unlabelled)
        layout.skipped.extend((path, OF_RUNS) for path in listed(inner) if isinstance(path, Path) and is_of_runs(path))
        return layout
    layout = _Layout(inner)
    flat = [folder for folder in parts if _holds(folder) == "pictures"]
    if flat and not any(_has_pictures(folder, inner) for folder in folders if folder not in parts):
        raise LayoutError(
            f"{inner} can be read in two ways. If {_names(flat)} are parts, their labels are not in folders, so give "
            f"{_lists_in(inner) or 'a list with a line path,label per picture'}. If they are classes, give `parts` none"
        )
    if inner != root:
        layout.understood.append(f"class folders: in {_below(inner, root)}")
    classes = _class_folders(layout, inner)
    if by_class := _parts_in_classes(classes):
        layout.parts.update(by_class)
        layout.understood.append(
            "parts: " + ", ".join(f"{part} = <class>/{folders[0][1].name}/" for part, folders in by_class.items())
        )
    else:
        _refuse_alike(root, classes)
        layout.parts["train"] = classes
    return layout


def _of_parts(
    root: Path,
    inner: Path,
    found: Iterable[tuple[str, Path]],
    *,
    unlabelled: Iterable[Path] = (),
    stated: bool = False,
) -> _Layout:
    """Return the layout of the parts `found`; a difference from root/{train,val,test} is added to `understood`.

    `unlabelled` are the folders of parts without labels. With `stated`, the user gave the parts, and they are always
    added to `understood`.
    """
    layout = _Layout(inner)
    held: list[tuple[str, Path]] = []
    for part, folder in sorted(found, key=lambda one: PARTS.index(one[0])):
        known = {label for label, _ in layout.parts["train"]} if part != "train" else set()
        held.append((part, _unwrapped(folder, part=part, classes=known)))
        layout.parts[part] += _class_folders(layout, held[-1][1])
    layout.parts = {part: classes for part, classes in layout.parts.items() if classes}
    if stated or any(folder.parent != root or folder.name not in PARTS for _, folder in held):
        layout.understood.append(f"parts: {_said(held, root)}")
    for folder in unlabelled:
        layout.skipped.append((folder, UNLABELLED))
        layout.understood.append(f"{_below(folder, root)} contains {UNLABELLED}")
    return layout


def _refuse_two_ways(
    root: Path, inner: Path, parts: Mapping[Path, str], with_classes: Sequence[Path], others: Sequence[Path]
) -> None:
    """Raise DataError if folders may be parts or classes, or if two folders are for the same part.

    `others` are the folders with pictures that are not parts.
    """
    named = ",".join(f"{parts[folder]}={folder.relative_to(root)}" for folder in with_classes)
    if others:
        ways = f"as parts, without {_names(others)}: `parts` {shell(named)}"
        free = [part for part in PARTS if part not in {parts[folder] for folder in with_classes}]
        if free and len(others) == 1 and _alike(with_classes[0], others[0]):
            part = "train" if "train" in free else free[-1]
            all_of = {**{parts[folder]: folder for folder in with_classes}, part: others[0]}
            named = ",".join(f"{one}={all_of[one].relative_to(root)}" for one in PARTS if one in all_of)
            ways = f"as parts, {others[0].name}/ being {part}: `parts` {shell(named)}"
        raise DataError(
            f"{inner} has {with_classes[0].name}/ with class folders, but also pictures in {others[0].name}/. It can "
            f"be read in two ways: {ways}; or as classes, "
            f"{_names([*with_classes, *others])}: `parts` none. Or move {others[0]} elsewhere, or into a class folder; "
            f"expected {_expected(root)}"
        )
    seen: dict[str, Path] = {}
    for folder in with_classes:
        if (first := seen.setdefault(parts[folder], folder)) is not folder:
            named = ",".join(f"{part}={one.relative_to(root)}" for part, one in seen.items())
            raise DataError(
                f"{inner} has two folders for {parts[folder]}, one of them {folder.name}/; merge them, or "
                f"choose one: `parts` {shell(named)}; or, if "
                f"{first.name}/ and {folder.name}/ are classes, give `parts` none"
            )


def _inside(folder: Path) -> list[str]:
    """Return the names of the folders in a folder, or in its only folder; empty if pictures are directly in it."""
    inner = _unwrapped(folder) if len(subfolders(folder)) == 1 and not _only_part(folder) else folder
    return [] if loose_pictures(inner) else sorted(path.name for path in subfolders(inner))


def _only_part(folder: Path) -> bool:
    """Whether a folder in a folder has the name of a part."""
    return any(part_of(path.name) for path in subfolders(folder))


def _alike(one: Path, other: Path) -> bool:
    """Whether two folders contain folders of the same name, as parts of a data set do."""
    return bool(names := _inside(one)) and bool({*names} & {*_inside(other)})


def _refuse_alike(root: Path, classes: Sequence[tuple[str, Path]]) -> None:
    """Raise DataError if all folders contain the same folders: they may be parts, and the inner folders the classes."""
    inside = [_inside(folder) for _, folder in classes if _has_pictures(folder, root)]
    folders = [folder for _, folder in classes if _has_pictures(folder, root)]
    if len(folders) < 2 or not inside[0] or any(names != inside[0] for names in inside):
        return
    names = inside[0]
    if {name.lower() for name in names} & {*NO_CLASS, "masks", "mask", "labels", "annotations"}:
        return
    if len(names) < 2 and not part_of(names[0]):
        return
    them = (
        f"{root} can be read in two ways: {_names(folders)} contain the same folders, {', '.join(names[:MOST_NAMED])}"
    )
    if all(map(part_of, names)):
        ways = f"If each of them is a data set, give one of them, such as {folders[0]}"
    else:
        shown = ",".join(f"{part}={folder.relative_to(root)}" for part, folder in zip(PARTS, folders, strict=False))
        ways = f"If they are parts, give `parts` {shell(shown)}"
    raise LayoutError(f"{them}. {ways}. If they are the classes, give `parts` none")


def _parts_in_classes(classes: Sequence[tuple[str, Path]]) -> dict[str, list[tuple[str, Path]]]:
    """Return the parts of the layout <class>/{train,test}/<picture>; empty unless every class has it."""
    parts: dict[str, list[tuple[str, Path]]] = {}
    for label, folder in classes:
        inside = subfolders(folder)
        if not inside or any(path.name.lower() not in IN_CLASSES for path in inside) or loose_pictures(folder):
            return {}
        for path in inside:
            parts.setdefault(part_of(path.name) or "", []).append((label, path))
    return {part: parts[part] for part in PARTS if part in parts} if len(parts) > 1 else {}


def _unwrapped(folder: Path, *, part: str | None = None, classes: Iterable[str] = ()) -> Path:
    """Return the first folder, from `folder` down, that contains more than a single folder.

    If pictures are directly in a folder on the way, `folder` itself is returned. A folder with the name of one of
    `classes`, or of another part than `part`, is not entered.
    """
    inner = folder
    for _ in range(MOST_LEVELS):
        inside = subfolders(inner)
        if loose_pictures(inner):
            return folder
        if len(inside) != 1:
            return inner if inside else folder
        (only,) = inside
        if only.name in classes or (part_of(only.name) not in (None, part) and _holds(only) == "classes"):
            return inner
        inner = only
    return folder


def _around_classes(folder: Path) -> Path:
    """Return the only folder with pictures in `folder`, if they are in several folders in it; else `folder` itself.

    It is `photos/photos/<class>` next to empty folders, notes or stray pictures. As one class, it would be useless.
    """
    filled = list(islice((path for path in subfolders(folder) if _has_pictures(path, folder)), 2))
    if len(filled) != 1 or part_of(filled[0].name) or loose_pictures(filled[0]):
        return folder
    (inner,) = filled
    within = list(islice((path for path in subfolders(inner) if _has_pictures(path, inner)), 2))
    return inner if len(within) == 2 else folder


def _holds(folder: Path) -> str:
    """Return the content of a folder that may be a part: "classes" (folders), "pictures" (no folders) or "nothing"."""
    inside: list[Path] = []
    for _ in range(MOST_LEVELS):
        inside = subfolders(folder)
        if len(inside) != 1 or not (
            part_of(inside[0].name) or inside[0].name.lower() in NO_CLASS or inside[0].name == folder.name
        ):
            break
        if loose_pictures(folder):
            break
        (folder,) = inside
    return "classes" if inside else "pictures" if loose_pictures(folder) else "nothing"


def _is_unlabelled(folder: Path) -> bool:
    """Whether a folder, next to parts with classes, is a part without class folders."""
    named = part_of(folder.name) or {*NO_LABELS} & {*re.findall("[a-z]+", folder.name.lower())}
    return bool(named) and _holds(folder) == "pictures"


def _class_folders(layout: _Layout, folder: Path) -> list[tuple[str, Path]]:
    """Return the class folders in `folder`; pictures outside them are added to `skipped`.

    Raises DataError if there are no class folders with pictures.
    """
    classes: list[tuple[str, Path]] = []
    loose = 0
    archive = ""
    for found in listed(folder):
        if isinstance(found, Path):
            if is_of_runs(found):
                layout.skipped.append((found, OF_RUNS))
            else:
                classes.append((normalize("NFC", decoded(found.name)), found))
        elif found.kind == "picture":
            loose += 1
            layout.skipped.append((found.path, "a picture in no class folder"))
        elif found.kind == "broken" and found.path.is_dir():
            raise DataError(f"{found.path}: the folder's name {wrong_name('; rename it')}")
        elif found.kind == "other" and is_archive(found.path):
            archive = found.path.name
    if not any(_has_pictures(path, folder) for _, path in classes):
        lack = f"it has {len(classes)} folders, but no pictures in them" if classes else "it has no class folders"
        if loose:
            lack += f", and {loose} pictures directly in it; move them into a folder for each class"
        if lists := _lists_in(folder):
            lack += f", or give the list of their labels, which may be {lists}"
        if archive:
            lack += f"; unpack {archive} first"
        raise LayoutError(f"{folder}: {lack}. Expected {_expected(layout.root)}")
    return classes


def _labelled(layout: _Layout, classes: Sequence[tuple[str, Path]]) -> list[Labelled]:
    """Return the pictures in class folders; other files in them are added to `skipped`."""
    pictures: list[Labelled] = []
    for label, folder in classes:
        count = len(pictures)
        for found in _readable(folder, [layout.root, folder.parent]):
            if found.kind == "picture":
                key = normalize("NFC", decoded(Path(os.path.relpath(found.path, layout.root)).as_posix()))
                pictures.append(Labelled(key, found.path, label, str(folder)))
            else:
                layout.skipped.append((found.path, found.reason))
        if len(pictures) == count:
            layout.skipped.append((folder, "a class folder without pictures"))
    return pictures


def _readable(folder: Path, above: Sequence[Path]) -> Iterator[Found]:
    """Yield the items of `find_below`, but raise DataError for a folder that can't be listed."""
    for found in find_below(folder, above=above):
        if found.kind == "unreadable":
            raise DataError(f"{found.path} {found.reason}; check its permissions")
        yield found


def _has_pictures(folder: Path, above: Path) -> bool:
    return any(found.kind == "picture" for found in _readable(folder, [above]))


def _lists_in(folder: Path) -> str:
    """Return the lists directly in a folder, as text; empty if there are none."""
    found = [one.path for one in listed(folder) if isinstance(one, Found) and one.path.suffix.lower() in LISTS]
    found.sort(key=lambda path: part_of(path.stem) != "train")
    return ", ".join(map(str, found[:MOST_NAMED]))


def _names(folders: Sequence[Path]) -> str:
    more = f" and {len(folders) - MOST_NAMED} more" if len(folders) > MOST_NAMED else ""
    return (", ".join(f"{folder.name}/" for folder in folders[:MOST_NAMED]) or "no folders") + more


def _said(parts: Iterable[tuple[str, Path]], root: Path) -> str:
    return ", ".join(f"{part} = {_below(folder, root)}" for part, folder in parts)


def _below(folder: Path, root: Path) -> str:
    return f"{Path(os.path.relpath(folder, root)).as_posix()}/"


def _expected(root: Path) -> str:
    return f"{root}/<class>/<picture> or {root}/{{train,val,test}}/<class>/<picture>"
