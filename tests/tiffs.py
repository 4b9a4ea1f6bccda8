"""TIFF files of forms that Pillow does not write."""

import struct
import zlib

import numpy as np

PLANAR, MAX_SAMPLE_VALUE = 284, 281


def tiff(pixels, *, order="<", planar=False, packed=False, tags=()):
    """A file of uint8 or uint16 (height, width, channels) pixels, in one strip, or in one for each plane.

    `tags` are numbers and lists of 16-bit values that the file has besides.
    """
    height, width, channels = pixels.shape
    kind = pixels.dtype.newbyteorder(order)
    planes = np.moveaxis(pixels, -1, 0) if planar else [pixels]
    strips = [np.ascontiguousarray(plane).astype(kind).tobytes() for plane in planes]
    strips = [zlib.compress(strip) if packed else strip for strip in strips]
    offsets = np.cumsum([8, *map(len, strips)])
    entries = {
        256: [width],
        257: [height],
        258: [8 * kind.itemsize] * channels,
        259: [8 if packed else 1],
        262: [2 if channels == 3 else 1],
        273: offsets[:-1].tolist(),
        277: [channels],
        278: [height],
        279: list(map(len, strips)),
        PLANAR: [1 + planar],
        **dict(tags),
    }
    at = int(offsets[-1])
    table, more = struct.pack(f"{order}H", len(entries)), b""
    for tag, values in sorted(entries.items()):
        long = tag in (273, 279)
        packed_values = struct.pack(f"{order}{len(values)}{'I' if long else 'H'}", *values)
        if len(packed_values) > 4:
            place = at + 2 + 12 * len(entries) + 4 + len(more)
            more += packed_values
            packed_values = struct.pack(f"{order}I", place)
        table += struct.pack(f"{order}HHI", tag, 4 if long else 3, len(values)) + packed_values.ljust(4, b"\0")
    start = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", at)
    return start + b"".join(strips) + table + bytes(4) + more
