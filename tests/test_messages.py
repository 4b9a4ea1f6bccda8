"""How messages of the library name fields, never as flags, and how they quote the paths in commands."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import resnetkit

SOURCE = Path(resnetkit.__file__).parent
FLAG = re.compile(r"--([a-z][\w-]*|\{)")
COMMAND = re.compile(r"(resnetkit [a-z]+|pip install|docker run)[^;:,\n]*")
"""A whole command that a message suggests, as it is typed: here flags are right."""
NOT_PATHS = ("cifar.name", "recipe.model", "verb", "name", "unit", "address", "data", "WEIGHTS_FILE")
"""Values in commands that hold no spaces."""
FILES = sorted(path.relative_to(SOURCE).as_posix() for path in SOURCE.rglob("*.py"))
LIBRARY = [file for file in FILES if file != "cli.py" and not file.startswith("commands/")]


def texts(node: ast.AST) -> Iterator[str]:
    """Every string below `node` but docstrings and the arguments of a command that is a list; {value} for a value."""
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
                yield "".join(
                    str(part.value) if isinstance(part, ast.Constant) else f"{{{ast.unparse(part.value)}}}"
                    for part in parts
                    if isinstance(part, ast.Constant | ast.FormattedValue)
                )
        yield from texts(child)


def flags(source: str) -> list[str]:
    """The flags in the messages of a module; a style sheet has variables that look like flags."""
    messages = [COMMAND.sub("", text) for text in texts(ast.parse(source)) if "var(--" not in text]
    return list(dict.fromkeys(flag[0] for text in messages for flag in FLAG.finditer(text)))


@pytest.mark.parametrize("file", LIBRARY)
def test_a_message_names_no_flag(file: str) -> None:
    assert flags((SOURCE / file).read_text(encoding="utf-8")) == []


def unquoted(source: str) -> list[str]:
    """The values in the commands that a module suggests which may be paths and are not quoted by `shell`."""
    commands = [
        command[0]
        for text in texts(ast.parse(source))
        for command in COMMAND.finditer(text)
        if command[1].startswith("resnetkit")
    ]
    values = [value for command in commands for value in re.findall(r"\{(.+?)\}", command)]
    return [value for value in values if value not in NOT_PATHS and not value.startswith("shell(")]


@pytest.mark.parametrize("file", FILES)
def test_a_path_in_a_command_is_quoted(file: str) -> None:
    assert unquoted((SOURCE / file).read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ('raise UsageError("give a smaller --batch-size")', ["--batch-size"]),
        ('raise UsageError(f"--{name} is {value!r}, or --lr")', ["--{", "--lr"]),
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


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ('say(f"resnetkit train --resume {run.path}, or {other}")', ["run.path"]),
        ('say(f"resnetkit train --resume {shell(run.path)} --model {recipe.model}")', []),
        ('say(f"{path} is a run; resnetkit tune {model}")', ["model"]),
    ],
)
def test_which_paths_are_found(source: str, found: list[str]) -> None:
    assert unquoted(source) == found
