"""Muon: the momentum is replaced by the nearest orthogonal matrix before each step (Jordan et al. 2024).

https://kellerjordan.github.io/posts/muon

torch.optim.Muon accepts matrices only. This class accepts the weights of convolutions, and trains the others by SGD.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from resnetkit.kernels import operations

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""The coefficients of a·x + b·x³ + c·x⁵. A few iterations of it bring singular values in (0, 1] near 1."""
ITERATIONS = 3
"""Number of iterations, fewer than for large matrices: singular values from 0.3 to 1.3 are near enough to 1."""


class Muon(torch.optim.Optimizer):
    """SGD with Nesterov momentum. In groups with `orthogonal=True`, the orthogonal matrix nearest to it is the step.

    In these groups a weight (outputs, ...) is treated as a matrix of `outputs` rows. Its norm stays the same as at the
    first step, since batch norm after a convolution cancels every factor. The learning rate is `lr × scale` for a
    weight whose norm is sqrt(outputs), that is, whose rows have length 1 on average; it is proportional to the norm
    for other weights. A weight that starts at zero gets steps for the norm sqrt(outputs), and grows until it has this
    norm. `weight_decay`, an L2 penalty, acts in the other groups only. With `kernels`, our kernels make those matrices
    orthogonal that they support.
    """

    def __init__(self, params: ParamsT, *, lr: float, momentum: float, kernels: bool = False) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": 0.0, "orthogonal": False, "scale": 1.0}
        super().__init__(params, defaults)
        self.kernels = kernels

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # pyrefly: ignore[bad-override]
        """Take one step for all weights that have gradients."""
        loss = closure() if closure else None
        for group in self.param_groups:
            weights = [p for p in group["params"] if p.grad is not None]
            if weights:
                self._step_group(weights, group)
        return loss

    def _step_group(self, weights: list[Tensor], group: dict[str, Any]) -> None:
        momentum, rate, decay = group["momentum"], group["lr"] * group["scale"], group["weight_decay"]
        for weight in weights:
            if not self.state[weight]:
                norm = weight.norm()
                grows = group["orthogonal"] and not norm
                self.state[weight] = {
                    "momentum_buffer": torch.zeros_like(weight),
                    "norm": torch.full_like(norm, len(weight) ** 0.5) if grows else norm,
                    "grows": grows,
                }
        gradients = [p.grad for p in weights if p.grad is not None]
        if decay:
            gradients = torch._foreach_add(gradients, weights, alpha=decay)
        buffers = [self.state[weight]["momentum_buffer"] for weight in weights]
        torch._foreach_mul_(buffers, momentum)
        torch._foreach_add_(buffers, gradients)
        steps = torch._foreach_add(gradients, buffers, alpha=momentum)
        if group["orthogonal"]:
            steps = self._orthogonal(steps)
            norms = [self.state[weight]["norm"] for weight in weights]
            torch._foreach_mul_(steps, torch._foreach_div(norms, [len(weight) ** 0.5 for weight in weights]))
            factors = torch._foreach_div(norms, torch._foreach_norm(weights))
            for weight, factor in zip(weights, factors, strict=True):
                if self.state[weight].get("grows"):  # states of earlier versions do not have this entry
                    factor.clamp_(max=1)
            torch._foreach_mul_(weights, factors)
        torch._foreach_add_(weights, steps, alpha=-rate)

    def _orthogonal(self, steps: Sequence[Tensor]) -> list[Tensor]:
        """Return the same as the function `orthogonal`. The kernels, if they are used, overwrite `steps`."""
        served = [step for step in steps if self.kernels and operations.orthogonal_serves(step)]
        if served:
            operations.orthogonal(served, coefficients=COEFFICIENTS, iterations=ITERATIONS)
        done = set(map(id, served))
        others = iter(orthogonal(step for step in steps if id(step) not in done))
        return [step if id(step) in done else next(others) for step in steps]


def orthogonal(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Return tensors of the same shapes whose singular values are near 1, by Newton-Schulz iterations.

    Each tensor is treated as a matrix: its first dimension by all others. The iteration x ← (a + b·g + c·g²)·x with
    g = x·xᵀ multiplies x from one side only, so it is enough to iterate the small matrix g.
    """
    # In channels_last memory the second dimension is the last one; the order of a matrix's columns does not matter.
    given = [tensor.movedim(1, -1) for tensor in tensors]
    made: list[Tensor] = list(given)
    alike: dict[torch.Size, list[int]] = defaultdict(list)
    for place, tensor in enumerate(given):
        alike[tensor.shape].append(place)
    a, b, c = COEFFICIENTS
    for shape, places in alike.items():
        matrices = torch.stack([given[place].reshape(shape[0], -1) for place in places])
        tall = matrices.shape[1] > matrices.shape[2]
        x = matrices.mT if tall else matrices
        gram = x @ x.mT
        gram = gram / (gram.diagonal(dim1=1, dim2=2).sum(dim=1)[:, None, None] + 1e-14)  # x over its norm
        scale = 1 / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
        one = torch.eye(gram.shape[1], device=x.device, dtype=x.dtype).expand_as(gram)
        product = one
        for _ in range(ITERATIONS):
            factor = torch.baddbmm(a * one + b * gram, gram, gram, alpha=c)
            product = factor @ product
            gram = factor @ gram @ factor
        x = product @ (x * scale)
        for place, matrix in zip(places, x.mT if tall else x, strict=True):
            made[place] = matrix.reshape(shape)
    return [tensor.movedim(-1, 1) for tensor in made]
