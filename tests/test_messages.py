"""How messages of the library name fields: in backticks under their Python name, never as flags."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import resnetkit

SOURCE = Path(resnetkit.__file__).parent
FLAG = re.compile(r"--[a-z{][\w{}-]*")
COMMAND = re.compile(r"(resnetkit [a-z]+|pip install|docker run)[^;:,\n]*")
"""A whole command that a message suggests, as it is typed: here flags are right."""
TO_CONVERT: tuple[str, ...] = (
    *(f"convert/{file}.py" for file in ("beside", "conversion", "modules", "outgoing", "presets")),
    *(f"convert/files/{file}.py" for file in ("listing", "parts")),
    *(f"convert/naming/{file}.py" for file in ("fitting", "heads", "recognition")),
    *(f"data/{file}.py" for file in ("decoding/pictures", "loader")),
    *("device.py", "evaluation/evaluate.py"),
    *(f"infer/{file}.py" for file in ("backends", "choice", "exports/export", "quantizing/accuracy", "tune")),
    *(f"train/{file}.py" for file in ("checkpoint", "compute", "effects", "loop", "memory", "recipe", "run", "task")),
    "train/timing.py",
)
"""Files whose messages still name flags."""
FILES = sorted(path.relative_to(SOURCE).as_posix() for path in SOURCE.rglob("*.py"))
LIBRARY = [file for file in FILES if file != "cli.py" and not file.startswith("commands/")]


def texts(node: ast.AST) -> Iterator[str]:
    """Every string below `node` but docstrings and the arguments of a command that is a list; {} for a value."""
    for child in ast.iter_child_nodes(node):
        match node, child:
            case ast.Expr(), ast.Constant():
                continue
            case ast.List(), ast.Constant(value=str(text)) if FLAG.match(text) and " " not in text:
                continue
            case ast.JoinedStr(), ast.Constant():
                continue
        match child:
            case ast.Constant(value=str(text)):
                yield text
            case ast.JoinedStr(values=parts):
                yield "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in parts)
        yield from texts(child)


def flags(source: str) -> list[str]:
    """The flags in the messages of a module; a style sheet has variables that look like flags."""
    messages = [COMMAND.sub("", text) for text in texts(ast.parse(source)) if "var(--" not in text]
    return [flag[0] for text in messages for flag in FLAG.finditer(text)]


@pytest.mark.parametrize("file", [file for file in LIBRARY if file not in TO_CONVERT])
def test_a_message_names_no_flag(file: str) -> None:
    assert flags((SOURCE / file).read_text(encoding="utf-8")) == []


def test_a_file_that_is_converted_leaves_the_list() -> None:
    assert [file for file in TO_CONVERT if not flags((SOURCE / file).read_text(encoding="utf-8"))] == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ('raise UsageError("give a smaller --batch-size")', ["--batch-size"]),
        ('raise UsageError(f"--{name} is {value!r}, or --lr")', ["--{}", "--lr"]),
        ("""f"{f'give --lr {rate}' if rate else ''}" """, ["--lr"]),
        ('STYLE = "html { --ink: black; color: var(--ink) }"', []),
        ('say("go on with: resnetkit train --resume RUN --minutes 3, or give --lr")', ["--lr"]),
        ('say(f"Go on with: resnetkit train {data} --init {run}; it is whole")', []),
        ('run([npm, "pack", "--ignore-scripts", "with --force"])', ["--force"]),
        ('"""A docstring on --cpus."""\nsize = 3\n"""As --size."""', []),
        ('say("a -- b")', []),
    ],
)
def test_which_flags_are_found(source: str, found: list[str]) -> None:
    assert flags(source) == found
