"""Read pickles as inert values. Nothing is imported and nothing is called.

A pickle is a program for a small stack machine. This module is that machine without its two dangerous instructions: the
name of a class or function becomes a `Name` and is not imported, and a call becomes a `Record` of the name and the
arguments and is not executed. Only numbers, text, bytes, lists and tuples become Python's own objects. This module
does not hash, compare, print or traverse the values. The work is limited by the number of bytes in the file, and by
MOST_STEPS, MOST_RECORDS and MOST_MARKS.
"""

import codecs
import struct
from collections.abc import Sequence
from typing import IO, TypeVar

Item = TypeVar("Item")

MOST_STEPS = 3_000_000
"""Largest number of instructions of all pickles in a file; they run for seconds. A checkpoint has about 10,000."""
MOST_RECORDS = 1_000_000
"""Largest number of lists, tuples and records; the memo may have twice as many. They need some hundred megabytes."""
MOST_MARKS = 10_000
"""Largest depth of nested marks."""
MOST_DIGITS = 1000
"""Largest number of digits of a whole number in text; a quarter of it in bytes. Python prints longer numbers slowly."""


class PickleError(ValueError):
    """The file is not a pickle, is truncated, or is larger or deeper than any checkpoint."""


class Name:
    """The name of a class or function in a pickle, as text: `module.name`."""

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text


class Reference:
    """A persistent id: a reference to an object outside the pickle, such as PyTorch's storages."""

    __slots__ = ("to",)

    def __init__(self, to: object) -> None:
        self.to = to


class Record:
    """The description of an object that was not made. Dictionaries and sets are records, too."""

    __slots__ = ("args", "entries", "items", "name", "state")

    def __init__(self, name: str, args: object = ()) -> None:
        self.name = name
        """Name of the object's class, or of the function that would make it."""
        self.args = args
        """Arguments of this class or function."""
        self.state: object = None
        """State that would be set afterwards: mostly a dictionary of attributes."""
        self.items: Sequence[object] = ()
        """Items of a list or set."""
        self.entries: Sequence[tuple[object, object]] = ()
        """Keys and values of a dictionary, in their order."""


# Instruction -> format or number of bytes of the number after it. In TEXTS, STRINGS, BYTES and LONGS, this number is
# the length of the content that comes next.
NUMBERS = {b"K": "<B", b"M": "<H", b"J": "<i", b"G": ">d"}
CONSTANTS = {b"N": None, b"\x88": True, b"\x89": False, b")": ()}
TEXTS = {b"X": 4, b"\x8c": 1, b"\x8d": 8}
STRINGS = {b"T": 4, b"U": 1}  # Python 2's
BYTES = {b"B": 4, b"C": 1, b"\x8e": 8, b"\x96": 8}
LONGS = {b"\x8a": 1, b"\x8b": 4}
TUPLES = {b"\x85": 1, b"\x86": 2, b"\x87": 3}
PUTS = {b"q": 1, b"r": 4}
GETS = {b"h": 1, b"j": 4}
EXTENSIONS = {b"\x82": 1, b"\x83": 2, b"\x84": 4}


class Pickles:
    """Reads consecutive pickles from the next `left` bytes of a file. `most_steps` None is MOST_STEPS."""

    def __init__(self, file: IO[bytes], left: int, *, most_steps: int | None = None) -> None:
        self.references: list[Reference] = []
        """All references in the pickles that were read."""
        self.left = left
        self._file = file
        self._most_steps = most_steps or MOST_STEPS
        self._steps = self._records = 0
        self._stack: list[object] = []
        self._outer: list[list[object]] = []
        """The stacks below each mark."""
        self._memo: dict[int, object] = {}
        self._encoded: dict[int, tuple[str, bytes]] = {}

    def load(self) -> object:
        """Read the next pickle and return its value. Raises PickleError."""
        self._stack = []
        self._outer = []
        self._memo = {}
        code = b""
        try:
            while (code := self.read(1)) != b".":
                self._steps += 1
                if self._steps > self._most_steps or max(self._records, len(self._memo) // 2) > MOST_RECORDS:
                    raise PickleError("it has more objects than any checkpoint")
                if len(self._outer) > MOST_MARKS:
                    raise PickleError("its objects are nested deeper than any checkpoint's")
                self._do(code)
            return self._stack.pop()
        except (IndexError, KeyError, TypeError, ValueError, OverflowError, struct.error) as error:
            if isinstance(error, PickleError):
                raise
            raise PickleError(f"its instruction {code!r} has no valid operands") from error

    def read(self, count: int) -> bytes:
        """Return the next `count` bytes. Raises PickleError, before memory is reserved, if there are fewer."""
        if count < 0 or count > self.left:
            raise PickleError("it is truncated")
        content = self._file.read(count)
        if len(content) != count:
            raise PickleError("it is truncated")
        self.left -= count
        return content

    def _line(self) -> str:
        return self._line_of_bytes().decode("utf-8", "replace")

    def _line_of_bytes(self) -> bytes:
        line = self._file.readline(self.left)
        self.left -= len(line)
        if not line.endswith(b"\n"):
            raise PickleError("it is truncated")
        return line[:-1]

    def _number(self, size: int) -> int:
        return int.from_bytes(self.read(size), "little")

    def _do(self, code: bytes) -> None:
        """Execute one instruction."""
        if code in GETS:
            self._stack.append(self._memo[self._number(GETS[code])])
        elif code in PUTS:
            self._memo[self._number(PUTS[code])] = self._stack[-1]
        elif code in TEXTS:
            self._stack.append(self.read(self._number(TEXTS[code])).decode("utf-8", "replace"))
        elif code in NUMBERS:
            form = NUMBERS[code]
            self._stack.append(struct.unpack(form, self.read(struct.calcsize(form)))[0])
        elif code in CONSTANTS:
            self._stack.append(CONSTANTS[code])
        elif code in TUPLES:
            self._records += 1
            count = TUPLES[code]
            if count > len(self._stack):
                raise IndexError
            self._stack[-count:] = [tuple(self._stack[-count:])]
        elif code in STRINGS:
            self._stack.append(_text_if_any(self.read(self._number(STRINGS[code]))))
        elif code in BYTES:
            self._stack.append(self.read(self._number(BYTES[code])))
        elif code in LONGS:
            self._stack.append(self._long(self._number(LONGS[code])))
        elif code in EXTENSIONS:  # the number of a class, known only to the program that registered it
            self._stack.append(Name(f"extension {self._number(EXTENSIONS[code])}"))
        else:
            self._do_other(code)

    def _do_other(self, code: bytes) -> None:
        stack = self._stack
        match code:  # the frequent instructions first
            case b"(":  # MARK
                self._outer.append(stack)
                self._stack = []
            case b"u":  # SETITEMS
                self._put(self._since_mark())
            case b"t":  # TUPLE
                self._new(tuple(self._since_mark()))
            case b"R" | b"\x81":  # REDUCE, NEWOBJ
                args, called = stack.pop(), stack.pop()
                self._new(self._made(_name_of(called), args))
            case b"}":  # EMPTY_DICT
                self._new(Record("builtins.dict"))
            case b"b":  # BUILD
                state, built = stack.pop(), stack[-1]
                if not isinstance(built, Record):  # for example a class, whose attributes this would change
                    raise PickleError("it sets attributes of something that is not an object")
                built.state = state
            case b"c":  # GLOBAL
                self._name(self._line(), self._line())
            case b"Q":  # BINPERSID
                self._refer(stack.pop())
            case b"\x94":  # MEMOIZE
                self._memo[len(self._memo)] = stack[-1]
            case b"]":  # EMPTY_LIST
                self._new([])
            case b"e" | b"\x90":  # APPENDS, ADDITEMS
                self._add(self._since_mark())
            case b"a":  # APPEND
                self._add([stack.pop()])
            case b"s":  # SETITEM
                value, key = stack.pop(), stack.pop()
                self._put([key, value])
            case b"\x93":  # STACK_GLOBAL
                name, module = stack.pop(), stack.pop()
                self._name(module, name)
            case b"0":  # POP: remove the last value, or the last mark if no value is after it
                if stack:
                    stack.pop()
                else:
                    self._since_mark()
            case b"1":  # POP_MARK
                self._since_mark()
            case b"2":  # DUP
                stack.append(stack[-1])
            case b"l":  # LIST
                self._new(self._since_mark())
            case b"d":  # DICT
                items = self._since_mark()
                self._new(Record("builtins.dict"))
                self._put(items)
            case b"\x8f":  # EMPTY_SET
                self._new(Record("builtins.set"))
            case b"\x91":  # FROZENSET
                items = self._since_mark()
                self._new(Record("builtins.frozenset"))
                self._add(items)
            case b"\x92":  # NEWOBJ_EX
                named, args, called = stack.pop(), stack.pop(), stack.pop()
                self._new(Record(_name_of(called), (args, named)))
            case b"o":  # OBJ
                called, *args = self._since_mark()
                self._new(Record(_name_of(called), tuple(args)))
            case b"i":  # INST
                self._name(self._line(), self._line())
                called = self._stack.pop()
                self._new(Record(_name_of(called), tuple(self._since_mark())))
            case b"P":  # PERSID
                self._refer(self._line())
            case b"g":  # GET
                stack.append(self._memo[_whole(self._line())])
            case b"p":  # PUT
                self._memo[_whole(self._line())] = stack[-1]
            case b"I":  # INT
                line = self._line()
                stack.append(line == "01" if line in ("00", "01") else _whole(line))
            case b"L":  # LONG
                stack.append(_whole(self._line().removesuffix("L")))
            case b"F":  # FLOAT
                stack.append(float(self._line()[:MOST_DIGITS]))
            case b"S":  # STRING: quoted; its escapes stay, since no name of a tensor has any
                stack.append(self._line().strip("'\""))
            case b"V":  # UNICODE
                stack.append(codecs.raw_unicode_escape_decode(self._line_of_bytes(), "replace")[0])
            case b"\x80":  # PROTO
                if (protocol := self._number(1)) > 5:
                    raise PickleError(f"its protocol {protocol} is unknown")
            case b"\x95":  # FRAME: only a hint for buffered reading
                if self._number(8) > self.left:
                    raise PickleError("it is truncated")
            case _:  # also NEXT_BUFFER and READONLY_BUFFER, whose data would be outside the file
                raise PickleError(f"it has an unknown instruction {code!r}")

    def _new(self, value: object) -> None:
        self._records += 1
        self._stack.append(value)

    def _made(self, name: str, args: object) -> object:
        """Return the record of a call, or bytes: older protocols write bytes as an encoded text.

        A text that occurs many times is encoded only once.
        """
        match args:
            case (str() as text, "latin1" | "latin-1") if name == "_codecs.encode":
                if id(text) not in self._encoded:
                    self._encoded[id(text)] = (text, text.encode("latin-1"))
                return self._encoded[id(text)][1]
        return Record(name, args)

    def _since_mark(self) -> list[object]:
        items, self._stack = self._stack, self._outer.pop()
        return items

    def _add(self, items: list[object]) -> None:
        target = self._stack[-1]
        if isinstance(target, Record):
            target.items = _extended(target.items, items)
        elif isinstance(target, list):
            target.extend(items)
        else:
            raise PickleError("it adds items to something that is not a list")

    def _put(self, items: list[object]) -> None:
        target = self._stack[-1]
        if not isinstance(target, Record) or len(items) % 2:
            raise PickleError("it sets entries of something that is not a dictionary")
        target.entries = _extended(target.entries, list(zip(items[::2], items[1::2], strict=True)))

    def _name(self, module: object, name: object) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise PickleError("it has the name of a class that is not text")
        self._new(Name(f"{module[:MOST_DIGITS]}.{name[:MOST_DIGITS]}"))

    def _refer(self, to: object) -> None:
        reference = Reference(to)
        self.references.append(reference)
        self._new(reference)

    def _long(self, size: int) -> int:
        if size > MOST_DIGITS // 4:
            raise PickleError(f"it contains a whole number of {size:,} bytes")
        return int.from_bytes(self.read(size), "little", signed=True)


def _name_of(called: object) -> str:
    """Return the name of a class or function; older PyTorch writes a class as a reference, with its source code."""
    if isinstance(called, Reference) and isinstance(called.to, tuple):
        called = next((part for part in called.to if isinstance(part, Name)), None)
    if isinstance(called, Name):
        return called.text
    return f"{called.name} of a call"[:MOST_DIGITS] if isinstance(called, Record) else "not a class"


def _extended(before: Sequence[Item], more: list[Item]) -> list[Item]:
    """Return `before` with `more` items. Most records have no items, so a list is only made for the first items."""
    if not isinstance(before, list):
        return more
    before.extend(more)
    return before


def _text_if_any(content: bytes) -> str | bytes:
    """Return a string of Python 2, which is both text and bytes: as text if it is ASCII, else as bytes."""
    return content.decode("ascii") if content.isascii() else content


def _whole(line: str) -> int:
    if len(line) > MOST_DIGITS:
        raise PickleError(f"it contains a whole number of {len(line):,} digits")
    return int(line)
