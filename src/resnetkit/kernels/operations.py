"""The kernels as functions of tensors. Maps have shape (n, channels, h, w), in channels_last memory, on the CPU.

All functions but `orthogonal` return new tensors. The bits of a result depend only on the input and the number of
threads.
"""

import ctypes
import math
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from resnetkit.kernels.library import library
from resnetkit.machine import read_machine

LANES = 16  # numbers of channels must be multiples of this
MOST_ROWS = 128  # most rows of a matrix that one thread makes orthogonal
LARGEST_SHARE = 0.6  # of the products of a plain convolution, for Winograd's to be faster
STRIDED_CHANNELS = (16, 32, 64, 128)  # with more channels, weights and sums do not fit into the cache

_POINTER, _LONG, _FLOAT, _INT = ctypes.c_void_p, ctypes.c_long, ctypes.c_float, ctypes.c_int
_ARGUMENTS = {
    "norm_forward": [*[_POINTER] * 3, _LONG, _LONG, *[_POINTER] * 6, _FLOAT, _FLOAT, _INT, _INT],
    "norm_backward": [*[_POINTER] * 5, _LONG, _LONG, *[_POINTER] * 7, _INT, _INT],
    "unit_forward": [*[_POINTER] * 5, *[_LONG] * 5, *[_POINTER] * 7, _FLOAT, _FLOAT, _INT, _INT],
    "strided_gradients": [*[_POINTER] * 5, *[_LONG] * 5, _INT],
    "unit_backward": [*[_POINTER] * 9, *[_LONG] * 5, *[_POINTER] * 8, _INT, _INT],
    "convolution_forward": [*[_POINTER] * 4, *[_LONG] * 5, _INT],
    "convolution_backward": [*[_POINTER] * 5, *[_LONG] * 5, _INT],
    "roi_align_forward": [*[_POINTER] * 4, _LONG, *[_POINTER] * 2, *[_LONG] * 3, _POINTER, _INT],
    "roi_align_backward": [*[_POINTER] * 5, _LONG, *[_POINTER] * 2, *[_LONG] * 3, _INT],
    "orthogonal": [*[_POINTER] * 3, _LONG, *[_FLOAT] * 3, _INT, _INT],
}
_SUFFIXES = {torch.float32: "_float32", torch.bfloat16: "_bfloat16"}


class Unfinished(NamedTuple):
    """A map y whose batch norm and ReLU are left to the next convolution, which computes them as it reads y."""

    y: Tensor
    """float32 (n, channels, h, w)."""
    norm: nn.BatchNorm2d
    mean: Tensor
    """Of y, float32 (channels,)."""
    inverse_std: Tensor
    """1 / standard deviation of y, float32 (channels,)."""

    @property
    def shape(self) -> torch.Size:
        """Shape of y."""
        return self.y.shape

    @property
    def dtype(self) -> torch.dtype:
        """Type of y."""
        return self.y.dtype


class _Input(ctypes.Structure):
    """The struct Input of winograd_float32.h."""

    _fields_ = [(name, _POINTER) for name in ("map", "gain", "bias", "mean", "inverse_std")]


def norm_forward(
    y: Tensor,
    norm: nn.BatchNorm2d,
    *,
    beside: Tensor | None = None,
    relu: bool,
    update: bool = True,
    finish: bool = True,
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Compute z = relu(batch_norm(y) + beside) in training mode. Return z, mean and 1 / standard deviation of y.

    `y`, `beside` and z are float32 or bfloat16 maps; mean and 1 / deviation are float32 (channels,). Without `relu`,
    the ReLU is left out. With `update`, the batch changes the running statistics. Without `finish`, z is None, and the
    next convolution takes y as Unfinished.
    """
    channels = y.shape[1]
    z = torch.empty_like(y) if finish else None
    mean, inverse_std = torch.empty(2, channels).unbind()
    _kernel("norm_forward", y.dtype)(
        y.data_ptr(),
        _pointer(beside),
        _pointer(z),
        y.numel() // channels,
        channels,
        norm.weight.data_ptr(),
        norm.bias.data_ptr(),
        _pointer(norm.running_mean if update else None),
        _pointer(norm.running_var if update else None),
        mean.data_ptr(),
        inverse_std.data_ptr(),
        norm.momentum,
        norm.eps,
        relu,
        torch.get_num_threads(),
    )
    if update and norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
    return z, mean, inverse_std


def norm_backward(
    grad: Tensor,
    y: Tensor,
    z: Tensor | None,
    norm: nn.BatchNorm2d,
    mean: Tensor,
    inverse_std: Tensor,
    *,
    beside: bool,
    relu: bool,
    products: Tensor | None = None,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """Return the gradients of norm_forward's `y`, its `beside`, and the weight and bias of `norm`.

    `grad` is the gradient of `z`; `z`, `mean` and `inverse_std` are norm_forward's results. The gradient of `beside` is
    None if the argument `beside` is false. `products` is what unit_backward returned for an unfinished map.
    """
    channels = y.shape[1]
    grad_y = torch.empty_like(y)
    grad_beside = torch.empty_like(y) if beside else None
    grad_gain, grad_bias = torch.empty(2, channels).unbind()
    _kernel("norm_backward", y.dtype)(
        grad.data_ptr(),
        y.data_ptr(),
        _pointer(z),
        grad_y.data_ptr(),
        _pointer(grad_beside),
        y.numel() // channels,
        channels,
        norm.weight.data_ptr(),
        norm.bias.data_ptr(),
        mean.data_ptr(),
        inverse_std.data_ptr(),
        _pointer(products),
        grad_gain.data_ptr(),
        grad_bias.data_ptr(),
        relu,
        torch.get_num_threads(),
    )
    return grad_y, grad_beside, grad_gain, grad_bias


def winograd_serves(conv: nn.Conv2d, x: Tensor | Unfinished) -> bool:
    """Return whether unit_forward and unit_backward support this convolution of `x` and are faster than oneDNN."""
    kind = (conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups)
    if kind != ((3, 3), (1, 1), (1, 1), (1, 1), 1):
        return False
    if x.dtype == torch.float32:
        return _winograd_float32_serves(x.shape[2], x.shape[3], conv.in_channels, conv.out_channels)
    return _winograd_serves(x.shape[2], x.shape[3], conv.in_channels, conv.out_channels)


@cache
def _winograd_float32_serves(height: int, width: int, inputs: int, outputs: int) -> bool:
    """Return whether the tiles of 4 × 4 places cover the map with few places outside it."""
    fits = inputs % LANES == outputs % LANES == 0 and products_left(height, width) <= LARGEST_SHARE
    return fits and library() is not None


def products_left(height: int, width: int) -> float:
    """Return the products of a 3×3 convolution by F(4×4, 3×3), as a share of those of a plain convolution.

    A tile of 4 × 4 places needs 36 for each pair of channels, and a plain convolution 9 for each place.
    """
    return 36 * math.ceil(height / 4) * math.ceil(width / 4) / (9 * height * width)


@cache
def _winograd_serves(height: int, width: int, inputs: int, outputs: int) -> bool:
    lib = library()
    if lib is None or not hasattr(lib, "unit_serves") or _has_tiles():
        return False
    return bool(lib.unit_serves(*map(_LONG, (height, width, inputs, outputs))))


@cache
def _has_tiles() -> bool:
    """Return whether oneDNN can multiply bfloat16 with AMX, which is several times faster than these kernels."""
    return "amx_bf16" in read_machine().instructions


def unit_forward(
    x: Tensor | Unfinished,
    conv: nn.Conv2d,
    norm: nn.BatchNorm2d,
    *,
    beside: Tensor | None = None,
    origin: Tensor,
    relu: bool,
    update: bool = True,
    finish: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Compute y = conv(x) and norm_forward of y. Return y, mean, 1 / standard deviation, and norm_forward's map z.

    Call it only if winograd_serves. `origin`, float32 (channels,), is a guess of the mean, for example the running
    mean: it is subtracted before moments are summed, and changes results by rounding only.
    """
    weight = conv.weight.detach().contiguous(memory_format=torch.channels_last)
    images, inputs, height, width = x.shape
    outputs = conv.out_channels
    y = torch.empty((images, outputs, height, width), dtype=x.dtype, memory_format=torch.channels_last)
    z = torch.empty_like(y) if finish else None
    mean, inverse_std = torch.empty(2, outputs).unbind()
    _kernel("unit_forward", x.dtype)(
        _input(x),
        weight.data_ptr(),
        _pointer(beside),
        y.data_ptr(),
        _pointer(z),
        images,
        height,
        width,
        inputs,
        outputs,
        norm.weight.data_ptr(),
        norm.bias.data_ptr(),
        origin.data_ptr(),
        _pointer(norm.running_mean if update else None),
        _pointer(norm.running_var if update else None),
        mean.data_ptr(),
        inverse_std.data_ptr(),
        norm.momentum,
        norm.eps,
        relu,
        torch.get_num_threads(),
    )
    if update and norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
    return y, mean, inverse_std, z


def unit_backward(
    grad: Tensor,
    x: Tensor | Unfinished,
    y: Tensor,
    z: Tensor | None,
    conv: nn.Conv2d,
    norm: nn.BatchNorm2d,
    mean: Tensor,
    inverse_std: Tensor,
    *,
    input_too: bool,
    beside: bool,
    added: Tensor | None = None,
    relu: bool,
    products: Tensor | None = None,
) -> tuple[Tensor | None, Tensor | None, Tensor, Tensor, Tensor, Tensor | None]:
    """Return the gradients of unit_forward's `x`, its `beside`, and the weights of conv and weight and bias of norm.

    `grad` is the gradient of `z`. The gradient of `x` is None without `input_too`; `added` is added to it, which an
    unfinished `x` excludes. The gradient of `beside` is None if the argument `beside` is false.

    If `x` is unfinished, the gradient is that of its map z, and the last result is not None: sums for the `products` of
    the unit that computed `x`, float32 (2, channels).
    """
    weight = conv.weight.detach().contiguous(memory_format=torch.channels_last)
    images, inputs, height, width = x.shape
    outputs = conv.out_channels
    grad_x = torch.empty(x.shape, dtype=x.dtype, memory_format=torch.channels_last) if input_too else None
    grad_beside = torch.empty_like(y) if beside else None
    grad_weight = torch.empty_like(weight)
    grad_gain, grad_bias = torch.empty(2, outputs).unbind()
    in_products = torch.empty(2, inputs) if isinstance(x, Unfinished) else None
    _kernel("unit_backward", x.dtype)(
        grad.data_ptr(),
        _input(x),
        weight.data_ptr(),
        y.data_ptr(),
        _pointer(z),
        _pointer(grad_x),
        _pointer(grad_beside),
        _pointer(added),
        grad_weight.data_ptr(),
        images,
        height,
        width,
        inputs,
        outputs,
        norm.weight.data_ptr(),
        norm.bias.data_ptr(),
        mean.data_ptr(),
        inverse_std.data_ptr(),
        _pointer(products),
        grad_gain.data_ptr(),
        grad_bias.data_ptr(),
        _pointer(in_products),
        relu,
        torch.get_num_threads(),
    )
    return grad_x, grad_beside, grad_weight, grad_gain, grad_bias, in_products


def convolution_forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return the 3×3 convolution of stride 1 and padding 1, by Winograd's F(4×4, 3×3), plus `bias` per channel.

    `x` is float32 (n, inputs, h, w), `weight` float32 (outputs, inputs, 3, 3). Call it only if winograd_serves.
    """
    x, weight = (one.contiguous(memory_format=torch.channels_last) for one in (x, weight))
    images, inputs, height, width = x.shape
    y = torch.empty((images, len(weight), height, width), memory_format=torch.channels_last)
    _kernel("convolution_forward", x.dtype)(
        x.data_ptr(),
        weight.data_ptr(),
        _pointer(bias),
        y.data_ptr(),
        *(images, height, width, inputs, len(weight)),
        torch.get_num_threads(),
    )
    return y


def convolution_backward(grad: Tensor, x: Tensor, weight: Tensor, *, input_too: bool) -> tuple[Tensor | None, Tensor]:
    """Return the gradients of convolution_forward's `x` and `weight`, from the gradient `grad` of its result.

    The gradient of `x` is None without `input_too`.
    """
    grad, x, weight = (one.contiguous(memory_format=torch.channels_last) for one in (grad, x, weight))
    images, inputs, height, width = x.shape
    grad_x = torch.empty_like(x) if input_too else None
    grad_weight = torch.empty_like(weight)
    _kernel("convolution_backward", x.dtype)(
        grad.data_ptr(),
        x.data_ptr(),
        weight.data_ptr(),
        _pointer(grad_x),
        grad_weight.data_ptr(),
        *(images, height, width, inputs, len(weight)),
        torch.get_num_threads(),
    )
    return grad_x, grad_weight


class Pyramid(NamedTuple):
    """Where regions lie in the maps of a pyramid."""

    regions: Tensor
    """float32 (count, 5): the index of the image, then left, top, right and bottom in its pixels."""
    levels: Tensor
    """int64 (count,): the index of each region's map."""
    scales: tuple[float, ...]
    """For each map, its size / the size of the image."""


def roi_align_forward(maps: Sequence[Tensor], where: Pyramid, *, bins: int, samples: int) -> Tensor:
    """Return the regions' values, float32 (count, channels, bins, bins), in channels_last memory.

    It is torchvision.ops.roi_align with aligned=False. `maps` are float32 (n, channels, h, w), whose channels are a
    multiple of LANES. A bin is the mean over `samples` × `samples` points.
    """
    maps = [one.contiguous(memory_format=torch.channels_last) for one in maps]
    channels = maps[0].shape[1]
    regions, levels = where.regions.contiguous(), where.levels.contiguous()
    out = torch.empty((len(regions), channels, bins, bins), memory_format=torch.channels_last)
    _kernel("roi_align_forward")(
        *_pyramid(maps, where),
        channels,
        regions.data_ptr(),
        levels.data_ptr(),
        *(len(regions), bins, samples),
        out.data_ptr(),
        torch.get_num_threads(),
    )
    return out


def roi_align_backward(
    grad: Tensor, shapes: Sequence[torch.Size], where: Pyramid, *, bins: int, samples: int
) -> list[Tensor]:
    """Return the gradients of roi_align_forward's `maps`, which have these shapes, from the gradient of its result."""
    grad = grad.contiguous(memory_format=torch.channels_last)
    gradients = [torch.empty(shape, memory_format=torch.channels_last).zero_() for shape in shapes]
    regions, levels = where.regions.contiguous(), where.levels.contiguous()
    _kernel("roi_align_backward")(
        grad.data_ptr(),
        *_pyramid(gradients, where),
        shapes[0][1],
        regions.data_ptr(),
        levels.data_ptr(),
        *(len(regions), bins, samples),
        torch.get_num_threads(),
    )
    return gradients


def _pyramid(maps: Sequence[Tensor], where: Pyramid) -> tuple[Any, Any, Any, Any]:
    """Return the arrays of the maps' addresses, heights, widths and scales."""
    longs = _LONG * len(maps)
    return (
        (_POINTER * len(maps))(*(one.data_ptr() for one in maps)),
        longs(*(one.shape[2] for one in maps)),
        longs(*(one.shape[3] for one in maps)),
        (_FLOAT * len(maps))(*where.scales),
    )


def strided_serves(conv: nn.Conv2d, x: Tensor) -> bool:
    """Return whether strided_gradients supports this convolution of `x`."""
    lib = library()
    kind = (conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups)
    fits = kind == ((3, 3), (2, 2), (1, 1), (1, 1), 1) and x.shape[2] % 2 == 0 and x.shape[3] % 8 == 0
    widths = conv.in_channels in STRIDED_CHANNELS and conv.out_channels in STRIDED_CHANNELS
    fits = fits and widths and x.dtype == torch.bfloat16 and not _has_tiles()
    return fits and lib is not None and hasattr(lib, "strided_gradients")


def strided_gradients(grad: Tensor, x: Tensor, conv: nn.Conv2d, *, input_too: bool) -> tuple[Tensor | None, Tensor]:
    """Return the gradients of a 3×3 convolution of stride 2: of `x`, bfloat16, and of its weight, float32.

    `grad` is the gradient of the output. The gradient of `x` is None without `input_too`.
    """
    weight = conv.weight.detach().contiguous(memory_format=torch.channels_last)
    images, outputs, height, width = grad.shape
    grad_x = torch.empty_like(x, memory_format=torch.channels_last) if input_too else None
    grad_weight = torch.empty_like(weight)
    _kernel("strided_gradients")(
        grad.data_ptr(),
        x.data_ptr(),
        weight.data_ptr(),
        _pointer(grad_x),
        grad_weight.data_ptr(),
        images,
        height,
        width,
        x.shape[1],
        outputs,
        torch.get_num_threads(),
    )
    return grad_x, grad_weight


def orthogonal_serves(weight: Tensor) -> bool:
    """Return whether `orthogonal` supports this shape and memory layout, and is faster than torch's products."""
    rows, columns = weight.shape[0], weight[0].numel()
    in_rows = weight.movedim(1, -1).is_contiguous() and weight.dtype == torch.float32
    return in_rows and rows <= min(columns, MOST_ROWS) and rows % LANES == 0 and columns % LANES == 0


def orthogonal(tensors: Sequence[Tensor], *, coefficients: tuple[float, float, float], iterations: int) -> None:
    """Bring the singular values of matrices near 1, in place. See `train.muon.orthogonal`.

    Call it only if orthogonal_serves for each tensor.
    """
    longs = ctypes.c_long * len(tensors)
    _kernel("orthogonal")(
        (ctypes.c_void_p * len(tensors))(*(tensor.data_ptr() for tensor in tensors)),
        longs(*(len(tensor) for tensor in tensors)),
        longs(*(tensor[0].numel() for tensor in tensors)),
        len(tensors),
        *coefficients,
        iterations,
        torch.get_num_threads(),
    )


def _input(x: Tensor | Unfinished) -> Any:
    """Return the argument for a unit's input: float32 as a struct, bfloat16 as a pointer."""
    if isinstance(x, Unfinished):
        tensors = (x.y, x.norm.weight, x.norm.bias, x.mean, x.inverse_std)
        return ctypes.byref(_Input(*(tensor.data_ptr() for tensor in tensors)))
    return ctypes.byref(_Input(x.data_ptr())) if x.dtype == torch.float32 else x.data_ptr()


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


_FOUND: dict[tuple[str, torch.dtype | None], "ctypes._NamedFuncPointer"] = {}


def _kernel(name: str, dtype: torch.dtype | None = None) -> "ctypes._NamedFuncPointer":
    """Return the compiled function, with the types of its arguments. Raises RuntimeError if there are no kernels."""
    if (name, dtype) not in _FOUND:
        lib = library()
        if lib is None:
            raise RuntimeError("the kernels are not available; check library() first")
        function = lib[name + (_SUFFIXES[dtype] if dtype else "")]
        function.argtypes, function.restype = _ARGUMENTS[name], None
        _FOUND[name, dtype] = function
    return _FOUND[name, dtype]
