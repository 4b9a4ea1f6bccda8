"""Corrections of labels: in every form of a path and of a list, without changing the division, and refused in words."""

from pathlib import Path

import numpy as np
import pytest

from resnetkit.data.corrections import corrected, kept_labels, read_corrections
from resnetkit.data.dataset import open_dataset
from resnetkit.data.parts import open_as_trained
from resnetkit.data.reading import Reading
from resnetkit.data.samples import Dataset
from resnetkit.errors import DataError, UsageError

CLASSES = ("cat", "dog", "owl")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """photos/<class>/<number>.png, ten of each class. Their content does not matter."""
    for name in CLASSES:
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(10):
            (tmp_path / "photos" / name / f"{number}.png").touch()
    return tmp_path / "photos"


def labels(dataset: Dataset) -> dict[str, tuple[str, str]]:
    """The part and the class of each picture, by the last two names of its path."""
    return {
        f"{path.parent.name}/{path.name}": (part, samples.classes[label])
        for part, samples in dataset.parts.items()
        for path, label in zip(samples.paths or (), samples.labels, strict=True)
    }


def write(folder: Path, text: str) -> Path:
    (folder / "c.csv").write_text(text, encoding="utf-8")
    return folder / "c.csv"


def test_pictures_get_another_class_or_are_left_out_and_the_division_stays(photos: Path) -> None:
    file = write(photos.parent, "path,action,label\ncat/1.png,relabel,dog\ndog/2.png,drop,\nowl/3.png,keep,\n")
    before, after = labels(open_dataset(photos)), labels(open_dataset(photos, corrections=file))
    assert after["cat/1.png"] == (before["cat/1.png"][0], "dog")
    assert "dog/2.png" not in after
    changed = {name for name in before if before[name] != after.get(name)}
    assert changed == {"cat/1.png", "dog/2.png"}
    assert open_dataset(photos, corrections=file).understood == ("c.csv: 1 picture got another class, 1 left out",)
    assert {path.name for path in kept_labels(open_dataset(photos), file)} == {"1.png", "3.png"}


@pytest.mark.parametrize(
    "text",
    [
        "path,action,label\n{root}/cat/1.png,relabel,dog\n",
        "path,action,label\ncat/1.png,Relabel,dog\n",
        "path,label\ncat/1.png,dog\n",
        "\ufeffPath;Action;Label\r\ncat/1.png;relabel;dog\r\n",
        "sep=;\npath;label;action\ncat\\1.png;dog;relabel\n",
        "action\tpath\tlabel\nrelabel\t./cat/1.png\tdog\nrelabel\tcat/1.png\tdog\n",
        "path,action,label,note\nphotos/cat/1.png,relabel,dog,from where the command runs\n",
        "path,action,label\ncat/1.png,relabel,dog\ncat/2.png,relabel,cat\n",
    ],
)
def test_forms(photos: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(photos.parent)
    file = write(photos.parent, text.format(root=photos))
    after = labels(open_dataset("photos", corrections=file))
    assert after["cat/1.png"][1] == "dog"
    assert sum(name.split("/")[0] != label for name, (_, label) in after.items()) == 1


def test_a_list_is_corrected_too(photos: Path) -> None:
    rows = [f"photos/{name}/{number}.png,{name}" for name in CLASSES for number in range(4)]
    (photos.parent / "list.csv").write_text("\n".join(["path,label", *rows]))
    file = write(photos.parent, "path,action,label\nphotos/owl/0.png,relabel,cat\n")
    assert labels(open_dataset(photos.parent / "list.csv", corrections=file))["owl/0.png"][1] == "cat"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("path,action,label\ncat/99.png,drop,\n", r"c.csv, line 2: cat/99.png is not in .*photos$"),
        ("path,action,label\nbirds/7.PNG,drop,\n", r"line 2: .* did you mean .*7.png\?"),
        ("path,action,label\ncat/1.png,relabel,dgo\n", r"line 2: there is no class 'dgo'; did you mean dog\?"),
        ("path,action,label\ncat/1.png,relabel,4711\n", "no class '4711'; the classes are cat, dog, owl"),
        ("path,action,label\ncat/1.png,delete,\n", "line 2: action is 'delete'; it must be relabel, drop or keep"),
        ("path,action,label\ncat/1.png,relabel,\n", "line 2: relabel needs a class"),
        ("path,action,label\n,drop,\n", "line 2: the path is empty"),
        ("picture,what\ncat/1.png,drop\n", "line 1: expected the columns path,action,label, found picture, what"),
        (
            "path,action,label\ncat/1.png,drop,\ncat/1.png,relabel,dog\n",
            "line 3: cat/1.png has another correction in line 2",
        ),
        (
            "path,action,label\nx.png,drop,\ncat/1.png,relabel,x\n",
            "2 lines to fix:\n  line 2: x.png.*\n  line 3: there",
        ),
        (
            "path,action,label\n" + "".join(f"owl/{number}.png,drop,\n" for number in range(10)),
            "leaves no training picture of 'owl'",
        ),
        (
            "path,action,label\n" + "".join(f"{name}/{n}.png,drop,\n" for name in CLASSES for n in range(10)),
            "leaves out all train pictures",
        ),
        ("path,action,label\n" + "".join(f"{n}.png,drop,\n" for n in range(30)), "and 10 more$"),
    ],
)
def test_what_does_not_fit_is_an_error_that_names_the_line(photos: Path, text: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        open_dataset(photos, corrections=write(photos.parent, text))


def test_a_file_that_can_not_be_read(photos: Path) -> None:
    with pytest.raises(DataError, match=r"none.csv can't be read: No such file"):
        open_dataset(photos, corrections=photos.parent / "none.csv")
    (photos.parent / "c.csv").write_bytes(b"path,action,label\ncat/\xe9.png,drop,\n")
    with pytest.raises(DataError, match="not UTF-8"):
        read_corrections(photos.parent / "c.csv")


def test_pictures_in_memory_have_no_paths_to_correct(tmp_path: Path) -> None:
    file = write(tmp_path, "path,action,label\n1,drop,\n")
    with pytest.raises(UsageError, match="`corrections` has no use here: the pictures of cifar10 are not files"):
        open_dataset("cifar10", corrections=file)


def test_corrections_are_those_of_this_machine_and_travel_in_no_model_file(photos: Path) -> None:
    file = write(photos.parent, "path,action,label\ncat/1.png,relabel,dog\n")
    reading = Reading(corrections=str(file))
    assert reading.recorded() == {}
    assert reading.settled().corrections == str(file)
    dataset = open_dataset(photos, corrections=file)
    assert dataset.split == open_dataset(photos).split
    trained_on = {"split": dict(dataset.split)}
    assert labels(open_as_trained(str(photos), trained_on, reading=reading)) == labels(dataset)
    plain = open_as_trained(str(photos), trained_on)
    assert plain.val is not None
    assert dataset.val is not None
    assert plain.val.paths == dataset.val.paths


def test_labels_of_the_data_are_not_changed_in_place(photos: Path) -> None:
    dataset = open_dataset(photos)
    before = {name: samples.labels.copy() for name, samples in dataset.parts.items()}
    corrected(dataset, write(photos.parent, "path,action,label\ncat/1.png,relabel,dog\n"))
    for name, samples in dataset.parts.items():
        np.testing.assert_array_equal(samples.labels, before[name])


def test_a_run_records_its_corrections_and_a_resumed_one_uses_them(photos: Path) -> None:
    from resnetkit.data.reading import reading_of
    from resnetkit.train.recipe import Recipe
    from resnetkit.train.run import open_for, pictures_of

    file = write(photos.parent, "path,action,label\n" + "".join(f"cat/{n}.png,relabel,dog\n" for n in range(5)))
    reading = Reading(corrections=str(file))
    first = open_for(Recipe(), photos, reading.settled())
    resumed = open_for(Recipe(), photos, reading_of(reading.settled().given()))
    assert pictures_of(first) == pictures_of(resumed)
    assert pictures_of(first) != pictures_of(open_for(Recipe(), photos))
