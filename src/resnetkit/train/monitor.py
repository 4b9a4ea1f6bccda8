"""The output of a run in progress: a progress bar or plain lines, metrics.jsonl, log.txt and curves.png."""

import json
import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from resnetkit.display import printable
from resnetkit.files import write_whole
from resnetkit.progress import Advance, Display, Far
from resnetkit.train.run_folder import RunFolder

PERCENT = "_percent"
"""The end of a percentage's name."""
FEW_POINTS = 50
"""Curves with up to this many points show each point; a line through a single point would not be visible."""


class Monitor:
    """Prints and records the progress of one run."""

    def __init__(self, run: RunFolder, *, quiet: bool = False) -> None:
        self.run = run
        self._logger = logging.getLogger("resnetkit")
        self._level = self._logger.level
        self._display = Display(quiet=quiet, line=self.say)
        to_file = logging.FileHandler(run.log, encoding="utf-8", errors="backslashreplace")
        to_file.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        self._handlers = [to_file] if quiet else [to_file, AboveBar(self._display)]

    def __enter__(self) -> "Monitor":
        for handler in self._handlers:
            self._logger.addHandler(handler)
        self._logger.setLevel(logging.INFO)
        self._display.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._display.__exit__(kind, error, trace)
        self._logger.setLevel(self._level)
        for handler in self._handlers:
            self._logger.removeHandler(handler)
            handler.close()

    @property
    def closed(self) -> bool:
        """Whether standard error is a pipe that its reader has closed."""
        return self._display.closed

    def say(self, text: str) -> None:
        """Print a line above the progress bar, and write it to log.txt."""
        self._logger.info(printable(text))

    def show(
        self,
        step: int,
        total: int | None,
        values: Mapping[str, float],
        *,
        images_per_second: float,
        left_seconds: float | None,
    ) -> None:
        """Update the progress bar, or print a plain line when it is time for one."""
        shown = [
            f"{name.removesuffix(PERCENT)} {value:.1f} %" if name.endswith(PERCENT) else f"{name} {value:.3f}"
            for name, value in values.items()
        ]
        note = "  ".join([*shown, f"{images_per_second:,.0f} images/s"])
        self._display.show(Far("", step, total, "steps", left_seconds, note))

    def doing(self, what: str, total: int | None = None, unit: str = "") -> Advance:
        """Show the progress of work other than steps, until the next step. Call the result with each count done."""
        return self._display.counter(what, total, unit)

    def record(self, row: dict[str, Any]) -> None:
        """Append a row to metrics.jsonl."""
        with self.run.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def forget_after(self, step: int, *, evaluated: bool = True) -> None:
        """Remove the rows of metrics.jsonl that a resumed run will write again, and an incomplete last line.

        Without `evaluated`, the row of the evaluation after `step` is also removed.
        """
        rows = [
            row
            for row in read_metrics(self.run.metrics)
            if row["step"] < step or (row["step"] == step and (evaluated or row["part"] != "val"))
        ]
        write_whole(self.run.metrics, "".join(json.dumps(row) + "\n" for row in rows))


class AboveBar(logging.Handler):
    """A logging handler that prints messages above the progress bar."""

    def __init__(self, display: Display) -> None:
        super().__init__()
        self.display = display

    def emit(self, record: logging.LogRecord) -> None:
        """Print one message."""
        self.display.say(record.getMessage())


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a metrics.jsonl, without an incomplete last line; an empty list if there is no file."""
    rows: list[dict[str, Any]] = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def spoken(values: Mapping[str, float], *, first: str) -> str:
    """Return the float values as text, beginning with `first`, such as `error 5.20 %, loss 0.1834`."""
    names = sorted((name for name, value in values.items() if isinstance(value, float)), key=lambda name: name != first)
    return ", ".join(
        f"{name.removesuffix(PERCENT)} {values[name]:.2f} %" if name.endswith(PERCENT) else f"{name} {values[name]:.4f}"
        for name in names
    )


def draw_curves(rows: list[dict[str, Any]], path: Path, *, score: str, title: str) -> None:
    """Draw a value in training and validation over the steps, and the learning rate below it, as a PNG file.

    `score` is the name of the value in the rows, for example error_percent.
    """
    import io

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    train = [row for row in rows if row["part"] == "train"]
    val = [row for row in rows if row["part"] == "val"]
    steps = [row["step"] for row in train]
    mark = "." if len(train) <= FEW_POINTS else ""
    figure = Figure(figsize=(8, 6), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    upper, rate = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    if all(score in row for row in train):
        upper.plot(steps, [row[score] for row in train], label="training", color="tab:blue", lw=1, marker=mark)
    if val:
        upper.plot(
            [row["step"] for row in val],
            [row[score] for row in val],
            label="validation",
            color="tab:red",
            marker="o" if len(val) <= FEW_POINTS else "",
        )
    upper.set(ylabel=f"{score.removesuffix(PERCENT)} (%)" if score.endswith(PERCENT) else score, ylim=(0, None))
    upper.set_title(title, parse_math=False)  # a path that contains two $ is not a formula
    upper.grid(alpha=0.3)
    upper.legend()
    rate.plot(steps, [row["lr"] for row in train], color="tab:gray", marker=mark)
    rate.set(xlabel="step", ylabel="learning rate")
    rate.set_xlim(0, 1.03 * max([1, *(row["step"] for row in rows)]))
    rate.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    rate.grid(alpha=0.3)
    picture = io.BytesIO()
    with warnings.catch_warnings():
        # The title may have letters that the font does not contain; they are drawn as boxes.
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        canvas.print_png(picture)
    write_whole(path, picture.getvalue())
