"""Replace the files of an export together: all or none."""

import os
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from resnetkit.errors import ExportError


@contextmanager
def replaced_together(target: Path, *, suffixes: tuple[str, ...]) -> Generator[Path]:
    """Yield a path in a temporary folder. When the block ends, its files with `suffixes` replace those of `target`.

    After an error nothing is replaced. If there are two files, both old files are moved away before the new ones are
    moved in. So a crash can leave a file missing, but never two files that do not belong together.
    """
    try:
        with TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as made:
            new = Path(made, target.name)
            yield new
            files = [new.with_suffix(suffix) for suffix in suffixes]
            for file in files:
                with file.open("rb+") as written:
                    os.fsync(written.fileno())
            _replace(files, target.parent)
    except OSError as error:
        raise ExportError(
            f"{target} could not be written: {error.strerror or error}. An older file was not changed"
        ) from error


def _replace(files: Sequence[Path], folder: Path) -> None:
    """Move files to `folder`, all or none. The first, which people open, is moved last."""
    if len(files) == 1:
        files[0].replace(folder / files[0].name)
        return
    before = files[0].parent / "before"
    before.mkdir()
    places = [folder / file.name for file in files]
    moved: list[Path] = []
    try:
        for place in places:
            if place.exists():
                place.rename(before / place.name)
        for file, place in zip(reversed(files), reversed(places), strict=True):
            file.rename(place)
            moved.append(place)
    except BaseException:
        for place in moved:
            place.unlink()
        for file in before.iterdir():
            file.rename(folder / file.name)
        raise
