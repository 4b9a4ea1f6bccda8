"""Pictures to labelled probabilities, with the preprocessing and the class names that the model file brings."""

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, overload

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from resnetkit.data.folder import PICTURE_SUFFIXES
from resnetkit.data.pictures import open_picture
from resnetkit.errors import DataError, UsageError
from resnetkit.modelfile import Model, load
from resnetkit.precision import exact_float32

Picture: TypeAlias = str | Path | bytes | Image.Image | NDArray[np.uint8]
"""A path, an encoded file, an opened picture, or uint8 values of shape (height, width), (height, width, 1 or 3)."""


class Prediction(NamedTuple):
    """One class and how probable it is."""

    label: str
    index: int
    """Place of the class in the network's output."""
    probability: float
    """0 to 1; over all classes they sum to 1."""


class Predictor:
    """A model ready to predict, in float32 and in evaluation mode.

    The same picture gets the same probabilities, but for rounding in the last digits, whatever it is batched with.
    """

    def __init__(self, model: str | Path | Model, *, device: str | None = None) -> None:
        """Take a model file, a run folder or a loaded model; `device` is a GPU where there is one, unless given."""
        loaded = model if isinstance(model, Model) else load(model)
        self.classes = loaded.header.classes
        self.preprocess = loaded.header.preprocess
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        net = deepcopy(loaded.net) if isinstance(model, Model) else loaded.net  # the caller may go on training theirs
        self._net = net.eval().float().to(self.device).to(memory_format=torch.channels_last)

    @overload
    def __call__(self, pictures: Picture, *, top: int = 5) -> list[Prediction]: ...

    @overload
    def __call__(self, pictures: Sequence[Picture], *, top: int = 5) -> list[list[Prediction]]: ...

    def __call__(
        self, pictures: Picture | Sequence[Picture], *, top: int = 5
    ) -> list[Prediction] | list[list[Prediction]]:
        """Return the `top` most probable classes, best first: a list for one picture, a list of lists for several.

        Raises DataError naming the first picture that can't be read, and UsageError for an array that is no picture.
        """
        if isinstance(pictures, str | Path | bytes | Image.Image | np.ndarray):
            return self([pictures], top=top)[0]
        return self.predict_pixels([self._pixels(picture) for picture in pictures], top=top)

    def predict_pixels(self, pixels: Sequence[NDArray[np.uint8]], *, top: int = 5) -> list[list[Prediction]]:
        """Predict one batch of what `preprocess.pixels` returned, each of shape (size, size, channels)."""
        _check_least(top=top)
        if not pixels:
            return []
        images = torch.from_numpy(self.preprocess.normalize(np.stack(pixels)))
        with torch.inference_mode(), exact_float32():
            logits = self._net(images.to(self.device, memory_format=torch.channels_last))
            probabilities, indices = logits.softmax(dim=1).sort(dim=1, descending=True, stable=True)
        return [
            [Prediction(self.classes[i], i, p) for i, p in zip(best[:top], row[:top], strict=True)]
            for best, row in zip(indices.tolist(), probabilities.tolist(), strict=True)
        ]

    def predict_paths(
        self, paths: Iterable[str | Path], *, top: int = 5, batch_size: int = 32, workers: int = 0
    ) -> Iterator[dict[str, Any]]:
        """Predict files, folders (with what is in their folders) and globs, one result per picture as batches are done.

        A result is {"path", "predictions": [{"label", "index", "probability"}]}, or {"path", "error"} for what can't be
        read or found. `workers` threads decode ahead of the network; memory holds two batches, however many the paths.
        """
        _check_least(top=top, batch_size=batch_size)
        if workers < 0:
            raise UsageError(f"--workers is {workers}; it must be at least 0")
        return self._results(paths, top=top, batch_size=batch_size, workers=workers)

    def _results(
        self, paths: Iterable[str | Path], *, top: int, batch_size: int, workers: int
    ) -> Iterator[dict[str, Any]]:
        decoded = self._decoded(find_pictures(paths), workers=workers, ahead=batch_size)
        while batch := list(islice(decoded, batch_size)):
            predictions = iter(self.predict_pixels([p for _, p in batch if not isinstance(p, str)], top=top))
            for path, pixels in batch:
                if isinstance(pixels, str):
                    yield {"path": str(path), "error": pixels}
                else:
                    yield {"path": str(path), "predictions": [best._asdict() for best in next(predictions)]}

    def _pixels(self, picture: Picture) -> NDArray[np.uint8]:
        source = _as_picture(picture) if isinstance(picture, np.ndarray) else picture
        source = Path(source) if isinstance(source, str) else source
        return self.preprocess.pixels(open_picture(source, mode=self.preprocess.mode))

    def _decode(self, found: tuple[Path, str | None]) -> tuple[Path, NDArray[np.uint8] | str]:
        path, error = found
        try:
            return path, error or self._pixels(path)
        except DataError as problem:
            return path, str(problem).removeprefix(f"{path}: ")

    def _decoded(
        self, found: Iterable[tuple[Path, str | None]], *, workers: int, ahead: int
    ) -> Iterator[tuple[Path, NDArray[np.uint8] | str]]:
        """Every path with its pixels, or with what is wrong with it, in order."""
        if not workers:
            yield from map(self._decode, found)
            return
        with ThreadPoolExecutor(workers) as pool:
            waiting = deque()
            for item in found:
                waiting.append(pool.submit(self._decode, item))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()


def _as_picture(pixels: NDArray[Any]) -> Image.Image:
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or pixels.shape[2:] not in ((), (1,), (3,)):
        raise UsageError(
            f"the array is {pixels.dtype} {pixels.shape}; a picture is uint8 (height, width) or (height, width, 1 or "
            "3), with values from 0 to 255. Give several as a list"
        )
    if not pixels.size:
        raise DataError(f"the array is {pixels.shape}: a picture without pixels")
    return Image.fromarray(pixels.reshape(pixels.shape[:2]) if pixels.shape[2:] == (1,) else pixels)


def _check_least(**values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise UsageError(f"--{name.replace('_', '-')} is {value}; it must be at least 1")


def find_pictures(paths: Iterable[str | Path]) -> Iterator[tuple[Path, str | None]]:
    """Resolve files, folders and globs to pictures, each with None, or with the reason why there is none.

    In a folder, files count as pictures by their suffix; a file that is named or matched is taken as one anyway.
    """
    for text in map(str, paths):
        matches = [Path(text)] if os.path.lexists(text) else _matches(Path(text))
        if not matches:
            yield Path(text), "no such file or folder, and nothing matches it"
        for match in matches:
            if not match.is_dir():
                yield match, None
                continue
            pictures = _pictures_below(match)
            first = next(pictures, None)
            if first is None:
                yield match, f"no pictures in this folder; they end in {', '.join(sorted(PICTURE_SUFFIXES))}"
                continue
            yield first, None
            yield from ((picture, None) for picture in pictures)


def _matches(pattern: Path) -> list[Path]:
    """What a glob matches, without hidden files, as in a shell."""
    try:
        found = sorted(Path(pattern.anchor).glob(str(pattern.relative_to(pattern.anchor))))
    except (ValueError, IndexError, NotImplementedError):  # what pathlib takes for no pattern: a**, or nothing
        return []
    return [path for path in found if not path.name.startswith(".")]


def _pictures_below(folder: Path) -> Iterator[Path]:
    for where, folders, files in os.walk(folder):
        folders.sort()
        for name in sorted(files):
            if Path(name).suffix.lower() in PICTURE_SUFFIXES and not name.startswith("."):
                yield Path(where, name)
