"""The model file: all that a prediction needs goes in and comes back; what is broken is refused by name."""

import json
import resource
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from resnetkit import modelfile
from resnetkit.data.transforms import Preprocess
from resnetkit.errors import ModelFileError
from resnetkit.modelfile import HEADER_KEY, Header
from resnetkit.models.resnet import build
from resnetkit.models.spec import parse_spec

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


def test_a_run_folder_is_its_best_model(tmp_path):
    modelfile.save(tmp_path / "last.safetensors", build("resnet20,classes=3"), header())
    assert modelfile.find(tmp_path).name == "last.safetensors"
    modelfile.save(tmp_path / "best.safetensors", build("resnet20,classes=3"), header())
    assert modelfile.find(tmp_path).name == "best.safetensors"
    with pytest.raises(ModelFileError, match=r"expected .*best"):
        modelfile.find(tmp_path.parent)


def test_inspect_imports_no_torch(tmp_path):
    modelfile.save(tmp_path / "m.safetensors", build("resnet20,classes=3"), header())
    code = (
        "import sys; from resnetkit import modelfile; print(modelfile.inspect(sys.argv[1]).classes); "
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "m.safetensors"], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, str(CLASSES)), done.stderr


def test_what_would_not_load_is_not_written(tmp_path):
    path = tmp_path / "m.safetensors"
    with pytest.raises(ModelFileError, match="not those of its spec"):
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
        (lambda whole: whole.replace(b'\\"block\\"', b'\\"blick\\"'), "broken header"),
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
    with pytest.raises(ModelFileError, match="no resnetkit header"):
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
