"""Layouts of folders: parts with any usual name, folders around them, pictures without labels, ambiguous folders."""

import shutil
from pathlib import Path

import pytest
from PIL import Image

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
    """Write pictures directly into each of these folders."""
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
        ("tr", "train"),
        ("VA", "val"),
        ("te", "test"),
        ("测试集", "test"),
        ("te_deum", None),
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
        (divided("Train", "Validation"), (4, 4, 0), ("parts: train = Train/, val = Validation/",)),
        (divided("train", "valid"), (4, 4, 0), ("parts: train = train/, val = valid/",)),
        (divided("tr", "te"), (2, 2, 4), ("parts: train = tr/, test = te/",)),
        (divided("训练", "验证集", "测试"), (4, 4, 4), ("parts: train = 训练/, val = 验证集/, test = 测试/",)),
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
            ("parts: train = seg_train/seg_train/, test = seg_test/seg_test/", f"seg_pred/ contains {NO_LABEL}"),
        ),
        (
            divided("seg_train/seg_train", "seg_test/seg_test"),
            (2, 2, 4),
            ("parts: train = seg_train/seg_train/, test = seg_test/seg_test/",),
        ),
        (divided("archive/data/train", "archive/data/val"), (4, 4, 0), (
            "parts: train = archive/data/train/, val = archive/data/val/",)),
        (divided("photos/photos"), (2, 2, 0), ("class folders: in photos/photos/",)),
        ([*divided("train", "val"), "test"], (4, 4, 0), (f"test/ contains {NO_LABEL}",)),
        ([*divided("train"), "test/test"], (2, 2, 0), (f"test/ contains {NO_LABEL}",)),
        ([*divided("train"), "test1/unknown"], (2, 2, 0), (f"test1/ contains {NO_LABEL}",)),
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
            r"Extra/ being val: `parts` train=Training,val=Extra,test=Testing; or as classes, Training/, Testing/, "
            r"Extra/: `parts` none",
        ),
        (
            divided("train", "train_more"),
            r"two folders for train, one of them train_more/; merge them, or choose one: `parts` train=train; or, "
            r"if train/ and train_more/ are classes, give `parts` none",
        ),
        (divided("trainval", "test"), r"as parts, trainval/ being train: `parts` train=trainval,test=test; or as"),
        (divided("Training", "Pruefung"), r"Pruefung/ being test: `parts` train=Training,test=Pruefung; or as classes"),
        (
            [*divided("Training"), "Extra/c", "Extra/d"],
            r"without Extra/: `parts` train=Training; or as classes, Training/, Extra/: `parts` none",
        ),
        (
            divided("fold1", "fold2", "fold3"),
            r"fold1/, fold2/, fold3/ contain the same folders, a, b. If they are parts, give "
            r"`parts` train=fold1,val=fold2,test=fold3. If they are the classes, give `parts` none",
        ),
        (
            divided("raw/train", "processed/train"),
            r"processed/, raw/ contain the same folders, train. If each of them is a data set, give one of them, such "
            r"as .*/processed. If they are the classes, give `parts` none",
        ),
        (
            ["Training", "Testing"],
            r"can be read in two ways. If Testing/, Training/ are parts, their labels are not in folders, so give "
            r"a list with a line path,label per picture. If they are classes, give `parts` none",
        ),
    ],
)
def test_two_readings_are_refused_with_what_settles_it(tmp_path: Path, folders: list[str], message: str) -> None:
    fill(tmp_path, *folders)
    with pytest.raises(DataError, match=message):
        open_dataset(tmp_path)
    assert open_dataset(tmp_path, parts="none").classes == tuple(sorted({name.split("/")[0] for name in folders}))


def test_a_flat_set_with_a_list_of_its_labels(tmp_path: Path) -> None:
    fill(tmp_path, "train", "test")
    touch(tmp_path, "train.csv")
    with pytest.raises(DataError, match=rf"their labels are not in folders, so give {tmp_path}/train.csv\. If"):
        open_dataset(tmp_path)


@pytest.mark.parametrize("inner", [("images",), ("images", "masks"), ("deep",)])
def test_folders_within_all_classes_that_are_no_classes(tmp_path: Path, inner: tuple[str, ...]) -> None:
    fill(tmp_path, *(f"{label}/{name}" for label in "ab" for name in inner))
    assert open_dataset(tmp_path).classes == ("a", "b")


LABELS = "".join(f"{i}.png,{label}\n" for i, label in enumerate(["nv", "mel"] * 4))


@pytest.mark.parametrize(
    ("folders", "name", "text", "given"),
    [
        (("part_1", "part_2"), "metadata.csv", "image_id,dx\n" + LABELS.replace(".png", ""), " with `images` {root}"),
        (
            ("img_a", "img_b"),
            "train.csv",
            "path,label\n" + LABELS.replace(".png", ".png").replace("\n", "\nimg_a/"),
            "",
        ),
        (("img",), "train.txt", "".join(f"img/{i}.png {i % 2}\n" for i in range(8)), ""),
        (("train/img_a", "train/img_b"), "train.csv", "id;breed\n" + LABELS.replace(",", ";"), " with `images` {root}"),
        (("cat", "dog"), "labels2.csv", "".join(f"{i}.png,{i % 2},{i}\n" for i in range(8)), " with `images` {root}"),
    ],
)
def test_a_list_beside_folders_that_may_hold_the_labels(
    tmp_path: Path, folders: tuple[str, ...], name: str, text: str, given: str
) -> None:
    for place in range(8):
        touch(tmp_path, f"{folders[place * len(folders) // 8]}/{place}.png")
    (tmp_path / name).write_text(text)
    (tmp_path / "classes.txt").write_text("nv\nmel\n")
    with pytest.raises(DataError) as error:
        open_dataset(tmp_path)
    assert str(error.value).startswith(
        f"{tmp_path} can be read in two ways. If the list {tmp_path}/{name} contains the labels, give "
        f"{tmp_path}/{name}{given.format(root=tmp_path)}. If the folders are the classes, "
    )
    assert str(error.value).endswith(", give `parts` none")
    assert len(open_dataset(tmp_path, parts="none", val_fraction=0).train or ()) == 8


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("README.txt", "A set of pictures.\n\nIt has 0.png and others, of cats and dogs.\n"),
        ("classes.txt", "0 cat\n1 dog\n"),
        ("labels.csv", ""),
        ("broken.csv", "\0\0"),
        ("other.csv", "path,label\nx.png,a\ny.png,b\nz.png,a\n"),
        ("files.txt", "cat/0.png\ncat/1.png\ndog/4.png\n"),
        ("same.csv", "path,label\n" + "".join(f"{i}.png,{'Cat' if i < 4 else 'Dog'}\n" for i in range(8))),
        ("train.txt", "".join(f"{i}.png {int(i >= 4)}\n" for i in range(8))),
        ("ids.csv", "id,path\n" + "".join(f"{i + 50},{i}.png\n" for i in range(8))),
        ("split.csv", "path,part\n" + "".join(f"{i}.png,{['train', 'test'][i % 2]}\n" for i in range(8))),
    ],
)
def test_a_list_beside_folders_that_is_harmless(tmp_path: Path, name: str, text: str) -> None:
    """It names no picture, has nothing that can be a label, or has the folders' classes."""
    touch(tmp_path, *(f"{'cat' if i < 4 else 'dog'}/{i}.png" for i in range(8)))
    (tmp_path / name).write_text(text)
    assert open_dataset(tmp_path).classes == ("cat", "dog")


def test_pictures_without_a_suffix_are_said(tmp_path: Path) -> None:
    fill(tmp_path, "a", "b")
    Image.new("RGB", (8, 8)).save(tmp_path / "a" / "bare", "PNG")
    assert open_dataset(tmp_path).understood == ("1 file without a picture's suffix is recognised by its first bytes",)
    Image.new("RGB", (8, 8)).save(tmp_path / "b" / "x.dat", "JPEG")
    assert open_dataset(tmp_path).understood == (
        "2 files without a picture's suffix are recognised by their first bytes",
    )


def test_classes_that_differ_in_case(tmp_path: Path) -> None:
    fill(tmp_path, "train/Cat", "train/cat", "train/dog", "val/dog")
    assert "the classes 'Cat' and 'cat' differ only in case" in open_dataset(tmp_path).notes
    fill(tmp_path, "val/Dog")
    with pytest.raises(DataError) as error:
        open_dataset(tmp_path)
    assert str(error.value) == (
        f'{tmp_path} has the same class names in another case: "dog" in train, "Dog" in val. Write them alike, first '
        f"{tmp_path}/val/Dog"
    )


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
    with pytest.raises(UsageError, match="`parts` has no use here: the layout of cifar10 is known"):
        open_dataset("cifar10", parts="none")


def test_a_set_is_evaluated_as_it_was_trained(tmp_path: Path) -> None:
    """The model file contains the decision between two readings of its data; other data is not affected."""
    fill(tmp_path, *divided("one/Training", "one/Extra"))
    fill(tmp_path, *divided("other/train", "other/test"))
    trained_on = {"split": open_dataset(tmp_path / "one", parts="train=Training").split}
    again = open_as_trained(str(tmp_path / "one"), trained_on)
    assert (len(again.train or ()), len(again.val or ())) == (2, 2)
    assert len(open_as_trained(str(tmp_path / "other"), trained_on).test or ()) == 4


@pytest.mark.parametrize("name", ["data.zip", "data.tar.gz", "data.tgz", "data.TAR", "data"])
@pytest.mark.parametrize("form", ["zip", "tar"])
def test_archives_are_named_with_how_to_unpack_them(tmp_path: Path, name: str, form: str) -> None:
    """By their first bytes, whatever their suffix."""
    fill(tmp_path, "in/a")
    made = shutil.make_archive(str(tmp_path / "made"), form, tmp_path / "in")
    path = Path(shutil.move(made, tmp_path / name))
    folder = tmp_path / ("data-unpacked" if name == "data" else "data")
    module = {"zip": "zipfile", "tar": "tarfile"}[form]
    with pytest.raises(DataError) as error:
        open_dataset(path)
    assert str(error.value) == (
        f"{path} is an archive; unpack it with: python -m {module} -e {path} {folder}; then give {folder}"
    )


def test_archives_that_python_does_not_unpack(tmp_path: Path) -> None:
    for name, start in {"a.7z": b"7z\xbc\xaf\x27\x1c", "a.rar": b"Rar!\x1a\x07\0", "a.gz": b"\x1f\x8b\x08\0"}.items():
        (tmp_path / name).write_bytes(start + bytes(50))
        with pytest.raises(DataError, match=f"{name} is an archive; unpack it into {tmp_path}/a; then give"):
            open_dataset(tmp_path / name)


@pytest.mark.parametrize("name", ["data.zip", "data.tar", "data.tgz", "cut"])
def test_a_broken_archive_is_named(tmp_path: Path, name: str) -> None:
    fill(tmp_path, "in/a")
    made = Path(shutil.make_archive(str(tmp_path / "made"), "zip", tmp_path / "in"))
    (tmp_path / name).write_bytes(made.read_bytes()[:60])
    with pytest.raises(DataError, match=rf"{name} is a broken archive, incomplete or of another kind than its suffix"):
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
    with pytest.raises(DataError, match="the model has other classes"):
        dataset.train.as_classes(tuple(map(str, range(1000))))
