"""Pickles to inert values: nothing is imported and nothing is called, whatever a pickle asks for.

A pickle is a program for a small stack machine. This is that machine without its two dangerous ends: a name of a class
or function stays a `Name`, and what would call one becomes a `Record` of what was asked. Of the values that a pickle
makes, only numbers, text, bytes, lists and tuples are Python's own. Nothing of them is hashed, compared, printed or
walked here. The work is bounded by the bytes that are there, and by MOST_STEPS, MOST_RECORDS and MOST_MARKS.
"""

import codecs
import struct
from collections.abc import Sequence
from typing import IO, TypeVar

Item = TypeVar("Item")

MOST_STEPS = 3_000_000
"""Most instructions of all pickles in a file, which take seconds. A checkpoint has about ten thousand."""
MOST_RECORDS = 1_000_000
"""Lists, tuples and records that they may make, and half of what they may keep to refer to: some hundred megabytes."""
MOST_MARKS = 10_000
"""Deepest nesting of marks."""
MOST_DIGITS = 1000
"""Digits of a whole number in text; in bytes, a quarter of it. Turning longer ones into text takes long."""


class PickleError(ValueError):
    """The file is no pickle, is cut off, or asks for more than any checkpoint needs."""


class Name:
    """A class or function that a pickle names: `module.name`, as text."""

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text


class Reference:
    """What a pickle leaves to its reader (a persistent id), such as PyTorch's storages."""

    __slots__ = ("to",)

    def __init__(self, to: object) -> None:
        self.to = to


class Record:
    """An object that was not made: what a pickle says of it. Dictionaries and sets are records, too."""

    __slots__ = ("args", "entries", "items", "name", "state")

    def __init__(self, name: str, args: object = ()) -> None:
        self.name = name
        """Name of its class, or of the function that would make it."""
        self.args = args
        """Arguments that would be passed to it."""
        self.state: object = None
        """State that would be set afterwards: mostly a dictionary of attributes."""
        self.items: Sequence[object] = ()
        """Items that would be appended or added, of lists and sets."""
        self.entries: Sequence[tuple[object, object]] = ()
        """Keys and values in their order, of dictionaries."""


# Instructions by what follows them: so many bytes of a number, or of a length and then so many bytes.
NUMBERS = {b"K": "<B", b"M": "<H", b"J": "<i", b"G": ">d"}
CONSTANTS = {b"N": None, b"\x88": True, b"\x89": False, b")": ()}
TEXTS = {b"X": 4, b"\x8c": 1, b"\x8d": 8}
STRINGS = {b"T": 4, b"U": 1}  # of Python 2
BYTES = {b"B": 4, b"C": 1, b"\x8e": 8, b"\x96": 8}
LONGS = {b"\x8a": 1, b"\x8b": 4}
TUPLES = {b"\x85": 1, b"\x86": 2, b"\x87": 3}
PUTS = {b"q": 1, b"r": 4}
GETS = {b"h": 1, b"j": 4}
EXTENSIONS = {b"\x82": 1, b"\x83": 2, b"\x84": 4}


class Pickles:
    """Reads one pickle after another from the next `left` bytes of a file."""

    def __init__(self, file: IO[bytes], left: int, *, most_steps: int | None = None) -> None:
        self.references: list[Reference] = []
        """All that the pickles so far had."""
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
        """The value of the next pickle. Raises PickleError."""
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
            raise PickleError(f"its instruction {code!r} has nothing to work on") from error

    def read(self, count: int) -> bytes:
        """The next bytes. Raises PickleError, before any memory is reserved, where there are not so many."""
        if count < 0 or count > self.left:
            raise PickleError("it is broken off")
        content = self._file.read(count)
        if len(content) != count:
            raise PickleError("it is broken off")
        self.left -= count
        return content

    def _line(self) -> str:
        return self._line_of_bytes().decode("utf-8", "replace")

    def _line_of_bytes(self) -> bytes:
        line = self._file.readline(self.left)
        self.left -= len(line)
        if not line.endswith(b"\n"):
            raise PickleError("it is broken off")
        return line[:-1]

    def _number(self, size: int) -> int:
        return int.from_bytes(self.read(size), "little")

    def _do(self, code: bytes) -> None:
        """Carry out one instruction."""
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
        elif code in EXTENSIONS:  # a number for a class, known only where it was registered
            self._stack.append(Name(f"extension {self._number(EXTENSIONS[code])}"))
        else:
            self._do_other(code)

    def _do_other(self, code: bytes) -> None:
        stack = self._stack
        match code:  # the usual ones first
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
                if not isinstance(built, Record):  # a class, for one, whose attributes it would change
                    raise PickleError("it sets attributes of what is no object")
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
            case b"0":  # POP: of a value, or of a mark where there is none
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
            case b"S":  # STRING: quoted, with escapes, which no name of a tensor has
                stack.append(self._line().strip("'\""))
            case b"V":  # UNICODE
                stack.append(codecs.raw_unicode_escape_decode(self._line_of_bytes(), "replace")[0])
            case b"\x80":  # PROTO
                if (protocol := self._number(1)) > 5:
                    raise PickleError(f"its protocol {protocol} is unknown")
            case b"\x95":  # FRAME: only a hint how much to read at once
                if self._number(8) > self.left:
                    raise PickleError("it is broken off")
            case _:  # also NEXT_BUFFER and READONLY_BUFFER, whose data would be outside of the file
                raise PickleError(f"it has an unknown instruction {code!r}")

    def _new(self, value: object) -> None:
        self._records += 1
        self._stack.append(value)

    def _made(self, name: str, args: object) -> object:
        """A record, or the bytes that older protocols have as text: of a text that is there many times, once."""
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
            raise PickleError("it adds items to what is no list")

    def _put(self, items: list[object]) -> None:
        target = self._stack[-1]
        if not isinstance(target, Record) or len(items) % 2:
            raise PickleError("it sets entries of what is no dictionary")
        target.entries = _extended(target.entries, list(zip(items[::2], items[1::2], strict=True)))

    def _name(self, module: object, name: object) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise PickleError("it names a class with what is no text")
        self._new(Name(f"{module[:MOST_DIGITS]}.{name[:MOST_DIGITS]}"))

    def _refer(self, to: object) -> None:
        reference = Reference(to)
        self.references.append(reference)
        self._new(reference)

    def _long(self, size: int) -> int:
        if size > MOST_DIGITS // 4:
            raise PickleError(f"it has a whole number of {size:,} bytes")
        return int.from_bytes(self.read(size), "little", signed=True)


def _name_of(called: object) -> str:
    """The name of what would be called; older PyTorch left classes to its reader, with their source."""
    if isinstance(called, Reference) and isinstance(called.to, tuple):
        called = next((part for part in called.to if isinstance(part, Name)), None)
    if isinstance(called, Name):
        return called.text
    return f"{called.name} of a call"[:MOST_DIGITS] if isinstance(called, Record) else "what is no class"


def _extended(before: Sequence[Item], more: list[Item]) -> list[Item]:
    """Most records have neither items nor entries, and so no list for them."""
    if not isinstance(before, list):
        return more
    before.extend(more)
    return before


def _text_if_any(content: bytes) -> str | bytes:
    """Of Python 2, where both were one: as text only where that has as many characters."""
    return content.decode("ascii") if content.isascii() else content


def _whole(line: str) -> int:
    if len(line) > MOST_DIGITS:
        raise PickleError(f"it has a whole number of {len(line):,} digits")
    return int(line)
