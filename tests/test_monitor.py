"""The records of a run, and the curves that are drawn from them."""

import json

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from resnetkit.train.monitor import FEW_POINTS, Monitor, draw_curves, read_metrics
from resnetkit.train.run_folder import RunFolder


def rows(steps: list[int], part: str) -> list[dict[str, object]]:
    return [{"part": part, "step": step, "error_percent": 50.0, "lr": 0.1} for step in steps]


@pytest.fixture
def figures(monkeypatch):
    """Collect the figures that are drawn."""
    drawn, print_png = [], FigureCanvasAgg.print_png
    monkeypatch.setattr(
        FigureCanvasAgg, "print_png", lambda self, file: (drawn.append(self.figure), print_png(self, file))[1]
    )
    return drawn


@pytest.mark.parametrize("steps", [[1], [1, 2], [1, 3, 4]])
def test_curves_of_a_short_run(steps, figures, tmp_path):
    draw_curves(
        rows(steps, "train") + rows(steps[-1:], "val"), tmp_path / "curves.png", score="error_percent", title="short"
    )
    error, rate = figures[0].axes
    for line in (*error.lines, *rate.lines):
        assert line.get_marker() not in ("", "None"), "one point without a mark is not seen"
    low, high = rate.get_xlim()
    assert all(tick == round(tick) for tick in rate.get_xticks() if low <= tick <= high)


def test_curves_of_a_long_run_are_lines(figures, tmp_path):
    draw_curves(
        rows(list(range(FEW_POINTS + 1)), "train"), tmp_path / "curves.png", score="error_percent", title="long"
    )
    assert [line.get_marker() for axes in figures[0].axes for line in axes.lines] == ["", ""]


@pytest.mark.parametrize("title", ["resnet20 on /home/$me/$them", "$x_$", "a_b^c"])
def test_a_title_is_no_formula(title, figures, tmp_path):
    draw_curves(rows([1], "train"), tmp_path / "curves.png", score="error_percent", title=title)
    assert figures[0].axes[0].get_title() == title
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_letters_that_the_font_lacks_are_no_warning(recwarn, tmp_path):
    draw_curves(rows([1], "train"), tmp_path / "curves.png", score="error_percent", title="resnet20 on 猫と犬")
    assert [str(warning.message) for warning in recwarn] == []
    assert (tmp_path / "curves.png").is_file()


@pytest.mark.parametrize(("evaluated", "kept"), [(True, 4), (False, 3)])
def test_rows_that_will_be_written_again_are_dropped(evaluated, kept, tmp_path):
    run = RunFolder(tmp_path)
    written = rows([1, 2], "train") + rows([1, 2], "val") + rows([3], "train")
    run.metrics.write_text("".join(json.dumps(row) + "\n" for row in written) + '{"part": "tr')
    with Monitor(run, quiet=True) as monitor:
        monitor.forget_after(2, evaluated=evaluated)
    assert len(read_metrics(run.metrics)) == kept
    assert all(row["step"] <= 2 for row in read_metrics(run.metrics))
