"""Folds: each picture validates once, classes and groups are kept, and the place of the files does not matter."""

import shutil
from collections import Counter

import numpy as np
import pytest

from resnetkit.data.dataset import open_dataset, open_read
from resnetkit.data.division import Keeping
from resnetkit.data.first_look import FirstLook
from resnetkit.data.folds import assign_folds, fold_datasets
from resnetkit.data.reading import Reading
from resnetkit.errors import UsageError
from scenes import scene


def test_every_picture_validates_once(picture_folder):
    dataset = open_dataset(picture_folder)
    folds = fold_datasets(dataset, 4, seed=0)
    paths = {path for part in (dataset.train, dataset.val) for path in part.paths}
    validating = [path for fold in folds for path in fold.val.paths]
    assert sorted(validating) == sorted(paths)
    for number, fold in enumerate(folds, 1):
        assert not set(fold.train.paths) & set(fold.val.paths)
        assert {*fold.train.paths, *fold.val.paths} == paths
        assert np.bincount(fold.val.labels).tolist() == [5, 5, 5]
        assert fold.split["fold"] == number


def test_folds_stay_where_the_set_moves_and_change_with_the_seed(picture_folder, tmp_path):
    def names(folder, seed):
        folds = fold_datasets(open_dataset(folder), 3, seed=seed)
        return [sorted(path.name for path in fold.val.paths) for fold in folds]

    before = names(picture_folder, 0)
    assert names(picture_folder, 1) != before
    shutil.move(picture_folder, tmp_path / "moved" / "elsewhere")
    assert names(tmp_path / "moved" / "elsewhere", 0) == before


def test_groups_stay_together_and_folds_are_even():
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 60, 600)
    labels = groups % 3  # a patient has one label
    keys = [str(place) for place in range(600)]
    fold_of = assign_folds(labels, keys, 5, seed=0, groups=groups.tolist())
    assert all(len(set(fold_of[groups == group])) == 1 for group in range(60))
    for label in range(3):
        counts = Counter(fold_of[labels == label].tolist())
        assert max(counts.values()) - min(counts.values()) <= 12


def test_alike_pictures_are_in_the_same_fold(tmp_path):
    for number in range(12):
        folder = tmp_path / "photos" / ("a" if number % 2 else "b")
        folder.mkdir(parents=True, exist_ok=True)
        picture = scene(160, 120, seed=number)
        for copy, quality in enumerate((95, 60, 40)):
            picture.resize((160 - 20 * copy, 120 - 15 * copy)).save(folder / f"{number}-{copy}.jpg", quality=quality)
    for fold in fold_datasets(open_dataset(tmp_path / "photos"), 4, seed=0, alike_of=FirstLook().alike_of):
        assert len(fold.val) == 9
        names = Counter(path.name.split("-")[0] for path in fold.val.paths)
        assert set(names.values()) == {3}


@pytest.mark.parametrize(("folds", "words"), [(1, "must be at least 2"), (61, "has 60 training pictures")])
def test_folds_that_cannot_be_made_are_refused(folds, words, picture_folder):
    with pytest.raises(UsageError, match=words):
        fold_datasets(open_dataset(picture_folder), folds, seed=0)


@pytest.mark.parametrize("with_val", [False, True])
def test_what_group_by_puts_together_is_in_one_fold(picture_folder, tmp_path, with_val):
    """Four pictures of each of 15 patients, whose names are in the files'; val may be given or drawn."""
    root = tmp_path / "patients"
    for place, path in enumerate(sorted(picture_folder.rglob("*.*"))):
        patient = place // 4
        part = ("val" if patient % 5 == 0 else "train") if with_val else "."
        goal = root / part / path.parent.name / f"p{patient}_{place}{path.suffix}"
        goal.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, goal)
    dataset = open_read(root, Reading(group_by=r"(p\d+)_"), keeping=Keeping(for_folds=True))
    folds = fold_datasets(dataset, 3, seed=0)
    of_folds = [{path.name.split("_")[0] for path in fold.val.paths} for fold in folds]
    assert [len(names) for names in of_folds] == [5, 5, 5]
    assert len(set.union(*of_folds)) == 15, "no patient is in two folds"
    assert folds[0].split["group_by"] == r"(p\d+)_"
    by_class = open_read(root, Reading(group_by="cat|frog|ship"), keeping=Keeping(for_folds=True))
    with pytest.raises(UsageError, match="`group_by` makes 3 groups"):
        fold_datasets(by_class, 4, seed=0)
