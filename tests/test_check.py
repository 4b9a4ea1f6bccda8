"""What `resnetkit data check` finds."""

import shutil
from pathlib import Path

from PIL import Image

from resnetkit.data.check import check


def test_sound_folder(picture_folder: Path) -> None:
    Image.new("RGB", (100, 7)).save(picture_folder / "cat" / "wide.png")
    report = check(str(picture_folder))
    assert {part: sum(counts.values()) for part, counts in report.counts.items()} == {"train": 49, "val": 12}
    assert report.counts["val"] == {"cat": 4, "frog": 4, "ship": 4}
    assert report.widths == (32, 32, 100)
    assert report.heights == (7, 32, 32)
    assert report.sound
    assert (report.unreadable, report.skipped, report.leaks) == ((), (), ())


def test_upright_size(picture_folder: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    shutil.rmtree(picture_folder / "frog")
    shutil.rmtree(picture_folder / "ship")
    Image.new("RGB", (40, 10)).save(picture_folder / "cat" / "turned.jpg", exif=exif)
    report = check(str(picture_folder))
    assert report.widths == (10, 32, 32)
    assert report.heights == (32, 32, 40)


def test_unreadable_files(picture_folder: Path) -> None:
    cut, empty = picture_folder / "cat" / "cat 00.png", picture_folder / "frog" / "frog 01.jpg"
    cut.write_bytes(cut.read_bytes()[:-300])
    empty.write_bytes(b"")
    (picture_folder / "cat" / "notes.txt").touch()
    report = check(str(picture_folder))
    assert not report.sound
    reasons = dict(report.unreadable)
    assert set(reasons) == {cut, empty}
    assert "empty" in reasons[empty]
    assert not any(str(path) in reason for path, reason in report.unreadable), "the path is said once"
    assert [path.name for path, _ in report.skipped] == ["notes.txt"]


def test_only_unreadable(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.png").touch()
    report = check(str(tmp_path))
    assert report.widths == report.heights == (0, 0, 0)
    assert len(report.unreadable) == 1


def test_leaks(split_folder: Path) -> None:
    leaked = split_folder / "train" / "cat" / "cat 02.png"
    shutil.copy(leaked, split_folder / "test" / "dog" / "copy.png")
    shutil.copy(leaked, split_folder / "test" / "cat" / "copy.png")
    report = check(str(split_folder))
    assert len(report.leaks) == 1
    part = "train" if report.leaks[0][0].startswith("train") else "val"
    assert report.leaks[0] == (
        f"{part}: {leaked}",
        f"test: {split_folder}/test/cat/copy.png",
        f"test: {split_folder}/test/dog/copy.png",
    )
    assert not report.sound


def test_copies_within_a_part_are_no_leak(tmp_path: Path, picture_folder: Path) -> None:
    for part in ("train", "val"):
        shutil.copytree(picture_folder / ("cat" if part == "train" else "frog"), tmp_path / "root" / part / "cat")
    shutil.copy(tmp_path / "root/train/cat/cat 00.png", tmp_path / "root/train/cat/copy.png")
    assert check(str(tmp_path / "root")).leaks == ()


def test_sign_digits(shared: Path) -> None:
    report = check(str(shared / "data" / "sign-digits"), workers=2)
    assert report.unreadable == ()
    assert report.widths[2] == 3024


def test_one_class_is_no_set_for_a_classifier(picture_folder: Path) -> None:
    assert check(str(picture_folder)).problems == ()
    shutil.rmtree(picture_folder / "frog")
    shutil.rmtree(picture_folder / "ship")
    report = check(str(picture_folder))
    assert report.problems == ("all pictures are of one class, cat; a classifier needs two or more",)
    assert not report.sound
