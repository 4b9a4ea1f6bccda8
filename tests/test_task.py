"""A second task, regression, by the same loop: trained, stopped and resumed to the bit."""

import json
import signal
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from resnetkit import modelfile
from resnetkit.data.loader import Batch, Loader
from resnetkit.data.samples import Samples
from resnetkit.data.transforms.normalize import Normalize
from resnetkit.data.transforms.preprocess import Preprocess
from resnetkit.errors import UsageError
from resnetkit.modelfile import Header, Model
from resnetkit.models.resnet import ResNet, build
from resnetkit.progress import Advance
from resnetkit.train.checkpoint import load_state
from resnetkit.train.lifecycle import TrainResult, train_task
from resnetkit.train.loop import InterruptedTrainingError
from resnetkit.train.monitor import Monitor, read_metrics
from resnetkit.train.recipe import Recipe
from resnetkit.train.run_folder import RunFolder
from resnetkit.train.task import Measured, Step

RECIPE = Recipe(epochs=4, batch_size=16, accumulate=2, lr=0.02, threads=1, precision="float32", log_every=1, seed=1)
PREPROCESS = Preprocess(size=32)
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Brightness:
    """Predict the mean of a picture's pixels, 0 to 1. The loss is the squared difference."""

    net: ResNet
    header: Header
    loader: Loader
    val: Samples
    normalize: Normalize
    title: str = "brightness"
    device: torch.device = CPU
    precision: str = "float32"
    computed_by: str = "eager"
    recompute: bool = False
    batches_per_epoch: int = 0
    training_pictures: int = 0
    validation_pictures: int = 0
    validated_at_once: int = 20
    early_steps: tuple[float, float] = (0.0, 1.0)
    counts: tuple[str, ...] = ("far",)
    score: str = "deviation"

    @staticmethod
    def targets(batch: Batch) -> torch.Tensor:
        """Shape (n,)."""
        return batch.images.float().mean(dim=(1, 2, 3)) / 255

    def batches(self, epoch: int, first_batch: int, progress: Callable[[], float]) -> Generator[Batch]:
        yield from self.loader.epoch(epoch, first_batch)

    def train_mode(self) -> None:
        self.net.train()

    def step(self, batch: Batch, *, pictures: int) -> Step:
        found, targets = self.net(self.normalize(batch.images))[:, 0], self.targets(batch)
        loss = F.mse_loss(found, targets, reduction="sum") / pictures
        return Step(loss, {"far": int(((found - targets).abs() > 0.1).sum())})

    @torch.no_grad()
    def validate(self, net: nn.Module, advance: Advance) -> Measured:
        net.eval()
        found = []
        for batch in Loader(self.val, PREPROCESS, batch_size=self.validated_at_once).epoch():
            found.append(net(self.normalize(batch.images))[:, 0] - self.targets(batch))
            advance(len(batch))
        differences = torch.cat(found)
        values = {"deviation": float(differences.square().mean().sqrt()), "images": len(differences)}
        return Measured(values, {"differences": differences})

    def save(self, path: Path, net: nn.Module, metrics: Mapping[str, Any], measured: Measured | None) -> None:
        assert isinstance(net, ResNet)
        modelfile.save(path, net, replace(self.header, metrics=metrics))

    def load(self, path: Path) -> Model:
        return modelfile.load(path)

    def report(
        self, path: Path, model: Model, measured: Measured | None, *, curves: bytes, about: Mapping[str, Any]
    ) -> None:
        header = model.header
        assert measured is not None
        largest = float(measured.details["differences"].abs().max())
        path.write_text(json.dumps({"largest": largest, "best": header.metrics["deviation"], "curves": len(curves)}))

    def unreadable(self, measured: Measured | None) -> Mapping[Path, str]:
        return {}

    def example(self, pictures: int) -> Batch:
        images = torch.zeros(pictures, 3, 32, 32, dtype=torch.uint8)
        return Batch(images, torch.zeros(pictures, dtype=torch.int64), torch.arange(pictures), number=0)

    def validate_example(self, pictures: int) -> None:
        self.net.eval()(self.normalize(self.example(pictures).images))


@pytest.fixture
def task(cifar_subset) -> Callable[[], Brightness]:
    """A function that makes the task as a new process does, with 300 pictures of CIFAR-10 and 120 to validate."""
    pictures, val = cifar_subset

    def make() -> Brightness:
        torch.manual_seed(RECIPE.seed)
        net = build("resnet20", depths=(1, 1, 1), classes=1)
        header = Header(net.spec, PREPROCESS, ("brightness",), RECIPE.to_dict(), data={"name": "subset"})
        loader = Loader(pictures, PREPROCESS, batch_size=RECIPE.batch_size, shuffle=True, seed=RECIPE.seed)
        counted = {
            "batches_per_epoch": len(loader),
            "training_pictures": len(pictures),
            "validation_pictures": len(val),
        }
        return Brightness(net, header, loader, val, Normalize(PREPROCESS, CPU), **counted)

    return make


def run(task: Brightness, folder: Path, recipe: Recipe = RECIPE, *, go_on: bool = False) -> TrainResult:
    """Train a whole run, or the rest of it."""
    torch.set_num_threads(1)
    folder.mkdir(exist_ok=True)
    state = load_state(folder / "state.pt") if go_on else None
    return train_task(task, recipe, RunFolder(folder), about={}, started=0.0, state=state, quiet=True)


def test_another_task_is_learnt(task, tmp_path):
    result = run(task(), tmp_path / "run")
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    trained, validated = ([row for row in rows if row["part"] == part] for part in ("train", "val"))
    assert len(trained) == 40
    assert {"loss", "far_percent"} < set(trained[0])
    assert "error_percent" not in trained[0]
    assert trained[-1]["far_percent"] < trained[0]["far_percent"]
    deviations = [row["deviation"] for row in validated]
    assert len(deviations) == 4
    assert result.best["deviation"] == min(deviations) < 0.15
    assert repr(result).startswith(f"TrainResult(validation deviation {min(deviations):.4f}, ")
    assert modelfile.load(result.model).header.metrics["deviation"] == min(deviations)
    report = json.loads((tmp_path / "run" / "report.html").read_text())
    assert report["best"] == min(deviations) <= report["largest"]
    assert report["curves"] == (tmp_path / "run" / "curves.png").stat().st_size
    assert f"validation deviation {deviations[0]:.4f}" in (tmp_path / "run" / "log.txt").read_text()


@pytest.mark.parametrize("step", [3, 10, 17])
def test_it_goes_on_to_the_bit(step, task, tmp_path, monkeypatch):
    """Stopped in the first epoch, of 9.5 steps, at its end, and in the second epoch."""
    run(task(), tmp_path / "whole")
    record, asked = Monitor.record, []

    def recording(self: Monitor, row: Mapping[str, Any]) -> None:
        record(self, row)
        if row["step"] == step and not asked:
            asked.append(step)
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Monitor, "record", recording)
        with pytest.raises(InterruptedTrainingError, match=f"stopped after step {step}"):
            run(task(), tmp_path / "run")
    result = run(task(), tmp_path / "run", go_on=True)
    for name in ("best.safetensors", "last.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert result.best == modelfile.inspect(tmp_path / "whole").metrics
    reports = [json.loads((tmp_path / name / "report.html").read_text())["largest"] for name in ("run", "whole")]
    assert reports[0] == reports[1]


def test_a_run_on_the_clock_is_measured_on_the_task_itself(task, tmp_path, monkeypatch):
    """The first measured step and validation are on the task's own examples, and change no weight."""
    asked: list[tuple[str, int]] = []
    for name in ("example", "validate_example"):
        own = getattr(Brightness, name)
        monkeypatch.setattr(
            Brightness, name, lambda self, n, own=own, name=name: (asked.append((name, n)), own(self, n))[1]
        )
    result = run(task(), tmp_path / "run", RECIPE.replace(minutes=0.1))
    assert asked[0] == ("example", 2)
    assert max(n for name, n in asked if name == "validate_example") <= 20
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert rows[0]["step"] == 1
    assert result.best["deviation"] < 1


def test_a_warm_up_goes_by_the_first_count(task, tmp_path):
    with pytest.raises(UsageError, match="`warmup_lr` needs a count in training, and this task has none"):
        run(replace(task(), counts=()), tmp_path / "none", replace(RECIPE, warmup_lr=0.01))
    slow = replace(RECIPE, epochs=10, warmup_lr=0.01, warmup_error_percent=100.0)
    run(task(), tmp_path / "run", slow)
    assert "warm-up over at step 50: training far" in (tmp_path / "run" / "log.txt").read_text()
