"""Several labels for a picture, from training to predictions; scikit-learn is the oracle of the measures."""

import csv
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn import metrics

import resnetkit as rk
from resnetkit.calibration import Calibration, sigmoid
from resnetkit.cli import main
from resnetkit.data.dataset import open_dataset
from resnetkit.data.samples import Samples
from resnetkit.data.transforms.mixing import Mix
from resnetkit.errors import UsageError
from resnetkit.evaluation.average_precision import average_precision, interval_of, resampled_means
from resnetkit.evaluation.evaluate import evaluate_multilabel
from resnetkit.evaluation.mistakes import worst_labels
from resnetkit.evaluation.multilabel import MultiLabelEvaluation, mean_logits
from resnetkit.evaluation.thresholds import best_threshold, fit_several, fit_temperature, supported_temperature
from resnetkit.finetune import lengths
from resnetkit.finetune.label_heads import fit_head, fit_path
from resnetkit.infer.answers import Answer
from resnetkit.modelfile import MULTILABEL, inspect, load, save
from resnetkit.train.classification import MultiLabel, prepare
from resnetkit.train.loss import LabelLoss, label_weights, prior_logits
from resnetkit.train.recipe import RECIPES
from tags import COLOURS, tag_list

RECIPE = RECIPES["folder"].replace(
    model="resnet20,depths=1-1-1",
    size=32,
    crop="none",
    rung="off",
    epochs=3,
    batch_size=16,
    compile="off",
    precision="float32",
    label_smoothing=0.0,
    workers=0,
)


def scores(seed: int, n: int = 200, classes: int = 4) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Logits that know something of labels with other shares, rounded so that some are equal."""
    rng = np.random.default_rng(seed)
    labels = rng.random((n, classes)) < np.linspace(0.1, 0.6, classes)
    logits = np.round(2 * labels - 1 + 1.5 * rng.normal(size=(n, classes)), 1).astype(np.float32)
    return logits, labels


def evaluation(logits: NDArray[np.float32], labels: NDArray[np.bool_], **others: object) -> MultiLabelEvaluation:
    names = tuple("abcdefgh"[: labels.shape[1]])
    return MultiLabelEvaluation(names, logits, labels, np.arange(len(logits)), **others)  # pyrefly: ignore


# Measures


@pytest.mark.parametrize("seed", range(3))
def test_measures_are_those_of_scikit_learn(seed: int) -> None:
    logits, labels = scores(seed)
    thresholds = (0.3, 0.5, 0.6, 0.7)
    found = evaluation(logits, labels, calibration=Calibration(1.0, 200, thresholds=thresholds))
    areas = [metrics.average_precision_score(labels[:, i], logits[:, i]) for i in range(4)]
    assert found.average_precisions == pytest.approx(areas, abs=1e-12)
    assert found.map_percent == pytest.approx(100 * np.mean(areas), abs=1e-4)
    assert found.error_percent == pytest.approx(100 - 100 * np.mean(areas), abs=1e-4)
    answers = found.probabilities >= np.array(thresholds, np.float32)
    per_class = metrics.precision_recall_fscore_support(labels, answers, average=None, zero_division=0)
    for place, row in enumerate(found.per_class.values()):
        expected = [100 * per_class[column][place] for column in range(3)]
        assert [row[f"{name}_percent"] for name in ("precision", "recall", "f1")] == pytest.approx(expected, abs=1e-4)
        assert row["images"] == per_class[3][place]
    for average, value in (("micro", found.micro_f1_percent), ("macro", found.macro_f1_percent)):
        assert value == pytest.approx(100 * metrics.f1_score(labels, answers, average=average), abs=1e-3)
    assert found.exact_match_percent == pytest.approx(100 * metrics.accuracy_score(labels, answers), abs=1e-4)
    losses = [metrics.log_loss(labels[:, i], sigmoid(logits)[:, i].astype(float)) for i in range(4)]
    assert found.loss == pytest.approx(np.mean(losses), rel=1e-5)


def test_average_precision_at_the_ends() -> None:
    nobody = np.zeros(3, bool)
    assert average_precision(np.arange(3.0), nobody) is None
    assert average_precision(np.arange(3.0), ~nobody) == 1
    assert average_precision(np.zeros(4), np.array([True, False, False, False])) == 0.25
    found = evaluation(np.zeros((3, 2), np.float32), np.array([[True, False]] * 3))
    assert found.map_percent == 100  # the class that no picture has does not count
    assert found.per_class["b"]["ap_percent"] is None
    assert any("no picture has 'b'" in note for note in found.notes)


def test_the_interval_is_that_of_a_plain_bootstrap() -> None:
    logits, labels = scores(7, n=60)
    low, high = interval_of(resampled_means([logits], labels)[0])
    rng = np.random.default_rng(1)
    means = []
    for _ in range(400):
        rows = rng.integers(0, 60, 60)
        areas = [average_precision(logits[rows, i], labels[rows, i]) for i in range(4)]
        means.append(np.mean([area for area in areas if area is not None]))
    assert (low, high) == pytest.approx(tuple(np.quantile(means, (0.025, 0.975))), abs=0.02)
    first, second = resampled_means([logits, logits], labels)
    assert (first == second).all()


def test_merging_is_the_same_as_at_once() -> None:
    logits, labels = scores(3)
    whole = evaluation(logits, labels)
    whole = replace(whole, part="val", of="tags.csv", why="asked for by name", trained_on=3)
    parts = [replace(whole, logits=logits[s], labels=labels[s], indices=np.arange(200)[s], trained_on=n)
             for n, s in enumerate ((slice(1, None, 2), slice(0, None, 2)), 1)]  # fmt: skip
    merged = MultiLabelEvaluation.merge(parts)
    assert merged.to_dict() == whole.to_dict()
    assert (merged.part, merged.of, merged.why) == ("val", "tags.csv", "asked for by name")
    other = MultiLabelEvaluation.merge([parts[0], replace(parts[1], part="test", why="it is there")])
    assert (other.part, other.of, other.why) == ("", "tags.csv", "")
    again = MultiLabelEvaluation.from_state(whole.to_state())
    assert again.to_dict() == whole.to_dict()
    with pytest.raises(UsageError, match="different models"):
        MultiLabelEvaluation.merge([whole, replace(whole, calibration=Calibration(2.0, 9))])


def test_probabilities_of_views_are_averaged() -> None:
    logits = torch.randn(10, 3, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(mean_logits(logits).sigmoid(), logits.sigmoid().mean(0))


# Thresholds and temperature


@pytest.mark.parametrize("seed", range(4))
def test_no_threshold_has_a_higher_f1(seed: int) -> None:
    logits, labels = scores(seed, n=80, classes=1)
    probabilities = sigmoid(logits)[:, 0]
    found = best_threshold(probabilities, labels[:, 0])
    assert found is not None
    best = max(metrics.f1_score(labels[:, 0], probabilities >= cut) for cut in np.unique(probabilities))
    assert metrics.f1_score(labels[:, 0], probabilities >= np.float32(found)) == pytest.approx(best, abs=1e-12)


def test_too_few_pictures_for_a_threshold() -> None:
    labels = np.zeros((40, 2), bool)
    labels[:4, 0] = labels[:20, 1] = True
    found = fit_several(np.where(labels, 2, -2).astype(np.float32), labels)
    assert found is not None
    assert found.undecided == (0,)
    assert found.thresholds[0] == 0.5
    assert Calibration.from_dict(json.loads(json.dumps(found.to_dict()))) == found
    notes = evaluation(np.zeros((40, 2), np.float32), labels, calibration=found).notes
    assert any("the threshold of 'a' is 0.5, because fewer than 5 validation pictures had" in note for note in notes)


def test_the_temperature_is_found() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(4000, 5)) * 2
    labels = rng.random((4000, 5)) < 1 / (1 + np.exp(-logits))
    assert fit_temperature(3 * logits, labels) == pytest.approx(3, rel=0.05)
    assert supported_temperature(3 * logits, labels) == fit_temperature(3 * logits, labels)


def test_a_temperature_without_evidence_is_one() -> None:
    """Chance alone moves the best temperature away from 1; the rule keeps 1 then, most of the time."""
    rng = np.random.default_rng(0)
    kept = 0
    for _ in range(20):
        logits = rng.normal(size=(60, 3)) * 2
        labels = rng.random((60, 3)) < 1 / (1 + np.exp(-logits))
        assert fit_temperature(logits, labels) != 1
        kept += supported_temperature(logits, labels) == 1
    assert kept >= 14


# Training


def test_the_loss_and_its_weights() -> None:
    labels = torch.tensor([[1, 0], [1, 1], [0, 0], [1, 0]])
    logits = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    bce = torch.nn.functional.binary_cross_entropy_with_logits
    torch.testing.assert_close(LabelLoss()(logits, labels), bce(logits, labels.float()))
    with_label, without = label_weights(labels.numpy())
    torch.testing.assert_close(with_label, torch.tensor([4 / 6, 2.0]))
    torch.testing.assert_close(without, torch.tensor([2.0, 4 / 6]))
    factors = torch.where(labels > 0, with_label, without)
    assert factors.mean(dim=0).tolist() == pytest.approx([1, 1])
    torch.testing.assert_close(
        LabelLoss((with_label, without))(logits, labels), bce(logits, labels.float(), weight=factors)
    )
    mixed = LabelLoss()(logits, labels, Mix(0.7))
    soft = 0.7 * labels + 0.3 * labels.roll(1, 0)
    torch.testing.assert_close(mixed, bce(logits, soft))
    torch.testing.assert_close(prior_logits(labels.numpy()), torch.tensor([4 / 2, 2 / 4]).log())


def test_the_last_layer_begins_with_the_shares(tmp_path: Path) -> None:
    dataset = open_dataset(tag_list(tmp_path, count=60))
    task = prepare(RECIPE, dataset)
    assert isinstance(task, MultiLabel)
    assert task.header.kind == MULTILABEL
    assert dataset.train is not None
    torch.testing.assert_close(task.net.fc.bias.detach(), prior_logits(dataset.train.labels))
    assert prepare(RECIPE.replace(balance="weights"), dataset).net.fc.bias.abs().max() == 0
    with pytest.raises(UsageError, match="`balance` sampling needs one label"):
        prepare(RECIPE.replace(balance="sampling"), dataset)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The folder of a run of all of the network, and its list."""
    folder = tmp_path_factory.mktemp("tags")
    path = tag_list(folder, count=120)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RESNETKIT_CACHE", str(folder / "cache"))
        result = rk.train(RECIPE.replace(epochs=6), str(path), out=folder / "run", quiet=True)
    return result.run, path


def test_a_run(trained: tuple[Path, Path]) -> None:
    run, path = trained
    header = inspect(run)
    assert header.multilabel
    assert header.classes == ("blue", "green", "red")
    assert header.calibration is not None
    assert len(header.calibration.thresholds) == 3
    assert header.metrics["error_percent"] < 20
    assert "several for a picture" in repr(header)
    found = evaluate_multilabel(run, str(path), workers=0)
    assert found.part == "val"
    assert found.error_percent == header.metrics["error_percent"]  # one number
    assert found.macro_f1_percent == header.metrics["macro_f1_percent"]
    assert round(found.loss, 6) == header.metrics["loss"]
    page = (run / "report.html").read_text()
    assert "mean average precision" in page
    assert "Confusions" not in page
    rows = [json.loads(row) for row in (run / "metrics.jsonl").read_text().splitlines()]
    assert any("inexact_percent" in row for row in rows if row["part"] == "train")


def test_a_stopped_run_goes_on_to_the_same_bits(trained: tuple[Path, Path], tmp_path: Path) -> None:
    _, path = trained
    recipe = RECIPE.replace(iterations=6, schedule="constant", mixup=0.2)
    whole = rk.train(recipe, str(path), out=tmp_path / "whole", quiet=True)
    part = rk.train(recipe.replace(iterations=3), str(path), out=tmp_path / "part", quiet=True)
    again = rk.resume(part.run, iterations=6, quiet=True)
    for one, other in zip(load(whole.run / "last.safetensors").net.parameters(),
                          load(again.run / "last.safetensors").net.parameters(), strict=True):  # fmt: skip
        assert torch.equal(one, other)


# Heads and the ladder


def test_heads_are_logistic_regressions() -> None:
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(0)
    features = rng.normal(size=(150, 6)).astype(np.float32)
    labels = (features[:, :3] + rng.normal(size=(150, 3)) > 0.4).astype(np.int64)
    (head,) = fit_path(features, labels, penalties=[0.05])
    scaled = (features - features.mean(0)) / features.std(0)
    for place in range(3):
        oracle = LogisticRegression(C=1 / (0.05 * 150), tol=1e-8, max_iter=1000).fit(scaled, labels[:, place])
        np.testing.assert_allclose(head.weight[place] * features.std(0), oracle.coef_[0], atol=2e-3)
    (balanced,) = fit_path(features, labels, penalties=[0.05], balanced=True)
    oracle = LogisticRegression(C=1 / (0.05 * 150), class_weight="balanced", tol=1e-8).fit(scaled, labels[:, 0])
    np.testing.assert_allclose(balanced.weight[0] * features.std(0), oracle.coef_[0], atol=2e-3)
    chosen = fit_head(np.concatenate([features, features]), np.concatenate([labels, labels]), None, views=2)
    assert metrics.average_precision_score(labels, chosen.logits(features)) > 0.75


def test_the_ladder(trained: tuple[Path, Path], tmp_path: Path) -> None:
    """The head, and the last stage, from a network that knows colours; the better one is kept."""
    run, path = trained
    recipe = RECIPE.replace(init=str(run), rung="stage", epochs=2, size=None)
    result = rk.train(recipe, str(path), out=tmp_path / "ladder", quiet=True)
    assert [row["rung"] for row in result.rungs] == ["head", "stage"]
    errors = [row["error_percent"] for row in result.rungs]
    assert result.rungs[1]["kept"] == (errors[1] < errors[0])
    assert result.best["error_percent"] == min(errors)
    assert inspect(tmp_path / "ladder" / "stage").metrics["error_percent"] == pytest.approx(errors[1], abs=0.5)
    header = inspect(result.model)
    assert header.multilabel
    assert header.metrics["error_percent"] <= inspect(run).metrics["error_percent"] + 5
    assert evaluate_multilabel(result.run, str(path), workers=0).error_percent == result.best["error_percent"]
    assert "top1_error_percent" not in result.rungs[0]


@pytest.mark.parametrize("plain", [False, True])
def test_the_third_rung(
    trained: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plain: bool
) -> None:
    run, path = trained
    monkeypatch.setattr(lengths, "PLAIN_FROM", 1 if plain else 10**9)
    recipe = RECIPE.replace(init=str(run), rung="all", epochs=1, size=None)
    result = rk.train(recipe, str(path), out=tmp_path / "ladder", quiet=True)
    assert [row["rung"] for row in result.rungs] == ["head", "all"]
    assert result.best["error_percent"] == min(row["error_percent"] for row in result.rungs)
    whole = inspect(tmp_path / "ladder" / "all")
    assert whole.multilabel
    assert whole.recipe["keep_statistics"] != plain


# Predictions


def test_answers() -> None:
    header = replace_header()
    answer = Answer.of(header)
    logits = np.array([[0.0, 2.0, -1.0], [-9, -9, -9]], np.float32)
    first, second = answer.named(logits, top=None)
    assert [(one.label, round(one.probability, 3)) for one in first] == [("b", 0.731), ("a", 0.5)]
    assert second == []
    assert [one.label for one in answer.named(logits, top=3)[1]] == ["a", "b", "c"]
    np.testing.assert_allclose(answer.probabilities(logits), 1 / (1 + np.exp(-logits / 2)), rtol=1e-6)


def replace_header() -> "rk.modelfile.Header":  # pyrefly: ignore
    from resnetkit.data.transforms.preprocess import Preprocess
    from resnetkit.modelfile import Header
    from resnetkit.models.spec import parse_spec

    calibration = Calibration(2.0, 50, thresholds=(0.4, 0.7, 0.45))
    spec = parse_spec("resnet20,classes=3")
    header = Header(spec, Preprocess(32), ("a", "b", "c"), calibration=calibration, kind=MULTILABEL)
    return Header.from_json(header.to_json(), source="x")


def test_every_way_gives_the_same_labels(trained: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    run, path = trained
    predictor = rk.Predictor(run, backend="torch")
    val = open_dataset(path).val
    assert val is not None
    paths = list(val.paths or ())[:8]
    found = evaluate_multilabel(run, val, workers=0)
    np.testing.assert_allclose(predictor.probabilities(paths), found.probabilities[:8], atol=1e-5)
    named = [{one.label for one in of} for of in predictor(paths)]
    classes = predictor.classes
    assert named == [{classes[i] for i in np.flatnonzero(row)} for row in found.answers[:8]]
    assert main(["predict", str(run), *map(str, paths), "--json", "--backend", "torch"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert [{one["label"] for one in of["predictions"]} for of in printed] == named
    assert main(["predict", str(run), *map(str, paths), "--csv", "--backend", "torch"]) == 0
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert {row["path"] for row in rows} == set(map(str, paths))
    empty = [str(paths[place]) for place, of in enumerate(named) if not of]
    assert [row["path"] for row in rows if not row["label"]] == empty
    assert main(["predict", str(run), str(paths[0]), "--top", "3", "--json", "--backend", "torch"]) == 0
    assert len(json.loads(capsys.readouterr().out)[0]["predictions"]) == 3


@pytest.mark.parametrize("flag", [["--reject"], ["--sets", "0.9"]])
def test_flags_for_one_class_are_refused(
    trained: tuple[Path, Path], flag: Sequence[str], capsys: pytest.CaptureFixture[str]
) -> None:
    run, path = trained
    assert main(["predict", str(run), str(path.parent / "t000.png"), *flag, "--backend", "torch"]) == 2
    assert "a picture that is none of the classes of this one gets no label" in capsys.readouterr().err


@pytest.mark.slow
def test_an_exported_file_gives_sigmoids(trained: tuple[Path, Path], tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    import onnxruntime

    run, path = trained
    file = rk.export(run, tmp_path / "model.onnx", to="onnx", with_preprocess=True).path
    predictor = rk.Predictor(run, backend="torch")
    pictures = [path.parent / f"t{number:03d}.png" for number in range(3)]
    pixels = np.stack([one for one in map(predictor.decode, pictures) if isinstance(one, np.ndarray)])
    session = onnxruntime.InferenceSession(str(file))
    (values,) = session.run(None, {session.get_inputs()[0].name: pixels})
    np.testing.assert_allclose(values, predictor.probabilities(pictures), atol=1e-5)


@pytest.mark.slow
def test_verify(trained: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    from resnetkit.verification.classifiers import Way

    run, path = trained
    assert main(["verify", str(run), str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["agrees"]
    expected = np.array([[0.3, 0.6], [0.2, 0.2]], np.float32)
    other = expected + np.array([[0.0005, 0], [0.0, 0.0]], np.float32)
    assert Way.of(expected, other, "float32", np.array([0.3, 0.5], np.float32)).agrees
    other = expected - np.array([[0.0, 0.2], [0.0, 0.0]], np.float32)
    assert Way.of(expected, other, "float32", np.array([0.3, 0.5], np.float32)).other_best_class == 1


def test_the_worst_labels_come_first_and_each_picture_once(trained: tuple[Path, Path]) -> None:
    run, path = trained
    model = load(run)
    val = open_dataset(str(path)).train
    assert val is not None
    found = evaluate_multilabel(run, val, workers=0)
    right = np.where(found.labels, 9.0, -9.0).astype(np.float32)
    found = replace(found, logits=right, calibration=None)
    assert list(worst_labels(model, val, found)) == []
    right[2, 1] *= -1  # the surest mistake
    right[5] *= [-0.5, -0.2, 1]  # two in one picture
    shown = list(worst_labels(model, val, replace(found, logits=right)))
    assert [one.place for one in shown] == [val.place(2), val.place(5)]
    fault = "is labelled, and has 0.0 %" if found.labels[2, 1] else "is answered with 100.0 %, and not labelled"
    assert f"<b>green</b> {fault}" in shown[0].said
    assert "<b>blue</b>" in shown[1].said
    assert len(list(worst_labels(model, val, replace(found, logits=-right), most=4))) == 4


# The verbs


def test_evaluate(trained: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, path = trained
    files = ["--report", str(tmp_path / "r.html"), "--csv", str(tmp_path / "r.csv"),
             "--calibrate", str(tmp_path / "c.safetensors")]  # fmt: skip
    model, worse = load(run), tmp_path / "worse.safetensors"
    with torch.no_grad():
        model.net.fc.weight.copy_(torch.randn(model.net.fc.weight.shape, generator=torch.Generator().manual_seed(0)))
    save(worse, model.net, model.header)
    assert main(["evaluate", str(run), str(path), "--json", "--against", str(worse), *files]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["error_percent"] == pytest.approx(100 - document["map_percent"])
    difference = document["map_percent"] - evaluate_multilabel(worse, str(path), workers=0).map_percent
    assert document["difference"]["map_percent"] == pytest.approx(difference, abs=1e-3)
    low, high = document["difference"]["interval_percent"]
    assert 0 < low < difference < high
    assert document["difference"]["verdict"] == "better"
    assert document["leaking"] == 0
    low, high = document["map_interval_percent"]
    assert low <= document["map_percent"] <= high
    rows = list(csv.DictReader((tmp_path / "r.csv").read_text().splitlines()))
    assert len(rows) == document["images"]
    assert rows[0].keys() >= {"picture", "labels", "answered", "probability of red"}
    assert "Are the probabilities right?" in (tmp_path / "r.html").read_text()
    assert inspect(tmp_path / "c.safetensors").calibration is not None
    assert main(["evaluate", str(run), str(path)]) == 0
    out = capsys.readouterr().out
    assert "mAP " in out
    assert "threshold" in out
    assert main(["evaluate", str(worse), str(path), "--report", str(tmp_path / "worse.html")]) == 0
    page = (tmp_path / "worse.html").read_text()
    assert page.count('<div class="pair">') == page.count("not labelled") + page.count("is labelled, and has") > 0
    capsys.readouterr()
    assert main(["evaluate", str(run), str(path), "--label-errors"]) == 2
    assert "--label-errors judges one label for each picture" in capsys.readouterr().err
    assert main(["evaluate", str(run), str(path), "--views", "ten-crop", "--json"]) == 0
    ten = json.loads(capsys.readouterr().out)
    assert ten["images"] == document["images"]
    assert ten["loss"] != document["loss"]
    with pytest.raises(UsageError, match="use `evaluate_multilabel`"):
        rk.evaluate(run, str(path))


def test_one_label_each_can_be_measured_too(trained: tuple[Path, Path], cifar_subset: tuple[Samples, Samples]) -> None:
    run, path = trained
    dataset = open_dataset(path)
    assert dataset.val is not None
    single = np.flatnonzero(dataset.val.labels.sum(axis=1) == 1)
    ones = replace(dataset.val.subset(single), labels=dataset.val.labels[single].argmax(axis=1))
    assert not ones.several
    found = evaluate_multilabel(run, ones, workers=0)
    assert (found.labels == (dataset.val.labels[single] > 0)).all()


def test_a_list_in_which_no_picture_has_two_labels(trained: tuple[Path, Path], tmp_path: Path) -> None:
    """The model says that pictures may have none."""
    run, path = trained
    rows = [row for row in path.read_text().splitlines()[1:] if "|" not in row]
    assert any(row.endswith(",") for row in rows)
    few = path.with_name("few.csv")
    few.write_text("\n".join(["path,tags", *rows]) + "\n")
    found = evaluate_multilabel(run, str(few), split="all", workers=0)
    assert found.images == len(rows)
    assert found.labels.sum() == sum(not row.endswith(",") for row in rows)


def test_what_needs_one_label_is_refused_in_words(
    trained: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, path = trained
    cases = {
        ("classes", str(run), "--merge", "red", "blue"): "classes of such a run can only be renamed",
        ("data", "next", str(run), str(path.parent)): "data next chooses by one class",
        ("train", str(path), "--balance", "sampling"): "--balance has no effect here: pictures have several labels",
        ("train", str(path), "--label-smoothing", "0.1"): "--label-smoothing has no effect here",
        ("train", str(path), "--corrections", str(path)): "--corrections relabels pictures with one label each",
    }
    for argv, message in cases.items():
        assert main([*argv]) == 2, argv
        assert message in capsys.readouterr().err, argv
    assert main(["classes", str(run), "--rename", "red=rot", "--out", str(tmp_path / "renamed")]) == 0
    renamed = inspect(tmp_path / "renamed")
    assert renamed.classes == ("blue", "green", "rot")
    assert renamed.calibration == inspect(run).calibration


def test_check_and_samples(trained: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, path = trained
    assert main(["data", "check", str(path), "--page", str(tmp_path / "check.html")]) == 0
    out = capsys.readouterr().out
    assert "label " in out
    assert "no label" in out
    assert "together in " in out
    assert "Labels that come together" in (tmp_path / "check.html").read_text()
    assert main(["data", "samples", str(path), str(tmp_path / "some")]) == 0
    assert main(["data", "samples", str(path), str(tmp_path / "seen"), "--augmented", "--size", "32"]) == 0
    assert any(any(name in file.name for name in COLOURS) for file in (tmp_path / "seen").iterdir())


@pytest.mark.slow
def test_seeds_and_folds(trained: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, path = trained
    for kind in ("--folds", "--seeds"):
        argv = ["train", str(path), kind, "2", "--model", "resnet20,depths=1-1-1", "--size", "32", "--crop", "none",
                "--rung", "off", "--iterations", "1", "--compile", "off", "--workers", "0", "--json",
                "--out", str(tmp_path / kind)]  # fmt: skip
        assert main(argv) == 0
        document = json.loads(capsys.readouterr().out)
        assert document["error_percent"]["mean"] > 0
        assert document["out_of_fold_error_percent"] is None
