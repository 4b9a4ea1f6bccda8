"""What is in a file of weights: `resnetkit convert --list`, the answer to a file that is refused."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from resnetkit.convert.files.parts import Group, NoTensorsError, around, choose, groups
from resnetkit.convert.files.readers import held, opened, read_weights, weights_file
from resnetkit.convert.files.storages import Unread
from resnetkit.convert.files.tensors import Stored
from resnetkit.convert.files.values import AnyTensor, children, leaf
from resnetkit.convert.naming.recognition import recognised
from resnetkit.errors import ResnetkitError, UsageError


@dataclass(frozen=True)
class Listing:
    """What a file holds, and what it would be taken for."""

    path: Path
    form: str
    """PyTorch, TorchScript, safetensors, HDF5, Keras or .npz."""
    groups: Mapping[str, Mapping[str, AnyTensor]]
    """Tensors by name in each group that lies together, by the group's place in the file; "" is the file itself."""
    networks: tuple[str, ...]
    """The groups that hold a network."""
    objects: Mapping[str, object]
    """What lies beside the chosen group, as plain values by nested name; beside nothing, if there is none."""
    part: str | None
    """What `convert` takes the network from; None where it finds none."""
    others: tuple[str, ...]
    """Other parts that hold a network: `part` takes them."""
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
                place: {
                    name: {"shape": list(tensor.shape), "dtype": dtype_name(tensor)} for name, tensor in inside.items()
                }
                for place, inside in self.groups.items()
            },
            "objects": dict(self.objects),
        }


def list_file(file: str | Path, *, part: str | None = None) -> Listing:
    """What is in a file of weights. Raises ModelFileError where it can't be read at all, UsageError without `part`."""
    path = weights_file(file)
    with opened(path) as contents:
        found = groups(contents.root)
        places = {group.name: group.tensors for group in found}
        networks = tuple(group.name for group in found if group.network)
        try:
            chosen = choose(found, part)
        except NoTensorsError as error:
            if part is not None:
                raise UsageError(f"{path}: {error}") from error
            beside = [(key, value) for key, value in children(contents.root) if leaf(value) is None]
            _, objects = around(contents.root, Group((), {}, beside))
            why = str(error) or f"it holds {held(contents.root)}"
            return Listing(path, contents.form, places, networks, objects, None, (), (), f"nothing: {why}")
        _, objects = around(contents.root, chosen.group)
        others, left = tuple(chosen.others), tuple(chosen.left)
    return Listing(path, contents.form, places, networks, objects, chosen.part, others, left, _taken_for(path, part))


def _taken_for(path: Path, part: str | None) -> str:
    """What `convert` would know of the file without more being said."""
    try:
        weights = read_weights(path, part=part)
        found = recognised(weights, None, new_head=False, where=str(path))
        like = found.like({**found.project.usual_fields, **found.project.implies, **found.facts})
    except ResnetkitError as error:
        return f"nothing: {str(error).removeprefix(str(path)).removeprefix(':').strip()}"
    return f"{found.project.name}: {', '.join(like) or 'a network that is no row of `resnetkit models`'}"


def dtype_name(tensor: AnyTensor) -> str:
    """Such as float32, or "int8, quantised"; of a tensor that is not read, why."""
    if isinstance(tensor, Unread):
        return tensor.what
    quantised = ", quantised" if isinstance(tensor, Stored) and tensor.quantised else ""
    return str(tensor.dtype).removeprefix("torch.") + quantised
