"""Convolutions with batch norm for the tests of kernels, and their results in float64."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resnetkit.kernels import operations as kernels


def random_map(*shape: int, dtype: torch.dtype, seed: int = 0, scale: float = 1.0, mean: float = 0.0) -> Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale + mean
    return values.to(dtype).contiguous(memory_format=torch.channels_last)


def random_norm(channels: int, *, seed: int = 0, **arguments: float) -> nn.BatchNorm2d:
    generator = torch.Generator().manual_seed(seed)
    norm = nn.BatchNorm2d(channels, **arguments)
    for tensor, least in ((norm.weight, 0.5), (norm.bias, -0.5), (norm.running_mean, -1), (norm.running_var, 0.5)):
        tensor.data = torch.rand(channels, generator=generator) + least
    return norm


def double(module: nn.Module) -> nn.Module:
    twin = type(module).__new__(type(module))
    twin.__dict__ = {**module.__dict__}
    twin._parameters = {
        k: None if v is None else nn.Parameter(v.detach().double()) for k, v in module._parameters.items()
    }
    twin._buffers = {k: v.double() if v.is_floating_point() else v.clone() for k, v in module._buffers.items()}
    return twin


def off_by(got: Tensor, wanted: Tensor) -> float:
    """Return the largest difference divided by the largest value."""
    return float((got.double() - wanted).detach().abs().max() / wanted.detach().abs().max().clamp_min(1e-30))


def error(got: Tensor, wanted: Tensor) -> float:
    """Return the root mean square of the difference divided by that of the values."""
    return float((got.double() - wanted).detach().norm() / wanted.detach().norm())


def conv3x3(inputs: int, outputs: int, *, seed: int = 0) -> nn.Conv2d:
    torch.manual_seed(seed)
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=False).to(memory_format=torch.channels_last)


class UnitCase:
    """A convolution with batch norm: the kernels' outputs, and float64's for the same rounded numbers."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        shape: tuple[int, int, int],
        *,
        beside: bool,
        relu: bool,
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        images, height, width = shape
        self.x = random_map(images, inputs, height, width, dtype=dtype, seed=1)
        self.other, self.grad = (random_map(images, outputs, height, width, dtype=dtype, seed=s) for s in (2, 3))
        self.added = random_map(images, inputs, height, width, dtype=dtype, seed=4)
        self.conv, self.norm = conv3x3(inputs, outputs), random_norm(outputs)
        self.exact_conv, self.exact_norm = double(self.conv), double(self.norm)
        self.beside, self.relu = beside, relu

    def forward(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        other = self.other if self.beside else None
        origin = self.norm.running_mean.clone()
        return kernels.unit_forward(self.x, self.conv, self.norm, beside=other, origin=origin, relu=self.relu)

    def backward(self, y, mean, inverse_std, z, *, input_too=True, added=None):
        return kernels.unit_backward(
            *(self.grad, self.x, y, z, self.conv, self.norm, mean, inverse_std),
            input_too=input_too,
            beside=self.beside,
            added=added,
            relu=self.relu,
        )

    def exact(self, passed: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return convolution, output, and gradients of input and weight; `passed` is 1 where ReLU is active."""
        x, other = self.x.double().requires_grad_(), self.other.double()
        y = self.exact_conv(x)
        z = self.exact_norm(y) + (other if self.beside else 0)
        (z * passed).backward(self.grad.double())
        return y.detach(), (F.relu(z) if self.relu else z).detach(), x.grad, self.exact_conv.weight.grad


def check_added(case: UnitCase, bound: float) -> None:
    """Check that a map is added to the gradient of the input, within the error `bound`, and changes nothing else."""
    kept = case.forward()
    plain, beside, *rest, _ = case.backward(*kept)
    with_added, _, *rest_with, _ = case.backward(*kept, added=case.added)
    assert error(with_added, plain.double() + case.added.double()) < bound
    assert all(torch.equal(a, b) for a, b in zip(rest, rest_with, strict=True))
    nothing, same_beside, *rest_without, _ = case.backward(*kept, input_too=False, added=case.added)
    assert nothing is None
    assert torch.equal(beside, same_beside)
    assert all(torch.equal(a, b) for a, b in zip(rest, rest_without, strict=True))


def check_same_bits(case: UnitCase) -> None:
    """Check that three runs of a unit have the same bits."""
    runs = []
    for _ in range(3):
        case.norm = random_norm(case.conv.out_channels)
        kept = case.forward()
        *gradients, _ = case.backward(*kept, added=case.added)
        runs.append([*kept, *gradients, case.norm.running_mean, case.norm.running_var])
        torch.randn(1000, 1000).relu_()  # other work in the same memory and threads
    for other in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], other, strict=True))
