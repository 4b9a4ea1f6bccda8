"""The training loop: golden losses, resume to the bit, and what happens when something goes wrong."""

import json
import os
import platform
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from resnetkit import modelfile, resume, train
from resnetkit.data.dataset import open_dataset
from resnetkit.data.samples import Dataset
from resnetkit.errors import DataError, ResnetkitError, TrainingError, UsageError
from resnetkit.evaluation.evaluate import evaluate
from resnetkit.train import lifecycle, loop
from resnetkit.train import run as runs
from resnetkit.train.checkpoint import Position, load_state, save_state
from resnetkit.train.classification import prepare
from resnetkit.train.divergence import mend
from resnetkit.train.fitting import fit
from resnetkit.train.loop import InterruptedTrainingError, Training, draw
from resnetkit.train.monitor import Monitor, read_metrics
from resnetkit.train.pace import Plan
from resnetkit.train.recipe import RECIPES, Recipe, read_recipe
from resnetkit.train.run_folder import RunFolder

TINY = Recipe(
    model="resnet20,depths=1-1-1",
    epochs=2,
    batch_size=16,
    lr=0.05,
    precision="float32",
    threads=1,
    log_every=1,
    save_every=1e9,
)

# float32, one thread, resnet20 on the subset: the loss of each of the first 20 steps. A refactor must not move them.
# The rate is a fiftieth of the recipe's, where steps are stable: another processor's rounding then stays under 0.6 %.
# Of cifar10's, the first ten are on small crops and the last is on whole pictures.
GOLDEN_PAPER = [
    2.441467,
    2.621808,
    2.582559,
    2.50561,
    2.825978,
    2.316756,
    2.386364,
    2.498963,
    2.444596,
    2.315597,
    2.307524,
    2.305447,
    2.283014,
    2.306012,
    2.31022,
    2.341891,
    2.307443,
    2.272797,
    2.334063,
    2.33408,
]
GOLDEN_CIFAR10 = [
    2.429918,
    2.644131,
    2.569324,
    2.467796,
    2.835853,
    2.235953,
    2.333199,
    2.395339,
    2.363709,
    2.341536,
    2.366043,
    2.204089,
    2.282101,
    2.34932,
    2.350616,
    2.277691,
    2.191351,
    2.293007,
    2.404186,
    2.311614,
]


@pytest.fixture
def dataset(cifar_subset):
    """300 training pictures of CIFAR-10, of which 60 validate, and 120 test pictures."""
    pictures, test = cifar_subset
    order = np.random.default_rng(0).permutation(len(pictures))
    train_part, val = pictures.subset(order[60:]), pictures.subset(order[:60])
    return Dataset("cifar10-subset", test.classes, train_part, val, test, {"rule": "for tests"})


def losses(run: Path) -> list[float]:
    return [row["loss"] for row in read_metrics(run / "metrics.jsonl") if row["part"] == "train"]


@pytest.mark.parametrize("compile_", ["off", "auto"])
@pytest.mark.parametrize(("name", "golden"), [("paper-cifar10", GOLDEN_PAPER), ("cifar10", GOLDEN_CIFAR10)])
def test_golden_losses(name, golden, compile_, dataset, tmp_path):
    row = RECIPES[name]
    recipe = row.replace(
        compile=compile_,
        lr=row.lr / 50,
        muon_lr=row.muon_lr / 50,
        iterations=20,
        batch_size=32,
        precision="float32",
        threads=1,
        log_every=1,
        evaluate_every=99,
    )
    train(recipe, dataset, out=tmp_path / "run", quiet=True)
    found = losses(tmp_path / "run")
    # Muon's orthogonal steps amplify rounding: through the kernels, a processor with AVX-512 is 0.52 % off at step 17.
    # The test below has one rounding for all x86 processors, and the bound for every step.
    widest = name == "cifar10" and compile_ == "auto" and os.environ.get("RESNETKIT_KERNELS") != "avx2"
    steps = 15 if widest else 20
    assert found[:steps] == pytest.approx(golden[:steps], rel=5e-3)
    assert found[:10] == pytest.approx(golden[:10], rel=2e-3)


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="fixes the instructions of x86 processors")
def test_golden_losses_with_the_instructions_that_every_machine_has():
    """All 20 steps through the kernels, with AVX2 in torch, oneDNN and our kernels."""
    avx2 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "RESNETKIT_KERNELS": "avx2"}
    one = f"{__file__}::test_golden_losses[cifar10-golden1-auto]"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", one]
    done = subprocess.run(command, env=os.environ | avx2, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_run_folder_is_complete_and_says_what_it_is(dataset, tmp_path):
    result = train(TINY, dataset, out=tmp_path / "run", quiet=True)
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {
        *("best.safetensors", "last.safetensors", "state.pt", "recipe.yaml", "metrics.jsonl"),
        *("curves.png", "report.html", "log.txt", ".lock"),
    }
    model = modelfile.load(result.model)
    assert model.header.recipe == json.loads(json.dumps(TINY.to_dict()))
    assert model.header.data["fingerprint"] == dataset.train.fingerprint()
    assert model.header.metrics["error_percent"] == result.best["error_percent"]
    assert evaluate(model, dataset.val).top1_error_percent == result.best["error_percent"], "one number"
    vals = [row["error_percent"] for row in read_metrics(tmp_path / "run" / "metrics.jsonl") if row["part"] == "val"]
    assert len(vals) == 2
    assert result.best["error_percent"] == min(vals)
    page = (tmp_path / "run" / "report.html").read_text()
    assert f"{result.best['error_percent']:.2f} %" in page
    assert "data:image/png;base64" in page
    assert (tmp_path / "run" / "curves.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("accumulate", [1, 3])
def test_training_fits_the_pictures(accumulate, dataset, tmp_path):
    recipe = replace(TINY, epochs=12, batch_size=48 // accumulate, accumulate=accumulate, crop="none", log_every=5)
    train(recipe, dataset, out=tmp_path / "run", quiet=True)
    first, *_, last = losses(tmp_path / "run")
    assert last < 0.75 * first


def test_accumulated_batches_make_the_step_of_one_large_batch(dataset, tmp_path):
    """With frozen batch norm, the gradients of two halves add up to the gradient of the whole batch."""
    start = train(replace(TINY, epochs=1), dataset, out=tmp_path / "start", quiet=True).model
    one = TINY.replace(init=str(start), freeze=4, iterations=3, batch_size=32, crop="none", flip=False)
    two = replace(one, batch_size=16, accumulate=2)
    weights = [
        modelfile.load(train(recipe, dataset, out=tmp_path / name, quiet=True).run / "last.safetensors").net.fc.weight
        for name, recipe in (("one", one), ("two", two))
    ]
    assert torch.allclose(weights[0], weights[1], atol=1e-6)
    assert not torch.equal(weights[0], modelfile.load(start).net.fc.weight)


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_frozen_parts_keep_weights_and_statistics(parts, dataset, tmp_path):
    start = modelfile.load(
        train(replace(TINY, epochs=1), dataset, out=tmp_path / "start", quiet=True).run / "last.safetensors"
    )
    recipe = replace(TINY, init=str(tmp_path / "start" / "last.safetensors"), freeze=parts, epochs=1)
    after = modelfile.load(train(recipe, dataset, out=tmp_path / "run", quiet=True).run / "last.safetensors")
    frozen = ["conv1", "bn1", "layer1", "layer2", "layer3"][: parts + 1]
    for name, tensor in start.net.state_dict().items():
        same = torch.equal(tensor, after.net.state_dict()[name])
        assert same == (name.split(".")[0] in frozen), name


@pytest.mark.parametrize("compile_", ["off", "auto"])
def test_frozen_batch_norm_stays_in_training_and_in_the_file(compile_, dataset, tmp_path):
    start = modelfile.load(
        train(replace(TINY, epochs=1), dataset, out=tmp_path / "start", quiet=True).run / "last.safetensors"
    )
    init, model = str(tmp_path / "start" / "last.safetensors"), f"{TINY.model},norm=frozen"
    recipe = replace(TINY, init=init, model=model, epochs=1, compile=compile_)
    after = modelfile.load(train(recipe, dataset, out=tmp_path / "run", quiet=True).run / "last.safetensors")
    assert after.header.spec.norm == "frozen"
    kept = after.net.state_dict()
    norms = [name for name in kept if ".bn" in name or name.startswith("bn")]
    assert len(norms) >= 4 * 7
    for name, tensor in kept.items():
        assert torch.equal(tensor, start.net.state_dict()[name]) == (name in norms or "downsample.1" in name), name


def test_fine_tuning_to_other_classes_makes_the_last_layer_anew(dataset, picture_folder, tmp_path):
    train(replace(TINY, epochs=1), dataset, out=tmp_path / "start", quiet=True)
    recipe = replace(TINY, init=str(tmp_path / "start"), epochs=1, normalize="imagenet", freeze=4)
    model = modelfile.load(train(recipe, str(picture_folder), out=tmp_path / "run", quiet=True).model)
    start = modelfile.load(tmp_path / "start")
    assert model.header.classes == ("cat", "frog", "ship")
    assert model.header.preprocess == start.header.preprocess, "pictures reach the old weights as they always did"
    assert torch.equal(model.net.layer3[0].conv1.weight, start.net.layer3[0].conv1.weight)
    with pytest.raises(UsageError, match="does not contain a resnet20; give `model` resnet20,depths=1-1-1"):
        train(replace(recipe, model="resnet20"), str(picture_folder), out=tmp_path / "other", quiet=True)
    assert not (tmp_path / "other").exists()


def test_fine_tuning_takes_weights_that_are_run_in_another_way(dataset, tmp_path):
    start = modelfile.load(train(replace(TINY, epochs=1), dataset, out=tmp_path / "start", quiet=True).model)
    recipe = replace(TINY, model=f"{TINY.model},norm=frozen,drop_path=0.1", init=str(tmp_path / "start"), epochs=1)
    after = modelfile.load(train(recipe, dataset, out=tmp_path / "run", quiet=True).model)
    assert after.header.spec.norm == "frozen"
    assert torch.equal(after.net.bn1.running_mean, start.net.bn1.running_mean)
    assert not torch.equal(after.net.conv1.weight, start.net.conv1.weight)


def test_moving_average_is_what_is_kept(dataset, tmp_path):
    train(replace(TINY, epochs=1, ema_decay=0.9), dataset, out=tmp_path / "ema", quiet=True)
    train(replace(TINY, epochs=1), dataset, out=tmp_path / "plain", quiet=True)
    state = torch.load(tmp_path / "ema" / "state.pt", weights_only=True)
    ema, plain = (modelfile.load(tmp_path / name / "last.safetensors").net.state_dict() for name in ("ema", "plain"))
    assert torch.equal(state["net"]["fc.weight"], plain["fc.weight"]), "averaging does not change the training"
    assert torch.equal(state["ema"]["module.fc.weight"], ema["fc.weight"])
    assert not torch.equal(ema["fc.weight"], plain["fc.weight"])
    assert not torch.equal(ema["bn1.running_mean"], plain["bn1.running_mean"])
    assert torch.equal(ema["bn1.num_batches_tracked"], plain["bn1.num_batches_tracked"]), "counters are not averaged"


@pytest.mark.parametrize("log_every", [5, 7])
def test_warm_up_ends_with_the_error(log_every, dataset, tmp_path):
    recipe = TINY.replace(iterations=120, warmup_lr=0.01, warmup_error_percent=75.0, schedule="constant", crop="none")
    train(replace(recipe, log_every=log_every), dataset, out=tmp_path / "run", quiet=True)
    rows = [row for row in read_metrics(tmp_path / "run" / "metrics.jsonl") if row["part"] == "train"]
    over = re.search(r"warm-up over at step (\d+)", (tmp_path / "run" / "log.txt").read_text())
    assert over
    assert int(over[1]) in (50, 100), "it is reconsidered every 50 steps, whatever is logged"
    assert all(row["lr"] == (0.01 if row["step"] <= int(over[1]) else 0.05) for row in rows)


def test_without_validation_the_last_model_is_the_best(dataset, tmp_path):
    result = train(replace(TINY, epochs=1), replace(dataset, val=None), out=tmp_path / "run", quiet=True)
    assert result.model.read_bytes() == (tmp_path / "run" / "last.safetensors").read_bytes()
    with pytest.raises(UsageError, match="plateau"):
        train(replace(TINY, schedule="plateau"), replace(dataset, val=None), out=tmp_path / "other", quiet=True)


def test_minutes_end_the_run_with_the_whole_schedule(dataset, tmp_path):
    train(TINY.replace(iterations=1), dataset, out=tmp_path / "first", quiet=True)  # what a process loads once
    train(TINY.replace(minutes=0.1, evaluate_every=1e6), dataset, out=tmp_path / "run", quiet=True)
    rates = [row["lr"] for row in read_metrics(tmp_path / "run" / "metrics.jsonl") if row["part"] == "train"]
    top = rates.index(max(rates))
    assert max(rates) > 0.8 * TINY.lr
    assert rates[:top] == sorted(rates[:top])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert rates[-1] < 0.5 * max(rates)
    state = torch.load(tmp_path / "run" / "state.pt", weights_only=True)["position"]
    assert state["plan"]["knots"][-1] == (state["step"], 1.0)


def test_pictures_are_small_then_cropped_then_whole(dataset, tmp_path, monkeypatch):
    """Of 10 steps, 4 use crops of 24 px, 3 use crops of full size, and 3 use whole pictures."""
    seen = []

    def spied(*given):
        task = prepare(*given)
        return replace(task, forward=lambda images: (seen.append(images.clone()), task.forward(images))[1])

    monkeypatch.setattr(runs, "prepare", spied)
    recipe = TINY.replace(
        iterations=10, early_scale=0.75, early_until=0.4, center_crop_from=0.7, padding_mode="reflect", flip=False
    )
    train(recipe, dataset, out=tmp_path / "run", quiet=True)
    assert [images.shape[-1] for images in seen] == [24] * 4 + [32] * 6
    preprocess = modelfile.load(tmp_path / "run").header.preprocess
    assert preprocess.size == 32
    pictures = {image.tobytes() for image in preprocess.normalize(dataset.train.images)}
    whole = [all(image.tobytes() in pictures for image in images.contiguous().numpy()) for images in seen]
    assert whole == [False] * 7 + [True] * 3


@pytest.mark.parametrize("crop", ["pad", "random-resized"])
def test_threads_and_groups_of_batches_when_crops_change(crop, split_folder):
    """Groups of two batches from files: after the third group, in the middle of an epoch, pictures are larger."""
    dataset = open_dataset(str(split_folder))
    recipe = Recipe(model="resnet20", size=16, batch_size=4, crop=crop, early_scale=0.75, early_until=3 / 8)
    recipe = recipe.replace(iterations=8, normalize="imagenet")

    def drawn(workers: int, first: Position) -> list[tuple[int, int, bytes]]:
        here = replace(first)
        task = prepare(recipe.replace(workers=workers), dataset)
        groups, found = draw(task, here, 2, progress=lambda: here.plan.progress(here.step)), []
        for group in islice(groups, 8 - here.step):
            here.step += 1
            found += [(batch.number, batch.images.shape[-1], batch.images.numpy().tobytes()) for batch in group]
        groups.close()
        return found

    batches = drawn(0, Position(Plan.of_length(8)))
    assert [side for _, side, _ in batches] == [12] * 6 + [16] * 10
    assert drawn(3, Position(Plan.of_length(8))) == batches
    per_epoch = prepare(recipe, dataset).batches_per_epoch
    for step in (2, 3, 5):
        epoch, number = divmod(2 * step, per_epoch)
        assert drawn(2, Position(Plan.of_length(8), step=step, epoch=epoch, next_batch=number)) == batches[2 * step :]


def test_the_clock_knows_of_small_crops(dataset, tmp_path):
    folder = RunFolder(tmp_path)
    for changes, expected in (
        ({}, (0.0, 1.0)),
        ({"early_scale": 0.75}, (0.5, 0.5625)),
        ({"early_scale": 0.75, "center_crop_from": 0.3}, (0.3, 0.5625)),
        ({"early_scale": 0.75, "crop": "none"}, (0.0, 1.0)),
    ):
        recipe = TINY.replace(minutes=3.0, **changes)
        with Monitor(folder, quiet=True) as monitor:
            pace = Training(prepare(recipe, dataset), recipe, folder, monitor, started=time.monotonic()).pace
        assert (pace.early_until, pace.early_cost) == expected


@pytest.mark.parametrize("step", [3, 12, 15, 27])
def test_a_run_goes_on_in_every_part_of_it(step, dataset, tmp_path, interrupt_after):
    """Epochs of 15 steps. Crops have full size after step 12, in mid-epoch, and pictures are whole from step 24 on."""
    recipe = replace(TINY, early_scale=0.75, early_until=0.4, center_crop_from=0.8)
    train(recipe, dataset, out=tmp_path / "whole", quiet=True)
    interrupt_after(step, tmp_path / "run")
    with pytest.raises(InterruptedTrainingError):
        train(recipe, dataset, out=tmp_path / "run", quiet=True)
    resume(tmp_path / "run", dataset, quiet=True)
    assert (tmp_path / "run" / "last.safetensors").read_bytes() == (
        tmp_path / "whole" / "last.safetensors"
    ).read_bytes()
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")


@pytest.mark.parametrize("changes", [{"mixup": 0.4, "balance": "weights"}, {"cutmix": 1.0, "balance": "sampling"}])
def test_a_run_with_every_change_of_pictures_goes_on_to_the_same_bits(changes, dataset, tmp_path, interrupt_after):
    own = {"vertical_flip": True, "rotation": 15.0, "trivial_augment": True, "erase": 0.5, "epochs": 1}
    recipe = replace(TINY, **own, **changes)
    train(recipe, dataset, out=tmp_path / "whole", quiet=True)
    interrupt_after(6, tmp_path / "run")
    with pytest.raises(InterruptedTrainingError):
        train(recipe, dataset, out=tmp_path / "run", quiet=True)
    resume(tmp_path / "run", dataset, quiet=True)
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    assert (tmp_path / "run" / "last.safetensors").read_bytes() == (
        tmp_path / "whole" / "last.safetensors"
    ).read_bytes()


def test_a_run_without_a_better_evaluation_stops_early(dataset, tmp_path, caplog):
    recipe = replace(TINY, epochs=20, lr=1e-9, schedule="constant", evaluate_every=0.2, patience=3)
    result = train(recipe, dataset, out=tmp_path / "run", quiet=True)
    rows = [row for row in read_metrics(tmp_path / "run" / "metrics.jsonl") if row["part"] == "val"]
    errors = [row["error_percent"] for row in rows]
    lowest = errors.index(min(errors))
    assert len(errors) - 1 - lowest == 3
    assert rows[-1]["step"] < 60
    assert "3 evaluations in a row without a lower error" in (tmp_path / "run" / "log.txt").read_text()
    before = result.model.read_bytes()
    again = resume(tmp_path / "run", dataset, quiet=True)
    assert again.best == result.best
    assert again.model.read_bytes() == before
    assert read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]["step"] == rows[-1]["step"]
    assert "`patience` stopped it" in (tmp_path / "run" / "log.txt").read_text()


def test_patience_needs_an_error(dataset, tmp_path):
    with pytest.raises(UsageError, match="`patience` needs a validation error"):
        train(replace(TINY, patience=2), replace(dataset, val=None), out=tmp_path / "run", quiet=True)


@pytest.mark.parametrize("length", [{"epochs": 3.0}, {"minutes": 0.05}])
def test_a_run_whose_batch_follows_from_its_length_goes_on_with_it(length, dataset, tmp_path, interrupt_after):
    row = RECIPES["cifar10"].replace(model=TINY.model, precision="float32", threads=1, log_every=1, save_every=1e9)
    recipe, run = row.replace(**length), tmp_path / "run"
    interrupt_after(3, run)
    with pytest.raises(InterruptedTrainingError):
        train(recipe, dataset, out=run, quiet=True)
    fitted, _ = read_recipe(run / "recipe.yaml", Recipe())
    assert fitted == fit(recipe, work=1.0)
    assert fitted.batch_size < recipe.batch_size
    resume(run, dataset, quiet=True)
    assert read_recipe(run / "recipe.yaml", Recipe())[0] == fitted
    assert load_state(run / "state.pt").header.recipe == fitted.to_dict()
    if "epochs" in length:
        train(recipe, dataset, out=tmp_path / "whole", quiet=True)
        assert (run / "last.safetensors").read_bytes() == (tmp_path / "whole" / "last.safetensors").read_bytes()


def test_a_loss_that_is_not_finite_stops_the_run(dataset, tmp_path):
    start = train(replace(TINY, epochs=1), dataset, out=tmp_path / "good", quiet=True)
    recipe = replace(TINY, lr=1e12, schedule="constant", init=str(start.model), epochs=3)
    with pytest.raises(
        TrainingError, match=r"(loss is|weights are no).* at step \d+, with learning rate 1e\+12. Lower `lr`"
    ):
        train(recipe, dataset, out=tmp_path / "run", quiet=True)
    for path in (tmp_path / "run").glob("*.safetensors"):
        assert all(torch.isfinite(t).all() for t in modelfile.load(path).net.state_dict().values())


@pytest.fixture
def interrupt_after(monkeypatch):
    """Return a function of steps and a run: when the run has logged so many steps, this process is asked to stop."""

    def arrange(steps: int, run: Path) -> None:
        record, asked = Monitor.record, []

        def recording(self: Monitor, row: dict[str, object]) -> None:
            record(self, row)
            if self.run.path == run and row["step"] >= steps and not asked:
                asked.append(row["step"])
                signal.raise_signal(signal.SIGTERM)  # from inside: the run listens now, whatever the machine is doing

        monkeypatch.setattr(Monitor, "record", recording)

    return arrange


@pytest.fixture
def ask_while_validating(monkeypatch):
    """Return a function of signals: after so many evaluations have begun, they are sent once to this process."""

    def arrange(*numbers: int, evaluations: int = 1) -> None:
        doing, begun = Monitor.doing, []

        def watched(self: Monitor, what: str, *given: object) -> Callable[[int], None]:
            advance = doing(self, what, *given)
            begun.append(what)
            if what != "validating" or begun.count(what) != evaluations:
                return advance

            def asking(count: int) -> None:
                advance(count)
                for number in numbers:
                    signal.raise_signal(number)

            return asking

        monkeypatch.setattr(Monitor, "doing", watched)

    return arrange


@pytest.mark.parametrize("evaluations", [1, 2])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_run_is_stopped_in_an_evaluation_and_repeats_it(number, evaluations, dataset, tmp_path, ask_while_validating):
    """The run stops in one of two evaluations, after the first of four batches of validation pictures."""
    recipe = replace(TINY, schedule="plateau", plateau_patience=1)
    train(recipe, dataset, out=tmp_path / "whole", quiet=True)
    ask_while_validating(number, evaluations=evaluations)
    with pytest.raises(
        InterruptedTrainingError, match=f"stopped after step {15 * evaluations} of 30; every"
    ) as stopped:
        train(recipe, dataset, out=tmp_path / "run", quiet=True)
    assert stopped.value.exit_code == 128 + number
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert sum(row["part"] == "val" for row in rows) == evaluations - 1
    resume(tmp_path / "run", dataset, quiet=True)
    for name in ("best.safetensors", "last.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    whole, run = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("whole", "run"))
    timeless = [[{k: v for k, v in row.items() if "second" not in k} for row in rows] for rows in (whole, run)]
    assert timeless[0] == timeless[1]


def test_a_second_ctrl_c_names_the_way_to_go_on(dataset, tmp_path, ask_while_validating):
    ask_while_validating(signal.SIGINT, signal.SIGINT, evaluations=2)
    with pytest.raises(InterruptedTrainingError, match=rf"stopped immediately; .* --resume {tmp_path}/run") as stopped:
        train(TINY, dataset, out=tmp_path / "run", quiet=True)
    assert stopped.value.exit_code == 130
    resume(tmp_path / "run", dataset, quiet=True)
    train(TINY, dataset, out=tmp_path / "whole", quiet=True)
    whole, run = (tmp_path / name / "last.safetensors" for name in ("whole", "run"))
    assert whole.read_bytes() == run.read_bytes()


def test_the_best_model_is_evaluated_once(dataset, tmp_path, monkeypatch):
    """The counts of an evaluation are in the state. It is repeated only for states of earlier versions."""
    evaluated = []
    validate = lifecycle.validate_best
    monkeypatch.setattr(lifecycle, "validate_best", lambda *given: (evaluated.append(1), validate(*given))[1])
    result = train(TINY, dataset, out=tmp_path / "run", quiet=True)
    report = tmp_path / "run" / "report.html"
    page = report.read_text()
    assert f"{result.best['error_percent']:.2f} %" in page
    report.unlink()
    resume(tmp_path / "run", dataset, quiet=True)
    assert report.read_text() == page
    assert not evaluated
    state = torch.load(tmp_path / "run" / "state.pt", weights_only=True)
    del state["best"], state["position"]["evaluation_due"]
    torch.save(state, tmp_path / "run" / "state.pt")
    resume(tmp_path / "run", dataset, quiet=True)
    assert evaluated == [1]
    assert report.read_text() == page


def test_a_state_of_the_first_version_goes_on_to_the_same_bits(dataset, tmp_path, monkeypatch):
    """It called the scores errors, and counted wrong pictures only."""
    recipe = replace(TINY, schedule="plateau", plateau_patience=1, log_every=4)
    train(recipe, dataset, out=tmp_path / "whole", quiet=True)
    take_step = Training.take_step

    def take_18_steps(self, batches):
        take_step(self, batches)
        if self.position.step == 18:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Training, "take_step", take_18_steps)
    with pytest.raises(InterruptedTrainingError):
        train(recipe, dataset, out=tmp_path / "run", quiet=True)
    monkeypatch.setattr(Training, "take_step", take_step)
    path = tmp_path / "run" / "state.pt"
    state = torch.load(path, weights_only=True)
    position = state["position"]
    assert position["scores"], "there was an evaluation"
    assert position["window_counts"]["error"], "steps since the last line are counted"
    position["errors"] = position.pop("scores")
    for part in ("window", "warmup"):
        position[f"{part}_wrong"] = position.pop(f"{part}_counts").get("error", 0)
    torch.save(state | {"version": 1}, path)
    resume(tmp_path / "run", dataset, quiet=True)
    for name in ("best.safetensors", "last.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    run, whole = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("run", "whole"))
    assert [row["error_percent"] for row in run] == [row["error_percent"] for row in whole]


def test_a_model_file_that_is_newer_than_the_state_holds(dataset, tmp_path, interrupt_after):
    """The state after a kill between the two, in a run whose time limit would not lead there again."""
    interrupt_after(3, tmp_path / "run")
    with pytest.raises(InterruptedTrainingError):
        train(TINY, dataset, out=tmp_path / "run", quiet=True)
    older = (tmp_path / "run" / "state.pt").read_bytes()
    finished = resume(tmp_path / "run", dataset, quiet=True)
    (tmp_path / "run" / "state.pt").write_bytes(older)
    with Monitor(RunFolder(tmp_path / "run"), quiet=True) as monitor:
        state = load_state(tmp_path / "run" / "state.pt")
        restored = Training(prepare(TINY, dataset), TINY, monitor.run, monitor, started=0.0)
        restored.restore(state)
    assert state.position.step == 3
    assert restored.position.best == finished.best
    again = resume(tmp_path / "run", dataset, quiet=True)
    assert again.best == finished.best


@pytest.mark.parametrize(("apart", "states"), [(1e9, 2), (0.0, 7)])
def test_evaluations_that_follow_fast_are_not_saved_one_by_one(apart, states, dataset, tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(loop, "SAVE_APART", apart)
    monkeypatch.setattr(loop, "save_state", lambda *given, **parts: (saved.append(1), save_state(*given, **parts)))
    train(replace(TINY, evaluate_every=1 / 3), dataset, out=tmp_path / "run", quiet=True)
    assert len(saved) == states, "at the start, at the end, and after each of six evaluations or none"
    last = modelfile.load(tmp_path / "run" / "last.safetensors").header.metrics
    assert last["step"] == 30


@pytest.mark.slow
@pytest.mark.usefixtures("compiled_once")
def test_a_run_whose_reader_has_gone_saves_its_state(split_folder, tmp_path):
    """The output is closed, as by `resnetkit train ... 2>&1 | head -1`."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1] / "src")}
    flags = ("--model", "resnet20,depths=1-1-1", "--size", "32", "--epochs", "500", "--evaluate-every", "0.1")
    command = [sys.executable, "-m", "resnetkit", "train", str(split_folder), *flags, "--out", str(tmp_path / "run")]
    run = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert any("parameters" in line for line in run.stdout)  # and no line behind it
    run.stdout.close()
    assert run.wait() == 128 + signal.SIGPIPE
    state = torch.load(tmp_path / "run" / "state.pt", weights_only=True)
    assert 0 < state["position"]["step"] < 500


@pytest.mark.parametrize(
    ("changes", "precision", "first", "expected"),
    [
        ({}, "float32", False, "Lower `lr` or clip with `gradient_clip` 1."),
        ({}, "bfloat16", False, "Lower `lr`, clip with `gradient_clip` 1, or give `precision` float32."),
        ({"gradient_clip": 1.0}, "float32", False, "Lower `lr` or clip with `gradient_clip` 0.5."),
        ({"optimizer": "muon"}, "float32", False, "Lower `muon_lr` and `lr` or clip with `gradient_clip` 1."),
        ({"init": "a.safetensors"}, "float32", True, "check the weights in a.safetensors"),
        ({}, "bfloat16", True, "give `precision` float32"),
    ],
)
def test_the_mend_fits_the_case(changes, precision, first, expected):
    said = mend(replace(TINY, **changes), precision, first=first)
    assert expected in said
    assert ("`lr`" in said) == (not first)
    assert ("float32" in said) == (precision == "bfloat16")


@pytest.mark.parametrize("share", [0.05, 0.5, 0.9, 0.999])
def test_a_disk_that_fills_up_loses_nothing(share, dataset, tmp_path, interrupt_after):
    """Writing the state fails at several lengths. Model files are smaller and fail at the first length."""
    train(TINY, dataset, out=tmp_path / "whole", quiet=True)
    run = tmp_path / "run"
    interrupt_after(5, run)
    with pytest.raises(InterruptedTrainingError):
        train(TINY, dataset, out=run, quiet=True)
    saved = {path.name: path.read_bytes() for path in run.iterdir() if path.suffix in (".pt", ".safetensors")}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(share * len(saved["state.pt"])), limits[1]))
    try:
        with pytest.raises(
            TrainingError, match=r"free space or fix the cause, then go on with: resnetkit train --resume"
        ):
            resume(run, dataset, quiet=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (run / "state.pt").read_bytes() == saved["state.pt"]
    assert not list(run.glob(".*.part"))
    resume(run, dataset, quiet=True)
    assert (run / "last.safetensors").read_bytes() == (tmp_path / "whole" / "last.safetensors").read_bytes()


def test_a_run_killed_before_its_first_checkpoint_starts_again(dataset, tmp_path, interrupt_after):
    train(replace(TINY, epochs=1), dataset, out=tmp_path / "whole", quiet=True)
    run = tmp_path / "run"
    interrupt_after(3, run)
    with pytest.raises(InterruptedTrainingError):
        train(replace(TINY, epochs=1), dataset, out=run, quiet=True)
    (run / "state.pt").unlink()
    resume(run, dataset, quiet=True)
    rows = [[r["step"] for r in read_metrics(tmp_path / name / "metrics.jsonl")] for name in ("whole", "run")]
    assert rows[0] == rows[1], "no row twice"
    assert (run / "last.safetensors").read_bytes() == (tmp_path / "whole" / "last.safetensors").read_bytes()


def test_fine_tuning_goes_on_without_the_first_model(dataset, tmp_path, interrupt_after):
    train(replace(TINY, epochs=1), dataset, out=tmp_path / "start", quiet=True)
    recipe = replace(TINY, epochs=1, init=str(tmp_path / "start"))
    train(recipe, dataset, out=tmp_path / "whole", quiet=True)
    interrupt_after(4, tmp_path / "run")
    with pytest.raises(InterruptedTrainingError):
        train(recipe, dataset, out=tmp_path / "run", quiet=True)
    (tmp_path / "start").rename(tmp_path / "moved")
    resume(tmp_path / "run", dataset, quiet=True)
    whole, run = (tmp_path / name / "last.safetensors" for name in ("whole", "run"))
    assert whole.read_bytes() == run.read_bytes()


def test_a_run_goes_on_where_its_pictures_have_moved(picture_folder, tmp_path, interrupt_after):
    recipe = replace(TINY, epochs=8, size=32, normalize="imagenet", evaluate_every=99)
    train(recipe, str(picture_folder), out=tmp_path / "whole", quiet=True)
    interrupt_after(4, tmp_path / "run")
    with pytest.raises(InterruptedTrainingError):
        train(recipe, str(picture_folder), out=tmp_path / "run", quiet=True)
    moved = picture_folder.rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="no such data"):
        resume(tmp_path / "run", quiet=True)
    resume(tmp_path / "run", str(moved), quiet=True)
    whole, run = (modelfile.load(tmp_path / name).net.state_dict() for name in ("whole", "run"))
    assert all(torch.equal(whole[name], run[name]) for name in whole)


def test_fine_tuning_changes_only_the_preprocessing_that_is_asked(dataset, picture_folder, tmp_path):
    train(replace(TINY, epochs=1), dataset, out=tmp_path / "start", quiet=True)
    first = modelfile.load(tmp_path / "start").header.preprocess
    recipe = replace(TINY, init=str(tmp_path / "start"), epochs=1, resize=40, interpolation="bicubic")
    model = modelfile.load(train(recipe, str(picture_folder), out=tmp_path / "run", quiet=True).model)
    assert model.header.preprocess == replace(first, resize=40, interpolation="bicubic")


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("state.pt", b"garbage", "broken"),
        ("state.pt", b"", "broken"),
        ("recipe.yaml", b"lr: abc", "`lr` is 'abc'; it takes a number"),
        ("recipe.yaml", b"lr: 0.1", "does not name the run's data"),
        ("recipe.yaml", b"\xff\xfe", "not YAML"),
    ],
)
def test_broken_run_folders_are_refused_in_words(file, content, words, dataset, tmp_path):
    train(replace(TINY, epochs=1), dataset, out=tmp_path / "run", quiet=True)
    (tmp_path / "run" / file).write_bytes(content)
    with pytest.raises(ResnetkitError, match=words):
        resume(tmp_path / "run", None if file == "recipe.yaml" else dataset, quiet=True)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"freeze": 9}, "`freeze` is 9"),
        ({"crop": "scale-jitter", "jitter": (16, 20)}, "`jitter` begins at 16"),
        ({"model": "resnet20,classes=7"}, "leave classes= out"),
        ({"model": "resnet20,in_channels=1"}, "these pictures have 3 channels"),
    ],
)
def test_wrong_recipes_leave_no_folder(changes, words, dataset, tmp_path):
    with pytest.raises(UsageError, match=words):
        train(replace(TINY, **changes), dataset, out=tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_folder_with_something_in_it_is_left_alone(dataset, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(TrainingError, match="exists already"):
        train(TINY, dataset, out=tmp_path, quiet=True)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_wrong_data_leaves_no_folder(tmp_path):
    with pytest.raises(DataError):
        train(TINY, str(tmp_path / "nowhere"), out=tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_a_run_resumes_only_on_the_same_pictures(dataset, tmp_path):
    train(TINY, dataset, out=tmp_path / "run", quiet=True)
    other = replace(dataset, train=dataset.train.subset(np.arange(100)))
    with pytest.raises(TrainingError, match="fingerprint"):
        resume(tmp_path / "run", other, quiet=True)
    with pytest.raises(TrainingError, match="not a run folder"):
        resume(tmp_path, quiet=True)


def test_unreadable_pictures_are_named_and_skipped(picture_folder, tmp_path):
    for name in ("cat/cat 00.png", "ship/ship 02.png"):
        (picture_folder / name).write_bytes(b"not a picture: " + name.encode())  # equal files would stay in one part
    recipe = replace(TINY, epochs=1, size=32, normalize="imagenet", val_fraction=0.1, seed=1)
    result = train(recipe, str(picture_folder), out=tmp_path / "run", quiet=True)
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "cat 00.png" in log
    assert "ship 02.png" in log
    assert result.best["images"] == 5, "six validate, and one of them is broken"
    assert "2 pictures could not be read" in log
    with pytest.raises(DataError, match=r"\.png: not a picture"):
        train(replace(recipe, strict=True), str(picture_folder), out=tmp_path / "strict", quiet=True)


@pytest.mark.slow
@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.sampled(4)
@pytest.mark.usefixtures("compiled_once")
def test_a_killed_run_resumes_to_the_same_bits(kill, split_folder, tmp_path):
    """A process that is killed several times at random moments ends like one that was not."""
    flags = [
        *("--model", "resnet20,depths=1-1-1,drop_path=0.3", "--size", "32", "--batch-size", "16", "--epochs", "4"),
        *("--threads", "1", "--early-scale", "0.75", "--center-crop-from", "0.75", "--min-area", "0.5"),
        *(
            "--precision",
            "float32",
            "--ema-decay",
            "0.99",
            "--save-every",
            "0",
            "--log-every",
            "3",
            "--accumulate",
            "2",
        ),
        *(
            "--evaluate-every",
            "0.5",
        ),
    ]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1] / "src")}
    command = [sys.executable, "-m", "resnetkit", "train"]

    def start(*arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen([*command, *arguments], env=environment, stderr=subprocess.PIPE, text=True)

    def wait_for_step(step: int, process: subprocess.Popen[str]) -> None:
        metrics = tmp_path / "killed" / "metrics.jsonl"
        while process.poll() is None and (not metrics.exists() or all(r["step"] < step for r in read_metrics(metrics))):
            time.sleep(0.01)

    through = start(str(split_folder), *flags, "--out", str(tmp_path / "through"))
    assert through.wait() == 0, through.stderr.read()
    killed = start(str(split_folder), *flags, "--out", str(tmp_path / "killed"))
    for step in (4, 13, 22):
        wait_for_step(step, killed)
        assert killed.poll() is None, killed.stderr.read()
        killed.send_signal(kill)
        code, message = killed.wait(), killed.stderr.read()
        if kill == signal.SIGKILL:
            assert code == -kill
        else:
            assert code == 128 + kill
            assert re.search(r"stopped after step \d+ of 32; everything is saved. Go on with: .*--resume", message)
        killed = start("--resume", str(tmp_path / "killed"))
    assert killed.wait() == 0, killed.stderr.read()

    for name in ("last.safetensors", "best.safetensors"):
        assert (tmp_path / "through" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes(), name
    states = [torch.load(tmp_path / name / "state.pt", weights_only=True) for name in ("through", "killed")]
    for part in ("net", "ema"):
        for name, tensor in states[0][part].items():
            assert torch.equal(tensor, states[1][part][name]), name
    moments = [[s["momentum_buffer"] for s in state["optimizer"]["state"].values()] for state in states]
    assert all(torch.equal(a, b) for a, b in zip(*moments, strict=True))
    assert torch.equal(states[0]["rng"], states[1]["rng"])
    rows = [read_metrics(tmp_path / name / "metrics.jsonl") for name in ("through", "killed")]
    timeless = [[{k: v for k, v in r.items() if "second" not in k} for r in run] for run in rows]
    assert timeless[0] == timeless[1]


@pytest.mark.slow
def test_compiled_training_takes_the_same_steps(dataset, tmp_path):
    recipe = TINY.replace(iterations=4, crop="none")
    train(recipe, dataset, out=tmp_path / "eager", quiet=True)
    train(replace(recipe, compile="inductor"), dataset, out=tmp_path / "compiled", quiet=True)
    assert losses(tmp_path / "compiled") == pytest.approx(losses(tmp_path / "eager"), rel=1e-3)
    assert modelfile.load(tmp_path / "compiled").header.spec == modelfile.load(tmp_path / "eager").header.spec


def test_bfloat16_training_follows_float32(dataset, tmp_path):
    recipe = TINY.replace(iterations=8, crop="none", lr=0.01)
    for precision in ("float32", "bfloat16"):
        train(replace(recipe, precision=precision), dataset, out=tmp_path / precision, quiet=True)
    exact, rounded = losses(tmp_path / "float32"), losses(tmp_path / "bfloat16")
    assert rounded == pytest.approx(exact, rel=0.03)
    assert rounded != exact
    assert modelfile.load(tmp_path / "bfloat16").net.fc.weight.dtype == torch.float32


def test_files_that_are_left_out_are_named(picture_folder, tmp_path):
    for i in range(12):
        (picture_folder / "cat" / f"notes {i:02d}.txt").write_text("not a picture")
    recipe = replace(TINY, epochs=1, size=32, normalize="imagenet")
    train(recipe, str(picture_folder), out=tmp_path / "run", quiet=True)
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "notes 09.txt: not a picture by its suffix" in log
    assert "notes 10.txt" not in log
    assert "left out: 2 more files" in log


def test_two_processes_cannot_share_a_run(dataset, tmp_path):
    train(TINY, dataset, out=tmp_path / "run", quiet=True)
    code = (
        "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX); "
        "print('held', flush=True); input()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, tmp_path / "run" / ".lock"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        holder.stdout.readline()
        with pytest.raises(TrainingError, match="in use by another process"):
            resume(tmp_path / "run", dataset, quiet=True)
    finally:
        holder.communicate(b"\n")
    finished = resume(tmp_path / "run", dataset, quiet=True)
    assert finished.best["step"] > 0


def test_a_run_is_not_gone_on_with_by_other_means(dataset, tmp_path, monkeypatch):
    train(replace(TINY, epochs=1), dataset, out=tmp_path / "run", quiet=True)
    recipe = tmp_path / "run" / "recipe.yaml"
    by = re.search(r"computed_by: (\w+)", recipe.read_text())
    assert by is not None
    recipe.write_text(recipe.read_text().replace(by[0], "computed_by: abacus"))
    with pytest.raises(TrainingError, match=f"its computed by was abacus and is {by[1]} now"):
        resume(tmp_path / "run", dataset, quiet=True)


def test_what_cannot_be_computed_leaves_no_run_folder(dataset, tmp_path):
    recipe = replace(TINY, model="preact_resnet110,depths=1-1-1", compile="kernels")
    with pytest.raises(UsageError, match="`compile` kernels does not support this network"):
        train(recipe, dataset, out=tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()
