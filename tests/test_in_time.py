"""Features within `minutes`: an even draw of the training pictures, when it ends, and the head that it gives."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from resnetkit.data.samples import Samples
from resnetkit.data.transforms.preprocess import Preprocess
from resnetkit.finetune import in_time, rungs
from resnetkit.finetune.features import FeatureCache
from resnetkit.finetune.in_time import MEASURED, Enough, drawn_evenly
from resnetkit.finetune.ladder import start
from resnetkit.modelfile import Header, load, save
from resnetkit.models.resnet import build
from resnetkit.train.recipe import RECIPES

SPEC, PREPROCESS = "resnet18,width=8", Preprocess(size=32, resize=36)


def test_any_beginning_of_the_draw_has_each_class_in_its_share() -> None:
    strata = np.repeat([0, 1, 2], [700, 290, 10])
    order = drawn_evenly(strata, seed=0)
    assert sorted(order) == list(range(1000))
    assert {*strata[order[:3]]} == {0, 1, 2}
    for count in (100, 500, 900):
        np.testing.assert_allclose(
            np.bincount(strata[order[:count]]), [0.7 * count, 0.29 * count, 0.01 * count], atol=1
        )
    assert (drawn_evenly(strata, seed=0) == order).all()
    assert (drawn_evenly(strata, seed=1) != order).any()
    assert drawn_evenly(np.zeros(0, np.int64), seed=0).shape == (0,)


class Counter:
    """Counts computed pictures, as a FeatureCache does."""

    computed = 5


@pytest.mark.parametrize(
    ("end", "known", "computed"),
    [
        (10.0, 0, 1000),  # 100 pictures a second
        (10.0, 300, 1000),  # those that were there before take no time
        (0.0, 0, MEASURED + 20),  # it ends when the pace is known
    ],
)
def test_it_ends_in_time(monkeypatch: pytest.MonkeyPatch, end: float, known: int, computed: int) -> None:
    now = [0.0]
    monkeypatch.setattr(in_time.time, "monotonic", lambda: now[0])
    cache, told = Counter(), []
    enough = Enough(cache, end, least=50, tell=lambda *given: told.append(given))  # type: ignore[arg-type]
    assert not enough(known)
    cache.computed += 20
    now[0] = 0.2  # the first batch is not slower here, so that the sums are simple
    while not enough(known + cache.computed - 5):
        cache.computed += 1
        now[0] += 0.01
    assert cache.computed - 5 == pytest.approx(computed, abs=1)
    ((fitting, seconds),) = told
    assert fitting == pytest.approx(known + computed, abs=2)
    assert now[0] == pytest.approx(seconds + 0.2 + 0.01 * MEASURED, abs=0.05)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Pictures of two colours: 90 and 60 for training, 8 of each for validation."""
    rng = np.random.default_rng(0)
    for part, counts in (("train", (90, 60)), ("val", (8, 8))):
        for label, colour in enumerate(((90, 90, 160), (160, 90, 90))):
            folder = tmp_path / "data" / part / "ab"[label]
            folder.mkdir(parents=True)
            for number in range(counts[label]):
                pixels = np.clip(rng.normal(colour, 60, (36, 40, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return tmp_path / "data"


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    net = build(SPEC, classes=10)
    path = tmp_path / "first.safetensors"
    save(path, net, Header(net.spec, PREPROCESS, tuple("0123456789")))
    return path


def test_a_part_of_the_first_view_has_features(tmp_path: Path, weights: Path) -> None:
    rng, paths = np.random.default_rng(0), [tmp_path / f"{number}.png" for number in range(100)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (36, 36, 3), dtype=np.uint8)).save(path)
    samples = Samples(("a", "b"), np.arange(100) % 2, paths=tuple(paths))
    cache = FeatureCache(load(weights), folder=tmp_path / "kept")
    order = drawn_evenly(samples.labels, seed=0)
    asked = iter([False, False, True])
    some = cache.compute(samples, order=order, enough=lambda there: next(asked))
    assert 2 * 16 <= len(some) < 100
    assert {*some.indices} == {*order[: len(some)]}
    assert some.pool().shape == (len(some), 64)
    assert (some.labels == samples.labels[some.indices]).all()
    more = cache.compute(samples, order=order, at_least=60, enough=lambda there: True)
    assert {*order[:60]} <= {*more.indices}
    assert len(more) < 60 + 2 * 16, "what was there before counts"
    whole = cache.compute(samples)
    assert len(whole) == 100
    assert (whole.pool()[some.indices] == some.pool()).all()


def test_large_data_and_little_time_give_a_head_on_a_part_of_the_pictures(
    data: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(in_time, "MEASURED", 16)
    fitted: list[int] = []
    fit_head = rungs.fit_head
    monkeypatch.setattr(
        rungs, "fit_head", lambda train, val, **more: (fitted.append(len(train)), fit_head(train, val, **more))[1]
    )
    recipe = RECIPES["folder"].replace(model=SPEC, init=str(weights), workers=0, minutes=0.001)
    result = start(recipe, data, out=tmp_path / "run", quiet=True)
    assert 16 <= fitted[0] < 150
    assert [row["rung"] for row in result.rungs] == ["head"]
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "of the 150 training pictures, drawn evenly from the classes" in log
    assert "even so the features take about" in log
    assert result.measured is not None
    assert len(result.measured.values) > 0
    whole = start(recipe.replace(minutes=5, rung="head"), data, out=tmp_path / "whole", quiet=True)
    assert fitted[-1] == 150
    assert "drawn evenly" not in (tmp_path / "whole" / "log.txt").read_text()
    assert whole.rungs[0]["top1_error_percent"] is not None
