"""The Predictor: probabilities of pictures' classes."""

import io
import itertools
import os
import re
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from resnetkit.data.prefetch import Failure
from resnetkit.data.samples import Samples
from resnetkit.data.transforms.preprocess import Preprocess
from resnetkit.errors import DataError, ModelFileError, UsageError
from resnetkit.infer.decoding import stacked
from resnetkit.infer.finding import find_pictures
from resnetkit.infer.predictor import Prediction, Predictor
from resnetkit.modelfile import Header, Model, save
from resnetkit.models.resnet import ResNet, build

CLASSES = ("cat", "frog", "ship")


@pytest.fixture
def model() -> Model:
    """An 8-layer net of three classes, with running statistics that differ from the initial ones."""
    torch.manual_seed(0)
    net = build("resnet20", depths=(1, 1, 1), classes=3)
    net.train()
    with torch.no_grad():
        net(torch.randn(16, 3, 32, 32))
        net.fc.weight.mul_(5)
    return Model(net.eval(), Header(net.spec, Preprocess(size=32, mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.2)), CLASSES))


@pytest.fixture
def pixels(cifar_subset: tuple[Samples, Samples]) -> np.ndarray:
    """12 test pictures: uint8 (12, 32, 32, 3)."""
    images = cifar_subset[1].images
    assert images is not None
    return images[::10]


def reference(net: ResNet, pixels: np.ndarray) -> torch.Tensor:
    """The softmax of the plain network's output for (x / 255 - mean) / std: (n, classes)."""
    images = torch.from_numpy(pixels.copy()).permute(0, 3, 1, 2).float() / 255
    images = (images - torch.tensor([0.5, 0.4, 0.3])[:, None, None]) / 0.2
    with torch.no_grad():
        return net(images).softmax(dim=1)


def probabilities(predictions: list[list[Prediction]]) -> np.ndarray:
    """Return probabilities in the order of the classes: (n, classes)."""
    return np.array([[p.probability for p in sorted(row, key=lambda p: p.index)] for row in predictions])


def test_equals_the_network_on_normalised_pixels(model: Model, pixels: np.ndarray) -> None:
    predictions = Predictor(model)(list(pixels))
    expected = reference(model.net, pixels)
    np.testing.assert_allclose(probabilities(predictions), expected, atol=1e-5)
    assert [row[0].index for row in predictions] == expected.argmax(dim=1).tolist()
    assert {len(row) for row in predictions} == {3}
    for row in predictions:
        assert [p.label for p in row] == [CLASSES[p.index] for p in row]
        assert sum(p.probability for p in row) == pytest.approx(1, abs=1e-6)
        assert row == sorted(row, key=lambda p: -p.probability)


def test_every_kind_of_picture_is_the_same_picture(model: Model, pixels: np.ndarray, tmp_path: Path) -> None:
    predictor = Predictor(model)
    path = tmp_path / "a b.png"
    Image.fromarray(pixels[0]).save(path)
    kinds = [path, str(path), path.read_bytes(), Image.open(path), pixels[0]]
    alone = [predictor(kind, top=2) for kind in kinds]
    assert all(one == alone[0] for one in alone)
    assert len(alone[0]) == 2
    assert [row[0].label for row in predictor(kinds)] == [alone[0][0].label] * len(kinds)
    assert predictor([]) == []


def test_grey_arrays_are_pictures_too(model: Model, pixels: np.ndarray) -> None:
    grey = pixels[0, :, :, 0]
    assert Predictor(model)(grey)[0].label == Predictor(model)(np.stack([grey] * 3, axis=-1))[0].label


def test_does_not_depend_on_the_batch(model: Model, pixels: np.ndarray) -> None:
    predictor = Predictor(model)
    together = probabilities(predictor(list(pixels)))
    alone = np.concatenate([probabilities([predictor(picture)]) for picture in pixels])
    np.testing.assert_allclose(together, alone, atol=1e-6)
    np.testing.assert_allclose(probabilities(predictor(list(pixels[::-1])))[::-1], together, atol=1e-6)


def test_from_a_file_and_leaves_a_given_network_alone(model: Model, pixels: np.ndarray, tmp_path: Path) -> None:
    save(tmp_path / "m.safetensors", model.net, model.header)
    model.net.train()
    before = {name: tensor.clone() for name, tensor in model.net.state_dict().items()}
    given, loaded = Predictor(model), Predictor(tmp_path / "m.safetensors", backend="torch")
    assert given(list(pixels)) == loaded(list(pixels))
    assert model.net.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.net.state_dict().items())


def test_no_model() -> None:
    with pytest.raises(ModelFileError, match=r"none\.safetensors does not exist"):
        Predictor("none.safetensors")


def test_wrong_numbers(model: Model, pixels: np.ndarray) -> None:
    predictor = Predictor(model)
    for call, flag in (
        (lambda: predictor(pixels[0], top=0), "`top` is 0"),
        (lambda: next(predictor.predict_paths(["x"], batch_size=0)), "`batch_size` is 0"),
        (lambda: next(predictor.predict_paths(["x"], workers=-1)), "`workers` is -1"),
    ):
        with pytest.raises(UsageError, match=flag):
            call()


def test_an_unreadable_picture_is_named(model: Model, tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8 no picture")
    with pytest.raises(DataError, match=r"broken\.jpg"):
        Predictor(model)([tmp_path / "broken.jpg"])


@pytest.mark.parametrize(("batch_size", "workers"), [(1, 0), (7, 0), (7, 3), (100, 2)])
def test_paths_in_order_with_what_failed(
    model: Model, picture_folder: Path, tmp_path: Path, batch_size: int, workers: int
) -> None:
    broken = picture_folder / "cat" / "a broken one.png"
    broken.write_bytes(b"nothing")
    predictor = Predictor(model)
    paths = [picture_folder, tmp_path / "gone.png", picture_folder / "ship" / "ship 00.png"]
    results = list(predictor.predict_paths(paths, top=1, batch_size=batch_size, workers=workers))
    files = sorted(path for path in picture_folder.rglob("*") if path.is_file())
    assert [result["path"] for result in results] == [*map(str, files), str(paths[1]), str(paths[2])]
    assert {result["path"] for result in results if "error" in result} == {str(broken), str(paths[1])}
    for result in results:
        assert set(result) in ({"path", "error"}, {"path", "predictions"})
        if "predictions" in result:
            expected = predictor(result["path"], top=1)[0]
            found = result["predictions"][0]
            assert (found["label"], found["index"]) == (expected.label, expected.index)
            assert found["probability"] == pytest.approx(expected.probability, abs=1e-6)


@pytest.mark.parametrize("workers", [0, 2])
def test_results_stream(model: Model, picture_folder: Path, workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first result comes when at most two batches were read, or three with threads. So memory is bounded."""
    predictor = Predictor(model)
    decoded = []
    decode = predictor._pixels
    monkeypatch.setattr(predictor, "_pixels", lambda picture: decoded.append(picture) or decode(picture))
    forever = itertools.repeat(picture_folder / "cat" / "cat 00.png")
    results = predictor.predict_paths(forever, batch_size=4, workers=workers)
    assert "predictions" in next(results)
    assert len(decoded) <= 8 + 4 * bool(workers)
    results.close()


def test_one_path_is_one_path(model: Model, picture_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = Predictor(model)
    folder = picture_folder / "cat"
    expected = [str(path) for path in sorted(folder.iterdir())]
    for paths in (folder, str(folder), [folder], iter([str(folder)])):
        assert [result["path"] for result in predictor.predict_paths(paths)] == expected
    monkeypatch.setenv("HOME", str(picture_folder))
    assert [str(path) for path, _ in predictor.compute_paths("~/cat")] == expected
    for wrong in (None, 3, b"cat.png", [None]):
        with pytest.raises(UsageError, match="is not a path; give a str or Path, or several of them"):
            predictor.predict_paths(wrong)


def found(*paths: str | Path) -> list[tuple[str, bool]]:
    return [(path.name, error is None) for path, error in find_pictures(paths)]


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_batches_have_every_picture_in_its_place(threads: int) -> None:
    def decode(number: int) -> np.ndarray:
        if number < 0:
            raise DataError(f"{number} is broken")
        return np.full((2, 2, 3), number, np.uint8)

    for count, batch_size in itertools.product(range(1, 20), (1, 4, 7, 16)):
        batches = list(stacked(range(count), decode, shape=(2, 2, 3), batch_size=batch_size, threads=threads))
        assert [len(batch) for batch in batches[:-1]] == [batch_size] * (len(batches) - 1)
        assert np.concatenate(batches)[:, 0, 0, 0].tolist() == list(range(count))
    with pytest.raises(DataError, match="-6 is broken"):
        list(stacked([1, 2, 3, 4, 5, -6, 7, -8, 9, -10], decode, shape=(2, 2, 3), batch_size=10, threads=threads))


def test_a_name_that_no_file_can_have_is_not_found(model: Model) -> None:
    (found,) = Predictor(model).predict_paths([f"{'a' * 300}.jpg"])
    assert found["error"] == "no such file or folder, and nothing matches it"


def test_find_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "b.png",
        "a.JPG",
        "notes.txt",
        ".hidden.png",
        "sub/c.webp",
        "sub/deep/d.png",
        "empty/x.txt",
        "[1].png",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    everything = [("[1].png", True), ("a.JPG", True), ("b.png", True), ("c.webp", True), ("d.png", True)]
    assert found(tmp_path) == everything
    assert found(tmp_path / "notes.txt") == [("notes.txt", True)]  # named, so taken at its word
    assert found(tmp_path / "*.png") == [("[1].png", True), ("b.png", True)]
    assert found(tmp_path / "[1].png") == [("[1].png", True)]  # a file before a pattern
    assert found(tmp_path / "[ab].*") == [("a.JPG", True), ("b.png", True)]
    assert found(tmp_path / "**" / "*.png") == [("[1].png", True), ("b.png", True), ("d.png", True)]
    assert found(tmp_path / "s*") == [("c.webp", True), ("d.png", True)]  # a folder that matches
    assert found(tmp_path / "empty") == [("empty", False)]
    assert found(tmp_path / "*.gif", tmp_path / "none.png") == [("*.gif", False), ("none.png", False)]
    monkeypatch.chdir(tmp_path)
    assert found("sub/*.webp", ".") == [("c.webp", True), *everything]
    assert found("a**") == [("a**", False)]
    assert found("") == [("", False)]


def test_archives_and_lists_are_no_pictures(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "in" / "1.png")
    archive = shutil.make_archive(str(tmp_path / "photos"), "zip", tmp_path / "in")
    (tmp_path / "cut.zip").write_bytes(Path(archive).read_bytes()[:50])
    (tmp_path / "x.csv").write_text("path,label\n1.png,a\n")
    shutil.copy(tmp_path / "in" / "1.png", tmp_path / "picture.csv")
    folder = archive.removesuffix(".zip")
    reasons = {path.name: reason for path, reason in find_pictures([str(tmp_path / "*.*")])}
    assert reasons == {
        "photos.zip": f"an archive; unpack it with: python -m zipfile -e {archive} {folder}; then give {folder}",
        "cut.zip": "a broken archive, incomplete or of another kind than its suffix; get it again",
        "x.csv": "a list, and no picture; give the folder of its pictures, or its files",
        "picture.csv": None,
    }


def test_arrays(model: Model, pixels: np.ndarray) -> None:
    predictor = Predictor(model)
    grey = pixels[0, :, :, :1]
    assert predictor(grey) == predictor(grey[:, :, 0])
    for wrong in (
        pixels[0].astype(np.float32),
        pixels[0].astype(np.int64),
        np.zeros((40, 40, 4), np.uint8),
        np.zeros(40, np.uint8),
        pixels,
    ):
        with pytest.raises(UsageError) as error:
            predictor(wrong)
        assert f"the array is {wrong.dtype} {wrong.shape}; a picture is uint8" in str(error.value)
    with pytest.raises(DataError, match=r"\(0, 4, 3\): it has no pixels"):
        predictor(np.zeros((0, 4, 3), np.uint8))


@pytest.mark.parametrize("wrong", [[["a.png"]], [None], [3], None, 3, 2.5, {"a.png": 1}, object()])
def test_what_is_no_picture(model: Model, wrong: object) -> None:
    predictor = Predictor(model)
    for call in (predictor, predictor.logits, predictor.features, predictor.probabilities):
        with pytest.raises(
            UsageError, match=r"^(list|NoneType|int|float|dict|object) is not a picture; give a path, byt"
        ):
            call(wrong)


def test_what_programs_hold_of_a_file(model: Model, pixels: np.ndarray, tmp_path: Path) -> None:
    """Bytes of every type, and open files, which are read from their beginning if they can seek."""
    path = tmp_path / "a.png"
    Image.fromarray(pixels[0]).save(path)
    predictor, content = Predictor(model), path.read_bytes()
    expected, drawn = predictor(path), predictor.explain(path).evidence
    written = io.BytesIO()
    written.write(content)  # and it stands at its end
    into, out_of = os.pipe()
    os.write(out_of, content)
    os.close(out_of)
    with (
        path.open("rb") as file,
        path.open("rb", buffering=0) as raw,
        os.fdopen(into, "rb") as pipe,
        tempfile.SpooledTemporaryFile() as spooled,
    ):
        spooled.write(content)
        kinds = [written, bytearray(content), memoryview(content), file, raw, spooled, os.scandir(tmp_path)]
        kinds[-1] = next(kinds[-1])  # an os.PathLike
        for kind in kinds:
            assert predictor(kind) == expected
            np.testing.assert_array_equal(predictor.explain(kind).evidence, drawn)
        assert predictor(pipe) == expected
        assert predictor([written, written, file, path]) == predictor([path] * 4)


def test_open_files_that_hold_no_picture(model: Model, tmp_path: Path) -> None:
    predictor, path = Predictor(model), tmp_path / "a.png"
    path.write_bytes(b"nothing")
    closed, text, other, named = path.open("rb"), path.open(), io.StringIO("x"), path.open("rb")
    closed.close()
    wrong = {
        closed: (UsageError, f"{path} is closed; open it again, or give its path"),
        text: (UsageError, f"{path} is opened as text; open it in binary, mode 'rb'"),
        other: (UsageError, "the StringIO is opened as text; open it in binary"),
        named: (DataError, f"{path}: not a picture of a known kind"),
        io.BytesIO(): (DataError, "the BytesIO: the file is empty (0 bytes)"),
    }
    for picture, (kind, message) in wrong.items():
        for call in (predictor, predictor.explain):
            with pytest.raises(kind, match=re.escape(message)):
                call(picture)
    text.close()
    named.close()


def test_wrong_numbers_are_refused_before_anything_is_read(model: Model) -> None:
    for wrong in ({"top": 0}, {"batch_size": 0}, {"workers": -1}):
        with pytest.raises(UsageError):
            Predictor(model).predict_paths(["x"], **wrong)


def test_predicts_in_exact_float32(model: Model, pixels: np.ndarray) -> None:
    predictor = Predictor(model)
    seen = []
    predictor.backend._network.register_forward_hook(lambda *_: seen.append(torch.backends.cudnn.conv.fp32_precision))
    before = torch.backends.cudnn.conv.fp32_precision
    predictor(pixels[0])
    assert seen == ["ieee"]
    assert torch.backends.cudnn.conv.fp32_precision == before != "ieee"


def test_tensors_are_pictures_as_torchvision_has_them(model: Model, pixels: np.ndarray) -> None:
    predictor = Predictor(model)
    tensors = torch.from_numpy(pixels.copy()).permute(0, 3, 1, 2)
    assert predictor(tensors[0]) == predictor(pixels[0])
    assert predictor(tensors) == predictor(list(tensors)) == predictor(list(pixels))
    assert predictor(tensors[0, :1]) == predictor(tensors[0, 0]) == predictor(pixels[0, :, :, 0])
    for wrong in (tensors[0].float(), tensors[0].permute(1, 2, 0), tensors[:, None]):
        with pytest.raises(UsageError, match=r"the tensor is .*; a picture is uint8"):
            predictor([*wrong] if wrong.ndim == 5 else wrong)


def test_logits_probabilities_and_features(model: Model, pixels: np.ndarray) -> None:
    predictor = Predictor(model)
    logits = predictor.logits(list(pixels))
    assert logits.dtype == np.float32
    np.testing.assert_allclose(predictor.probabilities(list(pixels)), reference(model.net, pixels), atol=1e-5)
    np.testing.assert_allclose(predictor.logits(pixels[0]), logits[:1], atol=1e-6)
    c5, pool = predictor.features(list(pixels), "c5"), predictor.features(list(pixels))
    assert (c5.shape, pool.shape) == ((12, 64, 8, 8), (12, 64))
    np.testing.assert_allclose(c5.mean((2, 3)), pool, atol=1e-5)
    head = model.net.fc
    np.testing.assert_allclose(pool @ head.weight.detach().numpy().T + head.bias.detach().numpy(), logits, atol=1e-4)
    assert predictor.features([], "c5").shape == (0, 64, 8, 8)
    with pytest.raises(UsageError, match="`output` is 'c9'; choose one of logits, pool, c5"):
        predictor.features(pixels[0], "c9")


def test_many_pictures_go_in_batches(model: Model, pixels: np.ndarray) -> None:
    predictor = Predictor(model, batch_size=5)
    sizes = []
    predictor.backend._network.register_forward_hook(lambda _, inputs, __: sizes.append(len(inputs[0])))
    np.testing.assert_allclose(predictor.logits(list(pixels)), Predictor(model).logits(list(pixels)), atol=1e-5)
    assert sizes == [5, 5, 2]


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_every_backend_predicts_the_same(model: Model, pixels: np.ndarray, backend: str) -> None:
    pytest.importorskip(backend)
    computed = Predictor(model, backend=backend)
    assert computed.choice.backend == backend
    np.testing.assert_allclose(computed.probabilities(list(pixels)), reference(model.net, pixels), atol=1e-5)


def test_what_does_not_go_together(model: Model) -> None:
    for stated, message in (
        ({"goal": "fun"}, "`goal` is 'fun'; choose one of latency, throughput"),
        ({"device": "cuda", "backend": "openvino"}, "`backend` openvino computes on the CPU here, not on cuda"),
        ({"backend": "torch", "precision": "int8"}, "torch does not compute in int8 here"),
        ({"precision": "int8"}, "a model in memory has no int8 graph"),
        ({"threads": -2}, "`threads` is -2"),
        ({"device": "abacus"}, "`device` is 'abacus', which torch can't use here"),
        ({"output": "probability"}, "`output` is 'probability'; choose one of logits, pool, c5"),
    ):
        with pytest.raises(UsageError, match=message):
            Predictor(model, **stated)


@pytest.mark.parametrize("workers", [0, 2])
def test_broken_pictures_change_nothing_for_the_others(model: Model, picture_folder: Path, workers: int) -> None:
    predictor = Predictor(model, batch_size=4)
    sound = {row["path"]: row for row in predictor.predict_paths([picture_folder], workers=workers)}
    for name in ("cat/aa.png", "cat/zz.png", "frog/frog 055.png", "ship/a.jpg", "ship/b.jpg", "ship/zz.jpg"):
        (picture_folder / name).write_bytes(b"broken")
    rows = list(predictor.predict_paths([picture_folder], workers=workers))
    assert [row["path"] for row in rows] == sorted(row["path"] for row in rows)
    assert sum("error" in row for row in rows) == 6
    for row in rows:
        if "predictions" in row:
            for found, expected in zip(row["predictions"], sound[row["path"]]["predictions"], strict=True):
                assert found["label"] == expected["label"]
                assert found["probability"] == pytest.approx(expected["probability"], abs=1e-6)


def test_no_graph_is_made_for_what_may_not_wait(model: Model, tmp_path: Path, own_cache: Path) -> None:
    pytest.importorskip("openvino")
    save(tmp_path / "model.safetensors", model.net, model.header)
    assert Predictor(tmp_path / "model.safetensors", may_export=False).choice.backend == "torch"
    assert not list(own_cache.rglob("*.xml"))
    assert Predictor(tmp_path / "model.safetensors").choice.backend == "openvino"
    assert Predictor(tmp_path / "model.safetensors", may_export=False).choice.backend == "openvino"


def test_decoding_computing_and_naming_apart_equal_one_call(model: Model, pixels: np.ndarray, tmp_path: Path) -> None:
    predictor = Predictor(model)
    path = tmp_path / "a.png"
    Image.fromarray(pixels[0]).save(path)
    decoded = [predictor.decode(picture) for picture in (path, pixels[1])]
    arrays = [one for one in decoded if isinstance(one, np.ndarray)]
    assert [one.shape for one in arrays] == [(32, 32, 3)] * 2
    logits = predictor.compute(np.stack(arrays))
    assert predictor.name(logits, top=2) == predictor([path, pixels[1]], top=2)
    assert predictor.compute(np.stack(arrays), "pool").shape == (2, 64)


def test_a_picture_that_cannot_be_read_is_a_value(model: Model, tmp_path: Path) -> None:
    predictor = Predictor(model)
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"\xff\xd8 no picture")
    for picture, reason in (
        (broken, "not a picture of a known kind"),
        (tmp_path / "none.png", "no such file"),
        (b"", "empty"),
        (np.zeros((4, 4), np.float32), "float32"),
    ):
        failure = predictor.decode(picture)
        assert isinstance(failure, Failure)
        assert reason in failure.reason
        assert failure.path == (picture if isinstance(picture, Path) else None)


def test_arrays_that_do_not_fit_are_refused(model: Model) -> None:
    predictor = Predictor(model)
    for array in (
        np.zeros((1, 32, 32, 3), np.float32),
        np.zeros((32, 32, 3), np.uint8),
        np.zeros((0, 32, 32, 3), np.uint8),
    ):
        with pytest.raises(UsageError, match=r"expected uint8 \(n, 32, 32, 3\)"):
            predictor.compute(array)
    with pytest.raises(UsageError, match=r"expected \(n, 3\)"):
        predictor.name(np.zeros((1, 4), np.float32))


def test_the_signature_is_what_the_calls_take_and_give(model: Model, pixels: np.ndarray) -> None:
    predictor = Predictor(model)
    _, given = predictor.signature.inputs
    assert (given.dtype, given.shape) == ("uint8", (None, 32, 32, 3))
    for output in predictor.signature.outputs:
        values = getattr(predictor, output.name)(list(pixels[:2]))
        assert (values.dtype, values.shape[1:]) == (output.dtype, output.shape[1:])


def test_threads_share_one_predictor(model: Model, pixels: np.ndarray) -> None:
    predictor = Predictor(model)
    expected = predictor.logits(list(pixels))

    def whole(picture: np.ndarray) -> np.ndarray:
        decoded = predictor.decode(picture)
        assert isinstance(decoded, np.ndarray)
        return predictor.compute(decoded[None])[0]

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(whole, [picture for picture in pixels for _ in range(5)]))
    np.testing.assert_allclose(np.array(found), np.repeat(expected, 5, axis=0), atol=1e-5)
