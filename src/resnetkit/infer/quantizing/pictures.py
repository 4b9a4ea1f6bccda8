"""The pictures that tuning works with: some to calibrate integers by, others to judge the outcome. No torch here."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from resnetkit.data.decoding.pictures import open_picture
from resnetkit.data.folders.listing import loose_pictures, subfolders
from resnetkit.data.parts import choose_part, drawn, is_own, open_as_trained
from resnetkit.data.samples import Dataset, Samples
from resnetkit.data.transforms.preprocess import Preprocess
from resnetkit.errors import DataError
from resnetkit.files import expanded
from resnetkit.infer.choice import usable_threads
from resnetkit.infer.exports.parity import read_pixels
from resnetkit.modelfile import Header

CALIBRATION = 100
"""Pictures to calibrate with. ResNet-50 on photographs gained nothing by 300."""
SEED = 0


@dataclass(frozen=True)
class TuningPictures:
    """The pictures for making a network in 8-bit integers, and for judging its accuracy.

    Pixels are uint8 (n, size, size, channels), as Preprocess.pixels gives them.
    """

    calibration: NDArray[np.uint8] | None
    """From these come the ranges of the activations. None where only the package's own pictures are there."""
    judged: NDArray[np.uint8]
    """By these the accuracy is judged. None of them is in `calibration`."""
    labels: NDArray[np.int64] | None
    """The class of each picture in `judged`, as its index in the network's output; None where it is not known."""
    about: tuple[str, ...]
    """What was used for what, and what was left out, in words."""


@dataclass(frozen=True)
class _Pictures:
    sources: Sequence[Path] | NDArray[np.uint8]
    """Files, or arrays (height, width, channels)."""
    labels: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.sources)

    def at(self, places: NDArray[np.int64]) -> "_Pictures":
        sources = self.sources
        return _Pictures(
            sources[places] if isinstance(sources, np.ndarray) else [sources[place] for place in places],
            None if self.labels is None else self.labels[places],
        )


def read_tuning_pictures(header: Header, data: str | None, calibrate: str | None, *, most: int) -> TuningPictures:
    """Read up to CALIBRATION pictures to calibrate with and up to `most` to judge by, drawn with a fixed seed.

    `data` is cifar10, cifar100, a folder or a CSV file. With class names of the network's they judge by their labels;
    pictures in any other folder have none. What the network was trained on is divided as it was then: its validation
    pictures judge, and training pictures calibrate. What has one part only is divided. With `calibrate`, all that
    calibrates comes from there. Without either, pictures that come with the package judge, and none calibrates.

    Raises DataError where there is no such data, or too little that can be read.
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
    """The pictures of `data` that judge, and those to calibrate with; None where one part has to serve for both."""
    found = _open(header, data)
    if isinstance(found, _Pictures):
        return found, None
    undivided = found.test is None and (found.val is None or drawn(found.split))
    if undivided and not is_own(found, header.data):
        try:
            # The network has seen none of what is left of it, so any of that can judge.
            judged, apart = choose_part(found, header.data).samples, None
        except DataError:  # all of it trained the network: an error on it would say nothing, so labels are left aside
            return _pictures(found.part("all")[1]), None
    elif held_out := found.val or found.test:
        # By test only where there is no val: nothing is chosen by test pictures if there are others.
        judged, apart = held_out, found.train
    else:
        return _pictures(found.part("all")[1]), None
    own = _pictures(apart) if apart else None
    try:
        return _pictures(judged, labels=judged.as_classes(header.classes).labels), own
    except DataError:  # folders that mean something else than the network's classes
        return _pictures(judged), own


def _open(header: Header, data: str) -> "Dataset | _Pictures":
    """A set with its parts, divided as for the network's training; or the pictures of a folder without folders."""
    folder = expanded(data)
    if folder.is_dir() and not subfolders(folder) and (loose := loose_pictures(folder)):
        return _Pictures(loose)
    return open_as_trained(data, header.data)


def _pictures(samples: Samples, *, labels: NDArray[np.int64] | None = None) -> _Pictures:
    return _Pictures(samples.images if samples.images is not None else samples.paths or (), labels)


def _read(
    pictures: _Pictures, preprocess: Preprocess, *, most: int, name: str
) -> tuple[NDArray[np.uint8], NDArray[np.int64] | None, int]:
    """Pixels and labels of up to `most` pictures, and how many of those that were drawn can't be read."""
    if not len(pictures):
        raise DataError(f"{name} has too few pictures to calibrate by some and judge by others; give a hundred or more")
    drawn = pictures.at(np.random.default_rng(SEED).permutation(len(pictures))[:most])

    def pixels(place: int) -> NDArray[np.uint8] | None:
        source = drawn.sources[place]
        picture = Image.fromarray(source.squeeze()) if isinstance(source, np.ndarray) else source
        try:
            return preprocess.pixels(open_picture(picture, mode=preprocess.mode))
        except DataError:
            return None

    with ThreadPoolExecutor(usable_threads()) as pool:
        read = list(pool.map(pixels, range(len(drawn))))
    sound = [place for place, found in enumerate(read) if found is not None]
    if not sound:
        raise DataError(f"{name}: of {len(drawn)} pictures that were drawn for tuning, none can be read; give more")
    labels = None if drawn.labels is None else drawn.labels[sound]
    return np.stack([found for found in read if found is not None]), labels, len(drawn) - len(sound)
