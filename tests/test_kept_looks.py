"""Looks are kept between runs: found again, bounded, and never wrong for a file that changed."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from resnetkit.data import looks
from resnetkit.data.dataset import open_dataset
from resnetkit.data.kept_looks import KeptLooks
from resnetkit.data.looks import Look, look_at
from resnetkit.data.samples import Samples
from scenes import scene

LONG_AGO = 1_700_000_000


@pytest.fixture
def photos(tmp_path: Path) -> Samples:
    """Six photographs that were written long ago, one of them broken, one grey."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(6):
        picture = scene(90 + number, 70, seed=number)
        (picture.convert("L") if number == 1 else picture).save(folder / f"{number}.jpg")
    (folder / "5.jpg").write_bytes(b"no picture")
    paths = tuple(sorted(folder.iterdir()))
    for path in paths:
        os.utime(path, (LONG_AGO, LONG_AGO))
    return Samples(("a",), np.zeros(6, np.int64), paths=paths)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are decoded."""
    names: list[str] = []
    look_of = looks.look_of

    def noted(samples: Samples, index: int) -> Look:
        names.append(Path(samples.place(index)).name)
        return look_of(samples, index)

    monkeypatch.setattr(looks, "look_of", noted)
    return names


def test_a_file_is_looked_at_once_and_again_when_it_changes(photos: Samples, decoded: list[str]) -> None:
    first = look_at([photos], workers=0)
    assert sorted(decoded) == [f"{number}.jpg" for number in range(6)]
    decoded.clear()
    again = look_at([photos], workers=2)
    assert decoded == ["5.jpg"], "a file that can't be read is read again"
    for name in ("thumbnails", "digests", "comparable"):
        assert np.array_equal(getattr(first, name), getattr(again, name))
    for name in ("known", "numbers", "colours", "edges"):
        assert np.array_equal(getattr(first.facts, name), getattr(again.facts, name))
    # Names have numbers in the order of their first use, which is another one here.
    assert np.array_equal(*(np.unique(of.facts.kinds[:5, 0], return_inverse=True)[1] == 1 for of in (first, again)))
    assert first.facts.numbers[0].tolist() == [photos.path(0).stat().st_size, 90, 70]  # type: ignore[union-attr]
    decoded.clear()
    scene(90, 70, seed=9).save(photos.path(0))  # type: ignore[arg-type]
    shutil.copy(photos.path(3), photos.path(2))  # type: ignore[arg-type]
    os.utime(photos.path(2), (LONG_AGO, LONG_AGO + 1))  # type: ignore[arg-type]
    changed = look_at([photos], workers=0)
    assert sorted(decoded) == ["0.jpg", "2.jpg", "5.jpg"]
    assert np.array_equal(changed.digests[2], changed.digests[3])


def test_a_file_that_was_written_just_now_is_not_kept(photos: Samples, decoded: list[str]) -> None:
    path = photos.path(0)
    assert path is not None
    os.utime(path)
    for _ in range(2):
        look_at([photos], workers=0)
    assert decoded.count("0.jpg") == 2


def test_the_oldest_uses_go_first(tmp_path: Path) -> None:
    kept = KeptLooks("1", folder=tmp_path, most=3)
    keys = [bytes([number]) * 16 for number in range(5)]
    kept.keep(dict.fromkeys(keys[:2], b"look"))
    kept.keep({keys[2]: b"look"})
    assert list(kept.find(keys[:1])) == keys[:1]  # used again
    kept.keep({keys[3]: b"look"})
    assert set(kept.find(keys)) == {keys[0], keys[2], keys[3]}
    assert KeptLooks("1", folder=tmp_path).find(keys[4:]) == {}


@pytest.mark.parametrize("content", [b"this is no data base at all, and never was one" * 9, b""])
def test_a_broken_cache_begins_anew(photos: Samples, own_cache: Path, decoded: list[str], content: bytes) -> None:
    expected = look_at([photos], workers=0)
    (own_cache / "looks.sqlite").write_bytes(content)
    for _ in range(2):
        assert np.array_equal(look_at([photos], workers=0).thumbnails, expected.thumbnails)
    decoded.clear()
    look_at([photos], workers=0)
    assert decoded == ["5.jpg"]


def test_without_a_cache_folder_nothing_is_kept(
    photos: Samples, decoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RESNETKIT_CACHE", "/dev/null/nowhere")
    for _ in range(2):
        look_at([photos], workers=0)
    assert len(decoded) == 12


def test_bytes_of_no_look_are_refused() -> None:
    for content in (b"", b"short", bytes(2000)):
        with pytest.raises(ValueError, match=r"."):
            Look.from_bytes(content)


def test_pictures_in_memory_have_looks_with_colours(picture_folder: Path) -> None:
    train = open_dataset(picture_folder).train
    assert train is not None
    pixels = np.full((2, 40, 50, 3), (200, 10, 30), np.uint8)
    found = look_at([Samples(("a",), np.zeros(2, np.int64), pixels)], workers=0)
    assert found.facts.colours[0, 3, 3].tolist() == found.facts.edges[1, 2].tolist() == [200, 10, 30]
    assert found.facts.numbers[0].tolist() == [0, 50, 40]
