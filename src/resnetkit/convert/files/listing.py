"""What is in a file of weights: `resnetkit convert --list`, the answer to a file that is refused."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

from resnetkit.convert.files.parts import Group, NoTensorsError, around, choose, groups
from resnetkit.convert.files.pytorch import Stored, Unread
from resnetkit.convert.files.readers import held, opened, read_weights, weights_file
from resnetkit.convert.files.values import AnyTensor, children, leaf
from resnetkit.convert.naming.recognition import recognised
from resnetkit.errors import ResnetkitError, UsageError

MOST_LISTED = 20
"""Groups of tensors that are no network's, and lines of objects; the rest is counted. JSON has everything."""
MOST_WIDE = 100
"""Characters of an object in a line."""


@dataclass(frozen=True)
class Listing:
    """What a file holds, and what it would be taken for."""

    path: Path
    form: str
    """PyTorch, TorchScript, safetensors, HDF5, Keras or .npz."""
    groups: Mapping[str, Mapping[str, AnyTensor]]
    """Tensors by name in each group that lies together, by the group's place in the file; "" is the file itself."""
    objects: Mapping[str, object]
    """What lies beside the chosen group, as plain values by nested name; beside nothing, if there is none."""
    part: str | None
    """What `convert` takes the network from; None where it finds none."""
    others: tuple[str, ...]
    """Other parts that hold a network: `--part` takes them."""
    left_out: tuple[str, ...]
    """Prefixes in the group that do not belong to the network."""
    taken_for: str
    """Whose network it is, and which; or why it can't be converted."""

    def document(self) -> dict[str, object]:
        """As JSON shows it."""
        return {
            "file": str(self.path),
            "form": self.form,
            "part": self.part,
            "other_parts": list(self.others),
            "left_out": list(self.left_out),
            "taken_for": self.taken_for,
            "tensors": {
                place: {name: {"shape": list(tensor.shape), "dtype": _dtype(tensor)} for name, tensor in inside.items()}
                for place, inside in self.groups.items()
            },
            "objects": dict(self.objects),
        }

    def lines(self) -> Iterator[str]:
        """As people read it: every tensor of networks, a line for each other group, and each object in short."""
        count = sum(map(len, self.groups.values()))
        yield f"file        {_safe(str(self.path))}: {self.form}, {count:,} tensors"
        if self.part is not None:
            yield f"network     in {_safe(self.part) or 'the file itself'}"
        if self.others:
            yield f"also in     {_safe(', '.join(self.others))}; --part takes it from there"
        if self.left_out:
            yield f"left out    {_safe(', '.join(self.left_out))}"
        first, *more = self.taken_for.splitlines() or [""]
        yield f"taken for   {_safe(first)}"
        yield from (f"            {_safe(line)}" for line in more)
        short: list[str] = []
        for place, inside in self.groups.items():
            numbers = sum(prod(tensor.shape) for tensor in inside.values())
            line = f"{_safe(place) or 'tensors'} ({len(inside):,} tensors, {numbers:,} numbers)"
            if not Group((), dict(inside)).network and len(self.groups) > 1:
                short.append(line)
                continue
            yield line
            width = max(map(len, map(_safe, inside)))
            yield from (
                f"  {_safe(name).ljust(width)}  {_shape(tensor)} {_dtype(tensor)}" for name, tensor in inside.items()
            )
        yield from _cut(short)
        if self.objects:
            yield "objects"
            yield from _cut([f"  {_safe(name)}  {_short(value)}" for name, value in self.objects.items()])


def list_file(file: str | Path, *, part: str | None = None) -> Listing:
    """What is in a file of weights. Raises ModelFileError where it can't be read at all, UsageError without `part`."""
    path = weights_file(file)
    with opened(path) as contents:
        found = groups(contents.root)
        places = {group.name: group.tensors for group in found}
        try:
            chosen = choose(found, part)
        except NoTensorsError as error:
            if part is not None:
                raise UsageError(f"{path}: {error}") from error
            beside = [(key, value) for key, value in children(contents.root) if leaf(value) is None]
            _, objects = around(contents.root, Group((), {}, beside))
            why = str(error) or f"it holds {held(contents.root)}"
            return Listing(path, contents.form, places, objects, None, (), (), f"nothing: {why}")
        _, objects = around(contents.root, chosen.group)
        others, left = tuple(chosen.others), tuple(chosen.left)
    return Listing(path, contents.form, places, objects, chosen.part, others, left, _taken_for(path, part))


def _taken_for(path: Path, part: str | None) -> str:
    """What `convert` would know of the file without more being said."""
    try:
        weights = read_weights(path, part=part)
        found = recognised(weights, None, new_head=False, where=str(path))
        like = found.like({**found.source.usual, **found.source.implies, **found.facts})
    except ResnetkitError as error:
        return f"nothing: {str(error).removeprefix(str(path)).removeprefix(':').strip()}"
    return f"{found.source.name}: {', '.join(like) or 'a network that is no row of `resnetkit models`'}"


def _dtype(tensor: AnyTensor) -> str:
    if isinstance(tensor, Unread):
        return tensor.what
    quantised = ", quantised" if isinstance(tensor, Stored) and tensor.quantised else ""
    return str(tensor.dtype).removeprefix("torch.") + quantised


def _shape(tensor: AnyTensor) -> str:
    return "×".join(map(str, tensor.shape)) or "scalar"


def _short(value: object) -> str:
    text = _safe(json.dumps(value, ensure_ascii=False))
    return text if len(text) <= MOST_WIDE else text[: MOST_WIDE - 3] + "..."


def _safe(text: str) -> str:
    """Without what would move a terminal's cursor."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _cut(lines: list[str]) -> Iterator[str]:
    yield from lines[:MOST_LISTED]
    if len(lines) > MOST_LISTED:
        yield f"  and {len(lines) - MOST_LISTED:,} more; --json has them all"
