"""Archives, which are not read in place: how they are known, and how they are unpacked."""

import tarfile
import zipfile
from pathlib import Path

from resnetkit.display import shell

ARCHIVES = (".zip", ".tar", ".tgz", ".tar.gz", ".tbz2", ".tar.bz2", ".txz", ".tar.xz", ".7z", ".rar", ".gz")
TARS = tuple(suffix for suffix in ARCHIVES if ".t" in suffix)
STARTS = (b"PK\x03\x04", b"PK\x05\x06", b"Rar!\x1a\x07", b"7z\xbc\xaf\x27\x1c", b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0")
PACKED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ")
"""How compressed tar files begin, and other compressed files."""
TAR = slice(257, 262)
"""Where a tar file says that it is one."""
BROKEN = "a broken archive, cut short or of another kind than its name says; get it anew"
OFFICE = (b"[Content_Types].xml", b"mimetype", b"_rels/", b"xl/")
"""Names of the first file in a spreadsheet or document, which is a ZIP file, too."""


def first_bytes(path: Path) -> bytes:
    """The beginning of a file; empty where it can't be read."""
    try:
        with path.open("rb", buffering=0) as file:
            return file.read(512)
    except (OSError, ValueError):
        return b""


def is_archive(path: Path) -> bool:
    """Whether a file is an archive by its name or its first bytes."""
    start = first_bytes(path)
    return path.name.lower().endswith(ARCHIVES) or start.startswith(STARTS) or start[TAR] == b"ustar"


def is_spreadsheet(path: Path) -> bool:
    """Whether a file is one of Excel's or LibreOffice's, by its name or its first bytes."""
    start = first_bytes(path)
    return (
        path.suffix.lower() in (".xlsx", ".xls", ".ods", ".xlsm")
        or start.startswith(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1")
        or (start.startswith(b"PK\x03\x04") and start[30:].startswith(OFFICE))
    )


def of_archive(path: Path) -> str:
    """What to say of an archive: that it is one, and how to unpack it; or that it is broken."""
    name, start = path.name.lower(), first_bytes(path)
    kind = "zip" if start.startswith(b"PK") else "tar" if start[TAR] == b"ustar" or start.startswith(PACKED) else ""
    if kind and not _opens(path, kind):
        if kind == "zip" or name.endswith(TARS):
            return BROKEN
        kind = ""  # one packed file, and no archive
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
