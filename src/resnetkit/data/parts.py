"""Which pictures of a set measure a model: none that trained it, unless a part is asked for by name. No torch here."""

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
from resnetkit.data.reading import NOTHING, Reading, UnfitError, reading_of
from resnetkit.data.samples import Dataset, Samples
from resnetkit.errors import DataError

KEPT = 8192
"""Most marks that a model file keeps. Of a larger training set it keeps the smallest ones."""
MARK_BYTES = 6
TAIL_BYTES = 4096
"""Bytes at the end of a file that its mark is made from. The beginning may be the same in all files of a camera."""
UNKNOWN = np.uint64(2**64 - 1)
"""The mark of a picture that was not read."""
STRAY = 0.01
"""Share of a part that may be known training pictures where only a sample of marks is kept: large sets do hold a few
pictures twice."""


@dataclass(frozen=True)
class Part:
    """Pictures of a set that a model is measured on."""

    name: str
    """train, val, test or all."""
    of: str
    """The set's name."""
    samples: Samples
    why: str
    """Why these, in words."""
    trained_on: int = 0
    """How many of them are known to have trained the model."""


def open_as_trained(
    data: str, trained_on: Mapping[str, Any], *, strict: bool = False, reading: Reading = NOTHING
) -> Dataset:
    """Open `data`, with training and validation pictures divided as they were when the model was trained.

    `trained_on` is the model's `header.data`. `reading` says how a folder or a list is read; unset, it is read as the
    model's own was, where it can be. Raises what `open_dataset` raises.
    """
    recorded = trained_on.get("split", {})
    division = {name: recorded[name] for name in ("train_split", "val_fraction", "seed") if name in recorded}
    if recorded.get("rule") == "as given":  # nothing was drawn then, so nothing is drawn now
        division["val_fraction"] = 0.0
    recorded_reading = recorded.get("read_as", {})
    if recorded_reading and not reading.recorded():
        with suppress(UnfitError):  # other data, with other folders or columns
            return open_read(data, reading_of(recorded_reading | reading.given()), strict=strict, **division)
    return open_read(data, reading, strict=strict, **division)


def choose_part(dataset: Dataset, trained_on: Mapping[str, Any], name: str = "auto") -> Part:
    """The pictures of `dataset` that measure a model; `trained_on` is its `header.data`.

    "auto" is test, else the val that came with the set, else all, and never a picture that trained the model: of the
    model's own set it is what training kept out. Of another set, pictures that `record` has seen are left out, whatever
    the names of their files and folders are now. A part that is asked for by name is returned as it is.

    Raises DataError for a part that is not there, and for "auto" where only pictures that trained the model are left.
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
            why = f"without the {count} of {len(samples)} that trained the model, which are known by their content"
            return Part(chosen, dataset.name, rest, why)
    elif chosen == "all" and dataset.val is not None and not recognise(dataset.val, trained_on).mask.any():
        why = "what the model's own division keeps out; other pictures of the set trained the model"
        return Part("val", dataset.name, dataset.val, why)
    raise _refusal(dataset, f"{known.mask.sum()} of its pictures or more trained the model")


def is_own(dataset: Dataset, trained_on: Mapping[str, Any]) -> bool:
    """Whether the training pictures of `dataset` are those of the model, wherever they are now."""
    recorded = trained_on.get("fingerprint")
    return bool(recorded) and dataset.train is not None and dataset.train.fingerprint() == recorded


def drawn(split: Mapping[str, Any]) -> bool:
    """Whether validation pictures were drawn from the training pictures of a set that came without them."""
    return bool({"val_fraction", "train_split"} & split.keys())


def _why_another(chosen: str, trained_on: Mapping[str, Any]) -> str:
    none = "none of its pictures is known to have trained the model"
    if not trained_on.get("fingerprint"):
        none = "the model's file does not say which pictures trained it"
    return f"the set's own {chosen} part; {none}" if chosen != "all" else f"the set has no parts; {none}"


def _refusal(dataset: Dataset, why: str) -> DataError:
    return DataError(f"{dataset.name}: {why}; give pictures that it has not seen, or `split` all to count them anyway")


def _known_in(chosen: str, samples: Samples, dataset: Dataset, trained_on: Mapping[str, Any], *, own: bool) -> int:
    if own:
        return len(dataset.train or ()) if chosen in ("train", "all") else 0
    return int(recognise(samples, trained_on).mask.sum())


# What a model file records of its training pictures, so that they are recognised later.


@dataclass(frozen=True)
class Recognised:
    """Which pictures of a set are known to have trained a model."""

    mask: NDArray[np.bool_]
    """Shape (n,)."""
    share: float
    """Known training pictures over all pictures whose mark is low enough to be kept; 0 to 1."""
    complete: bool
    """Whether the marks of all training pictures are kept, and not only a sample."""


def record(samples: Samples, *earlier: Mapping[str, Any]) -> dict[str, Any]:
    """The record of training pictures, as JSON has it, merged with `earlier` records, those of its first weights.

    A mark is six bytes: one from the file's size, five from its content. The smallest KEPT are kept. So two records
    merge into one of all their pictures, and of a large set only the files with small marks are read.
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
    """Which of `samples` trained the model whose `header.data` is `trained_on`, by their content alone."""
    kept, complete = _kept(trained_on.get("pictures"))
    if not len(kept) or not len(samples):
        return Recognised(np.zeros(len(samples), bool), 0.0, complete)
    most = UNKNOWN - np.uint64(1) if complete else kept[-1]
    up_to = 255 if complete else int(most) >> 8 * (MARK_BYTES - 1)
    marks = _marks(samples, _sizes(samples), up_to=up_to)
    mask = np.isin(marks, kept)
    return Recognised(mask, float(mask.sum() / max(int((marks <= most).sum()), 1)), complete)


def _kept(recorded: object) -> tuple[NDArray[np.uint64], bool]:
    """Sorted marks, and whether they are all there were; none for what is no record."""
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
    """The size of each file in bytes, 0 where there is none; None for pictures in memory."""
    if samples.paths is None:
        return None

    def size(path: Path) -> int:
        return path.stat().st_size if path.exists() else 0

    with ThreadPoolExecutor() as pool:
        return np.array(list(pool.map(size, samples.paths)), np.uint64)


def _first_bytes(sizes: NDArray[np.uint64]) -> NDArray[np.int64]:
    """The first byte of a mark, from the size alone: multiplied by 2^32 over the golden ratio, to spread it."""
    return ((sizes * np.uint64(2654435769)) % np.uint64(2**32) >> np.uint64(24)).astype(np.int64)


def _marks(samples: Samples, sizes: NDArray[np.uint64] | None, *, up_to: int) -> NDArray[np.uint64]:
    """Shape (n,); UNKNOWN for a first byte over `up_to`, and for what can't be read."""
    if sizes is None or samples.paths is None:
        pictures = samples.images if samples.images is not None else ()
        # All are of one size, which says nothing: six bytes of content.
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
    return int.from_bytes(hashlib.blake2b(content, digest_size=size).digest(), "big")
