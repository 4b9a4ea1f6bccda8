"""3×3 convolutions in float32 by Winograd's F(4×4, 3×3), with batch norm, against float64."""

import pytest
import torch
from torch import nn

from resnetkit.kernels import operations as kernels
from resnetkit.kernels.library import library, status
from units import UnitCase, check_added, check_same_bits, conv3x3, double, error, off_by, random_norm

pytestmark = pytest.mark.skipif(library() is None, reason=f"the kernels are {status()}")


def unit(inputs: int, outputs: int, shape: tuple[int, int, int], *, beside: bool = True, relu: bool = True) -> UnitCase:
    return UnitCase(inputs, outputs, shape, beside=beside, relu=relu, dtype=torch.float32)


def check(case: UnitCase) -> None:
    y, mean, inverse_std, z = case.forward()
    passed = (z > 0).double() if case.relu else torch.ones_like(z, dtype=torch.float64)
    exact_y, exact_z, exact_grad_x, exact_grad_weight = case.exact(passed)
    assert error(y, exact_y) < 2e-6
    assert error(z, exact_z) < 2e-6
    assert float((mean - exact_y.mean((0, 2, 3))).abs().max()) < 3e-6 * float(exact_y.std())
    assert off_by(inverse_std, (exact_y.var((0, 2, 3), correction=0) + 1e-5).rsqrt()) < 2e-6
    for name, tensor in case.exact_norm.named_buffers():
        assert off_by(case.norm.get_buffer(name), tensor.double()) < 2e-6, name
    grad_x, grad_other, grad_weight, grad_gain, grad_bias, _ = case.backward(y, mean, inverse_std, z)
    assert error(grad_x, exact_grad_x) < 3e-6
    assert error(grad_weight, exact_grad_weight) < 3e-6
    assert off_by(grad_gain, case.exact_norm.weight.grad) < 1e-5
    assert off_by(grad_bias, case.exact_norm.bias.grad) < 1e-5
    if case.beside:
        assert torch.equal(grad_other.double(), case.grad.double() * passed)
    else:
        assert grad_other is None


@pytest.mark.parametrize("inputs", [16, 48, 64])
@pytest.mark.parametrize("outputs", [16, 32, 80])
def test_every_width(inputs, outputs):
    check(unit(inputs, outputs, (3, 8, 8), beside=False))


@pytest.mark.parametrize(
    "shape",
    [(1, 3, 3), (2, 4, 4), (3, 6, 6), (1, 7, 7), (2, 9, 5), (3, 12, 24), (2, 32, 32), (1, 14, 56), (1, 57, 13)],
)
@pytest.mark.parametrize("beside", [False, True])
def test_every_size(shape, beside, threads):
    check(unit(16, 32, shape, beside=beside))


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 14, 14), (1, 7, 5)])
@pytest.mark.parametrize(("inputs", "outputs"), [(16, 16), (32, 64), (64, 32)])
def test_an_input_that_is_not_normalised_yet(shape, inputs, outputs, threads):
    """Its batch norm and ReLU are computed in passing, and so are the sums of its backward pass."""
    case = unit(inputs, outputs, shape)
    norm = random_norm(inputs, seed=5)
    finished, mean, inverse_std = kernels.norm_forward(case.x, norm, relu=True, update=False)
    nothing, *moments = kernels.norm_forward(case.x, norm, relu=True, update=False, finish=False)
    assert nothing is None
    assert all(torch.equal(a, b) for a, b in zip(moments, (mean, inverse_std), strict=True))
    unfinished, before = kernels.Unfinished(case.x, norm, mean, inverse_std), case.x
    found = []
    for x in (finished, unfinished):
        case.x, case.norm = x, random_norm(outputs)
        kept = case.forward()
        found.append((*kept, *case.backward(*kept)))
    *plain, nothing = found[0]
    *passing, products = found[1]
    assert nothing is None
    assert error(plain.pop(4), passing.pop(4).double()) < 1e-7  # the compiler may fuse other multiplications
    assert all(torch.equal(a, b) for a, b in zip(plain, passing, strict=True))
    grad = found[0][4]
    wanted = kernels.norm_backward(grad, before, finished, norm, mean, inverse_std, beside=False, relu=True)
    got = kernels.norm_backward(grad, before, None, norm, mean, inverse_std, beside=False, relu=True, products=products)
    assert error(got[0], wanted[0].double()) < 1e-6
    assert off_by(got[2], wanted[2].double()) < 1e-5
    assert off_by(got[3], wanted[3].double()) < 1e-5
    assert products.shape == (2, inputs)


@pytest.mark.parametrize("images", [1, 11, 12, 13, 50])
@pytest.mark.parametrize("side", [4, 8])
def test_batches_that_groups_of_images_do_not_divide(images, side, threads):
    check(unit(32, 16, (images, side, side), relu=False))


@pytest.mark.parametrize(
    ("channels", "shape"), [(64, (1, 56, 56)), (128, (2, 28, 28)), (256, (3, 14, 14)), (512, (4, 7, 7))]
)
def test_the_widths_and_maps_of_imagenet(channels, shape):
    check(unit(channels, channels, shape))


def test_the_error_is_as_close_as_stated():
    """Against float64: output 8.3e-7, gradients of input 8.2e-7 and weight 7.2e-7; torch's own output 4.1e-7."""
    for channels, size in ((16, 32), (32, 16), (64, 8)):
        case = unit(channels, channels, (8, size, size), beside=False, relu=False)
        y, mean, inverse_std, z = case.forward()
        exact_y, _, exact_grad_x, exact_grad_weight = case.exact(torch.ones(()))
        grad_x, _, grad_weight, *_ = case.backward(y, mean, inverse_std, z)
        errors = (error(y, exact_y), error(grad_x, exact_grad_x), error(grad_weight, exact_grad_weight))
        assert all(one < bound for one, bound in zip(errors, (1e-6, 1e-6, 1e-6), strict=True)), errors


@pytest.mark.parametrize("place", [(0, 0), (0, 8), (6, 0), (6, 8), (3, 0), (3, 8), (0, 4), (6, 4), (3, 3), (4, 4)])
def test_borders_are_padded_with_zeros(place):
    """A single 1 spreads to its neighbours inside its own image, and so does a gradient."""
    conv, norm = conv3x3(16, 16), nn.BatchNorm2d(16)
    exact_conv, exact_norm = double(conv), double(norm)
    x = torch.zeros(2, 16, 7, 9).contiguous(memory_format=torch.channels_last)
    x[1, 2, *place] = 1
    y, mean, inverse_std, z = kernels.unit_forward(x, conv, norm, origin=torch.zeros(16), relu=False)
    exact_x = x.double().requires_grad_()
    exact_y = exact_conv(exact_x)
    assert off_by(y, exact_y) < 1e-6
    assert torch.equal(y[0], torch.zeros_like(y[0]))
    grad = torch.zeros_like(y)
    grad[0, :, *place] = 1
    exact_norm(exact_y).backward(grad.double())
    grad_x, _, grad_weight, *_ = kernels.unit_backward(
        *(grad, x, y, z, conv, norm, mean, inverse_std), input_too=True, beside=False, relu=False
    )
    assert error(grad_x, exact_x.grad) < 3e-6
    assert error(grad_weight, exact_conv.weight.grad) < 3e-5  # a small rest of large sums


def test_added_goes_into_the_gradient_of_the_input(threads):
    check_added(unit(16, 16, (3, 8, 8)), 1e-6)


def test_the_same_bits_run_after_run(threads):
    check_same_bits(unit(32, 64, (9, 8, 8)))


def test_maps_are_the_same_bits_for_any_number_of_threads():
    """Statistics and gradients of parameters are sums of the threads' parts, which rounding changes."""
    found = []
    before = torch.get_num_threads()
    for count in (1, 2, 3, 7):
        torch.set_num_threads(count)
        case = unit(32, 32, (5, 12, 12))
        y, *_ = case.forward()
        found.append(y)
    torch.set_num_threads(before)
    assert all(torch.equal(found[0], other) for other in found[1:])


def test_what_is_not_a_number_gets_through():
    case = unit(16, 32, (2, 8, 14), beside=False)
    case.x[1, 5, 4, 4] = torch.nan
    y, mean, inverse_std, z = case.forward()
    broken = y[1].isnan().any(0)
    assert broken[3:6, 3:6].all()
    assert not y[0].isnan().any()
    assert z.isnan().all()
    grad_x, _, grad_weight, *_ = case.backward(y, mean, inverse_std, z)
    assert grad_x.isnan().all()
    assert grad_weight.isnan().any()


@pytest.mark.parametrize(
    ("changes", "shape", "serves"),
    [
        ({}, (16, 8, 8), True),
        ({}, (16, 7, 7), True),
        ({"out_channels": 48}, (16, 3, 5), True),
        ({}, (16, 5, 5), False),  # the tiles are half empty
        ({}, (16, 1, 1), False),
        ({"kernel_size": 1, "padding": 0}, (16, 8, 8), False),
        ({"stride": 2}, (16, 8, 8), False),
        ({"padding": 2, "dilation": 2}, (16, 8, 8), False),
        ({"padding": 0}, (16, 8, 8), False),
        ({"groups": 2}, (16, 8, 8), False),
        ({"in_channels": 3}, (3, 8, 8), False),
    ],
)
def test_which_convolutions_are_computed(changes, shape, serves):
    conv = nn.Conv2d(**{"in_channels": 16, "out_channels": 16, "kernel_size": 3, "padding": 1} | changes)
    assert kernels.winograd_serves(conv, torch.empty(2, *shape)) is serves
