"""A 3×3 convolution by our kernels, as an operation that autograd differentiates."""

from typing import Any, cast

import torch
from torch import Tensor

from resnetkit.kernels import operations


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return the 3×3 convolution of stride 1 and padding 1, plus `bias` per channel, with all gradients.

    Shapes and dtypes are those of `operations.convolution_forward`. Call it only if `operations.winograd_serves`.
    """
    return cast("Tensor", _Convolution.apply(x, weight, bias))


class _Convolution(torch.autograd.Function):
    @staticmethod
    # pyrefly: ignore[bad-override]
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return operations.convolution_forward(x, weight, bias)

    @staticmethod
    # pyrefly: ignore[bad-override]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, Tensor | None]:
        x, weight = ctx.saved_tensors
        grad_x, grad_weight = operations.convolution_backward(grad, x, weight, input_too=ctx.needs_input_grad[0])
        return grad_x, grad_weight, grad.sum((0, 2, 3)) if ctx.needs_input_grad[2] else None
