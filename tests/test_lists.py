"""Lists of labelled pictures in the forms that spreadsheets, competitions and other frameworks write."""

from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resnetkit.data.dataset import open_dataset
from resnetkit.data.imagenet import wnid_places
from resnetkit.data.parts import open_as_trained
from resnetkit.data.samples import Dataset
from resnetkit.errors import DataError, UsageError

PICTURES = ("1.png", "2.png", "img/3 a.png", "img/4.jpg")


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A folder with PICTURES. Their content does not matter for finding them."""
    for path in PICTURES:
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).touch()
    return tmp_path


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


def labels(dataset: Dataset) -> dict[str, str]:
    """Return the class of each picture in all parts by the picture's name."""
    return {
        path.name: samples.classes[label]
        for samples in dataset.parts.values()
        for path, label in zip(samples.paths or (), samples.labels, strict=True)
    }


ALL = {"1.png": "cat", "2.png": "dog", "3 a.png": "cat", "4.jpg": "dog"}
PLAIN = "path,label\n1.png,cat\n2.png,dog\nimg/3 a.png,cat\nimg/4.jpg,dog\n"


@pytest.mark.parametrize(
    ("name", "text", "understood"),
    [
        ("x.csv", PLAIN, ()),
        ("x.csv", "\ufeff" + PLAIN.replace("\n", "\r\n"), ()),
        ("x.csv", PLAIN.replace("\n", "\r"), ()),
        ("x.csv", PLAIN.replace("\n", "\n\n") + "\n\n  \n", ()),
        ("x.csv", PLAIN + ",\n,,\n", ()),
        ("x.csv", "# made by hand\n" + PLAIN + "# 2.png,cat\n#end\n", ()),
        ("x.csv", 'path, label\n"1.png", "cat"\n"2.png" ,dog\n "img/3 a.png","cat"\nimg/4.jpg,\tdog\n', ()),
        ("x.csv", PLAIN.replace(",", ";"), ("x.csv: separated by semicolons",)),
        ("x.csv", "sep=;\n" + PLAIN.replace(",", ";"), ("x.csv: separated by semicolons",)),
        ("x.csv", '"sep=,"\r\n' + PLAIN, ()),
        ("x.tsv", PLAIN.replace(",", "\t"), ("x.tsv: separated by tabs",)),
        ("x.csv", PLAIN.replace(",", " | "), ("x.csv: separated by bars",)),
        ("x.csv", PLAIN.replace("img/", "img\\"), ()),
        ("x.csv", PLAIN.replace("img/", "./img/"), ()),
        ("x.csv", PLAIN.replace("img/", "{here}/img/"), ()),
        ("x.csv", PLAIN.replace("img/3 a.png", "file://{here}/img/3%20a.png"), ()),
        ("x.csv", PLAIN.replace("img/", "~/img/"), ()),
        ("x.csv", PLAIN.split("\n", 1)[1], ("x.csv: without a header",)),
        ("x.csv", PLAIN.replace("path,label", "filename,class"), ("x.csv: path = filename, label = class",)),
        ("x.csv", PLAIN.replace("path,label", "Image_Path,Category"), ("x.csv: path = Image_Path, label = Category",)),
        ("x.csv", PLAIN.replace("path,label", "file,target"), ("x.csv: path = file, label = target",)),
        ("x.csv", PLAIN.replace("path,label", "image,label_name"), ("x.csv: path = image, label = label_name",)),
        ("x.csv", PLAIN.replace("path,label", "what,kind"), ("x.csv: path = what, label = kind",)),
        (
            "x.csv",
            "image_id,breed\n1,cat\n2,dog\nimg/3 a,cat\nimg/4,dog\n",
            ("x.csv: path = image_id, label = breed, missing suffixes of files added",),
        ),
        (
            "x.csv",
            "id,photo,species\n0,1.png,cat\n1,2.png,dog\n2,img/3 a.png,cat\n3,img/4.jpg,dog\n",
            ("x.csv: path = photo, label = species",),
        ),
        (
            "x.csv",
            ",path,label\n0,1.png,cat\n1,2.png,dog\n2,img/3 a.png,cat\n3,img/4.jpg,dog\n",
            (),
        ),
        (
            "x.csv",
            ",image,kind\n0,1.png,cat\n1,2.png,dog\n2,img/3 a.png,cat\n3,img/4.jpg,dog\n",
            ("x.csv: path = image, label = kind",),
        ),
        (
            "x.csv",
            "image,cat,dog\n1.png,1,0\n2.png,0,1\nimg/3 a.png,1.0,0.0\nimg/4.jpg,0,1\n",
            ("x.csv: path = image, label = the one of the 2 columns cat to dog that is 1",),
        ),
        ("x.txt", "1.png cat\n2.png dog\nimg/3 a.png cat\nimg/4.jpg\tdog\n", ("x.txt: a path and a label in a line",)),
        ("x.txt", "cat 1.png\ndog 2.png\ncat img/3 a.png\ndog img/4.jpg\n", ("x.txt: a label and a path in a line",)),
        ("x.txt", PLAIN, ()),
        (
            "x.jsonl",
            '{"file_name": "1.png", "label": "cat"}\n{"file_name": "2.png", "label": "dog", "more": [1]}\n\n'
            '{"label": ["cat"], "file_name": "img/3 a.png"}\n{"file_name": "img/4.jpg", "label": "dog"}\n',
            ("x.jsonl: JSON lines, path = file_name",),
        ),
        (
            "x.csv",
            "ImageId,PredictionString\n1,cat\n2,dog\nimg/3 a,cat\nimg/4,dog\n",
            ("x.csv: path = ImageId, label = PredictionString, missing suffixes of files added",),
        ),
    ],
)
def test_forms(here: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str, understood: tuple[str, ...]) -> None:
    monkeypatch.setenv("HOME", str(here))
    path = write(here / name, text.replace("{here}", str(here)))
    dataset = open_dataset(path, val_fraction=0, strict=True)
    assert labels(dataset) == ALL
    assert dataset.understood == understood


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_utf_16(here: Path, encoding: str) -> None:
    path = write(here / "x.csv", PLAIN.replace("dog", "Käfer").replace(",", "\t"), encoding)
    dataset = open_dataset(path, val_fraction=0)
    assert labels(dataset)["2.png"] == "Käfer"
    assert dataset.understood == ("x.csv: separated by tabs, in UTF-16",)


@pytest.mark.parametrize(
    ("columns", "given"),
    [
        ("a,b,c,d", {"path_column": "b", "label_column": "c"}),
        ("a,B,C,d", {"path_column": "b", "label_column": "c"}),
        ("a,file,class,category", {"label_column": "class"}),
        ("a,b,c,d", {"path_column": "2", "label_column": "3"}),
        (None, {"label_column": "3"}),
    ],
)
def test_columns_can_be_named(here: Path, columns: str | None, given: dict[str, str]) -> None:
    rows = "".join(f"{i},{path},{ALL[Path(path).name]},{i % 2}\n" for i, path in enumerate(PICTURES))
    path = write(here / "x.csv", (f"{columns}\n" if columns else "") + rows)
    with pytest.raises(DataError, match=r"x.csv, line 1: .*`label_column`"):
        open_dataset(path)
    dataset = open_dataset(path, val_fraction=0, **given)
    assert labels(dataset) == ALL
    assert dataset.split["read_as"] == given
    assert labels(open_as_trained(str(path), {"split": dataset.split})) == ALL
    other = write(here / "other.csv", PLAIN)
    assert labels(open_as_trained(str(other), {"split": open_dataset(path, label_column="3").split})) == ALL
    with pytest.raises(UsageError, match=r"`path_column` nothing: .*x.csv has no such column; there is "):
        open_dataset(path, path_column="nothing")


@pytest.mark.parametrize(
    ("column", "values", "sizes", "understood"),
    [
        ("split", ("training", "Validation", "testing", "train"), (2, 1, 1), ()),
        ("split", ("train", "valid", "test", ""), (2, 1, 1), ("x.csv: 1 line without a part belongs to train",)),
        ("split", ("", "", "", ""), (4, 0, 0), ("x.csv: 4 lines without a part belong to train",)),
        ("Usage", ("Training", "PublicTest", "PrivateTest", "Training"), (2, 0, 2), ("x.csv: split = Usage",)),
        (
            "set",
            ("a", "b", "c", "d"),
            (4, 0, 0),
            ("x.csv: set is not used (its values are not train, val or test)",),
        ),
        ("dataset", ("train", "dev", "train", "train"), (3, 1, 0), ("x.csv: split = dataset",)),
        (
            "is_valid",
            ("False", "True", "False", "False"),
            (3, 1, 0),
            ("x.csv: split = is_valid, val where is_valid is true, else train",),
        ),
        (
            "Is Valid",
            ("0", "1", "0", ""),
            (3, 1, 0),
            (
                "x.csv: split = Is Valid, val where Is Valid is true, else train, 1 line without a part belongs to "
                "train",
            ),
        ),
        (
            "is_test",
            ("no", "yes", "no", "no"),
            (3, 0, 1),
            ("x.csv: split = is_test, test where is_test is true, else train",),
        ),
        (
            "is_train",
            ("1.0", "1.0", "1.0", "0.0"),
            (3, 0, 1),
            ("x.csv: split = is_train, train where is_train is true, else test",),
        ),
        (
            "is_valid",
            ("some", "True", "False", "no"),
            (4, 0, 0),
            ("x.csv: is_valid is not used (its values are not train, val or test)",),
        ),
        (
            "fold",
            ("0", "1", "0", "1"),
            (4, 0, 0),
            ("x.csv: fold is not used (its values are not train, val or test)",),
        ),
        (
            "fold",
            ("train", "val", "train", "val"),
            (4, 0, 0),
            ("x.csv: fold is not used (to read the parts from it: `split_column` fold)",),
        ),
    ],
)
def test_parts_in_a_column(
    here: Path,
    column: str,
    values: tuple[str, ...],
    sizes: tuple[int, int, int],
    understood: tuple[str, ...],
) -> None:
    rows = "".join(f"{path},a,{value}\n" for path, value in zip(PICTURES, values, strict=True))
    dataset = open_dataset(write(here / "x.csv", f"path,label,{column}\n{rows}"), val_fraction=0)
    assert tuple(len(part or ()) for part in (dataset.train, dataset.val, dataset.test)) == sizes
    assert dataset.understood == understood


def test_a_column_of_parts_that_is_named(here: Path) -> None:
    path = write(here / "x.csv", "path,label,fold,is_valid,split\n" + "".join(
        f"{name},a,{('train', 'val')[i % 2]},{i % 2},train\n" for i, name in enumerate(PICTURES)))  # fmt: skip
    assert open_dataset(path, val_fraction=0).understood == (
        "x.csv: fold is not used (to read the parts from it: `split_column` fold), "
        "is_valid is not used (to read the parts from it: `split_column` is_valid)",
    )
    for column in ("fold", "is_valid"):
        dataset = open_dataset(path, split_column=column)
        assert (len(dataset.train or ()), len(dataset.val or ())) == (2, 2)
    path = write(here / "y.csv", "path,label,n\n" + "".join(f"{name},a,{i % 3}\n" for i, name in enumerate(PICTURES)))
    with pytest.raises(DataError) as error:
        open_dataset(path, split_column="n")
    assert str(error.value) == (f"{path}, line 2: split is '0' in 2 lines, '1', '2'; expected train, val or test")


@pytest.mark.parametrize(
    ("column", "names", "refused"),
    [
        ("labels", ("dog", "cat dog", "cat", "dog"), "cat, dog"),
        ("label", ("dog", "cat", "cat+dog", "dog"), "cat, dog"),
        ("label", ("dog", "cat", "cat/dog", "dog"), "cat, dog"),
        ("labels", ("hot dog", "dog", "hot dog", "dog"), ""),
        ("label", ("hot dog", "dog", "crane, bird", "crane"), ""),
    ],
)
def test_what_may_be_several_labels_in_a_column(here: Path, column: str, names: tuple[str, ...], refused: str) -> None:
    """Lists that have several labels for certain are in test_tags.py."""
    rows = "".join(f'{path},"{name}"\n' for path, name in zip(PICTURES, names, strict=True))
    path = write(here / "x.csv", f"path,{column}\n{rows}")
    if not refused:
        note = "'hot dog' is read as one class, different from 'dog'"
        dataset = open_dataset(path, val_fraction=0)
        assert dataset.classes == tuple(sorted({*names}))
        assert any(note in said for said in dataset.understood) == (column == "labels")
        return
    line = 2 + next(place for place, name in enumerate(names) if len(name) > 3)
    with pytest.raises(DataError, match=rf"line {line}: .* may have . labels \({refused}\), or be of one class"):
        open_dataset(path)
    assert len(open_dataset(path, val_fraction=0, labels="one").classes) == 3


def test_pictures_in_folders_within_images(here: Path) -> None:
    """As HAM10000 has them: the list knows no folders."""
    for place in range(12):
        folder = here / "HAM" / f"part_{1 + place // 6}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"p{place}.jpg").touch()
    rows = "".join(f"p{place},{'ab'[place % 2]}\n" for place in range(12))
    path = write(here / "HAM" / "x.csv", "image_id,dx\n" + rows)
    with pytest.raises(DataError) as error:
        open_dataset(path)
    ham = here / "HAM"
    assert str(error.value).endswith(f". Of 12, there are 6 in {ham}/part_1, 6 in {ham}/part_2: give `images` {ham}")
    dataset = open_dataset(path, images=ham, val_fraction=0)
    assert labels(dataset) == {f"p{place}.jpg": "ab"[place % 2] for place in range(12)}
    assert dataset.skipped == ()
    assert dataset.understood[0].endswith(f"files found in folders within {ham}")
    assert labels(open_dataset(path, images=here, val_fraction=0)) == labels(dataset)
    dataset = open_dataset(path, images=ham / "part_1", val_fraction=0)
    assert (len(dataset.train or ()), dataset.missing) == (6, 6)
    assert dataset.understood[0] == (
        f"x.csv: 6 of 12 files are missing. Of 6 that are missing, there are 6 in {ham}/part_2: give `images` {ham}"
    )
    write(path, "image_id,dx\n" + rows.replace("p", "part_1/p"))
    with pytest.raises(DataError, match=r"x.csv: 6 lines to fix"):  # part_1/p6 is not part_2/p6
        open_dataset(path, images=here, strict=True)
    write(path, "image_id,dx\n" + rows)
    (ham / "part_2" / "p3.jpg").touch()
    with pytest.raises(DataError) as error:
        open_dataset(path, images=ham)
    assert str(error.value) == (
        f"{path}, line 5: {ham}/p3 may be part_1/p3.jpg or part_2/p3.jpg in {ham}; write one of them"
    )


def test_most_files_missing(here: Path) -> None:
    rows = "".join(f"none{place}.png,cat\n" for place in range(25))
    path = write(here / "x.csv", PLAIN + rows)
    with pytest.raises(DataError) as error:
        open_dataset(path)
    lines = str(error.value).splitlines()
    assert lines[0] == (
        f"{path}: 25 of 29 files are missing; paths are relative to the folder of the CSV, or to `images`"
    )
    assert lines[1] == f"  line 6: {here}/none0.png does not exist"
    assert (len(lines), lines[-1]) == (22, "  and 5 more")
    path = write(here / "x.csv", PLAIN + "".join(rows.splitlines(keepends=True)[:4]))
    dataset = open_dataset(path, val_fraction=0)
    assert (dataset.missing, len(dataset.skipped), len(dataset.train or ())) == (4, 4, 4)
    assert "4 of 8 files are missing" in dataset.notes


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("1.jpg", "; did you mean 1.png?"),
        ("IMG/4.jpg", "; did you mean img/4.jpg?"),
        ("img/4.JPG", "; did you mean 4.jpg?"),
        ("other/2.png", "; did you mean 2.png?"),
        ("9.png", ""),
        ("img/9", ""),
    ],
)
def test_the_file_that_may_be_meant(here: Path, name: str, near: str) -> None:
    if (here / "IMG").exists():
        pytest.skip("a file system without letter case")
    path = write(here / "x.csv", PLAIN + f"{name},cat\n")
    assert [why for _, why in open_dataset(path).skipped] == [f"does not exist{near} ({path}, line 6)"]


def test_web_addresses_are_not_downloaded(here: Path) -> None:
    path = write(here / "x.csv", "url,label\nhttps://example.org/1.png,cat\nhttp://example.org/2.png,dog\n")
    with pytest.raises(DataError) as error:
        open_dataset(path)
    assert str(error.value) == (
        f"{path}, line 2: web addresses are not downloaded; download them, and give their folder as `images`"
    )


def test_a_folder_of_pictures_elsewhere(here: Path) -> None:
    path = write(here / "x.csv", "id,label\n3 a,cat\n4,dog\n")
    with pytest.raises(
        DataError, match=rf"none of its 2 files exists.*\. They are in {here}/img: give `images` {here}/img"
    ):
        open_dataset(path)
    dataset = open_dataset(path, images=here / "img", val_fraction=0)
    assert labels(dataset) == {"3 a.png": "cat", "4.jpg": "dog"}
    for moved in ("/their/machine", "C:\\data"):
        path = write(here / "x.csv", f"path,label\n{moved}/3 a.png,cat\n{moved}/4.jpg,dog\n".replace("a/3", "a\\3"))
        assert labels(open_dataset(path, images=here / "img", val_fraction=0)) == {"3 a.png": "cat", "4.jpg": "dog"}
    with pytest.raises(UsageError, match="`images` nowhere: there is no such folder"):
        open_dataset(path, images="nowhere")


def test_a_name_that_begins_as_a_comment(here: Path) -> None:
    (here / "#1.png").touch()
    path = write(here / "x.csv", "path,label\n#1.png,cat\n# 1.png,dog\n2.png,dog\n")
    assert labels(open_dataset(path, val_fraction=0, strict=True)) == {"#1.png": "cat", "2.png": "dog"}


def test_a_name_of_two_pictures(here: Path) -> None:
    (here / "1.jpg").touch()
    path = write(here / "x.csv", "id,label\n1,cat\n2,dog\n")
    with pytest.raises(DataError, match=r"x.csv, line 2: .*/1 may be 1.jpg or 1.png"):
        open_dataset(path, strict=True)


# Numbers, and the names of classes beside them


FROM = "names of the classes from classes.txt"
CATS = ("cat", "cat", "dog", "dog")


@pytest.mark.parametrize(
    ("numbers", "beside", "names", "understood"),
    [
        ("0011", None, "0011", ()),
        (("0.0", "0.0", "1.0", "1."), None, "0011", ()),
        (("0", "0", "1", "1"), "cat\ndog\n", CATS, (FROM,)),
        (("0", "0", "1", "1"), "0 cat\n1 dog\n", CATS, (FROM,)),
        (
            ("1", "1", "2", "2"),
            "cat\ndog\n",
            CATS,
            (f"{FROM}, counted from 1",),
        ),
        (
            ("0", "0", "5", "5"),
            "cat\ndog\n",
            "0055",
            ("classes.txt is not used: it has 2 names, 2 of them different, and classes go up to 5",),
        ),
        (("0.5", "0.5", "1.0", "1.0"), None, ("0.5", "0.5", "1.0", "1.0"), ()),
        (("cat", "cat", "1", "1"), "x\ny\n", ("cat", "cat", "1", "1"), ()),
    ],
)  # fmt: skip
def test_numbers(here: Path, numbers: str, beside: str | None, names: str, understood: tuple[str, ...]) -> None:
    if beside:
        write(here / "classes.txt", beside)
    path = write(here / "x.csv", "path,label\n" + "".join(f"{p},{n}\n" for p, n in zip(PICTURES, numbers, strict=True)))
    dataset = open_dataset(path, val_fraction=0)
    assert list(labels(dataset).values()) == list(names)
    assert dataset.understood == understood


def test_lists_of_other_frameworks(here: Path) -> None:
    """train.txt, val.txt and a file of class names, as in Caffe and PaddleClas."""
    write(here / "label_list.txt", "0 cat\n1 dog\n")
    train = write(here / "train_list.txt", "1.png 0\n2.png 1\n")
    val = write(here / "val_list.txt", "img/3 a.png 0\nimg/4.jpg 1\n")
    write(here / "other_val.txt", "1.png 0\n")
    dataset = open_dataset(train)
    assert (len(dataset.train or ()), len(dataset.val or ())) == (2, 2)
    assert labels(dataset) == ALL
    assert dataset.understood == (
        "train_list.txt: a path and a label in a line",
        "parts: train = train_list.txt, val = val_list.txt",
        "names of the classes from label_list.txt",
    )
    assert len(open_dataset(train, parts="none", val_fraction=0).val or ()) == 0
    assert labels(open_dataset(val, val_fraction=0)) == {"3 a.png": "cat", "4.jpg": "dog"}
    write(here / "valid_list.txt", "")
    with pytest.raises(DataError, match=r"val_list.txt and .*valid_list.txt may both be for val; .*`parts` none"):
        open_dataset(train)


@pytest.mark.parametrize("test", ["id\n3\n", "id,width\n3,20\n4,30\n", "id,width,height\n3,20,10\n"])
def test_a_test_list_without_labels(here: Path, test: str) -> None:
    train = write(here / "train.csv", "id,label\n1,cat\n2,dog\n")
    write(here / "test.csv", test)
    dataset = open_dataset(train, val_fraction=0)
    assert dataset.test is None
    assert dataset.understood[-1] == "test.csv has no label column: left out"


def test_a_list_beside_whose_files_are_gone(here: Path) -> None:
    train = write(here / "train.csv", "id,label\n1,cat\n2,dog\n")
    write(here / "val.csv", "id,label\n8,cat\n9,dog\n")
    dataset = open_dataset(train, val_fraction=0)
    assert dataset.val is None
    assert dataset.understood[-1] == "val.csv: none of its files exists; left out"


def test_imagenets_validation(here: Path) -> None:
    rows = "1,n01440764 1 2 3 4 \n2,n01443537 1 2 3 4 n01443537 5 6 7 8\n"
    path = write(here / "LOC_val_solution.csv", f"ImageId,PredictionString\n{rows}")
    assert labels(open_dataset(path, val_fraction=0)) == {"1.png": "n01440764", "2.png": "n01443537"}
    path = write(here / "val.txt", "1.png 0\n2.png 1\n")
    write(here / "synset_words.txt", "n01440764 tench, Tinca tinca\nn01443537 goldfish, Carassius auratus\n")
    assert labels(open_dataset(path, val_fraction=0)) == {"1.png": "n01440764", "2.png": "n01443537"}


@pytest.mark.parametrize("compressed", [True, False])
def test_imagenets_devkit(here: Path, compressed: bool) -> None:
    """The list of class numbers. meta.mat gives their synsets; the first 1,000 are classes."""
    scipy = pytest.importorskip("scipy.io")
    wnids = list(wnid_places())[::-1]  # the kit's order is not that of the names, either
    fields = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("num_children", "O"), ("children", "O")]
    rows = [(float(i), wnid, "tench, Tinca tinca", 0, np.zeros((1, 0))) for i, wnid in enumerate(wnids, 1)]
    rows.append((1001.0, "n00015388", "animal", 2, np.array([[3.0, 4.0]])))
    synsets = np.array(rows, fields)[:, None]
    scipy.savemat(here / "meta.mat", {"synsets": synsets}, do_compression=compressed)
    path = write(here / "ILSVRC2012_validation_ground_truth.txt", "490\n1\n1000\n")
    (here / "val").mkdir()
    for number in (1, 2, 3):
        (here / "val" / f"ILSVRC2012_val_{number:08d}.JPEG").touch()
    dataset = open_dataset(path, images=here / "val", val_fraction=0)
    assert list(labels(dataset).values()) == [wnids[489], wnids[0], wnids[999]]
    assert labels(dataset)["ILSVRC2012_val_00000003.JPEG"] == "n01440764"
    write(path, "490\n1001\n")
    with pytest.raises(DataError, match=r"ground_truth.txt, line 2: '1001'; expected a number from 1 to 1000"):
        open_dataset(path, images=here / "val")
    content = (here / "meta.mat").read_bytes()
    (here / "meta.mat").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"meta.mat (is not the kit's table of classes|belongs to another data set)"):
        open_dataset(path)
    (here / "meta.mat").unlink()
    with pytest.raises(
        DataError, match=r"meta.mat can't be read: .*; it contains the meaning of the numbers. .* Caffe's val.txt"
    ):
        open_dataset(path)


# What is wrong


def test_everything_that_is_wrong_is_said_at_once(here: Path) -> None:
    rows = ["1.png,cat,train", "2.png,,train", ",dog,test", "1.png,dog,train", "img/4.jpg,dog,more", "1.png,cat,test"]
    path = write(
        here / "x.csv", "\n".join(["path,label,split", "# comment", *rows, "1.png,cat,train,extra", "9.png,x,"])
    )
    expected = [
        f"{path}: 6 lines to fix:",
        "  line 4: the label is empty; fill it in or remove the line, or give `labels` several",
        "  line 5: the path is empty; fill it in or remove the line",
        "  line 6: 1.png is 'dog', but 'cat' in line 3; remove one of them, or give `labels` several",
        "  line 7: split is 'more'; expected train, val or test",
        "  line 8: 1.png is for test, but for train in line 3; remove one of them",
        '  line 9: 4 columns, where the header has 3; put "…" around commas',
    ]
    with pytest.raises(DataError) as error:
        open_dataset(path)
    assert str(error.value).splitlines() == [*expected, f"  and 1 file does not exist, first {here}/9.png"]
    with pytest.raises(DataError) as error:
        open_dataset(path, strict=True)
    missing = f"  line 10: {here}/9.png does not exist; paths are relative to the folder of the CSV, or to `images`"
    assert str(error.value).splitlines() == [f"{path}: 7 lines to fix:", *expected[1:], missing]


def test_missing_files_are_said_beside_one_problem(here: Path) -> None:
    path = write(here / "x.csv", "path,label\n8.png,cat\n1.png,cat\n2.png,\n9.png,dog\n")
    with pytest.raises(DataError) as error:
        open_dataset(path)
    assert str(error.value).splitlines() == [
        f"{path}, line 4: the label is empty; fill it in or remove the line, or give `labels` several",
        f"  and 2 files do not exist, first {here}/8.png",
    ]


def test_the_first_twenty(here: Path) -> None:
    path = write(here / "x.csv", "path,label\n" + "1.png,\n" * 1500)
    with pytest.raises(DataError) as error:
        open_dataset(path)
    lines = str(error.value).splitlines()
    assert lines[0].endswith("1,500 lines to fix:")
    assert (len(lines), lines[20][:9], lines[21]) == (22, "  line 21", "  and 1,480 more")


def test_a_uri_without_a_path_does_not_exist(here: Path) -> None:
    (here / "in").mkdir()
    (here / "in.png").touch()  # called like the list's folder, but for the suffix
    path = write(here / "in" / "x.csv", "path,label\n../1.png,cat\n../2.png,dog\nfile:,cat\n")
    skipped = list(open_dataset(path, val_fraction=0).skipped)
    assert skipped == [(here / "in" / "file:", f"does not exist ({path}, line 4)")]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x.csv", "image,cat,dog\n1.png,1,1\n2.png,0,7\n", r"line 1: no label column; columns: image, cat, dog"),
        ("x.csv", "image,cat,dog\n1.png,1,0\n2.png,0,0\n", r"line 3: 2.png has no label; one of its columns must be 1"),
        ("x.jsonl", '{"image": "1.png", "label": "cat"}\n{"image"\n', r"line 2: not JSON"),
        ("x.jsonl", '["1.png", "cat"]\n', r'line 1: expected an object such as \{"path": …, "label": …\}'),
        (
            "x.csv",
            "image,width,height\n1.png,1,2\n",
            r"line 1: no label column; columns: image, width, height; give the label's name or number as ",
        ),
        (
            "x.csv",
            "image,class,target\n1.png,1,2\n",
            r"class and target may be the label; choose one: `label_column` class",
        ),
        ("x.csv", "path,class_id,class_name\n1.png,1,a\n", r"class_name and class_id may .*`label_column` class_name"),
        ("x.csv", "PK\x03\x04 and so on", "x.csv is a spreadsheet; save it as CSV, and give the CSV file"),
        ("x.xlsx", "PK\x03\x04 and so on", "x.xlsx is a spreadsheet; save it as CSV, and give the CSV file"),
        (
            "x.json",
            '[{"path": "1.png", "label": "a"}]',
            r"one JSON document; give a file with one JSON object per line \(.jsonl\)",
        ),
        (
            "x.csv",
            "one,two\nx,y\n",
            r"line 1: no path column; columns: one, two; give the path's name or number as `path_column`",
        ),
        *(
            (name, text, r"x.\w+ is empty; expected a line per picture below the line path,label$")
            for name in ("x.csv", "x.txt", "x.jsonl")
            for text in ("", "\n \n", "# a comment\n")
        ),
        ("x.csv", "path\n1.png\n", r"line 1: no label column; the only column is path; expected path,label"),
        ("x.txt", "1.png\n2.png\n", r"line 1: one column, 1.png; expected a path and a label in a line"),
    ],
)
def test_what_can_not_be_read(here: Path, name: str, text: str, message: str) -> None:
    path = write(here / name, text)
    with pytest.raises(DataError, match=message):
        open_dataset(path)


PIECES = (
    *("path", "label", "split", "id", "1.png", "2.png", ",", ";", "\t", "|", " ", "\n", "\r\n", '"', "#", "sep=;"),
    *("\ufeff", "\0", "1", "0.0", "train", "x" * 50, "{", "}", ":", "[", "]", "file://", "file:///%zz", "http://[::1"),
    *("~", "~nobody", "\\", "C:\\", "/", "..", "n01440764 1 2 3 4", "é", "😀", "null", "1e400", "9" * 5000),
)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.sampled_from(PIECES), min_size=1, max_size=40).map("".join),
    st.sampled_from(("", "path,label\n", "id;label;split\n", '{"path":"1.png","label":')),
    st.sampled_from((".csv", ".txt", ".jsonl")),
    st.sampled_from(("utf-8", "utf-16", "utf-16-le")),
)
def test_no_text_is_an_internal_error(text: str, start: str, suffix: str, encoding: str) -> None:
    with TemporaryDirectory() as folder:
        (Path(folder) / "1.png").touch()
        path = write(Path(folder) / f"list{suffix}", start + text, encoding)
        with suppress(DataError):
            open_dataset(path, val_fraction=0)


def test_parts_of_folders_are_not_for_lists(here: Path) -> None:
    with pytest.raises(UsageError, match=r"`parts` has no use here: .*x.csv is a list; its parts are in its column"):
        open_dataset(write(here / "x.csv", PLAIN), parts="train=img")
