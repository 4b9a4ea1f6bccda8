"""Find the files that a list names, also with Windows' separators, as a URI, or without their suffix."""

import os
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from stat import S_ISREG
from typing import NamedTuple
from unicodedata import normalize
from urllib.request import url2pathname

from resnetkit.data.folders.listing import is_picture_name
from resnetkit.display import shell
from resnetkit.files import expanded

FILE_URI = re.compile(r"file:(//[^/]*(?=/))?", re.IGNORECASE)
ABSOLUTE = re.compile(r"/|[A-Za-z]:/")


class Place(NamedTuple):
    path: Path
    key: str
    """The name by which pictures are sorted and divided; see `Labelled`."""
    reason: str = ""
    """Why there is no such file; empty where there is one."""


class Places:
    """Finds the files that a list names."""

    def __init__(self, folder: Path, images: str | None) -> None:
        self._base = expanded(images) if images else folder
        self._images = images
        self._stems: dict[Path, dict[str, list[str]]] = {}
        self.completed = False

    @property
    def base_said(self) -> str:
        where = f"`images` {self._images}" if self._images else "the folder of the CSV"
        return f"paths are relative to {where}" + ("" if self._images else ", or to `images`")

    def find(self, name: str) -> Place:
        """The file of a name, also with Windows' separators, as a URI, or without its suffix."""
        base = str(self._base)
        first: Place | None = None
        for spelled in _spellings(name):
            text = os.path.join(base, expanded(spelled) if spelled.startswith("~") else spelled)  # noqa: PTH118  # a million of them
            reason = _missing(text)
            if reason and self._images and ABSOLUTE.match(spelled):
                beside = os.path.join(base, spelled.rpartition("/")[2])  # noqa: PTH118
                text, reason = (text, reason) if _missing(beside) else (beside, "")
            path = Path(text)
            if not reason:
                return Place(path, normalize("NFC", Path(spelled).as_posix()))
            first = first or Place(path, "", reason)
            if not is_picture_name(path.name) and (suffixed := self._with_suffix(path)):
                if len(suffixed) > 1:
                    return Place(path, "", f"may be {' or '.join(suffixed)}")
                self.completed = True
                key = Path(spelled).parent / suffixed[0]
                return Place(path.with_name(suffixed[0]), normalize("NFC", key.as_posix()))
        return first or Place(self._base / name, "", "does not exist")

    def _with_suffix(self, path: Path) -> list[str]:
        """The names of the pictures beside `path` that differ from it only in their suffix."""
        if path.parent not in self._stems:
            stems: dict[str, list[str]] = defaultdict(list)
            try:
                for entry in sorted(entry.name for entry in os.scandir(path.parent)):
                    if is_picture_name(entry):
                        stems[entry.rpartition(".")[0]].append(entry)
            except (OSError, ValueError):  # also a name that no folder can have
                pass
            self._stems[path.parent] = stems
        return self._stems[path.parent].get(path.name, [])

    def elsewhere(self, missing: Path) -> str:
        """The end of an error: the folder beside the list that holds the missing file; empty where none does."""
        if self._images:
            return ""
        try:
            beside = sorted(path for path in self._base.iterdir() if path.is_dir())
        except OSError:
            return ""
        relative = os.path.relpath(missing, self._base)
        for folder in beside:
            if not Places(folder, None).find(relative).reason:
                return f". It is in {folder}: give `images` {shell(folder)}"
        return ""


def _spellings(name: str) -> Iterator[str]:
    if uri := FILE_URI.match(name):
        if rest := url2pathname(name[uri.end() :]):  # else it names nothing
            yield rest
        return
    yield name
    if "\\" in name:
        yield name.replace("\\", "/")


def _missing(picture: str) -> str:
    """Why there is no such file; empty where there is one."""
    try:
        return "" if S_ISREG(os.stat(picture).st_mode) else "does not exist"  # noqa: PTH116
    except (FileNotFoundError, NotADirectoryError, ValueError):  # the last for a name that no file can have
        return "does not exist"
    except OSError as error:  # no permission for its folder, or too long a name
        return f"can't be read: {error.strerror or error}"
