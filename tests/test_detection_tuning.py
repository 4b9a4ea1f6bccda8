"""Detectors in other precisions: what is lost is measured, and the fastest choice that keeps the precision is used."""

import json
from pathlib import Path

import numpy as np
import pytest

import detections
from resnetkit.cli import main
from resnetkit.data.detection.samples import DetectionDataset, DetectionSamples, Objects
from resnetkit.data.detection.writing import write_detection
from resnetkit.detect.files import save_detector
from resnetkit.detect.inference.export import check_ap_loss, read_header
from resnetkit.detect.inference.quantizing import PrecisionCheck, measured
from resnetkit.detect.predict import DetectorPredictor
from resnetkit.errors import UsageError
from test_detection_export import noise, tiny


def test_a_precision_passes_if_it_loses_little_average_precision():
    samples, found = detections.scene(0)
    check = PrecisionCheck(samples, measured(found, samples), 0.5)
    same = check.judge(found)
    assert (same.passes, same.ap50_loss, same.images) == (True, 0.0, len(samples))
    fewer = [one.subset(one.scores > np.median(one.scores)) for one in found if len(one)] + [
        one for one in found if not len(one)
    ]
    lost = check.judge([*fewer[: len(found)]])
    assert not lost.passes
    assert lost.ap50_percent == pytest.approx(check.reference.ap50_percent - lost.ap50_loss)
    assert f"AP50 {lost.ap50_percent:.2f} % ({-lost.ap50_loss:+.2f})" in str(lost)
    assert PrecisionCheck(samples, check.reference, 100).judge(fewer[: len(found)]).passes
    with pytest.raises(UsageError, match="`max_ap_loss` is -1"):
        check_ap_loss(-1)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A detector, and pictures whose objects are what it finds in them."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("tuned")
    model = tiny()
    save_detector(folder / "pets.safetensors", model.net, model.header)
    predictor = DetectorPredictor(model)
    parts: dict[str, DetectionSamples] = {}
    for part, count in (("train", 6), ("val", 5)):
        (folder / part).mkdir()
        paths, objects = [], []
        for number in range(count):
            shape = (64, 96) if number % 2 else (96, 64)
            pixels = np.roll(noise(shape), 7 * number + len(part), axis=0)
            paths.append(folder / part / f"{number}.png")
            Image.fromarray(pixels).save(paths[-1])
            found = predictor.compute(pixels)
            objects.append(Objects(found.boxes[:4], found.labels[:4]))
        sizes = tuple((96, 64) if number % 2 else (64, 96) for number in range(count))
        parts[part] = DetectionSamples(predictor.classes, tuple(paths), sizes, tuple(objects))
    dataset = DetectionDataset("pets", predictor.classes, parts["train"], parts["val"], None)
    write_detection(dataset, folder / "data", "yolo")
    return folder / "pets.safetensors", folder / "data"


@pytest.mark.long
def test_int8_is_exported_if_it_keeps_the_precision(tuned, capsys):
    model, data = tuned
    target = model.with_name("int8.xml")
    flags = ["--to", "openvino", "--int8", "--calibrate", str(data), "--out", str(target)]
    assert main(["export", str(model), *flags, "--max-ap-loss", "0"]) == 1
    assert "was not kept: in 8-bit integers" in capsys.readouterr().err
    assert not target.exists()
    assert main(["export", str(model), *flags, "--max-ap-loss", "100", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["int8"]
    assert told["images"] == 5
    assert told["layers"] > 10
    header = read_header(target)
    assert header.detector["int8"]["ap50_percent"] == told["ap50_percent"]
    predictor = DetectorPredictor(target)
    assert 0 < len(predictor.compute(noise((64, 96)))) <= 20


@pytest.mark.slow
def test_tuning_keeps_a_choice_that_predictions_use(tuned, capsys):
    model, data = tuned
    assert main(["tune", str(model), str(data), "--goal", "latency", "--quick", "--max-ap-loss", "100", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert set(document["goals"]) == {"latency"}
    assert document["accuracy"]["float32"]["ap50_loss"] == 0
    assert document["accuracy"]["int8"]["passes"]
    kinds = {(row["choice"]["backend"], row["choice"]["precision"]) for row in document["table"]}
    assert {("openvino", "float32"), ("openvino", "int8"), ("onnxruntime", "float32"), ("torch", "float32")} <= kinds
    chosen = document["goals"]["latency"]["choice"]
    predictor = DetectorPredictor(model)
    assert (predictor.choice.backend, predictor.choice.precision) == (chosen["backend"], chosen["precision"])
    assert DetectorPredictor(model, backend="openvino", precision="int8").choice.precision == "int8"
