"""Folders as people unpack them: parts by any of their names, wrappers, pictures without labels, and two readings."""

from pathlib import Path

import pytest

from resnetkit.data.dataset import open_dataset
from resnetkit.data.imagenet import wnid_places
from resnetkit.data.parts import open_as_trained
from resnetkit.data.reading import part_of
from resnetkit.data.samples import Samples
from resnetkit.errors import DataError, UsageError
from resnetkit.models.published import imagenet_classes

NO_LABEL = "pictures without class folders: unlabelled, left out"


def touch(root: Path, *paths: str) -> None:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()


def fill(root: Path, *folders: str, count: int = 2) -> None:
    """Pictures right in each of these folders."""
    touch(root, *(f"{folder}/{i}.png" for folder in folders for i in range(count)))


def divided(*parts: str, classes: tuple[str, ...] = ("a", "b")) -> list[str]:
    return [f"{part}/{label}" for part in parts for label in classes]


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("train", "train"),
        ("Training", "train"),
        ("TRAIN", "train"),
        ("train_set", "train"),
        ("trainset", "train"),
        ("seg_train", "train"),
        ("train2017", "train"),
        ("TrainingImages", "train"),
        ("train-images", "train"),
        ("ILSVRC2012_img_val", "val"),
        ("valid", "val"),
        ("Validation Set", "val"),
        ("dev", "val"),
        ("Testing", "test"),
        ("test1", "test"),
        ("PrivateTest", "test"),
        ("evaluation", "test"),
        ("trainval", None),
        ("train_test_split", None),
        ("latest", None),
        ("trains", None),
        ("testament", None),
        ("value", None),
        ("validated", None),
        ("images", None),
    ],
)
def test_names_of_parts(name: str, part: str | None) -> None:
    assert part_of(name) == part


@pytest.mark.parametrize(
    ("folders", "sizes", "understood"),
    [
        (divided("train", "test"), (2, 2, 4), ()),
        (divided("Train", "Validation"), (4, 4, 0), ()),
        (divided("Training", "Testing"), (2, 2, 4), ("parts: train = Training/, test = Testing/",)),
        (divided("train_set", "test_set"), (2, 2, 4), ("parts: train = train_set/, test = test_set/",)),
        (divided("train", "dev"), (4, 4, 0), ("parts: train = train/, val = dev/",)),
        (
            divided("training", "validation", "evaluation"),
            (4, 4, 4),
            ("parts: train = training/, val = validation/, test = evaluation/",),
        ),
        (
            [*divided("seg_train/seg_train", "seg_test/seg_test"), "seg_pred/seg_pred"],
            (2, 2, 4),
            ("parts: train = seg_train/seg_train/, test = seg_test/seg_test/", f"seg_pred/ holds {NO_LABEL}"),
        ),
        (
            divided("seg_train/seg_train", "seg_test/seg_test"),
            (2, 2, 4),
            ("parts: train = seg_train/seg_train/, test = seg_test/seg_test/",),
        ),
        (divided("archive/data/train", "archive/data/val"), (4, 4, 0), (
            "parts: train = archive/data/train/, val = archive/data/val/",)),
        (divided("photos/photos"), (2, 2, 0), ("class folders: those in photos/photos/",)),
        ([*divided("train", "val"), "test"], (4, 4, 0), (f"test/ holds {NO_LABEL}",)),
        ([*divided("train"), "test/test"], (2, 2, 0), (f"test/ holds {NO_LABEL}",)),
        ([*divided("train"), "test1/unknown"], (2, 2, 0), (f"test1/ holds {NO_LABEL}",)),
        (["a/train", "a/test", "b/train", "b/test"], (2, 2, 4), (
            "parts: train = <class>/train/, test = <class>/test/",)),
        (["bus", "train"], (2, 2, 0), ()),  # a class of vehicles
        (["a/x", "a/y", "b/x"], (4, 2, 0), ()),  # folders within a class
        ([*divided("train", "val", classes=("a",)), "train/b", "train/a/deep", "val/a/deep"], (6, 4, 0), ()),
    ],
)  # fmt: skip
def test_forms(tmp_path: Path, folders: list[str], sizes: tuple[int, int, int], understood: tuple[str, ...]) -> None:
    fill(tmp_path, *folders)
    dataset = open_dataset(tmp_path)
    assert dataset.understood == understood
    assert dataset.classes == (("bus", "train") if "bus" in folders else ("a", "b"))
    assert (len(dataset.train or ()), len(dataset.val or ()), len(dataset.test or ())) == sizes
    assert dataset.notes[: len(understood)] == understood
    open_dataset(tmp_path, strict=True)  # nothing of this is a fault


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (
            [*divided("train"), "bus/city", "tram"],
            r"also pictures in bus/. It can be read in two ways: as parts, without bus/, tram/: `parts` train=train; "
            r"or as classes, train/, bus/, tram/: `parts` none",
        ),
        (
            divided("Training", "Testing", "Extra"),
            r"without Extra/: `parts` train=Training,test=Testing; or as classes, Training/, Testing/, Extra/: "
            r"`parts` none",
        ),
        (
            divided("train", "train_more"),
            r"two folders for train, one of them train_more/; merge them, or say which it is: `parts` train=train; or, "
            r"if train/ and train_more/ are classes: `parts` none",
        ),
        (
            ["Training", "Testing"],
            r"can be read in two ways. Testing/, Training/ may be parts, .* a list with a line path,label per picture "
            r"is what to give. Or they are classes: give `parts` none",
        ),
    ],
)
def test_two_readings_are_refused_with_what_settles_it(tmp_path: Path, folders: list[str], message: str) -> None:
    fill(tmp_path, *folders)
    with pytest.raises(DataError, match=message):
        open_dataset(tmp_path)
    assert "Training" in (classes := open_dataset(tmp_path, parts="none").classes) or "train" in classes


def test_a_flat_set_with_a_list_of_its_labels(tmp_path: Path) -> None:
    fill(tmp_path, "train", "test")
    touch(tmp_path, "train.csv")
    with pytest.raises(DataError, match=rf"then the labels are elsewhere, and {tmp_path}/train.csv is what to give"):
        open_dataset(tmp_path)


def test_parts_that_are_said(tmp_path: Path) -> None:
    fill(tmp_path, *divided("Training", "Extra", "set, 2=b"))
    dataset = open_dataset(tmp_path, parts="train=Training,val=set, 2=b")
    assert dataset.understood == ("parts: train = Training/, val = set, 2=b/",)
    assert (len(dataset.train or ()), len(dataset.val or ()), dataset.test) == (4, 4, None)
    assert dataset.split["read_as"] == {"parts": "train=Training,val=set, 2=b"}
    both = open_dataset(tmp_path, parts="train=Training,train=Extra,test=set, 2=b", val_fraction=0)
    assert (len(both.train or ()), len(both.test or ())) == (8, 4)
    with pytest.raises(UsageError, match=r"`parts`: .* has no folder Val; it has Extra/, Training/, set, 2=b/"):
        open_dataset(tmp_path, parts="train=Training,val=Val")
    for wrong in ("Training", "train=", "", "all=Training"):
        with pytest.raises(UsageError, match=r"`parts` is .*; give train=DIR,val=DIR,test=DIR"):
            open_dataset(tmp_path, parts=wrong)
    for wrong in ("images", "path_column"):
        with pytest.raises(UsageError, match=f"`{wrong}` has no use here: .* is a folder"):
            open_dataset(tmp_path, **{wrong: "x"})
    with pytest.raises(UsageError, match="`parts` has no use here: cifar10 is known"):
        open_dataset("cifar10", parts="none")


def test_a_set_is_evaluated_as_it_was_trained(tmp_path: Path) -> None:
    """What settled two readings at the training is in the model file; other data is read for itself."""
    fill(tmp_path, *divided("one/Training", "one/Extra"))
    fill(tmp_path, *divided("other/train", "other/test"))
    trained_on = {"split": open_dataset(tmp_path / "one", parts="train=Training").split}
    again = open_as_trained(str(tmp_path / "one"), trained_on)
    assert (len(again.train or ()), len(again.val or ())) == (2, 2)
    assert len(open_as_trained(str(tmp_path / "other"), trained_on).test or ()) == 4


@pytest.mark.parametrize("name", ["data.zip", "data.tar.gz", "data.tgz", "data.TAR", "data.7z"])
def test_archives_are_named_with_how_to_unpack_them(tmp_path: Path, name: str) -> None:
    touch(tmp_path, name)
    module = {"data.zip": "zipfile", "data.7z": None}.get(name, "tarfile")
    how = f"with: python -m {module} -e {tmp_path}/{name} {tmp_path}/data" if module else f"into {tmp_path}/data"
    with pytest.raises(DataError, match=rf"{name} is a file of another kind, an archive; unpack it {how}; then give"):
        open_dataset(tmp_path / name)


def test_wrappers_keep_the_division(tmp_path: Path) -> None:
    fill(tmp_path, *divided("photos/photos"), count=10)
    outer, inner = open_dataset(tmp_path), open_dataset(tmp_path / "photos" / "photos")
    assert outer.val is not None
    assert inner.val is not None
    assert outer.val.paths == inner.val.paths
    assert open_dataset(tmp_path, parts="none").classes == ("photos",)


# ImageNet's own names


def test_wordnet_numbers_are_imagenets_classes(tmp_path: Path) -> None:
    fill(tmp_path, "n15075141", "n01440764", "n02123045", count=1)
    dataset = open_dataset(tmp_path, val_fraction=0)
    assert isinstance(dataset.train, Samples)
    classes = imagenet_classes()
    assert dataset.train.as_classes(classes).labels.tolist() == [0, 281, 999]
    assert (classes[0], classes[281]) == ("tench", "tabby")
    assert list(wnid_places()) == sorted(wnid_places())
    assert len(wnid_places()) == 1000
    fill(tmp_path, "n00000000", count=1)
    with pytest.raises(DataError, match=r"1 of 4 classes are not the model's: 'n00000000'"):
        (open_dataset(tmp_path, val_fraction=0).train or dataset.train).as_classes(classes)
    with pytest.raises(DataError, match="the model knows other classes"):
        dataset.train.as_classes(tuple(map(str, range(1000))))
