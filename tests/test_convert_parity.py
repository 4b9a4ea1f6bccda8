"""Random weights are converted from other projects' networks to ours and back; the logits are equal."""

import os
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from resnetkit.convert.conversion import convert
from resnetkit.convert.naming.fitting import find_project, fit, renamed
from resnetkit.convert.outgoing import as_named_by, constructor, refuse_inexpressible, write_state_dict
from resnetkit.convert.presets import PREPROCESSES
from resnetkit.errors import UsageError
from resnetkit.models.resnet import build
from resnetkit.models.spec import parse_spec
from resnetkit.models.timm import ARCHITECTURES

TORCHVISION = (
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
    *("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d", "wide_resnet50_2", "wide_resnet101_2"),
)
PRE = {f"resnetv2_{layers}": f"preact_resnet{layers}" for layers in (18, 34, 50, 101, 152)}
PRE["resnetv2_50d"] = "preact_resnet50,stem=deep,pooled_shortcut=true"
TIMM = {name: model for name, model in (ARCHITECTURES | PRE).items() if parse_spec(model).parameters < 100e6}
QUICK = ("resnet18", "resnet18d", "resnetblur18", "resnetv2_18")
TRANSFORMERS = {
    "resnet18": {"depths": [2, 2, 2, 2], "hidden_sizes": [64, 128, 256, 512], "layer_type": "basic"},
    "resnet34": {"depths": [3, 4, 6, 3], "hidden_sizes": [64, 128, 256, 512], "layer_type": "basic"},
    "resnet50": {"depths": [3, 4, 6, 3]},
    "resnet101": {"depths": [3, 4, 23, 3]},
    "resnet152": {"depths": [3, 8, 36, 3]},
}


def slow_but(names, quick=QUICK):
    """Return the parameters of a test. All except the quick ones are marked slow."""
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in names]


def randomised(net: nn.Module, seed: int = 0) -> nn.Module:
    """A network in evaluation mode whose normalisations change their input."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in net.state_dict().items():
        if tensor.ndim == 1 and tensor.is_floating_point():
            low, high = (0.5, 1.5) if name.endswith(("weight", "running_var")) else (-0.2, 0.2)
            tensor.uniform_(low, high, generator=generator)
    return net.eval()


@torch.no_grad()
def assert_same_logits(ours: nn.Module, theirs, *, size: int = 64) -> None:
    """Assert equality within 1e-5 in float32, relative to the largest logit if it is over 1."""
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    expected = theirs(images)
    difference = (ours.eval()(images) - expected).abs().max() / expected.abs().max().clamp(min=1)
    assert expected.std() > 1e-3  # it depends on something
    assert difference < 1e-5


def loaded(model: str, tensors: Mapping[str, Tensor], **changes) -> nn.Module:
    """Return our network with the tensors of another project's network."""
    net = build(model, **changes)
    source = find_project(tensors, where="theirs")
    net.load_state_dict(fit(source, renamed(source, tensors, where="theirs"), net.spec, where="theirs"))
    return net


@pytest.mark.parametrize("name", slow_but(TORCHVISION))
def test_torchvision(name):
    from torchvision import models

    theirs = randomised(getattr(models, name)())
    ours = loaded(name, theirs.state_dict())
    assert_same_logits(ours, theirs)
    again = randomised(getattr(models, name)(), seed=1)
    again.load_state_dict(as_named_by("torchvision", ours.spec, ours.state_dict()), strict=True)
    assert_same_logits(ours, again)


@pytest.mark.parametrize("name", slow_but(TIMM))
@pytest.mark.sampled(4)
def test_timm(name):
    import timm

    theirs = randomised(timm.create_model(name))
    ours = loaded(TIMM[name], theirs.state_dict())
    assert_same_logits(ours, theirs)
    again = randomised(timm.create_model(name), seed=1)
    again.load_state_dict(as_named_by("timm", ours.spec, ours.state_dict()), strict=True)
    assert_same_logits(ours, again)


TINY = "depths=1-1-1-1,classes=5"


@pytest.mark.parametrize(
    ("model", "to", "call"),
    [
        (
            "resnet50,output_stride=8,classes=5",
            "torchvision",
            "torchvision.models.resnet50(replace_stride_with_dilation=[False, True, True], num_classes=5)",
        ),
        (
            f"resnext50_32x4d,dilated=true-false-true,{TINY}",
            "torchvision",
            "torchvision.models.resnet.ResNet(torchvision.models.resnet.Bottleneck, [1, 1, 1, 1], groups=32, "
            "width_per_group=4, replace_stride_with_dilation=[True, False, True], num_classes=5)",
        ),
        (
            "resnet18,output_stride=8,classes=5",
            "timm",
            'timm.create_model("resnet18", output_stride=8, num_classes=5)',
        ),
        (
            f"seresnet50,output_stride=16,{TINY}",
            "timm",
            'timm.create_model("resnet50", layers=[1, 1, 1, 1], block_args={"attn_layer": "se"}, output_stride=16, '
            "num_classes=5)",
        ),
        (
            "preact_resnet18,output_stride=8,classes=5",
            "timm",
            'timm.create_model("resnetv2_18", output_stride=8, num_classes=5)',
        ),
        (
            f"preact_resnet50,stem=deep,pooled_shortcut=true,{TINY}",
            "timm",
            'timm.create_model("resnetv2_50", layers=[1, 1, 1, 1], stem_type="deep", avg_down=True, num_classes=5)',
        ),
        (
            f"resnet50d,norm=group,groups=2,width_per_group=16,{TINY}",
            "timm",
            'timm.create_model("resnet50", layers=[1, 1, 1, 1], stem_width=32, stem_type="deep", avg_down=True, '
            'cardinality=2, base_width=16, norm_layer="groupnorm", num_classes=5)',
        ),
        (
            f"resnet18,blur=3,{TINY}",
            "timm",
            'timm.create_model("resnet18", layers=[1, 1, 1, 1], aa_layer=timm.layers.BlurPool2d, num_classes=5)',
        ),
    ],
)
def test_the_call_that_is_printed_makes_the_network(model, to, call):
    import timm
    import torchvision

    ours = randomised(build(model))
    refuse_inexpressible(ours.spec, to)
    assert constructor(ours.spec, to) == call
    theirs = eval(call, {"timm": timm, "torchvision": torchvision}).eval()
    theirs.load_state_dict(as_named_by(to, ours.spec, ours.state_dict()), strict=True)
    assert_same_logits(ours, theirs)


@pytest.mark.parametrize("name", slow_but(TRANSFORMERS))
def test_transformers(name, tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(num_labels=1000, **TRANSFORMERS[name])
    theirs = randomised(transformers.ResNetForImageClassification(config))
    theirs.save_pretrained(tmp_path / "hub")
    done = convert(tmp_path / "hub" / "model.safetensors", out=tmp_path / "ours.safetensors")
    assert (done.model, done.origin, done.header.preprocess.interpolation) == (name, "transformers", "bicubic")
    net = build(done.header.spec)
    net.load_state_dict(load_file(done.path))
    assert_same_logits(net, lambda images: theirs(images).logits)


@pytest.mark.slow
def test_transformers_with_the_stride_of_v1(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(num_labels=1000, downsample_in_bottleneck=True)
    theirs = randomised(transformers.ResNetForImageClassification(config))
    theirs.save_pretrained(tmp_path)
    with pytest.raises(UsageError, match=r"\(v1\); .* Give `model` resnet50_v1"):
        convert(tmp_path / "model.safetensors", model="resnet50", out=tmp_path / "ours.safetensors")
    done = convert(tmp_path / "model.safetensors", out=tmp_path / "ours.safetensors")
    assert done.model == "resnet50_v1"
    net = build(done.header.spec)
    net.load_state_dict(load_file(done.path))
    assert_same_logits(net, lambda images: theirs(images).logits)
    config.hidden_act = "gelu"
    config.save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="another activation"):
        convert(tmp_path / "model.safetensors", out=tmp_path / "other.safetensors")


@pytest.fixture(scope="module")
def keras(tmp_path_factory) -> ModuleType:
    """Keras on torch, with its settings in a separate folder."""
    os.environ["KERAS_BACKEND"] = "torch"
    os.environ["KERAS_HOME"] = str(tmp_path_factory.mktemp("keras"))
    return pytest.importorskip("keras")


def of_keras(keras, layers: int, classes: int = 1000):
    """A random ResNet of Keras whose biases and statistics change the output."""
    make = getattr(keras.applications, f"ResNet{layers}")
    net = make(weights=None, input_shape=(64, 64, 3), classes=classes, classifier_activation=None)
    random = np.random.default_rng(0)
    for layer in net.layers:
        values = layer.get_weights()
        for index, variable in enumerate(layer.weights):
            if values[index].ndim == 1:
                scales = variable.path.endswith(("gamma", "moving_variance"))
                values[index] = random.uniform(*((0.5, 1.5) if scales else (-0.2, 0.2)), values[index].shape)
        layer.set_weights(values)
    net.compile("adam")
    net.optimizer.build(net.trainable_variables)  # whose moments are in a whole model's file as well
    return net


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")
@pytest.mark.parametrize("suffix", [".weights.h5", ".h5", ".keras"])
@pytest.mark.parametrize("layers", [50, 101, 152])
@pytest.mark.sampled(3)
def test_keras(layers, suffix, keras, tmp_path):
    theirs = of_keras(keras, layers)
    path = tmp_path / f"theirs{suffix}"
    theirs.save_weights(path) if suffix == ".weights.h5" else theirs.save(path)
    done = convert(path, out=tmp_path / "ours.safetensors")
    assert (done.model, done.origin) == (f"resnet{layers}_v1", "Keras")
    net = build(done.header.spec)
    net.load_state_dict(load_file(done.path))

    def in_keras(images: Tensor) -> Tensor:  # blue, green, red, and channels last
        return torch.as_tensor(theirs(images.flip(1).permute(0, 2, 3, 1), training=False)).cpu()

    assert_same_logits(net, in_keras)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")
def test_keras_sees_the_same_pixels(keras):
    pixels = np.random.default_rng(0).integers(0, 256, (1, 8, 8, 3), dtype=np.uint8)
    theirs = keras.applications.resnet.preprocess_input(pixels.astype(np.float32), data_format="channels_last")
    ours = PREPROCESSES["caffe"].normalize(pixels)
    assert np.allclose(ours[:, ::-1].transpose(0, 2, 3, 1), theirs, atol=2e-4)  # of 255; ours divides and multiplies


class SymmetricPad(nn.Module):
    """akamaster's option A, from its description: half of the new channels before the old ones, half after."""

    def __init__(self, new_channels: int) -> None:
        super().__init__()
        self.half = new_channels // 2

    def forward(self, x: Tensor) -> Tensor:
        return functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.half, self.half))


@pytest.mark.parametrize("layers", [20, 56])
def test_akamaster(layers, tmp_path):
    theirs = randomised(build(f"resnet{layers}"))
    for stage, width in ((theirs.layer2, 16), (theirs.layer3, 32)):
        stage[0].downsample = SymmetricPad(width)
    tensors = {f"module.{name.replace('fc.', 'linear.')}": t for name, t in theirs.state_dict().items()}
    torch.save({"state_dict": tensors, "best_prec1": 91.7}, tmp_path / "theirs.th")
    done = convert(tmp_path / "theirs.th", out=tmp_path / "ours.safetensors")
    assert (done.model, done.left_out) == (f"resnet{layers}", ("best_prec1",))
    assert done.header.preprocess == PREPROCESSES["cifar-imagenet"]
    assert done.header.classes[3] == "cat"
    net = build(done.header.spec)
    net.load_state_dict(load_file(done.path))
    assert_same_logits(net, theirs, size=32)
    straight = build(f"resnet{layers}")
    straight.load_state_dict(theirs.state_dict())
    with pytest.raises(AssertionError):  # what comes of not minding the order
        assert_same_logits(straight, theirs, size=32)


@pytest.mark.parametrize(("to", "suffix"), [("torchvision", ".pth"), ("timm", ".safetensors")])
def test_there_and_back_through_files(to, suffix, tmp_path):
    import timm
    from torchvision import models

    make = (
        (lambda: models.resnet18(num_classes=7))
        if to == "torchvision"
        else lambda: timm.create_model("resnetv2_18", num_classes=7)
    )
    theirs = randomised(make())
    torch.save(theirs.state_dict(), tmp_path / "theirs.pth")
    model = {"torchvision": "resnet18", "timm": "preact_resnet18"}[to]
    names = tuple("abcdefg")
    done = convert(
        tmp_path / "theirs.pth", model=model, preprocess="imagenet", classes=names, out=tmp_path / "ours.safetensors"
    )
    assert done.header.classes == names
    path: Path = write_state_dict(done.path, to=to, out=tmp_path / f"again{suffix}")
    read = torch.load(path, weights_only=True) if suffix == ".pth" else load_file(path)
    again = make()
    again.load_state_dict(read, strict=True)
    for (name, tensor), (other, before) in zip(again.state_dict().items(), theirs.state_dict().items(), strict=True):
        assert name == other
        assert torch.equal(tensor, before)
