"""The page of a run or an evaluation: its content, and its layout on a small screen."""

from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path

import torch
from torch.nn import functional as F

from resnetkit.data.transforms.preprocess import Preprocess
from resnetkit.evaluation.metrics import Evaluation
from resnetkit.evaluation.report import MOST_FILES, MOST_ROWS, write_report
from resnetkit.modelfile import Header
from resnetkit.models.spec import parse_spec
from resnetkit.train.monitor import draw_curves

DRAWN = {"rule": "drawn", "seed": 7, "val_fraction": 0.2}


def evaluated(count: int, **fields: object) -> Evaluation:
    """Two pictures of each of `count` classes; one of them is predicted as the next class."""
    labels = torch.arange(count).repeat_interleave(2)
    found = (labels + torch.tensor([0, 1]).repeat(count)) % count
    result = Evaluation(tuple(f"class <{i}>" for i in range(count)))
    result.add(F.one_hot(found, count).float().mul(9).log_softmax(1), labels)
    for name, value in fields.items():
        setattr(result, name, value)
    return result


def page(folder: Path, result: Evaluation, origin: Mapping[str, str] | None = None) -> str:
    header = Header(
        parse_spec("resnet20", classes=len(result.classes)),
        Preprocess(size=32),
        result.classes,
        {"lr": 0.1},
        data={"name": "/home/me/birds", "split": DRAWN},
        origin=origin or {},
    )
    write_report(
        folder / "r.html",
        header,
        title="a <run>",
        evaluated=result,
        recipe={"lr": 0.05, "flip": True},
        on="validation pictures",
    )
    text = (folder / "r.html").read_text()
    Checked().feed(text)
    return text


class Checked(HTMLParser):
    """Fails if a tag is closed that is not open, or if a table can't scroll."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "table":
            assert self.open[-1] == "div"
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_a_page_fits_small_screens_and_dark_ones(tmp_path: Path) -> None:
    text = page(tmp_path, evaluated(8))
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in text
    assert "prefers-color-scheme: dark" in text
    assert "table:not(.confusion) tr:nth-child(even)" in text, "stripes would tint the counts"
    assert "class <0>" not in text
    assert "class &lt;0&gt;" in text
    assert "Trained on birds." in text
    assert "/home" not in text
    assert "Chosen at random from the set&#x27;s training pictures (seed 7)" in text
    assert text.count("top-5 error") == 2
    assert "<tr><td>lr</td><td>0.05</td></tr>\n<tr><td>flip</td><td>true</td></tr></table>" in text


def test_where_converted_weights_come_from_is_on_the_page(tmp_path: Path) -> None:
    assert "<h2>Origin</h2>" not in page(tmp_path, evaluated(3))
    text = page(tmp_path, evaluated(3), origin={"source": "torchvision", "url": "https://x/?a&b"})
    assert "<h2>Origin</h2>" in text
    assert "<td>url</td><td>https://x/?a&amp;b</td>" in text


def test_top5_of_few_classes_is_left_out(tmp_path: Path) -> None:
    assert "top-5" not in page(tmp_path, evaluated(5))
    assert "top-5" in page(tmp_path, evaluated(6))


def test_what_makes_a_number_worth_little_is_on_the_page(tmp_path: Path) -> None:
    text = page(tmp_path, evaluated(3, trained_on=4, part="all", why="asked for by name"))
    assert '<p class="note">4 of these 6 pictures trained the model: ' in text
    assert "<p>all: asked for by name.</p>" in text
    alone = Evaluation(("ant", "bee"))
    alone.add(torch.tensor([[9.0, 0.0]]).log_softmax(1), torch.tensor([0]))
    assert "All pictures are of one class, ant: an error over one class has little meaning." in page(tmp_path, alone)


def test_many_classes_and_many_unreadable_files_stay_a_page(tmp_path: Path) -> None:
    broken = {Path(f"birds/{i}.jpg"): "is cut short" for i in range(1000)}
    text = page(tmp_path, evaluated(100, unreadable=broken))
    assert text.count("<td>is cut short</td>") == MOST_FILES
    assert "and 800 more" in text
    assert '<table class="confusion">' not in text
    assert len(text) < 100_000
    many = page(tmp_path, evaluated(2000))
    assert f"and {2000 - MOST_ROWS:,} more classes" in many
    assert len(many) < 200_000


def test_a_title_is_text_and_no_mathematics(tmp_path: Path) -> None:
    row = {"step": 1, "error_percent": 5.0, "lr": 0.1}
    rows = [row | {"part": "train"}, row | {"part": "val"}]
    draw_curves(rows, tmp_path / "curves.png", score="error_percent", title=r"resnet18 on $\broken{ and $100_^")
    assert (tmp_path / "curves.png").stat().st_size > 10_000
