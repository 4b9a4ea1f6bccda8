"""The training of a detector by the one loop: it learns, stops and goes on to the bit; and its verbs."""

import json
import signal
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from resnetkit import modelfile
from resnetkit.cli import main
from resnetkit.data.detection.samples import DetectionDataset, DetectionSamples, Objects
from resnetkit.data.transforms.preprocess import Preprocess
from resnetkit.detect import run
from resnetkit.detect.evaluate import evaluate_detector
from resnetkit.detect.files import load_detector
from resnetkit.detect.pictures import Change, TrainingPictures
from resnetkit.detect.recipe import DetectionRecipe
from resnetkit.detect.spec import DETECTORS
from resnetkit.errors import DataError, ModelFileError, TrainingError, UsageError
from resnetkit.models.resnet import build
from resnetkit.train.lifecycle import train_on
from resnetkit.train.loop import InterruptedTrainingError
from resnetkit.train.monitor import Monitor
from resnetkit.train.recipe import write_recipe
from resnetkit.train.run_folder import RunFolder

COLORS = {"red": (220, 40, 40), "blue": (40, 60, 220)}
SIDES = (96, 80)
FAST: dict[str, Any] = {"detector": "tiny", "model": "resnet18,width=8", "size": 80, "freeze": 0} | {
    "workers": 0,
    "threads": 1,
    "log_every": 1,
}


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    """A row of the table that needs little time."""
    row = replace(DETECTORS["fpn-small"], width=32, hidden=64, proposals=(100, 50), regions_sampled=32)
    monkeypatch.setitem(DETECTORS, "tiny", row)


def draw(path: Path, seed: int, objects: int) -> Objects:
    """Write a grey picture with coloured rectangles, and return them."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(100, 140, (SIDES[1], SIDES[0], 3), dtype=np.uint8)
    boxes, labels = [], []
    for place in range(objects):
        width, height = rng.integers(20, 34, 2)
        left, top = int(rng.integers(0, 12)) + 48 * (place % 2), int(rng.integers(0, 6)) + 40 * (place // 2)
        label = int(rng.integers(2))
        pixels[top : top + height, left : left + width] = tuple(COLORS.values())[label]
        boxes.append((left, top, left + width, top + height))
        labels.append(label)
    Image.fromarray(pixels).save(path)
    return Objects(np.array(boxes, np.float32).reshape(-1, 4), np.array(labels, np.int64))


def samples(folder: Path, count: int, *, first: int = 0) -> DetectionSamples:
    """Pictures with 0 to 3 rectangles each."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = tuple(folder / f"{number}.png" for number in range(first, first + count))
    objects = tuple(draw(path, first + place, (3, 2, 1, 0)[place % 4]) for place, path in enumerate(paths))
    return DetectionSamples(tuple(COLORS), paths, (SIDES,) * count, objects)


@pytest.fixture(scope="module")
def init(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A classifier with random weights, whose normalisations have the statistics of such pictures."""
    folder = tmp_path_factory.mktemp("init")
    torch.manual_seed(0)
    net = build("resnet18,width=8,classes=2")
    draw(folder / "one.png", 0, 3)
    pixels = torch.from_numpy(np.array(Image.open(folder / "one.png"))).permute(2, 0, 1)[None] / 255
    images = (pixels - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / 0.225
    for norm in net.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = None
    with torch.no_grad():
        net.train()(images.repeat(2, 1, 1, 1))
    path = folder / "c.safetensors"
    modelfile.save(path, net, modelfile.Header(net.spec, Preprocess(64), ("a", "b")))
    return str(path)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> DetectionDataset:
    folder = tmp_path_factory.mktemp("boxes")
    train = samples(folder / "train", 8)
    return DetectionDataset("rectangles", train.classes, train, samples(folder / "val", 4, first=100), None)


def test_a_killed_training_goes_on_to_the_bit(dataset, init, tmp_path, monkeypatch):
    """Stopped by a signal in the second of three epochs; flips, scales and colours are on."""
    recipe = DetectionRecipe(init=init, epochs=3, batch_size=2, vertical_flip=True, **FAST)
    run.start(recipe, dataset, out=tmp_path / "whole", quiet=True)
    record, asked = Monitor.record, []

    def recording(self: Monitor, row: Mapping[str, Any]) -> None:
        record(self, row)
        if row["step"] == 6 and not asked:
            asked.append(6)
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Monitor, "record", recording)
        with pytest.raises(InterruptedTrainingError, match="stopped after step 6 of 12"):
            run.start(recipe, dataset, out=tmp_path / "run", quiet=True)
    result = run.resume(tmp_path / "run", dataset, quiet=True)
    for name in ("best.safetensors", "last.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert result.best["step"] == modelfile.inspect(tmp_path / "whole").metrics["step"]
    report = (tmp_path / "run" / "report.html").read_text()
    assert "AP50" in report
    assert ">red<" in report
    other = DetectionDataset("rectangles", dataset.classes, dataset.val, dataset.val, None)
    with pytest.raises(TrainingError, match="the pictures or boxes of rectangles differ"):
        run.resume(tmp_path / "run", other, quiet=True)


@pytest.mark.slow
@pytest.mark.long
def test_eight_pictures_are_learnt_by_heart(dataset, init, tmp_path):
    """Among them two without boxes. All parts are trained; AP at 0.5 on the same pictures is 99 % or more."""
    alone = DetectionDataset("eight", dataset.classes, dataset.train, dataset.train, None)
    plain = {"flip": False, "jitter": (1.0, 1.0), "color": 0.0, "evaluate_every": 20, "patience": 1}
    recipe = DetectionRecipe(init=init, epochs=100, batch_size=4, lr=0.02, **plain, **FAST | {"detector": "fpn-small"})
    result = run.start(recipe, alone, out=tmp_path / "run", quiet=True)
    assert result.best["ap50_percent"] >= 99
    model = load_detector(result.model)
    found, unreadable = evaluate_detector(model, dataset.train, workers=0)
    assert found.ap50_percent == pytest.approx(result.best["ap50_percent"])
    assert not unreadable
    assert set(model.thresholds) == set(COLORS)


def test_batches_are_the_same_from_any_place(dataset):
    recipe = DetectionRecipe(batch_size=2, **FAST)
    resized = run.Detector.resized
    net = type("Any", (), {"preprocess": Preprocess(80), "spec": run.find_detector("fpn-small")})()
    pictures = TrainingPictures(dataset.train, recipe, 80, lambda image, side: resized(net, image, side))
    whole = list(pictures.epoch(3, 0))
    rest = list(TrainingPictures(dataset.train, recipe, 80, pictures.resized).epoch(3, 2))
    assert [batch.number for batch in whole] == [0, 1, 2, 3]
    for one, other in zip(whole[2:], rest, strict=True):
        assert all(map(torch.equal, one.images, other.images))
        assert all(map(torch.equal, one.boxes, other.boxes))


def test_boxes_follow_their_pictures():
    """The pixels in a mirrored box are those of the object."""
    pixels = torch.zeros(3, 10, 20)
    pixels[:, 2:5, 1:8] = 1
    boxes = torch.tensor([[1.0, 2, 8, 5]])
    for change in (Change(mirrored=True), Change(flipped=True), Change(mirrored=True, flipped=True)):
        moved = change.geometry(pixels)
        left, top, right, bottom = change.boxes(boxes, (10, 20))[0].int().tolist()
        assert moved[:, top:bottom, left:right].sum() == moved.sum() == pixels.sum()


def test_colours_change_without_geometry():
    image = torch.rand(3, 4, 5)
    assert torch.equal(Change().color(image), image)
    darker = Change(brightness=0.5).color(image)
    torch.testing.assert_close(darker, 0.5 * image)
    grey = Change(saturation=0.0).color(image)
    torch.testing.assert_close(grey[0], grey[1])
    assert Change(contrast=0.5).color(image).std() < image.std()


def test_a_setting_does_not_change_the_draws_of_another():
    rngs = (np.random.default_rng(1), np.random.default_rng(1))
    one, other = (Change.drawn(DetectionRecipe(flip=flip), rng) for flip, rng in zip((True, False), rngs, strict=True))
    assert one.scale == other.scale
    assert one.brightness == other.brightness


def test_data_without_boxes_is_refused(dataset, init):
    empty = dataset.train.subset(np.array([3, 7]))
    with pytest.raises(DataError, match="has no boxes in its 2 training pictures"):
        run.prepare(DetectionRecipe(init=init, **FAST), DetectionDataset("e", empty.classes, empty, None, None))
    with pytest.raises(DataError, match="has no training pictures"):
        run.prepare(DetectionRecipe(init=init, **FAST), DetectionDataset("e", empty.classes, None, empty, None))


def test_an_unreadable_picture_of_the_validation_is_fatal_only_if_asked(dataset, init, tmp_path):
    assert dataset.val is not None
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    with_broken = replace(dataset, val=replace(dataset.val, paths=(broken, *dataset.val.paths[1:])))
    task = run.prepare(DetectionRecipe(init=init, **FAST), with_broken)
    assert list(task.unreadable(task.validate(task.net, lambda _: None))) == [broken]
    strict = run.prepare(DetectionRecipe(init=init, strict=True, **FAST), with_broken)
    with pytest.raises(DataError, match=r"broken\.png"):
        strict.validate(strict.net, lambda _: None)


def test_another_trunk_is_refused(dataset, init):
    with pytest.raises(UsageError, match="does not contain a resnet34"):
        run.prepare(DetectionRecipe(init=init, **FAST | {"model": "resnet34"}), dataset)


def test_anchors_are_fitted_to_the_boxes_and_kept(dataset, init, tmp_path, monkeypatch):
    far = replace(DETECTORS["tiny"], anchor_sizes=((100.0, 140.0), (120.0, 160.0), (200.0, 280.0), (300.0, 400.0)))
    monkeypatch.setitem(DETECTORS, "tiny", far)
    recipe = DetectionRecipe(init=init, fit_anchors=True, context=True, **FAST)
    task = run.prepare(recipe, dataset)
    before, now = DETECTORS["tiny"].anchor_sizes, task.net.spec.anchor_sizes
    assert before != now
    assert [len(sizes) for sizes in before] == [len(sizes) for sizes in now]
    reached = task.header.data[run.ANCHORS]
    assert reached["before_percent"] < reached["after_percent"] <= 100
    assert reached["boxes"] == sum(map(len, dataset.train.objects))
    path = tmp_path / "d.safetensors"
    task.save(path, task.net, {}, None)
    kept = load_detector(path)
    assert kept.net.spec == task.net.spec
    assert kept.net.rpn.anchor_generator.sizes == now
    assert kept.net.spec.context
    with pytest.raises(UsageError, match="is a detector, whose weights are for its own anchors"):
        run.prepare(replace(recipe, init=str(path)), dataset)
    assert run.prepare(replace(recipe, init=str(path), fit_anchors=False), dataset).net.spec == task.net.spec


def test_frozen_parts_keep_their_weights(dataset, init):
    task = run.prepare(DetectionRecipe(init=init, **FAST | {"freeze": 3}), dataset)
    task.train_mode()
    trained = {name for name, parameter in task.net.named_parameters() if parameter.requires_grad}
    body = {name.split(".")[2] for name in trained if name.startswith("backbone.body.")}
    assert body == {"layer3", "layer4"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"jitter": (1.2, 0.8)}, "`jitter` is"),
        ({"color": 2.0}, "`color` is 2.0; it must be from 0 to 1"),
        ({"batch_size": 0}, "`batch_size` is 0"),
        ({"epochs": 1.0, "minutes": 1.0}, "are all lengths"),
    ],
)
def test_impossible_settings_are_refused(changes, message):
    with pytest.raises(UsageError, match=message):
        DetectionRecipe(**changes)


def as_yolo(part: DetectionSamples, folder: Path) -> None:
    """Write pictures and text files with boxes as shares of the sides."""
    for path, objects in zip(part.paths, part.objects, strict=True):
        for name in ("images", "labels"):
            (folder / name / path.parent.name).mkdir(parents=True, exist_ok=True)
        Image.open(path).save(folder / "images" / path.parent.name / path.name)
        lines = [
            f"{label} {(left + right) / 2 / SIDES[0]} {(top + bottom) / 2 / SIDES[1]} "
            f"{(right - left) / SIDES[0]} {(bottom - top) / SIDES[1]}"
            for (left, top, right, bottom), label in zip(objects.boxes.tolist(), objects.labels, strict=True)
        ]
        (folder / "labels" / path.parent.name / f"{path.stem}.txt").write_text("\n".join(lines))


def test_the_verbs(dataset, init, tmp_path, capsys, monkeypatch):
    """Train, stop nothing, evaluate and predict on data in files; resnetkit train --resume knows detectors."""
    monkeypatch.chdir(tmp_path)
    for part in (dataset.train, dataset.val):
        as_yolo(part, tmp_path / "data")
    (tmp_path / "data" / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [red, blue]\n")
    flags = [
        "--init",
        init,
        "--model",
        "resnet18,width=8",
        "--detector",
        "tiny",
        "--size",
        "80",
        "--threads",
        "1",
        "--workers",
        "0",
    ]
    assert (
        main(["detect", "train", "data", "--iterations", "2", "--batch-size", "2", *flags, "--out", "run", "--json"])
        == 0
    )
    trained = json.loads(capsys.readouterr().out)
    assert trained["best"]["images"] == 4
    assert main(["train", "--resume", "run", "--iterations", "3"]) == 0
    assert "validation AP50" in capsys.readouterr().out
    assert main(["detect", "evaluate", "run", "data", "--json"]) == 0
    evaluated = json.loads(capsys.readouterr().out)
    assert {"images", "ap50_percent", "ap_percent", "per_class"} <= set(evaluated)
    assert evaluated["images"] == 4
    pictures = str(tmp_path / "data" / "images" / "val")
    flags = ["--backend", "torch", "--threshold", "0", "--draw", "drawn", "--json"]
    assert main(["detect", "predict", "run", pictures, *flags]) == 0
    predicted = json.loads(capsys.readouterr().out)
    assert len(predicted) == 4
    assert {"label", "index", "score", "box"} == set(predicted[0]["detections"][0])
    assert Image.open(predicted[0]["drawing"]).size == SIDES
    assert main(["detect", "predict", "run", pictures, "none.jpg", "--backend", "torch", "--csv"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "path,label,index,score,left,top,right,bottom,error"
    assert "no such file" in lines[-1]
    assert main(["evaluate", "run", "data"]) == 1
    assert "resnetkit detect" in capsys.readouterr().err


def test_a_classifier_finds_no_boxes(init):
    with pytest.raises(ModelFileError, match="contains a classifier; give a detector"):
        load_detector(init)


def test_what_goes_on_from_a_detector_trains_a_detector(tmp_path):
    folder = RunFolder(tmp_path / "my run")
    folder.create()
    recipe = DetectionRecipe().for_loop()
    write_recipe(folder.recipe, recipe, {"data": "cells", run.DETECTION: {}})
    assert train_on(recipe, folder) == f"resnetkit detect train cells --init '{folder.path}' --model resnet18"
    write_recipe(folder.recipe, recipe, {"data": "cells"})
    assert train_on(recipe, folder).startswith("resnetkit train cells")


@pytest.mark.parametrize(("flags", "model"), [([], "resnet56"), (["--model", "resnet18"], "resnet18")])
def test_the_trunk_is_that_of_the_first_weights(flags, model, monkeypatch):
    given = []

    def start(recipe: DetectionRecipe, *_: object, **__: object) -> None:
        given.append(recipe.model)
        raise UsageError("that is enough")

    monkeypatch.setattr(run, "start", start)
    assert main(["detect", "train", "cells", "--init", "resnet56:cifar10", *flags]) == 2
    assert given == [model]
