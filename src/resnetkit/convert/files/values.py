"""The values in a file: what an object holds, by name, and all of it as plain values, up to a limit."""

import codecs
from collections.abc import Mapping, Sequence

from torch import Tensor

from resnetkit.convert.files.pickles import Name, Record, Reference
from resnetkit.convert.files.storages import Unread
from resnetkit.convert.files.tensors import Stored, numpy_type, raw_of, tensor_of

MOST_DESCRIBED = 200_000
"""Most values beside the tensors that are described; TEXT_AS_ONE characters of text count as one."""
TEXT_AS_ONE = 20
MOST_DEPTH = 12
MOST_LETTERS = 1000
"""Most letters of a tensor's name."""
MOST_NUMBERS_SHOWN = 16
AnyTensor = Tensor | Stored | Unread
DICTIONARIES = ("builtins.dict", "collections.OrderedDict", "collections.defaultdict", "collections.Counter")


def leaf(value: object) -> AnyTensor | None:
    """The tensor that a value is, or None."""
    if isinstance(value, (Record, Reference)):
        return tensor_of(value)
    return value if isinstance(value, Tensor) else None


def children(value: object) -> Sequence[tuple[object, object]]:
    """What a value holds, by key: a dictionary's entries, an object's attributes, a list's items by number."""
    match value:
        case Mapping():
            return list(value.items())
        case Record():
            return _entries(value) or attributes_of(value)
        case list() | tuple():
            return [(str(index), item) for index, item in enumerate(value)]
    return ()


def _entries(record: Record) -> Sequence[tuple[object, object]]:
    """The entries of a dictionary or of a class derived from it; Python 2 passes the pairs as a list."""
    if record.entries:
        return record.entries
    match record.args:
        case (list() as pairs,) if record.name in DICTIONARIES:
            return [(pair[0], pair[1]) for pair in pairs if isinstance(pair, (list, tuple)) and len(pair) == 2]
        case (Record(name="builtins.dict") as inner,) if record.name in DICTIONARIES:
            return inner.entries
    return ()


def items_of(record: Record) -> Sequence[object]:
    """The items of a set, or of a class derived from a list."""
    match record:
        case Record(name="builtins.set" | "builtins.frozenset" | "__builtin__.set", args=(list() as items,)):
            return items
    return record.items


def attributes_of(record: Record) -> list[tuple[object, object]]:
    """The attributes of an object: from its dictionary, and from its slots."""
    states = record.state if isinstance(record.state, tuple) and len(record.state) == 2 else (record.state,)
    return [entry for state in states if isinstance(state, Record) for entry in state.entries]


def attribute_of(record: Record, name: str) -> object:
    return next((value for key, value in attributes_of(record) if key == name), None)


def kind_of(value: object) -> str:
    """The name of a value's class, for people."""
    if leaf(value) is not None:
        return "Tensor"
    if isinstance(value, Reference):
        return "Storage"
    return value.name.rpartition(".")[2] if isinstance(value, Record) else type(value).__name__


def text_of(key: object) -> str:
    """A key as text."""
    if isinstance(key, str):
        return key
    if isinstance(key, bytes):
        return key[:MOST_LETTERS].decode("utf-8", "replace")
    return str(key) if isinstance(key, int | float) or key is None else kind_of(key)


def plain(value: object, budget: list[int], depth: int) -> object:
    """A value as None, bool, int, float, str, list and dict; an object as {"class": ..., its attributes}.

    Tensors of more than a few numbers, bytes, what is too deep and what is too much are only described. `budget` is how
    many values may still be, in a list of one number, which is counted down; `depth` how deep this one lies.
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
    """The first values, as many as the limit allows."""
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
    """An array of objects or text, such as class names; arrays of numbers are tensors."""
    if isinstance(content, list) and callable(inner):
        return inner(content)
    values = content if isinstance(content, bytes) else b""
    if code[:1] == "U" and code[1:].isdecimal() and values and (size := 4 * int(code[1:])) and len(values) % size == 0:
        texts = codecs.utf_32_le_decode(values, "replace", True)[0]  # by name, Python would import it
        width = size // 4
        if len(texts) == len(values) // 4:
            return [texts[at : at + width].rstrip("\0") for at in range(0, min(len(texts), MOST_DESCRIBED), width)]
    return {"class": "numpy.ndarray", "dtype": code}


def _plain_tensor(tensor: AnyTensor) -> object:
    """The numbers of a small tensor, such as an accuracy or a mean."""
    if isinstance(tensor, Unread):
        return {"class": "torch.Tensor", "shape": list(tensor.shape), "what": tensor.what}
    small = tensor.shape.numel() if isinstance(tensor, Tensor) else _count(tensor)
    if small <= MOST_NUMBERS_SHOWN and len(tensor.shape) < 2 and not tensor.dtype.is_complex:
        read = tensor.read() if isinstance(tensor, Stored) else tensor
        return read.float().tolist() if read.is_floating_point() else read.tolist()
    return {"class": "torch.Tensor", "shape": list(tensor.shape), "dtype": str(tensor.dtype).removeprefix("torch.")}


def _count(tensor: Stored) -> int:
    """Bytes of its numbers, or of its storage, which is read with them."""
    return max(tensor.nbytes // tensor.dtype.itemsize, tensor.storage.count // 64)
