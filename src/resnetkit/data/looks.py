"""The look of a picture, for comparisons: a small grey thumbnail and a hash of its content. No torch here."""

import hashlib
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from tempfile import TemporaryFile
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from resnetkit.data.decoding.pictures import PictureFile
from resnetkit.data.prefetch import Failure, prefetch
from resnetkit.data.samples import Samples
from resnetkit.errors import DataError
from resnetkit.progress import Advance, ignore

SIDE = 32
"""Height and width of a thumbnail, in pixels. Differences that are smaller than 1/32 of a picture are not seen."""
DIGEST_BYTES = 16
"""Number of bytes of a hash."""
LEAST_SIDE = 8
"""Pictures with a side of fewer pixels show too little for a comparison of their looks."""
IN_MEMORY = 2**24
"""Thumbnails of more bytes than this are kept in a temporary file, so that the memory does not grow with the set."""
BLOCK = 1024
"""Number of thumbnails that are copied together."""
PICTURES_AHEAD = 16
"""Number of pictures that each worker may be ahead."""


class Look(NamedTuple):
    """The look of one picture."""

    thumbnail: NDArray[np.uint8]
    """Grey, uint8 (SIDE, SIDE); the picture is stretched to a square."""
    digest: bytes
    """Hash of the file's bytes; for a picture in memory, of its pixels."""
    comparable: bool
    """Whether both sides of the picture have LEAST_SIDE pixels or more."""


class Looks:
    """The looks of n pictures, some 1,050 bytes each. Of many pictures, the thumbnails are in a temporary file."""

    def __init__(self, pictures: int) -> None:
        """Make room for so many pictures; all are unknown at first, and unknown pictures are equal to no other."""
        shape = (pictures, SIDE, SIDE)
        self.thumbnails: NDArray[np.uint8]
        """uint8 (n, SIDE, SIDE)."""
        if pictures * SIDE * SIDE > IN_MEMORY:
            self._file = TemporaryFile()  # noqa: SIM115 -- it lives as long as the looks
            self.thumbnails = np.memmap(self._file, np.uint8, "w+", shape=shape)
        else:
            self.thumbnails = np.zeros(shape, np.uint8)
        self.digests = np.zeros((pictures, DIGEST_BYTES), np.uint8)
        """uint8 (n, DIGEST_BYTES): zeros for a picture whose file can't be read."""
        self.comparable = np.zeros(pictures, bool)
        """bool (n,): whether the thumbnail can be compared."""

    def __len__(self) -> int:
        return len(self.comparable)

    def put(self, index: int, look: Look) -> None:
        """Set the look of one picture."""
        self.thumbnails[index] = look.thumbnail
        self.digests[index] = np.frombuffer(look.digest, np.uint8)
        self.comparable[index] = look.comparable

    def taken(self, order: NDArray[np.int64]) -> "Looks":
        """Return the looks of the pictures at these indices, int64 (m,), in this order."""
        looks = Looks(len(order))
        for start in range(0, len(order), BLOCK):
            block = order[start : start + BLOCK]
            looks.thumbnails[start : start + len(block)] = self.thumbnails[block]
        looks.digests, looks.comparable = self.digests[order], self.comparable[order]
        return looks


def look_at(parts: Sequence[Samples], *, workers: int = 4, advance: Advance = ignore) -> Looks:
    """Return the looks of all pictures of several parts, in their order. JPEG files are decoded at an eighth or so.

    `workers` threads decode; 0 decodes in the calling thread. `advance` is called with 1 after each picture. An
    unreadable picture has no thumbnail; its digest is that of its bytes.
    """
    looks = Looks(sum(map(len, parts)))
    first = 0
    for samples in parts:
        looking = prefetch(
            partial(look_of, samples), range(len(samples)), workers=workers, ahead=PICTURES_AHEAD * workers
        )
        with closing(looking):
            for index, look in enumerate(looking, first):
                if not isinstance(look, Failure):
                    looks.put(index, look)
                advance(1)
        first += len(samples)
    return looks


def look_of(samples: Samples, index: int) -> Look:
    """Return the look of a picture; not comparable if only its bytes can be read. Raises DataError if nothing can."""
    if samples.images is not None:
        pixels = samples.images[index]
        return Look(thumbnail(pixels), digest(np.ascontiguousarray(pixels).data), min(pixels.shape[:2]) >= LEAST_SIDE)
    path = samples.path(index)
    assert path is not None  # pictures are in memory or on disk
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(error.strerror or "can't be read", name=str(path)) from error
    return look_of_file(content)


def look_of_file(content: bytes) -> Look:
    """Return the look of the bytes of a picture file; not comparable, and black, if they are no sound picture."""
    try:
        file = PictureFile(content)
        width, height = file.size
        pixels, _ = file.part((0, 0, width, height), at_least=SIDE)
        return Look(thumbnail(pixels), digest(content), min(width, height) >= LEAST_SIDE)
    except DataError:
        return Look(np.zeros((SIDE, SIDE), np.uint8), digest(content), comparable=False)


def thumbnail(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the thumbnail, uint8 (SIDE, SIDE), of a picture, uint8 (height, width, channels)."""
    picture = Image.fromarray(np.ascontiguousarray(pixels[:, :, 0] if pixels.shape[-1] == 1 else pixels))
    return np.asarray(picture.convert("L").resize((SIDE, SIDE), Image.Resampling.BILINEAR))


def digest(content: bytes | memoryview) -> bytes:
    """Return a hash of DIGEST_BYTES bytes."""
    return hashlib.blake2b(content, digest_size=DIGEST_BYTES).digest()
