"""Recognise archives and spreadsheets, which are not read, and say how to unpack an archive."""

import tarfile
import zipfile
from pathlib import Path

from resnetkit.display import shell

ARCHIVES = (".zip", ".tar", ".tgz", ".tar.gz", ".tbz2", ".tar.bz2", ".txz", ".tar.xz", ".7z", ".rar", ".gz")
TARS = tuple(suffix for suffix in ARCHIVES if ".t" in suffix)
STARTS = (b"PK\x03\x04", b"PK\x05\x06", b"Rar!\x1a\x07", b"7z\xbc\xaf\x27\x1c", b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0")
"""The first bytes of archives and compressed files."""
PACKED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ")
"""The first bytes of compressed files, such as .tar.gz."""
TAR = slice(257, 262)
"""The place of the bytes "ustar" in a tar file."""
BROKEN = "a broken archive, incomplete or of another kind than its suffix; get it again"
OFFICE = (b"[Content_Types].xml", b"mimetype", b"_rels/", b"xl/")
"""Names of the first file in an Office document, which is a ZIP file."""


def first_bytes(path: Path) -> bytes:
    """Return the first 512 bytes of a file; empty if it can't be read."""
    try:
        with path.open("rb", buffering=0) as file:
            return file.read(512)
    except (OSError, ValueError):
        return b""


def is_archive(path: Path) -> bool:
    """Whether a file is an archive, by its suffix or its first bytes."""
    start = first_bytes(path)
    return path.name.lower().endswith(ARCHIVES) or start.startswith(STARTS) or start[TAR] == b"ustar"


def is_spreadsheet(path: Path) -> bool:
    """Whether a file is a spreadsheet of Excel or LibreOffice, by its suffix or its first bytes."""
    start = first_bytes(path)
    return (
        path.suffix.lower() in (".xlsx", ".xls", ".ods", ".xlsm")
        or start.startswith(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1")
        or (start.startswith(b"PK\x03\x04") and start[30:].startswith(OFFICE))
    )


def of_archive(path: Path) -> str:
    """Return the end of an error, "FILE is ...": an archive and how to unpack it, or a broken archive."""
    name, start = path.name.lower(), first_bytes(path)
    kind = "zip" if start.startswith(b"PK") else "tar" if start[TAR] == b"ustar" or start.startswith(PACKED) else ""
    if kind and not _opens(path, kind):
        if kind == "zip" or name.endswith(TARS):
            return BROKEN
        kind = ""  # a single compressed file, not an archive
    elif not kind and name.endswith((".zip", *TARS)):
        return BROKEN
    stem = next((path.name[: -len(end)] for end in sorted(ARCHIVES, key=len, reverse=True) if name.endswith(end)), "")
    folder = path.with_name(stem or ("unpacked" if name.endswith(ARCHIVES) else f"{path.name}-unpacked"))
    module = {"zip": "zipfile", "tar": "tarfile"}.get(kind)
    how = f"with: python -m {module} -e {shell(path)} {shell(folder)}" if module else f"into {folder}"
    return f"an archive; unpack it {how}; then give {folder}"


def _opens(path: Path, kind: str) -> bool:
    try:
        return zipfile.is_zipfile(path) if kind == "zip" else tarfile.is_tarfile(path)
    except (OSError, ValueError, EOFError):
        return False
