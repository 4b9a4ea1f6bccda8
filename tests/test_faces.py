"""The repr of public objects is one line, and every function of the package has its own help."""

import inspect
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import resnetkit as rk
from resnetkit.convert.conversion import Conversion
from resnetkit.data.check import check
from resnetkit.data.loader import Loader
from resnetkit.evaluation.metrics import Evaluation
from resnetkit.infer.exports.export import Exported
from resnetkit.infer.exports.parity import Gap
from resnetkit.infer.quantizing.accuracy import Verdict
from resnetkit.infer.quantizing.quantize import Quantized
from resnetkit.infer.tuning.record import Tuned
from resnetkit.modelfile import Header, Model
from resnetkit.models.spec import CHANGES, text_of
from resnetkit.train.lifecycle import TrainResult

LONG = 200
MANY = 2000
CLASSES = tuple(f"class number {i}, that of pictures of <things> like the one before it" for i in range(MANY))
VERBS = [name for name in rk.__all__ if inspect.isfunction(getattr(rk, name))]


def samples(count: int = 3000) -> rk.Samples:
    return rk.Samples(CLASSES, np.arange(count) % MANY, np.zeros((count, 8, 8, 3), np.uint8))


def preprocess() -> rk.Preprocess:
    return rk.Preprocess(size=32, mean=tuple(np.linspace(0.1, 0.9, 3072).tolist()), std=(0.21, 1 / 3, 0.25))


def model() -> Model:
    spec = rk.parse_spec(
        "resnet20,classes=2000,depths=1-1-1,shortcut=C,groups=1,norm=group,width=32,blur=3,drop_path=0.25,attention=se"
    )
    recipe = rk.Recipe(model="resnet20," + "depths=1-1-1," * 20).to_dict()
    data = {"name": "/home/me/" + 40 * "pictures " + "/birds", "fingerprint": "0" * 16}
    header = Header(spec, preprocess(), CLASSES, recipe, {"error_percent": 12.345}, data)
    return Model(rk.build(spec).eval(), header)


def evaluation() -> Evaluation:
    result = Evaluation(CLASSES, part="all", of="birds", trained_on=3)
    result.add(torch.zeros(5, MANY).log_softmax(1), torch.arange(5))
    return result


def explanation() -> Any:
    picture = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    return rk.Predictor(model(), backend="torch").explain(picture)


def verdict() -> Verdict:
    return Verdict(500, 99.1, 12.3, 0.2, 0.1, 0.3, passes=True)


def tuned() -> Tuned:
    choice = rk.Choice("openvino", threads=64, streams=64, batch_size=100_000).to_dict()
    goals = {name: {"choice": choice, "images_per_second": 12345.6} for name in ("latency", "throughput")}
    return Tuned("0" * 64, {"instructions": [str(i) for i in range(99)]}, goals, table=[choice] * 50)  # pyrefly: ignore


def exported() -> Exported:
    files = (Path("runs") / ("x" * 200) / "model.xml",) * 2
    gap = Gap(64, 1e-6, 1e-7, 1.0)
    integers = Quantized(100, tuple(f"layer{i}" for i in range(99)), verdict())
    return Exported(files[0], files, "pixels: uint8 (batch, 32, 32, 3)", "logits: float32 (batch, 10)", gap, integers)


def dataset() -> rk.Dataset:
    name, split = "/data/" + "very " * 80 + "long", {"seed": 0, "val_fraction": 0.2}
    skipped = tuple((Path(f"{i}.txt"), "not a picture") for i in range(999))
    return rk.Dataset(name, CLASSES, samples(), samples(20), None, split, skipped)


# What shows itself, and words that its line has.
SHOWN: dict[str, tuple[Callable[[], Any], list[str]]] = {
    "Choice": (lambda: rk.Choice("openvino", "int8", threads=64, streams=64, batch_size=999), ["openvino", "int8"]),
    "Dataset": (dataset, ["2,000 classes", "train 3,000", "val 20", "999 left out"]),
    "Samples": (samples, ["3,000 pictures of 2,000 classes", "in memory, 8×8×3"]),
    "Batch": (
        lambda: next(Loader(samples(), rk.Preprocess(size=8), batch_size=500).epoch()),
        ["500 pictures of 3×8×8", "number 0"],
    ),
    "Recipe": (
        lambda: rk.Recipe(model=model().header.recipe["model"], lr=0.3),
        ["model='resnet20", "epochs=30.0", "lr=0.3"],
    ),
    "Recipe of a row": (lambda: rk.RECIPES["folder"], ["resnet18", "epochs=30.0", "batch_size=32", "lr=0.05"]),
    "ModelSpec": (lambda: model().header.spec, ["parse_spec('resnet20", "classes=2000"]),
    "Preprocess": (preprocess, ["size=32", "mean=<3,072 values>", "std=(0.21, 0.3333, 0.25)"]),
    "Header": (lambda: model().header, ["2,000 classes", "32 pixels"]),
    "Model": (model, ["Model(resnet20_c,depths=1-1-1", "2,000 classes", "trained on birds"]),
    "Evaluation": (evaluation, ["all 5 pictures", "top-1 error 80.00 %", "loss 7.6009", "3 of them trained"]),
    "TrainResult": (
        lambda: TrainResult(Path("r"), Path("r/best.safetensors"), {"error_percent": 3.21, "step": 9}, 99.0, 61.4),
        ["validation error 3.21 %", "61 seconds", "r/best.safetensors"],
    ),
    "Predictor": (lambda: rk.Predictor(model(), backend="torch"), ["2,000 classes", "torch float32"]),
    "Prediction": (lambda: rk.Predictor(model(), backend="torch")(np.zeros((9, 9, 3), np.uint8))[0], ["label="]),
    "Explanation": (explanation, ["class number", "%", "by c4", "60×40"]),
    "Tuned": (tuned, ["latency: openvino float32"]),
    "Exported": (exported, ["runs/"]),
    "Gap": (lambda: exported().gap, ["64"]),
    "Verdict": (verdict, ["500"]),
    "Quantized": (lambda: exported().integers, ["99 of 100 layers in float"]),
    "Conversion": (
        lambda: Conversion(Path("m.safetensors"), model().header, "resnet20", "timm", 99, False, ("x",) * 99),
        ["m.safetensors", "resnet20", "from timm", "99 tensors"],
    ),
}


@pytest.mark.parametrize("name", SHOWN)
def test_a_line_whatever_is_in_it(name: str) -> None:
    make, words = SHOWN[name]
    shown = repr(make())
    assert len(shown) <= LONG, shown
    assert "\n" not in shown
    assert " at 0x" not in shown
    for word in words:
        assert word in shown, shown


def test_check_and_part_show_a_line(picture_folder: Path) -> None:
    assert repr(check(str(picture_folder))).endswith(", 3 classes, train 48, val 12, sound)")


@pytest.mark.parametrize("make", [dataset, evaluation, lambda: rk.RECIPES["cifar10"]])
def test_tables_in_a_notebook_are_short_and_escaped(make: Callable[[], Any]) -> None:
    html = make()._repr_html_()
    assert html.count("<tr>") <= 60
    assert "<things>" not in html
    assert "<table>" in html


def test_an_explanation_is_a_picture_in_a_notebook(tmp_path: Path) -> None:
    found = explanation()
    (tmp_path / "shown.png").write_bytes(found._repr_png_())
    with Image.open(tmp_path / "shown.png") as shown:
        assert shown.size == found.drawing().size
    large = rk.Predictor(model(), backend="torch").explain(Image.new("RGB", (3000, 2000)))
    (tmp_path / "shown.png").write_bytes(large._repr_png_())
    with Image.open(tmp_path / "shown.png") as shown:
        assert max(shown.size) == 1024


def test_every_public_name_has_words_of_its_own() -> None:
    assert {"train", "evaluate", "convert", "export", "tune", "resume", "open_dataset", "load"} <= set(VERBS)
    for name in rk.__all__:
        value = getattr(rk, name)
        if name not in ("SPECS", "RECIPES"):
            assert inspect.getdoc(value), name
            assert inspect.isfunction(value) or inspect.isclass(value), name


@pytest.mark.parametrize("name", VERBS)
def test_help_of_a_verb_is_its_own(name: str) -> None:
    import pydoc

    text = pydoc.render_doc(getattr(rk, name), renderer=pydoc.plaintext)
    head = text.splitlines()[0]
    assert head.startswith("Python Library Documentation: function ")
    assert head.split()[4].rpartition(".")[2] == name
    assert "PACKAGE CONTENTS" not in text
    assert len(text) < 6000


@pytest.mark.parametrize(
    ("wrong", "kind"), [(None, "None"), (5, "an int"), (b"resnet20", "bytes"), ({"model": "resnet20"}, "a dict")]
)
@pytest.mark.parametrize(
    "verb",
    [
        rk.load,
        rk.Predictor,
        lambda model: rk.evaluate(model, samples()),
        rk.convert,
        lambda model: rk.convert(model, to="timm"),
        rk.tune,
        lambda model: rk.export(model, to="onnx"),
        lambda model: rk.export(model, "model.pt2", to="pt2"),
    ],
)
def test_what_is_no_model_is_wrong_use(verb: Callable[[Any], Any], wrong: object, kind: str) -> None:
    with pytest.raises(rk.UsageError, match=f"^{kind} is not a .*; give a str or a Path"):
        verb(wrong)


@pytest.mark.parametrize("name", ["train", "convert"])
def test_a_verb_that_is_a_package_can_be_pickled(name: str) -> None:
    verb = getattr(rk, name)
    assert pickle.loads(pickle.dumps(verb)) is verb


def test_convert_takes_what_its_function_takes() -> None:
    from resnetkit.convert import conversion

    inner, outer = (inspect.signature(function).parameters for function in (conversion.convert, rk.convert))
    assert set(outer) - set(inner) == {"to"}
    for parameter in inner.values():
        assert outer[parameter.name].default == parameter.default
        assert outer[parameter.name].kind == parameter.kind


@pytest.mark.parametrize(
    "code",
    [
        "import resnetkit.train.recipe; resnetkit.train.recipe.Recipe",
        "import resnetkit.train.recipe as recipe; recipe.Recipe",
        "from resnetkit.train import recipe; recipe.Recipe",
        "import resnetkit; resnetkit.train; from resnetkit.train import recipe; recipe.Recipe",
        "import importlib; importlib.import_module('resnetkit.train.recipe'); import resnetkit",
        "from resnetkit.convert.naming import projects; import resnetkit",
        "import resnetkit, pkgutil; list(pkgutil.walk_packages(resnetkit.__path__, 'resnetkit.'))",
    ],
)
def test_its_modules_are_imported_as_ever(code: str) -> None:
    checks = "import inspect; assert inspect.isfunction(resnetkit.train) and inspect.isfunction(resnetkit.convert)"
    subprocess.run([sys.executable, "-c", f"{code}\nimport resnetkit\n{checks}"], check=True)


def test_convert_goes_both_ways(tmp_path: Path) -> None:
    name, ours_at = "resnet18,depths=1-1-1-1,width=64", tmp_path / "m.safetensors"
    net = rk.build(name, classes=3)
    torch.save(net.state_dict(), tmp_path / "theirs.pth")
    classes = ["a", "b", "c"]
    ours = rk.convert(tmp_path / "theirs.pth", model=name, preprocess="imagenet", classes=classes, out=ours_at)
    assert (ours.path, ours.tensors, ours.header.classes) == (ours_at, len(net.state_dict()), ("a", "b", "c"))
    back = rk.convert(ours.path, to="torchvision", out=tmp_path / "back.pth")
    found = torch.load(back, weights_only=True)
    assert all(torch.equal(found[name], tensor) for name, tensor in net.state_dict().items())
    with pytest.raises(rk.UsageError, match="leave out `model` `classes`"):
        rk.convert(ours.path, to="timm", model="resnet18", classes="imagenet")  # pyrefly: ignore
    with pytest.raises(rk.UsageError, match="leave out `strict` `part`"):
        rk.convert(ours.path, to="timm", strict=True, part="model")  # pyrefly: ignore


def test_convert_takes_a_part(tmp_path: Path) -> None:
    name, file = "resnet20", tmp_path / "theirs.pth"
    net = rk.build(name, classes=3)
    torch.save({"model": net.state_dict(), "other": {key: 2 * value for key, value in net.state_dict().items()}}, file)
    given: dict[str, Any] = {"model": name, "preprocess": "cifar10", "classes": ["a", "b", "c"]}
    done = rk.convert(file, part="other", out=tmp_path / "m.safetensors", **given)
    assert done.part == "other"
    assert torch.equal(rk.load(done.path).net.state_dict()["fc.weight"], 2 * net.fc.weight)
    with pytest.raises(rk.UsageError, match="has no part third"):
        rk.convert(file, part="third", out=tmp_path / "n.safetensors", **given)


@pytest.mark.parametrize(
    "text",
    [
        *rk.SPECS,
        "resnet20,classes=3",
        "resnet50,dilated=false-true-true,norm=frozen",
        "resnet20_b,depths=1-2-3,width=8,drop_path=0.5,blur=5,pooled_shortcut=true,in_channels=1",
        "preact_resnet18,attention=se,groups=1",
    ],
)
def test_the_text_of_a_network_is_the_way_back(text: str) -> None:
    spec = rk.parse_spec(text)
    assert rk.parse_spec(text_of(spec)) == spec
    assert eval(repr(spec), {"parse_spec": rk.parse_spec}) == spec
    assert text_of(spec).count(",") <= text.count(",")
    assert "classes=" not in text_of(spec, without=["classes"])
    assert {setting.partition("=")[0] for setting in text_of(spec).split(",")[1:]} <= set(CHANGES)
