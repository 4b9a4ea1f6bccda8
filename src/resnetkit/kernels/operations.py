"""The kernels on tensors. Maps have shape (n, channels, h, w), in channels_last memory, on the CPU.

Every function writes to a new tensor and gives the same bits for the same numbers and count of threads.
"""

import ctypes
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor, nn

from resnetkit.kernels.library import library
from resnetkit.machine import read_machine

LANES = 16  # channels come in multiples of it
MOST_ROWS = 128  # of a matrix that one thread makes orthogonal
STRIDED_CHANNELS = (16, 32, 64, 128)  # with more, weights and sums no longer stay in the cache

_POINTER, _LONG, _FLOAT, _INT = ctypes.c_void_p, ctypes.c_long, ctypes.c_float, ctypes.c_int
_ARGUMENTS = {
    "norm_forward": [*[_POINTER] * 3, _LONG, _LONG, *[_POINTER] * 6, _FLOAT, _FLOAT, _INT, _INT],
    "norm_backward": [*[_POINTER] * 5, _LONG, _LONG, *[_POINTER] * 5, _INT, _INT],
    "unit_forward": [*[_POINTER] * 5, *[_LONG] * 5, *[_POINTER] * 7, _FLOAT, _FLOAT, _INT, _INT],
    "strided_gradients": [*[_POINTER] * 5, *[_LONG] * 5, _INT],
    "unit_backward": [*[_POINTER] * 9, *[_LONG] * 5, *[_POINTER] * 5, _INT, _INT],
    "orthogonal": [*[_POINTER] * 3, _LONG, *[_FLOAT] * 3, _INT, _INT],
}
_SUFFIXES = {torch.float32: "_float32", torch.bfloat16: "_bfloat16"}


def norm_forward(
    y: Tensor, norm: nn.BatchNorm2d, *, beside: Tensor | None = None, relu: bool, update: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """relu(batch_norm(y) + beside) in training mode, with the batch's mean and 1 / deviation, float32 per channel.

    `update` counts the batch in the running statistics.
    """
    channels = y.shape[1]
    z = torch.empty_like(y)
    mean, inverse_std = torch.empty(2, channels).unbind()
    _kernel("norm_forward", y.dtype)(
        y.data_ptr(),
        _pointer(beside),
        z.data_ptr(),
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
    z: Tensor,
    norm: nn.BatchNorm2d,
    mean: Tensor,
    inverse_std: Tensor,
    *,
    beside: bool,
    relu: bool,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """Gradients of what norm_forward got: y, beside (or None), weight and bias. `z` is what it gave."""
    channels = y.shape[1]
    grad_y = torch.empty_like(y)
    grad_beside = torch.empty_like(y) if beside else None
    grad_gain, grad_bias = torch.empty(2, channels).unbind()
    _kernel("norm_backward", y.dtype)(
        grad.data_ptr(),
        y.data_ptr(),
        z.data_ptr(),
        grad_y.data_ptr(),
        _pointer(grad_beside),
        y.numel() // channels,
        channels,
        norm.weight.data_ptr(),
        mean.data_ptr(),
        inverse_std.data_ptr(),
        grad_gain.data_ptr(),
        grad_bias.data_ptr(),
        relu,
        torch.get_num_threads(),
    )
    return grad_y, grad_beside, grad_gain, grad_bias


def winograd_serves(conv: nn.Conv2d, x: Tensor) -> bool:
    """Whether unit_forward and unit_backward take this convolution of `x`, and are faster than oneDNN."""
    kind = (conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups)
    if x.dtype != torch.bfloat16 or kind != ((3, 3), (1, 1), (1, 1), (1, 1), 1):
        return False
    return _winograd_serves(x.shape[2], x.shape[3], conv.in_channels, conv.out_channels)


@cache
def _winograd_serves(height: int, width: int, inputs: int, outputs: int) -> bool:
    lib = library()
    if lib is None or not hasattr(lib, "unit_serves") or _has_tiles():
        return False
    return bool(lib.unit_serves(*map(_LONG, (height, width, inputs, outputs))))


@cache
def _has_tiles() -> bool:
    """Whether oneDNN multiplies bfloat16 in AMX's tiles, several times the rate that these kernels can reach."""
    return "amx_bf16" in read_machine().instructions


def unit_forward(
    x: Tensor,
    conv: nn.Conv2d,
    norm: nn.BatchNorm2d,
    *,
    beside: Tensor | None = None,
    origin: Tensor,
    relu: bool,
    update: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """conv(x), then norm_forward of it: (conv(x), mean, 1 / deviation, what comes out). Where winograd_serves.

    Moments are summed around `origin`, a guess of the mean: no number depends on it but by rounding.
    """
    weight = conv.weight.detach().contiguous(memory_format=torch.channels_last)
    images, inputs, height, width = x.shape
    outputs = conv.out_channels
    y = torch.empty((images, outputs, height, width), dtype=x.dtype, memory_format=torch.channels_last)
    z = torch.empty_like(y)
    mean, inverse_std = torch.empty(2, outputs).unbind()
    _kernel("unit_forward")(
        x.data_ptr(),
        weight.data_ptr(),
        _pointer(beside),
        y.data_ptr(),
        z.data_ptr(),
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
    x: Tensor,
    y: Tensor,
    z: Tensor,
    conv: nn.Conv2d,
    norm: nn.BatchNorm2d,
    mean: Tensor,
    inverse_std: Tensor,
    *,
    input_too: bool,
    beside: bool,
    added: Tensor | None = None,
    relu: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor, Tensor, Tensor]:
    """Gradients of what unit_forward got: x (if `input_too`), beside (or None), and conv's and norm's parameters.

    `added` is added to that of x.
    """
    weight = conv.weight.detach().contiguous(memory_format=torch.channels_last)
    images, inputs, height, width = x.shape
    outputs = conv.out_channels
    grad_x = torch.empty_like(x, memory_format=torch.channels_last) if input_too else None
    grad_beside = torch.empty_like(y) if beside else None
    grad_weight = torch.empty_like(weight)
    grad_gain, grad_bias = torch.empty(2, outputs).unbind()
    _kernel("unit_backward")(
        grad.data_ptr(),
        x.data_ptr(),
        weight.data_ptr(),
        y.data_ptr(),
        z.data_ptr(),
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
        mean.data_ptr(),
        inverse_std.data_ptr(),
        grad_gain.data_ptr(),
        grad_bias.data_ptr(),
        relu,
        torch.get_num_threads(),
    )
    return grad_x, grad_beside, grad_weight, grad_gain, grad_bias


def strided_serves(conv: nn.Conv2d, x: Tensor) -> bool:
    """Whether strided_gradients takes this convolution of `x`."""
    lib = library()
    kind = (conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups)
    fits = kind == ((3, 3), (2, 2), (1, 1), (1, 1), 1) and x.shape[2] % 2 == 0 and x.shape[3] % 8 == 0
    widths = conv.in_channels in STRIDED_CHANNELS and conv.out_channels in STRIDED_CHANNELS
    fits = fits and widths and x.dtype == torch.bfloat16 and not _has_tiles()
    return fits and lib is not None and hasattr(lib, "strided_gradients")


def strided_gradients(grad: Tensor, x: Tensor, conv: nn.Conv2d, *, input_too: bool) -> tuple[Tensor | None, Tensor]:
    """Gradients of a 3×3 convolution of stride 2: its input's, bfloat16 (if `input_too`), and its weight's, float32."""
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
    """Whether `orthogonal` takes a tensor of this shape, as it lies in memory, and is faster than torch's products."""
    rows, columns = weight.shape[0], weight[0].numel()
    in_rows = weight.movedim(1, -1).is_contiguous() and weight.dtype == torch.float32
    return in_rows and rows <= min(columns, MOST_ROWS) and rows % LANES == 0 and columns % LANES == 0


def orthogonal(tensors: Sequence[Tensor], *, coefficients: tuple[float, float, float], iterations: int) -> None:
    """Bring the singular values of matrices near 1, in place: `train.muon.orthogonal`, where orthogonal_serves."""
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


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


_FOUND: dict[tuple[str, torch.dtype | None], "ctypes._NamedFuncPointer"] = {}


def _kernel(name: str, dtype: torch.dtype | None = None) -> "ctypes._NamedFuncPointer":
    """The compiled function, with the types of its arguments."""
    if (name, dtype) not in _FOUND:
        lib = library()
        if lib is None:
            raise RuntimeError("the kernels are not there; ask library() first")
        function = lib[name + (_SUFFIXES[dtype] if dtype else "")]
        function.argtypes, function.restype = _ARGUMENTS[name], None
        _FOUND[name, dtype] = function
    return _FOUND[name, dtype]
