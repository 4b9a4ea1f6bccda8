"""Read XML of unknown origin: no entities, no document types with them, no depth without end."""

import re
from pathlib import Path
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers.expat import ExpatError, ParserCreate

from resnetkit.errors import DataError

MOST_BYTES = 2**26
"""Larger annotation files are refused."""
DEEPEST = 32
"""Elements that are nested deeper than this are refused."""
LINE = "\0line"
"""The attribute of each element with the number of its line in the file, from 1. No file can have it."""
DECLARED = re.compile(rb"^\s*<\?xml[^>]*?encoding\s*=\s*[\"']([A-Za-z][\w.-]*)[\"']")


def read_xml(path: Path) -> Element:
    """Return the root element of an XML file; each element has its line as the attribute LINE.

    Files that declare entities, or refer to other files, are refused before anything is expanded: a few lines of them
    can fill any memory ("billion laughs") or read files of this machine.

    Raises DataError, with a reason and the name of the file, for a file that can't be read or is not sound XML.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise DataError(error.strerror or "can't be read", name=str(path)) from error
    if len(content) > MOST_BYTES:
        raise DataError(f"is larger than {MOST_BYTES // 2**20} MiB", name=str(path))
    declared = DECLARED.match(content)
    encoding = None
    if declared and declared[1].lower() not in (b"utf-8", b"utf8", b"us-ascii", b"utf-16", b"iso-8859-1"):
        try:  # expat knows few encodings; Python knows those of tools in Asia
            content = content.decode(declared[1].decode()).encode()
            encoding = "utf-8"
        except (LookupError, UnicodeError):
            raise DataError(f"is not text in {declared[1].decode()}, as it says", name=str(path)) from None
    return _parsed(content, encoding, path)


def _parsed(content: bytes, encoding: str | None, path: Path) -> Element:
    parser = ParserCreate(encoding)
    builder = TreeBuilder()
    depth = 0

    def start(name: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > DEEPEST:
            raise DataError(f"has more than {DEEPEST} nested elements", name=str(path))
        builder.start(name, attributes | {LINE: str(parser.CurrentLineNumber)})

    def end(name: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(name)

    def refuse(*_: object) -> int:
        raise DataError("declares entities or refers to other files, which annotations never need", name=str(path))

    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = builder.data
    parser.EntityDeclHandler = refuse
    parser.UnparsedEntityDeclHandler = refuse
    parser.ExternalEntityRefHandler = refuse
    try:
        parser.Parse(content, True)
        return builder.close()
    except ExpatError as error:
        raise DataError(f"is not sound XML: {error}", name=str(path)) from error
