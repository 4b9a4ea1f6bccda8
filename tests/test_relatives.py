"""Related networks compared with timm, torchvision and their definitions."""

import copy
import pickle
import re

import pytest
import torch
from torch import nn

from resnetkit.errors import UsageError
from resnetkit.models.blocks import BasicBlock, Bottleneck
from resnetkit.models.layers import Blur, DilatedAverage, DropPath, FrozenBatchNorm2d, SqueezeExcitation
from resnetkit.models.preactivation import PreBasicBlock, PreBottleneck
from resnetkit.models.resnet import build
from resnetkit.models.spec import SPECS, ModelSpec, parse_spec

# Ours: timm's, and the arguments that give it the same changes.
TIMM = {
    "resnet18d": ("resnet18d", {}),
    "resnet34d": ("resnet34d", {}),
    "resnet50d": ("resnet50d", {}),
    "preact_resnet18": ("resnetv2_18", {}),
    "preact_resnet34": ("resnetv2_34", {}),
    "preact_resnet50": ("resnetv2_50", {}),
    "seresnet50": ("seresnet50", {}),
    "resnetblur50": ("resnetblur50", {}),
    "resnet50_gn": ("resnet50_gn", {}),
    "resnet18,attention=se": ("resnet18", {"block_args": {"attn_layer": "se"}}),
    "resnet18,blur=3,in_channels=1,classes=7": ("resnetblur18", {"in_chans": 1, "num_classes": 7}),
    "resnet50d,blur=3": ("resnetblur50d", {}),
    "resnet50,stem=deep": ("resnet50c", {}),
    "preact_resnet18,stem=deep,pooled_shortcut=yes": ("resnetv2_18d", {}),
    "preact_resnet50,stem=deep,pooled_shortcut=yes": ("resnetv2_50d", {}),
    "resnet50,output_stride=8": ("resnet50", {"output_stride": 8}),
    "resnetblur50,output_stride=16": ("resnetblur50", {"output_stride": 16}),
    "preact_resnet50,output_stride=8": ("resnetv2_50", {"output_stride": 8}),
    "resnet101d": ("resnet101d", {}),
    "resnet152d": ("resnet152d", {}),
    "preact_resnet101": ("resnetv2_101", {}),
    "preact_resnet152": ("resnetv2_152", {}),
}
FAST = ("resnet18d", "preact_resnet18", "resnet18,attention=se", "resnet18,blur=3,in_channels=1,classes=7")
PRE_NAMES = (
    (r"^stem\.conv\.", "conv1."),
    (r"^stem\.conv(\d)\.", lambda found: f"conv1.{3 * int(found[1]) - 3}."),
    (r"^stem\.norm(\d)\.", lambda found: f"conv1.{3 * int(found[1]) - 2}."),
    (r"^stages\.(\d)\.blocks\.", lambda found: f"layer{int(found[1]) + 1}."),
    (r"\.norm(\d)\.", r".bn\1."),
    (r"^head\.fc\.", "fc."),
)
SMALL = {
    "resnet50d": "resnet50d,width=16,depths=1-2-1-2",
    "resnet18d": "resnet18d,width=16,depths=1-2-1-2",
    "preact_resnet18": "preact_resnet18,width=16,depths=1-2-1-2",
    "preact_resnet50": "preact_resnet50,width=16,depths=1-2-1-2",
    "preact_resnet110": "preact_resnet110,depths=2-2-2",
    "preact_resnet164": "preact_resnet164,depths=2-2-2",
    "preact C": "preact_resnet50,width=16,depths=1-2-1,shortcut=C,pooled_shortcut=yes,stem=deep",
    "seresnet50": "seresnet50,width=16,depths=1-2-1-2",
    "resnetblur50": "resnetblur50,width=16,depths=1-2-1-2",
    "resnet50_gn": "resnet50_gn,width=32,depths=1-2-1-2",
    "frozen": "resnet18,norm=frozen,width=16,depths=1-1-1-1",
    "all": "preact_resnet18,attention=se,blur=5,stem=deep,pooled_shortcut=yes,drop_path=0.2,width=16,depths=1-2-1-2",
}


def randomised(net: nn.Module) -> nn.Module:
    """Give every parameter and statistic a value that changes the logits, whose size is about 1."""
    torch.manual_seed(1)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d | nn.GroupNorm | FrozenBatchNorm2d):
            nn.init.uniform_(module.weight, 0.3, 0.7)
            nn.init.normal_(module.bias, std=0.2)
            if not isinstance(module, nn.GroupNorm):
                nn.init.normal_(module.running_mean, std=0.2)
                nn.init.uniform_(module.running_var, 0.7, 1.5)
        elif isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            nn.init.normal_(module.bias, std=0.5)
    return net.eval()


def renamed(tensors, spec):
    """Return timm's tensors under our names."""
    if spec.order == "post":
        return tensors
    names = {}
    for name, tensor in tensors.items():
        theirs = name
        for pattern, replacement in (
            *PRE_NAMES,
            (r"\.downsample\.conv\.", f".downsample.{int(spec.pooled_shortcut)}."),
        ):
            name = re.sub(pattern, replacement, name)
        names[name] = tensor.flatten(1) if theirs == "head.fc.weight" else tensor
    return names


@pytest.mark.parametrize("model", [m if m in FAST else pytest.param(m, marks=pytest.mark.slow) for m in TIMM])
def test_timms_weights_load_and_give_its_logits(model):
    timm = pytest.importorskip("timm")
    name, arguments = TIMM[model]
    theirs = randomised(timm.create_model(name, **arguments))
    ours = build(model).eval()
    ours.load_state_dict(renamed(theirs.state_dict(), ours.spec))
    assert sum(p.numel() for p in theirs.parameters()) == ours.spec.parameters
    images = torch.randn(2, ours.spec.in_channels, 97, 75)
    with torch.no_grad():
        expected = theirs(images)
        assert 0.5 < expected.abs().max() < 10
        assert (ours(images) - expected).abs().max() < 1e-5
        if model.startswith("preact"):
            maps = theirs.forward_intermediates(images, norm=False)[1][1:]
            maps[-1] = theirs.forward_features(images)
        else:
            maps = theirs.forward_intermediates(images)[1][1:]
        for mine, other in zip(ours.features(images), maps, strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("model", SMALL.values(), ids=SMALL)
def test_parameters_costs_and_maps_are_those_of_the_spec(model):
    from torch.utils.flop_counter import FlopCounterMode

    spec, side = parse_spec(model), 75
    with torch.device("meta"):
        net, images = build(model), torch.empty(2, 3, side, side)
    assert sum(parameter.numel() for parameter in net.parameters()) == spec.parameters
    with FlopCounterMode(display=False) as counter:
        maps = net.eval().features(images)
        net.run(maps[-1], first="head")
    assert counter.get_total_flops() == 2 * 2 * spec.macs(side)
    assert [tuple(x.shape) for x in maps] == [
        (2, channels, -(-side // stride), -(-side // stride))
        for channels, stride in zip(spec.channels, spec.strides, strict=True)
    ]


@pytest.mark.parametrize("model", SMALL.values(), ids=SMALL)
def test_every_tensor_matters(model):
    net = randomised(build(model, classes=3)).double()
    side = 16 if net.spec.stem == "cifar" else 48
    images = torch.randn(1, 3, side, side, dtype=torch.float64)
    with torch.no_grad():
        logits = net(images)
        for name, tensor in net.state_dict().items():
            if tensor.is_floating_point():
                before = tensor.clone()
                tensor.mul_(1.5).add_(0.3)
                assert not torch.equal(net(images), logits), name
                tensor.copy_(before)
        assert torch.equal(net(images), logits)


@pytest.mark.parametrize(
    "model",
    [SMALL[name] for name in ("resnet50d", "resnet18d", "preact_resnet18", "preact_resnet50", "preact C")],
)
@pytest.mark.parametrize("side", [64, 75])
def test_a_dilated_net_computes_what_the_strided_one_does_and_the_places_between(model, side):
    strided = randomised(build(model, classes=3)).double()
    stages = len(strided.spec.depths)
    for dilated in ((*[False] * (stages - 2), True), (True,) * (stages - 1)):
        dense = build(model, classes=3, dilated=dilated).double().eval()
        dense.load_state_dict(strided.state_dict())
        images = torch.randn(1, 3, side, side - 11, dtype=torch.float64)
        with torch.no_grad():
            maps = list(zip(strided.features(images), dense.features(images), strict=True))
        for (few, many), wide, narrow in zip(maps, strided.spec.strides, dense.spec.strides, strict=True):
            every = wide // narrow
            torch.testing.assert_close(many[:, :, ::every, ::every], few, rtol=1e-10, atol=1e-10)


def test_a_dilated_blur_does_so_where_the_border_is_the_same():
    # 97 pixels are 25, 13, 7 and 4 places: every second place ends at the border.
    strided = randomised(build(SMALL["resnetblur50"], classes=3)).double()
    dense = build(SMALL["resnetblur50"], classes=3, output_stride=8).double().eval()
    dense.load_state_dict(strided.state_dict())
    images = torch.randn(1, 3, 97, 97, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(dense.features(images)[-1][:, :, ::4, ::4], strided.features(images)[-1])


@pytest.mark.parametrize("block", [PreBasicBlock, PreBottleneck])
def test_a_pre_activation_block_leaves_its_shortcut_alone(block):
    torch.manual_seed(0)
    block = block(8 * block.expansion, 8).eval()
    x = torch.randn(2, 8 * block.expansion, 6, 6)
    before = x.clone()
    torch.testing.assert_close(block(x), block.residual(x.clamp(min=0)) + x, rtol=0, atol=1e-4)
    assert torch.equal(x, before)
    nn.init.zeros_(block.last_layer.weight)
    assert torch.equal(block(x), x)


@pytest.mark.parametrize("block", [PreBasicBlock, PreBottleneck])
def test_a_pre_activation_block_without_normalisation_leaves_its_shortcut_alone(block):
    block = block(8 * block.expansion, 8, norm_layer=nn.Identity)
    nn.init.zeros_(block.last_layer.weight)
    x = torch.randn(2, 8 * block.expansion, 6, 6)
    assert torch.equal(block(x), x)
    assert (x < 0).any()


def test_where_the_shortcut_starts_from_the_activation():
    shared = {name: [[b.shared for b in stage] for stage in SPECS[name].stages] for name in SPECS if "preact" in name}
    # 2016b's appendix: in the first block of a CIFAR net as well; timm's basic nets have a pooling before theirs.
    assert shared["preact_resnet18"] == [[False, False]] + [[True, False]] * 3
    assert [stage[:2] for stage in shared["preact_resnet50"]] == [[True, False]] * 4
    assert [stage[:2] for stage in shared["preact_resnet110"]] == [[True, False]] * 3
    names = [type(block).__name__ for block in build("preact_resnet110,depths=2-2-2").layer1]
    assert names == ["SharedPreBasicBlock", "PreBasicBlock"]


def test_the_first_activation_of_a_cifar_net_is_right_behind_its_convolution():
    net = randomised(build("preact_resnet110,depths=1-1-1"))
    for block in (net.layer1[0], net.layer2[0], net.layer3[0]):
        nn.init.zeros_(block.conv2.weight)
    images = torch.randn(2, 3, 32, 32)
    activated = net.layer1[0].activate(net.conv1(images))
    assert torch.equal(net.layer1(net.conv1(images)), activated)
    assert torch.equal(
        net.features(images)[-1][:, 32:], net.last_relu(net.norm(net.layer3(net.layer2(activated))))[:, 32:]
    )


def test_the_names_of_a_pre_activation_net():
    names = [name for name in build("preact_resnet50,depths=1").state_dict() if "num_batches" not in name]
    norm = ("weight", "bias", "running_mean", "running_var")
    assert sorted(names) == sorted(
        [f"{place}.{name}" for place in ("layer1.0.bn1", "layer1.0.bn2", "layer1.0.bn3", "norm") for name in norm]
        + [f"layer1.0.{conv}.weight" for conv in ("conv1", "conv2", "conv3", "downsample.0")]
        + ["conv1.weight", "fc.weight", "fc.bias"]
    )


@pytest.mark.parametrize("model", ["preact_resnet18", "preact_resnet50", "seresnet50", "resnet50d", "resnet50_gn"])
def test_zero_init_residual_starts_each_block_as_its_shortcut(model):
    torch.manual_seed(0)
    net = build(SMALL[model], zero_init_residual=True).eval()
    blocks = [module for module in net.modules() if isinstance(module, BasicBlock | Bottleneck)]
    assert len(blocks) == sum(net.spec.depths)
    for block in blocks:
        x = torch.randn(2, block.conv1.in_channels, 8, 8)
        assert block.residual(x).abs().sum() == 0
        assert block(x).abs().sum() > 0
    net.train()(torch.randn(2, 3, 64, 64)).sum().backward()
    assert all(block.last_layer.weight.grad.abs().sum() > 0 for block in blocks)


def test_zero_init_residual_is_refused_where_it_could_never_change():
    with pytest.raises(UsageError, match="with norm=frozen it would stay zero"):
        build("resnet18,norm=frozen", zero_init_residual=True)
    build("resnet18,norm=frozen", depths=(1,), zero_init_residual=True, norm_layer=nn.BatchNorm2d)
    build("preact_resnet18,norm=frozen", depths=(1,), zero_init_residual=True)


def test_first_values_of_squeeze_and_excitation():
    torch.manual_seed(0)
    net = build("seresnet50,depths=1-1-1-1")
    se = net.layer4[0].se
    assert se.fc2.weight.shape == (2048, 128, 1, 1)
    assert se.fc1.weight.std().item() == pytest.approx((2 / 128) ** 0.5, rel=0.03)
    assert not se.fc1.bias.any()
    assert not se.fc2.bias.any()
    # Without the attention the other values are the same ones.
    assert set(build("resnet50,depths=1-1-1-1").state_dict()) == {
        name for name in net.state_dict() if ".se." not in name
    }


def test_squeeze_and_excitation_by_hand():
    torch.manual_seed(0)
    se = SqueezeExcitation(64)
    x = torch.randn(2, 64, 5, 3)
    inner = torch.relu(se.fc1.weight[:, :, 0, 0] @ x.mean((2, 3)).T + se.fc1.bias[:, None])
    gates = torch.sigmoid(se.fc2.weight[:, :, 0, 0] @ inner + se.fc2.bias[:, None]).T
    torch.testing.assert_close(se(x), x * gates[:, :, None, None])
    assert se.fc1.out_channels == 8


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_stochastic_depth_is_torchvisions_to_the_bit(memory_format):
    from torchvision.ops import StochasticDepth

    x = torch.randn(64, 3, 2, 2).to(memory_format=memory_format)
    torch.manual_seed(3)
    ours = DropPath(0.3).train()(x)
    torch.manual_seed(3)
    assert torch.equal(ours, StochasticDepth(0.3, "row").train()(x))
    kept = ours.flatten(1).any(1)
    assert 30 <= kept.sum() <= 58
    torch.testing.assert_close(ours[kept], x[kept] / 0.7)
    assert torch.equal(DropPath(0.3).eval()(x), x)


def test_a_dropped_block_is_its_shortcut_in_training_only():
    torch.manual_seed(0)
    net = build("resnet20,drop_path=0.9,depths=1-1-4")
    assert [type(block.drop_path).__name__ for block in (net.layer1[0], net.layer2[0])] == ["Identity", "DropPath"]
    assert [block.drop_path.rate for block in net.layer3] == pytest.approx([0.36, 0.54, 0.72, 0.9])
    last, x = net.layer3[-1].train(), torch.rand(40, 64, 8, 8)
    same = [torch.equal(a, b) for a, b in zip(last(x), x, strict=True)]
    assert 30 <= sum(same) < 40
    assert not any(torch.equal(a, b) for a, b in zip(last.eval()(x), x, strict=True))


def test_a_blur_is_the_binomial_filter_and_keeps_what_is_flat():
    assert torch.equal(Blur(3, 2).kernel * 16, torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]]))
    assert torch.equal(Blur(5, 2).kernel[0] * 256, torch.tensor([1.0, 4, 6, 4, 1]))
    for size in (3, 5, 7):
        assert torch.allclose(Blur(size, 2)(torch.ones(1, 2, 9, 8)), torch.ones(1, 2, 5, 4))
    assert not Blur(3, 2).state_dict()


@pytest.mark.parametrize("side", [7, 8])
def test_a_dilated_average_is_the_pooling_at_every_place(side):
    x = torch.randn(1, 2, side, side)
    pooled = nn.AvgPool2d(2, 2, ceil_mode=True)(x)
    assert torch.allclose(DilatedAverage(1)(x)[:, :, ::2, ::2], pooled, atol=1e-6)
    again = nn.AvgPool2d(2, 2, ceil_mode=True)(pooled)
    assert torch.allclose(DilatedAverage(2)(DilatedAverage(1)(x))[:, :, ::4, ::4], again, atol=1e-6)
    assert torch.equal(DilatedAverage(9)(x), x)


def test_frozen_normalisation_is_the_evaluated_one_to_the_bit_and_never_trains():
    batch = randomised(build("resnet18,width=16,classes=3"))
    frozen = build("resnet18,width=16,classes=3,norm=frozen")
    frozen.load_state_dict(batch.state_dict())
    assert list(frozen.state_dict()) == list(batch.state_dict())
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(frozen.train()(images), batch(images))
    before = {name: value.clone() for name, value in frozen.state_dict().items() if ".bn" in name}
    frozen(images).sum().backward()
    torch.optim.SGD(frozen.parameters(), lr=0.1, weight_decay=0.1).step()
    assert all(torch.equal(frozen.state_dict()[name], value) for name, value in before.items())
    assert {name.rsplit(".", 1)[0] for name, _ in frozen.named_parameters()} == {
        name for name, module in frozen.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)
    }
    batch.load_state_dict(frozen.state_dict())


def test_a_frozen_norm_is_torchvisions():
    from torchvision.ops import FrozenBatchNorm2d as Theirs

    torch.manual_seed(0)
    ours, theirs = FrozenBatchNorm2d(6), Theirs(6)
    for name, value in ours.named_buffers():
        if value.is_floating_point():
            value.uniform_(0.5, 2)
            getattr(theirs, name).copy_(value)
    x = torch.randn(2, 6, 3, 3)
    torch.testing.assert_close(ours(x), theirs(x))


def test_a_given_norm_layer_replaces_the_specs():
    net = build("resnet50_gn,depths=1", norm_layer=nn.BatchNorm2d)
    assert not any(isinstance(module, nn.GroupNorm) for module in net.modules())
    groups = [
        module.num_groups for module in build("resnet50_gn,depths=1").modules() if isinstance(module, nn.GroupNorm)
    ]
    assert groups == [32] * 5


@pytest.mark.parametrize("model", SMALL.values(), ids=SMALL)
def test_a_model_file_brings_a_relative_back(model, tmp_path):
    from resnetkit.data.transforms.preprocess import Preprocess
    from resnetkit.modelfile import Header, load, save

    net = randomised(build(model, classes=2))
    save(tmp_path / "net.safetensors", net, Header(net.spec, Preprocess(32), ("cat", "dog")))
    again = load(tmp_path / "net.safetensors")
    images = torch.randn(1, 3, 64, 64)
    assert again.header.spec == net.spec == ModelSpec.from_dict(net.spec.to_dict())
    assert torch.equal(again.net(images), net(images))


@pytest.mark.parametrize("model", SMALL.values(), ids=SMALL)
def test_copies_pickles_and_memory_formats_agree(model):
    net = randomised(build(model, classes=5))
    images = torch.randn(2, 3, 64, 64)
    logits = net(images)
    assert torch.equal(copy.deepcopy(net)(images), logits)
    assert torch.equal(pickle.loads(pickle.dumps(net))(images), logits)
    last = copy.deepcopy(net).to(memory_format=torch.channels_last)
    maps = last.features(images.to(memory_format=torch.channels_last))
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x in maps)
    torch.testing.assert_close(last.run(maps[-1], first="head"), logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model", SMALL.values(), ids=SMALL)
def test_bfloat16_is_near_float32(model):
    net = randomised(build(model, classes=5))
    images = torch.randn(2, 3, 64, 64)
    exact = net(images)
    half = copy.deepcopy(net).bfloat16()(images.bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        mixed = net(images)
    for logits in (half, mixed):
        assert logits.dtype == torch.bfloat16
        assert (logits - exact).norm() < 0.05 * exact.norm()


@pytest.mark.slow
@pytest.mark.parametrize(("model", "backend"), [(model, "aot_eager") for model in SMALL.values()])
@pytest.mark.sampled(3)
def test_torch_compile_computes_the_same_and_breaks_nowhere(model, backend):
    torch.compiler.reset()
    net = randomised(build(model, classes=5)).double()
    compiled = torch.compile(copy.deepcopy(net), fullgraph=True, backend=backend)
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    torch.testing.assert_close(compiled(images), net(images), rtol=1e-8, atol=1e-8)
    if not net.spec.drop_path:  # its draws are the compiler's own
        for one in (net.train(), compiled.train()):
            one(images).square().sum().backward()
        for mine, other in zip(net.parameters(), compiled.parameters(), strict=True):
            torch.testing.assert_close(mine.grad, other.grad, rtol=1e-8, atol=1e-8 * mine.grad.abs().max().item())


@pytest.mark.slow
@pytest.mark.parametrize("model", SMALL.values(), ids=SMALL)
def test_torch_export_takes_any_batch(model):
    net = randomised(build(model, classes=5))
    batch = {"images": {0: torch.export.Dim("batch")}}
    exported = torch.export.export(net, (torch.randn(2, 3, 64, 64),), dynamic_shapes=batch).module()
    for n in (1, 3):
        images = torch.randn(n, 3, 64, 64)
        torch.testing.assert_close(exported(images), net(images), rtol=1e-4, atol=1e-4)
