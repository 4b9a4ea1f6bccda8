"""PyTorch's files of every form: the tensors equal PyTorch's, and errors name files that can't be read."""

import io
import pickle
import struct
import tarfile
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from resnetkit.convert.files.readers import read_weights
from resnetkit.errors import ModelFileError

KINDS = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)


def save(content: object, path: Path, form: str) -> Path:
    """Write an object in one of the forms of PyTorch and Python."""
    if form == "plain pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    return path


def change(path: Path, **changes: bytes | None) -> Path:
    """Return the archive with other contents of files, by their last name; checksums are right. None removes one."""
    with zipfile.ZipFile(path) as source:
        parts = {name: source.read(name) for name in source.namelist()}
    with zipfile.ZipFile(path, "w") as target:
        for name, content in parts.items():
            new = changes.get(name.rpartition("/")[2].replace(".", "_"), content)
            if new is not None:
                target.writestr(name, new)
    return path


FORMS = ("zip", "legacy", "plain pickle")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", KINDS)
def test_numbers_of_every_type(form, dtype, tmp_path):
    values = torch.randn(3, 4, 5).to(dtype)
    path = save(
        {"a": values, "b": nn.Parameter(values.clone()) if dtype in KINDS[:4] else values}, tmp_path / "w", form
    )
    read = read_weights(path).tensors
    for name in ("a", "b"):
        assert read[name].dtype == dtype
        assert torch.equal(read[name].double(), values.double())
        assert not read[name].requires_grad


@pytest.mark.parametrize("form", FORMS)
def test_views(form, tmp_path):
    """Views, other memory orders and shared numbers; a storage that several tensors share is read once."""
    base = torch.arange(120.0)
    tensors = {
        "part": base[7:19],
        "turned": base.view(10, 12).t(),
        "each third": base[::3],
        "corner": base.view(10, 12)[2:5, 3:7],
        "repeated": base[:3].expand(4, 3),
        "windows": base.unfold(0, 5, 2),
        "channels last": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        "number": base[5],
        "empty": base[:0],
        "empty too": torch.zeros(3, 0, 2),
    }
    read = read_weights(save(tensors, tmp_path / "w", form)).tensors
    for name, tensor in tensors.items():
        assert torch.equal(read[name], tensor), name
    assert read["turned"].untyped_storage().data_ptr() == read["part"].untyped_storage().data_ptr() or form[0] == "p"


@pytest.mark.filterwarnings("ignore:torch.quantize_per")
@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_quantised_tensors_come_with_their_scales(form, tmp_path):
    values = torch.randn(6, 4)
    scales, zeros = torch.rand(6) / 10 + 0.01, torch.randint(-5, 5, (6,))
    tensors = {
        "tensor": torch.quantize_per_tensor(values, 0.05, 3, torch.quint8),
        "channels": torch.quantize_per_channel(values, scales, zeros, 0, torch.qint8),
        "wide": torch.quantize_per_tensor(values, 0.001, 0, torch.qint32),
        "part": torch.quantize_per_tensor(values, 0.05, 0, torch.qint8)[1:3],
    }
    read = read_weights(save(tensors, tmp_path / "w.pth", form)).tensors
    for name, tensor in tensors.items():
        assert read[name].dtype == torch.float32
        torch.testing.assert_close(read[name], tensor.dequantize(), rtol=3e-7, atol=0)  # which rounds twice


def test_packed_layers_are_named(tmp_path):
    """The error names packed layers of a network, because these layers would be missing otherwise."""
    net = nn.Sequential(OrderedDict(conv1=nn.Conv2d(3, 4, 3), fc=nn.Linear(4, 2)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        packed = torch.ao.quantization.quantize_dynamic(net, {nn.Linear}, dtype=torch.qint8)
        path = save(packed, tmp_path / "w.pth", "zip")
        with pytest.raises(
            ModelFileError, match=r"fc\.weight is not a plain tensor.*packed in a torch\.ao\.nn\.quantized"
        ):
            read_weights(path)
        path = save(packed.state_dict(), tmp_path / "w.pth", "zip")
        with pytest.raises(ModelFileError, match=r"'fc\._packed_params.*is (tuple|Name), not a tensor|fc\.zero_point"):
            read_weights(path)


def test_bytes_in_the_other_order(tmp_path):
    tensors = {
        "a": torch.randn(5),
        "b": torch.randn(3).half(),
        "c": torch.randn(3).bfloat16(),
        "d": torch.randn(2).double(),
    }
    path = save(tensors, tmp_path / "w.pth", "zip")
    swapped = [
        tensor.view(torch.uint8).numpy().reshape(-1, tensor.element_size())[:, ::-1].tobytes()
        for tensor in tensors.values()
    ]
    change(path, byteorder=b"big", **dict(zip("0123", swapped, strict=True)))
    read, torchs = read_weights(path).tensors, torch.load(path)
    for name, tensor in tensors.items():
        assert torch.equal(read[name], tensor)
        assert torch.equal(torchs[name], tensor)
    with pytest.raises(ModelFileError, match="byte order"):
        read_weights(change(path, byteorder=b"middle"))


def test_arrays_of_numpy_are_tensors(tmp_path):
    """Files as detectron2 and Caffe2's converters save them, from Python 2 and 3."""
    tensors = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "columns": np.asfortranarray(np.arange(24, dtype=np.float64).reshape(2, 3, 4)),
        "big-endian": np.arange(3, dtype=">f4"),
        "half": np.ones(2, np.float16),
        "empty": np.zeros((0, 3), np.float32),
    }
    path = tmp_path / "R-50.pkl"
    for protocol in (2, 3, 4, 5):
        path.write_bytes(pickle.dumps({"model": tensors, "__author__": "MSRA"}, protocol))
        read = read_weights(path)
        assert read.objects == {"__author__": "MSRA"}
        for name, array in tensors.items():
            assert np.array_equal(read.tensors[name].numpy(), array), (protocol, name)


def test_python_2(tmp_path):
    """Text is bytes there, a dictionary in its order is a list of pairs, and an array's numbers are text."""
    numbers = struct.pack("<2f", 1.5, -2)
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR(K\x01(K\x02tcnumpy\ndtype\n(U\x02f4K\x00"
        b"K\x01tR(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x08" + numbers + b"tb"
    )
    pairs = b"ccollections\nOrderedDict\n(](](U\x0cconv1.weight" + array + b"eetR"
    path = tmp_path / "w.pkl"
    path.write_bytes(b"\x80\x02}(U\x05model" + pairs + b"U\x05epochK\x03u.")
    read = read_weights(path)
    assert read.tensors["conv1.weight"].tolist() == [1.5, -2]
    assert read.objects == {"epoch": 3}


class Net(nn.Module):
    """A module whose class is defined only in this file."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, stride=2)
        self.bn1 = nn.BatchNorm2d(4)
        self.rest = nn.ModuleDict({"a": nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2, bias=False))})
        self.register_buffer("mean", torch.ones(2))
        self.register_buffer("unkept", torch.ones(2), persistent=False)
        self.rest["b"] = self.rest["a"][0]  # the same layer twice
        self.class_to_idx = {"cat": 0, "dog": 1}

    def forward(self, x):
        return self.bn1(self.conv1(x))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("wrapped", ["alone", "DataParallel", "in a dictionary"])
def test_whole_modules(form, wrapped, tmp_path):
    net = Net()
    content = {"alone": net, "DataParallel": nn.DataParallel(net), "in a dictionary": {"epoch": 3, "model": net}}[
        wrapped
    ]
    read = read_weights(save(content, tmp_path / "w.pt", form))
    state = net.state_dict()
    assert list(read.tensors) == list(state)
    assert all(torch.equal(read.tensors[name], tensor) for name, tensor in state.items())
    assert read.modules["conv1"]["stride"] == [2, 2]
    assert read.modules["bn1"]["eps"] == 1e-5
    assert read.modules[""]["class"] == f"{__name__}.Net"
    assert read.modules[""]["class_to_idx"] == {"cat": 0, "dog": 1}
    if wrapped != "DataParallel":
        assert read.objects["model" if wrapped == "in a dictionary" else "module"] == read.modules[""]


def test_torchscript(tmp_path):
    """Its tensors have the names of the state dict; its code is neither run nor read."""

    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(3, 4, 3)
            self.rest = nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1, bias=False))

        def forward(self, x):
            return self.rest(self.conv1(x))

    net, path = Small(), tmp_path / "w.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for script in (torch.jit.script(net), torch.jit.trace(net, torch.zeros(1, 3, 8, 8))):
            script.save(path)
            read = read_weights(path)
            assert all(torch.equal(read.tensors[name], tensor) for name, tensor in net.state_dict().items())
            assert set(read.tensors) == set(net.state_dict())
        torch.jit.freeze(torch.jit.script(net.eval())).save(path)
    with pytest.raises(ModelFileError, match="frozen TorchScript network, whose weights have no names"):
        read_weights(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/archive_format", "pt2")
        archive.writestr("model/models/model.json", "{}")
        archive.writestr("model/data.pkl.json", "{}")
    with pytest.raises(ModelFileError, match=r"an exported program of PyTorch \(\.pt2\)"):
        read_weights(path)


def old_archive(path: Path, tensors: dict[str, torch.Tensor]) -> Path:
    """PyTorch's form before 0.1.10, which PyTorch can still read but not write."""
    storages, views = io.BytesIO(), io.BytesIO()
    pickle.dump(len(tensors), storages, 2)
    pickle.dump(len(tensors), views, 2)
    for key, tensor in enumerate(tensors.values()):
        kind = {torch.float32: torch.FloatStorage, torch.int64: torch.LongStorage}[tensor.dtype]
        pickle.dump((key, "cpu", kind), storages, 2)
        storages.write(struct.pack("<q", tensor.numel()) + tensor.numpy().tobytes())
        pickle.dump((100 + key, key, torch.FloatTensor), views, 2)
        views.write(struct.pack(f"<iI{2 * tensor.ndim}qq", tensor.ndim, 0, *tensor.shape, *tensor.stride(), 0))
    pickle.dump([], storages, 2)

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj):
            return str(100 + obj.key) if isinstance(obj, Held) else None

    held = io.BytesIO()
    Pickler(held, 2).dump(OrderedDict((name, Held(key)) for key, name in enumerate(tensors)))
    with tarfile.open(path, "w") as archive:
        for name, stream in (("sys_info", io.BytesIO()), ("pickle", held), ("tensors", views), ("storages", storages)):
            member = tarfile.TarInfo(name)
            member.size = len(stream.getvalue())
            archive.addfile(member, io.BytesIO(stream.getvalue()))
    return path


class Held:
    """Refer to a tensor at another place in the file."""

    def __init__(self, key: int) -> None:
        self.key = key


def test_the_oldest_form(tmp_path):
    tensors = {"conv1.weight": torch.randn(4, 3, 3, 3), "n": torch.tensor([3])}
    path = old_archive(tmp_path / "w.pth", {"conv1.weight": tensors["conv1.weight"]})
    read = read_weights(path).tensors
    assert torch.equal(read["conv1.weight"], tensors["conv1.weight"])
    assert torch.equal(torch.load(path, weights_only=False)["conv1.weight"], tensors["conv1.weight"])
    with tarfile.open(path, "w") as archive:
        archive.addfile(tarfile.TarInfo("pictures"))
    with pytest.raises(ModelFileError, match="a tar archive, but not PyTorch's"):
        read_weights(path)


class Stored:
    """An object that is pickled as a storage with a key and a number of values."""

    def __init__(self, key: object = "0", count: object = 6, kind: object = torch.FloatStorage) -> None:
        self.id = ("storage", kind, key, "cpu", count)


class Call:
    """An object that is pickled as a call."""

    def __init__(self, function, *args) -> None:
        self.call = (function, args)

    def __reduce__(self):
        return self.call


def handmade(path: Path, value: object, **storages: bytes) -> Path:
    """Write a PyTorch file with a pickle that PyTorch would not write."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj):
            return obj.id if isinstance(obj, Stored) else None

    stream = io.BytesIO()
    Pickler(stream, 2).dump(value)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("w/data.pkl", stream.getvalue())
        for key, content in ({"0": bytes(24)} | storages).items():
            archive.writestr(f"w/data/{key}", content)
    return path


def view(offset: object, size: object, stride: object, storage: object = None) -> Call:
    return Call(torch._utils._rebuild_tensor_v2, storage or Stored(), offset, size, stride, False, OrderedDict())


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (view(0, (7,), (1,)), "ends after its storage"),
        (view(1, (2, 3), (3, 1)), "2×3 ends after its storage"),
        (view(6, (), ()), "a tensor of one number ends after"),
        (view(0, (2,), (2**62 - 1,)), "ends after"),
        (view(0, (2**40, 2**40), (1, 1)), "ends after"),
        (view(0, (2**63, 1), (0, 0)), "has an invalid shape"),
        (view(-1, (2,), (1,)), "has an invalid shape"),
        (view(5, (3,), (-1,)), "has an invalid shape"),
        (view(0, (-1,), (1,)), "has an invalid shape"),
        (view(0, (2, 3), (1,)), "has an invalid shape"),
        (view(0, (1,) * 17, (1,) * 17), "has an invalid shape"),
        (view(0, "6", (1,)), "has an invalid shape"),
        (view("0", (6,), (1,)), "has an invalid shape"),
        (view(0, (1.0,), (1,)), "has an invalid shape"),
        (view(0, (10**6, 10**6), (0, 0)), "claims 4,000,000,000,000 when unpacked"),
        (view(0, (6,), (1,), Stored("1")), "storage '1' is missing"),
        (view(0, (6,), (1,), Stored("../../../etc/passwd")), "storage '../../../etc/passwd' is missing"),
        (view(0, (6,), (1,), Stored("0", 7)), "storage '0' has fewer bytes than it should"),
        (view(0, (6,), (1,), Stored("0", 2**60)), "storage '0' has fewer bytes than it should"),
        (view(0, (6,), (1,), Stored("0", -1)), "a storage in it does not have PyTorch's form"),
        (view(0, (6,), (1,), Stored("0", "6")), "a storage in it does not have PyTorch's form"),
        (view(0, (6,), (1,), Stored(OrderedDict())), "a storage in it does not have PyTorch's form"),
        (view(0, (6,), (1,), Stored("0", 6, "kind")), "a storage in it does not have PyTorch's form"),
        (view(0, (6,), (1,), OrderedDict(a=1)), "has no storage"),
        (view(0, (6,), (1,), [1]), "has no storage"),
        (Call(torch._utils._rebuild_tensor_v2, Stored()), "not have PyTorch's form"),
        (
            view(0, (6,), (1,), Stored("0", 6, OrderedDict)),
            "not a plain tensor.*, but a tensor of collections",
        ),
        (view(0, (6,), (1,), Stored("0", 6, torch.QUInt4x2Storage)), "but a tensor of torch.QUInt4x2Storage"),
        (
            Call(torch._utils._rebuild_tensor_v3, Stored(), 0, (2**62 - 1,), (1,), False, OrderedDict(), torch.uint16),
            "ends after its storage",
        ),
        (
            Call(torch._utils._rebuild_qtensor, Stored(kind=torch.QInt8Storage), 0, (6,), (1,), (1, 2), False, None),
            "not have PyTorch's form|no scale",
        ),
        (
            Call(
                torch._utils._rebuild_qtensor,
                *(Stored(kind=torch.QInt8Storage), 0, (6,), (1,)),
                *((torch.per_channel_affine, [1.0], [0], 0), False, OrderedDict()),
            ),
            "not have one scale for each channel",
        ),
    ],
)
def test_tensors_that_lie(tensor, words, tmp_path):
    path = handmade(tmp_path / "w.pth", {"a": tensor})
    with pytest.raises(ModelFileError, match=rf"w\.pth.*({words})"):
        read_weights(path)


def test_what_the_hand_makes_right_is_read(tmp_path):
    numbers = struct.pack("<6f", *range(6))
    path = handmade(tmp_path / "w.pth", {"a": view(1, (2, 2), (2, 1)), "b": view(0, (3,), (0,))}, **{"0": numbers})
    read = read_weights(path).tensors
    assert read["a"].tolist() == [[1, 2], [3, 4]]
    assert read["b"].tolist() == [0, 0, 0]


def test_archives_without_checksums(tmp_path):
    """As PyTorch writes them where it is told to."""
    tensors, before = {"a": torch.randn(100), "b": torch.randn(3, 4)}, torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        path = save(tensors, tmp_path / "w.pth", "zip")
    finally:
        torch.serialization.set_crc32_options(before)
    with zipfile.ZipFile(path) as archive:
        assert not any(info.CRC for info in archive.infolist())
    read = read_weights(path).tensors
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())


def test_archives_that_hide_something(tmp_path):
    path = handmade(tmp_path / "w.pth", {"a": view(0, (6,), (1,))})
    content = path.read_bytes()
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("other/data.pkl", b"\x80\x02cos\nsystem\n.")
    with pytest.raises(ModelFileError, match=r"2 files data\.pkl instead of one"):
        read_weights(path)
    path.write_bytes(content)
    with zipfile.ZipFile(path, "a") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        archive.writestr("w/data.pkl", b"\x80\x02cos\nsystem\n.")
    with pytest.raises(ModelFileError, match="two parts with the same name"):
        read_weights(path)


@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_only_the_networks_storages_are_read(form, tmp_path):
    """A large optimiser state next to the weights is not read: it needs no memory, and may even be damaged."""
    net, mark = nn.Conv2d(3, 4, 3), torch.full((50,), 1234.5)
    path = save({"unused": [mark], "model": net.state_dict()}, tmp_path / "w", form)
    content = path.read_bytes()
    assert content.count(mark.numpy().tobytes()) == 1
    path.write_bytes(content.replace(mark.numpy().tobytes(), bytes(200)))
    assert torch.equal(read_weights(path).tensors["weight"], net.weight)
    weight = net.weight.detach().numpy().tobytes()
    path.write_bytes(content.replace(weight, weight[:-1] + b"\x00"))
    if form == "zip":  # which has checksums
        with pytest.raises(ModelFileError, match="Bad CRC-32"):
            read_weights(path)


@pytest.mark.parametrize("cut", [1, 8, 30, 200, 1000])
def test_the_form_without_a_directory_is_broken_off(cut, tmp_path):
    path = save({"a": torch.randn(100), "b": torch.randn(300)}, tmp_path / "w.th", "legacy")
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(ModelFileError, match=r"w\.th is not a complete PyTorch file \(it is truncated"):
        read_weights(path)


def test_a_pickle_in_a_pickle_is_a_storage_or_nothing(tmp_path):
    inner = io.BytesIO()
    torch.save({"state": "not a storage"}, inner, _use_new_zipfile_serialization=False)
    path = tmp_path / "w.pkl"
    bombs = [inner.getvalue(), b"\x80\x02]" + b"]0" * 1000 + b".", b"", b"PK\x03\x04"]
    for content in bombs:
        storage = Call(torch.storage._load_from_bytes, content)
        path.write_bytes(pickle.dumps({"a": view(0, (1,), (1,), storage)}))
        with pytest.raises(ModelFileError, match=r"w\.pkl is not a complete PyTorch file"):
            read_weights(path)


def test_what_lies_outside_of_the_file(tmp_path):
    """A pickle that refers to storages in another file."""
    path = tmp_path / "w.pkl"
    path.write_bytes(b"\x80\x02}X\x01\x00\x00\x00acos\nx\nQs.")
    with pytest.raises(ModelFileError, match="numbers are not in the file"):
        read_weights(path)
