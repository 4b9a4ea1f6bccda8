"""ImageNet's development kit of 2012: the table of its class numbers, meta.mat."""

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from resnetkit.data.imagenet import wnid_places
from resnetkit.errors import DataError

GROUND_TRUTH = "ilsvrc2012_validation_ground_truth"
"""Name of the list of the validation pictures' classes, in lower case: a class number per line, sorted by picture."""
PICTURE = "ILSVRC2012_val_{:08d}.JPEG"
META = "meta.mat"
MOST_BYTES = 2**26
"""Largest number of bytes that are read from meta.mat."""
COMPRESSED, MATRIX, STRUCT = 15, 14, 2
"""Types of elements (the first two) and of an array in a MAT-file."""
WIDTHS = {1: "b", 2: "B", 3: "h", 4: "H", 5: "i", 6: "I", 9: "d", 12: "q", 13: "Q", 16: "B"}
"""Type of an element in a MAT-file -> the letter of its numbers in `struct` (MathWorks, MAT-File Format, version 5)."""


def wnids_by_number(folder: Path) -> dict[int, str]:
    """Return the WordNet number of each class number, 1 to 1000, from the meta.mat in `folder`.

    Raises DataError if the file is missing, broken, or belongs to another data set.
    """
    path = folder / META
    try:
        found = dict(_synsets(path.read_bytes()[:MOST_BYTES]))
    except OSError as error:
        raise DataError(
            f"{path} can't be read: {error.strerror}; it contains the meaning of the numbers. Copy it from the kit, "
            "or give a list of paths with classes: Caffe's val.txt, or Kaggle's LOC_val_solution.csv"
        ) from None
    except (struct.error, zlib.error, TypeError, ValueError, KeyError, IndexError, UnicodeError) as error:
        raise DataError(f"{path} is not the kit's table of classes ({error}); get it again") from None
    known = {number: wnid for number, wnid in found.items() if 1 <= number <= len(wnid_places())}
    if set(known.values()) != set(wnid_places()):
        raise DataError(
            f"{path} belongs to another data set: it does not number ImageNet's 1,000 classes; get the file of 2012"
        )
    return known


class _Element(NamedTuple):
    """An element of a MAT-file: its type and its bytes."""

    kind: int
    content: bytes


def _elements(content: bytes) -> Iterator[_Element]:
    """Yield the elements in the content of a MAT-file, or in the content of an element."""
    place = 0
    while place + 8 <= len(content):
        kind, size = struct.unpack_from("<II", content, place)
        if kind >> 16:  # a small element: its content is where its size would be
            yield _Element(kind & 0xFFFF, content[place + 4 : place + 4 + (kind >> 16)])
            place += 8
            continue
        held = content[place + 8 : place + 8 + size]
        if len(held) < size:
            raise ValueError("it is incomplete")
        yield _Element(kind, held)
        place += 8 + size + (0 if kind == COMPRESSED else -size % 8)


def _synsets(content: bytes) -> Iterator[tuple[int, str]]:
    """Yield the class number and the WordNet number of each entry in the first struct array."""
    for kind, held in _elements(content[128:]):
        if kind == COMPRESSED:
            ((kind, held),) = _elements(zlib.decompressobj().decompress(held, MOST_BYTES))
        if kind != MATRIX:
            continue
        flags, dimensions, _, *rest = _elements(held)
        if flags.content[0] != STRUCT:
            continue
        width, names = _numbers(rest[0])[0], rest[1].content
        fields = [names[i : i + width].rstrip(b"\0").decode() for i in range(0, len(names), width)]
        number, wnid = fields.index("ILSVRC2012_ID"), fields.index("WNID")
        for entry in range(_numbers(dimensions)[0] * _numbers(dimensions)[1]):
            row = rest[2 + entry * len(fields) : 2 + (entry + 1) * len(fields)]
            yield int(_value(row[number])[0]), "".join(chr(int(code)) for code in _value(row[wnid]))
        return


def _value(matrix: _Element) -> tuple[float, ...]:
    """Return the numbers in an array; for text, the code of each character."""
    _, _, _, content = _elements(matrix.content)
    return _numbers(content)


def _numbers(element: _Element) -> tuple[int, ...]:
    letter = WIDTHS[element.kind]
    return struct.unpack(f"<{len(element.content) // struct.calcsize(letter)}{letter}", element.content)
