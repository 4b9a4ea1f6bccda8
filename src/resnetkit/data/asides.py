"""Move files of a folder aside, into a folder next to it, with a list from which they can be put back."""

import json
import os
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

from resnetkit.display import count, shell
from resnetkit.errors import DataError, UsageError
from resnetkit.files import write_whole

SUFFIX = "-set-aside"
"""The end of the name of the folder with the files that were moved; it begins with the name of the data's folder."""


def set_aside(root: Path, files: Mapping[Path, str]) -> Path:
    """Move files from below `root` to the folder `<root>-set-aside`, and return the list of what was moved.

    `files` maps each file to the reason. A file keeps its path within the folder; nothing is replaced or deleted. The
    list is a JSON file in the same folder, which `put_back` reads. It is written before the first file moves, so a
    stop in between loses nothing. If a file can't be moved, because its folder is read-only for example, those that
    were moved go back, and DataError is raised. Raises UsageError for a file that is not below `root`.
    """
    root = root.absolute()
    aside = root.with_name(root.name + SUFFIX)
    moves: list[dict[str, str]] = []
    for path, reason in files.items():
        if not path.absolute().is_relative_to(root):
            raise UsageError(f"{path} is not within {root}; remove it from the list of pictures instead")
        goal = _free(aside / path.absolute().relative_to(root))
        moves.append({"from": os.fspath(path.absolute()), "to": os.fspath(goal), "reason": reason})
    listed = _free(aside / f"undo-{datetime.now():%Y%m%d-%H%M%S}.json")
    done: list[dict[str, str]] = []
    try:
        aside.mkdir(exist_ok=True)
        write_whole(listed, json.dumps({"moved": moves}, indent=1) + "\n")
        for move in moves:
            _move(Path(move["from"]), Path(move["to"]))
            done.append(move)
    except OSError as error:
        reason = f"{error.filename or aside} can't be moved or written: {error.strerror or error}"
        try:
            for move in reversed(done):
                _move(Path(move["to"]), Path(move["from"]))
            listed.unlink(missing_ok=True)
            if aside.is_dir():
                _remove_empty(aside)
        except OSError:
            raise DataError(f"{reason}. To move back: resnetkit data check --undo {shell(listed)}") from error
        raise DataError(f"{reason}. Nothing was moved; make {root} and {root.parent} writable, or copy it") from error
    return listed


def put_back(listed: Path) -> int:
    """Move the files of a list back to where they were, and return their number; the list is removed at the end.

    Files that are not where the list says are left out: they were not moved, or are back already. Raises UsageError for
    a file that is no such list, and DataError if another file is in the place of one, or a file can't be moved.
    """
    try:
        moves = [
            (Path(move["to"]), Path(move["from"])) for move in json.loads(listed.read_text(encoding="utf-8"))["moved"]
        ]
    except OSError as error:
        raise UsageError(f"{listed} can't be read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{listed} is not a list of moved files; give an undo-….json of {SUFFIX}") from error
    moves = [(now, before) for now, before in moves if os.path.lexists(now)]
    if taken := [before for _, before in moves if os.path.lexists(before)]:
        raise DataError(f"{count(len(taken), 'place')} taken by other files, first {taken[0]}; move them first")
    try:
        for now, before in moves:
            _move(now, before)
        listed.unlink()
        _remove_empty(listed.parent)
    except OSError as error:
        raise DataError(f"{error.filename} can't be moved: {error.strerror or error}") from error
    return len(moves)


def _move(path: Path, goal: Path) -> None:
    """Move a file or a link within a file system."""
    goal.parent.mkdir(parents=True, exist_ok=True)
    path.rename(goal)


def _free(path: Path) -> Path:
    """Return `path`, or a name with a number if it is taken."""
    number, free = 1, path
    while os.path.lexists(free):
        number += 1
        free = path.with_name(f"{path.stem}-{number}{path.suffix}")
    return free


def _remove_empty(folder: Path) -> None:
    """Remove a folder and the folders in it, if there are no files in them."""
    for path, _, _ in sorted(os.walk(folder), reverse=True):
        if not any(Path(path).iterdir()):
            Path(path).rmdir()
