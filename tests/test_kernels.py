"""The compiled kernels against torch's own operations in float64."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from resnetkit.kernels import operations as kernels
from resnetkit.kernels.library import library, status
from resnetkit.machine import read_machine
from units import UnitCase, check_added, check_same_bits, conv3x3, double, error, off_by, random_map, random_norm

SOURCE = Path(__file__).parents[1] / "src"
compiled = pytest.mark.skipif(library() is None, reason=f"the kernels are {status()}")
winograd = pytest.mark.skipif(
    not hasattr(library(), "unit_forward_bfloat16"), reason="the processor has no AVX512-BF16, or the kernels are off"
)
TYPES = [torch.float32, torch.bfloat16]
# Largest difference from float64, as a share of the largest value. bfloat16 keeps 8 bits: rounding is 2^-9 at the most.
BOUND = {torch.float32: 2e-6, torch.bfloat16: 2.0**-8}


HAS_TILES = kernels._has_tiles


@pytest.fixture(autouse=True)
def no_tiles(monkeypatch: pytest.MonkeyPatch):
    """Processors with AMX have the kernels' instructions too, so the kernels are tested there."""
    monkeypatch.setattr(kernels, "_has_tiles", lambda: False)
    kernels._winograd_serves.cache_clear()
    yield
    kernels._winograd_serves.cache_clear()


@compiled
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("beside", "relu"), [(False, True), (True, True), (True, False)])
@pytest.mark.parametrize("shape", [(3, 16, 7, 5), (2, 48, 3, 11), (5, 64, 1, 1), (2, 2048, 3, 3), (33, 16, 1, 1)])
def test_batch_norm_addition_and_relu(shape, beside, relu, dtype, threads):
    """Return outputs, gradients and running statistics, computed by torch in float64."""
    y, other, grad = (random_map(*shape, dtype=dtype, seed=seed, scale=2, mean=0.5) for seed in range(3))
    norm = random_norm(shape[1], eps=1e-3, momentum=0.3)
    exact_norm = double(norm)
    exact_y, exact_other = y.double().requires_grad_(), other.double().requires_grad_()
    wanted = exact_norm(exact_y) + (exact_other if beside else 0)
    wanted = F.relu(wanted) if relu else wanted

    z, mean, inverse_std = kernels.norm_forward(y, norm, beside=other if beside else None, relu=relu)
    assert z.is_contiguous(memory_format=torch.channels_last)
    assert z.dtype == dtype
    assert off_by(z, wanted.detach()) < BOUND[dtype]
    assert off_by(mean, exact_y.mean((0, 2, 3)).detach()) < 1e-6
    assert off_by(inverse_std, (exact_y.var((0, 2, 3), correction=0) + 1e-3).rsqrt().detach()) < 3e-6
    for name, tensor in exact_norm.named_buffers():
        assert norm.get_buffer(name).double().numpy() == pytest.approx(tensor.numpy(), rel=5e-6, abs=1e-6), name

    # Where a value is rounded to zero, its gradient is behind the ReLU; let both sides agree on those places.
    sign = (z > 0).double() if relu else torch.ones_like(wanted)
    exact = exact_norm(exact_y) + (exact_other if beside else 0)
    (exact * sign).backward(grad.double())
    got = kernels.norm_backward(grad, y, z, norm, mean, inverse_std, beside=beside, relu=relu)
    grad_y, grad_other, grad_gain, grad_bias = got
    assert off_by(grad_y, exact_y.grad) < 2 * BOUND[dtype]
    assert off_by(grad_gain, exact_norm.weight.grad) < 1e-5
    assert off_by(grad_bias, exact_norm.bias.grad) < 1e-5
    if beside:
        assert torch.equal(grad_other.double(), exact_other.grad), "a gradient is passed on as it is, or not at all"
    else:
        assert grad_other is None


@compiled
def test_statistics_of_numbers_far_from_zero(threads):
    """A mean of a thousand standard deviations costs digits in float32; the deviation stays right."""
    y = random_map(4, 32, 9, 9, dtype=torch.float32, mean=1000.0)
    norm, exact = nn.BatchNorm2d(32), nn.BatchNorm2d(32).double()
    z, _, inverse_std = kernels.norm_forward(y, norm, relu=False)
    assert off_by(z, exact(y.double()).detach()) < 1e-4  # y * scale + offset rounds at 1000 * 2^-24
    assert off_by(inverse_std, (y.double().var((0, 2, 3), correction=0) + 1e-5).rsqrt()) < 1e-6
    assert off_by(norm.running_var, exact.running_var) < 1e-6


@compiled
def test_statistics_of_very_many_places():
    """Sums in float32 stay exact, because each block of positions is summed separately first."""
    y = random_map(4, 16, 256, 256, dtype=torch.float32, scale=0.1, mean=3.0)
    _, mean, inverse_std = kernels.norm_forward(y, nn.BatchNorm2d(16), relu=True)
    assert off_by(mean, y.double().mean((0, 2, 3))) < 1e-6
    assert off_by(inverse_std, (y.double().var((0, 2, 3), correction=0) + 1e-5).rsqrt()) < 1e-4


@compiled
@pytest.mark.parametrize("dtype", TYPES)
def test_one_place_is_normalised_to_the_bias(dtype):
    """PyTorch refuses a single value, which has no deviation. Here it equals its mean, and its gradient is zero."""
    y, norm = random_map(1, 16, 1, 1, dtype=dtype), random_norm(16)
    z, mean, inverse_std = kernels.norm_forward(y, norm, relu=True)
    assert off_by(z.flatten(), norm.bias.relu().double().detach()) < max(1e-4, BOUND[dtype])  # y times 316, less itself
    grad_y, _, grad_gain, _ = kernels.norm_backward(
        torch.ones_like(y), y, z, norm, mean, inverse_std, beside=False, relu=True
    )
    assert torch.equal(grad_y, torch.zeros_like(y))
    assert torch.equal(grad_gain, torch.zeros(16))
    assert torch.isfinite(norm.running_var).all()


@compiled
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("broken", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_a_number_stays_so(broken, dtype, threads):
    """One NaN or infinity makes its channel NaN, as in torch, and ReLU does not turn it into zero."""
    y, beside = random_map(2, 32, 4, 4, dtype=dtype), random_map(2, 32, 4, 4, dtype=dtype, seed=1)
    y[1, 3, 2, 2] = broken
    norm = nn.BatchNorm2d(32)
    z, mean, inverse_std = kernels.norm_forward(y, norm, relu=True)
    wanted = F.relu(nn.BatchNorm2d(32)(y.float()))
    assert torch.equal(z.isnan(), wanted.isnan())
    assert z[:, 3].isnan().all()
    grad_y, *_ = kernels.norm_backward(torch.ones_like(y), y, z, norm, mean, inverse_std, beside=False, relu=True)
    assert grad_y[:, 3].isnan().all()
    assert not grad_y[:, :3].isnan().any()

    clean = random_map(2, 32, 4, 4, dtype=dtype)
    beside[0, 5, 1, 1] = torch.nan
    z, mean, inverse_std = kernels.norm_forward(clean, norm, beside=beside, relu=True)
    assert z.isnan().nonzero().tolist() == [[0, 5, 1, 1]]
    _, grad_beside, *_ = kernels.norm_backward(
        torch.ones_like(y), clean, z, norm, mean, inverse_std, beside=True, relu=True
    )
    assert grad_beside[0, 5, 1, 1] == 1, "as torch's ReLU passes it"


@compiled
@pytest.mark.parametrize("setting", ["OMP_THREAD_LIMIT=1", "OMP_DYNAMIC=true"])
def test_fewer_threads_than_were_asked_for_do_all_the_work(setting):
    code = (
        "import torch; from torch import nn; from resnetkit.kernels import operations as kernels\n"
        "torch.set_num_threads(2)\n"
        "y = torch.randn(4, 16, 8, 8).contiguous(memory_format=torch.channels_last)\n"
        "z = kernels.norm_forward(y, nn.BatchNorm2d(16), relu=False)[0]\n"
        "print(float((z - nn.BatchNorm2d(16)(y)).abs().max()))"
    )
    name, _, value = setting.partition("=")
    cache = str(Path(library()._name).parents[1])  # where they are compiled already
    environment = os.environ | {"PYTHONPATH": str(SOURCE), "RESNETKIT_CACHE": cache, name: value}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 1e-5


def by_four(height: int, width: int) -> bool:
    """Whether F(4, 3) computes a map, which is less exact than F(2, 3)."""
    tiles, odd = divmod(width, 4)
    fits = (height % 4 == 0 and tiles % 4 == 0) or (height % 2 == 0 and tiles % 7 == 0)
    return not odd and (fits or (height % 8 == 0 and tiles % 2 == 0))


def check_unit(case: UnitCase) -> None:
    rough = by_four(*case.x.shape[2:])
    y, mean, inverse_std, z = case.forward()
    passed = (z > 0).double() if case.relu else torch.ones_like(z, dtype=torch.float64)
    exact_y, exact_z, exact_grad_x, exact_grad_weight = case.exact(passed)
    assert error(y, exact_y) < (0.0065 if rough else 0.005)
    assert error(z, exact_z) < (0.0065 if rough else 0.005)
    if rough:  # means near zero have few digits of their own
        assert float((mean - exact_y.mean((0, 2, 3))).abs().max()) < 0.003 * float(exact_y.std())
    else:
        assert off_by(mean, exact_y.mean((0, 2, 3))) < 0.005
    assert off_by(inverse_std, (exact_y.var((0, 2, 3), correction=0) + 1e-5).rsqrt()) < 0.005
    for name, tensor in case.exact_norm.named_buffers():
        assert off_by(case.norm.get_buffer(name), tensor.double()) < 0.005, name
    grad_x, grad_other, grad_weight, grad_gain, grad_bias, _ = case.backward(y, mean, inverse_std, z)
    assert error(grad_x, exact_grad_x) < (0.0075 if rough else 0.0065)
    assert error(grad_weight, exact_grad_weight) < (0.0075 if rough else 0.0065)
    assert off_by(grad_gain, case.exact_norm.weight.grad) < 0.01
    assert off_by(grad_bias, case.exact_norm.bias.grad) < 1e-5
    if case.beside:
        assert torch.equal(grad_other.double(), case.grad.double() * passed)
    else:
        assert grad_other is None


@winograd
@pytest.mark.parametrize("inputs", [16, 32, 64])
@pytest.mark.parametrize("outputs", [16, 32, 64])
def test_convolution_of_every_width(inputs, outputs):
    check_unit(UnitCase(inputs, outputs, (3, 8, 8), beside=False, relu=True))


@winograd
@pytest.mark.parametrize(
    "shape",
    [
        (1, 4, 8),
        (3, 4, 8),
        (1, 16, 16),
        (3, 32, 32),
        (2, 12, 24),
        (1, 8, 8),
        (5, 8, 40),
        (2, 8, 24),
        (3, 16, 56),
    ],
)
@pytest.mark.parametrize("beside", [False, True])
def test_convolution_of_every_size(shape, beside, threads):
    check_unit(UnitCase(16, 32, shape, beside=beside, relu=True))


@winograd
@pytest.mark.parametrize(
    ("inputs", "outputs", "shape"),
    [
        (128, 128, (2, 28, 28)),
        (256, 256, (3, 14, 14)),  # seven tiles in a row: one is left over from pairs
        (64, 128, (5, 14, 14)),
        (256, 16, (1, 8, 8)),
        (16, 16, (1, 2, 14)),
        (64, 64, (1, 56, 56)),
    ],
)
def test_convolution_of_the_widths_and_maps_of_imagenet(inputs, outputs, shape, threads):
    check_unit(UnitCase(inputs, outputs, shape, beside=True, relu=True))


@winograd
@pytest.mark.parametrize("instruction", ["amx_bf16", "avx512_bf16"])
def test_tiles_of_amx_are_left_to_onednn(instruction, monkeypatch):
    conv = nn.Conv2d(16, 16, 3, padding=1, bias=False)
    strided = nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False)
    x = torch.empty((1, 16, 8, 8), dtype=torch.bfloat16)
    monkeypatch.setattr(kernels, "read_machine", lambda: replace(read_machine(), instructions=(instruction,)))
    monkeypatch.setattr(kernels, "_has_tiles", HAS_TILES)
    HAS_TILES.cache_clear()
    try:
        assert kernels.winograd_serves(conv, x) is (instruction == "avx512_bf16")
        assert kernels.strided_serves(strided, x) is (instruction == "avx512_bf16")
    finally:
        HAS_TILES.cache_clear()


@winograd
@pytest.mark.parametrize("sides", [(4, 8), (8, 8)])
@pytest.mark.parametrize("images", [15, 17, 128])
def test_convolution_of_batches_that_groups_do_not_divide(images, sides, threads):
    """Weight gradients are summed over 16 images of 4 × 8 or 8 of 8 × 8 at a time; the last group may be smaller."""
    check_unit(UnitCase(32, 16, (images, *sides), beside=True, relu=False))


@winograd
@pytest.mark.parametrize(
    ("maps", "bounds"),
    [
        (((16, 32), (32, 16), (64, 8)), (0.0060, 0.0063, 0.0056, 2.5)),  # F(4, 3): ResNet-20's
        (((16, 14), (64, 14), (256, 14)), (0.0040, 0.0045, 0.0040, 2.0)),  # F(2, 3)
    ],
)
def test_convolution_is_as_close_as_stated(maps, bounds):
    """Errors of F(4, 3): output 0.55 %, gradients of input 0.57 % and weight 0.50 %; of F(2, 3): 0.36, 0.40, 0.34."""
    for channels, size in maps:
        case = UnitCase(channels, channels, (8, size, size), beside=False, relu=False)
        y, mean, inverse_std, z = case.forward()
        exact_y, _, exact_grad_x, exact_grad_weight = case.exact(torch.ones(()))
        grad_x, _, grad_weight, *_ = case.backward(y, mean, inverse_std, z)
        ours = (error(y, exact_y), error(grad_x, exact_grad_x), error(grad_weight, exact_grad_weight))
        theirs = error(F.conv2d(case.x, case.conv.weight.bfloat16(), padding=1), exact_y)
        assert all(one < bound for one, bound in zip((*ours, ours[0] / theirs), bounds, strict=True)), ours


@winograd
@pytest.mark.parametrize(
    ("width", "bound", "gradient_bound"), [(14, 0.0, 0.01), (16, 0.02, 0.015), (8, 0.02, 0.015), (56, 0.02, 0.015)]
)
def test_borders_are_padded_with_zeros(width, bound, gradient_bound):
    """Whole numbers are exact with F(2, 3), and not with F(4, 3). Every position is right, also at the borders."""
    conv, norm = conv3x3(16, 16), nn.BatchNorm2d(16)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # even, so that the halves of F(2, 3) are whole
        conv.weight.copy_(2 * torch.randint(-2, 3, conv.weight.shape, generator=generator))
    x = torch.zeros(1, 16, 8, width)
    x[0, 3] = torch.randint(-3, 4, (8, width), generator=generator)
    x = x.bfloat16().contiguous(memory_format=torch.channels_last)
    y, mean, inverse_std, z = kernels.unit_forward(x, conv, norm, origin=torch.zeros(16), relu=False)
    wanted = F.conv2d(x.double(), conv.weight.double(), padding=1)
    assert off_by(y, wanted) <= bound
    assert (off_by(y, wanted) > 0) is by_four(8, width)
    right, below = width - 1, 7
    for place in ((0, 0), (0, right), (below, 0), (below, right), (3, 0), (3, right), (0, 5), (below, 5)):
        grad = torch.zeros_like(y)
        grad[0, :, *place] = 1
        args = (conv, norm, mean, inverse_std)
        _, _, grad_weight, *_ = kernels.unit_backward(grad, x, y, z, *args, input_too=False, beside=False, relu=False)
        exact_conv, exact_norm = double(conv), double(nn.BatchNorm2d(16))
        exact_norm(exact_conv(x.double())).backward(grad.double())
        assert error(grad_weight, exact_conv.weight.grad) < gradient_bound, place


@winograd
def test_added_goes_into_the_gradient_of_the_input(threads):
    check_added(UnitCase(16, 16, (3, 8, 8), beside=True, relu=True), 0.004)


@winograd
def test_the_origin_of_the_moments_moves_rounding_alone():
    case = UnitCase(16, 16, (3, 8, 8), beside=False, relu=True)
    first = kernels.unit_forward(case.x, case.conv, case.norm, origin=torch.zeros(16), relu=True, update=False)
    second = kernels.unit_forward(case.x, case.conv, case.norm, origin=torch.ones(16), relu=True, update=False)
    assert torch.equal(first[0], second[0])
    for got, wanted in zip(first[1:3], second[1:3], strict=True):
        assert off_by(got, wanted.double()) < 1e-5
    assert int(case.norm.num_batches_tracked) == 0


@winograd
def test_the_same_bits_run_after_run(threads):
    check_same_bits(UnitCase(32, 64, (9, 8, 8), beside=True, relu=True))


@winograd
@pytest.mark.parametrize(("width", "places"), [(14, 9), (8, 15)])
def test_what_is_not_a_number_gets_through_a_convolution(width, places):
    case = UnitCase(16, 32, (2, 8, width), beside=False, relu=True)
    case.x[1, 5, 4, 4] = torch.nan
    y, mean, inverse_std, z = case.forward()
    broken = y[1].isnan().any(0)
    assert broken[3:6, 3:6].all()
    assert broken.sum() == places, "those that are computed together: two in a row by F(2, 3), four by F(4, 3)"
    assert not y[0].isnan().any()
    assert z.isnan().all()
    grad_x, _, grad_weight, *_ = case.backward(y, mean, inverse_std, z)
    assert grad_x.isnan().all()
    assert grad_weight.isnan().any()


@compiled
@pytest.mark.parametrize(
    ("changes", "shape"),
    [
        ({"kernel_size": 1, "padding": 0}, (16, 8, 8)),
        ({"stride": 2}, (16, 8, 8)),
        ({"padding": 2, "dilation": 2}, (16, 8, 8)),
        ({"padding": 0}, (16, 8, 8)),
        ({"groups": 2}, (16, 8, 8)),
        ({"in_channels": 3}, (3, 8, 8)),
        ({"out_channels": 48}, (16, 8, 8)),
        ({}, (16, 8, 4)),
        ({}, (16, 4, 4)),
        ({}, (16, 6, 8)),
        ({}, (16, 7, 7)),
    ],
)
def test_other_convolutions_are_left_to_onednn(changes, shape):
    conv = nn.Conv2d(**{"in_channels": 16, "out_channels": 16, "kernel_size": 3, "padding": 1} | changes)
    assert not kernels.winograd_serves(conv, torch.empty(2, *shape, dtype=torch.bfloat16))


@winograd
@pytest.mark.parametrize(("inputs", "outputs"), [(16, 16), (16, 32), (32, 64), (64, 64), (64, 16)])
@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 2, 8), (2, 6, 24), (17, 16, 16)])
def test_gradients_of_strided_convolutions(inputs, outputs, shape, threads):
    images, height, width = shape
    conv = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False)
    x = random_map(images, inputs, height, width, dtype=torch.bfloat16)
    assert kernels.strided_serves(conv, x)
    assert not kernels.strided_serves(conv, x.float())
    grad = random_map(images, outputs, height // 2, width // 2, dtype=torch.bfloat16, seed=1)
    exact, exact_x = double(conv), x.double().requires_grad_()
    exact(exact_x).backward(grad.double())
    grad_x, grad_weight = kernels.strided_gradients(grad, x, conv, input_too=True)
    assert error(grad_x, exact_x.grad) < 0.0035
    assert error(grad_weight, exact.weight.grad) < 1e-5  # float32 sums of exact products
    nothing, again = kernels.strided_gradients(grad, x, conv, input_too=False)
    assert nothing is None
    assert torch.equal(again, grad_weight)


@compiled
@pytest.mark.parametrize("shape", [(2, 16, 7, 8), (2, 16, 8, 12), (2, 256, 8, 8), (2, 48, 8, 8)])
def test_other_strided_convolutions_are_left_to_onednn(shape):
    conv = nn.Conv2d(shape[1], 32, 3, stride=2, padding=1, bias=False)
    assert not kernels.strided_serves(conv, torch.empty(shape, dtype=torch.bfloat16))
