"""Temperature, thresholds and label sets: fitted, kept in a model file, and the same in every way to predict."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from resnetkit.calibration import MOST_RANKS, Calibration, label_sets, ranks, rejects, scaled
from resnetkit.data.samples import Samples
from resnetkit.data.transforms.preprocess import Preprocess
from resnetkit.errors import ModelFileError, UsageError
from resnetkit.evaluation.calibration import (
    DOUBT,
    HOTTEST,
    LEAST_PICTURES,
    LogitSample,
    Reliability,
    fit,
    fit_temperature,
    supported_temperature,
)
from resnetkit.evaluation.evaluate import evaluate
from resnetkit.infer.predictor import Predictor
from resnetkit.modelfile import Header, Model, load, save
from resnetkit.models.resnet import build

DRAWN = np.random.default_rng(1)


def overconfident(count: int, classes: int = 5, *, factor: float = 2.5) -> tuple[np.ndarray, np.ndarray]:
    """Logits that are `factor` times as large as those of the true probabilities, and labels drawn by the latter."""
    truth = DRAWN.normal(0, 2, (count, classes))
    shares = np.exp(log_softmax(truth, axis=1)).cumsum(axis=1)
    labels = (DRAWN.random(count)[:, None] > shares).sum(axis=1).clip(max=classes - 1)
    return (factor * truth).astype(np.float32), labels


def test_the_temperature_is_the_factor_by_which_logits_are_too_large() -> None:
    logits, labels = overconfident(20_000)
    assert fit_temperature(logits, labels) == pytest.approx(2.5, rel=0.03)


@pytest.mark.parametrize(("count", "classes"), [(40, 2), (300, 3), (1000, 40)])
def test_the_temperature_has_the_lowest_cross_entropy(count: int, classes: int) -> None:
    logits, labels = overconfident(count, classes)
    rest = DOUBT / (count + 2)
    targets = np.full((count, classes), rest / (classes - 1))
    targets[np.arange(count), labels] = 1 - rest

    def cross_entropy(log_temperature: float) -> float:
        scaled = log_softmax(logits.astype(np.float64) / np.exp(log_temperature), axis=1)
        return -(targets * scaled).sum(axis=1).mean()

    best = minimize_scalar(cross_entropy, bounds=(-3, 3), options={"xatol": 1e-9})
    assert fit_temperature(logits, labels) == pytest.approx(np.exp(best.x), rel=1e-5)


def test_a_validation_without_an_error_does_not_end_in_certainty() -> None:
    labels = np.arange(100) % 4
    logits = np.eye(4, dtype=np.float32)[labels] * 30
    found = fit(logits, labels)
    assert found is not None
    sure = torch.from_numpy(scaled(logits, found)).softmax(1).amax(1).mean()
    assert float(sure) == pytest.approx(1 - DOUBT / 102, abs=1e-5), "the mean of the targets"


def test_a_temperature_needs_evidence() -> None:
    """Calibrated logits keep 1 in most validations, wrong ones are scaled, and new pictures are told better."""
    chosen, losses = {1.0: [], 2.5: []}, {1.0: [], 2.5: []}
    for factor in chosen:
        for _ in range(60):
            logits, labels = overconfident(1150, factor=factor)
            found = supported_temperature(logits[:150], labels[:150])
            chosen[factor].append(found)
            always = fit_temperature(logits[:150], labels[:150])
            new = [
                -log_softmax(logits[150:] / t, axis=1)[np.arange(1000), labels[150:]].mean() for t in (found, always)
            ]
            losses[factor].append(new[0] - new[1])
    assert np.mean(np.array(chosen[1.0]) == 1) > 0.75
    assert np.mean(np.array(chosen[2.5]) == 1) == 0
    assert np.mean(losses[1.0]) < 0
    assert np.mean(losses[2.5]) == 0


def test_logits_without_information_are_as_hot_as_allowed() -> None:
    logits = DRAWN.normal(0, 9, (500, 3)).astype(np.float32)
    assert fit_temperature(logits, np.arange(500) % 3) == pytest.approx(HOTTEST, rel=0.2)


def test_too_few_pictures_and_broken_logits_are_not_fitted() -> None:
    logits, labels = overconfident(LEAST_PICTURES)
    assert fit(logits, labels) is not None
    assert fit(logits[1:], labels[1:]) is None
    logits[3, 1] = np.nan
    assert fit(logits, labels) is None


def test_ranks_of_many_scores_keep_their_promise() -> None:
    scores = DRAWN.permutation(np.arange(1, 3501)).astype(float)
    kept = ranks(scores, up=True)
    assert (len(kept), kept[0], kept[-1]) == (MOST_RANKS, 4, 3500)
    of_many = Calibration(1.0, 3500, kept, kept)
    for share in (0.002, 0.0123, 0.05, 0.31, 0.9, 0.999):
        rank = int(share * 3501)
        assert rank - 4 < of_many.threshold(share) <= rank, "no more are rejected, and hardly fewer"
        assert rank + 1 <= of_many.most_strange(share) < rank + 5, "sets are no smaller, and hardly larger"


def test_known_cases_of_thresholds_and_sets() -> None:
    """19 scores are the fewest for 5 %, and 9 for a coverage of 90 %: (n + 1) times the share is a whole number."""
    nine, nineteen = (tuple(np.arange(1, n + 1) / 20) for n in (9, 19))
    assert Calibration(1, 19, nineteen, nineteen).threshold(0.05) == 0.05
    assert Calibration(1, 9, nine, nine).threshold(0.05) == 0
    assert Calibration(1, 19, nineteen, nineteen).most_strange(0.95) == 0.95
    assert Calibration(1, 9, nine, nine).most_strange(0.9) == 0.45
    assert Calibration(1, 9, nine, nine).most_strange(0.95) == 1.0, "sets of all classes"
    probabilities = np.array([[0.6, 0.3, 0.1], [0.34, 0.33, 0.33], [0.54, 0.46, 0.0]], np.float32)
    sets = label_sets(probabilities, Calibration(1, 9, nine, nine), 0.9)
    assert sets.tolist() == [[True, False, False]] * 3, "classes of 55 % or more, and always the most probable one"
    wide = label_sets(probabilities, Calibration(1, 19, nineteen, nineteen), 0.65)  # classes of 35 % or more
    assert wide.tolist() == [[True, False, False], [True, False, False], [True, True, False]]


def test_new_pictures_are_covered_and_rejected_as_promised() -> None:
    """Means over 200 validations of 99 pictures, each with 1,000 new ones."""
    covered, rejected = [], []
    for _ in range(200):
        logits, labels = overconfident(1099)
        found = fit(logits[:99], labels[:99])
        assert found is not None
        probabilities = torch.from_numpy(scaled(logits[99:], found)).softmax(1).numpy()
        covered.append(label_sets(probabilities, found, 0.9)[np.arange(1000), labels[99:]].mean())
        rejected.append(rejects(probabilities, found, 0.1).mean())
    assert 0.895 < np.mean(covered) < 0.95
    assert 0.08 < np.mean(rejected) < 0.105


@pytest.mark.parametrize("share", [0.0, 1.0, -1, float("nan")])
def test_shares_that_can_not_be_meant_are_refused(share: float) -> None:
    found = Calibration(1, 1, (1.0,), (1.0,))
    with pytest.raises(UsageError, match=r"`reject_rate` is .*; it must be over 0 and less than 1"):
        found.threshold(share)
    with pytest.raises(UsageError, match=r"`coverage` is .*; it must be over 0 and less than 1"):
        found.most_strange(share)


def test_a_calibration_is_plain_values() -> None:
    found = fit(*overconfident(50))
    assert found is not None
    text = json.dumps(found.to_dict())
    assert Calibration.from_dict(json.loads(text) | {"later": 1}) == found
    for wrong in ({"temperature": 0}, {"temperature": None}, {"temperature": float("inf")}, {"confidences": [2, 1]}):
        with pytest.raises((ValueError, TypeError)):
            Calibration.from_dict(json.loads(text) | wrong)


def test_a_sample_of_logits_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resnetkit.evaluation.calibration.MOST_BYTES", 4 * 5 * 100)
    logits, labels = map(torch.from_numpy, overconfident(250))
    sample = LogitSample(250, 5)
    for at in range(0, 250, 32):
        sample.add(logits[at : at + 32], labels[at : at + 32], torch.arange(at, min(at + 32, 250)))
    assert sample.records(None).indices.tolist() == list(range(0, 250, 3))
    assert sample.fit() == fit(logits[::3].numpy(), labels[::3].numpy())


def test_the_calibration_error_of_known_bins() -> None:
    confidences = np.repeat([0.6, 0.9], 50)
    right = np.concatenate([np.arange(50) < 30, np.arange(50) < 35])
    exact = Reliability.of(confidences.astype(np.float32), right)
    assert exact.ece_percent == pytest.approx(35), "four bins of 25, off by 0.4, 0.4, 0.1 and 0.5"
    assert len(exact.bins) == 4
    assert sum(size for _, _, size in exact.bins) == 100
    one = Reliability.of(np.full(10, 0.9), np.arange(10) < 6)
    assert one.bins == [(pytest.approx(0.9), 0.6, 10)]
    assert one.ece_percent == pytest.approx(30)
    assert Reliability.of(np.zeros(0), np.zeros(0, bool)).ece_percent == 0


def test_the_interval_of_the_calibration_error_contains_the_true_one() -> None:
    """Confidences that are right, and 8 points too high; 100 sets of 400 pictures each."""
    for gap in (0.0, 0.08):
        inside, measured, noise = 0, [], []
        for _ in range(100):
            confidences = DRAWN.uniform(0.6, 1, 400)
            found = Reliability.of(confidences, DRAWN.random(400) < confidences - gap)
            low, high = found.interval_percent
            inside += low <= 100 * gap <= high
            measured.append(found.ece_percent)
            noise.append(found.noise_percent[0])
        assert inside >= 80
        assert gap or np.mean(measured) == pytest.approx(np.mean(noise), rel=0.1), "an error of noise alone"


def test_calibration_without_torch() -> None:
    import subprocess
    import sys

    code = "import sys, resnetkit.calibration; print([n for n in sys.modules if n.startswith('torch')])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


HOT = Calibration(3.0, 100, tuple(np.linspace(0.3, 1, 100)), tuple(np.linspace(0, 0.9, 100)))


@pytest.fixture
def hot(tmp_path: Path, cifar_subset: tuple[Samples, Samples]) -> Path:
    """A model file of ten classes with the temperature 3."""
    torch.manual_seed(0)
    net = build("resnet20", depths=(1, 1, 1)).eval()
    with torch.no_grad():
        net.fc.weight *= 20
    save(
        tmp_path / "hot.safetensors",
        net,
        Header(net.spec, Preprocess(size=32), cifar_subset[1].classes, calibration=HOT),
    )
    return tmp_path / "hot.safetensors"


def test_probabilities_are_the_same_in_every_way(hot: Path, cifar_subset: tuple[Samples, Samples]) -> None:
    model, samples = load(hot), cifar_subset[1].subset(np.arange(20))
    assert samples.images is not None
    assert model.header.calibration == HOT
    predictor = Predictor(hot, backend="torch")
    logits, found = predictor.logits(list(samples.images)), predictor.probabilities(list(samples.images))
    assert np.allclose(found, torch.from_numpy(logits / 3).softmax(1).numpy(), atol=1e-6)
    kept = evaluate(model, samples, records=10).records
    assert kept is not None
    assert np.allclose(np.sort(found)[:, ::-1], kept.probabilities, atol=1e-5)
    assert np.allclose(kept.uncalibrated, torch.from_numpy(logits).softmax(1).amax(1), atol=1e-5)
    best = predictor(samples.images[0], top=1)[0]
    assert best.probability == pytest.approx(float(found[0].max()), abs=1e-6)
    assert predictor.explain(samples.images[0]).probability == pytest.approx(best.probability, abs=1e-5)
    assert predictor.rejected(list(samples.images)).tolist() == (found.max(axis=1) < HOT.threshold(0.05)).tolist()
    sets = predictor.label_sets(list(samples.images), 0.9)
    assert all(
        labels[0] == predictor(image, top=1)[0].label for labels, image in zip(sets, samples.images, strict=True)
    )
    assert any(len(labels) > 1 for labels in sets)


def test_the_loss_stays_that_of_the_network(hot: Path, cifar_subset: tuple[Samples, Samples]) -> None:
    model = load(hot)
    plain = Model(model.net, replace(model.header, calibration=None))
    with_it, without = (evaluate(one, cifar_subset[1], records=1).to_dict() for one in (model, plain))
    assert with_it["loss"] == without["loss"]
    assert with_it["calibration"]["temperature"] == 3.0
    assert without["calibration"]["temperature"] == 1.0
    assert with_it["calibration"]["ece_percent_before"] == without["calibration"]["ece_percent"]
    assert with_it["calibration"]["ece_percent"] != without["calibration"]["ece_percent"]
    assert (with_it["reject"]["threshold"], without["reject"]) == (HOT.threshold(), None)


@pytest.mark.slow
def test_an_exported_file_has_the_temperature(hot: Path, tmp_path: Path, cifar_subset: tuple[Samples, Samples]) -> None:
    pytest.importorskip("onnxruntime")
    import onnxruntime

    from resnetkit.infer.exports.export import export

    file = export(hot, tmp_path / "hot.onnx", to="onnx", with_preprocess=True).path
    pixels = cifar_subset[1].images
    assert pixels is not None
    (found,) = onnxruntime.InferenceSession(file).run(None, {"pixels": pixels[:20]})
    assert np.allclose(found, Predictor(hot, backend="torch").probabilities(list(pixels[:20])), atol=1e-5)


def test_a_model_without_a_validation_has_no_thresholds(run_folder: Path) -> None:
    predictor = Predictor(run_folder, backend="torch")
    with pytest.raises(UsageError, match=r"has no thresholds .* resnetkit evaluate .* --calibrate FILE"):
        next(predictor.predict_paths(["x.png"], reject_rate=0.05))


def test_a_broken_calibration_is_an_error_that_names_the_file(hot: Path) -> None:
    text = load(hot).header.to_json()
    assert Header.from_json(text, source="x").calibration == HOT
    with pytest.raises(ModelFileError, match=r"x has a broken header \(temperature is -3.0\)"):
        Header.from_json(text.replace('"temperature": 3.0', '"temperature": -3.0'), source="x")
