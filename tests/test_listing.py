"""The pictures below a folder: training, checking, tuning and prediction find the same."""

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unicodedata import normalize

import pytest
from PIL import Image

from resnetkit.data.check import check
from resnetkit.data.dataset import open_dataset
from resnetkit.data.decoding.pictures import open_picture
from resnetkit.data.folders.listing import KEPT, OF_RUNS, RECIPE, RUNS, find_below, is_of_runs
from resnetkit.errors import DataError, UsageError
from resnetkit.infer.comparison import _sources
from resnetkit.infer.finding import find_pictures
from resnetkit.train.monitor import Monitor
from resnetkit.train.run import default_folder
from resnetkit.train.run_folder import RunFolder


def touch(root: Path, *paths: str) -> None:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()


def kinds(folder: Path, *kinds: str) -> list[str]:
    return [found.path.relative_to(folder).as_posix() for found in find_below(folder) if found.kind in kinds]


@contextmanager
def as_nobody() -> Iterator[None]:
    """Without root's permission to read everything. Folders above the working folder need no permission."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_whoever_looks_finds_the_same_pictures_in_the_same_order(tmp_path: Path) -> None:
    root = tmp_path / "root"
    touch(root, "b/2.JPG", "b/10.png", "a/z/1.webp", "a/z.png", "a/Thumbs.db", "a/.hidden.png", "a/.git/1.png")
    touch(root, "b/__MACOSX/1.png", "b/lost+found/1.png", "a/notes.txt", "runs/2/recipe.yaml", "runs/2/curves.png")
    touch(root, "runs/2/state.pt")
    touch(tmp_path, "elsewhere/6.png")
    (root / "a" / "y").symlink_to(tmp_path / "elsewhere")
    (root / "a" / "up").symlink_to(root)
    (root / "a" / "round.png").symlink_to(root / "a" / "round.png")
    expected = ["a/y/6.png", "a/z/1.webp", "a/z.png", "b/10.png", "b/2.JPG"]
    assert kinds(root, "picture") == expected
    dataset = open_dataset(root, val_fraction=0)
    assert dataset.train is not None
    trained = [path.relative_to(root).as_posix() for path in dataset.train.paths or ()]
    with pytest.warns(UserWarning, match=r"runs is left out: it contains a training run, not data"):
        found = list(find_pictures(root))
    predicted = [path.relative_to(root).as_posix() for path, reason in found if reason is None]
    compared = [Path(path).relative_to(root).as_posix() for path in _sources(root)]
    assert predicted == compared == expected
    assert sorted(trained) == sorted(expected)
    assert {path.name: reason for path, reason in found if reason} == {"round.png": "a broken link"}
    assert {path.relative_to(root).as_posix(): reason for path, reason in dataset.skipped} == {
        "a/notes.txt": "not a picture by its suffix",
        "a/round.png": "a broken link",
        "runs": OF_RUNS,
    }


def test_names_are_sorted_as_composed_letters(tmp_path: Path) -> None:
    for name in ("Ä.png", "Z.png", "z.png", "é.png", "ê.png"):
        touch(tmp_path, normalize("NFD", name) if name in "Ä.png ê.png" else name)
    assert [normalize("NFC", name) for name in kinds(tmp_path, "picture")] == [
        "Z.png",
        "z.png",
        "Ä.png",
        "é.png",
        "ê.png",
    ]


@pytest.mark.skipif(sys.platform == "win32", reason="permissions of POSIX")
def test_folders_that_cannot_be_read_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "a/1.png", "a/secret/2.png", "b/3.png")
    tmp_path.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    Path("a/secret").chmod(0)
    try:
        with as_nobody():
            found = [(str(path), reason) for path, reason in find_pictures(["a", "a/secret", "a/secret/2.png", "b"])]
            with pytest.raises(DataError) as error:
                open_dataset(".")
            with pytest.raises(DataError, match="a/secret can't be read: Permission denied; check its permissions"):
                open_dataset("a/secret")
            with pytest.raises(DataError, match="a/secret/b can't be read: Permission denied; give cifar10, cifar100"):
                open_dataset("a/secret/b")
    finally:
        Path("a/secret").chmod(0o755)
    denied = "can't be read: Permission denied"
    assert found == [
        ("a/1.png", None),
        ("a/secret", denied),
        ("a/secret", denied),
        ("a/secret/2.png", denied),
        ("b/3.png", None),
    ]
    assert str(error.value) == f"a/secret {denied}; check its permissions"


def test_the_log_of_a_run_takes_any_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Monitor(RunFolder(tmp_path), quiet=True) as monitor:
        monitor.say(f"left out: {os.fsdecode(b'caf' + bytes([233]))}.png")
    assert capsys.readouterr().err == ""
    assert r"left out: caf\xe9.png" in (tmp_path / "log.txt").read_text(encoding="utf-8")


def test_what_is_no_file_is_named_and_not_waited_for(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.png")
    os.mkfifo(tmp_path / "a" / "pipe.png")
    assert [(found.path.name, found.kind, found.reason) for found in find_below(tmp_path)] == [
        ("1.png", "picture", ""),
        ("pipe.png", "broken", "neither a file nor a folder"),
    ]


def test_a_folder_is_read_when_its_turn_comes(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.png", "b/1.png")
    found = find_below(tmp_path)
    assert next(found).path.parent.name == "a"
    (tmp_path / "b" / "2.png").touch()
    assert [one.path.name for one in found] == ["1.png", "2.png"]


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (str, ["1.png", "2.png"]),
        (Path, ["1.png", "2.png"]),
        (lambda folder: [str(folder), folder / "1.png"], ["1.png", "2.png", "1.png"]),
        (lambda folder: iter([folder]), ["1.png", "2.png"]),
    ],
)
def test_one_path_is_one_path(tmp_path: Path, paths, expected: list[str]) -> None:
    touch(tmp_path, "1.png", "2.png")
    assert [path.name for path, _ in find_pictures(paths(tmp_path))] == expected


@pytest.mark.parametrize("wrong", [None, 3, b"a.png", [None], [b"a.png"], [["a.png"]], iter([3])])
def test_what_is_no_path(wrong) -> None:
    with pytest.raises(UsageError, match=r"is not a path; give a str or Path, or several of them"):
        list(find_pictures(wrong))


def test_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "pictures/a/1.png", "pictures/b/2.png")
    monkeypatch.setenv("HOME", str(tmp_path))
    here = [tmp_path / "pictures/a/1.png", tmp_path / "pictures/b/2.png"]
    assert [path for path, _ in find_pictures("~/pictures")] == here
    assert [path for path, _ in find_pictures(["~/pictures/*/1.png"])] == here[:1]
    assert list(_sources("~/pictures")) == here
    (tmp_path / "labels.csv").write_text("path,label\n~/pictures/a/1.png,a\n")
    assert open_dataset("~/labels.csv").train.paths == (here[0],)
    assert open_dataset(Path("~/pictures")).name == str(tmp_path / "pictures")
    assert [reason for _, reason in find_pictures("~nobody.of.this.name/x")] == [
        "no such file or folder, and nothing matches it"
    ]
    with pytest.raises(DataError, match=r"~nobody.of.this.name/x: no such data"):
        open_dataset("~nobody.of.this.name/x")


# Run folders


def make_run(folder: Path) -> None:
    touch(folder, "recipe.yaml", "metrics.jsonl", "state.pt", "curves.png", "report.html")


def test_a_run_folder_is_known_by_the_files_that_training_writes() -> None:
    run = RunFolder(Path("x"))
    assert run.recipe.name == RECIPE
    assert {run.state.name, run.metrics.name, run.best.name, run.last.name} == set(KEPT)
    assert default_folder("resnet20", "cifar10").path.parts[0] == RUNS


@pytest.mark.parametrize("split", [False, True])
def test_runs_among_the_classes_are_no_class(tmp_path: Path, split: bool) -> None:
    inside = "train/" if split else ""
    touch(tmp_path, *(f"{inside}{label}/{i}.png" for label in "ab" for i in range(5)))
    before = open_dataset(tmp_path)
    for run in (tmp_path / "runs" / "1", tmp_path / "runs" / "2", tmp_path / inside / "a" / "runs" / "3"):
        make_run(run)
    make_run(tmp_path / inside / "b" / "of-its-own-name")
    after = open_dataset(tmp_path)
    assert after.classes == ("a", "b")
    assert before.train is not None
    assert after.train is not None
    assert after.train.fingerprint() == before.train.fingerprint()
    assert {path.relative_to(tmp_path).as_posix() for path, reason in after.skipped if reason == OF_RUNS} == {
        f"{inside}a/runs",
        f"{inside}b/of-its-own-name",
        "runs",
    }
    assert len(after.skipped) == 3
    open_dataset(tmp_path, strict=True)  # a first run must not be what a second one stumbles over
    assert check(str(tmp_path)).skipped == after.skipped


def test_a_run_as_data_is_an_error_that_names_it(tmp_path: Path) -> None:
    make_run(tmp_path / "runs" / "1")
    for folder in (tmp_path / "runs" / "1", tmp_path / "runs"):
        with pytest.raises(DataError) as error:
            open_dataset(folder)
        assert str(error.value) == (
            f"{folder} contains a training run, not data; give the folder of its training pictures"
        )
        assert list(find_pictures(folder)) == [(folder, OF_RUNS)]


def test_a_class_that_is_called_runs_is_one(tmp_path: Path) -> None:
    touch(tmp_path, "runs/1.png", "jumps/1.png", "jumps/recipe.yaml")
    assert not is_of_runs(tmp_path / "runs")
    assert open_dataset(tmp_path, val_fraction=0).classes == ("jumps", "runs")


def test_a_folder_in_itself_is_looked_into_no_further(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path)
    with pytest.raises(DataError, match="it has 1 folders, but no pictures in them"):
        open_dataset(tmp_path)


# Pictures by their first bytes


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "BMP", "WEBP", "JPEG2000", "TIFF"])
def test_a_picture_without_a_suffix_or_with_a_wrong_one(tmp_path: Path, form: str) -> None:
    folder = tmp_path / "root" / "a"
    folder.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(folder / "picture", format=form)
    shutil.copy(folder / "picture", folder / "wrong.dat")
    shutil.copy(folder / "picture", folder / "also wrong.jpg")
    (folder / "notes").write_text("BM II* a text of some length that is none")
    (folder / "empty").touch()
    found = kinds(folder, "picture")
    # What begins like a TIFF may be a camera's raw file, in which Pillow sees the preview alone.
    assert found == ["also wrong.jpg", "picture"] + ["wrong.dat"] * (form != "TIFF")
    touch(tmp_path, "root/b/1.png")
    dataset = open_dataset(tmp_path / "root", val_fraction=0)
    assert dataset.train is not None
    assert [path.name for path in dataset.train.paths or ()][: len(found)] == found
    assert [path.name for path, reason in find_pictures(folder) if reason is None] == found
    with Image.open(folder / "picture") as opened:
        assert opened.format == form
    assert open_picture(folder / "picture").size == (8, 8)
