"""Class folders and CSV files, with the irregularities of real data."""

import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from resnetkit.data.dataset import open_dataset
from resnetkit.data.division import SPLIT_RULE
from resnetkit.data.folders.folder import load_folder
from resnetkit.data.lists.lists import load_list
from resnetkit.data.samples import Dataset, Samples
from resnetkit.errors import DataError, UsageError


def names(samples: Samples | None, root: Path) -> list[str]:
    """Return the paths below `root`, sorted."""
    return [] if samples is None else [path.relative_to(root).as_posix() for path in samples.paths or ()]


def sizes(dataset: Dataset) -> tuple[int, int, int]:
    return len(dataset.train or ()), len(dataset.val or ()), len(dataset.test or ())


def touch(root: Path, *paths: str) -> None:
    """Make files. The content of a picture does not matter for finding it."""
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()


def test_one_folder_is_split_by_class(picture_folder: Path) -> None:
    dataset = load_folder(picture_folder, val_fraction=0.2, seed=1)
    assert dataset.classes == ("cat", "frog", "ship")
    assert sizes(dataset) == (48, 12, 0)
    assert dataset.test is None
    assert dataset.train is not None
    assert dataset.val is not None
    assert [(dataset.val.labels == label).sum() for label in range(3)] == [4, 4, 4]
    for samples in (dataset.train, dataset.val):
        assert [path.parent.name for path in samples.paths or ()] == [samples.classes[i] for i in samples.labels]
        assert names(samples, picture_folder) == sorted(names(samples, picture_folder))
    together = {*names(dataset.train, picture_folder), *names(dataset.val, picture_folder)}
    assert together == {path.relative_to(picture_folder).as_posix() for path in picture_folder.glob("*/*")}
    assert dataset.split == {
        "rule": SPLIT_RULE,
        "seed": 1,
        "val_fraction": 0.2,
    }


def test_split_is_the_same_everywhere(picture_folder: Path, tmp_path: Path) -> None:
    val = names(load_folder(picture_folder, seed=1).val, picture_folder)
    # Pinned: another machine must draw the same ones.
    assert val[:4] == ["cat/cat 00.png", "cat/cat 05.jpg", "cat/cat 17.jpg", "cat/cat 18.png"]
    # A copy whose files were made in another order, and to which a class was added, keeps it.
    copy = tmp_path / "elsewhere" / "copy"
    for path in sorted(picture_folder.glob("*/*"), reverse=True):
        touch(copy, path.relative_to(picture_folder).as_posix())
    touch(copy, "aardvark/1.png", "aardvark/2.png")
    assert [name for name in names(load_folder(copy, seed=1).val, copy) if "aardvark" not in name] == val
    assert names(load_folder(picture_folder, seed=2).val, picture_folder) != val


@pytest.mark.parametrize(("pictures", "val"), [(1, 0), (2, 1), (3, 1), (9, 2), (10, 2), (15, 3)])
def test_every_class_keeps_some_for_both(tmp_path: Path, pictures: int, val: int) -> None:
    touch(tmp_path, *(f"a/{i}.png" for i in range(pictures)))
    assert sizes(load_folder(tmp_path, val_fraction=0.2)) == (pictures - val, val, 0)


def test_val_fraction(picture_folder: Path) -> None:
    assert sizes(load_folder(picture_folder, val_fraction=0)) == (60, 0, 0)
    assert sizes(load_folder(picture_folder, val_fraction=0.99)) == (3, 57, 0)
    for wrong in (1, -0.1, float("nan")):
        with pytest.raises(UsageError, match="val_fraction"):
            load_folder(picture_folder, val_fraction=wrong)


@pytest.mark.parametrize("val", ["val", "valid", "validation", "Val"])
def test_given_split(tmp_path: Path, val: str) -> None:
    touch(tmp_path, "train/a/1.png", "train/a/2.png", "train/b/3.png", f"{val}/b/4.png", "test/a/5.png", "labels.csv")
    dataset = load_folder(tmp_path)
    assert sizes(dataset) == (3, 1, 1)
    assert dataset.classes == ("a", "b")
    assert dataset.val is not None
    assert dataset.val.labels.tolist() == [1]
    assert dataset.split == {"rule": "as given"}
    assert dataset.skipped == ()


def test_val_is_split_from_train_and_never_from_test(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{part}/a/{part}{i}.png" for part in ("train", "test") for i in range(10)))
    dataset = load_folder(tmp_path)
    assert sizes(dataset) == (8, 2, 10)
    assert all(name.startswith("train/") for name in names(dataset.val, tmp_path))
    assert dataset.split["val_fraction"] == 0.2


def test_for_evaluation_alone(tmp_path: Path) -> None:
    touch(tmp_path, "test/b/1.png", "test/a/1.png", "val/c/1.png")
    dataset = load_folder(tmp_path)
    assert sizes(dataset) == (0, 1, 1 + 1)
    assert dataset.train is None
    assert dataset.classes == ("a", "b", "c")


def test_class_that_train_lacks(tmp_path: Path) -> None:
    touch(tmp_path, "train/a/1.png", "train/b/1.png", "val/a/1.png", "val/unknown/deep/1.png")
    with pytest.raises(DataError) as error:
        load_folder(tmp_path)
    assert str(error.value) == (
        f'{tmp_path} has 2 classes in train but 2 in val (only in val: "unknown"). '
        f"Move or remove {tmp_path}/val/unknown, or add the class to train"
    )


def test_nested_folders_belong_to_their_class(tmp_path: Path) -> None:
    touch(tmp_path, "a/x/1.png", "a/x/y/1.png", "a/1.png", "b/1.JPG")
    dataset = load_folder(tmp_path, val_fraction=0)
    assert dataset.classes == ("a", "b")
    assert names(dataset.train, tmp_path) == ["a/1.png", "a/x/1.png", "a/x/y/1.png", "b/1.JPG"]


def test_class_that_is_called_like_a_split(tmp_path: Path) -> None:
    touch(tmp_path, "train/1.png", "bus/1.png")
    assert load_folder(tmp_path, val_fraction=0).classes == ("bus", "train")


def test_what_is_ignored_and_what_is_skipped(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.png", "b/1.png", "README.md", "loose.png", ".git/a/1.png", "__MACOSX/a/1.png")
    touch(tmp_path, "a/Thumbs.db", "a/.DS_Store", "a/._1.png", "a/.ipynb_checkpoints/1.png", "b/x/notes.txt")
    (tmp_path / "empty").mkdir()
    dataset = load_folder(tmp_path, val_fraction=0)
    assert dataset.classes == ("a", "b")
    assert sizes(dataset) == (2, 0, 0)
    assert sorted(dataset.skipped) == [
        (tmp_path / "b/x/notes.txt", "not a picture by its suffix"),
        (tmp_path / "empty", "a class folder without pictures"),
        (tmp_path / "loose.png", "a picture in no class folder"),
    ]
    with pytest.raises(
        DataError, match=r"loose.png: a picture in no class folder \(3 in all\); remove it, or leave `strict` out"
    ):
        open_dataset(tmp_path, strict=True)


def test_links(tmp_path: Path) -> None:
    root = tmp_path / "root"
    touch(root, "a/1.png")
    touch(tmp_path, "elsewhere/2.png")
    (root / "b").symlink_to(tmp_path / "elsewhere")
    (root / "a" / "again.png").symlink_to(root / "a" / "1.png")
    (root / "a" / "up").symlink_to(root)
    (root / "a" / "self").symlink_to(root / "a")
    (root / "a" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (root / "round").symlink_to(root)
    (root / "knot").symlink_to(root / "knot")
    dataset = load_folder(root, val_fraction=0)
    assert names(dataset.train, root) == ["a/1.png", "a/again.png", "b/2.png"]
    assert [(path.name, reason) for path, reason in dataset.skipped] == [
        ("gone.png", "a broken link"),
        ("round", "a class folder without pictures"),
    ]


def test_unicode_and_spaces(tmp_path: Path) -> None:
    touch(tmp_path, "train/Schäferhund alt/Bild 1.png", "train/猫/😀.png", "val/Scha\u0308ferhund alt/1.png")
    dataset = load_folder(tmp_path)
    assert dataset.classes == ("Schäferhund alt", "猫")
    assert dataset.val is not None
    assert dataset.val.labels.tolist() == [0]
    assert all(path.is_file() for path in dataset.val.paths or ())


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.png")
    try:
        (tmp_path / "a" / os.fsdecode(b"caf\xe9.png")).touch()
    except OSError:
        pytest.skip("this file system takes only UTF-8")
    assert [reason for _, reason in load_folder(tmp_path).skipped] == ["its name is not UTF-8"]
    (tmp_path / os.fsdecode(b"caf\xe9")).mkdir()
    with pytest.raises(DataError, match=r"caf.*: the folder's name is not UTF-8; rename it"):
        load_folder(tmp_path)


def test_layouts_that_are_not_understood(tmp_path: Path) -> None:
    expected = f"{tmp_path}/<class>/<picture> or {tmp_path}/{{train,val,test}}/<class>/<picture>"

    def message() -> str:
        with pytest.raises(DataError) as error:
            load_folder(tmp_path)
        assert expected in str(error.value)
        return str(error.value)

    assert message() == f"{tmp_path}: it has no class folders. Expected {expected}"
    touch(tmp_path, "1.png", "2.jpg")
    assert "it has no class folders, and 2 pictures directly in it; move them into a folder for each class" in message()
    (tmp_path / "a").mkdir()
    assert "it has 1 folders, but no pictures in them" in message()
    touch(tmp_path, "labels.csv", "data.zip")
    assert f"give the list of their labels, which may be {tmp_path}/labels.csv; unpack data.zip first" in message()
    touch(tmp_path, "train/a/1.png", "more/1.png")
    assert "has train/ with class folders, but also pictures in more/. It can be read in two ways: " in message()
    assert "as parts, without more/: `parts` train=train; or as classes, train/, more/: `parts` none" in message()
    assert f"Or move {tmp_path}/more elsewhere, or into a class folder" in message()
    shutil.rmtree(tmp_path / "more")
    touch(tmp_path, "val/a/1.png", "valid/a/1.png")
    with pytest.raises(DataError, match="two folders for val, one of them valid/; merge them"):
        load_folder(tmp_path)


def test_a_part_whose_folder_has_a_space_is_quoted(tmp_path: Path) -> None:
    touch(tmp_path, "train set/a/1.png", "more/1.png")
    with pytest.raises(DataError, match=r"as parts, without more/: `parts` 'train=train set'; or as classes"):
        load_folder(tmp_path)


def test_root_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere does not exist; expected .*<class>/<picture>"):
        load_folder(tmp_path / "nowhere")
    touch(tmp_path, "file")
    with pytest.raises(DataError, match="file is not a folder"):
        load_folder(tmp_path / "file")


def test_csv(picture_folder: Path) -> None:
    path = picture_folder / "labels.csv"
    rows = [f"{file.relative_to(picture_folder)},{file.parent.name}" for file in picture_folder.glob("*/*")]
    path.write_text("path,label\n" + "\n".join(rows) + "\n")
    dataset = load_list(path, seed=1)
    folder = load_folder(picture_folder, seed=1)
    assert dataset.name == str(path)
    assert (dataset.classes, dataset.split) == (folder.classes, folder.split)
    assert dataset.train is not None
    assert folder.train is not None
    assert dataset.val is not None
    assert folder.val is not None
    assert dataset.train.fingerprint() == folder.train.fingerprint()
    assert dataset.val.fingerprint() == folder.val.fingerprint()


def test_csv_with_split(tmp_path: Path) -> None:
    touch(tmp_path, "data/1.png", "data/2.png", "3 3.png", "4.png")
    path = tmp_path / "data" / "labels.csv"
    # As Excel writes it: a signature, Windows line ends, spaces, columns in any order and case, and more, a blank line.
    lines = [
        "Label , Path,SPLIT,who",
        "b,1.png,train,x",
        '"a, c",2.png,valid',
        "",
        " b ,../3 3.png,TEST,",
        f'"a, c",{tmp_path}/4.png,train,',
    ]
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    dataset = load_list(path)
    assert dataset.classes == ("a, c", "b")
    assert sizes(dataset) == (2, 1, 1)
    assert dataset.test is not None
    assert dataset.test.labels.tolist() == [1]
    assert all(file.is_file() for file in dataset.test.paths or ())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", " is empty; expected a line per picture below the line path,label"),
        ("path,label\n1.png,a\n2.png, \n", "line 3: the label is empty; fill it in or remove the line"),
        ("path,label\n1.png\n", "line 2: the label is empty"),
        ("path,label\n,a\n", "line 2: the path is empty"),
        ("path,label\n.,a\n9.png,b\n", "none of its 2 files exists, first .*; paths are relative to the folder of the"),
        ("path,label,split\n1.png,a,more\n", "line 2: split is 'more'; expected train, val or test"),
        ("path,label\n1.png,a\n2.png,a\n1.png,b\n", "line 4: 1.png is 'b', but 'a' in line 2; remove one of them"),
        ("path,label\n", "lists no pictures; expected a line per picture below the line path,label"),
        (
            "path,label,split\n1.png,a,train\n2.png,x,test\n",
            r'1 classes in train but 1 in test .only in test: "x".. Move or remove .*labels.csv, line 3, or add',
        ),
    ],
)
def test_csv_errors(tmp_path: Path, text: str, message: str) -> None:
    touch(tmp_path, "1.png", "2.png")
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(DataError, match=rf"labels.csv.*{message}"):
        load_list(tmp_path / "labels.csv")


def test_csv_in_another_encoding(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_bytes("path,label\ncafé.png,a\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"labels.csv is not UTF-8; in Excel: Save as, CSV UTF-8"):
        load_list(tmp_path / "labels.csv")


def test_sign_digits(shared: Path) -> None:
    dataset = load_folder(shared / "data" / "sign-digits")
    assert dataset.classes == tuple("0123456789")
    assert sum(sizes(dataset)) == 2062
    assert sizes(dataset)[1] == sum(round(0.2 * n) for n in (205, 206, 206, 206, 207, 207, 207, 206, 208, 204))


def test_csv_with_a_missing_file(tmp_path: Path) -> None:
    touch(tmp_path, "1.png", "2.png")
    path = tmp_path / "labels.csv"
    path.write_text("path,label\n1.png,a\n9.png,a\n2.png,b\n")
    dataset = load_list(path, val_fraction=0)
    assert (dataset.classes, sizes(dataset)) == (("a", "b"), (2, 0, 0))
    assert dataset.skipped == ((tmp_path / "9.png", f"does not exist ({path}, line 3)"),)
    with pytest.raises(DataError, match=r"line 3: .*9.png does not exist; paths are relative to the folder of the CSV"):
        load_list(path, strict=True)
    with pytest.raises(DataError, match=r"9.png does not exist"):
        open_dataset(str(path), strict=True)


@pytest.mark.parametrize("beside", ["other/", "notes/readme.txt", "stray.png", "README.md"])
def test_classes_one_level_too_deep(tmp_path: Path, beside: str) -> None:
    """photos/photos/<class> is not one class, whatever else is in the outer folder."""
    root = tmp_path / "photos"
    for label in ("cat", "dog"):
        (root / "photos" / label).mkdir(parents=True)
        for number in range(3):
            Image.new("L", (4, 4), number).save(root / "photos" / label / f"{number}.png")
    if beside.endswith(".png"):
        Image.new("L", (4, 4)).save(root / beside)
    elif beside.endswith("/"):
        (root / beside).mkdir()
    else:
        (root / beside).parent.mkdir(exist_ok=True)
        (root / beside).write_text("x")
    dataset = load_folder(root)
    assert dataset.classes == ("cat", "dog")
    assert "class folders: in photos/" in dataset.understood
