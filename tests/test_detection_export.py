"""Exported detectors: two graphs and what is between them find what the detector finds."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torchvision.ops import MultiScaleRoIAlign

from resnetkit.cli import main
from resnetkit.data.detection.samples import Detections
from resnetkit.data.transforms.preprocess import Preprocess
from resnetkit.detect.evaluate import find
from resnetkit.detect.files import DetectorModel, header_of, save_detector
from resnetkit.detect.inference import export as exporting
from resnetkit.detect.inference.export import compare, count_same, export_detector, read_header, read_pictures
from resnetkit.detect.inference.finders import GraphFinder
from resnetkit.detect.inference.graphs import as_graphs
from resnetkit.detect.inference.pooling import pool_regions
from resnetkit.detect.model import Detector
from resnetkit.detect.predict import DetectorPredictor
from resnetkit.detect.spec import DETECTORS
from resnetkit.errors import ExportError, ModelFileError, UsageError
from resnetkit.models.layers import FrozenBatchNorm2d
from resnetkit.models.spec import parse_spec

CLASSES = ("cat", "dog")
FEW = {"proposals": (50, 30), "candidates": (100, 60), "most_detections": 20}
SHAPES = ((64, 96), (96, 64), (33, 200), (400, 20), (1, 1))


def tiny(head: str = "fpn-small", **changes: object) -> DetectorModel:
    """A detector with random weights, whose normalisations are not the identity and whose scores differ."""
    torch.manual_seed(0)
    width = {} if head == "c4" else {"width": 16, "hidden": 32}
    spec = replace(DETECTORS[head], **FEW, **width, **changes)
    net = Detector(parse_spec("resnet18,width=16,depths=1-1-1-1,norm=frozen"), spec, Preprocess(64), classes=2)
    noise = torch.Generator().manual_seed(1)
    for name, tensor in net.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 1.5, generator=noise)
        if name.endswith("running_mean"):
            tensor.normal_(0, 0.1, generator=noise)
    net.rpn.head.bbox_pred.weight.data.mul_(5)
    net.roi_heads.box_predictor.cls_score.weight.data.mul_(20)
    return DetectorModel(net.eval(), header_of(net, CLASSES))


def noise(shape: tuple[int, int]) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)


def in_torch(model: DetectorModel) -> GraphFinder:
    """The two graphs, computed by torch: as exported ones, but without exporting."""
    proposals, regions = (exporting._as_compute(graph) for graph in as_graphs(model.net))
    return GraphFinder(model.header, proposals, regions)


def test_regions_are_pooled_as_by_torchvision():
    strides, sizes, channels = (8, 16, 32), ((12, 20), (6, 10), (3, 5)), 5
    source = torch.Generator().manual_seed(0)
    maps = {str(n): torch.randn(1, channels, *size, generator=source) for n, size in enumerate(sizes)}
    corners = torch.rand(300, 2, generator=source) * torch.tensor([190.0, 110.0]) - 15  # some are outside
    extents = torch.rand(300, 2, generator=source) ** 3 * 200
    boxes = torch.cat([corners, corners + extents], dim=1)
    pool = MultiScaleRoIAlign(list(maps), output_size=7, sampling_ratio=2, canonical_scale=40)
    expected = pool(maps, [boxes], [(96, 160)])
    levels = pool.map_levels([boxes])
    features = torch.cat([x[0].permute(1, 2, 0).flatten(0, 1) for x in maps.values()])
    found = pool_regions(features, boxes, levels, sizes=sizes, strides=strides, side=7)
    assert set(levels.tolist()) == {0, 1, 2}
    torch.testing.assert_close(found.permute(0, 3, 1, 2), expected, atol=2e-5, rtol=0)
    assert pool_regions(features, boxes[:0], levels[:0], sizes=sizes, strides=strides, side=7).shape == (0, 7, 7, 5)


@pytest.mark.parametrize("head", ["fpn-small", "fpn-v2", "c4", "context"])
def test_steps_apart_find_what_the_detector_finds(head):
    model = tiny("fpn-small", context=True) if head == "context" else tiny(head)
    finder = in_torch(model)
    for shape in SHAPES:
        pixels = noise(shape)
        expected, found = find(model.net, pixels), finder(pixels)
        assert len(found) == len(expected) > 0
        assert count_same(expected, found) == len(expected)
    assert not any(
        isinstance(module, FrozenBatchNorm2d) for graph in as_graphs(model.net) for module in graph.modules()
    )


def test_a_picture_without_proposals_has_no_objects():
    finder = in_torch(tiny())
    finder.net.rpn.score_thresh = 2.0
    assert len(finder(noise((64, 64)))) == 0


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[DetectorModel, Path, Path]:
    """A detector, its model file, and the first of its files for OpenVINO."""
    folder = tmp_path_factory.mktemp("exported")
    model = tiny()
    save_detector(folder / "pets.safetensors", model.net, model.header)
    assert (
        main(["export", str(folder / "pets.safetensors"), "--to", "openvino", "--out", str(folder / "pets.xml")]) == 0
    )
    return model, folder / "pets.safetensors", folder / "pets.xml"


def test_an_exported_detector_finds_the_same_in_pictures_of_any_size(exported):
    model, _, file = exported
    assert {one.name for one in file.parent.glob("pets*")} == {
        *("pets.safetensors", "pets.xml", "pets.bin", "pets.regions.xml", "pets.regions.bin")
    }
    predictor = DetectorPredictor(file, threshold=0.0)
    assert (predictor.choice.backend, predictor.classes) == ("openvino", CLASSES)
    for shape in SHAPES:
        expected, found = find(model.net, noise(shape)), predictor.compute(noise(shape))
        assert count_same(expected, found) == len(expected) == len(found) > 0
    assert read_header(file) == model.header


def test_files_that_find_something_else_are_not_kept(exported, tmp_path, monkeypatch):
    model, _, file = exported
    pictures = read_pictures(None)
    gap = compare(model, exporting.open_files(file, DetectorPredictor(file).choice, model.header), pictures)
    assert gap.passes
    assert gap.detections > 10
    other = tiny()
    other.net.rpn.head.cls_logits.weight.data.mul_(-1)
    gap = compare(other, exporting.open_files(file, DetectorPredictor(file).choice, model.header), pictures)
    assert not gap.passes
    assert gap.values > 0.1

    def copy(model: DetectorModel, target: Path, *, to: str) -> None:
        for one in file.parent.glob("pets*[ln]"):
            (target.parent / one.name).write_bytes(one.read_bytes())

    monkeypatch.setattr(exporting, "write_graphs", copy)
    with pytest.raises(ExportError, match="was not kept: values differ"):
        export_detector(other, tmp_path / "pets.xml", to="openvino")
    assert not list(tmp_path.iterdir())


def test_backends_are_chosen_by_flags(exported, tmp_path, capsys):
    _, model_file, file = exported
    (tmp_path / "a.png").write_bytes(b"")
    predictor = DetectorPredictor(model_file, backend="torch")
    assert (predictor.choice.backend, DetectorPredictor(file, threads=1).choice.threads) == ("torch", 1)
    with pytest.raises(UsageError, match=r"pets\.xml is computed by openvino, not by torch"):
        DetectorPredictor(file, backend="torch")
    with pytest.raises(UsageError, match="inductor does not compute detectors"):
        DetectorPredictor(model_file, backend="inductor")
    file.with_name("alone.xml").write_bytes(file.read_bytes())
    file.with_name("alone.bin").write_bytes(file.with_suffix(".bin").read_bytes())
    with pytest.raises(ModelFileError, match=r"alone.regions.xml does not exist; export the detector again"):
        DetectorPredictor(file.with_name("alone.xml"))
    assert main(["export", str(model_file), "--to", "pt2"]) == 2
    assert "detectors are exported to openvino or onnx" in capsys.readouterr().err
    assert main(["export", str(model_file), "--to", "onnx", "--output", "pool"]) == 2
    assert "--output is for classifiers" in capsys.readouterr().err
    assert main(["export", str(model_file), "--to", "onnx", "--int8", "--calibrate", "d", "--max-top1-loss", "0"]) == 2
    assert "--max-top1-loss is for classifiers" in capsys.readouterr().err


@pytest.mark.long
@pytest.mark.parametrize("head", ["fpn-small", "c4"])
def test_onnx_finds_the_same(head, tmp_path):
    model = tiny(head)
    done = export_detector(model, tmp_path / "pets.onnx", to="onnx")
    assert [file.name for file in done.files] == ["pets.onnx", "pets.regions.onnx"]
    found = DetectorPredictor(done.path, threshold=0.0)
    for shape in SHAPES:
        expected = find(model.net, noise(shape))
        assert count_same(expected, found.compute(noise(shape))) == len(expected)


def test_detections_are_the_same_within_the_tolerance():
    one = Detections(np.array([[0, 0, 10, 10], [5, 5, 20, 20]], np.float32), np.array([0, 1]), np.float32([0.9, 0.5]))
    moved = replace(one, boxes=one.boxes + np.float32([[0.05] * 4, [0.2] * 4]))
    assert count_same(one, one) == 2
    assert count_same(one, moved) == 1
    assert count_same(one, replace(one, labels=np.array([0, 0]))) == 1
    assert count_same(one, one.subset(np.array([1]))) == 1
