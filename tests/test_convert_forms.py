"""The forms in which other projects save residual networks: made from our networks, converted back, equal logits."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from resnetkit import modelfile
from resnetkit.cli import main
from resnetkit.convert.checking import Check
from resnetkit.convert.conversion import Conversion, convert
from resnetkit.convert.naming.layouts import EPSILON
from resnetkit.convert.naming.networks import name_of, networks_like
from resnetkit.convert.presets import PREPROCESSES
from resnetkit.data.published.cifar_archives import CIFAR10
from resnetkit.data.transforms.preprocess import Preprocess
from resnetkit.errors import ModelFileError, UsageError
from resnetkit.models.resnet import build
from resnetkit.models.spec import SPECS, parse_spec

Tensors = dict[str, Tensor]
Archive = Callable[[Tensors], Tensors]
NAMES = ("ant", "bee", "cat", "dog", "eel")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def net_of(model: str, classes: int = 5) -> nn.Module:
    """A network of this package whose normalisations change their input."""
    torch.manual_seed(0)
    return randomised(build(model, classes=classes))


def randomised(net: nn.Module) -> nn.Module:
    """A network in evaluation mode whose normalisations change their input."""
    for name, tensor in net.state_dict().items():
        if tensor.ndim == 1 and tensor.is_floating_point():
            low, high = (0.5, 1.5) if name.endswith(("weight", "running_var")) else (-0.2, 0.2)
            tensor.uniform_(low, high)
    return net.eval()


def saved(tensors: Tensors, path: str = "theirs.pth", **beside: object) -> Path:
    torch.save({"state_dict": tensors, **beside}, path)
    return Path(path)


@torch.no_grad()
def assert_same(done: Conversion, net: nn.Module, expected: Callable[[Tensor], Tensor] | None = None) -> None:
    """Assert that the model file's logits are those of `net`, or of the function `expected`, within 1e-5."""
    ours = modelfile.load(done.path)
    size = done.header.spec.input_size
    images = torch.randn(2, done.header.spec.in_channels, size, size, generator=torch.Generator().manual_seed(1))
    wanted = (expected or net)(images)
    assert wanted.std() > 1e-3  # it depends on something
    assert (ours.net(images) - wanted).abs().max() / wanted.abs().max().clamp(min=1) < 1e-5


def refused(file: Path, error: type[Exception], match: str, **given) -> str:
    """Convert, and expect an error and no new file."""
    before = sorted(Path().rglob("*"))
    with pytest.raises(error, match=match) as caught:
        convert(file, **given)
    assert sorted(Path().rglob("*")) == before
    return str(caught.value)


def replaced(tensors: Tensors, *pairs: tuple[str, str]) -> Tensors:
    """Return the tensors with their names changed by the patterns in their order."""
    renamed: Tensors = {}
    for name, tensor in tensors.items():
        for pattern, new in pairs:
            name = re.sub(pattern, new, name)
        renamed[name] = tensor
    return renamed


# Names


def residual_functions(tensors: Tensors) -> Tensors:
    """Names of weiaicunzai: stages are numbered from 2, and a block is a Sequential."""

    def theirs(name: str) -> str:
        if found := re.fullmatch(r"layer(\d)\.(\d+)\.(conv|bn)(\d)\.(.+)", name):
            stage, block, kind, index, value = found.groups()
            place = 3 * (int(index) - 1) + (kind == "bn")
            return f"conv{int(stage) + 1}_x.{block}.residual_function.{place}.{value}"
        if found := re.fullmatch(r"layer(\d)\.(.+)\.downsample\.(.+)", name):
            return f"conv{int(found[1]) + 1}_x.{found[2]}.shortcut.{found[3]}"
        return name.replace("conv1.", "conv1.0.").replace("bn1.", "conv1.1.")

    return {theirs(name): tensor for name, tensor in tensors.items()}


def children(tensors: Tensors, prefix: str = "") -> Tensors:
    """A Sequential of the parts of torchvision's network, in their order."""
    parts = {"conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5", "layer3": "6", "layer4": "7"}
    names = {name: name.partition(".") for name in tensors}
    return {
        f"{prefix}{parts[part]}.{rest}" if (part := split[0]) in parts and (rest := split[2]) else name: tensors[name]
        for name, split in names.items()
    }


def openmmlab(tensors: Tensors) -> Tensors:
    deep = "conv1.0.weight" in tensors
    stem = ((r"^conv1\.", "stem."), (r"^bn1\.", "stem.7.")) if deep else ()
    attention = ((r"\.se\.fc(\d)\.", r".se_layer.conv\1.conv."),)
    return replaced(tensors, *stem, *attention, (r"^(?!fc)", "backbone."), (r"^fc\.", "head.fc."))


def detectron(tensors: Tensors) -> Tensors:
    """Detectron2's names: normalisations are parts of convolutions; the input's channels are blue, green and red."""
    theirs = replaced(
        {name: tensor for name, tensor in tensors.items() if not name.startswith("fc.")},
        (r"^bn1\.", "stem.conv1.norm."),
        (r"^conv1\.", "stem.conv1."),
        (r"\.bn(\d)\.", r".conv\1.norm."),
        (r"\.downsample\.0\.", ".shortcut."),
        (r"\.downsample\.1\.", ".shortcut.norm."),
        (r"^layer1\.", "res2."),
        (r"^layer2\.", "res3."),
        (r"^layer3\.", "res4."),
        (r"^layer4\.", "res5."),
        (r"^", "backbone.bottom_up."),
    )
    theirs["backbone.bottom_up.stem.conv1.weight"] = theirs["backbone.bottom_up.stem.conv1.weight"].flip(1)
    theirs["backbone.fpn_lateral2.weight"] = torch.zeros(256, 32, 1, 1)
    theirs["proposal_generator.rpn_head.conv.weight"] = torch.zeros(256, 256, 3, 3)
    return {name: tensor for name, tensor in theirs.items() if not name.endswith("tracked")}


def caffe2(tensors: Tensors) -> Tensors:
    """Caffe2's blobs: a normalisation is a scale and an offset, as in frozen weights."""
    theirs: Tensors = {}
    for name, tensor in tensors.items():
        norm, _, kind = name.rpartition(".")
        if kind in ("running_mean", "running_var", "num_batches_tracked"):
            continue
        if f"{norm}.running_var" in tensors:
            scale = tensors[f"{norm}.weight"] / (tensors[f"{norm}.running_var"] + EPSILON).sqrt()
            tensor = scale if kind == "weight" else tensor - tensors[f"{norm}.running_mean"] * scale
        if found := re.fullmatch(r"layer(\d)\.(\d+)\.(conv|bn|downsample\.)(\d)\.(.+)", name):
            stage, block, part, index, value = found.groups()
            branch = "1" if part == "downsample." else f"2{'abc'[int(index) - 1]}"
            norm_value = "_bn" if part == "bn" or (branch == "1" and index == "1") else ""
            form = f"{norm_value}_{'s' if value == 'weight' else 'b'}" if norm_value else "_w"
            theirs[f"res{int(stage) + 1}_{block}_branch{branch}{form}"] = tensor
        else:
            stem = {"conv1.weight": "conv1_w", "bn1.weight": "res_conv1_bn_s", "bn1.bias": "res_conv1_bn_b"}
            theirs[stem.get(name, name.replace("fc.weight", "fc1000_w").replace("fc.bias", "fc1000_b"))] = tensor
    theirs["conv1_w"] = theirs["conv1_w"].flip(1)
    return theirs


SHORTCUTS = ((r"\.downsample\.", ".shortcut."), (r"^fc\.", "linear."))
SMALL, SMALL50 = "resnet18,width=8", "resnet50,width=8,depths=1-1-1-1"
KUANGLIU = "kuangliu/pytorch-cifar"
OPTION_B = "akamaster/pytorch_resnet_cifar10 (option B)"
WEIAICUNZAI = "weiaicunzai/pytorch-cifar100"


@pytest.mark.parametrize(
    ("form", "model", "classes", "known", "preset"),
    [
        (lambda t: replaced(t, *SHORTCUTS), f"{SMALL},stem=cifar", 10, KUANGLIU, "cifar10"),
        (lambda t: replaced(t, *SHORTCUTS), f"{SMALL50},stem=cifar", 100, KUANGLIU, "cifar100"),
        (lambda t: replaced(t, *SHORTCUTS), "resnet20_b,depths=1-1-1", 10, OPTION_B, "cifar-imagenet"),
        (residual_functions, f"{SMALL},stem=cifar", 10, WEIAICUNZAI, "cifar10"),
        (residual_functions, f"{SMALL50},stem=cifar", 100, WEIAICUNZAI, "cifar100"),
        (openmmlab, f"{SMALL},stem=cifar", 10, "mmpretrain", "cifar10"),
        (openmmlab, SMALL50, 1000, "mmpretrain", "imagenet"),
        (openmmlab, "resnet50d,width=8,depths=1-1-1-1,attention=se", 1000, "mmpretrain", "imagenet"),
        (caffe2, "resnet50_v1,width=8,depths=1-2-1-1", 1000, "Caffe2", "caffe"),
    ],
)
def test_names_of_other_projects(form, model, classes, known, preset):
    net = net_of(model, classes)
    done = convert(saved(form(dict(net.state_dict()))))
    assert (done.origin, done.header.spec) == (known, net.spec)
    assert done.header.preprocess == PREPROCESSES[preset]
    assert done.assumed == ("preprocess", "classes")
    assert_same(done, net)


@pytest.mark.parametrize(("prefix", "model"), [("", SMALL), ("features.", "resnet50d,width=8,depths=1-1-1-1")])
def test_a_sequential_of_torchvisions_parts(prefix, model):
    net = net_of(model)
    done = convert(saved(children(dict(net.state_dict()), prefix)), preprocess="imagenet", classes=NAMES)
    assert (done.origin, done.header.spec) == ("a Sequential of torchvision's parts", net.spec)
    assert_same(done, net)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_numbers_of_any_precision_and_no_counters(dtype):
    net = net_of(f"{SMALL},stem=cifar", 10)
    theirs = {name: t.to(dtype) for name, t in net.state_dict().items() if "tracked" not in name}
    done = convert(saved(replaced(theirs, *SHORTCUTS)))
    net.load_state_dict(theirs, strict=False)
    assert_same(done, net)


# Trunks


DETECTOR = {
    "backbone.fpn.inner_blocks.0.0.weight": torch.zeros(256, 64, 1, 1),
    "rpn.head.conv.weight": torch.zeros(3, 3, 3, 3),
}
SEGMENTATION = {"classifier.0.weight": torch.zeros(8, 64, 3, 3), "aux_classifier.4.weight": torch.zeros(21, 8, 1, 1)}
DETECTION = "torchvision's detection or segmentation"
FASTAI = {
    "1.2.weight": torch.ones(128),
    "1.2.bias": torch.ones(128),
    "1.2.running_mean": torch.zeros(128),
    "1.2.running_var": torch.ones(128),
    "1.4.weight": torch.zeros(512, 128),
    "1.8.weight": torch.zeros(5, 512),
}


def trunk(tensors: Tensors) -> Tensors:
    return {name: tensor for name, tensor in tensors.items() if not name.startswith("fc.")}


@pytest.mark.parametrize(
    ("form", "known", "left"),
    [
        (lambda t: children(trunk(t), "0.") | FASTAI, "fastai", ("head.2", "head.4", "head.8")),
        (lambda t: replaced(trunk(t), ("^", "backbone.body.")) | DETECTOR, DETECTION, ("backbone.fpn", "rpn")),
        (
            lambda t: replaced(trunk(t), ("^", "backbone.")) | SEGMENTATION,
            DETECTION,
            ("classifier", "aux_classifier"),
        ),
        (
            lambda t: replaced(t, ("^", "encoder_q.")) | replaced(t, ("^", "encoder_k.")) | {"queue": torch.ones(5, 9)},
            "MoCo",
            ("encoder_k", "queue", "the projection, which is only for its training (2 tensors)"),
        ),
        (detectron, "detectron2", ("backbone.fpn_lateral2", "proposal_generator")),
        (trunk, "torchvision or timm", ()),
        (lambda t: children(trunk(t)), "a Sequential of torchvision's parts", ()),
        (
            lambda t: trunk(t) | {"fc.0.weight": torch.zeros(64, 64), "fc.2.weight": torch.zeros(128, 64)},
            "torchvision or timm",
            ("fc.0", "fc.2"),
        ),
    ],
)
def test_trunks_without_a_last_layer(form, known, left):
    net = net_of("resnet18,width=8")
    file = saved(form(dict(net.state_dict())))
    refused(file, (UsageError, ModelFileError), "`new_head` N")
    done = convert(file, new_head=5, classes=NAMES)
    assert (done.origin, done.new_head, done.model) == (known, True, "resnet18,width=8")
    assert set(done.left_out) == set(left)
    model = modelfile.load(done.path)
    assert model.header.classes == NAMES
    theirs = trunk(dict(net.state_dict()))
    counters = {name for name in theirs if name.endswith("tracked")}
    assert theirs.keys() | {"fc.weight", "fc.bias"} == model.net.state_dict().keys()
    assert all(torch.equal(model.net.state_dict()[name], theirs[name]) for name in theirs.keys() - counters)


def test_names_that_are_made_to_do_harm():
    tensors = trunk(dict(net_of(SMALL).state_dict()))
    long = "9" * 5000  # Python refuses to read so long a number
    more = {f"layer{long}.0.conv1.weight": torch.zeros(1, 1, 1, 1), f"fc.{long}.weight": torch.zeros(5, 64)}
    refused(saved(tensors | more), (UsageError, ModelFileError), "theirs.pth", **GIVEN)
    refused(saved(tensors | more), (UsageError, ModelFileError), "theirs.pth", **GIVEN, model=SMALL)
    empty = {name: torch.zeros(0, *t.shape[1:]) if t.ndim else t for name, t in tensors.items()}
    refused(saved(empty), (UsageError, ModelFileError), "theirs.pth", **GIVEN)
    refused(saved(numbered(empty)), (UsageError, ModelFileError), "theirs.pth", **GIVEN)


def test_what_cannot_be_read_is_named():
    preact = {"conv1.weight": (64, 3, 3, 3), "layer1.0.bn1.weight": (64,), "layer1.0.conv1.weight": (64, 64, 3, 3)}
    clip = {"visual.conv1.weight": (32, 3, 3, 3), "visual.attnpool.positional_embedding": (50, 2048)}
    cadene = {"layer0.conv1.weight": (64, 3, 7, 7), "layer1.0.se_module.fc1.weight": (16, 256, 1, 1)}
    for shapes, words in (
        (
            preact | {"linear.weight": (10, 512)},
            "a pre-activation network of kuangliu.*can't be converted: its projections and",
        ),
        (
            preact | {"fc.weight": (10, 512), "bn.weight": (512,)},
            "bearpaw/pytorch-classification, which can't be converted",
        ),
        (
            clip,
            "a ModifiedResNet of OpenAI's CLIP or open_clip, which can't be converted: .*its attention pool",
        ),
        (cadene, "a network with squeeze-and-excitation of Cadene/.*without padding"),
    ):
        file = saved({name: torch.zeros(shape) for name, shape in shapes.items()})
        refused(file, ModelFileError, words, model="resnet18", preprocess="imagenet", classes=NAMES)


# The last layer


GIVEN = {"preprocess": "imagenet", "classes": NAMES}


def test_a_last_layer_behind_dropout_or_by_another_name():
    net = net_of(SMALL)
    beside = replaced(dict(net.state_dict()), (r"^(?!fc)", "backbone."), (r"^fc", "out"))
    assert_same(convert(saved(beside), **GIVEN), net)
    beside = replaced(children(dict(net.state_dict()), "features."), (r"^fc", "classifier.1"))
    assert_same(convert(saved(beside), **GIVEN, force=True), net)
    for name in ("fc.1", "classifier", "head.fc2", "last_linear"):
        tensors = replaced(dict(net.state_dict()), (r"^fc", name))
        done = convert(saved(tensors), **GIVEN, force=True)
        assert_same(done, net)
        assert done.guessed == (f"{name} is its last layer, with only dropout or similar layers before it",)
        refused(saved(tensors, "2.pth"), UsageError, f"`strict`: .*{name} is its last layer", **GIVEN, strict=True)
    net.fc.bias.data.zero_()
    done = convert(saved({n: t for n, t in net.state_dict().items() if n != "fc.bias"}), **GIVEN, force=True)
    assert_same(done, net)
    assert done.guessed == ()


def test_several_last_layers_are_refused_in_words():
    tensors = trunk(dict(net_of(SMALL).state_dict()))
    tensors |= {"fc.0.weight": torch.ones(32, 64), "fc.0.bias": torch.ones(32), "fc.3.weight": torch.ones(5, 32)}
    words = r"does not end in one linear layer .*fc.0 32×64, fc.3 5×32: .*`new_head` N"
    refused(saved(tensors), ModelFileError, words, **GIVEN)
    tensors = trunk(tensors) | {"head.weight": torch.ones(5, 128), "head.bias": torch.ones(5)}  # of a pooling of two
    refused(saved({n: t for n, t in tensors.items() if n[:3] != "fc."}), ModelFileError, "head 5×128", **GIVEN)


def test_one_output_becomes_two_classes_with_the_sigmoids_probability():
    net = net_of(SMALL, classes=1)
    file = saved(dict(net.state_dict()), class_to_idx={"no": 0, "yes": 1})
    done = convert(file, preprocess="imagenet")
    assert done.header.classes == ("no", "yes")
    assert "two classes" in done.guessed[0]
    images = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        probabilities = modelfile.load(done.path).net(images).softmax(1)
        assert torch.allclose(probabilities[:, 1], net(images)[:, 0].sigmoid(), atol=1e-6)
    assert 0.01 < probabilities[:, 0].min() < 0.99
    again = {"model": "resnet18,width=8,classes=1", "preprocess": "imagenet", "force": True}
    assert convert(file, **again).header.spec.classes == 2
    bare = saved(dict(net.state_dict()), "bare.pth")
    refused(
        bare, UsageError, "one output, which means two classes: give two names", preprocess="imagenet", classes=["yes"]
    )
    refused(bare, UsageError, r"`classes` .*\(2 names\)", preprocess="imagenet")


# Which network


@pytest.mark.parametrize("changes", ["", "in_channels=1", "width=32", "stem=cifar", "depths=1-2-1-1", "attention=se"])
@pytest.mark.parametrize("row", ["resnet18", "resnet50", "resnext50_32x4d", "resnet20_b", "resnet34_c", "resnet50d"])
def test_the_network_is_told_by_its_tensors(row, changes):
    if row == "resnet20_b":
        changes = changes.replace("1-2-1-1", "2-1")
    spec = parse_spec(",".join(filter(None, [row, changes])), classes=7)
    with torch.device("meta"):
        tensors = build(spec).state_dict()
    like = networks_like(tensors, {})
    expected = [spec] if spec.block == "basic" else [spec, parse_spec(spec, downsample_in="1x1")]
    assert [parse_spec(name, classes=7) for name in like if "blur" not in name] == expected
    assert like[0].split(",")[0] in SPECS


@pytest.mark.parametrize("name", [name for name, row in SPECS.items() if row.layers < 1000])
def test_every_row_is_among_those_that_its_tensors_fit(name):
    with torch.device("meta"):
        tensors = build(name).state_dict()
    spec = SPECS[name]
    assert name_of(spec) in [
        other for other, row in SPECS.items() if parse_spec(row, classes=1) == parse_spec(spec, classes=1)
    ]
    assert name_of(spec) in networks_like(tensors, {})


def test_what_tensors_cannot_tell_is_asked():
    for model, like in (
        ("resnet20", "resnet20, plain20"),
        ("resnet50,width=8", "resnet50,width=8, resnet50_v1,width=8"),
        (  # bearpaw's bottlenecks for CIFAR
            "resnet20_b,block=bottleneck,depths=2-2-2",
            "resnet20_b,block=bottleneck,depths=2-2-2, preact_resnet164,depths=2-2-2,order=post",
        ),
        ("wide_resnet50_2,width=8", "wide_resnet50_2,width=8, resnet50_v1,width=8,width_per_group=128"),
    ):
        said = refused(saved(dict(net_of(model).state_dict())), UsageError, "give `model` NAME", preprocess="cifar10")
        assert f"(its tensors fit {like}; `check` DATA tries them)" in said


def test_pictures_of_one_channel():
    net = net_of(f"{SMALL},in_channels=1", 10)
    file = saved(dict(net.state_dict()))
    names = tuple("abcdefghij")
    refused(file, UsageError, "requires 1 channels, .*mode=L", preprocess="imagenet", classes=names)
    done = convert(file, preprocess="size=28,mean=0.13,std=0.31,mode=L", classes=names)
    assert done.model == "resnet18,width=8,in_channels=1"
    assert_same(done, net)


# By shapes in order


def numbered(tensors: Tensors, *, shortcut_first: bool = False, norms_apart: bool = False) -> Tensors:
    """Names without a meaning, in the order of a network's definition."""
    blocks: dict[tuple[str, ...], list[str]] = {}
    for name in tensors:
        parts = tuple(name.split("."))
        blocks.setdefault(parts[:2] if name.startswith("layer") else parts[:1], []).append(name)
    order: list[str] = []
    for block in blocks.values():
        residual = [name for name in block if ".downsample." not in name]
        if norms_apart:
            residual.sort(key=lambda name: ".bn" in name)
        shortcut = [name for name in block if ".downsample." in name]
        order += shortcut + residual if shortcut_first else residual + shortcut
    layers = {
        layer: f"m{100 - number}" for number, layer in enumerate(dict.fromkeys(n.rpartition(".")[0] for n in order))
    }
    return {f"{layers[name.rpartition('.')[0]]}.{name.rpartition('.')[2]}": tensors[name] for name in order}


@pytest.mark.parametrize(
    "model",
    [
        *(
            "resnet18,width=8",
            "resnet20_b,depths=2-1-2",
            "resnet34_c,width=8,depths=1-2-1-1",
            "resnet18,width=8,stem=cifar",
        ),
        *(
            "resnet50,width=8,depths=1-2-1-1",
            "resnext50_32x4d,depths=1-1-1-1,width=64",
            "resnet18,width=8,in_channels=1",
        ),
        "resnet20,depths=2-1-1",
        "preact_resnet18,width=8",
        "resnet18d,width=8,pooled_shortcut=false",
    ],
)
@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("first", [False, True])
def test_layers_are_told_by_their_shapes_in_order(model, apart, first):
    net = net_of(model)
    spec = net.spec
    file = saved(numbered(dict(net.state_dict()), shortcut_first=first, norms_apart=apart))
    modes = {"preprocess": "size=32,mean=0.5,std=0.5,mode=L" if spec.in_channels == 1 else "imagenet", "classes": NAMES}
    unsure = spec.block == "bottleneck" or spec.shortcut == "A"
    if unsure:
        assert name_of(spec) in refused(file, UsageError, "give `model` NAME", **modes)
    done = convert(file, **modes, **({"model": name_of(spec)} if unsure else {}))
    assert done.header.spec == spec
    assert done.origin == "a project that is not known here"
    assert "were matched by their shapes" in done.guessed[0]
    assert_same(done, net)
    refused(file, UsageError, "`strict`: .*by their shapes", **modes, model=name_of(spec), strict=True, force=True)


def test_names_that_are_nearly_known_are_told_by_their_shapes():
    net = net_of(f"{SMALL},stem=cifar", 10)
    tensors = replaced(dict(net.state_dict()), (r"\.downsample\.", ".identity_downsample."))
    done = convert(saved(tensors), preprocess="cifar10", classes="cifar10")
    assert done.origin == "a project that is not known here"
    assert_same(done, net)


def test_an_order_that_is_the_alphabets_tells_nothing():
    tensors = numbered(dict(net_of(SMALL).state_dict()))
    refused(saved(dict(sorted(tensors.items()))), ModelFileError, "alphabetical order", **GIVEN)
    wrong = dict(reversed(list(tensors.items())))
    refused(
        saved(wrong),
        ModelFileError,
        "no known residual network; first tensors: .*Known projects: docs.weights.md",
        **GIVEN,
    )


def test_shapes_that_fit_in_two_ways_are_refused():
    net = net_of("resnet50,width=8,depths=2")  # of one stage: the last 1×1 and the shortcut look alike
    refused(saved(numbered(dict(net.state_dict()))), ModelFileError, "fit a bottleneck network in 2 ways", **GIVEN)


def test_shapes_are_proved_by_finite_numbers():
    net = net_of(SMALL)
    net.fc.weight.data.fill_(3e38)
    refused(saved(numbered(dict(net.state_dict()))), ModelFileError, "outputs are not finite", **GIVEN)


def test_biases_of_convolutions_are_folded():
    net = net_of("resnet18,width=8")
    tensors = dict(net.state_dict())
    for name in list(tensors):
        if name.endswith((".conv1.weight", ".conv2.weight", "downsample.0.weight")) or name == "conv1.weight":
            bias = torch.randn(len(tensors[name]))
            norm = name.replace("conv", "bn").replace("downsample.0", "downsample.1").replace("weight", "running_mean")
            tensors |= {name.replace("weight", "bias"): bias, norm: tensors[norm] + bias}
    assert_same(convert(saved(tensors), **GIVEN), net)
    layers = dict.fromkeys(name.rpartition(".")[0] for name in net.state_dict())
    by_layer = {name: tensors[name] for layer in layers for name in tensors if name.rpartition(".")[0] == layer}
    assert_same(convert(saved(numbered(by_layer)), **GIVEN, force=True), net)


# What lies beside the tensors


@pytest.mark.parametrize(
    ("beside", "place"),
    [
        ({"classes": list(NAMES)}, "classes"),
        ({"class_names": NAMES, "num_classes": 5}, "class_names"),
        ({"class_to_idx": {name: i for i, name in reversed(list(enumerate(NAMES)))}}, "class_to_idx"),
        ({"idx_to_class": dict(enumerate(NAMES))}, "idx_to_class"),
        (
            {"hyper_parameters": {"classes": 5, "data": {"label_names": list(NAMES)}}},
            "hyper_parameters.data.label_names",
        ),
        ({"config": {"id2label": {str(i): name for i, name in enumerate(NAMES)}}}, "config.id2label"),
        ({"meta": {"CLASSES": NAMES}}, "meta.CLASSES"),
    ],
)
def test_class_names_in_the_file(beside, place, capsys):
    file = saved(dict(net_of("resnet18,width=8").state_dict()), **beside)
    done = convert(file, preprocess="imagenet")
    assert (done.header.classes, done.classes_from, done.assumed) == (NAMES, place, ())
    assert convert(file, preprocess="imagenet", classes=tuple("abcde"), force=True).header.classes == tuple("abcde")
    assert convert(file, preprocess="imagenet", new_head=5, force=True).header.classes == NAMES
    assert convert(file, preprocess="imagenet", new_head=2, force=True).header.classes == ("0", "1")
    assert main(["convert", str(file), "--preprocess", "imagenet", "--force"]) == 0
    assert f"classes     5: ant, bee, cat, ...; from {place} in the file\n" in capsys.readouterr().out


def test_class_names_that_do_not_belong():
    tensors = dict(net_of("resnet18,width=8").state_dict())
    file = saved(tensors, classes=["a", "b"])
    refused(
        file,
        UsageError,
        r"class names \(2 in classes\), but 5 outputs; give 5 names as `classes`",
        preprocess="imagenet",
    )
    file = saved(tensors, classes=list(NAMES), labels=list("abcde"))
    refused(file, UsageError, "several lists of class names, in classes and labels", preprocess="imagenet")
    file = saved(tensors, classes=5, names="resnet18", labels={"a": 0.5})
    refused(file, UsageError, "give `classes`", preprocess="imagenet")


def test_openmmlab_says_where_the_stride_is():
    net = net_of("resnet50_v1,width=8,depths=1-1-1-1")
    file = saved(openmmlab(dict(net.state_dict())), meta={"config": "model = dict(backbone=dict(style='caffe'))"})
    refused(file, UsageError, r"\(v1\).*Give `model` resnet50_v1", model="resnet50,width=8,depths=1-1-1-1", **GIVEN)
    done = convert(file, **GIVEN)
    assert (done.model, done.guessed) == ("resnet50_v1,depths=1-1-1-1,width=8", ())
    file = saved(openmmlab(dict(net.state_dict())))
    done = convert(file, **GIVEN, force=True)
    assert done.guessed == (
        "its bottlenecks have the stride in the 3×3 convolution (v1.5), as in most files with these names",
    )
    assert convert(file, **GIVEN, model=name_of(net.spec), force=True).header.spec == net.spec


# Networks that were saved whole


def test_trunks_of_torchvisions_bottlenecks_need_no_more_words():
    net = net_of("resnet50,width=8,depths=1-2-1-1", 5)
    guess = "its bottlenecks have the stride in the 3×3 convolution (v1.5), as in most files with these names"
    for form in (
        replaced(trunk(dict(net.state_dict())), ("^", "backbone.body.")) | DETECTOR,
        replaced(dict(net.state_dict()), ("^", "encoder_q.")) | {"queue": torch.ones(5, 9)},
        children(trunk(dict(net.state_dict()))),
    ):
        file = saved(form)
        refused(file, UsageError, r"give `new_head` N \(the file has no last layer", out="2.safetensors")
        done = convert(file, new_head=2, force=True)
        assert (done.header.spec.downsample_in, done.assumed, done.guessed) == ("3x3", ("preprocess",), (guess,))
        v1 = convert(file, new_head=2, model="resnet50_v1,width=8,depths=1-2-1-1", force=True)
        assert (v1.header.spec.downsample_in, v1.guessed) == ("1x1", ())


def test_a_whole_network_says_where_its_stride_is():
    from torchvision.models.resnet import Bottleneck, ResNet

    net = randomised(ResNet(Bottleneck, [1, 1, 1, 1], num_classes=5))
    torch.save({"model": net}, "theirs.pth")
    done = convert("theirs.pth", **GIVEN)
    assert (done.model, done.header.spec.downsample_in) == ("resnet50,depths=1-1-1-1", "3x3")
    assert_same(done, net)
    for block in (net.layer2, net.layer3, net.layer4):
        block[0].conv1.stride, block[0].conv2.stride = (2, 2), (1, 1)
    torch.save(net, "theirs.pth")
    refused(Path("theirs.pth"), UsageError, r"\(v1\)", model="resnet50,depths=1-1-1-1", out="2.safetensors", **GIVEN)
    done = convert("theirs.pth", **GIVEN, force=True)
    assert done.model == "resnet50_v1,depths=1-1-1-1"
    assert_same(done, net)


def test_a_whole_network_says_what_no_network_here_has():
    from torchvision.models.resnet import BasicBlock, ResNet

    def broken(change: Callable[[nn.Module], object]) -> Path:
        net = ResNet(BasicBlock, [1, 1, 1, 1], num_classes=5)
        change(net)
        torch.save(net, "theirs.pth")
        return Path("theirs.pth")

    for change, words in (
        (
            lambda net: setattr(net, "maxpool", nn.Identity()),
            "begins with a 7×7 convolution of stride 2, without max pooling",
        ),
        (
            lambda net: setattr(net.maxpool, "ceil_mode", True),
            "begins with a 7×7 convolution of stride 2, with max pooling",
        ),
        (lambda net: setattr(net.layer2[0], "relu", nn.SiLU()), "has SiLU at layer2.0.relu; networks here have ReLU"),
        (lambda net: setattr(net.layer4[0].conv2, "dilation", (2, 2)), "dilation of 2 at layer4.0.conv2"),
    ):
        refused(broken(change), ModelFileError, words, **GIVEN)


def test_another_epsilon_is_made_up_for():
    from torchvision.models.resnet import BasicBlock, ResNet

    net = randomised(ResNet(BasicBlock, [1, 1, 1, 1], num_classes=5))
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1e-2
    torch.save(net, "theirs.pth")
    assert_same(convert("theirs.pth", **GIVEN), net)


# Which preprocessing


def tried(errors: dict[str, float], pictures: int = 10_000) -> Check:
    """A check with a known measurement for each preset, and 90 % for all others."""

    def measure(net: nn.Module, preprocess: Preprocess, classes: tuple[str, ...]) -> tuple[float, int]:
        assert classes == CIFAR10.classes
        return next((error for preset, error in errors.items() if PREPROCESSES[preset] == preprocess), 90.0), pictures

    return Check("test pictures of cifar10", 10_000, CIFAR10.classes, measure)


def test_the_error_that_the_file_states_chooses_the_preprocessing():
    tensors = replaced(dict(net_of("resnet20", 10).state_dict()), (r"^fc\.", "linear."))
    errors = {"cifar-imagenet": 7.61, "cifar10": 7.88}
    for beside, pictures, preset in (
        ({"best_prec1": 92.12}, 10_000, "cifar10"),  # not the lowest error, but the one that its author measured
        ({"best_prec1": 92.39}, 10_000, "cifar-imagenet"),
        ({"net": None, "acc": 0.9212}, 10_000, "cifar10"),
        ({"best_prec1": 92.12}, 2_000, "cifar-imagenet"),  # too few to tell
        ({}, 10_000, "cifar-imagenet"),
    ):
        done = convert(saved(tensors, **beside), check=tried(errors, pictures), force=True)
        assert done.header.preprocess == PREPROCESSES[preset]
        assert done.assumed == ("classes",)
        assert (done.trial in done.trials, len(done.trials)) == (True, 6)
    done = convert("theirs.pth", preprocess="cifar100", check=tried({"cifar100": 50.0}), force=True)
    assert [trial.error_percent for trial in done.trials] == [50.0]
    with pytest.raises(UsageError, match="`check` measures the file's own last layer"):
        convert("theirs.pth", new_head=3, check=tried(errors), force=True)


def test_pictures_choose_among_networks(cifar_subset, capsys):
    """Its tensors fit a plain network too. The labels are its predictions, so only the right network has no error."""
    net = net_of("resnet20,depths=1-1-1", 10)
    _, samples = cifar_subset
    preset = PREPROCESSES["cifar10"]
    normalised = torch.from_numpy(preset.normalize(samples.images))
    labels = net(normalised).argmax(1).numpy()
    root = Path("pictures")
    for index, label in enumerate(labels):
        folder = root / CIFAR10.classes[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(samples.images[index]).save(folder / f"{index}.png")
    for name in CIFAR10.classes:
        (root / name).mkdir(exist_ok=True)
    file = saved(dict(net.state_dict()), best_acc=100.0)
    argv = ["convert", str(file), "--classes", "cifar10", "--check", "pictures", "--json"]
    assert main(argv) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["network"] == "resnet20,depths=1-1-1"
    assert said["stated_error_percent"] == 0
    assert said["preprocess"] == preset.to_dict()
    assert {trial["model"] for trial in said["trials"]} == {"resnet20,depths=1-1-1", "plain20,depths=1-1-1"}
    assert min(trial["error_percent"] for trial in said["trials"]) == 0
    assert main([*argv[:-1], "--force"]) == 0
    out = capsys.readouterr().out
    assert "stated      an error of 0.00 % in best_acc of the file\n" in out
    assert re.search(r" 0\.00 % resnet20,depths=1-1-1 cifar10  chosen\n", out)
    assert main(["convert", str(file), "--check", "cifar10", "--force"]) == 2
    assert "resnetkit data get cifar10" in capsys.readouterr().err
