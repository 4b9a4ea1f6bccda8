"""The parser of a verb: jsonargparse, with dashes or underscores in flags, and one-line errors that name the flag."""

import json
import re
from argparse import SUPPRESS, Action
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from itertools import pairwise
from pathlib import Path
from types import NoneType
from typing import Any, Literal, NoReturn, get_args, get_origin

from jsonargparse import ArgumentParser, DefaultHelpFormatter, set_parsing_settings

from resnetkit.commands.printing import set_flags
from resnetkit.data.reading import Reading
from resnetkit.display import NAME
from resnetkit.errors import UsageError

MODEL = "a model file, a run folder, NAME:WEIGHTS such as resnet56:cifar10 or resnet50:IMAGENET1K_V2, or hf:OWNER/NAME"
DATA = "cifar10, cifar100, a folder, or a CSV file or other list"
"""Help for the arguments MODEL and DATA of many verbs."""
OTHER_NAMES = {
    "data get": {"folder": "from"},
    "train": {"run_folder": "resume"},
    "evaluate": {"records": "csv"},
    "predict": {"label": "explain_class", "stage": "explain_stage", "coverage": "sets"},
    "convert": {"path": "file"},
    "export": {"path": "out"},
}
"""Verb -> {name of an argument in Python: its name on the command line}, if the two differ."""


class _Help(DefaultHelpFormatter):
    """Formats help: flags with dashes, the type of their value, and the default unless it is None."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30)

    def _format_action_invocation(self, action: Action) -> str:
        if _is_switch(action):
            return dashed(f"--[no_]{action.dest}")
        flags = action.option_strings
        action.option_strings = [dashed(flag) for flag in flags]
        text = super()._format_action_invocation(action)
        action.option_strings = flags
        return text.replace("[ITEM,...]", "NUMBER,...")

    def _get_default_metavar_for_optional(self, action: Action) -> str:
        for kind in get_args(getattr(action, "_typehint", None)):
            if get_origin(kind) is Literal:  # a choice that may be unset
                return f"{{{','.join(get_args(kind))}}}"
        return (self._get_type_str(action) or action.dest).removesuffix(" | null").upper()

    def _get_help_string(self, action: Action) -> str:
        text = action.help or ""
        silent = not action.option_strings or action.nargs == 0 or action.default in (None, (), SUPPRESS)
        if silent:
            return text
        default = ",".join(map(str, action.default)) if _is_list(action) else json.dumps(action.default)
        return f"{text} (default {default})".replace('"', "")


class Parser(ArgumentParser):
    """Reads the arguments of one verb. Raises UsageError if they are wrong."""

    def __init__(self, verb: str, arguments: str, description: str) -> None:
        super().__init__(
            prog=f"resnetkit {verb}",
            usage=f"resnetkit {verb} {arguments}",
            description=description,
            formatter_class=_Help,
            exit_on_error=False,
            allow_abbrev=False,
        )
        self._other_names = OTHER_NAMES.get(verb, {})
        # The docstrings of a dataclass's fields become the help of their flags. The setting changes the whole process,
        # so it is made when the command line runs, and not when this module is imported.
        set_parsing_settings(docstring_parse_attribute_docstrings=True)

    def add_reading(self) -> None:
        """Add the flags for the layout of DATA, one for each field of Reading."""
        self.add_class_arguments(Reading)
        (self.groups or {})[
            "Reading"
        ].title = "layout of DATA, which is detected and printed if it is not given, and corrections"

    @property
    def flags(self) -> dict[str, str]:
        """Field -> its flag, or its word in the usage line, such as DATA."""
        flags = {
            action.dest: dashed(f"--{action.dest}") if action.option_strings else str(action.metavar)
            for action in self._actions
        }
        return flags | {name: flags[own] for name, own in self._other_names.items() if own in flags}

    def show_defaults(self, defaults: Mapping[str, str]) -> None:
        """Show these texts, by name of the flag, instead of the defaults in the help."""
        for action in self._actions:
            if action.dest in defaults:
                action.help = " ".join(filter(None, (action.help, defaults[action.dest])))
                action.default = SUPPRESS

    def read(self, argv: Sequence[str], *, defaults: bool = True) -> dict[str, Any]:
        """Return the arguments by name; without `defaults`, only those that were given.

        From here on, fields in printed messages appear as this verb's flags.
        """
        set_flags(self.flags)
        switches = [action.dest for action in self._actions if _is_switch(action)]
        lists = [action.dest for action in self._actions if _is_list(action)]
        return vars(self.parse_args(_as_fields(argv, switches, lists), defaults=defaults))

    def read_file(self, path: Path) -> dict[str, Any]:
        """Return the arguments in a YAML file, by name.

        Raises UsageError, which names `path`, for an unknown key or a wrong type.
        """
        if not path.is_file():
            raise UsageError(f"{path} does not exist; give a YAML file")
        try:
            text = path.read_text(encoding="utf-8-sig")
        except OSError as error:
            raise UsageError(f"{path} can't be read: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise UsageError(f"{path} is not a text file in UTF-8; give a YAML file") from error
        if not re.sub(r"^---|#.*", "", text, flags=re.MULTILINE).strip():
            return {}
        try:
            values = vars(self.parse_string(text, str(path), defaults=False))
            for action in self._actions:  # jsonargparse accepts null for every field
                if values.get(action.dest, "") is None and NoneType not in get_args(getattr(action, "_typehint", None)):
                    raise UsageError(f"{action.dest} can't be null; give a value or leave it out")
            return values
        except UsageError as error:
            raise UsageError(f"{path}: {as_key(str(error))}") from error

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise UsageError with one line instead of the several lines of jsonargparse."""
        raise UsageError(self._reworded(message)) from ex

    def _reworded(self, message: str) -> str:
        flags = [dashed(flag) for action in self._actions for flag in action.option_strings]
        if found := re.match(r"unrecognized arguments: (\S+)", message):
            flag = dashed(found[1].partition("=")[0])
            return (
                f"unknown flag {flag}{nearest(flag, flags)}"
                if flag[0] == "-"
                else f"{found[1]} is one argument too many"
            )
        if found := re.match(r"Option '(.+?)' is not accepted", message):
            return f"unknown key {found[1]}{nearest(found[1], [action.dest for action in self._actions])}"
        if found := re.match(r'Parser key "(\w+)"', message):
            return f"`{found[1]}` takes {_expected(message)}"
        if found := re.match(r"argument (\S+): expected (.+?) arguments?$", message):
            return f"{dashed(found[1])} needs {'a value' if found[2] == 'one' else found[2]}"
        if found := re.match(r"the following arguments are required: (.+)", message):
            names = {action.dest: str(action.metavar) for action in self._actions}
            return f"{' and '.join(names[name] for name in found[1].split(', '))} missing"
        if message.startswith("Unexpected config"):
            return "expected lines such as `lr: 0.1`"
        return " ".join(message.split()).replace("Problems parsing config", "not YAML")


def dashed(flag: str) -> str:
    """Return a flag in the form of the help, with dashes; fields have underscores."""
    return flag.replace("_", "-")


def as_key(message: str) -> str:
    """Return an error about a file, in which fields are keys and not flags: `batch_size` loses its backticks."""
    return NAME.sub(r"\1", message)


def nearest(name: str, names: Sequence[str]) -> str:
    """Return the end of an error about an unknown name: the most similar known name, or all names if they are few."""
    near = get_close_matches(name, names, n=1)
    return f"; did you mean {near[0]}?" if near else f"; there are {', '.join(names)}" if len(names) < 10 else ""


def _is_switch(action: Action) -> bool:
    return getattr(action, "_typehint", None) is bool


def _is_list(action: Action) -> bool:
    return get_origin(getattr(action, "_typehint", None)) is tuple


def _as_fields(argv: Sequence[str], switches: Sequence[str], lists: Sequence[str]) -> list[str]:
    """Return the arguments in the form of jsonargparse.

    `--batch-size=8` becomes `--batch_size=8`, `--flip` `--flip=true`, `--no-flip` `--flip=false`, and a list such as
    `--jitter 256,480` `--jitter=[256,480]`.
    """
    end = list(argv).index("--") if "--" in argv else len(argv)
    fields: list[str] = []
    for argument, following in pairwise([*argv[:end], ""]):
        flag, equals, value = argument.partition("=")
        if flag.startswith("--"):
            flag = "--" + flag[2:].replace("-", "_")
        if not equals and flag[2:] in switches and following not in ("true", "false"):
            equals, value = "=", "true"
        if not equals and flag.startswith("--no_") and flag[5:] in switches:
            flag, equals, value = f"--{flag[5:]}", "=", "false"
        if equals and flag[2:] in lists:
            value = _bracketed(value)
        elif fields and fields[-1] in [f"--{name}" for name in lists] and flag[:2] != "--":  # the value of a list
            flag = _bracketed(flag)
        fields.append(flag + equals + value)
    return [*fields, *argv[end:]]


def _bracketed(value: str) -> str:
    return value if value.startswith("[") else f"[{value}]"


WORDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "tuple": "a list like [1,2]",
    "NoneType": "null",
}


def _expected(message: str) -> str:
    """Return the types or choices that a flag accepts, and the wrong value, from the long error of jsonargparse."""
    types = re.findall(r"Expected an? (?:<class '(?:\w+\.)*(\w+)'>|typing\.Literal\[(.+?)\])", message)
    names = [WORDS.get(name, name) or choices.replace("'", "") for name, choices in types]
    value = re.search(r"(?:Got|Given) value: (.*)$", message)
    if (count := re.search(r"Expected a tuple with (\d+) elements", message)) and value:
        return f"{count[1]} numbers, not {value[1].strip('[]')}"
    return f"{' or '.join(names)}, not {value[1] if value else 'this'}" if names else " ".join(message.split())
