"""Read pictures of any type as the pixels of a network's input. No torch here."""

import os
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from resnetkit.data.decoding.pictures import ColorMode, open_picture
from resnetkit.data.prefetch import Failure, prefetch
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
ACCEPTED = "give a path, bytes, a file opened in binary, a PIL picture, or a uint8 array or tensor"


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
    """Return a list of the given picture or pictures, each as `at_rest` returns it. Raises UsageError for others."""
    if is_picture(pictures):
        return [at_rest(pictures)]
    if not isinstance(pictures, Iterable) or isinstance(pictures, Mapping):
        raise _no_picture(pictures)
    return [at_rest(picture) for picture in pictures]


def at_rest(picture: Any) -> Picture:
    """Return a picture that can be read repeatedly and by several threads: an open file is replaced by its content.

    Raises UsageError for a file that is closed or opened as text, DataError for a file that can't be read.
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
            else f"{name} gives {type(content).__name__} instead of bytes when it is read; {ACCEPTED}"
        )
    read = _Content(content)
    read.name = name
    return read


def _no_picture(value: object) -> UsageError:
    return UsageError(f"{type(value).__name__} is not a picture; {ACCEPTED}")


def is_tensor(value: object) -> bool:
    """Whether `value` is a torch tensor. Does not import torch: until torch is imported, there are no tensors."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def pixels_of(picture: Picture, preprocess: Preprocess) -> NDArray[np.uint8]:
    """Read and preprocess a picture; return the pixels of a network's input, uint8 (size, size, channels).

    Raises DataError for a picture that can't be read, UsageError for an array or a tensor that is not a picture.
    """
    if isinstance(picture, np.ndarray) and (pixels := _checked(picture)).shape[2] == preprocess.channels:
        return preprocess.pixels(pixels)  # without a copy for Pillow
    return preprocess.pixels(opened(picture, preprocess.mode))


def opened(picture: Picture, mode: ColorMode) -> Image.Image:
    """Return the whole picture, decoded, upright and in `mode`. Raises what `pixels_of` raises."""
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
    """Return an array as (height, width, channels). Raises UsageError or DataError if it is not a picture."""
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or pixels.shape[2:] not in ((), (1,), (3,)):
        raise UsageError(
            f"the array is {pixels.dtype} {pixels.shape}; a picture is uint8 (height, width) or (height, width, 1 or "
            "3), with values from 0 to 255. Give several as a list"
        )
    if not pixels.size:
        raise DataError(f"the array has shape {pixels.shape}: it has no pixels")
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


PICTURES_PER_TASK = 4
"""Largest number of pictures in a thread's task. It is low because some pictures take much longer than others."""


def stacked(
    pictures: Sequence[Picture],
    decode: Callable[[Picture], NDArray[np.uint8]],
    *,
    shape: tuple[int, int, int],
    batch_size: int,
    threads: int,
) -> Iterator[NDArray[np.uint8]]:
    """Yield batches of decoded pictures, each of `shape`. Raises what `decode` raises for the first that can't be read.

    The task of a thread is a few pictures, because handing over one small picture takes longer than decoding it. A
    picture is copied into its batch at once, so that the next one takes its memory: new memory from the system takes as
    long as resizing.
    """

    def fill(batch: NDArray[np.uint8], first: int) -> None:
        for place in range(len(batch)):
            batch[place] = decode(pictures[first + place])

    batches = ((first, min(batch_size, len(pictures) - first)) for first in range(0, len(pictures), batch_size))
    if threads == 1:
        for first, count in batches:
            batch = np.empty((count, *shape), np.uint8)
            fill(batch, first)
            yield batch
        return
    with ThreadPoolExecutor(threads) as pool:
        for first, count in batches:
            batch = np.empty((count, *shape), np.uint8)
            share = min(PICTURES_PER_TASK, ceil(count / threads))
            starts = range(0, count, share)
            for _ in pool.map(fill, (batch[start : start + share] for start in starts), (first + s for s in starts)):
                pass
            yield batch


Decoded: TypeAlias = tuple[Path, NDArray[np.uint8] | Failure]
"""A path with the pixels of the picture, or with the reason why it can't be read."""


def decoded(
    found: Iterable[tuple[Path, str | None]],
    decode: Callable[[Path], NDArray[np.uint8]],
    *,
    workers: int,
    ahead: int,
) -> Generator[Decoded]:
    """Yield the decoded pictures of `found` (see finding.find_pictures) in their order.

    `workers` threads decode up to `ahead` pictures before they are needed.
    """

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
