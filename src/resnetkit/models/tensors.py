"""Tensors by name: comparing them with a network's tensors, checking their values, and putting them into a network."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from resnetkit.errors import ModelFileError

if TYPE_CHECKING:
    from torch import Tensor, nn

COUNTER = "num_batches_tracked"
"""The end of the name of a batch normalisation's counter. No prediction uses it, and files of older PyTorch versions
and of other projects do not contain it."""
VARIANCES = ("running_var", "moving_variance")  # the names in PyTorch and in Keras
Value = TypeVar("Value")


@dataclass(frozen=True)
class Misfit:
    """The difference in names and shapes between tensors and those of a network. It is false if there is none."""

    expected: Mapping[str, tuple[int, ...]]
    """Shapes of the network's tensors by name, in the network's order."""
    found: Mapping[str, tuple[int, ...]]
    """Shapes of the given tensors by name."""

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
        """Names with two different shapes."""
        return [name for name, shape in self.expected.items() if self.found.get(name, shape) != shape]

    def __bool__(self) -> bool:
        return self.expected != self.found

    def __str__(self) -> str:
        """Return a text such as: 216 of 332 tensors differ, first layer1.3.conv1.weight: not in the network."""
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
    """Compare tensors with those of a network's state dict. Counters are compared, too; see `without_counters`."""
    return Misfit(_shapes(expected), _shapes(tensors))


def _shapes(tensors: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    # A file may contain values without a shape.
    return {name: tuple(getattr(value, "shape", ())) for name, value in tensors.items()}


def without_counters(tensors: Mapping[str, Value]) -> dict[str, Value]:
    """Return the tensors without the counters of batches, which only some files contain."""
    return {name: value for name, value in tensors.items() if not name.endswith(COUNTER)}


def fill(net: "nn.Module", tensors: "Mapping[str, Tensor]", *, source: str) -> None:
    """Put `tensors` into `net`, in the dtypes of `net`. Names and shapes must fit; `net` may be on the meta device.

    Raises ModelFileError, which names `source`, for values that a network can't use: see `wrong_values`.
    """
    for name, tensor in tensors.items():
        if wrong := wrong_values(name, tensor):
            raise ModelFileError(f"{source}: {name} contains {wrong}; get weights that are not damaged")
    types = {name: tensor.dtype for name, tensor in net.state_dict().items()}
    # Cloned: some kernels round differently for other memory alignments, which the tensors of a file may have.
    own = {
        name: tensor.detach().to(types.get(name, tensor.dtype)).clone().contiguous() for name, tensor in tensors.items()
    }
    net.load_state_dict(own, assign=next(net.parameters()).is_meta)


def wrong_values(name: str, tensor: "Tensor") -> str:
    """Return a description of the values in a tensor that a network can't use; empty if it has no such values.

    These are numbers that are not finite, integer types (except in counters), and variances below 0.
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
