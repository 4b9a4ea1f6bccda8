"""The parts of a detector that kernels compute, against torch and torchvision."""

import pytest
import torch
from torch import nn
from torch.nn import functional
from torchvision.ops import MultiScaleRoIAlign

from resnetkit.data.transforms.preprocess import Preprocess
from resnetkit.detect.computing import KernelConv2d, RegionPool, use_kernels
from resnetkit.detect.model import Detector
from resnetkit.detect.spec import DetectorSpec
from resnetkit.kernels import operations as kernels
from resnetkit.kernels.library import library, status
from resnetkit.models.spec import parse_spec
from units import error

pytestmark = pytest.mark.skipif(library() is None, reason=f"the kernels are {status()}")


@pytest.mark.parametrize(
    ("shape", "inputs", "outputs"),
    [((1, 3, 5), 16, 32), ((2, 12, 16), 48, 16), ((5, 4, 4), 16, 16), ((1, 40, 24), 32, 16), ((3, 13, 6), 16, 48)],
)
@pytest.mark.parametrize("bias", [False, True])
def test_convolutions_and_their_gradients(shape, inputs, outputs, bias, threads):
    images, height, width = shape
    torch.manual_seed(0)
    conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=bias)
    own = KernelConv2d(conv, bias=True)
    own.by_kernels = True
    x = torch.randn(images, inputs, height, width).to(memory_format=torch.channels_last).requires_grad_()
    exact_x = x.detach().double().requires_grad_()
    exact = functional.conv2d(exact_x, conv.weight.double(), conv.bias.double() if bias else None, padding=1)
    y = own(x)
    assert type(y.grad_fn).__name__ == "_ConvolutionBackward"
    assert error(y, exact) < 2e-6
    grad = torch.randn_like(y)
    parameters = list(conv.parameters())
    found = torch.autograd.grad(y, [x, *parameters], grad)
    wanted = torch.autograd.grad(exact, [exact_x, *parameters], grad.double())
    for one, other in zip(found, wanted, strict=True):
        assert error(one, other.double()) < 3e-6
    with torch.no_grad():
        assert torch.equal(own(x), conv(x))  # predictions are torch's


def test_a_frozen_input_gets_no_gradient():
    conv = KernelConv2d(nn.Conv2d(16, 16, 3, padding=1), bias=True)
    conv.by_kernels = True
    x = torch.randn(2, 16, 8, 8).to(memory_format=torch.channels_last)
    grad = torch.randn(2, 16, 8, 8)
    (alone,) = torch.autograd.grad(conv(x), [conv.weight], grad)
    both = torch.autograd.grad(conv(x.requires_grad_()), [conv.weight], grad)
    assert torch.equal(alone, both[0])


@pytest.mark.parametrize("sampling", [1, 2, 3])
def test_regions_are_pooled_as_by_torchvision(sampling, threads):
    """Regions that leave the pictures, are thinner than a position, or lie on a border, too."""
    torch.manual_seed(0)
    maps = {str(place): torch.randn(2, 32, 48 >> place, 64 >> place, requires_grad=True) for place in range(3)}
    corners = torch.rand(60, 2, 2) * torch.tensor([560.0, 430.0]) - 20
    boxes = torch.cat((corners.amin(1), corners.amax(1)), 1)
    edges = torch.tensor([[0.0, 0, 512, 384], [511, 383, 512, 384], [40, 40, 40.5, 300], [512, 384, 530, 400]])
    regions, sizes = [boxes, edges], [(384, 512)] * 2
    own = RegionPool((8, 16, 32), 7, sampling)
    own.by_kernels = True
    found, wanted = (pool(maps, regions, sizes) for pool in (own, MultiScaleRoIAlign(["0", "1", "2"], 7, sampling)))
    assert type(found.grad_fn).__name__ == "_RegionsBackward"
    assert error(found, wanted.double()) < 1e-5
    grad = torch.randn_like(found)
    pairs = [torch.autograd.grad(one, list(maps.values()), grad) for one in (found, wanted)]
    for one, other in zip(*pairs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)  # no region is in the last map


def test_strides_do_not_depend_on_the_first_picture():
    """From a picture of 20 pixels in a batch of 32, torchvision would take stride 4 for 8."""
    maps = {"0": torch.randn(1, 16, 4, 100), "1": torch.randn(1, 16, 2, 50)}
    boxes = [torch.tensor([[8.0, 2, 40, 18], [100, 0, 780, 20]])]
    own = RegionPool((8, 16), 7, 2)
    exact = MultiScaleRoIAlign(["0", "1"], 7, 2)(maps, boxes, [(32, 800)])
    assert torch.equal(own(maps, boxes, [(20, 800)]), exact)
    assert not torch.equal(MultiScaleRoIAlign(["0", "1"], 7, 2)(maps, boxes, [(20, 800)]), exact)


def test_a_step_has_the_same_losses_and_gradients():
    spec = DetectorSpec(
        first_level=3, width=16, hidden=32, anchor_sizes=((16.0,), (32.0,), (64.0,), (128.0,)), regions_sampled=32
    )
    torch.manual_seed(0)
    net = Detector(parse_spec("resnet18,width=16,norm=frozen"), spec, Preprocess(64), classes=2).train()
    images = [torch.rand(3, 64, 96), torch.rand(3, 60, 80)]
    boxes, labels = [torch.tensor([[10.0, 10, 40, 50]]), torch.zeros(0, 4)], [torch.tensor([1]), torch.zeros(0).long()]

    def step() -> tuple[torch.Tensor, list[torch.Tensor]]:
        torch.manual_seed(1)
        loss = torch.stack(list(net.losses(images, boxes, labels).values())).sum()
        weights = [p for p in net.parameters() if p.requires_grad]
        return loss, list(torch.autograd.grad(loss, weights, allow_unused=True))

    loss, gradients = step()
    assert use_kernels(net)
    other_loss, others = step()
    assert float(abs(loss - other_loss).detach()) < 1e-5
    norms = [(float((a - b).norm()), float(a.norm())) for a, b in zip(gradients, others, strict=True) if a is not None]
    assert sum(gap for gap, _ in norms) < 1e-4 * sum(whole for _, whole in norms)


def test_regions_need_channels_of_whole_vectors():
    pool = RegionPool((8,), 7, 2)
    pool.by_kernels = True
    maps = {"0": torch.randn(1, kernels.LANES + 1, 8, 8, requires_grad=True)}
    boxes = [torch.tensor([[0.0, 0, 30, 30]])]
    assert torch.equal(pool(maps, boxes, [(64, 64)]), MultiScaleRoIAlign(["0"], 7, 2)(maps, boxes, [(64, 64)]))
