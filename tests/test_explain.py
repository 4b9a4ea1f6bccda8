"""Grad-CAM compared with captum's, and the place of the evidence in drawings."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from captum.attr import LayerAttribution, LayerGradCam
from PIL import Image
from torch.nn import functional

from resnetkit.cli import main
from resnetkit.data.decoding.pictures import open_picture
from resnetkit.data.samples import Samples
from resnetkit.data.transforms.preprocess import Preprocess
from resnetkit.errors import DataError, ModelFileError, UsageError
from resnetkit.infer.explain import DIMMED, Explanation, drawing_path, explain, find_class, find_stage, seen
from resnetkit.infer.predictor import Predictor
from resnetkit.modelfile import Header, Model, load, save
from resnetkit.models.resnet import build
from resnetkit.models.spec import SPECS

CLASSES = ("cat", "frog", "ship")
KINDS = (
    "resnet20,depths=1-1-1",  # CIFAR, shortcut A
    "resnet18,depths=1-1-1-1,width=8",
    "resnet50,depths=1-1-1-1,width=8",
    "resnext50_32x4d,depths=1-1-1-1,groups=2,width_per_group=8",
    "preact_resnet110,depths=1-1-1",
)


def model_of(name: str, size: int = 64, **preprocess: object) -> Model:
    """A small network of three classes, with running statistics that differ from the initial ones."""
    torch.manual_seed(0)
    net = build(name, classes=3).train()
    with torch.no_grad():
        net(torch.randn(8, 3, size, size))
    return Model(net.eval(), Header(net.spec, Preprocess(size=size, **preprocess), CLASSES))


@pytest.fixture(scope="module")
def model() -> Model:
    """The model of the first of KINDS."""
    return model_of(KINDS[0], 32)


@pytest.fixture
def picture(cifar_subset: tuple[Samples, Samples]) -> np.ndarray:
    """A test picture: uint8 (32, 32, 3)."""
    images = cifar_subset[1].images
    assert images is not None
    return images[5]


def captums(model: Model, picture: np.ndarray, *, index: int, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Return captum's evidence of a stage, and its interpolation at the network's input."""
    net = model.net
    last = number == len(net.stage_names) - 1
    layer = net.last_relu if last and net.spec.order == "pre" else net.get_submodule(net.stage_names[number])
    net.last_relu.inplace = False  # what captum keeps must not be overwritten
    inputs = torch.from_numpy(model.header.preprocess(Image.fromarray(picture)))[None]
    size = model.header.preprocess.size
    found = LayerGradCam(net, layer).attribute(inputs, target=index, relu_attributions=True)
    at_input = LayerAttribution.interpolate(found, (size, size), interpolate_mode="bilinear")
    return found[0, 0].detach().numpy(), at_input[0, 0].detach().numpy()


@pytest.mark.parametrize("name", KINDS)
def test_equals_captum_for_every_class_and_stage(name: str, picture: np.ndarray) -> None:
    model = model_of(name)
    for number in range(len(model.net.stage_names)):
        strongest = []
        for index in range(3):
            explained = explain(model, picture, label=index, stage=number)
            evidence, at_input = captums(model, picture, index=index, number=number)
            assert explained.evidence.shape == evidence.shape
            strongest.append(evidence.max())
            for ours, theirs in ((explained.evidence, evidence), (explained.at_input(64), at_input)):
                np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * strongest[-1])
            assert (explained.label, explained.index, explained.stage) == (CLASSES[index], index, f"c{number + 2}")
        assert max(strongest) > 1e-6  # there was something to compare


def test_equals_captum_with_a_trained_network(picture: np.ndarray) -> None:
    model = load("resnet20:cifar10")
    strongest = []
    for index in range(10):
        explained = explain(model, picture, label=index)
        evidence, at_input = captums(model, picture, index=index, number=2)
        strongest.append(evidence.max())
        for ours, theirs in ((explained.evidence, evidence), (explained.at_input(32), at_input)):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * evidence.max())
    assert max(strongest) > 0  # a class that nothing speaks for has a map of zeros


def test_the_best_class_is_explained_unless_one_is_named(model: Model, picture: np.ndarray) -> None:
    inputs = torch.from_numpy(model.header.preprocess(Image.fromarray(picture)))[None]
    with torch.no_grad():
        probabilities = model.net(inputs).softmax(dim=1)[0]
    best = explain(model, picture)
    assert best.index == int(probabilities.argmax())
    named = [explain(model, picture, label=label) for label in CLASSES]
    assert [one.probability for one in named] == pytest.approx(probabilities.tolist(), abs=1e-6)
    np.testing.assert_array_equal(best.evidence, named[best.index].evidence)
    assert not np.allclose(named[0].evidence, named[1].evidence, atol=1e-4)
    np.testing.assert_array_equal(explain(model, picture, stage="c4").evidence, best.evidence)


def test_leaves_the_network_alone(model: Model, picture: np.ndarray) -> None:
    expected = explain(model, picture).evidence
    model.net.train()
    before = {name: tensor.clone() for name, tensor in model.net.state_dict().items()}
    try:
        with torch.inference_mode():
            np.testing.assert_array_equal(explain(model, picture).evidence, expected)
        assert model.net.training
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.net.state_dict().items())
        assert all(parameter.grad is None for parameter in model.net.parameters())
    finally:
        model.net.eval()


def test_every_kind_of_picture(model: Model, picture: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "a b.png"
    Image.fromarray(picture).save(path)
    expected = explain(model, picture).evidence
    tensor = torch.from_numpy(picture.copy()).permute(2, 0, 1)
    for kind in (path, str(path), path.read_bytes(), Image.open(path), tensor):
        np.testing.assert_array_equal(explain(model, kind).evidence, expected)
    with pytest.raises(DataError, match=r"gone\.png: no such file"):
        explain(model, tmp_path / "gone.png")


@pytest.mark.parametrize("backend", ["torch", "openvino"])
def test_a_predictor_explains_whatever_computes_its_predictions(
    backend: str, model: Model, picture: np.ndarray, tmp_path: Path
) -> None:
    if backend == "openvino":
        pytest.importorskip("openvino")
    save(tmp_path / "m.safetensors", model.net, model.header)
    predictor = Predictor(tmp_path / "m.safetensors", backend=backend)
    expected = explain(model, picture, label="ship", stage="c3")
    explained = predictor.explain(picture, label="ship", stage="c3")
    np.testing.assert_allclose(explained.evidence, expected.evidence, atol=1e-6)
    by_name = {best.label: best.probability for best in predictor(picture, top=3)}
    assert explained.probability == pytest.approx(by_name["ship"], abs=1e-5)


def test_grey_networks_have_colour_pictures(picture: np.ndarray) -> None:
    torch.manual_seed(0)
    net = build("resnet20,depths=1-1-1", classes=3, in_channels=1).eval()
    model = Model(net, Header(net.spec, Preprocess(size=32, mode="L", mean=(0.5,), std=(0.2,)), CLASSES))
    explained = explain(model, picture)
    np.testing.assert_array_equal(np.asarray(explained.picture), picture)
    grey = explain(model, np.asarray(Image.fromarray(picture).convert("L")))
    np.testing.assert_array_equal(explained.evidence, grey.evidence)


# Where the crop is in the picture


@pytest.mark.parametrize("size", [(32, 32), (50, 40), (40, 51), (500, 375), (33, 100), (20, 24)])
@pytest.mark.parametrize("preprocess", [Preprocess(size=32), Preprocess(size=24, resize=32), Preprocess(size=64)])
def test_the_crop_is_what_preprocessing_keeps(size: tuple[int, int], preprocess: Preprocess) -> None:
    """The pixels are their own coordinates, so the crop's outermost rows and columns show where it is."""
    left, top, right, bottom = seen(size, preprocess)
    width, height = size
    columns, rows = np.meshgrid((np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height)
    places = Image.fromarray(np.rint(255 * np.stack([columns, rows, columns], axis=2)).astype(np.uint8))
    pixels = preprocess.pixels(places) / 255
    middle = preprocess.size // 2
    across, down = (right - left) / preprocess.size, (bottom - top) / preprocess.size
    for at in (middle // 2, middle, middle + middle // 2):  # away from the border, where resizing has less to average
        assert pixels[middle, at, 0] == pytest.approx((left + (at + 0.5) * across) / width, abs=0.004 + 0.1 / width)
        assert pixels[at, middle, 1] == pytest.approx((top + (at + 0.5) * down) / height, abs=0.004 + 0.1 / height)
    assert -1e-9 <= left < right <= width + 1e-9
    assert -1e-9 <= top < bottom <= height + 1e-9
    assert right - left == pytest.approx(bottom - top, rel=0.05)  # the longer side is rounded down


@pytest.mark.parametrize("size", [(50, 40), (40, 51), (500, 375), (33, 100), (20, 24)])
@pytest.mark.parametrize("fit", ["letterbox", "stretch"])
def test_whole_pictures_are_seen_from_edge_to_edge(size: tuple[int, int], fit: str) -> None:
    left, top, right, bottom = seen(size, Preprocess(size=32, fit=fit))
    width, height = size
    assert (left, right) == pytest.approx((0, width)) or width < height
    assert (top, bottom) == pytest.approx((0, height)) or height < width
    if fit == "letterbox":
        assert right - left == pytest.approx(bottom - top, rel=0.05)  # the shorter side is rounded
        assert left <= 0 <= width <= right
        assert top <= 0 <= height <= bottom


def test_an_overlay_of_a_letterbox_has_no_dark_part() -> None:
    evidence = np.zeros((4, 4))
    evidence[1, 2] = 3
    drawn = np.asarray(explanation(evidence, (120, 80), (0, -20, 120, 100)).overlay()).astype(int)
    assert drawn.shape == (80, 120, 3)
    assert (drawn[60:, :20] == 200).all()
    red, green, _ = drawn[25, 75]  # the middle of the cell: 1.5 / 4 of 120 rows, from row -20
    assert red > green + 50


def explanation(evidence: np.ndarray, size: tuple[int, int], crop: tuple[float, float, float, float]) -> Explanation:
    picture = Image.new("RGB", size, (200, 200, 200))
    return Explanation("cat", 0, 0.9312, "c5", evidence.astype(np.float32), picture, crop)


def test_heat_at_the_picture() -> None:
    """4 x 4 cells on a crop of 8 x 8 pixels, 2 pixels from the left: a pixel's centre is a quarter of a cell off."""
    evidence = np.zeros((4, 4))
    evidence[1, 2] = 3
    heat = explanation(evidence, (12, 8), (2, 0, 10, 8)).heat
    assert heat.shape == (8, 12)
    assert heat.dtype == np.float32
    line = [0, 0, 0, 0, 0, 0.25, 0.75, 0.75, 0.25, 0, 0, 0]  # the cell has pixels 6 and 7 of a row
    np.testing.assert_allclose(heat[2], np.multiply(0.75, line), atol=1e-6)
    np.testing.assert_allclose(heat[:, 6], np.multiply(0.75, [0, 0.25, 0.75, 0.75, 0.25, 0, 0, 0]), atol=1e-6)
    expected = functional.interpolate(torch.from_numpy(evidence)[None, None], (8, 8), mode="bilinear")[0, 0] / 3
    np.testing.assert_allclose(heat[:, 2:10], expected, atol=1e-6)


def test_nothing_speaks_for_the_class() -> None:
    unexplained = explanation(np.zeros((4, 4)), (12, 8), (2, 0, 10, 8))
    assert not unexplained.heat.any()
    drawn = np.asarray(unexplained.overlay())
    assert (drawn[:, 2:10] == 200).all()


def test_overlay_colours_the_evidence_and_dims_what_was_not_seen() -> None:
    evidence = np.zeros((4, 4))
    evidence[1, 2] = 3
    drawn = np.asarray(explanation(evidence, (120, 80), (20, 0, 100, 80)).overlay()).astype(int)
    assert drawn.shape == (80, 120, 3)
    for dimmed in (drawn[:, :20], drawn[:, 100:]):
        assert np.unique(dimmed).tolist() == [int(DIMMED * 200)]
    assert (drawn[60:, 20:100] == 200).all()  # seen, without evidence: as it was
    red, green, blue = drawn[30, 70]  # the middle of the cell
    assert red > green + 50
    assert red > blue + 50


def test_drawing_has_a_caption_and_can_be_seen() -> None:
    for size in ((32, 32), (500, 375)):
        one = explanation(np.eye(4), size, (0, 0, min(size), min(size)))
        drawing = one.drawing()
        factor = drawing.width // size[0]
        assert drawing.width == factor * size[0] >= 256
        height = factor * size[1]
        caption = np.asarray(drawing)[height:]
        assert 20 <= caption.shape[0] <= 60
        assert (caption == 255).mean() > 0.5
        assert (caption < 100).any()  # letters
        longer = np.asarray(Explanation(**vars(one) | {"label": "a very long name " * 20}).drawing())
        assert longer.shape == np.asarray(drawing).shape
        assert (longer[height:, -4:] == 255).all()  # cut before it reaches the border
        other = np.asarray(Explanation(**vars(one) | {"probability": 0.1}).drawing())
        assert not np.array_equal(other[height:], caption)
        np.testing.assert_array_equal(other[:height], np.asarray(drawing)[:height])


@pytest.mark.parametrize("name", ["a.png", "b.JPG", "c.jpeg"])
def test_saved_whole_or_not(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = explanation(np.eye(4), (64, 48), (8, 0, 56, 48))
    one.save(tmp_path / name)
    before = (tmp_path / name).read_bytes()
    drawn = np.asarray(open_picture(before)).astype(int)
    assert np.abs(drawn - np.asarray(one.drawing()).astype(int)).mean() < (1 if name.endswith("png") else 6)

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(DataError, match=f"{name} could not be written: No space left"):
        one.save(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_bytes() == before


def test_saved_only_as_a_picture(tmp_path: Path) -> None:
    one = explanation(np.eye(4), (64, 48), (8, 0, 56, 48))
    with pytest.raises(UsageError, match=r"x\.gif: a drawing is saved as \.png, \.jpg, \.jpeg"):
        one.save(tmp_path / "x.gif")
    with pytest.raises(DataError, match="could not be written"):
        one.save(tmp_path / "gone" / "x.png")


def test_names_do_not_collide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pictures = [
        "a/cat.jpg",
        "b/cat.jpg",
        "cat.jpg",
        "a/cat.png",
        "a/cat.jpeg",
        "a/Cat.jpg",
        "a/cat.webp",
        "a/cat.webp.png",
    ]
    names = {drawing_path(Path("out"), picture).name.lower() for picture in pictures}
    assert len(names) == len(pictures)
    assert drawing_path(Path("out"), "a/cat.jpg") == drawing_path(Path("out"), tmp_path / "a" / "cat.jpg")
    assert drawing_path(Path("out"), "a/cat.jpg").match("out/cat-????????????.jpg")
    assert drawing_path(Path("out"), "a/cat.webp").suffix == ".png"
    assert len(drawing_path(Path("out"), "ж" * 120 + ".jpg").name.encode()) < 200


def test_classes_by_name_or_index() -> None:
    assert find_class(None, CLASSES) is None
    assert [find_class(label, CLASSES) for label in ("frog", 1, "1")] == [1, 1, 1]
    digits = tuple("9876543210")
    assert find_class("9", digits) == 0  # a name before an index
    assert find_class(9, digits) == 9
    for label, message in (
        ("forg", "there is no class forg; did you mean frog"),
        ("dog house", "there is no class dog house; give a name, or an index from 0 to 2"),
        (3, "there is no class 3; the indices go from 0 to 2"),
        ("-1", "there is no class -1"),
    ):
        with pytest.raises(UsageError, match=message):
            find_class(label, CLASSES)
    with pytest.raises(UsageError, match="crane is the name of classes 0, 2; give one of these numbers"):
        find_class("crane", ("crane", "cat", "crane"))


def test_stages_by_name_or_number(model: Model, picture: np.ndarray) -> None:
    assert [find_stage(stage, 4) for stage in ("c2", "c5", -1, 0, "-2", "3")] == [0, 3, 3, 0, 2, 3]
    assert len(SPECS["resnet20"].depths) == 3
    for stage in ("c5", 3, -4, "layer4"):
        with pytest.raises(UsageError, match=f"there is no stage {stage}; this network has c2, c3, c4"):
            explain(model, picture, stage=stage)


# The command line


@pytest.fixture
def in_folder(model: Model, picture_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with m.safetensors and pictures/<class>/, a copy of one of them, and a broken file."""
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "m.safetensors", model.net, model.header)
    shutil.rmtree(picture_folder / "ship")
    shutil.rmtree(picture_folder / "frog")
    for picture in sorted((picture_folder / "cat").iterdir())[3:]:
        picture.unlink()
    shutil.copytree(picture_folder / "cat", picture_folder / "dog")
    (picture_folder / "dog" / "broken.png").write_bytes(b"nothing")
    return tmp_path


def test_predict_draws_every_picture(in_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "m.safetensors", "pictures", "--explain", "out/deep", "--backend", "torch", "--json"]) == 1
    results = json.loads(capsys.readouterr().out)
    drawings = [result["drawing"] for result in results if "drawing" in result]
    assert [result["path"] for result in results if "error" in result] == ["pictures/dog/broken.png"]
    assert len(set(drawings)) == 6
    assert {str(path) for path in Path("out/deep").iterdir()} == {str(Path(drawing)) for drawing in drawings}
    for result in results:
        if "drawing" in result:
            path, best = Path(result["path"]), result["predictions"][0]
            assert Path(result["drawing"]) == drawing_path(Path("out/deep"), path)
            explained = explain(load("m.safetensors"), path)
            assert explained.index == best["index"]
            explained.save(expected := in_folder / f"expected{Path(result['drawing']).suffix}")
            assert Path(result["drawing"]).read_bytes() == expected.read_bytes()


def test_predict_explains_the_class_and_stage_that_are_named(
    in_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = in_folder / "pictures" / "cat" / "cat 00.png"
    argv = ["predict", "m.safetensors", str(path), "--explain", "out", "--backend", "torch"]
    assert main([*argv, "--explain-class", "ship", "--explain-stage", "c3"]) == 0
    drawing = drawing_path(Path("out"), path)
    assert f"  drawn: {drawing}\n" in capsys.readouterr().out
    explain(load("m.safetensors"), path, label="ship", stage="c3").save(expected := in_folder / "expected.png")
    assert drawing.read_bytes() == expected.read_bytes()
    assert main([*argv, "--explain-class", "2", "--explain-stage", "1", "--csv"]) == 0  # the same, by number
    assert drawing.read_bytes() == expected.read_bytes()
    assert capsys.readouterr().out.splitlines()[0] == "path,label,index,probability,error"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--explain out --explain-class dog", "there is no class dog; give a name, or an index from 0 to 2"),
        ("--explain out --explain-stage c5", "there is no stage c5; this network has c2, c3, c4"),
        ("--explain-class cat", "--explain-class needs --explain DIR"),
        ("--explain-stage c4", "--explain-stage needs --explain DIR"),
        ("--explain pictures/out", "--explain pictures/out is inside pictures, whose pictures are read"),
        ("--explain pictures", "--explain pictures is inside pictures, whose pictures are read"),
    ],
)
def test_predict_says_what_it_does_not_understand(
    flags: str, message: str, in_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", "m.safetensors", "pictures", "--backend", "torch", *flags.split()]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert not Path("pictures/out").exists()


def test_predict_says_where_it_can_not_draw(in_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "m.safetensors", "pictures", "--explain", "m.safetensors/out", "--backend", "torch"]) == 1
    assert "--explain m.safetensors/out can't be created: Not a directory" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_last_map_of_a_graph_explains_as_gradients_do(tmp_path: Path, kind: str, picture: np.ndarray) -> None:
    model = model_of(kind, 32, resize=36)
    save(tmp_path / "m.safetensors", model.net, model.header)
    by_graph = Predictor(tmp_path / "m.safetensors", backend="openvino")
    wide = np.concatenate([picture, picture[:, ::-1]], axis=1)
    for label in (None, "frog", 2):
        expected = explain(model, wide, label=label)
        found = by_graph.explain(wide, label=label)
        assert (found.label, found.index, found.stage, found.crop) == (
            expected.label,
            expected.index,
            expected.stage,
            expected.crop,
        )
        assert found.probability == pytest.approx(expected.probability, abs=1e-5)
        np.testing.assert_allclose(found.evidence, expected.evidence, rtol=1e-3, atol=1e-4 * expected.evidence.max())
        assert found.evidence.shape == expected.evidence.shape
        assert np.abs(np.asarray(found.overlay(), int) - np.asarray(expected.overlay(), int)).max() <= 3
    assert not by_graph._session._loaded, "the network of torch was not needed"
    early = by_graph.explain(wide, label="frog", stage=0)
    np.testing.assert_allclose(early.evidence, explain(model, wide, label="frog", stage=0).evidence, rtol=1e-5)
    with pytest.raises(UsageError, match="there is no class dog"):
        by_graph.explain(wide, label="dog")


def test_an_8_bit_graph_explains_itself(tmp_path: Path) -> None:
    import openvino
    from openvino import opset13 as ops

    from resnetkit.infer.backends.last_map import WithLastMap
    from resnetkit.infer.choice import Choice

    def rounded(values: openvino.Node) -> openvino.Node:
        ends = [np.float32(end) for end in (0, 255, 0, 255)]
        return ops.fake_quantize(values, *ends, levels=256)

    pixels = ops.parameter([-1, 4, 4, 3], np.uint8)
    maps = rounded(ops.transpose(ops.convert(pixels, "f32"), [0, 3, 1, 2]))
    pooled = rounded(ops.reduce_mean(maps, [2, 3], keep_dims=False))
    weights = np.arange(6, dtype=np.float32).reshape(2, 3)
    logits = ops.matmul(pooled, weights, transpose_a=False, transpose_b=True)
    openvino.save_model(openvino.Model([logits], [pixels]), tmp_path / "g.xml")
    values = np.random.default_rng(0).integers(0, 256, (1, 4, 4, 3), dtype=np.uint8)
    found, scores = WithLastMap(Choice("openvino"), tmp_path / "g.xml")(values)
    np.testing.assert_array_equal(found, values.transpose(0, 3, 1, 2).astype(np.float32))
    np.testing.assert_allclose(scores, np.rint(values.mean((1, 2))) @ weights.T, rtol=1e-5)
    openvino.save_model(openvino.Model([ops.relu(maps)], [pixels]), tmp_path / "h.xml")
    with pytest.raises(ModelFileError, match="does not end in global pooling"):
        WithLastMap(Choice("openvino"), tmp_path / "h.xml")
