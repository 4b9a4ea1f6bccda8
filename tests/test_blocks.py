import pytest
import torch
from torch import nn

from resnetkit.errors import UsageError
from resnetkit.models.blocks import (
    BasicBlock,
    Bottleneck,
    PadShortcut,
    PlainBasicBlock,
    PlainBottleneck,
    conv1x1,
    conv3x3,
    projection,
)


def strides(block):
    return [module.stride[0] for module in block.modules() if isinstance(module, nn.Conv2d)]


def dilations(block):
    return [module.dilation[0] for module in block.modules() if isinstance(module, nn.Conv2d)]


@pytest.mark.parametrize(("side", "stride", "expected"), [(8, 1, 8), (8, 2, 4), (7, 2, 4), (1, 2, 1)])
@pytest.mark.parametrize("dilation", [1, 2, 4])
def test_convolutions_keep_the_side_or_round_it_up(side, stride, expected, dilation):
    x = torch.zeros(1, 4, side, side)
    assert conv3x3(4, 6, stride, groups=2, dilation=dilation)(x).shape == (1, 6, expected, expected)
    assert conv1x1(4, 6, stride)(x).shape == (1, 6, expected, expected)


def test_option_a_keeps_every_second_place_and_appends_zeros():
    x = torch.arange(2 * 3 * 5 * 5.0).reshape(2, 3, 5, 5)
    y = PadShortcut(3, 8, stride=2)(x)
    assert y.shape == (2, 8, 3, 3)
    assert torch.equal(y[:, :3], x[:, :, ::2, ::2])
    assert torch.equal(y[:, 3:], torch.zeros(2, 5, 3, 3))
    assert not list(PadShortcut(3, 8).parameters())


def test_option_a_keeps_channels_last():
    x = torch.randn(2, 3, 8, 8).to(memory_format=torch.channels_last)
    assert PadShortcut(3, 8, stride=2)(x).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
def test_a_block_adds_its_shortcut_before_the_last_relu(block):
    torch.manual_seed(0)
    block = block(8 * block.expansion, 8).eval()
    x = torch.randn(2, 8 * block.expansion, 6, 6)
    assert torch.equal(block(x), (block.residual(x) + x).clamp(min=0))
    nn.init.zeros_(block.last_layer.weight)
    assert torch.equal(block(x), x.clamp(min=0))


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
def test_a_block_takes_torchvisions_positions(block):
    outputs = 8 * block.expansion
    shortcut = projection(16, outputs, 2)
    made = block(16, 8, 2, shortcut, 1, 64, 1, nn.BatchNorm2d)
    assert made.downsample is shortcut
    assert made(torch.zeros(1, 16, 7, 7)).shape == (1, outputs, 4, 4)


@pytest.mark.parametrize("block", [PlainBasicBlock, PlainBottleneck])
def test_a_plain_block_adds_nothing(block):
    torch.manual_seed(0)
    block = block(8 * block.expansion, 8).eval()
    x = torch.randn(2, 8 * block.expansion, 6, 6)
    assert torch.equal(block(x), block.residual(x).clamp(min=0))


def test_every_place_has_its_own_relu():
    for block, places in ((BasicBlock(8, 8), 2), (Bottleneck(32, 8), 3)):
        assert len({id(module) for module in block.modules() if isinstance(module, nn.ReLU)}) == places


def test_a_block_leaves_its_input_alone():
    for block in (BasicBlock(8, 8), PlainBasicBlock(8, 8), Bottleneck(8, 2)):
        x = torch.randn(2, 8, 6, 6)
        before = x.clone()
        block(x)
        assert torch.equal(x, before)


def test_the_stride_is_in_the_3x3_or_in_the_first_1x1():
    assert strides(Bottleneck(64, 32, 2)) == [1, 2, 1]
    assert strides(Bottleneck(64, 32, 2, downsample_in="1x1")) == [2, 1, 1]
    assert strides(BasicBlock(64, 64, 2)) == [2, 1]


def test_convolutions_behind_the_stride_dilate_for_the_map_that_goes_out():
    assert dilations(BasicBlock(64, 64, dilation=2)) == [2, 2]
    assert dilations(BasicBlock(64, 64, dilation=1, out_dilation=2)) == [1, 2]
    assert dilations(Bottleneck(64, 16, dilation=2)) == [1, 2, 1]
    assert dilations(Bottleneck(64, 16, dilation=1, out_dilation=2)) == [1, 1, 1]
    assert dilations(Bottleneck(64, 16, dilation=1, out_dilation=2, downsample_in="1x1")) == [1, 2, 1]


@pytest.mark.parametrize(
    ("groups", "base_width", "planes", "inner"),
    [(1, 64, 64, 64), (32, 4, 64, 128), (1, 128, 512, 1024), (2, 24, 32, 24)],
)
def test_the_inner_width_of_a_bottleneck(groups, base_width, planes, inner):
    block = Bottleneck(planes * 4, planes, groups=groups, base_width=base_width)
    assert block.conv2.weight.shape == (inner, inner // groups, 3, 3)


@pytest.mark.parametrize("wrong", [{"groups": 2}, {"base_width": 128}, {"downsample_in": "1x1"}])
def test_a_basic_block_refuses_groups(wrong):
    with pytest.raises(UsageError, match="use a bottleneck"):
        BasicBlock(64, 64, **wrong)
