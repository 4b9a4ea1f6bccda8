"""Choose and read pictures to calibrate an int8 network, and other pictures to judge it. No torch here."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from resnetkit.data.folders.listing import loose_pictures, subfolders
from resnetkit.data.parts import choose_part, drawn, is_own, open_as_trained
from resnetkit.data.prefetch import Failure, prefetch
from resnetkit.data.samples import Dataset, Samples
from resnetkit.data.transforms.preprocess import Preprocess
from resnetkit.errors import DataError
from resnetkit.files import expanded
from resnetkit.infer.choice import usable_threads
from resnetkit.infer.comparison import read_pixels
from resnetkit.infer.decoding import pixels_of
from resnetkit.modelfile import Header

CALIBRATION = 100
"""Number of pictures to calibrate with. With 300, ResNet-50 was not more accurate on photographs."""
SEED = 0


@dataclass(frozen=True)
class TuningPictures:
    """The pictures to calibrate an int8 network with, and the pictures to judge its accuracy by.

    Pixels are uint8 (n, size, size, channels), from Preprocess.pixels.
    """

    calibration: NDArray[np.uint8] | None
    """Pictures that give the ranges of the activations; None if no data were given."""
    judged: NDArray[np.uint8]
    """Pictures that judge the accuracy. No picture is in both."""
    labels: NDArray[np.int64] | None
    """The class of each picture in `judged`, as its index in the network's output, (n,); None if not known."""
    about: tuple[str, ...]
    """Sentences for people: which pictures judge, which calibrate, and how many were left out."""


@dataclass(frozen=True)
class _Pictures:
    """Pictures that are not read yet."""

    sources: Sequence[Path] | NDArray[np.uint8]
    """Files, or arrays (height, width, channels)."""
    labels: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.sources)

    def at(self, indices: NDArray[np.int64]) -> "_Pictures":
        sources = self.sources
        return _Pictures(
            sources[indices] if isinstance(sources, np.ndarray) else [sources[index] for index in indices],
            None if self.labels is None else self.labels[indices],
        )


def read_tuning_pictures(header: Header, data: str | None, calibrate: str | None, *, most: int) -> TuningPictures:
    """Read up to CALIBRATION pictures to calibrate with and up to `most` to judge by, drawn with a fixed seed.

    `data` is cifar10, cifar100, a folder or a CSV file. Its labels are used if its classes are the network's. The
    network's own training data is divided as in its training: validation pictures judge, and training pictures
    calibrate. Data with only one part is divided in two. With `calibrate`, pictures of `calibrate` calibrate. Without
    `data` and `calibrate`, the 16 pictures of the package judge, and there are no pictures to calibrate with.

    Raises DataError if there is no such data, or too few pictures that can be read.
    """
    if data is None:
        data, calibrate = calibrate, None
    if data is None:
        packaged = read_pixels(None, header.preprocess)
        about = f"judged by {len(packaged)} pictures that come with the package, without labels"
        return TuningPictures(None, packaged, None, (about,))
    judged, apart = _judged(header, data)
    if calibrate is not None:
        opened = _open(header, calibrate)
        apart = opened if isinstance(opened, _Pictures) else _pictures(opened.train or opened.part("all")[1])
    if apart is None:
        order = np.random.default_rng(SEED).permutation(len(judged))
        some = min(CALIBRATION, len(judged) // 2)
        apart, judged = judged.at(order[:some]), judged.at(order[some:])
    pixels, labels, broken = _read(judged, header.preprocess, most=most, name=data)
    calibration, _, also_broken = _read(apart, header.preprocess, most=CALIBRATION, name=calibrate or data)
    about = [
        f"judged by {len(pixels)} pictures of {data} {'without' if labels is None else 'and their'} labels; "
        f"calibrated with {len(calibration)} {'others' if calibrate is None else f'of {calibrate}'}"
    ]
    if broken or also_broken:
        about.append(f"{broken + also_broken} pictures can't be read and were left out; see resnetkit data check")
    return TuningPictures(calibration, pixels, labels, tuple(about))


def _judged(header: Header, data: str) -> tuple[_Pictures, _Pictures | None]:
    """Return the pictures of `data` that judge and the pictures that calibrate; None if the first must be divided."""
    found = _open(header, data)
    if isinstance(found, _Pictures):
        return found, None
    undivided = found.test is None and (found.val is None or drawn(found.split))
    if undivided and not is_own(found, header.data):
        try:
            # The network was not trained on this part, so all of its pictures can judge.
            judged, apart = choose_part(found, header.data).samples, None
        except DataError:  # the network was trained on all of it, so its labels can't judge
            return _pictures(found.part("all")[1]), None
    elif held_out := found.val or found.test:
        # Test pictures judge only if there are no validation pictures: no choice should depend on test pictures.
        judged, apart = held_out, found.train
    else:
        return _pictures(found.part("all")[1]), None
    own = _pictures(apart) if apart else None
    if header.multilabel:
        return _pictures(judged), own
    try:
        return _pictures(judged, labels=judged.as_classes(header.classes).labels), own
    except DataError:  # the folders are not the network's classes
        return _pictures(judged), own


def _open(header: Header, data: str) -> "Dataset | _Pictures":
    """Open a data set, divided as in the network's training, or the pictures of a folder without class folders."""
    folder = expanded(data)
    if folder.is_dir() and not subfolders(folder) and (loose := loose_pictures(folder)):
        return _Pictures(loose)
    return open_as_trained(data, header.data)


def _pictures(samples: Samples, *, labels: NDArray[np.int64] | None = None) -> _Pictures:
    return _Pictures(samples.images if samples.images is not None else samples.paths or (), labels)


def _read(
    pictures: _Pictures, preprocess: Preprocess, *, most: int, name: str
) -> tuple[NDArray[np.uint8], NDArray[np.int64] | None, int]:
    """Return pixels and labels of up to `most` pictures, drawn with SEED, and how many of them can't be read."""
    if not len(pictures):
        raise DataError(f"{name} has too few pictures: some must calibrate and others judge; give a hundred or more")
    drawn = pictures.at(np.random.default_rng(SEED).permutation(len(pictures))[:most])
    pixels: list[NDArray[np.uint8]] = []
    sound: list[int] = []
    # All results are kept, so the threads may read all pictures ahead.
    reading = prefetch(
        partial(pixels_of, preprocess=preprocess), drawn.sources, workers=usable_threads(), ahead=len(drawn)
    )
    for place, found in enumerate(reading):
        if not isinstance(found, Failure):
            pixels.append(found)
            sound.append(place)
    if not sound:
        raise DataError(f"{name}: none of the {len(drawn)} pictures that were drawn can be read; give more pictures")
    labels = None if drawn.labels is None else drawn.labels[sound]
    return np.stack(pixels), labels, len(drawn) - len(sound)
