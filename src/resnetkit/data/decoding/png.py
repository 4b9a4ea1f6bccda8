"""Read the chunks of a PNG file: drop notes that are too long for Pillow, and find the number of significant bits."""

import zlib
from typing import NamedTuple

SIGNATURE = b"\x89PNG\r\n\x1a\n"
# PNG (3rd edition), Sec. 11.3: texts and the colour profile. They do not change pixels here.
NOTES = frozenset({b"tEXt", b"zTXt", b"iTXt", b"iCCP"})
LONGEST = 2**20
"""Most bytes of a note, decompressed. Pillow refuses files with longer notes, which could fill the memory."""
IN_ALL = 2**25
"""Most bytes of all notes together."""
MOST_PACKED = 1032
"""Most bytes to which deflate can decompress one byte."""


class Png(NamedTuple):
    """A PNG file that Pillow accepts."""

    content: bytes
    """The file, without notes that are too long."""
    significant_bits: int | None
    """Significant bits of each value (sBIT); None if the file does not state them."""


def read_png(content: bytes) -> Png:
    """Read the chunks of a file. If it is broken, the rest from the broken chunk on is kept unchanged."""
    kept, at, total = 0, len(SIGNATURE), 0
    parts: list[bytes] = []
    bits = None
    while at + 12 <= len(content):
        length, kind = int.from_bytes(content[at : at + 4], "big"), content[at + 4 : at + 8]
        end = at + 12 + length
        if end > len(content):
            break
        if kind == b"sBIT" and length:
            bits = max(content[at + 8 : at + 8 + min(length, 3)])
        elif kind in NOTES:
            size = _unpacked(kind, content[at + 8 : end - 4])
            total += size
            if size > LONGEST or total > IN_ALL:
                parts.append(content[kept:at])
                kept = end
        at = end
    return Png(b"".join((*parts, content[kept:])) if parts else content, bits)


def _unpacked(kind: bytes, note: bytes) -> int:
    """Return the number of bytes of a note, decompressed. Counting stops when it is more than LONGEST."""
    size = len(note)
    if kind == b"tEXt" or size > LONGEST or size * MOST_PACKED <= LONGEST:
        return size
    # Sec. 11.3.2.3 and 11.3.3: a name and a zero come first; then in iTXt two bytes and two texts, else one byte.
    packed = note.partition(b"\0")[2]
    packed = packed[2:].partition(b"\0")[2].partition(b"\0")[2] if kind == b"iTXt" else packed[1:]
    try:
        return size + len(zlib.decompressobj().decompress(packed, LONGEST + 1))
    except zlib.error:  # not compressed, or broken: Pillow ignores it
        return size
