"""Facts that give the label away are found, and facts that don't are not."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from resnetkit.data.check import check
from resnetkit.data.shortcuts import Facts, find_shortcuts


def noise(rng: np.random.Generator, side: int = 24) -> np.ndarray:
    return rng.integers(0, 256, (side, side, 3), dtype=np.uint8)


def random_facts(pictures: int, seed: int = 0) -> tuple[Facts, np.ndarray]:
    """Facts without any relation to the labels, of which there are three."""
    rng = np.random.default_rng(seed)
    facts = Facts(pictures)
    facts.known[:] = True
    facts.numbers[:] = rng.integers(100, 2000, (pictures, 3))
    facts.kinds[:] = rng.integers(0, 3, (pictures, 2))
    facts.colours[:] = rng.integers(0, 256, facts.colours.shape)
    facts.edges[:] = rng.integers(0, 256, facts.edges.shape)
    return facts, rng.integers(0, 3, pictures)


@pytest.mark.parametrize("pictures", [0, 1, 6, 40, 400])
def test_facts_without_meaning_are_no_shortcut(pictures: int) -> None:
    for seed in range(5):
        facts, labels = random_facts(pictures, seed)
        assert find_shortcuts(facts, labels, np.arange(pictures)) == ()


@pytest.mark.parametrize(
    "source", ["file size", "picture size", "format", "EXIF camera", "border colour", "background"]
)
def test_a_planted_shortcut_is_found(source: str) -> None:
    facts, labels = random_facts(300)
    match source:
        case "file size":
            facts.numbers[:, 0] = 5000 + 1000 * labels + facts.numbers[:, 0] / 4
        case "picture size":
            facts.numbers[:, 1] = np.where(labels == 1, 640, 480)
        case "format" | "EXIF camera":
            facts.kinds[:, int(source != "format")] = 5 + labels
        case "border colour":
            facts.edges[:, :, 1] = (facts.edges[:, :, 1] // 8) + (80 * labels)[:, None]
        case "background":
            facts.colours[:, 0, :, 2] = (facts.colours[:, 0, :, 2] // 2) + (60 * labels)[:, None]
    found = {one.source: one for one in find_shortcuts(facts, labels, np.arange(300))}
    assert source in found
    assert {*found} <= {source, "file and camera together"} | ({"file size"} if source == "picture size" else set())
    assert found[source].accuracy_percent > found[source].chance_percent + 10
    assert found[source].chance_percent == round(100 * np.bincount(labels).max() / 300, 1)


def test_copies_are_not_on_both_sides_of_the_cross_validation() -> None:
    """20 pictures, 15 copies of each: a memory of the copies is no shortcut."""
    facts, labels = random_facts(20)
    place = np.arange(300) % 20
    many, repeated = facts.taken(place), labels[place]
    assert find_shortcuts(many, repeated, place) == ()
    assert find_shortcuts(many, repeated, np.arange(300)) != (), "what the groups prevent"


def test_a_shortcut_in_files(tmp_path: Path) -> None:
    """The pictures of one class have a dark frame, the others are PNG files and have none."""
    rng = np.random.default_rng(0)
    for label in ("cat", "dog"):
        (tmp_path / label).mkdir()
        for number in range(40):
            pixels = noise(rng)
            if label == "cat":
                pixels[:2] = pixels[-2:] = pixels[:, :2] = pixels[:, -2:] = 0
            Image.fromarray(pixels).save(tmp_path / label / f"{number}.{'png' if label == 'dog' else 'bmp'}")
    report = check(tmp_path, workers=2)
    found = {one["from"]: one for one in report.to_dict()["shortcuts"]}
    assert found["format"] == {"from": "format", "accuracy_percent": 100.0, "chance_percent": 50.0}
    assert found["border colour"]["accuracy_percent"] > 95
    assert "picture size" not in found
    assert report.sound, "a shortcut is a warning"
