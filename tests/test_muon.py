"""Muon: orthogonal steps for convolutions, SGD for the rest."""

from copy import deepcopy

import pytest
import torch

from resnetkit.kernels import operations
from resnetkit.kernels.library import library, status
from resnetkit.models.resnet import build
from resnetkit.train.computing.muon import COEFFICIENTS, ITERATIONS, Muon, orthogonal
from resnetkit.train.computing.optim import make_optimizer
from resnetkit.train.recipe import Recipe


@pytest.mark.parametrize("shape", [(16, 16, 3, 3), (64, 32, 3, 3), (256, 16, 1, 1), (8, 8)])
def test_singular_values_are_near_one(shape):
    torch.manual_seed(0)
    (made,) = orthogonal([torch.randn(shape)])
    values = torch.linalg.svdvals(made.reshape(shape[0], -1))
    assert made.shape == torch.Size(shape)
    assert values.max() < 1.3
    assert values.median() > 0.6


def test_tensors_of_one_shape_do_not_meet():
    torch.manual_seed(0)
    first, second, other = torch.randn(16, 8, 3, 3), torch.randn(16, 8, 3, 3), torch.randn(4, 8, 1, 1)
    together = orthogonal([first, other, second])
    for made, alone in zip(together, (first, other, second), strict=True):
        torch.testing.assert_close(made, orthogonal([alone])[0])


def test_the_scale_of_a_gradient_does_not_matter():
    torch.manual_seed(0)
    gradient = torch.randn(16, 16, 3, 3)
    torch.testing.assert_close(orthogonal([1e-3 * gradient])[0], orthogonal([gradient])[0], rtol=1e-3, atol=1e-4)


def test_groups_that_are_not_orthogonal_go_as_sgd():
    torch.manual_seed(0)
    mine, theirs = (torch.nn.Parameter(torch.arange(6.0)) for _ in range(2))
    ours = Muon([{"params": [mine], "weight_decay": 0.01}], lr=0.1, momentum=0.9)
    reference = torch.optim.SGD([theirs], lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01)
    for _ in range(5):
        gradient = torch.randn(6)
        mine.grad, theirs.grad = gradient.clone(), gradient.clone()
        ours.step()
        reference.step()
    torch.testing.assert_close(mine, theirs)


def test_convolutions_but_the_first_get_orthogonal_steps():
    net = build("resnet20", classes=10)
    optimizer = make_optimizer(net, Recipe(optimizer="muon", lr=0.2, muon_lr=0.02))
    taken = [p for group in optimizer.param_groups if group.get("orthogonal") for p in group["params"]]
    assert [p.shape for p in taken] == [m.weight.shape for m in net.modules() if isinstance(m, torch.nn.Conv2d)][1:]
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(net.parameters()))
    before = taken[0].detach().clone()
    for step in range(3):
        was = taken[0].detach() * (before.norm() / taken[0].detach().norm())
        taken[0].grad = torch.randn_like(before)
        optimizer.step()
        row = before.norm() / 4  # the length of each of 16 rows, were they alike
        values = torch.linalg.svdvals((was - taken[0]).detach().reshape(16, -1)) / row
        assert values.max() < 1.3 * 0.02, step
        assert values.median() > 0.6 * 0.02, step


def test_weights_that_start_at_zero_grow_until_their_rows_have_length_one():
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.zeros(16, 8, 3, 3))
    optimizer = Muon([{"params": [weight], "orthogonal": True, "scale": 0.5}], lr=0.4, momentum=0.0)
    direction, norms = torch.randn(weight.shape), []
    for _ in range(10):
        weight.grad = direction.clone()
        optimizer.step()
        norms.append(weight.norm().item())
    (step,) = orthogonal([direction])
    assert norms[:3] == pytest.approx([count * 0.2 * step.norm().item() for count in (1, 2, 3)], rel=1e-5)
    assert norms[6:] == pytest.approx([4 + 0.2 * step.norm().item()] * 4, rel=1e-5)  # brought to 4, and a step


def test_residual_branches_that_start_at_zero_are_trained():
    torch.manual_seed(0)
    net = build("preact_resnet18,depths=1-1-1-1,width=16", classes=4, zero_init_residual=True).train()
    zero = [p for p in net.parameters() if p.ndim == 4 and not p.any()]
    assert len(zero) == 4
    optimizer = make_optimizer(net, Recipe(optimizer="muon"))
    images, labels = torch.randn(8, 3, 32, 32), torch.arange(8) % 4
    losses = []
    for _ in range(8):
        loss = torch.nn.functional.cross_entropy(net(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert all(p.any() and p.isfinite().all() for p in net.parameters() if p.ndim == 4)
    assert all(p.norm() < len(p) ** 0.5 for p in zero)


@pytest.mark.parametrize("zero_init", [False, True])
def test_a_saved_state_goes_on_to_the_same_weights(zero_init):
    def run(optimizer, net, steps):
        for step in range(steps):
            torch.manual_seed(step + len(optimizer.state))
            for p in net.parameters():
                p.grad = torch.full_like(p, 0.1) + 0.01 * torch.randn(p.shape)
            optimizer.step()

    recipe = Recipe(optimizer="muon")
    torch.manual_seed(0)
    net = build("resnet20,depths=1-1-1,order=pre", classes=10, zero_init_residual=zero_init)
    optimizer = make_optimizer(net, recipe)
    run(optimizer, net, 2)
    other = build("resnet20,depths=1-1-1,order=pre", classes=10)
    other.load_state_dict(net.state_dict())
    restored = make_optimizer(other, recipe)
    restored.load_state_dict(deepcopy(optimizer.state_dict()))
    run(optimizer, net, 2)
    run(restored, other, 2)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), other.parameters(), strict=True))


@pytest.mark.skipif(library() is None, reason=f"no kernels: {status()}")
@pytest.mark.parametrize("shape", [(16, 16, 3, 3), (64, 32, 3, 3), (128, 128, 3, 3), (32, 32, 1, 1)])
def test_kernels_make_the_same_orthogonal_matrix(shape):
    torch.manual_seed(0)
    tensor = torch.randn(shape).contiguous(memory_format=torch.channels_last)
    (expected,) = orthogonal([tensor.double()])
    assert operations.orthogonal_serves(tensor)
    operations.orthogonal([tensor], coefficients=COEFFICIENTS, iterations=ITERATIONS)
    torch.testing.assert_close(tensor.double(), expected, rtol=0, atol=2e-6)


def test_kernels_leave_what_they_do_not_take():
    wide, tall, odd = torch.randn(16, 32), torch.randn(64, 16, 1, 1), torch.randn(20, 16, 3, 3)
    in_another_order = torch.randn(16, 16, 3, 3)  # channels first: as a matrix its columns are not beside each other
    assert operations.orthogonal_serves(wide)
    assert not any(map(operations.orthogonal_serves, (tall, odd, in_another_order, wide.double())))


@pytest.mark.skipif(library() is None, reason=f"no kernels: {status()}")
def test_steps_with_kernels_are_those_without():
    def weights_after_steps(*, kernels):
        torch.manual_seed(0)
        net = build("resnet20,shortcut=B,depths=1-1-1", classes=10).to(memory_format=torch.channels_last)
        optimizer = make_optimizer(net, Recipe(optimizer="muon"), kernels=kernels)
        for _ in range(3):
            for p in net.parameters():
                p.grad = torch.randn(p.shape).contiguous(
                    memory_format=torch.channels_last if p.ndim == 4 else torch.contiguous_format
                )
            optimizer.step()
        return list(net.parameters())

    for with_kernels, without in zip(
        weights_after_steps(kernels=True), weights_after_steps(kernels=False), strict=True
    ):
        torch.testing.assert_close(with_kernels, without, rtol=1e-4, atol=1e-6)
