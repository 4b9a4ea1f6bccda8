"""The pictures that calibrate and the pictures that judge."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from resnetkit.data.dataset import open_dataset
from resnetkit.data.parts import record
from resnetkit.data.samples import Samples
from resnetkit.data.transforms.preprocess import Preprocess
from resnetkit.errors import DataError
from resnetkit.infer.quantizing.calibration import CALIBRATION, TuningPictures, read_tuning_pictures
from resnetkit.modelfile import Header
from resnetkit.models.spec import SPECS

CLASSES = ("cat", "frog", "ship")


def header(classes: tuple[str, ...] = CLASSES) -> Header:
    return Header(replace(SPECS["resnet20"], classes=len(classes)), Preprocess(size=32), classes)


def disjoint(material: TuningPictures) -> bool:
    assert material.calibration is not None
    both = {picture.tobytes() for picture in material.calibration} & {picture.tobytes() for picture in material.judged}
    return not both


def test_one_part_is_divided(picture_folder: Path) -> None:
    material = read_tuning_pictures(header(), str(picture_folder), None, most=1000)
    assert material.calibration is not None
    assert (len(material.calibration), len(material.judged)) == (30, 30)  # of 60
    assert material.labels is not None
    assert set(material.labels) == {0, 1, 2}
    assert disjoint(material)


def test_labels_stay_with_their_pictures(picture_folder: Path) -> None:
    material = read_tuning_pictures(header(("ship", "cat", "frog")), str(picture_folder), None, most=1000)
    by_name = {
        np.asarray(Image.open(path).convert("RGB")).tobytes(): path.parent.name for path in picture_folder.rglob("*.*")
    }
    assert material.labels is not None
    found = [by_name[picture.tobytes()] for picture in material.judged]
    assert found == [("ship", "cat", "frog")[label] for label in material.labels]


def test_train_calibrates_and_test_judges(split_folder: Path, cifar_subset: tuple[Samples, Samples]) -> None:
    train, _ = cifar_subset
    material = read_tuning_pictures(header(train.classes), str(split_folder), None, most=1000)
    assert material.calibration is not None
    assert len(material.calibration) == CALIBRATION
    # The folder has no val, so a fifth of train becomes that, and test is not touched.
    assert len(material.judged) == 60
    assert disjoint(material)


def test_what_the_network_was_trained_on_is_divided_as_then(picture_folder: Path) -> None:
    dataset = open_dataset(str(picture_folder), seed=3)
    assert dataset.train is not None
    assert dataset.val is not None
    trained = replace(header(), data={"fingerprint": dataset.train.fingerprint(), "split": dict(dataset.split)})
    material = read_tuning_pictures(trained, str(picture_folder), None, most=1000)
    assert material.labels is not None
    assert len(material.judged) == len(dataset.val) == 12
    again = read_tuning_pictures(trained, str(picture_folder), str(picture_folder), most=1000)  # held out, again
    assert {p.tobytes() for p in again.judged} == {p.tobytes() for p in material.judged}


def test_an_error_on_training_pictures_alone_is_not_given(picture_folder: Path, tmp_path: Path) -> None:
    train = open_dataset(str(picture_folder), val_fraction=0.0).train
    assert train is not None
    data = {"fingerprint": train.fingerprint(), "split": {"rule": "as given"}, "pictures": record(train)}
    trained = replace(header(), data=data)
    some = tmp_path / "some"
    shutil.copytree(picture_folder, some)
    shutil.rmtree(some / "ship")
    for folder, count in ((picture_folder, 30), (some, 20)):
        material = read_tuning_pictures(trained, str(folder), None, most=1000)
        assert (material.labels, len(material.judged)) == (None, count)
    assert read_tuning_pictures(header(), str(some), None, most=1000).labels is not None


def test_others_calibrate(picture_folder: Path, split_folder: Path) -> None:
    material = read_tuning_pictures(header(), str(picture_folder), str(split_folder / "test"), most=1000)
    assert material.calibration is not None
    assert (len(material.judged), len(material.calibration)) == (60, 100)  # of 120, two of each class are val


def test_a_folder_of_other_things_has_no_labels(picture_folder: Path) -> None:
    material = read_tuning_pictures(header(("a", "b")), str(picture_folder), None, most=1000)
    assert material.labels is None
    assert len(material.judged) == 30


def test_a_folder_without_folders_has_no_labels(picture_folder: Path) -> None:
    material = read_tuning_pictures(header(), str(picture_folder / "cat"), None, most=5)
    assert material.labels is None
    assert len(material.judged) == 5


def test_broken_pictures_are_left_out_and_said(picture_folder: Path) -> None:
    (picture_folder / "cat" / "cat 00.png").write_bytes(b"no picture")
    material = read_tuning_pictures(header(), str(picture_folder), None, most=1000)
    assert material.calibration is not None
    assert len(material.judged) + len(material.calibration) == 59
    assert "1 pictures can't be read" in material.about[-1]


def test_nothing_given_is_judged_by_the_packages_pictures() -> None:
    material = read_tuning_pictures(header(), None, None, most=1000)
    assert material.calibration is None
    assert material.labels is None
    assert material.judged.shape == (16, 32, 32, 3)


def test_nothing_readable_is_an_error(tmp_path: Path, picture_folder: Path) -> None:
    folder = tmp_path / "broken"
    folder.mkdir()
    (folder / "a.png").write_bytes(b"")
    (folder / "b.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"none of the .* can be read"):
        read_tuning_pictures(header(), str(folder), None, most=10)
    (picture_folder / "cat" / "cat 00.png").rename(folder / "a.png")
    (folder / "b.png").unlink()
    with pytest.raises(DataError, match="has too few pictures: some must calibrate and others judge"):
        read_tuning_pictures(header(), str(folder), None, most=10)
    shutil.rmtree(folder)
    with pytest.raises(DataError, match="no such data"):
        read_tuning_pictures(header(), str(folder), None, most=10)
