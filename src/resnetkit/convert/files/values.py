"""The values in a file: the entries, items and attributes of an object, and its description as plain values."""

import codecs
from collections.abc import Mapping, Sequence

from torch import Tensor

from resnetkit.convert.files.pickles import Name, Record, Reference
from resnetkit.convert.files.storages import Unread
from resnetkit.convert.files.tensors import Stored, numpy_type, raw_of, tensor_of

MOST_DESCRIBED = 200_000
"""Largest number of values in a file that are described."""
TEXT_AS_ONE = 20
"""Number of characters of text that count as one value."""
MOST_DEPTH = 12
"""Largest depth of nested values."""
MOST_LETTERS = 1000
"""Largest number of characters of a tensor's name."""
MOST_NUMBERS_SHOWN = 16
"""Largest number of numbers in a tensor whose numbers are shown."""
AnyTensor = Tensor | Stored | Unread
"""A tensor in memory, a tensor in a file, or a tensor that can't be read."""
DICTIONARIES = ("builtins.dict", "collections.OrderedDict", "collections.defaultdict", "collections.Counter")


def leaf(value: object) -> AnyTensor | None:
    """Return the tensor, if the value is one; else None."""
    if isinstance(value, (Record, Reference)):
        return tensor_of(value)
    return value if isinstance(value, Tensor) else None


def children(value: object) -> Sequence[tuple[object, object]]:
    """Return (key, value) pairs: a dictionary's entries, an object's attributes, or a list's items by index."""
    match value:
        case Mapping():
            return list(value.items())
        case Record():
            return _entries(value) or attributes_of(value)
        case list() | tuple():
            return [(str(index), item) for index, item in enumerate(value)]
    return ()


def _entries(record: Record) -> Sequence[tuple[object, object]]:
    """Return the entries of a dictionary or a derived class. Python 2 writes them as a list of pairs."""
    if record.entries:
        return record.entries
    match record.args:
        case (list() as pairs,) if record.name in DICTIONARIES:
            return [(pair[0], pair[1]) for pair in pairs if isinstance(pair, (list, tuple)) and len(pair) == 2]
        case (Record(name="builtins.dict") as inner,) if record.name in DICTIONARIES:
            return inner.entries
    return ()


def items_of(record: Record) -> Sequence[object]:
    """Return the items of a set, or of a class derived from a list."""
    match record:
        case Record(name="builtins.set" | "builtins.frozenset" | "__builtin__.set", args=(list() as items,)):
            return items
    return record.items


def attributes_of(record: Record) -> list[tuple[object, object]]:
    """Return the attributes of an object, from its `__dict__` and its slots."""
    states = record.state if isinstance(record.state, tuple) and len(record.state) == 2 else (record.state,)
    return [entry for state in states if isinstance(state, Record) for entry in state.entries]


def attribute_of(record: Record, name: str) -> object:
    """Return the value of one attribute of an object; None if it has no such attribute."""
    return next((value for key, value in attributes_of(record) if key == name), None)


def kind_of(value: object) -> str:
    """Return the name of a value's class, for people."""
    if leaf(value) is not None:
        return "Tensor"
    if isinstance(value, Reference):
        return "Storage"
    return value.name.rpartition(".")[2] if isinstance(value, Record) else type(value).__name__


def text_of(key: object) -> str:
    """Return a key as text."""
    if isinstance(key, str):
        return key
    if isinstance(key, bytes):
        return key[:MOST_LETTERS].decode("utf-8", "replace")
    return str(key) if isinstance(key, int | float) or key is None else kind_of(key)


def plain(value: object, budget: list[int], depth: int) -> object:
    """Return a value as None, bool, int, float, str, list or dict; an object is {"class": ..., and its attributes}.

    For a larger tensor and for bytes, only the class and the shape or size are returned. A value that is too deep, or
    that comes after the limit of values, becomes "...". `budget` is a list of one number: how many values may still be
    described. This function reduces it. `depth` is the depth of `value`.
    """
    budget[0] -= 1
    if budget[0] < 0 or depth > MOST_DEPTH:
        return "..."
    tensor = leaf(value)
    if tensor is not None:
        return _plain_tensor(tensor)
    match value:
        case None | bool() | int() | float():
            return value
        case str():
            budget[0] -= len(value) // TEXT_AS_ONE
            return value if budget[0] >= 0 else "..."
        case bytes():
            text = value.decode("utf-8", "replace") if len(value) <= MOST_LETTERS else "\ufffd"
            return {"class": "bytes", "size": len(value)} if "\ufffd" in text else text
        case list() | tuple():
            return [plain(item, budget, depth + 1) for item in _first(value, budget)]
        case Mapping():
            return _named(children(value), budget, depth)
        case Name(text=text) | Reference(to=("module", Name(text=text), *_)):  # a class, also of older PyTorch
            return text
        case Record():
            return _plain_record(value, budget, depth)
    return {"class": "torch.Storage" if isinstance(value, Reference) else type(value).__name__}


def _first(items: Sequence[object], budget: list[int]) -> Sequence[object]:
    """Return the first items, as many as the limit allows, with "..." at the end if there are more."""
    return items if len(items) <= budget[0] else [*items[: max(budget[0], 0)], "..."]


def _plain_record(record: Record, budget: list[int], depth: int) -> object:
    def inner(value: object) -> object:
        return plain(value, budget, depth + 1)

    if (content := raw_of(record)) is not None:
        return inner(content)
    attributes, entries = attributes_of(record), _entries(record)
    budget[0] -= len(attributes) + len(entries)
    match record:
        case Record(name="numpy.core.multiarray.scalar" | "numpy._core.multiarray.scalar", args=(kind, content)):
            return _plain_scalar(kind, raw_of(content))
        case Record(state=(_, _, Record(name="numpy.dtype", args=(str() as code, *_)), _, content)):
            budget[0] -= len(content) // TEXT_AS_ONE if isinstance(content, bytes) else 0
            return _plain_array(code, content, inner) if budget[0] > 0 else "..."
        case Record(name="torch.Size", args=(sides,)):
            return inner(sides)
        case Record(name=name) if name.startswith("omegaconf."):
            held = {key: value for key, value in attributes if key in ("_content", "_val")}
            if held:
                return inner(next(iter(held.values())))
    if entries or (record.name in DICTIONARIES and not attributes):
        return _named(entries[: max(budget[0], 0)], budget, depth)
    if (items := items_of(record)) and not attributes:
        return [inner(item) for item in _first(items, budget)]
    described: dict[str, object] = {"class": record.name}
    if record.args and isinstance(record.args, tuple):
        described["args"] = [inner(item) for item in record.args]
    budget[0] -= len(record.name) // TEXT_AS_ONE
    return described | _named([entry for entry in attributes if entry[0] != "class"], budget, depth)


def _named(entries: Sequence[tuple[object, object]], budget: list[int], depth: int) -> dict[str, object]:
    named: dict[str, object] = {}
    for key, value in entries:
        name = text_of(key)
        budget[0] -= len(name) // TEXT_AS_ONE
        named[name] = plain(value, budget, depth + 1)
        if budget[0] < 0:
            break
    return named


def _plain_scalar(kind: object, content: bytes | str | None) -> object:
    found = numpy_type(kind)
    if found is None or content is None or len(content) != found[0].itemsize:
        return {"class": "numpy.generic"}
    array = Record("numpy.core.multiarray._reconstruct")
    array.state = (1, (1,), kind, False, content)
    tensor = tensor_of(array)
    return tensor.read().tolist()[0] if isinstance(tensor, Stored) else {"class": "numpy.generic"}


def _plain_array(code: str, content: object, inner: object) -> object:
    """Describe an array of objects or text, such as class names. Arrays of numbers are described as tensors."""
    if isinstance(content, list) and callable(inner):
        return inner(content)
    values = content if isinstance(content, bytes) else b""
    if code[:1] == "U" and code[1:].isdecimal() and values and (size := 4 * int(code[1:])) and len(values) % size == 0:
        texts = codecs.utf_32_le_decode(values, "replace", True)[0]  # bytes.decode would import a module
        width = size // 4
        if len(texts) == len(values) // 4:
            return [texts[at : at + width].rstrip("\0") for at in range(0, min(len(texts), MOST_DESCRIBED), width)]
    return {"class": "numpy.ndarray", "dtype": code}


def _plain_tensor(tensor: AnyTensor) -> object:
    """Return the numbers of a small tensor, such as an accuracy or a mean; describe other tensors."""
    if isinstance(tensor, Unread):
        return {"class": "torch.Tensor", "shape": list(tensor.shape), "what": tensor.what}
    small = tensor.shape.numel() if isinstance(tensor, Tensor) else _count(tensor)
    if small <= MOST_NUMBERS_SHOWN and len(tensor.shape) < 2 and not tensor.dtype.is_complex:
        read = tensor.read() if isinstance(tensor, Stored) else tensor
        return read.float().tolist() if read.is_floating_point() else read.tolist()
    return {"class": "torch.Tensor", "shape": list(tensor.shape), "dtype": str(tensor.dtype).removeprefix("torch.")}


def _count(tensor: Stored) -> int:
    """Return the number of elements; more if the tensor's storage, which must be read as a whole, is large."""
    return max(tensor.nbytes // tensor.dtype.itemsize, tensor.storage.count // 64)
