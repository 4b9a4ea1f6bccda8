"""The parts of a data set: the part that evaluates a model, and all parts together."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from resnetkit.data.samples import Dataset, Samples, numbers_imagenet, write_pictures
from resnetkit.errors import DataError
from resnetkit.models.published import imagenet_classes

CLASSES = ("cat", "dog")


def in_memory(*labels: int) -> Samples:
    """Pictures of 2×2 whose pixels are 10 times the label plus the index."""
    pixels = np.array([10 * label + place for place, label in enumerate(labels)], np.uint8)
    return Samples(CLASSES, np.array(labels), np.tile(pixels[:, None, None, None], (1, 2, 2, 3)))


def on_disk(*labels: int) -> Samples:
    return Samples(CLASSES, np.array(labels), paths=tuple(Path(f"{label}-{i}.png") for i, label in enumerate(labels)))


def dataset(split: dict[str, Any] | None = None, **parts: Samples) -> Dataset:
    return Dataset("pets", CLASSES, parts.get("train"), parts.get("val"), parts.get("test"), split or {})


DRAWN = {"seed": 0, "val_fraction": 0.2}


@pytest.mark.parametrize(
    ("parts", "split", "chosen"),
    [
        (("train", "val", "test"), {}, "test"),
        (("train", "val", "test"), DRAWN, "test"),
        (("train", "val"), {}, "val"),
        (("train", "val"), DRAWN, "all"),  # a folder without any division: its val is for training's own use
        (("train", "val"), {"train_split": "45k", "seed": 0}, "all"),
        (("train",), {}, "all"),
        (("val",), {}, "val"),
    ],
)
def test_what_a_model_is_measured_on(parts: tuple[str, ...], split: dict[str, Any], chosen: str) -> None:
    name, samples = dataset(split, **{part: in_memory(0, 1) for part in parts}).part("auto")
    assert name == chosen
    assert len(samples) == (2 if chosen != "all" else 2 * len(parts))


def test_all_is_every_picture_once_in_order() -> None:
    name, samples = dataset(train=in_memory(0, 1), test=in_memory(1, 1, 0)).part("all")
    assert (name, samples.labels.tolist()) == ("all", [0, 1, 1, 1, 0])
    assert samples.images is not None
    assert samples.images[:, 0, 0, 0].tolist() == [0, 11, 10, 11, 2]
    _, samples = dataset(train=on_disk(0, 1), val=on_disk(1)).part("all")
    assert [str(path) for path in samples.paths or ()] == ["0-0.png", "1-1.png", "1-0.png"]


def test_a_part_by_name_or_an_error_that_lists_them() -> None:
    pets = dataset(train=in_memory(0), val=in_memory(1))
    assert pets.part("val") == ("val", pets.val)
    with pytest.raises(DataError, match="pets has no test pictures; it has train, val"):
        pets.part("test")


@pytest.mark.parametrize("channels", [1, 3])
def test_write_pictures(tmp_path: Path, channels: int) -> None:
    samples = in_memory(1, 0, 1)
    assert samples.images is not None
    samples = Samples(("a/b", "dog"), samples.labels, samples.images[..., :channels])
    written, unreadable = write_pictures(samples, tmp_path / "new", count=2)
    assert [path.name for path in written] == ["0001-a-b.png", "0000-dog.png"]
    assert [np.asarray(Image.open(path)).max() for path in written] == [1, 10]
    assert unreadable == {}
    assert len(write_pictures(samples, tmp_path, count=9)[0]) == 3


def test_every_class_has_its_turn_and_unreadable_pictures_lose_theirs(tmp_path: Path) -> None:
    samples = on_disk(0, 0, 0, 0, 1, 1)
    samples = Samples(samples.classes, samples.labels, paths=tuple(tmp_path / path for path in samples.paths or ()))
    for i, path in enumerate(samples.paths or ()):
        Image.new("RGB", (2, 2)).save(path) if i not in (0, 5) else path.touch()
    written, unreadable = write_pictures(samples, tmp_path / "out", count=3)
    assert [path.name for path in written] == ["0004-dog.png", "0001-cat.png", "0002-cat.png"]
    assert unreadable == {
        tmp_path / "0-0.png": "the file is empty (0 bytes)",
        tmp_path / "1-5.png": unreadable[tmp_path / "0-0.png"],
    }
    with pytest.raises(DataError, match="not one of the 2 pictures can be read"):
        write_pictures(samples.subset(np.array([0, 5])), tmp_path / "none", count=3)


MODELS = ("cat", "dog", "owl")


def labelled(*classes: str) -> Samples:
    return Samples(classes, np.arange(len(classes)), np.zeros((len(classes), 2, 2, 3), np.uint8))


@pytest.mark.parametrize(
    ("classes", "labels"),
    [
        (("owl", "cat", "dog"), [2, 0, 1]),
        (("owl", "cat"), [2, 0]),
        (("0", "1", "2"), [0, 1, 2]),
        (("2", "00", "01"), [2, 0, 1]),
    ],
)
def test_classes_by_name_or_by_all_numbers_from_zero(classes: tuple[str, ...], labels: list[int]) -> None:
    assert labelled(*classes).as_classes(MODELS).labels.tolist() == labels


@pytest.mark.parametrize("classes", [("1", "2", "3"), ("0", "1"), ("1", "2"), ("0", "1", "2", "3"), ("1", "01", "0")])
def test_numbers_that_may_count_otherwise_are_refused(classes: tuple[str, ...]) -> None:
    with pytest.raises(DataError) as error:
        labelled(*classes).as_classes(MODELS)
    why = str(error.value)
    assert why.startswith("labels are numbers (")
    assert ("go up to 3, where the model has 3 classes" in why) == ("3" in classes)
    assert ("and only 2 of 3 occur, so they may not be the numbers of the model's classes" in why) == (
        "3" not in classes
    )
    assert "write the class names, one per line, into classes.txt next to the list" in why


def test_numbers_count_imagenets_classes_also_where_some_lack() -> None:
    classes = imagenet_classes()
    assert labelled("0", "999", "281").as_classes(classes).labels.tolist() == [0, 999, 281]
    assert numbers_imagenet(("0", "999", "281"), classes)
    for wrong in (("0", "1000"), ("1", "01"), ("0", "tench")):  # counted from 1, twice the same, and a name
        assert not numbers_imagenet(wrong, classes)
        with pytest.raises(DataError):
            labelled(*wrong).as_classes(classes)
    assert not numbers_imagenet(("0", "1"), tuple(map(str, range(1000))))


def test_numbers_that_the_model_has_as_names_are_names() -> None:
    assert labelled("3", "1", "2").as_classes(("1", "2", "3")).labels.tolist() == [2, 0, 1]
    with pytest.raises(
        DataError, match=r"1 of 3 classes are not the model's: '0'; the model has '1', '2', '3'\. Rename the"
    ):
        labelled("0", "1", "2").as_classes(("1", "2", "3"))


def test_a_model_of_other_classes() -> None:
    with pytest.raises(DataError) as error:
        labelled("ants", "bees", "a", "b").as_classes(MODELS)
    assert str(error.value) == (
        "the model has other classes ('cat', 'dog', 'owl') than these pictures ('ants', 'bees', 'a' and 1 "
        "more). Give a model with these classes, or train one: resnetkit train DATA --init MODEL"
    )
