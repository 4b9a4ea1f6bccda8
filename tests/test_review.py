"""The page to review labels and the sections of the report: their content, safe names, and no network."""

import csv
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clusters import some_features
from resnetkit.data.dataset import open_dataset
from resnetkit.data.samples import Samples
from resnetkit.errors import DataError
from resnetkit.finetune import review
from resnetkit.finetune.labels import LabelError, LabelErrors
from resnetkit.finetune.learning_curve import learning_curve
from resnetkit.finetune.review import path_in_corrections, write_review
from resnetkit.finetune.sections import curve_section, errors_section

CLASSES = ('a & "b"', "<c>")


@pytest.fixture
def photos(tmp_path: Path) -> Samples:
    """Four pictures of each of CLASSES below tmp_path/photos."""
    paths = []
    for name in CLASSES:
        folder = tmp_path / "photos" / name
        folder.mkdir(parents=True)
        for number in range(4):
            paths.append(folder / f'{number} "x", é.png')
            Image.new("RGB", (400, 300), (60 * number, 80, 120)).save(paths[-1])
    return Samples(CLASSES, np.repeat([0, 1], 4), paths=tuple(paths))


def some_errors(samples: Samples, count: int = 2) -> LabelErrors:
    errors = tuple(
        LabelError(place, samples.path(place), CLASSES[0], CLASSES[1], place / 100) for place in range(count)
    )
    return LabelErrors(errors, len(samples), (), np.arange(len(samples)), np.ones(len(samples), np.float32))


class Items(HTMLParser):
    """Collects the list items and the addresses of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.items: list[dict[str, str | None]] = []
        self.options: list[str | None] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.addresses += [value for name in ("src", "href") if (value := values.get(name))]
        if tag == "li":
            self.items.append(values)
        if tag == "option":
            self.options.append(values.get("value"))


def test_the_page_names_pictures_and_classes_and_loads_nothing(tmp_path: Path, photos: Samples) -> None:
    data = str(tmp_path / "photos")
    write_review(tmp_path / "r.html", some_errors(photos), photos, data=data)
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    page = Items()
    page.feed(text)
    assert [item["data-path"] for item in page.items] == [f'{CLASSES[0]}/{n} "x", é.png' for n in range(2)]
    assert {item["data-suggested"] for item in page.items} == {CLASSES[1]}
    assert set(CLASSES) <= set(page.options)
    assert all(address.startswith("data:image/jpeg;base64,") for address in page.addresses)
    assert len(page.addresses) >= 2 + 2 * (1 + review.EXAMPLES)
    assert "default-src 'none'" in text
    assert not re.search(r"https?://", text)
    assert "<c>" not in text
    assert len(text) < 200_000


def test_its_corrections_are_read_again(tmp_path: Path, photos: Samples) -> None:
    """What the page's script writes for a path and a class, by csv here: it quotes in the same way."""
    data = tmp_path / "photos"
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    assert photos.paths is not None
    writer.writerows([("path", "action", "label"), (path_in_corrections(photos.paths[1], str(data)), "relabel", "<c>")])
    (tmp_path / "corrections.csv").write_text(text.getvalue(), encoding="utf-8")
    dataset = open_dataset(data, corrections=tmp_path / "corrections.csv", val_fraction=0.0)
    assert dataset.train is not None
    found = {
        path: dataset.classes[label]
        for path, label in zip(dataset.train.paths or (), dataset.train.labels, strict=True)
    }
    assert found == dict(zip(photos.paths, 4 * CLASSES[:1] + 4 * CLASSES[1:], strict=True)) | {photos.paths[1]: "<c>"}


def test_paths_are_relative_to_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "photos").mkdir()
    monkeypatch.chdir(tmp_path)
    assert path_in_corrections(Path("photos/cat/1.png"), "photos") == "cat/1.png"
    assert path_in_corrections(tmp_path / "photos/cat/1.png", "photos/") == "cat/1.png"
    assert path_in_corrections(Path("photos/cat/1.png"), "list.csv") == "photos/cat/1.png"
    assert path_in_corrections(Path("/elsewhere/1.png"), "photos") == "/elsewhere/1.png"


def test_many_errors_and_none(tmp_path: Path, photos: Samples, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(review, "MOST", 3)
    write_review(tmp_path / "r.html", some_errors(photos, 4), photos, data=str(tmp_path / "photos"))
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert text.count("<li ") == 3
    assert "These are the worst 3 of 4." in text
    write_review(tmp_path / "r.html", some_errors(photos, 0), photos, data=str(tmp_path / "photos"))
    assert "There is nothing to review." in (tmp_path / "r.html").read_text(encoding="utf-8")


def test_pictures_in_memory_are_refused(tmp_path: Path) -> None:
    samples = Samples(("a", "b"), np.array([0, 1]), np.zeros((2, 8, 8, 3), np.uint8))
    found = LabelErrors((), 2, (), np.arange(2), np.ones(2, np.float32))
    with pytest.raises(DataError, match="not files"):
        write_review(tmp_path / "r.html", found, samples, data="cifar10")


def test_sections_escape_names_and_draw(photos: Samples) -> None:
    text = errors_section(some_errors(photos), photos)
    assert "2 labels of 8 may be wrong" in text
    assert "&lt;c&gt;" in text
    assert "<c>" not in text
    features, labels = some_features(400, classes=2)
    curve = learning_curve(features, labels, classes=CLASSES, draws=1)
    drawn = curve_section(curve)
    assert drawn.count("<circle") == len(curve.measured)
    assert "&lt;c&gt;" in drawn
    assert "nan" not in drawn
