"""Converting: what is found out, what must be given, what is refused; nothing is written after an error."""

import csv
import hashlib
import json
import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from resnetkit import modelfile
from resnetkit.cli import main
from resnetkit.convert import conversion, provenance
from resnetkit.convert.conversion import convert
from resnetkit.convert.naming.fitting import find_project, fit, refuse_contradictions, renamed
from resnetkit.convert.outgoing import write_state_dict
from resnetkit.convert.presets import CLASS_LISTS, PREPROCESSES, class_names, parse_preprocess
from resnetkit.convert.provenance import known_by_hash
from resnetkit.data.published.cifar_archives import CIFAR10
from resnetkit.data.transforms.preprocess import Preprocess
from resnetkit.errors import ModelFileError, UsageError
from resnetkit.modelfile import Header
from resnetkit.models.published import published
from resnetkit.models.resnet import build
from resnetkit.models.spec import parse_spec

SMALL = "resnet20,depths=1-1-1,shortcut=B"
GIVEN = {"model": SMALL, "preprocess": "cifar10", "classes": "cifar10"}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def weights(model: str = SMALL, path: str = "theirs.pth", **changes: torch.Tensor | None) -> Path:
    """Return a state dict with torchvision's names, with tensors added, replaced or (None) removed; _ means a dot."""
    torch.manual_seed(0)
    tensors = build(model).state_dict()
    for name, tensor in changes.items():
        name = name.replace("__", ".")
        tensors.pop(name, None) if tensor is None else tensors.__setitem__(name, tensor)
    torch.save(dict(tensors), path)
    return Path(path)


def refused(file: Path, error: type[Exception], match: str, **given) -> str:
    """Convert, and expect an error and no new file."""
    before = sorted(Path().rglob("*"))
    with pytest.raises(error, match=match) as caught:
        convert(file, **given)
    assert sorted(Path().rglob("*")) == before
    return str(caught.value)


# What is written


def test_a_model_file_that_says_where_it_comes_from():
    done = convert(weights(), **GIVEN)
    assert done.path == Path("theirs.safetensors")
    model = modelfile.load(done.path)
    assert model.header == done.header
    assert model.header.classes == CIFAR10.classes
    assert model.header.preprocess == PREPROCESSES["cifar10"]
    sha256 = hashlib.sha256(Path("theirs.pth").read_bytes()).hexdigest()
    assert model.header.origin == {"converted_from": "theirs.pth", "sha256": sha256, "source": "torchvision or timm"}
    theirs = torch.load("theirs.pth", weights_only=True)
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in model.net.state_dict().items())


def test_counters_may_be_absent_and_halves_become_singles():
    net = build(SMALL)
    tensors = {name: t.half() for name, t in net.state_dict().items() if not name.endswith("num_batches_tracked")}
    torch.save({"state_dict": tensors, "epoch": 3}, "theirs.pth")
    done = convert("theirs.pth", **GIVEN)
    assert done.left_out == ("epoch",)
    ours = modelfile.load(done.path).net.state_dict()
    assert ours["bn1.num_batches_tracked"] == 0
    assert ours["conv1.weight"].dtype == torch.float32
    assert torch.equal(ours["conv1.weight"], net.conv1.weight.half().float())


def test_a_file_that_is_there_stays(here):
    file = weights()
    convert(file, **GIVEN)
    before = Path("theirs.safetensors").read_bytes()
    refused(file, UsageError, "theirs.safetensors exists already.*`force`", **GIVEN)
    assert Path("theirs.safetensors").read_bytes() == before
    convert(file, **GIVEN | {"preprocess": "cifar-imagenet"}, force=True)
    assert Path("theirs.safetensors").read_bytes() != before
    refused(file, UsageError, "is a folder", **GIVEN, out=here)
    refused(file, ModelFileError, "could not be written: No such file", **GIVEN, out="none/model.safetensors")
    refused(file, UsageError, "is the file to read", **GIVEN, out=file, force=True)
    refused(Path("theirs.safetensors"), UsageError, "is a model file already", **GIVEN, out="x.safetensors")


# What must be given


def test_every_missing_flag_is_listed_at_once():
    said = refused(weights("resnet50,width=8"), UsageError, "give `model` NAME")
    assert "its tensors fit resnet50,width=8, resnet50_v1,width=8; `check` DATA tries them)" in said
    assert "`preprocess` imagenet|" in said
    assert "`classes` imagenet|cifar10|cifar100|FILE" in said
    said = refused(weights("resnet18"), UsageError, "torchvision or timm", preprocess="imagenet")
    assert "`model`" not in said  # only one row has these tensors
    assert "`preprocess`" not in said
    said = refused(weights(bn1__bias=None), UsageError, "give `model` NAME")
    assert "fit no row of `resnetkit models`, nor a row with changes; the nearest is " in said
    assert "; missing: bn1.bias " in said
    changes = {"layer1__0__bn1__bias": torch.ones(3), "aux__weight": torch.ones(3, 2)}
    said = refused(weights(**changes), UsageError, "give `model` NAME")
    assert "; extra: aux.weight 3×2; of another shape: layer1.0.bn1.bias 3)" in said
    said = refused(weights(conv1__weight=None), UsageError, "give `model` NAME")
    assert "nor a row with changes)" in said  # without a first layer, no network is the nearest


@pytest.mark.slow
def test_v1_and_v1_5_have_the_same_tensors():
    file = weights("resnet50")
    refused(file, UsageError, r"its tensors fit resnet50, resnet50_v1", preprocess="imagenet", classes="imagenet")
    for model, kernel in (("resnet50", "3x3"), ("resnet50_v1", "1x1")):
        done = convert(file, model=model, preprocess="imagenet", classes="imagenet", force=True)
        assert done.header.spec.downsample_in == kernel


def test_classes_and_last_layer():
    file = weights(classes := f"{SMALL},classes=4")
    names = ("a", "b", "c", "d")
    given = GIVEN | {"classes": names}
    assert convert(file, **given, force=True).header.spec.classes == 4
    assert convert(file, **given | {"model": classes}, force=True).header.classes == names
    Path("theirs.safetensors").unlink()
    refused(file, ModelFileError, r"4 classes and the network 10.*`new_head` 10", **GIVEN)
    refused(file, ModelFileError, "nothing was written", model=f"{SMALL},classes=10")  # before it asks for the rest
    refused(file, UsageError, r"give `preprocess` .*\|FILE \(4 names\)", model=SMALL)  # as many as in the file
    refused(file, UsageError, "3 class names for 4 classes", **given | {"model": classes, "classes": names[:3]})
    refused(file, UsageError, "4 class names for 2 classes", **given, new_head=2)
    refused(file, UsageError, "`new_head` is 0", **GIVEN, new_head=0)
    refused(file, UsageError, "`new_head` is 5 and `model` has classes=4", model=classes, new_head=5)
    assert convert(file, model=classes, preprocess="cifar10", new_head=4).header.classes == tuple("0123")


def test_a_new_head_is_made_with_the_seed():
    file = weights(f"{SMALL},classes=4")
    given = {"model": SMALL, "preprocess": "cifar10", "new_head": 10}
    first = convert(file, **given, out="1.safetensors")
    second = convert(file, **given, classes="cifar10", out="2.safetensors")
    assert (first.new_head, first.header.classes) == (True, tuple("0123456789"))
    assert second.header.classes == CIFAR10.classes
    one, two = (modelfile.load(done.path).net.state_dict() for done in (first, second))
    theirs = torch.load(file, weights_only=True)
    for name in one:
        assert torch.equal(one[name], two[name])
        assert name.startswith("fc.") or torch.equal(one[name], theirs[name])
    assert one["fc.weight"].std() > 0.01
    headless = weights(f"{SMALL},classes=4", fc__weight=None, fc__bias=None)
    refused(headless, ModelFileError, r"missing:\n  fc.weight 10×64\n  fc.bias 10\n.*no classes.*`new_head`", **GIVEN)
    assert torch.equal(
        modelfile.load(convert(headless, **given, out="3.safetensors").path).net.fc.weight, one["fc.weight"]
    )


# What does not fit


def test_every_tensor_is_accounted_for():
    extra = {"layer1__0__conv9__weight": torch.zeros(16, 16, 3, 3), "head__weight": torch.zeros(3)}
    file = weights(layer1__0__conv1__weight=None, bn1__bias=torch.zeros(17), **extra)
    said = refused(file, ModelFileError, "does not fit the network; nothing was written", **GIVEN)
    assert said.splitlines()[1:] == [
        "missing:",
        "  layer1.0.conv1.weight 16×16×3×3, nearest layer1.0.conv9.weight 16×16×3×3",
        "extra:",
        "  layer1.0.conv9.weight 16×16×3×3, nearest layer1.0.conv1.weight 16×16×3×3",
        "  head.weight 3",
        "another shape:",
        "  bn1.bias 17, in the network 16",
    ]


def test_a_long_account_is_cut_and_names_what_would_fit():
    file = weights("resnet18")
    said = refused(file, ModelFileError, "nothing was written", model="resnet34", classes="imagenet")
    assert "and 72 more; the notes of this error name them" in said
    assert said.endswith("The file's tensors fit resnet18.")
    with pytest.raises(ModelFileError) as caught:
        convert(file, model="resnet34", classes="imagenet")
    (note,) = caught.value.__notes__
    assert note.startswith("all missing: layer1.2.conv1.weight, ")
    assert note.count(", ") == 79  # of 8 + 72 names


def test_other_networks_are_told_apart():
    torch.save({"features.0.weight": torch.zeros(1), "classifier.weight": torch.zeros(1)}, "theirs.pth")
    refused(
        Path("theirs.pth"), ModelFileError, "no known residual network.*features.0.weight, classifier.weight", **GIVEN
    )
    refused(Path("none.pth"), ModelFileError, "none.pth does not exist", **GIVEN)
    torch.save({"conv1.weight": torch.zeros(16, 3, 3, 3), "linear.weight": torch.zeros(10, 64)}, "theirs.pth")
    refused(Path("theirs.pth"), ModelFileError, "missing:\n  bn1.weight 16", model="resnet20")
    both = weights(linear__weight=torch.zeros(10, 64))
    refused(both, ModelFileError, "two tensors for fc.weight", **GIVEN)


@pytest.mark.parametrize("kind", ["nan", "code", "html", "truncated", "folder"])
def test_hostile_files_are_refused_by_the_command_line(kind, capsys):
    file = weights()
    if kind == "nan":
        file = weights(fc__weight=torch.full((10, 64), float("nan")))
    elif kind == "code":
        torch.save({"state_dict": {}, "more": Canary()}, file)
    elif kind == "html":
        file.write_text("<html>not found</html>")
    elif kind == "truncated":
        file.write_bytes(file.read_bytes()[:-1000])
    else:
        file.unlink()
        file.mkdir()
    before = sorted(Path().rglob("*"))
    assert main(["convert", "theirs.pth", "--model", SMALL, "--preprocess", "cifar10", "--classes", "cifar10"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("resnetkit convert: theirs.pth")
    assert len(err.splitlines()) == 1
    assert sorted(Path().rglob("*")) == before


class Canary:
    def __reduce__(self):
        return os.system, ("touch canary",)


# What a source or a hash says


def test_sources_contradict_a_wrong_network():
    tensors = {
        "embedder.embedder.convolution.weight": torch.zeros(1),
        "classifier.1.weight": torch.zeros(1),
    }

    def fits(tensors, spec, where):
        refuse_contradictions((source := find_project(tensors, where=where)).name, source.implies, spec, where=where)
        fit(source, renamed(source, tensors, where=where), spec, where=where)

    with pytest.raises(UsageError, match=r"from transformers, .* in the 3×3 convolution \(v1\.5\)"):
        fits(tensors, parse_spec("resnet50_v1"), where="w.bin")
    keras = {"conv1_conv/kernel": torch.zeros(7, 7, 3, 64), "conv2_block1_1_conv/kernel": torch.zeros(1, 1, 64, 64)}
    with pytest.raises(UsageError, match=r"w\.h5 comes from Keras, .*\(v1\); .* Give `model` resnet50_v1"):
        fits(keras, parse_spec("resnet50"), where="w.h5")
    akamaster = {"conv1.weight": torch.zeros(16, 3, 3, 3), "linear.weight": torch.zeros(10, 64)}
    with pytest.raises(UsageError, match="shortcut=A; the network has shortcut=none"):
        fits(akamaster, parse_spec("plain20"), where="w.th")
    bit = {"stages.0.blocks.0.norm1.weight": torch.zeros(64)}
    with pytest.raises(UsageError, match="order=pre; the network has order=post"):
        fits(bit, parse_spec("resnet50"), where="bit")


def test_published_files_are_known_by_their_hash(monkeypatch):
    row = published("resnet50")["IMAGENET1K_V2"]
    known = known_by_hash(row.sha256 + "0" * 56)
    assert known is not None
    assert (known.who, known.model) == ("torchvision resnet50:IMAGENET1K_V2", "resnet50")
    assert known.preprocess == PREPROCESSES["imagenet-v2"]
    assert known_by_hash("0" * 64) is None

    small = "resnet50,width=8"  # so that the file is
    file = weights(small)
    thin = replace(known, model=small, facts={**known.facts, "width": 8})
    monkeypatch.setattr(conversion, "known_by_hash", lambda sha256: thin)
    refused(file, UsageError, r"torchvision resnet50:IMAGENET1K_V2.*Give `model` resnet50", model="resnet50_v1,width=8")
    refused(file, UsageError, "with blur=0; the network has blur=3", model="resnet50,width=8,blur=3")
    done = convert(file)
    assert (done.model, done.origin) == (small, known.who)
    assert done.header.preprocess.resize == 232
    assert done.header.classes[0] == "tench"
    assert done.header.metrics == {"top1_error_percent": 19.142, "top5_error_percent": 4.566}
    assert done.header.origin["weights"] == "IMAGENET1K_V2"
    assert "sha256" in done.header.origin
    assert convert(file, preprocess="imagenet", out="2.safetensors").header.metrics == {}


def test_cifar_models_are_known_by_their_hash(monkeypatch):
    file = weights("resnet20_b,classes=100")
    prefix = hashlib.sha256(file.read_bytes()).hexdigest()[:8]
    refused(file, UsageError, "`preprocess`", classes="cifar100")
    monkeypatch.setitem(provenance.CIFAR_MODELS, prefix, ("resnet20_b", "cifar100"))
    done = convert(file)
    assert (done.origin, done.model) == ("chenyaofo/pytorch-cifar-models", "resnet20_b")
    assert done.header.preprocess.std == (0.2673, 0.2564, 0.2761)
    assert done.header.classes[:2] == ("apple", "aquarium_fish")


# What the files beside it say


TINY = "resnet18,width=8"
ANIMALS = ("ant", "bee", "cat", "dog", "eel")


def transformers_weights() -> Path:
    """A tiny network of five classes under the names of transformers."""

    def theirs(name: str) -> str:
        parts = ("convolution", "normalization")
        if found := re.fullmatch(r"layer(\d)\.(\d)\.(?:(conv|bn)(\d)|downsample\.(\d))\.(.+)", name):
            stage, block, kind, index, place, value = found.groups()
            part = f"layer.{int(index) - 1}.{parts[kind == 'bn']}" if kind else f"shortcut.{parts[int(place)]}"
            return f"encoder.stages.{int(stage) - 1}.layers.{block}.{part}.{value}"
        for ours, other in (("conv1", "convolution"), ("bn1", "normalization")):
            name = name.replace(f"{ours}.", f"embedder.embedder.{other}.")
        return name.replace("fc.", "classifier.1.")

    torch.save({theirs(name): tensor for name, tensor in build(TINY, classes=5).state_dict().items()}, "hub.pth")
    return Path("hub.pth")


def test_transformers_says_its_classes_and_pictures():
    file = transformers_weights()
    config = {"model_type": "resnet", "id2label": dict(enumerate(ANIMALS))}
    Path("config.json").write_text(json.dumps(config))
    refused(file, UsageError, "don't determine everything; give `preprocess` [^ ]*$", model=TINY)
    processor = {"feature_extractor_type": "ConvNextFeatureExtractor", "size": 224, "crop_pct": 0.9, "resample": 3}
    processor |= {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.2, 0.2]}
    Path("preprocessor_config.json").write_text(json.dumps(processor))
    done = convert(file, model=TINY)
    assert (done.header.classes, done.assumed) == (ANIMALS, ())
    assert done.header.preprocess == Preprocess(224, 248, "bicubic", (0.5, 0.4, 0.3), (0.2, 0.2, 0.2))
    done.path.unlink()
    for change in ({"size": 384}, {"feature_extractor_type": "ViTFeatureExtractor"}, {"do_normalize": False}):
        Path("preprocessor_config.json").write_text(json.dumps(processor | change))
        refused(file, UsageError, "give `preprocess`", model=TINY)
    Path("config.json").write_text(json.dumps(config | {"id2label": {"0": "ant"}}))
    refused(file, UsageError, "config.json has 1 classes, but the weights beside it have 5", model=TINY)


def test_timm_says_its_network_classes_and_pictures():
    file = weights("resnet18,blur=3,classes=5")
    cfg = {"input_size": [3, 160, 160], "crop_pct": 0.8, "interpolation": "bicubic"}
    config = {
        "architecture": "resnetblur18",
        "num_classes": 5,
        "label_names": ANIMALS,
        "pretrained_cfg": cfg | {"mean": [0.5] * 3, "std": [0.25] * 3},
    }
    Path("config.json").write_text(json.dumps(config))
    refused(file, UsageError, "from timm resnetblur18, with blur=3; the network has blur=0", model="resnet18")
    done = convert(file)
    assert (done.model, done.origin, done.assumed) == ("resnet18,blur=3", "timm resnetblur18", ())
    assert done.header.spec == parse_spec("resnet18,blur=3,classes=5")
    assert done.header.classes == ANIMALS
    assert done.header.preprocess == Preprocess(160, 200, "bicubic", (0.5,) * 3, (0.25,) * 3)
    Path("theirs.safetensors").unlink()
    for change, words in (
        ({"architecture": "resnet50t"}, "config.json describes a resnet50t, which is not supported"),
        ({"num_classes": 7}, "config.json has 7 classes, but the weights beside it have 5"),
        ({"label_names": ANIMALS[:2]}, "config.json has 2 classes"),
        ({"model_args": {"output_stride": 8}}, "resnetblur18 with output_stride=8, which is not supported"),
        ({"pretrained_cfg": cfg | {"crop_mode": "border"}}, "config.json: crop_mode is border"),
    ):
        Path("config.json").write_text(json.dumps(config | change))
        refused(file, UsageError, words)
    Path("config.json").write_text(json.dumps(config | {"pretrained_cfg": cfg}))
    refused(file, ModelFileError, "config.json is not a config.json of timm")


def test_what_is_assumed_is_said(capsys):
    tensors = build("resnet20").state_dict()
    torch.save({name.replace("fc.", "linear."): tensor for name, tensor in tensors.items()}, "theirs.th")
    assert main(["convert", "theirs.th"]) == 0
    said = "assumed     preprocessing and class names, as its author publishes: not in the file; "
    assert f"{said}--preprocess and --classes override it\n" in capsys.readouterr().out
    assert convert("theirs.th", preprocess="cifar10", force=True).assumed == ("classes",)
    assert convert("theirs.th", preprocess="cifar10", classes="cifar10", force=True).assumed == ()


def test_the_second_version_of_keras_is_named():
    layers = ("conv1_conv", "conv2_block1_1_conv", "post_bn")
    np.savez("theirs.npz", **{f"{layer}/kernel": np.zeros(1, np.float32) for layer in layers})
    refused(
        Path("theirs.npz"), ModelFileError, r"is a ResNet V2 \(ResNet50V2, \.\.\.\) of Keras, which can't be converted"
    )


# Preprocessing and class names as text


def test_presets():
    assert PREPROCESSES["imagenet"] == Preprocess(size=224, resize=256)
    assert parse_preprocess("imagenet,size=288,resize=320").shorter_side == 320
    assert parse_preprocess("size=32,mean=0.5:0.5:0.5,std=1:1:1") == Preprocess(
        32, None, "bilinear", (0.5,) * 3, (1,) * 3
    )
    assert parse_preprocess("size=32,mean=0.5,std=1e-2,mode=L").channels == 1
    assert parse_preprocess('{"size": 64, "interpolation": "bicubic"}') == Preprocess(64, interpolation="bicubic")
    for preset in PREPROCESSES.values():
        assert parse_preprocess(json.dumps(preset.to_dict())) == preset
    assert set(CLASS_LISTS) == {"imagenet", "cifar10", "cifar100"}
    assert [len(class_names(name)) for name in CLASS_LISTS] == [1000, 10, 100]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("imagnet", "did you mean imagenet"),
        ("zzz", "known names: imagenet"),
        ("imagenet,320", "'320' is not of the form field=value"),
        ("imagenet,resize=big", "resize is 'big'; it must be a whole number"),
        ("imagenet,mean=1,2,3", "'2' is not of the form field=value"),
        ("imagenet,mean=a:b:c", "numbers with colons"),
        ("zzz", r"cifar100\. Or write"),
        ("imagenet,size=224,size=225", "`preprocess` contains size twice"),
        ("imagenet,sise=3", "did you mean size"),
        ("imagenet,size=300", "less than the crop"),
        ("mean=0.5:0.5:0.5", "no size"),
        ("{", "not valid JSON"),
        ('{"size": "a"}', "whole numbers"),
    ],
)
def test_preprocessing_that_is_refused(text, words):
    with pytest.raises(UsageError, match=words):
        parse_preprocess(text)


def test_files_of_class_names():
    Path("names.txt").write_text("\ufeffcat\nMöwe\n\n", encoding="utf-8")
    assert class_names("names.txt") == ("cat", "Möwe")
    Path("names.json").write_text('["cat", "dog"]')
    assert class_names("names.json") == ("cat", "dog")
    Path("names.json").write_text('{"1": "dog", "0": "cat"}')
    assert class_names("names.json") == ("cat", "dog")
    for content, words in (
        ("cat\ncat\ncat", "'cat' occurs 3 times"),
        ("cat\ncat\ncat 2", "some names occur twice"),
        ("", "no names"),
        ('{"a": 1}', "JSON"),
        ('{"id2label": {"1": "dog"}}', "JSON"),
        ("[", "JSON"),
    ):
        Path("names.txt").write_text(content)
        with pytest.raises(UsageError, match=words):
            class_names("names.txt")
    Path("config.json").write_text('{"id2label": {"1": "dog", "0": "cat"}, "model_type": "resnet"}')
    assert class_names("config.json") == ("cat", "dog")
    Path("names.txt").write_text("crane\nmaillot\ncrane\n")
    assert class_names("names.txt") == ("crane", "maillot", "crane 2")
    for given in (range(10), ["a"] * 10, ["a", ""], [], [b"a"], {"0": 1}):
        with pytest.raises(UsageError, match="`classes`: "):
            class_names(given)
    with pytest.raises(UsageError, match=r"none\.txt: No such file.*; give imagenet"):
        class_names("none.txt")


# The other way


def test_only_what_the_project_has_is_exported():
    torch.manual_seed(0)
    for model, project, words in (
        ("resnet50_v1,width=8", "torchvision", "width=8, downsample_in=1x1"),
        ("resnet50_v1", "timm", "downsample_in=1x1"),
        ("resnet20", "timm", "3 stages, stem=cifar"),
        ("resnet18d", "torchvision", "stem=deep, pooled_shortcut=True"),
        ("resnet18,blur=5", "timm", "blur=5"),
        ("preact_resnet18,attention=se", "timm", "attention=se"),
        ("resnet18,output_stride=8", "torchvision", "block=basic, dilated=false-true-true"),
        ("resnet18d,output_stride=8", "timm", "pooled_shortcut=True, dilated=false-true-true"),
        ("resnet18,blur=3,output_stride=16", "timm", "blur=3, dilated=false-false-true"),
        ("resnet18,dilated=true-false-true", "timm", r"dilated=\(True, False, True\)"),
        ("preact_resnet18,output_stride=4", "timm", r"dilated=\(True, True, True\)"),
    ):
        net = build(model)
        modelfile.save("ours.safetensors", net, header(net.spec))
        with pytest.raises(UsageError, match=f"{project} has no network with {words}"):
            write_state_dict("ours.safetensors", to=project)
    assert [path.name for path in Path().iterdir()] == ["ours.safetensors"]


def header(spec) -> Header:
    return Header(spec, Preprocess(size=32), tuple(map(str, range(spec.classes))))


def test_export_by_the_command_line(capsys):
    net = build("resnet18,classes=3")
    modelfile.save("ours.safetensors", net, header(net.spec))
    assert main(["convert", "ours.safetensors", "--to", "torchvision"]) == 0
    assert capsys.readouterr().out == (
        "ours-torchvision.pth loads in torchvision with strict=True into\ntorchvision.models.resnet18(num_classes=3)\n"
    )
    assert torch.equal(torch.load("ours-torchvision.pth")["fc.bias"], net.fc.bias)
    assert main(["convert", "ours.safetensors", "--to", "timm", "--out", "t.safetensors", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "file": "t.safetensors",
        "to": "timm",
        "network": 'timm.create_model("resnet18", num_classes=3)',
    }
    for argv, words in (
        (["--to", "torchvision"], "ours-torchvision.pth exists already"),
        (["--to", "timm", "--out", "t.onnx"], "must end in .pth, .pt or .safetensors"),
        (["--to", "timm", "--model", "resnet18"], "leave out --model"),
        (["--to", "timm", "--strict"], "leave out --strict"),
        (["--to", "keras"], "--to takes torchvision, timm"),
    ):
        assert main(["convert", "ours.safetensors", *argv]) == 2
        assert words in capsys.readouterr().err
    save_file({"conv1.weight": torch.zeros(1)}, "bare.safetensors")
    assert main(["convert", "bare.safetensors", "--to", "timm"]) == 1
    assert "without resnetkit's header" in capsys.readouterr().err


def test_convert_by_the_command_line(capsys):
    weights()
    argv = ["convert", "theirs.pth", "--model", SMALL, "--preprocess", "cifar10"]
    assert main([*argv, "--classes", "cifar10", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["model"], said["network"], said["new_head"]) == ("theirs.safetensors", SMALL, False)
    assert said["preprocess"] == PREPROCESSES["cifar10"].to_dict()
    assert main([*argv, "--new-head", "3", "--out", "three.safetensors"]) == 0
    out = capsys.readouterr().out
    assert "classes     3: 0, 1, 2\n" in out
    assert "last layer  new, with random weights" in out
    assert out.endswith("model       three.safetensors\n")


# Published weights, where they are at hand


@pytest.mark.slow
def test_akamasters_resnet20_has_its_error_on_cifar10(shared, capsys, monkeypatch):
    monkeypatch.delenv("RESNETKIT_CACHE")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "resnetkit" / "cifar10"
    if not cache.is_dir():
        pytest.skip(f"needs CIFAR-10 in {cache}; resnetkit data get cifar10 brings it")
    assert main(["convert", str(shared / "weights" / "cifar10-resnet20-akamaster.th"), "--out", "r20.safetensors"]) == 0
    capsys.readouterr()
    assert main(["evaluate", "r20.safetensors", "cifar10", "--json"]) == 0
    measured = json.loads(capsys.readouterr().out)
    assert measured["images"] == 10_000
    assert measured["top1_error_percent"] == pytest.approx(8.27, abs=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize(("layers", "right"), [(18, 72), (50, 82)])
def test_published_imagenet_weights_are_right_on_as_many_photos(layers, right, shared, capsys):
    photos = shared / "data" / "photos"
    with (photos / "labels.csv").open() as file:
        rows = [
            (photos / row["file"], class_names("imagenet")[int(row["class_index"])]) for row in csv.DictReader(file)
        ]
    Path("photos.csv").write_text("path,label\n" + "".join(f'{path},"{label}"\n' for path, label in rows))
    file = shared / "weights" / f"imagenet-resnet{layers}.pth"
    flags = [
        "--model",
        f"resnet{layers}",
        "--preprocess",
        "imagenet",
        "--classes",
        "imagenet",
        "--out",
        "m.safetensors",
    ]
    assert main(["convert", str(file), *flags]) == 0
    capsys.readouterr()
    assert main(["evaluate", "m.safetensors", "photos.csv", "--split", "all", "--batch-size", "20", "--json"]) == 0
    measured = json.loads(capsys.readouterr().out)
    assert measured["images"] == 100
    assert measured["top1_error_percent"] == pytest.approx(100 - right)
