"""The texts of messages: fields printed as flags, commands that can be pasted, types with their article."""

import shlex
from pathlib import Path

import numpy as np
import pytest

from resnetkit.display import shell, speak, type_of

FLAGS = {"batch_size": "--batch-size", "data": "DATA", "flip": "--flip"}


@pytest.mark.parametrize(
    ("text", "spoken"),
    [
        ("`batch_size` is 0; it must be at least 1", "--batch-size is 0; it must be at least 1"),
        ("give `flip`, or another `data`", "give --flip, or another DATA"),
        (
            "`other` is as it was, as are `batch size` and `Flip`",
            "`other` is as it was, as are `batch size` and `Flip`",
        ),
        ("run `resnetkit data get cifar10`; batch_size, data", "run `resnetkit data get cifar10`; batch_size, data"),
        ("``flip`` and `flip``data`", "`--flip` and --flipDATA"),
    ],
)
def test_fields_as_flags(text: str, spoken: str) -> None:
    assert speak(text, FLAGS) == spoken
    assert speak(text, {}) == text


@pytest.mark.parametrize("path", ["a run", "it's", "$HOME", "plain"])
def test_a_path_in_a_command(path: str) -> None:
    assert shlex.split(f"resnetkit train --resume {shell(Path(path))}")[-1] == path


def test_a_plain_path_has_no_quotes() -> None:
    assert shell("runs/resnet20-cifar10") == "runs/resnet20-cifar10"


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (3, "an int"),
        (Path(), f"a {type(Path()).__name__}"),
        (None, "None"),
        (b"", "bytes"),
        (np.float32(1), "a float32"),
    ],
)
def test_types_in_words(value: object, words: str) -> None:
    assert type_of(value) == words
