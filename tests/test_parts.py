"""The pictures that evaluate a model: never its training pictures, also if they were moved, unless they are chosen."""

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from resnetkit.data import parts
from resnetkit.data.dataset import open_dataset
from resnetkit.data.parts import Part, choose_part, open_as_trained, recognise, record
from resnetkit.data.samples import Dataset, Samples
from resnetkit.errors import DataError

CLASSES = ("cat", "dog")


def trained_on(dataset: Dataset) -> dict[str, Any]:
    """Return a model file's record of its data."""
    assert dataset.train
    fingerprint, pictures = dataset.train.fingerprint(), record(dataset.train)
    return {"name": dataset.name, "fingerprint": fingerprint, "split": dict(dataset.split), "pictures": pictures}


def measured(data: Path, about: Mapping[str, Any], name: str = "auto") -> Part:
    return choose_part(open_as_trained(str(data), about), about, name)


def names(samples: Samples | None) -> set[str]:
    return {path.name for path in (samples and samples.paths) or ()}


@pytest.mark.parametrize("old", [False, True])  # earlier versions kept a fingerprint alone
def test_the_models_own_set_is_measured_on_what_was_kept_out(picture_folder: Path, tmp_path: Path, old: bool) -> None:
    dataset = open_dataset(str(picture_folder), val_fraction=0.3, seed=5)
    about = trained_on(dataset)
    if old:
        del about["pictures"]
    copy = tmp_path / "elsewhere" / "under another name"
    shutil.copytree(picture_folder, copy)
    for folder in (picture_folder, copy):
        part = measured(folder, about)
        assert (part.name, len(part.samples), part.trained_on) == ("val", 18, 0)
        assert names(part.samples) == names(dataset.val)
        assert "that training kept out" in part.why
        assert measured(folder, about, "all").trained_on == 42
        assert measured(folder, about, "train").trained_on == 42
        assert measured(folder, about, "val").trained_on == 0


def test_training_pictures_are_known_by_their_content(picture_folder: Path, tmp_path: Path) -> None:
    dataset = open_dataset(str(picture_folder))
    about = trained_on(dataset)
    moved = tmp_path / "moved"
    for name, samples in (("old", dataset.train), ("new", dataset.val)):
        assert samples
        for i, path in enumerate(samples.paths or ()):
            target = moved / name / ("even" if i % 2 else "odd") / f"{name} {i}{path.suffix}"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
    with pytest.raises(DataError, match="old: 48 of its pictures or more trained the model; give pictures"):
        measured(moved / "old", about)
    assert measured(moved / "old", about, "all").trained_on == 48
    part = measured(moved / "new", about)
    assert (part.name, len(part.samples), part.trained_on) == ("all", 12, 0)
    for folder in ("even", "odd"):  # both in one set
        for path in (moved / "new" / folder).iterdir():
            path.rename(moved / "old" / folder / path.name)
    part = measured(moved / "old", about)
    assert names(part.samples) == {name for name in names(part.samples) if name.startswith("new")}
    assert len(part.samples) == 12
    assert "without the 48 of 60 that trained the model" in part.why


def test_pictures_that_came_later_are_measured_on_too(picture_folder: Path, split_folder: Path) -> None:
    dataset = open_dataset(str(picture_folder))
    about = trained_on(dataset)
    for name in ("cat", "frog", "ship"):
        shutil.copytree(split_folder / "test" / name, picture_folder / name / "later")
    part = measured(picture_folder, about)
    assert len(part.samples) == 12 + 36
    assert dataset.val
    kept_out = set(dataset.val.paths or ())
    assert all(path.parent.name == "later" or path in kept_out for path in part.samples.paths or ())


@pytest.mark.parametrize("old", [False, True])
def test_a_set_of_which_nothing_was_kept_out_is_refused(split_folder: Path, picture_folder: Path, old: bool) -> None:
    whole = trained_on(open_dataset(str(picture_folder), val_fraction=0.0))
    (split_folder / "test").rename(split_folder / "val")
    given_val = trained_on(open_dataset(str(split_folder)))
    for about in (whole, given_val) if old else ():
        del about["pictures"]
    with pytest.raises(DataError, match=r"all of its pictures trained the model; .*`split` all"):
        measured(picture_folder, whole)
    assert measured(picture_folder, whole, "all").trained_on == 60
    with pytest.raises(DataError, match="train: all of its pictures trained the model"):
        measured(split_folder / "train", given_val)
    part = measured(split_folder, given_val)
    assert (part.name, len(part.samples)) == ("val", 120)


def test_another_set_is_counted_as_it_is(picture_folder: Path, split_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(split_folder / "test", tmp_path / "other")
    about = trained_on(open_dataset(str(picture_folder)))
    part = measured(tmp_path / "other", about)
    assert (part.name, len(part.samples)) == ("all", 120)
    assert part.why == "the set has no parts; none of its pictures is known to have trained the model"
    assert measured(tmp_path / "other", {}).why.endswith("does not say which pictures trained it")
    assert measured(split_folder, {}).name == "test"


def test_a_test_part_loses_what_trained_the_model(picture_folder: Path, tmp_path: Path) -> None:
    dataset = open_dataset(str(picture_folder))
    for part in ("train", "test"):  # divided anew by hand, after the training
        shutil.copytree(picture_folder, tmp_path / "anew" / part)
    part = measured(tmp_path / "anew", trained_on(dataset))
    assert (part.name, len(part.samples), part.trained_on) == ("test", 12, 0)


def in_memory(count: int, seed: int) -> Samples:
    rng = np.random.default_rng(seed)
    return Samples(CLASSES, rng.integers(0, 2, count), rng.integers(0, 256, (count, 4, 4, 3), np.uint8))


def test_a_large_set_is_known_by_a_sample() -> None:
    train, fresh = in_memory(20_000, 0), in_memory(5_000, 1)
    about = {"pictures": record(train)}
    assert len(about["pictures"]["marks"]) == parts.KEPT * parts.MARK_BYTES * 4 / 3
    found = recognise(train, about)
    assert (found.mask.sum(), found.share, found.complete) == (parts.KEPT, 1.0, False)
    assert not recognise(fresh, about).mask.any()
    some = train.subset(np.arange(0, 20_000, 100))
    with pytest.raises(DataError, match=r"\d+ of its pictures or more trained the model"):
        choose_part(Dataset("some", CLASSES, some, None, None), about)
    assert choose_part(Dataset("fresh", CLASSES, fresh, None, None), about).name == "all"
    # A set of new pictures that holds a few old ones by chance loses them; one with the division that was drawn then
    # is measured on what that keeps out.
    assert fresh.images is not None
    assert train.images is not None
    stray = replace(fresh, images=np.concatenate([fresh.images[:-20], train.images[:20]]))
    part = choose_part(Dataset("stray", CLASSES, stray, None, None), about)
    assert 4_980 <= len(part.samples) < 5_000
    changed = Dataset("changed", CLASSES, train.subset(np.arange(19_000)), fresh, None, {"val_fraction": 0.2})
    assert choose_part(changed, about).samples is fresh


def test_a_large_set_of_files_is_read_for_its_sample_alone(split_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "KEPT", 40)
    train = open_dataset(str(split_folder), val_fraction=0.0).train
    assert train
    about = {"pictures": record(train)}
    found = recognise(train, about)
    assert (found.mask.sum(), found.share, found.complete) == (40, 1.0, False)
    for path, known in zip(train.paths or (), found.mask, strict=True):
        if not known:
            path.unlink()
    assert recognise(train, about).mask.sum() == 40


def test_records_of_two_trainings_make_one() -> None:
    first, second, none = in_memory(100, 2), in_memory(50, 3), in_memory(30, 4)
    about = {"pictures": record(second, record(first))}
    assert [int(recognise(samples, about).mask.sum()) for samples in (first, second, none)] == [100, 50, 0]
    assert about["pictures"]["complete"]
    large = record(in_memory(9_000, 5))
    assert record(second, large) == record(in_memory(9_000, 5), record(second))
    assert not record(second, large)["complete"]


@pytest.mark.parametrize("broken", [None, {}, {"marks": "A", "complete": True}, {"marks": 3, "complete": 1}, "x"])
def test_a_broken_record_recognises_nothing(broken: object) -> None:
    assert not recognise(in_memory(3, 0), {"pictures": broken}).mask.any()
