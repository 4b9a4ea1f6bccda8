"""Files that are written whole: after any error the old file is unchanged."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import resnetkit
from resnetkit.cli import main
from resnetkit.files import cache_folder, expanded, whole_file, write_whole
from resnetkit.train.run_folder import RunFolder


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


def test_threads_that_write_the_same_file_do_not_disturb_each_other(tmp_path):
    path, rounds = tmp_path / "a.bin", 50
    contents = [bytes([writer]) * 100_000 for writer in range(4)]

    def write(content):
        for _ in range(rounds):
            write_whole(path, content)
            assert path.read_bytes() in contents

    with ThreadPoolExecutor(len(contents)) as pool:
        list(pool.map(write, contents))
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]


def test_a_half_written_file_is_called_as_a_run_folder_sweeps_it(tmp_path):
    run = RunFolder(tmp_path)
    with whole_file(run.state):
        (half_written,) = tmp_path.iterdir()
        (tmp_path / f"{half_written.name.removesuffix('.part')}0.part").touch()  # as a killed process leaves one
    with run.locked():
        assert {path.name for path in tmp_path.iterdir()} == {".lock", "state.pt"}


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"RESNETKIT_CACHE": "~/own"}, "own"),
        ({"XDG_CACHE_HOME": "~/xdg"}, "xdg/resnetkit"),
        ({"RESNETKIT_CACHE": "", "XDG_CACHE_HOME": ""}, ".cache/resnetkit"),
    ],
)
def test_where_the_cache_is(variables, expected, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RESNETKIT_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert cache_folder() == tmp_path / expected


def test_a_home_that_nobody_has_is_a_name_like_any_other():
    assert expanded("~nobody.of.this.name/x") == Path("~nobody.of.this.name/x")


def test_no_path_is_expanded_in_another_way():
    package = Path(resnetkit.__file__).parent
    assert [file.name for file in package.rglob("*.py") if ".expanduser(" in file.read_text("utf-8")] == ["files.py"]


@pytest.mark.parametrize("verb", [["convert"], ["convert", "--list"]])
def test_a_file_of_weights_that_is_not_there_in_any_home(verb, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert main([*verb, "~nobody.of.this.name/x.pth"]) == 1
    assert "~nobody.of.this.name/x.pth does not exist; give a file of weights" in capsys.readouterr().err
    assert main([*verb, "~/x.pth"]) == 1
    assert f"{tmp_path}/x.pth does not exist; give a file of weights" in capsys.readouterr().err
