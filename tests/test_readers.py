"""Files of weights: every form is recognised by its content; errors name broken files; no code in a file is run."""

import argparse
import io
import json
import os
import pickle
import struct
import sys
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from resnetkit.convert.files.readers import read_weights
from resnetkit.errors import ModelFileError, UsageError
from resnetkit.models.resnet import build
from resnetkit.models.tensors import fill

TENSORS = {
    "conv1.weight": torch.arange(12.0).reshape(1, 3, 2, 2),
    "bn1.running_var": torch.tensor([0.5, 2.0], dtype=torch.float16),
    "bn1.num_batches_tracked": torch.tensor(7),
}


def write(path: Path, tensors=TENSORS) -> Path:
    """Write tensors in the form of the suffix."""
    kind = path.suffix
    if kind == ".safetensors":
        save_file(tensors, path, {"format": "pt"})
    elif kind == ".npz":
        np.savez(path, **{name: tensor.numpy() for name, tensor in tensors.items()})
    elif kind == ".th":
        torch.save(tensors, path, _use_new_zipfile_serialization=False)
    elif kind == ".h5":
        with h5py.File(path, "w") as file:
            for name, tensor in tensors.items():
                file[f"model_weights/{name}/{name}/kernel:0"] = tensor.numpy()
    elif kind == ".keras":
        inner = write(path.with_suffix(".h5"), tensors)
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("config.json", "{}")
            archive.write(inner, "model.weights.h5")
        inner.unlink()
    else:
        torch.save(tensors, path)
    return path


KINDS = (".pth", ".pt", ".bin", ".th", ".safetensors", ".npz", ".h5", ".keras")


@pytest.mark.parametrize("kind", KINDS)
def test_every_form_gives_the_same_tensors(kind, tmp_path):
    read = read_weights(write(tmp_path / f"w{kind}")).tensors
    ours = {name.removesuffix("/kernel"): tensor for name, tensor in read.items()}
    assert ours.keys() == TENSORS.keys()
    assert all(torch.equal(ours[name], TENSORS[name]) and ours[name].dtype == TENSORS[name].dtype for name in TENSORS)


@pytest.mark.parametrize("kind", KINDS)
def test_the_suffix_is_never_asked(kind, tmp_path):
    path = write(tmp_path / f"w{kind}").rename(tmp_path / "download")
    assert len(read_weights(path).tensors) == 3


def test_nests_and_prefixes(tmp_path):
    path = tmp_path / "checkpoint.pth"
    wrapped = {f"module._orig_mod.{name}": tensor for name, tensor in TENSORS.items()}
    arguments = argparse.Namespace(lr=0.1)
    torch.save({"epoch": 3, "model": {"state_dict": wrapped, "ema": None}, "args": arguments}, path)
    read = read_weights(path)
    assert list(read.tensors) == list(TENSORS)
    assert set(read.other_entries) == {"epoch", "args", "ema"}
    torch.save({"epoch": 3, "model_ema": {f"model.{name}": tensor for name, tensor in TENSORS.items()}}, path)
    assert list(read_weights(path).tensors) == list(TENSORS)
    # A prefix that not every name has is no wrapper's.
    torch.save({"module.a": torch.zeros(2), "b": torch.zeros(2)}, path)
    assert list(read_weights(path).tensors) == ["module.a", "b"]


@pytest.mark.parametrize("zipped", [True, False])
def test_numbers_of_numpy_beside_the_weights(zipped, tmp_path):
    path = tmp_path / "checkpoint.pth"
    beside = {"accuracy": np.float32(0.9), "epoch": np.int64(3), "curve": np.ones(3)}
    torch.save({"net": TENSORS} | beside, path, _use_new_zipfile_serialization=zipped)
    read = read_weights(path)
    assert list(read.tensors) == list(TENSORS)
    assert set(read.other_entries) == set(beside)
    assert read.objects == {"accuracy": pytest.approx(0.9), "epoch": 3, "curve": [1.0] * 3}
    torch.save({"net": TENSORS, "names": np.array([Canary(tmp_path / "canary")], dtype=object)}, path)
    assert read_weights(path).objects["names"] == [{"class": "posix.system", "args": [f"touch {tmp_path}/canary"]}]
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    ("name", "tensor", "words"),
    [
        ("bn1.running_var", torch.tensor([0.5, -0.1]), "bn1.running_var contains variances below 0"),
        ("conv1.weight", torch.ones(1, 3, 2, 2, dtype=torch.int64), "conv1.weight contains int64, not floating-point"),
        ("conv1.weight", torch.ones(1, 3, 2, 2, dtype=torch.uint8), "conv1.weight contains uint8, not floating-point"),
    ],
)
def test_values_that_no_network_has(name, tensor, words, tmp_path):
    for kind in (".pth", ".safetensors", ".npz"):
        path = write(tmp_path / f"w{kind}", TENSORS | {name: tensor})
        with pytest.raises(ModelFileError, match=words):
            read_weights(path)
    net = build("resnet20")
    with pytest.raises(ModelFileError, match=f"theirs: {words}"):
        fill(net, net.state_dict() | {name: tensor}, source="theirs")
    if name == "bn1.running_var":
        path = write(tmp_path / "w.pth", {"conv1_bn/moving_variance": tensor})
        with pytest.raises(ModelFileError, match="variances below 0"):
            read_weights(path)


class Canary:
    """An object that runs a command when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("how", ["zip", "legacy", "pickle", "npz"])
def test_code_is_never_run(how, tmp_path):
    canary, path = tmp_path / "canary", tmp_path / "weights.pth"
    content = {"state_dict": dict(TENSORS), "more": Canary(canary)}
    if how == "pickle":
        path.write_bytes(pickle.dumps(content))
    elif how == "npz":
        with path.open("wb") as file:
            np.savez(file, a=np.array([Canary(canary)], dtype=object))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=how == "zip")
    if how == "npz":
        with pytest.raises(ModelFileError, match=r"weights\.pth.*not numbers"):
            read_weights(path)
    else:
        read = read_weights(path)
        assert all(torch.equal(read.tensors[name], tensor) for name, tensor in TENSORS.items())
        assert read.objects["more"] == {"class": "posix.system", "args": [f"touch {canary}"]}
    assert not canary.exists()
    if how != "npz":
        torch.load(path, weights_only=False) if how != "pickle" else pickle.loads(path.read_bytes())
        assert canary.exists()  # it would have sung


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.02, 0.5, 0.98])
def test_truncated(kind, share, tmp_path):
    path = write(tmp_path / f"w{kind}", TENSORS | {"fc.weight": torch.randn(50, 40)})
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(ModelFileError, match=rf"w{kind} (is|contains|has).*"):
        read_weights(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty; get the file again"),
        (b"\n <!DOCTYPE html><html>404</html>", "a web page, not weights"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
        (b'{"architectures": []}', "is JSON, not weights"),
        (b"no weights at all", "in no known format of weights"),
        (b"PK\x03\x04", "not a complete zip"),
        (b"\x80\x02K\x01.", "not a complete PyTorch file"),
    ],
    ids=["empty", "html", "lfs", "json", "text", "zip", "a number"],
)
def test_what_is_no_weights_is_named(content, words, tmp_path):
    path = tmp_path / "resnet50.pth"
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match=words) as caught:
        read_weights(path)
    assert str(path) in str(caught.value)


def test_a_folder_and_nothing(tmp_path):
    with pytest.raises(ModelFileError, match=r"is a folder; give the file"):
        read_weights(tmp_path)
    with pytest.raises(ModelFileError, match=r"can't be read: No such file"):
        read_weights(tmp_path / "none.pth")


def lying_header(path: Path, **changes) -> Path:
    entry = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]} | changes
    header = json.dumps({"a": entry}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(16))
    return path


@pytest.mark.parametrize(
    "changes",
    [
        {"data_offsets": [0, 2**40]},
        {"data_offsets": [8, 4]},
        {"data_offsets": [-4, 12]},
        {"shape": [2**60]},
        {"shape": [2**33, 2**33]},
        {"shape": [5]},
        {"dtype": "F99"},
    ],
)
def test_a_safetensors_header_that_lies(changes, tmp_path):
    assert read_weights(lying_header(tmp_path / "right.safetensors")).tensors["a"].tolist() == [0] * 4
    with pytest.raises(ModelFileError, match=r"w\.safetensors is not a complete safetensors file"):
        read_weights(lying_header(tmp_path / "w.safetensors", **changes))
    path = tmp_path / "w.safetensors"
    path.write_bytes(struct.pack("<Q", 2**62) + b"{}")
    with pytest.raises(ModelFileError, match="its header has a wrong length"):
        read_weights(path)


@pytest.mark.parametrize("kind", [".npz", ".keras", ".pth"])
def test_zip_bombs(kind, tmp_path):
    path = tmp_path / f"bomb{kind}"
    inside = {".npz": "a.npy", ".keras": "model.weights.h5", ".pth": "archive/data.pkl"}[kind]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open(inside, "w") as part:
        for _ in range(64):
            part.write(bytes(2**20))
    with pytest.raises(ModelFileError, match=r"claims 67,108,864 when unpacked, as a zip bomb does"):
        read_weights(path)


def test_an_array_that_claims_more_than_it_has(tmp_path):
    path = tmp_path / "w.npz"
    stream = io.BytesIO()
    header = {"descr": "<f4", "fortran_order": False, "shape": (2**40,)}
    np.lib.format.write_array_header_1_0(stream, header)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.npy", stream.getvalue() + bytes(16))
    with pytest.raises(ModelFileError, match=r"a\.npy should be"):
        read_weights(path)


def test_tensors_bigger_than_their_file(tmp_path):
    """A view that repeats one number: a small file that would fill the memory."""
    path = tmp_path / "w.pth"
    torch.save({"a": torch.zeros(1).expand(10**5, 10**5)}, path)
    with pytest.raises(ModelFileError, match="claims 40,000,000,000"):
        read_weights(path)
    with h5py.File(tmp_path / "w.h5", "w") as file:
        file.create_dataset("layer/kernel", shape=(10**6, 10**6), dtype="f4", chunks=(100, 100))
    with pytest.raises(ModelFileError, match="claims 4,000,000,000,000"):
        read_weights(tmp_path / "w.h5")


def test_links_out_of_a_file_are_not_followed(tmp_path):
    (tmp_path / "secret").write_bytes(bytes(400))
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other["kernel"] = np.ones(3)
    path = tmp_path / "w.h5"
    with h5py.File(path, "w") as file:
        file["layer/bias"] = np.ones(2)
        file["layer/kernel"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "/kernel")
        file["round"] = h5py.SoftLink("/")
        file["layer/self"] = file["/"]
    assert list(read_weights(path).tensors) == ["layer/bias"]
    with h5py.File(path, "w") as file:
        file.create_dataset("layer/kernel", (100,), "f4", external=[(str(tmp_path / "secret"), 0, 400)])
    with pytest.raises(ModelFileError, match="not a plain array in the file itself"):
        read_weights(path)


@pytest.mark.parametrize("name", ["../../model.weights.h5", "/etc/model.weights.h5", "x/model.weights.h5"])
def test_names_in_an_archive_lead_nowhere(name, tmp_path):
    path = tmp_path / "in" / "w.keras"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, b"\x89HDF")
    with pytest.raises(ModelFileError, match="an archive without weights"):
        read_weights(path)
    assert [found.name for found in tmp_path.rglob("*") if found.is_file()] == ["w.keras"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite(kind, value, tmp_path):
    broken = TENSORS["conv1.weight"].clone()
    broken[0, 1] = value
    path = write(tmp_path / f"w{kind}", TENSORS | {"conv1.weight": broken})
    with pytest.raises(ModelFileError, match=rf"w{kind}: conv1\.weight\S* has 4 values that are not finite"):
        read_weights(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([1, 2], "contains list, not tensors by name"),
        ({}, r"contains no named tensors \(found: nothing\)"),
        ({"epoch": 3, "lr": 0.1}, r"contains no named tensors \(found: epoch, lr\)"),
        ({"a": torch.zeros(1), "b": "text"}, "'b' is str, not a tensor"),
        ({"a": torch.zeros(1), 3: torch.zeros(1)}, "3 is Tensor, not a tensor with a name"),
        ({"a": torch.zeros(3, 3).to_sparse()}, "a is not a plain tensor"),
        ({"a": torch.zeros(3, dtype=torch.complex64)}, "a is not a plain tensor"),
        ({"a": torch.zeros(3, device="meta")}, "a is not a plain tensor"),
    ],
)
def test_what_is_no_tensor(content, words, tmp_path):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(ModelFileError, match=words):
        read_weights(tmp_path / "w.pth")


def test_older_keras_archives_name_their_layers_in_the_configuration(tmp_path):
    """Before Keras 3.8, the groups of variables had no own names; they are numbered by class."""
    path, inner = tmp_path / "w.keras", tmp_path / "inner.h5"
    layers = [("Conv2D", "conv1_conv"), ("BatchNormalization", "conv1_bn"), ("Conv2D", "conv2_block1_1_conv")]
    with h5py.File(inner, "w") as file:
        for group, count in (("conv2d", 2), ("batch_normalization", 4), ("conv2d_1", 1)):
            for index in range(count):
                file[f"_layer_checkpoint_dependencies/{group}/vars/{index}"] = np.full(2, index, np.float32)
    config = {"config": {"layers": [{"class_name": kind, "config": {"name": name}} for kind, name in layers]}}
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", json.dumps(config))
        archive.write(inner, "model.weights.h5")
    read = read_weights(path).tensors
    assert {name: int(tensor[0]) for name, tensor in read.items()} == {
        "conv1_conv/kernel": 0,
        "conv1_conv/bias": 1,
        "conv1_bn/gamma": 0,
        "conv1_bn/beta": 1,
        "conv1_bn/moving_mean": 2,
        "conv1_bn/moving_variance": 3,
        "conv2_block1_1_conv/kernel": 0,
    }
    with pytest.raises(ModelFileError, match="does not name its layers"):
        read_weights(inner)


@pytest.mark.parametrize("kind", [".h5", ".keras"])
def test_without_h5py_the_extra_is_named(kind, tmp_path, monkeypatch):
    path = write(tmp_path / f"w{kind}")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(UsageError, match=rf'w{kind} is a file of Keras.*pip install "resnetkit\[keras\]"'):
        read_weights(path)


@pytest.fixture(scope="module")
def originals(tmp_path_factory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("originals")
    return {kind: write(folder / f"w{kind}").read_bytes() for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_fuzz(kind, originals, tmp_path_factory, data):
    """Files with random changes give tensors or one of our errors."""
    content = bytearray(originals[kind])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        what = data.draw(st.sampled_from(["set", "cut", "insert", "repeat", "number"]))
        if what == "set":
            content[at] = data.draw(st.integers(0, 255))
        elif what == "cut":
            del content[at : at + data.draw(st.integers(1, 64))]
        elif what == "insert":
            content[at:at] = data.draw(st.binary(min_size=1, max_size=32))
        elif what == "repeat":
            content[at:at] = content[at : at + data.draw(st.integers(1, 256))]
        else:
            content[at : at + 8] = struct.pack("<q", data.draw(st.sampled_from([-1, 0, 2**31, 2**62])))
        if not content:
            break
    path = tmp_path_factory.getbasetemp() / f"fuzzed{kind}"
    path.write_bytes(content)
    said = ""
    try:
        assert all(isinstance(tensor, torch.Tensor) for tensor in read_weights(path).tensors.values())
    except (ModelFileError, UsageError) as error:
        said = str(error)
    assert not said or str(path) in said
