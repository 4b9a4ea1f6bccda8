"""Whole files: what was there before survives everything that goes wrong."""

import pytest

from resnetkit.files import whole_file, write_whole


def test_bytes_and_text_arrive_whole(tmp_path):
    write_whole(tmp_path / "a.txt", "Möwe")
    write_whole(tmp_path / "b.bin", b"\0\1")
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "Möwe"
    assert (tmp_path / "b.bin").read_bytes() == b"\0\1"


def test_an_error_on_the_way_changes_nothing(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("before")
    with pytest.raises(TypeError), whole_file(path) as file:
        file.writelines([b"half", "text in a file of bytes"])
    assert path.read_text() == "before"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_errors_name_the_file_that_was_asked_for(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        write_whole(tmp_path / "nowhere" / "a.txt", "text")
    assert caught.value.filename == str(tmp_path / "nowhere" / "a.txt")
