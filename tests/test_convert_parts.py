"""The part of a checkpoint that is its network, in checkpoints with other content as many projects write them."""

import argparse
import datetime
import json
import sys
from collections import OrderedDict
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from resnetkit.cli import main
from resnetkit.convert.files.readers import read_weights
from resnetkit.errors import ModelFileError, UsageError
from resnetkit.models.resnet import build

NET = build("resnet20,classes=3").state_dict()
NAMES = list(NET)
TRUNK = {name: tensor for name, tensor in NET.items() if not name.startswith("fc.")}
HEAD = {name.removeprefix("fc."): tensor for name, tensor in NET.items() if name.startswith("fc.")}
SMALL = {"conv1.weight": torch.ones(1, 3, 2, 2), "fc.bias": torch.ones(2)}


def under(prefix: str, tensors=NET, factor: float = 1) -> dict[str, torch.Tensor]:
    return {prefix + name: tensor * factor if factor != 1 else tensor for name, tensor in tensors.items()}


AVERAGE = under("", factor=2)
MOMENTUM = under("", TRUNK, factor=2)
PROJECTOR = {"0.weight": torch.ones(8, 64), "1.weight": torch.ones(8), "2.weight": torch.ones(4, 8)}

CHECKPOINTS = {
    "state dict": (NET, ""),
    "DataParallel": ({"state_dict": under("module.")}, "state_dict.module"),
    "pytorch/examples": (
        {"epoch": 3, "arch": "resnet20", "state_dict": under("module."), "best_acc1": torch.tensor(93.5)},
        "state_dict.module",
    ),
    "kuangliu": ({"net": under("module."), "acc": 95.1, "epoch": 3}, "net.module"),
    "timm": (
        {"state_dict": NET, "state_dict_ema": AVERAGE, "arch": "x", "args": argparse.Namespace(lr=1)},
        "state_dict",
    ),
    "torchvision": ({"model": NET, "optimizer": {"state": {}}, "args": argparse.Namespace(lr=1)}, "model"),
    "average beside it": ({"model_ema": AVERAGE, "model": NET}, "model"),
    "average alone": ({"model_ema": under("module."), "epoch": 3}, "model_ema.module"),
    "averaged by PyTorch": (OrderedDict(n_averaged=torch.tensor(5), **under("module.")), "module"),
    "torch.compile": ({"model": under("_orig_mod.")}, "model"),
    "compiled inside": ({"model": under("module._orig_mod.")}, "model.module"),
    "FSDP": ({"model": {n.replace("layer1.", "layer1._fsdp_wrapped_module."): t for n, t in NET.items()}}, "model"),
    "Lightning": (
        {
            "pytorch-lightning_version": "2.1",
            "state_dict": under("model.") | {"criterion.weight": torch.ones(3), "val_acc.correct": torch.tensor(4)},
            "hyper_parameters": {"classes": ["a", "b", "c"]},
            "callbacks": {"ModelCheckpoint{'monitor': 'loss'}": {"best_model_score": torch.tensor(0.5)}},
            "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(16, 3, 3, 3)}}}],
        },
        "state_dict.model",
    ),
    "a last layer beside the trunk": (
        {
            "state_dict": under("backbone.", TRUNK)
            | {"head.fc.weight": NET["fc.weight"], "head.fc.bias": NET["fc.bias"]}
        },
        "state_dict.backbone",
    ),
    "a network in a network": ({"model": under("net.encoder.")}, "model.net.encoder"),
    "any prefix": (under("my_net."), "my_net"),
    "MoCo": (
        {
            "state_dict": under("module.encoder_k.", factor=2)
            | under("module.encoder_q.")
            | {"module.queue": torch.ones(3, 8), "module.queue_ptr": torch.ones(1)}
        },
        "state_dict.module.encoder_q",
    ),
    "MoCo v3": ({"state_dict": under("module.momentum_encoder.", factor=2) | under("module.base_encoder.")}, None),
    "solo-learn": (
        {"state_dict": under("momentum_backbone.", MOMENTUM) | under("backbone.") | under("projector.", PROJECTOR)},
        "state_dict.backbone",
    ),
    "DINO": (
        {
            "teacher": under("backbone.", AVERAGE) | under("head.", PROJECTOR),
            "student": under("module.backbone.") | under("module.head.", PROJECTOR),
        },
        "student.module.backbone",
    ),
    "BYOL": (
        {"state_dict": under("target_encoder.", factor=2) | under("online_encoder.")},
        "state_dict.online_encoder",
    ),
    "a segmenter": (
        {
            "state_dict": under("backbone.")
            | under("decode_head.", {n: t[:, :9] if t.ndim == 4 else t for n, t in TRUNK.items()})
        },
        "state_dict.backbone",
    ),
    "a name that nobody knows": ({"epoch": 3, "my weights": {"inner": NET}, "other": SMALL}, "my weights.inner"),
    "in a list": ([3, NET, {"state": {0: {"exp_avg": torch.ones(16, 3, 3, 3)}}}], "1"),
    "values among the tensors": (NET | {"epoch": 3, "best": "x", "_extra_state": None}, ""),
    "whole network": (build("resnet20,classes=3"), None),
    "whole network in a trainer": ({"trainer": {"module": nn.DataParallel(build("resnet20,classes=3"))}}, None),
    "timm's features": (under("0.") | {"1.weight": torch.ones(3, 64)}, ""),
    "transformers": (
        {"embedder.embedder.convolution.weight": torch.ones(64, 3, 7, 7)}
        | under("encoder.stages.", {name: tensor for name, tensor in TRUNK.items() if name != "conv1.weight"}),
        "",
    ),
}
"""The saved object, and the part that is used; None if the whole object is used."""


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_checkpoints_as_people_write_them(name, tmp_path):
    content, part = CHECKPOINTS[name]
    path = tmp_path / "w.pth"
    torch.save(content, path)
    read = read_weights(path)
    if name in ("timm's features", "transformers"):  # whose prefixes belong to the names
        assert list(read.tensors) == list(content)
        return
    names = {name: name for name in NAMES}
    if name == "a last layer beside the trunk":
        names |= {"fc.weight": "head.fc.weight", "fc.bias": "head.fc.bias"}
    assert set(read.tensors) == set(names.values())
    if part is not None:
        assert read.part == part
        assert all(torch.equal(read.tensors[theirs], NET[ours]) for ours, theirs in names.items())


def test_what_is_left_out_is_said(tmp_path):
    path = tmp_path / "w.pth"
    torch.save(CHECKPOINTS["MoCo"][0] | {"epoch": 3, "optimizer": {"lr": 0.1}}, path)
    read = read_weights(path)
    assert set(read.other_entries) == {"epoch", "optimizer", "module.encoder_k", "module.queue", "module.queue_ptr"}
    assert read.others == ("state_dict.module.encoder_k",)
    torch.save({"model_ema": AVERAGE, "model": NET, "teacher": {"net": under("", factor=3)}}, path)
    assert read_weights(path).others == ("model_ema", "teacher.net")


@pytest.mark.parametrize(
    ("part", "factor"),
    [("model", 1), ("model_ema", 2), ("more.module.encoder_q", 3), ("more.module.encoder_k", 4)],
)
def test_part_settles_it(part, factor, tmp_path):
    path = tmp_path / "w.pth"
    more = under("module.encoder_q.", factor=3) | under("module.encoder_k.", factor=4)
    torch.save({"model": NET, "model_ema": under("module.", AVERAGE), "more": more}, path)
    read = read_weights(path, part=part)
    assert list(read.tensors) == NAMES
    assert torch.equal(read.tensors["conv1.weight"], factor * NET["conv1.weight"])
    with pytest.raises(UsageError, match=r"has no part nothing; its parts are model, model_ema, more"):
        read_weights(path, part="nothing")


def test_two_networks_that_nobody_can_tell_apart(tmp_path):
    """Neither prefix is known, so the names are not changed, and `part` decides."""
    path = tmp_path / "w.pth"
    torch.save(under("left.") | under("right.", factor=2), path)
    assert len(read_weights(path).tensors) == 2 * len(NAMES)
    assert torch.equal(read_weights(path, part="right").tensors["conv1.weight"], 2 * NET["conv1.weight"])


@pytest.mark.parametrize("part", [None, "model"])
def test_parameters_of_an_optimiser_are_no_other_network(part, tmp_path):
    path, net = tmp_path / "w.pth", build("resnet20,classes=3")
    torch.save({"optimizer": torch.optim.SGD(net.parameters(), lr=0.1), "model": net.state_dict()}, path)
    read = read_weights(path, part=part)
    assert (read.part, read.others) == ("model", ())
    with pytest.raises(UsageError, match=r"has no part nothing; its parts are model$"):
        read_weights(path, part="nothing")


@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
def test_prefixes_in_every_form(form, tmp_path):
    path = tmp_path / "w"
    tensors = under("module.backbone.") | under("module.momentum_encoder.", MOMENTUM)
    if form == "safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path, _use_new_zipfile_serialization=form == "zip")
    assert set(read_weights(path).tensors) == set(NAMES)


class Config:
    """Represents a configuration object of a library that is not installed."""

    def __init__(self, **values: object) -> None:
        self.__dict__.update(values)


def as_of(library: str, name: str, monkeypatch) -> type[Config]:
    """Within the block, give the class the module name of that library, so that a file can be written."""
    parents = [library.rsplit(".", count)[0] for count in range(library.count(".") + 1)]
    module, *_ = [sys.modules.get(parent) or ModuleType(parent) for parent in parents]
    for parent in parents[1:]:
        monkeypatch.setitem(sys.modules, parent, ModuleType(parent))
    kind = type(name, (Config,), {"__module__": library, "__qualname__": name})
    setattr(module, name, kind)
    monkeypatch.setitem(sys.modules, library, module)
    return kind


@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_what_lies_beside_as_plain_values(form, tmp_path, monkeypatch):
    node = as_of("omegaconf.nodes", "AnyNode", monkeypatch)
    config = as_of("omegaconf.dictconfig", "DictConfig", monkeypatch)
    held = config(_content={"lr": node(_val=0.1), "name": node(_val="adam")}, _metadata=None, _parent=None)
    held._content["lr"]._parent = held  # as there, nodes know what they lie in
    net = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    optimizer.zero_grad()
    net(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    beside = {
        "args": argparse.Namespace(lr=0.1, data=Path("data") / "set", device=torch.device("cpu")),
        "date": datetime.datetime(2020, 1, 2),
        "config": held,
        "optimizer": optimizer.state_dict(),
        "optimizer itself": optimizer,
        "scaler": torch.amp.GradScaler("cpu").state_dict(),
        "class_to_idx": {"cat": 0, "dog": 1},
        "classes": np.array(["cat", "dög"]),
        "objects": np.array(["a", "b"], dtype=object),
        "accuracy": np.float64(93.5),
        "best": torch.tensor(91.25),
        "mean": torch.tensor([0.5, 0.25]),
        "size": torch.Size([3, 4]),
        "kind": torch.float32,
        "loss": nn.CrossEntropyLoss,
        "rng": torch.get_rng_state(),
        "set": {1},
        "history": [{"epoch": 0, "loss": float("inf")}],
    }
    path = tmp_path / "w.pth"
    torch.save({"state_dict": SMALL} | beside, path, _use_new_zipfile_serialization=form == "zip")
    monkeypatch.undo()
    read = read_weights(path)
    assert list(read.tensors) == list(SMALL)
    assert set(read.other_entries) == set(beside)
    objects = read.objects
    args = objects["args"]
    assert isinstance(args, dict)
    assert (args["class"], args["lr"]) == ("argparse.Namespace", 0.1)
    assert args["data"] == {"class": "pathlib.PosixPath", "args": ["data", "set"]}
    assert objects["config"] == {"lr": 0.1, "name": "adam"}
    assert objects["class_to_idx"] == {"cat": 0, "dog": 1}
    assert objects["classes"] == ["cat", "dög"]
    assert objects["objects"] == ["a", "b"]
    assert (objects["accuracy"], objects["best"], objects["mean"]) == (93.5, 91.25, [0.5, 0.25])
    assert objects["size"] == [3, 4]
    assert objects["kind"] == "torch.float32"
    assert objects["loss"] == "torch.nn.modules.loss.CrossEntropyLoss"
    assert objects["set"] == [1]
    assert objects["rng"] == {"class": "torch.Tensor", "shape": [len(torch.get_rng_state())], "dtype": "uint8"}
    assert objects["history"] == [{"epoch": 0, "loss": float("inf")}]
    state = objects["optimizer"]
    assert isinstance(state, dict)
    assert state["param_groups"][0]["lr"] == 0.1
    json.dumps(objects)  # all of it is what JSON knows


def test_a_learner_of_fastai(tmp_path, monkeypatch):
    learner = as_of("fastai.learner", "Learner", monkeypatch)
    loaders = as_of("fastai.data.core", "DataLoaders", monkeypatch)
    net = build("resnet20,classes=3")
    path = tmp_path / "export.pkl"
    torch.save(learner(dls=loaders(vocab=["a", "b", "c"]), model=net, opt=None, lr=1e-3), path)
    monkeypatch.undo()
    read = read_weights(path)
    assert list(read.tensors) == NAMES
    assert read.part == "model"
    assert read.objects["dls"] == {"class": "fastai.data.core.DataLoaders", "vocab": ["a", "b", "c"]}
    assert read.objects["lr"] == 1e-3


def test_list_shows_what_is_there(tmp_path, capsys):
    path = tmp_path / "w.pth"
    state = {0: {"exp_avg": torch.ones(2)}, 1: {"exp_avg": torch.ones(2)}}
    torch.save(
        {"state_dict": NET, "ema": AVERAGE, "optimizer": {"state": state}, "classes": ["a", "b", "\x1b[31mred"]}, path
    )
    assert main(["convert", "--list", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "network     in state_dict" in shown
    assert "also in     ema; --part chooses the network" in shown
    assert "taken for   " in shown
    assert "resnet20" in shown.split("taken for")[1].splitlines()[0]
    assert "  conv1.weight" in shown
    assert "16×3×3×3 float32" in shown
    assert "optimizer.state.0 (1 tensors, 2 numbers)" in shown
    assert "\x1b" not in shown
    assert not list(tmp_path.glob("*.safetensors"))
    assert main(["convert", "--list", str(path), "--json", "--part", "ema"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["part"] == "ema"
    assert document["other_parts"] == ["state_dict"]
    assert document["tensors"]["state_dict"]["conv1.weight"] == {"shape": [16, 3, 3, 3], "dtype": "float32"}
    assert document["tensors"]["optimizer.state.1"] == {"exp_avg": {"shape": [2], "dtype": "float32"}}
    assert document["objects"]["classes"] == ["a", "b", "\x1b[31mred"]


def test_list_answers_where_nothing_is_taken(tmp_path, capsys):
    path = tmp_path / "w.pth"
    torch.save({"epoch": 3, "stats": {"mean": torch.ones(3), "sparse": torch.eye(2).to_sparse()}}, path)
    with pytest.raises(ModelFileError, match=rf"no named tensors \(found: epoch, stats.*convert --list {path}"):
        read_weights(path)
    assert main(["convert", "--list", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "taken for   nothing: it contains no named tensors (found: epoch, stats" in shown
    assert "sparse  scalar a sparse tensor" in shown
    assert "epoch  3" in shown
    assert main(["convert", str(path)]) == 1
    assert "convert --list" in capsys.readouterr().err


def test_convert_takes_a_part(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "w.pth"
    torch.save({"state_dict": NET, "ema": AVERAGE}, path)
    flags = ["--model", "resnet20", "--preprocess", "cifar10", "--classes", str(tmp_path / "names.txt")]
    (tmp_path / "names.txt").write_text("a\nb\nc\n")
    assert main(["convert", str(path), *flags, "--out", "plain.safetensors", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["part"], document["other_parts"]) == ("state_dict", ["ema"])
    assert main(["convert", str(path), *flags, "--out", "ema.safetensors", "--part", "ema"]) == 0
    shown = capsys.readouterr().out
    assert "part        ema" in shown
    assert "also in     state_dict; --part chooses the network to convert" in shown
    plain, average = (read_weights(tmp_path / f"{name}.safetensors").tensors for name in ("plain", "ema"))
    assert torch.equal(2 * plain["conv1.weight"], average["conv1.weight"])
