"""Tensors by name: whether they are those of a network, and how they come into it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from resnetkit.errors import ModelFileError

if TYPE_CHECKING:
    from torch import Tensor

    from resnetkit.models.resnet import ResNet

COUNTER = "num_batches_tracked"
"""A number beside each batch normalisation that no prediction uses; older PyTorch and other projects have none."""
VARIANCES = ("running_var", "moving_variance")  # as PyTorch and Keras call them
Value = TypeVar("Value")


@dataclass(frozen=True)
class Misfit:
    """How tensors differ from those that a network expects, by name and shape; false where they don't."""

    expected: Mapping[str, tuple[int, ...]]
    """Shapes by name, in the network's order."""
    found: Mapping[str, tuple[int, ...]]

    @property
    def missing(self) -> list[str]:
        """Names that only the network has."""
        return [name for name in self.expected if name not in self.found]

    @property
    def unexpected(self) -> list[str]:
        """Names that the network does not have."""
        return [name for name in self.found if name not in self.expected]

    @property
    def misshaped(self) -> list[str]:
        """Names that both have, with different shapes."""
        return [name for name, shape in self.expected.items() if self.found.get(name, shape) != shape]

    def __bool__(self) -> bool:
        return self.expected != self.found

    def __str__(self) -> str:
        """Such as: 216 of 332 tensors differ, first layer1.3.conv1.weight: not in the network."""
        wrong = {*self.missing, *self.unexpected, *self.misshaped}
        if not wrong:
            return ""
        both = {**self.expected, **self.found}
        first = next(name for name in both if name in wrong)
        if first not in self.found:
            what = "missing"
        elif first not in self.expected:
            what = "not in the network"
        else:
            what = f"of shape {self.found[first]}, not {self.expected[first]}"
        return f"{len(wrong)} of {len(both)} tensors differ, first {first}: {what}"


def compare(expected: "Mapping[str, Tensor]", tensors: "Mapping[str, Tensor]") -> Misfit:
    """Compare tensors with those of a network's state dict. Counters count; see `without_counters`."""
    return Misfit(_shapes(expected), _shapes(tensors))


def _shapes(tensors: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(getattr(value, "shape", ())) for name, value in tensors.items()}  # a file may hold other values


def without_counters(tensors: Mapping[str, Value]) -> dict[str, Value]:
    """The tensors less the counters of batches, which some normalisations have and some not."""
    return {name: value for name, value in tensors.items() if not name.endswith(COUNTER)}


def fill(net: "ResNet", tensors: "Mapping[str, Tensor]", *, source: str) -> None:
    """Put `tensors`, which fit, into `net`, in the dtypes of `net`; a net on the meta device gets their memory.

    Raises ModelFileError, with `source`, where a value can't be one of a network: see `wrong_values`.
    """
    for name, tensor in tensors.items():
        if wrong := wrong_values(name, tensor):
            raise ModelFileError(f"{source}: {name} holds {wrong}; get weights that are whole")
    types = {name: tensor.dtype for name, tensor in net.state_dict().items()}
    # Cloned: some kernels round differently at the addresses of a file's tensors than where torch puts its own.
    own = {
        name: tensor.detach().to(types.get(name, tensor.dtype)).clone().contiguous() for name, tensor in tensors.items()
    }
    net.load_state_dict(own, assign=next(net.parameters()).is_meta)


def wrong_values(name: str, tensor: "Tensor") -> str:
    """What a tensor holds that no network can compute with: "numbers that are not finite"; empty where all is well.

    Whole numbers are wrong, too, except in counters; and so are variances below 0, whose root is not a number.
    """
    if COUNTER in name:
        return ""
    if not tensor.is_floating_point():
        return f"{str(tensor.dtype).removeprefix('torch.')}, not floating-point numbers"
    if not tensor.float().isfinite().all():
        return "numbers that are not finite"
    if name.endswith(VARIANCES) and tensor.numel() and tensor.float().min() < 0:
        return "variances below 0"
    return ""
