"""Find the files in a list, also if a name has Windows' separators, is a URI, has no suffix, or lacks its folders."""

import os
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from stat import S_ISREG
from typing import NamedTuple
from unicodedata import normalize
from urllib.request import url2pathname

from resnetkit.data.folders.listing import decoded, encoded, find_below, is_picture_name
from resnetkit.display import shell
from resnetkit.files import expanded

FILE_URI = re.compile(r"file:(//[^/]*(?=/))?", re.IGNORECASE)
WEB = re.compile(r"(https?|ftp|s3|gs)://", re.IGNORECASE)
WEB_ADDRESS = "a web address"
ABSOLUTE = re.compile(r"/|[A-Za-z]:/")
MOST_COUNTED = 1000
"""Largest number of missing files that are searched in other folders."""
MOST_FOLDERS = 50
"""Largest number of other folders that are searched."""
MOST_SEARCHED = 100_000
"""Largest number of pictures in a folder that are searched for a name."""


class Place(NamedTuple):
    """The file of a name in a list, or the reason why there is none."""

    path: Path
    key: str
    """The name by which pictures are sorted and divided: see `Labelled`."""
    reason: str = ""
    """The reason why the file was not found; empty if it was found."""
    several: bool = False
    """Whether several files may be meant."""


class Places:
    """Finds the files in a list."""

    def __init__(self, folder: Path, images: str | None) -> None:
        """`folder` is the folder of the list; `images`, if it is given, the folder of the pictures."""
        self._base = expanded(images) if images else folder
        self._images = images
        self._stems: dict[Path, dict[str, list[str]]] = {}
        self._deep: dict[str, list[str]] | None = None
        """The pictures in the folders below `images`: name, with and without its suffix -> relative paths."""
        self.completed = False
        """Whether a suffix was added to a name."""
        self._names: dict[str, Path] | None = None
        """The pictures below the folder that paths are relative to: name in lower case -> path."""
        self.deeper = False
        """Whether files were found in folders below `images`."""

    @property
    def base(self) -> Path:
        """The folder that paths in the list are relative to."""
        return self._base

    @property
    def base_said(self) -> str:
        """The part of an error that names the folder that paths are relative to."""
        where = f"`images` {self._images}" if self._images else "the folder of the CSV"
        return f"paths are relative to {where}" + ("" if self._images else ", or to `images`")

    def find(self, name: str) -> Place:
        """Return the file of a name; the name may have Windows' separators, be a URI, or lack its suffix.

        If there is no such file, the folders below `images` are searched.
        """
        if WEB.match(name):
            return Place(self._base / name, "", f"is {WEB_ADDRESS}, which is not downloaded")
        base = str(self._base)
        first: Place | None = None
        for spelled in _spellings(name):
            spelled = encoded(spelled)
            # A list may have a million names, for which pathlib is slow.
            text = os.path.join(base, expanded(spelled) if spelled.startswith("~") else spelled)  # noqa: PTH118
            reason = _missing(text)
            if reason and self._images and ABSOLUTE.match(spelled):
                beside = os.path.join(base, spelled.rpartition("/")[2])  # noqa: PTH118
                text, reason = (text, reason) if _missing(beside) else (beside, "")
            path = Path(text)
            if not reason:
                return Place(path, normalize("NFC", decoded(Path(spelled).as_posix())))
            first = first or Place(path, "", reason)
            if not is_picture_name(path.name) and (suffixed := self._with_suffix(path)):
                if len(suffixed) > 1:
                    return Place(path, "", f"may be {' or '.join(suffixed)}", several=True)
                self.completed = True
                key = Path(spelled).parent / suffixed[0]
                return Place(path.with_name(suffixed[0]), normalize("NFC", decoded(key.as_posix())))
        if self._images and (deep := self._below(name)):
            return deep
        return first or Place(self._base / name, "", "does not exist")

    def _below(self, name: str) -> Place | None:
        """Return the file of a name in the folders below `images`; None if there is none."""
        if self._deep is None:
            self._deep = defaultdict(list)
            for found in find_below(self._base):
                if found.kind == "picture":
                    below = os.path.relpath(found.path, self._base)
                    self._deep[found.path.name].append(below)
                    if (stem := found.path.name.rpartition(".")[0]) != found.path.name:
                        self._deep[stem].append(below)
        *_, spelled = _spellings(name) if not FILE_URI.match(name) else [name]
        wanted = encoded(spelled).removeprefix("./")
        found = self._deep.get(wanted.rpartition("/")[2], [])
        if "/" in wanted and not ABSOLUTE.match(wanted):
            found = [
                one
                for one in found
                if f"/{one}".rpartition(".")[0].endswith(f"/{wanted}") or f"/{one}".endswith(f"/{wanted}")
            ]
        if not found:
            return None
        if len(found) > 1:
            return Place(self._base / name, "", f"may be {' or '.join(found[:3])} in {self._base}", several=True)
        self.deeper = True
        return Place(self._base / found[0], normalize("NFC", decoded(Path(found[0]).as_posix())))

    def near(self, missing: Path) -> str:
        """Return "; did you mean FILE?" with a file that differs in case, suffix or folder; "" if there is none."""
        folder, name = missing.parent, missing.name
        try:
            there = sorted(entry.name for entry in os.scandir(folder) if entry.is_file())
        except (OSError, ValueError):
            there = list[str]()
        alike = [one for one in there if one.lower() == name.lower()]
        stem = name.rpartition(".")[0] if is_picture_name(name) else name
        alike += [one for one in there if is_picture_name(one) and one.rpartition(".")[0].lower() == stem.lower()]
        if alike:
            return f"; did you mean {alike[0]}?"
        if self._names is None:
            self._names = {}
            for count, found in enumerate(find_below(self._base)):
                if count > MOST_SEARCHED:
                    break
                if found.kind == "picture":
                    self._names.setdefault(found.path.name.lower(), found.path)
        other = self._names.get(name.lower())
        return f"; did you mean {Path(os.path.relpath(other, self._base)).as_posix()}?" if other else ""

    def _with_suffix(self, path: Path) -> list[str]:
        """Return the names of the pictures in the folder of `path` that are its name with a suffix."""
        if path.parent not in self._stems:
            stems: dict[str, list[str]] = defaultdict(list)
            try:
                for entry in sorted(entry.name for entry in os.scandir(path.parent)):
                    if is_picture_name(entry):
                        stems[entry.rpartition(".")[0]].append(entry)
            except (OSError, ValueError):  # ValueError: a folder can't have this name
                pass
            self._stems[path.parent] = stems
        return self._stems[path.parent].get(path.name, [])

    def elsewhere(self, missing: Sequence[Path]) -> str:
        """Return the end of an error: folders next to the list or `images` that contain the missing files; or ""."""
        above = self._base.parent if self._images else self._base
        try:
            beside = sorted(path for path in above.iterdir() if path.is_dir() and path != self._base)
        except OSError:
            return ""
        names = [os.path.relpath(path, self._base) for path in missing[:MOST_COUNTED]]
        counts: dict[Path, int] = {}
        for folder in beside[:MOST_FOLDERS]:
            places = Places(folder, None)
            if found := sum(not places.find(name).reason for name in names):
                counts[folder] = found
        if not counts:
            return ""
        first, most = max(counts.items(), key=lambda one: one[1])
        if most == len(names) and not self._images:
            return f". They are in {first}: give `images` {shell(first)}"
        shares = ", ".join(f"{count} in {folder}" for folder, count in counts.items())
        of = f"Of {len(names)}" if not self._images else f"Of {len(names)} that are missing"
        return f". {of}, there are {shares}: give `images` {shell(above)}"


def _spellings(name: str) -> Iterator[str]:
    """Yield a name as a path: a URI is decoded; a name with backslashes is yielded a second time with slashes."""
    if uri := FILE_URI.match(name):
        if rest := url2pathname(name[uri.end() :]):  # an empty path is no file
            yield rest
        return
    yield name
    if "\\" in name:
        yield name.replace("\\", "/")


def _missing(picture: str) -> str:
    """Return the reason why a file is missing; empty if it exists."""
    try:
        return "" if S_ISREG(os.stat(picture).st_mode) else "does not exist"  # noqa: PTH116
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a file can't have this name
        return "does not exist"
    except OSError as error:  # no permission for the folder, or the name is too long
        return f"can't be read: {error.strerror or error}"
