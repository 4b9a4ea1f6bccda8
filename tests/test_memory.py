"""The estimated memory of a step compared with the real one, and what happens if there is too little memory."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from resnetkit import train
from resnetkit.data.samples import Dataset
from resnetkit.errors import TrainingError
from resnetkit.evaluation.batches import evaluation_batch
from resnetkit.models.freezing import freeze
from resnetkit.models.maps import map_shapes
from resnetkit.models.resnet import build
from resnetkit.precision import unfolds_bfloat16
from resnetkit.train.computing.memory import SHARE, Need, choose_recompute, training_need
from resnetkit.train.recipe import Recipe

GIB = 2**30
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")


def need(
    model: str,
    *,
    batch_size: int,
    size: int = 32,
    precision: str = "float32",
    frozen: int = 0,
    unfolds: bool = False,
) -> Need:
    net = build(model)
    freeze(net, frozen)
    return training_need(net, batch_size=batch_size, size=size, precision=precision, unfolds=unfolds)


def test_need_is_counted_in_maps():
    """ResNet-20 at 32 × 32 has 7 · 16 + 6 · 8 + 6 · 4 maps of 1,024 numbers; each is kept twice, 6 more in flight."""
    maps = 2 * 1024 * (7 * 16 + 6 * 32 / 4 + 6 * 64 / 16) + 6 * 1024 * 16
    weights = 4 * 4 * build("resnet20").spec.parameters  # with gradient, momentum and a copy
    assert need("resnet20", batch_size=128).kept == 128 * 4 * maps + weights


@pytest.mark.parametrize("model", ["resnet20", "resnet20,shortcut=C", "resnet18", "preact_resnet18", "resnet50d"])
def test_need_grows_with_the_batch_and_the_precision(model):
    one, two, three = (need(model, batch_size=count, size=64) for count in (1, 2, 3))
    assert three.kept - two.kept == two.kept - one.kept > 0
    assert three.recomputed - two.recomputed == two.recomputed - one.recomputed > 0
    half = need(model, batch_size=2, size=64, precision="bfloat16")
    assert two.kept - half.kept == one.kept - half.kept + (two.kept - one.kept)
    assert 2 * (two.kept - one.kept) == 2 * 2 * (
        half.kept - need(model, batch_size=1, size=64, precision="bfloat16").kept
    )
    assert one.recomputed < one.kept


def test_need_of_the_deepest_net():
    """ResNet-1202 on the paper's batches of 128 pictures."""
    net = build("resnet1202")
    full, half = (
        training_need(net, batch_size=128, size=32, precision=precision, unfolds=False)
        for precision in ("float32", "bfloat16")
    )
    assert full.kept / GIB == pytest.approx(11.3, abs=0.1)
    assert full.recomputed / GIB == pytest.approx(5.8, abs=0.1)
    assert half.kept / GIB == pytest.approx(5.8, abs=0.1)
    assert half.recomputed / GIB == pytest.approx(3.1, abs=0.1)  # measured: 3.1


def test_columns_are_counted_where_bfloat16_is_unfolded():
    """A 3×3 convolution of 16 maps has 9 · 16 columns; a 1×1 of stride 1 takes the map itself."""
    with_onednn, without = (
        need("resnet20", batch_size=256, precision="bfloat16", unfolds=unfolds) for unfolds in (False, True)
    )
    columns = 8 * 256 * 2 * (9 * 16 * 1024)
    assert without.kept - with_onednn.kept == without.recomputed - with_onednn.recomputed == columns
    more = [
        need("resnet50", batch_size=1, size=224, precision="bfloat16", unfolds=unfolds).kept
        for unfolds in (False, True)
    ]
    assert more[1] - more[0] == 8 * 2 * max(7 * 7 * 3 * 112 * 112, 9 * 64 * 56 * 56, 128 * 9 * 28 * 28)


def test_pictures_that_are_evaluated_at_once():
    """250 pictures of CIFAR for any training batch; fewer large pictures, so that they need half a GiB."""
    for model in ("resnet20", "resnet110", "preact_resnet164", "resnet20,shortcut=B,width=64"):
        assert evaluation_batch(build(model), 32) == 250
    resnet50 = build("resnet50")
    assert evaluation_batch(resnet50, 224) == 2**29 // (8 * 4 * 64 * 112 * 112) == 20
    assert evaluation_batch(resnet50, 2048) == 1
    asked = need("resnet50", batch_size=2, size=224)
    weights = 4 * 4 * resnet50.spec.parameters
    assert asked.evaluated == 20 * 8 * 4 * 64 * 112 * 112 + weights
    assert asked.evaluated == need("resnet50", batch_size=64, size=224, precision="bfloat16").evaluated


def test_sizes_are_found_without_copying_weights():
    net = build("resnet20").train()
    shapes = map_shapes(net, 32)
    assert shapes[net.conv1] == shapes[net.bn1] == (1, 16, 32, 32)
    assert shapes[net.layer3[2]] == (1, 64, 8, 8)
    assert all(p.device.type == "cpu" and p.requires_grad for p in net.parameters())
    assert net.training
    assert net.bn1.num_batches_tracked == 0


def test_projections_keep_a_map_when_recomputing():
    plain, projected = (need(f"resnet20,shortcut={kind}", batch_size=64) for kind in "AC")
    maps = 3 * 1024 * (16 + 8 + 4)
    assert projected.recomputed - plain.recomputed == pytest.approx(64 * 4 * (maps + 2 * 1024 * 16), rel=0.02)


def test_frozen_parts_keep_nothing():
    whole, head = (need("resnet50", batch_size=256, size=224, frozen=parts) for parts in (0, 5))
    assert head.kept < 0.2 * whole.kept
    assert head.kept == head.recomputed
    stages = [need("resnet50", batch_size=8, size=224, frozen=parts).kept for parts in range(6)]
    assert stages == sorted(stages, reverse=True)


def test_blocks_are_recomputed_where_the_whole_does_not_fit():
    asked = Need(kept=8 * GIB, recomputed=3 * GIB)
    roomy, tight = int(8 * GIB / SHARE) + 1, int(3 * GIB / SHARE) + 1
    auto, on, off = (Recipe(recompute=choice) for choice in ("auto", "on", "off"))
    assert [choose_recompute(asked, recipe, roomy) for recipe in (auto, on, off)] == [False, True, False]
    assert [choose_recompute(asked, recipe, tight) for recipe in (auto, on)] == [True, True]
    assert [choose_recompute(asked, recipe, None) for recipe in (auto, on, off)] == [False, True, False]


def test_what_does_not_fit_is_refused_with_the_mend():
    asked = Need(kept=8 * GIB, recomputed=3 * GIB)
    with pytest.raises(
        TrainingError,
        match=r"training resnet20 needs about 3\.0 GiB, and 2\.0 GiB are free; give a smaller `batch_size` than 128$",
    ):
        choose_recompute(asked, Recipe(), 2 * GIB)
    with pytest.raises(TrainingError, match=r"about 8\.0 GiB, .* smaller `batch_size` than 128 or `recompute` on$"):
        choose_recompute(asked, Recipe(recompute="off"), 5 * GIB)


def test_an_evaluation_that_does_not_fit_is_refused_before_the_training():
    asked = Need(kept=GIB, recomputed=GIB, evaluated=3 * GIB)
    assert not choose_recompute(asked, Recipe(), 4 * GIB)
    with pytest.raises(
        TrainingError,
        match=r"evaluating resnet50 needs about 3\.0 GiB, and 2\.0 GiB are free; give a smaller `size` or `model`$",
    ):
        choose_recompute(asked, Recipe(model="resnet50"), 2 * GIB)


def test_a_run_that_does_not_fit_leaves_no_folder(cifar_subset, tmp_path, monkeypatch):
    pictures, test = cifar_subset
    dataset = Dataset("subset", test.classes, pictures, None, test, {})
    monkeypatch.setattr("resnetkit.train.classification.available_memory", lambda: GIB)
    with pytest.raises(TrainingError, match="`batch_size` than 100000"):
        train(Recipe(batch_size=100_000), dataset, out=tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()
    recipe = Recipe(model="resnet20,depths=9-1-1", batch_size=256, iterations=1, precision="float32", threads=1)
    fits = need(recipe.model, batch_size=256)
    monkeypatch.setattr(
        "resnetkit.train.classification.available_memory", lambda: int((fits.kept + fits.recomputed) / 2 / SHARE)
    )
    train(recipe, dataset, out=tmp_path / "run", quiet=True)
    assert ", recomputing" in (tmp_path / "run" / "log.txt").read_text()


STEP = """
import torch
from resnetkit.allocator import keep_memory
from resnetkit.models.resnet import build
from resnetkit.train.computing.compute import choose_forward
from resnetkit.train.recipe import Recipe
keep_memory()  # as the command line does
torch.set_num_threads(2)
def resident(line):
    # Not ru_maxrss, which goes on from that of the process that started this one.
    lines = open("/proc/self/status").read().splitlines()
    return next(int(text.split()[1]) * 1024 for text in lines if text.startswith(line))
def forwards(net):
    net = net.to(memory_format=torch.channels_last).train()
    return net, choose_forward(net, recipe, torch.device("cpu"), "{precision}", size=32, recompute={recompute})[0]
recipe = Recipe(compile="{compile}")
# What the libraries take for themselves. A small network leaves little freed memory: this process keeps that, and what
# follows would take it again without taking more from the system.
forwards(build("resnet20"))[1](torch.randn(2, 3, 32, 32)).sum().backward()
open("/proc/self/clear_refs", "w").write("5")  # the largest amount so far is the present one
before = resident("VmRSS")
net, forward = forwards(build("{model}"))
optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
for _ in range({steps}):
    forward(torch.randn({batch}, 3, 32, 32)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
print(resident("VmHWM") - before, resident("VmHWM"))
"""


def measured(program: str = STEP, **choices: object) -> tuple[int, int]:
    """Return the bytes that steps add to those of the process, and the process's largest number of bytes."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1] / "src")}
    code = program.format(**{"compile": "auto", "recompute": False, "steps": 2, "precision": "float32"} | choices)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    *_, more, all_of_it = done.stdout.split()
    return int(more), int(all_of_it)


@pytest.mark.slow
@linux
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("compiled", ["auto", "off"])
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.sampled(4)
def test_a_real_step_takes_what_is_said(precision, compiled, recompute):
    unfolds = precision == "bfloat16" and unfolds_bfloat16()
    said = need("resnet20", batch_size=256, precision=precision, unfolds=unfolds)
    took, _ = measured(model="resnet20", batch=256, precision=precision, compile=compiled, recompute=recompute)
    count = said.recomputed if recompute else said.kept
    # The libraries' own buffers come to some 100 MiB, whatever the network: nothing where memory is short.
    assert 0.4 * count < took < 1.3 * count + 160 * 2**20


EVALUATION = (
    STEP
    + """
from resnetkit.data.samples import Samples
from resnetkit.data.transforms.preprocess import Preprocess
from resnetkit.evaluation.evaluate import evaluate_net
import numpy as np
pictures = np.zeros(({pictures}, 224, 224, 3), np.uint8)
evaluate_net(net, Samples(tuple(map(str, range(1000))), np.zeros({pictures}, np.int64), pictures), Preprocess(224))
print(resident("VmHWM") - before, resident("VmHWM"))
"""
).replace("{batch}, 3, 32, 32", "{batch}, 3, 224, 224")


@pytest.mark.slow
@linux
def test_a_real_evaluation_takes_what_is_said():
    """ResNet-50 trained on two photographs at a time: the evaluation needs more memory, but not more than estimated."""
    said = need("resnet50", batch_size=2, size=224)
    took, peak = measured(EVALUATION, model="resnet50", batch=2, pictures=60)
    assert said.evaluated > said.kept
    assert 0.4 * said.evaluated < took < 1.3 * said.evaluated + 160 * 2**20
    assert peak < 2 * GIB  # 5.7 GB with batches of 250


@pytest.mark.slow
@linux
@pytest.mark.long
def test_the_deepest_net_trains_in_twelve_gibibytes():
    """Minutes of work: one step of ResNet-1202 on the paper's batch."""
    _, peak = measured(model="resnet1202", batch=128, precision="bfloat16", recompute=True, steps=1)
    assert peak < 12 * GIB
