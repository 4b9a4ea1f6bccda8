"""What a run shows and writes while it goes: a progress bar or plain lines, metrics.jsonl, log.txt, curves.png."""

import json
import logging
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from resnetkit.files import write_whole
from resnetkit.train.checkpoint import RunFolder

LINE_EVERY = 15.0  # seconds between two plain lines, where there is no terminal


class Monitor:
    """Shows and records one run. On a terminal a live bar, elsewhere plain lines, both on standard error."""

    def __init__(self, run: RunFolder, *, quiet: bool = False) -> None:
        self.run = run
        self._logger = logging.getLogger("resnetkit")
        self._level = self._logger.level
        self._quiet = quiet
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total} steps"),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            disable=quiet or not sys.stderr.isatty(),
            console=Console(stderr=True),
        )
        self._task = self._bar.add_task("starting", total=None)
        self._line_at = 0.0
        to_file = logging.FileHandler(run.log, encoding="utf-8", errors="backslashreplace")
        to_file.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        self._handlers = [to_file] if quiet else [to_file, AboveBar(self._bar.console)]

    def __enter__(self) -> "Monitor":
        for handler in self._handlers:
            self._logger.addHandler(handler)
        self._logger.setLevel(logging.INFO)
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
        self._logger.setLevel(self._level)
        for handler in self._handlers:
            self._logger.removeHandler(handler)
            handler.close()

    def say(self, text: str) -> None:
        """Print a line above the bar, and log it."""
        self._logger.info(text)

    def show(
        self, step: int, total: int | None, *, loss: float, error_percent: float, images_per_second: float
    ) -> None:
        """Bring the bar up to date, or print a plain line when it is time for one."""
        text = f"loss {loss:.3f}  error {error_percent:.1f} %  {images_per_second:,.0f} images/s"
        self._bar.update(self._task, completed=step, total=total, description=text)
        now = time.monotonic()
        if self._bar.disable and not self._quiet and now - self._line_at >= LINE_EVERY:
            self._line_at = now
            self.say(f"step {step}{f'/{total}' if total else ''}  {text}")

    def record(self, row: dict[str, Any]) -> None:
        """Append a row to metrics.jsonl."""
        with self.run.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def forget_after(self, step: int) -> None:
        """Drop the rows that a resumed run is going to write again, and a line that was cut short."""
        rows = [row for row in read_metrics(self.run.metrics) if row["step"] <= step]
        write_whole(self.run.metrics, "".join(json.dumps(row) + "\n" for row in rows))


class AboveBar(logging.Handler):
    """Prints what is logged where it does not disturb a progress bar."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self.console = console

    def emit(self, record: logging.LogRecord) -> None:
        """Print one message."""
        self.console.print(record.getMessage(), markup=False, highlight=False, soft_wrap=True)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl, without a last line that was cut short; none where there is no file."""
    rows: list[dict[str, Any]] = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def draw_curves(rows: list[dict[str, Any]], path: Path, *, title: str) -> None:
    """Draw training and validation error, and the learning rate, over the steps, as a PNG."""
    import io

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    train = [row for row in rows if row["part"] == "train"]
    val = [row for row in rows if row["part"] == "val"]
    figure = Figure(figsize=(8, 6), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    error, rate = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    error.plot(
        [r["step"] for r in train], [r["error_percent"] for r in train], label="training", color="tab:blue", lw=1
    )
    if val:
        error.plot(
            [r["step"] for r in val], [r["error_percent"] for r in val], "o-", label="validation", color="tab:red"
        )
    error.set(ylabel="error (%)", title=title, ylim=(0, None))
    error.title.set_parse_math(False)  # a folder's name may hold two $
    error.grid(alpha=0.3)
    error.legend()
    rate.plot([r["step"] for r in train], [r["lr"] for r in train], color="tab:gray")
    rate.set(xlabel="step", ylabel="learning rate")
    rate.grid(alpha=0.3)
    picture = io.BytesIO()
    canvas.print_png(picture)
    write_whole(path, picture.getvalue())
