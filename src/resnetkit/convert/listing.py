"""List the content of a file of weights: `resnetkit convert --list`. It helps when a file can't be converted."""

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
    """The content of a file, and the network that `convert` would find in it."""

    path: Path
    form: str
    """PyTorch, TorchScript, safetensors, HDF5, Keras or .npz."""
    groups: Mapping[str, Mapping[str, AnyTensor]]
    """Nested name of each group of tensors in the file -> the group's tensors by name; "" is the top level."""
    networks: tuple[str, ...]
    """Names of the groups that contain a network."""
    objects: Mapping[str, object]
    """The values outside the chosen group, as plain values by nested name; all values if no group is chosen."""
    part: str | None
    """The part that `convert` reads the network from; None if it finds no network."""
    others: tuple[str, ...]
    """Other parts that contain a network, as `part` accepts them."""
    left_out: tuple[str, ...]
    """Prefixes in the group that do not belong to the network."""
    taken_for: str
    """The project and the network that `convert` recognises; or the reason why it can't convert the file."""

    def document(self) -> dict[str, object]:
        """Return the content of the JSON document that `--json` prints."""
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
    """List the content of a file of weights, and the network in `part` or, without it, in the part that is chosen.

    Raises ModelFileError if the file can't be read, UsageError if it has no such part.
    """
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
            why = str(error) or f"it contains {held(contents.root)}"
            return Listing(path, contents.form, places, networks, objects, None, (), (), f"nothing: {why}")
        _, objects = around(contents.root, chosen.group)
        others, left = tuple(chosen.others), tuple(chosen.left)
    return Listing(path, contents.form, places, networks, objects, chosen.part, others, left, _taken_for(path, part))


def _taken_for(path: Path, part: str | None) -> str:
    """Return the project and the network that `convert` recognises without further arguments, or the reason why not."""
    try:
        weights = read_weights(path, part=part)
        found = recognised(weights, None, new_head=False, where=str(path))
        like = found.like({**found.project.usual_fields, **found.project.implies, **found.facts})
    except ResnetkitError as error:
        return f"nothing: {str(error).removeprefix(str(path)).removeprefix(':').strip()}"
    return f"{found.project.name}: {', '.join(like) or 'a network that is no row of `resnetkit models`'}"


def dtype_name(tensor: AnyTensor) -> str:
    """Return the dtype ("float32", "int8, quantised") or, for a tensor that can't be read, why ("a sparse tensor")."""
    if isinstance(tensor, Unread):
        return tensor.what
    quantised = ", quantised" if isinstance(tensor, Stored) and tensor.quantised else ""
    return str(tensor.dtype).removeprefix("torch.") + quantised
