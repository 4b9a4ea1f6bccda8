"""Lists with several labels for a picture: how they are read, divided and checked."""

from pathlib import Path

import numpy as np
import pytest

from resnetkit.data.check import check
from resnetkit.data.dataset import open_dataset
from resnetkit.data.lists.labels import separator_of
from resnetkit.data.samples import Dataset, Samples
from resnetkit.errors import DataError, UsageError
from tags import tag_list, tagged

NAMES = ("a.png", "b.png", "c.png", "d.png")


@pytest.fixture
def here(tmp_path: Path) -> Path:
    tagged(tmp_path / "made", count=4)
    for made, name in zip(sorted((tmp_path / "made").iterdir()), NAMES, strict=True):
        made.rename(tmp_path / name)
    return tmp_path


def labels_of(dataset: Dataset) -> dict[str, set[str]]:
    found = {}
    for samples in dataset.parts.values():
        assert samples.several
        for path, row in zip(samples.paths or (), samples.labels, strict=True):
            found[path.name] = {samples.classes[i] for i in np.flatnonzero(row)}
    return found


CAT_DOG = {"a.png": {"cat", "dog"}, "b.png": {"dog"}, "c.png": {"cat"}, "d.png": {"dog"}}
WITH_NONE = CAT_DOG | {"d.png": set()}


@pytest.mark.parametrize(
    ("text", "labels", "expected", "said"),
    [
        ("path,labels\na.png,cat|dog\nb.png,dog\nc.png,cat\nd.png,dog\n", None, CAT_DOG, "separated by bars"),
        ("path,label\na.png,cat|dog\nb.png,dog\nc.png,cat\nd.png,dog\n", None, CAT_DOG, "separated by bars"),
        ('path,label\na.png,"cat,dog"\nb.png,dog\nc.png,cat\nd.png,dog\n', None, CAT_DOG, "separated by commas"),
        ("path,tags\na.png,cat; dog\nb.png,dog\nc.png,cat\nd.png,\n", None, WITH_NONE, "separated by semicolons"),
        ("path,tags\na.png,dog cat\nb.png,dog\nc.png,cat\nd.png,\n", None, WITH_NONE, "separated by spaces"),
        ("path,author,tags\na.png,x,dog cat\nb.png,x,dog\nc.png,y,cat\nd.png,x,\n", None, WITH_NONE, "spaces"),
        ("path,cat,dog\na.png,1,1\nb.png,0,1\nc.png,1,0\nd.png,0,0\n", None, WITH_NONE, "the 2 columns cat to dog"),
        ("path,cat,dog\na.png,True,True\nb.png,False,True\nc.png,True,False\nd.png,False,False\n", None, WITH_NONE,
         "the 2 columns"),
        ("path,label\na.png,cat\na.png,dog\nb.png,dog\nc.png,cat\nd.png,\n", "several", WITH_NONE, "one in a row"),
        ("path,label\na.png,cat|dog\nb.png,dog\nc.png,cat\nd.png,\nd.png,dog\n", None, CAT_DOG, "bars"),
    ],
)  # fmt: skip
def test_forms(here: Path, text: str, labels: str | None, expected: dict[str, set[str]], said: str) -> None:
    path = here / "x.csv"
    path.write_text(text)
    dataset = open_dataset(path, val_fraction=0, labels=labels)  # pyrefly: ignore
    assert labels_of(dataset) == expected
    assert dataset.classes == ("cat", "dog")
    assert any("several labels for a picture" in one and said in one for one in dataset.understood)
    assert dataset.split["labels"] == "several"


def test_json_lines_and_numbers_with_names(here: Path) -> None:
    path = here / "x.jsonl"
    path.write_text(
        '{"path": "a.png", "labels": [0, 1]}\n{"path": "b.png", "labels": [1]}\n'
        '{"path": "c.png", "labels": [0]}\n{"path": "d.png", "labels": []}\n'
    )
    (here / "classes.txt").write_text("cat\ndog\n")
    assert labels_of(open_dataset(path, val_fraction=0)) == WITH_NONE


def test_columns_that_are_named(here: Path) -> None:
    path = here / "x.csv"
    path.write_text("path,age,cat,dog\na.png,7,1,1\nb.png,6,0,1\nc.png,5,1,0\nd.png,4,0,0\n")
    with pytest.raises(DataError, match="no label column"):
        open_dataset(path)
    assert labels_of(open_dataset(path, val_fraction=0, label_column="cat,dog")) == WITH_NONE


@pytest.mark.parametrize(
    ("text", "labels", "error"),
    [
        ("path,labels\na.png,cat dog\nb.png,dog\nc.png,cat\n", None,
         r"line 2: a.png may have 2 labels \(cat, dog\), or be of one class 'cat dog'; separate labels by |"),
        ("path,label\na.png,cat\na.png,dog\nb.png,dog\n", None,
         r"line 3: a.png is 'dog', but 'cat' in line 2; remove one of them, or give `labels` several"),
        ("path,cat,dog\na.png,1,0\nb.png,0,0\n", None, "line 3: b.png has no label; one of its columns must be 1"),
        ("path,cat,dog\na.png,1,1\nb.png,0,1\n", "one", r"line 2: a.png has 2 labels \(cat, dog\); keep one, or give"),
        ("path,cat,dog\na.png,1,1\nb.png,0,-1\n", None, "line 2|'-1' among columns|no label column"),
        ("path,tags\na.png,cat\nb.png,\n", None, "line 3: the label is empty; fill it in or remove the line, or give"),
        ("path,label,split\na.png,cat,train\na.png,dog,val\n", "several", "line 3: a.png is for val, but for train"),
    ],
)  # fmt: skip
def test_what_is_not_plain_is_refused(here: Path, text: str, labels: str | None, error: str) -> None:
    path = here / "x.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=error):
        open_dataset(path, labels=labels)  # pyrefly: ignore


def test_names_of_classes_are_not_taken_apart() -> None:
    """Synsets of ImageNet, and names of two words, in a column that could contain several labels."""
    synsets = {"tench, Tinca tinca", "great white shark, white shark", "tiger shark", "crane", "crane, bird"}
    assert separator_of(synsets, "labels", asked=False) is None
    assert separator_of({"hot dog", "dog", "golden retriever"}, "tags", asked=False) is None
    assert separator_of({"cat|dog"}, "label", asked=False) is None
    assert separator_of({"cat|dog"}, "labels", asked=False) == "|"
    assert separator_of({"haze primary", "clear primary", "haze water", "clear water"}, "tags", asked=False) == " "


def test_labels_is_for_lists(here: Path) -> None:
    with pytest.raises(UsageError, match="`labels` has no use here"):
        open_dataset(here, labels="several")


def test_a_label_that_train_does_not_have(here: Path) -> None:
    path = here / "x.csv"
    path.write_text("path,tags,split\na.png,cat|dog,train\nb.png,dog,train\nc.png,cat|owl,val\nd.png,,val\n")
    dataset = open_dataset(path)
    assert labels_of(dataset)["c.png"] == {"cat"}
    assert "labels that no training picture has are left out: 'owl' (1)" in dataset.understood
    assert "1 picture without a label" in dataset.notes


def test_lists_of_parts(here: Path) -> None:
    (here / "train.csv").write_text("path,tags\na.png,cat|dog\nb.png,dog\nc.png,\n")
    (here / "val.csv").write_text("path,tags\nd.png,cat\n")
    dataset = open_dataset(here / "train.csv")
    assert dataset.val is not None
    assert dataset.val.labels.tolist() == [[1, 0]]
    (here / "train.csv").write_text("path,tags\na.png,cat\nb.png,dog\nc.png,dog\n")
    (here / "val.csv").write_text("path,tags\nd.png,cat|dog\n")
    with pytest.raises(DataError, match=r"val.csv has several labels for a picture, and the list for train has one"):
        open_dataset(here / "train.csv")


def test_a_drawn_val_has_its_share_of_each_label(tmp_path: Path) -> None:
    path = tag_list(tmp_path, count=120)
    dataset = open_dataset(path)
    train, val = dataset.train, dataset.val
    assert train is not None
    assert val is not None
    totals = train.per_class + val.per_class
    assert np.abs(val.per_class - 0.2 * totals).max() <= 1
    alone = [int((part.labels.sum(axis=1) == 0).sum()) for part in (train, val)]
    assert abs(alone[1] - 0.2 * sum(alone)) <= 1
    again, other = open_dataset(path), open_dataset(path, seed=1)
    assert again.val is not None
    assert other.val is not None
    assert again.val.paths == val.paths
    assert set(other.val.paths or ()) != set(val.paths or ())


def test_groups_and_rare_labels_stay_as_they_must(tmp_path: Path) -> None:
    """A label with two pictures is in both parts, one with one picture stays in train; groups are not torn apart."""
    labels = tagged(tmp_path, count=80)
    rows = []
    for number, (name, own) in enumerate(labels.items()):
        more = {5: ["rare"], 50: ["rare"], 7: ["single"]}.get(number, [])
        rows.append(f"{name},{'|'.join([*sorted(own), *more])},g{number // 4}\n")
    path = tmp_path / "x.csv"
    path.write_text("path,tags,patient\n" + "".join(rows))
    dataset = open_dataset(path, group_by="patient")
    assert dataset.train is not None
    assert dataset.val is not None
    per = dict(zip(dataset.classes, zip(dataset.train.per_class, dataset.val.per_class, strict=True), strict=True))
    assert per["rare"] == (1, 1)
    assert per["single"] == (1, 0)
    groups = [{int(path.stem[1:]) // 4 for path in part.paths or ()} for part in (dataset.train, dataset.val)]
    assert not groups[0] & groups[1]
    assert 10 <= len(dataset.val) <= 24


def test_samples() -> None:
    samples = Samples(("a", "b"), np.array([[1, 0], [1, 1], [0, 0]]), np.zeros((3, 2, 2, 3), np.uint8))
    assert [samples.label(i) for i in range(3)] == ["a", "a, b", "no label"]
    assert samples.per_class.tolist() == [2, 1]
    assert samples.subset(np.array([1])).labels.tolist() == [[1, 1]]
    assert samples.as_classes(("b", "x", "a")).labels.tolist() == [[0, 0, 1], [1, 0, 1], [0, 0, 0]]
    one = Samples(("a", "b"), np.array([1, 0]), np.zeros((2, 2, 2, 3), np.uint8))
    assert one.with_several().labels.tolist() == [[0, 1], [1, 0]]
    with pytest.raises(DataError, match="expected 0 and 1"):
        Samples(("a", "b"), np.array([[1, 2]]), np.zeros((1, 2, 2, 3), np.uint8))


def test_check(tmp_path: Path) -> None:
    path = tag_list(tmp_path, count=40)
    labels = dict(line.split(",") for line in path.read_text().splitlines()[1:])
    (tmp_path / "copy.png").write_bytes((tmp_path / "t000.png").read_bytes())
    text = path.read_text() + f"copy.png,{'' if labels['t000.png'] else 'red'}\n"
    path.write_text(text)
    found = check(path, workers=1)
    assert found.labels == "several"
    assert sum(found.pictures.values()) == 41
    none = sum(not row.rpartition(",")[2] for row in text.splitlines()[1:])
    assert sum(found.without_label.values()) == none
    both = sum("red" in row and "green" in row for row in text.splitlines()[1:])
    pair = next(pair for pair in found.together if set(pair.labels) == {"green", "red"})
    assert pair.pictures == both
    assert {"green", "red"} <= set(found.examples)
    assert len(found.contradictions) == 1
    assert not found.sound
    assert found.to_dict()["together"][0]["pictures"] == found.together[0].pictures
