"""Turn pictures of any type into the pixels that a network takes, and find pictures in paths. No torch here."""

import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from resnetkit.data.decoding.pictures import ColorMode, open_picture
from resnetkit.data.folders.archives import is_archive, is_spreadsheet, of_archive
from resnetkit.data.folders.listing import PICTURE_SUFFIXES, OnePath, each_path, find_below, is_picture_file
from resnetkit.data.prefetch import Failure, prefetch
from resnetkit.data.reading import LISTS
from resnetkit.data.transforms.preprocess import Preprocess
from resnetkit.errors import DataError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

Picture: TypeAlias = (
    "str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | Image.Image | NDArray[np.uint8] | Tensor"
)
"""A path, an encoded file (as bytes, or opened in binary), a PIL picture, a uint8 array of shape (height, width) or
(height, width, 1 or 3), or a uint8 tensor of shape (height, width) or (1 or 3, height, width), as in torchvision.

An open file is read from its beginning, as Pillow does; or from its current position if it can't seek.
"""
TAKEN = "give a path, bytes, a file opened in binary, a PIL picture, or a uint8 array or tensor"


class _Content(bytes):
    """The content of an open file."""

    name: str = ""
    """The file's name, for errors."""


def is_picture(pictures: object) -> bool:
    """Whether `pictures` is one picture, and not several."""
    kinds = (str, os.PathLike, bytes, bytearray, memoryview, Image.Image, np.ndarray)
    return (
        isinstance(pictures, kinds)
        or (is_tensor(pictures) and getattr(pictures, "ndim", 0) < 4)
        or hasattr(pictures, "read")
    )


def as_list(pictures: object) -> list[Picture]:
    """A list of one picture or several, each as `at_rest` returns it. Raises UsageError for anything else."""
    if is_picture(pictures):
        return [at_rest(pictures)]
    if not isinstance(pictures, Iterable) or isinstance(pictures, Mapping):
        raise _no_picture(pictures)
    return [at_rest(picture) for picture in pictures]


def at_rest(picture: Any) -> Picture:
    """A picture that can be read repeatedly and by several threads: an open file becomes its content.

    Raises UsageError for a file that is closed or opened as text, DataError for one that can't be read.
    """
    if isinstance(picture, bytearray | memoryview):
        return bytes(picture)
    if isinstance(picture, os.PathLike):
        return Path(picture)
    if not hasattr(picture, "read") or isinstance(picture, Image.Image):
        return picture
    name = getattr(picture, "name", None)
    name = name if isinstance(name, str) else f"the {type(picture).__name__}"
    if getattr(picture, "closed", False):
        raise UsageError(f"{name} is closed; open it again, or give its path")
    try:
        with suppress(AttributeError, OSError):  # a socket or a pipe can't seek
            picture.seek(0)
        content = picture.read()
    except (OSError, ValueError) as error:
        raise DataError(f"{name} can't be read: {error}") from error
    if not isinstance(content, bytes):
        raise UsageError(
            f"{name} is opened as text; open it in binary, mode 'rb'"
            if isinstance(content, str)
            else f"{name} gives {type(content).__name__} where it is read, and not bytes; {TAKEN}"
        )
    read = _Content(content)
    read.name = name
    return read


def _no_picture(value: object) -> UsageError:
    return UsageError(f"{type(value).__name__} is no picture; {TAKEN}")


def is_tensor(value: object) -> bool:
    """Whether `value` is a torch tensor. Does not import torch: without it, nothing is one."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def pixels_of(picture: Picture, preprocess: Preprocess) -> NDArray[np.uint8]:
    """Read a picture and preprocess it to uint8 (size, size, channels), which is what a network takes.

    Raises DataError for a picture that can't be read, UsageError for an array or a tensor that is no picture.
    """
    if isinstance(picture, np.ndarray) and (pixels := _checked(picture)).shape[2] == preprocess.channels:
        return preprocess.pixels(pixels)  # without a copy for Pillow
    return preprocess.pixels(opened(picture, preprocess.mode))


def opened(picture: Picture, mode: ColorMode) -> Image.Image:
    """Decode the whole picture, upright and in `mode`. Raises what `pixels_of` raises."""
    picture = at_rest(picture)
    if isinstance(picture, _Content):
        try:
            return open_picture(bytes(picture), mode=mode)
        except DataError as error:
            raise DataError(error.reason, name=picture.name) from error
    if isinstance(picture, str | Path | bytes | Image.Image):
        return open_picture(picture, mode=mode)
    if is_tensor(picture):
        return open_picture(_from_tensor(picture), mode=mode)
    if not isinstance(picture, np.ndarray):
        raise _no_picture(picture)
    return open_picture(_from_array(picture), mode=mode)


def _from_array(pixels: Any) -> Image.Image:
    pixels = _checked(pixels)
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


def _checked(pixels: Any) -> NDArray[np.uint8]:
    """The array of a picture as (height, width, channels). Raises UsageError or DataError if it is none."""
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or pixels.shape[2:] not in ((), (1,), (3,)):
        raise UsageError(
            f"the array is {pixels.dtype} {pixels.shape}; a picture is uint8 (height, width) or (height, width, 1 or "
            "3), with values from 0 to 255. Give several as a list"
        )
    if not pixels.size:
        raise DataError(f"the array is {pixels.shape}: a picture without pixels")
    return pixels if pixels.ndim == 3 else pixels[:, :, None]


def _from_tensor(tensor: Any) -> Image.Image:
    shape = tuple(tensor.shape)
    if str(tensor.dtype) != "torch.uint8" or not (len(shape) == 2 or (len(shape) == 3 and shape[0] in (1, 3))):
        raise UsageError(
            f"the tensor is {str(tensor.dtype).removeprefix('torch.')} {shape}; a picture is uint8 (height, width) or "
            "(1 or 3, height, width), with values from 0 to 255, before any normalisation"
        )
    pixels = tensor.detach().cpu()
    return _from_array((pixels.permute(1, 2, 0) if len(shape) == 3 else pixels).numpy())


MOST_IN_A_SHARE = 4
"""Most pictures that a thread takes at once. Few, since some take longer to decode, and a broken one ends it all."""


def stacked(
    pictures: Sequence[Picture], decode: Callable[[Picture], NDArray[np.uint8]], *, batch_size: int, threads: int
) -> Iterator[NDArray[np.uint8]]:
    """Yield batches of decoded pictures. Raises what `decode` raises for the first picture that can't be decoded.

    A thread takes a few pictures at once, because handing over a small picture takes longer than decoding it.
    """

    def part(first: int, end: int) -> NDArray[np.uint8]:
        return np.stack([decode(picture) for picture in pictures[first:end]])

    if threads == 1:
        yield from (part(first, first + batch_size) for first in range(0, len(pictures), batch_size))
        return
    with ThreadPoolExecutor(threads) as pool:
        for first in range(0, len(pictures), batch_size):
            end = min(first + batch_size, len(pictures))
            share = min(MOST_IN_A_SHARE, ceil((end - first) / threads))
            starts = range(first, end, share)
            yield np.concatenate(list(pool.map(part, starts, (min(start + share, end) for start in starts))))


Decoded: TypeAlias = tuple[Path, NDArray[np.uint8] | Failure]
"""A path with its pixels, or with the reason why there are none."""


def decoded(
    found: Iterable[tuple[Path, str | None]],
    decode: Callable[[Path], NDArray[np.uint8]],
    *,
    workers: int,
    ahead: int,
) -> Iterator[Decoded]:
    """Decode what `find_pictures` found, in its order. `workers` threads are up to `ahead` pictures ahead."""

    def read(item: tuple[Path, str | None]) -> Decoded:
        path, reason = item
        return path, Failure(path, reason) if reason else decode(path)

    reading = prefetch(read, found, workers=workers, ahead=ahead, path_of=lambda item: item[0])
    with closing(reading):
        for result in reading:
            if isinstance(result, Failure):
                assert result.path is not None
                yield result.path, result
            else:
                yield result


def is_one_file(path: OnePath) -> bool:
    """Whether `path` exists and is no folder. A glob is not, nor a name that no file can have."""
    return os.path.lexists(path) and not _is_folder(Path(path))


def find_pictures(paths: OnePath | Iterable[OnePath]) -> Iterator[tuple[Path, str | None]]:
    """Find the pictures of files, folders and globs: yield each path with None, or with the reason why it has none.

    `paths` is one path or several. In a folder, the pictures are those that training finds: see `listing.find_below`. A
    folder that can't be read comes with the reason, and so does a file that training would leave out as broken. Files
    without the suffix of a picture are left out; so are folders of training runs, with a warning. A file that is named,
    or matches a glob, is taken as a picture whatever its suffix, unless it is an archive or a list. Raises UsageError
    for anything that is no path.
    """
    for text in each_path(paths):
        try:
            matches = [Path(text)] if _is_there(text) else _matches(Path(text))
        except PermissionError as error:
            yield Path(text), f"can't be read: {error.strerror}"
            continue
        if not matches:
            yield Path(text), "no such file or folder, and nothing matches it"
        for match in matches:
            if _is_folder(match):
                yield from _pictures_below(match)
            else:
                yield match, _no_picture_file(match)


def _no_picture_file(path: Path) -> str | None:
    """What a file is that can't be a picture, with the mend; None for what may be one."""
    if not path.is_file() or not path.stat().st_size or is_picture_file(path):
        return None
    if path.suffix.lower() in LISTS or is_spreadsheet(path):
        return "a list, and no picture; give the folder of its pictures, or its files"
    return of_archive(path) if is_archive(path) else None


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # a link to a place without permission; opening it gives the error
        return False


def _is_there(text: str) -> bool:
    """Whether the path exists, as a file, a folder or a link. Raises PermissionError if its folder can't be read."""
    try:
        os.lstat(text)
    except PermissionError:
        raise
    except (OSError, ValueError):  # ValueError: a name that no file can have
        return False
    return True


def _matches(pattern: Path) -> list[Path]:
    """The paths that match a glob, without hidden files, as in a shell."""
    try:
        found = sorted(Path(pattern.anchor).glob(str(pattern.relative_to(pattern.anchor))))
    except (ValueError, IndexError, NotImplementedError, OSError):  # not a pattern for pathlib: a**, empty, or too long
        return []
    return [path for path in found if not path.name.startswith(".")]


def _pictures_below(folder: Path) -> Iterator[tuple[Path, str | None]]:
    empty = True
    for found in find_below(folder):
        if found.kind == "other":
            continue
        if found.kind == "run" and found.path != folder:
            warnings.warn(f"{found.path} is passed over: it {found.reason}", stacklevel=2)
            continue
        empty = False
        yield found.path, found.reason or None
    if empty:
        yield folder, f"no pictures in this folder; they end in {', '.join(sorted(PICTURE_SUFFIXES))}"
