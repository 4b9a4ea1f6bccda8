"""Files are moved aside and back, and none is lost or replaced."""

import json
from pathlib import Path

import pytest

from resnetkit.data.asides import put_back, set_aside
from resnetkit.errors import DataError, UsageError


def tree(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for name in ("cat/1.png", "cat/deep/1.png", "dog/1.png"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return tmp_path / "photos"


def test_there_and_back(data: Path) -> None:
    before = tree(data)
    listed = set_aside(data, {data / "cat/deep/1.png": "broken", data / "dog/1.png": "a copy"})
    aside = data.with_name("photos-set-aside")
    assert listed.parent == aside
    assert tree(data) == {"cat/1.png": "cat/1.png"}
    assert {name: text for name, text in tree(aside).items() if name != listed.name} == {
        "cat/deep/1.png": "cat/deep/1.png",
        "dog/1.png": "dog/1.png",
    }
    assert [move["reason"] for move in json.loads(listed.read_text())["moved"]] == ["broken", "a copy"]
    assert put_back(listed) == 2
    assert tree(data) == before
    assert not aside.exists()


def test_nothing_is_replaced(data: Path) -> None:
    first = set_aside(data, {data / "dog/1.png": "broken"})
    (data / "dog/1.png").write_text("another")
    second = set_aside(data, {data / "dog/1.png": "broken"})
    assert first != second
    (data / "dog/1.png").write_text("a third")
    with pytest.raises(DataError, match=r"1 place taken by other files, first .*1\.png; move them first"):
        put_back(second)
    (data / "dog/1.png").unlink()
    assert put_back(second) == 1
    assert (data / "dog/1.png").read_text() == "another"
    assert first.is_file(), "files of another list stay"
    assert (first.parent / "dog/1.png").read_text() == "dog/1.png"


def test_a_stop_in_between(data: Path) -> None:
    """The list is there before the first file has moved: what has not moved stays, what has moved comes back."""
    before = tree(data)
    listed = set_aside(data, {data / "cat/1.png": "x", data / "dog/1.png": "x"})
    (listed.parent / "cat/1.png").rename(data / "cat/1.png")
    assert put_back(listed) == 1
    assert tree(data) == before


def test_what_is_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not within"):
        set_aside(data, {tmp_path / "elsewhere.png": "broken"})
    with pytest.raises(UsageError, match="can't be read: No such file"):
        put_back(tmp_path / "gone.json")
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(UsageError, match="is not a list of moved files"):
        put_back(tmp_path / "other.json")
    assert tree(data).keys() == {"cat/1.png", "cat/deep/1.png", "dog/1.png"}


def test_a_folder_that_is_read_only_keeps_all_its_files(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that can't be moved: those before it go back, and there is no list and no folder of a half-done fix."""
    before, rename = tree(data), Path.rename

    def fails_in_dog(path: Path, goal: Path) -> Path:
        if path.parent.name == "dog" and "set-aside" not in str(path):
            raise PermissionError(13, "Permission denied", str(path))
        return rename(path, goal)

    monkeypatch.setattr(Path, "rename", fails_in_dog)
    with pytest.raises(DataError, match=r"dog/1.png can't be moved or written: Permission denied. Nothing was moved;"):
        set_aside(data, {data / "cat/1.png": "x", data / "dog/1.png": "x"})
    assert tree(data) == before
    assert not data.with_name("photos-set-aside").exists()
    listed = set_aside(data, {data / "cat/1.png": "x"})
    with pytest.raises(DataError, match="Nothing was moved"):
        set_aside(data, {data / "cat/deep/1.png": "x", data / "dog/1.png": "x"})
    assert set(tree(listed.parent)) == {"cat/1.png", listed.name}, "what was moved before stays, with its list"

    def goes_one_way(path: Path, goal: Path) -> Path:
        if "set-aside" in str(path):
            raise OSError(28, "No space left on device", str(path))
        return fails_in_dog(path, goal)

    monkeypatch.setattr(Path, "rename", goes_one_way)
    with pytest.raises(DataError, match=r"To move back: resnetkit data check --undo .*undo-.*\.json") as error:
        set_aside(data, {data / "cat/deep/1.png": "x", data / "dog/1.png": "x"})
    monkeypatch.setattr(Path, "rename", rename)
    assert put_back(Path(str(error.value).split()[-1])) == 1
    assert put_back(listed) == 1
    assert tree(data) == before
