"""The ladder: its rungs, what is kept, resumed and repeated to the bit, and the layer-wise rates."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from resnetkit.data.dataset import open_dataset
from resnetkit.data.transforms.preprocess import Preprocess
from resnetkit.errors import TrainingError, UsageError
from resnetkit.evaluation.evaluate import evaluate
from resnetkit.finetune import ladder, lengths, rungs, trust
from resnetkit.finetune.classes import open_changed
from resnetkit.finetune.ladder import resume, start
from resnetkit.finetune.stage import windows
from resnetkit.modelfile import Header, load, save
from resnetkit.models.resnet import build
from resnetkit.train.computing.optim import make_optimizer
from resnetkit.train.loop import InterruptedTrainingError, Training
from resnetkit.train.recipe import RECIPES, Recipe, read_recipe
from resnetkit.train.signals import Signals

SPEC = "resnet18,width=8"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Noisy pictures of three colours, 12 for training and 5 for validation of each; some colours are near others."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 12), ("val", 5)):
        for label, colour in enumerate(((90, 90, 110), (110, 90, 90), (90, 110, 90))):
            folder = tmp_path / "data" / part / "abc"[label]
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = np.clip(rng.normal(colour, 60, (36, 40, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return tmp_path / "data"


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """First weights for pictures of 32 pixels, with ten other classes."""
    torch.manual_seed(0)
    net = build(SPEC, classes=10)
    path = tmp_path / "first.safetensors"
    save(path, net, Header(net.spec, Preprocess(size=32, resize=36), tuple("0123456789")))
    return path


@pytest.fixture
def recipe(weights: Path) -> Recipe:
    return RECIPES["folder"].replace(model=SPEC, init=str(weights), workers=0)


def test_alike_pictures_stay_in_one_part_and_contradictions_are_named(
    data: Path, recipe: Recipe, tmp_path: Path
) -> None:
    photos = data / "train"  # class folders: val is drawn
    for path in sorted(photos.rglob("*.png")):
        (path.parent / f"copy of {path.name}").write_bytes(path.read_bytes())
    (photos / "b" / "stray.png").write_bytes((photos / "a" / "0.png").read_bytes())
    run = start(recipe.replace(rung="all", iterations=1), photos, out=tmp_path / "run", quiet=True).run
    assert "contradiction: 1 group of same or alike pictures" in (run / "log.txt").read_text()

    assert "contradiction" not in (run / "all" / "log.txt").read_text(), "they are looked at once"
    _, about = read_recipe(run / "recipe.yaml", Recipe())
    again = open_changed(recipe, about, ())
    assert again.train is not None
    assert again.val is not None
    assert again.val.fingerprint() == about["validation_fingerprint"]
    of_train, of_val = ({path.read_bytes() for path in part.paths or ()} for part in (again.train, again.val))
    assert of_val
    assert not of_train & of_val
    (run / "report.html").unlink()
    assert resume(run, quiet=True).best["images"] == len(again.val)


@pytest.fixture
def whole_ladder(monkeypatch: pytest.MonkeyPatch) -> None:
    """The third rung follows also where it is not likely to help."""
    monkeypatch.setattr(ladder, "why_no_whole", lambda *given, **more: None)


@pytest.mark.usefixtures("whole_ladder")
def test_the_ladder_keeps_the_best_rung(data: Path, recipe: Recipe, tmp_path: Path) -> None:
    result = start(recipe, data, out=tmp_path / "run", quiet=True)
    assert [row["rung"] for row in result.rungs] == ["head", "stage", "all"]
    assert result.rungs[0]["kept"]
    errors = [row["top1_error_percent"] for row in result.rungs]
    for place, row in enumerate(result.rungs[1:], 1):
        assert row["kept"] == (errors[place] < min(errors[:place]))
    model = load(result.model)
    assert model.header.classes == ("a", "b", "c")
    assert model.header.metrics["error_percent"] == result.best["error_percent"] == min(errors)
    assert model.header.metrics["rung"] == result.rungs[errors.index(min(errors))]["rung"]
    # One number: the evaluation of the model file gives the error that training states.
    assert evaluate(result.model, data, split="val").top1_error_percent == min(errors)
    assert load(tmp_path / "run" / "last.safetensors").header.metrics["error_percent"] == errors[-1]
    there = {path.name for path in (tmp_path / "run").iterdir()}
    assert there >= {"best.safetensors", "recipe.yaml", "metrics.jsonl", "curves.png", "report.html", "log.txt"}
    report = (tmp_path / "run" / "report.html").read_text()
    for heading in (trust.LEAKS, trust.SHORTCUTS, trust.LABELS, trust.MORE):
        assert f"<h2>{heading}</h2>" in report
    assert "of 51 may be wrong" in report or "None of 51 labels" in report
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert {row["rung"] for row in rows} == {"head", "stage", "all"}
    assert [row["step"] for row in rows] == sorted(row["step"] for row in rows)
    kept, about = read_recipe(tmp_path / "run" / "recipe.yaml", Recipe())
    assert kept == recipe
    assert about["fingerprint"] == open_dataset(data).train.fingerprint()  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("asked", "done"), [("head", ["head"]), ("stage", ["head", "stage"]), ("all", ["head", "all"])]
)
def test_one_rung_can_be_asked_for_and_is_repeated_to_the_bit(
    data: Path, recipe: Recipe, tmp_path: Path, asked: str, done: list[str]
) -> None:
    recipe = recipe.replace(rung=asked)
    one = start(recipe, data, out=tmp_path / "one", quiet=True)
    start(recipe, data, out=tmp_path / "two", quiet=True)
    assert [row["rung"] for row in one.rungs] == done
    for name in ("best.safetensors", "last.safetensors"):
        first, second = (load(tmp_path / run / name).net.state_dict() for run in ("one", "two"))
        assert all((first[tensor] == second[tensor]).all() for tensor in first)
    changed = {
        tensor.split(".")[0]
        for tensor, value in load(one.run / "last.safetensors").net.state_dict().items()
        if value.is_floating_point()
        and "running" not in tensor
        and (tensor.startswith("fc") or (value != load(recipe.init or "").net.state_dict()[tensor]).any())
    }
    whole = {"conv1", "bn1", "layer1", "layer2", "layer3", "layer4", "fc"}
    assert changed == {"head": {"fc"}, "stage": {"layer4", "fc"}, "all": whole}[asked]


@pytest.mark.slow
@pytest.mark.usefixtures("whole_ladder")
@pytest.mark.parametrize("stopped_in", ["head", "stage", "all"])
def test_a_stopped_run_goes_on_to_the_same_bits(
    data: Path, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped_in: str
) -> None:
    expected = start(recipe, data, out=tmp_path / "whole", quiet=True)
    monkeypatch.setenv("RESNETKIT_CACHE", str(tmp_path / "another-cache"))
    if stopped_in == "head":

        def stop(*given: object, **more: object) -> object:
            raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(rungs, "fit_head", stop)
            with pytest.raises(InterruptedTrainingError, match="--resume"):
                start(recipe, data, out=tmp_path / "run", quiet=True)
    else:
        take_step = Training.take_step
        received: list[Signals] = []

        def note(self: Signals) -> Signals:
            received.append(self)
            return enter(self)

        enter = Signals.__enter__

        def stop_after_two(self: Training, batches: list[object]) -> None:
            take_step(self, batches)
            if self.position.step == 2 and self.run.path.name == stopped_in:
                received[-1].received = 15

        with monkeypatch.context() as patched:
            patched.setattr(Signals, "__enter__", note)
            patched.setattr(Training, "take_step", stop_after_two)
            with pytest.raises(InterruptedTrainingError, match=r"--resume .*run$") as stopped:
                start(recipe, data, out=tmp_path / "run", quiet=True)
            assert stopped.value.exit_code == 128 + 15
    resumed = resume(tmp_path / "run", quiet=True)
    assert [row["top1_error_percent"] for row in resumed.rungs] == [row["top1_error_percent"] for row in expected.rungs]
    for name in ("best.safetensors", "last.safetensors"):
        first, second = (load(tmp_path / run / name).net.state_dict() for run in ("whole", "run"))
        assert all((first[tensor] == second[tensor]).all() for tensor in first)
    again = resume(tmp_path / "run", quiet=True)  # finished: nothing is trained again
    assert again.rungs == resumed.rungs
    (data / "train" / "a" / "0.png").unlink()
    with pytest.raises(TrainingError, match="training pictures"):
        resume(tmp_path / "run", quiet=True)


def test_a_finished_run_gets_another_length_and_goes_on_to_the_same_bits(
    data: Path, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = start(recipe.replace(rung="all", iterations=2), data, out=tmp_path / "one", quiet=True)
    shutil.copytree(first.run, tmp_path / "two")
    before = {name: (first.run / name).read_bytes() for name in ("recipe.yaml", "ladder.json")}
    with pytest.raises(UsageError, match="give a greater length"):
        resume(first.run, iterations=1, quiet=True)
    assert before == {name: (first.run / name).read_bytes() for name in before}
    longer = resume(first.run, iterations=6, quiet=True)
    assert [row["rung"] for row in longer.rungs] == ["head", "all"]
    kept = load(longer.model).header.metrics
    assert kept["error_percent"] == longer.best["error_percent"]
    assert longer.rungs[1]["kept"] == (kept["rung"] == "all")
    assert longer.rungs[1]["top1_error_percent"] <= first.rungs[1]["top1_error_percent"]
    rows = [json.loads(line) for line in (first.run / "all" / "metrics.jsonl").read_text().splitlines()]
    assert max(row["step"] for row in rows) == 6
    recorded = load(first.run / "all" / "last.safetensors").header.recipe
    assert recorded["iterations"] == 6
    assert recorded["earlier_lengths"] == [{"iterations": 2, "until_step": 2}]

    take_step = Training.take_step

    def stop_after_four(self: Training, batches: list[object]) -> None:
        take_step(self, batches)
        if self.position.step == 4:
            self.save()
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Training, "take_step", stop_after_four)
        with pytest.raises(InterruptedTrainingError):
            resume(tmp_path / "two", data, iterations=6, quiet=True)
    resumed = resume(tmp_path / "two", quiet=True)
    assert resumed.best == longer.best
    for name in ("best.safetensors", "last.safetensors"):
        one, two = (load(tmp_path / run / name).net.state_dict() for run in ("one", "two"))
        assert all((one[tensor] == two[tensor]).all() for tensor in one)


@pytest.mark.parametrize("plain", [False, True])
def test_the_third_rung_of_many_pictures_begins_with_a_new_head(
    data: Path, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plain: bool
) -> None:
    monkeypatch.setattr(lengths, "PLAIN_FROM", 1 if plain else 10**9)
    monkeypatch.setattr(lengths, "LEAST_FOR_CROPS", 8)
    run = start(recipe.replace(rung="all"), data, out=tmp_path / "run", quiet=True).run
    whole, _ = read_recipe(run / "all" / "recipe.yaml", Recipe())
    assert whole.keep_statistics != plain
    assert whole.early_scale == (0.57 if plain else 0.75)
    assert whole.lr == pytest.approx((0.01 if plain else 0.005) * whole.batch_size / 16)
    assert whole.epochs == (4 if plain else 20)
    assert whole.layer_decay == (1.0 if plain else 0.7)
    assert whole.gradient_clip == (0.0 if plain else 1.0)
    assert whole.init == (recipe.init if plain else str(run / "best.safetensors"))


def test_a_short_third_rung_from_a_model_of_the_same_classes_is_not_called_too_short(
    data: Path, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lengths, "PLAIN_FROM", 1)
    short = recipe.replace(rung="all", epochs=1)
    first = start(short, data, out=tmp_path / "first", quiet=True)
    start(short.replace(init=str(first.model)), data, out=tmp_path / "again", quiet=True)
    logs = [(tmp_path / run / "all" / "log.txt").read_text() for run in ("first", "again")]
    assert ["too short" in log for log in logs] == [True, False]


def test_a_run_that_was_to_take_no_third_rung_gets_no_length(data: Path, recipe: Recipe, tmp_path: Path) -> None:
    run = start(recipe.replace(rung="head"), data, out=tmp_path / "run", quiet=True).run
    with pytest.raises(UsageError, match=r"the rung head, which has no length.*--rung all"):
        resume(run, epochs=5, quiet=True)
    little = start(recipe.replace(minutes=0.001), data, out=tmp_path / "little", quiet=True)
    assert [row["rung"] for row in little.rungs] == ["head"]
    more = resume(little.run, iterations=2, quiet=True)
    assert [row["rung"] for row in more.rungs][-1] == "all"
    assert load(little.run / "last.safetensors").header.recipe["iterations"] == 2


def test_without_validation_pictures_the_head_is_chosen_on_folds(data: Path, recipe: Recipe, tmp_path: Path) -> None:
    recipe = recipe.replace(val_fraction=0.0, rung="head")
    result = start(recipe, data / "train", out=tmp_path / "run", quiet=True)
    assert result.rungs[0]["top1_error_percent"] is None
    assert result.rungs[0]["kept"]
    assert evaluate(result.model, data / "train", split="all").top1_error_percent < 40  # chance is 67 %


def test_frozen_parts_leave_fewer_rungs(data: Path, recipe: Recipe, tmp_path: Path) -> None:
    assert [r["rung"] for r in start(recipe.replace(freeze=5), data, out=tmp_path / "a", quiet=True).rungs] == ["head"]
    with pytest.raises(UsageError, match="`freeze` 4 leaves nothing for `rung` all"):
        start(recipe.replace(freeze=4, rung="all"), data, out=tmp_path / "b", quiet=True)


def test_a_small_disk_leaves_the_stage_out(
    data: Path, recipe: Recipe, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    result = start(recipe.replace(cache_gb=1e-5, rung="stage"), data, out=tmp_path / "run", quiet=True)
    assert [row["rung"] for row in result.rungs] == ["head"]
    assert "`cache_gb`" in (tmp_path / "run" / "log.txt").read_text()


def test_a_rung_that_will_not_help_is_left_out_and_a_line_says_so(
    data: Path, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ladder, "why_no_whole", lambda *given, **more: "no rung all: it would not help")
    monkeypatch.setattr(rungs, "epochs", lambda pictures: 1)
    result = start(recipe, data, out=tmp_path / "run", quiet=True)
    assert [row["rung"] for row in result.rungs] == ["head", "stage"]
    assert "no rung all: it would not help" in (tmp_path / "run" / "log.txt").read_text()
    assert "too short" not in (tmp_path / "run" / "stage" / "log.txt").read_text(), "the head is fitted already"
    asked = start(recipe.replace(rung="all"), data, out=tmp_path / "asked", quiet=True)
    assert [row["rung"] for row in asked.rungs] == ["head", "all"]


def test_windows_of_maps_are_parts_of_them() -> None:
    maps = np.arange(6 * 2 * 14 * 14, dtype=np.float16).reshape(6, 2, 14, 14) % 2048
    sides, places = set(), set()
    for seed in range(200):
        some = windows(maps, np.random.default_rng(seed))
        side = some.shape[-1]
        assert some.shape == (6, 2, side, side)
        sides.add(side)
        for window, whole in zip(some, maps, strict=True):
            found = [
                (top, left)
                for top in range(15 - side)
                for left in range(15 - side)
                if (whole[:, top : top + side, left : left + side] == window).all()
            ]
            places |= set(found)
            assert found
    assert sides == {11, 12, 13, 14}
    assert places >= {(top, left) for top in range(3) for left in range(3)}
    assert (windows(maps, np.random.default_rng(3)) == windows(maps, np.random.default_rng(3))).all()
    assert windows(maps[:, :, :1, :1], np.random.default_rng(0)).shape == (6, 2, 1, 1)


@pytest.mark.parametrize("rung", ["stage", "all"])
def test_rungs_keep_the_statistics_of_batch_norm(data: Path, recipe: Recipe, tmp_path: Path, rung: str) -> None:
    start(recipe.replace(rung=rung), data, out=tmp_path / "run", quiet=True)
    first = load(recipe.init or "").net.state_dict()
    trained = load(tmp_path / "run" / "last.safetensors").net.state_dict()
    changed = {name.split(".")[-1] for name in first if name[:2] != "fc" and (first[name] != trained[name]).any()}
    assert changed == {"weight", "bias"}


def test_little_time_still_gives_a_head(data: Path, recipe: Recipe, tmp_path: Path) -> None:
    result = start(recipe.replace(minutes=0.001), data, out=tmp_path / "run", quiet=True)
    assert [row["rung"] for row in result.rungs] == ["head"]


def test_without_weights_it_says_what_it_does(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, remark = ladder.with_first_weights(RECIPES["folder"])
    assert found == RECIPES["folder"]  # the tests have no network
    assert "from random weights, because resnet18:IMAGENET1K_V1 can't be had" in remark
    with pytest.raises(UsageError, match="`rung` needs first weights"):
        ladder.with_first_weights(RECIPES["folder"], forced=True)
    assert "nobody" in ladder.with_first_weights(RECIPES["folder"].replace(model=SPEC))[1]
    monkeypatch.setattr(ladder, "load", lambda init: None)
    assert ladder.with_first_weights(RECIPES["folder"])[0].init == "resnet18:IMAGENET1K_V1"


def test_rates_fall_from_part_to_part() -> None:
    net = build(SPEC, classes=3)
    groups = make_optimizer(net, Recipe(model=SPEC, layer_decay=0.5)).param_groups
    scale = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    assert len(scale) == len(list(net.parameters()))
    assert scale[id(net.fc.weight)] == 1
    assert scale[id(net.layer4[0].conv1.weight)] == 0.5
    assert scale[id(net.conv1.weight)] == 0.5**5
    assert {group["weight_decay"] for group in groups} == {0.0, 5e-4}
    assert all("lr_scale" not in group for group in make_optimizer(net, Recipe(model=SPEC)).param_groups)


def test_a_head_far_ahead_of_regressions_leaves_the_stage_out_also_after_a_stop(
    data: Path, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit_head = rungs.fit_head
    monkeypatch.setattr(rungs, "fit_head", lambda *given, **more: fit_head(*given, **more)._replace(behind=1000))
    result = start(recipe, data, out=tmp_path / "run", quiet=True)
    assert [row["rung"] for row in result.rungs][:1] == ["head"]
    assert "stage" not in [row["rung"] for row in result.rungs]
    assert "no rung stage: the head's discriminants get" in (tmp_path / "run" / "log.txt").read_text()
    assert json.loads((tmp_path / "run" / "ladder.json").read_text())["behind"] == 1000
