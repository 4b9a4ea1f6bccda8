"""The findings of `resnetkit data check`."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from resnetkit.data import check as check_data
from resnetkit.data.check import check
from resnetkit.data.dataset import open_dataset
from resnetkit.data.samples import Dataset, Samples


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


def test_one_picture_in_two_classes_is_a_contradiction(picture_folder: Path) -> None:
    """Two files with the same pixels but other bytes, in the same part and in two parts."""
    first = picture_folder / "cat" / "cat 00.png"
    Image.open(first).save(picture_folder / "frog" / "copy.bmp")
    report = check(picture_folder, workers=2)
    assert len(report.contradictions) == 1
    parts = {
        part: [str(path) for path in samples.paths or ()]
        for part, samples in open_dataset(picture_folder).parts.items()
    }
    named = [
        f"{next(part for part, paths in parts.items() if str(path) in paths)}: {path} ({path.parent.name})"
        for path in (first, picture_folder / "frog" / "copy.bmp")
    ]
    assert sorted(report.contradictions[0]) == sorted(named)
    assert report.copies == ()
    assert not report.sound


def test_copies_within_a_class_are_said_and_no_fault(picture_folder: Path) -> None:
    rows = [f"{path.relative_to(picture_folder)},{path.parent.name},train" for path in picture_folder.glob("*/*.png")]
    shutil.copy(picture_folder / "cat/cat 00.png", picture_folder / "copy.png")
    rows += ["copy.png,cat,train", "frog/frog 01.jpg,frog,val", "ship/ship 01.jpg,ship,val", "cat/cat 01.jpg,cat,val"]
    (picture_folder / "labels.csv").write_text("path,label,split\n" + "\n".join(rows) + "\n")
    report = check(str(picture_folder / "labels.csv"))
    assert [set(group) for group in report.copies] == [
        {f"train: {picture_folder}/cat/cat 00.png", f"train: {picture_folder}/copy.png"}
    ]
    assert report.notes == ()
    assert report.sound


def test_pixels_in_memory_contradict_too() -> None:
    pixels = np.stack([np.full((4, 4, 3), value, np.uint8) for value in (1, 2, 1)])
    train = Samples(("a", "b"), np.array([0, 1, 1]), pixels)
    report = check(Dataset("three", ("a", "b"), train, None, None))
    assert report.contradictions == (("train: 0 (a)", "train: 2 (b)"),)
    assert report.leaks == ()


def test_the_same_numbers_in_another_shape_are_another_picture() -> None:
    assert check_data._content(np.zeros((2, 8, 3), np.uint8)) != check_data._content(np.zeros((4, 4, 3), np.uint8))


def test_what_to_know_of_a_division(tmp_path: Path) -> None:
    def write(*paths: str) -> None:
        for value, path in enumerate(paths):
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (4, 4), value).save(tmp_path / path)

    write("a/1.png", "b/2.png", "b/3.png")
    drawn, alone, lacking, few = check(tmp_path).notes
    assert drawn == "val is drawn: 1 of the 3 training pictures, the same ones each time (seed 0)"
    assert few == "classes with fewer than 5 training pictures: 'a' 1, 'b' 1"
    assert alone == "only one picture of 'a', which can be used for training or for the error, but not for both"
    assert lacking == "val has no picture of 'a', only of 'b'; its error does not include the missing classes"
    root = tmp_path / "given"
    for i in range(9):
        shutil.copytree(tmp_path / "b", root / "train" / str(i))
    shutil.copytree(tmp_path / "b", root / "val" / "3")
    shutil.copytree(tmp_path / "b", root / "val" / "4")
    assert open_dataset(root).notes == (
        "val has no picture of '0', '1', '2' and 4 more; its error does not include the missing classes",
    )


def test_every_picture_is_counted_while_it_is_looked_at(split_folder: Path) -> None:
    seen = []
    check(split_folder, workers=3, advance=seen.append)
    assert sum(seen) == 420
    assert set(seen) == {1}


def test_no_more_than_a_window_is_decoded_ahead(picture_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory needed does not grow, because the threads do not get all pictures at the same time."""
    looked = []
    look = check_data._look
    monkeypatch.setattr(check_data, "_look", lambda samples, index: looked.append(index) or look(samples, index))
    ahead = []

    def advance(pictures: int) -> None:
        ahead.append(len(looked) - len(ahead))

    check(picture_folder, workers=1, advance=advance)
    assert len(ahead) == 60
    assert 1 <= max(ahead) <= 1 + check_data.PICTURES_AHEAD


def test_missing_files_of_a_list_are_to_mend(picture_folder: Path) -> None:
    names = [path.relative_to(picture_folder).as_posix() for path in sorted(picture_folder.glob("*/*"))]
    rows = [f"{name},{name[:3]}" for name in names] + [f"gone {i}.png,cat" for i in range(30)]
    (picture_folder / "all.csv").write_text("path,label\n" + "\n".join(rows))
    report = check(str(picture_folder / "all.csv"))
    assert not report.sound
    assert report.problems == ("30 of 90 files are missing",)
    assert not any("missing" in note for note in report.notes)
    assert report.skipped[0][1] == f"does not exist ({picture_folder}/all.csv, line 62)"


def test_alike_pictures_in_parts_and_classes_are_to_fix(split_folder: Path) -> None:
    pixels = np.asarray(Image.open(next((split_folder / "train" / "ship").glob("*.png"))).resize((60, 60)))
    Image.fromarray(pixels).save(split_folder / "train" / "ship" / "large.png")
    Image.fromarray(pixels[2:, 1:]).save(split_folder / "test" / "ship" / "cropped.jpg", quality=95)
    Image.fromarray(pixels[:, ::-1]).save(split_folder / "test" / "frog" / "mirrored.png")
    report = check(split_folder, workers=2)
    (group,) = [group for group in report.duplicates if group.kind == "alike"]
    assert {"cropped.jpg", "mirrored.png", "large.png"} < {Path(path).name for path in group.paths}
    assert group.leaks
    assert group.contradicts
    assert {*group.labels} == {"ship", "frog"}
    assert not report.sound
    assert report.leaks == ()
    assert report.contradictions == ()
    moved = check_data.to_move(report)
    assert {path.name for path in moved} == {Path(path).name for path in group.paths} - {"cropped.jpg", "mirrored.png"}
    assert {*moved.values()} == {"alike as a picture of test"}


def test_a_drawn_val_keeps_alike_pictures_together(picture_folder: Path) -> None:
    for path in [*picture_folder.glob("*/*.png")][:12]:
        picture = Image.open(path).resize((64, 64))
        for number in range(3):
            picture.crop((number, 0, 64 - number, 63)).save(path.with_name(f"{path.stem} {number}.jpg"), quality=95)
    report = check(picture_folder, workers=2)
    assert len(report.duplicates) >= 12
    assert not any(group.leaks for group in report.duplicates)
    assert report.sound
    assert sum(report.counts["val"].values()) == pytest.approx(0.2 * 96, abs=6)


def test_uneven_classes_are_noted(picture_folder: Path) -> None:
    for path in sorted((picture_folder / "frog").iterdir())[2:]:
        path.unlink()
    notes = check(picture_folder).notes
    assert "classes with fewer than 5 training pictures: 'frog' 1" in notes
    assert "uneven classes: 16 training pictures of 'cat', 1 of 'frog'" in notes


def test_class_names_that_differ_in_spaces_only_are_noted(picture_folder: Path) -> None:
    (picture_folder / "frog").rename(picture_folder / "red cat")
    (picture_folder / "ship").rename(picture_folder / "Red_Cat ")
    note = "the classes 'Red_Cat ' and 'red cat' differ only in case, spaces and dashes"
    assert note in check(picture_folder).notes
