"""Exported files: other programs run them on real pictures and give the outputs of the model."""

import json
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from resnetkit.cli import main
from resnetkit.data.samples import Samples
from resnetkit.data.transforms.preprocess import Preprocess
from resnetkit.errors import DataError, ExportError, ModelFileError, UsageError
from resnetkit.files import HEADER_KEY
from resnetkit.infer import network as serving
from resnetkit.infer.backends.openvino_backend import openvino_core
from resnetkit.infer.comparison import read_pixels
from resnetkit.infer.exports import replacing
from resnetkit.infer.exports.export import export
from resnetkit.infer.exports.formats import FILE_FORMATS, OPSET, FileFormat, Format
from resnetkit.infer.exports.parity import Gap, measure
from resnetkit.infer.network import ExportedNetwork, folded
from resnetkit.infer.quantizing.accuracy import AccuracyCheck
from resnetkit.modelfile import Header, Model, save
from resnetkit.models.resnet import build

FORMATS: tuple[Format, ...] = ("onnx", "openvino", "pt2")
# Network, and a side of its pictures that no stride divides, so that every border is met.
FAMILIES = {
    "CIFAR A": ("resnet20,depths=1-1-1", 32),
    "bottleneck": ("resnet50,width=16,depths=1-1-1-1", 65),
    "CIFAR B": ("resnet20_b,depths=1-1-1", 33),
    "CIFAR C": ("resnet20_c,depths=1-1-1", 32),
    "CIFAR plain": ("plain20,depths=1-1-1", 32),
    "basic": ("resnet18,depths=1-1-1-1", 65),
    "basic A": ("resnet18_a,width=16,depths=1-1-1-1", 65),
    "stride in 1x1": ("resnet50_v1,width=16,depths=1-2-1-1", 65),
    "grouped": ("resnext50_32x4d,depths=1-1-1-1", 65),
    "wide": ("wide_resnet50_2,width=16,depths=1-1-1-1", 65),
    "dilated": ("resnet50,width=16,depths=1-1-1-1,output_stride=8", 65),
    "pre-activation": ("preact_resnet18,width=16,depths=1-1-1-1", 65),
    "pre-activation bottleneck": ("preact_resnet50,width=16,depths=1-2-1-1", 65),
    "pre-activation CIFAR": ("preact_resnet164,depths=1-1-1", 32),
    "pre-activation deep": ("preact_resnet50,width=16,depths=1-1-1,stem=deep,pooled_shortcut=yes", 65),
    "deep stem": ("resnet50d,width=16,depths=1-1-1-1", 65),
    "blur": ("resnetblur50,width=16,depths=1-1-1-1", 65),
    "blur, dilated, deep": ("resnet50d,width=16,depths=1-1-1-1,blur=3,output_stride=16", 97),
    "squeeze-and-excitation": ("seresnet50,width=16,depths=1-1-1-1", 65),
    "group normalisation": ("resnet50_gn,width=32,depths=1-1-1-1", 65),
    "frozen normalisation": ("resnet18,width=16,depths=1-1-1-1,norm=frozen", 65),
}
FAST = (*(("CIFAR A", to) for to in FORMATS), ("bottleneck", "openvino"))
CLASSES = ('a "cat" & <dog>', "Größe", "ship", "x\ny", "5", "6", "7")


def make(name: str, preprocess: Preprocess, classes: tuple[str, ...] = CLASSES) -> Model:
    """An untrained network whose normalisations have statistics of pictures, and random gains and offsets."""
    torch.manual_seed(0)
    net = build(name, classes=len(classes), in_channels=preprocess.channels)
    net.train()
    with torch.no_grad():
        for module in net.modules():
            if isinstance(getattr(module, "running_var", None), torch.Tensor):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(std=0.2)
        net(torch.randn(16, preprocess.channels, preprocess.size, preprocess.size))
        net.fc.weight.mul_(5)
    return Model(net.eval(), Header(net.spec, preprocess, classes))


@pytest.fixture(scope="module")
def model() -> Model:
    return make("resnet20,depths=1-1-1", Preprocess(size=32))


@pytest.fixture(scope="module")
def pictures(cifar_subset: tuple[Samples, Samples]) -> list[Image.Image]:
    """12 test pictures."""
    assert cifar_subset[1].images is not None
    return [Image.fromarray(image) for image in cifar_subset[1].images[::10]]


def pixels_of(pictures: list[Image.Image], preprocess: Preprocess) -> np.ndarray:
    return np.stack([preprocess.pixels(picture.convert(preprocess.mode)) for picture in pictures])


def run(path: Path, inputs: np.ndarray) -> np.ndarray:
    """Return the outputs of the format's own runtime for `inputs`, by its documented calls."""
    if path.suffix == ".onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path))
        return session.run(None, {session.get_inputs()[0].name: inputs})[0]
    if path.suffix == ".xml":
        core = openvino_core()
        return core.compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(inputs)[0]
    with torch.no_grad():
        return torch.export.load(str(path)).module()(torch.from_numpy(inputs)).numpy()


def header_in(path: Path) -> str:
    """Return the metadata, read with the format's own tools."""
    if path.suffix == ".onnx":
        import onnx

        return {entry.key: entry.value for entry in onnx.load(str(path)).metadata_props}[HEADER_KEY]
    if path.suffix == ".xml":
        return openvino_core().read_model(str(path)).get_rt_info([HEADER_KEY]).astype(str)
    extra = {HEADER_KEY: ""}
    torch.export.load(str(path), extra_files=extra)
    return extra[HEADER_KEY]


def assert_equal_to_source(model: Model, to: Format, folder: Path, pictures: list[Image.Image]) -> None:
    """Both kinds of input, several batches, and pictures that export did not use; the file contains the header."""
    pixels = pixels_of(pictures, model.header.preprocess)
    images = model.header.preprocess.normalize(pixels)
    with torch.no_grad():
        logits = model.net(torch.from_numpy(images))
    for with_preprocess, inputs, expected in (
        (False, images, logits.numpy()),
        (True, pixels, logits.softmax(1).numpy()),
    ):
        path = folder / f"{with_preprocess}{FILE_FORMATS[to].suffixes[0]}"
        done = export(model, path, to=to, with_preprocess=with_preprocess)
        assert done.files == tuple(path.with_suffix(suffix) for suffix in FILE_FORMATS[to].suffixes)
        assert done.gap.pictures == 16
        assert done.gap.agreement == 1
        tolerance = 1e-4 * (1 if with_preprocess else float(expected.std()))
        for size in (1, 5, 12):
            found = run(path, inputs[:size])
            assert found.dtype == np.float32
            np.testing.assert_allclose(found, expected[:size], atol=tolerance, rtol=0)
        assert Header.from_json(header_in(path), source=str(path)) == model.header
    assert len(list(folder.iterdir())) == 2 * len(FILE_FORMATS[to].suffixes)


@pytest.mark.parametrize(
    ("family", "to"),
    [
        pytest.param(family, to, marks=() if (family, to) in FAST else pytest.mark.slow)
        for family in FAMILIES
        for to in FORMATS
    ],
)
@pytest.mark.sampled(5)
def test_round_trip(family: str, to: Format, tmp_path: Path, pictures: list[Image.Image]) -> None:
    name, size = FAMILIES[family]
    assert_equal_to_source(make(name, Preprocess(size=size)), to, tmp_path, pictures)


@pytest.mark.parametrize("to", [*(pytest.param(to, marks=pytest.mark.slow) for to in ("onnx", "openvino")), "pt2"])
def test_grey_pictures_and_a_mean_of_every_pixel(to: Format, tmp_path: Path, pictures: list[Image.Image]) -> None:
    mean = tuple(np.linspace(0.2, 0.7, 32 * 32).tolist())
    preprocess = Preprocess(size=32, resize=40, mean=mean, std=(0.3,), mode="L")
    assert_equal_to_source(make("resnet20,depths=1-1-1", preprocess), to, tmp_path, pictures)


@pytest.mark.parametrize(
    ("to", "output"),
    [
        ("openvino", "c5"),
        *(
            pytest.param(to, output, marks=pytest.mark.slow)
            for to in FORMATS
            for output in ("pool", "c5")
            if (to, output) != ("openvino", "c5")
        ),
    ],
)
def test_features(to: Format, output: Any, tmp_path: Path, model: Model, pictures: list[Image.Image]) -> None:
    path = tmp_path / f"features{FILE_FORMATS[to].suffixes[0]}"
    done = export(model, path, to=to, with_preprocess=True, output=output)
    shape = (64,) if output == "pool" else (64, 8, 8)
    assert done.input == "pixels: uint8 (batch, 32, 32, 3)"
    assert done.output == f"{output}: float32 (batch, {', '.join(map(str, shape))})"
    assert (done.gap.probabilities, done.gap.agreement) == (None, None)
    assert done.gap.values is not None
    assert done.gap.values < 1e-4
    pixels = pixels_of(pictures, model.header.preprocess)
    with torch.no_grad():
        c5 = model.net.features(torch.from_numpy(model.header.preprocess.normalize(pixels)))[-1]
    expected = c5.mean((2, 3)) if output == "pool" else c5
    np.testing.assert_allclose(run(path, pixels), expected.numpy(), atol=1e-4)


@pytest.mark.parametrize(
    ("with_preprocess", "names"),
    [
        (True, ["pixels", "probabilities"]),
        pytest.param(False, ["images", "logits"], marks=pytest.mark.slow),
    ],
)
def test_what_is_in_an_onnx_file(with_preprocess: bool, names: list[str], tmp_path: Path, model: Model) -> None:
    import onnx

    export(model, tmp_path / "m.onnx", to="onnx", with_preprocess=with_preprocess)
    file = onnx.load(str(tmp_path / "m.onnx"))
    onnx.checker.check_model(file, full_check=True)
    assert [(entry.domain, entry.version) for entry in file.opset_import] == [("", OPSET)]
    places = (*file.graph.input, *file.graph.output)
    assert [place.name for place in places] == names
    assert [place.type.tensor_type.shape.dim[0].dim_param for place in places] == ["batch", "batch"]
    assert "BatchNormalization" not in {node.op_type for node in file.graph.node}
    assert str(Path(serving.__file__).parent).encode() not in (tmp_path / "m.onnx").read_bytes()


def test_what_is_in_openvinos_files(tmp_path: Path, model: Model) -> None:
    export(model, tmp_path / "m.xml", to="openvino", with_preprocess=True, output="logits")
    graph = openvino_core().read_model(str(tmp_path / "m.xml"))
    (pixels,), (logits,) = graph.inputs, graph.outputs
    assert (pixels.get_names(), str(pixels.get_partial_shape()), pixels.get_element_type().get_type_name()) == (
        {"pixels"},
        "[?,32,32,3]",
        "u8",
    )
    assert (logits.get_names(), str(logits.get_partial_shape())) == ({"logits"}, f"[?,{len(CLASSES)}]")
    assert (
        tmp_path / "m.bin"
    ).stat().st_size > 4 * model.header.spec.parameters * 0.98  # float32, and no normalisation
    # Biases are constants with the shape that they are added in: NNCF knows them by that.
    types = [op.get_type_name() for op in graph.get_ops()]
    assert not {"ShapeOf", "Broadcast", "Gather", "BatchNormInference"} & set(types)
    assert types.count("Convolution") == 7
    assert "f16" not in {str(op.get_element_type().get_type_name()) for op in graph.get_ops() if op.get_output_size()}


@pytest.mark.slow
def test_pt2_needs_nothing_of_ours(tmp_path: Path, model: Model, pictures: list[Image.Image]) -> None:
    pixels = pixels_of(pictures, model.header.preprocess)
    np.save(tmp_path / "pixels.npy", pixels)
    export(model, tmp_path / "m.pt2", to="pt2", with_preprocess=True)
    code = (
        "import sys, numpy, torch\n"
        "net = torch.export.load('m.pt2').module()\n"
        "found = net(torch.from_numpy(numpy.load('pixels.npy'))).detach().numpy()\n"
        "numpy.save('found.npy', found)\n"
        "assert not [name for name in sys.modules if name.startswith('resnetkit')]\n"
    )
    subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path, check=True)
    with torch.no_grad():
        expected = model.net(torch.from_numpy(model.header.preprocess.normalize(pixels))).softmax(1)
    np.testing.assert_allclose(np.load(tmp_path / "found.npy"), expected.numpy(), atol=1e-5)


# Folding


@pytest.mark.parametrize("family", FAMILIES)
def test_folding_changes_nothing_but_the_last_digits(family: str) -> None:
    name, size = FAMILIES[family]
    model = make(name, Preprocess(size=size))
    before = {key: value.clone() for key, value in model.net.state_dict().items()}
    images = torch.randn(2, 3, size, size)
    net = folded(model.net)
    with torch.no_grad():
        expected = model.net(images)
        torch.testing.assert_close(net(images), expected, atol=1e-4 * float(expected.std()), rtol=0)
    left = sum(hasattr(module, "running_var") for module in net.modules())
    blocks = sum(model.net.spec.depths)
    # One at the beginning of each pre-activation block, and one behind the last.
    assert left == (blocks + 1 if model.net.spec.order == "pre" else 0)
    assert all(torch.equal(value, before[key]) for key, value in model.net.state_dict().items())


def test_folding_follows_the_formula() -> None:
    model = make("resnet18,width=16,depths=1-1-1-1", Preprocess(size=64))
    net = model.net
    norm = net.bn1
    gain = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    conv = folded(net).conv1
    torch.testing.assert_close(conv.weight, net.conv1.weight * gain[:, None, None, None])
    torch.testing.assert_close(conv.bias, norm.bias - norm.running_mean * gain)


def test_served_normalises_as_the_preprocessing_does(pictures: list[Image.Image]) -> None:
    for preprocess in (
        Preprocess(size=32),
        Preprocess(size=32, mean=tuple(np.linspace(0, 1, 3 * 32 * 32).tolist()), std=(0.2, 0.3, 0.4)),
    ):
        served = ExportedNetwork(build("resnet20,depths=1-1-1"), preprocess)
        pixels = pixels_of(pictures, preprocess)
        assert np.array_equal(served.normalize(torch.from_numpy(pixels)).numpy(), preprocess.normalize(pixels))


# The comparison


@pytest.mark.parametrize("to", [pytest.param("onnx", marks=pytest.mark.slow), "openvino", "pt2"])
def test_a_file_that_computes_something_else_is_not_kept(
    to: Format, tmp_path: Path, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"m{FILE_FORMATS[to].suffixes[0]}"
    files = [path.with_suffix(suffix) for suffix in FILE_FORMATS[to].suffixes]
    for file in files:
        file.write_bytes(b"what was there before")

    def wrong(net: nn.Module) -> nn.Module:
        net = folded(net)
        with torch.no_grad():
            net.fc.bias[2] += 0.2
        return net

    monkeypatch.setattr(serving, "folded", wrong)
    with pytest.raises(ExportError, match=rf"m\{path.suffix} was not kept: its outputs differ .*0.001 is allowed"):
        export(model, path, to=to, force=True)
    assert [file.read_bytes() for file in files] == [b"what was there before"] * len(files)
    assert sorted(tmp_path.iterdir()) == sorted(files)


def scores(pictures: int = 20, classes: int = 5) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(pictures, classes)).astype(np.float32)


def test_the_gap_is_measured_in_every_batch_size() -> None:
    source = scores()
    places = np.arange(20, dtype=np.uint8)[:, None]
    sizes = []

    def right(inputs: np.ndarray) -> np.ndarray:
        sizes.append(len(inputs))
        return source[inputs[:, 0]]

    exact = measure(right, places, source, output="logits")
    assert exact == Gap(20, 0.0, 0.0, 1.0)
    assert sizes == [1, 3, 16, 4]
    for only in (1, 3, 16):
        gap = measure(
            lambda inputs, only=only: right(inputs) + 0.5 * (len(inputs) == only), places, source, output="logits"
        )
        assert gap.values == pytest.approx(0.5 / source.std(), rel=1e-5)
    assert measure(right, places[:2], source[:2], output="logits") == Gap(2, 0.0, 0.0, 1.0)
    assert sizes[-3:] == [1, 3, 16]


def test_the_gap_of_one_wrong_picture() -> None:
    source = scores()
    wrong = source.copy()
    wrong[7] = -source[7]
    places = np.arange(20)[:, None]
    gap = measure(lambda rows: wrong[rows[:, 0]], places, source, output="logits")
    assert gap.agreement == 0.95
    assert gap.values == pytest.approx(2 * np.abs(source[7]).max() / source.std(), rel=1e-5)
    both = torch.from_numpy(np.stack([source[7], wrong[7]])).softmax(1)
    assert gap.probabilities == pytest.approx(float((both[0] - both[1]).abs().max()), rel=1e-4)
    assert not gap.within(1e-3)


@pytest.mark.parametrize("output", ["logits", "probabilities", "pool"])
def test_no_number_and_another_shape_are_no_small_gap(output: str) -> None:
    source = scores()
    places = np.arange(20)[:, None]
    for wrong in (np.full_like(source, np.nan), source[:, :4]):
        gap = measure(lambda rows, wrong=wrong: wrong[rows[:, 0]], places, source, output=output)
        assert not gap.within(1e9)
    assert measure(lambda rows: np.ones((len(rows), 5)), places, np.ones((20, 5)), output=output).within(0)


def test_the_pictures_of_the_package(cifar_subset: tuple[Samples, Samples]) -> None:
    pixels = read_pixels(None, Preprocess(size=32))
    test = cifar_subset[1]
    assert test.images is not None
    labels = [int(test.labels[(test.images == picture).all((1, 2, 3))].item()) for picture in pixels]
    assert labels == [*range(10), *range(6)]
    assert len({picture.tobytes() for picture in pixels}) == 16
    assert read_pixels(None, Preprocess(size=20, mean=(0.5,), std=(0.5,), mode="L")).shape == (16, 20, 20, 1)


def test_pictures_of_ones_own(picture_folder: Path, tmp_path: Path) -> None:
    preprocess = Preprocess(size=32)
    assert read_pixels(picture_folder, preprocess).shape == (60, 32, 32, 3)
    first = picture_folder / "cat" / "cat 00.png"
    assert np.array_equal(read_pixels(first, preprocess)[0], np.asarray(Image.open(first)))
    (tmp_path / "list.csv").write_text("path,label\npictures/cat/cat 00.png,a\npictures/cat/cat 02.png,b\n")
    assert read_pixels(tmp_path / "list.csv", preprocess).shape == (2, 32, 32, 3)
    first.write_bytes(b"broken")
    assert len(read_pixels(picture_folder, preprocess)) == 59
    for nothing, reason in ((first, "cat 00.png"), (tmp_path / "empty", "it contains no pictures")):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(DataError, match=rf"has no picture to compare with \(.*{reason}"):
            read_pixels(nothing, preprocess)
    with pytest.raises(DataError, match="nowhere: no such data"):
        read_pixels(tmp_path / "nowhere", preprocess)


# Wrong use, and files that can't be written


def test_wrong_paths(tmp_path: Path, model: Model) -> None:
    (tmp_path / "folder.onnx").mkdir()
    (tmp_path / "theirs.bin").write_bytes(b"somebody's")
    for path, to, message in (
        ("m.tflite", "onnx", r"m\.tflite ends in \.tflite; onnx is written to a \.onnx file"),
        ("m", "pt2", r"m ends in nothing; pt2 is written to a \.pt2 file"),
        ("folder.onnx", "onnx", r"folder\.onnx is a folder; give a file, such as .*folder\.onnx/model\.onnx"),
        ("none/m.xml", "openvino", r"there is no folder .*none; make it"),
        ("theirs.xml", "openvino", r"needs the file .*theirs\.bin, but another file has that name"),
    ):
        with pytest.raises(UsageError, match=message):
            export(model, tmp_path / path, to=to)
    with pytest.raises(UsageError, match="`to` is 'tflite'; choose one of onnx, openvino, pt2"):
        export(model, tmp_path / "m.onnx", to="tflite")
    with pytest.raises(UsageError, match="`max_top1_loss` is -3; give percentage points"):
        export(model, tmp_path / "m.xml", to="openvino", calibrate="cifar10", max_top1_loss=-3)
    with pytest.raises(UsageError, match="`output` is 'c6'; choose one of logits, probabilities, pool, c5"):
        export(model, tmp_path / "m.onnx", to="onnx", output="c6")
    with pytest.raises(UsageError, match="a model in memory"):
        export(model, to="onnx")
    assert (tmp_path / "theirs.bin").read_bytes() == b"somebody's"


def test_wrong_models(tmp_path: Path, model: Model) -> None:
    (tmp_path / "broken.safetensors").write_bytes(b"broken")
    with pytest.raises(ModelFileError, match=r"broken\.safetensors is not a whole"):
        export(tmp_path / "broken.safetensors", tmp_path / "m.onnx", to="onnx")
    with pytest.raises(ModelFileError, match=r"none\.safetensors does not exist"):
        export(tmp_path / "none.safetensors", tmp_path / "m.onnx", to="onnx")
    grey = Preprocess(size=32, mean=(0.5,), std=(0.5,), mode="L")
    with pytest.raises(ModelFileError, match="input has 3 channels, but its preprocessing makes L pictures with 1"):
        export(Model(model.net, Header(model.net.spec, grey, CLASSES)), tmp_path / "m.onnx", to="onnx")
    assert not list(tmp_path.glob("m.*"))


@pytest.mark.parametrize("to", FILE_FORMATS)
def test_what_is_there_is_replaced_on_request_only(to: Format, tmp_path: Path, model: Model) -> None:
    path = tmp_path / f"m{FILE_FORMATS[to].suffixes[0]}"
    path.write_bytes(b"somebody's")
    with pytest.raises(UsageError, match=rf"m\{path.suffix} is there already; give another file, or `force` to"):
        export(model, path, to=to)
    assert path.read_bytes() == b"somebody's"
    if to == "pt2":
        assert export(model, path, to=to, force=True).path == path
        assert path.read_bytes() != b"somebody's"


@pytest.mark.parametrize("to", [pytest.param("onnx", marks=pytest.mark.slow), "openvino", "pt2"])
def test_files_name_no_folder_of_this_machine(
    to: Format, tmp_path: Path, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exporters write the place of each node in the source code; it would contain folder names of this machine."""
    monkeypatch.setenv("HOME", str(tmp_path))
    done = export(model, f"~/m{FILE_FORMATS[to].suffixes[0]}", to=to, with_preprocess=True)
    assert done.path.parent == tmp_path
    contents = [file.read_bytes() for file in done.files]
    if zipfile.is_zipfile(done.path):
        with zipfile.ZipFile(done.path) as archive:
            contents += [archive.read(name) for name in archive.namelist()]
    places = [tmp_path, Path.cwd(), Path(__file__).parents[1], Path(torch.__file__).parents[1], Path(sys.prefix)]
    for content in contents:
        assert [place for place in places if str(place).encode() in content] == []
        assert b"site-packages" not in content


@pytest.mark.parametrize(("to", "package"), [("onnx", "onnxscript"), ("openvino", "openvino")])
def test_without_the_extra(
    to: Format, package: str, tmp_path: Path, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UsageError, match=rf"`to` {to} needs {package}: pip install 'resnetkit\[export\]'"):
        export(model, tmp_path / f"m{FILE_FORMATS[to].suffixes[0]}", to=to)


def test_an_unwritable_folder(tmp_path: Path, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(replacing, "TemporaryDirectory", refuse)
    with pytest.raises(ExportError, match=r"m\.pt2 could not be written: Permission denied"):
        export(model, tmp_path / "m.pt2", to="pt2")


def test_what_an_exporter_refuses(tmp_path: Path, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("\nno such operator\nsecond line")

    monkeypatch.setitem(FILE_FORMATS, "pt2", FileFormat((".pt2",), (), refuse, FILE_FORMATS["pt2"].open))
    with pytest.raises(ExportError, match=r"pt2 can't be made of this network: no such operator$"):
        export(model, tmp_path / "m.pt2", to="pt2")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("fails_at", ["m.bin", "m.xml"])
def test_two_files_are_replaced_together_or_not_at_all(
    there: bool, fails_at: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, names = tmp_path / "m.xml", ("m.xml", "m.bin")
    if there:
        for name in names:
            (tmp_path / name).write_text(f"old {name}")
    rename = Path.rename

    def failing(self: Path, other: Path) -> Path:
        if other.parent == tmp_path and other.name == fails_at and self.read_text().startswith("new"):
            raise OSError(28, "No space left on device")
        return rename(self, other)

    def write() -> None:
        with replacing.replaced_together(target, suffixes=(".xml", ".bin")) as file:
            for name in names:
                file.with_name(name).write_text(f"new {name}")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", failing)
        with pytest.raises(ExportError, match=r"m\.xml could not be written: No space left on device"):
            write()
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == (
        {name: f"old {name}" for name in names} if there else {}
    )
    write()
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {name: f"new {name}" for name in names}


# The command line


def test_command(
    tmp_path: Path, model: Model, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    save(tmp_path / "run" / "best.safetensors", model.net, model.header)
    assert main(["export", "run", "--to", "onnx", "--with-preprocess", "--output", "logits", "--json"]) == 0
    document = json.loads(capfd.readouterr().out)
    assert document["files"] == ["run.onnx"]
    assert (document["to"], document["input"]) == ("onnx", "pixels: uint8 (batch, 32, 32, 3)")
    assert document["output"] == "logits: float32 (batch, 7)"
    assert document["compared"]["pictures"] == 16
    assert 0 <= document["compared"]["values"] < 1e-4
    assert document["compared"]["agreement"] == 1
    assert main(["export", "run/best.safetensors", "--to", "pt2", "--out", "x.pt2"]) == 0
    out, err = capfd.readouterr()
    said = ("making x.pt2", "comparing it with the model on 16 pictures")
    assert err.splitlines() == [f"resnetkit export: {line}" for line in said], "and nothing of the libraries'"
    assert out.splitlines()[0] == "input     images: float32 (batch, 3, 32, 32)"
    assert "best classes agree on 16 of 16 pictures" in out
    assert out.splitlines()[-1] == "file      x.pt2"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--to onnx --int8", "--int8 needs --calibrate DATA"),
        ("--to onnx --calibrate cifar10", "--calibrate needs --int8"),
        ("--to onnx --max-top1-loss 1", "--max-top1-loss needs --int8"),
        ("--to tflite", "--to takes onnx, openvino, pt2, not tflite"),
        ("", "--to missing"),
    ],
)
def test_wrong_flags(flags: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "run", *flags.split()]) == 2
    assert message in capsys.readouterr().err


# 8-bit integers


@pytest.mark.slow
def test_integers(
    tmp_path: Path, split_folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = ["--int8", "--calibrate", str(split_folder / "train"), "--check", str(split_folder / "test"), "--json"]
    command = ["export", "resnet20:cifar10", "--to", "openvino", "--with-preprocess", *flags]
    assert main([*command, "--max-top1-loss", "3"]) == 0
    document = json.loads(capfd.readouterr().out)
    integers = document["int8"]
    assert (integers["layers"], integers["passes"], integers["images"]) == (20, True, 120)
    assert integers["top1_loss"] <= 3
    graph = openvino_core().read_model("resnet20-cifar10.xml")
    assert sum(op.get_type_name() == "FakeQuantize" for op in graph.get_ops()) > 20
    assert Header.from_json(header_in(tmp_path / "resnet20-cifar10.xml"), source="it").metrics
    before = [(tmp_path / f"resnet20-cifar10{suffix}").read_bytes() for suffix in (".xml", ".bin")]
    judge = AccuracyCheck.judge
    monkeypatch.setattr(AccuracyCheck, "judge", lambda *given: replace(judge(*given), passes=False))
    assert main([*command, "--max-top1-loss", "3", "--force"]) == 1
    assert "--max-top1-loss allows 3; calibrate with more pictures" in capfd.readouterr().err
    assert [(tmp_path / f"resnet20-cifar10{suffix}").read_bytes() for suffix in (".xml", ".bin")] == before
    assert len(list(tmp_path.glob(".*"))) == 0


@pytest.mark.parametrize(("to", "output"), [("onnx", "logits"), ("pt2", "logits"), ("openvino", "c5")])
def test_integers_are_openvinos(to: Format, output: Any, tmp_path: Path, model: Model) -> None:
    with pytest.raises(UsageError, match="`calibrate` is for `to` openvino with `output` logits or probabilities"):
        export(model, tmp_path / f"m{FILE_FORMATS[to].suffixes[0]}", to=to, output=output, calibrate="cifar10")
