"""Choose the network's tensors in a file, and describe the other values.

A file's tensors are in groups: each dictionary that contains tensors, and each whole module, is a group. The rules of
`choose`:

1. A group with a network is preferred: it has at least five convolutions, and one of them reads a picture.
2. Of several networks, plain weights are preferred to averaged weights, then the names in NESTS in their order.
3. Prefixes of wrappers are removed: prefixes that every name has, and parts that wrappers put into the middle of names.
4. If one prefix has a whole network, and others have other tensors (a momentum encoder, a queue, a projector), only the
   network is used, and the last layer if it is one linear layer beside it. Of several networks, TRUNKS gives the order.

The argument `part` overrides these rules.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeGuard

from resnetkit.convert.files.pickles import PickleError, Record
from resnetkit.convert.files.storages import Unread
from resnetkit.convert.files.values import (
    MOST_DEPTH,
    MOST_DESCRIBED,
    MOST_LETTERS,
    AnyTensor,
    attribute_of,
    attributes_of,
    children,
    items_of,
    kind_of,
    leaf,
    plain,
    text_of,
)

NESTS = (
    *("state_dict", "model_state_dict", "model_state", "model", "net", "network", "net_state_dict", "weights"),
    *("model_weights", "state", "module", "learner", "student", "backbone", "encoder", "online_network"),
)
"""Names under which training scripts save the state dict in a checkpoint; earlier names are preferred."""
AVERAGES = (
    *("state_dict_ema", "model_ema", "ema_state_dict", "ema", "ema_model", "ema_state", "swa_model", "averaged_model"),
    *("teacher", "target_network"),
)
"""Names under which training scripts save a moving average. It is used only if there are no plain weights."""
PREFIXES = ("module", "_orig_mod", "model", "net", "network", "backbone", "encoder", "encoder_q", "student", "teacher")
"""Prefixes that wrappers put before every name: DataParallel, torch.compile, Lightning and many scripts."""
INFIXES = frozenset({"_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_orig_mod"})
"""Parts of names that wrappers put into the middle of names."""
TRUNKS = (
    *("backbone", "encoder_q", "base_encoder", "student", "online_encoder", "online_network", "online", "module"),
    *("model", "net", "network", "encoder", "trunk", "resnet", "feature_extractor", "features", "base_model"),
    *("image_encoder", "visual", "cnn"),
)
"""Prefixes of the network in files with other parts; earlier prefixes are preferred."""
AVERAGED = ("momentum", "target", "teacher", "ema", "encoder_k", "swa", "averaged")
"""Words in the prefixes of moving averages."""
HEADS = (
    *("head", "fc", "classifier", "linear", "last_linear", "cls_head", "logits", "out", "output", "cls", "classify"),
    *("final", "last", "last_layer", "dense", "top", "fc1", "fc_out", "clf", "classification_head", "prediction"),
)
"""Prefixes of a last layer beside the network."""
COUNT_OF_AVERAGED = "n_averaged"
"""Name of the counter in torch.optim.swa_utils.AveragedModel, beside its module."""
FEWEST_CONVOLUTIONS = 5
"""Smallest number of convolutions of a network. A deep stem alone has three."""
MOST_CHANNELS = 4
"""Largest number of channels of a picture."""
MOST_WORK = 5_000_000
"""Largest number of values that are visited to find groups. Only a pickle that repeats the same objects has more."""
MOST_MODULES = 20_000
"""Largest number of modules of a network."""

QUANTISED = re.compile(r"torch\.(ao\.)?nn\.(intrinsic\.)?(quantized|quantizable)\.")
"""Names of modules whose weights are packed for one kind of processor. They can't be read."""


@dataclass
class Group:
    """The tensors of one dictionary or module in a file."""

    path: tuple[str, ...]
    """Keys that lead to the group, from the outermost to the innermost."""
    tensors: dict[str, AnyTensor]
    others: list[tuple[object, object]] = field(default_factory=list)
    """Keys and values of the other entries in the same dictionary, and of tensors whose key is not text."""
    modules: dict[str, dict[str, object]] = field(default_factory=dict)
    """For a group that is a module: name of each inner module ("" is the group itself) -> its plain attributes."""

    @property
    def name(self) -> str:
        """The path, joined by dots."""
        return ".".join(self.path)

    @property
    def network(self) -> bool:
        """Whether there are enough convolutions for a network, and one of them reads a picture."""
        return _is_network(self.tensors)


@dataclass
class Choice:
    """The network's tensors, and the names of the tensors that were left out."""

    group: Group
    """The group that contains the tensors."""
    part: str
    """The network's place in the file, as `part` accepts it: nested names and prefixes, joined by dots."""
    tensors: dict[str, AnyTensor]
    left: list[str]
    """Prefixes in the group that are left out."""
    others: list[str]
    """Other parts that contain networks."""
    modules: dict[str, dict[str, object]]
    """Name of each module in the network -> its plain attributes; empty without modules."""


class NoTensorsError(ValueError):
    """The file, or the chosen part, contains no tensors by name, or contains other values among them."""


def groups(root: object) -> list[Group]:
    """Return all groups of tensors, in the file's order, without values deeper than MOST_DEPTH. Raises PickleError."""
    found: list[Group] = []
    seen: set[int] = set()
    waiting: list[tuple[tuple[str, ...], object]] = [((), root)]
    work = 0
    while waiting:
        path, value = waiting.pop()
        if id(value) in seen or len(path) > MOST_DEPTH:
            continue
        seen.add(id(value))
        if is_module(value):
            modules: dict[str, dict[str, object]] = {}
            tensors = dict(_module_tensors(value, "", modules, [MOST_DESCRIBED], 0))
            if tensors:
                found.append(Group(path, tensors, modules=modules))
                continue
        group, held = Group(path, {}), children(value)
        work += 1 + len(held)
        if work > MOST_WORK:
            raise PickleError("it repeats the same objects more often than any checkpoint")
        for key, child in held:
            tensor = leaf(child)
            if tensor is not None and isinstance(key, str):
                if len(key) > MOST_LETTERS:
                    raise PickleError(f"a tensor in it has a name of {len(key):,} characters")
                group.tensors[key] = tensor
            elif tensor is not None or not isinstance(value, (list, tuple)) or _has_children(child):
                group.others.append((key, child))
        if group.tensors:
            found.append(group)
        waiting += [
            ((*path, text_of(key)[:MOST_LETTERS]), child)
            for key, child in reversed(group.others)
            if _has_children(child)
        ]
    return found


def _has_children(value: object) -> bool:
    return isinstance(value, (Record, Mapping, list, tuple))


def choose(found: Sequence[Group], part: str | None = None) -> Choice:
    """Return the tensors of `part`; without `part`, choose the network by the rules above. Raises NoTensorsError."""
    if part is not None:
        return _of_part(found, part)
    candidates = [group for group in found if group.network or all(name in NESTS + AVERAGES for name in group.path)]
    if not candidates:
        raise NoTensorsError
    networks = _networks(candidates)
    chosen = min(networks or candidates, key=lambda group: (_mixed(group), [_rank(name) for name in group.path]))
    if not chosen.network:
        _refuse_others(chosen)
    tensors, prefix, left, others = _trunk(chosen.tensors)
    inside = [".".join((chosen.name, name)).strip(".") for name in others]
    return Choice(
        chosen,
        part=".".join([*chosen.path, *prefix]),
        tensors=tensors,
        left=left,
        others=[*(group.name for group in networks if group is not chosen), *inside],
        modules=_renamed(chosen.modules, prefix),
    )


def _of_part(found: Sequence[Group], part: str) -> Choice:
    """Return the tensors of `part`: a group, or the tensors of a group with a prefix."""
    for group in sorted(found, key=lambda group: -len(group.path)):
        prefix = part.removeprefix(group.name).strip(".") if part.startswith(group.name) else None
        if prefix is None:
            continue
        start = f"{prefix}." if prefix else ""
        inside = {name: tensor for name, tensor in group.tensors.items() if name.startswith(start) and name != start}
        if inside:
            tensors = {name.removeprefix(start): tensor for name, tensor in inside.items()}
            tensors, more, left, _ = _trunk(tensors)
            others = [other.name for other in _networks(found) if other is not group]
            taken = [*prefix.split("."), *more] if prefix else more
            where = ".".join([*group.path, *taken])
            return Choice(group, where, tensors, left, others, _renamed(group.modules, taken))
    raise NoTensorsError(f"it has no part {part}; {_there(found)}")


def _there(found: Sequence[Group]) -> str:
    names = [group.name for group in _networks(found) if group.name]
    return f"its parts are {', '.join(names)}" if names else "resnetkit convert --list FILE shows its content"


def _networks(found: Sequence[Group]) -> list[Group]:
    """Return the groups with networks. Lists of tensors, such as an optimiser's, count only without other groups."""
    networks = [group for group in found if group.network]
    return [group for group in networks if not all(map(str.isdecimal, group.tensors))] or networks


def _mixed(group: Group) -> bool:
    return bool(group.others) and not group.network


def _rank(name: str) -> int:
    if name in NESTS:
        return NESTS.index(name)
    return 2 * len(NESTS) + AVERAGES.index(name) if name in AVERAGES else len(NESTS)


def _refuse_others(group: Group) -> None:
    if group.others:
        key, value = group.others[0]
        name = repr(key)[:100] if isinstance(key, str | int) else text_of(key)
        raise NoTensorsError(
            f"{name} is {kind_of(value)}, not a tensor with a name ({len(group.others)} entries are no such tensors)"
        )


def _is_network(tensors: Mapping[str, AnyTensor]) -> bool:
    kernels = [tensor.shape for tensor in tensors.values() if len(tensor.shape) == 4]
    return len(kernels) >= FEWEST_CONVOLUTIONS and any(shape[1] <= MOST_CHANNELS for shape in kernels)


def _trunk(tensors: Mapping[str, AnyTensor]) -> tuple[dict[str, AnyTensor], list[str], list[str], list[str]]:
    """Find the network under its prefixes.

    Returns its tensors without the prefixes, the prefixes, the prefixes of the tensors that are left out, and the
    prefixes of other networks.
    """
    ours = _without_infixes(tensors)
    prefixes: list[str] = []
    heads: dict[str, AnyTensor] = {}
    left: list[str] = []
    others: list[str] = []
    for _ in range(MOST_DEPTH):
        first = _by_first(ours)
        if COUNT_OF_AVERAGED in ours and set(first) == {"module", ""} and len(first[""]) == 1:
            left.append(COUNT_OF_AVERAGED)
            del first[""]
        if len(first) == 1 and (name := next(iter(first))) and (name in PREFIXES or _holds_network(name, first[name])):
            prefixes.append(name)
            ours = first[name]
            continue
        holders = [name for name in first if _holds_network(name, first[name])]
        ranks = sorted((_trunk_rank(name), name) for name in holders)
        if not ranks or (len(ranks) > 1 and ranks[0][0] == ranks[1][0]):
            break
        chosen, before = ranks[0][1], ".".join(prefixes)
        for name, inside in first.items():
            here = f"{before}.{name}".strip(".")
            if name in HEADS and _is_last_layer(inside):
                heads |= {f"{name}.{rest}": tensor for rest, tensor in inside.items()}
            elif name != chosen:
                left += [here] if name else [f"{before}.{rest}".strip(".") for rest in inside]
            others += [here] if name in holders and name != chosen else []
        prefixes.append(chosen)
        ours = first[chosen]
    left += [name for name in heads if name in ours]
    return ours | {name: tensor for name, tensor in heads.items() if name not in ours}, prefixes, left, others


def _by_first(tensors: Mapping[str, AnyTensor]) -> dict[str, dict[str, AnyTensor]]:
    """Group tensors by the first part of their names; names with only one part are under ""."""
    parts: dict[str, dict[str, AnyTensor]] = {}
    for name, tensor in tensors.items():
        first, dot, rest = name.partition(".")
        parts.setdefault(first if dot and rest else "", {})[rest if dot and rest else name] = tensor
    return parts


def _holds_network(name: str, inside: Mapping[str, AnyTensor]) -> bool:
    """Whether a prefix contains a whole network. A number is not a prefix: it is the index in a Sequential."""
    return bool(name) and not name.isdecimal() and _is_network(inside)


def _trunk_rank(name: str) -> int:
    if name in TRUNKS:
        return TRUNKS.index(name)
    return 2 * len(TRUNKS) if any(word in name for word in AVERAGED) else len(TRUNKS)


def _is_last_layer(tensors: Mapping[str, AnyTensor]) -> bool:
    sides = sorted(len(tensor.shape) for tensor in tensors.values())
    return sides in ([2], [1, 2])


def _without_infixes(tensors: Mapping[str, AnyTensor]) -> dict[str, AnyTensor]:
    ours = {_without_infix(name): tensor for name, tensor in tensors.items()}
    return ours if len(ours) == len(tensors) else dict(tensors)


def _without_infix(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in INFIXES)


def _renamed(modules: Mapping[str, dict[str, object]], prefixes: Sequence[str]) -> dict[str, dict[str, object]]:
    start = ".".join([*prefixes, ""])
    plain = {f"{_without_infix(name)}.".lstrip("."): value for name, value in modules.items()}
    return {name.removeprefix(start).rstrip("."): value for name, value in plain.items() if name.startswith(start)}


def is_module(value: object) -> TypeGuard[Record]:
    """Whether a value is the record of a torch.nn.Module or of a TorchScript module."""
    if not isinstance(value, Record):
        return False
    names = [key for key, _ in attributes_of(value)]
    return ("_modules" in names and "_parameters" in names) or (value.name.startswith("__torch__.") and bool(names))


def _module_tensors(
    module: Record, start: str, modules: dict[str, dict[str, object]], budget: list[int], depth: int
) -> Iterator[tuple[str, AnyTensor]]:
    """Yield the parameters and buffers of a module and its inner modules, under the names of the state dict.

    The plain attributes of each module are added to `modules`. `start` is the prefix of the names, `depth` the depth of
    the module. See `values.plain` for `budget`.
    """
    if depth > 4 * MOST_DEPTH or len(modules) > MOST_MODULES:
        raise PickleError("it has more modules than any network")
    attributes = attributes_of(module)
    budget[0] -= len(attributes)
    modules[start.removesuffix(".")] = {"class": module.name} | {
        key: plain(value, budget, 0)
        for key, value in attributes
        if isinstance(key, str) and key[:1] != "_" and not is_module(value) and leaf(value) is None
    }
    if module.name.startswith("__torch__."):
        held = attributes
        skipped: set[object] = set()
    else:
        held = [
            entry for name in ("_parameters", "_buffers", "_modules") for entry in children(attribute_of(module, name))
        ]
        unkept = attribute_of(module, "_non_persistent_buffers_set")
        skipped = {name for name in items_of(unkept) if isinstance(name, str)} if isinstance(unkept, Record) else set()
    if QUANTISED.match(module.name):
        yield f"{start}weight", Unread(f"packed in a {module.name}")
        return
    inner: list[tuple[str, Record]] = []
    for key, value in held:
        if not isinstance(key, str) or key in skipped:
            continue
        if (tensor := leaf(value)) is not None:
            yield start + key, tensor
        elif is_module(value):
            inner.append((key, value))
    for key, value in inner:
        yield from _module_tensors(value, f"{start}{key}.", modules, budget, depth + 1)


def around(root: object, group: Group) -> tuple[list[str], dict[str, object]]:
    """Return the file's values outside a group: their names, and their plain values by nested name."""
    names: list[str] = []
    objects: dict[str, object] = {}
    budget = [MOST_DESCRIBED]
    value, path = root, ""
    for name in group.path:
        inner: object = None
        for key, child in children(value):
            if text_of(key)[:MOST_LETTERS] == name:
                inner = child
            else:
                names.append(text_of(key))
                objects[f"{path}{text_of(key)}"] = plain(child, budget, 0)
        value, path = inner, f"{path}{name}."
    if group.modules:
        objects[path.removesuffix(".") or "module"] = group.modules[""]
    for key, child in group.others:
        names.append(text_of(key))
        objects[f"{path}{text_of(key)}"] = plain(child, budget, 0)
    return names, objects
