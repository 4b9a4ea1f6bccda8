"""Find the files that a list names, also with Windows' separators, as a URI, without their suffix, or deeper down."""

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
"""Missing files that are looked for in other folders, for a count of them."""
MOST_FOLDERS = 50
MOST_SEARCHED = 100_000
"""Pictures below a folder among which one of the same name is looked for."""


class Place(NamedTuple):
    path: Path
    key: str
    """The name by which pictures are sorted and divided; see `Labelled`."""
    reason: str = ""
    """Why there is no such file; empty where there is one."""
    several: bool = False
    """Whether the name is that of several files."""


class Places:
    """Finds the files that a list names."""

    def __init__(self, folder: Path, images: str | None) -> None:
        self._base = expanded(images) if images else folder
        self._images = images
        self._stems: dict[Path, dict[str, list[str]]] = {}
        self._deep: dict[str, list[str]] | None = None
        """The pictures in the folders within `images`, by their names with and without suffix."""
        self.completed = False
        self._names: dict[str, Path] | None = None
        """The pictures below the folder of the paths, by their names in small letters."""
        self.deeper = False
        """Whether files were found in folders within `images`."""

    @property
    def base(self) -> Path:
        """The folder that paths are relative to."""
        return self._base

    @property
    def base_said(self) -> str:
        where = f"`images` {self._images}" if self._images else "the folder of the CSV"
        return f"paths are relative to {where}" + ("" if self._images else ", or to `images`")

    def find(self, name: str) -> Place:
        """The file of a name, also with Windows' separators, as a URI, or without its suffix.

        Where there is none, the folders within `images` are searched.
        """
        if WEB.match(name):
            return Place(self._base / name, "", f"is {WEB_ADDRESS}, and those are not downloaded")
        base = str(self._base)
        first: Place | None = None
        for spelled in _spellings(name):
            spelled = encoded(spelled)
            text = os.path.join(base, expanded(spelled) if spelled.startswith("~") else spelled)  # noqa: PTH118  # a million of them
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
        """The file of a name in the folders within `images`; None where there is none."""
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
        """A question that names the file that may be meant, of the same name but for case, suffix or folder; or ""."""
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

    def elsewhere(self, missing: Sequence[Path]) -> str:
        """The end of an error: the folders beside the list, or beside `images`, that hold the missing files; or ""."""
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
