"""The look of a picture, for comparisons: a small grey thumbnail, a hash of its content, its traits. No torch here."""

import hashlib
import struct
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from functools import partial
from tempfile import TemporaryFile
from typing import NamedTuple

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image

from resnetkit.data.decoding.opening import opened
from resnetkit.data.decoding.pictures import PictureFile
from resnetkit.data.decoding.quiet import libtiff_silent, warnings_ignored
from resnetkit.data.kept_looks import AT_ONCE, KeptLooks
from resnetkit.data.prefetch import Failure, prefetch
from resnetkit.data.samples import Samples
from resnetkit.data.shortcuts import GRID, Facts
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
MOST_COPIED = 2**26
"""Of a picture of more pixels, every second one (or third one, ...) in each direction is enough for its look."""
BLOCK = 1024
"""Number of thumbnails that are copied together."""
PICTURES_AHEAD = 16
"""Number of pictures that each worker may be ahead."""
VERSION = 1
"""Version of the kept looks."""
# EXIF 2.32: maker and model of the camera, and the program that wrote the file.
CAMERA_TAGS = (0x010F, 0x0110, 0x0131)
HEAD = struct.Struct("<IIQB")
"""Width, height, bytes of the file, and whether it is comparable."""
NO_THUMBNAIL = np.zeros((SIDE, SIDE), np.uint8)


class Traits(NamedTuple):
    """What is known of a picture besides its content: see `Facts`."""

    width: int
    height: int
    """Pixels, after EXIF rotation."""
    size: int = 0
    """Bytes of the file; 0 in memory."""
    kind: str = ""
    """Format of the file and mode of its pixels."""
    camera: str = ""
    """Camera and program that the EXIF names."""
    colours: NDArray[np.uint8] = np.zeros((GRID, GRID, 3), np.uint8)
    """uint8 (GRID, GRID, 3): mean colours of cells."""
    edges: NDArray[np.uint8] = np.zeros((4, 3), np.uint8)
    """uint8 (4, 3): mean colours at the top, bottom, left and right."""


class Look(NamedTuple):
    """The look of one picture."""

    thumbnail: NDArray[np.uint8]
    """Grey, uint8 (SIDE, SIDE); the picture is stretched to a square."""
    digest: bytes
    """Hash of the file's bytes; for a picture in memory, of its pixels."""
    comparable: bool
    """Whether both sides of the picture have LEAST_SIDE pixels or more."""
    traits: Traits | None = None
    """None for a file that can't be read."""
    fault: str = ""
    """Why it can't be read."""

    def to_bytes(self) -> bytes:
        """Return the look of a readable picture as bytes."""
        assert self.traits is not None
        own = self.traits
        head = HEAD.pack(own.width, own.height, own.size, self.comparable)
        arrays = (own.colours, own.edges, self.thumbnail)
        return head + self.digest + b"".join(map(bytes, arrays)) + f"{own.kind}\0{own.camera}".encode()

    @classmethod
    def from_bytes(cls, content: bytes) -> "Look":
        """Return the look from the result of `to_bytes`. Raises ValueError for other bytes."""
        try:
            width, height, size, comparable = HEAD.unpack_from(content)
            at = HEAD.size + DIGEST_BYTES
            arrays: list[NDArray[np.uint8]] = []
            for shape in ((GRID, GRID, 3), (4, 3), (SIDE, SIDE)):
                array = np.frombuffer(content, np.uint8, int(np.prod(shape)), at)
                arrays.append(array.reshape(shape))
                at += array.size
            kind, camera = content[at:].decode().split("\0")
        except struct.error as error:
            raise ValueError("bytes of no look") from error
        colours, edges, small = arrays
        traits = Traits(width, height, size, kind, camera, colours, edges)
        return cls(small, content[HEAD.size : HEAD.size + DIGEST_BYTES], bool(comparable), traits)


class Looks:
    """The looks of n pictures, some 1,300 bytes each. Of many pictures, the thumbnails are in a temporary file."""

    def __init__(self, pictures: int) -> None:
        """Make room for so many pictures; all are unknown at first, and unknown pictures are equal to no other."""
        shape = (pictures, SIDE, SIDE)
        self.thumbnails: NDArray[np.uint8]
        """uint8 (n, SIDE, SIDE)."""
        if pictures * SIDE * SIDE > IN_MEMORY:
            with TemporaryFile() as file:  # the map keeps the file when it is closed
                self.thumbnails = np.memmap(file, np.uint8, "w+", shape=shape)
        else:
            self.thumbnails = np.zeros(shape, np.uint8)
        self.digests = np.zeros((pictures, DIGEST_BYTES), np.uint8)
        """uint8 (n, DIGEST_BYTES): zeros for a picture whose file can't be read."""
        self.comparable = np.zeros(pictures, bool)
        """bool (n,): whether the thumbnail can be compared."""
        self.facts = Facts(pictures)
        """What is known besides the content."""

    def __len__(self) -> int:
        return len(self.comparable)

    def put(self, index: int, look: Look) -> None:
        """Set the look of one picture."""
        self.thumbnails[index] = look.thumbnail
        self.digests[index] = np.frombuffer(look.digest, np.uint8)
        self.comparable[index] = look.comparable
        if (traits := look.traits) is not None:
            facts = self.facts
            facts.known[index] = True
            facts.numbers[index] = traits.size, traits.width, traits.height
            facts.kinds[index] = facts.number_of(traits.kind), facts.number_of(traits.camera)
            facts.colours[index], facts.edges[index] = traits.colours, traits.edges

    def taken(self, order: NDArray[np.int64]) -> "Looks":
        """Return the looks of the pictures at these indices, int64 (m,), in this order."""
        looks = Looks(len(order))
        for start in range(0, len(order), BLOCK):
            block = order[start : start + BLOCK]
            looks.thumbnails[start : start + len(block)] = self.thumbnails[block]
        looks.digests, looks.comparable = self.digests[order], self.comparable[order]
        looks.facts = self.facts.taken(order)
        return looks


def look_at(parts: Sequence[Samples], *, workers: int = 4, advance: Advance = ignore) -> Looks:
    """Return the looks of all pictures of several parts, in their order. JPEG files are decoded at an eighth or so.

    `workers` threads decode; 0 decodes in the calling thread. `advance` is called with 1 after each picture. An
    unreadable picture has no thumbnail; its digest is that of its bytes. Looks of files are kept in the cache folder,
    and taken from there if path, size and time of the last change are the same.
    """
    looks = Looks(sum(map(len, parts)))
    first = 0
    for samples in parts:
        for index, look in looks_of(samples, workers=workers):
            if look.digest:
                looks.put(first + index, look)
            advance(1)
        first += len(samples)
    return looks


def looks_of(samples: Samples, *, workers: int = 4) -> Iterator[tuple[int, Look]]:
    """Yield index and look of each picture; see `look_at`. A file of which nothing can be read has an empty digest."""
    kept = KeptLooks(f"{VERSION} {SIDE} {GRID} Pillow {PIL.__version__}")
    for start in range(0, len(samples), AT_ONCE):
        block = range(start, min(start + AT_ONCE, len(samples)))
        keys = {index: key for index in block if (path := samples.path(index)) and (key := kept.key(path))}
        there: dict[int, Look] = {}
        found = kept.find(list(keys.values()))
        for index, key in keys.items():
            if key in found:
                with suppress(ValueError):
                    there[index] = Look.from_bytes(found[key])
        yield from there.items()
        fresh: dict[bytes, bytes] = {}
        missing = [index for index in block if index not in there]
        looking = prefetch(partial(look_of, samples), missing, workers=workers, ahead=PICTURES_AHEAD * workers)
        with closing(looking):
            for index, look in zip(missing, looking, strict=True):
                if isinstance(look, Failure):
                    yield index, Look(NO_THUMBNAIL, b"", comparable=False, fault=look.reason)
                    continue
                if index in keys and look.traits is not None:
                    fresh[keys[index]] = look.to_bytes()
                yield index, look
        kept.keep(fresh)


def look_of(samples: Samples, index: int) -> Look:
    """Return the look of a picture; not comparable if only its bytes can be read. Raises DataError if nothing can."""
    if samples.images is not None:
        pixels = samples.images[index]
        height, width = pixels.shape[:2]
        traits = Traits(width, height, 0, "", "", *colours_of(pixels))
        content = digest(np.ascontiguousarray(pixels).data)
        return Look(thumbnail(pixels), content, min(width, height) >= LEAST_SIDE, traits)
    path = samples.path(index)
    assert path is not None  # pictures are in memory or on disk
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(error.strerror or "can't be read", name=str(path)) from error
    return look_of_file(content)


def look_of_file(content: bytes) -> Look:
    """Return the look of the bytes of a picture file; not comparable, and black, if they are no sound picture.

    The colours are those of a decoding at about an eighth of the sides.
    """
    try:
        file = PictureFile(content)
        width, height = file.size
        pixels, _ = file.part((0, 0, width, height), at_least=SIDE)
    except DataError as error:
        return Look(NO_THUMBNAIL, digest(content), comparable=False, fault=error.reason)
    traits = Traits(width, height, len(content), *kind_and_camera(content), *colours_of(pixels))
    return Look(thumbnail(pixels), digest(content), min(width, height) >= LEAST_SIDE, traits)


def kind_and_camera(content: bytes) -> tuple[str, str]:
    """Return the kind and the camera of a picture file, as far as its header says."""
    kind, camera = "", ""
    with suppress(Exception), warnings_ignored, libtiff_silent, opened(content) as picture:
        kind = f"{picture.format} {picture.mode}"
        exif = picture.getexif()
        camera = " ".join(str(exif.get(tag, "")) for tag in CAMERA_TAGS).replace("\0", "")
    return kind, camera


def colours_of(pixels: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return the colours of the cells and of the edges (see `Facts`) of a picture, uint8 (height, width, channels)."""
    picture = _as_image(_thinned(pixels)).convert("RGB")
    colours = np.asarray(picture.resize((GRID, GRID), Image.Resampling.BOX, reducing_gap=2.0))
    rgb = np.asarray(picture)
    edges = np.stack([side.mean(axis=0) for side in (rgb[0], rgb[-1], rgb[:, 0], rgb[:, -1])]).astype(np.uint8)
    return colours, edges


def _thinned(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return every n-th row and column of a picture of very many pixels, so that it is not copied."""
    step = 1
    while pixels.shape[0] * pixels.shape[1] > MOST_COPIED * step**2:
        step += 1
    return pixels[::step, ::step]


def _as_image(pixels: NDArray[np.uint8]) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(pixels[:, :, 0] if pixels.shape[-1] == 1 else pixels))


def thumbnail(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the thumbnail, uint8 (SIDE, SIDE), of a picture, uint8 (height, width, channels)."""
    return np.asarray(_as_image(_thinned(pixels)).convert("L").resize((SIDE, SIDE), Image.Resampling.BILINEAR))


def digest(*contents: bytes | memoryview) -> bytes:
    """Return a hash of DIGEST_BYTES bytes, of the contents one after another."""
    hashed = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for content in contents:
        hashed.update(content)
    return hashed.digest()
