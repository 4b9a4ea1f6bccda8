"""The progress of long work: on a terminal, in a notebook, and in other output."""

import os
import pty
import re
import sys
import time
from contextlib import suppress
from pathlib import Path
from threading import Thread

import pytest

from resnetkit import progress
from resnetkit.progress import Display, Far, bar


def test_far_in_words():
    assert str(Far("reading", 5, 1000, "pictures", 61.4)) == "reading: 5 of 1,000 pictures  1:01 left"
    assert str(Far("", 12, None, "steps", None, "loss 1.0")) == "12 steps  loss 1.0"
    assert Far("", 0, 1, "steps", 3725.0).left == "1:02:05"
    assert Far("", 0, 1, "steps", -2.0).left == "0:00", "what is over takes no negative time"
    assert str(Far("measuring", 0, None, "")) == "measuring"


@pytest.mark.parametrize(("every", "expected"), [(0.0, "reading: 5 of 10 pictures  0:00 left\n"), (1e9, "")])
def test_lines_where_there_is_no_terminal(every, expected, capsys, monkeypatch):
    monkeypatch.setattr(progress, "LINE_EVERY", every)
    with bar("reading", 10) as advance:
        capsys.readouterr()
        advance(5)
        assert re.sub(r"\d:\d\d", "0:00", capsys.readouterr().err) == expected
    assert capsys.readouterr().out == ""


@pytest.fixture
def terminal(monkeypatch):
    """A terminal of 80 columns: the stream to write to, and a function that waits until it shows some words."""
    ours, theirs = pty.openpty()
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    shown = bytearray()

    def read() -> None:
        with suppress(OSError):  # the other end is closed
            while part := os.read(ours, 1 << 16):
                shown.extend(part)

    reader = Thread(target=read, daemon=True)
    reader.start()

    def text(words: str) -> str:
        while words not in (plain := re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", shown.decode(errors="ignore"))):
            time.sleep(0.01)
        return plain

    with os.fdopen(theirs, "w") as stream:
        yield stream, text
    reader.join()
    os.close(ours)


def test_a_bar_on_a_terminal(terminal, monkeypatch):
    stream, text = terminal
    monkeypatch.setattr(sys, "stderr", stream)
    with bar("reading", 1000) as advance:
        advance(500)
        shown = text("500 of 1,000 pictures 0")
    line = next(part for part in re.split(r"[\r\n]+", shown) if "500 of 1,000 pictures" in part)
    assert re.fullmatch(r"reading [━╸╺]{20,} 500 of 1,000 pictures \d:\d\d *", line)
    assert len(line) in (79, 80)
    assert "None" not in shown
    assert "--:--" not in shown


def test_a_step_of_training_fits_80_columns(terminal, monkeypatch):
    stream, text = terminal
    monkeypatch.setattr(sys, "stderr", stream)
    note = "loss 1.234  error 45.6 %  1,234 images/s"
    with Display() as display:
        display.show(Far("", 12345, 64000, "steps", 3725.0, note))
        shown = text("images/s")
    assert re.search(r"━+ 12,345 of 64,000 steps 1:02:05 " + re.escape(note), shown)


def test_a_closed_pipe_is_noted_and_disturbs_nothing(monkeypatch):
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        with Display() as display:
            display.say("read")
            assert os.read(reader, 99) == b"read\n"
            assert not display.closed
            os.close(reader)
            display.say("not read")
            display.say("not read either")
        assert display.closed
        monkeypatch.undo()
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # for what is left in its buffer


@pytest.mark.parametrize("stream", [None, "/dev/full"])
def test_standard_error_that_takes_nothing(stream, monkeypatch):
    if stream and not Path(stream).exists():
        pytest.skip("this system has no /dev/full")
    file = open(stream, "w") if stream else None  # noqa: SIM115, PTH123
    monkeypatch.setattr(sys, "stderr", file)
    with bar("reading", 10) as advance, Display() as display:
        advance(5)
        display.say("nobody reads this")
    assert not display.closed, "the work goes on"
    monkeypatch.undo()
    if file:
        os.dup2(os.open(os.devnull, os.O_WRONLY), file.fileno())
        file.close()


def test_a_bar_in_a_notebook_needs_no_widgets():
    """A real kernel runs a cell; what it shows meanwhile is read."""
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    cell = """
from resnetkit import progress
progress.NOTEBOOK_EVERY = 0.0
with progress.bar("reading", 4) as advance:
    advance(3)
"""
    shown = []

    class Client(nbclient.NotebookClient):
        def process_message(self, message, *place):
            if message["msg_type"] in ("display_data", "update_display_data"):
                shown.append(message["content"]["data"])
            return super().process_message(message, *place)

    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell)])
    Client(notebook, timeout=120, kernel_name="python3").execute()
    begun, later, gone = shown
    assert begun["text/plain"] == "reading: 0 of 4 pictures"
    assert later["text/html"].startswith('<progress value="3" max="4"></progress> reading: 3 of 4 pictures')
    assert set(gone.values()) == {""}
