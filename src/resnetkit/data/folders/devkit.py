"""ImageNet's development kit of 2012: the validation pictures' classes, in the kit's own numbers, by meta.mat."""

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from resnetkit.data.imagenet import wnid_places
from resnetkit.errors import DataError

GROUND_TRUTH = "ilsvrc2012_validation_ground_truth"
"""The list, in lower case: a number per picture, in the order of the pictures' names."""
PICTURE = "ILSVRC2012_val_{:08d}.JPEG"
META = "meta.mat"
MOST_BYTES = 2**26
"""Of what is in meta.mat."""
COMPRESSED, MATRIX, STRUCT = 15, 14, 2
WIDTHS = {1: "b", 2: "B", 3: "h", 4: "H", 5: "i", 6: "I", 9: "d", 12: "q", 13: "Q", 16: "B"}
"""Numbers in a MAT-file (MathWorks, MAT-File Format, version 5), by the type of an element."""


def wnids_by_number(folder: Path) -> dict[int, str]:
    """The WordNet number of each of the kit's numbers, 1 to 1000, from the meta.mat in `folder`.

    Raises DataError where there is none, or it is another one.
    """
    path = folder / META
    try:
        found = dict(_synsets(path.read_bytes()[:MOST_BYTES]))
    except OSError as error:
        raise DataError(
            f"{path} can't be read: {error.strerror}; it says what the numbers mean. Put the kit's own there, or give "
            "a list of paths with classes: val.txt of Caffe, or LOC_val_solution.csv of Kaggle"
        ) from None
    except (struct.error, zlib.error, TypeError, ValueError, KeyError, IndexError, UnicodeError) as error:
        raise DataError(f"{path} is not the kit's table of classes ({error}); get it anew") from None
    known = {number: wnid for number, wnid in found.items() if 1 <= number <= len(wnid_places())}
    if set(known.values()) != set(wnid_places()):
        raise DataError(f"{path} is of another set: it does not number ImageNet's 1,000 classes; get that of 2012")
    return known


class _Element(NamedTuple):
    kind: int
    content: bytes


def _elements(content: bytes) -> Iterator[_Element]:
    """The elements of a MAT-file, or of one of its elements, one after another."""
    place = 0
    while place + 8 <= len(content):
        kind, size = struct.unpack_from("<II", content, place)
        if kind >> 16:  # a small one, in the place of its size
            yield _Element(kind & 0xFFFF, content[place + 4 : place + 4 + (kind >> 16)])
            place += 8
            continue
        held = content[place + 8 : place + 8 + size]
        if len(held) < size:
            raise ValueError("it is cut short")
        yield _Element(kind, held)
        place += 8 + size + (0 if kind == COMPRESSED else -size % 8)


def _synsets(content: bytes) -> Iterator[tuple[int, str]]:
    """Number and WordNet number of each entry of the first structure."""
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
    """The numbers of an array; of text, its letters'."""
    _, _, _, content = _elements(matrix.content)
    return _numbers(content)


def _numbers(element: _Element) -> tuple[int, ...]:
    letter = WIDTHS[element.kind]
    return struct.unpack(f"<{len(element.content) // struct.calcsize(letter)}{letter}", element.content)
