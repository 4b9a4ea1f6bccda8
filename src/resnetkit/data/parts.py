"""Choose the pictures of a data set that measure a model: pictures that did not train it, unless the user names a part.

A model file contains marks, short hashes, of its training pictures. They show which pictures of another data set
trained the model. This module does not import torch.
"""

import hashlib
from base64 import b64decode, b64encode
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnetkit.data.dataset import open_read
from resnetkit.data.division import Keeping
from resnetkit.data.reading import NOTHING, Reading, UnfitError, reading_of
from resnetkit.data.samples import Dataset, Samples
from resnetkit.errors import DataError

KEPT = 8192
"""Largest number of marks in a model file. For more training pictures, the smallest marks are kept."""
MARK_BYTES = 6
"""Number of bytes of a mark, which is a whole number of 48 bits."""
TAIL_BYTES = 4096
"""Number of bytes at the end of a file that are hashed. The beginning may be the same in all files of a camera."""
UNKNOWN = np.uint64(2**64 - 1)
"""The mark of a picture that was not read."""
STRAY = 0.01
"""If only a sample of the marks is kept: largest share (0 to 1) of known training pictures in a part that is used
without them. Large data sets contain a few pictures twice."""


@dataclass(frozen=True)
class Part:
    """The pictures of a data set that measure a model."""

    name: str
    """train, val, test or all."""
    of: str
    """Name of the data set."""
    samples: Samples
    why: str
    """The reason for the choice, for people."""
    trained_on: int = 0
    """Number of these pictures that are known to have trained the model."""


def open_as_trained(
    data: str, trained_on: Mapping[str, Any], *, strict: bool = False, reading: Reading = NOTHING
) -> Dataset:
    """Open `data`, with train and val divided as in the training of a model.

    `trained_on` is the model's `header.data`. `reading` is the layout of a folder or list. If no field of it is set,
    the data are read with the layout of the model's own data, if it fits; a list is then read as one with several
    labels, if the model has such. Raises the errors of `open_dataset`.
    """
    recorded = trained_on.get("split", {})
    division = {name: recorded[name] for name in ("train_split", "val_fraction", "seed") if name in recorded}
    if recorded.get("rule") == "as given":  # val was not drawn in training, so it is not drawn here
        division["val_fraction"] = 0.0
    keeping = Keeping(moved=recorded.get("moved", ""))  # the same division, without looking at the pictures again
    recorded_reading = recorded.get("read_as", {})
    if recorded.get("labels") == "several" and reading.labels is None:  # in few pictures, none may have two labels
        recorded_reading = {"labels": "several"} | recorded_reading
    if recorded_reading and not reading.recorded():
        with suppress(UnfitError):  # these data have other folders or columns
            return open_read(
                data, reading_of(recorded_reading | reading.given()), strict=strict, keeping=keeping, **division
            )
    return open_read(data, reading, strict=strict, keeping=keeping, **division)


def choose_part(dataset: Dataset, trained_on: Mapping[str, Any], name: str = "auto") -> Part:
    """Return the pictures of `dataset` that measure a model; `trained_on` is its `header.data`.

    "auto" is the part that `Dataset.part` chooses, without pictures that trained the model. For the data set that
    trained the model, it is a part that training did not use. For another data set, pictures whose marks `record`
    stored are left out; names of files and folders do not matter. Any other name returns that whole part.

    Raises DataError for a part that does not exist, and for "auto" if all pictures trained the model, or more than
    STRAY of them if the model file has only a sample of the marks.
    """
    chosen, samples = dataset.part(name)
    own = is_own(dataset, trained_on)
    if name != "auto":
        counted = _known_in(chosen, samples, dataset, trained_on, own=own)
        return Part(chosen, dataset.name, samples, "asked for by name", counted)
    if own:
        if chosen == "all" and dataset.val is not None:
            why = "the pictures that training kept out; the others trained the model"
            return Part("val", dataset.name, dataset.val, why)
        if chosen == "all":
            raise _refusal(dataset, "all of its pictures trained the model")
        return Part(chosen, dataset.name, samples, f"the {chosen} part of the set that the model was trained on")
    known = recognise(samples, trained_on)
    if not known.mask.any():
        return Part(chosen, dataset.name, samples, _why_another(chosen, trained_on))
    if known.complete or known.share <= STRAY:
        rest = samples.subset(np.flatnonzero(~known.mask))
        if len(rest):
            count = int(known.mask.sum())
            why = f"without the {count} of {len(samples)} that trained the model, which are recognised by their content"
            return Part(chosen, dataset.name, rest, why)
    elif chosen == "all" and dataset.val is not None and not recognise(dataset.val, trained_on).mask.any():
        why = "the pictures that the model's own division keeps out; other pictures of the set trained the model"
        return Part("val", dataset.name, dataset.val, why)
    raise _refusal(dataset, f"{known.mask.sum()} of its pictures or more trained the model")


def is_own(dataset: Dataset, trained_on: Mapping[str, Any]) -> bool:
    """Whether the training pictures of `dataset` are those of the model, by their fingerprint; folders may differ."""
    recorded = trained_on.get("fingerprint")
    return bool(recorded) and dataset.train is not None and dataset.train.fingerprint() == recorded


def drawn(split: Mapping[str, Any]) -> bool:
    """Whether val was drawn from the training pictures; `split` is `Dataset.split`."""
    return bool({"val_fraction", "train_split"} & split.keys())


def _why_another(chosen: str, trained_on: Mapping[str, Any]) -> str:
    """Return the reason for a part of a data set without known training pictures."""
    none = "none of its pictures is known to have trained the model"
    if not trained_on.get("fingerprint"):
        none = "the model's file does not say which pictures trained it"
    return f"the set's own {chosen} part; {none}" if chosen != "all" else f"the set has no parts; {none}"


def _refusal(dataset: Dataset, why: str) -> DataError:
    return DataError(f"{dataset.name}: {why}; give pictures that did not train it, or measure these with `split` all")


def _known_in(chosen: str, samples: Samples, dataset: Dataset, trained_on: Mapping[str, Any], *, own: bool) -> int:
    """Return the number of pictures in a part that are known to have trained the model."""
    if own:
        return len(dataset.train or ()) if chosen in ("train", "all") else 0
    return int(recognise(samples, trained_on).mask.sum())


# Marks of training pictures in a model file


@dataclass(frozen=True)
class Recognised:
    """The pictures of a data set that are known to have trained a model."""

    mask: NDArray[np.bool_]
    """bool (n,): whether a picture is known to have trained the model."""
    share: float
    """Known training pictures, divided by all pictures whose mark is small enough to be kept; 0 to 1."""
    complete: bool
    """Whether the model file contains the marks of all training pictures, not only the smallest ones."""


def record(samples: Samples, *earlier: Mapping[str, Any]) -> dict[str, Any]:
    """Return the record of training pictures, as values for JSON: {"marks": base64, "complete": bool}.

    `earlier` are records to include: those of the weights that training began with. A mark has six bytes, one from the
    file's size and five from its content. The smallest KEPT marks are kept. So two records can be merged, and only the
    files with small marks are read.
    """
    sizes = _sizes(samples)
    first_bytes = np.zeros(0, int) if sizes is None else _first_bytes(sizes)
    enough = np.bincount(first_bytes, minlength=256).cumsum() >= KEPT
    marks = _marks(samples, sizes, up_to=int(enough.argmax()) if enough.any() else 255)
    complete = len(samples) <= KEPT
    for one in earlier:
        others, others_complete = _kept(one)
        marks, complete = np.concatenate([marks, others]), complete and others_complete
    marks = np.unique(marks[marks != UNKNOWN])
    kept = marks[:KEPT].astype(">u8").tobytes()
    packed = b"".join(kept[place + 8 - MARK_BYTES : place + 8] for place in range(0, len(kept), 8))
    return {"marks": b64encode(packed).decode(), "complete": complete and len(marks) <= KEPT}


def recognise(samples: Samples, trained_on: Mapping[str, Any]) -> Recognised:
    """Find the pictures in `samples` that trained a model, by their content; `trained_on` is its `header.data`."""
    kept, complete = _kept(trained_on.get("pictures"))
    if not len(kept) or not len(samples):
        return Recognised(np.zeros(len(samples), bool), 0.0, complete)
    most = UNKNOWN - np.uint64(1) if complete else kept[-1]
    up_to = 255 if complete else int(most) >> 8 * (MARK_BYTES - 1)
    marks = _marks(samples, _sizes(samples), up_to=up_to)
    mask = np.isin(marks, kept)
    return Recognised(mask, float(mask.sum() / max(int((marks <= most).sum()), 1)), complete)


def _kept(recorded: object) -> tuple[NDArray[np.uint64], bool]:
    """Return the sorted marks of a record, uint64 (m,), and whether they are complete; no marks for other values."""
    try:
        if not isinstance(recorded, Mapping):
            return np.zeros(0, np.uint64), False
        packed = np.frombuffer(b64decode(recorded["marks"], validate=True), np.uint8).reshape(-1, MARK_BYTES)
        complete = recorded["complete"] is True
    except (KeyError, TypeError, ValueError):
        return np.zeros(0, np.uint64), False
    wide = np.zeros((len(packed), 8), np.uint8)
    wide[:, 8 - MARK_BYTES :] = packed
    return np.sort(wide.view(">u8")[:, 0].astype(np.uint64)), complete


def _sizes(samples: Samples) -> NDArray[np.uint64] | None:
    """Return the size of each file in bytes, uint64 (n,), 0 for a missing file; None for pictures in memory."""
    if samples.paths is None:
        return None

    def size(path: Path) -> int:
        return path.stat().st_size if path.exists() else 0

    with ThreadPoolExecutor() as pool:
        return np.array(list(pool.map(size, samples.paths)), np.uint64)


def _first_bytes(sizes: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Return the first byte of each mark, int64 (n,), from the sizes in bytes.

    A size is multiplied by 2^32 divided by the golden ratio, so that all bytes are equally frequent.
    """
    return ((sizes * np.uint64(2654435769)) % np.uint64(2**32) >> np.uint64(24)).astype(np.int64)


def _marks(samples: Samples, sizes: NDArray[np.uint64] | None, *, up_to: int) -> NDArray[np.uint64]:
    """Return the marks, uint64 (n,); UNKNOWN if the first byte is larger than `up_to` or the file can't be read."""
    if sizes is None or samples.paths is None:
        pictures = samples.images if samples.images is not None else ()
        # All pictures have the same size, so all six bytes come from the content.
        return np.array([_hash(np.ascontiguousarray(picture).data, MARK_BYTES) for picture in pictures], np.uint64)
    marks = np.full(len(samples), UNKNOWN)
    first_bytes = _first_bytes(sizes)
    places = np.flatnonzero(first_bytes <= up_to)
    paths = samples.paths

    def content(place: int) -> int | None:
        try:
            with paths[place].open("rb", buffering=0) as file:
                file.seek(max(0, int(sizes[place]) - TAIL_BYTES))
                return _hash(file.read(TAIL_BYTES), MARK_BYTES - 1)
        except OSError:
            return None

    with ThreadPoolExecutor() as pool:
        for place, found in zip(places, pool.map(content, places), strict=True):
            if found is not None:
                marks[place] = np.uint64((int(first_bytes[place]) << 8 * (MARK_BYTES - 1)) | found)
    return marks


def _hash(content: "bytes | memoryview", size: int) -> int:
    """Return a hash of `size` bytes as a number."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=size).digest(), "big")
