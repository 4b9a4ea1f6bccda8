"""Drift: moments of the validation's logits in the model file, and how far those of served pictures are from them."""

import asyncio
import json
import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from resnetkit.calibration import MOST_MOMENTS, Calibration, moments
from resnetkit.evaluation.calibration import fit
from resnetkit.infer.predictor import Predictor
from resnetkit.modelfile import inspect
from resnetkit.serve.drift import LAST, Moments, Scores
from serving import client, jpeg, served, write_model


def test_drift_is_the_distance_of_kolmogorov_and_smirnov() -> None:
    scores = Scores([0.0, 1.0, 2.0, 3.0])
    assert scores.distance() == 0
    scores.add([2.5, 3.5])
    assert scores.distance() == 0.75
    scores.add([0.0, 1.0, 2.0, 3.0] * 1000)
    assert scores.distance() == 0
    scores.add([9.0] * 500)
    assert scores.distance() == 0.5


def test_a_validation_leaves_the_moments_of_its_logits() -> None:
    drawn = np.random.default_rng(0)
    logits = drawn.normal(3, 2, (50, 4)).astype(np.float32)
    found = fit(logits, drawn.integers(0, 4, 50))
    assert found
    assert found.logit_means == pytest.approx(logits.mean(axis=0, dtype=np.float64), rel=1e-5)
    assert found.logit_deviations == pytest.approx(logits.std(axis=0, dtype=np.float64), rel=1e-5)
    kept = json.loads(json.dumps(found.to_dict()))
    assert Calibration.from_dict(kept) == found
    del kept["logit_means"], kept["logit_deviations"]  # an older file
    older = Calibration.from_dict(kept)
    assert (older.logit_means, older.threshold()) == ((), found.threshold())
    assert "logit_means" not in older.to_dict()
    assert moments(np.zeros((3, MOST_MOMENTS + 1))) == ((), ())


@pytest.mark.parametrize("wrong", [((1.0,), ()), ((float("nan"),), (1.0,)), ((1.0,), (-1.0,))])
def test_moments_that_no_validation_has_are_refused(wrong: tuple[tuple[float, ...], tuple[float, ...]]) -> None:
    with pytest.raises(ValueError, match="the moments of the logits are not numbers"):
        Calibration(1.0, 40, logit_means=wrong[0], logit_deviations=wrong[1])


def test_the_moments_are_those_of_all_pictures_in_any_batches() -> None:
    logits = np.random.default_rng(1).normal([0, 5, -2], [1, 2, 0.5], (300, 3)).astype(np.float32)
    found = Moments([0, 5, 0], [1, 2, 0])  # the last logit did not differ in the validation, so it does not count
    assert found.distance() is None
    found.add(logits[:1])
    assert found.distance() is None
    for part in np.split(logits[1:], [3, 4, 60, 200]):
        found.add(part)
    found.add(np.full((2, 3), np.nan, np.float32))
    means, deviations = logits.mean(axis=0)[:2], logits.std(axis=0)[:2]
    z, spread = (means - [0, 5]) / [1, 2], (deviations - [1, 2]) / [1, 2]
    shift, frechet, pictures = found.distance() or (0, 0, 0)
    assert shift == pytest.approx(np.abs(z).mean(), rel=1e-5)
    assert frechet == pytest.approx(np.sqrt((z**2 + spread**2).mean()), rel=1e-5)
    assert pictures == 300


def test_older_pictures_are_forgotten() -> None:
    drawn = np.random.default_rng(2)
    found = Moments([0.0], [1.0])
    found.add(drawn.normal(10, 1, (LAST, 1)).astype(np.float32))
    assert found.distance() is not None
    assert found.distance().shift == pytest.approx(10, abs=0.2)
    for _ in range(10 * LAST // 50):
        found.add(drawn.normal(0, 1, (50, 1)).astype(np.float32))
    assert found.distance().frechet < 0.15
    assert found.distance().pictures == LAST


def test_the_distance_of_like_pictures_is_what_chance_gives() -> None:
    drawn, n, m, classes = np.random.default_rng(3), 200, 300, 400
    validation, seen = drawn.normal(1, 3, (m, classes)), drawn.normal(1, 3, (n, classes)).astype(np.float32)
    found = Moments(*moments(validation))
    found.add(seen)
    chance = 1 / n + 1 / m
    assert found.distance().shift == pytest.approx(0.8 * np.sqrt(chance), rel=0.1)
    assert found.distance().frechet == pytest.approx(np.sqrt(1.5 * chance), rel=0.1)


def test_the_metrics_tell_it_for_models_that_have_the_moments(tmp_path: Path) -> None:
    contents = [jpeg(seed) for seed in range(6)]
    bare = Calibration(1.0, 40, (0.5,) * 40)
    path = write_model(tmp_path / "m.safetensors", calibration=bare)
    logits = Predictor(path, backend="torch").logits(contents)
    means, deviations = moments(logits)
    shifted = tuple(mean + 2 * deviation for mean, deviation in zip(means, deviations, strict=True))
    write_model(path, calibration=replace(bare, logit_means=shifted, logit_deviations=deviations))
    assert inspect(path).calibration.logit_means == shifted

    async def metrics(app: object, *, send: int = 0) -> dict[str, float]:
        async with client(app) as session:  # type: ignore[arg-type]
            for content in contents[:send]:
                await session.post("/predict", content=content, headers={"content-type": "image/jpeg"})
            text = (await session.get("/metrics")).text
        lines = (line.split() for line in text.splitlines() if line.startswith("resnetkit_drift"))
        return {name.partition("{")[0]: float(value) for name, value in lines}

    with served(path) as (app, model):
        assert asyncio.run(metrics(app)).keys() == {"resnetkit_drift"}
        found = asyncio.run(metrics(app, send=6))
        assert found["resnetkit_drift_pictures"] == 6
        assert found["resnetkit_drift_shift"] == pytest.approx(2, rel=1e-3)
        assert found["resnetkit_drift_frechet"] == pytest.approx(2, rel=1e-3)
        shutil.move(write_model(tmp_path / "next.safetensors"), path)  # without a calibration
        end = time.monotonic() + 30
        while not model.reload_if_changed():
            assert time.monotonic() < end
        assert asyncio.run(metrics(app, send=2)) == {}
