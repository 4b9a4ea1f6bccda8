import copy
import inspect
import itertools
import pickle
from functools import partial

import pytest
import torch
from torch import nn

from resnetkit.errors import UsageError
from resnetkit.models import resnet
from resnetkit.models.blocks import BasicBlock, Bottleneck
from resnetkit.models.resnet import ResNet, build
from resnetkit.models.spec import SPECS, parse_spec

SMALL = ("resnet18", "resnet34", "resnet50")
GIANT = (
    "resnet101",
    "resnet152",
    "resnext50_32x4d",
    "resnext101_32x8d",
    "resnext101_64x4d",
    "wide_resnet50_2",
    "wide_resnet101_2",
)
SHARED = [*SMALL, *(pytest.param(name, marks=pytest.mark.slow) for name in GIANT)]

NORMS = {
    "default": None,
    "batch": partial(nn.BatchNorm2d, eps=1e-3, momentum=0.01),
    "group": partial(nn.GroupNorm, 4),
    "instance": nn.InstanceNorm2d,
}
COMBINATIONS = [
    {
        "num_classes": classes,
        "zero_init_residual": zero,
        "groups": groups,
        "width_per_group": width,
        "replace_stride_with_dilation": list(dilated) if any(dilated) else None,
        "norm_layer": NORMS[norm],
    }
    for classes, zero, (groups, width), dilated, norm in itertools.product(
        (10, 7), (False, True), ((1, 64), (2, 24)), itertools.product((False, True), repeat=3), NORMS
    )
]
# Every value of every argument, and most pairs of them; the slow tests take all the combinations.
SOME_COMBINATIONS = COMBINATIONS[::23]
BASIC = {"groups": 1, "width_per_group": 64, "replace_stride_with_dilation": None}


def twins(name, **arguments):
    """Return our network and torchvision's, from the same seed."""
    from torchvision import models

    torch.manual_seed(0)
    ours = getattr(resnet, name)(**arguments)
    torch.manual_seed(0)
    return ours, getattr(models, name)(**arguments)


def short_twins(block, **arguments):
    """The same, with one block a stage."""
    from torchvision.models import resnet as torchvisions

    torch.manual_seed(0)
    ours = build(
        "resnet50" if block == "Bottleneck" else "resnet18",
        depths=(1, 1, 1, 1),
        classes=arguments["num_classes"],
        groups=arguments["groups"],
        width_per_group=arguments["width_per_group"],
        dilated=arguments["replace_stride_with_dilation"] or (),
        zero_init_residual=arguments["zero_init_residual"],
        norm_layer=arguments["norm_layer"],
    )
    torch.manual_seed(0)
    return ours, torchvisions.ResNet(getattr(torchvisions, block), [1, 1, 1, 1], **arguments)


def assert_same_tensors(ours, theirs):
    ours, theirs = ours.state_dict(), theirs.state_dict()
    assert list(ours) == list(theirs)
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype
        assert torch.equal(tensor, theirs[name]), name


def assert_same_step(ours, theirs, side=64):
    """One training step on the same pictures gives the same logits, gradients, weights and buffers, to the bit."""
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))
    logits = [net.train()(images) for net in (ours, theirs)]
    assert torch.equal(*logits)
    for output in logits:
        nn.functional.cross_entropy(output, torch.tensor([1, 3])).backward()
    for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert torch.equal(mine.grad, other.grad), name
    for net in (ours, theirs):
        torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4).step()
    assert_same_tensors(ours, theirs)


@pytest.mark.parametrize("name", SHARED)
def test_torchvisions_first_values_and_first_step_to_the_bit(name):
    ours, theirs = twins(name)
    assert_same_tensors(ours, theirs)
    with torch.no_grad():
        images = torch.randn(1, 3, 65, 47)
        logits = ours.eval()(images)
        assert logits.isfinite().all()
        assert torch.equal(logits, theirs.eval()(images))
    assert_same_step(ours, theirs)


@pytest.mark.parametrize("name", SHARED)
def test_torchvisions_arguments_to_the_bit(name):
    arguments = {"num_classes": 11, "zero_init_residual": True, "norm_layer": NORMS["batch"]}
    if SPECS[name].block == "bottleneck":
        arguments["replace_stride_with_dilation"] = (False, True, True)
    ours, theirs = twins(name, **arguments)
    assert_same_tensors(ours, theirs)
    assert_same_step(ours, theirs)


@pytest.mark.parametrize("arguments", SOME_COMBINATIONS, ids=str)
def test_some_combinations_of_arguments_to_the_bit(arguments):
    ours, theirs = short_twins("Bottleneck", **arguments)
    assert_same_tensors(ours, theirs)
    assert_same_step(ours, theirs, side=33)


@pytest.mark.slow
@pytest.mark.long
def test_every_combination_of_arguments_to_the_bit():
    for arguments in COMBINATIONS:
        pairs = [short_twins("Bottleneck", **arguments)]
        if arguments["groups"] == 1 and not arguments["replace_stride_with_dilation"]:
            pairs.append(short_twins("BasicBlock", **arguments))
        for ours, theirs in pairs:
            assert_same_tensors(ours, theirs)
            assert_same_step(ours, theirs, side=33)


@pytest.mark.parametrize(
    "arguments",
    [
        BASIC | {"num_classes": classes, "zero_init_residual": zero, "norm_layer": norm}
        for classes, zero, norm in itertools.product((10, 7), (False, True), NORMS.values())
    ],
    ids=str,
)
def test_every_combination_of_arguments_of_basic_blocks_to_the_bit(arguments):
    ours, theirs = short_twins("BasicBlock", **arguments)
    assert_same_tensors(ours, theirs)
    assert_same_step(ours, theirs, side=33)


@pytest.mark.parametrize("name", [*SMALL, *GIANT])
def test_torchvisions_names_order_and_shapes(name):
    from torchvision import models

    with torch.device("meta"):
        ours, theirs = getattr(resnet, name)().state_dict(), getattr(models, name)().state_dict()
    assert [(key, value.shape) for key, value in ours.items()] == [(key, value.shape) for key, value in theirs.items()]


def test_torchvisions_weights_load_and_give_its_logits():
    from torchvision import models

    theirs = models.resnet18().eval()
    ours = build("resnet18").eval()
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(ours(images), theirs(images))


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if spec.layers > 60 else n for n, spec in SPECS.items()]
)
def test_the_network_has_the_parameters_and_multiply_adds_of_its_spec(name):
    from torch.utils.flop_counter import FlopCounterMode

    spec = SPECS[name]
    with torch.device("meta"):
        net, images = ResNet(spec), torch.empty(1, 3, 97, 97)
    assert sum(parameter.numel() for parameter in net.parameters()) == spec.parameters
    with FlopCounterMode(display=False) as counter:
        net(images)
    assert counter.get_total_flops() == 2 * spec.macs(97)


@pytest.mark.parametrize(
    "model",
    [
        "resnet50,dilated=false-true-true",
        "resnet50_v1,dilated=true-true-true",
        "resnet18,dilated=true-false-true",
        "resnet50,shortcut=A",
        "resnet50,shortcut=C,groups=4,width_per_group=8",
        "resnet50,shortcut=none,width=32",
        "resnet20,block=bottleneck,classes=7,in_channels=1",
        "resnet18,stem=cifar,depths=2-1",
    ],
)
def test_a_changed_row_has_the_sizes_costs_and_maps_of_its_spec(model):
    from torch.utils.flop_counter import FlopCounterMode

    spec, side = parse_spec(model), 75
    with torch.device("meta"):
        net, images = build(model), torch.empty(2, spec.in_channels, side, side)
    assert sum(parameter.numel() for parameter in net.parameters()) == spec.parameters
    with FlopCounterMode(display=False) as counter:
        logits = net(images)
    assert counter.get_total_flops() == 2 * 2 * spec.macs(side)
    assert logits.shape == (2, spec.classes)
    assert net.channels == spec.channels
    assert [tuple(x.shape) for x in net.features(images)] == [
        (2, channels, -(-side // stride), -(-side // stride))
        for channels, stride in zip(spec.channels, spec.strides, strict=True)
    ]


def test_features_are_c2_to_c5_and_forward_is_their_head():
    torch.manual_seed(0)
    net = build("resnet18").eval()
    images = torch.randn(2, 3, 64, 64)
    maps = net.features(images)
    assert [tuple(x.shape[1:]) for x in maps] == [(64, 16, 16), (128, 8, 8), (256, 4, 4), (512, 2, 2)]
    assert torch.equal(net(images), net.fc(maps[-1].mean((2, 3))))
    assert torch.equal(net.layer2(maps[0]), maps[1])


def test_a_cifar_net_has_three_stages_and_no_pooling():
    net = build("resnet20")
    assert [name for name, _ in net.named_children()] == [
        *("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "norm", "last_relu", "avgpool", "fc")
    ]
    assert [tuple(x.shape[1:]) for x in net.features(torch.zeros(2, 3, 32, 32))] == [
        (16, 32, 32),
        (32, 16, 16),
        (64, 8, 8),
    ]
    assert net.conv1.weight.shape == (16, 3, 3, 3)
    assert not any("downsample" in name for name in net.state_dict())


def test_first_values_are_he_normal_in_a_cifar_net():
    torch.manual_seed(0)
    net = build("resnet110")
    for module in net.modules():
        if isinstance(module, nn.Conv2d) and module.out_channels == 64 and module.in_channels == 64:
            assert module.weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.03)


@pytest.mark.parametrize(
    "model",
    ["resnet18", "resnet50", "resnet50_v1", "resnet18_a", "resnet34_c", "plain18", "resnext50_32x4d"],
)
@pytest.mark.parametrize("dilated", [(False, False, True), (False, True, True), (True, False, True)])
def test_a_dilated_net_computes_what_the_strided_one_does_and_the_places_between(model, dilated):
    torch.manual_seed(0)
    model = parse_spec(model, depths=(1, 2, 1, 2), width=16)
    strided, dense = build(model).double().eval(), build(model, dilated=dilated).double().eval()
    dense.load_state_dict(strided.state_dict())
    images = torch.randn(1, 3, 75, 64, dtype=torch.float64)
    with torch.no_grad():
        pairs = list(zip(strided.features(images), dense.features(images), strict=True))
    for (few, many), wide, narrow in zip(pairs, strided.spec.strides, dense.spec.strides, strict=True):
        every = wide // narrow
        torch.testing.assert_close(many[:, :, ::every, ::every], few, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50"])
def test_dilation_works_in_every_block(name):
    net = getattr(resnet, name)(replace_stride_with_dilation=[False, True, True])
    assert net.spec.strides == (4, 8, 8, 8)
    assert [x.shape[-1] for x in net.features(torch.zeros(1, 3, 64, 64))] == [16, 8, 8, 8]


def test_v1_and_v1_5_have_the_same_tensors_and_different_logits():
    torch.manual_seed(0)
    new, old = build("resnet50").eval(), build("resnet50_v1").eval()
    old.load_state_dict(new.state_dict())
    images = torch.randn(1, 3, 64, 64)
    assert not torch.allclose(new(images), old(images))


def test_a_plain_net_has_its_residual_twins_tensors_and_no_addition():
    plain, twin = build("plain20"), build("resnet20")
    assert {k: v.shape for k, v in plain.state_dict().items()} == {k: v.shape for k, v in twin.state_dict().items()}
    traced = torch.fx.symbolic_trace(plain), torch.fx.symbolic_trace(twin)
    additions = [sum(node.name.startswith("add") for node in graph.graph.nodes) for graph in traced]
    assert additions == [0, 9]


@pytest.mark.parametrize("model", ["resnet18", "resnet50", "resnet20", "resnet20_c"])
def test_zero_init_residual_starts_each_block_as_its_shortcut(model):
    torch.manual_seed(0)
    net = build(model, zero_init_residual=True).eval()
    blocks = [module for module in net.modules() if isinstance(module, BasicBlock | Bottleneck)]
    assert len(blocks) == sum(net.spec.depths)
    assert all(block.last_layer.weight.abs().sum() == 0 for block in blocks)
    x = torch.rand(2, blocks[0].conv1.in_channels, 8, 8)
    assert torch.equal(blocks[0](x), blocks[0].downsample(x).clamp(min=0))


def test_zero_init_residual_is_refused_where_it_would_stop_the_signal():
    with pytest.raises(UsageError, match="`zero_init_residual` needs shortcuts"):
        build("plain20", zero_init_residual=True)


@pytest.mark.parametrize("model", ["resnet20,width=4", "resnet50,width=8", "resnet18_a,width=8", "plain20,width=4"])
def test_copies_pickles_and_memory_formats_agree(model):
    torch.manual_seed(0)
    net = build(model, classes=5).eval()
    images = torch.randn(2, 3, 48, 48)
    logits = net(images)
    assert torch.equal(copy.deepcopy(net)(images), logits)
    again = pickle.loads(pickle.dumps(net))
    assert again.spec == net.spec
    assert torch.equal(again(images), logits)
    last = copy.deepcopy(net).to(memory_format=torch.channels_last)
    maps = last.features(images.to(memory_format=torch.channels_last))
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x in maps)
    torch.testing.assert_close(last.run(maps[-1], first="head"), logits)


@pytest.mark.parametrize("model", ["resnet20", "resnet18,width=16", "resnet50,width=16", "plain20"])
def test_bfloat16_is_near_float32(model):
    torch.manual_seed(0)
    net = build(model).eval()
    images = torch.randn(2, 3, 32, 32)
    exact = net(images)
    half = copy.deepcopy(net).bfloat16()(images.bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        mixed = net(images)
    for logits in (half, mixed):
        assert logits.dtype == torch.bfloat16
        assert (logits - exact).norm() < 0.05 * exact.norm()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "backend"),
    [
        ("resnet20,depths=1-1", "inductor"),
        ("plain20,depths=1-1", "inductor"),
        ("resnet50_v1,width=16,depths=1-1", "inductor"),
        ("resnet56", "aot_eager"),
        ("plain34,width=16", "aot_eager"),
        ("resnet34_c,width=16", "aot_eager"),
        ("resnext50_32x4d,width=16", "aot_eager"),
    ],
)
@pytest.mark.sampled(4)
def test_torch_compile_computes_the_same_and_breaks_nowhere(model, backend):
    torch.compiler.reset()  # a process compiles one function for only so many networks
    torch.manual_seed(0)
    net = build(model).double()  # in float32 a ReLU's kink can turn a rounding into another gradient
    compiled = torch.compile(copy.deepcopy(net), fullgraph=True, backend=backend)
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    for one in (net, compiled):
        one(images).square().sum().backward()
    for mine, other in zip(net.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-8, atol=1e-8 * mine.grad.abs().max().item())
    torch.testing.assert_close(compiled.eval()(images), net.eval()(images), rtol=1e-8, atol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["resnet20", "resnet20_c", "plain20", "resnet18", "resnet18_a", "resnet50", "resnet50_v1"]
)
def test_torch_export_takes_any_batch(name):
    torch.manual_seed(0)
    net = build(name).eval()
    side = net.spec.input_size
    batch = {"images": {0: torch.export.Dim("batch")}}
    exported = torch.export.export(net, (torch.randn(2, 3, side, side),), dynamic_shapes=batch).module()
    for n in (1, 3):
        images = torch.randn(n, 3, side, side)
        torch.testing.assert_close(exported(images), net(images), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_the_deepest_net_is_built_and_runs():
    net = build("resnet1202").eval()
    with torch.no_grad():
        assert net(torch.zeros(1, 3, 32, 32)).isfinite().all()


def test_build_takes_names_specs_and_changes():
    net = build("resnet20,shortcut=B", in_channels=1, classes=7)
    assert net.spec == parse_spec("resnet20_b", in_channels=1, classes=7)
    assert net(torch.zeros(3, 1, 28, 28)).shape == (3, 7)
    assert build(net.spec, classes="9").fc.out_features == 9
    with pytest.raises(UsageError, match='unknown model "resnet99"'):
        build("resnet99")


@pytest.mark.parametrize("name", [*SMALL, *GIANT])
def test_constructors_are_ordinary_functions(name):
    constructor = getattr(resnet, name)
    assert constructor.__name__ == name
    assert constructor.__module__ == "resnetkit.models.resnet"
    assert f"{SPECS[name].parameters:,} parameters" in constructor.__doc__
    assert pickle.loads(pickle.dumps(constructor)) is constructor
    defaults = {key: value.default for key, value in inspect.signature(constructor).parameters.items()}
    assert defaults == {
        "pretrained": False,
        "progress": True,
        "weights": None,
        "num_classes": 1000,
        "zero_init_residual": False,
        "groups": SPECS[name].groups,
        "width_per_group": SPECS[name].width_per_group,
        "replace_stride_with_dilation": None,
        "norm_layer": None,
    }
    with torch.device("meta"):
        assert constructor(False, True, num_classes=3).spec == parse_spec(name, classes=3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"replace_stride_with_dilation": [True]}, r"\[True\]; it takes None or 3 values"),
        ({"replace_stride_with_dilation": []}, r"\[\]; it takes None or 3 values"),
        ({"num_classes": 0}, "classes has 0"),
        ({"groups": 2}, "basic blocks have no groups"),
        ({"width_per_group": 128}, "basic blocks have no groups"),
    ],
)
def test_arguments_that_cannot_be_are_refused(arguments, message):
    with pytest.raises(UsageError, match=message):
        resnet.resnet18(**arguments)


PARTS = [
    "resnet20,width=8",
    "resnet18,width=8,in_channels=1",
    "resnet50,width=8,dilated=false-true-true",
    "resnet50d,width=32,depths=1-1-1-1",
    "preact_resnet18,width=8",
    "preact_resnet110,depths=1-2-1",
]


def randomised_net(model: str) -> ResNet:
    """A network in evaluation mode with running statistics that differ from the initial ones."""
    torch.manual_seed(0)
    net = build(model, classes=5)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2)
    return net.eval()


@pytest.mark.parametrize("model", PARTS)
def test_parts_hold_every_module_once_in_the_order_of_the_figure(model):
    net = build(model)
    assert list(net.parts) == ["stem", *(f"layer{i}" for i in range(1, len(net.spec.depths) + 1)), "head"]
    assert [module for part in net.parts.values() for module in part] == list(net.children())
    assert len(net.blocks) == len(set(net.blocks)) == sum(net.spec.depths)
    assert {parameter.split(".")[0] for parameter in net.state_dict()} <= {name for name, _ in net.named_children()}


@pytest.mark.parametrize("model", PARTS)
def test_a_network_can_be_cut_behind_any_part(model):
    net = randomised_net(model)
    images = torch.randn(2, net.spec.in_channels, 64, 64)
    logits, maps = net(images), net.features(images)
    names = list(net.parts)
    for last, first in itertools.pairwise(names):
        assert torch.equal(net.run(net.run(images, last=last), first=first), logits)
    assert all(torch.equal(net.run(images, last=f"layer{i}"), maps[i - 1]) for i in range(1, len(maps) + 1))
    assert net.run(images, last="stem").shape[1] == net.spec.width
    assert (maps[-1] >= 0).all()
    assert (maps[0] < 0).any() == (net.spec.order == "pre")
    ran = []
    assert torch.equal(net.run(images, run_stage=lambda stage, x: ran.append(stage) or stage(x)), logits)
    assert ran == [net.get_submodule(name) for name in net.stage_names]


def test_a_part_that_is_not_there_is_named():
    net, images = build("resnet20,depths=1-1-1"), torch.zeros(1, 3, 32, 32)
    with pytest.raises(
        UsageError, match="`last` is layer4; the parts of this network are stem, layer1, layer2, layer3"
    ):
        net.run(images, last="layer4")
    with pytest.raises(UsageError, match="`first` is c2; the parts"):
        net.run(images, first="c2")
    with pytest.raises(UsageError, match="`last` is stem, which comes before layer1"):
        net.run(images, first="layer1", last="stem")


@pytest.mark.parametrize("model", ["resnet20,depths=1-1-1,width=8", "preact_resnet18,depths=1-1-1-1,width=8"])
def test_exported_and_compiled_graphs_have_the_networks_tensors_and_values(model):
    net = randomised_net(model)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        program = torch.export.export(net, (images,))
        compiled = torch.compile(net, backend="eager", fullgraph=True)  # fullgraph: no part falls back to Python
        assert program.state_dict.keys() == net.state_dict().keys()
        assert torch.equal(program.module()(images), net(images))
        assert torch.equal(compiled(images), net(images))
