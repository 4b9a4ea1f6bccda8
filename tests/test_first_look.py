"""What a training says of its pictures before it begins, and how it divides them."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from resnetkit.data import first_look
from resnetkit.data.dataset import open_dataset, open_read
from resnetkit.data.division import Keeping
from resnetkit.data.first_look import FirstLook
from resnetkit.data.parts import open_as_trained
from resnetkit.data.reading import NOTHING
from resnetkit.errors import DataError
from resnetkit.train.recipe import RECIPES
from resnetkit.train.run import open_new


def test_given_parts_that_leak_and_contradict(split_folder: Path) -> None:
    train, test = split_folder / "train", split_folder / "test"
    assert FirstLook().remarks(open_dataset(split_folder)) == []
    shutil.copy(train / "cat" / "cat 00.png", test / "dog" / "a copy.png")
    dataset = open_dataset(split_folder, val_fraction=0)
    leak, contradiction, more = FirstLook().remarks(dataset)
    assert leak == (
        "leak: 1 group of same or alike pictures is in train and in test, so the error on test is too low; first "
        f"{train}/cat/cat 00.png and {test}/dog/a copy.png"
    )
    assert contradiction == (
        "contradiction: 1 group of same or alike pictures is in several classes; first "
        f"{train}/cat/cat 00.png and {test}/dog/a copy.png (cat, dog)"
    )
    assert more == "resnetkit data check names them all"


def test_large_sets_are_not_compared(split_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_look, "MOST_LOOKED_AT", 419)
    assert FirstLook().remarks(open_dataset(split_folder)) == [
        "420 pictures are not compared with each other; resnetkit data check does that"
    ]
    monkeypatch.setattr(first_look, "MOST_LOOKED_AT", 420)
    assert FirstLook().remarks(open_dataset(split_folder)) == []


def test_a_drawn_val_has_no_picture_that_is_alike_to_one_of_train(picture_folder: Path) -> None:
    for path in sorted(picture_folder.glob("*/*.png"))[::3]:
        pixels = np.asarray(Image.open(path).resize((70, 70)))
        Image.fromarray(pixels[1:, 2:]).save(path.with_suffix(".cut.jpg"), quality=95)
        Image.fromarray(pixels[:, ::-1]).save(path.with_suffix(".mirrored.jpg"), quality=95)
    looked: list[int] = []
    look = FirstLook(workers=0, advance=looked.append)
    dataset = open_read(picture_folder, NOTHING, keeping=Keeping(look.alike_of))
    assert look.remarks(dataset) == []
    assert sum(looked) == 80, "each picture is decoded once"
    stems = {
        part: {path.name.partition(".")[0] for path in dataset.parts[part].paths or ()} for part in ("train", "val")
    }
    copied = {path.name.partition(".")[0] for path in picture_folder.glob("*/*.cut.jpg")}
    assert len(copied) == 10
    assert not stems["train"] & stems["val"] & copied
    assert "moved" in dataset.split
    again = open_as_trained(str(picture_folder), {"split": dict(dataset.split)})
    assert again.val is not None
    assert dataset.val is not None
    assert again.val.paths == dataset.val.paths


def test_unreadable_files_are_named_before_a_training(picture_folder: Path, tmp_path: Path) -> None:
    broken = [picture_folder / "cat" / f"broken {number}.jpg" for number in range(12)]
    for number, path in enumerate(broken):
        path.write_bytes(b"\xff\xd8 no picture" if number else b"")
    said = FirstLook(workers=0).remarks(open_dataset(picture_folder))
    assert said[0] == f"unreadable: {broken[0]}: the file is empty (0 bytes)"
    assert len([line for line in said if line.startswith(f"unreadable: {picture_folder}")]) == 10
    assert said[-2:] == [
        "unreadable: 2 more files; resnetkit data check names them",
        "12 unreadable pictures are left out; resnetkit data check --fix moves them aside",
    ]
    with pytest.raises(DataError, match=r"broken 0.jpg: the file is empty \(0 bytes\) \(and 11 more\)\. .*`strict`"):
        open_new(RECIPES["folder"].replace(strict=True), picture_folder, NOTHING)
