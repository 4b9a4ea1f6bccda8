"""Opening data of every kind with open_dataset."""

import shutil
from pathlib import Path
from typing import Any

import pytest

import resnetkit
from resnetkit.data.dataset import open_dataset
from resnetkit.data.samples import Samples
from resnetkit.errors import DataError, UsageError


def test_folder_and_its_flags(picture_folder: Path) -> None:
    dataset = open_dataset(str(picture_folder), val_fraction=0.1, seed=7)
    assert (len(dataset.train or ()), len(dataset.val or ())) == (54, 6)
    assert dataset.name == str(picture_folder)
    assert (dataset.split["seed"], dataset.split["val_fraction"]) == (7, 0.1)
    (picture_folder / "cat" / "notes.txt").touch()
    assert len(open_dataset(str(picture_folder)).skipped) == 1
    with pytest.raises(DataError, match=r"notes.txt: not a picture by its suffix"):
        open_dataset(str(picture_folder), strict=True)


def test_csv(picture_folder: Path) -> None:
    path = picture_folder / "labels.csv"
    path.write_text("path,label\ncat/cat 00.png,cat\ncat/cat 01.jpg,cat\n")
    assert len(open_dataset(str(path)).val or ()) == 1
    shutil.move(path, path.with_suffix(".CSV"))
    assert len(open_dataset(str(path.with_suffix(".CSV")), val_fraction=0).train or ()) == 2


def test_a_name_wins_over_a_folder_unless_it_is_a_path(picture_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(picture_folder.parent)
    picture_folder.rename("cifar10")
    assert open_dataset("./cifar10").classes == ("cat", "frog", "ship")
    with pytest.raises(DataError, match="can't get cifar10"):
        open_dataset("cifar10")


def test_home_folder(picture_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(picture_folder.parent))
    assert len(open_dataset("~/pictures").train or ()) == 48


def test_folder_with_official_files(cifar_subset: tuple[Samples, Samples], tmp_path: Path) -> None:
    for i in range(1, 6):
        (tmp_path / f"data_batch_{i}.bin").write_bytes(bytes(3073))
    (tmp_path / "test_batch.bin").write_bytes(bytes(3073))
    with pytest.raises(DataError, match="has 5 train pictures and 5 labels, not 50000"):
        open_dataset(str(tmp_path))


@pytest.mark.parametrize("data", ["cifar-10", "CIFAR10"])
def test_near_names(data: str) -> None:
    with pytest.raises(DataError, match=r"did you mean cifar10\?\); give cifar10, cifar100, a folder or a .csv file"):
        open_dataset(data)


def test_what_is_not_data(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere: no such data; give cifar10, cifar100, a folder or a .csv file"):
        open_dataset(str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match=r"nowhere.csv can't be read: No such file or directory"):
        open_dataset(str(tmp_path / "nowhere.csv"))
    (tmp_path / "data.zip").touch()
    with pytest.raises(DataError, match=r"data.zip is a broken archive"):
        open_dataset(str(tmp_path / "data.zip"))


def test_wrong_values(picture_folder: Path) -> None:
    with pytest.raises(UsageError, match=r"`val_fraction` is 1.5; it must be at least 0 and less than 1"):
        open_dataset(str(picture_folder), val_fraction=1.5)
    with pytest.raises(UsageError, match="`train_split` is 'all'; choose one of 45k, 50k"):
        open_dataset("cifar10", train_split="all")


def test_a_path_is_a_path(picture_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(open_dataset(picture_folder).train or ()) == 48
    monkeypatch.chdir(picture_folder.parent)
    picture_folder.rename("cifar10")
    assert open_dataset(Path("cifar10")).classes == ("cat", "frog", "ship")
    for missing in (Path("missing"), "missing", "m" * 300):
        with pytest.raises(DataError, match=r"give cifar10, cifar100, a folder or a \.csv file"):
            resnetkit.train(resnetkit.Recipe(), missing, out="run", quiet=True)


@pytest.mark.parametrize("wrong", [None, 3, ["photos"], b"photos", ""])
def test_what_is_no_data_at_all(wrong: Any) -> None:
    with pytest.raises(UsageError, match=r"`data` is .*; give cifar10, cifar100, a folder or a .csv file"):
        open_dataset(wrong)
