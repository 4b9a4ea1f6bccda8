"""Pictures that belong together stay in one part, and the division is unchanged where none do."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from resnetkit.data.dataset import open_dataset, open_read
from resnetkit.data.division import SPLIT_RULE, Keeping, Labelled, _choose_groups, _choose_val
from resnetkit.data.groups import group_by, mark, packed, united, unpacked
from resnetkit.data.parts import open_as_trained
from resnetkit.data.reading import Reading
from resnetkit.data.samples import Dataset
from resnetkit.errors import UsageError


def pictures(patients: int, each: int, classes: int = 2) -> list[Labelled]:
    """`each` pictures of each patient; the class belongs to the patient."""
    keys = [(f"{p % classes}/p{p:02d}_{i}.png", str(p % classes)) for p in range(patients) for i in range(each)]
    return [Labelled(key, Path(key), label, "") for key, label in sorted(keys)]


def patients_of(folder: Path, *, patients: int = 12, each: int = 5) -> Path:
    rng = np.random.default_rng(0)
    for one in pictures(patients, each):
        path = folder / one.key
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (10, 10, 3), dtype=np.uint8)).save(path)
    return folder


def names(dataset: Dataset, part: str) -> set[str]:
    return {path.name for path in dataset.parts[part].paths or ()}


@pytest.mark.parametrize("fraction", [0.05, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("seed", [0, 7])
def test_single_pictures_are_divided_as_ever(fraction: float, seed: int) -> None:
    them = [*pictures(20, 5, 3), Labelled("only", Path("only"), "one", "")]
    assert _choose_groups(them, np.arange(len(them)), fraction, seed) == _choose_val(them, fraction, seed)


@pytest.mark.parametrize("seed", range(5))
def test_groups_are_whole_and_shares_are_near(seed: int) -> None:
    them = pictures(40, 5)
    numbers = group_by(r"(p\d+)_", [one.key for one in them], [one.path for one in them], [])
    chosen = _choose_groups(them, numbers, 0.2, seed)
    inside = np.array([one.key in chosen for one in them])
    assert all(len({*inside[numbers == number]}) == 1 for number in np.unique(numbers))
    for label in "01":
        assert sum(one.label == label for one, is_in in zip(them, inside, strict=True) if is_in) == 20


def test_a_class_in_one_group_stays_in_train_and_one_of_two_groups_is_val() -> None:
    them = [Labelled(f"{label}{i}", Path(), label, "") for label in "abc" for i in range(6)]
    numbers = np.array([0] * 6 + [1] * 3 + [2] * 3 + [*range(3, 9)])
    chosen = _choose_groups(them, numbers, 0.2, 0)
    assert sum(key[0] == "a" for key in chosen) == 0
    assert sum(key[0] == "b" for key in chosen) == 3
    assert sum(key[0] == "c" for key in chosen) == 1


def test_rules(tmp_path: Path) -> None:
    keys = ["a/p1/x.png", "a/p1/y.png", "b/p1/x.png", "b/z.png"]
    paths = [tmp_path / key for key in keys]
    assert group_by("parent", keys, paths, []).tolist() == [0, 0, 1, 2]
    assert group_by(r"/(p\d)/", keys, paths, []).tolist() == [0, 0, 0, 1]
    assert group_by("x|y", keys, paths, []).tolist() == [0, 1, 0, 2], "the whole match without groups"
    assert group_by("patient", keys, paths, ["7", "8", "7", ""]).tolist() == [0, 1, 0, 2]
    for at, (second, camera) in enumerate([(0, "x"), (50, "x"), (100, "x"), (100, "y"), (170, "x")]):
        exif = Image.Exif()
        exif[0x0110] = camera
        exif.get_ifd(0x8769)[0x9003] = f"2024:05:06 07:{8 + second // 60:02d}:{second % 60:02d}"
        Image.new("L", (8, 8)).save(tmp_path / f"{at}.jpg", exif=exif)
    Image.new("L", (8, 8)).save(tmp_path / "5.jpg")
    photos = [tmp_path / f"{at}.jpg" for at in range(6)]
    numbers = group_by("exif-time", [path.name for path in photos], photos, []).tolist()
    assert numbers == [0, 0, 0, 1, 2, 3], "within a minute of another picture of the camera"


def test_wrong_rules(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"`group_by` '\(' is no regular expression: missing \)"):
        group_by("(", ["a"], [Path("a")], [])
    with pytest.raises(
        UsageError, match=r"`group_by` 'patient' fits none of the 1 pictures, such as a/1\.png; give parent"
    ):
        group_by("patient", ["a/1.png"], [tmp_path / "a/1.png"], [])
    root = patients_of(tmp_path / "photos")
    (root / "val").mkdir()
    for label in "01":
        (root / label).rename(root / "val" / label)
    (root / "val").rename(root / "train")
    patients_of(root / "val")
    with pytest.raises(UsageError, match="`group_by` has no use here: val is given, not drawn; leave it out"):
        open_dataset(root, group_by="parent")


def test_united_groups() -> None:
    assert united(np.array([5, 5, 2, 3, 4]), np.array([1, 2, 2, 9, 0])).tolist() == [0, 0, 0, 3, 4]
    assert unpacked(packed({"a", "b"})) == {mark("a"), mark("b")}
    assert unpacked("") == unpacked(None) == unpacked("no base64!") == set()


def test_a_folder_by_expression_and_a_list_by_column(tmp_path: Path) -> None:
    root = patients_of(tmp_path / "photos")
    plain = open_dataset(root)
    assert plain.split["rule"] == SPLIT_RULE
    divided = open_dataset(root, group_by=r"(p\d+)_")
    patients = {part: {name[:3] for name in names(divided, part)} for part in ("train", "val")}
    assert not patients["train"] & patients["val"]
    assert len(patients["val"]) == 2
    rows = [f"{path.relative_to(root)},{path.parent.name},{path.name[:3]}" for path in sorted(root.glob("*/*.png"))]
    (root / "all.csv").write_text("path,label,patient\n" + "\n".join(rows))
    listed = open_dataset(root / "all.csv", group_by="patient")
    assert names(listed, "val") == names(divided, "val")


def test_the_record_repeats_the_division_without_looking_again(tmp_path: Path) -> None:
    root = patients_of(tmp_path / "photos")

    def alike(paths: object) -> np.ndarray:
        assert isinstance(paths, list)
        return np.array([int(path.name[1:3]) for path in paths])

    first = open_read(root, Reading(), keeping=Keeping(alike))
    assert names(first, "val") != names(open_dataset(root), "val")
    again = open_as_trained(str(root), {"split": dict(first.split)})
    assert (names(again, "val"), names(again, "train")) == (names(first, "val"), names(first, "train"))
    assert again.split == first.split
    unchanged = open_read(root, Reading(), keeping=Keeping(lambda paths: np.arange(len(paths))))
    assert unchanged.split == open_dataset(root).split


def test_if_all_pictures_are_alike_val_is_drawn_as_ever(tmp_path: Path) -> None:
    root = patients_of(tmp_path / "photos")
    dataset = open_read(root, Reading(), keeping=Keeping(lambda paths: np.zeros(len(paths), int)))
    assert names(dataset, "val") == names(open_dataset(root), "val")
