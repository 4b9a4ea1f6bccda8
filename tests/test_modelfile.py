"""The model file: everything that a prediction needs is saved and loaded; errors name broken files."""

import json
import resource
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from resnetkit import modelfile
from resnetkit.data.transforms.preprocess import Preprocess
from resnetkit.errors import ModelFileError, UsageError
from resnetkit.modelfile import HEADER_KEY, KINDS, Header, inspect, load
from resnetkit.models.resnet import build
from resnetkit.models.spec import parse_spec
from resnetkit.train.recipe import Recipe

CLASSES = ("cat", "dog", "Möwe")


def header(model="resnet20,classes=3", **fields):
    preprocess = Preprocess(size=32, mean=(0.1,) * (3 * 32 * 32), std=(1.0, 1.0, 1.0))
    return Header(parse_spec(model), preprocess, CLASSES, recipe={"lr": 0.1, "milestones": [0.5]}, **fields)


@pytest.mark.parametrize("model", ["resnet20", "plain20", "resnet20,shortcut=C", "resnet50_v1", "resnext50_32x4d"])
def test_there_and_back(model, tmp_path):
    path = tmp_path / "model.safetensors"
    spec = parse_spec(model, classes=3)
    net = build(spec)
    net(torch.randn(2, 3, 32, 32))  # running statistics that are not the first ones
    written = Header(
        spec, Preprocess(size=32), CLASSES, metrics={"val_error_percent": 8.75}, data={"split": {"seed": 3}}
    )
    modelfile.save(path, net, written)
    model = modelfile.load(path)
    assert model.header == written
    assert modelfile.inspect(path) == written
    assert not model.net.training
    assert list(model.net.state_dict()) == list(net.state_dict())
    assert all(
        torch.equal(a, b) for a, b in zip(model.net.state_dict().values(), net.state_dict().values(), strict=True)
    )


def in_a_new_process(code: str, path: Path) -> str:
    """Return the output of `code`, which gets `path` in sys.argv."""
    done = subprocess.run([sys.executable, "-c", f"import sys; {code}", path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_loading_does_not_import_torchs_compiler(tmp_path):
    """Its import takes as long as torch's. Drawing initial values of a network on the meta device would import it."""
    modelfile.save(tmp_path / "m.safetensors", build("resnet20,classes=3"), header())
    code = "from resnetkit import modelfile; modelfile.load(sys.argv[1]); print('torch._dynamo' in sys.modules)"
    assert in_a_new_process(code, tmp_path / "m.safetensors") == "False"


def test_inspect_imports_no_torch(tmp_path):
    modelfile.save(tmp_path / "m.safetensors", build("resnet20,classes=3"), header())
    code = (
        "from resnetkit import modelfile; print(modelfile.inspect(sys.argv[1]).classes); "
        "assert 'torch' not in sys.modules"
    )
    assert in_a_new_process(code, tmp_path / "m.safetensors") == str(CLASSES)


def test_what_would_not_load_is_not_written(tmp_path):
    path = tmp_path / "m.safetensors"
    with pytest.raises(ModelFileError, match="do not fit its spec"):
        modelfile.save(path, build("resnet32,classes=3"), header())
    with pytest.raises(ModelFileError, match="3 class names for a network with 10"):
        header("resnet20,classes=10")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (lambda whole: whole[: len(whole) // 2], "whole"),
        (lambda whole: whole[:4], "whole"),
        (lambda whole: b"", "whole"),
        (lambda whole: b"<html>not found</html>", "whole"),
        (lambda whole: (2**60).to_bytes(8, "little") + whole[8:], "whole"),
        (lambda whole: whole.replace(b'\\"basic\\"', b'\\"basil\\"'), "broken header .unknown block"),
    ],
    ids=["half", "stub", "empty", "html", "length", "field"],
)
def test_broken_files_are_refused(break_it, words, tmp_path):
    path = tmp_path / "m.safetensors"
    modelfile.save(path, build("resnet20,classes=3"), header())
    path.write_bytes(break_it(path.read_bytes()))
    with pytest.raises(ModelFileError, match=f"m.safetensors.*{words}"):
        modelfile.load(path)


def test_foreign_and_future_files_are_refused(tmp_path):
    path = tmp_path / "m.safetensors"
    save_file({"conv1.weight": torch.zeros(1)}, path)
    with pytest.raises(ModelFileError, match=r"contains weights without resnetkit's header.*resnetkit convert"):
        modelfile.load(path)
    future = json.loads(header().to_json()) | {"format_version": 99, "version": "9.0"}
    save_file({"conv1.weight": torch.zeros(1)}, path, {HEADER_KEY: json.dumps(future)})
    with pytest.raises(ModelFileError, match=r"format 99, written by resnetkit 9\.0"):
        modelfile.load(path)
    save_file({"conv1.weight": torch.zeros(1)}, path, {HEADER_KEY: header().to_json()})
    with pytest.raises(ModelFileError, match="do not fit"):
        modelfile.load(path)
    with pytest.raises(ModelFileError, match="does not exist"):
        modelfile.load(tmp_path / "nowhere")


def test_a_disk_that_fills_up_leaves_the_old_file(tmp_path):
    path = tmp_path / "m.safetensors"
    modelfile.save(path, build("resnet20,classes=3"), header())
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # Python ignores SIGXFSZ: writing fails with EFBIG
    try:
        with pytest.raises(ModelFileError, match="intact"):
            modelfile.save(path, build("resnet20,classes=3"), header())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]


def test_channels_last_weights_keep_their_values(tmp_path):
    net = build("resnet20,classes=3").to(memory_format=torch.channels_last)
    modelfile.save(tmp_path / "m.safetensors", net, header())
    images = torch.from_numpy(np.random.default_rng(0).random((2, 3, 32, 32), np.float32))
    with torch.no_grad():
        assert torch.allclose(modelfile.load(tmp_path / "m.safetensors").net(images), net.eval()(images), atol=1e-5)


def write_header(path, **changes):
    """A model file of resnet20 with other values in its header; None removes one."""
    values = {k: v for k, v in (json.loads(header().to_json()) | changes).items() if v is not None}
    save_file(build("resnet20,classes=3").state_dict(), path, {HEADER_KEY: json.dumps(values)})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"classes": ["a", "b"]}, r"broken header \(2 class names for a network with 3 classes\)"),
        ({"classes": [1, 2, 3]}, "classes are not names"),
        ({"classes": "abc"}, 'classes is "abc"'),
        ({"classes": None}, "'classes' is missing"),
        ({"data": []}, r"data is \[\]"),
        ({"data": 3}, "data is 3"),
        ({"data": {"split": [1]}}, r"\[1\] instead of fields by name"),
        ({"data": {"split": {"seed": "x"}}}, 'seed is "x"'),
        ({"data": {"split": {"val_fraction": [1]}}}, r"val_fraction is \[1\]"),
        ({"data": {"split": {"read_as": "none"}}}, "read_as is"),
        ({"recipe": "fast"}, 'recipe is "fast"'),
        ({"metrics": 1}, "metrics is 1"),
        ({"spec": 1}, "spec is 1"),
        ({"preprocess": "x"}, 'preprocess is "x"'),
        ({"format_version": "1"}, 'format_version is "1"'),
        ({"version": 2}, "version is 2"),
        ({"origin": "x"}, 'origin is "x"'),
        ({"kind": 1}, "kind is 1"),
        (
            {"kind": "segmenter", "version": "0.9", "classes": None, "spec": {"rois": 7}},
            r"contains a segmenter, written by resnetkit 0\.9; .* a classifier or a .*\. Upgrade to resnetkit 0\.9",
        ),
        (
            {"spec": {**parse_spec("resnet20,classes=3").to_dict(), "gated": True}, "version": "0.9"},
            r"written by resnetkit 0\.9, with a field .* not support: gated\. Upgrade",
        ),
        (
            {"preprocess": {**Preprocess(size=32).to_dict(), "pad": 1}, "version": "0.9"},
            r"written by resnetkit 0\.9, with a field .* not support: pad\. Upgrade",
        ),
    ],
)
def test_a_wrong_header_is_an_error_that_names_the_file(changes, words, tmp_path):
    write_header(tmp_path / "m.safetensors", **changes)
    for read in (modelfile.inspect, modelfile.load):
        with pytest.raises(ModelFileError, match=f"m.safetensors .*{words}"):
            read(tmp_path / "m.safetensors")


def test_a_field_that_only_a_later_version_has_is_ignored(tmp_path):
    write_header(tmp_path / "m.safetensors", temperature=1.5, version="0.9")
    assert modelfile.load(tmp_path / "m.safetensors").header == header(version="0.9")


def test_earlier_versions_read_a_classifier_that_was_trained_here():
    """Earlier versions refuse unknown fields."""
    fields = {"spec", "preprocess", "classes", "recipe", "metrics", "data", "version", "format_version"}
    assert json.loads(header().to_json()).keys() == fields
    assert json.loads(header(origin={"source": "x"}).to_json()).keys() == fields | {"origin"}


def test_the_origin_that_earlier_versions_wrote_into_the_recipe_is_moved(tmp_path):
    origin = {"weights": "V1", "source": "x", "licence": "MIT", "recipe": "http", "url": "u", "converted_from": "f"}
    origin |= {"sha256": "0f"}
    write_header(tmp_path / "m.safetensors", recipe=origin)
    read = modelfile.inspect(tmp_path / "m.safetensors")
    assert (read.origin, read.recipe) == (origin, {})
    assert Header.from_json(read.to_json(), source="itself") == read
    write_header(tmp_path / "m.safetensors", recipe={"lr": 0.1, "url": "u"}, origin={"source": "y"})
    read = modelfile.inspect(tmp_path / "m.safetensors")
    assert (read.origin, read.recipe) == ({"source": "y"}, {"lr": 0.1, "url": "u"}), "what has an origin is left alone"


def test_no_field_of_a_recipe_is_taken_for_the_origin():
    assert not {field.name for field in fields(Recipe)} & set(modelfile.ORIGIN_FIELDS)


def test_another_kind_may_lack_classes(monkeypatch):
    with pytest.raises(ModelFileError, match="`kind` is 'regressor'; this version of resnetkit knows classifier"):
        Header(parse_spec("resnet20,classes=3"), Preprocess(size=32), kind="regressor")
    with monkeypatch.context() as later:
        later.setattr(modelfile, "KINDS", (*KINDS, "regressor"))
        regressor = Header(parse_spec("resnet20,classes=3"), Preprocess(size=32), kind="regressor")
    assert "class," not in repr(regressor)
    with pytest.raises(ModelFileError, match=r"^m contains a regressor, written by resnetkit .* reads a classifier"):
        Header.from_json(regressor.to_json(), source="m")
    monkeypatch.setattr(modelfile, "KINDS", (*KINDS, "regressor"))
    assert Header.from_json(regressor.to_json(), source="m") == regressor
    with pytest.raises(ModelFileError, match="0 class names for a network with 3 classes"):
        Header(regressor.spec, regressor.preprocess)


def test_null_is_no_header_field(tmp_path):
    values = json.loads(header().to_json())
    for text in (json.dumps(values | {"data": None}), json.dumps(values | {"classes": None}), "null", "[1]", "3"):
        save_file({"conv1.weight": torch.zeros(1)}, tmp_path / "m.safetensors", {HEADER_KEY: text})
        with pytest.raises(ModelFileError, match=r"m.safetensors has a broken header"):
            modelfile.load(tmp_path / "m.safetensors")


def test_weights_that_do_not_fit_are_one_line(tmp_path):
    save_file(build("resnet56,classes=3").state_dict(), tmp_path / "m.safetensors", {HEADER_KEY: header().to_json()})
    with pytest.raises(ModelFileError) as error:
        modelfile.load(tmp_path / "m.safetensors")
    assert str(error.value).endswith(": not in the network")
    assert str(error.value).startswith(
        f"{tmp_path}/m.safetensors: the weights do not fit the network in its header: "
        "216 of 332 tensors differ, first layer1.3."
    )


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(number, tmp_path):
    net = build("resnet20,classes=3")
    net.layer2[0].bn1.running_var[3] = number
    modelfile.save(tmp_path / "m.safetensors", net, header())
    with pytest.raises(
        ModelFileError, match=r"m.safetensors: layer2\.0\.bn1\.running_var contains numbers that are not"
    ):
        modelfile.load(tmp_path / "m.safetensors")


@pytest.mark.parametrize(
    "name",
    ["resnet20", "resnet20,norm=frozen", "resnet18,norm=group", "resnet18,blur=5", "seresnet50", "preact_resnet18"],
)
def test_loading_draws_nothing_and_gives_the_network_that_was_saved(name, tmp_path):
    net = build(name, classes=3).train()
    images = torch.randn(2, 3, 64, 64)
    net(images)
    modelfile.save(tmp_path / "m.safetensors", net.eval(), Header(net.spec, Preprocess(size=64), CLASSES))
    state = torch.get_rng_state()
    loaded = modelfile.load(tmp_path / "m.safetensors").net
    assert torch.equal(torch.get_rng_state(), state)
    with torch.no_grad():
        assert torch.equal(loaded(images), net(images))
    for own, other in ((net.parameters(), loaded.parameters()), (net.buffers(), loaded.buffers())):
        for a, b in zip(own, other, strict=True):
            assert (a.dtype, a.device, a.requires_grad, a.stride()) == (b.dtype, b.device, b.requires_grad, b.stride())
    loaded.train()(images).sum().backward()  # it can be trained on


def test_half_precision_weights_become_float32(tmp_path):
    tensors = {
        name: t.half() if t.is_floating_point() else t for name, t in build("resnet20,classes=3").state_dict().items()
    }
    save_file(tensors, tmp_path / "m.safetensors", {HEADER_KEY: header().to_json()})
    assert {p.dtype for p in modelfile.load(tmp_path / "m.safetensors").net.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("cat.JPG", "is not a model file but a picture; give the model before the pictures$"),
        ("m.onnx", "is not a model file but an exported file for other programs; give the model"),
        ("m.xml", "is not a model file but an exported file for other programs"),
        ("labels.csv", "is not a model file but text; give a .safetensors file, a run folder, or NAME:WEIGHTS"),
        ("w.pth", "if it contains weights of another project: resnetkit convert"),
        (
            "pictures",
            "expected .*best.safetensors. It contains pictures; to train on them: resnetkit train",
        ),
        ("runs", "runs/best.safetensors. Give one of the runs in it, such as .*runs/a$"),
        (
            "runs/a",
            "runs/a contains no model file; expected .*runs/a/best.safetensors. It is a run without a model yet$",
        ),
        ("empty", "contains no model file; expected .*best.safetensors$"),
    ],
)
def test_what_is_given_in_place_of_a_model_is_named(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / "pictures" / "cat").mkdir(parents=True)
    (tmp_path / "pictures" / "cat" / "1.jpg").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    for run in ("b", "a"):
        (tmp_path / "runs" / run).mkdir(parents=True)
        for file in ("recipe.yaml", "metrics.jsonl", "curves.png"):
            (tmp_path / "runs" / run / file).touch()
    if "." in name:
        (tmp_path / name).write_bytes(b"what it holds")
    for reads in (load, inspect):
        with pytest.raises(ModelFileError, match=words):
            reads(tmp_path / name)


@pytest.mark.parametrize(
    ("given", "near"),
    [("resnet21", "resnet20"), ("resnet31", "resnet32"), ("resnet49", "resnet50"), ("resnet1000", "resnet1202")],
)
def test_of_networks_that_differ_in_depth_the_nearest_is_meant(given: str, near: str) -> None:
    with pytest.raises(UsageError, match=f'did you mean "{near}"'):
        parse_spec(given)
