"""A list is written once more without bad and missing files; everything else in it stays."""

import shutil
from pathlib import Path

import pytest

from resnetkit.cli import main
from resnetkit.data.check import check
from resnetkit.data.lists.mending import write_fixed
from resnetkit.data.reading import NOTHING
from resnetkit.errors import UsageError
from resnetkit.files import write_whole


@pytest.fixture
def listed(picture_folder: Path) -> Path:
    """A list as a spreadsheet writes it, with comments and a cell of two lines; a broken file, and a missing one."""
    lines = ["\ufeffpath;label;note\r\n", "# by hand\r\n"]
    for place, path in enumerate(sorted(picture_folder.rglob("*.*"))):
        note = '"two\r\nlines"' if place in (4, 5) else "x"
        lines.append(f"{path.parent.name}\\{path.name};{path.parent.name};{note}\r\n")
    lines.insert(8, "cat\\gone.png;cat;x\r\n")
    broken = sorted(picture_folder.rglob("*.*"))[4]
    broken.write_bytes(b"no picture")
    write_whole(picture_folder / "list.csv", "".join(lines).encode())
    return picture_folder / "list.csv"


def test_a_list_is_written_without_bad_files(listed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = listed.read_bytes()
    bad = [path for path, _ in check(listed).unreadable]
    assert main(["data", "check", str(listed), "--fix"]) == 1
    goal = listed.with_name("list-fixed.csv")
    assert f"{goal}: the list without 2 pictures; the files stay where they are" in capsys.readouterr().err
    assert listed.read_bytes() == before
    assert bad[0].exists()
    report = check(goal)
    assert report.sound
    assert sum(report.counts["train"].values()) + sum(report.counts["val"].values()) == 59
    text, old = goal.read_bytes().decode(), before.decode()
    assert text.startswith("\ufeffpath;label;note\r\n# by hand\r\n")
    assert text.count('"two\r\nlines"') == 1, "the other one was the note of the broken file"
    assert "gone.png" not in text
    assert set(text.split("\r\n")) < set(old.split("\r\n"))
    assert main(["data", "check", str(listed), "--fix"]) == 2
    assert "list-fixed.csv exists already" in capsys.readouterr().err
    assert main(["data", "check", str(goal), "--fix"]) == 0, "nothing to fix, and nothing is written"
    assert not listed.with_name("list-fixed-fixed.csv").exists()


def test_lists_of_parts_are_written_together(picture_folder: Path) -> None:
    paths = sorted(picture_folder.rglob("*.*"))
    for part, some in (("train", paths[::2]), ("val", paths[1::2])):
        rows = [f"{path.relative_to(picture_folder)} {number % 2}" for number, path in enumerate(some)]
        (picture_folder / f"{part}.txt").write_text("\n".join(rows) + "\n")
    shutil.copy(paths[0], paths[1])  # in train and in val
    written = write_fixed(picture_folder / "train.txt", NOTHING, {paths[0]})
    assert written == {picture_folder / "train-fixed.txt": 1, picture_folder / "val-fixed.txt": 0}
    report = check(picture_folder / "train-fixed.txt")
    assert {part: sum(of.values()) for part, of in report.counts.items()} == {"train": 29, "val": 30}


def test_a_list_without_paths_is_refused(tmp_path: Path) -> None:
    truth = tmp_path / "ILSVRC2012_validation_ground_truth.txt"
    truth.write_text("1\n2\n")
    with pytest.raises(UsageError, match="has no paths"):
        write_fixed(truth, NOTHING, set())
